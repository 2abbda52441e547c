/* Applying scales and shifts (1.4): vectors beside the weights, norms and biases in place. */
#include "base/parallel.h"
#include "quantize/smooth_internal.h"

typedef struct shift_job {
    const tare_context *ctx;
    const smooth_weight *w;
    const float *shift;
    float *rows; /* [threads,k] */
    float *out;  /* [n] W b */
} shift_job;

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

/* New biases of all targets, one after the other. */
static tare_status shifted_biases(tare_context *ctx, tare_dtype native, const smooth_group *g,
                                  const float *shift, float **out)
{
    size_t total = 0, at = 0;
    float *rows = mem_alloc_array(ctx, (size_t)parallel_threads(ctx) * g->channels, sizeof *rows);
    for (size_t i = 0; i < g->num_targets; i++)
        total += g->targets[i]->n;
    *out = mem_alloc_array(ctx, total, sizeof **out);
    if (!rows || !*out) {
        mem_free(ctx, rows);
        return TARE_E_MEMORY;
    }
    for (size_t i = 0; i < g->num_targets; i++) {
        const smooth_weight *w = g->targets[i];
        float *bias = *out + at;
        shift_job job = {ctx, w, shift, rows, bias};
        parallel_for(ctx, w->n, shifted_row, &job);
        for (size_t j = 0; j < w->n; j++) {
            bias[j] = round_native(bias[j], native);
            if (w->has_bias)
                bias[j] = round_native(w->bias[j] + bias[j], native);
        }
        at += w->n;
    }
    mem_free(ctx, rows);
    return TARE_OK;
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
    float *biases = NULL, *next;
    if (scales->shift) {
        tare_status status = shifted_biases(ctx, native, g, scales->shift, &biases);
        if (status != TARE_OK)
            return status;
    }
    if (g->norm)
        apply_to_norm(g->norm, native, scales, g->channels);
    else
        apply_to_source(g->source, native, &g->rows, scales->r);
    next = biases;
    for (size_t i = 0; i < g->num_targets; i++) {
        smooth_weight *w = g->targets[i];
        for (size_t j = 0; next && j < w->n; j++)
            w->bias[j] = *next++;
        w->has_bias = w->has_bias || biases;
        for (size_t c = 0; c < g->channels; c++)
            w->col_scale[c] *= scales->s[c];
        w->cols_scaled = true;
        w->round = native;
    }
    mem_free(ctx, biases);
    return TARE_OK;
}
