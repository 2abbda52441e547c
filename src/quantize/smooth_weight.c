/* Weights of a group as they stand: rows with their two scales applied, maxima of columns. */
#include <stdatomic.h>
#include <string.h>

#include "base/parallel.h"
#include "quantize/smooth_internal.h"
#include "tensor/kernels.h"

/* Columns [first, first+count) of one row. */
typedef struct row_part {
    const kernels *kernels;
    const smooth_weight *w;
    size_t row, first, count;
} row_part;

static void scale_columns(const row_part *p, float *out)
{
    p->kernels->multiply(out, p->w->col_scale + p->first, p->count, out);
    for (size_t j = 0; p->w->round != TARE_F32 && j < p->count; j++)
        out[j] = round_native(out[j], p->w->round);
}

static void scale_row(const row_part *p, float *out)
{
    float divisor = p->w->row_scale[p->row];
    if (divisor == 1)
        return;
    for (size_t j = 0; j < p->count; j++)
        out[j] /= divisor;
    for (size_t j = 0; p->w->round != TARE_F32 && j < p->count; j++)
        out[j] = round_native(out[j], p->w->round);
}

void smooth_weight_part(const kernels *ops, const smooth_weight *w, size_t row, size_t first,
                        size_t count, float *out)
{
    row_part p = {ops, w, row, first, count};
    coded_decode(ops, &w->raw, row, first, count, out);
    if (w->rows_scaled && w->rows_first)
        scale_row(&p, out);
    if (w->cols_scaled)
        scale_columns(&p, out);
    if (w->rows_scaled && !w->rows_first)
        scale_row(&p, out);
}

void smooth_weight_row(const tare_context *ctx, const smooth_weight *w, size_t row, float *out)
{
    smooth_weight_part(kernels_get(ctx), w, row, 0, w->k, out);
}

typedef struct rows_job {
    const tare_context *ctx;
    const smooth_weight *w;
    size_t first;
    float *y;
} rows_job;

static void one_row(void *user, size_t index, int thread)
{
    (void)thread;
    const rows_job *job = user;
    smooth_weight_row(job->ctx, job->w, job->first + index, job->y + index * job->w->k);
}

void smooth_weight_rows(const tare_context *ctx, const smooth_weight *w, size_t first, size_t count,
                        float *y)
{
    rows_job job = {ctx, w, first, y};
    parallel_for(ctx, count, one_row, &job);
}

/* ---- maxima ---- */

enum { SCAN_ROWS = 64 };

typedef struct scan_job {
    const tare_context *ctx;
    const kernels *kernels;
    const smooth_weight *w;
    float *rows;             /* [threads,C] */
    float *columns, *stored; /* [threads,C] maxima; stored NULL: not wanted of this target */
    atomic_size_t zero_rows;
    atomic_size_t bad_row; /* the smallest; n: none */
} scan_job;

static void raise_maxima(const float *row, size_t n, float *max)
{
    for (size_t j = 0; j < n; j++) {
        float a = fabsf(row[j]);
        max[j] = a > max[j] ? a : max[j];
    }
}

static void scan_rows(void *user, size_t index, int thread)
{
    scan_job *job = user;
    size_t k = job->w->k, end = (index + 1) * SCAN_ROWS;
    float *row = job->rows + (size_t)thread * k;
    for (size_t i = index * SCAN_ROWS; i < end && i < job->w->n; i++) {
        float max = 0;
        bool finite = true;
        smooth_weight_row(job->ctx, job->w, i, row);
        job->kernels->abs_max(row, k, &max, &finite);
        if (!finite) {
            size_t seen = atomic_load(&job->bad_row);
            while (i < seen && !atomic_compare_exchange_weak(&job->bad_row, &seen, i)) {
            }
        }
        if (max == 0)
            atomic_fetch_add(&job->zero_rows, 1);
        raise_maxima(row, k, job->columns + (size_t)thread * k);
        if (job->stored)
            raise_maxima(row, k, job->stored + (size_t)thread * k);
    }
}

/* Maxima are exact: it does not matter which thread saw which row. */
static void merge_threads(float *maxima, size_t threads, size_t n)
{
    for (size_t t = 1; t < threads; t++)
        raise_maxima(maxima + t * n, n, maxima);
}

static bool stays_narrow(const smooth_weight *w)
{
    return w->stored == TARE_F16 || w->stored == TARE_BF16;
}

static void lay_out(carver *c, void *component)
{
    smooth_scan *s = component;
    s->columns = carve(c, s->threads, s->channels * sizeof *s->columns);
    s->rows = carve(c, s->threads, s->channels * sizeof *s->rows);
    s->stored = s->stored_dtype != TARE_F32 ? carve(c, s->threads, s->channels * sizeof *s->stored)
                                            : NULL;
}

size_t smooth_scan_bytes(const tare_context *ctx, size_t channels)
{
    smooth_scan s = {
        .threads = (size_t)parallel_threads(ctx), .channels = channels, .stored_dtype = TARE_F16};
    return carver_bytes(lay_out, &s);
}

static tare_status alloc_scan(tare_context *ctx, const smooth_group *g, smooth_scan *out)
{
    *out = (smooth_scan){.threads = (size_t)parallel_threads(ctx),
                         .channels = g->channels,
                         .stored_dtype = TARE_F32};
    for (size_t i = 0; i < g->num_targets; i++) {
        /* FP16 overflows first. */
        if (stays_narrow(g->targets[i]) && out->stored_dtype != TARE_F16)
            out->stored_dtype = g->targets[i]->stored;
    }
    tare_status status = carver_alloc(ctx, lay_out, out);
    size_t size = out->threads * out->channels * sizeof(float);
    if (out->columns)
        memset(out->columns, 0, size);
    if (out->stored)
        memset(out->stored, 0, size);
    return status;
}

tare_status smooth_scan_targets(tare_context *ctx, const smooth_group *g, smooth_scan *out)
{
    tare_status status = TARE_OK;
    TRY(alloc_scan(ctx, g, out));
    for (size_t i = 0; i < g->num_targets; i++) {
        const smooth_weight *w = g->targets[i];
        scan_job job = {.ctx = ctx,
                        .kernels = kernels_get(ctx),
                        .w = w,
                        .rows = out->rows,
                        .columns = out->columns,
                        .stored = stays_narrow(w) ? out->stored : NULL};
        atomic_init(&job.zero_rows, 0);
        atomic_init(&job.bad_row, w->n);
        parallel_for(ctx, w->n / SCAN_ROWS + (w->n % SCAN_ROWS != 0), scan_rows, &job);
        out->zero_rows += atomic_load(&job.zero_rows);
        size_t bad = atomic_load(&job.bad_row);
        if (bad < w->n) {
            TARE_FAIL(ctx, TARE_E_NUMERIC, "%s: the weight's row %zu has NaN or infinity", w->name,
                      bad);
            status = smooth_fail(ctx, TARE_E_NUMERIC, g, NULL);
            goto done;
        }
    }
    merge_threads(out->columns, (size_t)parallel_threads(ctx), g->channels);
    if (out->stored)
        merge_threads(out->stored, (size_t)parallel_threads(ctx), g->channels);
    for (size_t c = 0; c < g->channels; c++)
        out->zero_columns += out->columns[c] == 0;
done:
    if (status != TARE_OK)
        smooth_scan_free(ctx, out);
    return status;
}

void smooth_scan_free(tare_context *ctx, smooth_scan *scan)
{
    mem_free(ctx, scan->columns);
    *scan = (smooth_scan){0};
}
