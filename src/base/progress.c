/* The estimate assumes that units cost alike; within the first unit there is none. */
#include "base/progress.h"

#include <time.h>

double clock_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void report(const progress *p, size_t sample, size_t samples)
{
    if (!p->ctx->options.progress)
        return;
    double done = (double)p->done + (samples ? (double)sample / (double)samples : 0);
    double elapsed = clock_seconds() - p->started;
    tare_progress t = {.stage = p->stage,
                       .unit = p->unit,
                       .done = p->done,
                       .total = p->total,
                       .sample = sample,
                       .samples = samples,
                       .eta_seconds = p->done > p->skipped ? elapsed / (done - (double)p->skipped) *
                                                                 ((double)p->total - done)
                                                           : -1};
    pthread_mutex_lock(&p->ctx->callback_lock);
    p->ctx->options.progress(p->ctx->options.user, &t);
    pthread_mutex_unlock(&p->ctx->callback_lock);
}

void progress_begin(progress *p, tare_context *ctx, const char *stage, const char *unit,
                    size_t total)
{
    *p = (progress){
        .ctx = ctx, .stage = stage, .unit = unit, .total = total, .started = clock_seconds()};
    report(p, 0, 0);
}

void progress_sample(progress *p, size_t sample, size_t samples)
{
    report(p, sample, samples);
}

void progress_unit_done(progress *p)
{
    p->done++;
    report(p, 0, 0);
}

void progress_skip(progress *p, size_t units)
{
    p->done = p->skipped = units;
    report(p, 0, 0);
}
