/* Which attention modules go without FA quantization: the score of a tensor, and the choice. */
#include <math.h>
#include <string.h>

#include "base/carver.h"
#include "base/parallel.h"
#include "base/sort.h"
#include "quantize/fa3.h"
#include "tensor/round.h"

enum { BINS = 100 };

typedef struct score_job {
    const fa_input *in;
    size_t heads, tokens, threads;
    /* Of |x|, a head each, as the bits of non-negative floats: those order as the floats do, and
     * integer extremes vectorize. */
    uint32_t *min, *max;
    float edges[BINS + 1];
    float per_step;   /* 1/step; 0: the step is too small for it */
    uint64_t *counts; /* [threads, BINS] */
} score_job;

static void lay_out(carver *c, void *component)
{
    score_job *job = component;
    job->min = carve(c, job->heads, sizeof *job->min);
    job->max = carve(c, job->heads, sizeof *job->max);
    job->counts = carve(c, job->threads, BINS * sizeof *job->counts);
}

static const float *head_row(const score_job *job, size_t head, size_t token)
{
    return job->in->x + token * job->in->row_stride + head * job->in->head_dim;
}

static void head_extremes(void *user, size_t head, int thread)
{
    const score_job *job = user;
    uint32_t min = UINT32_MAX, max = 0;
    (void)thread;
    for (size_t t = 0; t < job->tokens; t++) {
        const float *x = head_row(job, head, t);
        for (size_t d = 0; d < job->in->head_dim; d++) {
            uint32_t bits = float_to_bits(x[d]) & 0x7fffffffu;
            min = bits < min ? bits : min;
            max = bits > max ? bits : max;
        }
    }
    job->min[head] = min;
    job->max[head] = max;
}

/* The fused multiply-add is part of the definition: near-ties are common and decide the order. */
static void make_edges(score_job *job, float low, float high)
{
    float step = (high - low) / BINS;
    for (int i = 0; i < BINS / 2; i++)
        job->edges[i] = fmaf(step, (float)i, low);
    for (int i = BINS / 2; i <= BINS; i++)
        job->edges[i] = fmaf(-step, (float)(BINS - i), high);
    job->per_step = step >= 0x1p-100f ? 1.0f / step : 0.0f;
}

/* A guess by the step, corrected by the edges themselves. */
static int bin_of(const score_job *job, float a)
{
    int b = (int)((a - job->edges[0]) * job->per_step);
    b = b > BINS - 1 ? BINS - 1 : b;
    while (b > 0 && a < job->edges[b])
        b--;
    while (b < BINS - 1 && a >= job->edges[b + 1])
        b++;
    return b;
}

static void count_head(void *user, size_t head, int thread)
{
    const score_job *job = user;
    uint64_t *counts = job->counts + (size_t)thread * BINS;
    for (size_t t = 0; t < job->tokens; t++) {
        const float *x = head_row(job, head, t);
        for (size_t d = 0; d < job->in->head_dim; d++)
            counts[bin_of(job, fabsf(x[d]))]++;
    }
}

/* The edge above which hardly anything lies: h[j-1] and h[j-2] are the bins just below e[j]. */
static float tail_edge(const score_job *job, const uint64_t *h, size_t count)
{
    int j = BINS;
    while (j > 2 && !((double)(h[j - 1] + h[j - 2]) > 0.002 * (double)count))
        j--;
    return job->edges[j];
}

tare_status fa_score(tare_context *ctx, const fa_input *in, size_t heads, size_t tokens,
                     float *score)
{
    tare_status status = TARE_OK;
    size_t threads = (size_t)parallel_threads(ctx);
    score_job job = {.in = in, .heads = heads, .tokens = tokens, .threads = threads};
    TRY(carver_alloc(ctx, lay_out, &job));
    memset(job.counts, 0, threads * BINS * sizeof *job.counts);
    parallel_for(ctx, heads, head_extremes, &job);
    uint32_t low = UINT32_MAX, high = 0;
    for (size_t h = 0; h < heads; h++) {
        low = job.min[h] < low ? job.min[h] : low;
        high = job.max[h] > high ? job.max[h] : high;
    }
    float min = bits_to_float(low), max = bits_to_float(high);
    if (min == max)
        make_edges(&job, min - 0.5f, max + 0.5f);
    else
        make_edges(&job, min, max);
    parallel_for(ctx, heads, count_head, &job);
    for (size_t t = 1; t < threads; t++)
        for (int b = 0; b < BINS; b++)
            job.counts[b] += job.counts[t * BINS + (size_t)b];
    float ratio = tail_edge(&job, job.counts, heads * tokens * in->head_dim) / max;
    *score = 1.0f / ratio;
done:
    mem_free(ctx, job.min);
    return status;
}

size_t fa_score_bytes(const tare_context *ctx, size_t heads)
{
    score_job job = {.heads = heads, .threads = (size_t)parallel_threads(ctx)};
    return carver_bytes(lay_out, &job);
}

/* ---- the choice ---- */

/* A module counts with the worst of its tensors. */
static float worst_score(const fa_module *m)
{
    return fmaxf(m->scores[FA_Q], fmaxf(m->scores[FA_K], m->scores[FA_V]));
}

/* Both point into one array, so that the address is the module's place. */
static int compare_modules(const void *a, const void *b)
{
    float x = worst_score(a), y = worst_score(b);
    if (x != y)
        return x > y ? -1 : 1;
    return (uintptr_t)a < (uintptr_t)b ? -1 : (uintptr_t)a > (uintptr_t)b;
}

static void log_choice(tare_context *ctx, const fa_module *modules, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        const fa_module *m = &modules[i];
        TARE_INFO(ctx, "fa_amp: %s: scores q %.5f, k %.5f, v %.5f%s", m->name,
                  (double)m->scores[FA_Q], (double)m->scores[FA_K], (double)m->scores[FA_V],
                  m->fallback ? ": without FA quantization" : "");
    }
}

tare_status fa_fall_back(tare_context *ctx, fa_module *modules, size_t count, size_t fa_amp)
{
    if (fa_amp > count) {
        TARE_WARN(ctx, "`fa_amp` exceeds the total attention layer number. Therefore, only up to "
                       "the total attention layers will skip quantization");
        fa_amp = count;
    }
    void **order = mem_alloc_array(ctx, count, sizeof *order);
    if (!order)
        return TARE_E_MEMORY;
    for (size_t i = 0; i < count; i++) {
        order[i] = &modules[i];
        modules[i].fallback = false;
    }
    sort_pointers(order, count, compare_modules);
    for (size_t i = 0; i < fa_amp; i++)
        ((fa_module *)order[i])->fallback = true;
    log_choice(ctx, modules, count);
    mem_free(ctx, order);
    return TARE_OK;
}
