/* Integer weights: hand arithmetic, checks of the input, and the reference's golden weights. */
#include "golden_fixture.h"

#include <math.h>

#include "quantize/scheme.h"
#include "tensor/kernels.h"

static const numerics exact_f32 = {false, TARE_F32, false}, exact_f16 = {false, TARE_F16, false},
                      exact_bf16 = {false, TARE_BF16, false}, compat_f32 = {true, TARE_F32, false};

static const float small[2][4] = {{127.0f, -63.5f, 0.5f, 1.5f}, {-2.54f, 1.0f, -1.27f, 0.01f}};

static void test_per_channel(void **state)
{
    (void)state;
    static const int8_t want[2][4] = {{127, -64, 0, 2}, {-127, 50, -64, 0}};
    tare_context *ctx = new_context(2);
    quantized_weight q;
    float row[4];
    assert_ok(ctx, weight_quantize(ctx, &exact_f32, TARE_F32, small, 2, 4, false, &q));
    assert_int_equal(q.num_scales, 2);
    assert_true(q.scales[0] == 1.0f);
    assert_true(q.scales[1] == (float)((double)2.54f / 127.0));
    assert_memory_equal(q.q, want, sizeof want);
    assert_int_equal(q.row_sums[0], 65);
    assert_int_equal(q.row_sums[1], -141);
    assert_false(q.zero_rows[0] || q.zero_rows[1]);
    coded_rows rows = weight_dequantized(&exact_f32, &q);
    coded_decode(kernels_get(ctx), &rows, 1, 0, 4, row);
    assert_true(row[0] == -127.0f * q.scales[1] && row[1] == 50.0f * q.scales[1]);
    weight_quantized_free(ctx, &q);
    free_context(ctx);
}

static void test_per_tensor(void **state)
{
    (void)state;
    static const int8_t want[2][4] = {{127, -64, 0, 2}, {-3, 1, -1, 0}};
    tare_context *ctx = new_context(2);
    quantized_weight q;
    float row[4];
    assert_ok(ctx, weight_quantize(ctx, &exact_f32, TARE_F32, small, 2, 4, true, &q));
    assert_int_equal(q.num_scales, 1);
    assert_true(q.scales[0] == 1.0f);
    assert_memory_equal(q.q, want, sizeof want);
    assert_int_equal(q.row_sums[1], -3);
    coded_rows rows = weight_dequantized(&exact_f32, &q);
    coded_decode(kernels_get(ctx), &rows, 1, 0, 4, row);
    assert_true(row[0] == -3.0f);
    weight_quantized_free(ctx, &q);
    free_context(ctx);
}

/* 200/127 = 1.5748: 1.5746 in FP16 (1 + 588/1024 = 1.57422, 589 -> 1.57520: nearer), 1.5781 in BF16
 * (1 + 74/128). Integers are made with the rounded scale. */
static void test_scale_rounded_first(void **state)
{
    (void)state;
    static const float w[3] = {200.0f, 100.0f, -30.0f};
    tare_context *ctx = new_context(1);
    quantized_weight q;
    assert_ok(ctx, weight_quantize(ctx, &exact_f16, TARE_F32, w, 1, 3, false, &q));
    assert_true(q.scales[0] == 1.0f + 589.0f / 1024.0f);
    weight_quantized_free(ctx, &q);
    assert_ok(ctx, weight_quantize(ctx, &exact_bf16, TARE_F32, w, 1, 3, false, &q));
    assert_true(q.scales[0] == 1.0f + 74.0f / 128.0f);
    assert_int_equal(q.q[0], 127); /* 126.73 */
    assert_int_equal(q.q[1], 63);  /* 63.37 */
    assert_int_equal(q.q[2], -19); /* -19.01 */
    weight_quantized_free(ctx, &q);
    free_context(ctx);
}

/* a = 127 * 2.49 * 2^-24: rounded to FP16 the scale would be 2 * 2^-24, and a/s = 158 > 127.5. The
 * next number up is 3 * 2^-24; a/s = 105.41. */
static void test_subnormal_scale(void **state)
{
    (void)state;
    const float w[2] = {(float)(127 * 2.49 * 0x1p-24), (float)(-127 * 2.49 * 0x1p-24)};
    tare_context *ctx = new_context(1);
    quantized_weight q;
    assert_ok(ctx, weight_quantize(ctx, &exact_f16, TARE_F32, w, 1, 2, false, &q));
    assert_true(q.scales[0] == 3 * 0x1p-24f);
    assert_int_equal(q.q[0], 105);
    assert_int_equal(q.q[1], -105);
    weight_quantized_free(ctx, &q);
    /* Weights below 127 * eps keep s = eps. */
    const float tiny[1] = {100 * 0x1p-23f};
    assert_ok(ctx, weight_quantize(ctx, &exact_f16, TARE_F32, tiny, 1, 1, false, &q));
    assert_true(q.scales[0] == 0x1p-23f);
    assert_int_equal(q.q[0], 100);
    weight_quantized_free(ctx, &q);
    free_context(ctx);
}

static void test_stored_dtypes(void **state)
{
    (void)state;
    static const uint16_t half[2] = {0x57f0, 0xd3f0};  /* FP16 127, -63.5 */
    static const uint16_t brain[2] = {0x42fe, 0xc27e}; /* BF16 127, -63.5 */
    tare_context *ctx = new_context(1);
    quantized_weight q;
    for (int i = 0; i < 2; i++) {
        assert_ok(ctx, weight_quantize(ctx, &exact_f32, i ? TARE_BF16 : TARE_F16, i ? brain : half,
                                       1, 2, false, &q));
        assert_true(q.scales[0] == 1.0f);
        assert_int_equal(q.q[0], 127);
        assert_int_equal(q.q[1], -64);
        weight_quantized_free(ctx, &q);
    }
    free_context(ctx);
}

static void test_other_dtypes(void **state)
{
    (void)state;
    static const uint8_t w[6] = {0};
    static const tare_dtype others[] = {TARE_F8_E4M3, TARE_F8_E5M2, TARE_I8, TARE_I16, TARE_F64};
    tare_context *ctx = new_context(1);
    quantized_weight q;
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        assert_fails(ctx, weight_quantize(ctx, &exact_f32, others[i], w, 2, 3, false, &q),
                     TARE_E_MODEL, dtype_name(others[i]));
    free_context(ctx);
}

static void test_not_finite(void **state)
{
    (void)state;
    enum { N = 300, K = 700 }; /* several pieces of work */
    tare_context *ctx = new_context(3);
    float *w = calloc((size_t)N * K, sizeof *w);
    quantized_weight q;
    for (int per_tensor = 0; per_tensor < 2; per_tensor++) {
        for (size_t i = 0; i < (size_t)N * K; i++)
            w[i] = 1.0f;
        w[17 * K + 23] = NAN;
        w[250 * K] = NAN;
        assert_int_equal(weight_quantize(ctx, &exact_f32, TARE_F32, w, N, K, per_tensor, &q),
                         TARE_E_NUMERIC);
        assert_non_null(strstr(tare_last_error(ctx), "row 17, column 23"));
        w[17 * K + 23] = 1.0f;
        w[250 * K] = -INFINITY;
        assert_int_equal(weight_quantize(ctx, &exact_f32, TARE_F32, w, N, K, per_tensor, &q),
                         TARE_E_NUMERIC);
        assert_non_null(strstr(tare_last_error(ctx), "row 250, column 0"));
        assert_null(q.q);
        w[250 * K] = 1e7f; /* 1e7 / 127 > 65504 */
        assert_int_equal(weight_quantize(ctx, &exact_f16, TARE_F32, w, N, K, per_tensor, &q),
                         TARE_E_NUMERIC);
        assert_non_null(strstr(tare_last_error(ctx), "row 250"));
        assert_ok(ctx, weight_quantize(ctx, &exact_bf16, TARE_F32, w, N, K, per_tensor, &q));
        weight_quantized_free(ctx, &q);
    }
    free(w);
    free_context(ctx);
}

/* bias 20, input_scale 1/64: need = 20 * 64 / 2^20 = 1.220703125e-3 = 1.25 * 2^-10, in every dtype;
 * 20.05 needs the next BF16 number, 1.2578125 * 2^-10. */
static void test_zero_rows(void **state)
{
    (void)state;
    static const float w[4][2] = {{0, 0}, {1, 2}, {0, -0.0f}, {0, 0}};
    static const float bias[4] = {20.0f, 1.0f, 0.0f, -20.05f};
    tare_context *ctx = new_context(1);
    quantized_weight q;
    assert_ok(ctx, weight_quantize(ctx, &exact_bf16, TARE_F32, w, 4, 2, false, &q));
    assert_true(q.zero_rows[0] && !q.zero_rows[1] && q.zero_rows[2] && q.zero_rows[3]);
    assert_true(q.scales[0] == 1.0f && q.scales[2] == 1.0f);
    weight_settle_zero_rows(&exact_bf16, &q, bias, 0x1p-6f);
    assert_true(q.scales[0] == 1.25f * 0x1p-10f);
    assert_true(q.scales[1] == 0x1.02p-6f); /* 2/127, untouched */
    assert_true(q.scales[2] == 1.0f);
    assert_true(q.scales[3] == 1.2578125f * 0x1p-10f);
    weight_quantized_free(ctx, &q);
    /* FP16: not below its smallest normal number, and at most 65504. */
    static const float extreme[4] = {1e-7f, 0.0f, 0.0f, 3e38f};
    assert_ok(ctx, weight_quantize(ctx, &exact_f16, TARE_F32, w, 4, 2, false, &q));
    weight_settle_zero_rows(&exact_f16, &q, extreme, 0x1p-6f);
    assert_true(q.scales[0] == 0x1p-14f);
    assert_true(q.scales[3] == 65504.0f);
    weight_quantized_free(ctx, &q);
    /* The reference: eps, whatever the bias. */
    assert_ok(ctx, weight_quantize(ctx, &compat_f32, TARE_F32, w, 4, 2, false, &q));
    weight_settle_zero_rows(&compat_f32, &q, bias, 0x1p-6f);
    assert_true(q.scales[0] == 0x1p-23f);
    weight_quantized_free(ctx, &q);
    free_context(ctx);
}

static void test_zero_matrix_per_tensor(void **state)
{
    (void)state;
    static const float w[2][2] = {{0, 0}, {0, 0}}, mixed[2][2] = {{0, 0}, {127, 0}};
    static const float bias[2] = {20.0f, -40.0f};
    tare_context *ctx = new_context(1);
    quantized_weight q;
    assert_ok(ctx, weight_quantize(ctx, &exact_f32, TARE_F32, w, 2, 2, true, &q));
    weight_settle_zero_rows(&exact_f32, &q, bias, 0x1p-6f);
    assert_true(q.scales[0] == 2.5f * 0x1p-10f);
    weight_quantized_free(ctx, &q);
    assert_ok(ctx, weight_quantize(ctx, &exact_f32, TARE_F32, mixed, 2, 2, true, &q));
    weight_settle_zero_rows(&exact_f32, &q, bias, 0x1p-6f);
    assert_true(q.scales[0] == 1.0f);
    weight_quantized_free(ctx, &q);
    free_context(ctx);
}

/* Stored BF16, served (compat) in FP16: weights are rounded to FP16 first. 2^-25 * 1.5 becomes
 * 2^-24 there. s = max(rFP16(2^-24/127), eps) = 2^-23, q = rne(0.5) = 0. */
static void test_compat_rounds_weights_first(void **state)
{
    (void)state;
    const numerics compat_f16 = {true, TARE_F16, false};
    const uint16_t w[2] = {float_to_bf16(1.5f * 0x1p-25f), 0};
    tare_context *ctx = new_context(1);
    quantized_weight q;
    assert_ok(ctx, weight_quantize(ctx, &compat_f16, TARE_BF16, w, 1, 2, false, &q));
    assert_true(q.scales[0] == 0x1p-23f);
    assert_int_equal(q.q[0], 0);
    weight_quantized_free(ctx, &q);
    const uint16_t large[1] = {float_to_bf16(1e6f)};
    assert_int_equal(weight_quantize(ctx, &compat_f16, TARE_BF16, large, 1, 1, false, &q),
                     TARE_E_NUMERIC);
    free_context(ctx);
}

/* ---- rows, asymmetric ---- */

/* Ranges 255, 63.75 and 510 have the scales 1, 0.25 and 2; a row of one sign reaches to zero. Zero
 * points are rne(100) - 128, -128 and 255 - 128. Ties go to even after the offset is added: 0.5 -
 * 28 to -28, 0.125 / 0.25 - 128 to -128, -3 / 2 + 127 to 126. A zero row has scale 1 and holds its
 * zero point. */
static const float lopsided[4][3] = {
    {155.0f, -100.0f, 0.5f}, {63.75f, 0.125f, 0.375f}, {-510.0f, -1.0f, -3.0f}, {0, -0.0f, 0}};
static const int8_t lopsided_q[4][3] = {
    {127, -128, -28}, {127, -128, -126}, {-128, 126, 126}, {-128, -128, -128}};
static const float lopsided_scales[4] = {1.0f, 0.25f, 2.0f, 1.0f};
static const float lopsided_offsets[4] = {-28.0f, -128.0f, 127.0f, -128.0f};

static void test_asymmetric(void **state)
{
    (void)state;
    tare_context *ctx = new_context(2);
    int8_t q[4][3];
    float scales[4], offsets[4];
    bool zero[4];
    weight_rows rows = {
        .stored = coded_plain(TARE_F32, lopsided, 3), .count = 4, .asymmetric = true};
    weight_codes codes = {.q = q[0], .scales = scales, .offsets = offsets, .zero_rows = zero};
    assert_ok(ctx, weight_rows_quantize(ctx, &exact_f32, &rows, NULL, &codes));
    assert_memory_equal(q, lopsided_q, sizeof q);
    assert_memory_equal(scales, lopsided_scales, sizeof scales);
    assert_memory_equal(offsets, lopsided_offsets, sizeof offsets);
    assert_true(zero[3] && !zero[0] && !zero[1] && !zero[2]);
    free_context(ctx);
}

/* One scale over -510..155, measured in two parts: 665 / 255 = 2.6078 is 167 / 64 in BF16; zero
 * point rne(510 / 2.609375 = 195.449) - 128 = 67. */
static void test_asymmetric_per_tensor(void **state)
{
    (void)state;
    static const int8_t want[4][3] = {{126, 29, 67}, {91, 67, 67}, {-128, 67, 66}, {67, 67, 67}};
    tare_context *ctx = new_context(2);
    int8_t q[4][3];
    float scale, offset;
    weight_range range = {0};
    weight_rows rows = {
        .stored = coded_plain(TARE_F32, lopsided, 3), .count = 2, .asymmetric = true};
    assert_ok(ctx, weight_rows_measure(ctx, &exact_bf16, &rows, &range));
    assert_true(range.lo == -100.0f && range.hi == 155.0f);
    rows.stored = coded_plain(TARE_F32, lopsided[2], 3);
    rows.first = 2;
    assert_ok(ctx, weight_rows_measure(ctx, &exact_bf16, &rows, &range));
    assert_true(range.lo == -510.0f && range.hi == 155.0f);
    assert_true(range.lo_row == 2 && range.hi_row == 0);
    for (size_t first = 0; first < 4; first++) {
        weight_codes codes = {.q = q[first], .scales = &scale, .offsets = &offset};
        rows.stored = coded_plain(TARE_F32, lopsided[first], 3);
        rows.first = first;
        rows.count = 1;
        assert_ok(ctx, weight_rows_quantize(ctx, &exact_bf16, &rows, &range, &codes));
        assert_true(scale == 2.609375f && offset == 67.0f);
    }
    assert_memory_equal(q, want, sizeof q);
    free_context(ctx);
}

/* -100..200: 300 / 255 = 1.17647 is 1 + 23 / 128 in BF16. 50 / s = 42.384: exact arithmetic gives
 * 42.384 - 43 = -0.616, so -1; native BF16 rounds the quotient to 42.5 first, and -0.5 to 0. */
static void test_asymmetric_bf16(void **state)
{
    (void)state;
    static const float w[3] = {-100.0f, 200.0f, 50.0f};
    const numerics compat_bf16 = {true, TARE_BF16, false};
    tare_context *ctx = new_context(1);
    for (int compat = 0; compat < 2; compat++) {
        int8_t q[3];
        float scale, offset;
        weight_rows rows = {.stored = coded_plain(TARE_F32, w, 3), .count = 1, .asymmetric = true};
        weight_codes codes = {.q = q, .scales = &scale, .offsets = &offset};
        assert_ok(ctx, weight_rows_quantize(ctx, compat ? &compat_bf16 : &exact_bf16, &rows, NULL,
                                            &codes));
        assert_true(scale == 1.0f + 23.0f / 128.0f && offset == -43.0f);
        assert_int_equal(q[0], -128);
        assert_int_equal(q[1], 127);
        assert_int_equal(q[2], compat ? 0 : -1);
    }
    free_context(ctx);
}

/* Rows are named by their number in the matrix, whatever part they come in. */
static void test_bad_rows(void **state)
{
    (void)state;
    static const float bad[2][2] = {{1, 2}, {3, NAN}}, large[2][2] = {{1, 2}, {1.2e7f, -1.2e7f}};
    tare_context *ctx = new_context(1);
    int8_t q[4];
    float scales[2], offsets[2];
    weight_range range = {0};
    weight_codes codes = {.q = q, .scales = scales, .offsets = offsets};
    weight_rows rows = {
        .stored = coded_plain(TARE_F32, bad, 2), .first = 100, .count = 2, .asymmetric = true};
    assert_fails(ctx, weight_rows_quantize(ctx, &exact_f16, &rows, NULL, &codes), TARE_E_NUMERIC,
                 "row 101, column 1 is NaN");
    assert_fails(ctx, weight_rows_measure(ctx, &exact_f16, &rows, &range), TARE_E_NUMERIC,
                 "row 101, column 1 is NaN");
    rows.stored = coded_plain(TARE_F32, large, 2); /* 2.4e7 / 255 > 65504 */
    assert_fails(ctx, weight_rows_quantize(ctx, &exact_f16, &rows, NULL, &codes), TARE_E_NUMERIC,
                 "scale of weight row 101");
    assert_ok(ctx, weight_rows_measure(ctx, &exact_f16, &rows, &range));
    assert_fails(ctx, weight_rows_quantize(ctx, &exact_f16, &rows, &range, &codes), TARE_E_NUMERIC,
                 "scale of weight row 101");
    free_context(ctx);
}

static bool refuse_nth(void *user, size_t bytes)
{
    (void)bytes;
    return (*(int *)user)-- != 0;
}

static void test_out_of_memory(void **state)
{
    (void)state;
    static const uint16_t w[6] = {1, 2, 3, 4, 5, 6};
    tare_status status = TARE_E_MEMORY;
    for (int n = 0; status != TARE_OK; n++) {
        int countdown = n;
        tare_context *ctx;
        tare_context_options options;
        quantized_weight q;
        assert_true(n < 20);
        init_options(&options);
        options.allow_allocation = refuse_nth;
        options.user = &countdown;
        assert_int_equal(tare_context_create(&ctx, &options), TARE_OK);
        status = weight_quantize(ctx, &exact_bf16, TARE_BF16, w, 2, 3, false, &q);
        assert_true(status == TARE_OK || status == TARE_E_MEMORY);
        weight_quantized_free(ctx, &q);
        free_context(ctx);
    }
}

/* ---- golden: what msModelSlim 26.1.0 wrote ---- */

/* Weights as they are in the checkpoint, by the reference's first API (the second has methods of
 * its own), of a model that tare knows. */
static bool uses_plain_weights(tare_context *ctx, const golden_case *c)
{
    return !golden_setting(c, "anti_method") && golden_is_first_api(c) &&
           golden_has_known_model(ctx, c);
}

static void check_weight(tare_context *ctx, safetensors *model, safetensors *golden,
                         const char *module)
{
    const tensor_info *want_q = find_tensor(golden, ".weight", module);
    const tensor_info *want_scale = find_tensor(golden, ".weight_scale", module);
    const tensor_info *source = find_tensor(model, ".weight", module);
    int8_t *q = read_raw(ctx, golden, want_q);
    float *scale = read_floats(ctx, golden, want_scale);
    void *w = read_raw(ctx, model, source);
    size_t n = want_q->shape[0], k = want_q->shape[1];
    numerics num = {true, want_scale->dtype, false};
    quantized_weight out;
    assert_ok(ctx, weight_quantize(ctx, &num, source->dtype, w, n, k, want_scale->rank == 1, &out));
    assert_int_equal(out.num_scales, tensor_elements(want_scale));
    assert_memory_equal(out.scales, scale, out.num_scales * sizeof *scale);
    assert_memory_equal(out.q, q, n * k);
    for (size_t i = 0; i < n; i++) {
        int64_t sum = 0;
        for (size_t j = 0; j < k; j++)
            sum += q[i * k + j];
        assert_true(out.row_sums[i] == sum);
    }
    weight_quantized_free(ctx, &out);
    mem_free(ctx, q);
    mem_free(ctx, scale);
    mem_free(ctx, w);
}

static size_t check_case(tare_context *ctx, const golden_case *c)
{
    char path[2048];
    size_t linears = 0;
    if (!uses_plain_weights(ctx, c))
        return 0;
    snprintf(path, sizeof path, "%s/../model/model.safetensors", c->folder);
    safetensors *model = open_tensors(ctx, path);
    snprintf(path, sizeof path, "%s/tensors.safetensors", c->folder);
    safetensors *golden = open_tensors(ctx, path);
    for (size_t i = 0; i < safetensors_count(golden); i++) {
        static const char suffix[] = ".deq_scale";
        char module[512];
        snprintf(module, sizeof module, "%s", safetensors_at(golden, i)->name);
        size_t length = strlen(module), cut = sizeof suffix - 1;
        if (length < cut || strcmp(module + length - cut, suffix) != 0)
            continue;
        module[length - cut] = '\0';
        if (strcmp(golden_type(c, module, ".weight"), "W8A8") != 0)
            continue;
        check_weight(ctx, model, golden, module);
        linears++;
    }
    safetensors_close(golden);
    safetensors_close(model);
    return linears;
}

static void test_golden(void **state)
{
    (void)state;
    tare_context *ctx = new_context(2);
    assert_true(each_golden_case(ctx, "tensors.safetensors", check_case) >= 4 * 28);
    free_context(ctx);
}

/* The largest weight is 7 steps; a row of zeros has the smallest scale there is. Least squares: of
 * {7, -3.4, 0.5, -7}, whose integers are 7, -3, 0 (a tie) and -7, the scale is (49 + 10.2 + 49) /
 * (49 + 9 + 49); of {7, 3.4, 3.4, 3.4} integers are 7, 3, 3, 3 and the scale is (49 + 3 * 10.2) /
 * (49 + 27), which leaves them as they are; error 0.48 before, 0.309 then. {-8.4, 7, 7, 7}: 1.2
 * gives -7, 6, 6, 6 (7 / 1.2 = 5.83), then (58.8 + 126) / (49 + 108) = 1.17707, the same integers.
 */
static void test_int4(void **state)
{
    (void)state;
    static const float w[4][4] = {
        {7, -3.4f, 0.5f, -7}, {0, -0.0f, 0, 0}, {7, 3.4f, 3.4f, 3.4f}, {-8.4f, 7, 7, 7}};
    static const int8_t want[4][4] = {{7, -3, 0, -7}, {0}, {7, 3, 3, 3}, {-7, 6, 6, 6}};
    static const double searched[4] = {108.2 / 107, 0x1p-23, 79.6 / 76, 184.8 / 157};
    tare_context *ctx = new_context(2);
    for (int method = WEIGHT_INT4_MINMAX; method <= WEIGHT_INT4_SSZ; method++) {
        quantized_weight q;
        weight_rows rows = {
            .stored = coded_plain(TARE_F32, w, 4), .count = 4, .method = (weight_method)method};
        /* The serving dtype does not count. */
        assert_ok(ctx, weight_quantize_rows(ctx, &exact_bf16, &rows, false, &q));
        assert_memory_equal(q.q, want, sizeof want);
        assert_true(q.scales[1] == 0x1p-23f);
        assert_int_equal(q.row_sums[2], 16);
        if (method == WEIGHT_INT4_MINMAX)
            assert_true(q.scales[0] == 1 && q.scales[2] == 1 && q.scales[3] == 8.4f / 7);
        for (size_t row = 0; method == WEIGHT_INT4_SSZ && row < 4; row++)
            assert_true(fabs(q.scales[row] / searched[row] - 1) < 1e-7);
        weight_quantized_free(ctx, &q);
    }
    free_context(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_per_channel),
        cmocka_unit_test(test_per_tensor),
        cmocka_unit_test(test_scale_rounded_first),
        cmocka_unit_test(test_subnormal_scale),
        cmocka_unit_test(test_stored_dtypes),
        cmocka_unit_test(test_other_dtypes),
        cmocka_unit_test(test_not_finite),
        cmocka_unit_test(test_zero_rows),
        cmocka_unit_test(test_zero_matrix_per_tensor),
        cmocka_unit_test(test_compat_rounds_weights_first),
        cmocka_unit_test(test_asymmetric),
        cmocka_unit_test(test_asymmetric_per_tensor),
        cmocka_unit_test(test_asymmetric_bf16),
        cmocka_unit_test(test_int4),
        cmocka_unit_test(test_bad_rows),
        cmocka_unit_test(test_out_of_memory),
        cmocka_unit_test(test_golden),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
