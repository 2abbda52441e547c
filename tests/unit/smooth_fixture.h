/* For the tests of outlier suppression: groups of random numbers with outliers, and the statistics
 * of spec/anti_outlier.md 1.3 computed as they are written there. */
#ifndef TARE_TESTS_SMOOTH_FIXTURE_H
#define TARE_TESTS_SMOOTH_FIXTURE_H

#include "quantize/smooth.h"
#include "tensor/round.h"
#include "tensor_fixture.h"

enum { MAX_TARGETS = 4, MAX_SAMPLES = 6 };
static const double SCALE_TOLERANCE = 5e-6; /* relative, of s for a given choice */
static const double LOSS_TIE = 1e-5;        /* losses this close may be chosen between */

/* A group with its inputs. */
typedef struct problem {
    tare_context *ctx;
    random_state random;
    smooth_config cfg;
    size_t samples, rows[MAX_SAMPLES], total;
    float *x; /* [total,C] */
    smooth_weight weights[MAX_TARGETS], source;
    smooth_weight *targets[MAX_TARGETS];
    smooth_norm norm;
    smooth_group group;
    smooth_stats *stats;
    smooth_scales found;
} problem;

static inline float *random_floats(problem *p, size_t n, double low, double high)
{
    float *x = mem_alloc_array(p->ctx, n, sizeof *x);
    assert_non_null(x);
    random_fill(&p->random, x, n, low, high);
    return x;
}

static inline void start_problem(problem *p, smooth_method method, size_t channels, int threads)
{
    *p = (problem){.ctx = new_context(threads), .random = {0x9e3779b97f4a7c15u + channels}};
    p->cfg = (smooth_config){.method = method, .w_bit = 8, .w_sym = true};
    p->group = (smooth_group){
        .name = "the.source", .targets = p->targets, .channels = channels, .alpha = 0.9};
}

/* [n,k] from -1 to 1, with room for scales, and a bias or (room for one). */
static inline void fill_weight(problem *p, smooth_weight *w, const char *name, size_t n, size_t k,
                               bool has_bias)
{
    *w = (smooth_weight){.name = name,
                         .raw = coded_plain(TARE_F32, random_floats(p, n * k, -1, 1), k),
                         .n = n,
                         .k = k,
                         .row_scale = random_floats(p, n, 1, 1),
                         .col_scale = random_floats(p, k, 1, 1),
                         .bias = random_floats(p, n, has_bias ? -1 : 0, has_bias ? 1 : 0),
                         .has_bias = has_bias};
}

static inline float *raw_floats(const smooth_weight *w)
{
    return w->raw.data;
}

static inline void add_target(problem *p, size_t n, bool has_bias)
{
    static const char *const names[MAX_TARGETS] = {"the.first", "the.second", "the.third",
                                                   "the.fourth"};
    size_t i = p->group.num_targets++;
    fill_weight(p, &p->weights[i], names[i], n, p->group.channels, has_bias);
    p->targets[i] = &p->weights[i];
}

static inline void put_norm(problem *p, bool has_bias)
{
    size_t c = p->group.channels;
    p->norm = (smooth_norm){.weight = random_floats(p, c, 0.5, 1.5),
                            .bias = random_floats(p, c, has_bias ? -1 : 0, has_bias ? 1 : 0),
                            .has_bias = has_bias};
    p->group.norm = &p->norm;
}

/* A linear [n,k] whose rows `rows` are the source. */
static inline void put_source(problem *p, size_t n, size_t k, bool has_bias, smooth_rows rows)
{
    fill_weight(p, &p->source, "the.source", n, k, has_bias);
    p->group.source = &p->source;
    p->group.rows = rows;
}

static inline float *add_sample(problem *p, size_t rows, double low, double high)
{
    size_t c = p->group.channels, cells = (p->total + rows) * c;
    p->x = mem_realloc(p->ctx, p->x, cells * sizeof *p->x);
    assert_non_null(p->x);
    float *x = p->x + p->total * c;
    random_fill(&p->random, x, rows * c, low, high);
    p->rows[p->samples++] = rows;
    p->total += rows;
    return x;
}

/* Makes a channel of all inputs `factor` times as large. */
static inline void scale_channel(problem *p, size_t channel, float factor)
{
    for (size_t t = 0; t < p->total; t++)
        p->x[t * p->group.channels + channel] *= factor;
}

static inline void scale_column(smooth_weight *w, size_t column, float factor)
{
    for (size_t i = 0; i < w->n; i++)
        raw_floats(w)[i * w->k + column] *= factor;
}

/* Three samples that differ, some channels that stand out, one off centre. */
static inline void add_samples(problem *p)
{
    add_sample(p, 20, -1, 1);
    add_sample(p, 1, -2, 0.5);
    add_sample(p, 37, -0.5, 1.5);
    for (size_t c = 3; c < p->group.channels; c += 7)
        scale_channel(p, c, 2 + (float)c);
    for (size_t t = 0; t < p->total; t++)
        p->x[t * p->group.channels + 1] += 9;
}

static inline void start_norm(problem *p, smooth_method method, size_t channels, int threads)
{
    start_problem(p, method, channels, threads);
    put_norm(p, false);
    add_target(p, 70, true);
    add_target(p, 30, false);
    add_samples(p);
}

static inline tare_status read_problem(void *user, size_t first, size_t count, float *x)
{
    const problem *p = user;
    size_t c = p->group.channels;
    memcpy(x, p->x + first * c, count * c * sizeof *x);
    return TARE_OK;
}

static inline tare_status try_solve(problem *p)
{
    tare_status status = TARE_OK;
    smooth_inputs inputs = {.user = p, .read = read_problem};
    TRY(smooth_stats_create(p->ctx, &p->cfg, &p->group, &p->stats));
    for (size_t i = 0, row = 0; i < p->samples; row += p->rows[i++])
        TRY(smooth_stats_update(p->ctx, p->stats, p->x + row * p->group.channels, NULL,
                                p->rows[i]));
    TRY(smooth_solve(p->ctx, &p->cfg, &p->group, p->stats,
                     smooth_needs(&p->cfg) == SMOOTH_NO_INPUT ? NULL : &inputs, &p->found));
done:
    return status;
}

static inline void forget_solution(problem *p)
{
    smooth_stats_free(p->ctx, p->stats);
    smooth_scales_free(p->ctx, &p->found);
    p->stats = NULL;
}

static inline void solve(problem *p)
{
    forget_solution(p);
    assert_ok(p->ctx, try_solve(p));
}

static inline void solve_and_apply(problem *p)
{
    solve(p);
    assert_ok(p->ctx, smooth_apply(p->ctx, &p->cfg, &p->group, &p->found));
}

static inline void free_weight(tare_context *ctx, smooth_weight *w)
{
    mem_free(ctx, raw_floats(w));
    mem_free(ctx, w->row_scale);
    mem_free(ctx, w->col_scale);
    mem_free(ctx, w->bias);
}

static inline void end_problem(problem *p)
{
    forget_solution(p);
    for (size_t i = 0; i < MAX_TARGETS; i++)
        free_weight(p->ctx, &p->weights[i]);
    free_weight(p->ctx, &p->source);
    mem_free(p->ctx, p->norm.weight);
    mem_free(p->ctx, p->norm.bias);
    mem_free(p->ctx, p->x);
    free_context(p->ctx);
}

/* ---- section 1.3 ---- */

enum { MAX_CHANNELS = 512 };

typedef struct naive_stats {
    float max[MAX_CHANNELS], min[MAX_CHANNELS], largest[MAX_CHANNELS], centre[MAX_CHANNELS];
    float theta[MAX_CHANNELS], tau;
    float columns[MAX_CHANNELS]; /* max |W[:,c]|, not clamped */
    double sigma;
} naive_stats;

/* As the scales stand. */
static inline float weight_at(const smooth_weight *w, size_t row, size_t column)
{
    return raw_floats(w)[row * w->k + column] * w->col_scale[column] / w->row_scale[row];
}

static inline void naive_extremes(const problem *p, size_t row, size_t rows, naive_stats *s)
{
    size_t n = p->group.channels;
    for (size_t c = 0; c < n; c++) {
        for (size_t t = row; t < row + rows; t++) {
            float x = p->x[t * n + c];
            s->max[c] = t == 0 ? x : fmaxf(s->max[c], x);
            s->min[c] = t == 0 ? x : fminf(s->min[c], x);
            s->largest[c] = fmaxf(s->largest[c], fabsf(x));
        }
        s->centre[c] = (s->max[c] + s->min[c]) / 2;
    }
}

static inline void naive_spread(const problem *p, size_t row, size_t rows, naive_stats *s)
{
    size_t n = p->group.channels;
    double mean = 0, squares = 0, cells = (double)(rows * n);
    for (size_t i = row * n; i < (row + rows) * n; i++) {
        float d = p->x[i] - s->centre[i % n];
        mean += d / cells;
        s->theta[i % n] = fmaxf(s->theta[i % n], d);
        s->tau = fmaxf(s->tau, d);
    }
    for (size_t i = row * n; i < (row + rows) * n; i++) {
        float d = p->x[i] - s->centre[i % n];
        squares += (d - mean) * (d - mean);
    }
    s->sigma = fmax(s->sigma, sqrt(squares / (cells - 1)));
}

static inline naive_stats naive(const problem *p)
{
    naive_stats s = {.tau = -INFINITY};
    assert_true(p->group.channels <= MAX_CHANNELS);
    for (size_t c = 0; c < p->group.channels; c++)
        s.theta[c] = -INFINITY;
    for (size_t i = 0, row = 0; i < p->samples; row += p->rows[i++]) {
        naive_extremes(p, row, p->rows[i], &s);
        naive_spread(p, row, p->rows[i], &s);
    }
    for (size_t i = 0; i < p->group.num_targets; i++) {
        for (size_t row = 0; row < p->targets[i]->n; row++) {
            for (size_t c = 0; c < p->group.channels; c++)
                s.columns[c] = fmaxf(s.columns[c], fabsf(weight_at(p->targets[i], row, c)));
        }
    }
    return s;
}

/* max(1e-5, a^alpha / w^beta) with w >= 1e-5 */
static inline double naive_ratio(double a, double w, double alpha, double beta)
{
    return fmax(1e-5, pow(a, alpha) / pow(fmax(w, 1e-5), beta));
}

/* ---- comparing ---- */

static inline void assert_near(double got, double want, double relative)
{
    if (!(fabs(got - want) <= relative * fabs(want)))
        fail_msg("%.9g is not within %g of %.9g", got, relative, want);
}

static inline void assert_scales(const float *got, const double *want, size_t n)
{
    for (size_t i = 0; i < n; i++)
        assert_near(got[i], want[i], SCALE_TOLERANCE);
}

/* The choice of `chosen` among the naive `losses`: the expected one, or one whose loss ties. */
static inline void assert_choice(int chosen, int expected, const double *losses)
{
    if (chosen != expected &&
        !(fabs(losses[chosen] - losses[expected]) < LOSS_TIE * losses[expected]))
        fail_msg("%d was chosen (loss %.9g), not %d (%.9g)", chosen, losses[chosen], expected,
                 losses[expected]);
}

#endif
