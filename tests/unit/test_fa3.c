/* quantize/fa3: windows, scales, scores and the choice of fallbacks, against hand-made examples, a
 * full sort, and tensors that the reference system observed. */
#include <math.h>

#include "golden_fixture.h"

#include "quantize/fa3.h"
#include "quantize/magnitudes.h"

static uint32_t next_random(uint32_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 17;
    *state ^= *state << 5;
    return *state;
}

/* ---- windows ---- */

static void window(tare_context *ctx, double rho, const float *x, size_t n, size_t piece,
                   float *low, float *high)
{
    fa_window w;
    size_t keep = fa_window_keep(rho, n);
    float *storage = mem_alloc_array(ctx, 2 * keep, sizeof *storage);
    assert_non_null(storage);
    fa_window_init(&w, keep, storage);
    for (size_t i = 0; i < n; i += piece)
        fa_window_add(&w, kernels_get(ctx), x + i, n - i < piece ? n - i : piece);
    assert_true(fa_window_end(&w, low, high));
    mem_free(ctx, storage);
}

static void test_window_by_hand(void **state)
{
    (void)state;
    static const size_t counts[] = {1, 2, 9999, 10000, 10001, 20000},
                        m[] = {1, 1, 9998, 9999, 9999, 19998};
    static const float six[] = {.5f, -3, 9, 0, 2, -1}, ten[] = {9, 0, 8, 1, 7, 2, 6, 3, 5, 4};
    tare_context *ctx = new_context(1);
    float low, high;
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        assert_int_equal(counts[i] - fa_window_keep(0.9999, counts[i]) + 1, m[i]);
        assert_int_equal(fa_window_keep(1.0, counts[i]), 1);
    }
    window(ctx, 0.9999, six, 6, 6, &low, &high);
    assert_true(low == -3 && high == 2);
    window(ctx, 1.0, six, 6, 4, &low, &high);
    assert_true(low == -3 && high == 9);
    window(ctx, 0.9, ten, 10, 3, &low, &high); /* [0,8] and [1,9] are as wide: the first */
    assert_true(low == 0 && high == 8);
    window(ctx, 0.9999, six, 1, 1, &low, &high);
    assert_true(low == .5f && high == .5f);
    free_context(ctx);
}

static int compare_floats(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return x < y ? -1 : x > y;
}

/* The definition of spec/fa3.md 1.3. */
static void sorted_window(double rho, float *x, size_t n, float *low, float *high)
{
    size_t m = (size_t)(rho * (double)n), best = 0;
    m = m ? m : 1;
    qsort(x, n, sizeof *x, compare_floats);
    for (size_t i = 1; i + m <= n; i++)
        if ((double)x[i + m - 1] - (double)x[i] < (double)x[best + m - 1] - (double)x[best])
            best = i;
    *low = x[best];
    *high = x[best + m - 1];
}

/* Few distinct values (ties everywhere), small integers, and nearly normal ones. */
static float random_value(uint32_t *seed, int kind)
{
    uint32_t r = next_random(seed);
    if (kind == 0)
        return (float)(r % 3) - 1;
    if (kind == 1)
        return (float)(r % 200) - 100;
    float sum = 0;
    for (int i = 0; i < 4; i++)
        sum += (float)(next_random(seed) >> 8) * 0x1p-24f - 0.5f;
    return sum;
}

static void test_window_equals_full_sort(void **state)
{
    (void)state;
    static const double ratios[] = {0.5, 0.9, 0.99, 0.9999, 1.0};
    tare_context *ctx = new_context(1);
    uint32_t seed = 12345;
    for (int round = 0; round < 600; round++) {
        size_t n = 1 + next_random(&seed) % (round % 10 == 0 ? 30000 : 400);
        double rho = ratios[next_random(&seed) % 5];
        float low, high, want_low, want_high, *x = malloc(n * sizeof *x);
        for (size_t i = 0; i < n; i++)
            x[i] = random_value(&seed, round % 3);
        if (round % 7 == 0) /* the worst order for a heap of the largest */
            qsort(x, n, sizeof *x, compare_floats);
        window(ctx, rho, x, n, 1 + next_random(&seed) % 130, &low, &high);
        sorted_window(rho, x, n, &want_low, &want_high);
        if (low != want_low || high != want_high)
            fail_msg("rho %g, %zu values: [%.9g,%.9g], expected [%.9g,%.9g]", rho, n, (double)low,
                     (double)high, (double)want_low, (double)want_high);
        free(x);
    }
    free_context(ctx);
}

/* ---- modules ---- */

/* `status` is as expected, and its message holds `part`. */
static void assert_fails_with(const tare_context *ctx, tare_status status, tare_status expected,
                              const char *part)
{
    if (status != expected || !strstr(tare_last_error(ctx), part))
        fail_msg("status %d, message \"%s\": expected %d and \"%s\"", (int)status,
                 tare_last_error(ctx), (int)expected, part);
}

static const numerics FP32 = {.dtype = TARE_F32}, BF16 = {.dtype = TARE_BF16},
                      FP16 = {.dtype = TARE_F16};

/* q, k and v alike: [tokens, heads*head_dim]. */
static tare_status observe(fa_observer *o, size_t first, size_t tokens, const float *x,
                           size_t heads, size_t head_dim)
{
    fa_input in = {x, heads * head_dim, head_dim};
    return fa_observe(o, first, &tokens, 1, (fa_input[]){in, in, in});
}

static fa_observer *new_observer(tare_context *ctx, size_t heads)
{
    fa_observer *o;
    assert_ok(ctx,
              fa_observer_create(ctx, "m.attn", (size_t[]){heads, heads, heads}, FA_V_MAX, &o));
    return o;
}

static void test_scales_by_hand(void **state)
{
    (void)state;
    tare_context *ctx = new_context(2);
    float scales[4];
    fa_observer *o = new_observer(ctx, 3);
    /* one token, three heads: {-.5,4}, {-3,-1}, {0,0} */
    assert_ok(ctx, observe(o, 0, 1, (float[]){-.5f, 4, -3, -1, 0, 0}, 3, 2));
    assert_ok(ctx, fa_observer_scales(o, &FP32, FA_V, scales));
    assert_true(scales[0] == 4.0f / 127.0f && scales[1] == 3.0f / 127.0f && scales[2] == 0x1p-23f);
    /* once each; 4/127 = 0.031496063 lies between 0.03149414 and 0.03161621 of bfloat16 */
    assert_ok(ctx, fa_observer_scales(o, &BF16, FA_V, scales));
    assert_true(scales[0] == 0.031494140625f && scales[2] == 0x1p-23f);
    assert_ok(ctx, fa_observer_scales(o, &FP16, FA_V, scales));
    assert_true(scales[2] == 0x1p-23f);
    /* a second sample widens */
    assert_ok(ctx, observe(o, 1, 1, (float[]){-8, 1, 2, 2, 1, -2}, 3, 2));
    assert_ok(ctx, fa_observer_scales(o, &FP32, FA_V, scales));
    assert_true(scales[0] == 8.0f / 127.0f && scales[1] == 3.0f / 127.0f &&
                scales[2] == 2.0f / 127.0f);
    /* two values: the window of q has width 0 and holds the smaller one */
    assert_ok(ctx, fa_observer_scales(o, &FP32, FA_Q, scales));
    assert_true(scales[0] == 8.0f / 127.0f && scales[1] == 3.0f / 127.0f &&
                scales[2] == 2.0f / 127.0f);
    fa_observer_free(o);

    o = new_observer(ctx, 1);
    assert_ok(ctx, observe(o, 0, 1, (float[]){1e9f}, 1, 1));
    assert_fails_with(ctx, fa_observer_scales(o, &FP16, FA_V, scales), TARE_E_NUMERIC,
                      "does not fit F16");
    fa_observer_free(o);
    free_context(ctx);
}

/* Heads constant 1, 2, 3, 4 in every sample, in rows that are wider than the heads. */
static void test_heads_keep_apart(void **state)
{
    (void)state;
    enum { TOKENS = 7, HEADS = 4, DIM = 3, STRIDE = 20 };
    tare_context *ctx = new_context(3);
    float x[TOKENS * STRIDE], scales[HEADS];
    for (size_t t = 0; t < TOKENS; t++)
        for (size_t i = 0; i < STRIDE; i++)
            x[t * STRIDE + i] = i < HEADS * DIM ? (float)(i / DIM + 1) : NAN;
    fa_observer *o;
    assert_ok(ctx, fa_observer_create(ctx, "a", (size_t[]){HEADS, 2, 1}, FA_V_MAX, &o));
    fa_input in = {x, STRIDE, DIM};
    assert_ok(ctx, fa_observe(o, 0, (size_t[]){2, 4, 1}, 3, (fa_input[]){in, in, in}));
    for (int kind = 0; kind < FA_KINDS; kind++) {
        assert_ok(ctx, fa_observer_scales(o, &FP32, (fa_kind)kind, scales));
        for (size_t h = 0; h < (kind == 0 ? HEADS : kind == 1 ? 2 : 1); h++)
            assert_true(scales[h] == (float)(h + 1) / 127.0f);
    }
    fa_observer_free(o);
    free_context(ctx);
}

static void test_refusals(void **state)
{
    (void)state;
    tare_context *ctx = new_context(2);
    float x[8] = {0}, scales[2], before[2];
    fa_observer *o = new_observer(ctx, 2);
    assert_fails_with(ctx, fa_observer_scales(o, &FP32, FA_Q, scales), TARE_E_NUMERIC,
                      "m.attn: fa_q was never observed");
    assert_null(fa_observer_scores(o));
    assert_fails_with(ctx, observe(o, 4, 0, x, 2, 2), TARE_E_DATA, "sample 4 has no values");
    assert_ok(ctx, observe(o, 0, 2, x, 2, 2));
    assert_ok(ctx, fa_observer_scales(o, &FP32, FA_V, before));
    x[6] = NAN; /* token 1, head 1 */
    assert_fails_with(ctx, observe(o, 5, 2, x, 2, 2), TARE_E_NUMERIC,
                      "m.attn: head 1 of fa_q is NaN in sample 5");
    float good[8] = {9, 9, 9, 9, 9, 9, 9, 9};
    fa_input fine = {good, 4, 2}, bad = {x, 4, 2};
    x[6] = 0;
    x[1] = -INFINITY;
    assert_fails_with(ctx, fa_observe(o, 7, (size_t[]){1, 1}, 2, (fa_input[]){fine, fine, bad}),
                      TARE_E_NUMERIC, "head 0 of fa_v is infinite in sample 7");
    assert_ok(ctx, fa_observer_scales(o, &FP32, FA_V, scales));
    assert_memory_equal(scales, before, sizeof scales); /* nothing changed */
    fa_observer_free(o);
    free_context(ctx);
}

/* ---- v_method mse ---- */

/* By hand: 0.5 and 0.75 below 1; 3 makes the bins four times as wide; zeros before any of them. */
static void test_magnitudes(void **state)
{
    (void)state;
    static magnitudes m;
    magnitudes_clear(&m);
    magnitudes_add(&m, (float[]){0, -0.0f}, 2);
    assert_true(m.limit == 0 && m.counts[0] == 2 && magnitudes_error(&m, 1) == 0);
    magnitudes_add(&m, (float[]){0.5f, -0.75f}, 2);
    assert_true(m.limit == 1 && m.counts[1024] == 1 && m.counts[1536] == 1 && m.counts[0] == 2);
    magnitudes_add(&m, (float[]){3}, 1);
    assert_true(m.limit == 4 && m.counts[256] == 1 && m.counts[384] == 1 && m.counts[1536] == 1);
    assert_true(m.counts[0] == 2 && m.counts[1024] == 0);
    magnitudes_add(&m, (float[]){4, -0x1p127f}, 2);
    assert_true(m.limit == 0x1p128 && m.counts[0] == 6 && m.counts[1024] == 1);
}

enum { V_TOKENS = 3000, V_HEADS = 3, V_DIM = 8 };

/* Of the values of a head with this scale. */
static double error_of_scale(const float *x, size_t head, float scale)
{
    double sum = 0;
    for (size_t t = 0; t < V_TOKENS; t++) {
        for (size_t d = 0; d < V_DIM; d++) {
            double v = (double)x[(t * V_HEADS + head) * V_DIM + d], s = (double)scale;
            double e = fmin(fmax(rint(v / s), -127), 127) * s - v;
            sum += e * e;
        }
    }
    return sum;
}

/* Head 0: long tails; head 1: even up to its largest value, where nothing is to be gained; head 2:
 * one value far out. As tokens [first, end) in samples of `step`. */
static void mse_scales(tare_context *ctx, const float *x, size_t step, bool backwards,
                       float scales[V_HEADS])
{
    fa_observer *o;
    assert_ok(ctx,
              fa_observer_create(ctx, "a", (size_t[]){V_HEADS, V_HEADS, V_HEADS}, FA_V_MSE, &o));
    for (size_t i = 0; i < V_TOKENS; i += step) {
        size_t at = backwards ? V_TOKENS - step - i : i;
        assert_ok(ctx, observe(o, i, step, x + at * V_HEADS * V_DIM, V_HEADS, V_DIM));
    }
    assert_ok(ctx, fa_observer_scales(o, &FP32, FA_V, scales));
    float keys[V_HEADS], window[V_HEADS];
    fa_observer *max = new_observer(ctx, V_HEADS);
    for (size_t i = 0; i < V_TOKENS; i += step)
        assert_ok(ctx, observe(max, i, step, x + i * V_HEADS * V_DIM, V_HEADS, V_DIM));
    assert_ok(ctx, fa_observer_scales(o, &FP32, FA_K, keys));
    assert_ok(ctx, fa_observer_scales(max, &FP32, FA_K, window));
    assert_memory_equal(keys, window, sizeof keys);
    fa_observer_free(max);
    fa_observer_free(o);
}

static void test_mse_of_values(void **state)
{
    (void)state;
    tare_context *ctx = new_context(2);
    size_t n = V_TOKENS * V_HEADS * V_DIM;
    float *x = malloc(n * sizeof *x), scales[V_HEADS], again[V_HEADS];
    assert_non_null(x);
    for (uint32_t i = 0; i < n; i++) {
        double u = ((double)((i * 2654435761u) >> 8) + 0.5) * 0x1p-24;
        size_t head = i / V_DIM % V_HEADS;
        x[i] = (float)(head == 0   ? (u < 0.5 ? log(2 * u) : -log(2 * (1 - u)))
                       : head == 1 ? 2 * u - 1
                                   : u * 0.1);
    }
    x[2 * V_DIM + 5] = -0.3f;
    mse_scales(ctx, x, 500, false, scales);
    mse_scales(ctx, x, 500, true, again);
    assert_memory_equal(scales, again, sizeof scales);
    mse_scales(ctx, x, 10, false, again);
    assert_memory_equal(scales, again, sizeof scales);
    for (size_t h = 0; h < V_HEADS; h++) {
        double best = INFINITY;
        float reach = 0;
        for (size_t i = 0; i < n; i++)
            reach = i / V_DIM % V_HEADS == h ? fmaxf(reach, fabsf(x[i])) : reach;
        for (int f = 0; f <= 10; f++)
            best = fmin(best, error_of_scale(x, h, (float)((1 - 0.05 * f) * (double)reach) / 127));
        double found = error_of_scale(x, h, scales[h]), full = error_of_scale(x, h, reach / 127);
        if (!(found <= best * 1.005))
            fail_msg("head %zu: %g, at best %g", h, found, best);
        assert_true(h == 1 ? found == full : found < full * 0.98);
    }
    free(x);
    free_context(ctx);
}

/* ---- what the reference observed ---- */

/* Tensor `kind` of a sample, [1,heads,tokens,dim], turned into [tokens, heads*dim + 5]. */
static float *observed(tare_context *ctx, safetensors *s, const char *module, const char *kind,
                       size_t sample, size_t *heads, size_t *tokens, size_t *dim)
{
    char name[256];
    snprintf(name, sizeof name, "%s|%s|%zu", module, kind, sample);
    const tensor_info *t = safetensors_find(s, name);
    if (!t)
        return NULL;
    float *x = read_floats(ctx, s, t);
    *heads = t->shape[1];
    *tokens = t->shape[2];
    *dim = t->shape[3];
    size_t stride = *heads * *dim + 5;
    float *rows = mem_alloc_array(ctx, *tokens * stride, sizeof *rows);
    assert_non_null(rows);
    for (size_t h = 0; h < *heads; h++)
        for (size_t p = 0; p < *tokens; p++)
            memcpy(rows + p * stride + h * *dim, x + (h * *tokens + p) * *dim, *dim * sizeof *x);
    mem_free(ctx, x);
    return rows;
}

static void check_scales(tare_context *ctx, safetensors *s, const char *module, fa_observer *o,
                         tare_dtype dtype)
{
    static const char *const results[] = {".fa_q", ".fa_k", ".fa_v"};
    numerics num = {.dtype = dtype};
    for (int kind = 0; kind < FA_KINDS; kind++) {
        char name[256];
        float scales[16];
        snprintf(name, sizeof name, "result|%s%s.scale", module, results[kind]);
        const tensor_info *t = safetensors_find(s, name);
        float *want = read_floats(ctx, s, t);
        assert_int_equal(t->dtype, dtype);
        assert_ok(ctx, fa_observer_scales(o, &num, (fa_kind)kind, scales));
        assert_memory_equal(scales, want, tensor_elements(t) * sizeof *want);
        mem_free(ctx, want);
    }
}

/* Returns the worst score of the module. */
static float replay(tare_context *ctx, safetensors *s, const char *module, tare_dtype dtype)
{
    static const char *const kinds[] = {"q", "k", "v"};
    fa_observer *o = NULL;
    size_t sample = 0;
    for (;; sample++) {
        fa_input in[FA_KINDS];
        float *rows[FA_KINDS];
        size_t heads[FA_KINDS] = {0}, tokens = 0, dim = 0;
        for (int i = 0; i < FA_KINDS; i++) {
            rows[i] = observed(ctx, s, module, kinds[i], sample, &heads[i], &tokens, &dim);
            in[i] = (fa_input){rows[i], heads[i] * dim + 5, dim};
        }
        if (!rows[0])
            break;
        if (!o)
            assert_ok(ctx, fa_observer_create(ctx, module, heads, FA_V_MAX, &o));
        assert_ok(ctx, fa_observe(o, sample, &tokens, 1, in));
        for (int i = 0; i < FA_KINDS; i++)
            mem_free(ctx, rows[i]);
    }
    assert_int_equal(sample, 6);
    check_scales(ctx, s, module, o, dtype);
    const float *scores = fa_observer_scores(o);
    float worst = fmaxf(scores[0], fmaxf(scores[1], scores[2]));
    fa_observer_free(o);
    return worst;
}

static void test_golden_observed(void **state)
{
    (void)state;
    static const struct {
        const char *file;
        tare_dtype dtype;
    } files[] = {{"observed/llama-fa-bf16.safetensors", TARE_BF16},
                 {"observed/llama-fa-fp32.safetensors", TARE_F32}};
    size_t found = 0;
    for (size_t r = 0; r < GOLDEN_ROOTS; r++) {
        for (size_t i = 0; i < 2; i++) {
            char path[1024];
            snprintf(path, sizeof path, "%s/%s", golden_roots[r], files[i].file);
            if (!path_exists(path))
                continue;
            tare_context *ctx = new_context(2);
            safetensors *s = open_tensors(ctx, path);
            float first = replay(ctx, s, "model.layers.0.self_attn", files[i].dtype);
            float last = replay(ctx, s, "model.layers.3.self_attn", files[i].dtype);
            /* the reference's own figures for the FP32 model (spec/fa3.md 4) */
            if (files[i].dtype == TARE_F32) {
                assert_true(fabsf(first - 1.17643f) < 6e-6f);
                assert_true(fabsf(last - 1.49240f) < 6e-6f);
            }
            safetensors_close(s);
            free_context(ctx);
            found++;
        }
    }
    assert_true(found >= 1);
}

/* ---- scores ---- */

static float score_of(tare_context *ctx, const float *x, size_t n)
{
    float score;
    fa_input in = {x, n, n};
    assert_ok(ctx, fa_score(ctx, &in, 1, 1, &score));
    return score;
}

static void test_scores(void **state)
{
    (void)state;
    tare_context *ctx = new_context(2);
    float x[501], same;
    memset(x, 0, sizeof x);
    assert_true(score_of(ctx, x, 501) == 0);
    for (size_t i = 0; i < 501; i++)
        x[i] = i % 2 ? -1 : 1;
    assert_true(score_of(ctx, x, 501) == 1.0f / 1.02f); /* constant |x| */
    /* One outlier among values below 1: with 499 values it alone is more than 0.2 %, so nothing is
     * cut; with 501 it is not, and the tail ends at e[j] just above the rest. */
    for (size_t i = 0; i < 501; i++)
        x[i] = (float)i / 501;
    x[0] = 100;
    assert_true(score_of(ctx, x, 499) == 1);
    x[1] = 0; /* range [0,100], step 1: all others in bin 0, so T = e[2] = 2 */
    same = score_of(ctx, x, 501);
    assert_true(fabsf(same - 50) < 1e-4f);
    /* heads and tokens are all one set, whatever their order and the signs */
    float split[3 * 170] = {0};
    for (size_t i = 0; i < 501; i++)
        split[i / 167 * 170 + i % 167] = i % 3 ? x[i] : -x[i];
    fa_input in = {split, 170, 167};
    float score;
    assert_ok(ctx, fa_score(ctx, &in, 1, 3, &score));
    assert_true(score == same);
    free_context(ctx);
}

typedef struct log_check {
    char warning[512];
} log_check;

static void keep_warning(void *user, tare_log_level level, const char *message)
{
    log_check *l = user;
    if (level == TARE_LOG_WARNING)
        snprintf(l->warning, sizeof l->warning, "%s", message);
}

static void expect_fallback(tare_context *ctx, const float scores[][FA_KINDS], size_t count,
                            size_t fa_amp, const char *bits)
{
    fa_module modules[8];
    for (size_t i = 0; i < count; i++) {
        modules[i] = (fa_module){.name = "a"};
        memcpy(modules[i].scores, scores[i], sizeof modules[i].scores);
    }
    assert_ok(ctx, fa_fall_back(ctx, modules, count, fa_amp));
    for (size_t i = 0; i < count; i++)
        if (modules[i].fallback != (bits[i] == '1'))
            fail_msg("fa_amp %zu: module %zu", fa_amp, i);
}

static void test_choice(void **state)
{
    (void)state;
    static const float pair[][FA_KINDS] = {{2, 2, 2}, {3, 1, 1}},
                       ties[][FA_KINDS] = {{1, 1, 2}, {2, 1, 1}, {1, 3, 1}, {2, 2, 2}};
    /* worst scores of the reference's golden models, as {0,worst,0}, and their order */
    static const float llama[][FA_KINDS] = {
        {0, 1.17643f, 0}, {0, 1.33318f, 0}, {0, 1.36975f, 0}, {0, 1.49240f, 0}};
    log_check seen = {""};
    tare_context *ctx;
    tare_context_options options;
    init_options(&options);
    options.log = keep_warning;
    options.user = &seen;
    assert_int_equal(tare_context_create(&ctx, &options), TARE_OK);
    expect_fallback(ctx, pair, 2, 0, "00");
    expect_fallback(ctx, pair, 2, 1, "01"); /* the worst tensor counts, not the mean */
    expect_fallback(ctx, ties, 4, 1, "0010");
    expect_fallback(ctx, ties, 4, 2, "1010"); /* ties: the earlier module */
    expect_fallback(ctx, ties, 4, 3, "1110");
    expect_fallback(ctx, llama, 4, 2, "0011");
    expect_fallback(ctx, llama, 4, 4, "1111");
    assert_string_equal(seen.warning, "");
    expect_fallback(ctx, llama, 4, 5, "1111");
    assert_string_equal(seen.warning,
                        "`fa_amp` exceeds the total attention layer number. Therefore, only up to "
                        "the total attention layers will skip quantization");
    free_context(ctx);
}

/* ---- threads, batches, memory ---- */

static tare_status run_once(tare_context *ctx, const float *x, bool batched, float *out)
{
    enum { HEADS = 3, DIM = 16 };
    static const size_t lengths[] = {700, 1, 333};
    fa_observer *o = NULL;
    fa_input in = {x, HEADS * DIM, DIM};
    tare_status status = TARE_OK;
    TRY(fa_observer_create(ctx, "a", (size_t[]){HEADS, HEADS, HEADS}, FA_V_MAX, &o));
    if (batched) {
        TRY(fa_observe(o, 0, lengths, 3, (fa_input[]){in, in, in}));
    } else {
        for (size_t s = 0; s < 3; s++) {
            TRY(fa_observe(o, s, &lengths[s], 1, (fa_input[]){in, in, in}));
            in.x += lengths[s] * HEADS * DIM;
        }
    }
    for (int kind = 0; kind < FA_KINDS; kind++)
        TRY(fa_observer_scales(o, &FP32, (fa_kind)kind, out + kind * HEADS));
    memcpy(out + FA_KINDS * HEADS, fa_observer_scores(o), FA_KINDS * sizeof *out);
done:
    fa_observer_free(o);
    return status;
}

static void test_threads_and_batches_change_nothing(void **state)
{
    (void)state;
    enum { COUNT = 1034 * 48 };
    uint32_t seed = 99;
    float *x = malloc(COUNT * sizeof *x), want[12], got[12];
    for (size_t i = 0; i < COUNT; i++)
        x[i] = random_value(&seed, 2);
    for (int threads = 1; threads <= 5; threads += 2) {
        for (int batched = 0; batched < 2; batched++) {
            tare_context *ctx = new_context(threads);
            assert_ok(ctx, run_once(ctx, x, batched != 0, got));
            free_context(ctx);
            if (threads == 1 && !batched)
                memcpy(want, got, sizeof want);
            assert_memory_equal(got, want, sizeof want);
        }
    }
    free(x);
}

static bool allow_some(void *user, size_t bytes)
{
    long *left = user;
    (void)bytes;
    return (*left)-- > 0;
}

static void test_every_allocation_may_fail(void **state)
{
    (void)state;
    float *x = calloc(1034 * 48, sizeof *x), out[12];
    tare_status status = TARE_E_MEMORY;
    for (long n = 0; status != TARE_OK; n++) {
        long left = n;
        tare_context *ctx;
        tare_context_options options;
        init_options(&options);
        options.threads = 1;
        options.allow_allocation = allow_some;
        options.user = &left;
        assert_int_equal(tare_context_create(&ctx, &options), TARE_OK);
        status = run_once(ctx, x, true, out);
        assert_true(status == TARE_OK || status == TARE_E_MEMORY);
        free_context(ctx);
        assert_true(n < 1000);
    }
    free(x);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_window_by_hand),
                                       cmocka_unit_test(test_window_equals_full_sort),
                                       cmocka_unit_test(test_scales_by_hand),
                                       cmocka_unit_test(test_heads_keep_apart),
                                       cmocka_unit_test(test_refusals),
                                       cmocka_unit_test(test_magnitudes),
                                       cmocka_unit_test(test_mse_of_values),
                                       cmocka_unit_test(test_golden_observed),
                                       cmocka_unit_test(test_scores),
                                       cmocka_unit_test(test_choice),
                                       cmocka_unit_test(test_threads_and_batches_change_nothing),
                                       cmocka_unit_test(test_every_allocation_may_fail)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
