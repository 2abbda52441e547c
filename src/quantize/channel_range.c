#include "quantize/channel_range.h"

#include <string.h>

#include "base/parallel.h"
#include "base/sizes.h"
#include "tensor/round.h"

enum { PIECE = 64 }; /* channels of one piece of work */

/* Its own inverse, on bits. */
static inline int32_t ordered(uint32_t bits)
{
    return (int32_t)(bits ^ (-(bits >> 31) & 0x7fffffffu));
}

static inline float value_of(int32_t order)
{
    return bits_to_float((uint32_t)ordered((uint32_t)order));
}

void channel_range_clear(const channel_range *r, size_t channels)
{
    for (size_t c = 0; c < channels; c++) {
        r->low[c] = INT32_MAX;
        r->high[c] = INT32_MIN;
    }
}

typedef struct range_job {
    const channel_range *range;
    const float *x;
    size_t rows, channels;
} range_job;

static void one_piece(void *user, size_t index, int thread)
{
    const range_job *job = user;
    size_t first = index * PIECE, count = size_min(job->channels - first, PIECE);
    const float *x = job->x + first;
    int32_t low[PIECE], high[PIECE];
    (void)thread;
    memcpy(low, job->range->low + first, count * sizeof *low);
    memcpy(high, job->range->high + first, count * sizeof *high);
    for (size_t row = 0; row < job->rows; row++, x += job->channels) {
        for (size_t c = 0; c < count; c++) {
            int32_t order = ordered(float_to_bits(x[c]));
            low[c] = order < low[c] ? order : low[c];
            high[c] = order > high[c] ? order : high[c];
        }
    }
    memcpy(job->range->low + first, low, count * sizeof *low);
    memcpy(job->range->high + first, high, count * sizeof *high);
}

void channel_range_update(tare_context *ctx, const channel_range *r, const float *x, size_t rows,
                          size_t channels)
{
    range_job job = {r, x, rows, channels};
    parallel_for(ctx, size_divide_up(channels, PIECE), one_piece, &job);
}

float channel_low(const channel_range *r, size_t channel)
{
    return value_of(r->low[channel]);
}

float channel_high(const channel_range *r, size_t channel)
{
    return value_of(r->high[channel]);
}

void channel_range_set(const channel_range *r, size_t channel, float low, float high)
{
    r->low[channel] = ordered(float_to_bits(low));
    r->high[channel] = ordered(float_to_bits(high));
}
