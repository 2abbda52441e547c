/* deq_scale and quant_bias: hand arithmetic, saturation, and the reference's golden outputs. */
#include "golden_fixture.h"

#include <math.h>

#include "quantize/scheme.h"

static const numerics exact_f32 = {false, TARE_F32, false}, compat_f32 = {true, TARE_F32, false},
                      compat_f16 = {true, TARE_F16, false};

/* input_scale 1/2, weight_scale 1/4: d = 1/8. -o * sum = 3 * 10 = 30. */
static void test_by_hand(void **state)
{
    (void)state;
    float scales[] = {0.25f, 0.25f, 0.25f, 0.5f}, deq[4];
    int64_t sums[] = {10, 10, -7, 10};
    quantized_weight w = {.n = 4, .k = 4, .scales = scales, .num_scales = 4, .row_sums = sums};
    act_params act = {0.5f, -3.0f, TARE_F32};
    const float bias[] = {1.0f, 0.0625f, -0.1875f, 1.0f};
    const int32_t want[] = {38, 30, -22, 34}; /* 30.5 -> 30 and -21 - 1.5 = -22.5 -> -22: to even */
    int32_t out[4];
    double worst = -1.0;
    for (int compat = 0; compat < 2; compat++) {
        const numerics *num = compat ? &compat_f32 : &exact_f32;
        assert_int_equal(derive_w8a8(num, &w, &act, bias, deq, out, &worst), 0);
        assert_true(deq[0] == 0.125f && deq[3] == 0.25f && worst == 0.0);
        assert_memory_equal(out, want, sizeof want);
        assert_int_equal(derive_w8a8(num, &w, &act, NULL, deq, out, NULL), 0);
        assert_int_equal(out[0], 30);
        assert_int_equal(out[2], -21);
    }
}

static void test_per_tensor(void **state)
{
    (void)state;
    float scale = 0.25f, deq;
    int64_t sums[] = {10, -7};
    quantized_weight w = {.n = 2, .k = 4, .scales = &scale, .num_scales = 1, .row_sums = sums};
    act_params act = {0.5f, -3.0f, TARE_F32};
    const float bias[] = {1.0f, 2.0f};
    int32_t out[2];
    assert_int_equal(derive_w8a8(&exact_f32, &w, &act, bias, &deq, out, NULL), 0);
    assert_true(deq == 0.125f);
    assert_int_equal(out[0], 38);
    assert_int_equal(out[1], -5);
}

/* d = 2^-46, b/d = 2^46; and a correction that needs 64 bits: 127 * 2^25. */
static void test_saturation(void **state)
{
    (void)state;
    float scales[] = {0x1p-23f, 0x1p-23f, 0x1p-23f, 1.0f}, deq[4];
    int64_t sums[] = {0, 0, 0, (int64_t)1 << 25};
    quantized_weight w = {.n = 4, .k = 4, .scales = scales, .num_scales = 4, .row_sums = sums};
    act_params act = {0x1p-23f, -127.0f, TARE_F32};
    const float bias[] = {1.0f, -2.0f, 0.0f, 0.0f};
    int32_t out[4];
    for (int compat = 0; compat < 2; compat++) {
        double worst = 0.0;
        assert_int_equal(
            derive_w8a8(compat ? &compat_f32 : &exact_f32, &w, &act, bias, deq, out, &worst), 3);
        assert_int_equal(out[0], INT32_MAX);
        assert_int_equal(out[1], INT32_MIN);
        assert_int_equal(out[2], 0);
        assert_int_equal(out[3], INT32_MAX);
        assert_true(worst == 0x1p47 - 0x1p31);
    }
}

/* The trap of the reference: a zero row with bias 20. With the scale of section 3 the bias survives
 * within |quant_bias| <= 2^20. */
static void test_zero_row_keeps_bias(void **state)
{
    (void)state;
    static const float weights[1][2] = {{0.0f, 0.0f}}, bias[1] = {20.0f};
    tare_context *ctx = new_context(1);
    static const tare_dtype dtypes[] = {TARE_F32, TARE_F16, TARE_BF16};
    for (size_t i = 0; i < 3; i++) {
        numerics num = {false, dtypes[i], false};
        act_params act = {round_to_dtype(0.0123, dtypes[i]), 11.0f, dtypes[i]};
        quantized_weight w;
        float deq;
        int32_t out;
        assert_ok(ctx, weight_quantize(ctx, &num, TARE_F32, weights, 1, 2, false, &w));
        weight_settle_zero_rows(&num, &w, bias, act.scale);
        assert_int_equal(derive_w8a8(&num, &w, &act, bias, &deq, &out, NULL), 0);
        assert_in_range(out, 1 << 19, 1 << 20);
        assert_true(fabs((double)out * deq - 20.0) < 20.0 * 0x1p-20);
        weight_quantized_free(ctx, &w);
    }
    free_context(ctx);
}

/* 2^-10 * 2^-16 underflows to 0 in FP16: the FP32 product stands in, and the row is counted. What
 * stays normal or subnormal is left as the reference has it: 0.01 * 0.011 (FP16: 0x211f, 0x21a2)
 * is 0x0736 there (numpy, PyTorch). */
static void test_compat_underflow(void **state)
{
    (void)state;
    float scales[] = {0x1p-16f, 0x1p-10f}, deq[2];
    int64_t sums[] = {5, 5};
    quantized_weight w = {.n = 2, .k = 1, .scales = scales, .num_scales = 2, .row_sums = sums};
    act_params act = {0x1p-10f, 2.0f, TARE_F16};
    const float bias[] = {0x1p-20f, 0x1p-20f};
    int32_t out[2];
    assert_int_equal(derive_w8a8(&compat_f16, &w, &act, bias, deq, out, NULL), 1);
    assert_true(deq[0] == 0x1p-26f && deq[1] == 0x1p-20f);
    assert_int_equal(out[0], 64 - 10);
    assert_int_equal(out[1], 1 - 10);
    float subnormal = fp16_to_float(0x21a2), d;
    w = (quantized_weight){.n = 1, .k = 1, .scales = &subnormal, .num_scales = 1, .row_sums = sums};
    act.scale = fp16_to_float(0x211f);
    assert_int_equal(derive_w8a8(&compat_f16, &w, &act, NULL, &d, out, NULL), 0);
    assert_true(d == fp16_to_float(0x0736));
    /* An FP32 scale (FP16 model, histogram) makes the product FP32. */
    act.dtype = TARE_F32;
    assert_int_equal(derive_w8a8(&compat_f16, &w, &act, NULL, &d, out, NULL), 0);
    assert_true(d == act.scale * subnormal);
}

/* The FP32 value, or its bits widened to 64 for float16 and float32 models. */
static float *read_deq(tare_context *ctx, safetensors *s, const tensor_info *t)
{
    if (t->dtype == TARE_F32)
        return read_floats(ctx, s, t);
    assert_int_equal(t->dtype, TARE_I64);
    int64_t *raw = read_raw(ctx, s, t);
    float *deq = mem_alloc_array(ctx, tensor_elements(t), sizeof *deq);
    for (size_t i = 0; i < tensor_elements(t); i++) {
        uint32_t bits = (uint32_t)raw[i];
        memcpy(&deq[i], &bits, sizeof bits);
    }
    mem_free(ctx, raw);
    return deq;
}

static void check_linear(tare_context *ctx, safetensors *s, const char *module)
{
    const tensor_info *weight = find_tensor(s, ".weight", module);
    const tensor_info *scale = find_tensor(s, ".weight_scale", module);
    const tensor_info *input_scale = find_tensor(s, ".input_scale", module);
    const tensor_info *bias_info = find_tensor(s, ".bias", module);
    size_t n = weight->shape[0], k = weight->shape[1], count = tensor_elements(scale);
    quantized_weight w = {.n = n, .k = k, .num_scales = count};
    numerics num = {true, scale->dtype, false};
    act_params act = {.scale = read_scalar(ctx, s, input_scale),
                      .offset = read_scalar(ctx, s, find_tensor(s, ".input_offset", module)),
                      .dtype = input_scale->dtype};
    float *bias = bias_info ? read_floats(ctx, s, bias_info) : NULL;
    float *want_deq = read_deq(ctx, s, find_tensor(s, ".deq_scale", module));
    int32_t *want = read_raw(ctx, s, find_tensor(s, ".quant_bias", module));
    float *deq = mem_alloc_array(ctx, count, sizeof *deq);
    int32_t *out = mem_alloc_array(ctx, n, sizeof *out);
    w.q = read_raw(ctx, s, weight);
    w.scales = read_floats(ctx, s, scale);
    w.row_sums = mem_calloc(ctx, n, sizeof *w.row_sums);
    for (size_t i = 0; i < n * k; i++)
        w.row_sums[i / k] += w.q[i];
    assert_int_equal(derive_w8a8(&num, &w, &act, bias, deq, out, NULL), 0);
    assert_memory_equal(deq, want_deq, count * sizeof *deq);
    assert_memory_equal(out, want, n * sizeof *out);
    mem_free(ctx, bias);
    mem_free(ctx, want_deq);
    mem_free(ctx, want);
    mem_free(ctx, deq);
    mem_free(ctx, out);
    weight_quantized_free(ctx, &w);
}

/* The formulas are those of static W8A8, whatever the model; other types of linears have others,
 * and the second API stores no weight_scale to compute with. */
static size_t check_case(tare_context *ctx, const golden_case *c)
{
    char path[2048], module[512];
    static const char suffix[] = ".deq_scale";
    size_t linears = 0;
    if (!golden_is_first_api(c))
        return 0;
    snprintf(path, sizeof path, "%s/tensors.safetensors", c->folder);
    safetensors *s = open_tensors(ctx, path);
    for (size_t i = 0; i < safetensors_count(s); i++) {
        snprintf(module, sizeof module, "%s", safetensors_at(s, i)->name);
        size_t length = strlen(module), cut = sizeof suffix - 1;
        if (length < cut || strcmp(module + length - cut, suffix) != 0)
            continue;
        module[length - cut] = '\0';
        if (strcmp(golden_type(c, module, suffix), "W8A8") != 0)
            continue;
        check_linear(ctx, s, module);
        linears++;
    }
    safetensors_close(s);
    return linears;
}

static void test_golden(void **state)
{
    (void)state;
    tare_context *ctx = new_context(2);
    assert_true(each_golden_case(ctx, "tensors.safetensors", check_case) >= 4 * 28);
    free_context(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_by_hand),          cmocka_unit_test(test_per_tensor),
        cmocka_unit_test(test_saturation),       cmocka_unit_test(test_zero_row_keeps_bias),
        cmocka_unit_test(test_compat_underflow), cmocka_unit_test(test_golden),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
