/* The steps of a run, and what each of them holds. The order is that of quantize.c, float_pass.c
 * and layer.c: who changes when something is made or freed there changes it here. */
#include <stdio.h>
#include <string.h>

#include "base/parallel.h"
#include "pipeline/memory_plan.h"

typedef struct planner {
    run *r;
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
    return (segment_work){.block = &p->r->model->blocks[layer],
                          .segment = &list->items[index],
                          .next = index + 1 < list->count ? &list->items[index + 1] : NULL};
}

/* ---- the float segment ---- */

/* What observed_linears and gemm_float need while a batch passes. */
static size_t forward_bytes(const planner *p, const segment_work *s)
{
    const run *r = p->r;
    size_t most = 0;
    for (size_t i = segment_first(s); i < segment_end(s); i++) {
        const model_linear *l = &r->model->linears[i];
        tare_dtype dtype = l->weight.dtype;
        size_t bytes = gemm_float_bytes(r->ctx);
        if (!p->layout.whole_layer)
            bytes = float_linear_bytes(r->model, l, r->compute, dtype) +
                    size_max(bytes, float_linear_making_bytes(l));
        most = size_max(most, size_max(bytes, score_update_bytes(l->k)));
    }
    return most;
}

static void pack_segment(planner *p, const segment_work *s)
{
    const run *r = p->r;
    size_t making = 0;
    for (size_t i = segment_first(s); i < segment_end(s); i++) {
        const model_linear *l = &r->model->linears[i];
        tare_dtype dtype = l->weight.dtype;
        p->now[TERM_PACKED] += float_linear_bytes(r->model, l, r->compute, dtype);
        making = size_max(making, float_linear_making_bytes(l));
    }
    moment(p, s->block->name, making);
}

/* All weights of the layer as they are stored. */
static void load_source(planner *p, const segment_work *s)
{
    const run *r = p->r;
    size_t reading = 0;
    for (size_t i = segment_first(s); i < segment_end(s); i++) {
        const model_linear *l = &r->model->linears[i];
        size_t kept = linear_raw_bytes(r->model, l), most = linear_read_bytes(r->model, l);
        p->now[TERM_WEIGHTS] += kept;
        reading = size_max(reading, most > kept ? most - kept : 0);
    }
    moment(p, s->block->name, reading);
}

/* Of a segment's vectors; those of a whole block are the most that there can be. */
static size_t vectors_bytes(const run *r, const model_block *block)
{
    return smoothing_solves(r) ? smoothing_layer_bytes(r, block) : 0;
}

/* Leaves the weights as they are stored behind, for the quantized segment. */
static void float_step(planner *p, const segment_work *s)
{
    const run *r = p->r;
    size_t before[TERM_COUNT], smooth = vectors_bytes(r, s->block);
    load_source(p, s);
    memcpy(before, p->now, sizeof before);
    p->now[TERM_SCRATCH] += float_scoring_bytes(r) + block_norms_bytes(s->block);
    if (p->layout.whole_layer)
        pack_segment(p, s);
    if (r->smoothing) {
        if (r->wants_scores && r->num.compat)
            p->now[TERM_ACTIVATIONS] += mem_array_bytes(
                r->score_tokens * r->model->config.hidden_size, sizeof(float));
        size_t watched = smoothing_solves(r) ? smoothing_watch_bytes(r, s) : 0;
        p->now[TERM_ACTIVATIONS] += watched;
        moment(p, s->block->name, forward_bytes(p, s));
        size_t solving = smoothing_solves(r) ? smooth + smoothing_solve_bytes(r, s) : 0;
        p->now[TERM_SMOOTHING] += solving;
        moment(p, s->block->name, 0);
        p->now[TERM_SMOOTHING] -= solving;
        p->now[TERM_ACTIVATIONS] -= watched;
    }
    p->now[TERM_SMOOTHING] += smooth;
    if (r->goal == GOAL_SCORES)
        p->now[TERM_SCRATCH] += layer_selectors_bytes(r);
    moment(p, s->block->name, forward_bytes(p, s));
    memcpy(p->now, before, sizeof before);
}

/* ---- the quantized segment ---- */

/* Until disable_level has decided which linears stay float the larger of the two counts. */
static bool may_be(const run *r, const linear_plan *f, bool quantized)
{
    bool open = r->recipe->disable_level > 0 && !r->levels_known;
    return quantized ? !plan_is_float(f) : plan_is_float(f) || open;
}

static size_t calibrate_bytes(const planner *p, const segment_work *s)
{
    const run *r = p->r;
    const model_config *c = &r->model->config;
    size_t most = size_max(gemm_u8s8_tiles_bytes(r->ctx), observer_update_bytes(r->ctx));
    most = size_max(most, gemm_float_bytes(r->ctx));
    if (segment_attends(s->block->graph, s->segment) && r->attentions[s->block->index].quantize)
        most = size_max(most,
                        fa_observe_bytes(r->ctx,
                                         (size_t[]){c->num_heads, c->num_kv_heads, c->num_kv_heads},
                                         c->head_dim, p->samples, r->samples.longest));
    return most;
}

static size_t smoothed_bytes(const run *r, const model_linear *l)
{
    return mem_array_bytes(l->n * l->k, dtype_size(output_weight(r, &l->weight).dtype));
}

/* A layer's linears as they are kept, with what a float one is written from. */
static size_t kept_bytes(const planner *p, const model_linear *l, const linear_plan *f,
                         size_t *packed, size_t *loading)
{
    const run *r = p->r;
    size_t weights = 0;
    *packed = *loading = 0;
    for (int quantized = 0; quantized < 2; quantized++) {
        live_linear_size s;
        if (!may_be(r, f, quantized))
            continue;
        live_linear_bytes(r, l, quantized ? f->scheme : SCHEME_FLOAT, &s);
        if (!quantized && p->layout.overlap)
            s.weights += size_max(linear_raw_bytes(r->model, l),
                                  smoothing_of(r, l) ? smoothed_bytes(r, l) : 0);
        *loading = size_max(*loading, s.loading);
        *packed = size_max(*packed, s.packed);
        weights = size_max(weights, s.weights);
    }
    return weights;
}

/* compressed-tensors packs the integers of W8A16. */
static size_t write_linear_bytes(const run *r, size_t i)
{
    const model_linear *l = &r->model->linears[i];
    size_t packing = r->linears[i].scheme == SCHEME_W8A16 ? output_rows_bytes(l->n, l->k, r->save)
                                                          : 0;
    return live_linear_write_bytes(l->n) + converted_bytes(r, &l->weight) + packing;
}

/* What the two threads hold while a block is computed: the weights of the next one, and in the
 * second pass the result of the last one. Such a block is one segment. */
static size_t overlap_bytes(const planner *p, size_t layer, bool quantizes)
{
    const run *r = p->r;
    size_t bytes = 0, packed, loading;
    if (!p->layout.overlap)
        return 0;
    if (layer + 1 < r->model->config.num_layers) {
        segment_work next = segment_at(p, layer + 1, 0);
        for (size_t i = segment_first(&next); i < segment_end(&next); i++)
            bytes += linear_raw_bytes(r->model, &r->model->linears[i]);
    }
    if (!quantizes || layer == 0)
        return bytes;
    segment_work last = segment_at(p, layer - 1, 0);
    for (size_t i = segment_first(&last); i < segment_end(&last); i++)
        bytes += kept_bytes(p, &r->model->linears[i], &r->linears[i], &packed, &loading) +
                 write_linear_bytes(r, i);
    return bytes + block_norms_bytes(last.block);
}

/* Are all weights of a layer read before the first is used? */
static bool has_source(const planner *p)
{
    return p->r->float_beside || p->layout.overlap;
}

/* Linear by linear; what has been read already goes as it is used. */
static void load_segment(planner *p, const segment_work *s)
{
    const run *r = p->r;
    for (size_t i = segment_first(s); i < segment_end(s); i++) {
        const model_linear *l = &r->model->linears[i];
        size_t loading, packed, weights = kept_bytes(p, l, &r->linears[i], &packed, &loading);
        if (has_source(p))
            p->now[TERM_WEIGHTS] -= linear_raw_bytes(r->model, l);
        size_t raw = linear_raw_bytes(r->model, l);
        p->now[TERM_WEIGHTS] += raw;
        moment(p, l->name, loading > raw ? loading - raw : 0);
        p->now[TERM_WEIGHTS] += weights;
        p->now[TERM_WEIGHTS] -= raw;
        p->now[TERM_PACKED] += packed;
    }
}

static size_t write_bytes(const run *r, const segment_work *s)
{
    size_t most = 0;
    for (size_t i = segment_first(s); i < segment_end(s); i++)
        most = size_max(most, write_linear_bytes(r, i));
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
    const run *r = p->r;
    size_t before[TERM_COUNT];
    memcpy(before, p->now, sizeof before);
    p->now[TERM_ACTIVATIONS] += boundaries_bytes(p, s, r->samples.tokens);
    if (r->float_beside) {
        p->now[TERM_ACTIVATIONS] += boundaries_bytes(p, s, r->floats.tokens);
        float_step(p, s);
        p->now[TERM_SMOOTHING] += vectors_bytes(r, s->block);
    } else if (has_source(p)) {
        load_source(p, s);
    }
    load_segment(p, s);
    p->now[TERM_WORKSPACE] += calibrated_segment_bytes(r, s, p->rows);
    p->now[TERM_SCRATCH] += block_norms_bytes(s->block);
    moment(p, s->block->name, calibrate_bytes(p, s));
    moment(p, s->block->name, write_bytes(r, s));
    memcpy(p->now, before, sizeof before);
}

/* ---- before and after the layers ---- */

static size_t copy_bytes(const run *r, const stored_weight *w)
{
    return stored_stream_bytes(w) + write_float_rows_bytes(r, w);
}

static size_t score_head_bytes(const run *r)
{
    size_t h = r->model->config.hidden_size;
    return model_read_vector_bytes(r->model->final_norm) + score_update_bytes(h) +
           mem_array_bytes(r->samples.longest * h, sizeof(float));
}

static void head(planner *p)
{
    const run *r = p->r;
    const model_linear *l = r->model->head;
    const linear_plan *f = &r->linears[r->model->num_linears - 1];
    size_t norm = model_read_vector_bytes(r->model->final_norm);
    live_linear_size s;
    moment(p, l->name, norm + copy_bytes(r, &l->weight));
    if (!may_be(r, f, true))
        return;
    live_linear_bytes(r, l, f->scheme, &s);
    size_t raw = linear_raw_bytes(r->model, l), own = norm + observer_bytes(r->samples.count);
    p->now[TERM_WEIGHTS] += raw;
    moment(p, l->name, own + (s.loading > raw ? s.loading - raw : 0));
    moment(p, l->name, own + observer_update_bytes(r->ctx) + score_head_bytes(r));
    p->now[TERM_WEIGHTS] += s.weights - raw;
    moment(p, l->name, own + live_linear_write_bytes(l->n));
    p->now[TERM_WEIGHTS] -= s.weights;
}

static void finish(planner *p)
{
    const run *r = p->r;
    size_t widest = r->model->config.vocab_size;
    for (size_t i = 0; i < r->model->num_linears; i++)
        widest = size_max(widest, r->model->linears[i].n);
    moment(p, "the finished files", output_finish_bytes(run_tensors(r), widest));
}

/* Batches hold whole samples, as batch_next cuts them. */
static void measure_batches(planner *p)
{
    const sample_set *s = &p->r->samples;
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
    const run *r = p->r;
    size_t before[TERM_COUNT];
    memcpy(before, p->now, sizeof before);
    p->now[TERM_ACTIVATIONS] += stream_bytes(p, r->floats.tokens, r->model->config.hidden_size);
    moment(p, "model.embed_tokens", embed_tokens_bytes(r->model, r->floats.tokens));
    for (size_t i = 0; i < r->model->config.num_layers; i++) {
        size_t held = p->now[TERM_WEIGHTS];
        p->now[TERM_WEIGHTS] += overlap_bytes(p, i, false);
        for (size_t j = 0; j < p->segments.count; j++) {
            segment_work s = segment_at(p, i, j);
            size_t boundaries = boundaries_bytes(p, &s, r->floats.tokens);
            size_t weights = p->now[TERM_WEIGHTS];
            p->now[TERM_ACTIVATIONS] += boundaries;
            float_step(p, &s);
            p->now[TERM_ACTIVATIONS] -= boundaries;
            p->now[TERM_WEIGHTS] = weights;
        }
        p->now[TERM_WEIGHTS] = held;
    }
    moment(p, r->model->head->name,
           score_head_bytes(r) + (r->goal == GOAL_SCORES ? layer_selectors_bytes(r) : 0));
    memcpy(p->now, before, sizeof before);
}

/* Smoothing vectors of all layers wait for the second pass. */
static size_t waiting_vectors(const run *r)
{
    size_t bytes = 0;
    for (size_t i = 0; smoothing_solves(r) && i < r->model->config.num_layers; i++)
        bytes += smoothing_layer_bytes(r, &r->model->blocks[i]);
    return bytes;
}

static void second_pass(planner *p)
{
    const run *r = p->r;
    const tare_model *m = r->model;
    p->now[TERM_ACTIVATIONS] += stream_bytes(p, r->samples.tokens, r->model->config.hidden_size);
    if (r->float_beside)
        p->now[TERM_ACTIVATIONS] += stream_bytes(p, r->floats.tokens, r->model->config.hidden_size);
    moment(p, "model.embed_tokens",
           embed_tokens_bytes(m, r->samples.tokens) + write_float_rows_bytes(r, &m->embedding));
    for (size_t i = 0; i < m->config.num_layers; i++) {
        size_t threads = overlap_bytes(p, i, true);
        p->now[TERM_WEIGHTS] += threads;
        for (size_t j = 0; j < p->segments.count; j++) {
            segment_work s = segment_at(p, i, j);
            quantized_segment(p, &s);
        }
        p->now[TERM_WEIGHTS] -= threads;
    }
    head(p);
    for (size_t i = 0; i < m->num_extra; i++) {
        stored_weight extra = stored_whole(m->extra[i]);
        moment(p, extra.name, copy_bytes(r, &extra));
    }
}

/* Weight files of a layout that are written to at a time: a shard and the next one, but all of them
 * where attention comes last. */
static size_t open_files(const run *r, layout which)
{
    int gib = r->recipe->part_file_size >= 0 ? (int)r->recipe->part_file_size
                                             : save_type_of(which)->part_gib;
    if (which == LAYOUT_NUMPY)
        return NPY_FILES;
    if (gib == 0)
        return 1;
    uint64_t shards = checkpoint_bytes(r->model->checkpoint) / ((uint64_t)gib << 30) + 1;
    return r->recipe->fa_amp > 0 && r->num_fa > 0 ? (size_t)shards : shards > 1 ? 2 : 1;
}

/* Journal, checkpoints, and the buffers of direct writes. */
static size_t journal_bytes(const run *r)
{
    enum { CHECKPOINT = 2 << 20, RANGE = 160 };
    size_t bytes = CHECKPOINT + RANGE * run_tensors(r);
    for (int which = 0; which < SAVE_TYPES; which++) {
        if (r->save & 1u << which)
            bytes += open_files(r, (layout)which) * file_write_bytes();
    }
    return bytes;
}

void memory_plan_peak(run *r, const run_layout *chosen, size_t fixed, const run_pass *only,
                      memory_peak *out)
{
    planner p = {.r = r, .layout = *chosen};
    size_t files = output_state_bytes(run_tensors(r), r->save) + journal_bytes(r);
    measure_batches(&p);
    run_segments(r, p.layout.cut, &p.segments);
    p.now[TERM_FIXED] = fixed;
    if (p.rows > 0)
        p.now[TERM_WORKSPACE] = workspace_bytes(r->model, p.rows, r->samples.longest);
    if (r->two_passes) {
        p.now[TERM_SMOOTHING] = waiting_vectors(r);
        if (!only || *only == PASS_FLOAT)
            first_pass(&p);
    }
    if (r->goal != GOAL_OUTPUT) {
        if (r->goal == GOAL_SMOOTHING)
            moment(&p, "the smoothing", smoothing_keep_bytes(r));
        *out = p.peak;
        return;
    }
    p.now[TERM_OUTPUT] = files;
    if (!r->calibrates) {
        memset(p.now, 0, sizeof p.now);
        p.now[TERM_FIXED] = fixed;
        p.now[TERM_OUTPUT] = files;
        moment(&p, "pieces of weights", weight_pass_bytes(r));
    } else if (!only || *only == PASS_QUANTIZE) {
        second_pass(&p);
    }
    memset(p.now, 0, sizeof p.now);
    p.now[TERM_FIXED] = fixed;
    p.now[TERM_OUTPUT] = files;
    finish(&p);
    *out = p.peak;
}
