/* GPTQ against its paper's algorithm in FP64 (tests/data/make_gptq_reference.py), however its
 * inputs come. */
#include "quantize/gptq.h"

#include "golden_fixture.h"
#include "tensor_fixture.h"

enum {
    ROWS = 300,
    N = 6,
    K = 530
}; /* a chunk of rows and a bit, two blocks of columns and a bit */

static const numerics exact_f32 = {false, TARE_F32, false};

typedef struct reference {
    int8_t x[ROWS * K], q8[N * K], q4[N * K];
    float w[N * K], scales8[N], scales4[N];
} reference;

static void take(tare_context *ctx, safetensors *tensors, const char *name, void *to, size_t size)
{
    const tensor_info *t = safetensors_find(tensors, name);
    assert_non_null(t);
    assert_int_equal(t->bytes, size);
    assert_ok(ctx, safetensors_read(tensors, t, 0, to, size));
}

static const reference *read_reference(void)
{
    static reference r;
    tare_context *ctx = new_context(1);
    safetensors *tensors = open_tensors(ctx, TARE_TEST_DATA "/gptq_reference.safetensors");
    take(ctx, tensors, "x", r.x, sizeof r.x);
    take(ctx, tensors, "w", r.w, sizeof r.w);
    take(ctx, tensors, "q8", r.q8, sizeof r.q8);
    take(ctx, tensors, "q4", r.q4, sizeof r.q4);
    take(ctx, tensors, "scales8", r.scales8, sizeof r.scales8);
    take(ctx, tensors, "scales4", r.scales4, sizeof r.scales4);
    safetensors_close(tensors);
    free_context(ctx);
    return &r;
}

static void halve(void *user, size_t row, float *x, size_t n)
{
    (void)user;
    (void)row;
    for (size_t i = 0; i < n; i++)
        x[i] /= 2;
}

/* Rows come in calls of `batch`, each number twice as large as it is seen. */
static quantized_weight round_weights(tare_context *ctx, const reference *r, weight_method method,
                                      size_t batch)
{
    static float x[ROWS * K];
    gptq *g;
    quantized_weight q;
    weight_rows rows = {.stored = coded_plain(TARE_F32, r->w, K), .count = N, .method = method};
    for (size_t i = 0; i < ROWS * K; i++)
        x[i] = 2 * (float)r->x[i];
    assert_ok(ctx, weight_quantize_rows(ctx, &exact_f32, &rows, false, &q));
    assert_ok(ctx, gptq_create(ctx, K, &g));
    for (size_t row = 0; row < ROWS; row += batch)
        gptq_add(ctx, g, x + row * K, size_min(batch, ROWS - row), halve, NULL);
    assert_ok(ctx, gptq_factor(ctx, g));
    assert_ok(ctx, gptq_round(ctx, g, &rows, &q));
    gptq_free(ctx, g);
    return q;
}

static void check(const quantized_weight *q, const int8_t *want, const float *scales)
{
    size_t differ = 0;
    for (size_t i = 0; i < N * K; i++)
        differ += q->q[i] != want[i];
    assert_int_equal(differ, 0);
    assert_memory_equal(q->scales, scales, N * sizeof *scales);
    for (size_t row = 0; row < N; row++) {
        int64_t sum = 0;
        for (size_t i = 0; i < K; i++)
            sum += want[row * K + i];
        assert_int_equal(q->row_sums[row], sum);
    }
}

static void test_reference(void **state)
{
    tare_cpu cpu = this_cpu(state);
    const reference *r = read_reference();
    for (int threads = 1; threads <= 3; threads++) {
        tare_context *ctx = new_context_on(cpu, threads);
        for (size_t batch = 1; batch <= ROWS; batch += 99) {
            quantized_weight q8 = round_weights(ctx, r, WEIGHT_INT8, batch);
            check(&q8, r->q8, r->scales8);
            weight_quantized_free(ctx, &q8);
        }
        quantized_weight q4 = round_weights(ctx, r, WEIGHT_INT4_MINMAX, ROWS);
        check(&q4, r->q4, r->scales4);
        weight_quantized_free(ctx, &q4);
        free_context(ctx);
    }
}

/* Two inputs that are always the same: what the first weight lacks, the second one gets. Scale 1:
 * by hand, 0.4 -> 0, then 0.4 + 0.4 * H01 / H11 = 0.4 + 0.4 / 1.0067 = 0.797 -> 1. Without inputs,
 * or with those of a dead column, weights are rounded alone. */
static void test_by_hand(void **state)
{
    (void)state;
    static const float w[3] = {0.4f, 0.4f, 127.0f}, alike[3] = {5, 5, 0}, dead[3] = {0, 5, 0};
    static const struct {
        const float *x;
        int8_t want;
    } cases[] = {{alike, 1}, {dead, 0}, {NULL, 0}};
    tare_context *ctx = new_context(1);
    weight_rows rows = {.stored = coded_plain(TARE_F32, w, 3), .count = 1};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        gptq *g;
        quantized_weight q;
        assert_ok(ctx, weight_quantize_rows(ctx, &exact_f32, &rows, false, &q));
        assert_ok(ctx, gptq_create(ctx, 3, &g));
        if (cases[i].x)
            gptq_add(ctx, g, cases[i].x, 1, NULL, NULL);
        assert_ok(ctx, gptq_factor(ctx, g));
        assert_ok(ctx, gptq_round(ctx, g, &rows, &q));
        assert_int_equal(q.q[0], 0);
        assert_int_equal(q.q[1], cases[i].want);
        assert_int_equal(q.q[2], 127);
        assert_int_equal(q.row_sums[0], 127 + cases[i].want);
        weight_quantized_free(ctx, &q);
        gptq_free(ctx, g);
    }
    free_context(ctx);
}

static void test_not_finite(void **state)
{
    (void)state;
    static const float x[2] = {1, 1e30f};
    tare_context *ctx = new_context(1);
    gptq *g;
    assert_ok(ctx, gptq_create(ctx, 2, &g));
    gptq_add(ctx, g, x, 1, NULL, NULL);
    assert_int_equal(gptq_factor(ctx, g), TARE_E_NUMERIC);
    gptq_free(ctx, g);
    free_context(ctx);
}

/* What the plan counts is what is taken. */
static void test_bytes(void **state)
{
    (void)state;
    tare_context *ctx = new_context(2);
    gptq *g;
    size_t before = tare_memory_used(ctx);
    assert_ok(ctx, gptq_create(ctx, 1000, &g));
    size_t taken = tare_memory_used(ctx) - before;
    assert_true(taken <= gptq_bytes(1000) && taken > gptq_bytes(1000) / 100 * 99);
    gptq_free(ctx, g);
    free_context(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {EACH_CPU(test_reference), cmocka_unit_test(test_by_hand),
                                       cmocka_unit_test(test_not_finite),
                                       cmocka_unit_test(test_bytes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
