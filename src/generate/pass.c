/* A pass of several sequences through the model. In the first pass of a sequence all tokens of its
 * prompt go together, later one token at a time, against keys and values that are kept. Every row
 * and every attention is computed as if the sequence were alone: products depend on a row alone
 * (gemm.h), attention on its sequence. */
#include <string.h>

#include "base/carver.h"
#include "generate/generate.h"

static void lay_out(carver *c, void *component)
{
    forward *f = component;
    const model_config *m = &f->model->config;
    size_t places = f->layout.batch, kv[2];
    model_config_kv_columns(m, kv);
    f->x = carve(c, f->layout.pass_rows, m->hidden_size * sizeof *f->x);
    f->last = carve(c, places, m->hidden_size * sizeof *f->last);
    f->logits = carve(c, places, m->vocab_size * sizeof *f->logits);
    f->lengths = carve(c, places, sizeof *f->lengths);
    f->past = carve(c, places, sizeof *f->past);
    f->sequences = carve(c, places, sizeof *f->sequences);
    f->steps = carve(c, places, sizeof *f->steps);
    f->room = f->layout.spill ? carve(c, f->longest, (kv[0] + kv[1]) * sizeof *f->room) : NULL;
}

tare_status forward_create(tare_model *model, const generation_layout *layout, size_t longest,
                           const kept_weights *kept, forward *out)
{
    tare_status status = TARE_OK;
    *out = (forward){.model = model, .layout = *layout, .longest = longest};
    TRY(carver_alloc(model->ctx, lay_out, out));
    TRY(workspace_create(model, layout->batch_rows, longest, TARE_F32, true, &out->work));
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
    weight_source_close(&f->weights);
    workspace_free(&f->work);
    mem_free(f->model->ctx, f->x);
    *f = (forward){0};
}

size_t forward_bytes(tare_model *model, const generation_layout *layout, size_t longest)
{
    forward f = {.model = model, .layout = *layout, .longest = longest};
    return carver_bytes(lay_out, &f) + workspace_bytes(model, layout->batch_rows, longest, true) +
           embed_into_bytes(model) + weight_source_bytes(model, layout->mode, layout->batch);
}

/* ---- attention ---- */

/* Of a prompt among its own tokens. */
static void attend_prompt(forward *f, size_t count, const float *q, const float *k, const float *v,
                          float *out, float *scratch)
{
    const model_config *c = &f->model->config;
    size_t query = c->num_heads * c->head_dim, sums = c->num_heads * c->value_dim, kv[2];
    attention_shape shape = layer_attention_shape(c, f->layer, count);
    model_config_kv_columns(c, kv);
    shape.round = TARE_F32;
    attention_forward(f->model->ctx, &shape, q, query, k, kv[0], v, kv[1], out, sums, scratch);
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
    size_t query = c->num_heads * c->head_dim, sums = c->num_heads * c->value_dim, kv[2];
    size_t steps = 0;
    model_config_kv_columns(c, kv);
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
        q += count * query, out += count * sums;
        k += count * kv[0], v += count * kv[1];
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

static tare_status expert(void *user, size_t index, graph_unit unit, size_t rows, const float *x,
                          float *const *y)
{
    forward *f = user;
    return weight_source_expert(&f->weights, index, unit, rows, x, y);
}

static tare_status run_layer(forward *f, size_t layer)
{
    tare_status status = TARE_OK;
    const block_norms *norms;
    block_ops ops = {.user = f, .linears = linears, .expert = expert, .attend = attend};
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
