#include "forward/weights.h"

#include <string.h>

#include "base/parallel.h"
#include "forward/head.h"
#include "tensor/kernels.h"

/* Products between two looks for cancellation, so that a look comes several times a second. */
enum { PIECE_ROWS = 192 };
static const double PIECE_PRODUCTS = 2e9;

struct kept_weights {
    tare_model *model;
    float_block *layers; /* [num_layers] */
    block_norms *norms;
    head_weights head;
    float *final_norm;
};

/* ---- kept ---- */

tare_status kept_weights_load(tare_model *model, kept_weights **out)
{
    tare_status status = TARE_OK;
    tare_context *ctx = model->ctx;
    size_t layers = model->config.num_layers;
    *out = NULL;
    kept_weights *k = mem_calloc(ctx, 1, sizeof *k);
    if (!k)
        return TARE_E_MEMORY;
    k->model = model;
    k->layers = mem_calloc(ctx, layers, sizeof *k->layers);
    k->norms = mem_calloc(ctx, layers, sizeof *k->norms);
    TRY(k->layers && k->norms ? TARE_OK : TARE_E_MEMORY);
    for (size_t i = 0; i < layers; i++)
        k->layers[i].model = model;
    for (size_t i = 0; i < layers; i++) {
        TRY(context_check_cancelled(ctx));
        TRY(TARE_WRAP(ctx, block_norms_load(model, &model->blocks[i], NULL, &k->norms[i]),
                      "layer %zu", i));
        TRY(TARE_WRAP(ctx, float_block_load(model, &model->blocks[i], GEMM_FP32, &k->layers[i]),
                      "layer %zu", i));
    }
    TRY(model_read_vector(model, model->final_norm, &k->final_norm));
    TRY(head_weights_load(model, &k->head));
    *out = k;
    k = NULL;
done:
    kept_weights_free(k);
    return status;
}

void kept_weights_free(kept_weights *k)
{
    if (!k)
        return;
    tare_context *ctx = k->model->ctx;
    for (size_t i = 0; i < k->model->config.num_layers && k->norms && k->layers; i++) {
        if (k->layers[i].model)
            float_block_free(&k->layers[i]);
        block_norms_free(ctx, &k->norms[i]);
    }
    head_weights_free(ctx, &k->head);
    mem_free(ctx, k->final_norm);
    mem_free(ctx, k->layers);
    mem_free(ctx, k->norms);
    mem_free(ctx, k);
}

/* ---- read in each pass ---- */

static tare_status read_layer(void *user, size_t index, size_t slot)
{
    tare_status status = TARE_OK;
    weight_source *w = user;
    const model_block *block = &w->model->blocks[index];
    for (size_t i = 0; i < block->graph->num_linears; i++) {
        TRY(context_check_cancelled(w->model->ctx));
        TRY(stored_load(w->model->checkpoint, &block_linear(w->model, block, i)->weight,
                        &w->ahead[slot][i]));
    }
done:
    return TARE_WRAP(w->model->ctx, status, "layer %zu", index);
}

tare_status weight_source_open(tare_model *model, weight_mode mode, const kept_weights *kept,
                               weight_source *out)
{
    tare_status status = TARE_OK;
    *out = (weight_source){.model = model, .mode = mode, .kept = kept, .linears.model = model};
    if (mode == WEIGHTS_KEPT)
        return TARE_OK;
    read_ahead_work work = {.user = out,
                            .read = read_layer,
                            .count = model->config.num_layers,
                            .readers = 1,
                            .ahead = 1};
    TRY(model_read_vector(model, model->final_norm, &out->final_norm));
    if (mode == WEIGHTS_AHEAD)
        TRY(read_ahead_start(model->ctx, &work, &out->layers));
done:
    if (status != TARE_OK)
        weight_source_close(out);
    return status;
}

static void drop_layer(weight_source *w)
{
    float_block_free(&w->linears);
    block_norms_free(w->model->ctx, &w->norms);
}

void weight_source_close(weight_source *w)
{
    if (!w->model)
        return;
    read_ahead_stop(w->layers);
    for (size_t i = 0; i < BLOCK_LINEARS; i++) {
        coded_free(w->model->ctx, &w->ahead[0][i]);
        coded_free(w->model->ctx, &w->ahead[1][i]);
    }
    drop_layer(w);
    mem_free(w->model->ctx, w->final_norm);
    *w = (weight_source){0};
}

/* While the layer that was read ahead is packed, the next one is read. (Behind the last one the
 * first is not: whether there is another pass is not known before the head.) */
static tare_status take_ahead(weight_source *w)
{
    size_t slot;
    const model_block *block = &w->model->blocks[w->layer];
    tare_status status = read_ahead_take(w->layers, w->layer, &slot);
    for (size_t i = 0; i < block->graph->num_linears && status == TARE_OK; i++) {
        coded_rows *raw = &w->ahead[slot][i];
        status = float_linear_create(w->model, block_linear(w->model, block, i), GEMM_FP32, raw,
                                     &w->linears.linears[i]);
        coded_free(w->model->ctx, raw);
    }
    return status;
}

tare_status weight_source_layer(weight_source *w, size_t layer, const block_norms **norms)
{
    tare_status status = TARE_OK;
    w->layer = layer;
    TRY(context_check_cancelled(w->model->ctx));
    if (w->mode == WEIGHTS_KEPT) {
        *norms = &w->kept->norms[layer];
        return TARE_OK;
    }
    drop_layer(w);
    TRY(block_norms_load(w->model, &w->model->blocks[layer], NULL, &w->norms));
    if (w->mode == WEIGHTS_AHEAD)
        TRY(take_ahead(w));
    else if (w->mode == WEIGHTS_LAYER)
        TRY(float_block_load(w->model, &w->model->blocks[layer], GEMM_FP32, &w->linears));
    *norms = &w->norms;
done:
    return status;
}

/* ---- products ---- */

static tare_status multiply(weight_source *w, const model_linear *l, const float_linear *f,
                            size_t rows, const float *x, float *y)
{
    tare_status status = TARE_OK;
    double products = (double)l->n * (double)l->k;
    size_t most = PIECE_PRODUCTS / products > PIECE_ROWS ? (size_t)(PIECE_PRODUCTS / products)
                                                         : PIECE_ROWS;
    for (size_t first = 0, count; first < rows; first += count) {
        count = rows - first < most ? rows - first : most;
        TRY(context_check_cancelled(w->model->ctx));
        TRY(gemm_float(w->model->ctx, f->weight, x + first * l->k, count, f->bias,
                       y + first * l->n));
    }
done:
    return status;
}

/* `kept` NULL: it is read. */
static tare_status apply_linear(weight_source *w, const model_linear *l, const float_linear *kept,
                                size_t rows, const float *x, float *y)
{
    float_linear made = {0};
    tare_status status = kept ? TARE_OK : float_linear_load(w->model, l, GEMM_FP32, &made);
    if (status == TARE_OK)
        status = multiply(w, l, kept ? kept : &made, rows, x, y);
    float_linear_free(w->model->ctx, &made);
    return TARE_WRAP(w->model->ctx, status, "%s", l->name);
}

tare_status weight_source_linears(void *user, graph_unit unit, const batch *b, const float *x,
                                  float *const *y)
{
    tare_status status = TARE_OK;
    weight_source *w = user;
    const model_block *block = &w->model->blocks[w->layer];
    const unit_spec *u = &block->graph->units[unit];
    const float_block *kept = w->mode == WEIGHTS_KEPT ? &w->kept->layers[w->layer] : &w->linears;
    for (size_t i = u->first; i < u->first + u->count; i++)
        TRY(apply_linear(w, block_linear(w->model, block, i),
                         w->mode == WEIGHTS_LINEAR ? NULL : &kept->linears[i], b->rows, x,
                         y[i - u->first]));
done:
    return status;
}

tare_status weight_source_expert(void *user, size_t expert, graph_unit unit, size_t rows,
                                 const float *x, float *const *y)
{
    tare_status status = TARE_OK;
    weight_source *w = user;
    const model_block *block = &w->model->blocks[w->layer];
    const unit_spec *u = &w->model->expert.units[unit];
    for (size_t i = u->first; i < u->first + u->count; i++)
        TRY(apply_linear(w, expert_linear(w->model, block, expert, i), NULL, rows, x,
                         y[i - u->first]));
done:
    return status;
}

/* What loading a linear needs beside its result, at most. */
static size_t loading_bytes(const model_linear *l)
{
    return size_max(linear_read_bytes(l), linear_raw_bytes(l) + float_linear_making_bytes(l));
}

/* Accounted bytes, at most, of an expert's linear while it is used. */
static size_t expert_bytes(const tare_model *model)
{
    size_t most = 0;
    for (size_t b = 0; b < model->config.num_layers; b++) {
        for (size_t i = 0; block_experts(&model->blocks[b]) && i < EXPERT_LINEARS; i++) {
            const model_linear *l = expert_linear(model, &model->blocks[b], 0, i);
            most = size_max(most, float_linear_bytes(l, GEMM_FP32) + loading_bytes(l));
        }
    }
    return most;
}

typedef struct cap_work {
    const tare_model *model;
    float *logits; /* [rows, vocab] */
} cap_work;

static void cap_row(void *user, size_t row, int thread)
{
    const cap_work *w = user;
    size_t n = w->model->config.vocab_size;
    (void)thread;
    kernels_get(w->model->ctx)->softcap(w->logits + row * n, n, w->model->config.final_softcap);
}

tare_status weight_source_logits(weight_source *w, float *x, size_t rows, float *logits)
{
    const model_config *c = &w->model->config;
    bool kept = w->mode == WEIGHTS_KEPT;
    norm_rows(w->model, x, kept ? w->kept->final_norm : w->final_norm, NULL, rows, c->hidden_size,
              TARE_F32, x);
    tare_status status = kept ? head_logits_kept(w->model, &w->kept->head, x, rows, logits)
                              : head_logits(w->model, x, rows, logits);
    if (status == TARE_OK && c->final_softcap != 0)
        parallel_for(w->model->ctx, rows, cap_row, &(cap_work){w->model, logits});
    return status;
}

/* ---- sizes ---- */

/* Packed weights of a block, and what loading one linear needs beside its result at most. */
static size_t block_bytes(const tare_model *model, const model_block *block, size_t *loading)
{
    size_t bytes = 0;
    for (size_t i = 0; i < block->graph->num_linears; i++) {
        const model_linear *l = block_linear(model, block, i);
        bytes += float_linear_bytes(l, GEMM_FP32);
        *loading = size_max(*loading, loading_bytes(l));
    }
    return bytes;
}

static size_t blocks_bytes(const tare_model *model, size_t *loading)
{
    size_t bytes = 0;
    for (size_t i = 0; i < model->config.num_layers; i++)
        bytes += block_bytes(model, &model->blocks[i], loading) +
                 block_norms_bytes(&model->blocks[i]);
    return bytes + 2 * mem_array_bytes(model->config.num_layers,
                                       size_max(sizeof(float_block), sizeof(block_norms)));
}

size_t kept_weights_bytes(const tare_model *model)
{
    size_t loading = 0;
    return blocks_bytes(model, &loading) + head_weights_bytes(model) +
           model_vector_bytes(model->final_norm) + mem_block_bytes(sizeof(kept_weights));
}

size_t kept_weights_loading_bytes(const tare_model *model)
{
    size_t loading = 0;
    blocks_bytes(model, &loading);
    return kept_weights_bytes(model) + size_max(loading, head_weights_loading_bytes(model));
}

/* Weights of a block as they are stored. */
static size_t raw_block_bytes(const tare_model *model, const model_block *block)
{
    size_t bytes = 0;
    for (size_t i = 0; i < block->graph->num_linears; i++) {
        const model_linear *l = block_linear(model, block, i);
        bytes += linear_raw_bytes(l);
    }
    return bytes;
}

size_t weight_source_bytes(const tare_model *model, weight_mode mode, size_t head_rows)
{
    size_t layer = 0, norms = 0, linear = 0, loading = 0, raw = 0;
    size_t head = mode == WEIGHTS_KEPT ? head_kept_bytes(model, head_rows)
                                       : head_logits_bytes(model, head_rows);
    size_t experts = expert_bytes(model);
    if (mode == WEIGHTS_KEPT)
        return experts + size_max(gemm_float_bytes(model->ctx), head);
    for (size_t i = 0; i < model->config.num_layers; i++) {
        layer = size_max(layer, block_bytes(model, &model->blocks[i], &loading));
        norms = size_max(norms, block_norms_bytes(&model->blocks[i]));
        raw = size_max(raw, raw_block_bytes(model, &model->blocks[i]));
        for (size_t l = 0; l < model->blocks[i].graph->num_linears; l++)
            linear = size_max(
                linear, float_linear_bytes(block_linear(model, &model->blocks[i], l), GEMM_FP32));
    }
    size_t fixed = experts + norms + model_read_vector_bytes(model->final_norm) +
                   read_ahead_bytes();
    if (mode == WEIGHTS_LINEAR)
        return fixed + size_max(head, linear + size_max(loading, gemm_float_bytes(model->ctx)));
    if (mode == WEIGHTS_LAYER)
        return fixed +
               size_max(head + layer, layer + size_max(loading, gemm_float_bytes(model->ctx)));
    /* A layer read ahead, one packed; while it is packed, its raw weights go one by one. */
    return fixed + raw + layer + loading +
           size_max(loading, size_max(head, gemm_float_bytes(model->ctx)));
}

/* A tied head is the embedding. */
uint64_t weight_source_read(const tare_model *model)
{
    uint64_t bytes = 0;
    for (size_t i = 0; i < model->num_linears; i++)
        bytes += stored_bytes(&model->linears[i].weight);
    return bytes;
}

uint64_t weight_source_parameters(const tare_model *model)
{
    uint64_t count = 0;
    for (size_t i = 0; i < model->num_linears; i++)
        count += (uint64_t)model->linears[i].n * model->linears[i].k;
    return count;
}
