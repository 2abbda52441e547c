#include "quantize/fa3.h"

#include <math.h>
#include <string.h>

#include "base/carver.h"
#include "base/parallel.h"
#include "quantize/magnitudes.h"
#include "tensor/round.h"

static const double RATIOS[FA_KINDS] = {[FA_Q] = 0.9999, [FA_K] = 0.9999, [FA_V] = 1.0};

const char *fa_kind_name(fa_kind kind)
{
    static const char *const NAMES[FA_KINDS] = {"fa_q", "fa_k", "fa_v"};
    return NAMES[kind];
}

/* ---- window ---- */

double fa_window_share(fa_kind kind)
{
    return RATIOS[kind];
}

size_t fa_window_keep(double rho, size_t count)
{
    size_t m = (size_t)(rho * (double)count);
    m = m == 0 ? 1 : m > count ? count : m;
    return count - m + 1;
}

void fa_window_init(fa_window *w, size_t keep, float *storage)
{
    *w = (fa_window){.keep = keep, .low = storage, .high = storage + keep, .finite = true};
}

/* h[0,size) is a max-heap but for its root. */
static void sift_down(float *h, size_t size)
{
    size_t i = 0, child;
    float x = h[0];
    while ((child = 2 * i + 1) < size) {
        if (child + 1 < size && h[child + 1] > h[child])
            child++;
        if (!(h[child] > x))
            break;
        h[i] = h[child];
        i = child;
    }
    h[i] = x;
}

/* h[0,size) is a max-heap but for its last element. */
static void sift_up(float *h, size_t size)
{
    size_t i = size - 1;
    float x = h[i];
    for (; i > 0 && x > h[(i - 1) / 2]; i = (i - 1) / 2)
        h[i] = h[(i - 1) / 2];
    h[i] = x;
}

static void offer(float *h, size_t size, float x)
{
    if (x < h[0]) {
        h[0] = x;
        sift_down(h, size);
    }
}

void fa_window_add(fa_window *w, const kernels *k, const float *x, size_t n)
{
    float min, max;
    if (n == 0)
        return;
    k->min_max(x, n, &min, &max, &w->finite);
    if (!w->finite)
        return;
    size_t i = 0;
    for (; i < n && w->count < w->keep; i++) {
        w->low[w->count] = x[i];
        w->high[w->count++] = -x[i];
        sift_up(w->low, w->count);
        sift_up(w->high, w->count);
    }
    /* Nearly every piece of a long row ends here. */
    if (i == n || (min >= w->low[0] && max <= -w->high[0]))
        return;
    for (; i < n; i++) {
        offer(w->low, w->keep, x[i]);
        offer(w->high, w->keep, -x[i]);
    }
}

static void heap_sort(float *h, size_t size)
{
    while (size > 1) {
        float last = h[0];
        h[0] = h[--size];
        h[size] = last;
        sift_down(h, size);
    }
}

bool fa_window_end(fa_window *w, float *low, float *high)
{
    size_t best = 0;
    double best_width = 0;
    if (!w->finite)
        return false;
    heap_sort(w->low, w->keep);
    heap_sort(w->high, w->keep);
    for (size_t i = 0; i < w->keep; i++) {
        double width = (double)-w->high[w->keep - 1 - i] - (double)w->low[i];
        if (i == 0 || width < best_width) {
            best_width = width;
            best = i;
        }
    }
    *low = w->low[best];
    *high = -w->high[w->keep - 1 - best];
    return true;
}

/* ---- module ---- */

struct fa_observer {
    struct fa_observer *self;
    tare_context *ctx;
    char *module; /* [name_size] */
    size_t name_size, heads[FA_KINDS], total_heads;
    fa_v_method v_method;
    float *low, *high;  /* [total_heads]: q's, k's, v's */
    magnitudes *values; /* [heads of v] for FA_V_MSE */
    size_t samples;
    float scores[FA_KINDS];
};

static void lay_out(carver *c, void *component)
{
    fa_observer *o = component;
    o->self = carve(c, 1, sizeof *o);
    o->module = carve(c, o->name_size, 1);
    o->low = carve(c, o->total_heads, sizeof *o->low);
    o->high = carve(c, o->total_heads, sizeof *o->high);
    if (o->v_method == FA_V_MSE)
        o->values = carve(c, o->heads[FA_V], sizeof *o->values);
}

static fa_observer sized_observer(const size_t heads[FA_KINDS], size_t name_size,
                                  fa_v_method v_method)
{
    return (fa_observer){.name_size = name_size,
                         .v_method = v_method,
                         .heads = {heads[FA_Q], heads[FA_K], heads[FA_V]},
                         .total_heads = heads[FA_Q] + heads[FA_K] + heads[FA_V]};
}

tare_status fa_observer_create(tare_context *ctx, const char *module, const size_t heads[FA_KINDS],
                               fa_v_method v_method, fa_observer **out)
{
    fa_observer o = sized_observer(heads, strlen(module) + 1, v_method);
    tare_status status = carver_alloc(ctx, lay_out, &o);
    *out = o.self;
    if (status != TARE_OK)
        return status;
    o.ctx = ctx;
    memcpy(o.module, module, o.name_size);
    for (size_t h = 0; o.values && h < heads[FA_V]; h++)
        magnitudes_clear(&o.values[h]);
    **out = o;
    return TARE_OK;
}

void fa_observer_free(fa_observer *o)
{
    if (o)
        mem_free(o->ctx, o);
}

/* A head of a sample, whatever the tensor. */
typedef struct head_row {
    fa_kind kind;
    size_t head, tokens;
    const float *x; /* of its first token */
    size_t row_stride, head_dim;
} head_row;

/* The rows of one call of fa_observe: sample by sample, in each the heads of q, k and v. */
typedef struct row_job {
    const fa_observer *o;
    const kernels *k;
    const fa_input *in;
    const size_t *lengths;
    size_t samples, threads;
    size_t most_kept;  /* of any row */
    size_t *starts;    /* [samples] first token of each */
    float *storage;    /* [threads, 2*most_kept] */
    float *low, *high; /* [samples, total_heads] */
    bool *finite;
} row_job;

static void lay_out_rows(carver *c, void *component)
{
    row_job *job = component;
    size_t heads = job->o->total_heads;
    job->starts = carve(c, job->samples, sizeof *job->starts);
    job->low = carve(c, job->samples, heads * sizeof *job->low);
    job->high = carve(c, job->samples, heads * sizeof *job->high);
    job->finite = carve(c, job->samples, heads * sizeof *job->finite);
    job->storage = carve(c, job->threads * 2, job->most_kept * sizeof *job->storage);
}

static head_row row_of(const row_job *job, size_t index)
{
    size_t sample = index / job->o->total_heads, head = index % job->o->total_heads;
    int kind = 0;
    while (head >= job->o->heads[kind])
        head -= job->o->heads[kind++];
    const fa_input *in = &job->in[kind];
    return (head_row){.kind = (fa_kind)kind,
                      .head = head,
                      .tokens = job->lengths[sample],
                      .x = in->x + job->starts[sample] * in->row_stride + head * in->head_dim,
                      .row_stride = in->row_stride,
                      .head_dim = in->head_dim};
}

static void observe_row(void *user, size_t index, int thread)
{
    const row_job *job = user;
    head_row r = row_of(job, index);
    fa_window w;
    fa_window_init(&w, fa_window_keep(RATIOS[r.kind], r.tokens * r.head_dim),
                   job->storage + (size_t)thread * 2 * job->most_kept);
    for (size_t t = 0; t < r.tokens && w.finite; t++)
        fa_window_add(&w, job->k, r.x + t * r.row_stride, r.head_dim);
    job->finite[index] = fa_window_end(&w, &job->low[index], &job->high[index]);
}

static tare_status fail_not_finite(const row_job *job, size_t index, size_t sample)
{
    head_row r = row_of(job, index);
    float found = 0;
    for (size_t t = 0; t < r.tokens && isfinite(found); t++)
        for (size_t d = 0; d < r.head_dim && isfinite(found); d++)
            found = r.x[t * r.row_stride + d];
    return TARE_FAIL(job->o->ctx, TARE_E_NUMERIC, "%s: head %zu of %s is %s in sample %zu",
                     job->o->module, r.head, fa_kind_name(r.kind),
                     isnan(found) ? "NaN" : "infinite", sample);
}

static void merge_rows(fa_observer *o, const row_job *job)
{
    for (size_t s = 0; s < job->samples; s++) {
        const float *low = job->low + s * o->total_heads, *high = job->high + s * o->total_heads;
        for (size_t h = 0; h < o->total_heads; h++) {
            o->low[h] = o->samples ? fminf(o->low[h], low[h]) : low[h];
            o->high[h] = o->samples ? fmaxf(o->high[h], high[h]) : high[h];
        }
        o->samples++;
    }
}

/* How much of a row the heaps must hold. */
static tare_status measure(row_job *job, size_t first)
{
    size_t row;
    job->most_kept = 1;
    for (size_t s = 0; s < job->samples; s++) {
        for (int kind = 0; kind < FA_KINDS; kind++) {
            if (!size_mul(job->lengths[s], job->in[kind].head_dim, &row) || row == 0)
                return TARE_FAIL(job->o->ctx, TARE_E_DATA, "%s: sample %zu has no values for %s",
                                 job->o->module, first + s, fa_kind_name((fa_kind)kind));
            job->most_kept = size_max(job->most_kept, fa_window_keep(RATIOS[kind], row));
        }
    }
    return TARE_OK;
}

/* One head of v, in all samples. */
static void count_values(void *user, size_t head, int thread)
{
    const row_job *job = user;
    const fa_input *in = &job->in[FA_V];
    size_t tokens = 0;
    (void)thread;
    for (size_t s = 0; s < job->samples; s++)
        tokens += job->lengths[s];
    for (size_t t = 0; t < tokens; t++)
        magnitudes_add(&job->o->values[head], in->x + t * in->row_stride + head * in->head_dim,
                       in->head_dim);
}

static tare_status observe_rows(fa_observer *o, size_t first, row_job *job)
{
    tare_status status = TARE_OK;
    float scores[FA_KINDS];
    size_t rows = job->samples * o->total_heads, token = 0;
    for (size_t s = 0; s < job->samples; token += job->lengths[s++])
        job->starts[s] = token;
    parallel_for(o->ctx, rows, observe_row, job);
    for (size_t i = 0; i < rows; i++)
        if (!job->finite[i])
            return fail_not_finite(job, i, first + i / o->total_heads);
    for (int kind = 0; kind < FA_KINDS && o->samples == 0; kind++)
        TRY(fa_score(o->ctx, &job->in[kind], o->heads[kind], job->lengths[0], &scores[kind]));
    if (o->samples == 0)
        memcpy(o->scores, scores, sizeof scores);
    merge_rows(o, job);
    if (o->values)
        parallel_for(o->ctx, o->heads[FA_V], count_values, job);
done:
    return status;
}

tare_status fa_observe(fa_observer *o, size_t first, const size_t *lengths, size_t samples,
                       const fa_input in[FA_KINDS])
{
    tare_status status = TARE_OK;
    row_job job = {.o = o,
                   .k = kernels_get(o->ctx),
                   .in = in,
                   .lengths = lengths,
                   .samples = samples,
                   .threads = (size_t)parallel_threads(o->ctx)};
    if (samples == 0)
        return TARE_OK;
    TRY(measure(&job, first));
    TRY(carver_alloc(o->ctx, lay_out_rows, &job));
    TRY(observe_rows(o, first, &job));
done:
    mem_free(o->ctx, job.starts);
    return status;
}

enum { MODULE_NAME = 256 };

size_t fa_observer_bytes(const size_t heads[FA_KINDS], fa_v_method v_method)
{
    fa_observer o = sized_observer(heads, MODULE_NAME, v_method);
    return carver_bytes(lay_out, &o);
}

size_t fa_observe_bytes(const tare_context *ctx, const size_t heads[FA_KINDS], size_t head_dim,
                        size_t samples, size_t longest)
{
    fa_observer o = sized_observer(heads, MODULE_NAME, FA_V_MAX);
    row_job job = {.o = &o, .samples = samples, .threads = (size_t)parallel_threads(ctx)};
    for (int kind = 0; kind < FA_KINDS; kind++) /* a shorter row may keep one more */
        job.most_kept = size_max(job.most_kept,
                                 fa_window_keep(RATIOS[kind], longest * head_dim) + 1);
    return carver_bytes(lay_out_rows, &job) +
           fa_score_bytes(ctx, size_max(heads[FA_Q], heads[FA_K]));
}

static float scale_of(float low, float high, tare_dtype dtype)
{
    float reach = fmaxf(fmaxf(0.0f, -low), fmaxf(0.0f, high));
    return round_native(fmaxf(reach / 127.0f, ROUND_EPS), dtype);
}

tare_status fa_scales(tare_context *ctx, const char *module, fa_kind kind, const float *low,
                      const float *high, size_t heads, tare_dtype dtype, float *scales)
{
    for (size_t h = 0; h < heads; h++) {
        scales[h] = scale_of(low[h], high[h], dtype);
        if (!isfinite(scales[h]))
            return TARE_FAIL(
                ctx, TARE_E_NUMERIC,
                "%s: head %zu of %s reaches from %g to %g, whose scale does not fit %s", module, h,
                fa_kind_name(kind), (double)low[h], (double)high[h], dtype_name(dtype));
    }
    return TARE_OK;
}

/* The best of the fractions of a head's largest value; each scale as it will be written. */
static float least_error_scale(const magnitudes *m, float reach, tare_dtype dtype)
{
    enum { FRACTIONS = 11 };
    float best = 0;
    double least = INFINITY;
    for (int i = 0; i < FRACTIONS; i++) {
        float scale = scale_of(0, (float)((1 - 0.05 * i) * (double)reach), dtype);
        double error = magnitudes_error(m, (double)scale);
        if (error < least) {
            least = error;
            best = scale;
        }
    }
    return best;
}

tare_status fa_observer_scales(const fa_observer *o, const numerics *num, fa_kind kind,
                               float *scales)
{
    size_t first = 0;
    for (int i = 0; i < (int)kind; i++)
        first += o->heads[i];
    if (o->samples == 0)
        return TARE_FAIL(o->ctx, TARE_E_NUMERIC, "%s: %s was never observed", o->module,
                         fa_kind_name(kind));
    const float *low = o->low + first, *high = o->high + first;
    tare_status status = fa_scales(o->ctx, o->module, kind, low, high, o->heads[kind], num->dtype,
                                   scales);
    for (size_t h = 0; status == TARE_OK && kind == FA_V && o->values && h < o->heads[FA_V]; h++)
        scales[h] = least_error_scale(&o->values[h], fmaxf(-low[h], high[h]), num->dtype);
    return status;
}

const float *fa_observer_scores(const fa_observer *o)
{
    return o->samples ? o->scores : NULL;
}
