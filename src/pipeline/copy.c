/* Tensors that pass through as floats. */
#include "pipeline/run.h"
#include "tensor/convert.h"

tensor_info output_tensor(const run_env *e, const tensor_info *source)
{
    tensor_info t = *source;
    if (e->num.compat && dtype_is_float(t.dtype)) {
        t.dtype = e->num.dtype;
        t.bytes = tensor_elements(source) * dtype_size(t.dtype);
    }
    return t;
}

tare_status output_values(run *r, const tensor_info *source, const void *stored, size_t count,
                          void **fresh)
{
    tare_dtype dtype = output_tensor(r->env, source).dtype;
    tare_status status = TARE_OK;
    *fresh = NULL;
    if (dtype == source->dtype)
        return TARE_OK;
    float *wide = mem_alloc_array(r->ctx, count, sizeof *wide);
    *fresh = mem_alloc_array(r->ctx, count, dtype_size(dtype));
    if (wide && *fresh) {
        widen_to_float(r->ctx, source->dtype, stored, count, wide);
        narrow_from_float(r->ctx, dtype, wide, count, *fresh);
    } else {
        mem_free(r->ctx, *fresh);
        *fresh = NULL;
        status = TARE_E_MEMORY;
    }
    mem_free(r->ctx, wide);
    return status;
}

tare_status write_float_rows(run *r, const tensor_info *source, size_t first, size_t count,
                             const void *rows)
{
    tensor_info t = output_tensor(r->env, source);
    size_t width = tensor_elements(source) / (source->rank ? source->shape[0] : 1);
    size_t row_bytes = width * dtype_size(t.dtype);
    void *fresh;
    tare_status status = output_values(r, source, rows, count * width, &fresh);
    if (status == TARE_OK)
        status = output_write_float(r->out, t.name, (uint64_t)first * row_bytes,
                                    fresh ? fresh : rows, count * row_bytes);
    mem_free(r->ctx, fresh);
    return status;
}

size_t write_float_rows_bytes(const run_env *e, const tensor_info *source)
{
    size_t rows = source->rank ? source->shape[0] : 1;
    size_t width = rows ? tensor_elements(source) / rows : 0, bytes = output_write_bytes(0);
    tare_dtype to = output_tensor(e, source).dtype;
    if (to == source->dtype)
        return bytes;
    size_t n = model_stream_step(source) * width;
    return bytes + mem_array_bytes(n, sizeof(float)) + mem_array_bytes(n, dtype_size(to));
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
