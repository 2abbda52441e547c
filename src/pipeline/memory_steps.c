/* The steps of a run, and what each of them holds. The order is that of quantize.c, float_pass.c
 * and layer.c: who changes when something is made or freed there changes it here. */
#include <stdio.h>
#include <string.h>

#include "base/parallel.h"
#include "pipeline/memory_plan.h"
#include "pipeline/run.h"

typedef struct planner {
    const run_plan *plan;
    run_layout layout;
    segment_list segments;
    size_t rows;    /* of a batch, at most */
    size_t samples; /* of a batch, at most */
    size_t now[TERM_COUNT];
    memory_peak peak;
} planner;

/* What is held now, with `scratch` bytes more for a moment. */
static void moment(planner *p, const char *unit, size_t scratch)
{
    size_t total = scratch;
    for (int i = 0; i < TERM_COUNT; i++)
        total += p->now[i];
    if (total <= p->peak.total)
        return;
    snprintf(p->peak.unit, sizeof p->peak.unit, "%s", unit);
    memcpy(p->peak.terms, p->now, sizeof p->now);
    p->peak.terms[TERM_SCRATCH] += scratch;
    p->peak.total = total;
}

/* A stream in memory, or what is in memory of one that is spilled. */
static size_t stream_bytes(const planner *p, size_t tokens, size_t columns)
{
    return p->layout.spill ? 2 * mem_array_bytes(p->rows * columns, sizeof(float))
                           : mem_array_bytes(tokens * columns, sizeof(float));
}

static segment_work segment_at(const planner *p, size_t layer, size_t index)
{
    const segment_list *list = &p->segments;
    return (segment_work){.block = &p->plan->env->model->blocks[layer],
                          .segment = &list->items[index],
                          .next = index + 1 < list->count ? &list->items[index + 1] : NULL};
}

/* ---- the float segment ---- */

/* What observed_linears and gemm_float need while a batch passes. */
static size_t forward_bytes(const planner *p, const segment_work *s)
{
    const run_plan *plan = p->plan;
    size_t most = 0;
    for (size_t i = segment_first(s); i < segment_end(s); i++) {
        const model_linear *l = &plan->env->model->linears[i];
        tare_dtype dtype = linear_raw_dtype(plan->env->model, l);
        size_t bytes = gemm_float_bytes(plan->env->ctx);
        if (!p->layout.whole_layer)
            bytes = float_linear_bytes(plan->env->model, l, plan->env->compute, dtype) +
                    size_max(bytes, float_linear_making_bytes(l));
        most = size_max(most, size_max(bytes, score_update_bytes(l->k)));
    }
    return most;
}

static void pack_segment(planner *p, const segment_work *s)
{
    const run_plan *plan = p->plan;
    size_t making = 0;
    for (size_t i = segment_first(s); i < segment_end(s); i++) {
        const model_linear *l = &plan->env->model->linears[i];
        tare_dtype dtype = linear_raw_dtype(plan->env->model, l);
        p->now[TERM_PACKED] += float_linear_bytes(plan->env->model, l, plan->env->compute, dtype);
        making = size_max(making, float_linear_making_bytes(l));
    }
    moment(p, s->block->name, making);
}

/* All weights of the layer as they are stored. */
static void load_source(planner *p, const segment_work *s)
{
    const run_plan *plan = p->plan;
    size_t reading = 0;
    for (size_t i = segment_first(s); i < segment_end(s); i++) {
        const model_linear *l = &plan->env->model->linears[i];
        size_t kept = linear_raw_bytes(plan->env->model, l),
               most = linear_read_bytes(plan->env->model, l);
        p->now[TERM_WEIGHTS] += kept;
        reading = size_max(reading, most > kept ? most - kept : 0);
    }
    moment(p, s->block->name, reading);
}

/* Of a segment's vectors; those of a whole block are the most that there can be. */
static size_t vectors_bytes(const run_plan *plan, const model_block *block)
{
    return smoothing_solves(plan) ? smoothing_layer_bytes(plan, block) : 0;
}

/* Leaves the weights as they are stored behind, for the quantized segment. */
static void float_step(planner *p, const segment_work *s)
{
    const run_plan *plan = p->plan;
    size_t before[TERM_COUNT], smooth = vectors_bytes(plan, s->block);
    load_source(p, s);
    memcpy(before, p->now, sizeof before);
    p->now[TERM_SCRATCH] += float_scoring_bytes(plan) + block_norms_bytes(s->block);
    if (p->layout.whole_layer)
        pack_segment(p, s);
    if (plan->smooths) {
        if (plan->wants_scores && plan->env->num.compat)
            p->now[TERM_ACTIVATIONS] += mem_array_bytes(
                plan->score_tokens * plan->env->model->config.hidden_size, sizeof(float));
        size_t watched = smoothing_solves(plan) ? smoothing_watch_bytes(plan, s) : 0;
        p->now[TERM_ACTIVATIONS] += watched;
        moment(p, s->block->name, forward_bytes(p, s));
        size_t solving = smoothing_solves(plan) ? smooth + smoothing_solve_bytes(plan, s) : 0;
        p->now[TERM_SMOOTHING] += solving;
        moment(p, s->block->name, 0);
        p->now[TERM_SMOOTHING] -= solving;
        p->now[TERM_ACTIVATIONS] -= watched;
    }
    p->now[TERM_SMOOTHING] += smooth;
    if (plan->env->goal == GOAL_SCORES)
        p->now[TERM_SCRATCH] += layer_selectors_bytes(plan);
    moment(p, s->block->name, forward_bytes(p, s));
    memcpy(p->now, before, sizeof before);
}

/* ---- the quantized segment ---- */

/* Until disable_level has decided which linears stay float the larger of the two counts. */
static bool may_be(const run_plan *plan, const linear_plan *f, bool quantized)
{
    bool open = plan->env->recipe->disable_level > 0 && !plan->levels_known;
    return quantized ? !plan_is_float(f) : plan_is_float(f) || open;
}

static size_t calibrate_bytes(const planner *p, const segment_work *s)
{
    const run_plan *plan = p->plan;
    const model_config *c = &plan->env->model->config;
    size_t most = size_max(gemm_u8s8_tiles_bytes(plan->env->ctx),
                           observer_update_bytes(plan->env->ctx));
    most = size_max(most, gemm_float_bytes(plan->env->ctx));
    if (segment_attends(s->block->graph, s->segment) && plan->attentions[s->block->index].quantize)
        most = size_max(most,
                        fa_observe_bytes(plan->env->ctx,
                                         (size_t[]){c->num_heads, c->num_kv_heads, c->num_kv_heads},
                                         c->head_dim, p->samples, plan->env->samples.longest));
    return most;
}

/* A layer's linears as they are kept, with what a float one is written from. */
static size_t kept_bytes(const planner *p, const model_linear *l, const linear_plan *f,
                         size_t *packed, size_t *loading)
{
    const run_plan *plan = p->plan;
    size_t weights = 0;
    *packed = *loading = 0;
    for (int quantized = 0; quantized < 2; quantized++) {
        live_linear_size s;
        if (!may_be(plan, f, quantized))
            continue;
        live_linear_bytes(plan, l, quantized ? f->scheme : SCHEME_FLOAT, &s);
        if (!quantized && p->layout.overlap)
            s.weights += linear_raw_bytes(plan->env->model, l);
        *loading = size_max(*loading, s.loading);
        *packed = size_max(*packed, s.packed);
        weights = size_max(weights, s.weights);
    }
    return weights;
}

/* compressed-tensors packs the integers of W8A16. */
static size_t write_linear_bytes(const run_plan *plan, size_t i)
{
    const model_linear *l = &plan->env->model->linears[i];
    size_t packing = plan->linears[i].scheme == SCHEME_W8A16
                         ? output_rows_bytes(l->n, l->k, plan->env->save)
                         : 0;
    return live_linear_write_bytes(l->n) + packing;
}

/* What the two threads hold while a block is computed: the weights of the next one, and in the
 * second pass the result of the last one. Such a block is one segment. */
static size_t overlap_bytes(const planner *p, size_t layer, bool quantizes)
{
    const run_plan *plan = p->plan;
    size_t bytes = 0, packed, loading;
    if (!p->layout.overlap)
        return 0;
    if (layer + 1 < plan->env->model->config.num_layers) {
        segment_work next = segment_at(p, layer + 1, 0);
        for (size_t i = segment_first(&next); i < segment_end(&next); i++)
            bytes += linear_raw_bytes(plan->env->model, &plan->env->model->linears[i]);
    }
    if (!quantizes || layer == 0)
        return bytes;
    segment_work last = segment_at(p, layer - 1, 0);
    for (size_t i = segment_first(&last); i < segment_end(&last); i++)
        bytes += kept_bytes(p, &plan->env->model->linears[i], &plan->linears[i], &packed,
                            &loading) +
                 write_linear_bytes(plan, i);
    return bytes + block_norms_bytes(last.block);
}

/* Are all weights of a layer read before the first is used? */
static bool has_source(const planner *p)
{
    return p->plan->float_beside || p->layout.overlap;
}

/* Linear by linear; what has been read already goes as it is used. */
static void load_segment(planner *p, const segment_work *s)
{
    const run_plan *plan = p->plan;
    for (size_t i = segment_first(s); i < segment_end(s); i++) {
        const model_linear *l = &plan->env->model->linears[i];
        size_t loading, packed, weights = kept_bytes(p, l, &plan->linears[i], &packed, &loading);
        if (has_source(p))
            p->now[TERM_WEIGHTS] -= linear_raw_bytes(plan->env->model, l);
        size_t raw = linear_raw_bytes(plan->env->model, l);
        p->now[TERM_WEIGHTS] += raw;
        moment(p, l->name, loading > raw ? loading - raw : 0);
        p->now[TERM_WEIGHTS] += weights;
        p->now[TERM_WEIGHTS] -= raw;
        p->now[TERM_PACKED] += packed;
    }
}

static size_t write_bytes(const run_plan *plan, const segment_work *s)
{
    size_t most = 0;
    for (size_t i = segment_first(s); i < segment_end(s); i++)
        most = size_max(most, write_linear_bytes(plan, i));
    return most;
}

/* Streams of what goes on from segment to segment, of `tokens` tokens. */
static size_t carried_bytes(const planner *p, const block_graph *g, const block_segment *s,
                            size_t tokens)
{
    size_t bytes = 0;
    for (size_t i = 0; s && i < s->num_carried; i++)
        bytes += stream_bytes(p, tokens, g->values[s->carried[i]].columns);
    return bytes;
}

/* Before a segment and behind it, of a flow. */
static size_t boundaries_bytes(const planner *p, const segment_work *s, size_t tokens)
{
    return carried_bytes(p, s->block->graph, s->segment, tokens) +
           carried_bytes(p, s->block->graph, s->next, tokens);
}

static void quantized_segment(planner *p, const segment_work *s)
{
    const run_plan *plan = p->plan;
    size_t before[TERM_COUNT];
    memcpy(before, p->now, sizeof before);
    p->now[TERM_ACTIVATIONS] += boundaries_bytes(p, s, plan->env->samples.tokens);
    if (plan->float_beside) {
        p->now[TERM_ACTIVATIONS] += boundaries_bytes(p, s, plan->float_tokens);
        float_step(p, s);
        p->now[TERM_SMOOTHING] += vectors_bytes(plan, s->block);
    } else if (has_source(p)) {
        load_source(p, s);
    }
    load_segment(p, s);
    p->now[TERM_WORKSPACE] += calibrated_segment_bytes(plan, s, p->rows);
    p->now[TERM_SCRATCH] += block_norms_bytes(s->block);
    moment(p, s->block->name, calibrate_bytes(p, s));
    moment(p, s->block->name, write_bytes(plan, s));
    memcpy(p->now, before, sizeof before);
}

/* ---- before and after the layers ---- */

static size_t score_head_bytes(const run_plan *plan)
{
    size_t h = plan->env->model->config.hidden_size;
    return model_read_vector_bytes(plan->env->model->final_norm) + score_update_bytes(h) +
           mem_array_bytes(plan->env->samples.longest * h, sizeof(float));
}

static void behind_layers(planner *p)
{
    const run_plan *plan = p->plan;
    const tare_model *m = plan->env->model;
    if (may_be(plan, &plan->linears[m->num_linears - 1], true))
        moment(p, m->head->name,
               model_read_vector_bytes(m->final_norm) + observer_bytes(plan->env->samples.count) +
                   observer_update_bytes(plan->env->ctx) + score_head_bytes(plan));
    moment(p, m->head->name, pieces_bytes(plan, p->layout.overlap));
}

static void finish(planner *p)
{
    const run_plan *plan = p->plan;
    size_t widest = plan->env->model->config.vocab_size;
    for (size_t i = 0; i < plan->env->model->num_linears; i++)
        widest = size_max(widest, plan->env->model->linears[i].n);
    moment(p, "the finished files", output_finish_bytes(plan_tensors(plan), widest));
}

/* Batches hold whole samples, as batch_next cuts them. */
static void measure_batches(planner *p)
{
    const sample_set *s = &p->plan->env->samples;
    for (size_t first = 0; first < s->count;) {
        batch b = batch_next(s->lengths, first, s->count, p->layout.batch_rows);
        p->rows = size_max(p->rows, b.rows);
        p->samples = size_max(p->samples, b.samples);
        first += b.samples;
    }
    p->rows = size_max(p->layout.batch_rows, s->longest);
    p->rows = s->tokens < p->rows ? s->tokens : p->rows;
}

static void first_pass(planner *p)
{
    const run_plan *plan = p->plan;
    size_t before[TERM_COUNT];
    memcpy(before, p->now, sizeof before);
    p->now[TERM_ACTIVATIONS] += stream_bytes(p, plan->float_tokens,
                                             plan->env->model->config.hidden_size);
    moment(p, "model.embed_tokens", embed_tokens_bytes(plan->env->model, plan->float_tokens));
    for (size_t i = 0; i < plan->env->model->config.num_layers; i++) {
        size_t held = p->now[TERM_WEIGHTS];
        p->now[TERM_WEIGHTS] += overlap_bytes(p, i, false);
        for (size_t j = 0; j < p->segments.count; j++) {
            segment_work s = segment_at(p, i, j);
            size_t boundaries = boundaries_bytes(p, &s, plan->float_tokens);
            size_t weights = p->now[TERM_WEIGHTS];
            p->now[TERM_ACTIVATIONS] += boundaries;
            float_step(p, &s);
            p->now[TERM_ACTIVATIONS] -= boundaries;
            p->now[TERM_WEIGHTS] = weights;
        }
        p->now[TERM_WEIGHTS] = held;
    }
    moment(p, plan->env->model->head->name,
           score_head_bytes(plan) +
               (plan->env->goal == GOAL_SCORES ? layer_selectors_bytes(plan) : 0));
    memcpy(p->now, before, sizeof before);
}

/* Smoothing vectors of all layers wait for the second pass. */
static size_t waiting_vectors(const run_plan *plan)
{
    size_t bytes = 0;
    for (size_t i = 0; smoothing_solves(plan) && i < plan->env->model->config.num_layers; i++)
        bytes += smoothing_layer_bytes(plan, &plan->env->model->blocks[i]);
    return bytes;
}

static void second_pass(planner *p)
{
    const run_plan *plan = p->plan;
    const tare_model *m = plan->env->model;
    p->now[TERM_ACTIVATIONS] += stream_bytes(p, plan->env->samples.tokens,
                                             plan->env->model->config.hidden_size);
    if (plan->float_beside)
        p->now[TERM_ACTIVATIONS] += stream_bytes(p, plan->float_tokens,
                                                 plan->env->model->config.hidden_size);
    moment(p, "model.embed_tokens",
           embed_tokens_bytes(m, plan->env->samples.tokens) +
               write_float_rows_bytes(plan->env, m->embedding));
    for (size_t i = 0; i < m->config.num_layers; i++) {
        size_t threads = overlap_bytes(p, i, true);
        p->now[TERM_WEIGHTS] += threads;
        for (size_t j = 0; j < p->segments.count; j++) {
            segment_work s = segment_at(p, i, j);
            quantized_segment(p, &s);
        }
        p->now[TERM_WEIGHTS] -= threads;
    }
    behind_layers(p);
}

/* Weight files of a layout that are written to at a time: a shard and the next one, but all of them
 * where attention comes last. */
static size_t open_files(const run_plan *plan, layout which)
{
    int gib = plan->env->recipe->part_file_size >= 0 ? (int)plan->env->recipe->part_file_size
                                                     : save_type_of(which)->part_gib;
    if (which == LAYOUT_NUMPY)
        return NPY_FILES;
    if (gib == 0)
        return 1;
    uint64_t shards = checkpoint_bytes(plan->env->model->checkpoint) / ((uint64_t)gib << 30) + 1;
    return plan->env->recipe->fa_amp > 0 && plan->num_fa > 0 ? (size_t)shards : shards > 1 ? 2 : 1;
}

/* Journal, checkpoints, and the buffers of direct writes. */
static size_t journal_bytes(const run_plan *plan)
{
    enum { CHECKPOINT = 2 << 20, RANGE = 160 };
    size_t bytes = CHECKPOINT + RANGE * plan_tensors(plan);
    for (int which = 0; which < SAVE_TYPES; which++) {
        if (plan->env->save & 1u << which)
            bytes += open_files(plan, (layout)which) * file_write_bytes();
    }
    return bytes;
}

void memory_plan_peak(const run_plan *plan, const run_layout *chosen, size_t fixed,
                      const run_pass *only, memory_peak *out)
{
    planner p = {.plan = plan, .layout = *chosen};
    size_t files = output_state_bytes(plan_tensors(plan), plan->env->save) + journal_bytes(plan);
    measure_batches(&p);
    plan_segments(plan, p.layout.cut, &p.segments);
    p.now[TERM_FIXED] = fixed;
    if (p.rows > 0)
        p.now[TERM_WORKSPACE] = workspace_bytes(plan->env->model, p.rows,
                                                plan->env->samples.longest);
    if (plan->two_passes) {
        p.now[TERM_SMOOTHING] = waiting_vectors(plan);
        if (!only || *only == PASS_FLOAT)
            first_pass(&p);
    }
    if (plan->env->goal != GOAL_OUTPUT) {
        if (plan->env->goal == GOAL_SMOOTHING)
            moment(&p, "the smoothing", smoothing_keep_bytes(plan));
        *out = p.peak;
        return;
    }
    p.now[TERM_OUTPUT] = files;
    if (!plan->calibrates) {
        memset(p.now, 0, sizeof p.now);
        p.now[TERM_FIXED] = fixed;
        p.now[TERM_OUTPUT] = files;
        moment(&p, "pieces of weights", pieces_bytes(plan, p.layout.overlap));
    } else if (!only || *only == PASS_QUANTIZE) {
        second_pass(&p);
    }
    memset(p.now, 0, sizeof p.now);
    p.now[TERM_FIXED] = fixed;
    p.now[TERM_OUTPUT] = files;
    finish(&p);
    *out = p.peak;
}
