/* The score of an input that will be scaled: extremes, mean and spread of each column. A scale and
 * a shift move extremes as they move elements (both are monotonic, roundings included), means as
 * they move any value, and leave of a spread its square of the scale. */
#include <math.h>

#include "base/carver.h"
#include "base/parallel.h"
#include "quantize/score.h"

enum { PIECE_COLS = 64 };

typedef struct columns_job {
    const float *x;
    score_columns *c;
} columns_job;

static void lay_out(carver *c, void *component)
{
    score_columns *s = component;
    s->low = carve(c, s->cols, sizeof *s->low);
    s->high = carve(c, s->cols, sizeof *s->high);
    s->mean = carve(c, s->cols, sizeof *s->mean);
    s->m2 = carve(c, s->cols, sizeof *s->m2);
}

/* Sums are taken of distances from the first row, so that a constant column has no spread at all.
 */
static void columns_piece(void *user, size_t index, int thread)
{
    (void)thread;
    const columns_job *job = user;
    score_columns *c = job->c;
    size_t first = index * PIECE_COLS,
           n = c->cols - first < PIECE_COLS ? c->cols - first : PIECE_COLS;
    const float *x = job->x + first;
    float *low = c->low + first, *high = c->high + first;
    double sum[PIECE_COLS] = {0}, squares[PIECE_COLS] = {0};
    for (size_t i = 0; i < n; i++)
        low[i] = high[i] = x[i];
    for (size_t r = 0; r < c->rows; r++) {
        const float *row = x + r * c->cols;
        for (size_t i = 0; i < n; i++) {
            double d = (double)row[i] - (double)x[i];
            low[i] = row[i] < low[i] ? row[i] : low[i];
            high[i] = row[i] > high[i] ? row[i] : high[i];
            sum[i] += d;
            squares[i] += d * d;
        }
    }
    for (size_t i = 0; i < n; i++) {
        c->mean[first + i] = x[i] + sum[i] / (double)c->rows;
        c->m2[first + i] = isfinite(squares[i]) /* else NaN or infinity was seen */
                               ? fmax(squares[i] - sum[i] * sum[i] / (double)c->rows, 0.0)
                               : NAN;
    }
}

tare_status score_columns_create(tare_context *ctx, const float *x, size_t rows, size_t cols,
                                 score_columns *out)
{
    tare_status status = TARE_OK;
    *out = (score_columns){.rows = rows, .cols = cols};
    columns_job job = {.x = x, .c = out};
    TRY(carver_alloc(ctx, lay_out, out));
    parallel_for(ctx, size_divide_up(cols, PIECE_COLS), columns_piece, &job);
    for (size_t i = 0; i < cols; i++) {
        if (isnan(out->m2[i]))
            TRY(TARE_FAIL(ctx, TARE_E_NUMERIC, "an activation is NaN or infinite"));
    }
done:
    if (status != TARE_OK)
        score_columns_free(ctx, out);
    return status;
}

void score_columns_free(tare_context *ctx, score_columns *c)
{
    mem_free(ctx, c->low);
    *c = (score_columns){0};
}

typedef struct scaled_column {
    double low, high, mean, m2; /* mean: from the column's centre */
} scaled_column;

static scaled_column scaled(const score_columns *c, size_t i, const float *scale,
                            const float *shift)
{
    float s = scale ? scale[i] : 1, b = shift ? shift[i] : 0;
    scaled_column r = {.low = (c->low[i] - b) / s, .high = (c->high[i] - b) / s};
    r.mean = (c->mean[i] - (double)b) / (double)s - (r.high + r.low);
    r.m2 = c->m2[i] / ((double)s * (double)s);
    return r;
}

/* Means, too, are taken from the first column's. */
void score_update_scaled(score_state *s, const score_columns *c, const float *scale,
                         const float *shift)
{
    double base = scaled(c, 0, scale, shift).mean, sum = 0.0, m2 = 0.0;
    double count = (double)c->rows * (double)c->cols;
    for (size_t i = 0; i < c->cols; i++) {
        scaled_column r = scaled(c, i, scale, shift);
        sum += r.mean - base;
        s->min = s->calls == 0 && i == 0 ? r.low : fmin(s->min, r.low);
        s->max = s->calls == 0 && i == 0 ? r.high : fmax(s->max, r.high);
    }
    double mean = sum / (double)c->cols;
    for (size_t i = 0; i < c->cols; i++) {
        scaled_column r = scaled(c, i, scale, shift);
        double distance = r.mean - base - mean;
        m2 += r.m2 + (double)c->rows * distance * distance;
    }
    s->std = fmax(s->std, count > 1.0 ? sqrt(m2 / (count - 1.0)) : 0.0);
    s->calls++;
}
