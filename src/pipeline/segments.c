/* The one driver: samples go through a segment of a block, batch after batch. A block is one
 * segment where memory allows; else the weights of a part of it are resident at a time, and what
 * its parts hand on to each other waits in streams like that between blocks. */
#include <string.h>

#include "forward/mtp.h"
#include "pipeline/run.h"
#include "tensor/kernels.h"

const char *run_spill_folder(const run *r)
{
    if (!r->plan->layout.spill)
        return NULL;
    return r->env->options->scratch_dir ? r->env->options->scratch_dir
                                        : journal_folder(r->resume.journal);
}

static void free_streams(state_stream *streams[SEGMENT_VALUES])
{
    for (size_t i = 0; i < SEGMENT_VALUES; i++) {
        stream_free(streams[i]);
        streams[i] = NULL;
    }
}

void flow_free(run *r, flow *f)
{
    stream_free(f->states);
    f->states = NULL;
    free_streams(f->carried);
    stream_free(f->sums);
    f->sums = NULL;
    mem_free(r->ctx, f->fills);
    f->fills = NULL;
}

/* What goes on between the segments of a block with experts stays in memory: each of them looks at
 * all of it. */
static const char *carried_folder(const run *r, const segment_pass *p)
{
    return block_experts(p->work.block) ? NULL : run_spill_folder(r);
}

tare_status check_finite(run *r, const float *x, size_t n)
{
    float max;
    bool finite = true;
    kernels_get(r->ctx)->abs_max(x, n, &max, &finite);
    return finite ? TARE_OK : TARE_FAIL(r->ctx, TARE_E_NUMERIC, "an activation is NaN or infinite");
}

/* Between the streams and the workspace. */
static tare_status take_carried(run *r, const segment_pass *p, const flow *f, size_t row,
                                size_t rows)
{
    tare_status status = TARE_OK;
    const block_graph *g = p->work.block->graph;
    for (size_t i = 0; i < p->work.segment->num_carried; i++) {
        graph_value v = p->work.segment->carried[i];
        float *x;
        TRY(stream_get(f->carried[i], row, rows, &x));
        memcpy(workspace_value(&r->work, g, v), x, rows * g->values[v].columns * sizeof *x);
    }
done:
    return status;
}

static tare_status leave_carried(run *r, const segment_pass *p,
                                 state_stream *const streams[SEGMENT_VALUES], size_t row,
                                 size_t rows)
{
    tare_status status = TARE_OK;
    for (size_t i = 0; p->work.next && i < p->work.next->num_carried; i++)
        TRY(stream_put(streams[i], row, rows,
                       workspace_value(&r->work, p->work.block->graph, p->work.next->carried[i])));
done:
    return status;
}

/* One batch, with what it is carried in the workspace. */
static tare_status run_batch(run *r, const segment_pass *p, flow *f,
                             state_stream *const after[SEGMENT_VALUES], const batch *b, size_t row)
{
    tare_status status = TARE_OK;
    size_t cells = b->rows * r->model->config.hidden_size;
    float *x;
    TRY(stream_get(f->states, row, b->rows, &x));
    TRY(take_carried(r, p, f, row, b->rows));
    if (p->peeks)
        x = memcpy(p->copies, x, cells * sizeof *x);
    TRY(block_forward(r->model, p->work.block, p->work.segment, p->norms, &p->ops, b, &r->work, x));
    if (p->peeks)
        return TARE_OK;
    if (p->checks)
        TRY(check_finite(r, x, cells));
    TRY(stream_put(f->states, row, b->rows, x));
    TRY(leave_carried(r, p, after, row, b->rows));
done:
    return status;
}

static batch samples_next(const sample_set *s, size_t first, size_t count, size_t max_rows)
{
    batch b = batch_next(s->lengths, first, count, max_rows);
    if (!s->sequences)
        return b;
    b.sequences = s->sequences + first;
    b.kept = s->kept;
    for (size_t i = 0; s->kept && i < first; i++)
        b.kept += s->sequences[i];
    return b;
}

static tare_status run_batches(run *r, const segment_pass *p, flow *f,
                               state_stream *const after[SEGMENT_VALUES])
{
    tare_status status = TARE_OK;
    for (size_t first = 0, row = 0; first < f->samples;) {
        batch b = samples_next(&r->env->samples, first, f->samples, r->plan->layout.batch_rows);
        TRY(context_check_cancelled(r->ctx));
        b.turn = mtp_turn(r->model, p->work.block);
        if (p->begin)
            p->begin(p->ops.user, &b);
        TRY(run_batch(r, p, f, after, &b, row));
        first += b.samples;
        row += b.rows;
        if (!p->quiet && !r->clock)
            progress_sample(&r->progress, first, f->samples);
    }
done:
    return status;
}

tare_status segment_run(run *r, const segment_pass *p, flow *f)
{
    tare_status status = TARE_OK;
    state_stream *after[SEGMENT_VALUES] = {0};
    const block_graph *g = p->work.block->graph;
    if (p->work.is_expert)
        return expert_run(r, p, f);
    if (p->peeks)
        return run_batches(r, p, f, after);
    for (size_t i = 0; p->work.next && i < p->work.next->num_carried; i++)
        TRY(stream_create(r->ctx, stream_rows(f->states),
                          g->values[p->work.next->carried[i]].columns, plan_most_rows(r->plan),
                          carried_folder(r, p), &after[i]));
    TRY(run_batches(r, p, f, after));
    stream_flip(f->states);
    for (size_t i = 0; i < SEGMENT_VALUES; i++) {
        if (after[i])
            stream_flip(after[i]);
    }
    free_streams(f->carried);
    memcpy(f->carried, after, sizeof after);
    memset(after, 0, sizeof after);
done:
    free_streams(after);
    return status;
}

size_t carried_bytes(const ledger *l, const segment_work *s, bool next, size_t tokens)
{
    const block_segment *to = next ? s->next : s->segment;
    bool spills = l->plan->layout.spill && !block_experts(s->block);
    size_t bytes = 0;
    if (next && spills) /* they have room once they are read */
        return 0;
    for (size_t i = 0; to && i < to->num_carried; i++) {
        size_t columns = s->block->graph->values[to->carried[i]].columns;
        bytes += spills ? ledger_stream_bytes(l, tokens, columns)
                        : stream_bytes(tokens, columns, tokens, false);
    }
    return bytes;
}
