/* One candidate of m6 over a tile of weights.
 *
 * Xq Wq^T = d * d_row * (sum u*qw - (z+128) * sum qw) with u = qx + 128 is exact in integers (u8 x
 * s8 -> s32), where the reference sums FP32 products of dequantized values: the integers agree with
 * what those sums would be without their rounding. A quantized input outside 0..255 (256 by
 * rounding, anything when the range of X/p is far from 0) does not fit u8: its row is computed in
 * double. */
#include "base/parallel.h"
#include "quantize/smooth_m6.h"
#include "tensor/gemm.h"
#include "tensor/kernels.h"

typedef struct tile_job {
    m6_search *m;
    const kernels *kernels;
    size_t first, end; /* panels */
    size_t row;        /* of the inputs' block */
    size_t rows;
    m6_range range;
    size_t columns; /* rows of weights in the tile: width of acc */
} tile_job;

/* Rows of weights before a panel of the tile. */
static size_t panel_start(const tile_job *job, size_t panel)
{
    size_t start = 0;
    for (size_t i = job->first; i < panel; i++)
        start += job->m->panels[i].count;
    return start;
}

/* ---- weights ---- */

/* Symmetric int8 of one row of W*p; all zeros stay zeros. */
static void quantize_weight_row(void *user, size_t index, int thread)
{
    const tile_job *job = user;
    m6_search *m = job->m;
    size_t n = m->t->g->channels, panel = job->first, row = index;
    float *w = m->scaled + (size_t)thread * n, max = 0;
    bool finite = true;
    while (row >= m->panels[panel].count)
        row -= m->panels[panel++].count;
    smooth_weight_row(m->t->ctx, m->panels[panel].w, m->panels[panel].first + row, w);
    for (size_t c = 0; c < n; c++)
        w[c] *= m->p[c];
    job->kernels->abs_max(w, n, &max, &finite);
    /* An overflow makes the step infinite, the error NaN and the candidate lose. */
    m->steps[index] = finite ? max / 127 : INFINITY;
    float step = m->steps[index] > 0 && finite ? m->steps[index] : 1;
    m->row_sums[index] = job->kernels->quantize_symmetric(w, n, step, 127, m->q + index * n);
}

/* ---- inputs ---- */

static void quantize_input_row(void *user, size_t row, int thread)
{
    (void)thread;
    const tile_job *job = user;
    const m6_search *m = job->m;
    size_t n = m->t->g->channels;
    float *x = m->x + row * n;
    for (size_t c = 0; c < n; c++)
        x[c] /= m->p[c];
    job->kernels->quantize_asymmetric(x, n, job->range.d, job->range.z, m->u + row * n);
}

static bool row_is_wide(const tile_job *job, size_t row)
{
    const float *z = job->m->x + row * job->m->t->g->channels;
    for (size_t c = 0; c < job->m->t->g->channels; c++) {
        float q = rintf(z[c] / job->range.d + job->range.z);
        if (q > 127 || q < -128)
            return true;
    }
    return false;
}

/* ---- errors ---- */

static double wide_row(const tile_job *job, size_t row, const m6_panel *p, size_t start,
                       const float *reference)
{
    const m6_search *m = job->m;
    size_t n = m->t->g->channels;
    const float *z = m->x + row * n;
    double sum = 0;
    for (size_t j = 0; j < p->count; j++) {
        const int8_t *q = m->q + (start + j) * n;
        double dot = 0;
        for (size_t c = 0; c < n; c++) {
            float x = rintf(z[c] / job->range.d + job->range.z) - job->range.z;
            dot += (double)x * q[c];
        }
        double d = dot * job->range.d * m->steps[start + j] - reference[j];
        sum += d * d;
    }
    return sum;
}

static double exact_row(const tile_job *job, size_t row, const m6_panel *p, size_t start,
                        const float *reference)
{
    const m6_search *m = job->m;
    const int32_t *acc = m->acc + row * job->columns + start;
    double zero = (double)job->range.z + 128, step = job->range.d, sum = 0;
    for (size_t j = 0; j < p->count; j++) {
        double y = (acc[j] - zero * (double)m->row_sums[start + j]) * (step * m->steps[start + j]);
        double d = y - reference[j];
        sum += d * d;
    }
    return sum;
}

/* M6_CELL_ROWS rows of inputs against one panel. */
static void error_cell(void *user, size_t index, int thread)
{
    (void)thread;
    const tile_job *job = user;
    m6_search *m = job->m;
    size_t slot = index / M6_CELLS, row = index % M6_CELLS * M6_CELL_ROWS;
    size_t end = row + M6_CELL_ROWS < job->rows ? row + M6_CELL_ROWS : job->rows;
    const m6_panel *p = &m->panels[job->first + slot];
    size_t start = panel_start(job, job->first + slot);
    const float *reference = m->reference + slot * m->t->stats->rows * SMOOTH_BLOCK;
    double sum = 0;
    for (; row < end; row++) {
        const float *y = reference + (job->row + row) * p->count;
        sum += job->range.wide && row_is_wide(job, row) ? wide_row(job, row, p, start, y)
                                                        : exact_row(job, row, p, start, y);
    }
    m->cells[index] = sum;
}

static tare_status evaluate_block(tile_job *job, m6_candidate *c)
{
    m6_search *m = job->m;
    const smooth_task *t = m->t;
    tare_status status = t->inputs->read(t->inputs->user, job->row, job->rows, m->x);
    if (status != TARE_OK)
        return status;
    parallel_for(t->ctx, job->rows, quantize_input_row, job);
    status = gemm_u8s8(t->ctx, m->u, m->q, job->rows, job->columns, t->g->channels, m->acc);
    if (status != TARE_OK)
        return status;
    size_t cells = (job->end - job->first) * M6_CELLS;
    parallel_for(t->ctx, cells, error_cell, job);
    for (size_t i = 0; i < cells; i++)
        c->squares[job->first + i / M6_CELLS] += m->cells[i];
    double sum = 0;
    for (size_t i = 0; i < m->num_panels; i++)
        sum += c->squares[i];
    c->stopped = sum > m->best_squares;
    return TARE_OK;
}

tare_status m6_evaluate_integer(m6_search *m, size_t first, size_t end, m6_candidate *c)
{
    tare_status status = TARE_OK;
    const smooth_task *t = m->t;
    tile_job job = {.m = m,
                    .kernels = kernels_get(t->ctx),
                    .first = first,
                    .end = end,
                    .range = m6_input_range(m)};
    job.columns = panel_start(&job, end);
    parallel_for(t->ctx, job.columns, quantize_weight_row, &job);
    for (job.row = 0; job.row < t->stats->rows && !c->stopped; job.row += SMOOTH_BLOCK) {
        size_t rest = t->stats->rows - job.row;
        job.rows = rest < SMOOTH_BLOCK ? rest : SMOOTH_BLOCK;
        TRY(evaluate_block(&job, c));
    }
done:
    return status;
}

/* ---- native dtype: every operation rounded, one FP32 sum rounded once ---- */

static void native_weight_row(void *user, size_t row, int thread)
{
    (void)thread;
    const m6_search *m = user;
    size_t n = m->t->g->channels;
    tare_dtype native = m->t->native;
    float *w = m->w + row * n, max = 0;
    for (size_t c = 0; c < n; c++) {
        w[c] = round_native(w[c] * m->p[c], native);
        max = fmaxf(max, fabsf(w[c]));
    }
    float d = round_native(max / 127, native);
    for (size_t c = 0; d > 0 && c < n; c++) {
        float q = rintf(round_native(w[c] / d, native));
        q = q < -127 ? -127 : q > 127 ? 127 : q;
        w[c] = round_native(q * d, native);
    }
}

static void native_input_row(void *user, size_t row, int thread)
{
    (void)thread;
    const tile_job *job = user;
    const m6_search *m = job->m;
    size_t n = m->t->g->channels;
    tare_dtype native = m->t->native;
    float *x = m->x + row * n, d = job->range.d, z = job->range.z;
    for (size_t c = 0; c < n; c++) {
        float q = round_native(round_native(x[c] / m->p[c], native) / d, native);
        q = rintf(round_native(q + z, native));
        x[c] = round_native(round_native(q - z, native) * d, native);
    }
}

static void native_cell(void *user, size_t index, int thread)
{
    (void)thread;
    const tile_job *job = user;
    m6_search *m = job->m;
    tare_dtype native = m->t->native;
    const m6_panel *p = &m->panels[job->first];
    const float *reference = m->reference + job->row * p->count;
    size_t row = index * M6_CELL_ROWS;
    size_t end = row + M6_CELL_ROWS < job->rows ? row + M6_CELL_ROWS : job->rows;
    double sum = 0;
    for (size_t i = row * p->count; i < end * p->count; i++) {
        float y = round_native(m->product[i], native), ref = round_native(reference[i], native);
        float d = round_native(y - ref, native);
        sum += round_native(d * d, native);
    }
    m->cells[index] = sum;
}

static tare_status native_panel(m6_search *m, size_t panel, size_t slot, m6_candidate *c)
{
    tare_status status = TARE_OK;
    const smooth_task *t = m->t;
    const m6_panel *p = &m->panels[panel];
    gemm_weight *packed = NULL;
    float *reference = m->reference;
    tile_job job = {.m = m, .first = panel, .end = panel + 1, .range = m6_input_range(m)};
    smooth_weight_rows(t->ctx, p->w, p->first, p->count, m->w);
    parallel_for(t->ctx, p->count, native_weight_row, m);
    TRY(gemm_weight_create(t->ctx, GEMM_FP32, TARE_F32, m->w, p->count, t->g->channels, &packed));
    m->reference = reference + slot * t->stats->rows * SMOOTH_BLOCK;
    for (; job.row < t->stats->rows; job.row += SMOOTH_BLOCK) {
        size_t rest = t->stats->rows - job.row;
        job.rows = rest < SMOOTH_BLOCK ? rest : SMOOTH_BLOCK;
        TRY(t->inputs->read(t->inputs->user, job.row, job.rows, m->x));
        parallel_for(t->ctx, job.rows, native_input_row, &job);
        TRY(gemm_float(t->ctx, packed, m->x, job.rows, NULL, m->product));
        parallel_for(t->ctx, M6_CELLS, native_cell, &job);
        for (size_t i = 0; i < M6_CELLS; i++)
            c->squares[panel] += m->cells[i];
    }
done:
    m->reference = reference;
    gemm_weight_free(t->ctx, packed);
    return status;
}

tare_status m6_evaluate_native(m6_search *m, size_t first, size_t end, m6_candidate *c)
{
    for (size_t panel = first; panel < end; panel++) {
        tare_status status = native_panel(m, panel, panel - first, c);
        if (status != TARE_OK)
            return status;
    }
    return TARE_OK;
}
