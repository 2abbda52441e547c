/* Arithmetic on sizes. */
#ifndef TARE_BASE_SIZES_H
#define TARE_BASE_SIZES_H

#include <stdbool.h>
#include <stddef.h>

/* True if the product (sum) fits size_t; it is in *out then. */
static inline bool size_mul(size_t a, size_t b, size_t *out)
{
    return !__builtin_mul_overflow(a, b, out);
}

static inline bool size_add(size_t a, size_t b, size_t *out)
{
    return !__builtin_add_overflow(a, b, out);
}

static inline size_t size_min(size_t a, size_t b)
{
    return a < b ? a : b;
}

static inline size_t size_max(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* How many pieces of `b` hold `a`. */
static inline size_t size_divide_up(size_t a, size_t b)
{
    return a / b + (a % b != 0);
}

static inline size_t size_round_up(size_t a, size_t step)
{
    return size_divide_up(a, step) * step;
}

#endif
