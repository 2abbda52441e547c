/* y = x W^T in floating point. The weight is packed once into panels of GEMM_PANEL columns,
 * [K][GEMM_PANEL] each, in its own element size; a 16-bit panel is widened piece by piece while it
 * is used. kernels.gemm_tile sums every element in the same order whatever tile it falls into, so
 * tiles may follow the number of threads. */
#include <string.h>

#include "base/parallel.h"
#include "tensor/convert.h"
#include "tensor/gemm.h"
#include "tensor/gemm_bf16.h"
#include "tensor/kernels.h"

/* A block of x stays in the L2 cache while the panels of one block of columns pass. Many panels,
 * since x is copied for each block of columns; many rows, since a panel is widened for each block
 * of rows. */
enum { ROWS = 192, PANELS = 32 };

/* So few rows are multiplied straight from the panels: to copy rows and widen panels first pays
 * from here on. */
enum { FEW_ROWS = 16 };

struct gemm_weight {
    gemm_compute compute;
    tare_dtype dtype; /* of the panels */
    size_t n, k;
    void *panels;        /* NULL when oneDNN computes */
    bf16_weight *onednn; /* NULL when the panels are used */
};

typedef struct panel_scratch {
    _Alignas(64) float panel[GEMM_DEPTH * GEMM_PANEL];
    float tile[GEMM_TILE_ROWS_MAX * GEMM_PANEL];
} panel_scratch;

typedef struct thread_scratch {
    panel_scratch panel;
    float x[(ROWS + GEMM_TILE_ROWS_MAX) * GEMM_DEPTH];
    uint16_t rounded[GEMM_DEPTH];
} thread_scratch;

typedef struct rows_scratch {
    panel_scratch panel;
    float x[(GEMM_ROWS + GEMM_TILE_ROWS_MAX) * GEMM_DEPTH];
} rows_scratch;

_Static_assert(sizeof(rows_scratch) <= GEMM_ROWS_SCRATCH, "the header promises enough");

static size_t divide_up(size_t a, size_t b)
{
    return a / b + (a % b != 0);
}

static size_t min_size(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* ---- weights ---- */

typedef struct pack_job {
    const kernels *kernels;
    tare_dtype from, to;
    const char *w;
    size_t n, k;
    char *panels;
} pack_job;

/* `count` elements of one row to the panels' dtype: as they are, or rounded to BF16. */
static void pack_convert(const pack_job *job, const char *from, size_t count, void *to)
{
    float wide[GEMM_DEPTH];
    if (job->from == job->to) {
        memcpy(to, from, count * dtype_size(job->to));
    } else if (job->from == TARE_F16) {
        job->kernels->fp16_to_float((const uint16_t *)(const void *)from, count, wide);
        job->kernels->float_to_bf16(wide, count, to);
    } else {
        job->kernels->float_to_bf16((const float *)(const void *)from, count, to);
    }
}

static void pack_panel(void *user, size_t panel, int thread)
{
    (void)thread;
    const pack_job *job = user;
    size_t from_size = dtype_size(job->from), size = dtype_size(job->to);
    size_t columns = min_size(job->n - panel * GEMM_PANEL, GEMM_PANEL);
    char *out = job->panels + panel * GEMM_PANEL * job->k * size;
    if (columns < GEMM_PANEL)
        memset(out, 0, GEMM_PANEL * job->k * size);
    for (size_t k0 = 0; k0 < job->k; k0 += GEMM_DEPTH) {
        size_t depth = min_size(job->k - k0, GEMM_DEPTH);
        for (size_t j = 0; j < columns; j++) {
            _Alignas(64) uint32_t row[GEMM_DEPTH];
            const char *from = job->w + ((panel * GEMM_PANEL + j) * job->k + k0) * from_size;
            pack_convert(job, from, depth, row);
            if (size == 4) {
                uint32_t *to = (uint32_t *)(void *)out + k0 * GEMM_PANEL + j;
                for (size_t i = 0; i < depth; i++)
                    to[i * GEMM_PANEL] = row[i];
            } else {
                uint16_t half, *to = (uint16_t *)(void *)out + k0 * GEMM_PANEL + j;
                for (size_t i = 0; i < depth; i++) {
                    memcpy(&half, (const char *)row + 2 * i, sizeof half);
                    to[i * GEMM_PANEL] = half;
                }
            }
        }
    }
}

static tare_status pack_weight(tare_context *ctx, tare_dtype dtype, const void *w,
                               gemm_weight *weight)
{
    size_t size, panels = divide_up(weight->n, GEMM_PANEL);
    weight->dtype = weight->compute == GEMM_BF16 ? TARE_BF16 : dtype;
    if (!size_mul(panels * GEMM_PANEL, weight->k, &size))
        size = SIZE_MAX;
    weight->panels = mem_alloc_array(ctx, size, dtype_size(weight->dtype));
    if (!weight->panels)
        return TARE_E_MEMORY;
    pack_job job = {kernels_get(ctx), dtype,     weight->dtype, w,
                    weight->n,        weight->k, weight->panels};
    parallel_for(ctx, panels, pack_panel, &job);
    return TARE_OK;
}

tare_status gemm_weight_create(tare_context *ctx, gemm_compute compute, tare_dtype dtype,
                               const void *w, size_t n, size_t k, gemm_weight **out)
{
    tare_status status = TARE_OK;
    *out = NULL;
    gemm_weight *weight = mem_calloc(ctx, 1, sizeof *weight);
    if (!weight)
        return TARE_E_MEMORY;
    weight->compute = compute;
    weight->n = n;
    weight->k = k;
    if (compute == GEMM_BF16 && cpu_of(ctx) >= TARE_CPU_AVX512)
        TRY(bf16_weight_create(ctx, dtype, w, n, k, &weight->onednn));
    else
        TRY(pack_weight(ctx, dtype, w, weight));
    *out = weight;
    weight = NULL;
done:
    gemm_weight_free(ctx, weight);
    return status;
}

void gemm_weight_free(tare_context *ctx, gemm_weight *w)
{
    if (!w)
        return;
    bf16_weight_free(ctx, w->onednn);
    mem_free(ctx, w->panels);
    mem_free(ctx, w);
}

size_t gemm_weight_bytes(gemm_compute compute, tare_dtype dtype, size_t n, size_t k)
{
    size_t columns = divide_up(n, GEMM_PANEL) * GEMM_PANEL;
    if (compute == GEMM_BF16)
        return bf16_weight_bytes(n, k);
    return columns * k * dtype_size(dtype) + 1024; /* heads of allocations */
}

size_t gemm_scratch_bytes(gemm_compute compute, size_t k)
{
    size_t bf16 = compute == GEMM_BF16 ? bf16_scratch_bytes(k) : 0;
    return bf16 > sizeof(thread_scratch) ? bf16 : sizeof(thread_scratch);
}

size_t gemm_packing_bytes(const tare_context *ctx, gemm_compute compute, tare_dtype dtype, size_t k)
{
    return compute == GEMM_BF16 ? bf16_packing_bytes(ctx, dtype, k) : 0;
}

size_t gemm_float_bytes(const tare_context *ctx, gemm_compute compute, size_t k, size_t m,
                        size_t segments)
{
    size_t places = compute == GEMM_BF16 ? bf16_places_bytes(m, segments) : 0;
    return mem_array_bytes((size_t)parallel_threads(ctx), gemm_scratch_bytes(compute, k)) + places;
}

/* ---- products ---- */

/* A block of rows against some of the panels. */
typedef struct block_job {
    const kernels *kernels;
    const gemm_weight *w;
    size_t rows, column, columns;
    gemm_make_fn make; /* the left operand */
    void *user;
    float *y; /* [rows, n], of the whole width */
    float *x; /* [rows, GEMM_DEPTH] */
    panel_scratch *scratch;
} block_job;

static const float *load_panel(const block_job *job, size_t panel, size_t k0, size_t depth)
{
    const gemm_weight *w = job->w;
    size_t start = (panel * w->k + k0) * GEMM_PANEL;
    if (w->dtype == TARE_F32)
        return (const float *)w->panels + start;
    const uint16_t *half = (const uint16_t *)w->panels + start;
    if (w->dtype == TARE_BF16)
        job->kernels->bf16_to_float(half, depth * GEMM_PANEL, job->scratch->panel);
    else
        job->kernels->fp16_to_float(half, depth * GEMM_PANEL, job->scratch->panel);
    return job->scratch->panel;
}

/* y += x b for one panel of columns and one stretch of K. */
static void multiply_panel(const block_job *job, size_t column, const float *b, size_t depth)
{
    size_t tile_rows = job->kernels->tile_rows, n = job->w->n;
    size_t columns = min_size(n - column, GEMM_PANEL);
    float *tile = job->scratch->tile;
    for (size_t r = 0; r < job->rows; r += tile_rows) {
        const float *a = job->x + r * GEMM_DEPTH;
        float *y = job->y + r * n + column;
        size_t count = min_size(job->rows - r, tile_rows);
        if (columns == GEMM_PANEL) {
            job->kernels->gemm_tile(a, b, depth, count, y, n);
            continue;
        }
        memset(tile, 0, sizeof job->scratch->tile);
        job->kernels->gemm_tile(a, b, depth, count, tile, GEMM_PANEL);
        for (size_t i = 0; i < count; i++)
            job->kernels->add(y + i * n, tile + i * GEMM_PANEL, columns);
    }
}

static void multiply_block(const block_job *job)
{
    const gemm_weight *w = job->w;
    size_t padded = divide_up(job->rows, job->kernels->tile_rows) * job->kernels->tile_rows;
    /* What the last tile reads beyond the rows: never used, but defined. */
    memset(job->x + job->rows * GEMM_DEPTH, 0, (padded - job->rows) * GEMM_DEPTH * sizeof(float));
    for (size_t k0 = 0; k0 < w->k; k0 += GEMM_DEPTH) {
        size_t depth = min_size(w->k - k0, GEMM_DEPTH);
        job->make(job->user, k0, depth, job->x);
        for (size_t c = job->column; c < job->column + job->columns; c += GEMM_PANEL)
            multiply_panel(job, c, load_panel(job, c / GEMM_PANEL, k0, depth), depth);
    }
}

void gemm_float_rows(const tare_context *ctx, const gemm_weight *w, size_t rows, gemm_make_fn make,
                     void *user, float *y, void *scratch)
{
    rows_scratch *s = scratch;
    block_job job = {.kernels = kernels_get(ctx),
                     .w = w,
                     .rows = rows,
                     .columns = w->n,
                     .make = make,
                     .user = user,
                     .y = y,
                     .x = s->x,
                     .scratch = &s->panel};
    memset(y, 0, rows * w->n * sizeof *y);
    multiply_block(&job);
}

typedef struct float_job {
    const kernels *kernels;
    const gemm_weight *w;
    const float *x, *bias;
    float *y;
    size_t m, rows, row_blocks, columns;
    thread_scratch *scratch; /* one a thread */
} float_job;

typedef struct stored_rows {
    const float_job *job;
    size_t row, rows;
    uint16_t *rounded; /* [GEMM_DEPTH] */
} stored_rows;

/* Copies x[rows, k0 .. k0+depth). */
static void load_rows(void *user, size_t k0, size_t depth, float *x)
{
    const stored_rows *s = user;
    const gemm_weight *w = s->job->w;
    const kernels *ops = s->job->kernels;
    for (size_t r = 0; r < s->rows; r++) {
        const float *from = s->job->x + (s->row + r) * w->k + k0;
        float *to = x + r * GEMM_DEPTH;
        if (w->compute == GEMM_BF16) {
            ops->float_to_bf16(from, depth, s->rounded);
            ops->bf16_to_float(s->rounded, depth, to);
        } else {
            memcpy(to, from, depth * sizeof *to);
        }
    }
}

static void float_block(void *user, size_t index, int thread)
{
    const float_job *job = user;
    const gemm_weight *w = job->w;
    thread_scratch *scratch = &job->scratch[thread];
    size_t row = index % job->row_blocks * job->rows;
    size_t column = index / job->row_blocks * job->columns;
    stored_rows source = {job, row, min_size(job->m - row, job->rows), scratch->rounded};
    block_job block = {.kernels = job->kernels,
                       .w = w,
                       .rows = source.rows,
                       .column = column,
                       .columns = min_size(w->n - column, job->columns),
                       .make = load_rows,
                       .user = &source,
                       .y = job->y + row * w->n,
                       .x = scratch->x,
                       .scratch = &scratch->panel};
    for (size_t r = row; r < row + source.rows; r++) {
        if (job->bias)
            memcpy(job->y + r * w->n + column, job->bias + column, block.columns * sizeof(float));
        else
            memset(job->y + r * w->n + column, 0, block.columns * sizeof(float));
    }
    multiply_block(&block);
}

static tare_status panels_gemm(tare_context *ctx, const gemm_weight *w, const float *x, size_t m,
                               const float *bias, float *y)
{
    float_job job = {.kernels = kernels_get(ctx), .w = w, .x = x, .bias = bias, .y = y, .m = m};
    size_t tile_rows = job.kernels->tile_rows, threads = (size_t)parallel_threads(ctx);
    size_t blocks = divide_up(m, ROWS);
    job.rows = divide_up(divide_up(m, blocks), tile_rows) * tile_rows;
    job.row_blocks = divide_up(m, job.rows);
    job.columns = PANELS * GEMM_PANEL;
    while (job.columns > GEMM_PANEL && job.row_blocks * divide_up(w->n, job.columns) < 4 * threads)
        job.columns /= 2;
    job.scratch = mem_alloc_array(ctx, threads, sizeof *job.scratch);
    if (!job.scratch)
        return TARE_E_MEMORY;
    parallel_for(ctx, job.row_blocks * divide_up(w->n, job.columns), float_block, &job);
    mem_free(ctx, job.scratch);
    return TARE_OK;
}

/* ---- a few rows: straight from the panels ---- */

static void few_rows(const float_job *job, size_t panel, size_t k0, float *y, size_t ldy)
{
    const gemm_weight *w = job->w;
    size_t start = (panel * w->k + k0) * GEMM_PANEL, depth = min_size(w->k - k0, GEMM_DEPTH);
    for (size_t r = 0; r < job->m; r += GEMM_FEW_ROWS) {
        size_t rows = min_size(job->m - r, GEMM_FEW_ROWS);
        const float *x = job->x + r * w->k + k0;
        if (w->dtype == TARE_F32)
            job->kernels->gemm_few_f32(x, w->k, (const float *)w->panels + start, depth, rows,
                                       y + r * ldy, ldy);
        else if (w->dtype == TARE_BF16)
            job->kernels->gemm_few_bf16(x, w->k, (const uint16_t *)w->panels + start, depth, rows,
                                        y + r * ldy, ldy);
        else
            job->kernels->gemm_few_fp16(x, w->k, (const uint16_t *)w->panels + start, depth, rows,
                                        y + r * ldy, ldy);
    }
}

static void few_panel(const float_job *job, size_t panel)
{
    const gemm_weight *w = job->w;
    size_t column = panel * GEMM_PANEL, columns = min_size(w->n - column, GEMM_PANEL);
    float tile[FEW_ROWS * GEMM_PANEL];
    bool whole = columns == GEMM_PANEL;
    float *y = whole ? job->y + column : tile;
    size_t ldy = whole ? w->n : GEMM_PANEL;
    for (size_t r = 0; r < job->m; r++) {
        memset(y + r * ldy, 0, GEMM_PANEL * sizeof *y);
        if (job->bias)
            memcpy(y + r * ldy, job->bias + column, columns * sizeof *y);
    }
    for (size_t k0 = 0; k0 < w->k; k0 += GEMM_DEPTH)
        few_rows(job, panel, k0, y, ldy);
    for (size_t r = 0; r < job->m && !whole; r++)
        memcpy(job->y + r * w->n + column, tile + r * GEMM_PANEL, columns * sizeof *y);
}

static void few_block(void *user, size_t index, int thread)
{
    const float_job *job = user;
    size_t panels = divide_up(job->w->n, GEMM_PANEL), step = job->columns / GEMM_PANEL;
    (void)thread;
    for (size_t p = index * step; p < min_size((index + 1) * step, panels); p++)
        few_panel(job, p);
}

/* As panels_gemm, with the same sums. */
static void few_gemm(tare_context *ctx, const gemm_weight *w, const float *x, size_t m,
                     const float *bias, float *y)
{
    float_job job = {.kernels = kernels_get(ctx), .w = w, .x = x, .bias = bias, .y = y, .m = m};
    size_t panels = divide_up(w->n, GEMM_PANEL), pieces = 8 * (size_t)parallel_threads(ctx);
    job.columns = divide_up(panels, pieces) * GEMM_PANEL;
    parallel_for(ctx, divide_up(w->n, job.columns), few_block, &job);
}

tare_status gemm_float(tare_context *ctx, const gemm_weight *w, const float *x, const size_t *rows,
                       size_t segments, const float *bias, float *y)
{
    size_t m = 0;
    for (size_t i = 0; i < segments; i++)
        m += rows[i];
    if (m == 0)
        return TARE_OK;
    if (w->onednn)
        return bf16_gemm(ctx, w->onednn, x, rows, segments, bias, y);
    if (w->compute == GEMM_BF16 || m > FEW_ROWS)
        return panels_gemm(ctx, w, x, m, bias, y);
    few_gemm(ctx, w, x, m, bias, y);
    return TARE_OK;
}
