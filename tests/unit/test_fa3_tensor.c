/* tare_fa_observer: tensors of the caller's, in any layout and dtype; what it refuses; allocations
 * that fail. Expected values are by hand: scale = reach / 127, rounded to the dtype. Also the limit
 * that a recipe grants, and a cancellation that is taken back. */
#include <math.h>
#include <string.h>

#include "fixture.h"

#include "quantize/fa3.h"
#include "tensor/convert.h"

enum { HEADS = 3, TOKENS = 4, CHANNELS = 2 };

/* Head h of token t holds (h+1)*10 + t and minus that; [1,HEADS,TOKENS,CHANNELS]. */
static void fill(float *x)
{
    for (int h = 0; h < HEADS; h++)
        for (int t = 0; t < TOKENS; t++)
            for (int c = 0; c < CHANNELS; c++)
                x[(h * TOKENS + t) * CHANNELS + c] = (float)((h + 1) * 10 + t) * (c ? -1 : 1);
}

static tare_fa_tensor tensor_of(const void *data, const char *dtype)
{
    return (tare_fa_tensor){.dtype = dtype,
                            .data = data,
                            .shape = {1, HEADS, TOKENS, CHANNELS},
                            .strides = {HEADS * TOKENS * CHANNELS, TOKENS * CHANNELS, CHANNELS, 1}};
}

static void expect_scales(const tare_fa_observer *o, const char *dtype, tare_dtype rounded_to)
{
    float scales[HEADS];
    assert_int_equal(tare_fa_observer_heads(o), HEADS);
    assert_int_equal(tare_fa_observer_scales(o, dtype, scales), TARE_OK);
    for (int h = 0; h < HEADS; h++) /* the last token reaches farthest */
        assert_true(scales[h] == round_to_dtype(((float)(h + 1) * 10 + 3) / 127.0f, rounded_to));
}

static void test_dtypes_and_layouts(void **state)
{
    (void)state;
    float x[HEADS * TOKENS * CHANNELS], turned[HEADS * TOKENS * CHANNELS];
    uint16_t bf16[HEADS * TOKENS * CHANNELS], f16[HEADS * TOKENS * CHANNELS];
    double f64[HEADS * TOKENS * CHANNELS];
    tare_context *ctx = new_context(2);
    fill(x);
    for (int i = 0; i < HEADS * TOKENS * CHANNELS; i++) {
        bf16[i] = float_to_bf16(x[i]);
        f16[i] = float_to_fp16(x[i]);
        f64[i] = x[i];
    }
    /* [1,TOKENS,HEADS,CHANNELS], its tokens backwards */
    for (int h = 0; h < HEADS; h++)
        for (int t = 0; t < TOKENS; t++)
            memcpy(turned + ((TOKENS - 1 - t) * HEADS + h) * CHANNELS,
                   x + (h * TOKENS + t) * CHANNELS, CHANNELS * sizeof *x);
    tare_fa_tensor tensors[] = {tensor_of(x, "F32"), tensor_of(bf16, "BF16"), tensor_of(f16, "F16"),
                                tensor_of(f64, "F64"),
                                tensor_of(turned + (TOKENS - 1) * HEADS * CHANNELS, "F32")};
    tensors[4].strides[1] = CHANNELS;
    tensors[4].strides[2] = -HEADS * CHANNELS;
    for (size_t i = 0; i < sizeof tensors / sizeof *tensors; i++) {
        tare_fa_observer *o;
        assert_int_equal(tare_fa_observer_create(ctx, "attn", 'v', &o), TARE_OK);
        assert_int_equal(tare_fa_observer_heads(o), 0);
        assert_int_equal(tare_fa_observer_add(o, &tensors[i]), TARE_OK);
        expect_scales(o, "F32", TARE_F32);
        expect_scales(o, "BF16", TARE_BF16);
        expect_scales(o, "F16", TARE_F16);
        /* N = 24 values, each bin of |x| that is not empty counts: T is the largest, the score 1.
         */
        assert_true(tare_fa_observer_score(o) == 1.0f);
        tare_fa_observer_free(o);
    }
    free_context(ctx);
}

static void test_samples_join(void **state)
{
    (void)state;
    float x[HEADS * TOKENS * CHANNELS], small[HEADS * CHANNELS] = {0}, scales[HEADS];
    tare_context *ctx = new_context(1);
    tare_fa_observer *o;
    tare_fa_tensor t, one = {.dtype = "F32",
                             .data = small,
                             .shape = {1, HEADS, 1, CHANNELS},
                             .strides = {0, CHANNELS, 0, 1}};
    fill(x);
    t = tensor_of(x, "F32");
    assert_int_equal(tare_fa_observer_create(ctx, "attn", 'q', &o), TARE_OK);
    assert_int_equal(tare_fa_observer_add(o, &one), TARE_OK);
    assert_int_equal(tare_fa_observer_scales(o, "F32", scales), TARE_OK);
    assert_true(scales[0] == 0x1p-23f);
    assert_int_equal(tare_fa_observer_add(o, &t), TARE_OK);
    assert_int_equal(tare_fa_observer_add(o, &one), TARE_OK);
    /* q's window leaves out one of the 8 values of a head: the narrowest holds [-(10h+13), 10h+12].
     */
    assert_int_equal(tare_fa_observer_scales(o, "F32", scales), TARE_OK);
    for (int h = 0; h < HEADS; h++)
        assert_true(scales[h] == ((float)(h + 1) * 10 + 3) / 127.0f);
    tare_fa_observer_free(o);
    free_context(ctx);
}

static void test_refusals(void **state)
{
    (void)state;
    float x[HEADS * TOKENS * CHANNELS], scales[HEADS];
    tare_context *ctx = new_context(1);
    tare_fa_observer *o;
    fill(x);
    tare_fa_tensor t = tensor_of(x, "F32"), bad = t;
    assert_fails(ctx, tare_fa_observer_create(ctx, "attn", 'x', &o), TARE_E_USAGE,
                 "attn: 'x' is none of q, k and v");
    assert_fails(ctx, tare_fa_observer_create(ctx, "attn", '\0', &o), TARE_E_USAGE,
                 "is none of q, k and v");
    assert_int_equal(tare_fa_observer_create(ctx, "attn", 'v', &o), TARE_OK);
    assert_fails(ctx, tare_fa_observer_scales(o, "F32", scales), TARE_E_DATA,
                 "fa_v was never observed");
    bad.dtype = "I8";
    assert_fails(ctx, tare_fa_observer_add(o, &bad), TARE_E_USAGE, "fa_v has the dtype I8");
    bad = t;
    bad.shape[2] = 0;
    assert_fails(ctx, tare_fa_observer_add(o, &bad), TARE_E_DATA, "a sample has no values");
    bad.shape[2] = SIZE_MAX / 2;
    assert_fails(ctx, tare_fa_observer_add(o, &bad), TARE_E_DATA, "a sample has no values");
    x[5] = NAN;
    assert_int_equal(tare_fa_observer_add(o, &t), TARE_E_NUMERIC);
    assert_string_equal(tare_last_error(ctx), "attn: head 0 of fa_v holds NaN or infinity");
    assert_int_equal(tare_fa_observer_heads(o), 0);
    x[5] = 1e38f;
    assert_int_equal(tare_fa_observer_add(o, &t), TARE_OK);
    assert_fails(ctx, tare_fa_observer_scales(o, "F16", scales), TARE_E_NUMERIC, "F16");
    assert_fails(ctx, tare_fa_observer_scales(o, "I8", scales), TARE_E_USAGE,
                 "scales cannot have the dtype I8");
    bad = t;
    bad.shape[1] = 2;
    assert_fails(ctx, tare_fa_observer_add(o, &bad), TARE_E_DATA, "has 2 heads, and");
    tare_fa_observer_free(o);
    free_context(ctx);
}

static bool allow_some(void *user, size_t bytes)
{
    (void)bytes;
    return (*(long *)user)-- > 0;
}

static void test_every_allocation_may_fail(void **state)
{
    (void)state;
    float x[HEADS * TOKENS * CHANNELS];
    static const char *const names[] = {"a", "b"};
    static const float scores[] = {1, 2, 3, 3, 2, 4};
    bool fallback[2] = {false, false};
    tare_status status = TARE_E_MEMORY;
    fill(x);
    tare_fa_tensor t = tensor_of(x, "F32");
    for (long n = 0; status == TARE_E_MEMORY; n++) {
        long left = 1000000;
        tare_context *ctx;
        tare_fa_observer *o;
        tare_context_options options;
        init_options(&options);
        options.threads = 1;
        options.allow_allocation = allow_some;
        options.user = &left;
        assert_int_equal(tare_context_create(&ctx, &options), TARE_OK);
        left = n;
        status = tare_fa_observer_create(ctx, "attn", 'q', &o);
        if (status == TARE_OK)
            status = tare_fa_observer_add(o, &t);
        if (status == TARE_OK)
            status = tare_fa_fall_back(ctx, names, 2, scores, 1, fallback);
        tare_fa_observer_free(o);
        free_context(ctx);
        assert_true(n < 100);
    }
    assert_int_equal(status, TARE_OK);
    assert_true(!fallback[0] && fallback[1]);
}

static void test_limit_and_cancellation(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    tare_recipe *recipe;
    assert_int_equal(tare_recipe_create(ctx, &recipe), TARE_OK);
    assert_int_equal(tare_recipe_memory_limit(recipe), 0);
    assert_int_equal(tare_recipe_set(recipe, "run.max_memory", "cpu=1.5KiB,0=2GiB"), TARE_OK);
    assert_int_equal(tare_recipe_memory_limit(recipe), 1536);
    tare_recipe_free(recipe);
    tare_cancel(ctx);
    assert_int_equal(context_check_cancelled(ctx), TARE_E_CANCELLED);
    tare_cancel_clear(ctx);
    assert_int_equal(context_check_cancelled(ctx), TARE_OK);
    free_context(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dtypes_and_layouts), cmocka_unit_test(test_samples_join),
        cmocka_unit_test(test_refusals), cmocka_unit_test(test_every_allocation_may_fail),
        cmocka_unit_test(test_limit_and_cancellation)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
