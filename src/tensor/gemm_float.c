/* y = x W^T in floating point. The weight is packed once into panels of GEMM_PANEL columns,
 * [K][GEMM_PANEL] each, in its own element size; a 16-bit panel is widened piece by piece while it
 * is used. Where the CPU multiplies BF16, the panels of a BF16 product are [K/2][GEMM_PANEL][2],
 * with K filled up by zeros. Either kernel sums every element in the same order whatever tile it
 * falls into, so tiles may follow the number of threads. */
#include <string.h>

#include "base/carver.h"
#include "base/parallel.h"
#include "tensor/convert.h"
#include "tensor/gemm.h"
#include "tensor/kernels.h"

/* A block of x stays in the L2 cache while the panels of one block of columns pass. Many panels,
 * since x is copied for each block of columns; many rows, since a panel is widened for each block
 * of rows. */
enum { ROWS = 192, PANELS = 32 };

/* So few rows are multiplied straight from the panels: to copy rows and widen panels first pays
 * from here on. */
enum { FEW_ROWS = 16 };

struct gemm_weight {
    struct gemm_weight *self;
    gemm_compute compute;
    tare_dtype dtype;   /* of the panels */
    bool pairs;         /* in their order */
    size_t n, k, depth; /* depth: K as it is packed */
    void *panels;
};

typedef struct panel_scratch {
    _Alignas(64) float panel[GEMM_DEPTH * GEMM_PANEL];
    float tile[GEMM_TILE_ROWS_MAX * GEMM_PANEL];
} panel_scratch;

typedef union thread_scratch {
    struct {
        panel_scratch panel;
        float x[(ROWS + GEMM_TILE_ROWS_MAX) * GEMM_DEPTH];
        uint16_t rounded[GEMM_DEPTH];
    } plain;
    struct {
        _Alignas(64) uint16_t x[ROWS * GEMM_DEPTH];
        _Alignas(64) float c[PANELS * ROWS * GEMM_PANEL];
    } pairs;
} thread_scratch;

typedef union rows_scratch {
    struct {
        panel_scratch panel;
        float x[(GEMM_ROWS + GEMM_TILE_ROWS_MAX) * GEMM_DEPTH];
    } plain;
    struct {
        _Alignas(64) uint16_t x[GEMM_ROWS * GEMM_DEPTH];
        float made[GEMM_ROWS * GEMM_DEPTH];
        _Alignas(64) float c[PANELS * GEMM_ROWS * GEMM_PANEL];
    } pairs;
} rows_scratch;

_Static_assert(ROWS % GEMM_BLOCK_STEP == 0 && GEMM_ROWS % GEMM_BLOCK_STEP == 0,
               "blocks of pairs need no more rows");
_Static_assert(sizeof(rows_scratch) <= GEMM_ROWS_SCRATCH, "the header promises enough");

/* ---- weights ---- */

typedef struct pack_job {
    const kernels *kernels;
    const coded_rows *rows;
    const gemm_weight *to;
} pack_job;

/* Spreads one row over a panel: `count` units, FP32 values or pairs of BF16, or halves. */
static void scatter_words(const uint32_t *row, size_t count, uint32_t *to)
{
    for (size_t i = 0; i < count; i++)
        to[i * GEMM_PANEL] = row[i];
}

static void scatter_halves(const uint16_t *row, size_t count, uint16_t *to)
{
    for (size_t i = 0; i < count; i++)
        to[i * GEMM_PANEL] = row[i];
}

static void pack_panel(void *user, size_t panel, int thread)
{
    (void)thread;
    const pack_job *job = user;
    const gemm_weight *w = job->to;
    size_t size = dtype_size(w->dtype), first = panel * GEMM_PANEL;
    size_t columns = size_min(w->n - first, GEMM_PANEL);
    char *out = (char *)w->panels + first * w->depth * size;
    const char *there = coded_in_place(job->rows, w->dtype, first, 0);
    if (columns < GEMM_PANEL)
        memset(out, 0, GEMM_PANEL * w->depth * size);
    for (size_t k0 = 0; k0 < w->k; k0 += GEMM_DEPTH) {
        size_t depth = size_min(w->k - k0, GEMM_DEPTH),
               padded = size_min(w->depth - k0, GEMM_DEPTH);
        for (size_t j = 0; j < columns; j++) {
            _Alignas(64) uint16_t made[GEMM_DEPTH * sizeof(float) / sizeof(uint16_t)];
            const void *row = made;
            if (there && w->pairs)
                memcpy(made, there + (j * w->k + k0) * size, depth * size);
            else if (there)
                row = there + (j * w->k + k0) * size;
            else
                coded_convert(job->kernels, job->rows, first + j, k0, depth, w->dtype, made);
            if (size == 4) {
                scatter_words(row, depth, (uint32_t *)(void *)out + k0 * GEMM_PANEL + j);
            } else if (w->pairs) {
                memset(made + depth, 0, (padded - depth) * sizeof *made);
                scatter_words(row, padded / 2, (uint32_t *)(void *)out + k0 / 2 * GEMM_PANEL + j);
            } else {
                scatter_halves(row, depth, (uint16_t *)(void *)out + k0 * GEMM_PANEL + j);
            }
        }
    }
}

static void lay_out(carver *c, void *component)
{
    gemm_weight *w = component;
    size_t columns = size_round_up(w->n, GEMM_PANEL);
    w->self = carve(c, 1, sizeof *w);
    w->panels = carve(c, columns, w->depth * dtype_size(w->dtype));
}

static gemm_weight sized_weight(gemm_compute compute, tare_dtype dtype, size_t n, size_t k,
                                bool pairs)
{
    return (gemm_weight){.compute = compute,
                         .dtype = compute == GEMM_BF16 ? TARE_BF16 : dtype,
                         .pairs = pairs,
                         .n = n,
                         .k = k,
                         .depth = pairs ? size_round_up(k, GEMM_BLOCK_STEP) : k};
}

tare_status gemm_weight_pack(tare_context *ctx, gemm_compute compute, const coded_rows *rows,
                             size_t n, gemm_weight **out)
{
    bool pairs = compute == GEMM_BF16 && kernels_get(ctx)->gemm_bf16;
    *out = NULL;
    if (!rows->codec)
        return TARE_FAIL(ctx, TARE_E_MODEL, "a weight in %s; F32, F16 and BF16 can be multiplied",
                         dtype_name(rows->dtype));
    gemm_weight weight = sized_weight(compute, rows->dtype, n, rows->k, pairs);
    tare_status status = carver_alloc(ctx, lay_out, &weight);
    if (status != TARE_OK)
        return status;
    *weight.self = weight;
    pack_job job = {kernels_get(ctx), rows, weight.self};
    parallel_for(ctx, size_divide_up(n, GEMM_PANEL), pack_panel, &job);
    *out = weight.self;
    return TARE_OK;
}

tare_status gemm_weight_create(tare_context *ctx, gemm_compute compute, tare_dtype dtype,
                               const void *w, size_t n, size_t k, gemm_weight **out)
{
    coded_rows rows = coded_plain(dtype, w, k);
    return gemm_weight_pack(ctx, compute, &rows, n, out);
}

void gemm_weight_free(tare_context *ctx, gemm_weight *w)
{
    mem_free(ctx, w);
}

size_t gemm_weight_bytes(gemm_compute compute, tare_dtype dtype, size_t n, size_t k)
{
    gemm_weight w = sized_weight(compute, dtype, n, k, compute == GEMM_BF16);
    return carver_bytes(lay_out, &w);
}

size_t gemm_float_bytes(const tare_context *ctx)
{
    return mem_array_bytes((size_t)parallel_threads(ctx), sizeof(thread_scratch));
}

/* ---- a block in pairs ---- */

typedef struct pairs_job {
    const kernels *kernels;
    const gemm_weight *w;
    size_t rows, column, columns; /* at most PANELS panels */
    const float *bias;            /* [n] or NULL */
    gemm_make_fn make;            /* fills `made`; NULL: `rounded` makes BF16 at once */
    void (*rounded)(void *user, size_t k0, size_t depth, uint16_t *x);
    void *user;
    float *y;        /* [rows, n], of the whole width */
    uint16_t *x;     /* [rows and more, GEMM_DEPTH] */
    float *made, *c; /* c: [panels][rows and more][GEMM_PANEL] */
} pairs_job;

/* The left operand of a stretch of K, filled up by zeros. */
static void load_pairs(const pairs_job *job, size_t k0, size_t depth, size_t padded)
{
    if (job->make)
        job->make(job->user, k0, depth, job->made);
    else
        job->rounded(job->user, k0, depth, job->x);
    for (size_t r = 0; r < job->rows; r++) {
        uint16_t *to = job->x + r * GEMM_DEPTH;
        if (job->make)
            job->kernels->float_to_bf16(job->made + r * GEMM_DEPTH, depth, to);
        memset(to + depth, 0, (padded - depth) * sizeof *to);
    }
}

/* y = c + bias. */
static void store_pairs(const pairs_job *job, size_t rows)
{
    for (size_t c = 0; c < job->columns; c += GEMM_PANEL) {
        size_t column = job->column + c, columns = size_min(job->columns - c, GEMM_PANEL);
        for (size_t r = 0; r < job->rows; r++) {
            float *y = job->y + r * job->w->n + column;
            memcpy(y, job->c + c * rows + r * GEMM_PANEL, columns * sizeof *y);
            if (job->bias)
                job->kernels->add(y, job->bias + column, columns);
        }
    }
}

static void multiply_pairs(const pairs_job *job)
{
    const gemm_weight *w = job->w;
    size_t rows = size_round_up(job->rows, GEMM_BLOCK_STEP);
    size_t panels = size_divide_up(job->columns, GEMM_PANEL);
    memset(job->x + job->rows * GEMM_DEPTH, 0, (rows - job->rows) * GEMM_DEPTH * sizeof *job->x);
    memset(job->c, 0, panels * rows * GEMM_PANEL * sizeof *job->c);
    for (size_t k0 = 0; k0 < w->k; k0 += GEMM_DEPTH) {
        size_t padded = size_min(w->depth - k0, GEMM_DEPTH);
        load_pairs(job, k0, size_min(w->k - k0, GEMM_DEPTH), padded);
        const uint16_t *b = (const uint16_t *)w->panels + job->column * w->depth + k0 * GEMM_PANEL;
        for (size_t p = 0; p < panels; p++, b += GEMM_PANEL * w->depth)
            job->kernels->gemm_bf16(job->x, b, padded, rows, job->c + p * rows * GEMM_PANEL,
                                    b + GEMM_PANEL * w->depth);
    }
    store_pairs(job, rows);
}

/* ---- a block in FP32 ---- */

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
    widen_run(job->kernels, w->dtype, (const uint16_t *)w->panels + start, depth * GEMM_PANEL,
              job->scratch->panel);
    return job->scratch->panel;
}

/* y += x b for one panel of columns and one stretch of K. */
static void multiply_panel(const block_job *job, size_t column, const float *b, size_t depth)
{
    size_t tile_rows = job->kernels->tile_rows, n = job->w->n;
    size_t columns = size_min(n - column, GEMM_PANEL);
    float *tile = job->scratch->tile;
    for (size_t r = 0; r < job->rows; r += tile_rows) {
        const float *a = job->x + r * GEMM_DEPTH;
        float *y = job->y + r * n + column;
        size_t count = size_min(job->rows - r, tile_rows);
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
    size_t padded = size_divide_up(job->rows, job->kernels->tile_rows) * job->kernels->tile_rows;
    /* What the last tile reads beyond the rows: never used, but defined. */
    memset(job->x + job->rows * GEMM_DEPTH, 0, (padded - job->rows) * GEMM_DEPTH * sizeof(float));
    for (size_t k0 = 0; k0 < w->k; k0 += GEMM_DEPTH) {
        size_t depth = size_min(w->k - k0, GEMM_DEPTH);
        job->make(job->user, k0, depth, job->x);
        for (size_t c = job->column; c < job->column + job->columns; c += GEMM_PANEL)
            multiply_panel(job, c, load_panel(job, c / GEMM_PANEL, k0, depth), depth);
    }
}

/* Made anew for each stretch of columns, of which there is mostly one. */
static void made_pairs(const kernels *ops, const gemm_weight *w, size_t rows, gemm_make_fn make,
                       void *user, float *y, rows_scratch *s)
{
    for (size_t c = 0; c < w->n; c += PANELS * GEMM_PANEL) {
        pairs_job job = {.kernels = ops,
                         .w = w,
                         .rows = rows,
                         .column = c,
                         .columns = size_min(w->n - c, PANELS * GEMM_PANEL),
                         .make = make,
                         .user = user,
                         .y = y,
                         .x = s->pairs.x,
                         .made = s->pairs.made,
                         .c = s->pairs.c};
        multiply_pairs(&job);
    }
}

void gemm_float_rows(const tare_context *ctx, const gemm_weight *w, size_t rows, gemm_make_fn make,
                     void *user, float *y, void *scratch)
{
    rows_scratch *s = scratch;
    if (w->pairs) {
        made_pairs(kernels_get(ctx), w, rows, make, user, y, s);
        return;
    }
    block_job job = {.kernels = kernels_get(ctx),
                     .w = w,
                     .rows = rows,
                     .columns = w->n,
                     .make = make,
                     .user = user,
                     .y = y,
                     .x = s->plain.x,
                     .scratch = &s->plain.panel};
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

/* Copies x[rows, k0 .. k0+depth), */
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

/* or leaves them in BF16. */
static void round_rows(void *user, size_t k0, size_t depth, uint16_t *x)
{
    const stored_rows *s = user;
    for (size_t r = 0; r < s->rows; r++)
        s->job->kernels->float_to_bf16(s->job->x + (s->row + r) * s->job->w->k + k0, depth,
                                       x + r * GEMM_DEPTH);
}

/* One piece of the work: some rows, some columns. */
static void pairs_block(const float_job *job, stored_rows *source, size_t column, thread_scratch *s)
{
    const gemm_weight *w = job->w;
    pairs_job block = {.kernels = job->kernels,
                       .w = w,
                       .rows = source->rows,
                       .column = column,
                       .columns = size_min(w->n - column, job->columns),
                       .bias = job->bias,
                       .rounded = round_rows,
                       .user = source,
                       .y = job->y + source->row * w->n,
                       .x = s->pairs.x,
                       .c = s->pairs.c};
    multiply_pairs(&block);
}

static void plain_block(const float_job *job, stored_rows *source, size_t column, thread_scratch *s)
{
    const gemm_weight *w = job->w;
    source->rounded = s->plain.rounded;
    block_job block = {.kernels = job->kernels,
                       .w = w,
                       .rows = source->rows,
                       .column = column,
                       .columns = size_min(w->n - column, job->columns),
                       .make = load_rows,
                       .user = source,
                       .y = job->y + source->row * w->n,
                       .x = s->plain.x,
                       .scratch = &s->plain.panel};
    for (size_t r = 0; r < source->rows; r++) {
        float *y = block.y + r * w->n + column;
        if (job->bias)
            memcpy(y, job->bias + column, block.columns * sizeof *y);
        else
            memset(y, 0, block.columns * sizeof *y);
    }
    multiply_block(&block);
}

static void float_block(void *user, size_t index, int thread)
{
    const float_job *job = user;
    size_t row = index % job->row_blocks * job->rows;
    size_t column = index / job->row_blocks * job->columns;
    stored_rows source = {.job = job, .row = row, .rows = size_min(job->m - row, job->rows)};
    if (job->w->pairs)
        pairs_block(job, &source, column, &job->scratch[thread]);
    else
        plain_block(job, &source, column, &job->scratch[thread]);
}

static tare_status panels_gemm(tare_context *ctx, const gemm_weight *w, const float *x, size_t m,
                               const float *bias, float *y)
{
    float_job job = {.kernels = kernels_get(ctx), .w = w, .x = x, .bias = bias, .y = y, .m = m};
    size_t step = w->pairs ? GEMM_BLOCK_STEP : job.kernels->tile_rows,
           threads = (size_t)parallel_threads(ctx);
    size_t blocks = size_divide_up(m, ROWS);
    job.rows = size_round_up(size_divide_up(m, blocks), step);
    job.row_blocks = size_divide_up(m, job.rows);
    job.columns = PANELS * GEMM_PANEL;
    while (job.columns > GEMM_PANEL &&
           job.row_blocks * size_divide_up(w->n, job.columns) < 4 * threads)
        job.columns /= 2;
    job.scratch = mem_take_scratch(ctx, threads, sizeof *job.scratch);
    if (!job.scratch)
        return TARE_E_MEMORY;
    parallel_for(ctx, job.row_blocks * size_divide_up(w->n, job.columns), float_block, &job);
    mem_give_scratch(ctx, job.scratch);
    return TARE_OK;
}

/* ---- a few rows: straight from the panels ---- */

static void few_rows(const float_job *job, size_t panel, size_t k0, float *y, size_t ldy)
{
    const gemm_weight *w = job->w;
    size_t start = (panel * w->k + k0) * GEMM_PANEL, depth = size_min(w->k - k0, GEMM_DEPTH);
    for (size_t r = 0; r < job->m; r += GEMM_FEW_ROWS) {
        size_t rows = size_min(job->m - r, GEMM_FEW_ROWS);
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
    size_t column = panel * GEMM_PANEL, columns = size_min(w->n - column, GEMM_PANEL);
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
    size_t panels = size_divide_up(job->w->n, GEMM_PANEL), step = job->columns / GEMM_PANEL;
    (void)thread;
    for (size_t p = index * step; p < size_min((index + 1) * step, panels); p++)
        few_panel(job, p);
}

/* As panels_gemm, with the same sums. */
static void few_gemm(tare_context *ctx, const gemm_weight *w, const float *x, size_t m,
                     const float *bias, float *y)
{
    float_job job = {.kernels = kernels_get(ctx), .w = w, .x = x, .bias = bias, .y = y, .m = m};
    size_t panels = size_divide_up(w->n, GEMM_PANEL), pieces = 8 * (size_t)parallel_threads(ctx);
    job.columns = size_divide_up(panels, pieces) * GEMM_PANEL;
    parallel_for(ctx, size_divide_up(w->n, job.columns), few_block, &job);
}

tare_status gemm_float(tare_context *ctx, const gemm_weight *w, const float *x, size_t m,
                       const float *bias, float *y)
{
    if (m == 0)
        return TARE_OK;
    if (w->compute == GEMM_BF16 || m > FEW_ROWS)
        return panels_gemm(ctx, w, x, m, bias, y);
    few_gemm(ctx, w, x, m, bias, y);
    return TARE_OK;
}
