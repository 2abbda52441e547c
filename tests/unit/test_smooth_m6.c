/* m6's search: every candidate with dequantized floats and double sums, in the reference's order.
 */
#include "smooth_fixture.h"

enum { STEPS = 21 };
static const double ERROR_TOLERANCE =
    5e-6; /* of err: the search has X W^T in FP32 and no rounding of code*step */

typedef struct quantized {
    float *x;  /* [Tn,C] */
    bool wide; /* some input lies outside 0..255 */
} quantized;

static void factors(const problem *p, const naive_stats *n, double alpha, double beta, float *s)
{
    for (size_t c = 0; c < p->group.channels; c++) {
        s[c] = powf(n->largest[c], (float)alpha) * powf(n->columns[c], (float)-beta);
        if (n->largest[c] == 0 || n->columns[c] == 0)
            s[c] = 1;
    }
}

static void quantize_input(const problem *p, const float *s, quantized *q)
{
    size_t n = p->group.channels;
    float lo = INFINITY, hi = -INFINITY;
    for (size_t i = 0; i < p->total * n; i++) {
        q->x[i] = p->x[i] / s[i % n];
        lo = fminf(lo, q->x[i]);
        hi = fmaxf(hi, q->x[i]);
    }
    float d = fmaxf((hi - lo) / 255, ROUND_EPS), z = rintf(-lo / d) - 128;
    for (size_t i = 0; i < p->total * n; i++) {
        float code = rintf(q->x[i] / d + z);
        q->wide |= code < -128 || code > 127;
        q->x[i] = (code - z) * d;
    }
}

static void quantize_row(const smooth_weight *w, size_t row, const float *s, float *out)
{
    float max = 0;
    for (size_t c = 0; c < w->k; c++) {
        out[c] = weight_at(w, row, c) * s[c];
        max = fmaxf(max, fabsf(out[c]));
    }
    for (size_t c = 0; c < w->k && max > 0; c++)
        out[c] = fminf(fmaxf(rintf(out[c] / (max / 127)), -127), 127) * (max / 127);
}

static double naive_error(const problem *p, const naive_stats *n, double alpha, double beta,
                          bool *wide)
{
    size_t channels = p->group.channels;
    float s[MAX_CHANNELS], row[MAX_CHANNELS];
    double squares = 0, reference_squares = 0;
    quantized q = {.x = malloc(p->total * channels * sizeof *q.x)};
    factors(p, n, alpha, beta, s);
    quantize_input(p, s, &q);
    for (size_t i = 0; i < p->group.num_targets; i++) {
        for (size_t j = 0; j < p->targets[i]->n; j++) {
            quantize_row(p->targets[i], j, s, row);
            for (size_t t = 0; t < p->total; t++) {
                double y = 0, reference = 0;
                for (size_t c = 0; c < channels; c++) {
                    y += (double)q.x[t * channels + c] * row[c];
                    reference += (double)p->x[t * channels + c] * weight_at(p->targets[i], j, c);
                }
                squares += (y - reference) * (y - reference);
                reference_squares += reference * reference;
            }
        }
    }
    free(q.x);
    *wide |= q.wide;
    return sqrt(squares / reference_squares);
}

typedef struct search {
    double first[STEPS], second[STEPS]; /* errors of the two phases */
    int alpha, beta;                    /* in 20ths */
    bool wide;
} search;

static void naive_search(const problem *p, search *out)
{
    naive_stats n = naive(p);
    *out = (search){0};
    for (int i = 0; i < STEPS; i++) {
        out->first[i] = naive_error(p, &n, i / 20.0, 1 - i / 20.0, &out->wide);
        if (i == 0 || out->first[i] <= out->first[out->alpha])
            out->alpha = i;
    }
    out->beta = 20 - out->alpha;
    double best = out->first[out->alpha];
    for (int i = 0; i < STEPS; i++) {
        out->second[i] = naive_error(p, &n, out->alpha / 20.0, i / 20.0, &out->wide);
        if (out->second[i] <= best) {
            best = out->second[i];
            out->beta = i;
        }
    }
}

static void assert_found(const problem *p, const search *want)
{
    int alpha = (int)lround(p->found.alpha * 20), beta = (int)lround(p->found.beta * 20);
    assert_choice(alpha, want->alpha, want->first);
    if (alpha != want->alpha)
        return; /* a tie of the first phase: the second went elsewhere */
    assert_choice(beta, want->beta, want->second);
    assert_near(p->found.loss, want->second[beta], ERROR_TOLERANCE);
}

/* With and without early stop, in one tile and in several: the same choice, to the last bit. */
static search check(problem *p)
{
    search want;
    double loss = 0, alpha = 0, beta = 0;
    naive_search(p, &want);
    for (int way = 0; way < 4; way++) {
        p->cfg.no_early_stop = way & 1;
        p->cfg.tile_bytes = way & 2 ? 1 : 0;
        solve(p);
        assert_found(p, &want);
        if (way > 0)
            assert_true(p->found.loss == loss && p->found.alpha == alpha && p->found.beta == beta);
        loss = p->found.loss;
        alpha = p->found.alpha;
        beta = p->found.beta;
    }
    p->cfg.no_early_stop = false;
    p->cfg.tile_bytes = 0;
    return want;
}

/* Samples of 30, 1 and `more` tokens. */
static void start(problem *p, size_t channels, const size_t *outputs, size_t targets, size_t more)
{
    start_problem(p, SMOOTH_M6, channels, 2);
    put_norm(p, false);
    for (size_t i = 0; i < targets; i++)
        add_target(p, outputs[i], false);
    add_sample(p, 30, -1, 1);
    add_sample(p, 1, -1, 1);
    add_sample(p, more, -1.5, 1);
    for (size_t c = 0; c < channels; c += 6)
        scale_channel(p, c, 2 + 3 * (float)(c % 5));
}

static void assert_ratio(const problem *p)
{
    double want[MAX_CHANNELS];
    naive_stats n = naive(p);
    for (size_t c = 0; c < p->group.channels; c++) {
        want[c] = naive_ratio(n.largest[c], n.columns[c], p->found.alpha, p->found.beta);
        if (n.largest[c] == 0)
            want[c] = 1;
    }
    assert_scales(p->found.s, want, p->group.channels);
}

/* The second and third case have more than one block of rows of weights, and of inputs. */
static void test_search(void **state)
{
    (void)state;
    static const struct {
        size_t channels, outputs[3], targets, more;
    } cases[] = {{24, {40}, 1, 20}, {16, {300, 20}, 2, 12}, {12, {30, 9, 9}, 3, 290}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        problem p;
        start(&p, cases[i].channels, cases[i].outputs, cases[i].targets, cases[i].more);
        check(&p);
        assert_ratio(&p);
        end_problem(&p);
    }
}

/* Either of alpha and beta alone is no choice: both are searched. */
static void test_one_given(void **state)
{
    (void)state;
    problem p;
    static const size_t outputs[] = {40};
    start(&p, 24, outputs, 1, 20);
    check(&p);
    double alpha = p.found.alpha, beta = p.found.beta;
    p.cfg.alpha = p.cfg.beta = 0.15;
    for (int which = 0; which < 2; which++) {
        p.cfg.has_alpha = which == 0;
        p.cfg.has_beta = which == 1;
        assert_int_equal(smooth_needs(&p.cfg), SMOOTH_ALL_SAMPLES);
        solve(&p);
        assert_true(p.found.alpha == alpha && p.found.beta == beta);
    }
    end_problem(&p);
}

static void test_given(void **state)
{
    (void)state;
    static const double pairs[][2] = {{0.5, 0.5}, {0.85, 0.1}, {1, 0}, {0, 1}, {0, 0}, {1, 1}};
    static const size_t outputs[] = {40};
    problem p;
    start(&p, 24, outputs, 1, 20);
    p.cfg.has_alpha = p.cfg.has_beta = true;
    assert_int_equal(smooth_needs(&p.cfg), SMOOTH_NO_INPUT);
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        p.cfg.alpha = pairs[i][0];
        p.cfg.beta = pairs[i][1];
        solve(&p);
        assert_true(p.found.alpha == p.cfg.alpha && p.found.beta == p.cfg.beta);
        assert_int_equal(p.found.evaluated, 0);
        assert_ratio(&p);
    }
    end_problem(&p);
}

/* Every maximum is 1, so every candidate is s = 1 and has the same error: the last wins, twice. */
static void test_exact_ties(void **state)
{
    (void)state;
    static const size_t outputs[] = {40};
    problem p;
    start_problem(&p, SMOOTH_M6, 8, 2);
    put_norm(&p, false);
    add_target(&p, outputs[0], false);
    float *x = add_sample(&p, 20, -1, 1);
    for (size_t c = 0; c < 8; c++) {
        x[c * 9] = 1;
        raw_floats(p.targets[0])[c * 9] = -1;
    }
    check(&p);
    assert_true(p.found.alpha == 1 && p.found.beta == 1);
    end_problem(&p);
}

/* Zero rows, zero columns and dead channels neither poison the error nor force an exponent. */
static void test_zeros(void **state)
{
    (void)state;
    for (int kind = 0; kind < 4; kind++) {
        static const size_t outputs[] = {40, 7};
        problem p;
        start(&p, 24, outputs, 2, 20);
        if (kind == 0 || kind == 3)
            memset(raw_floats(p.targets[0]) + 24 * 5, 0, 24 * sizeof(float));
        if (kind == 1 || kind == 3) {
            scale_column(p.targets[0], 11, 0);
            scale_column(p.targets[1], 11, 0);
        }
        if (kind == 2 || kind == 3)
            scale_channel(&p, 4, 0);
        search want = check(&p);
        assert_true(want.alpha > 0);
        assert_int_equal(p.found.zero_rows, kind == 0 || kind == 3);
        assert_int_equal(p.found.zero_columns, kind == 1 || kind == 3);
        assert_int_equal(p.found.dead, kind == 2 || kind == 3);
        assert_ratio(&p);
        end_problem(&p);
    }
}

/* 256 by rounding: with lo = -1.5 steps the offset rounds up to 2, and hi = 253.5 steps rounds up
 * too. Such a code does not fit the exact integers. All maxima are 1, and so are all candidates. */
static void test_wide_codes(void **state)
{
    (void)state;
    problem p;
    float lo = -1.5f / 253.5f;
    for (float d = (1 - lo) / 255; rintf(1 / d + (rintf(-lo / d) - 128)) <= 127; d = (1 - lo) / 255)
        lo = nextafterf(lo, -1);
    start_problem(&p, SMOOTH_M6, 8, 2);
    put_norm(&p, false);
    add_target(&p, 20, false);
    float *x = add_sample(&p, 20, lo, 1);
    x[1] = lo;
    for (size_t c = 0; c < 8; c++) {
        x[c * 9] = 1;
        raw_floats(p.targets[0])[c * 9] = 1;
    }
    search want = check(&p);
    assert_true(want.wide);
    end_problem(&p);
}

/* OV with grouped heads: maxima over the heads of a KV head first, then the ratio. */
static void test_grouped_heads(void **state)
{
    (void)state;
    enum { KV = 2, GROUP = 3, WIDTH = 4, C = KV * GROUP * WIDTH };
    problem p;
    double r[KV * WIDTH], s[C];
    start_problem(&p, SMOOTH_M6, C, 2);
    put_source(&p, KV * WIDTH, 10, true, (smooth_rows){0, KV, WIDTH, WIDTH, GROUP});
    add_target(&p, 30, false);
    add_sample(&p, 40, -1, 1);
    scale_channel(&p, 5, 7);
    for (size_t i = 0; i < GROUP; i++)
        scale_channel(&p, GROUP * WIDTH + i * WIDTH + 1, 0); /* dead in all heads of the second */
    scale_channel(&p, 2, 0);                                 /* dead in one */
    naive_stats n = naive(&p);
    check(&p);
    for (size_t i = 0; i < KV * WIDTH; i++) {
        double a = 0, w = 0;
        for (size_t g = 0; g < GROUP; g++) {
            size_t c = (i / WIDTH * GROUP + g) * WIDTH + i % WIDTH;
            a = fmax(a, n.largest[c]);
            w = fmax(w, n.columns[c]);
        }
        r[i] = a == 0 ? 1 : naive_ratio(a, w, p.found.alpha, p.found.beta);
        for (size_t g = 0; g < GROUP; g++)
            s[(i / WIDTH * GROUP + g) * WIDTH + i % WIDTH] = r[i];
    }
    assert_scales(p.found.r, r, KV * WIDTH);
    assert_scales(p.found.s, s, C);
    end_problem(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_search),        cmocka_unit_test(test_one_given),
        cmocka_unit_test(test_given),         cmocka_unit_test(test_exact_ties),
        cmocka_unit_test(test_zeros),         cmocka_unit_test(test_wide_codes),
        cmocka_unit_test(test_grouped_heads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
