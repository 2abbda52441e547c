/* The scalar kernels: what the vector variants are tested against. Written to be obviously right,
 * in double precision where that costs nothing but time. */
#include <math.h>
#include <string.h>

#include "tensor/convert.h"
#include "tensor/kernels_tables.h"
#include "tensor/round.h"

static void scalar_bf16_to_float(const uint16_t *x, size_t n, float *y)
{
    for (size_t i = 0; i < n; i++)
        y[i] = bf16_to_float(x[i]);
}

static void scalar_fp8_to_float(const uint8_t *x, size_t n, float scale, float *y)
{
    for (size_t i = 0; i < n; i++)
        y[i] = round_bf16(fp8_to_float(x[i]) * scale);
}

static void scalar_fp16_to_float(const uint16_t *x, size_t n, float *y)
{
    for (size_t i = 0; i < n; i++)
        y[i] = fp16_to_float(x[i]);
}

static void scalar_float_to_bf16(const float *x, size_t n, uint16_t *y)
{
    for (size_t i = 0; i < n; i++)
        y[i] = float_to_bf16(x[i]);
}

static void scalar_float_to_fp16(const float *x, size_t n, uint16_t *y)
{
    for (size_t i = 0; i < n; i++)
        y[i] = float_to_fp16(x[i]);
}

static void scalar_min_max(const float *x, size_t n, float *min, float *max, bool *finite)
{
    float lo = x[0], hi = x[0];
    for (size_t i = 0; i < n; i++) {
        if (!isfinite(x[i]))
            *finite = false;
        lo = x[i] < lo ? x[i] : lo;
        hi = x[i] > hi ? x[i] : hi;
    }
    *min = lo + 0.0f; /* -0 becomes 0, so that the order of elements does not show */
    *max = hi + 0.0f;
}

static void scalar_abs_max(const float *x, size_t n, float *max, bool *finite)
{
    float hi = 0;
    for (size_t i = 0; i < n; i++) {
        if (!isfinite(x[i]))
            *finite = false;
        hi = fabsf(x[i]) > hi ? fabsf(x[i]) : hi;
    }
    *max = hi;
}

/* Half to even after clamping, which changes nothing for whole limits and keeps infinities away
 * from the conversion. NaN gives lo. */
static int clamp_round(float v, float lo, float hi)
{
    v = v > lo ? v : lo;
    v = v < hi ? v : hi;
    return (int)rintf(v);
}

static int64_t scalar_quantize_symmetric(const float *x, size_t n, float scale, int limit,
                                         int8_t *q)
{
    int64_t sum = 0;
    for (size_t i = 0; i < n; i++) {
        int v = clamp_round(x[i] / scale, (float)-limit, (float)limit);
        q[i] = (int8_t)v;
        sum += v;
    }
    return sum;
}

/* In the lanes of the vector kernels, so that every set finds the same scales. */
static void scalar_quantize_int4(const float *x, size_t n, float scale, int8_t *q, int4_fit *fit)
{
    enum { LANES = 8 };
    double error[LANES] = {0}, dots[LANES] = {0};
    *fit = (int4_fit){0};
    for (size_t i = 0; i < n; i++) {
        int v = clamp_round(x[i] / scale, -8, 7);
        float product = x[i] * (float)v, there = (float)v * scale, difference = x[i] - there;
        float square = difference * difference;
        q[i] = (int8_t)v;
        error[i % LANES] += square;
        dots[i % LANES] += product;
        fit->squares += v * v;
        fit->sum += v;
    }
    for (size_t i = 0; i < LANES; i++) {
        fit->error += error[i];
        fit->product += dots[i];
    }
}

static void scalar_multiply(const float *x, const float *s, size_t n, float *y)
{
    for (size_t i = 0; i < n; i++)
        y[i] = x[i] * s[i];
}

static void scalar_product_min_max(const float *x, const float *s, size_t n, float *min, float *max)
{
    float lo = x[0] * s[0], hi = lo;
    for (size_t i = 0; i < n; i++) {
        float v = x[i] * s[i];
        lo = v < lo ? v : lo;
        hi = v > hi ? v : hi;
    }
    *min = lo + 0.0f; /* -0 becomes 0 */
    *max = hi + 0.0f;
}

static void scalar_grid_error(const float *x, const float *s, size_t n, const kernel_grid *grid,
                              float *y)
{
    for (size_t i = 0; i < n; i++) {
        float t = x[i] * s[i] / grid->step + grid->zero;
        float level = (float)clamp_round(t, grid->low, grid->high);
        y[i] = (level - grid->zero) * grid->step / s[i] - x[i];
    }
}

static void scalar_quantize_asymmetric(const float *x, size_t n, float scale, float offset,
                                       uint8_t *q)
{
    for (size_t i = 0; i < n; i++)
        q[i] = (uint8_t)(clamp_round(x[i] / scale + offset, -128, 127) + 128);
}

static void scalar_rms_norm(const float *x, const float *w, size_t n, float eps, float base,
                            float *y)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (double)x[i] * x[i];
    float inverse = (float)(1 / sqrt(sum / (double)n + eps));
    for (size_t i = 0; i < n; i++)
        y[i] = (base + w[i]) * (x[i] * inverse);
}

static void scalar_rope(float *x, const float *cos, const float *sin, size_t d)
{
    size_t half = d / 2;
    for (size_t j = 0; j < half; j++) {
        float a = x[j], b = x[j + half];
        x[j] = a * cos[j] - b * sin[j];
        x[j + half] = b * cos[j] + a * sin[j];
    }
}

static void scalar_silu_mul(float *gate, const float *up, size_t n)
{
    for (size_t i = 0; i < n; i++)
        gate[i] = (float)(gate[i] / (1 + exp(-(double)gate[i]))) * up[i];
}

static void scalar_gelu_mul(float *gate, const float *up, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        double x = gate[i], u = 0.79788456080286536 * (x + 0.044715 * x * x * x);
        gate[i] = (float)(x / (1 + exp(-2 * u))) * up[i];
    }
}

static void scalar_softcap(float *x, size_t n, float cap)
{
    for (size_t i = 0; i < n; i++)
        x[i] = (float)(cap * tanh((double)x[i] / cap));
}

static void scalar_add(float *y, const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        y[i] += x[i];
}

static float scalar_dot(const float *x, const float *y, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (double)x[i] * y[i];
    return (float)sum;
}

static void scalar_axpy(float a, const float *x, size_t n, float *y)
{
    for (size_t i = 0; i < n; i++)
        y[i] += a * x[i];
}

static void scalar_softmax(float *x, size_t n)
{
    float max = x[0];
    for (size_t i = 1; i < n; i++)
        max = x[i] > max ? x[i] : max;
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += exp((double)x[i] - max);
    for (size_t i = 0; i < n; i++)
        x[i] = (float)(exp((double)x[i] - max) / sum);
}

static void scalar_dequantize_row(const int32_t *acc, size_t n, int64_t zero,
                                  const int64_t *row_sums, float scale, const float *w_scales,
                                  size_t scales, const float *bias, float *y)
{
    for (size_t i = 0; i < n; i++) {
        int64_t difference = acc[i] - zero * row_sums[i];
        double product = (double)difference * ((double)scale * w_scales[scales == 1 ? 0 : i]);
        y[i] = (float)(product + (bias ? bias[i] : 0));
    }
}

enum { TILE_ROWS = 4 };

static void scalar_gemm_tile(const float *a, const float *b, size_t k, size_t rows, float *c,
                             size_t ldc)
{
    float acc[TILE_ROWS][GEMM_PANEL] = {{0}};
    for (size_t i = 0; i < k; i++) {
        for (size_t r = 0; r < TILE_ROWS; r++) {
            for (size_t j = 0; j < GEMM_PANEL; j++)
                acc[r][j] += a[r * GEMM_DEPTH + i] * b[i * GEMM_PANEL + j];
        }
    }
    for (size_t r = 0; r < rows; r++) {
        for (size_t j = 0; j < GEMM_PANEL; j++)
            c[r * ldc + j] += acc[r][j];
    }
}

#define SCALAR_GEMM_FEW(name, type, widen)                                                         \
    static void name(const float *x, size_t ldx, const type *b, size_t k, size_t rows, float *c,   \
                     size_t ldc)                                                                   \
    {                                                                                              \
        for (size_t r = 0; r < rows; r++) {                                                        \
            float acc[GEMM_PANEL] = {0};                                                           \
            for (size_t i = 0; i < k; i++) {                                                       \
                for (size_t j = 0; j < GEMM_PANEL; j++)                                            \
                    acc[j] += x[r * ldx + i] * widen(b[i * GEMM_PANEL + j]);                       \
            }                                                                                      \
            for (size_t j = 0; j < GEMM_PANEL; j++)                                                \
                c[r * ldc + j] += acc[j];                                                          \
        }                                                                                          \
    }

SCALAR_GEMM_FEW(scalar_gemm_few_f32, float, )
SCALAR_GEMM_FEW(scalar_gemm_few_bf16, uint16_t, bf16_to_float)
SCALAR_GEMM_FEW(scalar_gemm_few_fp16, uint16_t, fp16_to_float)

static void scalar_gemm_u8s8(const uint8_t *x, size_t m, const int8_t *w, size_t n, size_t k,
                             int32_t *acc, size_t ldacc)
{
    for (size_t r = 0; r < m; r++) {
        for (size_t j = 0; j < n; j++) {
            int32_t sum = 0;
            for (size_t i = 0; i < k; i++)
                sum += x[r * k + i] * w[j * k + i];
            acc[r * ldacc + j] = sum;
        }
    }
}

const kernels kernels_scalar = {
    .name = "scalar",
    .bf16_to_float = scalar_bf16_to_float,
    .fp16_to_float = scalar_fp16_to_float,
    .float_to_bf16 = scalar_float_to_bf16,
    .float_to_fp16 = scalar_float_to_fp16,
    .fp8_to_float = scalar_fp8_to_float,
    .min_max = scalar_min_max,
    .abs_max = scalar_abs_max,
    .quantize_symmetric = scalar_quantize_symmetric,
    .quantize_int4 = scalar_quantize_int4,
    .multiply = scalar_multiply,
    .product_min_max = scalar_product_min_max,
    .grid_error = scalar_grid_error,
    .quantize_asymmetric = scalar_quantize_asymmetric,
    .rms_norm = scalar_rms_norm,
    .rope = scalar_rope,
    .silu_mul = scalar_silu_mul,
    .gelu_mul = scalar_gelu_mul,
    .softcap = scalar_softcap,
    .add = scalar_add,
    .dot = scalar_dot,
    .axpy = scalar_axpy,
    .softmax = scalar_softmax,
    .dequantize_row = scalar_dequantize_row,
    .tile_rows = TILE_ROWS,
    .gemm_tile = scalar_gemm_tile,
    .gemm_few_f32 = scalar_gemm_few_f32,
    .gemm_few_bf16 = scalar_gemm_few_bf16,
    .gemm_few_fp16 = scalar_gemm_few_fp16,
    .gemm_u8s8 = scalar_gemm_u8s8,
};
