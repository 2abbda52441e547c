#include "quantize/channel_max.h"

#include <string.h>

#include "base/parallel.h"
#include "tensor/round.h"

enum { PIECE = 64 }; /* channels of one piece of work */

typedef struct max_job {
    uint32_t *max;
    const float *x;
    size_t rows, channels;
} max_job;

static void one_piece(void *user, size_t index, int thread)
{
    const max_job *job = user;
    size_t first = index * PIECE, count = size_min(job->channels - first, PIECE);
    const float *x = job->x + first;
    uint32_t max[PIECE];
    (void)thread;
    memcpy(max, job->max + first, count * sizeof *max);
    for (size_t row = 0; row < job->rows; row++, x += job->channels) {
        for (size_t c = 0; c < count; c++) {
            uint32_t bits = float_to_bits(x[c]) & 0x7fffffffu;
            max[c] = bits > max[c] ? bits : max[c];
        }
    }
    memcpy(job->max + first, max, count * sizeof *max);
}

void channel_max_update(tare_context *ctx, uint32_t *max, const float *x, size_t rows,
                        size_t channels)
{
    max_job job = {max, x, rows, channels};
    parallel_for(ctx, size_divide_up(channels, PIECE), one_piece, &job);
}
