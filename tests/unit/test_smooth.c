/* What all methods share: statistics, the formulas without a search (m1, m4), errors, threads,
 * memory. */
#include "smooth_fixture.h"

#include "quantize/smooth_internal.h"

/* ---- statistics ---- */

static void test_statistics(void **state)
{
    (void)state;
    for (size_t channels = 5; channels < 300; channels += 97) {
        problem p;
        start_norm(&p, SMOOTH_M2, channels, 3);
        solve(&p);
        naive_stats n = naive(&p);
        assert_int_equal(p.stats->first_rows, 20);
        assert_int_equal(p.stats->rows, 58);
        for (size_t c = 0; c < channels; c++) {
            assert_true(p.stats->max[c] == n.max[c] && p.stats->min[c] == n.min[c]);
            assert_true(p.stats->theta[c] == n.theta[c]);
            assert_true(smooth_largest(p.stats, c) == n.largest[c]);
        }
        assert_near(p.stats->sigma, n.sigma, 1e-6);
        end_problem(&p);
    }
}

/* b is the centre of what came so far: the order of samples matters to theta. [2], then [-4]: b 2,
 * theta 0; b -1, theta max(0, -3). The other way round: b -4; b -1, theta 3. */
static void test_order_of_samples(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    smooth_config cfg = {.method = SMOOTH_M2};
    smooth_group g = {.name = "g", .channels = 1};
    for (int turned = 0; turned < 2; turned++) {
        smooth_stats *s;
        float x[2] = {turned ? -4 : 2, turned ? 2 : -4};
        assert_ok(ctx, smooth_stats_create(ctx, &cfg, &g, &s));
        assert_ok(ctx, smooth_stats_update(ctx, s, x, NULL, 1));
        assert_ok(ctx, smooth_stats_update(ctx, s, NULL, NULL, 0));
        assert_ok(ctx, smooth_stats_update(ctx, s, x + 1, NULL, 1));
        assert_true(s->theta[0] == (turned ? 3 : 0));
        assert_int_equal(s->samples, 2);
        smooth_stats_free(ctx, s);
    }
    free_context(ctx);
}

/* ---- m1, m4 ---- */

static void check_ratio(problem *p, double alpha, double beta)
{
    double want[MAX_CHANNELS];
    naive_stats n = naive(p);
    solve(p);
    for (size_t c = 0; c < p->group.channels; c++)
        want[c] = n.largest[c] == 0 ? 1 : naive_ratio(n.largest[c], n.columns[c], alpha, beta);
    assert_scales(p->found.s, want, p->group.channels);
}

static void test_m1(void **state)
{
    (void)state;
    problem p;
    start_norm(&p, SMOOTH_M1, 40, 2);
    scale_channel(&p, 5, 0);              /* dead: 1 */
    scale_channel(&p, 6, 1e-20f);         /* the floor of s */
    scale_column(p.targets[0], 7, 0);     /* the floor of W, ... */
    scale_column(p.targets[1], 7, 1e-7f); /* ... above the other target's column */
    scale_column(p.targets[0], 8, 1e-4f); /* the maximum is the second's */
    check_ratio(&p, 0.5, 0.5);
    assert_true(p.found.s[5] == 1 && p.found.s[6] == 1e-5f);
    assert_int_equal(p.found.dead, 1);
    assert_int_equal(p.found.zero_columns, 0);
    end_problem(&p);
}

/* A is the unshifted maximum, with a shift too. */
static void test_m4(void **state)
{
    (void)state;
    for (int setting = 0; setting < 4; setting++) {
        problem p;
        start_norm(&p, SMOOTH_M4, 40, 2);
        p.group.alpha = setting & 1 ? 0.5 : 0.9;
        p.group.shift = setting & 2;
        check_ratio(&p, p.group.alpha, 1 - p.group.alpha);
        naive_stats n = naive(&p);
        assert_int_equal(p.found.shift != NULL, p.group.shift);
        for (size_t c = 0; c < 40 && p.group.shift; c++)
            assert_true(p.found.shift[c] == n.centre[c]);
        end_problem(&p);
    }
}

/* ---- errors ---- */

static void expect_failure(problem *p, const char *part)
{
    assert_fails(p->ctx, try_solve(p), TARE_E_NUMERIC, part);
    assert_null(p->found.s);
}

static void test_not_finite(void **state)
{
    (void)state;
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    for (int method = SMOOTH_M1; method <= SMOOTH_M6; method++) {
        for (size_t i = 0; i < 3; i++) {
            problem p;
            smooth_scales none;
            start_norm(&p, (smooth_method)method, 40, 2);
            p.x[21 * 40 + 7] = bad[i]; /* the third sample's first row */
            assert_fails(p.ctx, try_solve(&p), TARE_E_NUMERIC, "sample 2");
            /* the statistics remember */
            assert_fails(p.ctx, smooth_solve(p.ctx, &p.cfg, &p.group, p.stats, NULL, &none),
                         TARE_E_NUMERIC, "the.source -> the.first (40 channels)");
            assert_non_null(strstr(tare_last_error(p.ctx), "sample 2"));
            end_problem(&p);

            start_norm(&p, (smooth_method)method, 40, 2);
            raw_floats(p.targets[1])[3 * 40 + 11] = bad[i];
            expect_failure(&p, "the.source -> the.first (40 channels)");
            assert_non_null(strstr(tare_last_error(p.ctx), "the.second: the weight's row 3"));
            end_problem(&p);

            start_norm(&p, (smooth_method)method, 40, 2);
            p.norm.weight[5] = bad[i];
            expect_failure(&p, "the.source -> the.first (40 channels)");
            end_problem(&p);
        }
    }
}

/* Strengths far outside of 0 to 1 can make s infinite or 0. */
static void test_scale_not_finite(void **state)
{
    (void)state;
    problem p;
    start_norm(&p, SMOOTH_M6, 40, 1);
    p.cfg.has_alpha = p.cfg.has_beta = true;
    p.cfg.alpha = 1e4;
    expect_failure(&p, "the scale of channel 0 is inf");
    end_problem(&p);
}

static void test_shapes_that_contradict(void **state)
{
    (void)state;
    for (int kind = 0; kind < 6; kind++) {
        problem p;
        start_problem(&p, SMOOTH_M4, 32, 1);
        put_source(&p, 16, 10, true, (smooth_rows){0, 4, 4, 4, 2});
        add_target(&p, 21, false);
        add_samples(&p);
        if (kind == 0)
            p.group.rows.heads = 5; /* more than the source's rows */
        if (kind == 1)
            p.group.rows.repeat = 3; /* not the channels */
        if (kind == 2)
            p.weights[0].k--;
        if (kind == 3)
            p.group.norm = &p.norm;
        if (kind == 4)
            p.cfg.method = SMOOTH_M1; /* norms alone */
        if (kind == 5)
            p.group.num_targets = 0;
        assert_fails(p.ctx, try_solve(&p), TARE_E_MODEL, "the.source -> ");
        end_problem(&p);
    }
}

static void test_no_samples(void **state)
{
    (void)state;
    problem p;
    start_norm(&p, SMOOTH_M1, 40, 1);
    p.samples = 0;
    expect_failure(&p, "no sample");
    end_problem(&p);
}

/* ---- threads, memory ---- */

static void start_any(problem *p, int method, int threads)
{
    start_norm(p, (smooth_method)method, 100, threads);
    add_target(p, 290, true);
    p->group.shift = true;
    if (method == SMOOTH_M2) { /* the attention loss */
        p->targets[0] = &p->weights[2];
        p->targets[1] = p->targets[2] = &p->weights[1];
        p->weights[2].n = 120;
    }
}

static void assert_same(const problem *a, const problem *b)
{
    size_t bytes = a->group.channels * sizeof(float);
    assert_memory_equal(a->found.s, b->found.s, bytes);
    assert_memory_equal(a->norm.weight, b->norm.weight, bytes);
    assert_memory_equal(a->norm.bias, b->norm.bias, bytes);
    assert_true(a->found.loss == b->found.loss && a->found.candidate == b->found.candidate);
    for (size_t i = 0; i < 3; i++) {
        const smooth_weight *v = &a->weights[i], *w = &b->weights[i];
        assert_memory_equal(v->col_scale, w->col_scale, bytes);
        assert_memory_equal(v->bias, w->bias, v->n * sizeof(float));
    }
}

static void test_threads_change_nothing(void **state)
{
    (void)state;
    for (int method = SMOOTH_M1; method <= SMOOTH_M6; method++) {
        problem one, three;
        start_any(&one, method, 1);
        start_any(&three, method, 3);
        solve_and_apply(&one);
        solve_and_apply(&three);
        assert_same(&one, &three);
        end_problem(&three);
        end_problem(&one);
    }
}

static tare_status solve_in(tare_context *ctx, void *user)
{
    problem p = *(const problem *)user;
    p.ctx = ctx;
    tare_status status = try_solve(&p);
    forget_solution(&p);
    return status;
}

static void test_out_of_memory(void **state)
{
    (void)state;
    for (int method = SMOOTH_M1; method <= SMOOTH_M6; method++) {
        problem p;
        start_any(&p, method, 1);
        each_allocation_fails(solve_in, &p);
        end_problem(&p);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_statistics),
        cmocka_unit_test(test_order_of_samples),
        cmocka_unit_test(test_m1),
        cmocka_unit_test(test_m4),
        cmocka_unit_test(test_not_finite),
        cmocka_unit_test(test_scale_not_finite),
        cmocka_unit_test(test_shapes_that_contradict),
        cmocka_unit_test(test_no_samples),
        cmocka_unit_test(test_threads_change_nothing),
        cmocka_unit_test(test_out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
