/* A pass of several sequences through the model. In the first pass of a sequence all tokens of its
 * prompt go together, later one token at a time, against keys and values that are kept. Every row
 * and every attention is computed as if the sequence were alone: products depend on a row alone
 * (gemm.h), attention on its sequence. */
#include <string.h>

#include "generate/generate.h"

tare_status forward_create(tare_model *model, const generation_layout *layout, size_t longest,
                           const kept_weights *kept, forward *out)
{
    tare_status status = TARE_OK;
    tare_context *ctx = model->ctx;
    const model_config *c = &model->config;
    size_t rows = layout->pass_rows, places = layout->batch, x, last, logits;
    *out = (forward){.model = model, .layout = *layout, .longest = longest};
    if (!size_mul(rows, c->hidden_size, &x) || !size_mul(places, c->hidden_size, &last) ||
        !size_mul(places, c->vocab_size, &logits))
        return TARE_FAIL(ctx, TARE_E_MEMORY, "out of memory: %zu tokens at a time", rows);
    out->x = mem_alloc_array(ctx, x, sizeof(float));
    out->last = mem_alloc_array(ctx, last, sizeof(float));
    out->logits = mem_alloc_array(ctx, logits, sizeof(float));
    out->lengths = mem_alloc_array(ctx, places, sizeof(size_t));
    out->past = mem_alloc_array(ctx, places, sizeof(size_t));
    out->sequences = mem_alloc_array(ctx, places, sizeof(sequence *));
    out->steps = mem_alloc_array(ctx, places, sizeof(attention_step));
    TRY(out->x && out->last && out->logits && out->lengths && out->past && out->sequences &&
                out->steps
            ? TARE_OK
            : TARE_E_MEMORY);
    if (layout->spill) {
        out->room = mem_alloc_array(ctx, 2 * longest * c->num_kv_heads,
                                    c->head_dim * sizeof(float));
        TRY(out->room ? TARE_OK : TARE_E_MEMORY);
    }
    TRY(workspace_create(model, layout->batch_rows, longest, TARE_F32, &out->work));
    TRY(weight_source_open(model, layout->mode, kept, &out->weights));
done:
    if (status != TARE_OK)
        forward_free(out);
    return status;
}

void forward_free(forward *f)
{
    if (!f->model)
        return;
    tare_context *ctx = f->model->ctx;
    weight_source_close(&f->weights);
    workspace_free(&f->work);
    void *const rooms[] = {f->x,    f->last,      f->logits, f->lengths,
                           f->past, f->sequences, f->steps,  f->room};
    for (size_t i = 0; i < sizeof rooms / sizeof *rooms; i++)
        mem_free(ctx, rooms[i]);
    *f = (forward){0};
}

size_t forward_bytes(const tare_model *model, const generation_layout *layout, size_t longest)
{
    const model_config *c = &model->config;
    size_t places = layout->batch, cols = c->num_kv_heads * c->head_dim;
    size_t bytes = mem_array_bytes(layout->pass_rows, c->hidden_size * sizeof(float)) +
                   mem_array_bytes(places, c->hidden_size * sizeof(float)) +
                   mem_array_bytes(places, c->vocab_size * sizeof(float)) +
                   3 * mem_array_bytes(places, sizeof(size_t)) +
                   mem_array_bytes(places, sizeof(attention_step));
    bytes += layout->spill ? kv_cache_room_bytes(cols, longest) : 0;
    bytes += workspace_bytes(model, layout->batch_rows, longest);
    return bytes + embed_into_bytes(model) + weight_source_bytes(model, layout->mode, places);
}

/* ---- attention ---- */

/* Of a prompt among its own tokens. */
static void attend_prompt(forward *f, size_t count, const float *q, const float *k, const float *v,
                          float *out, float *scratch)
{
    const model_config *c = &f->model->config;
    size_t query = c->num_heads * c->head_dim, kv = c->num_kv_heads * c->head_dim;
    attention_shape shape = layer_attention_shape(c, f->layer, count);
    shape.round = TARE_F32;
    attention_forward(f->model->ctx, &shape, q, query, k, kv, v, kv, out, query, scratch);
}

static void attend_steps(forward *f, size_t count, float *scratch)
{
    attention_shape shape = layer_attention_shape(&f->model->config, f->layer, f->longest);
    if (count > 0)
        attention_steps(f->model->ctx, &shape, f->steps, count, scratch);
}

/* block_ops.attend */
static tare_status attend(void *user, const batch *b, const float *q, const float *k,
                          const float *v, float *out, float *scratch)
{
    tare_status status = TARE_OK;
    forward *f = user;
    const model_config *c = &f->model->config;
    size_t query = c->num_heads * c->head_dim, kv = c->num_kv_heads * c->head_dim, steps = 0;
    for (size_t i = 0; i < b->samples; i++) {
        sequence *s = f->sequences[b->first + i];
        size_t count = b->lengths[i], past = b->past[i];
        const float *keys = NULL, *values = NULL;
        if (s->cache.ctx)
            TRY(kv_cache_append(&s->cache, f->layer, past, count, k, v, f->room, &keys, &values));
        if (past == 0)
            attend_prompt(f, count, q, k, v, out, scratch);
        else
            f->steps[steps++] = (attention_step){
                .q = q, .k = keys, .v = values, .tokens = past + count, .out = out};
        if (f->layout.spill) { /* the room is taken again by the next */
            attend_steps(f, steps, scratch);
            steps = 0;
        }
        q += count * query, out += count * query;
        k += count * kv, v += count * kv;
    }
    attend_steps(f, steps, scratch);
done:
    return status;
}

/* ---- the pass ---- */

static tare_status linears(void *user, graph_unit unit, const batch *b, const float *x,
                           float *const *y)
{
    forward *f = user;
    return weight_source_linears(&f->weights, unit, b, x, y);
}

static tare_status run_layer(forward *f, size_t layer)
{
    tare_status status = TARE_OK;
    const block_norms *norms;
    block_ops ops = {.user = f, .linears = linears, .attend = attend};
    float *x = f->x;
    f->layer = layer;
    TRY(weight_source_layer(&f->weights, layer, &norms));
    for (size_t first = 0; first < f->num_sequences;) {
        batch b = batch_next(f->lengths, first, f->num_sequences, f->layout.batch_rows);
        b.past = f->past + first;
        TRY(block_forward(f->model, &f->model->blocks[layer], NULL, norms, &ops, &b, &f->work, x));
        x += b.rows * f->model->config.hidden_size;
        first += b.samples;
    }
done:
    return status;
}

tare_status forward_pass(forward *f)
{
    tare_status status = TARE_OK;
    size_t h = f->model->config.hidden_size, rows = 0;
    for (size_t i = 0; i < f->num_sequences; i++) {
        sequence *s = f->sequences[i];
        f->past[i] = s->past;
        f->lengths[i] = s->count - s->past;
        TRY(embed_into(f->model, s->ids + s->past, f->lengths[i], f->x + rows * h));
        rows += f->lengths[i];
    }
    for (size_t i = 0; i < f->model->config.num_layers; i++)
        TRY(TARE_WRAP(f->model->ctx, run_layer(f, i), "layer %zu", i));
    for (size_t i = 0, row = 0; i < f->num_sequences; i++) {
        row += f->lengths[i];
        memcpy(f->last + i * h, f->x + (row - 1) * h, h * sizeof(float));
        f->sequences[i]->past = f->sequences[i]->count;
    }
    TRY(weight_source_logits(&f->weights, f->last, f->num_sequences, f->logits));
done:
    return status;
}
