/* Vector kernels with run-time dispatch. kernels_get() gives the table of the context's instruction
 * set: a scalar reference that is obviously right, AVX2 and AVX-512 variants that are tested
 * against it (tests/unit/test_kernels.c states the bounds) and give the same bytes as each other.
 * No kernel allocates; no kernel's result depends on the number of threads. Matrices are row-major.
 */
#ifndef TARE_TENSOR_KERNELS_H
#define TARE_TENSOR_KERNELS_H

#include "base/cpu.h"

enum {
    GEMM_PANEL = 32,         /* columns of a float GEMM tile */
    GEMM_DEPTH = 256,        /* most of K that one tile takes; the row stride of its left operand */
    GEMM_TILE_ROWS_MAX = 16, /* bound of kernels.tile_rows */
    GEMM_BLOCK_STEP = 32,    /* rows of a block, and its K in BF16, come in multiples of it */
    GEMM_FEW_ROWS = 8,       /* most rows of kernels.gemm_few_* */
};

/* Levels are whole numbers in [low, high], below 2^22. */
typedef struct kernel_grid {
    float step, zero, low, high;
} kernel_grid;

/* How well 4-bit integers fit a row: sum (x - q * scale)^2, sum x * q, sum q^2, sum q. */
typedef struct int4_fit {
    double error, product;
    int64_t squares, sum;
} int4_fit;

typedef struct kernels kernels;
struct kernels {
    const char *name;

    void (*bf16_to_float)(const uint16_t *x, size_t n, float *y);
    void (*fp16_to_float)(const uint16_t *x, size_t n, float *y);
    void (*float_to_bf16)(const float *x, size_t n, uint16_t *y);
    void (*float_to_fp16)(const float *x, size_t n, uint16_t *y);
    /* y[i] = x[i] * scale, rounded to BF16; x in F8_E4M3. Exact. */
    void (*fp8_to_float)(const uint8_t *x, size_t n, float scale, float *y);

    /* Extremes of x[n], n > 0. Exact. *finite is set false if any element is NaN or infinite (the
     * extremes are then undefined), and left alone otherwise. */
    void (*min_max)(const float *x, size_t n, float *min, float *max, bool *finite);
    /* max |x|, as above. */
    void (*abs_max)(const float *x, size_t n, float *max, bool *finite);

    /* Weights: q[i] = clamp(rne(x[i] / scale), -limit, limit). Exact: one FP32 division, half to
     * even. Returns the sum of q. */
    int64_t (*quantize_symmetric)(const float *x, size_t n, float scale, int limit, int8_t *q);
    /* 4-bit weights: q[i] = clamp(rne(x[i] / scale), -8, 7), exact as above, and how they fit: FP32
     * products and differences, sums in FP64, the same in every set; n < 2^24. */
    void (*quantize_int4)(const float *x, size_t n, float scale, int8_t *q, int4_fit *fit);
    /* y[i] = x[i] * s[i]. */
    void (*multiply)(const float *x, const float *s, size_t n, float *y);
    /* Extremes of x[i] * s[i], n > 0, no NaN. Exact. */
    void (*product_min_max)(const float *x, const float *s, size_t n, float *min, float *max);
    /* What a grid of `step` and `zero` does to scaled weights: y[i] = (clamp(rne(x[i] * s[i] / step
     * + zero), low, high) - zero) * step / s[i] - x[i], each operation rounded. Exact. */
    void (*grid_error)(const float *x, const float *s, size_t n, const kernel_grid *grid, float *y);
    /* Activations: q[i] = clamp(rne(x[i] / scale + offset), -128, 127) + 128 as u8: FP32 division,
     * then FP32 addition. Exact. */
    void (*quantize_asymmetric)(const float *x, size_t n, float scale, float offset, uint8_t *q);

    /* y[i] = x[i] * (base + w[i]) / sqrt(mean(x^2) + eps): RMSNorm of one row. */
    void (*rms_norm)(const float *x, const float *w, size_t n, float eps, float base, float *y);
    /* Half rotation in place of one head x[d]: cos, sin [d/2]. */
    void (*rope)(float *x, const float *cos, const float *sin, size_t d);
    /* gate[i] = silu(gate[i]) * up[i]. */
    void (*silu_mul)(float *gate, const float *up, size_t n);
    /* gate[i] = gelu(gate[i]) * up[i], of the form with tanh. */
    void (*gelu_mul)(float *gate, const float *up, size_t n);
    /* x[i] = cap * tanh(x[i] / cap), to 2^-22 of the cap. */
    void (*softcap)(float *x, size_t n, float cap);
    /* y[i] += x[i]. */
    void (*add)(float *y, const float *x, size_t n);
    float (*dot)(const float *x, const float *y, size_t n);
    /* y[i] += a * x[i]. */
    void (*axpy)(float a, const float *x, size_t n, float *y);
    /* x <- exp(x - max(x)) / sum, n > 0. */
    void (*softmax)(float *x, size_t n);

    /* One row of the INT8 epilogue: y[n] = (acc[n] - zero * row_sums[n]) * (scale * w_scales[n]) +
     * bias[n]; the difference in int64 or exact double, then double arithmetic, rounded once to
     * FP32. zero = 128 + offset. w_scales has `scales` = n or 1 elements; bias may be NULL. */
    void (*dequantize_row)(const int32_t *acc, size_t n, int64_t zero, const int64_t *row_sums,
                           float scale, const float *w_scales, size_t scales, const float *bias,
                           float *y);

    /* Float GEMM tile: c[rows,GEMM_PANEL] += a[rows,k] b[k,GEMM_PANEL], k <= GEMM_DEPTH, rows <=
     * tile_rows. a has row stride GEMM_DEPTH and is read to tile_rows rows; b is dense and 64-byte
     * aligned; c has row stride ldc. The k products of an element are summed in order from zero,
     * then added to c: an element depends on nothing but its row and column. */
    size_t tile_rows;
    void (*gemm_tile)(const float *a, const float *b, size_t k, size_t rows, float *c, size_t ldc);
    /* c[rows,GEMM_PANEL] += a[rows,k] b[k,GEMM_PANEL] in BF16, summed in FP32 (subnormals count as
     * zero). rows and k are multiples of GEMM_BLOCK_STEP, k at most GEMM_DEPTH, the row stride of
     * a; c is dense; b in pairs of k, [k/2][GEMM_PANEL][2]; all 64-byte aligned. `next`: a hint,
     * the b of the next call. An element depends on nothing but its row and column. NULL where the
     * CPU has no such products. */
    void (*gemm_bf16)(const uint16_t *a, const uint16_t *b, size_t k, size_t rows, float *c,
                      const uint16_t *next);
    /* The same in 8 bits: acc += a (u8) b (s8), exact; rows a multiple of GEMM_BLOCK_STEP, k of
     * 2 * GEMM_BLOCK_STEP, lda and ldc in elements. b in fours of k, as pack_u8s8 leaves it. NULL
     * where the CPU has no such tiles. */
    void (*block_u8s8)(const uint8_t *a, size_t lda, const int8_t *b, size_t k, size_t rows,
                       int32_t *c, size_t ldc);
    /* b [k/4][GEMM_PANEL][4] of w[columns,k], ldw apart; what is missing to GEMM_PANEL columns and
     * to a multiple of 2 * GEMM_BLOCK_STEP is zero. */
    void (*pack_u8s8)(const int8_t *w, size_t ldw, size_t columns, size_t k, int8_t *b);
    /* The product and the sums of gemm_tile, bit for bit, for rows <= GEMM_FEW_ROWS with row stride
     * ldx and a panel [k,GEMM_PANEL] that is widened on the way: nothing is copied, so the memory
     * that holds the panel sets the pace. */
    void (*gemm_few_f32)(const float *x, size_t ldx, const float *b, size_t k, size_t rows,
                         float *c, size_t ldc);
    void (*gemm_few_bf16)(const float *x, size_t ldx, const uint16_t *b, size_t k, size_t rows,
                          float *c, size_t ldc);
    void (*gemm_few_fp16)(const float *x, size_t ldx, const uint16_t *b, size_t k, size_t rows,
                          float *c, size_t ldc);
    /* acc[m,n] = x[m,k] w[n,k]^T, acc with row stride ldacc. Exact while k <= GEMM_MAX_K. */
    void (*gemm_u8s8)(const uint8_t *x, size_t m, const int8_t *w, size_t n, size_t k, int32_t *acc,
                      size_t ldacc);
};

const kernels *kernels_get(const tare_context *ctx);
/* The table of one instruction set; NULL if this CPU or build lacks it. AMX has the AVX-512
 * kernels, and products of its own. */
const kernels *kernels_of(tare_cpu cpu);
#endif
