/* What a quantized linear is made of, whatever layout it will be written in (specification:
 * spec/output_formats.md 4.1). Its scheme's row says which parts it has. */
#ifndef TARE_QUANTIZE_PARTS_H
#define TARE_QUANTIZE_PARTS_H

#include "base/dtype.h"
#include "quantize/schemes.h"

/* What a tensor is to its linear; the order is that of descriptions (section 10.2). */
typedef enum tensor_role {
    TENSOR_WEIGHT,
    TENSOR_BIAS,
    TENSOR_WEIGHT_SCALE,
    TENSOR_WEIGHT_OFFSET,
    TENSOR_INPUT_SCALE,
    TENSOR_INPUT_OFFSET,
    TENSOR_QUANT_BIAS,
    TENSOR_DEQ_SCALE,
    /* no parts: what ascendv1 makes of 4-bit weights and scales (section 5.3), and
     * compressed-tensors of parts (section 7) */
    TENSOR_SCALE_BIAS,
    TENSOR_INPUT_ZERO_POINT,
    TENSOR_WEIGHT_PACKED,
    TENSOR_WEIGHT_SHAPE,
    TENSOR_COUNT,
    TENSOR_FLOAT = TENSOR_COUNT /* a tensor on its own */
} tensor_role;

/* Slices of the down projection of an expert with 4-bit weights; its rows, and those of linears
 * with one slice, come in multiples of these, as two rows are a byte and engines view rows as
 * 32-bit words (spec/schemes.md 6.2). */
enum { INT4_SLICES = 16, INT4_SLICED_ROWS = 8, INT4_ROWS = 4 };

/* A quantized linear. */
typedef struct linear_form {
    linear_scheme scheme;
    size_t n, k;
    size_t slices;   /* of 4-bit weights: sums of a row in scale_bias, each of k / slices columns */
    bool per_tensor; /* one weight scale */
    tare_dtype act_dtype; /* of input_scale and input_offset in compat mode */
    bool act_symmetric;   /* input_offset is 0, and compressed-tensors has no zero point */
    bool has_bias;
    bool new_bias; /* the architecture has none there: outlier suppression made it */
    tare_dtype bias_dtype;
} linear_form;

/* Rows [first, first+count) of a linear; NULL: a part that it does not have. By row are

       weight                       I8 [count,k], of 4-bit weights in -8..7, and an even count
       weight_scale, deq_scale      F32 [count], or [1] with per_tensor
       weight_offset                the same; NULL: zeros
       quant_bias                   I32 [count]

   and with the last rows come, of the whole linear,

       bias                         [n], its bytes as they are stored
       input_scale, input_offset    F32 [1] */
typedef struct linear_parts {
    size_t first, count;
    const void *data[TENSOR_COUNT];
} linear_parts;

/* Does a linear of this form have the part? */
bool form_has_part(const linear_form *form, tensor_role part);
/* Are its weights of 4 bits? */
bool form_is_int4(const linear_form *form);
/* Do engines take 4-bit weights of this shape? */
bool int4_shape_fits(size_t n, size_t k, size_t slices);
bool part_is_by_row(tensor_role part);
/* Bytes of a part of `count` rows. */
size_t part_bytes(const linear_form *form, tensor_role part, size_t count);

#endif
