#include "quantize/kv_observer.h"

#include <math.h>
#include <string.h>

#include "base/carver.h"
#include "quantize/channel_range.h"
#include "tensor/round.h"

enum { MODULE_NAME = 256 };

struct kv_observer {
    kv_observer *self;
    tare_context *ctx;
    char *module;
    size_t module_bytes, channels, samples;
    channel_range range; /* [KV_KINDS,channels] */
};

static void lay_out(carver *c, void *component)
{
    kv_observer *o = component;
    o->self = carve(c, 1, sizeof *o);
    o->module = carve(c, o->module_bytes, 1);
    o->range.low = carve(c, o->channels, KV_KINDS * sizeof(int32_t));
    o->range.high = carve(c, o->channels, KV_KINDS * sizeof(int32_t));
}

tare_status kv_observer_create(tare_context *ctx, const char *module, size_t channels,
                               kv_observer **out)
{
    kv_observer o = {.ctx = ctx, .module_bytes = strlen(module) + 1, .channels = channels};
    tare_status status = carver_alloc(ctx, lay_out, &o);
    *out = o.self;
    if (status != TARE_OK)
        return status;
    memcpy(o.module, module, o.module_bytes);
    channel_range_clear(&o.range, channels * KV_KINDS);
    *o.self = o;
    return TARE_OK;
}

void kv_observer_free(kv_observer *o)
{
    if (o)
        mem_free(o->ctx, o);
}

size_t kv_observer_bytes(size_t channels)
{
    return carver_bytes(lay_out, &(kv_observer){.module_bytes = MODULE_NAME, .channels = channels});
}

static channel_range range_of(const kv_observer *o, kv_kind kind)
{
    size_t first = (size_t)kind * o->channels;
    return (channel_range){o->range.low + first, o->range.high + first};
}

/* The first sample whose channel `c` of a kind is not finite. */
static tare_status refuse(const kv_observer *o, size_t first, const size_t *lengths, const float *x,
                          kv_kind kind, size_t c)
{
    size_t t = 0, sample = 0, end = lengths[0];
    while (isfinite(x[t * o->channels + c]))
        t++;
    while (t >= end)
        end += lengths[++sample];
    return TARE_FAIL(o->ctx, TARE_E_NUMERIC,
                     "%s: channel %zu of the %s holds NaN or infinity in "
                     "sample %zu",
                     o->module, c, kind == KV_KEYS ? "keys" : "values", first + sample);
}

tare_status kv_observe(kv_observer *o, size_t first, const size_t *lengths, size_t samples,
                       const float *const rows[KV_KINDS])
{
    size_t tokens = 0;
    for (size_t i = 0; i < samples; i++)
        tokens += lengths[i];
    for (int kind = 0; kind < KV_KINDS; kind++) {
        channel_range r = range_of(o, (kv_kind)kind);
        channel_range_update(o->ctx, &r, rows[kind], tokens, o->channels);
    }
    for (size_t i = 0; i < KV_KINDS * o->channels; i++) {
        kv_kind kind = (kv_kind)(i / o->channels);
        if (!isfinite(channel_low(&o->range, i)) || !isfinite(channel_high(&o->range, i)))
            return refuse(o, first, lengths, rows[kind], kind, i % o->channels);
    }
    o->samples += samples;
    return TARE_OK;
}

void kv_observer_divide(kv_observer *o, kv_kind kind, const float *divisors)
{
    channel_range r = range_of(o, kind);
    for (size_t c = 0; o->samples > 0 && c < o->channels; c++)
        channel_range_set(&r, c, channel_low(&r, c) / divisors[c],
                          channel_high(&r, c) / divisors[c]);
}

/* In compat the range is of values in the model's dtype; rounding keeps their order. */
static tare_status channel_params(const kv_observer *o, const numerics *num, bool symmetric,
                                  float low, float high, act_params *out)
{
    const numerics asymmetric = {.compat = num->compat, .dtype = num->dtype};
    if (num->compat) {
        low = round_native(low, num->dtype);
        high = round_native(high, num->dtype);
    }
    if (!symmetric)
        return act_params_from_range(o->ctx, &asymmetric, low, high, false, out);
    float reach = fmaxf(fabsf(low), fabsf(high));
    *out = (act_params){.scale = round_native(fmaxf(reach / 127.0f, ROUND_EPS), num->dtype)};
    if (isfinite(out->scale))
        return TARE_OK;
    return TARE_FAIL(o->ctx, TARE_E_NUMERIC, "a reach of %g, whose scale does not fit %s",
                     (double)reach, dtype_name(num->dtype));
}

tare_status kv_observer_params(const kv_observer *o, kv_kind kind, const numerics *num,
                               bool symmetric, float *scales, float *offsets)
{
    if (o->samples == 0)
        return TARE_FAIL(o->ctx, TARE_E_NUMERIC, "%s: keys and values were never observed",
                         o->module);
    for (size_t c = 0; c < o->channels; c++) {
        size_t i = (size_t)kind * o->channels + c;
        act_params p;
        tare_status status = channel_params(o, num, symmetric, channel_low(&o->range, i),
                                            channel_high(&o->range, i), &p);
        if (status != TARE_OK)
            return TARE_WRAP(o->ctx, status, "%s: channel %zu of the %s", o->module, c,
                             kind == KV_KEYS ? "keys" : "values");
        scales[c] = p.scale;
        offsets[c] = p.offset;
    }
    return TARE_OK;
}

tare_status kv_observer_archive(kv_observer *o, archive *a)
{
    size_t bytes = o->channels * KV_KINDS * sizeof(int32_t);
    tare_status status = archive_bytes(a, &o->samples, sizeof o->samples);
    if (status == TARE_OK)
        status = archive_bytes(a, o->range.low, bytes);
    return status == TARE_OK ? archive_bytes(a, o->range.high, bytes) : status;
}

void kv_observer_get(const kv_observer *o, kv_kind kind, float *low, float *high)
{
    channel_range r = range_of(o, kind);
    for (size_t c = 0; c < o->channels; c++) {
        low[c] = channel_low(&r, c);
        high[c] = channel_high(&r, c);
    }
}

void kv_observer_set(kv_observer *o, kv_kind kind, const float *low, const float *high)
{
    channel_range r = range_of(o, kind);
    for (size_t c = 0; c < o->channels; c++)
        channel_range_set(&r, c, low[c], high[c]);
    o->samples += kind == KV_VALUES;
}
