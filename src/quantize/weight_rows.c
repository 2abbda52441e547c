/* Integer weights row by row: load and widen, range, scale, integers, while the row is in the
 * cache.
 */
#include <math.h>
#include <stdatomic.h>

#include "base/carver.h"
#include "base/parallel.h"
#include "quantize/smooth.h"
#include "tensor/convert.h"
#include "tensor/kernels.h"
#include "tensor/round.h"

enum { PIECE_ELEMENTS = 65536 }; /* of one piece of parallel work */

typedef struct rows_job {
    const tare_context *ctx;
    const numerics *num;
    const kernels *kern;
    const weight_rows *rows;
    const weight_codes *out;
    size_t rows_per_piece, threads;
    bool widens;          /* else rows are used where they are */
    weight_range *ranges; /* [count] of each row */
    float *widened;       /* [threads,k] or NULL */
    bool one_scale;
    atomic_size_t bad_row;   /* smallest row with NaN or infinity; count: none */
    atomic_size_t large_row; /* smallest row whose scale does not fit; count: none */
} rows_job;

/* Smallest row wins, whatever the order of the threads. */
static void keep_smallest(atomic_size_t *slot, size_t row)
{
    size_t seen = atomic_load(slot);
    while (row < seen && !atomic_compare_exchange_weak(slot, &seen, row)) {
    }
}

/* ---- a row as FP32 ---- */

static bool needs_rounding(const numerics *num, const weight_rows *rows)
{
    tare_dtype dtype = rows->smooth ? TARE_F32 : rows->stored.dtype;
    return num->compat && dtype != num->dtype && num->dtype != TARE_F32;
}

static const float *load_row(const rows_job *job, size_t row, int thread)
{
    size_t k = job->rows->stored.k;
    if (!job->widened)
        return coded_in_place(&job->rows->stored, TARE_F32, row, 0);
    float *to = job->widened + (size_t)thread * k;
    if (job->rows->smooth)
        smooth_weight_row(job->ctx, job->rows->smooth, row, to);
    else
        coded_decode(job->kern, &job->rows->stored, row, 0, k, to);
    if (needs_rounding(job->num, job->rows)) {
        for (size_t i = 0; i < k; i++)
            to[i] = round_native(to[i], job->num->dtype);
    }
    return to;
}

static bool measure_row(rows_job *job, size_t row, const float *x)
{
    bool finite = true;
    weight_range *r = &job->ranges[row];
    *r = (weight_range){.lo_row = row + job->rows->first, .hi_row = row + job->rows->first};
    if (job->rows->stored.k > 0)
        job->kern->min_max(x, job->rows->stored.k, &r->lo, &r->hi, &finite);
    if (!finite)
        keep_smallest(&job->bad_row, row);
    r->lo = fminf(r->lo, 0.0f);
    r->hi = fmaxf(r->hi, 0.0f);
    return finite;
}

/* ---- scale and offset ---- */

static float abs_max(const weight_range *r)
{
    return fmaxf(-r->lo, r->hi);
}

/* Subnormal FP16 scales are coarse: one rounded down far enough would clip the largest weight. */
static float fit_scale(const numerics *num, double extent, double steps)
{
    float s = round_to_dtype(fmax(extent / steps, ROUND_EPS), num->dtype);
    return num->dtype == TARE_F16 && extent / s > steps + 0.5 ? round_next_up(s, TARE_F16) : s;
}

static float symmetric_scale(const numerics *num, const weight_range *r)
{
    float a = abs_max(r);
    if (num->compat)
        return fmaxf(round_native(a / 127.0f, num->dtype), ROUND_EPS);
    return a == 0.0f ? 1.0f : fit_scale(num, a, 127.0);
}

static float asymmetric_scale(const numerics *num, const weight_range *r, float *offset)
{
    tare_dtype m = num->dtype;
    float s;
    if (num->compat) {
        s = fmaxf(round_native(round_native(r->hi - r->lo, m) / 255.0f, m), ROUND_EPS);
        *offset = round_native(rintf(round_native(-r->lo / s, m)) - 128.0f, m);
        return s;
    }
    double extent = (double)r->hi - r->lo;
    s = extent == 0.0 ? 1.0f : fit_scale(num, extent, 255.0);
    *offset = (float)fmin(fmax(rint(-(double)r->lo / s) - 128.0, -128.0), 127.0);
    return s;
}

/* False if the scale does not fit the dtype. */
static bool set_scale(const rows_job *job, const weight_range *r, size_t at)
{
    float *scale = &job->out->scales[at];
    *scale = job->rows->asymmetric ? asymmetric_scale(job->num, r, &job->out->offsets[at])
                                   : symmetric_scale(job->num, r);
    return isfinite(*scale) && (!job->rows->asymmetric || isfinite(job->out->offsets[at]));
}

/* ---- integers ---- */

/* Every operation is rounded to the model dtype, which is a constant at each call, so that each
 * becomes one vector loop. */
static inline __attribute__((always_inline)) int64_t quantize_native(tare_dtype dtype,
                                                                     const float *x, size_t n,
                                                                     float scale, float offset,
                                                                     float least, int8_t *q)
{
    int64_t sum = 0;
    for (size_t i = 0; i < n; i++) {
        float t = round_native(round_native(x[i] / scale, dtype) + offset, dtype);
        t = t < least ? least : t;
        t = t > 127.0f ? 127.0f : t;
        q[i] = (int8_t)round_even_small(t);
        sum += q[i];
    }
    return sum;
}

static int64_t quantize_exact(const kernels *kern, const float *x, size_t n, float scale,
                              const float *offset, int8_t *q)
{
    if (!offset)
        return kern->quantize_symmetric(x, n, scale, 127, q);
    /* The kernel of activations has 128 added, for u8 x s8 products. */
    kern->quantize_asymmetric(x, n, scale, *offset, (uint8_t *)q);
    for (size_t i = 0; i < n; i++)
        q[i] = (int8_t)(q[i] ^ -128);
    return 0;
}

static void quantize_row(rows_job *job, size_t row, const float *x, size_t scale_at)
{
    const weight_codes *out = job->out;
    size_t k = job->rows->stored.k;
    tare_dtype m = job->num->compat ? job->num->dtype : TARE_F32;
    float s = out->scales[scale_at], least = job->rows->asymmetric ? -128.0f : -127.0f;
    const float *offset = job->rows->asymmetric ? &out->offsets[scale_at] : NULL;
    int8_t *q = out->q + row * k;
    int64_t sum;
    if (m == TARE_BF16)
        sum = quantize_native(TARE_BF16, x, k, s, offset ? *offset : 0.0f, least, q);
    else if (m == TARE_F16)
        sum = quantize_native(TARE_F16, x, k, s, offset ? *offset : 0.0f, least, q);
    else
        sum = quantize_exact(job->kern, x, k, s, offset, q);
    if (out->row_sums)
        out->row_sums[row] = sum;
}

/* ---- 4 bits ---- */

enum { SSZ_STEPS = 50 };

/* compat: every operation rounded to the model dtype, sums and mean too. */
static void fit_native(tare_dtype m, const float *x, size_t k, float scale, int8_t *q,
                       int4_fit *fit)
{
    *fit = (int4_fit){0};
    for (size_t i = 0; i < k; i++) {
        float t = rintf(round_native(x[i] / scale, m));
        float v = fminf(fmaxf(t, -8.0f), 7.0f);
        float difference = round_native(x[i] - round_native(v * scale, m), m);
        q[i] = (int8_t)v;
        fit->error += round_native(difference * difference, m);
        fit->product += round_native(x[i] * v, m);
        fit->squares += (int64_t)(v * v);
        fit->sum += (int64_t)v;
    }
    fit->error = round_native((float)(fit->error / (double)k), m);
    fit->product = round_native((float)fit->product, m);
}

static void fit_row(const rows_job *job, const float *x, float scale, int8_t *q, int4_fit *fit)
{
    size_t k = job->rows->stored.k;
    if (job->num->compat && job->num->dtype != TARE_F32)
        fit_native(job->num->dtype, x, k, scale, q, fit);
    else
        job->kern->quantize_int4(x, k, scale, q, fit);
}

static float native_int4(const rows_job *job, float x)
{
    return job->num->compat ? round_native(x, job->num->dtype) : x;
}

/* The reference stops when no row of the matrix gets closer any more; here each row goes on until
 * its integers stay as they are, so that it depends on no other. */
static float search_scale(const rows_job *job, const float *x, float scale, int8_t *q)
{
    int4_fit fit;
    float keep = scale;
    fit_row(job, x, scale, q, &fit);
    double best = fit.error;
    for (int step = 0; step < SSZ_STEPS && fit.squares > 0; step++) {
        float squares = native_int4(job, (float)fit.squares);
        float next = native_int4(job, (float)(fit.product / (double)squares));
        if (next == scale)
            break;
        scale = next;
        fit_row(job, x, scale, q, &fit);
        if (fit.error < best) {
            best = fit.error;
            keep = scale;
        }
    }
    return keep;
}

static void quantize_int4_row(rows_job *job, size_t row, const float *x)
{
    const weight_codes *out = job->out;
    int8_t *q = out->q + row * job->rows->stored.k;
    int4_fit fit;
    float scale = fmaxf(native_int4(job, abs_max(&job->ranges[row]) / 7.0f), ROUND_EPS);
    if (job->rows->method == WEIGHT_INT4_SSZ)
        scale = search_scale(job, x, scale, q);
    fit_row(job, x, scale, q, &fit);
    out->scales[row] = scale;
    if (out->row_sums)
        out->row_sums[row] = fit.sum;
    if (out->zero_rows)
        out->zero_rows[row] = false;
}

/* ---- pieces ---- */

static size_t piece_end(const rows_job *job, size_t index)
{
    size_t end = (index + 1) * job->rows_per_piece;
    return end < job->rows->count ? end : job->rows->count;
}

static void measure_piece(void *user, size_t index, int thread)
{
    rows_job *job = user;
    for (size_t row = index * job->rows_per_piece; row < piece_end(job, index); row++)
        measure_row(job, row, load_row(job, row, thread));
}

static void quantize_piece(void *user, size_t index, int thread)
{
    rows_job *job = user;
    for (size_t row = index * job->rows_per_piece; row < piece_end(job, index); row++) {
        const float *x = load_row(job, row, thread);
        if (!measure_row(job, row, x))
            continue;
        if (job->rows->method != WEIGHT_INT8) {
            quantize_int4_row(job, row, x);
            continue;
        }
        if (!job->one_scale && !set_scale(job, &job->ranges[row], row)) {
            keep_smallest(&job->large_row, row);
            continue;
        }
        if (job->out->zero_rows)
            job->out->zero_rows[row] = abs_max(&job->ranges[row]) == 0.0f;
        quantize_row(job, row, x, job->one_scale ? 0 : row);
    }
}

static tare_status fail_scale(tare_context *ctx, const rows_job *job, const weight_range *r)
{
    size_t row = -r->lo > r->hi ? r->lo_row : r->hi_row;
    if (job->rows->asymmetric)
        return TARE_FAIL(ctx, TARE_E_NUMERIC,
                         "the scale of weight row %zu ((%g - %g) / 255) does not fit %s", row,
                         (double)r->hi, (double)r->lo, dtype_name(job->num->dtype));
    return TARE_FAIL(ctx, TARE_E_NUMERIC, "the scale of weight row %zu (%g / 127) does not fit %s",
                     row, (double)abs_max(r), dtype_name(job->num->dtype));
}

static tare_status report_bad(tare_context *ctx, rows_job *job)
{
    size_t row = atomic_load(&job->bad_row);
    if (row < job->rows->count) {
        const float *x = load_row(job, row, 0);
        size_t col = 0;
        while (col + 1 < job->rows->stored.k && isfinite(x[col]))
            col++;
        return TARE_FAIL(ctx, TARE_E_NUMERIC, "the weight at row %zu, column %zu is %s",
                         job->rows->first + row, col, isnan(x[col]) ? "NaN" : "infinite");
    }
    row = atomic_load(&job->large_row);
    return row < job->rows->count ? fail_scale(ctx, job, &job->ranges[row]) : TARE_OK;
}

static void lay_out(carver *c, void *component)
{
    rows_job *job = component;
    size_t k = job->rows->stored.k;
    job->ranges = carve(c, job->rows->count, sizeof *job->ranges);
    job->widened = job->widens ? carve(c, job->threads, k * sizeof *job->widened) : NULL;
}

static tare_status job_init(tare_context *ctx, const numerics *num, const weight_rows *rows,
                            rows_job *job)
{
    size_t k = rows->stored.k;
    *job = (rows_job){.ctx = ctx,
                      .num = num,
                      .kern = kernels_get(ctx),
                      .rows = rows,
                      .threads = (size_t)parallel_threads(ctx)};
    job->rows_per_piece = k < PIECE_ELEMENTS ? PIECE_ELEMENTS / (k > 0 ? k : 1) : 1;
    atomic_init(&job->bad_row, rows->count);
    atomic_init(&job->large_row, rows->count);
    if (!rows->stored.codec)
        return TARE_FAIL(ctx, TARE_E_MODEL, "a weight in %s; F32, F16 and BF16 can be quantized",
                         dtype_name(rows->stored.dtype));
    job->widens = rows->smooth || !coded_in_place(&rows->stored, TARE_F32, 0, 0) ||
                  needs_rounding(num, rows);
    return carver_alloc(ctx, lay_out, job);
}

static void run_pieces(tare_context *ctx, rows_job *job,
                       void (*piece)(void *user, size_t index, int thread))
{
    size_t count = job->rows->count, step = job->rows_per_piece;
    parallel_for(ctx, count / step + (count % step != 0), piece, job);
}

tare_status weight_rows_measure(tare_context *ctx, const numerics *num, const weight_rows *rows,
                                weight_range *range)
{
    tare_status status = TARE_OK;
    rows_job job;
    TRY(job_init(ctx, num, rows, &job));
    run_pieces(ctx, &job, measure_piece);
    TRY(report_bad(ctx, &job));
    for (size_t row = 0; row < rows->count; row++) {
        const weight_range *r = &job.ranges[row];
        if (r->lo < range->lo)
            range->lo = r->lo, range->lo_row = r->lo_row;
        if (r->hi > range->hi)
            range->hi = r->hi, range->hi_row = r->hi_row;
    }
done:
    mem_free(ctx, job.ranges);
    return status;
}

tare_status weight_rows_quantize(tare_context *ctx, const numerics *num, const weight_rows *rows,
                                 const weight_range *range, const weight_codes *out)
{
    tare_status status = TARE_OK;
    rows_job job;
    TRY(job_init(ctx, num, rows, &job));
    job.out = out;
    job.one_scale = range != NULL;
    if (range && !set_scale(&job, range, 0))
        TRY(fail_scale(ctx, &job, range));
    run_pieces(ctx, &job, quantize_piece);
    TRY(report_bad(ctx, &job));
done:
    mem_free(ctx, job.ranges);
    return status;
}

size_t weight_quantize_bytes(const tare_context *ctx, size_t n, size_t k)
{
    rows_job job = {.rows = &(weight_rows){.count = n, .stored.k = k},
                    .threads = (size_t)parallel_threads(ctx),
                    .widens = true};
    return carver_bytes(lay_out, &job);
}
