/* Matrix products y = x W^T for linear layers, W [N,K] as stored. The result of a row depends on
 * that row, on W and on the row's place in its own sample, never on threads or on how samples are
 * grouped. INT8: u8 x s8 -> s32, exact. oneDNN where the CPU has VNNI; else kernels of our own that
 * widen to 16 bits. float: oneDNN (FP32, or BF16 operands with FP32 accumulation) on tiles of one
 * fixed, zero-padded shape, one thread a call, parallel over tiles; a portable kernel without it
 * (--cpu scalar). */
#ifndef TARE_TENSOR_GEMM_H
#define TARE_TENSOR_GEMM_H

#include "base/dtype.h"
#include "base/memory.h"

enum {
    GEMM_TILE_ROWS = 64, /* rows of x in one float tile: a sample of S rows is ceil(S/64) tiles, the
                            last padded */
    GEMM_MAX_K = 65536   /* 255*127*65536 < 2^31: no int32 overflow */
};

/* How float GEMMs are computed. */
typedef enum gemm_compute { GEMM_FP32, GEMM_BF16 } gemm_compute;

/* acc[M,N] = x[M,K] (u8) W[N,K]^T (s8). K <= GEMM_MAX_K. Parallel. */
tare_status gemm_u8s8(tare_context *ctx, const uint8_t *x, const int8_t *w, size_t m, size_t n,
                      size_t k, int32_t *acc);

/* A float weight made ready for gemm_float: converted (and for BF16 blocked) once, used for all
 * samples. */
typedef struct gemm_weight gemm_weight;

/* `w` [N,K] in `dtype` F32, F16 or BF16. */
tare_status gemm_weight_create(tare_context *ctx, gemm_compute compute, tare_dtype dtype,
                               const void *w, size_t n, size_t k, gemm_weight **out);
void gemm_weight_free(tare_context *ctx, gemm_weight *w);
size_t gemm_weight_bytes(gemm_compute compute, size_t n, size_t k);

/* y[M,N] = x[M,K] W^T + bias (NULL: none), over `segments` of consecutive rows (samples) of lengths
 * rows[], sum M. Parallel over tiles. */
tare_status gemm_float(tare_context *ctx, const gemm_weight *w, const float *x, const size_t *rows,
                       size_t segments, const float *bias, float *y);

#endif
