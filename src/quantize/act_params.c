/* Scale and offset of activations, and the fake quantization made with them. */
#include "base/context.h"
#include "quantize/scheme.h"
#include "tensor/convert.h"
#include "tensor/round.h"

/* In the reference the histogram yields FP32 ranges. Their FP16 scale stays FP32 by type promotion;
 * BF16 is cast back explicitly. */
static act_params params_compat(const numerics *num, double low, double high, bool histogram)
{
    tare_dtype m = histogram ? TARE_F32 : num->dtype;
    float lo = (float)low, hi = (float)high;
    float range = round_native(hi - lo, m);
    float scale = fmaxf(round_native(range / 255.0f, m), ROUND_EPS);
    float zero = rintf(round_native(-lo / scale, m));
    float offset = round_native(zero - 128.0f, m);
    if (histogram && num->dtype == TARE_BF16) {
        m = TARE_BF16;
        scale = round_bf16(scale);
        offset = round_bf16(offset);
    }
    return (act_params){.scale = scale, .offset = offset, .dtype = m};
}

static act_params params_exact(const numerics *num, double lo, double hi)
{
    double step = num->act_symmetric ? fmax(-lo, hi) / 127.0 : (hi - lo) / 255.0;
    float scale = round_to_dtype(fmax(step, ROUND_EPS), num->dtype);
    double offset = num->act_symmetric ? 0.0 : rint(-lo / scale) - 128.0;
    offset = fmin(fmax(offset, -128.0), 127.0);
    return (act_params){.scale = scale, .offset = (float)offset, .dtype = num->dtype};
}

act_params act_params_of(const numerics *num, double lo, double hi, bool histogram)
{
    lo = fmin(lo, 0.0);
    hi = fmax(hi, 0.0);
    return num->compat ? params_compat(num, lo, hi, histogram) : params_exact(num, lo, hi);
}

tare_status act_params_from_range(tare_context *ctx, const numerics *num, double lo, double hi,
                                  bool histogram, act_params *out)
{
    if (!isfinite(lo) || !isfinite(hi))
        return TARE_FAIL(ctx, TARE_E_NUMERIC, "the activation range [%g, %g] is not finite", lo,
                         hi);
    *out = act_params_of(num, lo, hi, histogram);
    if (!isfinite(out->scale) || !isfinite(out->offset))
        return TARE_FAIL(ctx, TARE_E_NUMERIC,
                         "the scale of the activation range [%g, %g] does not fit %s",
                         fmin(lo, 0.0), fmax(hi, 0.0), dtype_name(num->dtype));
    return TARE_OK;
}

/* Clamping before rounding is the same, since the bounds are integers; it also keeps the argument
 * small. The dtype is a constant at each call, so that each becomes one vector loop. */
static inline __attribute__((always_inline)) void
fake_quantize(tare_dtype step, tare_dtype result, float scale, float offset, float *x, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        float t = round_native(round_native(x[i] / scale, step) + offset, step);
        t = t < -128.0f ? -128.0f : t;
        t = t > 127.0f ? 127.0f : t;
        t = round_native(round_even_small(t) - offset, step);
        x[i] = round_native(round_native(t * scale, step), result);
    }
}

void act_fake_quantize(const numerics *num, const act_params *act, float *x, size_t n)
{
    float s = act->scale, o = act->offset;
    tare_dtype step = num->compat ? act->dtype : TARE_F32;
    if (step == TARE_BF16)
        fake_quantize(TARE_BF16, TARE_F32, s, o, x, n);
    else if (step == TARE_F16)
        fake_quantize(TARE_F16, TARE_F32, s, o, x, n);
    else if (num->compat && num->dtype == TARE_F16)
        fake_quantize(TARE_F32, TARE_F16, s, o, x, n);
    else
        fake_quantize(TARE_F32, TARE_F32, s, o, x, n);
}
