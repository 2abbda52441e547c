/* One decoder layer, as in spec/models.md 1.3. Rows are independent everywhere but in attention;
 * the order of arithmetic inside a row or head is fixed, so neither threads nor batches change a
 * bit. */
#include "model/decoder.h"

#include <string.h>

#include "base/parallel.h"
#include "tensor/kernels.h"
#include "tensor/rounded.h"

tare_status layer_norms_load(tare_model *model, size_t layer, layer_norms *out)
{
    *out = (layer_norms){0};
    for (int role = 0; role < NORM_COUNT; role++) {
        const tensor_info *t = model->layers[layer].norms[role];
        tare_status status = t ? model_read_vector(model, t, &out->weights[role]) : TARE_OK;
        if (status != TARE_OK) {
            layer_norms_free(model->ctx, out);
            return status;
        }
    }
    return TARE_OK;
}

void layer_norms_free(tare_context *ctx, layer_norms *norms)
{
    for (int role = 0; role < NORM_COUNT; role++)
        mem_free(ctx, norms->weights[role]);
    for (int role = 0; role < NORM_COUNT; role++)
        mem_free(ctx, norms->biases[role]);
    *norms = (layer_norms){0};
}

attention_shape layer_attention_shape(const model_config *c, size_t layer, size_t tokens)
{
    return (attention_shape){.tokens = tokens,
                             .num_heads = c->num_heads,
                             .num_kv_heads = c->num_kv_heads,
                             .head_dim = c->head_dim,
                             .window = model_config_window(c, layer)};
}

tare_status decoder_workspace_create(tare_model *model, size_t rows, size_t longest,
                                     tare_dtype round, decoder_workspace *out)
{
    tare_context *ctx = model->ctx;
    const model_config *c = &model->config;
    size_t query = c->num_heads * c->head_dim,
           width = query > c->hidden_size ? query : c->hidden_size, count;
    *out = (decoder_workspace){.ctx = ctx, .rows = rows, .round = round};
    tare_status status = rope_table_create(ctx, &c->rope, c->head_dim, longest,
                                           (size_t)parallel_threads(ctx), &out->rope);
    bool ok = status == TARE_OK && size_mul(rows, width, &count) &&
              (out->input = mem_alloc_array(ctx, count, 4));
    for (size_t i = 0; ok && i < c->arch->num_linears; i++) {
        const linear_spec *spec = &c->arch->linears[i];
        ok = size_mul(rows, model_config_dim(c, spec->out), &count) &&
             (out->outputs[spec->role] = mem_alloc_array(ctx, count, 4));
    }
    if (ok) {
        attention_shape shape = layer_attention_shape(c, 0, longest);
        ok = size_mul(attention_scratch_size(&shape), (size_t)parallel_threads(ctx), &count) &&
             (out->attention_scratch = mem_alloc_array(ctx, count, 4));
    }
    if (ok)
        return TARE_OK;
    decoder_workspace_free(out);
    return TARE_E_MEMORY;
}

size_t decoder_workspace_bytes(const tare_model *model, size_t rows, size_t longest)
{
    const model_config *c = &model->config;
    attention_shape shape = layer_attention_shape(c, 0, longest);
    size_t query = c->num_heads * c->head_dim,
           width = query > c->hidden_size ? query : c->hidden_size;
    size_t bytes = rope_table_bytes(&c->rope, c->head_dim, longest,
                                    (size_t)parallel_threads(model->ctx));
    bytes += mem_array_bytes(rows * width, 4);
    for (size_t i = 0; i < c->arch->num_linears; i++)
        bytes += mem_array_bytes(rows * model_config_dim(c, c->arch->linears[i].out), 4);
    return bytes + mem_array_bytes(attention_scratch_size(&shape),
                                   4 * (size_t)parallel_threads(model->ctx));
}

size_t layer_norms_bytes(const tare_model *model, size_t layer)
{
    size_t bytes = 0, loading = 0;
    for (int role = 0; role < NORM_COUNT; role++) {
        const tensor_info *t = model->layers[layer].norms[role];
        if (!t)
            continue;
        bytes += 2 * model_vector_bytes(t); /* a shift gives it a bias */
        loading = model_read_vector_bytes(t) > loading ? model_read_vector_bytes(t) : loading;
    }
    return bytes + loading;
}

void decoder_workspace_free(decoder_workspace *w)
{
    if (!w->ctx)
        return;
    rope_table_free(w->ctx, &w->rope);
    mem_free(w->ctx, w->input);
    for (int role = 0; role < ROLE_COUNT; role++)
        mem_free(w->ctx, w->outputs[role]);
    mem_free(w->ctx, w->attention_scratch);
    *w = (decoder_workspace){0};
}

/* ---- row-wise work, in parallel over blocks of rows ---- */

enum { ROW_BLOCK = 32 };

typedef struct row_work {
    const kernels *k;
    tare_context *ctx;
    size_t rows, cols;
    const float *x, *weight, *bias;
    float *y;
    float eps;
    tare_dtype round;
} row_work;

static size_t row_blocks(size_t rows)
{
    return (rows + ROW_BLOCK - 1) / ROW_BLOCK;
}

static void norm_row(const row_work *w, const float *x, const float *weight, size_t n, float *y)
{
    if (w->round == TARE_F32)
        w->k->rms_norm(x, weight, n, w->eps, y);
    else
        rounded_rms_norm(x, weight, n, w->eps, w->round, y);
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

void norm_rows(tare_context *ctx, const float *x, const float *weight, const float *bias,
               size_t rows, size_t cols, float eps, tare_dtype round, float *y)
{
    row_work w = {.k = kernels_get(ctx),
                  .ctx = ctx,
                  .rows = rows,
                  .cols = cols,
                  .x = x,
                  .weight = weight,
                  .bias = bias,
                  .y = y,
                  .eps = eps,
                  .round = round};
    parallel_for(ctx, row_blocks(rows), norm_block, &w);
}

/* y += x */
static void add_block(void *user, size_t index, int thread)
{
    const row_work *w = user;
    (void)thread;
    size_t first = index * ROW_BLOCK,
           last = first + ROW_BLOCK < w->rows ? first + ROW_BLOCK : w->rows;
    size_t n = (last - first) * w->cols;
    w->k->add(w->y + first * w->cols, w->x + first * w->cols, n);
    round_values(w->y + first * w->cols, n, w->round);
}

static void add_rows(decoder_workspace *ws, float *y, const float *x, size_t rows, size_t cols)
{
    row_work w = {
        .k = kernels_get(ws->ctx), .rows = rows, .cols = cols, .x = x, .y = y, .round = ws->round};
    parallel_for(ws->ctx, row_blocks(rows), add_block, &w);
}

/* y = silu(y) * x */
static void silu_block(void *user, size_t index, int thread)
{
    const row_work *w = user;
    (void)thread;
    size_t first = index * ROW_BLOCK,
           last = first + ROW_BLOCK < w->rows ? first + ROW_BLOCK : w->rows;
    size_t n = (last - first) * w->cols;
    float *gate = w->y + first * w->cols;
    if (w->round == TARE_F32)
        w->k->silu_mul(gate, w->x + first * w->cols, n);
    else
        rounded_silu_mul(gate, w->x + first * w->cols, n, w->round);
}

/* ---- linears ---- */

static void round_block(void *user, size_t index, int thread)
{
    const row_work *w = user;
    (void)thread;
    size_t first = index * ROW_BLOCK,
           last = first + ROW_BLOCK < w->rows ? first + ROW_BLOCK : w->rows;
    round_values(w->y + first * w->cols, (last - first) * w->cols, w->round);
}

/* w->outputs of the group's members, from x [rows, k]. */
static tare_status run_linears(tare_model *model, const layer_ops *ops, linear_group group,
                               const batch *b, decoder_workspace *w, const float *x)
{
    const architecture *arch = model->config.arch;
    float *y[ROLE_COUNT] = {0};
    row_work work[ROLE_COUNT];
    size_t members = 0;
    for (size_t i = 0; i < arch->num_linears; i++) {
        const linear_spec *spec = &arch->linears[i];
        if (spec->group != group)
            continue;
        y[members] = w->outputs[spec->role];
        work[members++] = (row_work){.rows = b->rows,
                                     .cols = model_config_dim(&model->config, spec->out),
                                     .y = w->outputs[spec->role],
                                     .round = w->round};
    }
    tare_status status = ops->linears(ops->user, group, b, x, y);
    for (size_t i = 0; status == TARE_OK && w->round != TARE_F32 && i < members; i++)
        parallel_for(w->ctx, row_blocks(b->rows), round_block, &work[i]);
    return status;
}

/* ---- attention ---- */

typedef struct rotate_work {
    row_work rows;
    const rope_table *rope;
    const batch *b;
    const float *q_norm, *k_norm;
    size_t num_heads, num_kv_heads, head_dim;
    float *q, *k;
} rotate_work;

/* Per-head norm (where the architecture has one), then rotary embedding, of the heads of one row.
 */
static void rotate_heads(const rotate_work *w, float *row, size_t heads, const float *norm,
                         const float *cos, const float *sin)
{
    for (size_t h = 0; h < heads; h++) {
        float *x = row + h * w->head_dim;
        if (norm)
            norm_row(&w->rows, x, norm, w->head_dim, x);
        if (w->rows.round == TARE_F32)
            w->rows.k->rope(x, cos, sin, w->head_dim);
        else
            rounded_rope(x, cos, sin, w->head_dim, w->rows.round);
    }
}

static void rotate_sample(void *user, size_t index, int thread)
{
    const rotate_work *w = user;
    size_t row = 0;
    for (size_t s = 0; s < index; s++)
        row += w->b->lengths[s];
    size_t past = w->b->past ? w->b->past[index] : 0;
    size_t tokens = past + w->b->lengths[index];
    rope_sequence rope = rope_sequence_begin(w->rope, tokens, thread);
    for (size_t p = past; p < tokens; p++, row++) {
        const float *cos, *sin;
        rope_sequence_at(&rope, p, &cos, &sin);
        rotate_heads(w, w->q + row * w->num_heads * w->head_dim, w->num_heads, w->q_norm, cos, sin);
        rotate_heads(w, w->k + row * w->num_kv_heads * w->head_dim, w->num_kv_heads, w->k_norm, cos,
                     sin);
    }
}

static tare_status attend(tare_model *model, size_t layer, const layer_norms *norms,
                          const layer_ops *ops, const batch *b, decoder_workspace *w)
{
    const model_config *c = &model->config;
    float *q = w->outputs[ROLE_Q], *k = w->outputs[ROLE_K], *v = w->outputs[ROLE_V];
    rotate_work work = {
        .rows = {.k = kernels_get(w->ctx), .eps = c->rms_norm_eps, .round = w->round},
        .rope = &w->rope,
        .b = b,
        .q_norm = norms->weights[NORM_Q],
        .k_norm = norms->weights[NORM_K],
        .num_heads = c->num_heads,
        .num_kv_heads = c->num_kv_heads,
        .head_dim = c->head_dim,
        .q = q,
        .k = k};
    parallel_for(w->ctx, b->samples, rotate_sample, &work);
    tare_status status = ops->attention ? ops->attention(ops->user, b, q, k, v) : TARE_OK;
    if (status != TARE_OK)
        return status;
    if (ops->attend)
        return ops->attend(ops->user, b, q, k, v, w->input, w->attention_scratch);
    size_t query = c->num_heads * c->head_dim, kv = c->num_kv_heads * c->head_dim, row = 0;
    for (size_t s = 0; s < b->samples; s++) {
        attention_shape shape = layer_attention_shape(c, layer, b->lengths[s]);
        shape.round = w->round;
        attention_forward(w->ctx, &shape, q + row * query, query, k + row * kv, kv, v + row * kv,
                          kv, w->input + row * query, query, w->attention_scratch);
        row += b->lengths[s];
    }
    return TARE_OK;
}

tare_status decoder_layer_forward(tare_model *model, size_t layer, const layer_norms *norms,
                                  const layer_ops *ops, const batch *b, decoder_workspace *w,
                                  float *x)
{
    tare_status status = TARE_OK;
    const model_config *c = &model->config;
    float **out = w->outputs;
    norm_rows(w->ctx, x, norms->weights[NORM_INPUT], norms->biases[NORM_INPUT], b->rows,
              c->hidden_size, c->rms_norm_eps, w->round, w->input);
    TRY(run_linears(model, ops, GROUP_QKV, b, w, w->input));
    TRY(attend(model, layer, norms, ops, b, w));
    TRY(run_linears(model, ops, GROUP_O, b, w, w->input));
    add_rows(w, x, out[ROLE_O], b->rows, c->hidden_size);

    norm_rows(w->ctx, x, norms->weights[NORM_POST_ATTENTION], norms->biases[NORM_POST_ATTENTION],
              b->rows, c->hidden_size, c->rms_norm_eps, w->round, w->input);
    TRY(run_linears(model, ops, GROUP_GATE_UP, b, w, w->input));
    row_work silu = {.k = kernels_get(w->ctx),
                     .rows = b->rows,
                     .cols = c->intermediate_size,
                     .x = out[ROLE_UP],
                     .y = out[ROLE_GATE],
                     .round = w->round};
    parallel_for(w->ctx, row_blocks(b->rows), silu_block, &silu);
    TRY(run_linears(model, ops, GROUP_DOWN, b, w, out[ROLE_GATE]));
    add_rows(w, x, out[ROLE_DOWN], b->rows, c->hidden_size);
done:
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
