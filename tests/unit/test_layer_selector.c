/* Scores of inputs by hand arithmetic, the sort below them, and the pass over a model. The numpy
 * model's numbers are in tests/golden/test_layer_scores.py. */
#include <math.h>

#include "base/sort.h"
#include "pipeline_fixture.h"
#include "quantize/layer_selector.h"

/* ---- sorting ---- */

static int compare_floats(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return x < y ? -1 : x > y;
}

/* qsort is the judge. Values of all sizes, many equal, both signs. */
static void check_sort(tare_context *ctx, size_t count)
{
    float *x = malloc((count + 1) * sizeof *x), *expected = malloc((count + 1) * sizeof *x),
          *scratch = malloc((count + 1) * sizeof *x);
    uint32_t random = 12345;
    for (size_t i = 0; i < count; i++) {
        random = random * 1664525u + 1013904223u;
        float number = ldexpf((float)(random >> 16 & 0xff) - 127, (int)(random >> 24 & 0x1f) - 16);
        expected[i] = x[i] = i % 7 == 0 ? 0.5f : number;
    }
    qsort(expected, count, sizeof *expected, compare_floats);
    assert_ok(ctx, sort_floats(ctx, x, count, scratch));
    for (size_t i = 0; i < count; i++)
        assert_true(x[i] == expected[i]);
    free(x);
    free(expected);
    free(scratch);
}

static void test_sort(void **state)
{
    (void)state;
    static const size_t counts[] = {0, 1, 2, 63, 64, 65, 1000, 100003};
    for (int threads = 1; threads <= 3; threads++) {
        tare_context *ctx = new_context(threads);
        for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
            check_sort(ctx, counts[i]);
        free_context(ctx);
    }
}

static void test_sort_puts_nan_to_the_ends(void **state)
{
    (void)state;
    tare_context *ctx = new_context(2);
    float x[] = {1, NAN, -INFINITY, 3, -NAN, INFINITY, -2}, scratch[7];
    assert_ok(ctx, sort_floats(ctx, x, 7, scratch));
    assert_true(isnan(x[0]) && isnan(x[6]));
    assert_true(x[1] == -INFINITY && x[2] == -2 && x[3] == 1 && x[4] == 3 && x[5] == INFINITY);
    free_context(ctx);
}

/* ---- scores ---- */

typedef struct call {
    const float *x;
    size_t rows, cols;
} call;

static double score_of(tare_range_method method, const call *calls, size_t count)
{
    tare_context *ctx = new_context(2);
    layer_selector *s;
    double score = -1;
    assert_ok(ctx, layer_selector_create(ctx, method, &s));
    for (size_t i = 0; i < count; i++)
        assert_ok(ctx, layer_selector_update(s, calls[i].x, calls[i].rows, calls[i].cols));
    assert_ok(ctx, layer_selector_score(s, &score));
    layer_selector_free(s);
    free_context(ctx);
    return score;
}

/* 0..799 in any order: 50, 150, …, 750 are kept; quartiles [2] = 250 and [6] = 650. With a second
 * call of -3, 9, 800, 4, all of which are kept, sorted -3 4 9 50 150 250 350 450 550 650 750 800:
 * n = 12, quartiles [3] = 50 and [9] = 650. */
static void test_quantiles(void **state)
{
    (void)state;
    static float x[800];
    static const float few[] = {-3, 9, 800, 4};
    for (int i = 0; i < 800; i++)
        x[i] = (float)(i * 7 % 800);
    const call calls[] = {{x, 40, 20}, {few, 2, 2}};
    assert_true(score_of(TARE_RANGE_QUANTILE, calls, 1) == (double)(float)(2 * 750.0 / 254 / 400));
    assert_true(score_of(TARE_RANGE_QUANTILE, calls, 2) == (double)(float)(2 * 800.0 / 254 / 600));
    /* 99 values are kept as they are, of 100 only the 51st. */
    assert_true(score_of(TARE_RANGE_QUANTILE, &(call){few, 1, 4}, 1) ==
                (double)(float)(2 * 800.0 / 254 / (800 - 4)));
    assert_true(isinf(score_of(TARE_RANGE_QUANTILE, &(call){x, 10, 10}, 1)));
}

/* Columns (1,3) and (2,6): shifts 4 and 8, x - shift = -3 -6 -1 -2, sd sqrt(14/3). Ten times that
 * has ten times the spread, and a largest value of 60. */
static void test_standard_deviation(void **state)
{
    (void)state;
    static const float x[] = {1, 2, 3, 6}, wide[] = {10, 20, 30, 60}, large[] = {100, 100};
    const call calls[] = {{x, 2, 2}, {wide, 2, 2}, {large, 1, 2}};
    double sd = sqrt(14.0 / 3);
    assert_true(score_of(TARE_RANGE_STD, calls, 1) == (double)(float)(6 / sd));
    assert_true(score_of(TARE_RANGE_STD, calls, 2) == (double)(float)(60 / (10 * sd)));
    /* One row: x - 2x = -100, -100: no spread of its own, but the largest value. */
    assert_true(score_of(TARE_RANGE_STD, calls, 3) == (double)(float)(100 / (10 * sd)));
}

static void test_without_spread(void **state)
{
    (void)state;
    static const float zeros[8] = {0}, same[] = {2, 2, 2, 2};
    for (int m = TARE_RANGE_QUANTILE; m <= TARE_RANGE_STD; m++) {
        assert_true(score_of((tare_range_method)m, &(call){zeros, 2, 4}, 1) == 0);
        assert_true(isinf(score_of((tare_range_method)m, &(call){same, 2, 2}, 1)));
    }
}

static void test_not_finite(void **state)
{
    (void)state;
    static float x[400];
    tare_context *ctx = new_context(1);
    for (int m = TARE_RANGE_QUANTILE; m <= TARE_RANGE_STD; m++) {
        static const float bad[] = {NAN, -NAN, INFINITY, -INFINITY};
        for (int i = 0; i < 4; i++) {
            layer_selector *s;
            x[123] = bad[i];
            assert_ok(ctx, layer_selector_create(ctx, (tare_range_method)m, &s));
            assert_fails(ctx, layer_selector_update(s, x, 20, 20), TARE_E_NUMERIC,
                         "NaN or infinite");
            layer_selector_free(s);
        }
    }
    free_context(ctx);
}

/* ---- the pass ---- */

typedef struct found {
    size_t count;
    double scores[32];
    size_t stop_at; /* SIZE_MAX: never */
} found;

static tare_status put(void *user, const char *name, double score)
{
    found *f = user;
    (void)name;
    assert_true(f->count < 32);
    f->scores[f->count++] = score;
    return f->count > f->stop_at ? TARE_E_DATA : TARE_OK;
}

static tare_status score_model(tare_context *ctx, tare_range_method method, size_t batch_rows,
                               const char *budget, const char *scratch, found *out)
{
    tare_recipe *recipe;
    tare_quantize_options o;
    tare_quantize_options_init(&o);
    o.model = TARE_TEST_DATA "/golden/llama/model";
    o.calib = CALIB;
    o.batch_rows = batch_rows;
    o.scratch_dir = scratch;
    /* Settings of the quantization do not matter. */
    tare_status status = tare_recipe_create(ctx, &recipe);
    if (status == TARE_OK)
        status = tare_recipe_set(recipe, "anti_outlier.anti_method", "m4");
    if (status == TARE_OK)
        status = tare_recipe_set(recipe, "fallback.disable_names", "no.such.layer");
    if (status == TARE_OK && budget)
        status = tare_recipe_set(recipe, "run.max_memory", budget);
    o.recipe = recipe;
    if (status == TARE_OK)
        status = tare_score_layers(ctx, &o, method, put, out);
    tare_recipe_free(recipe);
    return status;
}

/* The smallest budget that a refusal names, in the form of a setting. */
static const char *smallest_budget(tare_range_method method, const char *scratch)
{
    static char text[32];
    unsigned mib = 0;
    tare_context *ctx = new_context(1);
    found f = {.stop_at = SIZE_MAX};
    assert_int_equal(score_model(ctx, method, 0, "cpu=1MiB", scratch, &f), TARE_E_BUDGET);
    const char *at = strstr(tare_last_error(ctx), "works here is cpu=");
    assert_non_null(at);
    assert_int_equal(sscanf(at, "works here is cpu=%uMiB", &mib), 1);
    snprintf(text, sizeof text, "cpu=%uMiB", mib);
    free_context(ctx);
    return text;
}

/* One number of threads, batch, layout is like another. */
static void test_the_same_scores(void **state)
{
    (void)state;
    const char *scratch = temporary_folder();
    for (int m = TARE_RANGE_QUANTILE; m <= TARE_RANGE_STD; m++) {
        found plain = {.stop_at = SIZE_MAX}, other = plain, tight = plain;
        tare_context *one = new_context(1), *three = new_context(3);
        assert_ok(one, score_model(one, (tare_range_method)m, 0, NULL, NULL, &plain));
        assert_ok(three, score_model(three, (tare_range_method)m, 16, NULL, NULL, &other));
        assert_ok(one,
                  score_model(one, (tare_range_method)m, 0,
                              smallest_budget((tare_range_method)m, scratch), scratch, &tight));
        assert_int_equal(plain.count, 4 * 7 + 1);
        assert_memory_equal(&plain, &other, sizeof plain);
        assert_memory_equal(&plain, &tight, sizeof plain);
        free_context(one);
        free_context(three);
    }
    remove_tree(scratch);
}

static void test_refusals(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    found f = {.stop_at = 3};
    tare_quantize_options o;
    assert_int_equal(score_model(ctx, TARE_RANGE_STD, 0, NULL, NULL, &f), TARE_E_DATA);
    assert_int_equal(f.count, 4);
    assert_fails(ctx, score_model(ctx, (tare_range_method)7, 0, NULL, NULL, &f), TARE_E_USAGE,
                 "range method 7");
    assert_fails(ctx, score_model(ctx, TARE_RANGE_STD, 0, "cpu=1MiB", NULL, &f), TARE_E_BUDGET,
                 "the smallest budget that works");
    tare_quantize_options_init(&o);
    o.model = TARE_TEST_DATA "/golden/llama/model";
    assert_fails(ctx, tare_score_layers(ctx, &o, TARE_RANGE_STD, put, &f), TARE_E_USAGE,
                 "need calibration samples");
    free_context(ctx);
}

static tare_status score_it(tare_context *ctx, void *user)
{
    found f = {.stop_at = SIZE_MAX};
    return score_model(ctx, *(tare_range_method *)user, 0, NULL, NULL, &f);
}

static void test_allocations_may_fail(void **state)
{
    (void)state;
    for (tare_range_method m = TARE_RANGE_QUANTILE; m <= TARE_RANGE_STD; m++)
        some_allocations_fail(score_it, &m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sort),
        cmocka_unit_test(test_sort_puts_nan_to_the_ends),
        cmocka_unit_test(test_quantiles),
        cmocka_unit_test(test_standard_deviation),
        cmocka_unit_test(test_without_spread),
        cmocka_unit_test(test_not_finite),
        cmocka_unit_test(test_the_same_scores),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_allocations_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
