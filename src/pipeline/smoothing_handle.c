/* Smoothing that outlives its run: the vectors of all layers, the settings and the data they come
 * from, and whether they fit another run. */
#include <string.h>

#include "file/json.h"
#include "pipeline/smoothing.h"

struct tare_smoothing {
    tare_context *ctx;
    arena arena; /* names, lists */
    smooth_config config;
    tare_recipe recipe; /* for its section anti_outlier; lists in the arena */
    layer_smoothing *layers;
    size_t num_layers;
    tare_smoothing_vector *vectors;
    size_t num_vectors, samples, tokens;
    char *ids_digest; /* a JSON string */
};

/* ---- making one ---- */

static tare_status add_vector(tare_smoothing *s, const char *module, const char *part,
                              const float *values, size_t length)
{
    tare_smoothing_vector *v = &s->vectors[s->num_vectors];
    char *name = arena_printf(&s->arena, "%s%s", module, part);
    if (!name)
        return TARE_E_MEMORY;
    *v = (tare_smoothing_vector){name, values, length};
    s->num_vectors++;
    return TARE_OK;
}

/* A bias that was not there before, or that a row's scale or a shift has changed. */
static bool bias_changed(const smooth_weight *w, const layer_smoothing *layer, graph_unit unit)
{
    return w->bias && w->has_bias && (w->rows_scaled || layer->input_shift[unit]);
}

static tare_status list_linear(tare_smoothing *s, const layer_smoothing *layer, size_t index,
                               const model_linear *l, graph_unit unit)
{
    tare_status status = TARE_OK;
    const smooth_weight *w = &layer->weights[index];
    if (w->cols_scaled)
        TRY(add_vector(s, l->name, ".weight.columns", w->col_scale, w->k));
    if (w->rows_scaled)
        TRY(add_vector(s, l->name, ".weight.rows", w->row_scale, w->n));
    if (bias_changed(w, layer, unit))
        TRY(add_vector(s, l->name, ".bias", w->bias, w->n));
done:
    return status;
}

/* Norms are named by their weight. */
static tare_status list_norm(tare_smoothing *s, const smooth_norm *n, const tensor_info *t)
{
    tare_status status = TARE_OK;
    size_t length = strlen(t->name) - strlen(".weight");
    char *module = arena_strndup(&s->arena, t->name, length);
    TRY(module ? TARE_OK : TARE_E_MEMORY);
    TRY(add_vector(s, module, ".weight", n->weight, t->shape[0]));
    if (n->bias && n->has_bias)
        TRY(add_vector(s, module, ".bias", n->bias, t->shape[0]));
done:
    return status;
}

static tare_status list_layer(tare_smoothing *s, const run *r, const model_block *block)
{
    tare_status status = TARE_OK;
    const block_graph *g = block->graph;
    const layer_smoothing *layer = &s->layers[block->index];
    for (size_t p = 0; p < g->num_pairs; p++) {
        const pair_spec *pair = &g->pairs[p];
        if (pair->of_norm && layer->input_scale[pair->unit])
            TRY(list_norm(s, &layer->norms[pair->source], block->norms[pair->source]));
    }
    for (size_t i = 0; i < g->num_linears; i++)
        TRY(list_linear(s, layer, i, block_linear(r->model, block, i), g->linears[i].unit));
done:
    return status;
}

static tare_status copy_samples(tare_smoothing *s, const run *r)
{
    buffer digest;
    buffer_init(&digest, s->ctx);
    digest_write(&digest, r->env->samples.ids,
                 r->env->samples.tokens * sizeof *r->env->samples.ids);
    tare_status status = digest.status;
    if (status == TARE_OK &&
        !(s->ids_digest = arena_strndup(&s->arena, digest.data, digest.length)))
        status = TARE_E_MEMORY;
    s->samples = r->plan->float_samples;
    s->tokens = r->plan->float_tokens;
    buffer_free(&digest);
    return status;
}

/* A linear has up to three vectors, a norm two. */
static size_t most_vectors(const tare_model *m)
{
    return m->num_blocks * (3 * model_graph(m)->num_linears + 2 * model_graph(m)->num_norms);
}

size_t smoothing_keep_bytes(const run_plan *plan)
{
    enum { NAMES = 512, LISTS = 64 << 10 };
    return LISTS + most_vectors(plan->env->model) * (sizeof(tare_smoothing_vector) + NAMES) +
           plan->env->model->num_blocks * sizeof(layer_smoothing) +
           (plan->env->recipe->disable_anti_names.count + plan->env->recipe->disable_names.count) *
               NAMES;
}

tare_status smoothing_keep(run *r, tare_smoothing **out)
{
    tare_status status = TARE_OK;
    size_t layers = r->model->num_blocks;
    size_t most = most_vectors(r->model);
    tare_smoothing *s = mem_calloc(r->ctx, 1, sizeof *s);
    if (!s)
        return TARE_E_MEMORY;
    s->ctx = r->ctx;
    s->config = r->plan->smooth;
    arena_init(&s->arena, r->ctx);
    TRY(recipe_copy(r->env->recipe, &s->arena, &s->recipe));
    TRY(copy_samples(s, r));
    s->vectors = arena_alloc_array(&s->arena, most, sizeof *s->vectors);
    s->layers = arena_alloc_array(&s->arena, layers, sizeof *s->layers);
    TRY(s->vectors && s->layers ? TARE_OK : TARE_E_MEMORY);
    s->num_layers = layers;
    memcpy(s->layers, r->smoothing, layers * sizeof *s->layers);
    memset(r->smoothing, 0, layers * sizeof *s->layers);
    for (size_t i = 0; i < layers; i++)
        TRY(list_layer(s, r, &r->model->blocks[i]));
    *out = s;
    s = NULL;
done:
    tare_smoothing_free(s);
    return status;
}

void tare_smoothing_free(tare_smoothing *s)
{
    if (!s)
        return;
    for (size_t i = 0; i < s->num_layers; i++)
        layer_smoothing_free(s->ctx, &s->layers[i]);
    arena_free(&s->arena);
    mem_free(s->ctx, s);
}

size_t tare_smoothing_count(const tare_smoothing *s)
{
    return s->num_vectors;
}

const tare_smoothing_vector *tare_smoothing_at(const tare_smoothing *s, size_t index)
{
    return index < s->num_vectors ? &s->vectors[index] : NULL;
}

/* ---- in another run ---- */

void smoothing_recipe(const tare_smoothing *s, const tare_recipe *recipe, tare_recipe *out)
{
    const tare_recipe *own = &s->recipe;
    *out = *recipe;
    out->anti_method = own->anti_method;
    out->anti_w_bit = own->anti_w_bit;
    out->anti_a_bit = own->anti_a_bit;
    out->anti_w_sym = own->anti_w_sym;
    out->anti_alpha = own->anti_alpha;
    out->anti_beta = own->anti_beta;
    out->disable_anti_names = own->disable_anti_names;
}

static bool block_fits(const run_plan *plan, const tare_smoothing *s, const model_block *block)
{
    for (size_t i = 0; i < block->graph->num_linears; i++) {
        const model_linear *l = block_linear(plan->env->model, block, i);
        const smooth_weight *w = &s->layers[block->index].weights[i];
        if (w->n != l->n || w->k != l->k || (w->bias != NULL) != linear_has_bias(plan, l))
            return false;
    }
    return true;
}

static bool same_rotation(const tare_recipe *then, const tare_recipe *now)
{
    return then->rotation == now->rotation &&
           (!now->rotation ||
            (then->rotation_seed == now->rotation_seed && then->rotation_r1 == now->rotation_r1 &&
             then->rotation_r2 == now->rotation_r2));
}

tare_status smoothing_take(run_plan *plan, const tare_smoothing *s)
{
    const run_env *e = plan->env;
    const numerics *then = &s->config.num, *now = &e->num;
    if (then->dtype != now->dtype || then->compat != now->compat)
        return TARE_FAIL(e->ctx, TARE_E_USAGE,
                         "the smoothing was computed for %s%s, this run is for %s%s",
                         dtype_name(then->dtype), then->compat ? " with compat" : "",
                         dtype_name(now->dtype), now->compat ? " with compat" : "");
    if ((s->recipe.mtp == MTP_MIX) != (e->model->mtp == MTP_MIX))
        return TARE_FAIL(e->ctx, TARE_E_USAGE,
                         "the smoothing was computed with%s quant.mtp mix, this run is with%s it",
                         s->recipe.mtp == MTP_MIX ? "" : "out",
                         e->model->mtp == MTP_MIX ? "" : "out");
    if (!same_rotation(&s->recipe, e->recipe))
        return TARE_FAIL(e->ctx, TARE_E_USAGE,
                         "the smoothing was computed for a model that was rotated otherwise: "
                         "rotation, its seed, r1 and r2 have to be its own");
    plan->smooth = s->config;
    plan->smoothing_given = true;
    bool fits = s->num_layers == e->model->num_blocks;
    for (size_t i = 0; fits && i < s->num_layers; i++)
        fits = block_fits(plan, s, &e->model->blocks[i]);
    return fits ? TARE_OK
                : TARE_FAIL(e->ctx, TARE_E_USAGE,
                            "the smoothing belongs to a model of other shapes than %s",
                            e->model->dir);
}

void smoothing_borrow(run *r, const tare_smoothing *s)
{
    memcpy(r->smoothing, s->layers, s->num_layers * sizeof *r->smoothing);
    for (size_t i = 0; i < s->num_layers; i++) {
        const model_block *block = &r->model->blocks[i];
        for (size_t l = 0; l < block->graph->num_linears; l++) /* names of a model that is gone */
            r->smoothing[i].weights[l].name = block_linear(r->model, block, l)->name;
    }
}

tare_status smoothing_digest(run *r, const tare_smoothing *s, buffer *out)
{
    buffer digests;
    buffer_init(&digests, r->ctx);
    for (size_t i = 0; i < s->num_vectors; i++) {
        buffer_puts(&digests, s->vectors[i].name);
        digest_write(&digests, s->vectors[i].values, s->vectors[i].length * sizeof(float));
    }
    return digest_text(&digests, out);
}

tare_status smoothing_record(run *r, const tare_smoothing *s, buffer *out)
{
    buffer_printf(out, "{\"samples\": %zu, \"tokens\": %zu, \"ids\": %s, \"vectors\": ", s->samples,
                  s->tokens, s->ids_digest);
    tare_status status = smoothing_digest(r, s, out);
    buffer_putc(out, '}');
    return status == TARE_OK ? out->status : status;
}
