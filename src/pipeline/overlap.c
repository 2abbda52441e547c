/* Only for runs whose blocks are one segment. While a layer is computed, the next one is read and
 * the last one written. Two threads do that, and hold a layer each: its weights as they are stored,
 * and its finished tensors. Without them (layout.overlap) the same happens in turn; the order in
 * which tensors are written, which shows in npy files, is the same. */
#include "base/background.h"
#include "base/parallel.h"
#include "pipeline/run.h"

struct run_overlap {
    run *run;
    background *reader, *writer;
    size_t layer; /* that is read ahead, into */
    layer_source source;
    uint64_t read;       /* ticket; 0: nothing is read ahead */
    layer_output output; /* that is written behind */
    uint64_t written;
};

tare_status overlap_start(run *r)
{
    tare_status status = TARE_OK;
    if (!r->plan->layout.overlap || r->overlap)
        return TARE_OK;
    if (!(r->overlap = mem_calloc(r->ctx, 1, sizeof *r->overlap)))
        return TARE_E_MEMORY;
    r->overlap->run = r;
    TRY(background_create(r->ctx, 1, &r->overlap->reader));
    TRY(background_create(r->ctx, 1, &r->overlap->writer));
done:
    return status;
}

void overlap_stop(run *r)
{
    run_overlap *o = r->overlap;
    if (!o)
        return;
    background_free(o->reader);
    background_free(o->writer);
    layer_source_free(r, &o->source);
    layer_output_free(r, &o->output);
    mem_free(r->ctx, o);
    r->overlap = NULL;
}

/* ---- reading ---- */

static tare_status read_layer(void *user)
{
    run_overlap *o = user;
    segment_work whole = plan_segment(o->run->plan, &o->run->model->blocks[o->layer], 0);
    return layer_source_load(o->run, &whole, &o->source);
}

tare_status overlap_read(run *r, size_t layer, layer_source *out)
{
    tare_status status = TARE_OK;
    run_overlap *o = r->overlap;
    if (!o)
        return TARE_OK;
    if (o->read && o->layer == layer) {
        TRY(background_wait(o->reader, o->read));
        *out = o->source;
        o->source = (layer_source){0};
    } else {
        segment_work whole = plan_segment(r->plan, &r->model->blocks[layer], 0);
        TRY(layer_source_load(r, &whole, out));
    }
    o->read = 0;
    if (layer + 1 < r->model->config.num_layers) {
        o->layer = layer + 1;
        TRY(background_submit(o->reader, read_layer, o, &o->read));
    }
done:
    return status;
}

/* ---- writing ---- */

static tare_status write_layer(void *user)
{
    run_overlap *o = user;
    tare_status status = layer_output_write(o->run, &o->output);
    layer_output_free(o->run, &o->output);
    return status;
}

tare_status overlap_write(run *r, layer_output *layer)
{
    tare_status status = TARE_OK;
    run_overlap *o = r->overlap;
    if (!o)
        return layer_output_write(r, layer);
    TRY(overlap_wait(r));
    o->output = *layer;
    *layer = (layer_output){0};
    TRY(background_submit(o->writer, write_layer, o, &o->written));
done:
    return status;
}

tare_status overlap_wait(run *r)
{
    return r->overlap ? background_wait(r->overlap->writer, r->overlap->written) : TARE_OK;
}

size_t overlap_bytes(const run_plan *plan, size_t layer, bool quantizes)
{
    const tare_model *m = plan->env->model;
    size_t bytes = 0;
    if (!plan->layout.overlap)
        return 0;
    if (layer + 1 < m->config.num_layers) {
        segment_work next = plan_segment(plan, &m->blocks[layer + 1], 0);
        for (size_t i = segment_first(&next); i < segment_end(&next); i++)
            bytes += linear_raw_bytes(m, &m->linears[i]);
    }
    if (!quantizes || layer == 0)
        return bytes;
    segment_work last = plan_segment(plan, &m->blocks[layer - 1], 0);
    for (size_t i = segment_first(&last); i < segment_end(&last); i++)
        bytes += live_linear_most(plan, i).weights + live_linear_write_bytes(plan, i);
    return bytes + block_norms_bytes(last.block);
}
