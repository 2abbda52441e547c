/* One decoder layer over all samples, segment by segment: what each of them goes through stands in
 * one table, for the run and for the plan of its memory. */
#include <string.h>

#include "pipeline/smoothing.h"
#include "pipeline/statistics.h"

/* ---- the weights as they are stored ---- */

tare_status layer_source_load(run *r, const segment_work *s, layer_source *source)
{
    tare_status status = TARE_OK;
    for (size_t i = s->segment->first_linear; i < s->segment->end_linear; i++) {
        TRY(context_check_cancelled(r->ctx));
        if (!source->raw[i].data)
            TRY(stored_load(r->model->checkpoint, &block_linear(r->model, s->block, i)->weight,
                            &source->raw[i]));
    }
done:
    return TARE_WRAP(r->ctx, status, "%s", s->block->name);
}

void layer_source_free(run *r, layer_source *source)
{
    for (size_t i = 0; i < BLOCK_LINEARS; i++)
        coded_free(r->ctx, &source->raw[i]);
    *source = (layer_source){0};
}

void layer_source_hold(ledger *l, const segment_work *s)
{
    const tare_model *m = l->plan->env->model;
    size_t reading = 0;
    for (size_t i = segment_first(s); i < segment_end(s); i++) {
        size_t kept = linear_raw_bytes(&m->linears[i]), most = linear_read_bytes(&m->linears[i]);
        l->now[TERM_WEIGHTS] += kept;
        reading = size_max(reading, most > kept ? most - kept : 0);
    }
    ledger_moment(l, s->block->name, reading);
}

/* ---- the results ---- */

/* The block's own, or those inside of its modules. */
static tare_status write_norms(run *r, const layer_output *o, bool inside)
{
    tare_status status = TARE_OK;
    const block_graph *g = o->work.block->graph;
    for (size_t i = 0; i < g->num_norms; i++) {
        if (o->norms.weights[i] && graph_norm_is_inside(g, i) == inside)
            TRY(write_norm(r, o->work.block->norms[i], o->norms.weights[i], o->norms.biases[i]));
    }
done:
    return status;
}

/* What steers the choice of experts, as it is written. */
static tare_status write_correction(run *r, const model_block *b)
{
    tare_status status = TARE_OK;
    coded_rows rows = {0};
    if (!b->correction)
        return TARE_OK;
    stored_weight correction = stored_whole(b->correction);
    TRY(stored_load(r->model->checkpoint, &correction, &rows));
    TRY(write_float_rows(r, &correction, 0, correction.n, &rows));
done:
    coded_free(r->ctx, &rows);
    return status;
}

/* The order of the tensors in files that are streams: floats, which need not wait for calibration,
 * attention, linears, norms, and in front of experts what steers their choice. */
tare_status layer_output_write(run *r, layer_output *o)
{
    tare_status status = TARE_OK;
    const model_block *b = o->work.block;
    const block_segment *s = o->work.segment;
    const block_graph *g = b->graph;
    for (size_t i = s->first_linear; i < s->end_linear; i++)
        TRY(live_linear_write_float(r, &o->linears[i]));
    if (segment_attends(g, s)) {
        TRY(attention_write(r, b->index));
        TRY(kv_cache_write(r, b->index, o->kv));
    }
    for (size_t i = s->first_linear; i < s->end_linear; i++) {
        if (o->linears[i].scheme != SCHEME_FLOAT)
            TRY(live_linear_write(r, &o->linears[i], &o->params[g->linears[i].unit]));
    }
    TRY(write_norms(r, o, false));
    TRY(write_norms(r, o, true));
    if (o->work.next && o->work.next->experts)
        TRY(write_correction(r, b));
done:
    return TARE_WRAP(r->ctx, status, "%s", b->name);
}

void layer_output_free(run *r, layer_output *o)
{
    kv_observer_free(o->kv);
    o->kv = NULL;
    block_norms_free(r->ctx, &o->norms);
    for (size_t i = 0; i < BLOCK_LINEARS; i++)
        live_linear_free(r, &o->linears[i]);
}

/* ---- what a segment goes through ---- */

typedef struct segment_stage {
    run *run;
    layer_output out;
    layer_source source; /* weights that have been read already */
} segment_stage;

static void stage_free(segment_stage *g)
{
    layer_source_free(g->run, &g->source);
    layer_output_free(g->run, &g->out);
}

/* Are all weights of a segment read before the first is used? */
static bool reads_first(const run_plan *plan)
{
    return plan->float_beside || plan->layout.overlap;
}

static tare_status read_source(segment_stage *g)
{
    run *r = g->run;
    tare_status status = overlap_read(r, &g->out.work, &g->source);
    if (status == TARE_OK && reads_first(r->plan))
        status = layer_source_load(r, &g->out.work, &g->source);
    return status;
}

static void hold_source(ledger *l, const segment_work *s)
{
    if (reads_first(l->plan))
        layer_source_hold(l, s);
}

static tare_status pass_floats(segment_stage *g)
{
    return g->run->floats.states ? float_segment_pass(g->run, &g->out.work, &g->source) : TARE_OK;
}

static void hold_floats(ledger *l, const segment_work *s)
{
    if (l->plan->float_beside)
        float_segment_hold(l, s);
}

static tare_status load_linears(segment_stage *g)
{
    tare_status status = TARE_OK;
    run *r = g->run;
    const segment_work *s = &g->out.work;
    for (size_t i = s->segment->first_linear; i < s->segment->end_linear; i++) {
        const model_linear *l = block_linear(r->model, s->block, i);
        linear_scheme scheme = r->plan->linears[s->block->first_linear + i].scheme;
        TRY(context_check_cancelled(r->ctx));
        TRY(live_linear_load(r, l, scheme, &g->source.raw[i], &g->out.linears[i]));
    }
done:
    return status;
}

/* What has been read already goes as it is used. */
static void hold_linears(ledger *l, const segment_work *s)
{
    const run_plan *plan = l->plan;
    for (size_t i = segment_first(s); i < segment_end(s); i++) {
        const model_linear *m = &plan->env->model->linears[i];
        size_t raw = linear_raw_bytes(m);
        live_linear_size size = live_linear_most(plan, i);
        l->now[TERM_WEIGHTS] += reads_first(plan) ? 0 : raw;
        ledger_moment(l, m->name, size.loading > raw ? size.loading - raw : 0);
        l->now[TERM_WEIGHTS] -= raw;
        l->now[TERM_WEIGHTS] += size.weights + size.raw;
        l->now[TERM_PACKED] += size.packed;
    }
}

static tare_status calibrate(segment_stage *g)
{
    run *r = g->run;
    tare_status status = calibrate_segment(r, &g->out);
    for (size_t i = 0; i < BLOCK_LINEARS; i++) { /* only the integers are needed any more */
        gemm_weight_free(r->ctx, g->out.linears[i].weight);
        g->out.linears[i].weight = NULL;
    }
    return status;
}

static tare_status write_result(segment_stage *g)
{
    return overlap_write(g->run, &g->out);
}

static void hold_writing(ledger *l, const segment_work *s)
{
    size_t most = kv_cache_write_bytes(l->plan, s->block->index);
    for (size_t i = segment_first(s); i < segment_end(s); i++)
        most = size_max(most, live_linear_write_bytes(l->plan, i));
    ledger_moment(l, s->block->name, most);
}

/* `hold` enters what the step takes, and leaves in the ledger what stays until the segment ends.
 * Where a step `computes` its errors are of this block; reading and writing name their own. */
static const struct {
    tare_status (*run)(segment_stage *g);
    void (*hold)(ledger *l, const segment_work *s);
    bool computes;
} STEPS[] = {
    {read_source, hold_source, false},   {pass_floats, hold_floats, true},
    {load_linears, hold_linears, true},  {calibrate, calibrate_segment_hold, true},
    {write_result, hold_writing, false},
};
enum { NUM_STEPS = sizeof STEPS / sizeof *STEPS };

static tare_status quantize_segment(run *r, const segment_work *s)
{
    tare_status status = TARE_OK;
    segment_stage g = {.run = r, .out = {.work = *s}};
    for (size_t i = 0; i < NUM_STEPS && status == TARE_OK; i++) {
        status = STEPS[i].run(&g);
        if (STEPS[i].computes)
            status = TARE_WRAP(r->ctx, status, "%s", s->block->name);
    }
    stage_free(&g);
    return status;
}

tare_status calibrate_slice(run *r, const segment_work *s, layer_source *source)
{
    segment_stage g = {.run = r, .out = {.work = *s}, .source = *source};
    *source = (layer_source){0};
    tare_status status = load_linears(&g);
    if (status == TARE_OK)
        status = calibrate(&g);
    stage_free(&g);
    return status;
}

static void segment_hold(ledger *l, const segment_work *s)
{
    const ledger before = *l;
    l->now[TERM_ACTIVATIONS] += carried_bytes(l, s, false, l->plan->env->samples.tokens);
    if (l->plan->float_beside)
        l->now[TERM_ACTIVATIONS] += carried_bytes(l, s, false, l->plan->float_tokens);
    for (size_t i = 0; i < NUM_STEPS; i++)
        STEPS[i].hold(l, s);
    memcpy(l->now, before.now, sizeof l->now);
}

static void hold_with_neighbours(ledger *l, const segment_work *s)
{
    size_t threads = overlap_bytes(l->plan, s, true);
    l->now[TERM_WEIGHTS] += threads;
    segment_hold(l, s);
    l->now[TERM_WEIGHTS] -= threads;
}

tare_status quantize_block(run *r, const model_block *block)
{
    tare_status status = TARE_OK;
    for (size_t i = 0; i < plan_segment_count(r->plan, block); i++) {
        segment_work s = plan_segment(r->plan, block, i);
        if (r->resume.expert && !s.segment->experts) /* the run goes on behind it */
            continue;
        TRY(s.segment->experts ? experts_run(r, &s, quantize_segment) : quantize_segment(r, &s));
    }
    TRY(statistics_layer(r, block));
done:
    smoothing_free_layer(r, block->index);
    return status;
}

void quantize_block_hold(ledger *l, const model_block *block)
{
    for (size_t i = 0; i < plan_segment_count(l->plan, block); i++) {
        segment_work s = plan_segment(l->plan, block, i);
        if (s.segment->experts)
            experts_hold(l, &s, true, l->plan->float_beside, hold_with_neighbours);
        else
            hold_with_neighbours(l, &s);
    }
}

/* ---- the head ---- */

/* Reads what the last layer put out, normed; of a head that is not static for its statistics alone.
 */
tare_status observe_head(run *r)
{
    tare_status status = TARE_OK;
    size_t h = r->model->config.hidden_size, unit = r->model->num_units - 1;
    linear_scheme scheme = r->plan->linears[r->model->num_linears - 1].scheme;
    observer *o = NULL;
    float *norm = NULL, *x, *y = NULL; /* MTP layers read x: it has to stay */
    int32_t *extremes = mem_alloc_array(r->ctx, 2 * h, sizeof *extremes);
    channel_range range = {extremes, extremes + h};
    TRY(extremes ? TARE_OK : TARE_E_MEMORY);
    channel_range_clear(&range, h);
    if (mtp_blocks(r->model) > 0)
        TRY((y = mem_alloc_array(r->ctx, r->env->samples.longest * h, sizeof *y)) ? TARE_OK
                                                                                  : TARE_E_MEMORY);
    TRY(model_read_vector(r->model, r->model->final_norm, &norm));
    TRY(observer_create(r->ctx,
                        observer_kind_of(r->env, &r->scores[r->model->num_linears - 1], true),
                        &r->env->num, &o));
    for (size_t i = 0, row = 0; i < r->env->samples.count; row += r->env->samples.lengths[i++]) {
        size_t rows = r->env->samples.lengths[i];
        TRY(stream_get(r->calibrated.states, row, rows, &x));
        float *normed = y ? y : x;
        norm_rows(r->model, x, norm, NULL, rows, h, r->work.round, normed);
        TRY(observer_update(r->ctx, o, normed, rows * h));
        channel_range_update(r->ctx, &range, normed, rows, h);
    }
    if (scheme_of(scheme)->activations == ACT_STATIC)
        TRY(observer_params(r->ctx, o, &r->inputs[unit]));
    TRY(statistics_input(r, unit, o, &range));
done:
    observer_free(r->ctx, o);
    mem_free(r->ctx, y);
    mem_free(r->ctx, norm);
    mem_free(r->ctx, extremes);
    return TARE_WRAP(r->ctx, status, "%s", r->model->head->name);
}

void observe_head_hold(ledger *l)
{
    const run_plan *plan = l->plan;
    const tare_model *m = plan->env->model;
    size_t h = m->config.hidden_size;
    size_t copy = mtp_blocks(m) ? mem_array_bytes(plan->env->samples.longest * h, sizeof(float))
                                : 0;
    ledger_moment(l, m->head->name,
                  copy + model_read_vector_bytes(m->final_norm) +
                      mem_array_bytes(2 * h, sizeof(int32_t)) +
                      observer_bytes(plan->env->samples.count) +
                      observer_update_bytes(plan->env->ctx) + score_head_bytes(plan));
}
