#include "quantize/kv_observer.h"

#include <math.h>
#include <string.h>

#include "base/carver.h"
#include "base/context.h"
#include "quantize/channel_max.h"
#include "tensor/round.h"

enum { MODULE_NAME = 256 };

struct kv_observer {
    kv_observer *self;
    tare_context *ctx;
    char *module;
    size_t module_bytes, channels, samples;
    uint32_t *max; /* [KV_KINDS,channels], as channel_max.h says */
};

static void lay_out(carver *c, void *component)
{
    kv_observer *o = component;
    o->self = carve(c, 1, sizeof *o);
    o->module = carve(c, o->module_bytes, 1);
    o->max = carve(c, o->channels, KV_KINDS * sizeof *o->max);
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
    memset(o.max, 0, channels * KV_KINDS * sizeof *o.max);
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
    for (int kind = 0; kind < KV_KINDS; kind++)
        channel_max_update(o->ctx, o->max + (size_t)kind * o->channels, rows[kind], tokens,
                           o->channels);
    for (size_t i = 0; i < KV_KINDS * o->channels; i++) {
        kv_kind kind = (kv_kind)(i / o->channels);
        if (!isfinite(bits_to_float(o->max[i])))
            return refuse(o, first, lengths, rows[kind], kind, i % o->channels);
    }
    o->samples += samples;
    return TARE_OK;
}

tare_status kv_observer_scales(const kv_observer *o, kv_kind kind, tare_dtype dtype, float *scales)
{
    if (o->samples == 0)
        return TARE_FAIL(o->ctx, TARE_E_NUMERIC, "%s: keys and values were never observed",
                         o->module);
    for (size_t c = 0; c < o->channels; c++) {
        float reach = bits_to_float(o->max[(size_t)kind * o->channels + c]);
        scales[c] = round_native(fmaxf(reach / 127.0f, ROUND_EPS), dtype);
        if (!isfinite(scales[c]))
            return TARE_FAIL(o->ctx, TARE_E_NUMERIC,
                             "%s: channel %zu of the %s reaches %g, whose scale does not fit %s",
                             o->module, c, kind == KV_KEYS ? "keys" : "values", (double)reach,
                             dtype_name(dtype));
    }
    return TARE_OK;
}

void kv_observer_get(const kv_observer *o, kv_kind kind, float *reach)
{
    for (size_t c = 0; c < o->channels; c++)
        reach[c] = bits_to_float(o->max[(size_t)kind * o->channels + c]);
}

void kv_observer_set(kv_observer *o, kv_kind kind, const float *reach)
{
    for (size_t c = 0; c < o->channels; c++)
        o->max[(size_t)kind * o->channels + c] = float_to_bits(reach[c]);
    o->samples += kind == KV_VALUES;
}
