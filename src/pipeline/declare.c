/* What will be written: every tensor of the output, in model order. */
#include "pipeline/smoothing.h"

static tare_status declare_float(run *r, const tensor_info *source)
{
    tensor_info t = output_tensor(r->env, source);
    return output_declare_float(r->out, &t);
}

static tare_status declare_weight(run *r, const stored_weight *w)
{
    tensor_info t = output_weight(r->env, w);
    return output_declare_float(r->out, &t);
}

/* A bias of the source, or one that a shift creates; name NULL: none. */
static tare_status linear_bias(run *r, const model_linear *l, tensor_info *out)
{
    *out = (tensor_info){0};
    if (l->bias) {
        *out = output_tensor(r->env, l->bias);
    } else if (smoothing_creates_bias(r->plan, l)) {
        tare_dtype dtype = output_weight(r->env, &l->weight).dtype;
        *out = (tensor_info){.name = arena_printf(r->env->arena, "%s.bias", l->name),
                             .dtype = dtype,
                             .rank = 1,
                             .shape = {l->n},
                             .bytes = l->n * dtype_size(dtype)};
        return out->name ? TARE_OK : TARE_E_MEMORY;
    }
    return TARE_OK;
}

static tare_status declare_linear(run *r, const model_linear *l, const linear_plan *f)
{
    tare_status status = TARE_OK;
    tensor_info bias;
    if (plan_is_float(f))
        TRY(output_declare_float_linear(r->out, l->name));
    if (plan_is_float(f) && f->is_head && r->model->head_is_tied)
        return TARE_OK;
    TRY(linear_bias(r, l, &bias));
    if (plan_is_float(f)) {
        TRY(declare_weight(r, &l->weight));
        if (l->bias)
            TRY(declare_float(r, l->bias));
        else if (bias.name)
            TRY(output_declare_new_bias(r->out, &bias));
        return TARE_OK;
    }
    r->num_quantized++;
    /* compat: the histogram's range is FP32 there, and FP16 models keep its scale in FP32
     * (spec/w8a8.md 9.1). */
    bool wide = r->env->num.compat && r->env->num.dtype == TARE_F16 &&
                observer_kind_of(r->env, &r->scores[f - r->plan->linears], false) ==
                    OBSERVER_HISTOGRAM;
    linear_form form = {.scheme = f->scheme,
                        .n = l->n,
                        .k = l->k,
                        .slices = f->slices,
                        .per_tensor = r->env->recipe->mm_tensor,
                        .act_dtype = wide ? TARE_F32 : r->env->num.dtype,
                        .new_bias = bias.name && !l->bias};
    TRY(output_declare_linear(r->out, l->name, &form, bias.name ? &bias : NULL, f->is_head));
done:
    return status;
}

static tare_status declare_norm(run *r, const tensor_info *source)
{
    tensor_info t = output_tensor(r->env, source);
    return output_declare_norm(r->out, &t, smoothing_norm_kind(r->plan));
}

static tare_status declare_block(run *r, const model_block *b)
{
    tare_status status = TARE_OK;
    TRY(declare_attention(r, b->index));
    if (b->correction)
        TRY(declare_float(r, b->correction));
    for (size_t i = b->first_linear; i < b->end_linear; i++) {
        TRY(declare_kv_cache(r, b->index, &r->model->linears[i]));
        TRY(declare_linear(r, &r->model->linears[i], &r->plan->linears[i]));
    }
    for (size_t i = 0; i < b->graph->num_norms; i++)
        TRY(declare_norm(r, b->norms[graph_norm_in_order(b->graph, i)]));
done:
    return status;
}

/* Of an MTP layer linears that stay float are among them. */
static tare_status declare_extra(run *r, const stored_weight *w)
{
    tare_status status = TARE_OK;
    const char *name = model_extra_linear(r->model, w, r->env->arena);
    TRY(declare_weight(r, w));
    if (name)
        TRY(output_declare_float_linear(r->out, name));
done:
    return status;
}

static tare_status declare_all(run *r)
{
    tare_status status = TARE_OK;
    tare_model *m = r->model;
    r->num_quantized = 0;
    TRY(declare_weight(r, &m->embedding));
    for (size_t i = 0; i < m->num_blocks; i++)
        TRY(declare_block(r, &m->blocks[i]));
    TRY(declare_norm(r, m->final_norm));
    TRY(declare_linear(r, m->head, &r->plan->linears[m->num_linears - 1]));
    for (size_t i = 0; i < m->num_extra; i++)
        TRY(declare_extra(r, &m->extra[i]));
done:
    return status;
}

tare_status rehearse_output(run *r)
{
    tare_status status = TARE_OK;
    TRY(open_output(r, true));
    TRY(declare_all(r));
    TRY(output_begin(r->out));
done:
    output_free(r->out);
    r->out = NULL;
    return status;
}

tare_status plan_output(run *r)
{
    tare_status status = TARE_OK;
    TRY(declare_all(r));
    if (r->num_quantized == 0)
        TARE_WARN(r->ctx, "every linear layer stays float: nothing is quantized");
    TRY(output_begin(r->out));
done:
    return status;
}
