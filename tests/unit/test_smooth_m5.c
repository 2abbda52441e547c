/* m5: hand arithmetic for each kind of extremes, and the splits taken one by one for random ones.
 */
#include "smooth_fixture.h"

/* A group whose channels have these extremes. */
static void start(problem *p, const float *max, const float *min, size_t n)
{
    start_problem(p, SMOOTH_M5, n, 1);
    put_norm(p, false);
    add_target(p, 3, false);
    float *x = add_sample(p, 3, 0, 0);
    for (size_t c = 0; c < n; c++) {
        x[c] = max[c];
        x[n + c] = min[c];
        x[2 * n + c] = (max[c] + min[c]) / 2;
    }
}

static void check(const float *max, const float *min, const double *want, size_t n)
{
    problem p;
    start(&p, max, min, n);
    solve(&p);
    assert_scales(p.found.s, want, n);
    end_problem(&p);
}

/* ---- by hand: eleven channels, so that the quantiles are the third and the ninth ---- */

enum { N = 11 };
static const float ones[N] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
static const float minus[N] = {-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1};
static const double same[N] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};

static void test_none(void **state)
{
    (void)state;
    /* q20 1.2, q80 1.8, cut 1.8 + 0.9 = 2.7 */
    static const float spread[N] = {1, 1.1f, 1.2f, 1.3f, 1.4f, 1.5f, 1.6f, 1.7f, 1.8f, 1.9f, 2.65f};
    check(ones, minus, same, N);
    check(spread, minus, same, N);
}

/* One above, one below: each against the largest that stays. */
static void test_one(void **state)
{
    (void)state;
    static const float max[N] = {1, 1.1f, 1.2f, 1.3f, 1.4f, 1.5f, 1.6f, 1.7f, 1.8f, 1.9f, 19};
    static const float min[N] = {-4, -1, -2, -1, -1, -1, -1, -1, -1, -1, -1};
    double want[N] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0};
    want[10] = pow(10, 0.7);
    check(max, minus, want, N);
    /* All but two are -1: the cut is -1, and -2 and -4 are below. Their one split is between them:
     * min(up) = -2 is the new cut, -4 alone is below it, and -2 is the least that stays. */
    want[10] = 1;
    want[0] = pow(2, 0.7);
    check(ones, min, want, N);
    want[10] = pow(10, 0.7);
    check(max, min, want, N);
}

/* Four or fewer of 21 channels differ from 1, or -1: both quantiles are 1. */
enum { WIDE = 21 };

/* The same outliers above, mirrored below, and both. Scaled: (outlier / bound)^0.7 beyond the bound
 * of its side. */
static void check_outliers(const float *outliers, size_t count, float above, float below)
{
    float extremes[WIDE], mirrored[WIDE], rest[WIDE], mirrored_rest[WIDE];
    double up[WIDE], down[WIDE], both[WIDE];
    for (size_t i = 0; i < WIDE; i++) {
        extremes[i] = i % 5 == 1 && i / 5 < count ? outliers[i / 5] : 1;
        mirrored[i] = -extremes[i];
        rest[i] = 1;
        mirrored_rest[i] = -1;
        up[i] = extremes[i] > above ? pow(extremes[i] / above, 0.7) : 1;
        down[i] = extremes[i] > below ? pow(extremes[i] / below, 0.7) : 1;
        both[i] = fmax(up[i], down[i]);
    }
    check(extremes, mirrored_rest, up, WIDE);
    check(rest, mirrored, down, WIDE);
    check(extremes, mirrored, both, WIDE);
}

/* 20 19 | 9 8.5: gaps 1, 10, 0.5; variances of the lower parts: of 19 9 8.5 (mean 12 1/6, squares
 * 70.1667) 35.08, of 9 8.5 0.125, of 8.5 0. Scores -34.08, 9.875, 0.5: the cut is 9. 20 19 9: gaps
 * 1 and 10, variances 50 and 0: 9 again. On the other side the same, mirrored. */
static void test_several(void **state)
{
    (void)state;
    check_outliers((const float[]){8.5f, 20, 9, 19}, 4, 9, 9);
    check_outliers((const float[]){20, 9, 19}, 3, 9, 9);
}

/* 8 6 6 4: gaps 2, 0, 2; variances of the lower parts 4/3, 2, 0: the cut is 4. 5 5 5: all scores
 * are 0, the first wins, the cut is 5, and nothing is beyond. 9 5 3: gaps 4 and 2, variances 2 and
 * 0: both scores are 2, the first wins, the cut is 5; mirrored, -3 -5 -9 has gaps 2 and 4,
 * variances 0 and 2, again a tie, and -3 is the cut. */
static void test_ties(void **state)
{
    (void)state;
    check_outliers((const float[]){6, 8, 4, 6}, 4, 4, 4);
    check_outliers((const float[]){5, 5, 5}, 3, 5, 5);
    check_outliers((const float[]){5, 9, 3}, 3, 5, 3);
}

/* Bounds of 0 or of the other sign say nothing about a ratio: that side is left alone. */
static void test_bounds_that_are_no_scale(void **state)
{
    (void)state;
    static const float zeros[N] = {0};
    static const float negative[N] = {-5, -5, -5, -5, -5, -5, -5, -5, -5, -5, -2};
    static const float positive[N] = {5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 2};
    static const float one_above[N] = {7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 14};
    static const float deep[N] = {-9, -9, -9, -9, -9, -9, -9, -9, -9, -9, -27};
    static const float one_below[N] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, -3};
    double want[N] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    check(negative, deep, (double[N]){1, 1, 1, 1, 1, 1, 1, 1, 1, 1, pow(3, 0.7)}, N);
    check(positive, positive, same, N); /* 2 is below, but its bound 5 is positive */
    want[10] = pow(2, 0.7);
    check(one_above, zeros, want, N); /* mn = 0: s+ */
    check(one_above, one_below, want, N);
    check(zeros, zeros, same, N); /* every channel dead */
    check(zeros, one_below, same, N);
}

/* ---- one by one ---- */

static int descending(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return x < y ? 1 : x > y ? -1 : 0;
}

static double quantile(const float *sorted, size_t n, double q)
{
    double at = q * (double)(n - 1);
    size_t i = (size_t)at;
    double a = sorted[n - 1 - i], b = i + 1 < n ? sorted[n - 2 - i] : a;
    return a + (b - a) * (at - (double)i);
}

static double variance(const float *v, size_t n)
{
    double mean = 0, squares = 0;
    for (size_t i = 0; i < n; i++)
        mean += v[i] / (double)n;
    for (size_t i = 0; i < n; i++)
        squares += (v[i] - mean) * (v[i] - mean);
    return n > 1 ? squares / (double)(n - 1) : 0;
}

static double cut(const float *extremes, size_t n, bool above)
{
    float sorted[MAX_CHANNELS], best_cut = 0;
    double best = -INFINITY;
    memcpy(sorted, extremes, n * sizeof *sorted);
    qsort(sorted, n, sizeof *sorted, descending);
    double high = quantile(sorted, n, 0.8), low = quantile(sorted, n, 0.2);
    double limit = above ? high + 1.5 * (high - low) : low - 1.5 * (high - low);
    size_t count = 0;
    for (size_t i = 0; i < n; i++)
        count += above ? sorted[i] > limit : sorted[i] < limit;
    const float *v = above ? sorted : sorted + n - count;
    for (size_t k = 1; k < count; k++) {
        double score = fabs((double)v[k - 1] - v[k]) -
                       (above ? variance(v + k, count - k) : variance(v, k));
        if (score > best) {
            best = score;
            best_cut = above ? v[k] : v[k - 1];
        }
    }
    return count > 1 ? (double)best_cut : limit;
}

static void naive_scales(const float *max, const float *min, size_t n, double *s)
{
    double above = cut(max, n, true), below = cut(min, n, false), top = -INFINITY, low = INFINITY;
    for (size_t c = 0; c < n; c++) {
        top = max[c] > above ? top : fmax(top, max[c]);
        low = min[c] < below ? low : fmin(low, min[c]);
    }
    for (size_t c = 0; c < n; c++) {
        double up = max[c] > above && top > 0 ? pow(max[c] / top, 0.7) : 1;
        double down = min[c] < below && low < 0 ? pow(min[c] / low, 0.7) : 1;
        s[c] = low == 0 ? up : fmax(up, down);
    }
}

static void test_random(void **state)
{
    (void)state;
    random_state random = {12345};
    size_t scaled = 0;
    for (size_t n = 1; n <= 300; n += 13) {
        float max[MAX_CHANNELS], min[MAX_CHANNELS];
        double want[MAX_CHANNELS];
        for (size_t c = 0; c < n; c++) {
            /* cubes have heavy tails */
            float a = random_float(&random, 0, 2), b = random_float(&random, 0, 2);
            max[c] = a * a * a;
            min[c] = -b * b * b * b;
            if (c % 17 == 5)
                max[c] *= 8;
            if (c % 23 == 3)
                min[c] *= 5;
        }
        naive_scales(max, min, n, want);
        for (size_t c = 0; c < n; c++)
            scaled += want[c] != 1;
        check(max, min, want, n);
    }
    assert_true(scaled > 100);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_none),
        cmocka_unit_test(test_one),
        cmocka_unit_test(test_several),
        cmocka_unit_test(test_ties),
        cmocka_unit_test(test_bounds_that_are_no_scale),
        cmocka_unit_test(test_random),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
