/* Score of a linear's input (spec/w8a8.md 6.2): max|x| over the spread of x around its column
 * centres. High = hard to quantize. */
#ifndef TARE_QUANTIZE_SCORE_H
#define TARE_QUANTIZE_SCORE_H

#include "quantize/scheme.h"

enum { SCORE_SAMPLES = 5 }; /* only the first samples are scored */
#define SCORE_HISTOGRAM_LIMIT                                                                      \
    50.0 /* act_method 3: histogram up to this, mean of extremes beyond                            \
          */

typedef struct score_state {
    double min, max, std;
    size_t calls;
} score_state;

void score_init(score_state *s);
/* One call: x [rows, cols]. `scratch` [2*cols] floats. */
tare_status score_update(tare_context *ctx, const numerics *num, score_state *s, const float *x,
                         size_t rows, size_t cols, float *scratch);
/* Accounted bytes of score_update, at most. */
size_t score_update_bytes(size_t cols);
/* The same in two steps, for an input whose columns are scaled later: what one call leaves of each
 * column is enough for any scale. Default mode only: compat rounds every element's steps. */
typedef struct score_columns {
    size_t rows, cols;
    float *low, *high; /* [cols] extremes */
    double *mean, *m2; /* [cols] mean, sum of squared distances from it */
} score_columns;

/* x [rows, cols], rows and cols > 0. Parallel. */
tare_status score_columns_create(tare_context *ctx, const float *x, size_t rows, size_t cols,
                                 score_columns *out);
void score_columns_free(tare_context *ctx, score_columns *c);
/* One call with (x - shift) / scale: [cols]; NULL: 0 and 1. */
void score_update_scaled(score_state *s, const score_columns *c, const float *scale,
                         const float *shift);
double score_value(const numerics *num, const score_state *s);

#endif
