/* Columns are kept in reverse: an upper triangular R with H = R R^T is then the ordinary Cholesky
 * factor. H lies as its lower triangle, in blocks of GEMM_DEPTH rows, each in panels of GEMM_PANEL
 * columns ([rows of the block][GEMM_PANEL]) up to the diagonal: the sums of gemm_tile and, once
 * they are factored, its right operand. */
#include "quantize/gptq.h"

#include <math.h>
#include <string.h>

#include "base/carver.h"
#include "base/parallel.h"
#include "quantize/smooth.h"
#include "tensor/kernels.h"
#include "tensor/round.h"

enum {
    BLOCK = GEMM_DEPTH,
    BLOCK_PANELS = BLOCK / GEMM_PANEL,
    ROWS = 96 /* of a weight that a thread rounds at a time, at most */
};
#define DAMPING 0.01

struct gptq {
    struct gptq *self;
    const kernels *kernels;
    size_t k, rows;    /* rows: in the chunk */
    float *products;   /* H, then its factor */
    float *left;       /* [k and a tile more, BLOCK] operands of a sum of products */
    float *right;      /* [panels][BLOCK][GEMM_PANEL] */
    float *corner;     /* [BLOCK, BLOCK] of the factor, and its inverse */
    float *reverse;    /* [BLOCK, BLOCK] */
    float *reciprocal; /* [k] of the factor's diagonal */
    float least;       /* no pivot of the damped H is smaller */
    bool plain;        /* all inputs are 0 */
};

/* ---- layout ---- */

static size_t blocks_of(size_t k)
{
    return size_divide_up(k, BLOCK);
}

/* Blocks before this one, whose panels reach up to their diagonals. */
static size_t block_begin(size_t block)
{
    return block * (block + 1) / 2 * BLOCK * BLOCK;
}

static size_t block_rows(const gptq *g, size_t block)
{
    return size_min(g->k - block * BLOCK, BLOCK);
}

/* [rows of the block][GEMM_PANEL] */
static float *panel_of(const gptq *g, size_t block, size_t panel)
{
    return g->products + block_begin(block) + panel * block_rows(g, block) * GEMM_PANEL;
}

static float *right_of(const gptq *g, size_t panel)
{
    return g->right + panel * BLOCK * GEMM_PANEL;
}

static size_t panel_columns(const gptq *g, size_t panel)
{
    return size_min(g->k - panel * GEMM_PANEL, GEMM_PANEL);
}

static void lay_out(carver *c, void *component)
{
    gptq *g = component;
    size_t panels = size_divide_up(g->k, GEMM_PANEL);
    g->self = carve(c, 1, sizeof *g);
    g->products = carve(c, block_begin(blocks_of(g->k)), sizeof(float));
    g->left = carve(c, g->k + GEMM_TILE_ROWS_MAX, BLOCK * sizeof(float));
    g->right = carve(c, panels, BLOCK * GEMM_PANEL * sizeof(float));
    g->corner = carve(c, BLOCK, BLOCK * sizeof(float));
    g->reverse = carve(c, BLOCK, BLOCK * sizeof(float));
    g->reciprocal = carve(c, g->k, sizeof(float));
}

tare_status gptq_create(tare_context *ctx, size_t k, gptq **out)
{
    gptq g = {.kernels = kernels_get(ctx), .k = k};
    *out = NULL;
    tare_status status = carver_alloc(ctx, lay_out, &g);
    if (status != TARE_OK)
        return status;
    memset(g.products, 0, block_begin(blocks_of(k)) * sizeof(float));
    memset(g.left, 0, (k + GEMM_TILE_ROWS_MAX) * BLOCK * sizeof(float));
    *(*out = g.self) = g;
    return TARE_OK;
}

void gptq_free(tare_context *ctx, gptq *g)
{
    mem_free(ctx, g);
}

size_t gptq_bytes(size_t k)
{
    return carver_bytes(lay_out, &(gptq){.k = k});
}

/* ---- sums of products ---- */

typedef struct products_job {
    const gptq *g;
    size_t first, depth; /* from this block on */
} products_job;

/* c[rows,GEMM_PANEL] += a[rows,depth] b[depth,GEMM_PANEL], dense but for a, BLOCK apart. */
static void add_tiles(const kernels *kern, const float *a, const float *b, size_t depth,
                      size_t rows, float *c)
{
    for (size_t r = 0; r < rows; r += kern->tile_rows)
        kern->gemm_tile(a + r * BLOCK, b, depth, size_min(rows - r, kern->tile_rows),
                        c + r * GEMM_PANEL, GEMM_PANEL);
}

/* One panel of a block, from the diagonal on. */
static void add_panel(void *user, size_t index, int thread)
{
    const products_job *job = user;
    const gptq *g = job->g;
    size_t block = job->first, panels = BLOCK_PANELS;
    (void)thread;
    for (; index >= panels; panels += BLOCK_PANELS, block++)
        index -= panels;
    size_t panel = job->first * BLOCK_PANELS + index, rows = block_rows(g, block), from = 0;
    if (panel >= block * BLOCK_PANELS)
        from = (panel - block * BLOCK_PANELS) * GEMM_PANEL;
    if (from < rows)
        add_tiles(g->kernels, g->left + (block * BLOCK + from) * BLOCK, right_of(g, panel),
                  job->depth, rows - from, panel_of(g, block, panel) + from * GEMM_PANEL);
}

/* The triangle from a block on += left right. */
static void add_products(const tare_context *ctx, const gptq *g, size_t first, size_t depth)
{
    products_job job = {g, first, depth};
    size_t blocks = blocks_of(g->k) - first;
    parallel_for(ctx, blocks * (blocks + 1) / 2 * BLOCK_PANELS, add_panel, &job);
}

/* ---- H ---- */

typedef struct input_job {
    const gptq *g;
    const float *x;
    size_t first; /* of them, the first row that goes into the chunk */
    gptq_input *quantize;
    void *user;
} input_job;

static void take_row(void *user, size_t index, int thread)
{
    const input_job *job = user;
    const gptq *g = job->g;
    const float *x = job->x + (job->first + index) * g->k;
    (void)thread;
    for (size_t p = 0; p * GEMM_PANEL < g->k; p++) {
        float *to = right_of(g, p) + (g->rows + index) * GEMM_PANEL;
        size_t columns = panel_columns(g, p);
        for (size_t j = 0; j < columns; j++)
            to[j] = x[g->k - 1 - p * GEMM_PANEL - j];
        memset(to + columns, 0, (GEMM_PANEL - columns) * sizeof *to);
        if (job->quantize)
            job->quantize(job->user, job->first + index, to, columns);
    }
}

static void transpose_panel(void *user, size_t p, int thread)
{
    const gptq *g = user;
    const float *from = right_of(g, p);
    float *to = g->left + p * GEMM_PANEL * BLOCK;
    (void)thread;
    for (size_t j = 0; j < panel_columns(g, p); j++) {
        for (size_t t = 0; t < g->rows; t++)
            to[j * BLOCK + t] = from[t * GEMM_PANEL + j];
    }
}

static void add_chunk(const tare_context *ctx, gptq *g)
{
    if (g->rows == 0)
        return;
    parallel_for(ctx, size_divide_up(g->k, GEMM_PANEL), transpose_panel, g);
    add_products(ctx, g, 0, g->rows);
    g->rows = 0;
}

void gptq_add(const tare_context *ctx, gptq *g, const float *x, size_t rows, gptq_input *quantize,
              void *user)
{
    input_job job = {.g = g, .x = x, .quantize = quantize, .user = user};
    while (job.first < rows) {
        size_t count = size_min(rows - job.first, BLOCK - g->rows);
        parallel_for(ctx, count, take_row, &job);
        g->rows += count;
        job.first += count;
        if (g->rows == BLOCK)
            add_chunk(ctx, g);
    }
}

/* ---- its factor ---- */

static float *diagonal(const gptq *g, size_t i)
{
    size_t block = i / BLOCK;
    return panel_of(g, block, i / GEMM_PANEL) + i % BLOCK * GEMM_PANEL + i % GEMM_PANEL;
}

/* A channel that is always 0 is coupled to none: any diagonal will do. */
static tare_status damp(tare_context *ctx, gptq *g)
{
    double trace = 0;
    for (size_t i = 0; i < g->k; i++)
        trace += *diagonal(g, i);
    if (!isfinite(trace))
        return TARE_FAIL(ctx, TARE_E_NUMERIC, "the sums of squares of the inputs are not finite");
    g->least = (float)(DAMPING * trace / (double)g->k);
    g->plain = g->least < dtype_smallest_normal(TARE_F32);
    for (size_t i = 0; i < g->k; i++)
        *diagonal(g, i) += g->least;
    return TARE_OK;
}

/* Between a block's own panels and a matrix [rows, BLOCK]. */
static void load_own(const gptq *g, size_t block, size_t from, size_t first, size_t rows, float *to)
{
    for (size_t p = 0; p < BLOCK_PANELS; p++) {
        const float *panel = panel_of(g, from, block * BLOCK_PANELS + p) + first * GEMM_PANEL;
        for (size_t r = 0; r < rows; r++)
            memcpy(to + r * BLOCK + p * GEMM_PANEL, panel + r * GEMM_PANEL,
                   GEMM_PANEL * sizeof *to);
    }
}

/* The factor of a block on the diagonal, back in its place with zeros above. */
static void factor_corner(const gptq *g, size_t block)
{
    size_t rows = block_rows(g, block);
    float *l = g->corner;
    load_own(g, block, block, 0, rows, l);
    for (size_t i = 0; i < rows; i++) {
        float *row = l + i * BLOCK, *reciprocal = g->reciprocal + block * BLOCK;
        for (size_t j = 0; j < i; j++)
            row[j] = (row[j] - g->kernels->dot(row, l + j * BLOCK, j)) * reciprocal[j];
        row[i] = sqrtf(fmaxf(row[i] - g->kernels->dot(row, row, i), g->least));
        reciprocal[i] = 1 / row[i];
        memset(row + i + 1, 0, (BLOCK - 1 - i) * sizeof *row);
    }
    for (size_t p = 0; p < BLOCK_PANELS; p++) {
        float *panel = panel_of(g, block, block * BLOCK_PANELS + p);
        for (size_t r = 0; r < rows; r++)
            memcpy(panel + r * GEMM_PANEL, l + r * BLOCK + p * GEMM_PANEL,
                   GEMM_PANEL * sizeof *panel);
    }
}

/* Of a whole block: X L = 1, and its transpose as a right operand. */
static void invert_corner(const gptq *g, size_t block)
{
    const float *reciprocal = g->reciprocal + block * BLOCK;
    memset(g->reverse, 0, BLOCK * BLOCK * sizeof *g->reverse);
    for (size_t i = 0; i < BLOCK; i++) {
        float *x = g->reverse + i * BLOCK;
        for (size_t m = 0; m < i; m++)
            g->kernels->axpy(-g->corner[i * BLOCK + m], g->reverse + m * BLOCK, m + 1, x);
        x[i] = 1;
        for (size_t j = 0; j <= i; j++)
            x[j] *= reciprocal[i];
    }
    for (size_t p = 0; p < BLOCK_PANELS; p++) {
        float *to = right_of(g, block * BLOCK_PANELS + p);
        for (size_t j = 0; j < GEMM_PANEL; j++) {
            for (size_t t = 0; t < BLOCK; t++)
                to[t * GEMM_PANEL + j] = g->reverse[(p * GEMM_PANEL + j) * BLOCK + t];
        }
    }
}

typedef struct column_job {
    const gptq *g;
    size_t block; /* whose columns, in the blocks behind it */
} column_job;

static void load_column(void *user, size_t index, int thread)
{
    const column_job *job = user;
    size_t block = job->block + 1 + index;
    (void)thread;
    load_own(job->g, job->block, block, 0, block_rows(job->g, block),
             job->g->left + block * BLOCK * BLOCK);
}

static void solve_column(void *user, size_t index, int thread)
{
    const column_job *job = user;
    const gptq *g = job->g;
    size_t block = job->block + 1 + index, rows = block_rows(g, block);
    (void)thread;
    for (size_t p = job->block * BLOCK_PANELS; p < (job->block + 1) * BLOCK_PANELS; p++) {
        float *panel = panel_of(g, block, p);
        memset(panel, 0, rows * GEMM_PANEL * sizeof *panel);
        add_tiles(g->kernels, g->left + block * BLOCK * BLOCK, right_of(g, p), BLOCK, rows, panel);
    }
}

/* Both operands of what the column takes from the triangle behind it. */
static void spread_column(void *user, size_t index, int thread)
{
    const column_job *job = user;
    const gptq *g = job->g;
    size_t panel = (job->block + 1) * BLOCK_PANELS + index, first = panel * GEMM_PANEL;
    size_t columns = panel_columns(g, panel);
    float *left = g->left + first * BLOCK, *right = right_of(g, panel);
    (void)thread;
    load_own(g, job->block, first / BLOCK, first % BLOCK, columns, left);
    memset(right, 0, BLOCK * GEMM_PANEL * sizeof *right);
    for (size_t j = 0; j < columns; j++) {
        for (size_t t = 0; t < BLOCK; t++)
            right[t * GEMM_PANEL + j] = -left[j * BLOCK + t];
    }
}

tare_status gptq_factor(tare_context *ctx, gptq *g)
{
    size_t blocks = blocks_of(g->k), panels = size_divide_up(g->k, GEMM_PANEL);
    add_chunk(ctx, g);
    tare_status status = damp(ctx, g);
    if (status != TARE_OK || g->plain)
        return status;
    for (size_t b = 0; b < blocks; b++) {
        column_job job = {g, b};
        factor_corner(g, b);
        if (b + 1 == blocks)
            break;
        invert_corner(g, b);
        parallel_for(ctx, blocks - b - 1, load_column, &job);
        parallel_for(ctx, blocks - b - 1, solve_column, &job);
        parallel_for(ctx, panels - (b + 1) * BLOCK_PANELS, spread_column, &job);
        add_products(ctx, g, b + 1, BLOCK);
    }
    return TARE_OK;
}

/* ---- rounding ---- */

/* Of one thread. */
typedef struct round_room {
    float *row;    /* [k] of the weight */
    float *errors; /* [blocks][rows and a tile more][BLOCK]: weights, and once they are rounded what
                      is missing */
    float *sums;   /* [rows][GEMM_PANEL] of each panel of a block: what the errors leave over */
} round_room;

typedef struct round_job {
    struct round_room *rooms; /* [threads] */
    const tare_context *ctx;
    const gptq *g;
    const weight_rows *rows;
    quantized_weight *q;
    size_t n, k, step, threads;
    float low, high;
} round_job;

static void lay_out_rooms(carver *c, void *component)
{
    round_job *job = component;
    size_t rows = job->step + GEMM_TILE_ROWS_MAX;
    job->rooms = carve(c, job->threads, sizeof *job->rooms);
    for (size_t i = 0; i < job->threads; i++) {
        round_room room = {.row = carve(c, job->k, sizeof(float)),
                           .errors = carve(c, blocks_of(job->k) * rows, BLOCK * sizeof(float)),
                           .sums = carve(c, job->step, BLOCK * sizeof(float))};
        if (job->rooms)
            job->rooms[i] = room;
    }
}

/* As many pieces for each thread. */
static round_job sized_job(const tare_context *ctx, size_t n, size_t k)
{
    size_t threads = (size_t)parallel_threads(ctx);
    size_t pieces = size_round_up(size_divide_up(n, ROWS), threads);
    return (round_job){
        .ctx = ctx, .n = n, .k = k, .step = size_divide_up(n, pieces), .threads = threads};
}

static float *errors_of(const round_job *job, const round_room *room, size_t block)
{
    return room->errors + block * (job->step + GEMM_TILE_ROWS_MAX) * BLOCK;
}

static float *sums_of(const round_job *job, const round_room *room, size_t panel)
{
    return room->sums + panel % BLOCK_PANELS * job->step * GEMM_PANEL;
}

static void load_weights(const round_job *job, const round_room *room, size_t first, size_t count)
{
    const gptq *g = job->g;
    for (size_t r = 0; r < count; r++) {
        if (job->rows->smooth)
            smooth_weight_row(job->ctx, job->rows->smooth, first + r, room->row);
        else
            coded_decode(g->kernels, &job->rows->stored, first + r, 0, g->k, room->row);
        for (size_t i = 0; i < g->k; i++)
            errors_of(job, room, i / BLOCK)[r * BLOCK + i % BLOCK] = room->row[g->k - 1 - i];
    }
    for (size_t b = 0; b < blocks_of(g->k); b++) /* what the last tile reads beyond them */
        memset(errors_of(job, room, b) + count * BLOCK, 0,
               GEMM_TILE_ROWS_MAX * BLOCK * sizeof(float));
}

/* The columns of a panel, one after the other; all rows of a column, as none waits for another. */
static void round_panel(const round_job *job, const round_room *room, size_t panel, size_t first,
                        size_t count)
{
    const gptq *g = job->g;
    const quantized_weight *q = job->q;
    size_t begin = panel * GEMM_PANEL, block = begin / BLOCK;
    const float *factor = panel_of(g, block, panel) + begin % BLOCK * GEMM_PANEL;
    float *sums = sums_of(job, room, panel);
    for (size_t j = panel_columns(g, panel); j-- > 0;) {
        float *error = errors_of(job, room, block) + begin % BLOCK + j;
        int8_t *to = q->q + first * g->k + g->k - 1 - begin - j;
        for (size_t r = 0; r < count; r++, error += BLOCK, to += g->k) {
            float scale = q->scales[q->num_scales > 1 ? first + r : 0];
            float *sum = sums + r * GEMM_PANEL;
            float v = (*error + sum[j] * g->reciprocal[begin + j]) / scale;
            v = v < job->low ? job->low : v > job->high ? job->high : v;
            v = round_even_small(v);
            const float missing = *error - v * scale;
            *error = missing;
            *to = (int8_t)v;
            q->row_sums[first + r] += *to;
            for (size_t i = 0; i < GEMM_PANEL; i++)
                sum[i] += missing * factor[j * GEMM_PANEL + i];
        }
    }
}

/* The columns of a block, with what those before it and the panels before each in it left over. */
static void round_block(const round_job *job, const round_room *room, size_t block, size_t first,
                        size_t count)
{
    const gptq *g = job->g;
    size_t rows = block_rows(g, block), begin = block * BLOCK_PANELS,
           end = begin + size_divide_up(rows, GEMM_PANEL);
    memset(room->sums, 0, job->step * BLOCK * sizeof *room->sums);
    for (size_t b = blocks_of(g->k); b-- > block + 1;) {
        for (size_t p = begin; p < end; p++)
            add_tiles(g->kernels, errors_of(job, room, b), panel_of(g, b, p), block_rows(g, b),
                      count, sums_of(job, room, p));
    }
    for (size_t p = end; p-- > begin;) {
        size_t done = (p + 1 - begin) * GEMM_PANEL;
        if (done < rows)
            add_tiles(g->kernels, errors_of(job, room, block) + done,
                      panel_of(g, block, p) + done * GEMM_PANEL, rows - done, count,
                      sums_of(job, room, p));
        round_panel(job, room, p, first, count);
    }
}

static void round_piece(void *user, size_t index, int thread)
{
    const round_job *job = user;
    const round_room *room = &job->rooms[thread];
    size_t first = index * job->step, count = size_min(job->n - first, job->step);
    load_weights(job, room, first, count);
    memset(job->q->row_sums + first, 0, count * sizeof *job->q->row_sums);
    for (size_t b = blocks_of(job->k); b-- > 0;)
        round_block(job, room, b, first, count);
}

tare_status gptq_round(tare_context *ctx, const gptq *g, const weight_rows *rows,
                       quantized_weight *q)
{
    round_job job = sized_job(ctx, q->n, q->k);
    bool int4 = rows->method != WEIGHT_INT8;
    if (g->plain || q->n == 0)
        return TARE_OK;
    job.g = g;
    job.rows = rows;
    job.q = q;
    job.low = int4 ? -8 : -127;
    job.high = int4 ? 7 : 127;
    tare_status status = carver_alloc(ctx, lay_out_rooms, &job);
    if (status != TARE_OK)
        return status;
    parallel_for(ctx, size_divide_up(q->n, job.step), round_piece, &job);
    mem_free(ctx, job.rooms);
    return TARE_OK;
}

size_t gptq_round_bytes(const tare_context *ctx, size_t n, size_t k)
{
    round_job job = sized_job(ctx, n, k);
    return carver_bytes(lay_out_rooms, &job);
}

/* ---- how much work it is ---- */

double gptq_add_operations(size_t k)
{
    return (double)k * (double)k;
}

double gptq_factor_operations(size_t k)
{
    return (double)k * (double)k * (double)k / 3;
}

double gptq_round_operations(size_t k)
{
    return (double)k * (double)k;
}
