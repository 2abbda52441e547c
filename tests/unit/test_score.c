/* Scores of linears: hand arithmetic and PyTorch's numbers. */
#include "golden_fixture.h"

#include <math.h>

#include "quantize/score.h"

static const numerics exact = {false, TARE_F32, false};

static double score_once(const float *x, size_t rows, size_t cols)
{
    tare_context *ctx = new_context(2);
    score_state s;
    float scratch[64];
    assert_true(2 * cols <= 64);
    score_init(&s);
    assert_ok(ctx, score_update(ctx, &exact, &s, x, rows, cols, scratch));
    free_context(ctx);
    return score_value(&exact, &s);
}

/* Columns (1,3) and (2,6): shifts 4 and 8; x - shift = -3 -6 -1 -2, mean -3, sum of squares 14, sd
 * = sqrt(14/3). */
static void test_by_hand(void **state)
{
    (void)state;
    static const float x[2][2] = {{1, 2}, {3, 6}};
    assert_true(fabs(score_once(&x[0][0], 2, 2) - 6.0 / sqrt(14.0 / 3.0)) < 1e-12);
}

static void test_no_spread(void **state)
{
    (void)state;
    static const float zero[6] = {0}, constant[6] = {0.1f, 0.1f, 0.1f, 0.1f, 0.1f, 0.1f};
    assert_true(score_once(zero, 2, 3) == 0.0);
    assert_true(isinf(score_once(constant, 3, 2)));
    assert_true(isinf(score_once(constant, 1, 1)));
    score_state s;
    score_init(&s);
    assert_true(score_value(&exact, &s) == 0.0); /* never reached */
}

/* A constant stays without spread over several column blocks and threads. */
static void test_no_spread_wide(void **state)
{
    (void)state;
    enum { COLS = 1000, ROWS = 3 };
    static float x[ROWS * COLS], scratch[2 * COLS];
    tare_context *ctx = new_context(3);
    score_state s;
    for (size_t i = 0; i < ROWS * COLS; i++)
        x[i] = 0.3f;
    score_init(&s);
    assert_ok(ctx, score_update(ctx, &exact, &s, x, ROWS, COLS, scratch));
    assert_true(isinf(score_value(&exact, &s)));
    x[2500] = NAN;
    assert_int_equal(score_update(ctx, &exact, &s, x, ROWS, COLS, scratch), TARE_E_NUMERIC);
    free_context(ctx);
}

/* PyTorch 2.13 on x[call][i] = ((7919 i + 131 call) mod 1000 - 500) / 64 * (1 + call), [8,300], two
 * calls: shift = x.max(0) + x.min(0), sd = (x - shift).std(), in the dtype (first row: float64). */
static void test_torch(void **state)
{
    (void)state;
    enum { ROWS = 8, COLS = 300 };
    static const struct {
        numerics num;
        double score, tolerance;
    } cases[] = {
        {{false, TARE_F32, false}, 0x1.baaf0d0983854p+0, 1e-12},
        {{true, TARE_F32, false}, 0x1.baaf0cp+0, 0.0},
        {{true, TARE_F16, false}, 0x1.ba8p+0, 0.0},
        {{true, TARE_BF16, false}, 0x1.bap+0, 0.0},
    };
    static float x[ROWS * COLS], scratch[2 * COLS];
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        tare_context *ctx = new_context(1 + (int)c);
        const numerics *num = &cases[c].num;
        score_state s;
        score_init(&s);
        for (int call = 0; call < 2; call++) {
            for (int i = 0; i < ROWS * COLS; i++) {
                int v = (i * 7919 + call * 131) % 1000 - 500;
                x[i] = round_to_dtype((double)v / 64.0 * (1 + call), num->dtype);
            }
            assert_ok(ctx, score_update(ctx, num, &s, x, ROWS, COLS, scratch));
        }
        assert_int_equal(s.calls, 2);
        if (fabs(score_value(num, &s) - cases[c].score) > cases[c].tolerance)
            fail_msg("case %zu: %a", c, score_value(num, &s));
        free_context(ctx);
    }
}

/* Extremes run over calls, the spread is the largest: 6 from the first call, sd from the second,
 * whose x - shift = 5 -5 (sd sqrt(50)). */
static void test_over_calls(void **state)
{
    (void)state;
    static const float first[4] = {1, 2, 3, 6}, second[2] = {-5, 5};
    tare_context *ctx = new_context(1);
    float scratch[4];
    score_state s;
    score_init(&s);
    assert_ok(ctx, score_update(ctx, &exact, &s, first, 2, 2, scratch));
    assert_ok(ctx, score_update(ctx, &exact, &s, second, 1, 2, scratch));
    assert_ok(ctx, score_update(ctx, &exact, &s, second, 0, 2, scratch));
    assert_int_equal(s.calls, 2);
    assert_true(fabs(score_value(&exact, &s) - 6.0 / sqrt(50.0)) < 1e-12);
    free_context(ctx);
}

/* Scaled later or before: the same score, but for the roundings of the scaled elements. By hand:
 * the columns of the first test, shifted by 1 and 2 and divided by 2 and 4, are (0,1) and (0,1). */
static void test_scaled_later(void **state)
{
    (void)state;
    enum { ROWS = 7, COLS = 300 };
    static float x[ROWS * COLS], y[ROWS * COLS], scratch[2 * COLS], scale[COLS], shift[COLS];
    for (int threads = 1; threads <= 3; threads++) {
        tare_context *ctx = new_context(threads);
        score_state before, later;
        score_init(&before);
        score_init(&later);
        for (int call = 0; call < 3; call++) {
            score_columns c;
            for (int i = 0; i < ROWS * COLS; i++) {
                x[i] = (float)((i * 7919 + call * 131) % 1000 - 500) / 64.0f * (1.0f + i % COLS);
                scale[i % COLS] = 0.3f + (float)(i % COLS) * 0.7f;
                shift[i % COLS] = (float)(i % 5) - 2;
                y[i] = (x[i] - shift[i % COLS]) / scale[i % COLS];
            }
            assert_ok(ctx, score_update(ctx, &exact, &before, y, ROWS, COLS, scratch));
            assert_ok(ctx, score_columns_create(ctx, x, ROWS, COLS, &c));
            score_update_scaled(&later, &c, scale, shift);
            score_columns_free(ctx, &c);
        }
        assert_true(before.min == later.min && before.max == later.max);
        assert_true(fabs(before.std / later.std - 1) < 1e-7);
        static const float small[2][2] = {{1, 2}, {3, 6}},
                           constant[6] = {0.1f, 0.1f, 0.1f, 0.1f, 0.1f, 0.1f};
        static const float by[2] = {2, 4}, from[2] = {1, 2};
        score_columns c;
        score_init(&later);
        assert_ok(ctx, score_columns_create(ctx, &small[0][0], 2, 2, &c));
        score_update_scaled(&later, &c, by, from);
        score_columns_free(ctx, &c);
        assert_true(later.min == 0 && later.max == 1 && later.std == sqrt(1.0 / 3.0));
        score_init(&later);
        assert_ok(ctx, score_columns_create(ctx, constant, 3, 2, &c));
        score_update_scaled(&later, &c, NULL, NULL);
        score_columns_free(ctx, &c);
        assert_true(isinf(score_value(&exact, &later)));
        x[COLS + 3] = NAN;
        assert_int_equal(score_columns_create(ctx, x, ROWS, COLS, &c), TARE_E_NUMERIC);
        free_context(ctx);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_by_hand),        cmocka_unit_test(test_no_spread),
        cmocka_unit_test(test_no_spread_wide), cmocka_unit_test(test_torch),
        cmocka_unit_test(test_over_calls),     cmocka_unit_test(test_scaled_later),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
