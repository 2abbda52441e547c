/* Applying scales and shifts (spec/anti_outlier.md 1.4): which rows and columns, and what storage
 * asks of the scales. */
#include "smooth_fixture.h"

/* ---- before and after ---- */

typedef struct before {
    float norm[MAX_CHANNELS], norm_bias[MAX_CHANNELS];
    float *weights[MAX_TARGETS], *biases[MAX_TARGETS], *source, *source_bias;
} before;

static float *copy_of(const float *x, size_t n)
{
    float *y = malloc(n * sizeof *y);
    memcpy(y, x, n * sizeof *y);
    return y;
}

static float *rows_of(const problem *p, const smooth_weight *w)
{
    float *y = malloc(w->n * w->k * sizeof *y);
    smooth_weight_rows(p->ctx, w, 0, w->n, y);
    return y;
}

static void remember(const problem *p, before *b)
{
    *b = (before){0};
    for (size_t c = 0; p->group.norm && c < p->group.channels; c++) {
        b->norm[c] = p->norm.weight[c];
        b->norm_bias[c] = p->norm.has_bias ? p->norm.bias[c] : 0;
    }
    for (size_t i = 0; i < p->group.num_targets; i++) {
        b->weights[i] = rows_of(p, p->targets[i]);
        b->biases[i] = copy_of(p->targets[i]->bias, p->targets[i]->n);
    }
    if (p->group.source) {
        b->source = rows_of(p, &p->source);
        b->source_bias = copy_of(p->source.bias, p->source.n);
    }
}

static void forget(before *b)
{
    for (size_t i = 0; i < MAX_TARGETS; i++) {
        free(b->weights[i]);
        free(b->biases[i]);
    }
    free(b->source);
    free(b->source_bias);
}

/* y + relative * |y| of FP32 rounding, or near enough to 0. */
static void assert_close(double got, double want, double scale)
{
    if (!(fabs(got - want) <= 1e-6 * scale))
        fail_msg("%.9g is not %.9g", got, want);
}

static void check_targets(const problem *p, const before *b)
{
    for (size_t i = 0; i < p->group.num_targets; i++) {
        const smooth_weight *w = p->targets[i];
        float *now = rows_of(p, w);
        for (size_t j = 0; j < w->n; j++) {
            const float *old = b->weights[i] + j * w->k;
            double bias = b->biases[i][j], sum = fabs(bias);
            for (size_t c = 0; c < w->k; c++) {
                double shift = p->found.shift ? p->found.shift[c] : 0;
                assert_near(now[j * w->k + c], (double)old[c] * p->found.s[c], 1e-6);
                bias += old[c] * shift;
                sum += fabs(old[c] * shift);
            }
            assert_close(w->bias[j], bias, sum);
        }
        free(now);
    }
}

static void check_norm(const problem *p, const before *b)
{
    for (size_t c = 0; c < p->group.channels; c++) {
        double s = p->found.s[c], shift = p->found.shift ? p->found.shift[c] : 0;
        assert_near(p->norm.weight[c], b->norm[c] / s, 1e-6);
        assert_close(p->norm.bias[c], (b->norm_bias[c] - shift) / s,
                     (fabs(b->norm_bias[c]) + fabs(shift)) / s);
    }
}

/* Shift or not, with and without a norm's bias; of the two targets one has a bias. */
static void test_apply_behind_a_norm(void **state)
{
    (void)state;
    for (int setting = 0; setting < 4; setting++) {
        problem p;
        before b;
        start_problem(&p, SMOOTH_M4, 40, 2);
        put_norm(&p, setting & 1);
        add_target(&p, 70, true);
        add_target(&p, 30, false);
        add_samples(&p);
        p.group.shift = setting & 2;
        remember(&p, &b);
        solve_and_apply(&p);
        check_norm(&p, &b);
        check_targets(&p, &b);
        assert_int_equal(p.norm.has_bias, setting != 0);
        assert_true(p.targets[0]->has_bias);
        assert_int_equal(p.targets[1]->has_bias, p.group.shift);
        forget(&b);
        end_problem(&p);
    }
}

/* Gemma's gain is 1 + w. */
static void test_apply_behind_an_offset_norm(void **state)
{
    (void)state;
    problem p;
    before b;
    start_norm(&p, SMOOTH_M1, 40, 1);
    p.norm.offset = true;
    remember(&p, &b);
    solve_and_apply(&p);
    for (size_t c = 0; c < 40; c++) {
        double want = (1.0 + b.norm[c]) / p.found.s[c] - 1;
        assert_close(p.norm.weight[c], want, 1 + fabs(want));
    }
    check_targets(&p, &b);
    forget(&b);
    end_problem(&p);
}

/* The row of the source that makes channel c, and the channel's divisor. */
static size_t row_of(const smooth_rows *r, size_t c, size_t *divisor)
{
    size_t head = c / (r->repeat * r->width), d = c % r->width;
    *divisor = head * r->width + d;
    return r->first + head * r->stride + d;
}

static void check_source(const problem *p, const before *b)
{
    const smooth_rows *r = &p->group.rows;
    float *now = rows_of(p, &p->source);
    double *divisors = calloc(p->source.n, sizeof *divisors);
    for (size_t c = 0; c < p->group.channels; c++) {
        size_t divisor, row = row_of(r, c, &divisor);
        divisors[row] = p->found.r[divisor];
        assert_true(p->found.r[divisor] == p->found.s[c]);
    }
    for (size_t j = 0; j < p->source.n; j++) {
        double by = divisors[j] == 0 ? 1 : divisors[j]; /* rows of no channel stay */
        for (size_t i = 0; i < p->source.k; i++)
            assert_near(now[j * p->source.k + i], b->source[j * p->source.k + i] / by, 1e-6);
        assert_near(p->source.bias[j], b->source_bias[j] / by, 1e-6);
    }
    free(now);
    free(divisors);
}

/* UD and all shapes of OV: heads of 4 and KV = H, H/2, H/4, 1; DeepSeek's kv_b with nope = v and
 * nope != v; the V part of a fused QKV with 4 and 2 heads; the up half of a fused gate_up. */
static const struct {
    size_t n;
    smooth_rows rows;
} sources[] = {
    {32, {0, 1, 32, 32, 1}}, /* UD */
    {32, {0, 8, 4, 4, 1}},   /* OV, 8 of 8 */
    {16, {0, 4, 4, 4, 2}},   /* 4 of 8 */
    {8, {0, 2, 4, 4, 4}},    /* 2 of 8 */
    {4, {0, 1, 4, 4, 8}},    /* 1 of 8 */
    {32, {4, 4, 8, 4, 1}},
    {4 * 11, {6, 4, 11, 5, 1}},            /* KO */
    {4 * 4 + 2 * 2 * 4, {24, 2, 4, 4, 2}}, /* fused QKV */
    {2 * 20, {20, 1, 20, 20, 1}},          /* fused gate_up */
};
enum { SOURCES = sizeof sources / sizeof *sources };

static void start_source(problem *p, size_t i, smooth_method method, int threads)
{
    const smooth_rows *r = &sources[i].rows;
    start_problem(p, method, r->heads * r->width * r->repeat, threads);
    put_source(p, sources[i].n, 10, true, *r);
    add_target(p, 21, i % 2);
    add_samples(p);
}

/* m4: the mean over the query heads of a KV head, in both. A dead channel counts as 1. */
static void test_m4_behind_a_linear(void **state)
{
    (void)state;
    for (size_t i = 0; i < SOURCES; i++) {
        for (int setting = 0; setting < 2; setting++) {
            problem p;
            before b;
            double want[MAX_CHANNELS];
            const smooth_rows *r = &sources[i].rows;
            start_source(&p, i, SMOOTH_M4, 2);
            p.group.alpha = setting ? 0.5 : 0.9;
            p.group.shift = setting; /* never behind a linear */
            scale_channel(&p, 2, 0);
            naive_stats n = naive(&p);
            for (size_t c = 0; c < p.group.channels; c++) {
                want[c] = 0;
                for (size_t g = 0; g < r->repeat; g++) {
                    size_t other = (c / (r->repeat * r->width) * r->repeat + g) * r->width +
                                   c % r->width;
                    double s = naive_ratio(n.largest[other], n.columns[other], p.group.alpha,
                                           1 - p.group.alpha);
                    want[c] += (n.largest[other] == 0 ? 1 : s) / (double)r->repeat;
                }
            }
            remember(&p, &b);
            solve_and_apply(&p);
            assert_scales(p.found.s, want, p.group.channels);
            assert_null(p.found.shift);
            check_source(&p, &b);
            check_targets(&p, &b);
            forget(&b);
            end_problem(&p);
        }
    }
}

/* Columns, then rows of one weight, or the other way round: N1 and OV meet in v_proj. */
static void test_two_groups_meet(void **state)
{
    (void)state;
    for (int rows_first = 0; rows_first < 2; rows_first++) {
        problem norm, linear;
        start_norm(&norm, SMOOTH_M4, 12, 1);
        start_source(&linear, 3, SMOOTH_M4, 1);
        smooth_weight *v = norm.targets[1]; /* [30,12]: of its rows the first 8 are heads */
        linear.group.source = v;
        float *old = rows_of(&norm, v);
        solve_and_apply(rows_first ? &linear : &norm);
        solve_and_apply(rows_first ? &norm : &linear);
        float *now = rows_of(&norm, v);
        for (size_t j = 0; j < v->n; j++) {
            for (size_t c = 0; c < v->k; c++) {
                double r = j < 8 ? linear.found.r[j] : 1;
                assert_near(now[j * v->k + c], (double)old[j * v->k + c] * norm.found.s[c] / r,
                            1e-6);
            }
        }
        free(old);
        free(now);
        end_problem(&linear);
        end_problem(&norm);
    }
}

/* ---- storage ---- */

/* A norm stored in 16 bits: s is what undoes its rounding, so that g and W stay exact inverses. */
static void test_rounded_norm(void **state)
{
    (void)state;
    static const tare_dtype dtypes[] = {TARE_BF16, TARE_F16};
    for (size_t d = 0; d < 2; d++) {
        problem p;
        before b;
        double want[MAX_CHANNELS];
        start_norm(&p, SMOOTH_M1, 40, 1);
        p.norm.stored = dtypes[d];
        for (size_t c = 0; c < 40; c++)
            p.norm.weight[c] = c == 9 ? 0 : round_native(p.norm.weight[c], dtypes[d]);
        naive_stats n = naive(&p);
        remember(&p, &b);
        solve_and_apply(&p);
        for (size_t c = 0; c < 40; c++) {
            float s = (float)naive_ratio(n.largest[c], n.columns[c], 0.5, 0.5);
            float stored = round_native(b.norm[c] / s, dtypes[d]);
            assert_true(p.norm.weight[c] == stored);
            want[c] = c == 9 ? s : (double)b.norm[c] / stored;
        }
        assert_scales(p.found.s, want, 40);
        check_targets(&p, &b);
        assert_int_equal(p.found.overflows, 0);
        forget(&b);
        end_problem(&p);
    }
}

/* 65504 is FP16's largest: a channel whose norm weight, weight of a FLOAT target, or row of a FLOAT
 * source would pass it is left alone. */
static void test_overflow_guard(void **state)
{
    (void)state;
    problem p;
    double want[MAX_CHANNELS];
    start_norm(&p, SMOOTH_M1, 40, 1);
    p.norm.stored = TARE_F16;
    for (size_t c = 0; c < 40; c++)
        p.norm.weight[c] = 1;
    p.targets[1]->stored = TARE_F16;
    scale_channel(&p, 4, 1e-4f); /* s about 0.01: 60000 / s does not fit */
    p.norm.weight[4] = 60000;
    scale_channel(&p, 12, 1e5f); /* W * s = sqrt(A * W) does not fit */
    scale_column(p.targets[1], 12, 6e4f);
    scale_channel(&p, 20, 1e5f); /* the same in a target that is quantized: nothing is stored */
    scale_column(p.targets[0], 20, 6e4f);
    scale_column(p.targets[1], 20, 0);
    naive_stats n = naive(&p);
    assert_true(n.columns[12] * naive_ratio(n.largest[12], n.columns[12], 0.5, 0.5) > 65504);
    assert_true(n.columns[20] * naive_ratio(n.largest[20], n.columns[20], 0.5, 0.5) > 65504);
    solve(&p);
    for (size_t c = 0; c < 40; c++) {
        float s = (float)naive_ratio(n.largest[c], n.columns[c], 0.5, 0.5);
        want[c] = c == 4 || c == 12 ? 1 : 1.0 * p.norm.weight[c] / round_fp16(p.norm.weight[c] / s);
    }
    assert_scales(p.found.s, want, 40);
    assert_int_equal(p.found.overflows, 2);
    end_problem(&p);
}

/* A row that two channels share leaves both alone. */
static void test_overflow_guard_of_a_source(void **state)
{
    (void)state;
    problem p;
    start_source(&p, 2, SMOOTH_M4, 1);
    p.source.stored = TARE_F16;
    for (size_t t = 0; t < p.total; t++) {
        p.x[t * 32] *= 1e-4f;
        p.x[t * 32 + 4] *= 1e-4f;
    }
    for (size_t i = 0; i < 10; i++)
        raw_floats(&p.source)[i] = 60000;
    solve(&p);
    assert_true(p.found.r[0] == 1 && p.found.s[0] == 1 && p.found.s[4] == 1);
    assert_true(p.found.s[1] != 1 && p.found.s[8] != 1);
    assert_int_equal(p.found.overflows, 2);
    end_problem(&p);
}

static void test_source_not_finite(void **state)
{
    (void)state;
    problem p;
    start_source(&p, 1, SMOOTH_M4, 2);
    raw_floats(&p.source)[17] = NAN;
    assert_fails(p.ctx, try_solve(&p), TARE_E_NUMERIC, "the.source -> the.first (32 channels)");
    end_problem(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_apply_behind_a_norm),
        cmocka_unit_test(test_apply_behind_an_offset_norm),
        cmocka_unit_test(test_m4_behind_a_linear),
        cmocka_unit_test(test_two_groups_meet),
        cmocka_unit_test(test_rounded_norm),
        cmocka_unit_test(test_overflow_guard),
        cmocka_unit_test(test_overflow_guard_of_a_source),
        cmocka_unit_test(test_source_not_finite),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
