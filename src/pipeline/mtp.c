/* MTP layers (model/mtp.h) are blocks behind the others. In front of each stands a step that makes
 * its input of the hidden states and of the next tokens: those of the sample, and behind its last
 * one what the layer before it says (spec/models.md 1.9). */
#include "forward/mtp.h"

#include <string.h>

#include "pipeline/run.h"

/* Samples whose last rows go through a head together; rows that are projected together. */
enum { MOST_SAMPLES = 64, MOST_ROWS = 256 };

size_t mtp_blocks(const tare_model *m)
{
    return m->num_blocks > m->config.num_layers ? m->num_blocks - m->config.num_layers : 0;
}

tare_status mtp_begin_flow(run *r, flow *f)
{
    size_t layers = mtp_blocks(r->model);
    if (layers == 0)
        return TARE_OK;
    f->fills = mem_calloc(r->ctx, layers * f->samples, sizeof *f->fills);
    return f->fills ? TARE_OK : TARE_E_MEMORY;
}

size_t mtp_flow_bytes(const run_plan *plan, size_t samples)
{
    size_t layers = mtp_blocks(plan->env->model);
    return layers ? mem_array_bytes(layers * samples, sizeof(uint32_t)) : 0;
}

tare_status mtp_archive(run *r, flow *f, archive *a)
{
    size_t count = mtp_blocks(r->model) * f->samples;
    act_params *head = &r->inputs[r->model->num_units - 1]; /* known before the first of them */
    if (count == 0)
        return TARE_OK;
    tare_status status = archive_bytes(a, head, sizeof *head);
    return status == TARE_OK ? archive_bytes(a, f->fills, count * sizeof *f->fills) : status;
}

/* ---- what comes behind a sample ---- */

/* [samples] by the last row of each, in pieces. */
static tare_status find_fills(run *r, size_t layer, flow *f)
{
    tare_status status = TARE_OK;
    const size_t *lengths = r->env->samples.lengths;
    size_t h = r->model->config.hidden_size, row = 0;
    float *last = mem_alloc_array(r->ctx, MOST_SAMPLES, h * sizeof *last), *x;
    TRY(last ? TARE_OK : TARE_E_MEMORY);
    for (size_t first = 0, count; first < f->samples; first += count) {
        count = size_min(f->samples - first, MOST_SAMPLES);
        for (size_t i = 0; i < count; i++) {
            row += lengths[first + i];
            TRY(stream_get(f->states, row - 1, 1, &x));
            memcpy(last + i * h, x, h * sizeof *x);
        }
        TRY(mtp_next_tokens(r->model, layer, last, count, r->work.round,
                            f->fills + layer * f->samples + first));
    }
done:
    mem_free(r->ctx, last);
    return status;
}

/* The token that row t of a sample is told by an MTP layer. */
static uint32_t next_token(const run *r, const flow *f, size_t layer, size_t sample, size_t row,
                           size_t t)
{
    size_t length = r->env->samples.lengths[sample], next = t + layer + 1;
    return next < length ? r->env->samples.ids[row + layer + 1]
                         : f->fills[(next - length) * f->samples + sample];
}

/* ---- the step ---- */

static tare_status project(run *r, mtp_input *m, size_t layer, flow *f)
{
    tare_status status = TARE_OK;
    size_t most = size_min(MOST_ROWS, plan_most_rows(r->plan));
    uint32_t ids[MOST_ROWS];
    for (size_t first = 0, count, sample = 0, t = 0; first < f->tokens; first += count) {
        float *x;
        count = size_min(f->tokens - first, most);
        for (size_t i = 0; i < count; i++) {
            ids[i] = next_token(r, f, layer, sample, first + i, t);
            if (++t == r->env->samples.lengths[sample]) {
                sample++;
                t = 0;
            }
        }
        TRY(context_check_cancelled(r->ctx));
        TRY(stream_get(f->states, first, count, &x));
        TRY(mtp_input_run(m, ids, count, x));
        TRY(check_finite(r, x, count * r->model->config.hidden_size));
        TRY(stream_put(f->states, first, count, x));
    }
    stream_flip(f->states);
done:
    return status;
}

tare_status mtp_enter(run *r, const model_block *block)
{
    tare_status status = TARE_OK;
    const mtp_layer *layer = block_mtp(r->model, block);
    flow *flows[] = {&r->floats, &r->calibrated};
    mtp_input *input = NULL;
    if (!layer)
        return TARE_OK;
    size_t index = (size_t)(layer - r->model->mtp_layers);
    for (size_t i = 0; i < 2; i++) {
        if (flows[i]->states)
            TRY(find_fills(r, index, flows[i]));
    }
    TRY(mtp_input_open(r->model, layer, r->env->compute, r->work.round, &input));
    for (size_t i = 0; i < 2; i++) {
        if (flows[i]->states)
            TRY(project(r, input, index, flows[i]));
    }
done:
    mtp_input_close(input);
    return TARE_WRAP(r->ctx, status, "%s", block->name);
}

/* With what is read ahead meanwhile. */
void mtp_enter_hold(ledger *l, const model_block *block, bool quantizes)
{
    const run_plan *plan = l->plan;
    const tare_model *m = plan->env->model;
    const mtp_layer *layer = block_mtp(m, block);
    if (!layer)
        return;
    size_t last = mem_array_bytes(MOST_SAMPLES, m->config.hidden_size * sizeof(float));
    const model_block *before = &m->blocks[block->index - 1];
    segment_work ended = plan_segment(plan, before, plan_segment_count(plan, before) - 1);
    size_t threads = overlap_bytes(plan, &ended, quantizes);
    l->now[TERM_WEIGHTS] += threads;
    if (layer == m->mtp_layers && quantizes)
        observe_head_hold(l);
    else if (layer == m->mtp_layers)
        ledger_moment(l, m->head->name, score_head_bytes(plan));
    ledger_moment(l, block->name,
                  last + mtp_next_tokens_bytes(m, (size_t)(layer - m->mtp_layers), MOST_SAMPLES));
    ledger_moment(l, layer->projection.name, mtp_input_bytes(m, layer, plan->env->compute));
    l->now[TERM_WEIGHTS] -= threads;
}
