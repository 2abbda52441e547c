/* FP16, BF16 and FP32: every FP16 and BF16 value, ties, denormals, NaN; rounding from double
 * without double rounding, against exact arithmetic on the neighbours; dtype names. */
#include <signal.h>
#include <sys/wait.h>

#include "base/dtype.h"
#include "tensor/convert.h"
#include "tensor_fixture.h"

/* The value of an FP16 by its definition. */
static double fp16_value(uint16_t x)
{
    int exponent = (x >> 10) & 31, mantissa = x & 0x3ff;
    double value = exponent == 31 ? (mantissa ? NAN : INFINITY)
                   : exponent     ? ldexp(1024 + mantissa, exponent - 25)
                                  : ldexp(mantissa, -24);
    return x & 0x8000 ? -value : value;
}

static void test_every_fp16(void **state)
{
    (void)state;
    for (uint32_t x = 0; x < 65536; x++) {
        double expected = fp16_value((uint16_t)x);
        float wide = fp16_to_float((uint16_t)x);
        if (isnan(expected)) {
            assert_true(isnan(wide));
            assert_true(isnan(fp16_value(float_to_fp16(wide))));
        } else {
            assert_true(wide == expected && !signbit(wide) == !(x & 0x8000));
            assert_int_equal(float_to_fp16(wide), x);
        }
    }
}

/* The halfway points between neighbours, and the floats beside them. */
static void test_fp16_ties(void **state)
{
    (void)state;
    for (uint16_t x = 0; x < 0x7bff; x++) {
        float half = (float)((fp16_value(x) + fp16_value((uint16_t)(x + 1))) / 2);
        assert_int_equal(float_to_fp16(half), x & 1 ? x + 1 : x);
        assert_int_equal(float_to_fp16(nextafterf(half, 0)), x);
        assert_int_equal(float_to_fp16(nextafterf(half, INFINITY)), x + 1);
        assert_int_equal(float_to_fp16(-half), 0x8000 | (x & 1 ? x + 1 : x));
    }
    assert_int_equal(float_to_fp16(65519.996f), 0x7bff);
    assert_int_equal(float_to_fp16(65520), 0x7c00);
    assert_int_equal(float_to_fp16(-3e38f), 0xfc00);
    assert_int_equal(float_to_fp16(INFINITY), 0x7c00);
    assert_int_equal(float_to_fp16(float_of_bits(0x7f800001)) & 0x7e00, 0x7e00);
}

static void test_every_bf16(void **state)
{
    (void)state;
    for (uint32_t x = 0; x < 65536; x++) {
        float wide = bf16_to_float((uint16_t)x);
        assert_int_equal(bits_of_float(wide), x << 16);
        if (isnan(wide))
            assert_true(isnan(bf16_to_float(float_to_bf16(wide))));
        else
            assert_int_equal(float_to_bf16(wide), x);
    }
    for (uint32_t x = 0; x < 0x7f80; x++) { /* up to the tie between the largest and infinity */
        float half = float_of_bits(x << 16 | 0x8000);
        assert_int_equal(float_to_bf16(half), x & 1 ? x + 1 : x);
        assert_int_equal(float_to_bf16(nextafterf(half, 0)), x);
        assert_int_equal(float_to_bf16(nextafterf(half, INFINITY)), x + 1);
    }
    assert_true(isnan(bf16_to_float(float_to_bf16(float_of_bits(0xff800001)))));
    assert_true(isnan(bf16_to_float(float_to_bf16(float_of_bits(0x7fffffff)))));
}

/* Nearest of two neighbours by exact distance; the one with an even last bit on a tie. */
static double nearest(double x, double low, double high, bool low_is_even)
{
    double below = x - low, above = high - x; /* exact: few bits apart */
    return below < above || (below == above && low_is_even) ? low : high;
}

static void test_round_to_dtype(void **state)
{
    (void)state;
    random_state r = {7};
    const double nudges[] = {0, 0x1p-30, -0x1p-30, 0x1p-45, -0x1p-45, 0x1p-11, -0x1p-11};
    for (int i = 0; i < 20000; i++) {
        uint16_t h = (uint16_t)(random_bits(&r) % 0x7bff), b = (uint16_t)(random_bits(&r) % 0x7f7f);
        double low = fp16_value(h), high = fp16_value((uint16_t)(h + 1));
        double low_b = bf16_to_float(b), high_b = bf16_to_float((uint16_t)(b + 1));
        for (size_t k = 0; k < sizeof nudges / sizeof *nudges; k++) {
            double x = (low + high) / 2 + (high - low) * nudges[k];
            double y = (low_b + high_b) / 2 + (high_b - low_b) * nudges[k];
            assert_true(round_to_dtype(x, TARE_F16) == nearest(x, low, high, !(h & 1)));
            assert_true(round_to_dtype(-x, TARE_F16) == -nearest(x, low, high, !(h & 1)));
            assert_true(round_to_dtype(y, TARE_BF16) == nearest(y, low_b, high_b, !(b & 1)));
        }
    }
    /* By way of FP32 these would come out one unit apart: 1 + 2^-11 + 2^-40 and 1 + 2^-8 + 2^-40
     * become ties in FP32. */
    assert_true(round_to_dtype(1 + 0x1p-11 + 0x1p-40, TARE_F16) == 1 + 0x1p-10f);
    assert_true(round_to_dtype(1 + 0x1p-8 + 0x1p-40, TARE_BF16) == 1 + 0x1p-7f);
    assert_true(round_to_dtype(1 + 0x1p-24 + 0x1p-50, TARE_F32) == 1 + 0x1p-23f);
    assert_true(round_to_dtype(65519.999, TARE_F16) == 65504);
    assert_true(isinf(round_to_dtype(65520, TARE_F16)));
    assert_true(round_to_dtype(-1e300, TARE_BF16) == -INFINITY);
    assert_true(round_to_dtype(0x1p-25, TARE_F16) == 0);
    assert_true(round_to_dtype(0x1.00001p-25, TARE_F16) == 0x1p-24f);
    assert_true(round_to_dtype(5e-324, TARE_BF16) == 0);
    assert_true(isnan(round_to_dtype(NAN, TARE_F16)));
    assert_true(signbit(round_to_dtype(-0.0, TARE_BF16)));
}

/* More than one chunk, on every instruction set and on several threads: as element by element. */
static void test_arrays(void **state)
{
    tare_cpu cpu = this_cpu(state);
    enum { COUNT = (1 << 16) + 77 };
    uint16_t *narrow = malloc(COUNT * sizeof *narrow), *back = malloc(COUNT * sizeof *back);
    float *wide = malloc(COUNT * sizeof *wide), *copy = malloc(COUNT * sizeof *copy);
    tare_context *ctx = new_context_on(cpu, 2);
    for (size_t i = 0; i < COUNT; i++)
        narrow[i] = (uint16_t)(i * 13 + (i >> 16));
    widen_to_float(ctx, TARE_F16, narrow, COUNT, wide);
    narrow_from_float(ctx, TARE_F16, wide, COUNT, back);
    for (size_t i = 0; i < COUNT; i++) {
        assert_int_equal(bits_of_float(wide[i]), bits_of_float(fp16_to_float(narrow[i])));
        assert_int_equal(back[i], float_to_fp16(wide[i]));
    }
    widen_to_float(ctx, TARE_BF16, narrow, COUNT, wide);
    narrow_from_float(ctx, TARE_BF16, wide, COUNT, back);
    for (size_t i = 0; i < COUNT; i++) {
        assert_int_equal(bits_of_float(wide[i]), (uint32_t)narrow[i] << 16);
        assert_int_equal(back[i], float_to_bf16(wide[i]));
    }
    narrow_from_float(ctx, TARE_F32, wide, COUNT, copy);
    assert_memory_equal(copy, wide, COUNT * sizeof *wide);
    widen_to_float(ctx, TARE_F32, wide, COUNT, copy);
    assert_memory_equal(copy, wide, COUNT * sizeof *wide);
    free_context(ctx);
    free(narrow), free(back), free(wide), free(copy);
}

/* Does `work` end the process? */
static bool aborts(void (*work)(tare_context *ctx))
{
    int status;
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        signal(SIGABRT, SIG_DFL);
        freopen("/dev/null", "w", stderr);
        work(new_context(1));
        _exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    return WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT;
}

static const uint8_t eight_bits[64];
static float wide[64];

static void widen_fp8(tare_context *ctx)
{
    widen_to_float(ctx, TARE_F8_E4M3, eight_bits, 64, wide);
}

static void narrow_to_int(tare_context *ctx)
{
    narrow_from_float(ctx, TARE_I16, wide, 8, wide);
}

static void round_to_fp64(tare_context *ctx)
{
    (void)ctx;
    wide[0] = round_to_dtype(1, TARE_F64);
}

/* Bytes of another width must never be taken for FP16: 64 elements of FP8 would be read as 128. */
static void test_other_dtypes(void **state)
{
    (void)state;
    assert_true(aborts(widen_fp8));
    assert_true(aborts(narrow_to_int));
    assert_true(aborts(round_to_fp64));
}

/* Sizes by the safetensors format. */
static void test_dtype_names(void **state)
{
    (void)state;
    const struct {
        const char *name;
        tare_dtype dtype;
        size_t size;
    } known[] = {
        {"F64", TARE_F64, 8},   {"F32", TARE_F32, 4},         {"F16", TARE_F16, 2},
        {"BF16", TARE_BF16, 2}, {"I64", TARE_I64, 8},         {"U64", TARE_U64, 8},
        {"I32", TARE_I32, 4},   {"U32", TARE_U32, 4},         {"I16", TARE_I16, 2},
        {"U16", TARE_U16, 2},   {"I8", TARE_I8, 1},           {"U8", TARE_U8, 1},
        {"BOOL", TARE_BOOL, 1}, {"F8_E4M3", TARE_F8_E4M3, 1}, {"F8_E5M2", TARE_F8_E5M2, 1}};
    assert_int_equal(sizeof known / sizeof *known, TARE_DTYPE_COUNT);
    for (size_t i = 0; i < TARE_DTYPE_COUNT; i++) {
        tare_dtype found;
        assert_true(dtype_from_name(known[i].name, strlen(known[i].name), &found));
        assert_int_equal(found, known[i].dtype);
        assert_int_equal(dtype_size(found), known[i].size);
        assert_string_equal(dtype_name(found), known[i].name);
        assert_int_equal(dtype_is_float(found), found <= TARE_BF16);
        assert_false(dtype_from_name(known[i].name, strlen(known[i].name) - 1, &found) &&
                     found == known[i].dtype);
    }
    tare_dtype found;
    assert_false(dtype_from_name("F31", 3, &found));
    assert_false(dtype_from_name("", 0, &found));
    assert_false(dtype_from_name("F32x", 4, &found));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_fp16),
        cmocka_unit_test(test_fp16_ties),
        cmocka_unit_test(test_every_bf16),
        cmocka_unit_test(test_round_to_dtype),
        EACH_CPU(test_arrays),
        cmocka_unit_test(test_dtype_names),
        cmocka_unit_test(test_other_dtypes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
