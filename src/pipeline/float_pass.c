/* The float model beside the quantized one: what outlier suppression and the scores look at. One
 * layer at a time: its linears run on the first float_samples, their inputs are observed, smoothing
 * is solved from that, and the score sees the smoothed inputs. The float stream never sees a scale:
 * smoothing keeps the layer's function, so its output is the smoothed layer's too
 * (spec/anti_outlier.md 1.6). */
#include <string.h>

#include "pipeline/means.h"
#include "pipeline/smoothing.h"

/* block_ops.linears with this as `user`. */
typedef struct float_work {
    run *run;
    const model_block *block;
    segment_work work;
    float_block linears;
    pair_watch watch[BLOCK_PAIRS]; /* stats NULL: nobody asks */
    head_watch heads;
    bool scoring;   /* inputs are scored as they come; */
    bool measuring; /* or measured, to be scored once their scales are known */
    score_state scores[BLOCK_UNITS];
    score_columns columns[BLOCK_UNITS][SCORE_SAMPLES];
    layer_selector *selectors[BLOCK_UNITS]; /* NULL: nobody asks */
    float *scratch;                         /* for score_update: 2 * the widest input */
    float *smoothed;                        /* one sample's input divided by its scales */
} float_work;

/* What the smoothed layer's linears would read: (x - shift) / s. */
static const float *smoothed_input(const float_work *w, graph_unit unit, const float *x,
                                   size_t rows, size_t k)
{
    const layer_smoothing *s = w->run->smoothing ? &w->run->smoothing[w->block->index] : NULL;
    const float *scale = s ? s->input_scale[unit] : NULL, *shift = s ? s->input_shift[unit] : NULL;
    if (!scale)
        return x;
    for (size_t i = 0; i < rows; i++) {
        for (size_t j = 0; j < k; j++)
            w->smoothed[i * k + j] = (x[i * k + j] - (shift ? shift[j] : 0)) / scale[j];
    }
    return w->smoothed;
}

static tare_status score_samples(float_work *w, graph_unit unit, const batch *b, const float *x,
                                 size_t k)
{
    run *r = w->run;
    for (size_t i = 0, row = 0; i < b->samples && b->first + i < r->plan->score_samples;
         row += b->lengths[i++]) {
        const float *input = smoothed_input(w, unit, x + row * k, b->lengths[i], k);
        tare_status status = score_update(r->ctx, &r->env->num, &w->scores[unit], input,
                                          b->lengths[i], k, w->scratch);
        if (status != TARE_OK)
            return TARE_WRAP(r->ctx, status, "input of group %s, sample %zu",
                             w->block->graph->units[unit].kind, b->first + i);
    }
    return TARE_OK;
}

static tare_status measure_samples(float_work *w, graph_unit unit, const batch *b, const float *x,
                                   size_t k)
{
    run *r = w->run;
    for (size_t i = 0, row = 0; i < b->samples && b->first + i < r->plan->score_samples;
         row += b->lengths[i++]) {
        tare_status status = score_columns_create(r->ctx, x + row * k, b->lengths[i], k,
                                                  &w->columns[unit][b->first + i]);
        if (status != TARE_OK)
            return TARE_WRAP(r->ctx, status, "input of group %s, sample %zu",
                             w->block->graph->units[unit].kind, b->first + i);
    }
    return TARE_OK;
}

static tare_status select_samples(float_work *w, graph_unit unit, const batch *b, const float *x,
                                  size_t k)
{
    for (size_t i = 0, row = 0; i < b->samples; row += b->lengths[i++]) {
        tare_status status = layer_selector_update(w->selectors[unit], x + row * k, b->lengths[i],
                                                   k);
        if (status != TARE_OK)
            return TARE_WRAP(w->run->ctx, status, "input of group %s, sample %zu",
                             w->block->graph->units[unit].kind, b->first + i);
    }
    return TARE_OK;
}

static void score_measured(float_work *w)
{
    const layer_smoothing *s = &w->run->smoothing[w->block->index];
    for (size_t unit = 0; unit < w->block->graph->num_units; unit++) {
        for (size_t i = 0; i < SCORE_SAMPLES && w->columns[unit][i].rows; i++)
            score_update_scaled(&w->scores[unit], &w->columns[unit][i], s->input_scale[unit],
                                s->input_shift[unit]);
    }
}

static tare_status observed_linears(void *user, graph_unit unit, const batch *b, const float *x,
                                    float *const *y)
{
    tare_status status = TARE_OK;
    float_work *w = user;
    const block_graph *g = w->block->graph;
    size_t k = g->units[unit].k;
    run_spent(w->run, WORK_ROWS);
    means_add(w->run, w->block, unit, x, b->rows);
    for (size_t pair = 0; pair < g->num_pairs; pair++) {
        if (w->watch[pair].stats && g->pairs[pair].unit == unit)
            TRY(pair_watch_inputs(w->run, &w->watch[pair], b, x, k));
    }
    run_spent(w->run, WORK_SMOOTHING);
    if (w->scoring)
        TRY(score_samples(w, unit, b, x, k));
    if (w->measuring)
        TRY(measure_samples(w, unit, b, x, k));
    if (w->selectors[unit])
        TRY(select_samples(w, unit, b, x, k));
    run_spent(w->run, WORK_SCORE);
    TRY(float_block_linears(&w->linears, unit, b, x, y));
    run_spent(w->run, WORK_FLOAT);
    TRY(kv_cache_observe_floats(w->run, w->block, unit, b, y));
done:
    return status;
}

static tare_status observed_attention(void *user, const batch *b, const float *q, const float *k,
                                      const float *v, const float *latent)
{
    const float_work *w = user;
    (void)v;
    (void)latent;
    if (!w->heads.largest[0])
        return TARE_OK;
    run_spent(w->run, WORK_ROWS);
    balance_observe(w->run, &w->heads, b, q, k);
    run_spent(w->run, WORK_SMOOTHING);
    return TARE_OK;
}

static tare_status forward(float_work *w, const block_norms *norms)
{
    segment_pass pass = {
        .work = w->work,
        .norms = norms,
        .ops = {.user = w, .linears = observed_linears, .attention = observed_attention}};
    return segment_run(w->run, &pass, &w->run->floats);
}

static tare_status create_selectors(float_work *w)
{
    tare_status status = TARE_OK;
    const block_segment *s = w->work.segment;
    for (size_t u = s->first_unit; u < s->end_unit && status == TARE_OK; u++)
        status = layer_selector_create(w->run->ctx, w->run->env->range_method, &w->selectors[u]);
    return status;
}

/* The linears of a unit share their score. */
static void store_score(float_work *w, graph_unit unit, double score)
{
    const model_unit *u = block_unit(w->run->model, w->block, unit);
    for (size_t i = u->first; i < u->first + u->count; i++)
        w->run->scores[i] = (linear_score){.known = true, .value = score};
}

static tare_status store_selections(float_work *w)
{
    tare_status status = TARE_OK;
    double score = 0;
    for (size_t u = w->work.segment->first_unit; u < w->work.segment->end_unit; u++) {
        TRY(layer_selector_score(w->selectors[u], &score));
        store_score(w, u, score);
    }
done:
    return status;
}

/* The buffers of one update and the final one do not meet. */
static size_t layer_selectors_bytes(const run_plan *plan)
{
    const sample_set *s = &plan->env->samples;
    const block_graph *g = model_graph(plan->env->model);
    size_t bytes = 0, most = 0;
    for (size_t u = 0; u < g->num_units; u++) {
        size_t k = g->units[u].k;
        size_t update = layer_selector_update_bytes(plan->env->ctx, plan->env->range_method,
                                                    s->longest, k),
               score = layer_selector_score_bytes(plan->env->ctx, plan->env->range_method,
                                                  s->lengths, s->count, k);
        bytes += layer_selector_bytes(plan->env->range_method, s->lengths, s->count, k);
        most = size_max(most, size_max(update, score));
    }
    return bytes + most;
}

static void store_scores(float_work *w)
{
    for (size_t u = w->work.segment->first_unit; u < w->work.segment->end_unit; u++)
        store_score(w, u, score_value(&w->run->env->num, &w->scores[u]));
}

static size_t widest_input(const run_plan *plan)
{
    size_t widest = plan->env->model->config.hidden_size;
    for (size_t u = 0; u < model_graph(plan->env->model)->num_units; u++)
        widest = size_max(widest, model_graph(plan->env->model)->units[u].k);
    return widest;
}

static tare_status alloc_scoring(float_work *w)
{
    run *r = w->run;
    size_t widest = widest_input(r->plan), cells;
    for (size_t u = 0; u < BLOCK_UNITS; u++)
        score_init(&w->scores[u]);
    if (!r->plan->wants_scores)
        return TARE_OK;
    if (!(w->scratch = mem_alloc_array(r->ctx, 2 * widest, sizeof *w->scratch)))
        return TARE_E_MEMORY;
    if (!r->plan->smooths || !r->env->num.compat)
        return TARE_OK;
    if (!size_mul(r->env->samples.longest, widest, &cells))
        return TARE_FAIL(r->ctx, TARE_E_MEMORY, "out of memory: a sample of %zu tokens",
                         r->env->samples.longest);
    w->smoothed = mem_alloc_array(r->ctx, cells, sizeof *w->smoothed);
    return w->smoothed ? TARE_OK : TARE_E_MEMORY;
}

static size_t scoring_bytes(const run_plan *plan)
{
    size_t widest = widest_input(plan);
    if (!plan->wants_scores)
        return 0;
    size_t bytes = mem_array_bytes(2 * widest, sizeof(float));
    if (plan->smooths && plan->env->num.compat)
        bytes += mem_array_bytes(plan->env->samples.longest * widest, sizeof(float));
    else if (plan->smooths)
        bytes += model_graph(plan->env->model)->num_units * SCORE_SAMPLES *
                 (2 * mem_array_bytes(widest, sizeof(float)) +
                  2 * mem_array_bytes(widest, sizeof(double)));
    return bytes;
}

/* The scored samples' part of the float stream as it is now. */
static tare_status copy_scored(run *r, flow *out)
{
    tare_status status = TARE_OK;
    *out = (flow){.samples = r->plan->score_samples, .tokens = r->plan->score_tokens};
    TRY(stream_create(r->ctx, out->tokens, r->model->config.hidden_size, out->tokens, NULL,
                      &out->states));
    for (size_t i = 0, row = 0; i < r->plan->score_samples; row += r->env->samples.lengths[i++]) {
        float *x;
        TRY(stream_get(r->floats.states, row, r->env->samples.lengths[i], &x));
        TRY(stream_put(out->states, row, r->env->samples.lengths[i], x));
    }
done:
    return status;
}

/* Runs the segment again over the scored samples alone. */
static tare_status score_again(float_work *w, const block_norms *norms, flow *scored)
{
    segment_pass pass = {.work = w->work,
                         .norms = norms,
                         .ops = {.user = w, .linears = observed_linears},
                         .quiet = true};
    w->scoring = true;
    return segment_run(w->run, &pass, scored);
}

/* Scores are taken of smoothed inputs, which are known only after the layer ran once. What that run
 * leaves of each input is enough; only compat, which rounds element by element, runs the layer
 * again on the scored samples. */
static tare_status smooth_then_score(float_work *w, const block_norms *norms, layer_source *source)
{
    tare_status status = TARE_OK;
    run *r = w->run;
    flow again = {0};
    w->measuring = r->plan->wants_scores && !r->env->num.compat;
    if (r->plan->wants_scores && r->env->num.compat)
        TRY(copy_scored(r, &again));
    if (smoothing_solves(r->plan)) {
        TRY(smoothing_watch(r, &w->work, w->watch));
        TRY(balance_watch(r, &w->work, &w->heads));
    }
    TRY(forward(w, norms));
    if (smoothing_solves(r->plan))
        TRY(smoothing_solve(r, &w->work, source, w->watch, &w->heads));
    run_spent(r, WORK_SMOOTHING);
    smoothing_unwatch(r, w->watch);
    balance_unwatch(r, &w->heads);
    if (w->measuring)
        score_measured(w);
    run_spent(r, WORK_SCORE);
    if (again.states)
        TRY(score_again(w, norms, &again));
done:
    smoothing_unwatch(r, w->watch);
    balance_unwatch(r, &w->heads);
    flow_free(r, &again);
    return status;
}

static tare_status make_linears(float_work *w, const layer_source *source)
{
    run *r = w->run;
    if (r->plan->layout.whole_layer)
        return float_block_create(r->model, w->block, w->work.segment, r->env->compute, source->raw,
                                  &w->linears);
    float_block_borrow(r->model, w->block, r->env->compute, source->raw, &w->linears);
    return TARE_OK;
}

tare_status float_segment_pass(run *r, const segment_work *s, layer_source *source)
{
    tare_status status = TARE_OK;
    block_norms norms = {0};
    const model_block *block = s->block;
    float_work w = {.run = r, .block = block, .work = *s, .linears = {.model = r->model}};
    if (s->is_expert) { /* nothing is asked of it but its part of the stream */
        TRY(make_linears(&w, source));
        TRY(forward(&w, &norms));
        goto done;
    }
    TRY(alloc_scoring(&w));
    if (r->env->goal == GOAL_SCORES)
        TRY(create_selectors(&w));
    TRY(block_norms_load(r->model, block, s->segment, &norms));
    TRY(make_linears(&w, source));
    if (r->plan->smooths) {
        TRY(smooth_then_score(&w, &norms, source));
    } else {
        w.scoring = r->plan->wants_scores;
        TRY(forward(&w, &norms));
    }
    if (r->plan->wants_scores)
        store_scores(&w);
    if (r->env->goal == GOAL_SCORES)
        TRY(store_selections(&w));
done:
    for (size_t u = 0; u < BLOCK_UNITS; u++) {
        layer_selector_free(w.selectors[u]);
        for (size_t i = 0; i < SCORE_SAMPLES; i++)
            score_columns_free(r->ctx, &w.columns[u][i]);
    }
    float_block_free(&w.linears);
    block_norms_free(r->ctx, &norms);
    mem_free(r->ctx, w.scratch);
    mem_free(r->ctx, w.smoothed);
    return status;
}

/* ---- memory ---- */

/* Of observed_linears and gemm_float while a batch passes. */
static size_t forward_bytes(const run_plan *plan, const segment_work *s)
{
    const tare_model *m = plan->env->model;
    size_t most = 0, products = gemm_float_bytes(plan->env->ctx);
    for (size_t i = segment_first(s); i < segment_end(s); i++) {
        const model_linear *l = &m->linears[i];
        size_t bytes = products;
        if (!plan->layout.whole_layer)
            bytes = float_linear_bytes(l, plan->env->compute) +
                    size_max(products, float_linear_making_bytes(l));
        most = size_max(most, size_max(bytes, score_update_bytes(l->k)));
    }
    return most;
}

static void packed_hold(ledger *l, const segment_work *s)
{
    const tare_model *m = l->plan->env->model;
    size_t making = 0;
    for (size_t i = segment_first(s); i < segment_end(s); i++) {
        const model_linear *linear = &m->linears[i];
        l->now[TERM_PACKED] += float_linear_bytes(linear, l->plan->env->compute);
        making = size_max(making, float_linear_making_bytes(linear));
    }
    ledger_moment(l, s->block->name, making);
}

/* While inputs are watched, and while scales are searched. */
static void smoothing_hold(ledger *l, const segment_work *s, size_t vectors)
{
    const run_plan *plan = l->plan;
    size_t h = plan->env->model->config.hidden_size, tokens = plan->score_tokens;
    if (plan->wants_scores && plan->env->num.compat)
        l->now[TERM_ACTIVATIONS] += stream_bytes(tokens, h, tokens, false);
    if (!smoothing_solves(plan))
        return;
    size_t watched = smoothing_watch_bytes(plan, s);
    size_t solving = vectors + smoothing_solve_bytes(plan, s);
    l->now[TERM_ACTIVATIONS] += watched;
    ledger_moment(l, s->block->name, forward_bytes(plan, s));
    l->now[TERM_SMOOTHING] += solving;
    ledger_moment(l, s->block->name, 0);
    l->now[TERM_SMOOTHING] -= solving;
    l->now[TERM_ACTIVATIONS] -= watched;
}

/* Vectors of a whole block are the most that a segment can have; where they do not wait for another
 * pass they stay until the block is written. */
void float_segment_hold(ledger *l, const segment_work *s)
{
    const run_plan *plan = l->plan;
    const ledger before = *l;
    if (s->is_expert) {
        if (plan->layout.whole_layer)
            packed_hold(l, s);
        ledger_moment(l, s->block->name, forward_bytes(plan, s));
        memcpy(l->now, before.now, sizeof l->now);
        return;
    }
    size_t vectors = smoothing_solves(plan) ? smoothing_layer_bytes(plan, s->block) : 0;
    size_t carried = carried_bytes(l, s, true, plan->float_tokens);
    if (kv_cache_of_floats(plan))
        carried += kv_cache_kept_bytes(plan, s->block->index);
    l->now[TERM_ACTIVATIONS] += carried;
    l->now[TERM_SCRATCH] += scoring_bytes(plan) + block_norms_bytes(s->block);
    if (plan->layout.whole_layer)
        packed_hold(l, s);
    if (plan->smooths)
        smoothing_hold(l, s, vectors);
    l->now[TERM_SMOOTHING] += vectors;
    if (plan->env->goal == GOAL_SCORES)
        l->now[TERM_SCRATCH] += layer_selectors_bytes(plan);
    ledger_moment(l, s->block->name, forward_bytes(plan, s));
    memcpy(l->now, before.now, sizeof l->now);
    if (!plan->float_beside)
        return;
    l->now[TERM_SMOOTHING] += vectors;
    l->now[TERM_ACTIVATIONS] += carried;
}

/* ---- the pass ---- */

tare_status score_head(run *r)
{
    tare_status status = TARE_OK;
    const model_config *c = &r->model->config;
    linear_score *score = &r->scores[r->model->num_linears - 1];
    score_state state;
    layer_selector *selector = NULL;
    float *norm = NULL, *x,
          *y = mem_alloc_array(r->ctx, r->env->samples.longest * c->hidden_size, 4),
          *scratch = mem_alloc_array(r->ctx, 2 * c->hidden_size, sizeof *scratch);
    score_init(&state);
    TRY(y && scratch ? TARE_OK : TARE_E_MEMORY);
    TRY(model_read_vector(r->model, r->model->final_norm, &norm));
    if (r->env->goal == GOAL_SCORES)
        TRY(layer_selector_create(r->ctx, r->env->range_method, &selector));
    for (size_t i = 0, row = 0; i < (selector ? r->plan->float_samples : r->plan->score_samples);
         row += r->env->samples.lengths[i++]) {
        size_t rows = r->env->samples.lengths[i];
        TRY(stream_get(r->floats.states, row, rows, &x));
        norm_rows(r->model, x, norm, NULL, rows, c->hidden_size, r->work.round, y);
        if (selector)
            TRY(layer_selector_update(selector, y, rows, c->hidden_size));
        else
            TRY(score_update(r->ctx, &r->env->num, &state, y, rows, c->hidden_size, scratch));
    }
    score->known = true;
    score->value = score_value(&r->env->num, &state);
    if (selector)
        TRY(layer_selector_score(selector, &score->value));
done:
    layer_selector_free(selector);
    mem_free(r->ctx, norm);
    mem_free(r->ctx, y);
    mem_free(r->ctx, scratch);
    return TARE_WRAP(r->ctx, status, "lm_head");
}

size_t score_head_bytes(const run_plan *plan)
{
    const tare_model *m = plan->env->model;
    size_t h = m->config.hidden_size;
    return model_read_vector_bytes(m->final_norm) + score_update_bytes(h) +
           mem_array_bytes(2 * h, sizeof(float)) +
           mem_array_bytes(plan->env->samples.longest * h, sizeof(float)) +
           (plan->env->goal == GOAL_SCORES ? layer_selectors_bytes(plan) : 0);
}

static tare_status put_float_row(void *user, size_t index, const float *x)
{
    run *r = user;
    return stream_put(r->floats.states, index, 1, x);
}

static tare_status float_segment(run *r, const segment_work *s)
{
    layer_source source = {0};
    tare_status status = overlap_read(r, s, &source);
    if (status == TARE_OK)
        status = layer_source_load(r, s, &source);
    if (status == TARE_OK)
        status = TARE_WRAP(r->ctx, float_segment_pass(r, s, &source), "%s", s->block->name);
    layer_source_free(r, &source);
    return status;
}

static tare_status float_block_pass(run *r, const model_block *block)
{
    tare_status status = TARE_OK;
    for (size_t i = 0; i < plan_segment_count(r->plan, block) && status == TARE_OK; i++) {
        segment_work s = plan_segment(r->plan, block, i);
        if (r->resume.expert && !s.segment->experts) /* the run goes on behind it */
            continue;
        status = s.segment->experts ? experts_run(r, &s, float_segment) : float_segment(r, &s);
    }
    means_end_block(r, block);
    return status;
}

static void float_weights_hold(ledger *l, const segment_work *s)
{
    const ledger before = *l;
    l->now[TERM_WEIGHTS] += overlap_bytes(l->plan, s, false);
    layer_source_hold(l, s);
    float_segment_hold(l, s);
    memcpy(l->now, before.now, sizeof l->now);
}

static void float_block_hold(ledger *l, const model_block *block)
{
    for (size_t i = 0; i < plan_segment_count(l->plan, block); i++) {
        const ledger before = *l;
        segment_work s = plan_segment(l->plan, block, i);
        if (s.segment->experts) {
            experts_hold(l, &s, false, true, float_weights_hold);
        } else {
            l->now[TERM_ACTIVATIONS] += carried_bytes(l, &s, false, l->plan->float_tokens);
            float_weights_hold(l, &s);
        }
        memcpy(l->now, before.now, sizeof l->now);
    }
}

tare_status float_pass(run *r)
{
    tare_status status = TARE_OK;
    size_t layers = r->model->num_blocks;
    bool scores = r->env->goal == GOAL_SCORES || r->plan->wants_scores;
    progress_begin(&r->progress, r->ctx,
                   r->env->goal == GOAL_SMOOTHING ? "smooth"
                   : means_are_open(r)            ? "align"
                                                  : "score",
                   "layer", layers);
    if (!r->resume.restores) {
        TRY(create_states(r, true));
        TRY(embed_tokens(r->model, r->env->samples.ids, r->plan->float_tokens, put_float_row, NULL,
                         r));
        stream_flip(r->floats.states);
    }
    TRY(overlap_start(r));
    progress_skip(&r->progress, r->resume.layer);
    for (size_t i = r->resume.layer; i < layers; i++) {
        if (i == r->model->config.num_layers && scores && r->resume.expert == 0)
            TRY(score_head(r));
        if (r->resume.expert == 0)
            TRY(mtp_enter(r, &r->model->blocks[i]));
        TRY(float_block_pass(r, &r->model->blocks[i]));
        progress_unit_done(&r->progress);
        if (resume_due(r, true))
            TRY(resume_save(r, i + 1, 0));
    }
    if (scores && mtp_blocks(r->model) == 0)
        TRY(score_head(r));
    overlap_stop(r);
    flow_free(r, &r->floats);
    r->resume.layer = 0;
    r->resume.restores = false; /* the second pass begins at its beginning */
done:
    return status;
}

void float_pass_hold(ledger *l)
{
    const run_plan *plan = l->plan;
    const tare_model *m = plan->env->model;
    const ledger before = *l;
    l->now[TERM_ACTIVATIONS] += ledger_stream_bytes(l, plan->float_tokens, m->config.hidden_size) +
                                mtp_flow_bytes(plan, plan->float_samples);
    ledger_moment(l, "model.embed_tokens", embed_tokens_bytes(m, plan->float_tokens));
    for (size_t i = 0; i < m->num_blocks; i++) {
        mtp_enter_hold(l, &m->blocks[i], false);
        float_block_hold(l, &m->blocks[i]);
    }
    ledger_moment(l, m->head->name, score_head_bytes(plan));
    memcpy(l->now, before.now, sizeof l->now);
}
