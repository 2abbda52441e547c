/* Loading float linears, running them, and gathering embeddings. */
#include "forward/linear.h"

#include <string.h>

#include "base/sort.h"
#include "tensor/convert.h"
#include "tensor/kernels.h"
#include "tensor/round.h"

static tare_status cast_weight(tare_context *ctx, raw_weight *w, size_t rows, size_t cols,
                               tare_dtype to)
{
    size_t width = dtype_size(w->dtype), fresh_width = dtype_size(to);
    char *fresh = mem_alloc_array(ctx, rows * cols, fresh_width);
    float *row = mem_alloc_array(ctx, cols, sizeof *row);
    tare_status status = fresh && row ? TARE_OK : TARE_E_MEMORY;
    for (size_t r = 0; status == TARE_OK && r < rows; r++) {
        widen_to_float(ctx, w->dtype, (char *)w->data + r * cols * width, cols, row);
        narrow_from_float(ctx, to, row, cols, fresh + r * cols * fresh_width);
    }
    mem_free(ctx, row);
    if (status != TARE_OK) {
        mem_free(ctx, fresh);
        return status;
    }
    mem_free(ctx, w->data);
    *w = (raw_weight){fresh, to};
    return TARE_OK;
}

tare_status linear_read(tare_model *model, const model_linear *linear, raw_weight *out)
{
    tare_status status = TARE_OK;
    const tensor_info *t = linear->weight;
    size_t bytes = linear->n * linear->k * dtype_size(t->dtype);
    *out = (raw_weight){mem_alloc(model->ctx, bytes), t->dtype};
    if (!out->data)
        return TARE_E_MEMORY;
    TRY(checkpoint_read(model->checkpoint, t, 0, out->data, bytes));
    if (model->load_dtype != TARE_DTYPE_COUNT && model->load_dtype != t->dtype)
        TRY(cast_weight(model->ctx, out, linear->n, linear->k, model->load_dtype));
done:
    if (status != TARE_OK) {
        mem_free(model->ctx, out->data);
        out->data = NULL;
    }
    return status;
}

tare_dtype linear_raw_dtype(const tare_model *model, const model_linear *linear)
{
    return model->load_dtype != TARE_DTYPE_COUNT ? model->load_dtype : linear->weight->dtype;
}

size_t linear_raw_bytes(const tare_model *model, const model_linear *linear)
{
    return mem_array_bytes(linear->n * linear->k, dtype_size(linear_raw_dtype(model, linear)));
}

size_t linear_read_bytes(const tare_model *model, const model_linear *linear)
{
    size_t stored = mem_block_bytes(linear->weight->bytes);
    size_t reading = file_read_bytes(linear->weight->bytes), casting = 0;
    if (linear_raw_dtype(model, linear) != linear->weight->dtype)
        casting = linear_raw_bytes(model, linear) + mem_array_bytes(linear->k, sizeof(float));
    return stored + (reading > casting ? reading : casting);
}

tare_status float_linear_create(tare_model *model, const model_linear *linear, gemm_compute compute,
                                const raw_weight *raw, float_linear *out)
{
    tare_status status = TARE_OK;
    *out = (float_linear){0};
    TRY(gemm_weight_create(model->ctx, compute, raw->dtype, raw->data, linear->n, linear->k,
                           &out->weight));
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
    raw_weight raw = {0};
    tare_status status = linear_read(model, linear, &raw);
    if (status == TARE_OK)
        status = float_linear_create(model, linear, compute, &raw, out);
    mem_free(model->ctx, raw.data);
    return status;
}

size_t float_linear_bytes(const tare_model *model, const model_linear *linear, gemm_compute compute,
                          tare_dtype dtype)
{
    (void)model;
    return mem_block_bytes(gemm_weight_bytes(compute, dtype, linear->n, linear->k)) +
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
                              const raw_weight *raw, float_block *out)
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
                               const raw_weight *raw, float_block *out)
{
    return fill_block(model, block, segment, compute, raw, out);
}

void float_block_borrow(tare_model *model, const model_block *block, gemm_compute compute,
                        const raw_weight *raw, float_block *out)
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
    model_rows_fn also;
    void *user;
    float *x; /* [hidden] */
} gather;

/* The embedding [hidden] of a row as it is stored. As in transformers the factor is a number of the
 * model's dtype: 55.4 becomes 55.5 in BF16. */
static void widen_embedding(const tare_model *model, const void *row, float *x)
{
    size_t h = model->config.hidden_size;
    model_widen(model, model->embedding->dtype, row, h, x);
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

static tare_status gather_rows(void *user, size_t first, size_t count, const void *rows)
{
    gather *g = user;
    const tensor_info *t = g->model->embedding;
    size_t row_bytes = t->shape[1] * dtype_size(t->dtype);
    for (; g->next < g->count && g->places[g->next]->id < first + count; g->next++) {
        const token_place *p = g->places[g->next];
        widen_embedding(g->model, (const char *)rows + (p->id - first) * row_bytes, g->x);
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
           model_stream_bytes(model->embedding);
}

static tare_status check_id(const tare_model *model, uint32_t id)
{
    if (id < model->config.vocab_size)
        return TARE_OK;
    return TARE_FAIL(model->ctx, TARE_E_DATA, "token id %u is out of range: the vocabulary has %zu",
                     id, model->config.vocab_size);
}

tare_status embed_tokens(tare_model *model, const uint32_t *ids, size_t count, embed_row_fn row,
                         model_rows_fn also, void *user)
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
    TRY(model_stream_rows(model, model->embedding, gather_rows, &g));
done:
    mem_free(model->ctx, x);
    mem_free(model->ctx, order);
    mem_free(model->ctx, places);
    return status;
}

tare_status embed_into(tare_model *model, const uint32_t *ids, size_t count, float *x)
{
    tare_status status = TARE_OK;
    const tensor_info *t = model->embedding;
    size_t h = t->shape[1], row_bytes = h * dtype_size(t->dtype);
    void *row = mem_alloc(model->ctx, row_bytes);
    if (!row)
        return TARE_E_MEMORY;
    for (size_t i = 0; i < count; i++)
        TRY(check_id(model, ids[i]));
    for (size_t i = 0; i < count; i++) {
        TRY(checkpoint_read(model->checkpoint, t, (uint64_t)ids[i] * row_bytes, row, row_bytes));
        widen_embedding(model, row, x + i * h);
    }
done:
    mem_free(model->ctx, row);
    return status;
}

size_t embed_into_bytes(const tare_model *model)
{
    return mem_block_bytes(model->config.hidden_size * sizeof(float)) +
           file_read_bytes(model->config.hidden_size * sizeof(float));
}

gemm_compute compute_default(const tare_model *model)
{
    bool amx = strcmp(tare_cpu_name(model->ctx), "amx") == 0;
    return amx && model->embedding->dtype == TARE_BF16 ? GEMM_BF16 : GEMM_FP32;
}
