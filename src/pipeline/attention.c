/* Quantization of attention in a run: observed with the calibrating forward's q, k and v, layer by
 * layer. FA: written with its layer, or at the end if fa_amp must first know all scores. The
 * key/value cache: written with its layer; compat observes it in the float stream, as the
 * projections put keys and values out (spec/schemes.md 5.2). */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "pipeline/smoothing.h"
#include "tensor/convert.h"

#define VALUE_LINEAR ".self_attn.v_proj"

void attention_heads(const tare_model *m, size_t heads[FA_KINDS])
{
    const model_config *c = &m->config;
    heads[FA_Q] = c->num_heads;
    heads[FA_K] = heads[FA_V] = c->arch->latent_attention ? 1 : c->num_kv_heads;
}

fa_v_method attention_v_method(const run_plan *plan)
{
    const run_env *e = plan->env;
    return e->recipe->fa_v_mse && !e->model->config.arch->latent_attention ? FA_V_MSE : FA_V_MAX;
}

size_t fa_width(const tare_model *m)
{
    return m->config.arch->latent_attention ? m->config.kv_rank : m->config.head_dim;
}

tare_status declare_attention(run *r, size_t layer)
{
    size_t heads[FA_KINDS];
    attention_heads(r->model, heads);
    const attention_plan *a = &r->plan->attentions[layer];
    return a->quantize ? output_declare_fa(r->out, a->name, heads) : TARE_OK;
}

tare_status attention_observer_create(run *r, size_t layer, fa_observer **out)
{
    size_t heads[FA_KINDS];
    attention_heads(r->model, heads);
    *out = NULL;
    if (!r->plan->attentions[layer].quantize)
        return TARE_OK;
    return fa_observer_create(r->ctx, r->plan->attentions[layer].name, heads,
                              attention_v_method(r->plan), out);
}

tare_status attention_observe(run *r, fa_observer *o, const batch *b, const float *q,
                              const float *k, const float *v)
{
    const model_config *c = &r->model->config;
    size_t dim = c->head_dim, query = c->num_heads * dim, kv = c->num_kv_heads * dim;
    fa_input in[FA_KINDS] = {{q, query, dim}, {k, kv, dim}, {v, kv, dim}};
    return fa_observe(o, b->first, b->lengths, b->samples, in);
}

/* Scales of a layer, in the run's arena: a few hundred floats. */
tare_status attention_finish(run *r, size_t layer, const fa_observer *o)
{
    tare_status status = TARE_OK;
    run_attention *a = &r->attentions[layer];
    size_t heads[FA_KINDS];
    attention_heads(r->model, heads);
    for (int kind = 0; kind < FA_KINDS; kind++) {
        a->scales[kind] = arena_alloc_array(r->env->arena, heads[kind], sizeof(float));
        TRY(a->scales[kind] ? TARE_OK : TARE_E_MEMORY);
        TRY(fa_observer_scales(o, &r->env->num, (fa_kind)kind, a->scales[kind]));
    }
    memcpy(a->scores, fa_observer_scores(o), sizeof a->scores);
done:
    return status;
}

tare_status attention_write(run *r, size_t layer)
{
    const attention_plan *a = &r->plan->attentions[layer];
    if (!a->quantize || r->env->recipe->fa_amp > 0)
        return TARE_OK;
    return output_write_fa(r->out, a->name, (const float *const *)r->attentions[layer].scales);
}

tare_status write_late_attentions(run *r)
{
    tare_status status = TARE_OK;
    size_t layers = r->model->num_blocks, n = 0;
    if (r->env->recipe->fa_amp == 0 || r->plan->num_fa == 0)
        return TARE_OK;
    fa_module *modules = mem_alloc_array(r->ctx, r->plan->num_fa, sizeof *modules);
    TRY(modules ? TARE_OK : TARE_E_MEMORY);
    for (size_t i = 0; i < layers; i++) {
        const attention_plan *a = &r->plan->attentions[i];
        if (!a->quantize)
            continue;
        modules[n] = (fa_module){.name = a->name};
        memcpy(modules[n++].scores, r->attentions[i].scores, sizeof modules->scores);
    }
    TRY(fa_fall_back(r->ctx, modules, n, (size_t)r->env->recipe->fa_amp));
    n = 0;
    for (size_t i = 0; i < layers; i++) {
        run_attention *a = &r->attentions[i];
        if (!r->plan->attentions[i].quantize)
            continue;
        a->fallback = modules[n++].fallback;
        if (!a->fallback)
            TRY(output_write_fa(r->out, r->plan->attentions[i].name,
                                (const float *const *)a->scales));
    }
done:
    mem_free(r->ctx, modules);
    return status;
}

/* ---- the key/value cache ---- */

size_t kv_cache_channels(const run_plan *plan, size_t layer)
{
    const model_config *c = &plan->env->model->config;
    return plan->attentions[layer].kv_cache ? c->num_kv_heads * c->head_dim : 0;
}

tare_status declare_kv_cache(run *r, size_t layer, const model_linear *l)
{
    tare_status status = TARE_OK;
    const char *attention = r->plan->attentions[layer].name;
    size_t channels = kv_cache_channels(r->plan, layer);
    if (channels == 0 || !str_starts_with(l->name, attention))
        return TARE_OK;
    const char *linear = l->name + strlen(attention); /* ".k_proj" */
    for (int which = 0; which < KV_TENSORS; which++) {
        const char *suffix = kv_suffix(which);
        if (!str_starts_with(suffix, linear) || suffix[strlen(linear)] != '.')
            continue;
        tensor_info t = {.dtype = r->env->num.dtype, .rank = 1, .shape = {channels}};
        t.name = arena_printf(r->env->arena, "%s%s", attention, suffix);
        TRY(t.name ? TARE_OK : TARE_E_MEMORY);
        TRY(output_declare_kv_cache(r->out, &t));
    }
done:
    return status;
}

bool kv_cache_of_floats(const run_plan *plan)
{
    return plan->env->num.compat && plan->num_kv > 0;
}

/* Of keys or values; NULL: they have no linear of their own. */
static const linear_spec *projection(const block_graph *g, kv_kind kind)
{
    const char *name = kind == KV_KEYS ? KEY_LINEAR : VALUE_LINEAR;
    return graph_linear_of(g, name, strlen(name));
}

/* Statistics know them of every attention, but in compat, where nothing else needs them, and but
 * latent attention, whose cache holds neither keys nor values. */
size_t kv_observed_channels(const run_plan *plan, size_t layer)
{
    const model_config *c = &plan->env->model->config;
    bool of_all = plan->keeps_statistics && !plan->env->num.compat && !c->arch->latent_attention;
    return of_all ? c->num_kv_heads * c->head_dim : kv_cache_channels(plan, layer);
}

static tare_status create_observer(run *r, size_t layer, kv_observer **out)
{
    return kv_observer_create(r->ctx, r->plan->attentions[layer].name,
                              kv_observed_channels(r->plan, layer), out);
}

tare_status kv_cache_observe_floats(run *r, const model_block *block, graph_unit unit,
                                    const batch *b, float *const *y)
{
    const block_graph *g = block->graph;
    kv_observer **o = &r->attentions[block->index].kv;
    const float *rows[KV_KINDS];
    if (!kv_cache_of_floats(r->plan) || kv_cache_channels(r->plan, block->index) == 0)
        return TARE_OK;
    for (int kind = 0; kind < KV_KINDS; kind++) {
        const linear_spec *l = projection(g, (kv_kind)kind);
        if (!l || l->unit != unit) /* an expert has neither */
            return TARE_OK;
        rows[kind] = y[(size_t)(l - g->linears) - g->units[unit].first];
    }
    tare_status status = *o ? TARE_OK : create_observer(r, block->index, o);
    if (status == TARE_OK)
        status = kv_observe(*o, b->first, b->lengths, b->samples, rows);
    run_spent(r, WORK_FA);
    return status;
}

/* The float stream is that of the model as it stood; what smoothing does to the rows of the two
 * linears is known by now. */
static kv_observer *take_from_floats(run *r, const model_block *block)
{
    kv_observer *o = r->attentions[block->index].kv;
    r->attentions[block->index].kv = NULL;
    for (int kind = 0; o && kind < KV_KINDS; kind++) {
        size_t i = (size_t)(projection(block->graph, (kv_kind)kind) - block->graph->linears);
        const smooth_weight *w = smoothing_of(r, block_linear(r->model, block, i));
        if (w && w->row_scale)
            kv_observer_divide(o, (kv_kind)kind, w->row_scale);
    }
    return o;
}

tare_status kv_cache_begin(run *r, const model_block *block, kv_observer **out)
{
    *out = NULL;
    if (kv_observed_channels(r->plan, block->index) == 0)
        return TARE_OK;
    if (!kv_cache_of_floats(r->plan))
        return create_observer(r, block->index, out);
    *out = take_from_floats(r, block);
    return TARE_OK;
}

tare_status kv_cache_archive(run *r, size_t layer, archive *a)
{
    tare_status status = TARE_OK;
    kv_observer **o = &r->attentions[layer].kv;
    bool waits = *o != NULL;
    TRY(archive_bytes(a, &waits, sizeof waits));
    if (waits && archive_reads(a))
        TRY(create_observer(r, layer, o));
    if (waits)
        TRY(kv_observer_archive(*o, a));
done:
    return status;
}

/* At another position a token's two channels that turn together have other shares of the same
 * length: what either may reach is no more than that of the largest of both. `room` [2,channels].
 */
static void reach_every_position(const run *r, size_t layer, kv_observer *o, size_t channels,
                                 float *room)
{
    const block_graph *g = r->model->blocks[layer].graph;
    size_t head = r->model->config.head_dim;
    float *low = room, *high = room + channels;
    kv_observer_get(o, KV_KEYS, low, high);
    for (size_t first = 0; first < channels; first += head) {
        for (size_t c = 0; c < head; c++) /* no channel is looked at once it is changed */
            low[first + c] = fmaxf(-low[first + c], high[first + c]);
        for (size_t c = 0; c < head; c++) {
            double squares = 0;
            for (size_t other = 0; other < head; other++)
                if (graph_turning_group(g, other) == graph_turning_group(g, c))
                    squares += (double)low[first + other] * (double)low[first + other];
            high[first + c] = (float)sqrt(squares);
        }
    }
    for (size_t c = 0; c < channels; c++)
        low[c] = -high[c];
    kv_observer_set(o, KV_KEYS, low, high);
}

tare_status kv_cache_write(run *r, size_t layer, kv_observer *o)
{
    tare_status status = TARE_OK;
    size_t channels = kv_cache_channels(r->plan, layer);
    const numerics *num = &r->env->num;
    if (!o || channels == 0)
        return TARE_OK;
    float *params = mem_alloc_array(r->ctx, 2 * channels, sizeof *params); /* scales, offsets */
    void *stored = mem_alloc_array(r->ctx, channels, dtype_size(num->dtype));
    TRY(params && stored ? TARE_OK : TARE_E_MEMORY);
    if (r->env->recipe->kv_pairs)
        reach_every_position(r, layer, o, channels, params);
    for (int which = 0; which < KV_TENSORS; which++) {
        char name[512];
        snprintf(name, sizeof name, "%s%s", r->plan->attentions[layer].name, kv_suffix(which));
        if (which % 2 == 0)
            TRY(kv_observer_params(o, (kv_kind)(which / 2), num, r->env->recipe->kv_sym, params,
                                   params + channels));
        narrow_from_float(r->ctx, num->dtype, params + (which % 2 ? channels : 0), channels,
                          stored);
        TRY(output_write_float(r->out, name, 0, stored, channels * dtype_size(num->dtype)));
    }
done:
    mem_free(r->ctx, params);
    mem_free(r->ctx, stored);
    return status;
}

size_t kv_cache_kept_bytes(const run_plan *plan, size_t layer)
{
    size_t channels = kv_observed_channels(plan, layer);
    return channels ? kv_observer_bytes(channels) : 0;
}

size_t kv_cache_write_bytes(const run_plan *plan, size_t layer)
{
    size_t channels = kv_cache_channels(plan, layer);
    return mem_array_bytes(2 * channels, sizeof(float)) + mem_array_bytes(channels, sizeof(float));
}
