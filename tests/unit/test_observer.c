/* Observers: hand arithmetic, the literal Python histogram, recorded tensors of the reference. */
#include "golden_fixture.h"

#include <math.h>

#include "quantize/histogram.h"
#include "quantize/observer.h"

static const numerics exact = {false, TARE_F32, false};

static void update(tare_context *ctx, observer *o, const float *x, size_t count)
{
    assert_ok(ctx, observer_update(ctx, o, x, count));
}

static void expect_range(tare_context *ctx, observer *o, double lo, double hi)
{
    double got_lo, got_hi;
    assert_ok(ctx, observer_range(ctx, o, &got_lo, &got_hi));
    if (got_lo != lo || got_hi != hi)
        fail_msg("[%.17g, %.17g], expected [%.17g, %.17g]", got_lo, got_hi, lo, hi);
}

/* Samples [-1,2], [-3,6], [1,4]: after each call the mean of the extremes so far. */
static void test_mean_of_extremes(void **state)
{
    (void)state;
    static const float a[] = {-1, 0, 2}, b[] = {6, -3, 0, 1, 1}, c[] = {1, 4};
    tare_context *ctx = new_context(1);
    for (int compat = 0; compat < 2; compat++) {
        numerics num = {compat != 0, TARE_F32, false};
        observer *o;
        double lo, hi;
        act_params p;
        assert_ok(ctx, observer_create(ctx, OBSERVER_MEAN_EXTREMES, &num, &o));
        assert_false(observer_reached(o));
        assert_fails(ctx, observer_range(ctx, o, &lo, &hi), TARE_E_NUMERIC,
                     "no activation was observed");
        update(ctx, o, NULL, 0);
        assert_false(observer_reached(o));
        update(ctx, o, a, 3);
        assert_true(observer_reached(o));
        expect_range(ctx, o, -1, 2);
        update(ctx, o, b, 5);
        expect_range(ctx, o, -2, 4);
        update(ctx, o, c, 2);
        expect_range(ctx, o, -1, 4);
        assert_ok(ctx, observer_params(ctx, o, &p));
        assert_true(p.scale == (float)(5.0 / 255.0) && p.offset == -77); /* rne(51) - 128 */
        observer_free(ctx, o);
    }
    observer_free(ctx, NULL);
    free_context(ctx);
}

static void test_not_finite(void **state)
{
    (void)state;
    static const float bad[] = {1, 2, NAN, 3}, worse[] = {1, -INFINITY}, good[] = {1, 2};
    tare_context *ctx = new_context(2);
    for (int kind = 1; kind <= 2; kind++) {
        observer *o;
        assert_ok(ctx, observer_create(ctx, (observer_kind)kind, &exact, &o));
        assert_int_equal(observer_update(ctx, o, bad, 4), TARE_E_NUMERIC);
        assert_non_null(strstr(tare_last_error(ctx), "element 2 is NaN"));
        assert_int_equal(observer_update(ctx, o, worse, 2), TARE_E_NUMERIC);
        assert_non_null(strstr(tare_last_error(ctx), "element 1 is infinite"));
        assert_false(observer_reached(o));
        update(ctx, o, good, 2);
        assert_true(observer_reached(o));
        observer_free(ctx, o);
    }
    free_context(ctx);
}

/* PyTorch 2.13 (CPU) on x[i] = (((2654435761 i + 1) mod 2^32) / 2^8 / 2^24 - 0.4375) / 2^(3i mod
 * 5).
 */
static void test_torch_sum(void **state)
{
    (void)state;
    static const struct {
        size_t n;
        float sum;
    } cases[] = {
        {1, -0x1.cp-2f},        {4, -0x1.f55cc4p-2f},   {5, -0x1.ec7edcp-2f},
        {6, -0x1.a814aep-1f},   {7, -0x1.96c176p-1f},   {8, -0x1.b33d28p-1f},
        {9, -0x1.a305acp-1f},   {31, -0x1.12c18ep-1f},  {32, -0x1.24939cp-1f},
        {33, -0x1.9b48d2p-2f},  {63, 0x1.c0e06ap-1f},   {100, 0x1.e322fep+0f},
        {255, 0x1.720970p+2f},  {512, 0x1.70d8ccp+3f},  {513, 0x1.70c802p+3f},
        {1000, 0x1.88c892p+4f}, {2047, 0x1.8ae83ap+5f}, {2048, 0x1.899e90p+5f},
        {4099, 0x1.8918f8p+6f}, {8191, 0x1.8ccfb6p+7f},
    };
    static float x[8192];
    for (uint32_t i = 0; i < 8192; i++) {
        uint32_t u = (i * 2654435761u + 1u) >> 8;
        x[i] = (float)ldexp((double)u * 0x1p-24 - 0.4375, -(int)(i * 3 % 5));
    }
    assert_true(torch_sum(x, 0) == 0.0f);
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        if (torch_sum(x, cases[c].n) != cases[c].sum)
            fail_msg("n = %zu: %a", cases[c].n, (double)torch_sum(x, cases[c].n));
    }
}

/* Degenerate histograms by hand. One element, or all equal: the range is the point. */
static void test_histogram_points(void **state)
{
    (void)state;
    static const float zero[3] = {0, 0, 0}, two[2] = {2.5f, 2.5f}, huge[2] = {3e9f, 3e9f};
    tare_context *ctx = new_context(1);
    for (int compat = 0; compat < 2; compat++) {
        numerics num = {compat != 0, TARE_F32, false};
        const float *inputs[] = {zero, two, huge};
        for (size_t i = 0; i < 3; i++) {
            observer *o;
            act_params p;
            assert_ok(ctx, observer_create(ctx, OBSERVER_HISTOGRAM, &num, &o));
            for (int call = 0; call < 2; call++) {
                update(ctx, o, inputs[i], 2);
                expect_range(ctx, o, inputs[i][0], inputs[i][0]);
            }
            assert_ok(ctx, observer_params(ctx, o, &p));
            assert_true(p.offset == -128.0f);
            assert_true(p.scale == fmaxf((float)((double)inputs[i][0] / 255.0), 0x1p-23f));
            observer_free(ctx, o);
        }
    }
    free_context(ctx);
}

/* Where the reference divides by zero (a constant first sample) or runs out of memory (a range that
 * grows 2^100 times), compat still gives a range inside the data. */
static void check_compat_after(const float *first, size_t count)
{
    static float x[512];
    const numerics num = {true, TARE_F32, false};
    tare_context *ctx = new_context(1);
    observer *o;
    double lo, hi;
    for (int i = 0; i < 512; i++)
        x[i] = (float)(i - 256) / 64.0f;
    assert_ok(ctx, observer_create(ctx, OBSERVER_HISTOGRAM, &num, &o));
    update(ctx, o, first, count);
    update(ctx, o, x, 512);
    assert_ok(ctx, observer_range(ctx, o, &lo, &hi));
    assert_true(lo >= -4.0 && lo < -3.9 && hi > 3.9 && hi <= 4.0);
    observer_free(ctx, o);
    free_context(ctx);
}

static void test_histogram_compat_undefined(void **state)
{
    (void)state;
    static const float constant[4] = {0.25f, 0.25f, 0.25f, 0.25f}, narrow[2] = {0x1p-100f, 0},
                       subnormal[2] = {0x1p-149f, 0};
    check_compat_after(constant, 4);
    check_compat_after(narrow, 2);
    check_compat_after(subnormal, 2);
}

/* tests/python/histogram_reference.py: the specification's pseudo-code taken literally. */
static void test_histogram_reference(void **state)
{
    (void)state;
    tare_context *ctx = new_context(2);
    safetensors *s = open_tensors(ctx, TARE_TEST_DATA "/histogram_reference.safetensors");
    size_t cases = 0;
    for (size_t i = 0; i < safetensors_count(s); i++) {
        const tensor_info *t = safetensors_at(s, i);
        const char *bar = strstr(t->name, "|range");
        if (!bar)
            continue;
        double *want = read_raw(ctx, s, t);
        observer *o;
        assert_ok(ctx, observer_create(ctx, OBSERVER_HISTOGRAM, &exact, &o));
        for (size_t sample = 0; sample < t->shape[0]; sample++) {
            char name[256];
            double lo, hi;
            snprintf(name, sizeof name, "%.*s|input|%zu", (int)(bar - t->name), t->name, sample);
            const tensor_info *input = safetensors_find(s, name);
            float *x = read_floats(ctx, s, input);
            update(ctx, o, x, tensor_elements(input));
            mem_free(ctx, x);
            assert_ok(ctx, observer_range(ctx, o, &lo, &hi));
            double tolerance = 1e-12 * fmax(fabs(want[2 * sample]), fabs(want[2 * sample + 1]));
            if (fabs(lo - want[2 * sample]) > tolerance ||
                fabs(hi - want[2 * sample + 1]) > tolerance)
                fail_msg("%s: [%.17g, %.17g], expected [%.17g, %.17g]", name, lo, hi,
                         want[2 * sample], want[2 * sample + 1]);
        }
        observer_free(ctx, o);
        mem_free(ctx, want);
        cases++;
    }
    assert_int_equal(cases, 15);
    safetensors_close(s);
    free_context(ctx);
}

/* ---- act_method 4 ---- */

/* By hand: of a value spread over [0,0.5) (u - 0)^2 is 1/12 in the mean; over a whole level too;
 * over [1.5,2.5), whose level is 1, (27 - 1) / 24; over [2,3), (8 - 1) / 3. With a scale of 2,
 * levels -1 and 0: of [-4,-2) it is (x + 2)^2, 4/3; of [-1,1), x^2, 1/3. */
static void test_rounding_error(void **state)
{
    (void)state;
    static const double a[] = {1, 0}, b[] = {0, 3, 1}, c[] = {2, 0, 0, 0, 0}, d[] = {5, 1, 1, 7};
    assert_float_equal(rounding_error(a, 2, 0, 0.5, 1, -1, 1), 1.0 / 12, 1e-15);
    assert_float_equal(rounding_error(b, 3, -0.5, 1, 1, -1, 1), 3.0 / 12 + 13.0 / 12, 1e-15);
    assert_float_equal(rounding_error(c, 1, 2, 1, 1, -1, 1), 2 * 7.0 / 3, 1e-14);
    assert_float_equal(rounding_error(c, 1, -4, 2, 2, -1, 0), 2 * 4.0 / 3, 1e-14);
    assert_float_equal(rounding_error(d + 1, 2, -1, 1, 2, -1, 0), 2 * 1.0 / 3, 1e-15);
}

enum { VALUES = 20000, STEPS = 15 };

/* Of the values themselves, by the formula of spec/w8a8.md 4.1. */
static double squared_error(const float *x, double lo, double hi, bool symmetric)
{
    double sum = 0, s = (hi - lo) / 255;
    s = (double)(float)(symmetric ? fmax(-lo, hi) / 127 : s);
    double o = symmetric ? 0 : fmin(fmax(rint(-lo / s) - 128, -128), 127);
    for (size_t i = 0; i < VALUES; i++) {
        double q = fmin(fmax(rint((double)x[i] / s + o), -128), 127);
        sum += ((q - o) * s - (double)x[i]) * ((q - o) * s - (double)x[i]);
    }
    return sum;
}

/* rotation.md 6: both ends, 1.00 to 0.30 by 0.05, two rounds. *best: the error where they stop. */
static void search_ends(const float *x, double lo, double hi, bool symmetric, double *best)
{
    int at[2] = {0, 0};
    *best = INFINITY;
    for (int turn = 0; turn < 4; turn++) {
        for (int i = 0; i < STEPS; i++) {
            int a = turn % 2 == 0 || symmetric ? i : at[0], b = turn % 2 || symmetric ? i : at[1];
            double e = squared_error(x, (1 - 0.05 * a) * lo, (1 - 0.05 * b) * hi, symmetric);
            if (e < *best) {
                *best = e;
                at[0] = a;
                at[1] = b;
            }
        }
    }
}

/* Values with long tails on one side or both, in uneven samples: the range that the observer finds
 * in its histogram is no worse for the values themselves than what a search over them finds, and
 * better than their extremes. */
static void check_mse(double left, double right, bool symmetric)
{
    tare_context *ctx = new_context(2);
    const numerics num = {.dtype = TARE_F32, .act_symmetric = symmetric};
    float *x = malloc(VALUES * sizeof *x);
    observer *o;
    double lo, hi, best, all_lo = 0, all_hi = 0;
    assert_non_null(x);
    for (uint32_t i = 0; i < VALUES; i++) {
        double u = ((double)((i * 2654435761u) >> 8) + 0.5) * 0x1p-24;
        x[i] = (float)(u < 0.5 ? left * log(2 * u) : -right * log(2 * (1 - u)));
        all_lo = fmin(all_lo, (double)x[i]);
        all_hi = fmax(all_hi, (double)x[i]);
    }
    assert_ok(ctx, observer_create(ctx, OBSERVER_MSE, &num, &o));
    for (size_t i = 0, n = 100; i < VALUES; i += n, n = n * 2 < VALUES - i ? n * 2 : VALUES - i)
        update(ctx, o, x + i, n < VALUES - i ? n : VALUES - i);
    assert_ok(ctx, observer_range(ctx, o, &lo, &hi));
    search_ends(x, all_lo, all_hi, symmetric, &best);
    double found = squared_error(x, lo, hi, symmetric);
    double full = squared_error(x, all_lo, all_hi, symmetric);
    if (!(found <= best * 1.005 && found < full * 0.99))
        fail_msg("[%g, %g]: error %g, %g at best, %g of all", lo, hi, found, best, full);
    assert_true(lo >= all_lo && lo <= 0.3 * all_lo + 1e-9 && hi <= all_hi && hi >= 0.3 * all_hi);
    observer_free(ctx, o);
    free(x);
    free_context(ctx);
}

static void test_mse_range(void **state)
{
    (void)state;
    check_mse(1, 1, false);
    check_mse(0.1, 2, false);
    check_mse(3, 0.5, false);
    check_mse(1, 1, true);
    check_mse(0.3, 1, true);
}

/* A few values far out, each worth more than what its level costs the others: nothing is clipped.
 * And where there is nothing to gain: zeros, and one value. */
static void test_mse_keeps_extremes(void **state)
{
    (void)state;
    static const float far[] = {-1, 0.01f, 0.02f, 1}, zeros[] = {0, 0}, one[] = {3, 3};
    tare_context *ctx = new_context(1);
    static const struct {
        const float *x;
        size_t count;
        double lo, hi;
    } cases[] = {{far, 4, -1, 1}, {zeros, 2, 0, 0}, {one, 2, 3, 3}};
    for (size_t i = 0; i < 3; i++) {
        observer *o;
        assert_ok(ctx, observer_create(ctx, OBSERVER_MSE, &exact, &o));
        update(ctx, o, cases[i].x, cases[i].count);
        expect_range(ctx, o, cases[i].lo, cases[i].hi);
        observer_free(ctx, o);
    }
    free_context(ctx);
}

/* What the reference concluded from the recorded inputs of one linear. */
static void check_recorded(tare_context *ctx, safetensors *s, const char *module, int act_method)
{
    char name[512];
    snprintf(name, sizeof name, "result|%s.input_scale", module);
    const tensor_info *scale = safetensors_find(s, name);
    snprintf(name, sizeof name, "result|%s.input_offset", module);
    const tensor_info *offset = safetensors_find(s, name);
    observer *o = NULL;
    act_params p;
    assert_non_null(scale);
    assert_non_null(offset);
    for (size_t i = 0;; i++) {
        snprintf(name, sizeof name, "%s|input|%zu", module, i);
        const tensor_info *input = safetensors_find(s, name);
        if (!input)
            break;
        numerics num = {true, input->dtype, false};
        if (!o)
            assert_ok(ctx, observer_create(ctx, (observer_kind)act_method, &num, &o));
        float *x = read_floats(ctx, s, input);
        update(ctx, o, x, tensor_elements(input));
        assert_ok(ctx, observer_params(ctx, o, &p));
        mem_free(ctx, x);
    }
    assert_non_null(o);
    assert_true(p.scale == read_scalar(ctx, s, scale));
    assert_true(p.offset == read_scalar(ctx, s, offset));
    assert_int_equal(p.dtype, scale->dtype);
    observer_free(ctx, o);
}

static void test_golden(void **state)
{
    (void)state;
    tare_context *ctx = new_context(2);
    size_t linears = 0;
    for (size_t r = 0; r < GOLDEN_ROOTS; r++) {
        static const char prefix[] = "qwen2-act", first[] = "|input|0";
        char folder[1024], path[2048], **files, module[512];
        size_t count;
        snprintf(folder, sizeof folder, "%s/observed", golden_roots[r]);
        if (!path_is_folder(folder))
            continue;
        assert_ok(ctx, folder_list(ctx, folder, &files, &count));
        for (size_t f = 0; f < count; f++) {
            if (strncmp(files[f], prefix, sizeof prefix - 1) != 0)
                continue;
            snprintf(path, sizeof path, "%s/%s", folder, files[f]);
            safetensors *s = open_tensors(ctx, path);
            for (size_t i = 0; i < safetensors_count(s); i++) {
                snprintf(module, sizeof module, "%s", safetensors_at(s, i)->name);
                size_t length = strlen(module), cut = sizeof first - 1;
                if (length < cut || strcmp(module + length - cut, first) != 0)
                    continue;
                module[length - cut] = '\0';
                check_recorded(ctx, s, module, files[f][sizeof prefix - 1] - '0');
                linears++;
            }
            safetensors_close(s);
        }
        folder_list_free(ctx, files, count);
    }
    assert_true(linears >= 9);
    free_context(ctx);
}

/* Large inputs are counted in parallel pieces: the same for any number of threads. */
static void test_threads(void **state)
{
    (void)state;
    enum { COUNT = 700001 };
    float *x = malloc(COUNT * sizeof *x);
    assert_non_null(x);
    for (uint32_t i = 0; i < COUNT; i++) {
        double u = (double)((i * 2654435761u) >> 8) * 0x1p-24 - 0.5;
        x[i] = (float)(u * u * u * 8.0);
    }
    for (int kind = 1; kind <= 2; kind++) {
        for (int compat = 0; compat < 2; compat++) {
            double lo[3], hi[3];
            for (int threads = 1; threads <= 3; threads++) {
                tare_context *ctx = new_context(threads);
                const numerics num = {compat != 0, TARE_F32, false};
                observer *o;
                assert_ok(ctx, observer_create(ctx, (observer_kind)kind, &num, &o));
                update(ctx, o, x, COUNT / 3);
                update(ctx, o, x + COUNT / 3, COUNT - COUNT / 3);
                assert_ok(ctx, observer_range(ctx, o, &lo[threads - 1], &hi[threads - 1]));
                observer_free(ctx, o);
                free_context(ctx);
            }
            assert_true(lo[0] == lo[1] && lo[1] == lo[2] && hi[0] == hi[1] && hi[1] == hi[2]);
        }
    }
    free(x);
}

static bool refuse_nth(void *user, size_t bytes)
{
    (void)bytes;
    return (*(int *)user)-- != 0;
}

/* Every allocation fails once; an observer whose update failed is as before. */
static void test_out_of_memory(void **state)
{
    (void)state;
    enum { COUNT = 600000 };
    float *x = calloc(COUNT, sizeof *x);
    assert_non_null(x);
    x[1] = 1.0f;
    for (int kind = 1; kind <= 2; kind++) {
        tare_status status = TARE_E_MEMORY;
        for (int n = 0; status != TARE_OK; n++) {
            const numerics num = {kind == 1, TARE_F32, false};
            int countdown = n;
            tare_context *ctx;
            tare_context_options options;
            observer *o = NULL;
            assert_true(n < 20);
            init_options(&options);
            options.threads = 2;
            options.allow_allocation = refuse_nth;
            options.user = &countdown;
            assert_int_equal(tare_context_create(&ctx, &options), TARE_OK);
            status = observer_create(ctx, (observer_kind)kind, &num, &o);
            if (status == TARE_OK) {
                status = observer_update(ctx, o, x, COUNT);
                assert_true(observer_reached(o) == (status == TARE_OK));
            }
            assert_true(status == TARE_OK || status == TARE_E_MEMORY);
            observer_free(ctx, o);
            free_context(ctx);
        }
    }
    free(x);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_mean_of_extremes),
        cmocka_unit_test(test_not_finite),
        cmocka_unit_test(test_torch_sum),
        cmocka_unit_test(test_histogram_points),
        cmocka_unit_test(test_rounding_error),
        cmocka_unit_test(test_mse_range),
        cmocka_unit_test(test_mse_keeps_extremes),
        cmocka_unit_test(test_histogram_compat_undefined),
        cmocka_unit_test(test_histogram_reference),
        cmocka_unit_test(test_golden),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
