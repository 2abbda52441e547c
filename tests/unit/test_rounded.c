/* Half-precision operators and m3's search in the native dtype against what PyTorch computed
 * (tests/data/make_half_reference.py). Sums are made in another order here and exp is another one,
 * so that now and then a result falls on the other side of a rounding: one value in a hundred may
 * be one unit off. What has neither must be equal. */
#include "tensor/rounded.h"

#include "golden_fixture.h"
#include "quantize/smooth.h"
#include "tensor/attention.h"
#include "tensor_fixture.h"

static const tare_dtype dtypes[] = {TARE_BF16, TARE_F16};
enum { DTYPES = 2 };

typedef struct reference {
    tare_context *ctx;
    safetensors *tensors;
    tare_dtype dtype;
} reference;

static const tensor_info *info(const reference *r, const char *op, const char *part)
{
    char name[128];
    snprintf(name, sizeof name, "%s|%s|%s", dtype_name(r->dtype), op, part);
    const tensor_info *t = safetensors_find(r->tensors, name);
    if (!t)
        fail_msg("no %s", name);
    return t;
}

static float *values(const reference *r, const char *op, const char *part)
{
    return read_floats(r->ctx, r->tensors, info(r, op, part));
}

/* The next number of the dtype away from zero, or towards it. */
static bool is_neighbour(float a, float b, tare_dtype dtype)
{
    float low = fminf(fabsf(a), fabsf(b)), high = fmaxf(fabsf(a), fabsf(b));
    return a * b >= 0 && round_next_up(low, dtype) == high;
}

/* At most `off` values are not equal, and these by one unit, or by `slack` where that is more. */
static void check_within(const reference *r, const char *op, const float *got, size_t off,
                         double slack)
{
    const tensor_info *t = info(r, op, "y");
    float *want = read_floats(r->ctx, r->tensors, t);
    size_t n = tensor_elements(t), differing = 0;
    for (size_t i = 0; i < n; i++) {
        differing += got[i] != want[i];
        if (fabs((double)got[i] - want[i]) > slack && !is_neighbour(got[i], want[i], r->dtype))
            fail_msg("%s %s [%zu]: %g, not %g", dtype_name(r->dtype), op, i, (double)got[i],
                     (double)want[i]);
    }
    if (differing > off)
        fail_msg("%s %s: %zu of %zu differ", dtype_name(r->dtype), op, differing, n);
    mem_free(r->ctx, want);
}

static void check(const reference *r, const char *op, const float *got, size_t off)
{
    check_within(r, op, got, off, 0);
}

static void for_each_dtype(tare_context *ctx, void (*test)(const reference *r))
{
    safetensors *tensors = open_tensors(ctx, TARE_TEST_DATA "/half_reference.safetensors");
    for (size_t i = 0; i < DTYPES; i++) {
        reference r = {ctx, tensors, dtypes[i]};
        test(&r);
    }
    safetensors_close(tensors);
}

static void check_norm(const reference *r, const char *op, float base)
{
    float *x = values(r, op, "x"), *w = values(r, op, "w");
    size_t rows = info(r, op, "x")->shape[0], n = info(r, op, "x")->shape[1];
    for (size_t i = 0; i < rows; i++)
        rounded_rms_norm(x + i * n, w, n, 1e-6f, base, r->dtype, x + i * n);
    check(r, op, x, rows * n / 1000);
    mem_free(r->ctx, x);
    mem_free(r->ctx, w);
}

static void norm(const reference *r)
{
    check_norm(r, "norm", 0);
    check_norm(r, "norm from 1", 1);
}

static void check_gate(const reference *r, const char *op, double slack,
                       void (*multiply)(float *, const float *, size_t, tare_dtype))
{
    float *gate = values(r, op, "gate"), *up = values(r, op, "up");
    size_t n = tensor_elements(info(r, op, "up"));
    multiply(gate, up, n, r->dtype);
    check_within(r, op, gate, n / 100, slack);
    mem_free(r->ctx, gate);
    mem_free(r->ctx, up);
}

static void gates(const reference *r)
{
    check_gate(r, "silu", 0, rounded_silu_mul);
    /* Where 1 + tanh cancels, the last bit of either library's tanh is the result. */
    check_gate(r, "gelu", 1e-6, rounded_gelu_mul);
}

static void check_rope(const reference *r, const char *op,
                       void (*turn)(float *, const float *, const float *, size_t, tare_dtype))
{
    float *x = values(r, op, "x"), *cos = values(r, op, "cos"), *sin = values(r, op, "sin");
    const uint64_t *shape = info(r, op, "x")->shape; /* [1,heads,tokens,head_dim] */
    size_t tokens = shape[2], d = shape[3];
    for (size_t i = 0; i < shape[1] * tokens; i++)
        turn(x + i * d, cos + i % tokens * (d / 2), sin + i % tokens * (d / 2), d, r->dtype);
    check(r, op, x, 0);
    mem_free(r->ctx, x);
    mem_free(r->ctx, cos);
    mem_free(r->ctx, sin);
}

static void ropes(const reference *r)
{
    check_rope(r, "rope", rounded_rope);
    check_rope(r, "rope of neighbours", rounded_rope_neighbours);
}

static void check_attention(const reference *r, const char *op, float softcap)
{
    float *q = values(r, op, "q"), *k = values(r, op, "k"), *v = values(r, op, "v");
    const uint64_t *shape = info(r, op, "q")->shape; /* [tokens,heads,head_dim] */
    attention_shape s = {.tokens = shape[0],
                         .num_heads = shape[1],
                         .num_kv_heads = info(r, op, "k")->shape[1],
                         .head_dim = shape[2],
                         .round = r->dtype,
                         .softcap = softcap};
    size_t query = s.num_heads * s.head_dim, kv = s.num_kv_heads * s.head_dim;
    float *scratch = mem_alloc_array(r->ctx, attention_scratch_size(&s), sizeof *scratch);
    float *out = mem_alloc_array(r->ctx, s.tokens * query, sizeof *out);
    attention_forward(r->ctx, &s, q, query, k, kv, v, kv, out, query, scratch);
    check(r, op, out, s.tokens * query / 100);
    float *all[] = {q, k, v, scratch, out};
    for (size_t i = 0; i < 5; i++)
        mem_free(r->ctx, all[i]);
}

static void attention(const reference *r)
{
    check_attention(r, "attention", 0);
    check_attention(r, "softcap", 3);
}

static void test_rows(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    for_each_dtype(ctx, norm);
    for_each_dtype(ctx, gates);
    for_each_dtype(ctx, ropes);
    free_context(ctx);
}

static void test_attention(void **state)
{
    tare_cpu cpu = this_cpu(state);
    tare_context *ctx = new_context_on(cpu, 1);
    for_each_dtype(ctx, attention);
    free_context(ctx);
}

/* ---- m3 ---- */

enum { CHANNELS = 64 };

typedef struct m3_group {
    float scales[2][CHANNELS], gain[CHANNELS];
    smooth_norm norm;
    smooth_weight weights[2], *targets[2];
    smooth_group group;
} m3_group;

static void make_group(const reference *r, m3_group *g)
{
    *g = (m3_group){.norm = {.weight = g->gain, .stored = r->dtype}};
    for (size_t i = 0; i < CHANNELS; i++)
        g->scales[0][i] = g->scales[1][i] = g->gain[i] = 1;
    for (size_t k = 0; k < 2; k++) {
        const tensor_info *t = info(r, "m3", k == 0 ? "w0" : "w1");
        g->weights[k] = (smooth_weight){
            .name = t->name,
            .raw = coded_plain(r->dtype, read_raw(r->ctx, r->tensors, t), t->shape[1]),
            .n = t->shape[0],
            .k = t->shape[1],
            .col_scale = g->scales[k]};
        g->targets[k] = &g->weights[k];
    }
    g->group = (smooth_group){.name = "norm",
                              .norm = &g->norm,
                              .targets = g->targets,
                              .num_targets = 2,
                              .channels = CHANNELS};
}

static tare_status read_rows(void *user, size_t first, size_t count, float *x)
{
    memcpy(x, (const float *)user + first * CHANNELS, count * CHANNELS * sizeof *x);
    return TARE_OK;
}

/* The candidate must be the same, its scales bit by bit. */
static void check_m3(const reference *r, const m3_group *g, int bits, bool symmetric)
{
    char name[32];
    float *x = values(r, "m3", "x");
    smooth_config cfg = {.method = SMOOTH_M3,
                         .w_bit = bits,
                         .w_sym = symmetric,
                         .num = {.dtype = r->dtype, .compat = true}};
    smooth_inputs inputs = {.user = x, .read = read_rows};
    smooth_stats *stats;
    smooth_scales found;
    assert_ok(r->ctx, smooth_stats_create(r->ctx, &cfg, &g->group, &stats));
    assert_ok(r->ctx, smooth_stats_update(r->ctx, stats, x, NULL, info(r, "m3", "x")->shape[0]));
    assert_ok(r->ctx, smooth_solve(r->ctx, &cfg, &g->group, stats, &inputs, &found));
    snprintf(name, sizeof name, "candidate-%d-%s", bits, symmetric ? "sym" : "asym");
    int32_t *candidate = read_raw(r->ctx, r->tensors, info(r, "m3", name));
    assert_int_equal(found.candidate, *candidate);
    snprintf(name, sizeof name, "s-%d-%s", bits, symmetric ? "sym" : "asym");
    float *want = values(r, "m3", name);
    assert_memory_equal(found.s, want, CHANNELS * sizeof *want);
    mem_free(r->ctx, candidate);
    mem_free(r->ctx, want);
    mem_free(r->ctx, x);
    smooth_scales_free(r->ctx, &found);
    smooth_stats_free(r->ctx, stats);
}

static void m3(const reference *r)
{
    m3_group g;
    make_group(r, &g);
    for (int bits = 8; bits >= 4; bits -= 4) {
        check_m3(r, &g, bits, true);
        check_m3(r, &g, bits, false);
    }
    for (size_t k = 0; k < 2; k++)
        coded_free(r->ctx, &g.weights[k].raw);
}

static void test_m3(void **state)
{
    tare_cpu cpu = this_cpu(state);
    tare_context *ctx = new_context_on(cpu, 2);
    for_each_dtype(ctx, m3);
    free_context(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rows),
        EACH_CPU(test_attention),
        EACH_CPU(test_m3),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
