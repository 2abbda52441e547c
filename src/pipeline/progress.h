/* Progress of a run towards the context's callback, with an estimate of the time that is left. */
#ifndef TARE_PIPELINE_PROGRESS_H
#define TARE_PIPELINE_PROGRESS_H

#include "base/context.h"

typedef struct progress {
    tare_context *ctx;
    const char *stage;
    size_t done, total;
    double started; /* of the stage, seconds */
} progress;

/* Seconds of a monotonic clock. */
double clock_seconds(void);
void progress_begin(progress *p, tare_context *ctx, const char *stage, size_t total);
/* Within unit `done`: `sample` of `samples` are through. */
void progress_sample(progress *p, size_t sample, size_t samples);
void progress_unit_done(progress *p);

#endif
