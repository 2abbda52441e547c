/* The largest magnitude of each channel over all rows that were seen. */
#ifndef TARE_QUANTIZE_CHANNEL_MAX_H
#define TARE_QUANTIZE_CHANNEL_MAX_H

#include "base/memory.h"

/* max [channels] of |x| as the bits of non-negative floats, 0 to begin with: those order as the
 * floats do, NaN and infinity last, and integer maxima vectorize. x [rows,channels]. Parallel;
 * needs no memory. */
void channel_max_update(tare_context *ctx, uint32_t *max, const float *x, size_t rows,
                        size_t channels);

#endif
