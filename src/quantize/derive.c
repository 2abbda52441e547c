/* deq_scale and quant_bias of a W8A8 linear. */
#include <math.h>

#include "quantize/scheme.h"
#include "tensor/round.h"

/* rne(bias/deq - offset*sum) in FP64 and int64, saturated. False if it had to be. */
static bool bias_exact(float bias, float deq, int64_t correction, int32_t *out, double *error)
{
    double quotient = bias == 0.0f ? 0.0 : (double)bias / (double)deq;
    double value = rint(quotient - (double)correction);
    if (value >= INT32_MIN && value <= INT32_MAX) {
        *out = (int32_t)value;
        return true;
    }
    *out = value > 0 ? INT32_MAX : value < 0 ? INT32_MIN : 0;
    *error = fabs(value - (double)*out);
    return false;
}

/* FP32 throughout. False if the reference's conversion to int32 would be undefined. */
static bool bias_compat(float bias, float deq, int64_t row_sum, float offset, int32_t *out)
{
    float correction = (float)row_sum * offset;
    float value = rintf(bias / deq - correction);
    if (!(value >= -0x1p31f && value < 0x1p31f))
        return false;
    *out = (int32_t)value;
    return true;
}

static bool usable(float deq)
{
    return deq > 0.0f && isfinite(deq);
}

/* In compat mode the product is one operation in the wider of the two dtypes; `usable` decides
 * whether it can stand. */
static float native_deq(const numerics *num, const act_params *act, float weight_scale)
{
    tare_dtype m = act->dtype == TARE_F32 ? TARE_F32 : num->dtype;
    return round_native(act->scale * weight_scale, m);
}

size_t derive_w8a8(const numerics *num, const quantized_weight *w, const act_params *act,
                   const float *bias, float *deq_scale, int32_t *quant_bias, double *worst)
{
    size_t count = 0;
    double worst_error = 0.0;
    for (size_t i = 0; i < w->num_scales; i++) {
        deq_scale[i] = act->scale * w->scales[i];
        if (num->compat) {
            float d = native_deq(num, act, w->scales[i]);
            deq_scale[i] = usable(d) ? d : deq_scale[i];
        }
    }
    for (size_t i = 0; i < w->n; i++) {
        size_t s = w->num_scales == 1 ? 0 : i;
        float d = deq_scale[s], b = bias ? bias[i] : 0.0f;
        bool native = num->compat && usable(native_deq(num, act, w->scales[s]));
        if (native && bias_compat(b, d, w->row_sums[i], act->offset, &quant_bias[i]))
            continue;
        int64_t correction = (int64_t)act->offset * w->row_sums[i];
        double error = 0.0;
        bool fits = bias_exact(b, d, correction, &quant_bias[i], &error);
        if (!fits || (num->compat && !native))
            count++;
        if (error > worst_error || isnan(error))
            worst_error = error;
    }
    if (worst)
        *worst = worst_error;
    return count;
}
