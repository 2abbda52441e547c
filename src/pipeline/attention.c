/* Quantization of attention in a run: observed with the calibrating forward's q, k and v, layer by
 * layer. FA: written with its layer, or at the end if fa_amp must first know all scores. The
 * key/value cache: written with its layer. */
#include <stdio.h>
#include <string.h>

#include "pipeline/run.h"
#include "tensor/convert.h"

void attention_heads(const tare_model *m, size_t heads[FA_KINDS])
{
    const model_config *c = &m->config;
    heads[FA_Q] = c->num_heads;
    heads[FA_K] = heads[FA_V] = c->num_kv_heads;
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
    return fa_observer_create(r->ctx, r->plan->attentions[layer].name, heads, out);
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
    size_t layers = r->model->config.num_layers, n = 0;
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

size_t kv_observed_channels(const run_plan *plan, size_t layer)
{
    const model_config *c = &plan->env->model->config;
    return plan->keeps_statistics ? c->num_kv_heads * c->head_dim : kv_cache_channels(plan, layer);
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

tare_status kv_cache_write(run *r, size_t layer, const kv_observer *o)
{
    tare_status status = TARE_OK;
    size_t channels = kv_cache_channels(r->plan, layer);
    tare_dtype dtype = r->env->num.dtype;
    if (!o || channels == 0)
        return TARE_OK;
    float *scales = mem_alloc_array(r->ctx, channels, sizeof *scales);
    void *stored = mem_alloc_array(r->ctx, channels, dtype_size(dtype));
    TRY(scales && stored ? TARE_OK : TARE_E_MEMORY);
    for (int which = 0; which < KV_TENSORS; which++) {
        char name[512];
        snprintf(name, sizeof name, "%s%s", r->plan->attentions[layer].name, kv_suffix(which));
        TRY(kv_observer_scales(o, (kv_kind)(which / 2), dtype, scales));
        narrow_from_float(r->ctx, dtype, scales, channels, stored);
        if (which % 2) /* the offset */
            memset(stored, 0, channels * dtype_size(dtype));
        TRY(output_write_float(r->out, name, 0, stored, channels * dtype_size(dtype)));
    }
done:
    mem_free(r->ctx, scales);
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
    return 2 * mem_array_bytes(kv_cache_channels(plan, layer), sizeof(float));
}
