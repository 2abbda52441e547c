/* quantize/kv_observer: scales of the key/value cache against hand arithmetic, a plain loop, and
 * keys and values that PyTorch observed in the float models. */
#include <math.h>

#include "golden_fixture.h"

#include "quantize/kv_observer.h"
#include "tensor/kernels.h"

enum { CHANNELS = 2 };

static kv_observer *create(tare_context *ctx, size_t channels)
{
    kv_observer *o;
    assert_ok(ctx, kv_observer_create(ctx, "m.attn", channels, &o));
    return o;
}

static tare_status scales_of(const kv_observer *o, kv_kind kind, tare_dtype dtype, float *scales)
{
    float offsets[256];
    const numerics num = {.dtype = dtype};
    tare_status status = kv_observer_params(o, kind, &num, true, scales, offsets);
    for (size_t c = 0; status == TARE_OK && c < CHANNELS; c++)
        assert_true(offsets[c] == 0);
    return status;
}

static void test_by_hand(void **state)
{
    (void)state;
    static const float keys[] = {1, -2, 254, 0.5f, -3, 1, 2, -127}, /* the last sample is smaller */
        values[] = {0, -1, 0, 0.25f, 0, 0.125f, 0, -0.5f};
    static const size_t lengths[] = {2, 1, 1};
    float scales[CHANNELS];
    tare_context *ctx = new_context(1);
    kv_observer *o = create(ctx, CHANNELS);
    assert_fails(ctx, scales_of(o, KV_KEYS, TARE_F32, scales), TARE_E_NUMERIC,
                 "m.attn: keys and values were never observed");
    assert_ok(ctx, kv_observe(o, 0, lengths, 2, (const float *[]){keys, values}));
    assert_ok(ctx, kv_observe(o, 2, lengths + 2, 1, (const float *[]){keys + 6, values + 6}));
    assert_ok(ctx, scales_of(o, KV_KEYS, TARE_F32, scales));
    assert_true(scales[0] == 2 && scales[1] == 1);
    assert_ok(ctx, scales_of(o, KV_VALUES, TARE_F32, scales));
    assert_true(scales[0] == 0x1p-23f && scales[1] == 1.0f / 127);
    /* 1/127 = 0.007874015…: of 8 significant bits 129/2^14 is nearest, of 11 1032/2^17 */
    assert_ok(ctx, scales_of(o, KV_VALUES, TARE_BF16, scales));
    assert_true(scales[0] == 0x1p-23f && scales[1] == 129 * 0x1p-14f);
    assert_ok(ctx, scales_of(o, KV_VALUES, TARE_F16, scales));
    assert_true(scales[0] == 0x1p-23f && scales[1] == 1032 * 0x1p-17f);
    kv_observer_free(o);
    free_context(ctx);
}

/* Ranges with 0: (hi - lo)/255 and rne(-lo/s) - 128. */
static void test_asymmetric_by_hand(void **state)
{
    (void)state;
    static const float keys[] = {-255, 51, 0, 102}, values[] = {-1, -0.5f, -0.25f, -0.0f},
                       divisors[] = {5, 0.5f};
    static const size_t lengths[] = {1, 1};
    const numerics num = {.dtype = TARE_F32}, half = {.dtype = TARE_BF16};
    float scales[CHANNELS], offsets[CHANNELS];
    tare_context *ctx = new_context(1);
    kv_observer *o = create(ctx, CHANNELS);
    assert_ok(ctx, kv_observe(o, 0, lengths, 2, (const float *[]){keys, values}));
    assert_ok(ctx, kv_observer_params(o, KV_KEYS, &num, false, scales, offsets));
    assert_true(scales[0] == 1 && offsets[0] == 127);             /* -255 .. 0 */
    assert_true(scales[1] == 102.0f / 255 && offsets[1] == -128); /* 0 .. 102 */
    assert_ok(ctx, kv_observer_params(o, KV_VALUES, &num, false, scales, offsets));
    assert_true(scales[0] == 1.0f / 255 && offsets[0] == 127);
    assert_true(scales[1] == 0.5f / 255 && offsets[1] == 127);
    /* 1/255 = 2^-8 * 1.00392…: of 8 significant bits 129/128 is nearest; 32768/129 = 254.01… */
    assert_ok(ctx, kv_observer_params(o, KV_VALUES, &half, false, scales, offsets));
    assert_true(scales[0] == 129 * 0x1p-15f && offsets[0] == 126);
    kv_observer_divide(o, KV_KEYS, divisors);
    assert_ok(ctx, kv_observer_params(o, KV_KEYS, &num, false, scales, offsets));
    assert_true(scales[0] == 51.0f / 255 && offsets[0] == 127);
    assert_true(scales[1] == 204.0f / 255 && offsets[1] == -128);
    kv_observer_free(o);
    free_context(ctx);
}

static void test_refusals(void **state)
{
    (void)state;
    static const size_t lengths[] = {1, 2, 1};
    float x[8] = {1, 2, 3, 4, 5, 6, 7, 8}, bad[8], scales[CHANNELS];
    tare_context *ctx = new_context(1);
    memcpy(bad, x, sizeof bad);
    bad[5] = NAN; /* token 2, the second of sample 8 */
    kv_observer *o = create(ctx, CHANNELS);
    assert_fails(ctx, kv_observe(o, 7, lengths, 3, (const float *[]){bad, x}), TARE_E_NUMERIC,
                 "m.attn: channel 1 of the keys holds NaN or infinity in sample 8");
    kv_observer_free(o);
    o = create(ctx, CHANNELS);
    bad[5] = 6;
    bad[6] = -INFINITY;
    assert_fails(ctx, kv_observe(o, 7, lengths, 3, (const float *[]){x, bad}), TARE_E_NUMERIC,
                 "m.attn: channel 0 of the values holds NaN or infinity in sample 9");
    kv_observer_free(o);
    o = create(ctx, CHANNELS);
    x[0] = 1e7f; /* / 127 is more than 65504 */
    assert_ok(ctx, kv_observe(o, 0, lengths, 3, (const float *[]){x, x}));
    assert_fails(ctx, scales_of(o, KV_KEYS, TARE_F16, scales), TARE_E_NUMERIC,
                 "channel 0 of the keys: a reach of 1e+07, whose scale does not fit F16");
    kv_observer_free(o);
    free_context(ctx);
}

/* Channels that are no whole pieces, samples in any groups, one and several threads. */
static void test_groups_and_threads(void **state)
{
    (void)state;
    static const size_t lengths[] = {3, 1, 5, 2};
    enum { WIDE = 150, TOKENS = 11 };
    float *x = malloc(sizeof *x * TOKENS * WIDE), *y = malloc(sizeof *y * TOKENS * WIDE);
    float want[WIDE] = {0}, scales[WIDE];
    assert_true(x && y);
    for (size_t i = 0; i < TOKENS * WIDE; i++) {
        x[i] = (float)((i * 7919 + 13) % 1009) - 504;
        y[i] = -x[i] / 4;
        want[i % WIDE] = fmaxf(want[i % WIDE], fabsf(x[i]));
    }
    for (int threads = 1; threads <= 3; threads++) {
        tare_context *ctx = new_context(threads);
        for (size_t group = 1; group <= 4; group++) {
            kv_observer *o = create(ctx, WIDE);
            for (size_t s = 0, t = 0; s < 4; s += group) {
                size_t n = s + group < 4 ? group : 4 - s;
                assert_ok(ctx, kv_observe(o, s, lengths + s, n,
                                          (const float *[]){x + t * WIDE, y + t * WIDE}));
                for (size_t i = s; i < s + n; i++)
                    t += lengths[i];
            }
            for (int kind = 0; kind < KV_KINDS; kind++) {
                assert_ok(ctx, scales_of(o, (kv_kind)kind, TARE_F32, scales));
                for (size_t c = 0; c < WIDE; c++)
                    assert_true(scales[c] == want[c] / (kind ? 4 : 1) / 127.0f);
            }
            assert_true(tare_memory_used(ctx) > 0);
            kv_observer_free(o);
        }
        free_context(ctx);
    }
    free(x);
    free(y);
}

/* One head of two channels, the same key at two positions, the second a quarter turn on: what goes
 * into the cache is larger in a channel than what the projection put out. */
static void test_rotated_keys(void **state)
{
    (void)state;
    static const float cosines[] = {1, 0}, sines[] = {0, 1}, values[] = {1, 1, 1, 1};
    static const size_t tokens = 2;
    float keys[] = {3, 0, 3, 0}, scales[CHANNELS];
    tare_context *ctx = new_context(1);
    kv_observer *before = create(ctx, CHANNELS), *after = create(ctx, CHANNELS);
    assert_ok(ctx, kv_observe(before, 0, &tokens, 1, (const float *[]){keys, values}));
    for (size_t t = 0; t < tokens; t++)
        kernels_get(ctx)->rope(keys + t * CHANNELS, cosines + t, sines + t, CHANNELS);
    assert_ok(ctx, kv_observe(after, 0, &tokens, 1, (const float *[]){keys, values}));
    assert_ok(ctx, scales_of(before, KV_KEYS, TARE_F32, scales));
    assert_true(scales[0] == 3.0f / 127 && scales[1] == 0x1p-23f);
    assert_ok(ctx, scales_of(after, KV_KEYS, TARE_F32, scales));
    assert_true(scales[0] == 3.0f / 127 && scales[1] == 3.0f / 127);
    kv_observer_free(before);
    kv_observer_free(after);
    free_context(ctx);
}

/* ---- what was observed in the float models (PyTorch) ---- */

enum { SAMPLES = 6, MOST = 64 };
#define ATTENTION "model.layers.0.self_attn."

static void replay(tare_context *ctx, safetensors *s)
{
    static const char *const kinds[] = {ATTENTION "k_proj|k|%d", ATTENTION "v_proj|v|%d"},
                             *const results[] = {"scale|" ATTENTION "k_proj",
                                                 "scale|" ATTENTION "v_proj"};
    kv_observer *o = NULL;
    float scales[MOST];
    for (int i = 0; i < SAMPLES; i++) {
        float *x[KV_KINDS];
        size_t tokens = 0;
        for (int kind = 0; kind < KV_KINDS; kind++) {
            char name[128];
            snprintf(name, sizeof name, kinds[kind], i);
            const tensor_info *t = safetensors_find(s, name);
            x[kind] = read_floats(ctx, s, t);
            tokens = t->shape[0];
            o = o ? o : create(ctx, t->shape[1]);
        }
        assert_ok(ctx, kv_observe(o, (size_t)i, &tokens, 1, (const float *[]){x[0], x[1]}));
        mem_free(ctx, x[0]);
        mem_free(ctx, x[1]);
    }
    for (int kind = 0; kind < KV_KINDS; kind++) {
        const tensor_info *t = safetensors_find(s, results[kind]);
        float *want = read_floats(ctx, s, t);
        assert_ok(ctx, scales_of(o, (kv_kind)kind, TARE_F32, scales));
        assert_memory_equal(scales, want, t->shape[0] * sizeof *want);
        mem_free(ctx, want);
    }
    kv_observer_free(o);
}

static void test_golden_observed(void **state)
{
    (void)state;
    static const char *const models[] = {"llama", "qwen2", "qwen3"};
    size_t found = 0;
    for (size_t i = 0; i < GOLDEN_ROOTS * 3; i++) {
        char path[1024];
        snprintf(path, sizeof path, "%s/observed/kv-%s.safetensors", golden_roots[i / 3],
                 models[i % 3]);
        if (!path_exists(path))
            continue;
        tare_context *ctx = new_context(2);
        safetensors *s = open_tensors(ctx, path);
        replay(ctx, s);
        safetensors_close(s);
        free_context(ctx);
        found++;
    }
    assert_true(found >= 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_by_hand),
                                       cmocka_unit_test(test_asymmetric_by_hand),
                                       cmocka_unit_test(test_refusals),
                                       cmocka_unit_test(test_rotated_keys),
                                       cmocka_unit_test(test_groups_and_threads),
                                       cmocka_unit_test(test_golden_observed)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
