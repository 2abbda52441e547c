/* Opening a model: every tensor that the architecture needs is found, and its dtype and shape
 * checked, before any work. */
#include "model/model_internal.h"

#include <stdio.h>
#include <string.h>

#include "file/io.h"
#include "model/quantized.h"
#include "model/rotate.h"

enum { CONFIG_LIMIT = 4 << 20 };

static tare_status check_shape(tare_model *m, const tensor_info *t, int rank, size_t rows,
                               size_t cols)
{
    bool fits = t->rank == rank && t->shape[0] == rows && (rank == 1 || t->shape[1] == cols);
    if (fits)
        return TARE_OK;
    char found[128] = "[", *at = found + 1;
    for (int i = 0; i < t->rank && i < 4; i++)
        at += snprintf(at, (size_t)(found + sizeof found - at), "%s%zu", i ? "," : "", t->shape[i]);
    if (rank == 1)
        return TARE_FAIL(m->ctx, TARE_E_MODEL, "%s: %s has shape %s], config.json makes it [%zu]",
                         m->dir, t->name, found, rows);
    return TARE_FAIL(m->ctx, TARE_E_MODEL, "%s: %s has shape %s], config.json makes it [%zu,%zu]",
                     m->dir, t->name, found, rows, cols);
}

tare_status model_find_tensor(tare_model *m, const char *module, const char *part, int rank,
                              size_t rows, size_t cols, const tensor_info **out)
{
    char *name = arena_printf(&m->arena, "%s.%s", module, part);
    if (!name)
        return TARE_E_MEMORY;
    *out = checkpoint_find(m->checkpoint, name);
    if (!*out)
        return TARE_FAIL(m->ctx, TARE_E_MODEL, "%s: tensor %s is missing from the checkpoint",
                         m->dir, name);
    if (!dtype_is_float((*out)->dtype))
        return TARE_FAIL(m->ctx, TARE_E_MODEL,
                         "%s: %s: dtype %s is not supported for weights; supported: BF16, F16, F32",
                         m->dir, name, dtype_name((*out)->dtype));
    return check_shape(m, *out, rank, rows, cols);
}

tare_status model_find_weight(tare_model *m, const char *module, size_t n, size_t k,
                              stored_weight *out)
{
    tare_status status = TARE_OK;
    const tensor_info *t, *scales = NULL;
    const char *name = arena_printf(&m->arena, "%s.weight", module);
    if (!name)
        return TARE_E_MEMORY;
    t = checkpoint_find(m->checkpoint, name);
    const codec *c = t ? codec_of(t->dtype) : NULL;
    if (c && c->block && m->fp8_blocks) {
        TRY(check_shape(m, t, 2, n, k));
        TRY(model_find_tensor(m, module, c->scales, 2, size_divide_up(n, c->block),
                              size_divide_up(k, c->block), &scales));
    } else {
        TRY(model_find_tensor(m, module, "weight", 2, n, k, &t));
    }
    *out = stored_matrix(t->name, t, scales, 0, n);
done:
    return status;
}

static tare_status find_linear(tare_model *m, const model_block *b, size_t index)
{
    tare_status status = TARE_OK;
    const linear_spec *spec = &b->graph->linears[index];
    model_linear *out = &m->linears[b->first_linear + index];
    char *name = arena_printf(&m->arena, "%s.%s", b->name, spec->name);
    if (!name)
        return TARE_E_MEMORY;
    *out = (model_linear){
        .name = name, .unit = b->first_unit + spec->unit, .n = spec->n, .k = spec->k};
    TRY(model_find_weight(m, name, out->n, out->k, &out->weight));
    if (spec->has_bias)
        TRY(model_find_tensor(m, name, "bias", 1, out->n, 0, &out->bias));
done:
    return status;
}

model_block expert_block(const tare_model *m, const model_block *b, size_t expert,
                         char name[EXPERT_NAME])
{
    size_t first = b->first_linear + b->graph->num_linears + expert * EXPERT_LINEARS;
    snprintf(name, EXPERT_NAME, "%s.%s.%zu", b->name, b->graph->experts.module, expert);
    return (model_block){.name = name,
                         .graph = &m->expert,
                         .index = b->index,
                         .first_linear = first,
                         .end_linear = first + EXPERT_LINEARS,
                         .first_unit = b->first_unit + b->graph->num_units + expert * EXPERT_UNITS};
}

/* And the units that they are in. */
static tare_status find_linears(tare_model *m, const model_block *b)
{
    tare_status status = TARE_OK;
    const block_graph *g = b->graph;
    for (size_t i = 0; i < g->num_units; i++)
        m->units[b->first_unit + i] = (model_unit){.kind = g->units[i].kind,
                                                   .block = b->index,
                                                   .first = b->first_linear + g->units[i].first,
                                                   .count = g->units[i].count,
                                                   .k = g->units[i].k};
    for (size_t i = 0; i < g->num_linears; i++)
        TRY(find_linear(m, b, i));
done:
    return status;
}

static tare_status find_experts(tare_model *m, model_block *b)
{
    tare_status status = TARE_OK;
    const route_spec *r = &b->graph->route;
    for (size_t e = 0; e < block_experts(b); e++) {
        char name[EXPERT_NAME];
        model_block expert = expert_block(m, b, e, name);
        TRY(find_linears(m, &expert));
    }
    if (r->correction)
        TRY(model_find_tensor(m, b->name, r->correction, 1, r->experts, 0, &b->correction));
done:
    return status;
}

tare_status model_find_block(tare_model *m, model_block *b)
{
    tare_status status = TARE_OK;
    const block_graph *g = b->graph;
    TRY(find_linears(m, b));
    for (size_t i = 0; i < g->num_norms; i++) {
        char *name = arena_printf(&m->arena, "%s.%s", b->name, g->norms[i].name);
        if (!name)
            return TARE_E_MEMORY;
        TRY(model_find_tensor(m, name, "weight", 1, g->norms[i].size, 0, &b->norms[i]));
    }
    TRY(find_experts(m, b));
done:
    return status;
}

/* The head is the last linear that the model has: MTP layers which are no blocks of it are laid out
 * behind the head, only to be looked for. */
static void lay_head(tare_model *m, size_t *linears, size_t *units)
{
    m->num_linears = ++*linears;
    m->num_units = ++*units;
}

static tare_status lay_blocks(tare_model *m)
{
    const model_config *c = &m->config;
    size_t linears = 0, units = 0, all = c->num_layers + (m->mtp == MTP_NONE ? 0 : c->num_mtp);
    model_config_graphs(c, m->graphs);
    if (m->graphs[BLOCK_EXPERTS].experts.count)
        graph_expert(&m->graphs[BLOCK_EXPERTS].experts, &m->expert);
    m->num_blocks = m->mtp == MTP_MIX ? all : c->num_layers;
    m->blocks = arena_calloc(&m->arena, all, sizeof *m->blocks);
    if (!m->blocks)
        return TARE_E_MEMORY;
    for (size_t i = 0; i < all; i++) {
        model_block *b = &m->blocks[i];
        const block_graph *g = &m->graphs[model_config_sparse(c, i) ? BLOCK_EXPERTS : BLOCK_PLAIN];
        if (i == m->num_blocks)
            lay_head(m, &linears, &units);
        *b = (model_block){.name = arena_printf(&m->arena, "model.layers.%zu", i),
                           .graph = g,
                           .index = i,
                           .first_linear = linears,
                           .first_unit = units};
        if (!b->name)
            return TARE_E_MEMORY;
        linears += g->num_linears + g->experts.count * EXPERT_LINEARS;
        units += g->num_units + g->experts.count * EXPERT_UNITS;
        b->end_linear = linears;
    }
    if (m->num_blocks == all)
        lay_head(m, &linears, &units);
    m->linears = arena_calloc(&m->arena, linears, sizeof *m->linears);
    m->units = arena_calloc(&m->arena, units, sizeof *m->units);
    return m->linears && m->units ? TARE_OK : TARE_E_MEMORY;
}

/* Where a model comes from. */
typedef struct model_origin {
    const char *dir, *folder;
    mtp_mode mtp;
    const char *config_json; /* NULL: folder/config.json is read */
    size_t config_length;
    const tare_tensor *tensors; /* NULL: of the model `again`, or of the folder */
    size_t num_tensors;
    const tare_model *again;
} model_origin;

/* transformers and vLLM load a tied model's head from the embedding, whatever lm_head.weight holds.
 * One that is the same stays: it is copied as it stands. So does another one in memory, with which
 * the model computes there; what is written then ties no more. */
static tare_status settle_tied_head(tare_model *m, const tensor_info *own)
{
    tare_status status = TARE_OK;
    bool differs = false, in_memory = own && checkpoint_data(m->checkpoint, own);
    if (own)
        TRY(checkpoint_differs(m->checkpoint, own, m->embedding.tensor, &differs));
    m->head_is_unlike = differs && in_memory;
    m->head_is_tied = !own || (differs && !in_memory) ||
                      checkpoint_same_data(m->checkpoint, own, m->embedding.tensor);
    if (differs)
        TARE_WARN(m->ctx,
                  "%s: lm_head.weight differs from the embedding, but tie_word_embeddings is true: "
                  "%s",
                  m->dir,
                  in_memory ? "it is used as it is, and the output's config.json says false"
                            : "the embedding is used, as transformers does, and lm_head.weight is "
                              "left out");
done:
    return status;
}

static tare_status find_head(tare_model *m, const tare_model *again)
{
    tare_status status = TARE_OK;
    const model_config *c = &m->config;
    m->head = &m->linears[m->num_linears - 1];
    *m->head = (model_linear){
        .name = "lm_head", .unit = m->num_units - 1, .n = c->vocab_size, .k = c->hidden_size};
    m->units[m->head->unit] = (model_unit){.kind = "head",
                                           .block = m->num_blocks,
                                           .first = m->num_linears - 1,
                                           .count = 1,
                                           .k = c->hidden_size};
    const tensor_info *own = checkpoint_find(m->checkpoint, "lm_head.weight");
    if (own || !c->tie_word_embeddings)
        TRY(model_find_weight(m, "lm_head", c->vocab_size, c->hidden_size, &m->head->weight));
    if (again) {
        m->head_is_tied = again->head_is_tied;
        m->head_is_unlike = again->head_is_unlike;
    } else if (c->tie_word_embeddings) {
        TRY(settle_tied_head(m, own));
    }
    if (m->head_is_tied)
        m->head->weight = m->embedding;
done:
    return status;
}

static tare_status find_tensors(tare_model *m, const tare_model *again)
{
    tare_status status = TARE_OK;
    const model_config *c = &m->config;
    const tensor_info *embedding;
    TRY(lay_blocks(m));
    TRY(model_find_tensor(m, "model.embed_tokens", "weight", 2, c->vocab_size, c->hidden_size,
                          &embedding));
    m->embedding = stored_tensor(embedding, c->vocab_size);
    for (size_t i = 0; i < c->num_layers; i++)
        TRY(model_find_block(m, &m->blocks[i]));
    TRY(mtp_find(m));
    TRY(model_find_tensor(m, "model.norm", "weight", 1, c->hidden_size, 0, &m->final_norm));
    TRY(find_head(m, again));
    TRY(model_collect_others(m, again != NULL));
done:
    return status;
}

/* The dtype of a config.json without one, as transformers' dtype="auto" finds it: that of the first
 * float tensor by name in the first weight file by name. */
static void take_dtype(tare_model *m)
{
    const tensor_info *first = NULL;
    size_t first_file = checkpoint_first_file(m->checkpoint);
    for (size_t i = 0; !m->config.has_dtype && i < checkpoint_count(m->checkpoint); i++) {
        const tensor_info *t = checkpoint_at(m->checkpoint, i);
        if (dtype_is_float(t->dtype) && !quantized_is_scale(m, t->name) &&
            checkpoint_file_of(m->checkpoint, t) == first_file &&
            (!first || strcmp(t->name, first->name) < 0))
            first = t;
    }
    if (first)
        m->config.dtype = first->dtype;
}

static tare_status take_config(tare_model *m, const model_origin *from)
{
    tare_status status = TARE_OK;
    char *path = from->folder ? path_join(m->ctx, from->folder, "config.json") : NULL;
    TRY(!from->folder || path ? TARE_OK : TARE_E_MEMORY);
    m->config_given = from->config_json != NULL;
    if (m->config_given) {
        m->config_length = from->config_length;
        m->config_json = mem_strndup(m->ctx, from->config_json, from->config_length);
        TRY(m->config_json ? TARE_OK : TARE_E_MEMORY);
    } else {
        TRY(file_read_all(m->ctx, path, CONFIG_LIMIT, &m->config_json, &m->config_length));
    }
    TRY(model_config_parse(m->ctx, &m->arena, m->config_json, m->config_length,
                           m->config_given ? "config.json" : path, &m->config));
done:
    mem_free(m->ctx, path);
    return status;
}

static tare_status take_weights(tare_model *m, const model_origin *from)
{
    tare_status status = TARE_OK;
    if (from->again)
        TRY(checkpoint_reopen(m->ctx, from->again->checkpoint, &m->checkpoint));
    else if (from->tensors)
        TRY(checkpoint_from_tensors(m->ctx, m->dir, from->tensors, from->num_tensors,
                                    &m->checkpoint));
    else
        TRY(checkpoint_open(m->ctx, m->dir, &m->checkpoint));
    TRY(quantized_take_form(m));
    TRY(find_tensors(m, from->again));
    take_dtype(m);
done:
    return status;
}

static tare_status open_origin(tare_model *m, const model_origin *from)
{
    tare_status status = TARE_OK;
    m->dir = mem_strdup(m->ctx, from->dir);
    m->folder = from->folder ? mem_strdup(m->ctx, from->folder) : NULL;
    TRY(m->dir && (m->folder || !from->folder) ? TARE_OK : TARE_E_MEMORY);
    TRY(take_config(m, from));
    TRY(quantized_check(m, take_weights(m, from), from->again != NULL));
done:
    return status;
}

static tare_status open_model(tare_context *ctx, const model_origin *from, tare_model **out)
{
    *out = NULL;
    tare_model *m = mem_calloc(ctx, 1, sizeof *m);
    if (!m)
        return TARE_E_MEMORY;
    m->ctx = ctx;
    atomic_init(&m->owners, 1);
    m->load_dtype = TARE_DTYPE_COUNT;
    m->mtp = from->mtp;
    arena_init(&m->arena, ctx);
    tare_status status = open_origin(m, from);
    if (status == TARE_OK)
        *out = m;
    else
        tare_model_free(m);
    return status;
}

tare_status model_open(tare_context *ctx, const char *path, mtp_mode mtp, tare_model **out)
{
    return open_model(ctx, &(model_origin){.dir = path, .folder = path, .mtp = mtp}, out);
}

tare_status tare_model_open(tare_context *ctx, const char *path, tare_model **out)
{
    return model_open(ctx, path, MTP_NONE, out);
}

tare_status tare_model_from_tensors(tare_context *ctx, const char *config_json, const char *folder,
                                    const tare_tensor *tensors, size_t count, tare_model **out)
{
    *out = NULL;
    if (!config_json && !folder)
        return TARE_FAIL(ctx, TARE_E_USAGE,
                         "a model in memory needs the text of its config.json, or its folder");
    if (!tensors || count == 0)
        return TARE_FAIL(ctx, TARE_E_MODEL, "the model in memory has no tensors");
    return open_model(ctx,
                      &(model_origin){.dir = "the model in memory",
                                      .folder = folder,
                                      .config_json = config_json,
                                      .config_length = config_json ? strlen(config_json) : 0,
                                      .tensors = tensors,
                                      .num_tensors = count},
                      out);
}

tare_status model_reopen(tare_context *ctx, const tare_model *source, mtp_mode mtp,
                         tare_model **out)
{
    model_origin from = {.dir = source->dir, .folder = source->folder, .mtp = mtp, .again = source};
    if (source->config_given) {
        from.config_json = source->config_json;
        from.config_length = source->config_length;
    }
    return open_model(ctx, &from, out);
}

tare_model *model_keep(tare_model *m)
{
    atomic_fetch_add(&m->owners, 1);
    return m;
}

void tare_model_free(tare_model *m)
{
    if (!m || atomic_fetch_sub(&m->owners, 1) > 1)
        return;
    tare_model_unload(m);
    model_rotation_free(m);
    checkpoint_close(m->checkpoint);
    mem_free(m->ctx, m->config_json);
    mem_free(m->ctx, m->folder);
    mem_free(m->ctx, m->dir);
    arena_free(&m->arena);
    mem_free(m->ctx, m);
}

size_t tare_model_vocab_size(const tare_model *model)
{
    return model->config.vocab_size;
}

void model_load_as(tare_model *m, tare_dtype dtype)
{
    m->load_dtype = dtype;
    m->embedding.dtype = dtype;
    for (size_t i = 0; i < m->num_linears; i++)
        m->linears[i].weight.dtype = dtype;
    for (size_t i = 0; m->mtp_layers && i < m->config.num_mtp; i++) {
        mtp_layer *layer = &m->mtp_layers[i];
        layer->projection.weight.dtype = layer->embedding.dtype = layer->head.dtype = dtype;
    }
}

stored_weight model_vector(const tare_model *m, const tensor_info *tensor)
{
    stored_weight w = stored_tensor(tensor, 1);
    w.edit = model_vector_edit(m, tensor);
    if (m->load_dtype != TARE_DTYPE_COUNT)
        w.dtype = m->load_dtype;
    return w;
}

tare_status model_read_vector(tare_model *m, const tensor_info *tensor, float **out)
{
    stored_weight w = model_vector(m, tensor);
    *out = mem_alloc_array(m->ctx, w.k, sizeof **out);
    if (!*out)
        return TARE_E_MEMORY;
    tare_status status = stored_read_rows(m->checkpoint, &w, 0, 1, TARE_F32, *out);
    if (status != TARE_OK) {
        mem_free(m->ctx, *out);
        *out = NULL;
    }
    return status;
}

size_t model_vector_bytes(const tensor_info *tensor)
{
    return mem_array_bytes(tensor_elements(tensor), sizeof(float));
}

size_t model_read_vector_bytes(const tensor_info *tensor)
{
    return mem_block_bytes(tensor->bytes) + model_vector_bytes(tensor) +
           file_read_bytes(tensor->bytes);
}
