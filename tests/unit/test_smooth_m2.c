/* m2: 100 thresholds, tried one by one as spec/anti_outlier.md 1.5 writes them. */
#include "smooth_fixture.h"

enum { CANDIDATES = 100, MAX_TOKENS = 64, MAX_OUTPUTS = 96 };

static double matrix[2][3][MAX_TOKENS][MAX_OUTPUTS]; /* [trial, reference][target] */
static double attended[2][MAX_TOKENS][MAX_OUTPUTS];

static float threshold(const naive_stats *s, int i)
{
    return (s->tau - (float)s->sigma) * (float)i / 99 + (float)s->sigma;
}

static void candidate(const problem *p, const naive_stats *n, int i, float *s)
{
    for (size_t c = 0; c < p->group.channels; c++) {
        float full = sqrtf(n->theta[c]) / sqrtf(fmaxf(n->columns[c], 1e-5f));
        s[c] = n->theta[c] > threshold(n, i) ? fmaxf(full, 1e-5f) : 1;
    }
}

/* Q8a((X1 - b) / s) */
static void quantized_input(const problem *p, const naive_stats *n, const float *s, float *xq)
{
    size_t c = p->group.channels, cells = p->rows[0] * c;
    float lo = 0, hi = 0;
    for (size_t i = 0; i < cells; i++) {
        xq[i] = (p->x[i] - n->centre[i % c]) / s[i % c];
        lo = fminf(lo, xq[i]);
        hi = fmaxf(hi, xq[i]);
    }
    float d = fmaxf((hi - lo) / 255, ROUND_EPS), z = rintf(-lo / d) - 128;
    for (size_t i = 0; i < cells; i++)
        xq[i] = (fminf(fmaxf(rintf(xq[i] / d + z), -128), 127) - z) * d;
}

static void products(const problem *p, const naive_stats *n, const float *s, const float *xq,
                     size_t k)
{
    size_t channels = p->group.channels;
    const smooth_weight *w = p->targets[k];
    for (size_t t = 0; t < p->rows[0]; t++) {
        for (size_t j = 0; j < w->n; j++) {
            double y = w->bias[j], reference = w->bias[j];
            for (size_t c = 0; c < channels; c++) {
                double v = weight_at(w, j, c);
                y += xq[t * channels + c] * (v * s[c]) + v * n->centre[c];
                reference += p->x[t * channels + c] * v;
            }
            matrix[0][k][t][j] = y;
            matrix[1][k][t][j] = reference;
        }
    }
}

/* Row t of concat softmax(chunk of y_q . y_k / sqrt(D)) y_v. */
static void attend(const problem *p, int which, size_t t)
{
    size_t depth = p->targets[1]->n, values = p->targets[2]->n;
    for (size_t chunk = 0; chunk < p->targets[0]->n / depth; chunk++) {
        double scores[MAX_TOKENS], sum = 0, max = -INFINITY, *out = attended[which][t];
        for (size_t u = 0; u < p->rows[0]; u++) {
            scores[u] = 0;
            for (size_t j = 0; j < depth; j++)
                scores[u] += matrix[which][0][t][chunk * depth + j] * matrix[which][1][u][j];
            scores[u] /= sqrt((double)depth);
            max = fmax(max, scores[u]);
        }
        for (size_t u = 0; u < p->rows[0]; u++)
            sum += exp(scores[u] - max);
        for (size_t v = 0; v < values; v++) {
            out[chunk * values + v] = 0;
            for (size_t u = 0; u < p->rows[0]; u++)
                out[chunk * values + v] += exp(scores[u] - max) / sum * matrix[which][2][u][v];
        }
    }
}

static bool has_attention_loss(const problem *p)
{
    return p->group.num_targets == 3 && p->targets[0]->n % p->targets[1]->n == 0;
}

static double naive_loss(const problem *p, const naive_stats *n, const float *s)
{
    static float xq[MAX_TOKENS * MAX_CHANNELS];
    double sum = 0;
    size_t width = p->targets[0]->n;
    quantized_input(p, n, s, xq);
    if (has_attention_loss(p)) {
        width = p->targets[0]->n / p->targets[1]->n * p->targets[2]->n;
        for (size_t k = 0; k < 3; k++)
            products(p, n, s, xq, k);
        for (size_t t = 0; t < p->rows[0]; t++) {
            attend(p, 0, t);
            attend(p, 1, t);
        }
    } else {
        products(p, n, s, xq, 0);
    }
    for (size_t t = 0; t < p->rows[0]; t++) {
        for (size_t j = 0; j < width; j++) {
            double d = has_attention_loss(p) ? attended[0][t][j] - attended[1][t][j]
                                             : matrix[0][0][t][j] - matrix[1][0][t][j];
            sum += d * d;
        }
    }
    return sum / (double)(p->rows[0] * width);
}

/* Three samples, a few channels that stand out on either side. */
static void start(problem *p, const size_t *outputs, size_t targets, bool bias)
{
    start_problem(p, SMOOTH_M2, 40, 2);
    put_norm(p, false);
    for (size_t i = 0; i < targets; i++) {
        add_target(p, outputs[i], bias);
        for (size_t c = 0; c < 40; c++) /* scores of a size that softmax meets in a model */
            scale_column(p->targets[i], c, 0.2f);
    }
    add_sample(p, 24, -1, 1);
    add_sample(p, 9, -1, 1.2);
    add_sample(p, 33, -1.1, 1);
    for (size_t c = 0; c < 5; c++)
        scale_channel(p, 7 * c + 1, 3 + 5 * (float)c);
}

/* Relative, of a loss: outputs with and without quantization are 0.04 apart, and as plain FP32 sums
 * of 40 products, without the lanes of a vector, they err by up to 4e-6. */
static double loss_tolerance(const problem *p)
{
    return cpu_of(p->ctx) == TARE_CPU_SCALAR ? 1e-4 : LOSS_TIE;
}

static void check(problem *p)
{
    naive_stats n = naive(p);
    double losses[CANDIDATES];
    float s[MAX_CHANNELS], last[MAX_CHANNELS] = {0};
    size_t distinct = 0, bytes = p->group.channels * sizeof *s;
    int best = 0;
    assert_true(3 * n.sigma < n.tau);
    for (int i = 0; i < CANDIDATES; i++) {
        candidate(p, &n, i, s);
        losses[i] = naive_loss(p, &n, s);
        best = losses[i] < losses[best] ? i : best;
        distinct += memcmp(s, last, bytes) != 0;
        memcpy(last, s, bytes);
    }
    solve(p);
    assert_choice(p->found.candidate, best, losses);
    assert_near(p->found.loss, losses[p->found.candidate], loss_tolerance(p));
    assert_int_equal(p->found.evaluated, distinct);
    candidate(p, &n, p->found.candidate, s);
    for (size_t c = 0; c < p->group.channels; c++)
        assert_near(p->found.s[c], s[c], SCALE_TOLERANCE);
}

static void test_search(void **state)
{
    (void)state;
    static const struct {
        size_t outputs[4], targets;
    } cases[] = {{{31}, 1},         {{30, 30}, 2},     {{32, 16, 8}, 3},
                 {{16, 16, 16}, 3}, {{20, 16, 16}, 3}, {{20, 5, 5, 9}, 4}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (int bias = 0; bias < 2; bias++) {
            problem p;
            start(&p, cases[i].outputs, cases[i].targets, bias);
            check(&p);
            end_problem(&p);
        }
    }
}

/* A wide column of W makes s < 1, and such a channel is scaled all the same. (That this is chosen
 * takes another channel with a wider range.) */
static void test_scales_below_one(void **state)
{
    (void)state;
    problem p;
    static const size_t outputs[] = {31};
    start(&p, outputs, 1, true);
    scale_column(p.targets[0], 8, 60);
    scale_column(p.targets[0], 29, 112);
    check(&p);
    assert_true(p.found.s[8] < 1);
    end_problem(&p);
}

/* Large negative excursions move the centre; what is seen are positive ones after centring. */
static void test_strongly_negative_channels(void **state)
{
    (void)state;
    static const size_t outputs[] = {32, 16, 8};
    for (size_t targets = 1; targets <= 3; targets += 2) {
        problem p;
        start(&p, outputs, targets, true);
        for (size_t t = 0; t < p.total; t += 3) {
            p.x[t * 40 + 2] = -20;
            p.x[t * 40 + 11] = -10;
        }
        check(&p);
        end_problem(&p);
    }
}

/* Widens one channel until tau reaches `ratio` times sigma. */
static void raise_tau(problem *p, double ratio)
{
    for (naive_stats n = naive(p); n.tau < ratio * n.sigma; n = naive(p))
        scale_channel(p, 0, 1.005f);
}

/* Up to tau = 3*sigma: m1's formula, from all samples; beyond it the search. */
static void test_without_outliers(void **state)
{
    (void)state;
    problem p;
    double want[MAX_CHANNELS];
    start_problem(&p, SMOOTH_M2, 40, 2);
    put_norm(&p, false);
    add_target(&p, 31, false);
    add_target(&p, 12, false);
    add_sample(&p, 24, -1, 1);
    add_sample(&p, 9, -1.5, 1);
    raise_tau(&p, 2.9);
    naive_stats n = naive(&p);
    assert_true(3 * n.sigma >= n.tau);
    for (size_t c = 0; c < 40; c++)
        want[c] = naive_ratio(n.largest[c], n.columns[c], 0.5, 0.5);
    solve(&p);
    assert_int_equal(p.found.candidate, -1);
    assert_scales(p.found.s, want, 40);
    raise_tau(&p, 3.02);
    check(&p);
    end_problem(&p);
}

/* Zero weights lose nothing, whatever is scaled: the first set wins. */
static void test_first_of_equals(void **state)
{
    (void)state;
    problem p;
    static const size_t outputs[] = {31};
    start(&p, outputs, 1, true);
    memset(raw_floats(p.targets[0]), 0, 31 * 40 * sizeof(float));
    solve(&p);
    naive_stats n = naive(&p);
    float s[MAX_CHANNELS];
    candidate(&p, &n, 0, s);
    assert_int_equal(p.found.candidate, 0);
    assert_true(p.found.loss == 0 && p.found.evaluated > 1);
    for (size_t c = 0; c < 40; c++)
        assert_near(p.found.s[c], s[c], SCALE_TOLERANCE);
    end_problem(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_search),
        cmocka_unit_test(test_scales_below_one),
        cmocka_unit_test(test_strongly_negative_channels),
        cmocka_unit_test(test_without_outliers),
        cmocka_unit_test(test_first_of_equals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
