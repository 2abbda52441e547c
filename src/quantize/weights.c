/* Symmetric 8-bit weights: one pass over the rows; two when the whole matrix has one scale. */
#include <math.h>
#include <stdatomic.h>

#include "base/context.h"
#include "base/parallel.h"
#include "quantize/scheme.h"
#include "tensor/convert.h"
#include "tensor/kernels.h"
#include "tensor/round.h"

enum { PIECE_ELEMENTS = 65536 }; /* of one piece of parallel work */

typedef struct weight_job {
    const numerics *num;
    const kernels *kern;
    tare_dtype dtype;
    const unsigned char *w;
    size_t n, k, rows_per_piece;
    float *widened; /* [threads,k]; NULL if rows are used where they are */
    float *abs_max; /* [n] */
    bool per_tensor;
    quantized_weight *out;
    atomic_size_t bad_row;   /* smallest row with NaN or infinity; n: none */
    atomic_size_t large_row; /* smallest row whose scale does not fit; n: none */
} weight_job;

/* Smallest row wins, whatever the order of the threads. */
static void keep_smallest(atomic_size_t *slot, size_t row)
{
    size_t seen = atomic_load(slot);
    while (row < seen && !atomic_compare_exchange_weak(slot, &seen, row)) {
    }
}

static bool needs_rounding(const weight_job *job)
{
    return job->num->compat && job->dtype != job->num->dtype && job->num->dtype != TARE_F32;
}

static const float *load_row(const weight_job *job, size_t row, int thread)
{
    const unsigned char *from = job->w + row * job->k * dtype_size(job->dtype);
    if (!job->widened)
        return (const float *)(const void *)from;
    float *to = job->widened + (size_t)thread * job->k;
    if (job->dtype == TARE_BF16)
        job->kern->bf16_to_float((const uint16_t *)(const void *)from, job->k, to);
    else if (job->dtype == TARE_F16)
        job->kern->fp16_to_float((const uint16_t *)(const void *)from, job->k, to);
    else
        memcpy(to, from, job->k * sizeof *to);
    if (needs_rounding(job)) {
        for (size_t i = 0; i < job->k; i++)
            to[i] = round_native(to[i], job->num->dtype);
    }
    return to;
}

static bool row_abs_max(weight_job *job, size_t row, const float *x)
{
    bool finite = true;
    job->abs_max[row] = 0.0f;
    if (job->k > 0)
        job->kern->abs_max(x, job->k, &job->abs_max[row], &finite);
    if (!finite)
        keep_smallest(&job->bad_row, row);
    return finite;
}

/* False if the scale does not fit the dtype. */
static bool weight_scale(const numerics *num, float abs_max, float *scale)
{
    if (num->compat) {
        *scale = fmaxf(round_native(abs_max / 127.0f, num->dtype), ROUND_EPS);
    } else if (abs_max == 0.0f) {
        *scale = 1.0f;
    } else {
        float s = round_to_dtype(fmax((double)abs_max / 127.0, ROUND_EPS), num->dtype);
        /* Subnormal scales are coarse: one rounded down far enough would clip the largest weight.
         */
        if (num->dtype == TARE_F16 && (double)abs_max / s > 127.5)
            s = round_next_up(s, TARE_F16);
        *scale = s;
    }
    return isfinite(*scale);
}

/* x/s is itself rounded to the model dtype before it is rounded to an integer. */
static int64_t quantize_native(tare_dtype dtype, const float *x, size_t n, float scale, int8_t *q)
{
    int64_t sum = 0;
    for (size_t i = 0; i < n; i++) {
        float t = round_native(x[i] / scale, dtype);
        t = t < -127.0f ? -127.0f : t;
        t = t > 127.0f ? 127.0f : t;
        q[i] = (int8_t)round_even_small(t);
        sum += q[i];
    }
    return sum;
}

static void quantize_row(weight_job *job, size_t row, const float *x, float scale)
{
    int8_t *q = job->out->q + row * job->k;
    if (!job->num->compat || job->num->dtype == TARE_F32)
        job->out->row_sums[row] = job->kern->quantize_symmetric(x, job->k, scale, 127, q);
    else if (job->num->dtype == TARE_BF16)
        job->out->row_sums[row] = quantize_native(TARE_BF16, x, job->k, scale, q);
    else
        job->out->row_sums[row] = quantize_native(TARE_F16, x, job->k, scale, q);
}

static size_t piece_end(const weight_job *job, size_t index)
{
    size_t end = (index + 1) * job->rows_per_piece;
    return end < job->n ? end : job->n;
}

static void measure_piece(void *user, size_t index, int thread)
{
    weight_job *job = user;
    for (size_t row = index * job->rows_per_piece; row < piece_end(job, index); row++)
        row_abs_max(job, row, load_row(job, row, thread));
}

static void quantize_piece(void *user, size_t index, int thread)
{
    weight_job *job = user;
    quantized_weight *out = job->out;
    for (size_t row = index * job->rows_per_piece; row < piece_end(job, index); row++) {
        const float *x = load_row(job, row, thread);
        if (!job->per_tensor) {
            if (!row_abs_max(job, row, x))
                continue;
            if (!weight_scale(job->num, job->abs_max[row], &out->scales[row])) {
                keep_smallest(&job->large_row, row);
                continue;
            }
        }
        out->zero_rows[row] = job->abs_max[row] == 0.0f;
        quantize_row(job, row, x, out->scales[job->per_tensor ? 0 : row]);
    }
}

static tare_status report_bad(tare_context *ctx, weight_job *job)
{
    size_t row = atomic_load(&job->bad_row);
    if (row < job->n) {
        const float *x = load_row(job, row, 0);
        size_t col = 0;
        while (col + 1 < job->k && isfinite(x[col]))
            col++;
        return TARE_FAIL(ctx, TARE_E_NUMERIC, "the weight at row %zu, column %zu is %s", row, col,
                         isnan(x[col]) ? "NaN" : "infinite");
    }
    row = atomic_load(&job->large_row);
    if (row < job->n)
        return TARE_FAIL(ctx, TARE_E_NUMERIC,
                         "the scale of weight row %zu (%g / 127) does not fit %s", row,
                         (double)job->abs_max[row], dtype_name(job->num->dtype));
    return TARE_OK;
}

static tare_status tensor_scale(tare_context *ctx, weight_job *job, size_t pieces)
{
    parallel_for(ctx, pieces, measure_piece, job);
    size_t largest = 0;
    for (size_t row = 1; row < job->n; row++)
        largest = job->abs_max[row] > job->abs_max[largest] ? row : largest;
    if (!weight_scale(job->num, job->n > 0 ? job->abs_max[largest] : 0.0f, &job->out->scales[0]))
        keep_smallest(&job->large_row, largest);
    return report_bad(ctx, job);
}

static tare_status allocate_result(tare_context *ctx, size_t n, size_t k, bool per_tensor,
                                   quantized_weight *out)
{
    *out = (quantized_weight){.n = n, .k = k, .num_scales = per_tensor ? 1 : n};
    out->q = mem_alloc_array(ctx, n, k);
    out->scales = mem_alloc_array(ctx, out->num_scales, sizeof *out->scales);
    out->row_sums = mem_alloc_array(ctx, n, sizeof *out->row_sums);
    out->zero_rows = mem_alloc_array(ctx, n, sizeof *out->zero_rows);
    return out->q && out->scales && out->row_sums && out->zero_rows ? TARE_OK : TARE_E_MEMORY;
}

static tare_status allocate_scratch(tare_context *ctx, weight_job *job)
{
    size_t widened;
    if (job->dtype != TARE_F32 || needs_rounding(job)) {
        if (!size_mul((size_t)parallel_threads(ctx), job->k, &widened))
            return TARE_FAIL(ctx, TARE_E_MEMORY, "a weight row of %zu columns is too long", job->k);
        job->widened = mem_alloc_array(ctx, widened, sizeof *job->widened);
        if (!job->widened)
            return TARE_E_MEMORY;
    }
    job->abs_max = mem_alloc_array(ctx, job->n, sizeof *job->abs_max);
    return job->abs_max ? TARE_OK : TARE_E_MEMORY;
}

tare_status weight_quantize(tare_context *ctx, const numerics *num, tare_dtype dtype, const void *w,
                            size_t n, size_t k, bool per_tensor, quantized_weight *out)
{
    tare_status status = TARE_OK;
    size_t rows_per_piece = k < PIECE_ELEMENTS ? PIECE_ELEMENTS / (k > 0 ? k : 1) : 1;
    size_t pieces = n / rows_per_piece + (n % rows_per_piece != 0);
    weight_job job = {.num = num,
                      .kern = kernels_get(ctx),
                      .dtype = dtype,
                      .w = w,
                      .n = n,
                      .k = k,
                      .rows_per_piece = rows_per_piece,
                      .per_tensor = per_tensor,
                      .out = out};
    atomic_init(&job.bad_row, n);
    atomic_init(&job.large_row, n);
    TRY(allocate_result(ctx, n, k, per_tensor, out));
    TRY(allocate_scratch(ctx, &job));
    if (per_tensor)
        TRY(tensor_scale(ctx, &job, pieces));
    parallel_for(ctx, pieces, quantize_piece, &job);
    TRY(report_bad(ctx, &job));
done:
    mem_free(ctx, job.widened);
    mem_free(ctx, job.abs_max);
    if (status != TARE_OK)
        weight_quantized_free(ctx, out);
    return status;
}

void weight_quantized_free(tare_context *ctx, quantized_weight *w)
{
    mem_free(ctx, w->q);
    mem_free(ctx, w->scales);
    mem_free(ctx, w->row_sums);
    mem_free(ctx, w->zero_rows);
    *w = (quantized_weight){0};
}

/* Large enough that the bias takes at most 2^20 steps of input_scale * scale. */
static float zero_row_scale(tare_dtype dtype, float bias, float input_scale)
{
    double need = fabs((double)bias) / ((double)input_scale * 0x1p20);
    need = fmax(need, dtype_smallest_normal(dtype));
    if (!(need < dtype_largest(dtype)))
        return dtype_largest(dtype);
    float scale = round_to_dtype(need, dtype);
    return scale < need ? round_next_up(scale, dtype) : scale;
}

void weight_settle_zero_rows(const numerics *num, quantized_weight *w, const float *bias,
                             float input_scale)
{
    if (num->compat || !bias || w->n == 0)
        return;
    float largest = 0.0f;
    bool all_zero = true;
    for (size_t row = 0; row < w->n; row++) {
        all_zero = all_zero && w->zero_rows[row];
        largest = fmaxf(largest, fabsf(bias[row]));
        if (w->num_scales == w->n && w->zero_rows[row] && bias[row] != 0.0f)
            w->scales[row] = zero_row_scale(num->dtype, bias[row], input_scale);
    }
    /* One scale for the matrix is free only if all of it is zero. */
    if (w->num_scales == 1 && all_zero && largest != 0.0f)
        w->scales[0] = zero_row_scale(num->dtype, largest, input_scale);
}

void weight_dequantize(const numerics *num, const quantized_weight *w, size_t row, float *out_row)
{
    const int8_t *q = w->q + row * w->k;
    float scale = w->scales[w->num_scales == 1 ? 0 : row];
    tare_dtype step = num->compat ? num->dtype : TARE_F32;
    for (size_t i = 0; i < w->k; i++)
        out_row[i] = (float)q[i] * scale;
    if (step == TARE_F32)
        return;
    for (size_t i = 0; i < w->k; i++)
        out_row[i] = round_native(out_row[i], step);
}
