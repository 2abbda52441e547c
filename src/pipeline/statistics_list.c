/* The tensors of a file of statistics: their names, dtypes and shapes, in one place for those who
 * declare, write and read them. */
#include <math.h>
#include <string.h>

#include "output/reader.h"
#include "pipeline/smoothing.h"
#include "pipeline/statistics_file.h"

void statistics_file_free(statistics_file *f)
{
    mem_free(f->ctx, f->tensors);
    mem_free(f->ctx, f->moment_of);
    strmap_free(&f->index);
    buffer_free(&f->name);
    arena_free(&f->arena);
}

/* ---- one tensor ---- */

static tare_status declare(statistics_file *f, const tensor_info *t)
{
    tare_status status = TARE_OK;
    bool existed;
    char *name = arena_strndup(&f->arena, f->name.data, f->name.length);
    TRY(name ? TARE_OK : TARE_E_MEMORY);
    TRY(mem_grow(f->ctx, (void **)&f->tensors, &f->capacity, f->count + 1, sizeof *f->tensors));
    TRY(mem_grow(f->ctx, (void **)&f->moment_of, &f->moments_capacity, f->count + 1,
                 sizeof *f->moment_of));
    TRY(strmap_put(&f->index, name, f->name.length, (uint32_t)f->count, &existed));
    f->moment_of[f->count] = f->moment;
    f->tensors[f->count] = *t;
    f->tensors[f->count++].name = name;
done:
    return status;
}

static tare_status put(statistics_file *f, const tensor_info *t, const void *data)
{
    uint32_t index = UINT32_MAX;
    strmap_get(&f->index, f->name.data, f->name.length, &index); /* the writer knows if it fails */
    return safetensors_write(f->writer, index, 0, data, t->bytes);
}

static bool same_form(const tensor_info *a, const tensor_info *b)
{
    return a->dtype == b->dtype && a->rank == b->rank &&
           memcmp(a->shape, b->shape, (size_t)a->rank * sizeof *a->shape) == 0;
}

static bool all_finite(const tensor_info *t, const void *data)
{
    bool finite = true;
    for (size_t i = 0; i < tensor_elements(t); i++)
        finite &= t->dtype == TARE_F64   ? isfinite(((const double *)data)[i])
                  : t->dtype == TARE_F32 ? isfinite(((const float *)data)[i])
                                         : true;
    return finite;
}

static tare_status get(statistics_file *f, const tensor_info *t, void *data)
{
    char want[96], have[96];
    const tensor_info *there = safetensors_find(f->file, f->name.data);
    if (!there)
        return TARE_FAIL(f->ctx, TARE_E_DATA,
                         "%s: there is no %s: the run that it comes from did not observe it",
                         f->path, f->name.data);
    if (same_form(there, t)) {
        tare_status status = safetensors_read(f->file, there, 0, data, t->bytes);
        return status == TARE_OK && !all_finite(t, data)
                   ? TARE_FAIL(f->ctx, TARE_E_DATA, "%s: %s holds NaN or infinity", f->path,
                               f->name.data)
                   : status;
    }
    tensor_shape_text(t, want, sizeof want);
    tensor_shape_text(there, have, sizeof have);
    return TARE_FAIL(f->ctx, TARE_E_DATA, "%s: %s is %s, not %s as this model needs it", f->path,
                     f->name.data, have, want);
}

tare_status statistics_item(statistics_file *f, tare_dtype dtype, size_t rows, size_t count,
                            void *data, const char *module, const char *part)
{
    tensor_info t = {.dtype = dtype, .rank = rows ? 2 : 1};
    f->name.length = 0;
    buffer_printf(&f->name, "%s%s", module, part);
    t.shape[0] = rows ? rows : count;
    t.shape[1] = rows ? count : 0;
    t.bytes = (uint64_t)tensor_elements(&t) * dtype_size(dtype);
    if (f->name.status != TARE_OK)
        return f->name.status;
    if (f->mode == STATISTICS_DECLARE)
        return declare(f, &t);
    if (f->mode == STATISTICS_WRITE)
        return put(f, &t, data);
    return data ? get(f, &t, data) : TARE_OK;
}

/* A vector that is made when it is read. */
static tare_status vector(statistics_file *f, size_t count, float **data, const char *module,
                          const char *part)
{
    if (f->mode == STATISTICS_READ && !(*data = arena_alloc_array(f->home, count, sizeof **data)))
        return TARE_E_MEMORY;
    return statistics_item(f, TARE_F32, 0, count, f->mode == STATISTICS_DECLARE ? NULL : *data,
                           module, part);
}

/* ---- inputs ---- */

tare_status statistics_unit(statistics_file *f, const run_plan *plan, size_t unit,
                            unit_statistics *u)
{
    tare_status status = TARE_OK;
    const model_unit *m = &plan->env->model->units[unit];
    const char *name = plan->env->model->linears[m->first].name;
    TRY(statistics_item(f, TARE_F64, OBSERVER_MSE, 2, u->range, name, ".input_range"));
    if (u->mse)
        TRY(statistics_item(f, TARE_F64, 0, 2, u->range[OBSERVER_MSE], name, ".input_range_mse"));
    if (f->mode != STATISTICS_READ) { /* the range says it all */
        TRY(statistics_item(f, TARE_F32, 0, 2, u->scale, name, ".input_scale"));
        TRY(statistics_item(f, TARE_F32, 0, 2, u->offset, name, ".input_offset"));
    }
    TRY(statistics_item(f, TARE_BF16, 0, m->k, u->max, name, ".input_max"));
    if (u->scored)
        TRY(statistics_item(f, TARE_F64, 0, 1, &u->score, name, ".input_score"));
done:
    return status;
}

tare_status statistics_score(statistics_file *f, const tare_model *model, size_t unit,
                             double *score, bool *known)
{
    const char *name = model->linears[model->units[unit].first].name;
    f->name.length = 0;
    buffer_printf(&f->name, "%s.input_score", name);
    *known = f->name.status == TARE_OK && safetensors_find(f->file, f->name.data);
    return *known ? statistics_item(f, TARE_F64, 0, 1, score, name, ".input_score")
                  : f->name.status;
}

/* ---- attention ---- */

tare_status statistics_kv(statistics_file *f, const run_plan *plan, size_t layer, kv_kind kind,
                          float *range)
{
    static const char *const PARTS[KV_KINDS] = {".key_range", ".value_range"};
    const model_config *c = &plan->env->model->config;
    return statistics_item(f, TARE_F32, 2, c->num_kv_heads * c->head_dim, range,
                           plan->attentions[layer].name, PARTS[kind]);
}

tare_status statistics_fa(statistics_file *f, const run_plan *plan, size_t layer, run_attention *a)
{
    static const char *const PARTS[FA_KINDS] = {".fa_q_scale", ".fa_k_scale", ".fa_v_scale"};
    tare_status status = TARE_OK;
    const char *name = plan->attentions[layer].name;
    size_t heads[FA_KINDS];
    attention_heads(plan->env->model, heads);
    for (int kind = 0; kind < FA_KINDS; kind++)
        TRY(vector(f, heads[kind], a ? &a->scales[kind] : NULL, name, PARTS[kind]));
    TRY(statistics_item(f, TARE_F32, 0, FA_KINDS, a ? a->scores : NULL, name, ".fa_scores"));
done:
    return status;
}

/* ---- smoothing ---- */

/* Does a pair change the bias of a block's linear: one that it divides the rows of, or shifts? */
static bool bias_changes(const run_plan *plan, const model_block *block, size_t i,
                         const pair_spec *pair)
{
    const model_linear *l = block_linear(plan->env->model, block, i);
    bool shifted = pair->of_norm && smoothing_shifts(plan) &&
                   block->graph->linears[i].unit == pair->unit;
    return linear_has_bias(plan, l) && (shifted || (!pair->of_norm && pair->source == i));
}

/* The last pair that changes it knows it as it stays. */
static bool is_last_change(const run_plan *plan, const model_block *block, size_t i, size_t p)
{
    for (size_t later = p + 1; later < block->graph->num_pairs; later++) {
        const pair_spec *pair = &block->graph->pairs[later];
        if (smoothing_pair_active(plan, block, pair) && bias_changes(plan, block, i, pair))
            return false;
    }
    return true;
}

static tare_status pair_biases(statistics_file *f, const run_plan *plan, const model_block *block,
                               size_t p, layer_smoothing *s)
{
    tare_status status = TARE_OK;
    for (size_t i = 0; i < block->graph->num_linears; i++) {
        const model_linear *l = block_linear(plan->env->model, block, i);
        if (bias_changes(plan, block, i, &block->graph->pairs[p]) &&
            is_last_change(plan, block, i, p))
            TRY(vector(f, l->n, s ? &s->weights[i].bias : NULL, l->name, ".smooth_bias"));
    }
done:
    return status;
}

/* Norms go by the name of their weight. */
static tare_status pair_norm(statistics_file *f, const run_plan *plan, const tensor_info *weight,
                             smooth_norm *n)
{
    tare_status status = TARE_OK;
    TRY(vector(f, weight->shape[0], n ? &n->weight : NULL, weight->name, ".smooth"));
    if (smoothing_shifts(plan))
        TRY(vector(f, weight->shape[0], n ? &n->bias : NULL, weight->name, ".smooth_bias"));
done:
    return status;
}

static tare_status pair_vectors(statistics_file *f, const run_plan *plan, const model_block *block,
                                size_t p, layer_smoothing *s)
{
    tare_status status = TARE_OK;
    const pair_spec *pair = &block->graph->pairs[p];
    const model_unit *unit = block_unit(plan->env->model, block, pair->unit);
    const char *first = plan->env->model->linears[unit->first].name;
    size_t target = block->graph->units[pair->unit].first;
    if (pair->of_norm) {
        TRY(pair_norm(f, plan, block->norms[pair->source], s ? &s->norms[pair->source] : NULL));
    } else {
        const model_linear *l = block_linear(plan->env->model, block, pair->source);
        TRY(vector(f, l->n, s ? &s->weights[pair->source].row_scale : NULL, l->name,
                   ".smooth_rows"));
    }
    TRY(vector(f, unit->k, s ? &s->weights[target].col_scale : NULL, first, ".smooth_columns"));
    TRY(pair_biases(f, plan, block, p, s));
done:
    return status;
}

/* What balances queries and keys: their norms, or rows of their linears, which may be one. */
static tare_status balance_vectors(statistics_file *f, const run_plan *plan,
                                   const model_block *block, layer_smoothing *s)
{
    tare_status status = TARE_OK;
    attention_source source[2];
    for (int operand = 0; operand < 2; operand++) {
        graph_attention_source(block->graph, operand, &source[operand]);
        size_t i = source[operand].linear;
        const model_linear *l = block_linear(plan->env->model, block, i);
        int norm = balance_norm(plan, block, operand);
        if (norm >= 0) {
            TRY(pair_norm(f, plan, block->norms[norm], s ? &s->norms[norm] : NULL));
        } else if (operand == 0 || i != source[0].linear) {
            TRY(vector(f, l->n, s ? &s->weights[i].row_scale : NULL, l->name, ".smooth_rows"));
            if (linear_has_bias(plan, l))
                TRY(vector(f, l->n, s ? &s->weights[i].bias : NULL, l->name, ".smooth_bias"));
        }
    }
done:
    return status;
}

tare_status statistics_smoothing(statistics_file *f, const run_plan *plan, const model_block *block,
                                 layer_smoothing *s)
{
    tare_status status = TARE_OK;
    if (balance_active(plan, block))
        TRY(balance_vectors(f, plan, block, s));
    for (size_t p = 0; p < block->graph->num_pairs; p++) {
        if (smoothing_pair_active(plan, block, &block->graph->pairs[p]))
            TRY(pair_vectors(f, plan, block, p, s));
    }
done:
    return status;
}

/* ---- rotation ---- */

/* They go by the name of the norm's weight. */
tare_status statistics_means(statistics_file *f, const tare_model *m, float *const *means)
{
    tare_status status = TARE_OK;
    for (size_t i = 0; i < m->num_blocks * BLOCK_NORMS; i++) {
        const tensor_info *norm = m->blocks[i / BLOCK_NORMS].norms[i % BLOCK_NORMS];
        if (means[i])
            TRY(statistics_item(f, TARE_F32, 0, norm->shape[0], means[i], norm->name,
                                ".rotated_mean"));
    }
done:
    return status;
}

/* ---- all ---- */

static tare_status declare_layer(statistics_file *f, const run_plan *plan, const model_block *block)
{
    tare_status status = TARE_OK;
    unit_statistics unit = {.scored = plan->wants_scores, .mse = !plan->env->num.compat};
    const block_graph *g = block->graph;
    size_t behind = block_experts(block) ? graph_experts_segment(g).end_unit : g->num_units;
    for (size_t u = 0; u < g->num_units; u++) {
        f->moment = statistics_moment(block->index, u >= behind);
        TRY(statistics_unit(f, plan, block->first_unit + u, &unit));
    }
    f->moment = statistics_moment(block->index, false);
    for (int kind = 0; kind < KV_KINDS && kv_observed_channels(plan, block->index); kind++)
        TRY(statistics_kv(f, plan, block->index, (kv_kind)kind, NULL));
    f->moment = statistics_moment(block->index, true);
    if (plan->attentions[block->index].quantize)
        TRY(statistics_fa(f, plan, block->index, NULL));
    if (plan->smooths)
        TRY(statistics_smoothing(f, plan, block, NULL));
done:
    return status;
}

tare_status statistics_declare(statistics_file *f, const run_plan *plan, float *const *means,
                               size_t run_bytes)
{
    tare_status status = TARE_OK;
    const tare_model *m = plan->env->model;
    unit_statistics head = {.scored = plan->wants_scores, .mse = !plan->env->num.compat};
    f->mode = STATISTICS_DECLARE;
    for (size_t i = 0; i < m->num_blocks; i++)
        TRY(declare_layer(f, plan, &m->blocks[i]));
    /* Before the first MTP layer. */
    f->moment = statistics_moment(m->config.num_layers, false);
    TRY(statistics_unit(f, plan, m->num_units - 1, &head));
    f->moment = statistics_moment(m->num_blocks, false);
    if (means)
        TRY(statistics_means(f, m, means));
    TRY(statistics_item(f, TARE_U8, 0, run_bytes, NULL, STATISTICS_RUN, ""));
done:
    return status;
}
