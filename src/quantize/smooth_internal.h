/* What the files of outlier suppression share. */
#ifndef TARE_QUANTIZE_SMOOTH_INTERNAL_H
#define TARE_QUANTIZE_SMOOTH_INTERNAL_H

#include <math.h>

#include "base/carver.h"
#include "quantize/smooth.h"
#include "tensor/kernels.h"
#include "tensor/round.h"

enum { SMOOTH_BLOCK = 256 }; /* rows of weights or inputs in work at a time */
#define SMOOTH_FLOOR 1e-5f   /* of column maxima and of s */

struct smooth_stats {
    struct smooth_stats *self;
    smooth_method method;
    const char *source, *target; /* for messages */
    size_t channels;
    float *max, *min; /* [C] M and m */
    float *theta;     /* [C] m2 */
    /* What an update works in. */
    unsigned char *wrong; /* [pieces] NaN or infinity seen */
    float *centre;        /* [C] m2 */
    double *sums;         /* [2,pieces] m2: sum and sum of squares of x - centre */
    float sigma;          /* m2 */
    size_t first_rows, rows, samples;
    size_t bad_sample; /* 1 + index of the first with NaN or infinity; 0: none */
};

/* Maxima of |W| over the rows of all targets. */
typedef struct smooth_scan {
    float *columns; /* [threads,C], the first C: not clamped */
    float *stored;  /* the same over those that stay FLOAT in fewer bits than FP32; NULL: none */
    float *rows;    /* [threads,C] in work */
    size_t threads, channels;
    tare_dtype stored_dtype;
    size_t zero_columns, zero_rows;
} smooth_scan;

/* One search or formula: everything that it may look at, and where it puts s [C]. */
typedef struct smooth_task {
    tare_context *ctx;
    const smooth_config *cfg;
    const smooth_group *g;
    const smooth_stats *stats;
    const smooth_inputs *inputs;
    const smooth_scan *scan;
    tare_dtype native; /* F16, BF16: operations are rounded to it; F32: not */
    smooth_scales *out;
    float *row; /* [K] of the source, in work */
} smooth_task;

/* TARE_E_NUMERIC (or `status`) with source, first target and C in front. */
tare_status smooth_fail(tare_context *ctx, tare_status status, const smooth_group *g,
                        const char *what);
/* out[count] <- columns [first, first+count) of one row as it stands. */
void smooth_weight_part(const kernels *ops, const smooth_weight *w, size_t row, size_t first,
                        size_t count, float *out);
/* NaN or infinity in a target: TARE_E_NUMERIC. */
tare_status smooth_scan_targets(tare_context *ctx, const smooth_group *g, smooth_scan *out);
void smooth_scan_free(tare_context *ctx, smooth_scan *scan);

static inline float smooth_largest(const smooth_stats *stats, size_t c)
{
    return fmaxf(stats->max[c], -stats->min[c]);
}

/* b of section 1.3, as it stands. */
static inline float smooth_centre(const smooth_stats *stats, size_t c, tare_dtype native)
{
    return round_native(round_native(stats->max[c] + stats->min[c], native) / 2, native);
}

/* x^exponent, rounded to `native`. */
float smooth_power(float x, double exponent, tare_dtype native);
/* max(1e-5, a^alpha / w^beta), the clamp of w included. */
float smooth_ratio(float a, float w, double alpha, double beta, tare_dtype native);

/* The methods: s into out->s. m4 and m6 fill out->r of linear sources too. */
tare_status smooth_solve_ratio(const smooth_task *t, double alpha, double beta);
tare_status smooth_solve_m2(const smooth_task *t);
tare_status smooth_solve_m3(const smooth_task *t);
tare_status smooth_solve_m5(const smooth_task *t);
tare_status smooth_solve_balance(const smooth_task *t);
/* Accounted bytes of a method, at most. */
size_t smooth_m5_bytes(const tare_context *ctx, const smooth_group *g);
size_t smooth_m2_bytes(const tare_context *ctx, const smooth_group *g, size_t first_rows);
size_t smooth_m3_bytes(const tare_context *ctx, const smooth_config *cfg, const smooth_group *g,
                       size_t first_rows);
size_t smooth_m6_bytes(const tare_context *ctx, const smooth_config *cfg, const smooth_group *g,
                       size_t rows);
size_t smooth_scan_bytes(const tare_context *ctx, size_t channels);
size_t smooth_apply_bytes(const tare_context *ctx, const smooth_group *g);
/* Sets out->alpha and out->beta, for smooth_solve_ratio. */
tare_status smooth_search_m6(const smooth_task *t);

#endif
