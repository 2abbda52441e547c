/* Matrix products y = x W^T for linear layers, W [N,K] as stored. The result of a row depends on
 * that row and on W alone, never on threads, on its neighbours or on how samples are grouped.
 * INT8: u8 x s8 -> s32, exact; oneDNN where it was built in and the CPU has VNNI, else kernels of
 * our own (kernels.block_u8s8 on AMX, kernels.gemm_u8s8). FP32: tiles of our own
 * (kernels.gemm_tile) on a weight packed once into panels. BF16 operands with FP32 accumulation:
 * likewise (kernels.gemm_bf16) on AMX and AVX512-BF16, elsewhere the FP32 tiles on rounded
 * operands. oneDNN's own heap (its packing buffers, compiled code) is not accounted: a few MiB a
 * thread. */
#ifndef TARE_TENSOR_GEMM_H
#define TARE_TENSOR_GEMM_H

#include "base/dtype.h"
#include "base/memory.h"
#include "base/strings.h"
#include "tensor/codec.h"

enum {
    GEMM_MAX_K = 65536 /* 255*128*65536 < 2^31: no int32 overflow */
};

/* How float GEMMs are computed. */
typedef enum gemm_compute { GEMM_FP32, GEMM_BF16 } gemm_compute;

/* acc[M,N] = x[M,K] (u8) W[N,K]^T (s8). K <= GEMM_MAX_K. Parallel. */
tare_status gemm_u8s8(tare_context *ctx, const uint8_t *x, const int8_t *w, size_t m, size_t n,
                      size_t k, int32_t *acc);

/* The same product handed over tile by tile instead of being stored: acc holds rows [row, row+rows)
 * and columns [column, column+columns), `stride` apart. Called from any thread. */
typedef void (*gemm_tile_fn)(void *user, size_t row, size_t rows, size_t column, size_t columns,
                             const int32_t *acc, size_t stride);
tare_status gemm_u8s8_tiles(tare_context *ctx, const uint8_t *x, const int8_t *w, size_t m,
                            size_t n, size_t k, gemm_tile_fn tile, void *user);

/* Accounted bytes of what they take while they run: the first exactly, the second at most. */
size_t gemm_u8s8_bytes(const tare_context *ctx, size_t m, size_t n);
size_t gemm_u8s8_tiles_bytes(const tare_context *ctx);

/* Appends the version of the oneDNN in use, or "none". */
void gemm_onednn_version(buffer *out);

/* A float weight made ready for gemm_float: packed once, used for all samples. It keeps the
 * element size of `dtype` (BF16: 2 bytes), so that an FP32 product of a BF16 weight costs no FP32
 * copy. */
typedef struct gemm_weight gemm_weight;

/* Rows [N,K] with n, k > 0, which are decoded while they are packed. Parallel. TARE_E_MODEL: they
 * have no codec. */
tare_status gemm_weight_pack(tare_context *ctx, gemm_compute compute, const coded_rows *rows,
                             size_t n, gemm_weight **out);
/* The same of `w` [N,K] in F32, F16 or BF16. */
tare_status gemm_weight_create(tare_context *ctx, gemm_compute compute, tare_dtype dtype,
                               const void *w, size_t n, size_t k, gemm_weight **out);
/* `w` NULL is allowed. */
void gemm_weight_free(tare_context *ctx, gemm_weight *w);
/* Accounted bytes of a weight whose numbers are in `dtype`, at most, and of a gemm_float on all
 * threads. */
size_t gemm_weight_bytes(gemm_compute compute, tare_dtype dtype, size_t n, size_t k);
size_t gemm_float_bytes(const tare_context *ctx);

/* y[M,N] = x[M,K] W^T + bias (NULL: none). Parallel over tiles. TARE_E_MEMORY when the scratch does
 * not fit. */
tare_status gemm_float(tare_context *ctx, const gemm_weight *w, const float *x, size_t m,
                       const float *bias, float *y);

/* The same product of a few rows that are made while they are needed, in the calling thread: `make`
 * fills x [rows, depth] with columns [k0, k0+depth) of them, GEMM_DEPTH (kernels.h) apart. y has
 * row stride N. scratch: GEMM_ROWS_SCRATCH bytes, 64-byte aligned. */
enum { GEMM_ROWS = 96, GEMM_ROWS_SCRATCH = 640 * 1024 };
typedef void (*gemm_make_fn)(void *user, size_t k0, size_t depth, float *x);
void gemm_float_rows(const tare_context *ctx, const gemm_weight *w, size_t rows, gemm_make_fn make,
                     void *user, float *y, void *scratch);

#endif
