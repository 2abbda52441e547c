/* Causal attention against its definition in double precision (spec: softmax(q k^T / sqrt(D) +
 * mask) v): grouped heads, windows, padding, odd head sizes, one token, strides; the same bytes for
 * any number of threads. */
#include "tensor/attention.h"
#include "tensor_fixture.h"

typedef struct attention_case {
    attention_shape shape;
    size_t q_stride, kv_stride;
    float *q, *k, *v, *out, *scratch;
} attention_case;

/* Rows carry `gap` elements that are NaN and must not be read. */
static attention_case case_new(const attention_shape *s, size_t gap, int threads)
{
    random_state r = {s->tokens * 131 + s->head_dim};
    attention_case c = {.shape = *s,
                        .q_stride = s->num_heads * s->head_dim + gap,
                        .kv_stride = s->num_kv_heads * s->head_dim + gap};
    float **arrays[] = {&c.q, &c.k, &c.v, &c.out};
    for (size_t a = 0; a < 4; a++) {
        bool wide = a == 0 || a == 3;
        size_t stride = wide ? c.q_stride : c.kv_stride;
        *arrays[a] = malloc(s->tokens * stride * sizeof(float));
        random_fill(&r, *arrays[a], s->tokens * stride, -2, 2);
        for (size_t i = 0; i < s->tokens; i++) {
            for (size_t j = stride - gap; j < stride; j++)
                (*arrays[a])[i * stride + j] = NAN;
        }
    }
    size_t floats = attention_scratch_size(s) * (size_t)threads;
    c.scratch = aligned_alloc(64, floats * sizeof(float));
    memset(c.scratch, 0xff, floats * sizeof(float)); /* NaN */
    return c;
}

static void case_free(attention_case *c)
{
    free(c->q), free(c->k), free(c->v), free(c->out), free(c->scratch);
}

static void run(const tare_context *ctx, attention_case *c)
{
    attention_forward(ctx, &c->shape, c->q, c->q_stride, c->k, c->kv_stride, c->v, c->kv_stride,
                      c->out, c->q_stride, c->scratch);
}

/* Row i of one head, in double. */
static void reference(const attention_case *c, size_t i, size_t head, double *out, double *p)
{
    const attention_shape *s = &c->shape;
    size_t d = s->head_dim, kv = head / (s->num_heads / s->num_kv_heads);
    double max = -INFINITY, sum = 0;
    for (size_t j = 0; j <= i; j++) {
        bool seen = (s->window == 0 || j + s->window > i) && (s->kept == 0 || j < s->kept);
        double dot = 0;
        for (size_t t = 0; t < d; t++)
            dot += (double)c->q[i * c->q_stride + head * d + t] *
                   c->k[j * c->kv_stride + kv * d + t];
        dot *= s->scale != 0 ? (double)s->scale : 1 / sqrt((double)d);
        dot = s->softcap != 0 ? s->softcap * tanh(dot / s->softcap) : dot;
        p[j] = seen ? dot : -INFINITY;
        max = fmax(max, p[j]);
    }
    for (size_t j = 0; j <= i; j++)
        sum += p[j] = exp(p[j] - max);
    for (size_t t = 0; t < d; t++) {
        out[t] = 0;
        for (size_t j = 0; j <= i; j++)
            out[t] += p[j] / sum * c->v[j * c->kv_stride + kv * d + t];
    }
}

/* |v| <= 2 and scores of a few units: 1e-5 absolute covers FP32 scores and sums. */
static void check(attention_case *c)
{
    const attention_shape *s = &c->shape;
    double *out = malloc(s->head_dim * sizeof *out), *p = malloc(s->tokens * sizeof *p);
    for (size_t i = 0; i < s->tokens; i++) {
        for (size_t head = 0; head < s->num_heads; head++) {
            reference(c, i, head, out, p);
            for (size_t t = 0; t < s->head_dim; t++) {
                float got = c->out[i * c->q_stride + head * s->head_dim + t];
                if (!(fabs(got - out[t]) <= 1e-5))
                    fail_msg("token %zu head %zu [%zu]: %g, not %g", i, head, t, (double)got,
                             out[t]);
            }
        }
        for (size_t j = s->num_heads * s->head_dim; j < c->q_stride; j++)
            assert_true(isnan(c->out[i * c->q_stride + j]));
    }
    free(out), free(p);
}

static const attention_shape shapes[] = {
    {1, 1, 1, 1, 0, TARE_F32, 0, 0, 0, 0},       {1, 4, 2, 64, 0, TARE_F32, 0, 0, 0, 0},
    {2, 3, 1, 33, 0, TARE_F32, 0, 0, 0, 0},      {70, 9, 3, 64, 0, TARE_F32, 0, 0, 0, 0},
    {165, 4, 4, 20, 0, TARE_F32, 0, 0, 0, 0},    {97, 8, 2, 7, 0, TARE_F32, 0, 0, 0, 0},
    {130, 100, 1, 5, 0, TARE_F32, 0, 0, 0, 0},   {33, 2, 1, 300, 0, TARE_F32, 0, 0, 0, 0},
    {290, 2, 2, 16, 0, TARE_F32, 0, 0, 0, 0},    {140, 4, 2, 32, 1, TARE_F32, 0, 0, 0, 0},
    {140, 4, 2, 32, 50, TARE_F32, 0, 0, 0, 0},   {300, 3, 1, 16, 129, TARE_F32, 0, 0, 0, 0},
    {64, 2, 1, 128, 64, TARE_F32, 0, 0, 0, 0},   {70, 4, 2, 20, 0, TARE_F32, 0.125f, 0, 0, 0},
    {165, 4, 2, 32, 0, TARE_F32, 0, 1.5f, 0, 0}, {140, 3, 1, 16, 50, TARE_F32, 0.5f, 3, 0, 0},
    {70, 4, 2, 20, 0, TARE_F32, 0, 0, 0, 33},    {165, 3, 1, 16, 90, TARE_F32, 0, 0, 0, 100},
    {140, 4, 2, 32, 0, TARE_F32, 0, 0, 0, 1}};

static void test_against_double(void **state)
{
    tare_cpu cpu = this_cpu(state);
    tare_context *ctx = new_context_on(cpu, 2);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        attention_case a = case_new(&shapes[i], i % 2 * 3, 2);
        run(ctx, &a);
        check(&a);
        case_free(&a);
    }
    free_context(ctx);
}

static void test_threads_change_nothing(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        attention_case one = case_new(&shapes[i], 0, 1);
        tare_context *ctx = new_context(1);
        run(ctx, &one);
        free_context(ctx);
        for (int threads = 2; threads <= 3; threads++) {
            attention_case more = case_new(&shapes[i], 0, threads);
            ctx = new_context(threads);
            run(ctx, &more);
            assert_memory_equal(one.out, more.out,
                                shapes[i].tokens * one.q_stride * sizeof *one.out);
            free_context(ctx);
            case_free(&more);
        }
        case_free(&one);
    }
}

/* A token never sees a later one: changing the last token leaves the rows before it alone. */
static void test_causal(void **state)
{
    (void)state;
    const attention_shape s = {150, 4, 2, 16, 0, TARE_F32, 0, 0, 0, 0};
    tare_context *ctx = new_context(1);
    attention_case a = case_new(&s, 0, 1), b = case_new(&s, 0, 1);
    for (size_t j = 0; j < b.kv_stride; j++) {
        b.k[149 * b.kv_stride + j] = 50;
        b.v[149 * b.kv_stride + j] = -1e6f;
    }
    run(ctx, &a);
    run(ctx, &b);
    assert_memory_equal(a.out, b.out, 149 * a.q_stride * sizeof *a.out);
    assert_memory_not_equal(a.out + 149 * a.q_stride, b.out + 149 * a.q_stride, 64);
    case_free(&a);
    case_free(&b);
    free_context(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        EACH_CPU(test_against_double),
        cmocka_unit_test(test_threads_change_nothing),
        cmocka_unit_test(test_causal),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
