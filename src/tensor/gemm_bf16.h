/* oneDNN's half of gemm_float: BF16 operands, FP32 sums, on tiles of one fixed shape. oneDNN's
 * results depend on the shape of a call, so every call has GEMM_BF16_ROWS rows (missing ones are
 * zero) and a slice of the weight whose width follows from N alone. Private to the tensor room. */
#ifndef TARE_TENSOR_GEMM_BF16_H
#define TARE_TENSOR_GEMM_BF16_H

#include "base/memory.h"
#include "tensor/kernels.h"

enum { GEMM_BF16_ROWS = 64, GEMM_BF16_COLUMNS = 512 };

typedef struct bf16_weight bf16_weight;

/* `w` [n,k] in F32, F16 or BF16, rounded to BF16 and brought into oneDNN's own order. */
tare_status bf16_weight_create(tare_context *ctx, tare_dtype dtype, const void *w, size_t n,
                               size_t k, bf16_weight **out);
void bf16_weight_free(tare_context *ctx, bf16_weight *w);
/* Bytes of scratch a thread needs in bf16_gemm. */
size_t bf16_scratch_bytes(const bf16_weight *w);
/* y[m,n] = x[m,k] W^T + bias, rows x columns tiles in parallel; m counted in tiles from row 0. */
tare_status bf16_gemm(tare_context *ctx, const bf16_weight *w, const float *x, size_t m,
                      const float *bias, float *y);

#endif
