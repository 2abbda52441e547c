/* The integer weight of a W8A8 linear: a matrix in memory, with its row sums. */
#include <math.h>

#include "base/context.h"
#include "quantize/scheme.h"
#include "tensor/convert.h"
#include "tensor/round.h"

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

tare_status weight_quantize_rows(tare_context *ctx, const numerics *num, const weight_rows *rows,
                                 bool per_tensor, quantized_weight *out)
{
    tare_status status = TARE_OK;
    weight_range range = {0};
    TRY(allocate_result(ctx, rows->count, rows->stored.k, per_tensor, out));
    weight_codes codes = {
        .q = out->q, .scales = out->scales, .row_sums = out->row_sums, .zero_rows = out->zero_rows};
    if (per_tensor)
        TRY(weight_rows_measure(ctx, num, rows, &range));
    TRY(weight_rows_quantize(ctx, num, rows, per_tensor ? &range : NULL, &codes));
done:
    if (status != TARE_OK)
        weight_quantized_free(ctx, out);
    return status;
}

tare_status weight_quantize(tare_context *ctx, const numerics *num, tare_dtype dtype, const void *w,
                            size_t n, size_t k, bool per_tensor, quantized_weight *out)
{
    weight_rows rows = {.stored = coded_plain(dtype, w, k), .count = n};
    return weight_quantize_rows(ctx, num, &rows, per_tensor, out);
}

size_t weight_quantized_bytes(size_t n, size_t k)
{
    return mem_array_bytes(n, k) + mem_array_bytes(n, sizeof(float)) +
           mem_array_bytes(n, sizeof(int64_t)) + mem_array_bytes(n, sizeof(bool));
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

coded_rows weight_dequantized(const numerics *num, const quantized_weight *w)
{
    return coded_integers(num->compat ? num->dtype : TARE_F32, w->q, w->scales, w->num_scales == 1,
                          w->k);
}
