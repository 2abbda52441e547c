/* While a segment is computed, the next one is read and the last one written (layout.overlap: a
 * segment is a whole block then, or what there is of a block before, of and behind its experts,
 * each of which is one). Threads do that, and hold a segment each: its weights as they are
 * stored, and its finished tensors. Else the same happens in turn, and weights are read one by one
 * as they are needed. The order in which tensors are written, which shows in npy files, is the
 * same. */
#include "base/read_ahead.h"
#include "pipeline/run.h"

enum { SLOTS = 3 };

struct run_overlap {
    run *run;
    read_ahead *segments;
    size_t index, slot; /* of the segment in work, in the model */
    layer_source sources[SLOTS];
    layer_output outputs[SLOTS];
    expert_place places[SLOTS]; /* of outputs that are an expert's */
};

static tare_status read_segment(void *user, size_t index, size_t slot)
{
    run_overlap *o = user;
    expert_place place;
    segment_work s = plan_segment_of_model(o->run->plan, index, &place);
    return o->run->plan->layout.overlap ? layer_source_load(o->run, &s, &o->sources[slot])
                                        : TARE_OK;
}

static tare_status write_segment(void *user, size_t index, size_t slot)
{
    run_overlap *o = user;
    (void)index;
    tare_status status = layer_output_write(o->run, &o->outputs[slot]);
    layer_output_free(o->run, &o->outputs[slot]);
    return status;
}

tare_status overlap_start(run *r)
{
    size_t threads = r->plan->layout.overlap, written = r->resume.pass == PASS_QUANTIZE;
    if (!(r->overlap = mem_calloc(r->ctx, 1, sizeof *r->overlap)))
        return TARE_E_MEMORY;
    r->overlap->run = r;
    read_ahead_work w = {.user = r->overlap,
                         .read = read_segment,
                         .write = written ? write_segment : NULL,
                         .count = plan_segments_of_model(r->plan),
                         .readers = threads,
                         .ahead = threads,
                         .behind = threads * written};
    return read_ahead_start(r->ctx, &w, &r->overlap->segments);
}

void overlap_stop(run *r)
{
    run_overlap *o = r->overlap;
    if (!o)
        return;
    read_ahead_stop(o->segments);
    for (size_t i = 0; i < SLOTS; i++) {
        layer_source_free(r, &o->sources[i]);
        layer_output_free(r, &o->outputs[i]);
    }
    mem_free(r->ctx, o);
    r->overlap = NULL;
}

tare_status overlap_read(run *r, const segment_work *s, layer_source *out)
{
    run_overlap *o = r->overlap;
    o->index = plan_segment_index(r->plan, s);
    tare_status status = read_ahead_take(o->segments, o->index, &o->slot);
    if (status == TARE_OK) {
        *out = o->sources[o->slot];
        o->sources[o->slot] = (layer_source){0};
    }
    return status;
}

tare_status overlap_write(run *r, layer_output *segment)
{
    run_overlap *o = r->overlap;
    layer_output *out = &o->outputs[o->slot];
    *out = *segment;
    if (out->work.is_expert) /* whose block is gone before it is written */
        out->work = plan_segment_of_model(r->plan, o->index, &o->places[o->slot]);
    *segment = (layer_output){0};
    return read_ahead_give(o->segments, o->index);
}

tare_status overlap_wait(run *r)
{
    return read_ahead_wait(r->overlap->segments);
}

/* Weights of a segment as they are stored, and beside that what reading one of them takes. */
static size_t reading_bytes(const run_plan *plan, size_t index)
{
    const tare_model *m = plan->env->model;
    expert_place place;
    segment_work s = plan_segment_of_model(plan, index, &place);
    size_t bytes = 0, reading = 0;
    for (size_t i = segment_first(&s); i < segment_end(&s); i++) {
        size_t kept = linear_raw_bytes(&m->linears[i]);
        bytes += kept;
        reading = size_max(reading, linear_read_bytes(&m->linears[i]) - kept);
    }
    return bytes + reading;
}

/* A finished segment, and what writing it takes. */
static size_t result_bytes(const run_plan *plan, size_t index)
{
    expert_place place;
    segment_work s = plan_segment_of_model(plan, index, &place);
    size_t bytes = 0;
    for (size_t i = segment_first(&s); i < segment_end(&s); i++)
        bytes += live_linear_most(plan, i).weights + live_linear_write_bytes(plan, i);
    if (s.is_expert)
        return bytes;
    return bytes + block_norms_bytes(s.block) + kv_cache_kept_bytes(plan, s.block->index);
}

size_t overlap_bytes(const run_plan *plan, const segment_work *s, bool quantizes)
{
    size_t bytes = mem_block_bytes(sizeof(run_overlap)) + read_ahead_bytes();
    size_t index = plan_segment_index(plan, s);
    if (!plan->layout.overlap)
        return bytes;
    if (index + 1 < plan_segments_of_model(plan))
        bytes += reading_bytes(plan, index + 1);
    return quantizes && index > 0 ? bytes + result_bytes(plan, index - 1) : bytes;
}
