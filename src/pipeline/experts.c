/* Experts of a block, one by one: each is a block of its own (model.h) that sees, of every sample,
 * the rows that chose it. What experts read, who chose them and what they add up to lie in memory
 * for as long as they run: each of them looks at all of it. They add to a row's sum in their order,
 * whatever the batches. */
#include <string.h>

#include "base/carver.h"
#include "base/parallel.h"
#include "pipeline/run.h"
#include "tensor/kernels.h"
#include "tensor/rounded.h"

/* The rows of a batch that chose the expert in work. */
struct expert_rows {
    struct expert_rows *self;
    size_t most_rows, samples, columns;
    float *x;        /* [most_rows, columns] */
    size_t *places;  /* [most_rows] in the stream */
    float *weights;  /* [most_rows] */
    size_t *lengths; /* [samples] rows of each */
};

static void lay_out(carver *c, void *component)
{
    struct expert_rows *e = component;
    e->self = carve(c, 1, sizeof *e);
    e->x = carve(c, e->most_rows, e->columns * sizeof *e->x);
    e->places = carve(c, e->most_rows, sizeof *e->places);
    e->weights = carve(c, e->most_rows, sizeof *e->weights);
    e->lengths = carve(c, e->samples, sizeof *e->lengths);
}

static struct expert_rows rows_of(const run_plan *plan)
{
    return (struct expert_rows){.most_rows = plan_batch_rows(plan),
                                .samples = plan->env->samples.count,
                                .columns = plan->env->model->config.hidden_size};
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

static tare_status begin_flow(run *r, const segment_work *s, flow *f)
{
    tare_status status = TARE_OK;
    float *x;
    size_t columns = s->block->graph->experts.columns;
    f->expert_input = carried_value(f, s->segment, node_of(s)->in[0]);
    f->routing = carried_value(f, s->segment, node_of(s)->in[1]);
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

static tare_status gather(run *r, const flow *f, const segment_work *s, const batch *all,
                          size_t first, batch *out)
{
    tare_status status = TARE_OK;
    struct expert_rows *e = r->expert_rows;
    const route_spec *route = &r->model->graphs[BLOCK_EXPERTS].route;
    float *x, *routing;
    size_t rows = 0, row = 0;
    TRY(stream_get(f->expert_input, first, all->rows, &x));
    TRY(stream_get(f->routing, first, all->rows, &routing));
    for (size_t i = 0; i < all->samples; i++) {
        size_t before = rows;
        for (size_t end = row + all->lengths[i]; row < end; row++) {
            const float *chosen = routing + row * 2 * route->chosen;
            size_t c = 0;
            while (c < route->chosen && chosen[c] != (float)s->expert)
                c++;
            if (c == route->chosen)
                continue;
            memcpy(e->x + rows * e->columns, x + row * e->columns, e->columns * sizeof *x);
            e->weights[rows] = chosen[route->chosen + c];
            e->places[rows++] = first + row;
        }
        e->lengths[i] = rows - before;
    }
    *out = (batch){
        .first = all->first, .samples = all->samples, .lengths = e->lengths, .rows = rows};
done:
    return status;
}

typedef struct scatter_work {
    const struct expert_rows *rows;
    const kernels *kernels;
    float *y, *sums;
    tare_dtype round;
} scatter_work;

/* sum += weight * y */
static void scatter_row(void *user, size_t row, int thread)
{
    const scatter_work *w = user;
    size_t columns = w->rows->columns;
    float *y = w->y + row * columns, *sum = w->sums + w->rows->places[row] * columns;
    (void)thread;
    for (size_t i = 0; i < columns; i++)
        y[i] *= w->rows->weights[row];
    round_values(y, columns, w->round);
    w->kernels->add(sum, y, columns);
    round_values(sum, columns, w->round);
}

static tare_status run_rows(run *r, const segment_pass *p, const flow *f, const batch *b)
{
    tare_status status = TARE_OK;
    const block_graph *g = p->work.block->graph;
    scatter_work work = {.rows = r->expert_rows,
                         .kernels = kernels_get(r->ctx),
                         .y = workspace_value(&r->work, g, (graph_value)g->num_values - 1),
                         .round = r->work.round};
    float max;
    bool finite = true;
    if (p->begin)
        p->begin(p->ops.user, b);
    TRY(block_forward(r->model, p->work.block, p->work.segment, p->norms, &p->ops, b, &r->work,
                      r->expert_rows->x));
    work.kernels->abs_max(work.y, b->rows * r->expert_rows->columns, &max, &finite);
    TRY(finite ? TARE_OK : TARE_FAIL(r->ctx, TARE_E_NUMERIC, "an activation is NaN or infinite"));
    TRY(stream_get(f->sums, 0, f->tokens, &work.sums));
    parallel_for(r->ctx, b->rows, scatter_row, &work);
done:
    return status;
}

tare_status expert_run(run *r, const segment_pass *p, flow *f)
{
    tare_status status = TARE_OK;
    for (size_t first = 0, row = 0; first < f->samples;) {
        batch all = batch_next(r->env->samples.lengths, first, f->samples,
                               r->plan->layout.batch_rows),
              b;
        TRY(context_check_cancelled(r->ctx));
        TRY(gather(r, f, &p->work, &all, row, &b));
        if (b.rows > 0)
            TRY(run_rows(r, p, f, &b));
        first += all.samples;
        row += all.rows;
    }
done:
    return status;
}

/* ---- all of a block ---- */

/* How many tokens chose each expert; one warning for those that none did. */
static tare_status note_coverage(run *r, const segment_work *s, const flow *f)
{
    tare_status status = TARE_OK;
    const route_spec *route = &s->block->graph->route;
    size_t unreached = 0;
    float *routing;
    uint32_t *counts = arena_calloc(r->env->arena, route->experts, sizeof *counts);
    TRY(counts ? TARE_OK : TARE_E_MEMORY);
    TRY(stream_get(f->routing, 0, f->tokens, &routing));
    for (size_t row = 0; row < f->tokens; row++) {
        for (size_t i = 0; i < route->chosen; i++)
            counts[(size_t)routing[row * 2 * route->chosen + i]]++;
    }
    for (size_t e = 0; e < route->experts; e++)
        unreached += counts[e] == 0;
    if (unreached > 0)
        TARE_WARN(r->ctx,
                  "%s: no token of the samples reached %zu of %zu experts; they are quantized by "
                  "their weights alone, as all are",
                  s->block->name, unreached, route->experts);
    r->coverage[s->block->index] = counts;
done:
    return status;
}

tare_status experts_run(run *r, const segment_work *s,
                        tare_status (*each)(run *r, const segment_work *expert))
{
    tare_status status = TARE_OK;
    struct expert_rows rows = rows_of(r->plan);
    flow *flows[] = {&r->floats, &r->calibrated};
    TRY(carver_alloc(r->ctx, lay_out, &rows));
    r->expert_rows = rows.self;
    *rows.self = rows;
    for (size_t i = 0; i < 2; i++) {
        if (flows[i]->states)
            TRY(begin_flow(r, s, flows[i]));
    }
    for (size_t e = 0; e < block_experts(s->block); e++) {
        char name[EXPERT_NAME];
        model_block block = expert_block(r->model, s->block, e, name);
        segment_work work = plan_expert(r->plan, &block, e);
        TRY(context_check_cancelled(r->ctx));
        TRY(each(r, &work));
    }
    if (r->calibrated.states)
        TRY(note_coverage(r, s, &r->calibrated));
    for (size_t i = 0; i < 2; i++) {
        if (flows[i]->states)
            end_flow(s, flows[i]);
    }
done:
    mem_free(r->ctx, r->expert_rows);
    r->expert_rows = NULL;
    return status;
}

/* ---- memory ---- */

void experts_hold(ledger *l, const segment_work *s, bool calibrates, bool floats,
                  void (*each)(ledger *l, const segment_work *expert))
{
    const run_plan *plan = l->plan;
    const ledger before = *l;
    size_t columns = s->block->graph->experts.columns;
    struct expert_rows rows = rows_of(plan);
    char name[EXPERT_NAME];
    model_block block = expert_block(plan->env->model, s->block, 0, name);
    segment_work work = plan_expert(plan, &block, 0);
    rows.most_rows = l->rows;
    l->now[TERM_WORKSPACE] += carver_bytes(lay_out, &rows);
    for (int i = 0; i < 2; i++) {
        size_t tokens = i == 0 ? plan->float_tokens : plan->env->samples.tokens;
        if (i == 0 ? !floats : !calibrates)
            continue;
        l->now[TERM_ACTIVATIONS] += carried_bytes(l, s, false, tokens) +
                                    stream_bytes(tokens, columns, tokens, false);
    }
    each(l, &work);
    memcpy(l->now, before.now, sizeof l->now);
}
