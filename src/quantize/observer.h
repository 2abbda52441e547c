/* Observers of activation ranges (spec/w8a8.md 4.2 to 4.4, compat 9.1 to 9.3). One update = one
 * call of the layer = one sample, whatever its length; the order of updates matters. */
#ifndef TARE_QUANTIZE_OBSERVER_H
#define TARE_QUANTIZE_OBSERVER_H

#include "quantize/scheme.h"

typedef enum observer_kind {
    OBSERVER_MEAN_EXTREMES = 1, /* act_method 1 */
    OBSERVER_HISTOGRAM = 2,     /* act_method 2 */
    OBSERVER_MSE = 3            /* act_method 4, of inputs that a norm puts out; never in compat */
} observer_kind;

typedef struct observer observer;

tare_status observer_create(tare_context *ctx, observer_kind kind, const numerics *num,
                            observer **out);
void observer_free(tare_context *ctx, observer *o);
/* x [count]: in compat mode values representable in numerics.dtype. count 0 is skipped. NaN or
 * infinity: TARE_E_NUMERIC. */
tare_status observer_update(tare_context *ctx, observer *o, const float *x, size_t count);
/* Range of all updates so far; TARE_E_NUMERIC without any. For the histogram: the greedy L2 search;
 * for the mean squared error: ends among fractions of the extremes (range_mse.c). */
tare_status observer_range(tare_context *ctx, const observer *o, double *lo, double *hi);
/* observer_range, then act_params_from_range. */
tare_status observer_params(tare_context *ctx, const observer *o, act_params *out);

/* What an input's updates say, whatever the observer's kind: the extremes of all, and the range of
 * each observer_kind, by its number (0 and 0 for what compat has not). */
enum { RANGE_EXTREMES, INPUT_RANGES = OBSERVER_MSE + 1 };
typedef struct input_ranges {
    double low[INPUT_RANGES], high[INPUT_RANGES];
} input_ranges;

/* False without an update. */
bool observer_ranges(const observer *o, input_ranges *out);

/* Accounted bytes, at most, of one that sees `samples` samples; and what an update needs beside. */
size_t observer_bytes(size_t samples);
size_t observer_update_bytes(const tare_context *ctx);
bool observer_reached(const observer *o);

/* FP32 sum of n contiguous values in PyTorch's CPU order (9.2). */
float torch_sum(const float *x, size_t n);

#endif
