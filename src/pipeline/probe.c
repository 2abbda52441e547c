/* Measures a run's own code on a slice of its work: a block whose linears are cut to their first
 * rows goes, with the first tokens of the samples, through the stages of the run, which say
 * themselves what took the time (run_spent). Nothing is written. What cut linears do not put out
 * are embeddings, left in the workspace: not the model's activations, but numbers like them. */
#include <string.h>

#include "base/sizes.h"
#include "forward/probe.h"
#include "pipeline/smoothing.h"
#include "pipeline/work_plan.h"

enum {
    FEW_TOKENS = 16,
    MORE_TOKENS = 64,
    TOKENS = 384,
    ROWS = 96,
    ROWS_A_THREAD = 128,
    WEIGHTS_A_THREAD = 5 << 20,
    MOST_THREADS = 16
};

void run_spent(run *r, work_kind kind)
{
    work_clock *c = r->clock;
    if (!c)
        return;
    double now = clock_seconds();
    c->seconds[c->last == WORK_FA ? WORK_ATTENTION : kind] += now - c->at;
    c->at = now;
    c->last = kind;
}

/* A run of one layer. */
typedef struct slice {
    run_env env;
    run_plan plan;
    run run;
    work_clock clock;
    tare_model model;
    architecture arch;
    model_block block;
    model_linear linears[BLOCK_LINEARS + 1]; /* one that stands for the head behind them */
    linear_score scores[BLOCK_LINEARS + 1];
    layer_smoothing smoothing;
    run_attention attention;
    float *x;      /* [samples.tokens, hidden_size]: embeddings */
    size_t length; /* of the only sample, if that is cut */
    uint32_t id;   /* weights alone have no samples: one token */
} slice;

/* ---- what is cut ---- */

/* The first samples, with at most so many tokens. */
static void cut_samples(slice *s, size_t most)
{
    sample_set *set = &s->env.samples;
    s->length = set->count ? size_min(set->lengths[0], most) : 1;
    if (set->count == 0)
        *set = (sample_set){.count = 1, .lengths = &s->length, .ids = &s->id};
    batch b = batch_next(set->lengths, 0, set->count, most);
    if (b.samples == 1)
        set->lengths = &s->length;
    set->sequences = set->kept = NULL;
    set->count = b.samples;
    set->tokens = b.samples == 1 ? s->length : b.rows;
    set->longest = set->tokens; /* at most */
}

/* The first block in which most is done. */
static const model_block *choose_block(const run_plan *plan)
{
    const tare_model *m = plan->env->model;
    const model_block *best = NULL;
    size_t most = 0;
    for (size_t i = 0; i < m->num_blocks; i++) {
        const model_block *b = &m->blocks[i];
        size_t done = 1 + plan->attentions[i].quantize;
        for (size_t l = b->first_linear; l < b->first_linear + b->graph->num_linears; l++)
            done += !plan_is_float(&plan->linears[l]) + smoothing_targets(plan, &m->linears[l]);
        if (done > most)
            best = b;
        most = size_max(most, done);
    }
    return best;
}

static size_t threads_of(const tare_context *ctx)
{
    return size_min((size_t)ctx->options.threads, MOST_THREADS);
}

/* The model as it would be with one layer of so many rows, or fewer: an idle machine has to be done
 * with them in a second. */
static void cut_model(slice *s, const model_block *block, size_t rows)
{
    tare_model *m = &s->model;
    block_graph *g = &m->graphs[BLOCK_PLAIN];
    *g = *block->graph;
    graph_leave_out_experts(g);
    size_t columns = 0, pairs = 0;
    for (size_t i = 0; i < g->num_linears; i++)
        columns += g->linears[i].k;
    rows = size_min(rows, threads_of(s->env.ctx) * WEIGHTS_A_THREAD / columns + 1);
    for (size_t i = 0; i < g->num_linears; i++) {
        s->linears[i] = *block_linear(m, block, i);
        probe_cut(&s->linears[i], rows);
        s->linears[i].unit -= block->first_unit;
    }
    for (size_t i = 0; i < g->num_pairs; i++) { /* the others read rows that are not there */
        if (g->pairs[i].of_norm)
            g->pairs[pairs++] = g->pairs[i];
    }
    g->num_pairs = pairs;
    s->arch = *m->config.arch;
    if (!checkpoint_has_data(m->checkpoint, block->norms[0], 0, block->norms[0]->bytes))
        s->arch.norm_base = 1; /* with weights that read as zeros */
    m->config.arch = &s->arch;
    m->num_blocks = 1;
    s->block = *block;
    s->block.graph = g;
    s->block.index = s->block.first_linear = s->block.first_unit = 0;
    m->blocks = &s->block;
    m->linears = s->linears;
    m->num_linears = g->num_linears + 1;
    m->head = &s->linears[g->num_linears];
}

static tare_status open_slice(const run_plan *plan, bool floats, size_t tokens, size_t rows,
                              slice *s)
{
    tare_status status = TARE_OK;
    const model_block *block = choose_block(plan);
    tare_model *m = &s->model;
    run *r = &s->run;
    *s = (slice){.env = *plan->env, .plan = *plan, .model = *plan->env->model};
    cut_model(s, block, rows);
    cut_samples(s, size_min(tokens, size_max(plan->layout.batch_rows, 1)));
    s->env.model = m;
    s->plan.env = &s->env;
    s->plan.linears += block->first_linear;
    s->plan.attentions += block->index;
    s->plan.num_fa = plan->num_fa > 0;
    s->plan.num_kv = plan->num_kv > 0;
    s->plan.float_samples = 0;
    plan_streams(&s->plan);
    s->plan.final_scales = s->plan.gptq = false; /* work_plan.c counts what they take */
    if (!floats)
        s->plan.float_samples = s->plan.float_tokens = 0;
    s->plan.layout = (run_layout){.batch_rows = s->env.samples.tokens, .whole_layer = true};
    plan_segments(&s->plan, CUT_NONE, s->plan.segments);
    *r = (run){.env = &s->env, .plan = &s->plan, .ctx = m->ctx, .model = m, .clock = &s->clock};
    r->scores = s->scores;
    r->attentions = &s->attention;
    r->smoothing = plan->smooths ? &s->smoothing : NULL;
    TRY(workspace_create(m, s->env.samples.tokens, s->env.samples.longest,
                         s->env.num.compat ? s->env.num.dtype : TARE_F32, false, &r->work));
    TRY(create_states(r, floats));
    s->x = probe_floats(m->ctx, s->env.samples.tokens, m->config.hidden_size);
    TRY(s->x ? TARE_OK : TARE_E_MEMORY);
    if (checkpoint_has_data(m->checkpoint, m->embedding.tensor, 0, m->embedding.tensor->bytes))
        TRY(embed_into(m, s->env.samples.ids, s->env.samples.tokens, s->x));
done:
    return status;
}

/* ---- what is measured ---- */

/* All samples through the float segment, or through the quantized one, with a smoothing that
 * changes nothing. */
static tare_status pass(slice *s, bool floats)
{
    tare_status status = TARE_OK;
    run *r = &s->run;
    layer_source source = {0};
    pair_watch none[BLOCK_PAIRS] = {0};
    const head_watch no_heads = {0};
    segment_work work = plan_segment(r->plan, &s->block, 0);
    flow *f = floats ? &r->floats : &r->calibrated;
    size_t known = s->env.samples.tokens * s->model.config.hidden_size,
           all = r->work.rows * s->model.graphs[BLOCK_PLAIN].columns;
    TRY(context_check_cancelled(r->ctx));
    for (size_t at = 0; at < all; at += known)
        memcpy(r->work.values + at, s->x, size_min(known, all - at) * sizeof *s->x);
    TRY(stream_put(f->states, 0, f->tokens, s->x));
    stream_flip(f->states);
    for (size_t i = 0; i < s->model.graphs[BLOCK_PLAIN].num_linears; i++)
        TRY(probe_weight(r->model, &s->linears[i], &source.raw[i]));
    if (!floats && r->smoothing)
        TRY(smoothing_solve(r, &work, &source, none, &no_heads));
    for (size_t i = 0; i < s->model.graphs[BLOCK_PLAIN].num_linears; i++)
        s->smoothing.weights[i].cols_scaled = !floats;
    s->clock.at = clock_seconds();
    s->clock.last = WORK_READ;
    TRY(floats ? float_segment_pass(r, &work, &source) : calibrate_slice(r, &work, &source));
done:
    layer_source_free(r, &source);
    layer_smoothing_free(r->ctx, &s->smoothing);
    return status;
}

/* Puts the rates of a slice into work[kinds], which end with WORK_COUNT. *watched: tokens that a
 * search looks at. */
static tare_status measure(const run_plan *plan, bool floats, size_t tokens, size_t rows,
                           const work_kind *kinds, tare_work *work, size_t *watched)
{
    double least = tokens >= TOKENS ? 0.4 : 0.1; /* seconds */
    slice s;
    tare_plan one = {0};
    double begun, times = 0;
    tare_status status = open_slice(plan, floats, tokens, rows, &s);
    for (begun = clock_seconds();
         status == TARE_OK && (times == 0 || clock_seconds() < begun + least); times++)
        status = pass(&s, floats);
    TRY(status);
    *watched = smoothing_watched_rows(&s.plan);
    work_plan_amounts(&s.plan, &one);
    for (; *kinds != WORK_COUNT; kinds++) {
        if (s.clock.seconds[*kinds] > 0)
            work[*kinds].rate = times * one.work[*kinds].amount / s.clock.seconds[*kinds];
    }
done:
    run_stop(&s.run);
    mem_free(plan->env->ctx, s.x);
    return status;
}

static const work_kind quantized_kinds[] = {WORK_INT8, WORK_QUANTIZE, WORK_OBSERVE, WORK_ATTENTION,
                                            WORK_FA,   WORK_ROWS,     WORK_COUNT},
                       float_kinds[] = {WORK_SMOOTHING, WORK_SCORE, WORK_COUNT};

/* The first pass makes code; it is a small one. */
static tare_status measure_quantized(const run_plan *plan, tare_work *work)
{
    tare_status status = TARE_OK;
    tare_work ignored[WORK_COUNT];
    size_t rows = ROWS_A_THREAD * threads_of(plan->env->ctx), n;
    TRY(measure(plan, false, FEW_TOKENS, FEW_TOKENS, quantized_kinds, ignored, &n));
    TRY(measure(plan, false, TOKENS, rows, quantized_kinds, work, &n));
done:
    return status;
}

/* A search costs a + b * tokens for a weight; both from two searches with few tokens. m3 has no
 * more work once there are as many tokens as channels. */
static tare_status measure_float(const run_plan *plan, tare_work *work)
{
    tare_status status = TARE_OK;
    tare_work few[WORK_COUNT] = {0};
    double *rate = &work[WORK_SMOOTHING].rate, slope;
    size_t all = smoothing_watched_rows(plan), less, more;
    if (plan->smooth.method == SMOOTH_M3 && !plan->env->num.compat)
        all = size_min(all, plan->env->model->config.hidden_size);
    TRY(measure(plan, true, FEW_TOKENS, ROWS, float_kinds, few, &less));
    TRY(measure(plan, true, MORE_TOKENS, ROWS, float_kinds, work, &more));
    if (*rate == 0 || less >= more || more >= all)
        goto done;
    slope = (1 / *rate - 1 / few[WORK_SMOOTHING].rate) / (double)(more - less);
    if (slope > 0)
        *rate = 1 / (1 / *rate + slope * (double)(all - more));
done:
    return status;
}

/* Wide enough that the time goes where it goes with wider ones. */
static tare_status measure_gptq(const run_plan *plan, double *rate)
{
    enum { CHANNELS = 1024, SEEN = 256, ROUNDED = 256 };
    tare_status status = TARE_OK;
    tare_context *ctx = plan->env->ctx;
    gptq *g = NULL;
    quantized_weight q = {0};
    float *x = probe_floats(ctx, SEEN, CHANNELS);
    TRY(x ? TARE_OK : TARE_E_MEMORY);
    weight_rows rows = {.stored = coded_plain(TARE_F32, x, CHANNELS), .count = ROUNDED};
    TRY(weight_quantize_rows(ctx, &plan->env->num, &rows, false, &q));
    TRY(gptq_create(ctx, CHANNELS, &g));
    double begun = clock_seconds();
    gptq_add(ctx, g, x, SEEN, NULL, NULL);
    TRY(gptq_factor(ctx, g));
    TRY(gptq_round(ctx, g, &rows, &q));
    *rate = (SEEN * gptq_add_operations(CHANNELS) + gptq_factor_operations(CHANNELS) +
             ROUNDED * gptq_round_operations(CHANNELS)) /
            (clock_seconds() - begun);
done:
    gptq_free(ctx, g);
    weight_quantized_free(ctx, &q);
    mem_free(ctx, x);
    return status;
}

/* Is there any work of these kinds? */
static bool any(const tare_work *work, const work_kind *kinds)
{
    while (*kinds != WORK_COUNT && work[*kinds].amount <= 0)
        kinds++;
    return *kinds != WORK_COUNT;
}

tare_status probe_rates(const run_plan *plan, double seconds, tare_work work[WORK_COUNT])
{
    tare_status status = TARE_OK;
    const run_env *e = plan->env;
    double end = clock_seconds() + seconds;
    TRY(probe_reading(e->model, &work[WORK_READ].rate));
    work[WORK_WRITE].rate = work[WORK_VERIFY].rate = work[WORK_READ].rate; /* as fast, we say */
    if (any(work, (work_kind[]){WORK_FLOAT, WORK_PACK, WORK_COUNT}) && clock_seconds() < end)
        TRY(probe_products(e->model, e->compute, e->samples.tokens, &work[WORK_PACK].rate,
                           &work[WORK_FLOAT].rate));
    if (any(work, (work_kind[]){WORK_GPTQ, WORK_COUNT}) && clock_seconds() < end)
        TRY(measure_gptq(plan, &work[WORK_GPTQ].rate));
    if (any(work, float_kinds) && clock_seconds() < end)
        TRY(measure_float(plan, work));
    if (any(work, quantized_kinds) && clock_seconds() < end)
        TRY(measure_quantized(plan, work));
done:
    return TARE_WRAP(e->ctx, status, "measuring");
}
