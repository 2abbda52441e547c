/* The score of a linear's input: how far its largest value stands out. */
#include "quantize/score.h"

#include <math.h>

#include "base/carver.h"
#include "base/parallel.h"
#include "tensor/convert.h"
#include "tensor/kernels.h"
#include "tensor/round.h"

/* PIECE_COLS: columns of one piece of parallel work. Fixed, since partial results are combined in
 * the order of the columns. */
enum { PIECE_COLS = 256, LANES = 4 };

typedef struct score_part {
    float min, max;
    bool finite;
    double count, mean, m2; /* of x - shift; m2: sum of squared distances from the mean */
} score_part;

typedef struct score_job {
    const kernels *kern;
    tare_dtype step; /* F32, or compat: each operation's dtype */
    bool compat;
    const float *x;
    size_t rows, cols;
    float *low, *high; /* [cols] */
    score_part *parts; /* [pieces] */
} score_job;

static size_t piece_count(size_t cols)
{
    return size_divide_up(cols, PIECE_COLS);
}

static void lay_out(carver *c, void *component)
{
    score_job *job = component;
    job->parts = carve(c, piece_count(job->cols), sizeof *job->parts);
}

static void column_extremes(const score_job *job, size_t begin, size_t end)
{
    for (size_t c = begin; c < end; c++)
        job->low[c] = job->high[c] = job->x[c];
    for (size_t r = 1; r < job->rows; r++) {
        const float *x = job->x + r * job->cols;
        for (size_t c = begin; c < end; c++) {
            job->low[c] = x[c] < job->low[c] ? x[c] : job->low[c];
            job->high[c] = x[c] > job->high[c] ? x[c] : job->high[c];
        }
    }
}

static bool piece_finite(const score_job *job, size_t begin, size_t end)
{
    bool finite = true;
    float min, max;
    for (size_t r = 0; r < job->rows; r++)
        job->kern->min_max(job->x + r * job->cols + begin, end - begin, &min, &max, &finite);
    return finite;
}

static inline double centred(bool compat, tare_dtype step, float x, float low, float high)
{
    if (compat)
        return round_native(x - round_native(high + low, step), step);
    return (double)x - ((double)high + (double)low);
}

/* Four sums at a time, in a fixed order, so that the loop becomes vector code. */
static inline __attribute__((always_inline)) void
row_spread(bool compat, tare_dtype step, const float *x, const float *low, const float *high,
           size_t n, double base, double *sum, double *squares)
{
    double s[LANES] = {0}, q[LANES] = {0};
    for (size_t c = 0; c < n; c += LANES) {
        size_t lanes = n - c < LANES ? n - c : LANES;
        for (size_t i = 0; i < lanes; i++) {
            double d = centred(compat, step, x[c + i], low[c + i], high[c + i]) - base;
            s[i] += d;
            q[i] += d * d;
        }
    }
    *sum += (s[0] + s[1]) + (s[2] + s[3]);
    *squares += (q[0] + q[1]) + (q[2] + q[3]);
}

/* Distances are taken from the piece's first element, so that a constant input has no spread at all
 * rather than one of rounding errors. */
static void piece_spread(const score_job *job, size_t begin, size_t end, score_part *p)
{
    const float *low = job->low + begin, *high = job->high + begin;
    double base = centred(job->compat, job->step, job->x[begin], *low, *high);
    double sum = 0.0, squares = 0.0;
    for (size_t r = 0; r < job->rows; r++) {
        const float *x = job->x + r * job->cols + begin;
        if (job->compat)
            row_spread(true, job->step, x, low, high, end - begin, base, &sum, &squares);
        else
            row_spread(false, TARE_F32, x, low, high, end - begin, base, &sum, &squares);
    }
    p->count = (double)job->rows * (double)(end - begin);
    p->mean = base + sum / p->count;
    p->m2 = fmax(squares - sum * sum / p->count, 0.0);
}

static void score_piece(void *user, size_t index, int thread)
{
    const score_job *job = user;
    score_part *p = &job->parts[index];
    size_t begin = index * PIECE_COLS, end = begin + PIECE_COLS;
    end = end < job->cols ? end : job->cols;
    (void)thread;
    p->finite = piece_finite(job, begin, end);
    if (!p->finite)
        return;
    column_extremes(job, begin, end);
    p->min = job->low[begin];
    p->max = job->high[begin];
    for (size_t c = begin; c < end; c++) {
        p->min = fminf(p->min, job->low[c]);
        p->max = fmaxf(p->max, job->high[c]);
    }
    piece_spread(job, begin, end, p);
}

static void combine(score_part *a, const score_part *b)
{
    double count = a->count + b->count, delta = b->mean - a->mean;
    a->min = fminf(a->min, b->min);
    a->max = fmaxf(a->max, b->max);
    a->finite = a->finite && b->finite;
    a->m2 += b->m2 + delta * delta * (a->count * b->count / count);
    a->mean += delta * (b->count / count);
    a->count = count;
}

void score_init(score_state *s)
{
    *s = (score_state){0};
}

tare_status score_update(tare_context *ctx, const numerics *num, score_state *s, const float *x,
                         size_t rows, size_t cols, float *scratch)
{
    tare_status status = TARE_OK;
    size_t pieces = piece_count(cols);
    if (rows == 0 || cols == 0)
        return TARE_OK;
    score_job job = {kernels_get(ctx), num->dtype,     num->compat, x, rows, cols,
                     scratch,          scratch + cols, NULL};
    TRY(carver_alloc(ctx, lay_out, &job));
    parallel_for(ctx, pieces, score_piece, &job);
    score_part all = job.parts[0];
    for (size_t i = 1; i < pieces && all.finite; i++)
        combine(&all, &job.parts[i]);
    if (!all.finite) {
        status = TARE_FAIL(ctx, TARE_E_NUMERIC, "an activation is NaN or infinite");
        goto done;
    }
    double std = all.count > 1.0 ? sqrt(all.m2 / (all.count - 1.0)) : 0.0;
    if (num->compat)
        std = round_to_dtype(std, num->dtype);
    s->min = s->calls > 0 ? fmin(s->min, all.min) : all.min;
    s->max = s->calls > 0 ? fmax(s->max, all.max) : all.max;
    s->std = fmax(s->std, std);
    s->calls++;
done:
    mem_free(ctx, job.parts);
    return status;
}

size_t score_update_bytes(size_t cols)
{
    return carver_bytes(lay_out, &(score_job){.cols = cols});
}

double score_value(const numerics *num, const score_state *s)
{
    double largest = fmax(fabs(s->min), fabs(s->max));
    if (s->std == 0.0)
        return largest == 0.0 ? 0.0 : INFINITY;
    return num->compat ? round_native((float)largest / (float)s->std, num->dtype)
                       : largest / s->std;
}
