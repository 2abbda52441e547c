/* Mixtures of experts (spec/models.md 1.8, 1.9): the router's choice, and what the experts that
 * were chosen make of their rows. Experts go in order and add to a row's sum in that order, so
 * nothing depends on threads or batches. */
#include <math.h>
#include <string.h>

#include "base/parallel.h"
#include "forward/executor_internal.h"
#include "forward/expert_rows.h"

/* For as many rows as the workspace has: all may choose one expert. */
struct expert_room {
    expert_rows rows;
    float *values; /* of an expert's graph */
};

void expert_room_lay_out(carver *c, const tare_model *model, workspace *w)
{
    const experts_spec *e = &model->graphs[BLOCK_EXPERTS].experts;
    struct expert_room room = {.rows.columns = e->columns};
    if (e->count == 0)
        return;
    struct expert_room *at = carve(c, 1, sizeof room);
    expert_rows_lay_out(c, &room.rows, w->rows);
    room.values = carve(c, w->rows, model->expert.columns * sizeof *room.values);
    if (at)
        *at = room;
    w->experts = at;
}

/* ---- the choice ---- */

typedef struct route_work {
    const route_spec *spec;
    const float *correction; /* NULL: none */
    float *scores;           /* [rows, experts] logits, that become scores and are used up */
    float *out;              /* [rows, 2*chosen] */
    size_t rows;
} route_work;

/* In double: FP32 softmax and sigmoid of different libraries differ by roundings, and near ties
 * must not hang on ours. */
static void score_row(const route_spec *s, float *scores)
{
    float max = -INFINITY;
    double sum = 0;
    for (size_t e = 0; e < s->experts; e++)
        max = fmaxf(max, scores[e]);
    for (size_t e = 0; s->scores == ROUTE_SOFTMAX && e < s->experts; e++)
        sum += exp((double)scores[e] - (double)max);
    for (size_t e = 0; e < s->experts; e++)
        scores[e] = (float)(s->scores == ROUTE_SOFTMAX ? exp((double)scores[e] - (double)max) / sum
                                                       : 1 / (1 + exp(-(double)scores[e])));
}

/* What an expert is chosen by. */
static double corrected(const route_work *w, const float *scores, size_t e)
{
    return (double)scores[e] + (w->correction ? (double)w->correction[e] : 0);
}

/* The sum of the best of a group. */
static double group_score(const route_work *w, const float *scores, size_t group)
{
    size_t size = w->spec->experts / w->spec->groups;
    double best = -INFINITY, second = -INFINITY;
    for (size_t e = group * size; e < (group + 1) * size; e++) {
        double x = corrected(w, scores, e);
        if (x > best) {
            second = best;
            best = x;
        } else {
            second = fmax(second, x);
        }
    }
    return w->spec->best == 2 ? best + second : best;
}

/* Is a group among the chosen ones: do fewer than that come before it? */
static bool group_is_chosen(const route_work *w, const float *scores, size_t group)
{
    size_t before = 0;
    double own = group_score(w, scores, group);
    for (size_t g = 0; g < w->spec->groups; g++) {
        double x = group_score(w, scores, g);
        before += x > own || (x == own && g < group);
    }
    return before < w->spec->chosen_groups;
}

/* Experts of other groups cannot be chosen. Those of chosen groups stay, and come before all that
 * go, so that one group after the other may go. */
static void drop_groups(const route_work *w, float *scores)
{
    size_t size = w->spec->experts / w->spec->groups;
    for (size_t g = 0; g < w->spec->groups; g++) {
        if (group_is_chosen(w, scores, g))
            continue;
        for (size_t e = g * size; e < (g + 1) * size; e++)
            scores[e] = -INFINITY;
    }
}

/* The best that is left; of equals the first. */
static size_t choose_next(const route_work *w, const float *scores)
{
    size_t best = 0;
    for (size_t e = 1; e < w->spec->experts; e++) {
        if (corrected(w, scores, e) > corrected(w, scores, best))
            best = e;
    }
    return best;
}

static void route_row(const route_work *w, float *scores, float *out)
{
    const route_spec *s = w->spec;
    float *chosen = out, *weights = out + s->chosen;
    double sum = 0;
    score_row(s, scores);
    if (s->groups > 1)
        drop_groups(w, scores);
    for (size_t i = 0; i < s->chosen; i++) {
        size_t e = choose_next(w, scores);
        chosen[i] = (float)e;
        weights[i] = scores[e];
        sum += (double)scores[e];
        scores[e] = -INFINITY;
    }
    for (size_t i = 0; i < s->chosen; i++) {
        double x = (double)weights[i];
        if (s->normalizes)
            x /= s->scores == ROUTE_SIGMOID ? sum + 1e-20 : sum;
        weights[i] = (float)(x * s->scale);
    }
}

static void route_block(void *user, size_t index, int thread)
{
    const route_work *w = user;
    const route_spec *s = w->spec;
    (void)thread;
    for (size_t r = index * ROW_BLOCK; r < w->rows && r < (index + 1) * ROW_BLOCK; r++)
        route_row(w, w->scores + r * s->experts, w->out + r * 2 * s->chosen);
}

tare_status run_route(const graph_run *r, const graph_node *n)
{
    route_work work = {.spec = &r->block->graph->route,
                       .correction = r->norms->correction,
                       .scores = graph_run_value(r, n->in[0]),
                       .out = graph_run_value(r, n->out),
                       .rows = r->b->rows};
    parallel_for(r->w->ctx, row_blocks(work.rows), route_block, &work);
    return TARE_OK;
}

/* ---- the experts ---- */

typedef struct expert_work {
    const block_ops *ops;
    size_t expert;
} expert_work;

static tare_status expert_linears(void *user, graph_unit unit, const batch *b, const float *x,
                                  float *const *y)
{
    const expert_work *w = user;
    return w->ops->expert(w->ops->user, w->expert, unit, b->rows, x, y);
}

tare_status run_experts(const graph_run *r, const graph_node *n)
{
    tare_status status = TARE_OK;
    const block_graph *g = r->block->graph;
    const float *x = graph_run_value(r, n->in[0]), *routing = graph_run_value(r, n->in[1]);
    float *sums = graph_run_value(r, n->out);
    struct expert_room *room = r->w->experts;
    const model_block block = {.graph = &r->model->expert, .index = r->block->index};
    expert_work expert = {.ops = r->ops};
    const block_ops ops = {.user = &expert, .linears = expert_linears};
    workspace inner = *r->w;
    inner.values = room->values;
    float *y = workspace_value(&inner, block.graph, (graph_value)block.graph->num_values - 1);
    memset(sums, 0, r->b->rows * g->experts.columns * sizeof *sums);
    for (; expert.expert < g->experts.count; expert.expert++) {
        room->rows.count = 0;
        expert_rows_gather(&room->rows, &g->route, expert.expert, x, routing, r->b->rows, 0);
        const batch b = {.rows = room->rows.count};
        if (b.rows == 0)
            continue;
        TRY(block_forward(r->model, &block, NULL, r->norms, &ops, &b, &inner, room->rows.x));
        expert_rows_add(r->w->ctx, &room->rows, y, sums, r->w->round);
    }
done:
    return status;
}
