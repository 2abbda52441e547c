/* Observers: what every update tells, the mean of extremes, and dispatch by kind. */
#include "quantize/observer.h"

#include <assert.h>
#include <math.h>

#include "base/carver.h"
#include "base/parallel.h"
#include "quantize/histogram.h"
#include "tensor/kernels.h"
#include "tensor/round.h"

enum { PIECE = 1u << 18 }; /* elements of one piece of parallel work */

typedef struct extremes {
    double min_sum, max_sum;
    /* compat: the single values, whose mean depends on the order of additions. */
    float *mins, *maxs;
    size_t min_capacity, max_capacity;
} extremes;

struct observer {
    observer_kind kind;
    numerics num;
    size_t calls;
    float min, max; /* of all updates */
    extremes mean;
    union {
        histogram exact;
        histogram_compat compat;
    } u;
};

tare_status observer_create(tare_context *ctx, observer_kind kind, const numerics *num,
                            observer **out)
{
    *out = mem_calloc(ctx, 1, sizeof **out);
    if (!*out)
        return TARE_E_MEMORY;
    (*out)->kind = kind;
    (*out)->num = *num;
    return TARE_OK;
}

void observer_free(tare_context *ctx, observer *o)
{
    if (!o)
        return;
    mem_free(ctx, o->mean.mins);
    mem_free(ctx, o->mean.maxs);
    mem_free(ctx, o);
}

typedef struct part_extremes {
    float min, max;
    bool seen, finite;
} part_extremes;

typedef struct extremes_job {
    const kernels *kern;
    const float *x;
    size_t count, threads;
    part_extremes *parts; /* [threads] */
} extremes_job;

static void lay_out(carver *c, void *component)
{
    extremes_job *job = component;
    job->parts = carve(c, job->threads, sizeof *job->parts);
}

static void extremes_piece(void *user, size_t index, int thread)
{
    const extremes_job *job = user;
    part_extremes *p = &job->parts[thread];
    size_t begin = index * PIECE, left = job->count - begin;
    float min, max;
    job->kern->min_max(job->x + begin, left < PIECE ? left : PIECE, &min, &max, &p->finite);
    p->min = p->seen ? fminf(p->min, min) : min;
    p->max = p->seen ? fmaxf(p->max, max) : max;
    p->seen = true;
}

static tare_status fail_not_finite(tare_context *ctx, const float *x, size_t count)
{
    size_t i = 0;
    while (i + 1 < count && isfinite(x[i]))
        i++;
    return TARE_FAIL(ctx, TARE_E_NUMERIC, "the activation at element %zu is %s", i,
                     isnan(x[i]) ? "NaN" : "infinite");
}

static tare_status find_extremes(tare_context *ctx, const float *x, size_t count, float *min,
                                 float *max)
{
    size_t pieces = size_divide_up(count, PIECE), threads = (size_t)parallel_threads(ctx);
    part_extremes own = {.finite = true};
    extremes_job job = {kernels_get(ctx), x, count, threads, &own};
    if (pieces > 1 && threads > 1) {
        tare_status status = carver_alloc(ctx, lay_out, &job);
        if (status != TARE_OK)
            return status;
        for (size_t t = 0; t < threads; t++)
            job.parts[t] = own;
        parallel_for(ctx, pieces, extremes_piece, &job);
        for (size_t t = 0; t < threads; t++) {
            const part_extremes *p = &job.parts[t];
            if (!p->seen)
                continue;
            own.min = own.seen ? fminf(own.min, p->min) : p->min;
            own.max = own.seen ? fmaxf(own.max, p->max) : p->max;
            own.finite = own.finite && p->finite;
            own.seen = true;
        }
        mem_free(ctx, job.parts);
    } else {
        for (size_t i = 0; i < pieces; i++)
            extremes_piece(&job, i, 0);
    }
    *min = own.min;
    *max = own.max;
    return own.finite ? TARE_OK : fail_not_finite(ctx, x, count);
}

static tare_status extremes_update(tare_context *ctx, observer *o, float min, float max)
{
    tare_status status = TARE_OK;
    extremes *e = &o->mean;
    size_t size = sizeof(float);
    if (o->num.compat) {
        TRY(mem_grow(ctx, (void **)&e->mins, &e->min_capacity, o->calls + 1, size));
        TRY(mem_grow(ctx, (void **)&e->maxs, &e->max_capacity, o->calls + 1, size));
        e->mins[o->calls] = min;
        e->maxs[o->calls] = max;
    }
    e->min_sum += min;
    e->max_sum += max;
done:
    return status;
}

tare_status observer_update(tare_context *ctx, observer *o, const float *x, size_t count)
{
    tare_status status = TARE_OK;
    float min, max;
    if (count == 0)
        return TARE_OK;
    TRY(find_extremes(ctx, x, count, &min, &max));
    TRY(extremes_update(ctx, o, min, max));
    if (o->num.compat)
        TRY(histogram_compat_update(ctx, &o->u.compat, x, count, min, max));
    else
        TRY(histogram_update(ctx, &o->u.exact, x, count, min, max));
    o->min = o->calls ? fminf(o->min, min) : min;
    o->max = o->calls ? fmaxf(o->max, max) : max;
    o->calls++;
done:
    return status;
}

static double mean_compat(const float *x, size_t n, tare_dtype dtype)
{
    return round_native(torch_sum(x, n) / (float)n, dtype);
}

static void range_of(const observer *o, observer_kind kind, double *lo, double *hi)
{
    if (kind == OBSERVER_MSE) {
        assert(!o->num.compat);
        histogram_mse_range(&o->u.exact, &o->num, (double)o->min, (double)o->max, lo, hi);
    } else if (kind == OBSERVER_HISTOGRAM && o->num.compat) {
        histogram_compat_range(&o->u.compat, lo, hi);
    } else if (kind == OBSERVER_HISTOGRAM) {
        histogram_range(&o->u.exact, lo, hi);
    } else if (o->num.compat) {
        *lo = mean_compat(o->mean.mins, o->calls, o->num.dtype);
        *hi = mean_compat(o->mean.maxs, o->calls, o->num.dtype);
    } else {
        *lo = o->mean.min_sum / (double)o->calls;
        *hi = o->mean.max_sum / (double)o->calls;
    }
}

tare_status observer_range(tare_context *ctx, const observer *o, double *lo, double *hi)
{
    if (o->calls == 0)
        return TARE_FAIL(ctx, TARE_E_NUMERIC, "no activation was observed");
    range_of(o, o->kind, lo, hi);
    return TARE_OK;
}

bool observer_ranges(const observer *o, input_ranges *out)
{
    if (o->calls == 0)
        return false;
    *out = (input_ranges){0};
    int last = o->num.compat ? OBSERVER_HISTOGRAM : OBSERVER_MSE;
    for (int kind = OBSERVER_MEAN_EXTREMES; kind <= last; kind++)
        range_of(o, (observer_kind)kind, &out->low[kind], &out->high[kind]);
    out->low[RANGE_EXTREMES] = (double)o->min;
    out->high[RANGE_EXTREMES] = (double)o->max;
    return true;
}

tare_status observer_params(tare_context *ctx, const observer *o, act_params *out)
{
    tare_status status = TARE_OK;
    double lo, hi;
    TRY(observer_range(ctx, o, &lo, &hi));
    TRY(act_params_from_range(ctx, &o->num, lo, hi, o->kind == OBSERVER_HISTOGRAM, out));
done:
    return status;
}

/* The lists of compat double, and the old one is there while the new one is filled. */
size_t observer_bytes(size_t samples)
{
    return mem_block_bytes(sizeof(observer)) + 6 * mem_array_bytes(samples + 16, sizeof(float));
}

size_t observer_update_bytes(const tare_context *ctx)
{
    extremes_job job = {.threads = (size_t)parallel_threads(ctx)};
    return size_max(carver_bytes(lay_out, &job), histogram_count_bytes(ctx));
}

bool observer_reached(const observer *o)
{
    return o->calls > 0;
}
