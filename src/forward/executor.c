/* The nodes of a graph, as in spec/models.md 1.3. Rows are independent everywhere but in attention;
 * the order of arithmetic inside a row or head is fixed, so neither threads nor batches change a
 * bit. */
#include "forward/executor_internal.h"

#include <string.h>

#include "base/carver.h"
#include "base/parallel.h"
#include "tensor/kernels.h"
#include "tensor/rounded.h"

tare_status block_norms_load(tare_model *model, const model_block *block,
                             const block_segment *segment, block_norms *out)
{
    *out = (block_norms){0};
    if (block->correction && segment_routes(block->graph, segment)) {
        tare_status status = model_read_vector(model, block->correction, &out->correction);
        if (status != TARE_OK)
            return status;
    }
    for (size_t i = 0; i < block->graph->num_norms; i++) {
        if (!segment_has_norm(block->graph, segment, i))
            continue;
        tare_status status = model_read_vector(model, block->norms[i], &out->weights[i]);
        if (status != TARE_OK) {
            block_norms_free(model->ctx, out);
            return status;
        }
    }
    return TARE_OK;
}

void block_norms_free(tare_context *ctx, block_norms *norms)
{
    for (size_t i = 0; i < BLOCK_NORMS; i++) {
        mem_free(ctx, norms->weights[i]);
        mem_free(ctx, norms->biases[i]);
    }
    mem_free(ctx, norms->correction);
    *norms = (block_norms){0};
}

size_t block_norms_bytes(const model_block *block)
{
    size_t bytes = 0, loading = 0;
    for (size_t i = 0; i < block->graph->num_norms; i++) {
        bytes += 2 * model_vector_bytes(block->norms[i]); /* a shift gives it a bias */
        loading = size_max(loading, model_read_vector_bytes(block->norms[i]));
    }
    if (block->correction)
        bytes += model_read_vector_bytes(block->correction);
    return bytes + loading;
}

attention_shape layer_attention_shape(const model_config *c, size_t layer, size_t tokens)
{
    return (attention_shape){.tokens = tokens,
                             .num_heads = c->num_heads,
                             .num_kv_heads = c->num_kv_heads,
                             .head_dim = c->head_dim,
                             .value_dim = c->value_dim,
                             .window = model_config_window(c, layer),
                             .scale = c->attention_scale,
                             .softcap = c->attention_softcap};
}

/* ---- the workspace ---- */

/* Values begin at multiples of 64 bytes. */
enum { ROW_STEP = 16 };

static size_t padded(size_t rows)
{
    return (rows + ROW_STEP - 1) / ROW_STEP * ROW_STEP;
}

typedef struct workspace_room {
    const tare_model *model;
    size_t longest, threads;
    bool experts;
    workspace *w;
} workspace_room;

static void lay_out(carver *c, void *component)
{
    workspace_room *room = component;
    attention_shape shape = layer_attention_shape(&room->model->config, 0, room->longest);
    size_t columns = size_max(room->model->graphs[BLOCK_PLAIN].columns,
                              room->model->graphs[BLOCK_EXPERTS].columns);
    columns = size_max(columns, room->model->expert.columns);
    room->w->values = carve(c, room->w->rows, columns * sizeof(float));
    room->w->attention_scratch = carve(c, room->threads,
                                       attention_scratch_size(&shape) * sizeof(float));
    if (room->experts)
        expert_room_lay_out(c, room->model, room->w);
}

tare_status workspace_create(tare_model *model, size_t rows, size_t longest, tare_dtype round,
                             bool experts, workspace *out)
{
    tare_context *ctx = model->ctx;
    const model_config *c = &model->config;
    size_t threads = (size_t)parallel_threads(ctx);
    tare_status status = TARE_OK;
    *out = (workspace){.ctx = ctx, .rows = padded(rows), .round = round};
    TRY(rope_table_create(ctx, &c->rope, c->rotary_dim, longest, threads, &out->rope));
    if (c->has_local_rope)
        TRY(rope_table_create(ctx, &c->local_rope, c->rotary_dim, longest, threads,
                              &out->local_rope));
    TRY(carver_alloc(ctx, lay_out, &(workspace_room){model, longest, threads, experts, out}));
done:
    if (status != TARE_OK)
        workspace_free(out);
    return status;
}

size_t workspace_bytes(const tare_model *model, size_t rows, size_t longest, bool experts)
{
    const model_config *c = &model->config;
    size_t threads = (size_t)parallel_threads(model->ctx);
    workspace w = {.rows = padded(rows)};
    size_t local = c->has_local_rope
                       ? rope_table_bytes(&c->local_rope, c->rotary_dim, longest, threads)
                       : 0;
    return local + rope_table_bytes(&c->rope, c->rotary_dim, longest, threads) +
           carver_bytes(lay_out, &(workspace_room){model, longest, threads, experts, &w});
}

void workspace_free(workspace *w)
{
    if (!w->ctx)
        return;
    rope_table_free(w->ctx, &w->rope);
    rope_table_free(w->ctx, &w->local_rope);
    mem_free(w->ctx, w->values);
    *w = (workspace){0};
}

/* ---- row-wise work, in parallel over blocks of rows ---- */

typedef struct row_work {
    const kernels *k;
    size_t rows, cols;
    const float *x, *weight, *bias;
    float *y;
    float eps, base;
    tare_dtype round;
} row_work;

static void norm_row(const row_work *w, const float *x, const float *weight, size_t n, float *y)
{
    if (w->round == TARE_F32)
        w->k->rms_norm(x, weight, n, w->eps, w->base, y);
    else
        rounded_rms_norm(x, weight, n, w->eps, w->base, w->round, y);
}

static void norm_block(void *user, size_t index, int thread)
{
    const row_work *w = user;
    (void)thread;
    for (size_t r = index * ROW_BLOCK; r < w->rows && r < (index + 1) * ROW_BLOCK; r++) {
        norm_row(w, w->x + r * w->cols, w->weight, w->cols, w->y + r * w->cols);
        if (w->bias)
            w->k->add(w->y + r * w->cols, w->bias, w->cols);
        round_values(w->y + r * w->cols, w->cols, w->round);
    }
}

static void norm_rows_eps(const tare_model *model, float eps, const float *x, const float *weight,
                          const float *bias, size_t rows, size_t cols, tare_dtype round, float *y)
{
    row_work w = {.k = kernels_get(model->ctx),
                  .rows = rows,
                  .cols = cols,
                  .x = x,
                  .weight = weight,
                  .bias = bias,
                  .y = y,
                  .eps = eps,
                  .base = model->config.arch->norm_base,
                  .round = round};
    parallel_for(model->ctx, row_blocks(rows), norm_block, &w);
}

void norm_rows(const tare_model *model, const float *x, const float *weight, const float *bias,
               size_t rows, size_t cols, tare_dtype round, float *y)
{
    norm_rows_eps(model, model->config.rms_norm_eps, x, weight, bias, rows, cols, round, y);
}

/* The values of a block of rows: *first is the first of them. */
static size_t values_of(const row_work *w, size_t index, size_t *first)
{
    size_t row = index * ROW_BLOCK, left = w->rows - row;
    *first = row * w->cols;
    return (left < ROW_BLOCK ? left : ROW_BLOCK) * w->cols;
}

/* y += x */
static void add_block(void *user, size_t index, int thread)
{
    const row_work *w = user;
    size_t first, n = values_of(w, index, &first);
    (void)thread;
    w->k->add(w->y + first, w->x + first, n);
    round_values(w->y + first, n, w->round);
}

/* y = silu(y) * x */
static void silu_block(void *user, size_t index, int thread)
{
    const row_work *w = user;
    size_t first, n = values_of(w, index, &first);
    (void)thread;
    if (w->round == TARE_F32)
        w->k->silu_mul(w->y + first, w->x + first, n);
    else
        rounded_silu_mul(w->y + first, w->x + first, n, w->round);
}

/* y = gelu(y) * x */
static void gelu_block(void *user, size_t index, int thread)
{
    const row_work *w = user;
    size_t first, n = values_of(w, index, &first);
    (void)thread;
    if (w->round == TARE_F32)
        w->k->gelu_mul(w->y + first, w->x + first, n);
    else
        rounded_gelu_mul(w->y + first, w->x + first, n, w->round);
}

static void round_block(void *user, size_t index, int thread)
{
    const row_work *w = user;
    size_t first, n = values_of(w, index, &first);
    (void)thread;
    round_values(w->y + first, n, w->round);
}

/* ---- nodes ---- */

float *workspace_value(const workspace *w, const block_graph *graph, graph_value v)
{
    return v == 0 ? w->stream : w->values + graph->values[v].offset * w->rows;
}

float *graph_run_value(const graph_run *r, graph_value v)
{
    return workspace_value(r->w, r->block->graph, v);
}

static size_t columns_of(const graph_run *r, graph_value v)
{
    return r->block->graph->values[v].columns;
}

/* Work on all rows of y, with x beside it. */
static void run_rows(const graph_run *r, void (*body)(void *, size_t, int), graph_value y,
                     graph_value x)
{
    row_work work = {.k = kernels_get(r->w->ctx),
                     .rows = r->b->rows,
                     .cols = columns_of(r, y),
                     .x = x < 0 ? NULL : graph_run_value(r, x),
                     .y = graph_run_value(r, y),
                     .round = r->w->round};
    parallel_for(r->w->ctx, row_blocks(work.rows), body, &work);
}

static tare_status run_norm(const graph_run *r, const graph_node *n)
{
    size_t heads = columns_of(r, n->in[0]) / n->width;
    float eps = r->block->graph->norms[n->index].eps;
    norm_rows_eps(r->model, eps != 0 ? eps : r->model->config.rms_norm_eps,
                  graph_run_value(r, n->in[0]), r->norms->weights[n->index],
                  r->norms->biases[n->index], r->b->rows * heads, n->width, r->w->round,
                  graph_run_value(r, n->out));
    return TARE_OK;
}

static tare_status run_linears(const graph_run *r, const graph_node *n)
{
    const unit_spec *unit = &r->block->graph->units[n->index];
    float *y[UNIT_LINEARS];
    for (size_t i = 0; i < unit->count; i++)
        y[i] = graph_run_value(r, n->out + (graph_value)i);
    tare_status status = r->ops->linears(r->ops->user, n->index, r->b, graph_run_value(r, n->in[0]),
                                         y);
    for (size_t i = 0; status == TARE_OK && r->w->round != TARE_F32 && i < unit->count; i++)
        run_rows(r, round_block, n->out + (graph_value)i, -1);
    return status;
}

typedef struct split_work {
    const float *x;
    size_t cols, count, columns[GRAPH_VALUES];
    float *y[GRAPH_VALUES];
    size_t rows;
} split_work;

static void split_block(void *user, size_t index, int thread)
{
    const split_work *w = user;
    (void)thread;
    for (size_t r = index * ROW_BLOCK; r < w->rows && r < (index + 1) * ROW_BLOCK; r++) {
        const float *x = w->x + r * w->cols;
        for (size_t i = 0; i < w->count; x += w->columns[i++])
            memcpy(w->y[i] + r * w->columns[i], x, w->columns[i] * sizeof *x);
    }
}

static tare_status run_split(const graph_run *r, const graph_node *n)
{
    split_work work = {.x = graph_run_value(r, n->in[0]),
                       .cols = columns_of(r, n->in[0]),
                       .count = n->index,
                       .rows = r->b->rows};
    for (size_t i = 0; i < n->index; i++) {
        work.y[i] = graph_run_value(r, n->out + (graph_value)i);
        work.columns[i] = columns_of(r, n->out + (graph_value)i);
    }
    parallel_for(r->w->ctx, row_blocks(work.rows), split_block, &work);
    return TARE_OK;
}

typedef struct rotate_work {
    const graph_run *r;
    const graph_node *node;
    const rope_table *table;
    const kernels *kernels;
    float *q, *k;
    size_t q_columns, k_columns;
} rotate_work;

static void rotate_heads(const rotate_work *w, float *row, size_t columns, size_t head, size_t skip,
                         const float *cos, const float *sin)
{
    size_t turned = w->node->width;
    for (float *x = row + skip; x < row + columns; x += head) {
        if (w->node->pairing == ROPE_NEIGHBOURS)
            rounded_rope_neighbours(x, cos, sin, turned, w->r->w->round);
        else if (w->r->w->round == TARE_F32)
            w->kernels->rope(x, cos, sin, turned);
        else
            rounded_rope(x, cos, sin, turned, w->r->w->round);
    }
}

/* Tokens of each sequence of a sample. */
static size_t sequence_length(const batch *b, size_t sample)
{
    return b->lengths[sample] / (b->sequences ? b->sequences[sample] : 1);
}

static void rotate_sample(void *user, size_t index, int thread)
{
    const rotate_work *w = user;
    const batch *b = w->r->b;
    size_t row = 0;
    for (size_t s = 0; s < index; s++)
        row += b->lengths[s];
    size_t past = b->past ? b->past[index] : 0, length = sequence_length(b, index);
    rope_sequence rope = rope_sequence_begin(w->table, past + length, thread);
    for (size_t i = 0; i < b->lengths[index]; i++, row++) {
        const float *cos, *sin;
        size_t place = i % length;
        rope_sequence_at(&rope, b->turn ? (place + b->turn) % length : past + place, &cos, &sin);
        rotate_heads(w, w->q + row * w->q_columns, w->q_columns, w->node->head[0], w->node->skip,
                     cos, sin);
        rotate_heads(w, w->k + row * w->k_columns, w->k_columns, w->node->head[1], 0, cos, sin);
    }
}

static tare_status run_rope(const graph_run *r, const graph_node *n)
{
    const model_config *c = &r->model->config;
    bool local = c->has_local_rope && model_config_window(c, r->block->index) != 0;
    rotate_work work = {.r = r,
                        .node = n,
                        .table = local ? &r->w->local_rope : &r->w->rope,
                        .kernels = kernels_get(r->w->ctx),
                        .q = graph_run_value(r, n->in[0]),
                        .k = graph_run_value(r, n->in[1]),
                        .q_columns = columns_of(r, n->in[0]),
                        .k_columns = columns_of(r, n->in[1])};
    parallel_for(r->w->ctx, r->b->samples, rotate_sample, &work);
    return TARE_OK;
}

static tare_status run_attend(const graph_run *r, const graph_node *n)
{
    const batch *b = r->b;
    const block_ops *ops = r->ops;
    const float *q = graph_run_value(r, n->in[0]), *k = graph_run_value(r, n->in[1]),
                *v = graph_run_value(r, n->in[2]);
    float *out = graph_run_value(r, n->out);
    const float *latent = n->latent >= 0 ? graph_run_value(r, n->latent) : NULL;
    tare_status status = ops->attention ? ops->attention(ops->user, b, q, k, v, latent) : TARE_OK;
    if (status != TARE_OK)
        return status;
    if (ops->attend)
        return ops->attend(ops->user, b, q, k, v, out, r->w->attention_scratch);
    size_t query = columns_of(r, n->in[0]), keys = columns_of(r, n->in[1]),
           values = columns_of(r, n->in[2]), sums = columns_of(r, n->out), row = 0, end = 0;
    const size_t *kept = b->kept;
    for (size_t s = 0; s < b->samples; s++) {
        attention_shape shape = layer_attention_shape(&r->model->config, r->block->index,
                                                      sequence_length(b, s));
        shape.round = r->w->round;
        for (end += b->lengths[s]; row < end; row += shape.tokens) {
            shape.kept = kept ? *kept++ : 0;
            attention_forward(r->w->ctx, &shape, q + row * query, query, k + row * keys, keys,
                              v + row * values, values, out + row * sums, sums,
                              r->w->attention_scratch);
        }
    }
    return TARE_OK;
}

typedef struct latent_work {
    const float *kv, *shared;
    float *k, *v;
    size_t rows, heads, nope, rope, values;
} latent_work;

/* Rows of keys and values by heads: [k_nope | v] of in[0], with the part of in[1] behind k_nope. */
static void latent_block(void *user, size_t index, int thread)
{
    const latent_work *w = user;
    size_t head = w->nope + w->values;
    (void)thread;
    for (size_t row = index * ROW_BLOCK; row < w->rows && row < (index + 1) * ROW_BLOCK; row++) {
        for (size_t h = 0; h < w->heads; h++) {
            const float *from = w->kv + (row * w->heads + h) * head;
            float *k = w->k + (row * w->heads + h) * (w->nope + w->rope);
            memcpy(k, from, w->nope * sizeof *k);
            memcpy(k + w->nope, w->shared + row * w->rope, w->rope * sizeof *k);
            memcpy(w->v + (row * w->heads + h) * w->values, from + w->nope,
                   w->values * sizeof *from);
        }
    }
}

static tare_status run_latent(const graph_run *r, const graph_node *n)
{
    size_t rope = columns_of(r, n->in[1]);
    latent_work work = {.kv = graph_run_value(r, n->in[0]),
                        .shared = graph_run_value(r, n->in[1]),
                        .k = graph_run_value(r, n->out),
                        .v = graph_run_value(r, n->out + 1),
                        .rows = r->b->rows,
                        .heads = columns_of(r, n->out) / n->head[0],
                        .nope = n->head[0] - rope,
                        .rope = rope,
                        .values = n->head[1]};
    parallel_for(r->w->ctx, row_blocks(work.rows), latent_block, &work);
    return TARE_OK;
}

static tare_status run_gate(const graph_run *r, const graph_node *n)
{
    run_rows(r, n->activation == GATE_SILU ? silu_block : gelu_block, n->in[0], n->in[1]);
    return TARE_OK;
}

static tare_status run_add(const graph_run *r, const graph_node *n)
{
    run_rows(r, add_block, n->in[0], n->in[1]);
    return TARE_OK;
}

tare_status block_forward(tare_model *model, const model_block *block, const block_segment *segment,
                          const block_norms *norms, const block_ops *ops, const batch *b,
                          workspace *w, float *x)
{
    static tare_status (*const run[])(const graph_run *, const graph_node *) = {
        [NODE_NORM] = run_norm,      [NODE_LINEARS] = run_linears, [NODE_SPLIT] = run_split,
        [NODE_ROPE] = run_rope,      [NODE_LATENT] = run_latent,   [NODE_ATTEND] = run_attend,
        [NODE_GATE] = run_gate,      [NODE_ADD] = run_add,         [NODE_ROUTE] = run_route,
        [NODE_EXPERTS] = run_experts};
    graph_run r = {model, block, norms, ops, b, w};
    tare_status status = TARE_OK;
    size_t i = segment ? segment->first_node : 0,
           end = segment ? segment->end_node : block->graph->num_nodes;
    w->stream = x;
    for (; status == TARE_OK && i < end; i++) {
        const graph_node *n = &block->graph->nodes[i];
        status = run[n->kind](&r, n);
    }
    return status;
}

batch batch_next(const size_t *lengths, size_t first, size_t count, size_t max_rows)
{
    batch b = {.first = first, .lengths = lengths + first};
    while (first + b.samples < count &&
           (b.samples == 0 || b.rows + b.lengths[b.samples] <= max_rows))
        b.rows += b.lengths[b.samples++];
    return b;
}
