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
    /* [KV_KINDS,channels] of |x|, as the bits of non-negative floats: those order as the floats do,
     * NaN and infinity last, and integer maxima vectorize. */
    uint32_t *max;
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
    const float *x = job->rows[kind] + first;
    uint32_t max[PIECE], *all = job->o->max + kind * channels + first;
    (void)thread;
    memcpy(max, all, count * sizeof *max);
    for (size_t t = 0; t < job->tokens; t++, x += channels) {
        for (size_t c = 0; c < count; c++) {
            uint32_t bits = float_to_bits(x[c]) & 0x7fffffffu;
            max[c] = bits > max[c] ? bits : max[c];
        }
    }
    memcpy(all, max, count * sizeof *max);
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
