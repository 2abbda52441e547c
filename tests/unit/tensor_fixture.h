/* For the tests of src/tensor: random vectors, distances in units of the last place, contexts with
 * a forced instruction set. */
#ifndef TARE_TESTS_TENSOR_FIXTURE_H
#define TARE_TESTS_TENSOR_FIXTURE_H

#include <math.h>

#include "fixture.h"
#include "tensor/kernels.h"

static const tare_cpu every_cpu[] = {TARE_CPU_SCALAR, TARE_CPU_AVX2, TARE_CPU_AVX512, TARE_CPU_AMX};

/* One test for each instruction set, which gets it from this_cpu(). */
#define EACH_CPU(test)                                                                             \
    {#test " on scalar", test, NULL, NULL, (void *)(uintptr_t)&every_cpu[0]},                      \
        {#test " on avx2", test, NULL, NULL, (void *)(uintptr_t)&every_cpu[1]},                    \
        {#test " on avx512", test, NULL, NULL, (void *)(uintptr_t)&every_cpu[2]},                  \
    {                                                                                              \
#test " on amx", test, NULL, NULL, (void *)(uintptr_t)&every_cpu[3]                        \
    }

/* Skips the test, by name, where this CPU lacks the set. */
static inline void need_cpu(tare_cpu cpu)
{
    static const char *const names[] = {"auto", "scalar", "avx2", "avx512", "amx"};
    if (kernels_of(cpu))
        return;
    print_message("             skipped: this CPU has no %s\n", names[cpu]);
    skip();
}

static inline tare_cpu this_cpu(void **state)
{
    tare_cpu cpu = *(const tare_cpu *)*state;
    need_cpu(cpu);
    return cpu;
}

static inline tare_context *new_context_on(tare_cpu cpu, int threads)
{
    tare_context *ctx;
    tare_context_options options;
    init_options(&options);
    options.threads = threads;
    options.cpu = cpu;
    assert_int_equal(tare_context_create(&ctx, &options), TARE_OK);
    return ctx;
}

/* xorshift64*: the same numbers everywhere. */
typedef struct random_state {
    uint64_t state;
} random_state;

static inline uint32_t random_bits(random_state *r)
{
    r->state ^= r->state >> 12;
    r->state ^= r->state << 25;
    r->state ^= r->state >> 27;
    return (uint32_t)((r->state * 0x2545f4914f6cdd1dull) >> 32);
}

/* Uniform in [low, high). */
static inline float random_float(random_state *r, double low, double high)
{
    return (float)(low + (high - low) * (random_bits(r) / 4294967296.0));
}

static inline void random_fill(random_state *r, float *x, size_t n, double low, double high)
{
    for (size_t i = 0; i < n; i++)
        x[i] = random_float(r, low, high);
}

static inline float float_of_bits(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static inline uint32_t bits_of_float(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}

/* |x - expected| in units of the last place of expected as a normal or denormal FP32. */
static inline double ulps(float x, double expected)
{
    int exponent;
    if (x == (float)expected)
        return 0;
    frexp(expected, &exponent);
    double unit = ldexp(1, (exponent < -125 ? -125 : exponent) - 24);
    return fabs(x - expected) / unit;
}

#endif
