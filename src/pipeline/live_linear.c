/* A linear from reading its weight to writing its tensors. The weight is read once: what is written
 * as FLOAT goes out while it is in memory. */
#include <math.h>
#include <string.h>

#include "pipeline/smoothing.h"
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

bool linear_runs_in_floats(const run_plan *plan, linear_scheme scheme)
{
    return live_linears_need_float(plan) || scheme_of(scheme)->activations == ACT_FLOAT;
}

static tare_dtype bias_dtype(const run *r, const model_linear *l)
{
    return l->bias ? output_tensor(r->env, l->bias).dtype : output_weight(r->env, &l->weight).dtype;
}

bool linear_has_bias(const run_plan *plan, const model_linear *l)
{
    return l->bias || smoothing_creates_bias(plan, l);
}

/* In both its forms, and as it is read. */
size_t load_bias_bytes(const run_plan *plan, const model_linear *l)
{
    if (!linear_has_bias(plan, l))
        return 0;
    return mem_array_bytes(l->n, sizeof(float)) +
           (l->bias ? model_read_vector_bytes(l->bias) : mem_array_bytes(l->n, sizeof(float)));
}

tare_status load_bias(run *r, const model_linear *linear, float **bias, void **raw)
{
    tare_status status = TARE_OK;
    const smooth_weight *smooth = smoothing_of(r, linear);
    tare_dtype dtype = bias_dtype(r, linear);
    *bias = NULL;
    *raw = NULL;
    if (!linear_has_bias(r->plan, linear))
        return TARE_OK;
    if (linear->bias)
        TRY(model_read_vector(r->model, linear->bias, bias));
    else if (!(*bias = mem_alloc_array(r->ctx, linear->n, sizeof **bias)))
        return TARE_E_MEMORY;
    if (smooth && smooth->bias)
        memcpy(*bias, smooth->bias, linear->n * sizeof **bias);
    if (!(*raw = mem_alloc(r->ctx, linear->n * dtype_size(dtype))))
        return TARE_E_MEMORY;
    narrow_from_float(r->ctx, dtype, *bias, linear->n, *raw);
    widen_to_float(r->ctx, dtype, *raw, linear->n, *bias);
done:
    return status;
}

tare_status write_float_bias(run *r, const model_linear *l, const void *raw)
{
    tare_status status = TARE_OK;
    buffer name;
    buffer_init(&name, r->ctx);
    buffer_printf(&name, "%s.bias", l->name);
    TRY(name.status);
    TRY(output_write_float(r->out, name.data, 0, raw, l->n * dtype_size(bias_dtype(r, l))));
done:
    buffer_free(&name);
    return status;
}

tare_status live_linear_write_float(run *r, live_linear *l)
{
    tare_status status = TARE_OK;
    const model_linear *m = l->linear;
    if (l->scheme != SCHEME_FLOAT || !l->raw.data)
        return TARE_OK;
    TRY(write_float_rows(r, &m->weight, 0, m->n, &l->raw));
    if (l->bias_raw)
        TRY(write_float_bias(r, m, l->bias_raw));
    coded_free(r->ctx, &l->raw);
done:
    return TARE_WRAP(r->ctx, status, "%s", m->name);
}

/* What is quantized of a weight. */
static weight_rows rows_of(const run *r, const live_linear *l, const coded_rows *raw)
{
    return (weight_rows){.stored = *raw,
                         .smooth = smoothing_of(r, l->linear),
                         .count = l->linear->n,
                         .method = recipe_weight_method(r->env->recipe, l->scheme)};
}

/* A quantized one that is computed in floats, once its integers are there. */
static tare_status pack_dequantized(run *r, live_linear *l)
{
    if (!linear_runs_in_floats(r->plan, l->scheme))
        return TARE_OK;
    coded_rows rows = weight_dequantized(&r->env->num, &l->q);
    return gemm_weight_pack(r->ctx, r->env->compute, &rows, l->linear->n, &l->weight);
}

tare_status live_linear_round(run *r, live_linear *l, const gptq *inputs)
{
    tare_status status = TARE_OK;
    weight_rows rows = rows_of(r, l, &l->raw);
    TRY(gptq_round(r->ctx, inputs, &rows, &l->q));
    coded_free(r->ctx, &l->raw);
    run_spent(r, WORK_GPTQ);
    TRY(pack_dequantized(r, l));
done:
    return TARE_WRAP(r->ctx, status, "%s", l->linear->name);
}

tare_status live_linear_load(run *r, const model_linear *linear, linear_scheme scheme,
                             coded_rows *raw, live_linear *l)
{
    tare_status status = TARE_OK;
    bool quantize = scheme != SCHEME_FLOAT,
         waits = plan_rounds(r->plan, (size_t)(linear - r->model->linears));
    *l = (live_linear){
        .linear = linear, .scheme = scheme, .activations = calibrated_activations(r->plan, scheme)};
    if (!raw->data)
        TRY(stored_load(r->model->checkpoint, &linear->weight, raw));
    run_spent(r, WORK_READ);
    smooth_weight *smooth = smoothing_of(r, linear);
    if (smooth)
        smooth->raw = *raw;
    if (quantize) {
        weight_rows rows = rows_of(r, l, raw);
        TRY(weight_quantize_rows(r->ctx, &r->env->num, &rows, r->env->recipe->mm_tensor, &l->q));
        run_spent(r, WORK_QUANTIZE);
    } else {
        if (smooth)
            TRY(smoothing_store(r, linear, raw));
        TRY(gemm_weight_pack(r->ctx, r->env->compute, raw, linear->n, &l->weight));
    }
    if (!quantize || waits) {
        l->raw = *raw;
        *raw = (coded_rows){0};
    }
    coded_free(r->ctx, raw);
    if (quantize && !waits)
        TRY(pack_dequantized(r, l));
    TRY(load_bias(r, linear, &l->bias, &l->bias_raw));
    if (!r->plan->layout.overlap && r->out)
        TRY(live_linear_write_float(r, l));
done:
    coded_free(r->ctx, raw);
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
    coded_free(r->ctx, &l->raw);
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
static void live_linear_bytes(const run_plan *plan, const model_linear *l, linear_scheme scheme,
                              live_linear_size *out)
{
    bool quantize = scheme != SCHEME_FLOAT;
    bool smooth = plan->smooths, wide = quantize && linear_runs_in_floats(plan, scheme);
    size_t n = l->n, k = l->k;
    tare_dtype dtype = l->weight.dtype, kept = output_weight(plan->env, &l->weight).dtype;
    size_t source = linear_raw_bytes(l);
    size_t bias = l->bias ? model_read_vector_bytes(l->bias) : mem_array_bytes(n, sizeof(float));
    *out = (live_linear_size){.loading = linear_read_bytes(l)};
    if (smooth && !quantize) {
        out->loading = size_max(out->loading, smoothing_store_bytes(plan, l));
        dtype = kept;
        source = output_weight_bytes(plan->env, &l->weight);
    }
    if (quantize) {
        out->weights = weight_quantized_bytes(n, k);
        out->loading = size_max(out->loading, source + out->weights +
                                                  weight_quantize_bytes(plan->env->ctx, n, k));
    }
    if (wide) {
        dtype = plan->env->num.compat ? plan->env->num.dtype : TARE_F32;
        source = out->weights;
    }
    if (wide || !quantize) {
        out->packed = gemm_weight_bytes(plan->env->compute, dtype, n, k);
        out->loading = size_max(out->loading, source + out->packed + output_write_bytes(n) +
                                                  converted_bytes(plan->env, &l->weight));
    }
    out->loading = size_max(out->loading, out->weights + out->packed + 2 * bias);
    out->weights += 2 * mem_array_bytes(n, sizeof(float)); /* the bias in both its forms */
}

live_linear_size live_linear_most(const run_plan *plan, size_t index)
{
    const model_linear *l = &plan->env->model->linears[index];
    const linear_plan *f = &plan->linears[index];
    live_linear_size most = {0}, s;
    if (!plan_is_float(f))
        live_linear_bytes(plan, l, f->scheme, &most);
    most.raw = plan_rounds(plan, index) ? linear_raw_bytes(l) : 0;
    if (!plan_is_float(f) && !plan_may_fall_back(plan))
        return most;
    live_linear_bytes(plan, l, SCHEME_FLOAT, &s);
    if (plan->layout.overlap)
        s.weights += size_max(linear_raw_bytes(l),
                              plan->smooths ? output_weight_bytes(plan->env, &l->weight) : 0);
    return (live_linear_size){.weights = size_max(most.weights, s.weights),
                              .packed = size_max(most.packed, s.packed),
                              .loading = size_max(most.loading, s.loading),
                              .raw = most.raw};
}

size_t live_linear_rows_bytes(size_t rows)
{
    return mem_array_bytes(rows, sizeof(float)) + mem_array_bytes(rows, sizeof(int32_t)) +
           output_write_bytes(rows);
}

size_t live_linear_write_bytes(const run_plan *plan, size_t index)
{
    const model_linear *l = &plan->env->model->linears[index];
    return live_linear_rows_bytes(l->n) + converted_bytes(plan->env, &l->weight) +
           output_rows_bytes(plan->linears[index].scheme, l->n, l->k, plan->env->save);
}

observer_kind observer_kind_of(const run_env *e, const linear_score *s, bool reads_norm)
{
    switch (e->recipe->act_method) {
    case 3:
        return s->value <= SCORE_HISTOGRAM_LIMIT ? OBSERVER_HISTOGRAM : OBSERVER_MEAN_EXTREMES;
    case 4: /* of o_proj's and down_proj's inputs it makes the model's output no better */
        return reads_norm ? OBSERVER_MSE : OBSERVER_MEAN_EXTREMES;
    default:
        return (observer_kind)e->recipe->act_method;
    }
}
