/* Mixtures of experts (spec/models.md 1.8, 1.9): the router's choice, and what the experts that
 * were chosen make of their rows. Experts go in order and add to a row's sum in that order, so
 * nothing depends on threads or batches. */
#include <math.h>
#include <string.h>

#include "base/parallel.h"
#include "forward/executor_internal.h"
#include "tensor/kernels.h"
#include "tensor/rounded.h"

/* For as many rows as the workspace has: all may choose one expert. */
struct expert_room {
    uint32_t *rows;           /* that chose the expert in work */
    float *weights;           /* of it in them */
    float *x, *gate, *up, *y; /* [rows, hidden], [rows, width] twice, [rows, hidden] */
};

void expert_room_lay_out(carver *c, const tare_model *model, workspace *w)
{
    const experts_spec *e = &model->graphs[BLOCK_EXPERTS].experts;
    struct expert_room room;
    if (e->count == 0)
        return;
    struct expert_room *at = carve(c, 1, sizeof room);
    room.rows = carve(c, w->rows, sizeof *room.rows);
    room.weights = carve(c, w->rows, sizeof *room.weights);
    room.x = carve(c, w->rows, e->columns * sizeof *room.x);
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
    double max = -INFINITY, sum = 0;
    for (size_t e = 0; e < s->experts; e++)
        max = fmax(max, (double)logits[e]);
    for (size_t e = 0; s->scores == ROUTE_SOFTMAX && e < s->experts; e++)
        sum += exp((double)logits[e] - max);
    for (size_t e = 0; e < s->experts; e++)
        scores[e] = (float)(s->scores == ROUTE_SOFTMAX ? exp((double)logits[e] - max) / sum
                                                       : 1 / (1 + exp(-(double)logits[e])));
}

/* The sum of the best of a group. */
static double group_score(const route_work *w, const float *scores, size_t group)
{
    size_t size = w->spec->experts / w->spec->groups;
    double best = -INFINITY, second = -INFINITY;
    for (size_t e = group * size; e < (group + 1) * size; e++) {
        double x = (double)scores[e] + (w->correction ? (double)w->correction[e] : 0);
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
    for (size_t e = 0; e < w->spec->experts; e++) {
        double x = (double)scores[e] + (w->correction ? (double)w->correction[e] : 0);
        if (has_chosen(chosen, count, e) || (best < w->spec->experts && x <= most))
            continue;
        if (w->spec->groups > 1 && !group_is_chosen(w, scores, e / size))
            continue;
        best = e;
        most = x;
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

/* Gathers the rows of `x` that chose an expert; how many. */
static size_t gather(const graph_run *r, const float *routing, const float *x, size_t expert)
{
    struct expert_room *room = r->w->experts;
    const route_spec *s = &r->block->graph->route;
    size_t count = 0, columns = r->block->graph->experts.columns;
    for (size_t row = 0; row < r->b->rows; row++) {
        const float *chosen = routing + row * 2 * s->chosen;
        for (size_t i = 0; i < s->chosen; i++) {
            if (chosen[i] != (float)expert)
                continue;
            memcpy(room->x + count * columns, x + row * columns, columns * sizeof *x);
            room->weights[count] = chosen[s->chosen + i];
            room->rows[count++] = (uint32_t)row;
            break;
        }
    }
    return count;
}

typedef struct expert_work {
    const kernels *k;
    struct expert_room *room;
    size_t width, columns;
    float *sums;
    tare_dtype round;
} expert_work;

static void gate_row(void *user, size_t row, int thread)
{
    const expert_work *w = user;
    float *gate = w->room->gate + row * w->width, *up = w->room->up + row * w->width;
    (void)thread;
    round_values(gate, w->width, w->round);
    round_values(up, w->width, w->round);
    if (w->round == TARE_F32)
        w->k->silu_mul(gate, up, w->width);
    else
        rounded_silu_mul(gate, up, w->width, w->round);
}

/* sum += weight * y, as a model in `round` rounds each step. */
static void add_row(void *user, size_t row, int thread)
{
    const expert_work *w = user;
    float *y = w->room->y + row * w->columns, weight = w->room->weights[row];
    float *sum = w->sums + w->room->rows[row] * w->columns;
    (void)thread;
    round_values(y, w->columns, w->round);
    for (size_t i = 0; i < w->columns; i++)
        y[i] *= weight;
    round_values(y, w->columns, w->round);
    w->k->add(sum, y, w->columns);
    round_values(sum, w->columns, w->round);
}

static tare_status run_expert(const graph_run *r, size_t expert, size_t rows, expert_work *w)
{
    tare_status status = TARE_OK;
    struct expert_room *room = w->room;
    float *inner[2] = {room->gate, room->up};
    TRY(r->ops->expert(r->ops->user, expert, 0, rows, room->x, inner));
    parallel_for(r->w->ctx, rows, gate_row, w);
    TRY(r->ops->expert(r->ops->user, expert, 1, rows, room->gate, &room->y));
    parallel_for(r->w->ctx, rows, add_row, w);
done:
    return status;
}

tare_status run_experts(const graph_run *r, const graph_node *n)
{
    tare_status status = TARE_OK;
    const experts_spec *e = &r->block->graph->experts;
    const float *x = graph_run_value(r, n->in[0]), *routing = graph_run_value(r, n->in[1]);
    expert_work work = {.k = kernels_get(r->w->ctx),
                        .room = r->w->experts,
                        .width = e->width,
                        .columns = e->columns,
                        .sums = graph_run_value(r, n->out),
                        .round = r->w->round};
    memset(work.sums, 0, r->b->rows * e->columns * sizeof *work.sums);
    for (size_t expert = 0; expert < e->count; expert++) {
        size_t rows = gather(r, routing, x, expert);
        if (rows > 0)
            TRY(run_expert(r, expert, rows, &work));
    }
done:
    return status;
}
