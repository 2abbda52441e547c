/* m3: 20 candidates, each judged by rounding all weights and multiplying all inputs. */
#include "smooth_fixture.h"

enum { CANDIDATES = 20 };
static const double FORM_TOLERANCE = 5e-6; /* of the loss, between the arrangements */

static void candidate(const problem *p, int i, float *s)
{
    size_t n = p->group.channels;
    float max = 0, min = INFINITY;
    for (size_t c = 0; c < n; c++) {
        double mu = 0;
        for (size_t t = 0; t < p->rows[0]; t++)
            mu += fabsf(p->x[t * n + c]);
        s[c] = fmaxf(powf((float)(mu / (double)p->rows[0]), (float)(i / 20.0)), 1e-4f);
        max = fmaxf(max, s[c]);
        min = fminf(min, s[c]);
    }
    for (size_t c = 0; c < n; c++)
        s[c] /= sqrtf(max * min);
}

/* row <- Qw(row), the whole row at once */
static void round_row(const smooth_config *cfg, float *row, size_t n)
{
    float lo = 0, hi = 0, half = (float)(1 << (cfg->w_bit - 1)), d, z = 0;
    for (size_t i = 0; i < n; i++) {
        lo = fminf(lo, row[i]);
        hi = fmaxf(hi, row[i]);
    }
    if (cfg->w_sym) {
        d = fmaxf(fmaxf(-lo, hi) / (half - 1), ROUND_EPS);
    } else {
        d = fmaxf((hi - lo) / (2 * half - 1), ROUND_EPS);
        z = rintf(-lo / d) - half;
    }
    for (size_t i = 0; i < n; i++)
        row[i] = (fminf(fmaxf(rintf(row[i] / d + z), -half), half - 1) - z) * d;
}

static double target_loss(const problem *p, const smooth_weight *w, const float *s)
{
    float row[MAX_CHANNELS];
    size_t n = p->group.channels;
    double sum = 0;
    for (size_t j = 0; j < w->n; j++) {
        for (size_t c = 0; c < n; c++)
            row[c] = weight_at(w, j, c) * s[c];
        round_row(&p->cfg, row, n);
        for (size_t t = 0; t < p->rows[0]; t++) {
            double y = 0, reference = 0;
            for (size_t c = 0; c < n; c++) {
                y += (double)p->x[t * n + c] * (row[c] / s[c]);
                reference += (double)p->x[t * n + c] * weight_at(w, j, c);
            }
            sum += (reference - y) * (reference - y);
        }
    }
    return sum / (double)(p->rows[0] * w->n);
}

static void start(problem *p, size_t tokens, size_t targets)
{
    static const size_t outputs[] = {37, 20, 11};
    start_problem(p, SMOOTH_M3, 36, 2);
    put_norm(p, false);
    for (size_t i = 0; i < targets; i++)
        add_target(p, outputs[i], i == 1);
    add_sample(p, tokens, -1, 1);
    add_sample(p, 5, -9, 9); /* must not be looked at */
    for (size_t c = 0; c < 4; c++)
        scale_channel(p, 9 * c + 2, 4 + 6 * (float)c);
}

static void check_form(problem *p, bool error_form, int best, const double *losses)
{
    float s[MAX_CHANNELS];
    p->cfg.naive = error_form;
    solve(p);
    assert_choice(p->found.candidate, best, losses);
    assert_near(p->found.loss, losses[p->found.candidate], FORM_TOLERANCE);
    assert_int_equal(p->found.evaluated, CANDIDATES);
    candidate(p, p->found.candidate, s);
    for (size_t c = 0; c < p->group.channels; c++)
        assert_near(p->found.s[c], s[c], SCALE_TOLERANCE);
}

/* Returns the choice. With more tokens than channels the default is the Gram form. */
static int check(problem *p)
{
    float s[MAX_CHANNELS];
    double losses[CANDIDATES] = {0};
    int best = 0;
    for (int i = 0; i < CANDIDATES; i++) {
        candidate(p, i, s);
        for (size_t k = 0; k < p->group.num_targets; k++)
            losses[i] += target_loss(p, p->targets[k], s);
        best = losses[i] < losses[best] ? i : best;
    }
    check_form(p, true, best, losses);
    check_form(p, false, best, losses);
    return best;
}

static void test_search(void **state)
{
    (void)state;
    static const size_t tokens[] = {20, 100};
    for (size_t targets = 1; targets <= 3; targets++) {
        for (int setting = 0; setting < 8; setting++) {
            problem p;
            start(&p, tokens[setting / 4], targets);
            p.cfg.w_bit = setting & 1 ? 4 : 8;
            p.cfg.w_sym = setting & 2;
            assert_true(check(&p) > 0);
            end_problem(&p);
        }
    }
}

/* Rows that are all zero or all positive, whose ranges hold 0; a dead channel, whose u is the
 * floor. */
static void test_special_rows(void **state)
{
    (void)state;
    for (int setting = 0; setting < 8; setting++) {
        problem p;
        start(&p, setting & 4 ? 100 : 20, 2);
        p.cfg.w_bit = setting & 1 ? 4 : 8;
        p.cfg.w_sym = setting & 2;
        float *w = raw_floats(p.targets[0]);
        memset(w + 3 * 36, 0, 36 * sizeof *w);
        for (size_t i = 5 * 36; i < 6 * 36; i++)
            w[i] = 0.5f + fabsf(w[i]);
        scale_channel(&p, 1, 0);
        assert_true(check(&p) > 0);
        assert_int_equal(p.found.zero_rows, 1);
        assert_int_equal(p.found.dead, 1);
        end_problem(&p);
    }
}

/* Weights that rounding leaves alone: all losses are 0, and the first candidate, s = 1, wins. */
static void test_first_of_equals(void **state)
{
    (void)state;
    problem p;
    start(&p, 20, 1);
    for (size_t i = 0; i < 37 * 36; i++)
        raw_floats(p.targets[0])[i] = 0;
    solve(&p);
    assert_int_equal(p.found.candidate, 0);
    assert_true(p.found.loss == 0);
    for (size_t c = 0; c < 36; c++)
        assert_true(p.found.s[c] == 1);
    end_problem(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_search),
        cmocka_unit_test(test_special_rows),
        cmocka_unit_test(test_first_of_equals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
