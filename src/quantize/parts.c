/* The parts of a quantized linear. */
#include "quantize/parts.h"

#include <stdint.h>

bool form_has_part(const linear_form *form, tensor_role part)
{
    return part == TENSOR_BIAS ? form->has_bias : scheme_of(form->scheme)->parts >> part & 1;
}

bool form_is_int4(const linear_form *form)
{
    return scheme_of(form->scheme)->weight_bits == 4;
}

bool int4_shape_fits(size_t n, size_t k, size_t slices)
{
    return n % (slices > 1 ? INT4_SLICED_ROWS : INT4_ROWS) == 0 && k % slices == 0;
}

bool part_is_by_row(tensor_role part)
{
    switch (part) {
    case TENSOR_WEIGHT:
    case TENSOR_WEIGHT_PACKED:
    case TENSOR_SCALE_BIAS:
    case TENSOR_WEIGHT_SCALE:
    case TENSOR_WEIGHT_OFFSET:
    case TENSOR_QUANT_BIAS:
    case TENSOR_DEQ_SCALE:
        return true;
    default:
        return false;
    }
}

size_t part_bytes(const linear_form *form, tensor_role part, size_t count)
{
    switch (part) {
    case TENSOR_WEIGHT:
        return count * form->k;
    case TENSOR_BIAS:
        return form->n * dtype_size(form->bias_dtype);
    case TENSOR_QUANT_BIAS:
        return count * sizeof(int32_t);
    case TENSOR_WEIGHT_SCALE:
    case TENSOR_WEIGHT_OFFSET:
    case TENSOR_DEQ_SCALE:
        return (form->per_tensor ? 1 : count) * sizeof(float);
    default:
        return sizeof(float);
    }
}
