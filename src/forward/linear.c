/* Loading float linears, running them, and gathering embeddings. */
#include "forward/linear.h"

#include <string.h>

#include "base/sort.h"
#include "tensor/convert.h"
#include "tensor/kernels.h"
#include "tensor/round.h"

tare_status float_linear_create(tare_model *model, const model_linear *linear, gemm_compute compute,
                                const coded_rows *raw, float_linear *out)
{
    tare_status status = TARE_OK;
    *out = (float_linear){0};
    TRY(gemm_weight_pack(model->ctx, compute, raw, linear->n, &out->weight));
    if (linear->bias)
        TRY(model_read_vector(model, linear->bias, &out->bias));
done:
    if (status != TARE_OK)
        float_linear_free(model->ctx, out);
    return status;
}

tare_status float_linear_load(tare_model *model, const model_linear *linear, gemm_compute compute,
                              float_linear *out)
{
    coded_rows raw = {0};
    tare_status status = stored_load(model->checkpoint, &linear->weight, &raw);
    if (status == TARE_OK)
        status = float_linear_create(model, linear, compute, &raw, out);
    coded_free(model->ctx, &raw);
    return status;
}

size_t float_linear_bytes(const model_linear *linear, gemm_compute compute)
{
    return gemm_weight_bytes(compute, linear->weight.dtype, linear->n, linear->k) +
           (linear->bias ? model_vector_bytes(linear->bias) : 0);
}

size_t float_linear_making_bytes(const model_linear *linear)
{
    return linear->bias ? model_read_vector_bytes(linear->bias) : 0;
}

void float_linear_free(tare_context *ctx, float_linear *l)
{
    gemm_weight_free(ctx, l->weight);
    mem_free(ctx, l->bias);
    *l = (float_linear){0};
}

static tare_status fill_block(tare_model *model, const model_block *block,
                              const block_segment *segment, gemm_compute compute,
                              const coded_rows *raw, float_block *out)
{
    size_t i = segment ? segment->first_linear : 0,
           end = segment ? segment->end_linear : block->graph->num_linears;
    *out = (float_block){.model = model, .block = block};
    for (; i < end; i++) {
        const model_linear *l = block_linear(model, block, i);
        tare_status status = raw ? float_linear_create(model, l, compute, &raw[i], &out->linears[i])
                                 : float_linear_load(model, l, compute, &out->linears[i]);
        if (status != TARE_OK) {
            float_block_free(out);
            return status;
        }
    }
    return TARE_OK;
}

tare_status float_block_load(tare_model *model, const model_block *block, gemm_compute compute,
                             float_block *out)
{
    return fill_block(model, block, NULL, compute, NULL, out);
}

tare_status float_block_create(tare_model *model, const model_block *block,
                               const block_segment *segment, gemm_compute compute,
                               const coded_rows *raw, float_block *out)
{
    return fill_block(model, block, segment, compute, raw, out);
}

void float_block_borrow(tare_model *model, const model_block *block, gemm_compute compute,
                        const coded_rows *raw, float_block *out)
{
    *out = (float_block){.model = model, .block = block, .compute = compute, .raw = raw};
}

void float_block_free(float_block *l)
{
    for (size_t i = 0; i < BLOCK_LINEARS; i++)
        float_linear_free(l->model->ctx, &l->linears[i]);
}

tare_status float_block_linears(void *user, graph_unit unit, const batch *b, const float *x,
                                float *const *y)
{
    float_block *l = user;
    const unit_spec *u = &l->block->graph->units[unit];
    for (size_t i = u->first; i < u->first + u->count; i++) {
        float_linear made = {0};
        const float_linear *f = l->raw ? &made : &l->linears[i];
        tare_status status = l->raw ? float_linear_create(l->model,
                                                          block_linear(l->model, l->block, i),
                                                          l->compute, &l->raw[i], &made)
                                    : TARE_OK;
        if (status == TARE_OK)
            status = gemm_float(l->model->ctx, f->weight, x, b->rows, f->bias, y[i - u->first]);
        float_linear_free(l->model->ctx, &made);
        if (status != TARE_OK)
            return status;
    }
    return TARE_OK;
}

/* ---- embedding ---- */

typedef struct token_place {
    uint32_t id;
    size_t row;
} token_place;

typedef struct gather {
    tare_model *model;
    token_place *const *places; /* sorted by id */
    size_t count, next;
    embed_row_fn row;
    stored_rows_fn also;
    void *user;
    float *x; /* [hidden] */
} gather;

/* The factor that scales embeddings is a number of the model's dtype, as in transformers: 55.4
 * becomes 55.5 in BF16. */
static void scale_embedding(const tare_model *model, float *x)
{
    size_t h = model->config.hidden_size;
    if (!model->config.arch->scales_embeddings)
        return;
    tare_dtype load = model->load_dtype, to = load == TARE_DTYPE_COUNT ? TARE_F32 : load;
    float factor = round_native((float)sqrt((double)h), to == TARE_F32 ? model->config.dtype : to);
    for (size_t i = 0; i < h; i++)
        x[i] = round_native(x[i] * factor, to);
}

static int compare_places(const void *a, const void *b)
{
    const token_place *p = a, *q = b;
    if (p->id != q->id)
        return p->id < q->id ? -1 : 1;
    return p->row < q->row ? -1 : p->row > q->row;
}

static tare_status gather_rows(void *user, size_t first, size_t count, const coded_rows *rows)
{
    gather *g = user;
    for (; g->next < g->count && g->places[g->next]->id < first + count; g->next++) {
        const token_place *p = g->places[g->next];
        coded_decode(kernels_get(g->model->ctx), rows, p->id - first, 0, rows->k, g->x);
        scale_embedding(g->model, g->x);
        tare_status status = g->row(g->user, p->row, g->x);
        if (status != TARE_OK)
            return status;
    }
    return g->also ? g->also(g->user, first, count, rows) : TARE_OK;
}

size_t embed_tokens_bytes(const tare_model *model, size_t count)
{
    return mem_array_bytes(count, sizeof(token_place)) +
           mem_array_bytes(count, sizeof(token_place *)) +
           mem_array_bytes(model->config.hidden_size, sizeof(float)) +
           stored_stream_bytes(&model->embedding);
}

static tare_status check_id(const tare_model *model, uint32_t id)
{
    if (id < model->config.vocab_size)
        return TARE_OK;
    return TARE_FAIL(model->ctx, TARE_E_DATA, "token id %u is out of range: the vocabulary has %zu",
                     id, model->config.vocab_size);
}

tare_status embed_tokens(tare_model *model, const uint32_t *ids, size_t count, embed_row_fn row,
                         stored_rows_fn also, void *user)
{
    tare_status status = TARE_OK;
    token_place *places = mem_alloc_array(model->ctx, count, sizeof *places);
    token_place **order = mem_alloc_array(model->ctx, count, sizeof *order);
    float *x = mem_alloc_array(model->ctx, model->config.hidden_size, sizeof *x);
    if (!places || !order || !x) {
        status = TARE_E_MEMORY;
        goto done;
    }
    for (size_t i = 0; i < count; i++) {
        TRY(check_id(model, ids[i]));
        places[i] = (token_place){ids[i], i};
        order[i] = &places[i];
    }
    sort_pointers((void **)order, count, compare_places);
    gather g = {.model = model,
                .places = order,
                .count = count,
                .row = row,
                .also = also,
                .user = user,
                .x = x};
    TRY(stored_stream(model->checkpoint, &model->embedding, gather_rows, &g));
done:
    mem_free(model->ctx, x);
    mem_free(model->ctx, order);
    mem_free(model->ctx, places);
    return status;
}

tare_status embed_into(tare_model *model, const uint32_t *ids, size_t count, float *x)
{
    tare_status status = TARE_OK;
    size_t h = model->config.hidden_size;
    for (size_t i = 0; i < count; i++)
        TRY(check_id(model, ids[i]));
    for (size_t i = 0; i < count; i++) {
        TRY(stored_read_rows(model->checkpoint, &model->embedding, ids[i], 1, TARE_F32, x + i * h));
        scale_embedding(model, x + i * h);
    }
done:
    return status;
}

size_t embed_into_bytes(const tare_model *model)
{
    return stored_room_bytes(&model->embedding, 1) + stored_reading_bytes(&model->embedding, 1);
}

gemm_compute compute_default(const tare_model *model)
{
    bool amx = strcmp(tare_cpu_name(model->ctx), "amx") == 0;
    return amx && model->embedding.codec->values == TARE_BF16 ? GEMM_BF16 : GEMM_FP32;
}
