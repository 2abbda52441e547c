/* The probe's pieces that quantize, observe and read. */
#include <string.h>

#include "pipeline/probe.h"
#include "tensor/kernels.h"

enum { SLICE_ROWS = 256, MORE_TOKENS = 64 };

/* ---- smoothing: a whole search on a slice of rows ---- */

typedef struct smoothing_probe {
    const run_plan *plan;
    size_t tokens;
    float *x;
    smooth_weight target;
    smooth_norm norm;
} smoothing_probe;

static tare_status read_rows(void *user, size_t first, size_t count, float *x)
{
    const smoothing_probe *p = user;
    memcpy(x, p->x + first * p->target.k, count * p->target.k * sizeof *x);
    return TARE_OK;
}

static tare_status solve(smoothing_probe *p)
{
    tare_status status = TARE_OK;
    tare_context *ctx = p->plan->env->ctx;
    smooth_weight *targets[] = {&p->target};
    smooth_group g = {.name = "probe",
                      .norm = &p->norm,
                      .targets = targets,
                      .num_targets = 1,
                      .channels = p->target.k,
                      .alpha = 0.5};
    smooth_inputs inputs = {.user = p, .read = read_rows};
    smooth_stats *stats = NULL;
    smooth_scales scales = {0};
    TRY(smooth_stats_create(ctx, &p->plan->smooth, &g, &stats));
    TRY(smooth_stats_update(ctx, stats, p->x, p->tokens));
    TRY(smooth_solve(ctx, &p->plan->smooth, &g, stats, &inputs, &scales));
done:
    smooth_scales_free(ctx, &scales);
    smooth_stats_free(ctx, stats);
    return status;
}

static tare_status time_tokens(smoothing_probe *p, size_t tokens, double *seconds)
{
    double start = clock_seconds();
    p->tokens = tokens;
    tare_status status = solve(p);
    *seconds = clock_seconds() - start;
    return status;
}

/* Tokens that a search multiplies with: m3 uses the Gram matrix beyond C of them. */
static size_t searched_tokens(const run_plan *plan, size_t channels)
{
    switch (smooth_needs(&plan->smooth)) {
    case SMOOTH_FIRST_SAMPLE:
        return plan->smooth.method == SMOOTH_M3 && !plan->env->num.compat
                   ? size_min(plan->env->samples.lengths[0], channels)
                   : plan->env->samples.lengths[0];
    case SMOOTH_ALL_SAMPLES:
        return plan->float_tokens;
    default:
        return 0;
    }
}

/* A search costs a + b * tokens for a weight; both from two searches with few tokens. */
static tare_status measure_search(smoothing_probe *p, double *rate)
{
    tare_status status = TARE_OK;
    size_t tokens = searched_tokens(p->plan, p->target.k), few = size_min(tokens ? tokens : 16, 16),
           more = size_min(tokens, MORE_TOKENS);
    double a = 0, b = 0, cells = (double)p->target.n * (double)p->target.k;
    TRY(time_tokens(p, few, &a));
    if (more > few) {
        TRY(time_tokens(p, more, &b));
        double slope = b > a ? (b - a) / (double)(more - few) : 0;
        a += slope * ((double)tokens - (double)few);
    }
    *rate = cells / a;
done:
    return status;
}

/* Channels differ by up to 16 times, as they do in trained models: candidates of a search that are
 * all alike would have to be looked at more closely. */
static void spread_channels(float *x, size_t rows, size_t channels)
{
    for (size_t i = 0; i < rows * channels; i++)
        x[i] *= (float)(1u << (i % channels % 5)) / 4;
}

tare_status probe_smoothing(const run_plan *plan, double *rate)
{
    tare_status status = TARE_E_MEMORY;
    tare_context *ctx = plan->env->ctx;
    const model_linear *l = &plan->env->model->linears[0];
    smoothing_probe p = {.plan = plan};
    p.target = (smooth_weight){.name = "probe", .n = SLICE_ROWS, .k = l->k, .stored = TARE_F32};
    tare_dtype dtype = l->weight.dtype;
    void *raw = probe_weights(ctx, dtype, p.target.n * p.target.k);
    p.target.raw = coded_plain(dtype, raw, p.target.k);
    p.x = probe_floats(ctx, MORE_TOKENS * l->k);
    p.norm = (smooth_norm){.weight = mem_alloc_array(ctx, l->k, sizeof(float)), .stored = TARE_F32};
    p.target.col_scale = mem_alloc_array(ctx, l->k, sizeof(float));
    if (raw && p.x && p.norm.weight && p.target.col_scale) {
        for (size_t i = 0; i < l->k; i++)
            p.norm.weight[i] = p.target.col_scale[i] = 1;
        spread_channels(p.x, MORE_TOKENS, l->k);
        status = measure_search(&p, rate);
    }
    mem_free(ctx, raw);
    mem_free(ctx, p.x);
    mem_free(ctx, p.norm.weight);
    mem_free(ctx, p.target.col_scale);
    return status;
}

/* ---- weights ---- */

typedef struct quantize_probe {
    const run_plan *plan;
    smooth_weight w;
} quantize_probe;

static tare_status quantize_piece(void *user)
{
    quantize_probe *p = user;
    const run_plan *plan = p->plan;
    quantized_weight q = {0};
    weight_rows rows = {
        .stored = p->w.raw, .smooth = plan->smooths ? &p->w : NULL, .count = p->w.n};
    tare_status status = weight_quantize_rows(plan->env->ctx, &plan->env->num, &rows,
                                              plan->env->recipe->mm_tensor, &q);
    weight_quantized_free(plan->env->ctx, &q);
    return status;
}

tare_status probe_quantize(const run_plan *plan, double *rate)
{
    tare_status status = TARE_E_MEMORY;
    const model_linear *l = probe_linear(plan->env->model);
    quantize_probe p = {.plan = plan};
    p.w = (smooth_weight){
        .n = size_min(l->n, 512), .k = l->k, .cols_scaled = true, .round = TARE_F32};
    void *raw = probe_weights(plan->env->ctx, l->weight.dtype, p.w.n * p.w.k);
    p.w.raw = coded_plain(l->weight.dtype, raw, p.w.k);
    p.w.col_scale = probe_floats(plan->env->ctx, l->k);
    if (raw && p.w.col_scale)
        status = probe_repeat(quantize_piece, &p, (double)p.w.n * (double)p.w.k, rate);
    mem_free(plan->env->ctx, raw);
    mem_free(plan->env->ctx, p.w.col_scale);
    return status;
}

/* ---- activations ---- */

typedef struct input_probe {
    const run_plan *plan;
    size_t rows, cols;
    float *x, *scratch;
    uint8_t *q;
    observer *o;
    score_state score;
    fa_observer *fa;
} input_probe;

/* A sample of mean length: observed, and quantized with what was found. */
static tare_status observe_piece(void *user)
{
    tare_status status = TARE_OK;
    input_probe *p = user;
    act_params params;
    TRY(observer_update(p->plan->env->ctx, p->o, p->x, p->rows * p->cols));
    TRY(observer_params(p->plan->env->ctx, p->o, &params));
    for (size_t i = 0; i < p->rows; i++)
        kernels_get(p->plan->env->ctx)
            ->quantize_asymmetric(p->x + i * p->cols, p->cols, params.scale, params.offset,
                                  p->q + i * p->cols);
done:
    return status;
}

static tare_status score_piece(void *user)
{
    input_probe *p = user;
    return score_update(p->plan->env->ctx, &p->plan->env->num, &p->score, p->x, p->rows, p->cols,
                        p->scratch);
}

static tare_status fa_piece(void *user)
{
    input_probe *p = user;
    size_t dim = p->plan->env->model->config.head_dim;
    fa_input in = {p->x, p->cols, dim}, all[FA_KINDS] = {in, in, in};
    return fa_observe(p->fa, 0, &p->rows, 1, all);
}

static tare_status open_input(const run_plan *plan, size_t cols, input_probe *p)
{
    *p = (input_probe){.plan = plan, .cols = cols};
    p->rows = size_min(plan->env->samples.tokens / plan->env->samples.count, 1024);
    p->x = probe_floats(plan->env->ctx, p->rows * cols);
    p->q = mem_alloc_array(plan->env->ctx, p->rows, cols);
    p->scratch = mem_alloc_array(plan->env->ctx, 2 * cols, sizeof *p->scratch);
    return p->x && p->q && p->scratch ? TARE_OK : TARE_E_MEMORY;
}

static void close_input(input_probe *p)
{
    observer_free(p->plan->env->ctx, p->o);
    fa_observer_free(p->fa);
    mem_free(p->plan->env->ctx, p->x);
    mem_free(p->plan->env->ctx, p->q);
    mem_free(p->plan->env->ctx, p->scratch);
}

tare_status probe_observe(const run_plan *plan, double *rate)
{
    tare_status status = TARE_OK;
    observer_kind kind = plan->env->recipe->act_method == 1 ? OBSERVER_MEAN_EXTREMES
                                                            : OBSERVER_HISTOGRAM;
    input_probe p;
    TRY(open_input(plan, plan->env->model->config.hidden_size, &p));
    TRY(observer_create(plan->env->ctx, kind, &plan->env->num, &p.o));
    TRY(probe_repeat(observe_piece, &p, (double)p.rows * (double)p.cols, rate));
done:
    close_input(&p);
    return status;
}

tare_status probe_score(const run_plan *plan, double *rate)
{
    tare_status status = TARE_OK;
    input_probe p;
    TRY(open_input(plan, plan->env->model->config.hidden_size, &p));
    score_init(&p.score);
    TRY(probe_repeat(score_piece, &p, (double)p.rows * (double)p.cols, rate));
done:
    close_input(&p);
    return status;
}

tare_status probe_fa(const run_plan *plan, double *rate)
{
    tare_status status = TARE_OK;
    const model_config *c = &plan->env->model->config;
    size_t kv = c->num_kv_heads, heads[FA_KINDS] = {kv, kv, kv};
    input_probe p;
    TRY(open_input(plan, kv * c->head_dim, &p));
    TRY(fa_observer_create(plan->env->ctx, "probe", heads, &p.fa));
    TRY(probe_repeat(fa_piece, &p, 3.0 * (double)p.rows * (double)p.cols, rate));
done:
    close_input(&p);
    return status;
}

/* ---- disk ---- */

tare_status probe_read(const run_plan *plan, double *rate)
{
    return probe_reading(plan->env->model, rate);
}
