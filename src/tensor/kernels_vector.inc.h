/* The vector kernels, written once. Included by one file per instruction set (kernels_avx2.c,
 * kernels_avx512.c), which first defines the few things that GCC's vector extensions cannot say:
 *
 *     V_LANES              floats in a vector
 *     V_TILE_ROWS          rows of the float GEMM tile: 2 * V_TILE_ROWS sums fill the registers
 *     V_DOT_ROWS           rows of the 8-bit tile
 *     V_FEW_ROWS           rows whose sums, two vectors each, live in registers
 *     v_fma(a, b, c)       a * b + c, rounded once
 *     v_max(a, b)          a > b ? a : b, and v_min alike: b if either is NaN
 *     v_from_half(p)       V_LANES FP16 at p; v_to_half(p, v) stores them, half to even
 *     v_store_bytes(p, i)  the low bytes of integer lanes; v_from_bytes(p) V_LANES u8 as such lanes
 *     vd_from_i64(p)       V_LANES / 2 int64 below 2^51 at p as doubles
 *     vs_from_u8(p)        2 * V_LANES u8 at p as int16 lanes, and vs_from_s8
 *     vs_madd(a, b)        sums of neighbouring int16 products as int32 lanes
 *
 * Everything here is static: code built for a newer CPU must not be what the linker picks for the
 * rest. Rows that end inside a vector go through a padded copy in the same arithmetic, so an
 * element's result does not depend on where it stands. */
#include <stdint.h>
#include <string.h>

#include "tensor/convert.h"
#include "tensor/kernels_tables.h"
#include "tensor/round.h"

typedef float v_float __attribute__((vector_size(4 * V_LANES)));
typedef int32_t v_int __attribute__((vector_size(4 * V_LANES)));
typedef uint32_t v_uint __attribute__((vector_size(4 * V_LANES)));
typedef uint16_t v_half __attribute__((vector_size(2 * V_LANES)));
typedef float v_half_float __attribute__((vector_size(2 * V_LANES)));
typedef int32_t v_half_int __attribute__((vector_size(2 * V_LANES)));
typedef double v_double __attribute__((vector_size(4 * V_LANES)));

/* Sums run in as many lanes whatever the width of a vector, which is V_PARTS or VD_PARTS vectors:
 * so every set gives the same sums, bit for bit. */
enum {
    V_HALF = V_LANES / 2,
    V_SUM_LANES = 16,
    V_PARTS = V_SUM_LANES / V_LANES,
    VD_SUM_LANES = 8,
    VD_PARTS = VD_SUM_LANES / V_HALF
};

static inline v_float v_load(const float *p)
{
    v_float v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline void v_store(float *p, v_float v)
{
    memcpy(p, &v, sizeof v);
}

static inline v_float v_set1(float x)
{
    return x - (v_float){0}; /* not +: -0 stays -0 */
}

/* n < V_LANES elements, then `fill`. */
static inline v_float v_load_part(const float *p, size_t n, float fill)
{
    float padded[V_LANES];
    for (size_t i = 0; i < V_LANES; i++)
        padded[i] = fill;
    memcpy(padded, p, n * sizeof *p);
    return v_load(padded);
}

static inline void v_store_part(float *p, size_t n, v_float v)
{
    memcpy(p, &v, n * sizeof *p);
}

static inline v_double vd_load(const float *p)
{
    v_half_float v;
    memcpy(&v, p, sizeof v);
    return __builtin_convertvector(v, v_double);
}

static inline v_double vd_set1(double x)
{
    return x - (v_double){0};
}

/* Sum of V_SUM_LANES lanes, of doubles VD_SUM_LANES, in a fixed order. */
static inline float v_sum(const v_float *v)
{
    float lanes[V_SUM_LANES];
    memcpy(lanes, v, sizeof lanes);
    for (size_t width = V_SUM_LANES / 2; width > 0; width /= 2) {
        for (size_t i = 0; i < width; i++)
            lanes[i] += lanes[i + width];
    }
    return lanes[0];
}

static inline double vd_sum(const v_double *v)
{
    double sum = 0;
    for (size_t i = 0; i < VD_SUM_LANES; i++)
        sum += v[i / V_HALF][i % V_HALF];
    return sum;
}

/* ---- conversions ---- */

static void v_bf16_to_float(const uint16_t *x, size_t n, float *y)
{
    size_t i = 0;
    for (; i + V_LANES <= n; i += V_LANES) {
        v_half h;
        memcpy(&h, x + i, sizeof h);
        v_uint u = __builtin_convertvector(h, v_uint) << 16;
        memcpy(y + i, &u, sizeof u);
    }
    for (; i < n; i++)
        y[i] = bf16_to_float(x[i]);
}

/* As fp8_to_float and round_bf16, without branches; the one NaN is quiet and survives rounding. */
static void v_fp8_to_float(const uint8_t *x, size_t n, float scale, float *y)
{
    size_t i = 0;
    for (; i + V_LANES <= n; i += V_LANES) {
        v_uint code = v_from_bytes(x + i), magnitude = code & 0x7fu;
        v_uint small = (v_uint)(__builtin_convertvector((v_int)magnitude, v_float) * 0x1p-9f);
        v_uint normal = (magnitude << 20) + (120u << 23);
        v_uint is_small = (v_uint)(magnitude < 8u), is_nan = (v_uint)(magnitude == 0x7fu);
        v_uint u = (is_small & small) | (~is_small & normal);
        u = (is_nan & 0x7fc00000u) | (~is_nan & u) | (code & 0x80u) << 24;
        u = (v_uint)((v_float)u * scale);
        u = (u + 0x7fffu + ((u >> 16) & 1u)) & 0xffff0000u;
        memcpy(y + i, &u, sizeof u);
    }
    for (; i < n; i++)
        y[i] = round_bf16(fp8_to_float(x[i]) * scale);
}

static void v_float_to_bf16(const float *x, size_t n, uint16_t *y)
{
    size_t i = 0;
    for (; i + V_LANES <= n; i += V_LANES) {
        v_uint u;
        memcpy(&u, x + i, sizeof u);
        v_uint rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16, quiet = (u >> 16) | 0x40u;
        v_uint nan = (v_uint)((v_int)(u & 0x7fffffffu) > 0x7f800000);
        v_half h = __builtin_convertvector((nan & quiet) | (~nan & rounded), v_half);
        memcpy(y + i, &h, sizeof h);
    }
    for (; i < n; i++)
        y[i] = float_to_bf16(x[i]);
}

static void v_fp16_to_float(const uint16_t *x, size_t n, float *y)
{
    size_t i = 0;
    for (; i + V_LANES <= n; i += V_LANES)
        v_store(y + i, v_from_half(x + i));
    for (; i < n; i++)
        y[i] = fp16_to_float(x[i]);
}

static void v_float_to_fp16(const float *x, size_t n, uint16_t *y)
{
    size_t i = 0;
    for (; i + V_LANES <= n; i += V_LANES)
        v_to_half(y + i, v_load(x + i));
    for (; i < n; i++)
        y[i] = float_to_fp16(x[i]);
}

/* ---- extremes ---- */

static inline v_int v_abs_bits(v_float v)
{
    return (v_int)v & 0x7fffffff;
}

/* Bit 31 is set where x is infinite or NaN: their exponent is the one that overflows. */
static inline v_int v_not_finite(v_float v)
{
    return (v_int)((v_uint)v_abs_bits(v) + 0x00800000u);
}

static inline bool v_any_negative(v_int bits)
{
    int32_t any = 0;
    for (size_t i = 0; i < V_LANES; i++)
        any |= bits[i];
    return any < 0;
}

static inline float v_largest(v_float v)
{
    float max = v[0];
    for (size_t i = 1; i < V_LANES; i++)
        max = v[i] > max ? v[i] : max;
    return max;
}

static void v_min_max(const float *x, size_t n, float *min, float *max, bool *finite)
{
    v_float low[2] = {v_set1(x[0]), v_set1(x[0])}, high[2] = {low[0], low[0]};
    v_int bad[2] = {{0}, {0}};
    size_t i = 0;
    for (; i + 2 * V_LANES <= n; i += 2 * V_LANES) {
        for (size_t j = 0; j < 2; j++) {
            v_float v = v_load(x + i + j * V_LANES);
            low[j] = v_min(low[j], v);
            high[j] = v_max(high[j], v);
            bad[j] |= v_not_finite(v);
        }
    }
    for (; i < n; i += V_LANES) {
        v_float v = n - i < V_LANES ? v_load_part(x + i, n - i, x[0]) : v_load(x + i);
        low[0] = v_min(low[0], v);
        high[0] = v_max(high[0], v);
        bad[0] |= v_not_finite(v);
    }
    if (v_any_negative(bad[0] | bad[1]))
        *finite = false;
    *min = 0.0f - v_largest(-v_min(low[0], low[1])); /* -0 becomes 0 */
    *max = v_largest(v_max(high[0], high[1])) + 0.0f;
}

static void v_abs_max(const float *x, size_t n, float *max, bool *finite)
{
    v_float high[2] = {{0}, {0}};
    v_int bad[2] = {{0}, {0}};
    size_t i = 0;
    for (; i + 2 * V_LANES <= n; i += 2 * V_LANES) {
        for (size_t j = 0; j < 2; j++) {
            v_float v = v_load(x + i + j * V_LANES);
            high[j] = v_max(high[j], (v_float)v_abs_bits(v));
            bad[j] |= v_not_finite(v);
        }
    }
    for (; i < n; i += V_LANES) {
        v_float v = n - i < V_LANES ? v_load_part(x + i, n - i, 0) : v_load(x + i);
        high[0] = v_max(high[0], (v_float)v_abs_bits(v));
        bad[0] |= v_not_finite(v);
    }
    if (v_any_negative(bad[0] | bad[1]))
        *finite = false;
    *max = v_largest(v_max(high[0], high[1]));
}

#include "tensor/kernels_vector_quantize.inc.h"

/* ---- the decoder layer ---- */

static void v_rms_norm(const float *x, const float *w, size_t n, float eps, float base, float *y)
{
    v_double sums[4][VD_PARTS] = {{{0}}};
    size_t i = 0;
    for (; i + 4 * VD_SUM_LANES <= n; i += 4 * VD_SUM_LANES) {
        for (size_t j = 0; j < 4 * VD_PARTS; j++) {
            v_double v = vd_load(x + i + j * V_HALF);
            sums[j / VD_PARTS][j % VD_PARTS] += v * v;
        }
    }
    for (size_t p = 0; p < VD_PARTS; p++)
        sums[0][p] = (sums[0][p] + sums[1][p]) + (sums[2][p] + sums[3][p]);
    double sum = vd_sum(sums[0]);
    for (; i < n; i++)
        sum += (double)x[i] * x[i];
    float inverse = (float)(1 / __builtin_sqrt(sum / (double)n + eps));
    for (i = 0; i + V_LANES <= n; i += V_LANES)
        v_store(y + i, (v_load(w + i) + base) * (v_load(x + i) * inverse));
    for (; i < n; i++)
        y[i] = (w[i] + base) * (x[i] * inverse);
}

static void v_rope(float *x, const float *cos, const float *sin, size_t d)
{
    size_t half = d / 2, j = 0;
    for (; j + V_LANES <= half; j += V_LANES) {
        v_float a = v_load(x + j), b = v_load(x + j + half), c = v_load(cos + j),
                s = v_load(sin + j);
        v_store(x + j, a * c - b * s);
        v_store(x + j + half, b * c + a * s);
    }
    for (; j < half; j++) {
        float a = x[j], b = x[j + half];
        x[j] = a * cos[j] - b * sin[j];
        x[j + half] = b * cos[j] + a * sin[j];
    }
}

/* exp to 1 ulp or so; 0 below -104, infinity above 89, NaN stays. x = n ln 2 + r; the Taylor series
 * of exp(r) to r^7 leaves 5e-9 for |r| <= ln(2)/2. The power of two is applied in two halves, so
 * that denormal results are rounded and not flushed. */
static inline v_float v_exp(v_float x)
{
    const float magic = 12582912.0f;
    x = v_min(v_set1(89), v_max(v_set1(-104), x)); /* in this order NaN passes */
    v_float n = (x * 1.44269504f + magic) - magic;
    v_float r = v_fma(n, v_set1(-0x1.62e4p-1f), x);
    r = v_fma(n, v_set1(-0x1.7f7d1cp-20f), r);
    v_float p = v_set1(1.0f / 5040);
    p = v_fma(p, r, v_set1(1.0f / 720));
    p = v_fma(p, r, v_set1(1.0f / 120));
    p = v_fma(p, r, v_set1(1.0f / 24));
    p = v_fma(p, r, v_set1(1.0f / 6));
    p = v_fma(p, r, v_set1(0.5f));
    p = v_fma(p, r, v_set1(1));
    p = v_fma(p, r, v_set1(1));
    v_int power = __builtin_convertvector(n, v_int), first = power >> 1;
    v_uint low = (v_uint)(first + 127) << 23, high = (v_uint)(power - first + 127) << 23;
    return p * (v_float)low * (v_float)high;
}

static inline v_float v_silu(v_float g)
{
    return g / (v_exp(-g) + 1);
}

static void v_silu_mul(float *gate, const float *up, size_t n)
{
    size_t i = 0;
    for (; i + V_LANES <= n; i += V_LANES)
        v_store(gate + i, v_silu(v_load(gate + i)) * v_load(up + i));
    if (i < n) {
        v_float g = v_load_part(gate + i, n - i, 0), u = v_load_part(up + i, n - i, 0);
        v_store_part(gate + i, n - i, v_silu(g) * u);
    }
}

/* x (1 + tanh(u)) / 2 is x / (1 + exp(-2 u)). */
static inline v_float v_gelu(v_float x)
{
    v_float twice = x * (x * x * 0.0713548162726f + 1.59576912161f);
    return x / (v_exp(-twice) + 1);
}

static void v_gelu_mul(float *gate, const float *up, size_t n)
{
    size_t i = 0;
    for (; i + V_LANES <= n; i += V_LANES)
        v_store(gate + i, v_gelu(v_load(gate + i)) * v_load(up + i));
    if (i < n) {
        v_float g = v_load_part(gate + i, n - i, 0), u = v_load_part(up + i, n - i, 0);
        v_store_part(gate + i, n - i, v_gelu(g) * u);
    }
}

static inline v_float v_cap(v_float x, float cap)
{
    return (1 - 2 / (v_exp(x * (2 / cap)) + 1)) * cap;
}

static void v_softcap(float *x, size_t n, float cap)
{
    size_t i = 0;
    for (; i + V_LANES <= n; i += V_LANES)
        v_store(x + i, v_cap(v_load(x + i), cap));
    if (i < n)
        v_store_part(x + i, n - i, v_cap(v_load_part(x + i, n - i, 0), cap));
}

static void v_add(float *y, const float *x, size_t n)
{
    size_t i = 0;
    for (; i + V_LANES <= n; i += V_LANES)
        v_store(y + i, v_load(y + i) + v_load(x + i));
    for (; i < n; i++)
        y[i] += x[i];
}

static void v_butterfly(float *x, float *y, size_t n)
{
    size_t i = 0;
    for (; i + V_LANES <= n; i += V_LANES) {
        v_float a = v_load(x + i), b = v_load(y + i);
        v_store(x + i, a + b);
        v_store(y + i, a - b);
    }
    for (; i < n; i++) {
        float sum = x[i] + y[i], difference = x[i] - y[i];
        x[i] = sum;
        y[i] = difference;
    }
}

static float v_dot(const float *x, const float *y, size_t n)
{
    v_float sums[4][V_PARTS] = {{{0}}};
    size_t i = 0;
    for (; i + 4 * V_SUM_LANES <= n; i += 4 * V_SUM_LANES) {
        for (size_t j = 0; j < 4 * V_PARTS; j++) {
            v_float *sum = &sums[j / V_PARTS][j % V_PARTS];
            *sum = v_fma(v_load(x + i + j * V_LANES), v_load(y + i + j * V_LANES), *sum);
        }
    }
    for (; i + V_SUM_LANES <= n; i += V_SUM_LANES) {
        for (size_t p = 0; p < V_PARTS; p++)
            sums[0][p] = v_fma(v_load(x + i + p * V_LANES), v_load(y + i + p * V_LANES),
                               sums[0][p]);
    }
    for (size_t p = 0; p < V_PARTS && i < n; p++) {
        size_t left = n - i < V_LANES ? n - i : V_LANES;
        sums[1][p] = v_fma(v_load_part(x + i, left, 0), v_load_part(y + i, left, 0), sums[1][p]);
        i += left;
    }
    for (size_t p = 0; p < V_PARTS; p++)
        sums[0][p] = (sums[0][p] + sums[1][p]) + (sums[2][p] + sums[3][p]);
    return v_sum(sums[0]);
}

static void v_axpy(float a, const float *x, size_t n, float *y)
{
    v_float factor = v_set1(a);
    size_t i = 0;
    for (; i + V_LANES <= n; i += V_LANES)
        v_store(y + i, v_fma(factor, v_load(x + i), v_load(y + i)));
    if (i < n) {
        v_float sum = v_fma(factor, v_load_part(x + i, n - i, 0), v_load_part(y + i, n - i, 0));
        v_store_part(y + i, n - i, sum);
    }
}

/* x <- exp(x - max); returns the sum, in double. */
static inline double v_exp_row(float *x, size_t n, float max)
{
    v_double sums[2][VD_PARTS] = {{{0}}};
    size_t i = 0;
    for (; i + V_SUM_LANES <= n; i += V_SUM_LANES) {
        for (size_t p = 0; p < V_PARTS; p++)
            v_store(x + i + p * V_LANES, v_exp(v_load(x + i + p * V_LANES) - max));
        for (size_t p = 0; p < 2 * VD_PARTS; p++)
            sums[p / VD_PARTS][p % VD_PARTS] += vd_load(x + i + p * V_HALF);
    }
    for (size_t p = 0; p < VD_PARTS; p++)
        sums[0][p] += sums[1][p];
    double sum = vd_sum(sums[0]);
    while (i < n) {
        size_t left = n - i < V_LANES ? n - i : V_LANES;
        v_store_part(x + i, left, v_exp(v_load_part(x + i, left, max) - max));
        for (size_t end = i + left; i < end; i++)
            sum += x[i];
    }
    return sum;
}

static void v_softmax(float *x, size_t n)
{
    v_float high = v_set1(x[0]);
    size_t i = 0;
    for (; i + V_LANES <= n; i += V_LANES)
        high = v_max(v_load(x + i), high);
    if (i < n)
        high = v_max(v_load_part(x + i, n - i, x[0]), high);
    float max = v_largest(high);
    float inverse = (float)(1 / v_exp_row(x, n, max));
    for (i = 0; i + V_LANES <= n; i += V_LANES)
        v_store(x + i, v_load(x + i) * inverse);
    for (; i < n; i++)
        x[i] *= inverse;
}

#include "tensor/kernels_vector_gemm.inc.h"

/* The members of a table that every vector set has. */
#define V_MEMBERS(set)                                                                             \
    .name = (set), .bf16_to_float = v_bf16_to_float, .fp16_to_float = v_fp16_to_float,             \
    .float_to_bf16 = v_float_to_bf16, .float_to_fp16 = v_float_to_fp16,                            \
    .fp8_to_float = v_fp8_to_float, .min_max = v_min_max, .abs_max = v_abs_max,                    \
    .quantize_symmetric = v_quantize_symmetric, .quantize_int4 = v_quantize_int4,                  \
    .multiply = v_multiply, .product_min_max = v_product_min_max, .grid_error = v_grid_error_row,  \
    .quantize_asymmetric = v_quantize_asymmetric, .rms_norm = v_rms_norm, .rope = v_rope,          \
    .silu_mul = v_silu_mul, .gelu_mul = v_gelu_mul, .softcap = v_softcap, .add = v_add,            \
    .butterfly = v_butterfly, .dot = v_dot, .axpy = v_axpy, .softmax = v_softmax,                  \
    .dequantize_row = v_dequantize_row, .tile_rows = V_TILE_ROWS, .gemm_tile = v_gemm_tile,        \
    .gemm_few_f32 = v_gemm_few_f32, .gemm_few_bf16 = v_gemm_few_bf16,                              \
    .gemm_few_fp16 = v_gemm_few_fp16, .gemm_u8s8 = v_gemm_u8s8
