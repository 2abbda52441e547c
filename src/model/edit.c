#include "model/edit.h"

#include <string.h>

#include "base/carver.h"
#include "base/parallel.h"
#include "tensor/convert.h"
#include "tensor/kernels.h"

enum { ROWS = 16, COLUMNS = 64 }; /* that go together where nothing else says how many */

/* A job is cut into pieces that do not meet: groups of rows, or of columns. */
typedef struct edit_job {
    tare_context *ctx;
    const kernels *kern;
    const weight_edit *edit;
    const coded_rows *in;
    size_t first, count, k; /* rows of the matrix, of which the first is in[0] */
    tare_dtype dtype;
    char *out;
    size_t threads, most_rows, most_columns;   /* of a piece */
    size_t piece_size, turned_size, room_size; /* numbers of a thread */
    float *piece, *turned, *room;              /* [threads] of those */
} edit_job;

bool edit_mixes_rows(const weight_edit *e)
{
    return e->left != NULL;
}

static bool by_columns(const weight_edit *e)
{
    return e->left && e->left_blocks.count == 0;
}

static size_t right_width(const weight_edit *e, size_t k)
{
    return e->right ? e->right->n : k;
}

static void lay_out(carver *c, void *component)
{
    edit_job *job = component;
    job->piece = carve(c, job->threads, job->piece_size * sizeof *job->piece);
    job->turned = carve(c, job->threads, job->turned_size * sizeof *job->turned);
    job->room = carve(c, job->threads, job->room_size * sizeof *job->room);
}

static void set_sizes(edit_job *job, size_t n)
{
    const weight_edit *e = job->edit;
    job->threads = (size_t)parallel_threads(job->ctx);
    job->most_rows = by_columns(e) ? n : e->left ? size_max(e->left_blocks.width, ROWS) : ROWS;
    job->most_columns = by_columns(e) ? (e->right ? right_width(e, job->k) : COLUMNS) : job->k;
    job->piece_size = job->most_rows * job->most_columns;
    job->turned_size = e->right ? ROWS * right_width(e, job->k) : 0;
    job->room_size = e->left ? size_max(job->piece_size, job->turned_size) : job->turned_size;
}

/* ---- a piece: rows [row, row+rows), columns [column, column+columns) of the matrix ---- */

typedef struct edit_piece {
    size_t row, rows, column, columns;
    const rotation *left; /* of all its rows; NULL: none */
} edit_piece;

/* Up to ROWS rows, turned so that a rotation runs down columns. */
static void turn_right(const edit_job *job, const rotation *r, float *x, size_t rows, size_t stride,
                       float *turned, float *room)
{
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < r->n; j++)
            turned[j * rows + i] = x[i * stride + j];
    rotation_apply(job->ctx, r, turned, rows, room);
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < r->n; j++)
            x[i * stride + j] = turned[j * rows + i];
}

static void multiply_right(const edit_job *job, const edit_piece *p, float *x, float *turned,
                           float *room)
{
    const weight_edit *e = job->edit;
    size_t width = right_width(e, job->k);
    for (size_t at = 0; at < p->columns; at += width) {
        const rotation *r = e->right + (p->column + at) / width / e->right_share % e->right_blocks;
        for (size_t i = 0; i < p->rows; i += ROWS)
            turn_right(job, r, x + i * p->columns + at, size_min(p->rows - i, ROWS), p->columns,
                       turned, room);
    }
}

static void run_piece(const edit_job *job, const edit_piece *p, int thread)
{
    const weight_edit *e = job->edit;
    size_t t = (size_t)thread;
    float *x = job->piece + t * job->piece_size, *turned = job->turned + t * job->turned_size,
          *room = job->room + t * job->room_size;
    size_t width = dtype_size(job->dtype);
    for (size_t i = 0; i < p->rows; i++) {
        float *row = x + i * p->columns;
        coded_decode(job->kern, job->in, p->row - job->first + i, p->column, p->columns, row);
        if (e->columns)
            job->kern->multiply(row, e->columns + p->column, p->columns, row);
    }
    if (e->right)
        multiply_right(job, p, x, turned, room);
    for (size_t i = 0; e->signs && i < p->rows; i++)
        job->kern->multiply(x + i * p->columns, e->signs + p->column, p->columns,
                            x + i * p->columns);
    if (p->left)
        rotation_apply(job->ctx, p->left, x, p->columns, room);
    for (size_t i = 0; i < p->rows; i++)
        narrow_run(job->kern, job->dtype, x + i * p->columns, p->columns,
                   job->out + ((p->row - job->first + i) * job->k + p->column) * width);
}

static void run_columns(void *user, size_t index, int thread)
{
    const edit_job *job = user;
    edit_piece p = {
        .row = 0, .rows = job->count, .column = index * job->most_columns, .left = job->edit->left};
    p.columns = size_min(job->k - p.column, job->most_columns);
    run_piece(job, &p, thread);
}

static void run_plain_rows(const edit_job *job, size_t row, size_t end, int thread)
{
    for (; row < end; row += ROWS) {
        edit_piece p = {.row = row, .rows = size_min(end - row, ROWS), .columns = job->k};
        run_piece(job, &p, thread);
    }
}

static void run_rows(void *user, size_t index, int thread)
{
    const edit_job *job = user;
    size_t row = job->first + index * ROWS, end = job->first + job->count;
    run_plain_rows(job, row, size_min(row + ROWS, end), thread);
}

/* Block `index` of the rows that are mixed, and the rows between it and the one before; behind the
 * last one comes the rest. */
static void run_block(void *user, size_t index, int thread)
{
    const edit_job *job = user;
    const block_rows *b = &job->edit->left_blocks;
    bool rest = index == b->count;
    size_t begin = index == 0 ? 0 : b->first + (index - 1) * b->stride + b->width;
    size_t row = rest ? job->count : b->first + index * b->stride;
    run_plain_rows(job, begin, row, thread);
    if (rest)
        return;
    edit_piece p = {
        .row = row, .rows = b->width, .columns = job->k, .left = job->edit->left + index};
    run_piece(job, &p, thread);
}

tare_status edit_rows(tare_context *ctx, const weight_edit *e, size_t n, size_t first, size_t count,
                      const coded_rows *in, tare_dtype dtype, void *out)
{
    tare_status status = TARE_OK;
    edit_job job = {.ctx = ctx,
                    .kern = kernels_get(ctx),
                    .edit = e,
                    .in = in,
                    .first = first,
                    .count = count,
                    .k = in->k,
                    .dtype = dtype,
                    .out = out};
    if (e->values) {
        narrow_from_float(ctx, dtype, e->values + first * in->k, count * in->k, out);
        return TARE_OK;
    }
    set_sizes(&job, n);
    TRY(carver_alloc(ctx, lay_out, &job));
    if (by_columns(e))
        parallel_for(ctx, size_divide_up(job.k, job.most_columns), run_columns, &job);
    else if (e->left)
        parallel_for(ctx, e->left_blocks.count + 1, run_block, &job);
    else
        parallel_for(ctx, size_divide_up(count, ROWS), run_rows, &job);
    mem_free(ctx, job.piece);
done:
    return status;
}

size_t edit_bytes(const tare_context *ctx, const weight_edit *e, size_t n, size_t k)
{
    edit_job job = {.ctx = (tare_context *)(uintptr_t)ctx, .edit = e, .k = k};
    if (e->values)
        return 0;
    set_sizes(&job, n);
    return carver_bytes(lay_out, &job);
}
