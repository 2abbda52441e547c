/* What is done to a stored weight [n,k] before anybody sees its numbers (specification:
 * spec/rotation.md): a norm's weight folded into its columns, a rotation from either side. The
 * stages are done one after the other in FP32, and the result is rounded once, to the weight's
 * dtype. */
#ifndef TARE_MODEL_EDIT_H
#define TARE_MODEL_EDIT_H

#include "tensor/codec.h"
#include "tensor/rotation.h"

/* Blocks of rows [first + b * stride, first + b * stride + width), b < count. */
typedef struct block_rows {
    size_t first, stride, width, count;
} block_rows;

typedef struct weight_edit {
    const float *values;  /* [n,k]: the numbers themselves, instead of all that follows; NULL */
    const float *columns; /* [k] that columns are multiplied by; NULL */
    /* W <- W R: of all columns, or `right_blocks` rotations of neighbouring ones, each for
     * `right_share` blocks of columns; NULL. */
    const rotation *right;
    size_t right_blocks, right_share;
    const float *signs; /* [k] that columns are multiplied by then; NULL */
    /* W <- L^T W: of all rows (left_blocks.count 0), or one each for blocks of them; NULL. */
    const rotation *left;
    block_rows left_blocks;
} weight_edit;

/* Rows [first, first+count) of `n`, read as `in`, become `out` [count,k] in `dtype`, which may be
 * the same memory. All rows, where rows are mixed (edit_mixes_rows). */
tare_status edit_rows(tare_context *ctx, const weight_edit *edit, size_t n, size_t first,
                      size_t count, const coded_rows *in, tare_dtype dtype, void *out);
bool edit_mixes_rows(const weight_edit *edit);
/* Accounted bytes, at most, that edit_rows needs for itself. */
size_t edit_bytes(const tare_context *ctx, const weight_edit *edit, size_t n, size_t k);

#endif
