/* Conversions between storage dtypes and FP32. */
#include "tensor/convert.h"

#include <assert.h>
#include <math.h>

#include "base/parallel.h"
#include "tensor/kernels.h"

float fp16_to_float(uint16_t x)
{
    uint32_t sign = (uint32_t)(x & 0x8000) << 16, exponent = (x >> 10) & 31, mantissa = x & 0x3ff;
    uint32_t u;
    if (exponent == 31) {
        /* As the hardware does: a signalling NaN becomes quiet. */
        u = sign | 0x7f800000u | mantissa << 13 | (mantissa ? 0x400000u : 0);
    } else if (exponent) {
        u = sign | (exponent + 112) << 23 | mantissa << 13;
    } else {
        float f = (float)mantissa * 0x1p-24f;
        return sign ? -f : f;
    }
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

uint16_t float_to_fp16(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    uint16_t sign = (uint16_t)((u >> 16) & 0x8000);
    u &= 0x7fffffffu;
    if (u > 0x7f800000u)
        return (uint16_t)(sign | 0x7e00 | ((u >> 13) & 0x3ff));
    if (u >= 0x477ff000u) /* 65520: halfway between the largest FP16 and the next power of two */
        return sign | 0x7c00;
    if (u < 0x38800000u) { /* below 2^-14: a multiple of 2^-24; adding 0.5 leaves the rounding of
                              its last bit to the FP32 addition */
        float a, shifted;
        memcpy(&a, &u, sizeof a);
        shifted = a + 0.5f;
        memcpy(&u, &shifted, sizeof u);
        return (uint16_t)(sign | (u - 0x3f000000u));
    }
    u += 0xfff + ((u >> 13) & 1);
    return (uint16_t)(sign | ((u - 0x38000000u) >> 13));
}

/* x rounded half to even to `precision` bits, in multiples of at least 2^min_exponent. Exact but
 * for the one rounding: only powers of two are multiplied. */
static double round_to_precision(double x, int precision, int min_exponent)
{
    int exponent;
    frexp(x, &exponent);
    int quantum = exponent - precision;
    if (quantum < min_exponent)
        quantum = min_exponent;
    return ldexp(rint(ldexp(x, -quantum)), quantum);
}

float round_to_dtype(double x, tare_dtype dtype)
{
    assert(dtype_is_float(dtype));
    if (dtype == TARE_F32 || !isfinite(x) || x == 0)
        return (float)x;
    if (dtype == TARE_BF16)
        return (float)round_to_precision(x, 8, -133);
    double r = round_to_precision(x, 11, -24);
    return fabs(r) > 65504 ? (float)copysign(INFINITY, x) : (float)r;
}

enum { CHUNK = 1 << 16 };

typedef struct conversion {
    const kernels *kernels;
    tare_dtype dtype;
    const void *from;
    void *to;
    size_t count;
} conversion;

static size_t chunk_of(const conversion *c, size_t index, size_t *start)
{
    *start = index * CHUNK;
    return c->count - *start < CHUNK ? c->count - *start : CHUNK;
}

void widen_run(const kernels *k, tare_dtype dtype, const void *from, size_t count, float *to)
{
    assert(dtype_is_float(dtype));
    if (dtype == TARE_F32)
        memcpy(to, from, count * sizeof *to);
    else if (dtype == TARE_BF16)
        k->bf16_to_float(from, count, to);
    else
        k->fp16_to_float(from, count, to);
}

void narrow_run(const kernels *k, tare_dtype dtype, const float *from, size_t count, void *to)
{
    assert(dtype_is_float(dtype));
    if (dtype == TARE_F32)
        memcpy(to, from, count * sizeof *from);
    else if (dtype == TARE_BF16)
        k->float_to_bf16(from, count, to);
    else
        k->float_to_fp16(from, count, to);
}

static void widen_chunk(void *user, size_t index, int thread)
{
    (void)thread;
    const conversion *c = user;
    size_t start, n = chunk_of(c, index, &start);
    const char *from = (const char *)c->from + start * dtype_size(c->dtype);
    widen_run(c->kernels, c->dtype, from, n, (float *)c->to + start);
}

static void narrow_chunk(void *user, size_t index, int thread)
{
    (void)thread;
    const conversion *c = user;
    size_t start, n = chunk_of(c, index, &start);
    char *to = (char *)c->to + start * dtype_size(c->dtype);
    narrow_run(c->kernels, c->dtype, (const float *)c->from + start, n, to);
}

void widen_to_float(const tare_context *ctx, tare_dtype dtype, const void *from, size_t count,
                    float *to)
{
    conversion c = {kernels_get(ctx), dtype, from, to, count};
    parallel_for(ctx, (count + CHUNK - 1) / CHUNK, widen_chunk, &c);
}

void narrow_from_float(const tare_context *ctx, tare_dtype dtype, const float *from, size_t count,
                       void *to)
{
    conversion c = {kernels_get(ctx), dtype, from, to, count};
    parallel_for(ctx, (count + CHUNK - 1) / CHUNK, narrow_chunk, &c);
}

#define FIRST_WITH(name, type)                                                                     \
    static size_t name(const type *x, size_t n, type bits)                                         \
    {                                                                                              \
        unsigned found = 0;                                                                        \
        for (size_t i = 0; i < n; i++)                                                             \
            found |= (x[i] & bits) == bits;                                                        \
        for (size_t i = 0; found && i < n; i++)                                                    \
            if ((x[i] & bits) == bits)                                                             \
                return i;                                                                          \
        return n;                                                                                  \
    }

FIRST_WITH(first_with8, uint8_t)
FIRST_WITH(first_with16, uint16_t)
FIRST_WITH(first_with32, uint32_t)

/* In FP8 NaN has all bits set but the sign, in the others NaN and infinity all of the exponent. */
size_t first_not_finite(tare_dtype dtype, const void *x, size_t n)
{
    return dtype == TARE_F32       ? first_with32(x, n, 0x7f800000u)
           : dtype == TARE_BF16    ? first_with16(x, n, 0x7f80)
           : dtype == TARE_F16     ? first_with16(x, n, 0x7c00)
           : dtype == TARE_F8_E4M3 ? first_with8(x, n, 0x7f)
                                   : n;
}
