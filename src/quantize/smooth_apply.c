/* Applying scales and shifts (1.4): vectors beside the weights, norms and biases in place. */
#include "base/parallel.h"
#include "quantize/smooth_internal.h"

typedef struct shift_job {
    const tare_context *ctx;
    const smooth_group *g;
    const float *shift;
    size_t threads;
    float *biases;          /* new ones of all targets, one after the other */
    float *rows;            /* [threads,C] */
    const smooth_weight *w; /* the target in work */
    float *out;             /* [n] its W b */
} shift_job;

static void lay_out(carver *c, void *component)
{
    shift_job *job = component;
    size_t total = 0;
    for (size_t i = 0; i < job->g->num_targets; i++)
        total += job->g->targets[i]->n;
    job->biases = carve(c, total, sizeof *job->biases);
    job->rows = carve(c, job->threads, job->g->channels * sizeof *job->rows);
}

size_t smooth_apply_bytes(const tare_context *ctx, const smooth_group *g)
{
    return carver_bytes(lay_out, &(shift_job){.g = g, .threads = (size_t)parallel_threads(ctx)});
}

static void shifted_row(void *user, size_t row, int thread)
{
    const shift_job *job = user;
    float *w = job->rows + (size_t)thread * job->w->k;
    double sum = 0;
    smooth_weight_row(job->ctx, job->w, row, w);
    for (size_t j = 0; j < job->w->k; j++)
        sum += (double)w[j] * job->shift[j];
    job->out[row] = (float)sum;
}

static void shifted_biases(shift_job *job, tare_dtype native)
{
    job->out = job->biases;
    for (size_t i = 0; i < job->g->num_targets; i++) {
        const smooth_weight *w = job->w = job->g->targets[i];
        parallel_for(job->ctx, w->n, shifted_row, job);
        for (size_t j = 0; j < w->n; j++, job->out++) {
            *job->out = round_native(*job->out, native);
            if (w->has_bias)
                *job->out = round_native(w->bias[j] + *job->out, native);
        }
    }
}

static void apply_to_norm(smooth_norm *norm, tare_dtype native, const smooth_scales *scales,
                          size_t n)
{
    tare_dtype dtype = native != TARE_F32 ? native : norm->stored;
    for (size_t c = 0; c < n; c++) {
        float s = scales->s[c], w = norm->weight[c];
        if (s != 1)
            norm->weight[c] = round_native(norm->offset ? (1 + w) / s - 1 : w / s, dtype);
        if (!norm->bias)
            continue;
        float bias = norm->has_bias ? norm->bias[c] : 0;
        norm->bias[c] = (scales->shift ? bias - scales->shift[c] : bias) / s;
    }
    norm->has_bias = norm->has_bias || scales->shift;
}

static void apply_to_source(smooth_weight *w, tare_dtype native, const smooth_rows *rows,
                            const float *r)
{
    for (size_t i = 0; i < rows->heads * rows->width; i++) {
        size_t row = rows->first + i / rows->width * rows->stride + i % rows->width;
        w->row_scale[row] *= r[i];
        if (w->has_bias)
            w->bias[row] = round_native(w->bias[row] / r[i], native);
    }
    w->rows_first = !w->cols_scaled;
    w->rows_scaled = true;
    w->round = native;
}

tare_status smooth_apply(tare_context *ctx, const smooth_config *cfg, const smooth_group *g,
                         const smooth_scales *scales)
{
    tare_dtype native = smooth_native(cfg);
    shift_job job = {
        .ctx = ctx, .g = g, .shift = scales->shift, .threads = (size_t)parallel_threads(ctx)};
    if (scales->shift) {
        tare_status status = carver_alloc(ctx, lay_out, &job);
        if (status != TARE_OK)
            return status;
        shifted_biases(&job, native);
    }
    if (g->norm)
        apply_to_norm(g->norm, native, scales, g->channels);
    else
        apply_to_source(g->source, native, &g->rows, scales->r);
    const float *next = job.biases;
    for (size_t i = 0; i < g->num_targets; i++) {
        smooth_weight *w = g->targets[i];
        for (size_t j = 0; next && j < w->n; j++)
            w->bias[j] = *next++;
        w->has_bias = w->has_bias || job.biases;
        for (size_t c = 0; c < g->channels; c++)
            w->col_scale[c] *= scales->s[c];
        w->cols_scaled = true;
        w->round = native;
    }
    mem_free(ctx, job.biases);
    return TARE_OK;
}
