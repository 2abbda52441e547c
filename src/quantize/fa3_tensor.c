/* The public observers: one of q, k and v at a time, read where the caller has it. */
#include <assert.h>
#include <math.h>
#include <string.h>

#include "base/carver.h"
#include "base/parallel.h"
#include "quantize/fa3.h"
#include "tensor/convert.h"

struct tare_fa_observer {
    tare_context *ctx;
    char *module;
    fa_kind kind;
    size_t heads;      /* 0: nothing seen */
    float *low, *high; /* [heads], in one block */
    float score;
};

tare_status tare_fa_observer_create(tare_context *ctx, const char *module, char kind,
                                    tare_fa_observer **out)
{
    static const char KINDS[FA_KINDS] = {[FA_Q] = 'q', [FA_K] = 'k', [FA_V] = 'v'};
    *out = NULL;
    const char *found = kind ? memchr(KINDS, kind, FA_KINDS) : NULL;
    if (!found)
        return TARE_FAIL(ctx, TARE_E_USAGE, "%s: '%c' is none of q, k and v", module,
                         kind ? kind : ' ');
    tare_fa_observer *o = mem_calloc(ctx, 1, sizeof *o);
    if (!o)
        return TARE_E_MEMORY;
    *o = (tare_fa_observer){.ctx = ctx, .kind = (fa_kind)(found - KINDS)};
    if (!(o->module = mem_strdup(ctx, module))) {
        mem_free(ctx, o);
        return TARE_E_MEMORY;
    }
    *out = o;
    return TARE_OK;
}

void tare_fa_observer_free(tare_fa_observer *o)
{
    if (!o)
        return;
    mem_free(o->ctx, o->module);
    mem_free(o->ctx, o->low);
    mem_free(o->ctx, o);
}

/* One sample. */
typedef struct tensor_job {
    const tare_fa_observer *o;
    const tare_fa_tensor *t;
    tare_dtype dtype;
    const kernels *k;
    size_t threads;
    size_t keep;       /* of a row, in the window's heaps */
    float *storage;    /* [threads, 2*keep] heaps */
    float *lines;      /* [threads, channels] one token of one head as FP32 */
    float *low, *high; /* [heads] */
    bool *finite;      /* [heads] */
    float *copy;       /* [batch*tokens, heads, channels] of the first sample, for its score */
} tensor_job;

static void lay_out(carver *c, void *component)
{
    tensor_job *job = component;
    const size_t *shape = job->t->shape;
    size_t row = shape[0] * shape[2] * shape[3];
    job->storage = carve(c, job->threads * 2, job->keep * sizeof *job->storage);
    job->lines = carve(c, job->threads, shape[3] * sizeof *job->lines);
    job->low = carve(c, shape[1], sizeof *job->low);
    job->high = carve(c, shape[1], sizeof *job->high);
    job->finite = carve(c, shape[1], sizeof *job->finite);
    job->copy = job->o->heads == 0 ? carve(c, shape[1], row * sizeof *job->copy) : NULL;
}

/* line [channels] <- one token of one head. */
static void read_line(const tensor_job *job, size_t b, size_t head, size_t token, float *line)
{
    const ptrdiff_t *st = job->t->strides;
    ptrdiff_t at = (ptrdiff_t)b * st[0] + (ptrdiff_t)head * st[1] + (ptrdiff_t)token * st[2];
    for (size_t c = 0; c < job->t->shape[3]; c++, at += st[3]) {
        switch (job->dtype) {
        case TARE_F16:
            line[c] = fp16_to_float(((const uint16_t *)job->t->data)[at]);
            break;
        case TARE_BF16:
            line[c] = bf16_to_float(((const uint16_t *)job->t->data)[at]);
            break;
        case TARE_F64:
            line[c] = (float)((const double *)job->t->data)[at];
            break;
        default:
            assert(job->dtype == TARE_F32);
            line[c] = ((const float *)job->t->data)[at];
            break;
        }
    }
}

static void observe_head(void *user, size_t head, int thread)
{
    tensor_job *job = user;
    const size_t *shape = job->t->shape;
    float *own = job->lines + (size_t)thread * shape[3];
    fa_window w;
    fa_window_init(&w, job->keep, job->storage + (size_t)thread * 2 * job->keep);
    for (size_t b = 0; b < shape[0]; b++) {
        for (size_t token = 0; token < shape[2]; token++) {
            size_t row = b * shape[2] + token;
            float *line = job->copy ? job->copy + (row * shape[1] + head) * shape[3] : own;
            read_line(job, b, head, token, line);
            fa_window_add(&w, job->k, line, shape[3]);
        }
    }
    job->finite[head] = fa_window_end(&w, &job->low[head], &job->high[head]);
}

static tare_status check(const tare_fa_observer *o, const tare_fa_tensor *t, tare_dtype *dtype)
{
    size_t count = 1;
    bool known = dtype_from_name(t->dtype, strlen(t->dtype), dtype);
    if (!known || !(dtype_is_float(*dtype) || *dtype == TARE_F64))
        return TARE_FAIL(o->ctx, TARE_E_USAGE,
                         "%s: %s has the dtype %.20s; possible: F32, F16, "
                         "BF16, F64",
                         o->module, fa_kind_name(o->kind), t->dtype);
    for (int i = 0; i < 4; i++)
        if (!size_mul(count, t->shape[i], &count) || count == 0)
            return TARE_FAIL(o->ctx, TARE_E_DATA, "%s: a sample has no values for %s", o->module,
                             fa_kind_name(o->kind));
    if (o->heads && o->heads != t->shape[1])
        return TARE_FAIL(o->ctx, TARE_E_DATA, "%s: %s has %zu heads, and %zu in earlier samples",
                         o->module, fa_kind_name(o->kind), t->shape[1], o->heads);
    return TARE_OK;
}

/* The extremes of the job into the observer. */
static tare_status merge(tare_fa_observer *o, const tensor_job *job)
{
    size_t heads = job->t->shape[1];
    if (o->heads == 0) {
        o->low = mem_alloc_array(o->ctx, 2 * heads, sizeof *o->low);
        if (!o->low)
            return TARE_E_MEMORY;
        o->high = memcpy(o->low + heads, job->high, heads * sizeof *o->high);
        memcpy(o->low, job->low, heads * sizeof *o->low);
        o->heads = heads;
    }
    for (size_t h = 0; h < heads; h++) {
        o->low[h] = fminf(o->low[h], job->low[h]);
        o->high[h] = fmaxf(o->high[h], job->high[h]);
    }
    return TARE_OK;
}

tare_status tare_fa_observer_add(tare_fa_observer *o, const tare_fa_tensor *t)
{
    tare_status status = TARE_OK;
    tare_context *ctx = o->ctx;
    float score = o->score;
    tensor_job job = {
        .o = o, .t = t, .k = kernels_get(ctx), .threads = (size_t)parallel_threads(ctx)};
    TRY(check(o, t, &job.dtype));
    job.keep = fa_window_keep(fa_window_share(o->kind), t->shape[0] * t->shape[2] * t->shape[3]);
    TRY(carver_alloc(ctx, lay_out, &job));
    parallel_for(ctx, t->shape[1], observe_head, &job);
    for (size_t h = 0; h < t->shape[1]; h++) {
        if (!job.finite[h]) {
            status = TARE_FAIL(ctx, TARE_E_NUMERIC, "%s: head %zu of %s holds NaN or infinity",
                               o->module, h, fa_kind_name(o->kind));
            goto done;
        }
    }
    if (o->heads == 0) {
        size_t channels = t->shape[3];
        fa_input in = {job.copy, t->shape[1] * channels, channels};
        TRY(fa_score(ctx, &in, t->shape[1], t->shape[0] * t->shape[2], &score));
    }
    TRY(merge(o, &job));
    o->score = score;
done:
    mem_free(ctx, job.storage);
    return status;
}

size_t tare_fa_observer_heads(const tare_fa_observer *o)
{
    return o->heads;
}

float tare_fa_observer_score(const tare_fa_observer *o)
{
    return o->score;
}

tare_status tare_fa_observer_scales(const tare_fa_observer *o, const char *dtype, float *scales)
{
    tare_dtype d;
    if (!dtype_from_name(dtype, strlen(dtype), &d) || !dtype_is_float(d))
        return TARE_FAIL(o->ctx, TARE_E_USAGE, "%s: scales cannot have the dtype %.20s", o->module,
                         dtype);
    if (o->heads == 0)
        return TARE_FAIL(o->ctx, TARE_E_DATA, "%s: %s was never observed", o->module,
                         fa_kind_name(o->kind));
    return fa_scales(o->ctx, o->module, o->kind, o->low, o->high, o->heads, d, scales);
}

tare_status tare_fa_fall_back(tare_context *ctx, const char *const *modules, size_t count,
                              const float *scores, size_t fa_amp, bool *fallback)
{
    fa_module *m = mem_alloc_array(ctx, count, sizeof *m);
    if (!m && count > 0)
        return TARE_E_MEMORY;
    for (size_t i = 0; i < count; i++) {
        m[i] = (fa_module){.name = modules[i]};
        memcpy(m[i].scores, scores + i * FA_KINDS, sizeof m[i].scores);
    }
    tare_status status = fa_fall_back(ctx, m, count, fa_amp);
    for (size_t i = 0; i < count; i++)
        fallback[i] = m[i].fallback;
    mem_free(ctx, m);
    return status;
}
