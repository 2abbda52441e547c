/* Tensors that pass through as floats. */
#include "pipeline/run.h"
#include "tensor/convert.h"

enum { PIECE_BYTES = 1 << 20 };

tensor_info output_tensor(const run_env *e, const tensor_info *source)
{
    tensor_info t = *source;
    if (e->num.compat && dtype_is_float(t.dtype)) {
        t.dtype = e->num.dtype;
        t.bytes = tensor_elements(source) * dtype_size(t.dtype);
    }
    return t;
}

tensor_info output_weight(const run_env *e, const stored_weight *w)
{
    tensor_info t = stored_values(w);
    return output_tensor(e, &t);
}

size_t output_weight_bytes(const run_env *e, const stored_weight *w)
{
    return mem_array_bytes(w->n * w->k, dtype_size(output_weight(e, w).dtype));
}

static size_t piece_rows(const stored_weight *w, tare_dtype to)
{
    return size_max(PIECE_BYTES / size_max(w->k * dtype_size(to), 1), 1);
}

/* What is not stored as it is written is converted in pieces. */
tare_status write_float_rows(run *r, const stored_weight *w, size_t first, size_t count,
                             const coded_rows *rows)
{
    tare_status status = TARE_OK;
    tensor_info t = output_weight(r->env, w);
    size_t row_bytes = w->k * dtype_size(t.dtype), step = size_min(piece_rows(w, t.dtype), count);
    const void *there = coded_in_place(rows, t.dtype, 0, 0);
    char *piece = NULL;
    if (there)
        return output_write_float(r->out, t.name, (uint64_t)first * row_bytes, there,
                                  count * row_bytes);
    if (!(piece = mem_alloc_array(r->ctx, step, row_bytes)))
        return TARE_E_MEMORY;
    for (size_t i = 0; i < count; i += step) {
        size_t n = size_min(count - i, step);
        coded_convert_rows(r->ctx, rows, i, n, t.dtype, piece);
        TRY(output_write_float(r->out, t.name, (uint64_t)(first + i) * row_bytes, piece,
                               n * row_bytes));
    }
done:
    mem_free(r->ctx, piece);
    return status;
}

size_t converted_bytes(const run_env *e, const stored_weight *w)
{
    tare_dtype to = output_weight(e, w).dtype;
    return to == w->tensor->dtype
               ? 0
               : mem_array_bytes(size_min(piece_rows(w, to), w->n), w->k * dtype_size(to));
}

size_t write_float_rows_bytes(const run_env *e, const stored_weight *w)
{
    return output_write_bytes(0) + converted_bytes(e, w);
}

tare_status write_norm(run *r, const tensor_info *source, const float *weight, const float *bias)
{
    tensor_info t = output_tensor(r->env, source);
    void *stored = mem_alloc(r->ctx, t.bytes);
    if (!stored)
        return TARE_E_MEMORY;
    narrow_from_float(r->ctx, t.dtype, weight, tensor_elements(source), stored);
    tare_status status = output_write_norm(r->out, t.name, stored, bias);
    mem_free(r->ctx, stored);
    return status;
}
