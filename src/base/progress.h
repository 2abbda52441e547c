/* Progress of a long call towards the context's callback, with an estimate of the time that is
 * left. */
#ifndef TARE_BASE_PROGRESS_H
#define TARE_BASE_PROGRESS_H

#include "base/context.h"

typedef struct progress {
    tare_context *ctx;
    const char *stage, *unit;
    size_t done, total, skipped;
    double started; /* of the stage, seconds */
} progress;

/* Seconds of a monotonic clock. */
double clock_seconds(void);
void progress_begin(progress *p, tare_context *ctx, const char *stage, const char *unit,
                    size_t total);
/* Within unit `done`: `sample` of `samples` are through. */
void progress_sample(progress *p, size_t sample, size_t samples);
void progress_unit_done(progress *p);
/* The first `units` were done by an earlier process. */
void progress_skip(progress *p, size_t units);

#endif
