/* Scale and offset from a range, and fake-quantized activations. */
#include "golden_fixture.h"

#include <math.h>

#include "quantize/scheme.h"
#include "tensor/round.h"

static const numerics exact_f32 = {false, TARE_F32, false}, exact_f16 = {false, TARE_F16, false},
                      exact_bf16 = {false, TARE_BF16, false};

static act_params params(const numerics *num, double lo, double hi, bool histogram)
{
    act_params p;
    tare_context *ctx = new_context(1);
    assert_ok(ctx, act_params_from_range(ctx, num, lo, hi, histogram, &p));
    free_context(ctx);
    return p;
}

static void expect(const numerics *num, double lo, double hi, float scale, float offset)
{
    act_params p = params(num, lo, hi, false);
    assert_true(p.scale == scale);
    assert_true(p.offset == offset);
    assert_int_equal(p.dtype, num->dtype);
}

/* The example of the specification, and hand arithmetic. 4/255 = 2^-6 * (1 + 1/255): the fraction
 * rounds to 4/1024 in FP16 and to 1/128 in BF16. */
static void test_default(void **state)
{
    (void)state;
    expect(&exact_f32, -1.3, 2.7, (float)(4.0 / 255.0), -45);
    assert_true(fabs(params(&exact_f32, -1.3, 2.7, false).scale - 0.01568627) < 1e-8);
    expect(&exact_f16, -1.3, 2.7, 0x1.01p-6f, -45);
    expect(&exact_bf16, -1.3, 2.7, 0x1.02p-6f, -45);
    expect(&exact_f32, 3.0, 5.1, (float)(5.1 / 255.0), -128);
    expect(&exact_f32, -2.55, -1.0, (float)(2.55 / 255.0), 127);
    expect(&exact_f32, 0.0, 0.0, 0x1p-23f, -128);
    expect(&exact_f16, 0.0, 0.0, 0x1p-23f, -128);
    expect(&exact_bf16, -1e-9, 1e-9, 0x1p-23f, -128);
    /* The same with the histogram: default mode has one rule. */
    assert_int_equal(params(&exact_f16, -1.3, 2.7, true).dtype, TARE_F16);
    assert_true(params(&exact_f16, -1.3, 2.7, true).scale == 0x1.01p-6f);
}

/* 1.99975781/255 = 2^-7 * 1.0038 rounds down to 2^-7 in BF16; rne(255.97) - 128 = 128 is clamped.
 */
static void test_offset_clamped(void **state)
{
    (void)state;
    expect(&exact_bf16, -1.99975781, 0.0, 0x1p-7f, 127);
}

/* Subnormal FP16 scales: 1.6 * 2^-22 is 6.4 steps of 2^-24. */
static void test_subnormal(void **state)
{
    (void)state;
    double range = 1.6 * 0x1p-22 * 255.0;
    expect(&exact_f16, 0.0, range, 6 * 0x1p-24f, -128);
    /* -lo/s = 255 * 6.4/6 = 272: beyond 255, clamped. */
    expect(&exact_f16, -range, 0.0, 6 * 0x1p-24f, 127);
}

static void expect_numeric(const numerics *num, double lo, double hi)
{
    act_params p;
    tare_context *ctx = new_context(1);
    assert_int_equal(act_params_from_range(ctx, num, lo, hi, false, &p), TARE_E_NUMERIC);
    assert_non_null(strstr(tare_last_error(ctx), "range"));
    free_context(ctx);
}

/* Offset 0: 127 steps to the end that is farther from 0, in numbers of the dtype. */
static void test_symmetric(void **state)
{
    (void)state;
    const numerics f32 = {false, TARE_F32, true}, f16 = {false, TARE_F16, true},
                   bf16 = {false, TARE_BF16, true};
    expect(&f32, -1.3, 2.7, (float)(2.7 / 127.0), 0);
    expect(&f32, -40.0, 0.25, (float)(40.0 / 127.0), 0);
    expect(&f32, 127.0, 254.0, 2.0f, 0); /* all of one sign */
    expect(&f32, -254.0, -127.0, 2.0f, 0);
    expect(&f32, 0.0, 0.0, 0x1p-23f, 0);
    expect(&bf16, -1.3, 2.7, 174 * 0x1p-13f, 0); /* 174.16 of its steps there */
    expect(&f16, -40000.0, 40000.0, 315.0f, 0);  /* 314.96, in steps of 0.25 */
    expect_numeric(&f16, -65520.0 * 127.0, 65504.0);
}

static void test_errors(void **state)
{
    (void)state;
    const numerics compat_f16 = {true, TARE_F16, false};
    expect_numeric(&exact_f32, NAN, 1.0);
    expect_numeric(&exact_f32, -1.0, INFINITY);
    expect_numeric(&exact_f16, 0.0, 65520.0 * 255.0);
    assert_true(params(&exact_f16, 0.0, 65504.0 * 255.0, false).scale == 65504.0f);
    /* hi - lo is itself an FP16 operation there. */
    expect_numeric(&compat_f16, -40000.0, 40000.0);
    assert_true(params(&exact_f16, -40000.0, 40000.0, false).scale == 313.75f);
}

/* PyTorch 2.13: lo, hi as tensors of the dtype (FP32 with the histogram); s = max((hi-lo)/255,
 * 2^-23), o = round(-lo/s) - 128; BF16 after the histogram: both cast. */
static const struct {
    tare_dtype dtype;
    bool histogram;
    double lo, hi;
    float scale, offset;
    tare_dtype result;
} torch_params[] = {
    {TARE_F32, false, -1.2999999523162842, 2.700000047683716, 0x1.010102p-6f, -45, TARE_F32},
    {TARE_F32, false, -40.0, 0.25, 0x1.434344p-3f, 125, TARE_F32},
    {TARE_F32, false, -1.9997577667236328, 0.0, 0x1.00f90ap-7f, 127, TARE_F32},
    {TARE_F32, false, -0.0008999999845400453, 0.0013000000035390258, 0x1.217d3ep-17f, -24,
     TARE_F32},
    {TARE_F32, true, 3.0, 5.0, 0x1.414142p-6f, -128, TARE_F32},
    {TARE_F32, true, 0.0, 0.0, 0x1p-23f, -128, TARE_F32},
    {TARE_F16, false, -1.2998046875, 2.69921875, 0x1.01p-6f, -45, TARE_F16},
    {TARE_F16, false, -40.0, 0.25, 0x1.434p-3f, 125, TARE_F16},
    {TARE_F16, false, -2.0, 0.0, 0x1.01p-7f, 127, TARE_F16},
    {TARE_F16, false, -0.0008997917175292969, 0.0012998580932617188, 0x1.22p-17f, -24, TARE_F16},
    {TARE_F16, false, 0.0, 0.0, 0x1p-23f, -128, TARE_F16},
    {TARE_F16, true, -1.3, 2.7, 0x1.010102p-6f, -45, TARE_F32},
    {TARE_F16, true, -1.99975781, 0.0, 0x1.00f90ap-7f, 127, TARE_F32},
    {TARE_BF16, false, -1.296875, 2.703125, 0x1.02p-6f, -46, TARE_BF16},
    {TARE_BF16, false, -40.0, 0.25, 0x1.44p-3f, 125, TARE_BF16},
    {TARE_BF16, false, -2.0, 0.0, 0x1.02p-7f, 126, TARE_BF16},
    {TARE_BF16, false, 3.0, 5.0, 0x1.42p-6f, -128, TARE_BF16},
    {TARE_BF16, true, -1.3, 2.7, 0x1.02p-6f, -45, TARE_BF16},
    {TARE_BF16, true, -1.99975781, 0.0, 0x1p-7f, 127, TARE_BF16},
    {TARE_BF16, true, -0.0009, 0.0013, 0x1.22p-17f, -24, TARE_BF16},
};

static void test_compat(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof torch_params / sizeof *torch_params; i++) {
        numerics num = {true, torch_params[i].dtype, false};
        act_params p = params(&num, torch_params[i].lo, torch_params[i].hi,
                              torch_params[i].histogram);
        if (p.scale != torch_params[i].scale || p.offset != torch_params[i].offset)
            fail_msg("row %zu: %a, %g", i, (double)p.scale, (double)p.offset);
        assert_int_equal(p.dtype, torch_params[i].result);
    }
}

/* By hand: s = 1/4, o = -3: q = clamp(rne(4x - 3)), x' = (q + 3)/4. Ties go to even. */
static void test_fake_quantize_by_hand(void **state)
{
    (void)state;
    act_params p = {0.25f, -3.0f, TARE_F32};
    float x[] = {0.0f, 1.0f, 0.3f, 0.125f, 0.375f, -0.125f, 1000.0f, -1000.0f, -31.25f, -31.5f};
    const float want[] = {0.0f,   1.0f,  0.25f,   0.25f,   0.25f,
                          -0.25f, 32.5f, -31.25f, -31.25f, -31.25f};
    act_fake_quantize(&exact_f32, &p, x, sizeof x / sizeof *x);
    for (size_t i = 0; i < sizeof x / sizeof *x; i++)
        assert_true(x[i] == want[i]);
}

/* PyTorch 2.13, operations in the dtype: s = 0.0157, o = -45. */
static void test_fake_quantize_compat(void **state)
{
    (void)state;
    static const float in[] = {-3.0f,    -1.30f,  -0.7123f, -0.0078f, 0.0f,
                               0.00785f, 0.3333f, 1.125f,   2.69f,    7.5f};
    enum { N = sizeof in / sizeof *in };
    static const struct {
        tare_dtype dtype;
        float want[N];
    } cases[] = {
        {TARE_F32,
         {-0x1.4d97f6p+0f, -0x1.4d97f6p+0f, -0x1.69ba5ep-1f, 0.0f, 0.0f, 0x1.013a92p-6f,
          0x1.519cep-2f, 0x1.2161e4p+0f, 0x1.57a44p+1f, 0x1.59a6b4p+1f}},
        {TARE_F16,
         {-0x1.4d8p+0f, -0x1.4d8p+0f, -0x1.69cp-1f, -0x1.014p-6f, 0.0f, 0x1.014p-6f, 0x1.51cp-2f,
          0x1.218p+0f, 0x1.57cp+1f, 0x1.59cp+1f}},
        {TARE_BF16,
         {-0x1.4ep+0f, -0x1.4ep+0f, -0x1.6ap-1f, -0x1.02p-6f, 0.0f, 0x1.02p-6f, 0x1.52p-2f,
          0x1.1ep+0f, 0x1.58p+1f, 0x1.5ap+1f}},
    };
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        numerics num = {true, cases[c].dtype, false};
        act_params p = {round_to_dtype(0.0157f, num.dtype), -45.0f, num.dtype};
        float x[N];
        for (size_t i = 0; i < N; i++)
            x[i] = round_to_dtype(in[i], num.dtype);
        act_fake_quantize(&num, &p, x, N);
        for (size_t i = 0; i < N; i++) {
            if (x[i] != cases[c].want[i])
                fail_msg("case %zu, element %zu: %a", c, i, (double)x[i]);
        }
    }
}

/* The branch-free roundings against the conversions of the tensor room: every FP16 and BF16 value,
 * its neighbours in FP32, and the midpoints. */
static void test_round_native(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 0x10000u; h++) {
        uint32_t base[] = {h << 16, float_to_bits(fp16_to_float((uint16_t)h))};
        for (size_t b = 0; b < 2; b++) {
            for (int32_t d = -2; d <= 2; d++) {
                static const uint32_t middle[] = {0, 0x1000, 0x8000};
                for (size_t m = 0; m < 3; m++) {
                    float x = bits_to_float(base[b] + middle[m] + (uint32_t)d);
                    float f = fp16_to_float(float_to_fp16(x)), g = bf16_to_float(float_to_bf16(x));
                    if (isnan(x)) {
                        assert_true(isnan(round_fp16(x)) && isnan(round_bf16(x)));
                        continue;
                    }
                    assert_int_equal(float_to_bits(round_fp16(x)), float_to_bits(f));
                    assert_int_equal(float_to_bits(round_bf16(x)), float_to_bits(g));
                }
            }
        }
    }
}

static void test_next_up(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 0x7c00u; h++)
        assert_true(round_next_up(fp16_to_float((uint16_t)h), TARE_F16) ==
                    fp16_to_float((uint16_t)(h + 1)));
    assert_true(round_next_up(1.0f, TARE_BF16) == 0x1.02p0f);
    assert_true(round_next_up(1.0f, TARE_F32) == 0x1.000002p0f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_default),
        cmocka_unit_test(test_offset_clamped),
        cmocka_unit_test(test_subnormal),
        cmocka_unit_test(test_symmetric),
        cmocka_unit_test(test_errors),
        cmocka_unit_test(test_compat),
        cmocka_unit_test(test_fake_quantize_by_hand),
        cmocka_unit_test(test_fake_quantize_compat),
        cmocka_unit_test(test_round_native),
        cmocka_unit_test(test_next_up),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
