/* oneDNN's half of gemm_float: BF16 operands, FP32 sums. oneDNN's results depend on the shape of a
 * call, on the number of threads, and may depend on a row's place; so every call has BF16_ROWS rows
 * of one sample (missing ones are zero), a slice of the weight whose width follows from N alone,
 * and one thread. Private to the tensor room. */
#ifndef TARE_TENSOR_GEMM_BF16_H
#define TARE_TENSOR_GEMM_BF16_H

#include "base/dtype.h"
#include "base/memory.h"
#include "tensor/kernels.h"

typedef struct bf16_weight bf16_weight;

/* `w` [n,k] in F32, F16 or BF16, rounded to BF16 and brought into oneDNN's own order. Primitives
 * are made here, once. */
tare_status bf16_weight_create(tare_context *ctx, tare_dtype dtype, const void *w, size_t n,
                               size_t k, bf16_weight **out);
void bf16_weight_free(tare_context *ctx, bf16_weight *w);
/* Upper bounds: accounted bytes of a weight (while it is made), and of scratch for one thread. */
size_t bf16_weight_bytes(size_t n, size_t k);
size_t bf16_scratch_bytes(size_t k);
/* The same of what is needed beside a weight while it is made, and of the list of tiles. */
size_t bf16_packing_bytes(const tare_context *ctx, tare_dtype dtype, size_t k);
size_t bf16_places_bytes(size_t m, size_t segments);
/* As gemm_float. */
tare_status bf16_gemm(tare_context *ctx, const bf16_weight *w, const float *x, const size_t *rows,
                      size_t segments, const float *bias, float *y);

#endif
