/* A linear from reading its weight to writing its tensors. The weight is read once: what is written
 * as FLOAT goes out while it is in memory. */
#include <math.h>
#include <string.h>

#include "pipeline/run.h"
#include "tensor/convert.h"

/* Fake-quantized linears are computed in exact integers, except where some inputs are left float
 * (pr < 1), and in compat: there the reference multiplies dequantized values in its model's dtype,
 * and one rounding more or less in the sum flips roundings in later layers (on tiny models the
 * difference to the reference's input scales was 2e-3 with integers, 2e-7 with its own arithmetic).
 */
bool live_linears_need_float(const run_plan *plan)
{
    return plan->env->recipe->pr < 1 || plan->env->num.compat;
}

/* The reference calibrates a dynamic linear as a static one (spec/schemes.md 9.1). */
act_kind calibrated_activations(const run_plan *plan, linear_scheme scheme)
{
    act_kind kind = scheme_of(scheme)->activations;
    return kind == ACT_PER_TOKEN && plan->env->num.compat ? ACT_STATIC : kind;
}

/* Is a quantized linear computed in floats? */
static bool runs_in_floats(const run_plan *plan, linear_scheme scheme)
{
    return live_linears_need_float(plan) || scheme_of(scheme)->activations == ACT_FLOAT;
}

static tare_status dequantized_weight(run *r, const quantized_weight *q, gemm_weight **out)
{
    float *w = mem_alloc_array(r->ctx, q->n * q->k, sizeof *w);
    if (!w)
        return TARE_E_MEMORY;
    for (size_t i = 0; i < q->n; i++)
        weight_dequantize(&r->env->num, q, i, w + i * q->k);
    tare_status status = gemm_weight_create(r->ctx, r->env->compute, TARE_F32, w, q->n, q->k, out);
    mem_free(r->ctx, w);
    return status;
}

tare_status load_bias(run *r, const model_linear *linear, float **bias, void **raw)
{
    tare_status status = TARE_OK;
    const smooth_weight *smooth = smoothing_of(r, linear);
    tare_dtype dtype = output_tensor(r->env, linear->bias ? linear->bias : linear->weight).dtype;
    *bias = NULL;
    *raw = NULL;
    if (!linear->bias && !smoothing_creates_bias(r->plan, linear))
        return TARE_OK;
    if (linear->bias)
        TRY(model_read_vector(r->model, linear->bias, bias));
    else if (!(*bias = mem_alloc_array(r->ctx, linear->n, sizeof **bias)))
        return TARE_E_MEMORY;
    if (smooth)
        memcpy(*bias, smooth->bias, linear->n * sizeof **bias);
    if (!(*raw = mem_alloc(r->ctx, linear->n * dtype_size(dtype))))
        return TARE_E_MEMORY;
    narrow_from_float(r->ctx, dtype, *bias, linear->n, *raw);
    widen_to_float(r->ctx, dtype, *raw, linear->n, *bias);
done:
    return status;
}

tare_status live_linear_write_float(run *r, live_linear *l)
{
    tare_status status = TARE_OK;
    const model_linear *m = l->linear;
    buffer name;
    buffer_init(&name, r->ctx);
    if (!l->raw.data)
        return TARE_OK;
    TRY(output_write_float(r->out, m->weight->name, 0, l->raw.data,
                           m->n * m->k * dtype_size(l->raw.dtype)));
    if (l->bias_raw) {
        tare_dtype dtype = output_tensor(r->env, m->bias ? m->bias : m->weight).dtype;
        buffer_printf(&name, "%s.bias", m->name);
        TRY(name.status);
        TRY(output_write_float(r->out, name.data, 0, l->bias_raw, m->n * dtype_size(dtype)));
    }
    mem_free(r->ctx, l->raw.data);
    l->raw.data = NULL;
done:
    buffer_free(&name);
    return TARE_WRAP(r->ctx, status, "%s", m->name);
}

tare_status live_linear_load(run *r, const model_linear *linear, linear_scheme scheme,
                             raw_weight *raw, live_linear *l)
{
    tare_status status = TARE_OK;
    bool quantize = scheme != SCHEME_FLOAT;
    size_t n = linear->n, k = linear->k;
    *l = (live_linear){
        .linear = linear, .scheme = scheme, .activations = calibrated_activations(r->plan, scheme)};
    if (!raw->data)
        TRY(linear_read(r->model, linear, raw));
    smooth_weight *smooth = smoothing_of(r, linear);
    if (smooth) {
        smooth->raw = raw->data;
        smooth->dtype = raw->dtype;
    }
    if (quantize) {
        weight_rows rows = {
            .dtype = raw->dtype, .data = raw->data, .smooth = smooth, .count = n, .k = k};
        TRY(weight_quantize_rows(r->ctx, &r->env->num, &rows, r->env->recipe->mm_tensor, &l->q));
    } else {
        if (smooth)
            TRY(smoothing_store(r, linear, raw));
        TRY(gemm_weight_create(r->ctx, r->env->compute, raw->dtype, raw->data, n, k, &l->weight));
        l->raw = *raw;
        raw->data = NULL;
    }
    mem_free(r->ctx, raw->data);
    raw->data = NULL;
    if (quantize && runs_in_floats(r->plan, scheme))
        TRY(dequantized_weight(r, &l->q, &l->weight));
    TRY(load_bias(r, linear, &l->bias, &l->bias_raw));
    if (!r->plan->layout.overlap)
        TRY(live_linear_write_float(r, l));
done:
    mem_free(r->ctx, raw->data);
    raw->data = NULL;
    if (status != TARE_OK)
        live_linear_free(r, l);
    return TARE_WRAP(r->ctx, status, "%s", linear->name);
}

void live_linear_free(run *r, live_linear *l)
{
    weight_quantized_free(r->ctx, &l->q);
    gemm_weight_free(r->ctx, l->weight);
    mem_free(r->ctx, l->bias);
    mem_free(r->ctx, l->bias_raw);
    mem_free(r->ctx, l->raw.data);
    *l = (live_linear){0};
}

tare_status write_calibrated(run *r, const model_linear *l, quantized_weight *q, const float *bias,
                             const act_params *act, saturation *s, linear_parts *parts)
{
    tare_status status = TARE_OK;
    double worst = 0;
    bool last = parts->first + parts->count == l->n;
    float *deq_scale = mem_alloc_array(r->ctx, q->n, sizeof *deq_scale);
    int32_t *quant_bias = mem_alloc_array(r->ctx, q->n, sizeof *quant_bias);
    TRY(deq_scale && quant_bias ? TARE_OK : TARE_E_MEMORY);
    weight_settle_zero_rows(&r->env->num, q, bias, act->scale);
    s->rows += derive_w8a8(&r->env->num, q, act, bias, deq_scale, quant_bias, &worst);
    if (worst > s->worst || isnan(worst))
        s->worst = worst;
    if (last && s->rows > 0) {
        r->saturated_rows += s->rows;
        TARE_WARN(
            r->ctx,
            "%s: quant_bias of %zu rows does not fit int32 and is saturated; worst error %.3g",
            l->name, s->rows, s->worst);
    }
    parts->data[TENSOR_INPUT_SCALE] = last ? &act->scale : NULL;
    parts->data[TENSOR_INPUT_OFFSET] = last ? &act->offset : NULL;
    parts->data[TENSOR_QUANT_BIAS] = quant_bias;
    parts->data[TENSOR_DEQ_SCALE] = deq_scale;
    TRY(output_write_linear(r->out, l->name, parts));
done:
    mem_free(r->ctx, deq_scale);
    mem_free(r->ctx, quant_bias);
    return status;
}

tare_status live_linear_write(run *r, live_linear *l, const act_params *act)
{
    saturation s = {0};
    linear_parts parts = {.count = l->q.n,
                          .data = {[TENSOR_WEIGHT] = l->q.q,
                                   [TENSOR_BIAS] = l->bias_raw,
                                   [TENSOR_WEIGHT_SCALE] = l->q.scales}};
    tare_status status = scheme_of(l->scheme)->activations == ACT_STATIC
                             ? write_calibrated(r, l->linear, &l->q, l->bias, act, &s, &parts)
                             : output_write_linear(r->out, l->linear->name, &parts);
    return TARE_WRAP(r->ctx, status, "%s", l->linear->name);
}

/* Each step of live_linear_load with all that it holds. */
void live_linear_bytes(const run_plan *plan, const model_linear *l, linear_scheme scheme,
                       live_linear_size *out)
{
    bool quantize = scheme != SCHEME_FLOAT;
    bool smooth = plan->smooths, wide = quantize && runs_in_floats(plan, scheme);
    size_t n = l->n, k = l->k;
    tare_dtype dtype = linear_raw_dtype(plan->env->model, l),
               kept = output_tensor(plan->env, l->weight).dtype;
    size_t source = linear_raw_bytes(plan->env->model, l);
    size_t bias = l->bias ? model_read_vector_bytes(l->bias) : mem_array_bytes(n, sizeof(float));
    *out = (live_linear_size){.loading = linear_read_bytes(plan->env->model, l)};
    if (smooth && !quantize) {
        out->loading = size_max(out->loading, smoothing_store_bytes(plan, l));
        dtype = kept;
        source = mem_array_bytes(n * k, dtype_size(dtype));
    }
    if (quantize) {
        out->weights = weight_quantized_bytes(n, k);
        out->loading = size_max(out->loading, source + out->weights +
                                                  weight_quantize_bytes(plan->env->ctx, n, k));
    }
    if (wide) {
        dtype = TARE_F32;
        source = out->weights + mem_array_bytes(n * k, sizeof(float));
    }
    if (wide || !quantize) {
        out->packed = mem_block_bytes(gemm_weight_bytes(plan->env->compute, dtype, n, k));
        out->loading = size_max(out->loading, source + out->packed + output_write_bytes(n));
    }
    out->loading = size_max(out->loading, out->weights + out->packed + 2 * bias);
    out->weights += 2 * mem_array_bytes(n, sizeof(float)); /* the bias in both its forms */
}

size_t live_linear_write_bytes(size_t n)
{
    return mem_array_bytes(n, sizeof(float)) + mem_array_bytes(n, sizeof(int32_t)) +
           output_write_bytes(n);
}

observer_kind observer_kind_of(const run_env *e, const linear_score *s)
{
    if (e->recipe->act_method != 3)
        return (observer_kind)e->recipe->act_method;
    return s->value <= SCORE_HISTOGRAM_LIMIT ? OBSERVER_HISTOGRAM : OBSERVER_MEAN_EXTREMES;
}
