/* The functions that say beforehand what a module will allocate, against what the accounted
 * allocator then counts: never less, and not much more. */
#include "fixture.h"

#include "quantize/fa3.h"
#include "quantize/observer.h"
#include "quantize/score.h"
#include "quantize/smooth.h"
#include "tensor/gemm.h"

enum { SMALL_THINGS = 64 * 1024 }; /* handles and the like may weigh that much in a tiny case */

static void begin(tare_context *ctx)
{
    atomic_store(&ctx->memory_peak, tare_memory_used(ctx));
}

/* What was used beyond `before` at the worst moment since begin(). */
static void check(tare_context *ctx, const char *what, size_t planned)
{
    size_t measured = tare_memory_peak(ctx) - tare_memory_used(ctx);
    if (measured > planned || planned > measured + measured / 10 + SMALL_THINGS)
        fail_msg("%s: planned %zu, measured %zu", what, planned, measured);
}

static float *numbers(size_t count)
{
    float *x = malloc(count * sizeof *x);
    for (size_t i = 0; i < count; i++)
        x[i] = (float)((i * 7919) % 1009) / 500.0f - 1.0f;
    return x;
}

static void test_blocks(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    static const size_t sizes[] = {0, 1, 64, 65, 100000, 262080, 262081, 1000001};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        void *p = mem_alloc(ctx, sizes[i]);
        assert_true(tare_memory_used(ctx) <= mem_block_bytes(sizes[i]));
        assert_true(mem_block_bytes(sizes[i]) < sizes[i] + 64 + 4096 + 64);
        mem_free(ctx, p);
    }
    assert_int_equal(mem_array_bytes(SIZE_MAX / 2, 3), MEM_ABSURD);
    assert_int_equal(mem_block_bytes(SIZE_MAX), MEM_ABSURD);
    free_context(ctx);
}

static void test_reading(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    const char *folder = temporary_folder();
    size_t size = 9 << 20;
    char path[128], *data = calloc(1, size);
    file *f;
    write_file(folder, "a", data, size);
    snprintf(path, sizeof path, "%s/a", folder);
    assert_ok(ctx, file_open(ctx, path, &f));
    for (size_t n = 1000; n < size - 100; n = n * 3 + 1) {
        begin(ctx);
        assert_ok(ctx, file_read_at(f, 77, data, n));
        assert_true(tare_memory_peak(ctx) - tare_memory_used(ctx) <= file_read_bytes(n));
    }
    file_close(f);
    free(data);
    assert_ok(ctx, folder_remove(ctx, folder));
    free_context(ctx);
}

static void test_products(void **state)
{
    (void)state;
    size_t n = 600, k = 700, m = 200;
    float *x = numbers(n * k), *y = malloc(m * n * sizeof *y);
    for (int threads = 1; threads <= 3; threads += 2) {
        for (int compute = GEMM_FP32; compute <= GEMM_BF16; compute++) {
            tare_context *ctx = new_context(threads);
            gemm_weight *w;
            begin(ctx);
            assert_ok(ctx, gemm_weight_create(ctx, compute, TARE_F32, x, n, k, &w));
            size_t kept = mem_block_bytes(gemm_weight_bytes(compute, TARE_F32, n, k));
            assert_true(tare_memory_used(ctx) <= kept);
            assert_true(tare_memory_peak(ctx) <= kept);
            begin(ctx);
            assert_ok(ctx, gemm_float(ctx, w, x, m, NULL, y));
            assert_true(tare_memory_peak(ctx) - tare_memory_used(ctx) <= gemm_float_bytes(ctx));
            gemm_weight_free(ctx, w);
            free_context(ctx);
        }
    }
    free(x);
    free(y);
}

static void test_weights(void **state)
{
    (void)state;
    tare_context *ctx = new_context(2);
    size_t n = 900, k = 1100;
    numerics num = {.dtype = TARE_BF16};
    quantized_weight q;
    float *w = numbers(n * k);
    begin(ctx);
    assert_ok(ctx, weight_quantize(ctx, &num, TARE_F32, w, n, k, false, &q));
    assert_true(tare_memory_used(ctx) <= weight_quantized_bytes(n, k));
    size_t kept = tare_memory_used(ctx);
    assert_true(tare_memory_peak(ctx) - kept <= weight_quantize_bytes(ctx, n, k));
    assert_true(weight_quantized_bytes(n, k) <= kept + 4 * 4096 + 1);
    weight_quantized_free(ctx, &q);
    free(w);
    free_context(ctx);
}

static void test_observers(void **state)
{
    (void)state;
    size_t rows = 500, cols = 1024;
    float *x = numbers(rows * cols), *scratch = numbers(2 * cols);
    for (int kind = OBSERVER_MEAN_EXTREMES; kind <= OBSERVER_HISTOGRAM; kind++) {
        for (int compat = 0; compat < 2; compat++) {
            tare_context *ctx = new_context(3);
            numerics num = {.compat = compat, .dtype = TARE_F32};
            score_state score;
            observer *o;
            begin(ctx);
            assert_ok(ctx, observer_create(ctx, kind, &num, &o));
            for (int i = 0; i < 40; i++)
                assert_ok(ctx, observer_update(ctx, o, x, rows * cols));
            assert_true(tare_memory_peak(ctx) <= observer_bytes(40) + observer_update_bytes(ctx));
            observer_free(ctx, o);
            begin(ctx);
            score_init(&score);
            assert_ok(ctx, score_update(ctx, &num, &score, x, rows, cols, scratch));
            assert_true(tare_memory_peak(ctx) <= score_update_bytes(cols));
            free_context(ctx);
        }
    }
    free(x);
    free(scratch);
}

static void test_attention_observer(void **state)
{
    (void)state;
    tare_context *ctx = new_context(2);
    size_t heads[FA_KINDS] = {8, 2, 2}, lengths[] = {300, 500, 1}, dim = 64;
    float *x = numbers(801 * 8 * dim);
    fa_input in[FA_KINDS] = {{x, 8 * dim, dim}, {x, 8 * dim, dim}, {x, 8 * dim, dim}};
    fa_observer *o;
    begin(ctx);
    assert_ok(ctx, fa_observer_create(ctx, "model.layers.0.self_attn", heads, FA_V_MAX, &o));
    assert_true(tare_memory_used(ctx) <= fa_observer_bytes(heads, FA_V_MAX));
    begin(ctx);
    assert_ok(ctx, fa_observe(o, 0, lengths, 3, in));
    check(ctx, "fa_observe", fa_observe_bytes(ctx, heads, dim, 3, 500));
    fa_observer_free(o);
    begin(ctx);
    assert_ok(ctx, fa_observer_create(ctx, "model.layers.0.self_attn", heads, FA_V_MSE, &o));
    assert_true(tare_memory_used(ctx) <= fa_observer_bytes(heads, FA_V_MSE));
    fa_observer_free(o);
    free(x);
    free_context(ctx);
}

/* ---- smoothing ---- */

typedef struct inputs_at {
    const float *x;
    size_t channels;
} inputs_at;

static tare_status read_inputs(void *user, size_t first, size_t count, float *x)
{
    const inputs_at *in = user;
    memcpy(x, in->x + first * in->channels, count * in->channels * sizeof *x);
    return TARE_OK;
}

static void check_method(smooth_method method, bool compat, size_t tokens, size_t tile_bytes)
{
    tare_context *ctx = new_context(2);
    size_t channels = 192, n[3] = {384, 192, 192};
    smooth_config cfg = {.method = method,
                         .w_bit = 8,
                         .w_sym = true,
                         .tile_bytes = tile_bytes,
                         .num = {.compat = compat, .dtype = compat ? TARE_F16 : TARE_F32}};
    float *w = numbers(n[0] * channels), *x = numbers(tokens * channels);
    float *ones = numbers(channels), *gain = numbers(channels);
    x[5] = 90; /* an outlier, without which m2 does not search */
    smooth_weight targets[3], *list[3];
    for (size_t i = 0; i < 3; i++) {
        targets[i] = (smooth_weight){.name = "t",
                                     .raw = coded_plain(TARE_F32, w, channels),
                                     .n = n[i],
                                     .k = channels,
                                     .stored = TARE_F16,
                                     .round = TARE_F32};
        targets[i].col_scale = calloc(channels, sizeof(float));
        targets[i].bias = calloc(n[i], sizeof(float));
        list[i] = &targets[i];
    }
    smooth_norm norm = {.weight = gain, .bias = ones, .stored = TARE_F32};
    smooth_group g = {.name = "norm",
                      .norm = &norm,
                      .targets = list,
                      .num_targets = 3,
                      .channels = channels,
                      .alpha = 0.9,
                      .shift = true};
    inputs_at in = {x, channels};
    smooth_inputs inputs = {&in, read_inputs};
    smooth_stats *stats;
    smooth_scales scales;
    begin(ctx);
    assert_ok(ctx, smooth_stats_create(ctx, &cfg, &g, &stats));
    assert_ok(ctx, smooth_stats_update(ctx, stats, x, NULL, tokens));
    assert_true(tare_memory_peak(ctx) <= smooth_stats_bytes(&cfg, channels));
    begin(ctx);
    tare_status status = smooth_solve(ctx, &cfg, &g, stats, &inputs, &scales);
    assert_ok(ctx, status);
    size_t planned = smooth_solve_bytes(ctx, &cfg, &g, tokens, tokens);
    assert_ok(ctx, smooth_apply(ctx, &cfg, &g, &scales));
    smooth_scales_free(ctx, &scales);
    size_t measured = tare_memory_peak(ctx) - tare_memory_used(ctx);
    if (measured > planned || planned > measured + measured / 4 + SMALL_THINGS)
        fail_msg("m%d%s, %zu tokens: planned %zu, measured %zu", method, compat ? " compat" : "",
                 tokens, planned, measured);
    smooth_stats_free(ctx, stats);
    for (size_t i = 0; i < 3; i++) {
        free(targets[i].col_scale);
        free(targets[i].bias);
    }
    free(w);
    free(x);
    free(ones);
    free(gain);
    free_context(ctx);
}

static void test_smoothing(void **state)
{
    (void)state;
    for (int method = SMOOTH_M1; method <= SMOOTH_M6; method++)
        for (int compat = 0; compat < 2; compat++)
            for (size_t tokens = 90; tokens <= 270; tokens += 180) /* m3: both its forms */
                check_method(method, compat, tokens, 0);
    check_method(SMOOTH_M6, false, 300, 400000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_blocks),    cmocka_unit_test(test_reading),
        cmocka_unit_test(test_products),  cmocka_unit_test(test_weights),
        cmocka_unit_test(test_observers), cmocka_unit_test(test_attention_observer),
        cmocka_unit_test(test_smoothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
