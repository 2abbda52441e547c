/* What smoothing makes of a block's norms, and of the weights that stay float. (Those that are
 * quantized are smoothed row by row on the way.) */
#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "base/parallel.h"
#include "pipeline/smoothing.h"
#include "tensor/convert.h"
#include "tensor/kernels.h"
#include "tensor/round.h"

tare_status smoothing_norms(run *r, const segment_work *work, block_norms *norms)
{
    const model_block *block = work->block;
    if (!r->smoothing)
        return TARE_OK;
    for (size_t norm = 0; norm < block->graph->num_norms; norm++) {
        const smooth_norm *n = &r->smoothing[block->index].norms[norm];
        size_t size = block->graph->norms[norm].size;
        if (!n->weight || !norms->weights[norm])
            continue;
        /* As it is stored, so that calibration sees what an engine will compute. */
        for (size_t i = 0; i < size; i++)
            norms->weights[norm][i] = round_to_dtype((double)n->weight[i], n->stored);
        if (!n->bias)
            continue;
        if (!(norms->biases[norm] = mem_alloc_array(r->ctx, size, sizeof(float))))
            return TARE_E_MEMORY;
        memcpy(norms->biases[norm], n->bias, size * sizeof(float));
    }
    return TARE_OK;
}

typedef struct store_job {
    run *run;
    const smooth_weight *weight;
    float *rows; /* [threads,k] */
    tare_dtype dtype;
    char *stored; /* [n,k]; may be where they come from */
    atomic_bool fits;
} store_job;

static void store_row(void *user, size_t row, int thread)
{
    store_job *job = user;
    size_t k = job->weight->k;
    float *x = job->rows + (size_t)thread * k, max;
    bool finite = true;
    smooth_weight_row(job->run->ctx, job->weight, row, x);
    kernels_get(job->run->ctx)->abs_max(x, k, &max, &finite);
    if (!finite || !isfinite(round_native(max, job->dtype)))
        atomic_store(&job->fits, false);
    narrow_from_float(job->run->ctx, job->dtype, x, k,
                      job->stored + row * k * dtype_size(job->dtype));
}

tare_status smoothing_store_rows(run *r, const smooth_weight *w, tare_dtype dtype, void *to)
{
    store_job job = {.run = r, .weight = w, .dtype = dtype, .stored = to};
    job.rows = mem_alloc_array(r->ctx, (size_t)parallel_threads(r->ctx) * w->k, sizeof *job.rows);
    if (!job.rows)
        return TARE_E_MEMORY;
    atomic_init(&job.fits, true);
    parallel_for(r->ctx, w->n, store_row, &job);
    mem_free(r->ctx, job.rows);
    return atomic_load(&job.fits)
               ? TARE_OK
               : TARE_FAIL(r->ctx, TARE_E_NUMERIC, "%s: the smoothed weight does not fit %s",
                           w->name, dtype_name(dtype));
}

tare_status smoothing_store(run *r, const model_linear *l, coded_rows *raw)
{
    tare_dtype dtype = output_weight(r->env, &l->weight).dtype;
    /* A row is read as a whole before it is written. */
    bool in_place = coded_in_place(raw, dtype, 0, 0) != NULL;
    void *to = in_place ? raw->data : mem_alloc_array(r->ctx, l->n * l->k, dtype_size(dtype));
    if (!to)
        return TARE_E_MEMORY;
    tare_status status = smoothing_store_rows(r, smoothing_of(r, l), dtype, to);
    if (status != TARE_OK) {
        if (!in_place)
            mem_free(r->ctx, to);
        return status;
    }
    void *room = in_place ? raw->room : NULL;
    if (!in_place)
        coded_free(r->ctx, raw);
    *raw = coded_plain(dtype, to, l->k);
    raw->room = room;
    return TARE_OK;
}

/* The weight, in both forms where they differ, and a row a thread. */
size_t smoothing_store_bytes(const run_plan *plan, const model_linear *l)
{
    bool in_place = output_weight(plan->env, &l->weight).dtype == l->weight.tensor->dtype;
    size_t stored = in_place ? 0 : output_weight_bytes(plan->env, &l->weight);
    return linear_raw_bytes(l) + stored +
           mem_array_bytes((size_t)parallel_threads(plan->env->ctx) * l->k, sizeof(float));
}
