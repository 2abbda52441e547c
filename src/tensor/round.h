/* Rounding of FP32 values to the 16-bit floats and to integers, without leaving FP32 and without
 * branches, so that loops over them become vector code. Default rounding mode assumed. */
#ifndef TARE_TENSOR_ROUND_H
#define TARE_TENSOR_ROUND_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "base/dtype.h"

static const float ROUND_EPS = 0x1p-23f; /* the floor of every scale (w8a8.md, Terms) */

static inline float bits_to_float(uint32_t u)
{
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static inline uint32_t float_to_bits(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

/* Half to even, for |x| <= 2^22: the sum has no fraction bits left. */
static inline float round_even_small(float x)
{
    return (x + 0x1.8p23f) - 0x1.8p23f;
}

static inline float round_bf16(float x)
{
    uint32_t u = float_to_bits(x);
    uint32_t r = (u + 0x7fffu + ((u >> 16) & 1)) & 0xffff0000u;
    return bits_to_float((u & 0x7fffffffu) > 0x7f800000u ? u : r);
}

static inline float round_fp16(float x)
{
    uint32_t u = float_to_bits(x), magnitude = u & 0x7fffffffu;
    uint32_t normal = (magnitude + 0xfffu + ((magnitude >> 13) & 1)) & 0xffffe000u;
    normal = normal > 0x477fe000u ? 0x7f800000u : normal; /* beyond 65504 */
    /* Below 2^-14 the spacing is 2^-24, that of FP32 in [0.5, 1). */
    uint32_t small = float_to_bits((bits_to_float(magnitude) + 0.5f) - 0.5f);
    uint32_t r = magnitude < 0x38800000u ? small : normal;
    r = magnitude > 0x7f800000u ? magnitude : r;
    return bits_to_float(r | (u & 0x80000000u));
}

/* x rounded to F16 or BF16; any other dtype leaves it. */
static inline float round_native(float x, tare_dtype dtype)
{
    return dtype == TARE_BF16 ? round_bf16(x) : dtype == TARE_F16 ? round_fp16(x) : x;
}

/* The next larger number of the dtype; x >= 0, itself of the dtype. */
static inline float round_next_up(float x, tare_dtype dtype)
{
    if (dtype == TARE_F16 && x < 0x1p-14f)
        return x + 0x1p-24f;
    uint32_t step = dtype == TARE_F16 ? 0x2000u : dtype == TARE_BF16 ? 0x10000u : 1u;
    return round_native(bits_to_float(float_to_bits(x) + step), dtype);
}

/* The smallest positive normal number, and the largest finite one. */
static inline float dtype_smallest_normal(tare_dtype dtype)
{
    return dtype == TARE_F16 ? 0x1p-14f : 0x1p-126f;
}

static inline float dtype_largest(tare_dtype dtype)
{
    return dtype == TARE_F16    ? 65504.0f
           : dtype == TARE_BF16 ? bits_to_float(0x7f7f0000u)
                                : bits_to_float(0x7f7fffffu);
}

#endif
