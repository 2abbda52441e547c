/* The lowest and highest value of each channel over all rows that were seen. */
#ifndef TARE_QUANTIZE_CHANNEL_RANGE_H
#define TARE_QUANTIZE_CHANNEL_RANGE_H

#include "base/context.h"

/* [channels] each, the caller's: whole numbers that order as the floats do, -NaN first, NaN last,
 * whose extremes vectorize and keep NaN. */
typedef struct channel_range {
    int32_t *low, *high;
} channel_range;

/* As before the first row: each channel's low is NaN. */
void channel_range_clear(const channel_range *r, size_t channels);
/* x [rows,channels]. Parallel; needs no memory. */
void channel_range_update(tare_context *ctx, const channel_range *r, const float *x, size_t rows,
                          size_t channels);
float channel_low(const channel_range *r, size_t channel);
float channel_high(const channel_range *r, size_t channel);
void channel_range_set(const channel_range *r, size_t channel, float low, float high);

#endif
