#include "quantize/kv_observer.h"

#include <math.h>
#include <string.h>

#include "base/carver.h"
#include "base/parallel.h"
#include "tensor/round.h"

enum { PIECE = 64, MODULE_NAME = 256 }; /* PIECE: channels of one piece of work */

struct kv_observer {
    kv_observer *self;
    tare_context *ctx;
    char *module;
    size_t module_bytes, channels, samples;
    /* [KV_KINDS,channels] in the order of ordered(), whose extremes vectorize and keep NaN. */
    int32_t *low, *high;
};

/* Whole numbers that order as the floats do, -NaN first, NaN last; its own inverse, on bits. */
static inline int32_t ordered(uint32_t bits)
{
    return (int32_t)(bits ^ (-(bits >> 31) & 0x7fffffffu));
}

static inline float value_of(int32_t order)
{
    return bits_to_float((uint32_t)ordered((uint32_t)order));
}

static void lay_out(carver *c, void *component)
{
    kv_observer *o = component;
    o->self = carve(c, 1, sizeof *o);
    o->module = carve(c, o->module_bytes, 1);
    o->low = carve(c, o->channels, KV_KINDS * sizeof *o->low);
    o->high = carve(c, o->channels, KV_KINDS * sizeof *o->high);
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
    for (size_t i = 0; i < channels * KV_KINDS; i++) {
        o.low[i] = INT32_MAX;
        o.high[i] = INT32_MIN;
    }
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

typedef struct observe_job {
    const kv_observer *o;
    const float *const *rows;
    size_t tokens, pieces; /* pieces: of keys, and as many of values */
} observe_job;

static void observe_piece(void *user, size_t index, int thread)
{
    const observe_job *job = user;
    size_t channels = job->o->channels, first = index % job->pieces * PIECE;
    size_t kind = index / job->pieces, count = size_min(channels - first, PIECE);
    size_t at = kind * channels + first;
    const float *x = job->rows[kind] + first;
    int32_t low[PIECE], high[PIECE];
    (void)thread;
    memcpy(low, job->o->low + at, count * sizeof *low);
    memcpy(high, job->o->high + at, count * sizeof *high);
    for (size_t t = 0; t < job->tokens; t++, x += channels) {
        for (size_t c = 0; c < count; c++) {
            int32_t order = ordered(float_to_bits(x[c]));
            low[c] = order < low[c] ? order : low[c];
            high[c] = order > high[c] ? order : high[c];
        }
    }
    memcpy(job->o->low + at, low, count * sizeof *low);
    memcpy(job->o->high + at, high, count * sizeof *high);
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
    observe_job job = {.o = o, .rows = rows, .pieces = size_divide_up(o->channels, PIECE)};
    for (size_t i = 0; i < samples; i++)
        job.tokens += lengths[i];
    parallel_for(o->ctx, KV_KINDS * job.pieces, observe_piece, &job);
    for (size_t i = 0; i < KV_KINDS * o->channels; i++) {
        kv_kind kind = (kv_kind)(i / o->channels);
        if (!isfinite(value_of(o->low[i])) || !isfinite(value_of(o->high[i])))
            return refuse(o, first, lengths, rows[kind], kind, i % o->channels);
    }
    o->samples += samples;
    return TARE_OK;
}

void kv_observer_divide(kv_observer *o, kv_kind kind, const float *divisors)
{
    int32_t *low = o->low + (size_t)kind * o->channels,
            *high = o->high + (size_t)kind * o->channels;
    for (size_t c = 0; o->samples > 0 && c < o->channels; c++) {
        low[c] = ordered(float_to_bits(value_of(low[c]) / divisors[c]));
        high[c] = ordered(float_to_bits(value_of(high[c]) / divisors[c]));
    }
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
        tare_status status = channel_params(o, num, symmetric, value_of(o->low[i]),
                                            value_of(o->high[i]), &p);
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
    size_t bytes = o->channels * KV_KINDS * sizeof *o->low;
    tare_status status = archive_bytes(a, &o->samples, sizeof o->samples);
    if (status == TARE_OK)
        status = archive_bytes(a, o->low, bytes);
    return status == TARE_OK ? archive_bytes(a, o->high, bytes) : status;
}
