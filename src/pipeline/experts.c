/* Experts of a block, one by one: each is a block of its own (model.h) that sees, of every sample,
 * the rows that chose it. What experts read, who chose them and what they add up to lie in memory
 * for as long as they run: each of them looks at all of it. They add to a row's sum in their order,
 * whatever the batches. */
#include <string.h>

#include "base/carver.h"
#include "forward/expert_rows.h"
#include "pipeline/run.h"

/* What of a batch chose the expert in work. */
struct expert_batch {
    struct expert_batch *self;
    size_t most_rows, samples;
    expert_rows rows; /* placed in the stream */
    size_t *lengths;  /* [samples] rows of each */
};

static void lay_out(carver *c, void *component)
{
    struct expert_batch *e = component;
    e->self = carve(c, 1, sizeof *e);
    expert_rows_lay_out(c, &e->rows, e->most_rows);
    e->lengths = carve(c, e->samples, sizeof *e->lengths);
}

static struct expert_batch batch_of(const run_plan *plan)
{
    return (struct expert_batch){.most_rows = plan_batch_rows(plan),
                                 .samples = plan->env->samples.count,
                                 .rows.columns = plan->env->model->config.hidden_size};
}

static const graph_node *node_of(const segment_work *s)
{
    return &s->block->graph->nodes[s->segment->first_node];
}

/* ---- a flow's part ---- */

static state_stream *carried_value(const flow *f, const block_segment *s, graph_value v)
{
    for (size_t i = 0; i < s->num_carried; i++) {
        if (s->carried[i] == v)
            return f->carried[i];
    }
    return NULL;
}

/* Sums that are there go on. */
static tare_status begin_flow(run *r, const segment_work *s, flow *f)
{
    tare_status status = TARE_OK;
    float *x;
    size_t columns = s->block->graph->experts.columns;
    f->expert_input = carried_value(f, s->segment, node_of(s)->in[0]);
    f->routing = carried_value(f, s->segment, node_of(s)->in[1]);
    if (f->sums)
        return TARE_OK;
    TRY(stream_create(r->ctx, f->tokens, columns, f->tokens, NULL, &f->sums));
    TRY(stream_get(f->sums, 0, f->tokens, &x));
    memset(x, 0, f->tokens * columns * sizeof *x);
done:
    return status;
}

/* What goes on is what the next segment needs: the sums, and what was carried here already. */
static void end_flow(const segment_work *s, flow *f)
{
    state_stream *after[SEGMENT_VALUES] = {0};
    for (size_t i = 0; s->next && i < s->next->num_carried; i++) {
        graph_value v = s->next->carried[i];
        for (size_t j = 0; j < s->segment->num_carried; j++) {
            if (s->segment->carried[j] != v)
                continue;
            after[i] = f->carried[j];
            f->carried[j] = NULL;
        }
        if (v == node_of(s)->out) {
            after[i] = f->sums;
            f->sums = NULL;
        }
    }
    for (size_t i = 0; i < SEGMENT_VALUES; i++)
        stream_free(f->carried[i]);
    memcpy(f->carried, after, sizeof after);
    stream_free(f->sums);
    f->sums = f->expert_input = f->routing = NULL;
}

/* ---- an expert's rows ---- */

/* From a sample on, of which `row` is the first, as many as fit: products of many rows at once are
 * faster than those of each batch's few. */
static tare_status gather(run *r, const flow *f, const segment_work *s, size_t first, size_t *row,
                          batch *out)
{
    tare_status status = TARE_OK;
    struct expert_batch *e = r->expert_batch;
    const route_spec *route = &r->model->graphs[BLOCK_EXPERTS].route;
    const size_t *lengths = r->env->samples.lengths + first;
    float *x, *routing;
    e->rows.count = 0;
    *out = (batch){.first = first, .lengths = e->lengths};
    while (first + out->samples < f->samples) {
        size_t rows = lengths[out->samples];
        TRY(stream_get(f->routing, *row, rows, &routing));
        size_t chosen = expert_rows_count(route, s->expert, routing, rows);
        if (e->rows.count + chosen > e->most_rows)
            break;
        TRY(stream_get(f->expert_input, *row, rows, &x));
        expert_rows_gather(&e->rows, route, s->expert, x, routing, rows, *row);
        e->lengths[out->samples++] = chosen;
        *row += rows;
    }
    out->rows = e->rows.count;
done:
    return status;
}

static tare_status run_rows(run *r, const segment_pass *p, const flow *f, const batch *b)
{
    tare_status status = TARE_OK;
    const block_graph *g = p->work.block->graph;
    const expert_rows *rows = &r->expert_batch->rows;
    float *y = workspace_value(&r->work, g, (graph_value)g->num_values - 1), *sums;
    if (p->begin)
        p->begin(p->ops.user, b);
    TRY(block_forward(r->model, p->work.block, p->work.segment, p->norms, &p->ops, b, &r->work,
                      rows->x));
    if (p->peeks)
        return TARE_OK;
    TRY(check_finite(r, y, rows->count * rows->columns));
    TRY(stream_get(f->sums, 0, f->tokens, &sums));
    expert_rows_add(r->ctx, rows, y, sums, r->work.round);
done:
    return status;
}

tare_status expert_run(run *r, const segment_pass *p, flow *f)
{
    tare_status status = TARE_OK;
    for (size_t first = 0, row = 0; first < f->samples;) {
        batch b;
        TRY(context_check_cancelled(r->ctx));
        TRY(gather(r, f, &p->work, first, &row, &b));
        if (b.rows > 0)
            TRY(run_rows(r, p, f, &b));
        first += b.samples;
    }
done:
    return status;
}

/* ---- all of a block ---- */

/* Behind an expert: a checkpoint, if one is due. The last of a block leaves that to the block. */
static tare_status save_between(run *r, const segment_work *s, size_t next)
{
    if (next == block_experts(s->block) || !resume_due_inside(r, next))
        return TARE_OK;
    tare_status status = overlap_wait(r);
    return status == TARE_OK ? resume_save(r, s->block->index, next) : status;
}

/* From the expert on that a run goes on from. */
tare_status experts_run(run *r, const segment_work *s,
                        tare_status (*each)(run *r, const segment_work *expert))
{
    tare_status status = TARE_OK;
    struct expert_batch room = batch_of(r->plan);
    flow *flows[] = {&r->floats, &r->calibrated};
    TRY(carver_alloc(r->ctx, lay_out, &room));
    *(r->expert_batch = room.self) = room;
    for (size_t i = 0; i < 2; i++) {
        if (flows[i]->states)
            TRY(begin_flow(r, s, flows[i]));
    }
    if (r->calibrated.states && r->resume.expert == 0)
        TRY(coverage_count(r, s->block, &r->calibrated));
    for (size_t e = r->resume.expert; e < block_experts(s->block); e++) {
        expert_place place;
        segment_work work = plan_expert(r->plan, s->block, e, &place);
        TRY(context_check_cancelled(r->ctx));
        TRY(each(r, &work));
        TRY(save_between(r, s, e + 1));
    }
    r->resume.expert = 0;
    for (size_t i = 0; i < 2; i++) {
        if (flows[i]->states)
            end_flow(s, flows[i]);
    }
done:
    mem_free(r->ctx, r->expert_batch);
    r->expert_batch = NULL;
    return status;
}

/* ---- between two experts ---- */

static tare_status archive_stream(run *r, archive *a, size_t tokens, size_t columns,
                                  state_stream **s)
{
    if (archive_reads(a)) {
        tare_status status = stream_create(r->ctx, tokens, columns, tokens, NULL, s);
        if (status != TARE_OK)
            return status;
    }
    return stream_archive(*s, a);
}

tare_status experts_archive(run *r, const model_block *b, flow *f, archive *a)
{
    tare_status status = TARE_OK;
    const block_segment s = graph_experts_segment(b->graph);
    for (size_t i = 0; i < s.num_carried; i++)
        TRY(archive_stream(r, a, f->tokens, b->graph->values[s.carried[i]].columns,
                           &f->carried[i]));
    TRY(archive_stream(r, a, f->tokens, b->graph->experts.columns, &f->sums));
done:
    return status;
}

/* ---- memory ---- */

/* Experts are alike but for what is read and written beside them: the first and the last have other
 * neighbours. */
static void hold_each(ledger *l, const model_block *b,
                      void (*each)(ledger *l, const segment_work *expert))
{
    size_t last = block_experts(b) - 1, of[] = {0, last > 1, last};
    for (size_t i = 0; i < 3; i++) {
        expert_place place;
        segment_work work = plan_expert(l->plan, b, of[i], &place);
        each(l, &work);
    }
}

void experts_hold(ledger *l, const segment_work *s, bool calibrates, bool floats,
                  void (*each)(ledger *l, const segment_work *expert))
{
    const run_plan *plan = l->plan;
    const ledger before = *l;
    size_t columns = s->block->graph->experts.columns;
    struct expert_batch room = batch_of(plan);
    room.most_rows = l->rows;
    l->now[TERM_WORKSPACE] += carver_bytes(lay_out, &room);
    for (int i = 0; i < 2; i++) {
        size_t tokens = i == 0 ? plan->float_tokens : plan->env->samples.tokens;
        if (i == 0 ? !floats : !calibrates)
            continue;
        l->now[TERM_ACTIVATIONS] += carried_bytes(l, s, false, tokens) +
                                    stream_bytes(tokens, columns, tokens, false);
    }
    hold_each(l, s->block, each);
    memcpy(l->now, before.now, sizeof l->now);
}
