/* Mixtures of experts (spec/models.md 1.8, 1.9): the router's choice, and what the experts that
 * were chosen make of their rows. Experts go in order and add to a row's sum in that order, so
 * nothing depends on threads or batches. */
#include <math.h>
#include <string.h>

#include "base/parallel.h"
#include "forward/executor_internal.h"
#include "forward/expert_rows.h"
#include "tensor/kernels.h"
#include "tensor/rounded.h"

/* For as many rows as the workspace has: all may choose one expert. */
struct expert_room {
    expert_rows rows;
    float *gate, *up, *y; /* [rows, width] twice, [rows, hidden] */
};

void expert_room_lay_out(carver *c, const tare_model *model, workspace *w)
{
    const experts_spec *e = &model->graphs[BLOCK_EXPERTS].experts;
    struct expert_room room = {.rows.columns = e->columns};
    if (e->count == 0)
        return;
    struct expert_room *at = carve(c, 1, sizeof room);
    expert_rows_lay_out(c, &room.rows, w->rows);
    room.gate = carve(c, w->rows, e->width * sizeof *room.gate);
    room.up = carve(c, w->rows, e->width * sizeof *room.up);
    room.y = carve(c, w->rows, e->columns * sizeof *room.y);
    if (at)
        *at = room;
    w->experts = at;
}

/* ---- the choice ---- */

enum { ROW_BLOCK = 32 };

typedef struct route_work {
    const route_spec *spec;
    const float *correction; /* NULL: none */
    const float *logits;     /* [rows, experts]; become the scores */
    float *scores, *out;     /* [rows, 2*chosen] */
    size_t rows;
} route_work;

/* In double: FP32 softmax and sigmoid of different libraries differ by roundings, and near ties
 * must not hang on ours. */
static void score_row(const route_spec *s, const float *logits, float *scores)
{
    float max = -INFINITY;
    double sum = 0;
    for (size_t e = 0; e < s->experts; e++)
        max = fmaxf(max, logits[e]);
    for (size_t e = 0; s->scores == ROUTE_SOFTMAX && e < s->experts; e++)
        sum += exp((double)logits[e] - (double)max);
    for (size_t e = 0; e < s->experts; e++)
        scores[e] = (float)(s->scores == ROUTE_SOFTMAX ? exp((double)logits[e] - (double)max) / sum
                                                       : 1 / (1 + exp(-(double)logits[e])));
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

/* Has `row` chosen the expert already? */
static bool has_chosen(const float *chosen, size_t count, size_t expert)
{
    for (size_t i = 0; i < count; i++) {
        if (chosen[i] == (float)expert)
            return true;
    }
    return false;
}

/* The best that is left; of equals the first. */
static size_t choose_next(const route_work *w, const float *scores, const float *chosen,
                          size_t count)
{
    size_t best = w->spec->experts, size = w->spec->experts / w->spec->groups;
    double most = 0;
    for (size_t group = 0; group < w->spec->groups; group++) {
        if (w->spec->groups > 1 && !group_is_chosen(w, scores, group))
            continue;
        for (size_t e = group * size; e < (group + 1) * size; e++) {
            double x = corrected(w, scores, e);
            if (has_chosen(chosen, count, e) || (best < w->spec->experts && x <= most))
                continue;
            best = e;
            most = x;
        }
    }
    return best;
}

static void route_row(const route_work *w, const float *logits, float *scores, float *out)
{
    const route_spec *s = w->spec;
    float *chosen = out, *weights = out + s->chosen;
    double sum = 0;
    score_row(s, logits, scores);
    for (size_t i = 0; i < s->chosen; i++) {
        size_t e = choose_next(w, scores, chosen, i);
        chosen[i] = (float)e;
        weights[i] = scores[e];
        sum += (double)scores[e];
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
        route_row(w, w->logits + r * s->experts, w->scores + r * s->experts,
                  w->out + r * 2 * s->chosen);
}

tare_status run_route(const graph_run *r, const graph_node *n)
{
    float *logits = graph_run_value(r, n->in[0]);
    route_work work = {.spec = &r->block->graph->route,
                       .correction = r->norms->correction,
                       .logits = logits,
                       .scores = logits,
                       .out = graph_run_value(r, n->out),
                       .rows = r->b->rows};
    parallel_for(r->w->ctx, (work.rows + ROW_BLOCK - 1) / ROW_BLOCK, route_block, &work);
    return TARE_OK;
}

/* ---- the experts ---- */

typedef struct gate_work {
    const kernels *k;
    const struct expert_room *room;
    size_t width;
    tare_dtype round;
} gate_work;

static void gate_row(void *user, size_t row, int thread)
{
    const gate_work *w = user;
    float *gate = w->room->gate + row * w->width, *up = w->room->up + row * w->width;
    (void)thread;
    round_values(gate, w->width, w->round);
    round_values(up, w->width, w->round);
    if (w->round == TARE_F32)
        w->k->silu_mul(gate, up, w->width);
    else
        rounded_silu_mul(gate, up, w->width, w->round);
}

static tare_status run_expert(const graph_run *r, size_t expert, gate_work *w)
{
    tare_status status = TARE_OK;
    const struct expert_room *room = w->room;
    float *inner[2] = {room->gate, room->up}, *y = room->y;
    size_t rows = room->rows.count;
    TRY(r->ops->expert(r->ops->user, expert, 0, rows, room->rows.x, inner));
    parallel_for(r->w->ctx, rows, gate_row, w);
    TRY(r->ops->expert(r->ops->user, expert, 1, rows, room->gate, &y));
done:
    return status;
}

tare_status run_experts(const graph_run *r, const graph_node *n)
{
    tare_status status = TARE_OK;
    const block_graph *g = r->block->graph;
    const float *x = graph_run_value(r, n->in[0]), *routing = graph_run_value(r, n->in[1]);
    float *sums = graph_run_value(r, n->out);
    struct expert_room *room = r->w->experts;
    gate_work work = {kernels_get(r->w->ctx), room, g->experts.width, r->w->round};
    memset(sums, 0, r->b->rows * g->experts.columns * sizeof *sums);
    for (size_t expert = 0; expert < g->experts.count; expert++) {
        room->rows.count = 0;
        expert_rows_gather(&room->rows, &g->route, expert, x, routing, r->b->rows, 0);
        if (room->rows.count == 0)
            continue;
        TRY(run_expert(r, expert, &work));
        expert_rows_add(r->w->ctx, &room->rows, room->y, sums, r->w->round);
    }
done:
    return status;
}
