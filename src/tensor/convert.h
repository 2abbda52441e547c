/* Between storage dtypes and FP32: bf16 and fp16, round half to even; NaN stays NaN; FP16 overflow
 * gives infinity. */
#ifndef TARE_TENSOR_CONVERT_H
#define TARE_TENSOR_CONVERT_H

#include <stdint.h>
#include <string.h>

#include "base/context.h"
#include "base/dtype.h"

static inline float bf16_to_float(uint16_t x)
{
    uint32_t u = (uint32_t)x << 16;
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static inline uint16_t float_to_bf16(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    if ((u & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)((u >> 16) | 0x40);
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1)) >> 16);
}

/* F8_E4M3 (OCP "E4M3FN"): sign, 4 bits of exponent with bias 7, 3 of mantissa; no infinity, NaN is
 * all ones. */
static inline float fp8_to_float(uint8_t x)
{
    uint32_t magnitude = x & 0x7fu, u = (magnitude << 20) + (120u << 23), sign = (x & 0x80u) << 24;
    float f = (float)magnitude * 0x1p-9f; /* subnormal */
    uint32_t small;
    memcpy(&small, &f, sizeof small);
    u = magnitude < 8 ? small : u;
    u = magnitude == 0x7f ? 0x7fc00000u : u;
    u |= sign;
    memcpy(&f, &u, sizeof f);
    return f;
}

float fp16_to_float(uint16_t x);
uint16_t float_to_fp16(float f);
/* `x` rounded once, half to even, to `dtype` (F32, F16 or BF16): from a double, without double
 * rounding. */
float round_to_dtype(double x, tare_dtype dtype);
/* count elements of F32, F16 or BF16 at `from` to FP32. Here and below another dtype is a mistake
 * of the caller: the process ends, before a tensor of other widths is read beyond its end. */
void widen_to_float(const tare_context *ctx, tare_dtype dtype, const void *from, size_t count,
                    float *to);
/* FP32 to F32, F16 or BF16. */
void narrow_from_float(const tare_context *ctx, tare_dtype dtype, const float *from, size_t count,
                       void *to);
/* The same two in the calling thread. */
struct kernels;
void widen_run(const struct kernels *k, tare_dtype dtype, const void *from, size_t count,
               float *to);
void narrow_run(const struct kernels *k, tare_dtype dtype, const float *from, size_t count,
                void *to);

/* Index of the first NaN or infinity among x[n] in F32, F16, BF16 or F8_E4M3; n: none, or another
 * dtype. */
size_t first_not_finite(tare_dtype dtype, const void *x, size_t n);

#endif
