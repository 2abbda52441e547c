/* oneDNN's matmul on tiles of one fixed shape. */
#include "tensor/gemm_bf16.h"

#include <dnnl.h>
#include <string.h>

#include "base/parallel.h"
#include "tensor/convert.h"

enum { ROWS = 64, COLUMNS = 512 };

/* The product of one shape: [ROWS,K] x [K,columns]. */
typedef struct bf16_shape {
    size_t columns;
    dnnl_memory_desc_t x, w, y, scratchpad;
    size_t w_bytes, scratchpad_bytes;
    dnnl_primitive_t matmul, pack;
    dnnl_memory_desc_t plain; /* the weight slice as stored, [columns,K] */
} bf16_shape;

struct bf16_weight {
    size_t n, k, slices;
    dnnl_engine_t engine;
    bf16_shape full, last; /* last: the narrower slice, if N is no multiple of COLUMNS */
    char *packed;          /* slices, full.w_bytes apart */
};

static size_t min_size(size_t a, size_t b)
{
    return a < b ? a : b;
}

static tare_status check(tare_context *ctx, dnnl_status_t s, const char *call)
{
    if (s == dnnl_success)
        return TARE_OK;
    return TARE_FAIL(ctx, TARE_E_MEMORY, "oneDNN's %s failed with status %d", call, (int)s);
}

static size_t align64(size_t n)
{
    return (n + 63) & ~(size_t)63;
}

static tare_status shape_create(tare_context *ctx, bf16_weight *w, bf16_shape *s, size_t columns)
{
    tare_status status = TARE_OK;
    dnnl_primitive_attr_t attr = NULL;
    dnnl_primitive_desc_t pd = NULL, reorder = NULL;
    dnnl_matmul_desc_t desc;
    dnnl_dims_t x = {ROWS, (dnnl_dim_t)w->k}, y = {ROWS, (dnnl_dim_t)columns},
                k = {(dnnl_dim_t)w->k, (dnnl_dim_t)columns};
    s->columns = columns;
    TRY(check(ctx, dnnl_memory_desc_init_by_tag(&s->x, 2, x, dnnl_bf16, dnnl_ab), "memory desc"));
    TRY(check(ctx, dnnl_memory_desc_init_by_tag(&s->w, 2, k, dnnl_bf16, dnnl_format_tag_any),
              "memory desc"));
    TRY(check(ctx, dnnl_memory_desc_init_by_tag(&s->y, 2, y, dnnl_f32, dnnl_ab), "memory desc"));
    TRY(check(ctx, dnnl_matmul_desc_init(&desc, &s->x, &s->w, NULL, &s->y), "matmul desc"));
    TRY(check(ctx, dnnl_primitive_attr_create(&attr), "attribute"));
    TRY(check(ctx, dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl_scratchpad_mode_user),
              "attribute"));
    TRY(check(ctx, dnnl_primitive_desc_create(&pd, &desc, attr, w->engine, NULL),
              "BF16 matmul descriptor"));
    s->w = *dnnl_primitive_desc_query_md(pd, dnnl_query_weights_md, 0);
    s->scratchpad = *dnnl_primitive_desc_query_md(pd, dnnl_query_scratchpad_md, 0);
    s->w_bytes = align64(dnnl_memory_desc_get_size(&s->w));
    s->scratchpad_bytes = align64(dnnl_memory_desc_get_size(&s->scratchpad));
    TRY(check(ctx, dnnl_primitive_create(&s->matmul, pd), "BF16 matmul"));
    TRY(check(ctx, dnnl_memory_desc_init_by_tag(&s->plain, 2, k, dnnl_bf16, dnnl_ba),
              "memory desc"));
    TRY(check(
        ctx,
        dnnl_reorder_primitive_desc_create(&reorder, &s->plain, w->engine, &s->w, w->engine, NULL),
        "reorder descriptor"));
    TRY(check(ctx, dnnl_primitive_create(&s->pack, reorder), "reorder"));
done:
    dnnl_primitive_desc_destroy(reorder);
    dnnl_primitive_desc_destroy(pd);
    dnnl_primitive_attr_destroy(attr);
    return status;
}

/* Up to four operands of one call, as oneDNN wants them. */
typedef struct operand {
    int arg;
    const dnnl_memory_desc_t *desc;
    void *data;
} operand;

static tare_status execute(tare_context *ctx, dnnl_engine_t engine, dnnl_primitive_t primitive,
                           const operand *operands, size_t count)
{
    tare_status status = TARE_OK;
    dnnl_stream_t stream = NULL;
    dnnl_exec_arg_t args[4];
    memset(args, 0, sizeof args);
    TRY(check(ctx, dnnl_stream_create(&stream, engine, dnnl_stream_default_flags), "stream"));
    for (size_t i = 0; i < count; i++) {
        args[i].arg = operands[i].arg;
        TRY(check(ctx,
                  dnnl_memory_create(&args[i].memory, operands[i].desc, engine, operands[i].data),
                  "memory"));
    }
    TRY(check(ctx, dnnl_primitive_execute(primitive, stream, (int)count, args), "execution"));
    TRY(check(ctx, dnnl_stream_wait(stream), "execution"));
done:
    for (size_t i = 0; i < count; i++)
        dnnl_memory_destroy(args[i].memory);
    dnnl_stream_destroy(stream);
    return status;
}

static const bf16_shape *slice_shape(const bf16_weight *w, size_t slice)
{
    return slice * COLUMNS + COLUMNS <= w->n ? &w->full : &w->last;
}

/* ---- making a weight ---- */

typedef struct pack_job {
    tare_context *ctx;
    bf16_weight *w;
    tare_dtype dtype;
    const void *from;
    uint16_t *rounded; /* [threads][COLUMNS,K], unless the weight is BF16 already */
    atomic_int status;
} pack_job;

/* In a team of one: what oneDNN decides at creation depends on the number of threads it sees. */
static void create_shapes(void *user, size_t index, int thread)
{
    (void)index, (void)thread;
    pack_job *job = user;
    bf16_weight *w = job->w;
    tare_status status = TARE_OK;
    TRY(check(job->ctx, dnnl_engine_create(&w->engine, dnnl_cpu, 0), "engine"));
    if (w->n >= COLUMNS)
        TRY(shape_create(job->ctx, w, &w->full, COLUMNS));
    if (w->n % COLUMNS)
        TRY(shape_create(job->ctx, w, &w->last, w->n % COLUMNS));
done:
    atomic_store(&job->status, (int)status);
}

static void pack_slice(void *user, size_t slice, int thread)
{
    pack_job *job = user;
    bf16_weight *w = job->w;
    const bf16_shape *s = slice_shape(w, slice);
    size_t start = slice * COLUMNS * w->k, count = s->columns * w->k;
    void *plain = (uint16_t *)job->rounded + (size_t)thread * COLUMNS * w->k;
    const kernels *ops = kernels_get(job->ctx);
    if (job->dtype == TARE_BF16) {
        plain = (uint16_t *)job->from + start;
    } else if (job->dtype == TARE_F32) {
        ops->float_to_bf16((const float *)job->from + start, count, plain);
    } else {
        float wide[256];
        const uint16_t *from = (const uint16_t *)job->from + start;
        for (size_t i = 0; i < count; i += 256) {
            size_t n = min_size(count - i, 256);
            ops->fp16_to_float(from + i, n, wide);
            ops->float_to_bf16(wide, n, (uint16_t *)plain + i);
        }
    }
    operand operands[] = {{DNNL_ARG_FROM, &s->plain, plain},
                          {DNNL_ARG_TO, &s->w, w->packed + slice * w->full.w_bytes}};
    tare_status status = execute(job->ctx, w->engine, s->pack, operands, 2);
    if (status != TARE_OK)
        atomic_store(&job->status, (int)status);
}

tare_status bf16_weight_create(tare_context *ctx, tare_dtype dtype, const void *w, size_t n,
                               size_t k, bf16_weight **out)
{
    tare_status status = TARE_OK;
    pack_job job = {.ctx = ctx, .dtype = dtype, .from = w};
    *out = NULL;
    atomic_init(&job.status, TARE_OK);
    bf16_weight *weight = job.w = mem_calloc(ctx, 1, sizeof *weight);
    if (!weight)
        return TARE_E_MEMORY;
    weight->n = n;
    weight->k = k;
    weight->slices = (n + COLUMNS - 1) / COLUMNS;
    parallel_for(ctx, 1, create_shapes, &job);
    TRY((tare_status)atomic_load(&job.status));
    size_t full = weight->slices - (n % COLUMNS != 0);
    size_t threads = (size_t)parallel_threads(ctx); /* any of them may take any slice */
    weight->packed = mem_alloc(ctx, full * weight->full.w_bytes + weight->last.w_bytes);
    if (dtype != TARE_BF16)
        job.rounded = mem_alloc_array(ctx, threads * COLUMNS * k, sizeof *job.rounded);
    if (!weight->packed || (dtype != TARE_BF16 && !job.rounded)) {
        status = TARE_E_MEMORY;
        goto done;
    }
    parallel_for(ctx, weight->slices, pack_slice, &job);
    TRY((tare_status)atomic_load(&job.status));
    *out = weight;
    weight = NULL;
done:
    mem_free(ctx, job.rounded);
    bf16_weight_free(ctx, weight);
    return status;
}

static void shape_free(bf16_shape *s)
{
    dnnl_primitive_destroy(s->matmul);
    dnnl_primitive_destroy(s->pack);
}

void bf16_weight_free(tare_context *ctx, bf16_weight *w)
{
    if (!w)
        return;
    shape_free(&w->full);
    shape_free(&w->last);
    if (w->engine)
        dnnl_engine_destroy(w->engine);
    mem_free(ctx, w->packed);
    mem_free(ctx, w);
}

/* ---- products ---- */

typedef struct bf16_job {
    tare_context *ctx;
    const kernels *kernels;
    const bf16_weight *w;
    const float *x, *bias;
    float *y;
    size_t tiles;
    const size_t *tile_row, *tile_rows; /* first row and number of rows of each tile */
    char *scratch;                      /* [threads][scratch_bytes] */
    size_t scratch_bytes;
    atomic_int status;
} bf16_job;

static size_t x_bytes(size_t k)
{
    return align64(ROWS * k * sizeof(uint16_t));
}

static void bf16_tile(void *user, size_t index, int thread)
{
    bf16_job *job = user;
    const bf16_weight *w = job->w;
    size_t tile = index % job->tiles, slice = index / job->tiles, column = slice * COLUMNS;
    const bf16_shape *s = slice_shape(w, slice);
    char *scratch = job->scratch + (size_t)thread * job->scratch_bytes;
    uint16_t *x = (uint16_t *)(void *)scratch;
    float *tile_y = (float *)(void *)(scratch + x_bytes(w->k));
    size_t row = job->tile_row[tile], rows = job->tile_rows[tile];
    job->kernels->float_to_bf16(job->x + row * w->k, rows * w->k, x);
    memset(x + rows * w->k, 0, (ROWS - rows) * w->k * sizeof *x);
    operand operands[] = {
        {DNNL_ARG_SRC, &s->x, x},
        {DNNL_ARG_WEIGHTS, &s->w, w->packed + slice * w->full.w_bytes},
        {DNNL_ARG_DST, &s->y, tile_y},
        {DNNL_ARG_SCRATCHPAD, &s->scratchpad, tile_y + ROWS * COLUMNS},
    };
    tare_status status = execute(job->ctx, w->engine, s->matmul, operands, 4);
    if (status != TARE_OK)
        atomic_store(&job->status, (int)status);
    for (size_t r = 0; r < rows && status == TARE_OK; r++) {
        float *y = job->y + (row + r) * w->n + column;
        memcpy(y, tile_y + r * s->columns, s->columns * sizeof *y);
        if (job->bias)
            job->kernels->add(y, job->bias + column, s->columns);
    }
}

tare_status bf16_gemm(tare_context *ctx, const bf16_weight *w, const float *x, const size_t *rows,
                      size_t segments, const float *bias, float *y)
{
    tare_status status = TARE_OK;
    bf16_job job = {.ctx = ctx, .kernels = kernels_get(ctx), .w = w, .x = x, .bias = bias, .y = y};
    size_t threads = (size_t)parallel_threads(ctx), tiles = 0;
    size_t scratchpad = w->full.scratchpad_bytes > w->last.scratchpad_bytes
                            ? w->full.scratchpad_bytes
                            : w->last.scratchpad_bytes;
    for (size_t i = 0; i < segments; i++)
        tiles += (rows[i] + ROWS - 1) / ROWS;
    job.scratch_bytes = x_bytes(w->k) + ROWS * COLUMNS * sizeof(float) + scratchpad;
    atomic_init(&job.status, TARE_OK);
    size_t *places = mem_alloc_array(ctx, 2 * tiles, sizeof *places);
    job.scratch = places ? mem_alloc_array(ctx, threads, job.scratch_bytes) : NULL;
    if (!job.scratch) {
        status = TARE_E_MEMORY;
        goto done;
    }
    size_t row = 0;
    for (size_t i = 0; i < segments; i++) {
        for (size_t r = 0; r < rows[i]; r += ROWS) {
            places[job.tiles] = row + r;
            places[tiles + job.tiles++] = min_size(rows[i] - r, ROWS);
        }
        row += rows[i];
    }
    job.tile_row = places;
    job.tile_rows = places + tiles;
    parallel_for(ctx, tiles * w->slices, bf16_tile, &job);
    status = (tare_status)atomic_load(&job.status);
done:
    mem_free(ctx, job.scratch);
    mem_free(ctx, places);
    return status;
}

/* oneDNN pads a blocked weight to whole blocks, of at most 64 x 64 elements. */
size_t bf16_weight_bytes(size_t n, size_t k)
{
    return sizeof(bf16_weight) + (n + 128) * (k + 64) * sizeof(uint16_t) + 4096;
}

size_t bf16_scratch_bytes(size_t k)
{
    return x_bytes(k) + ROWS * COLUMNS * sizeof(float) + (1 << 20);
}

size_t bf16_packing_bytes(const tare_context *ctx, tare_dtype dtype, size_t k)
{
    return dtype == TARE_BF16
               ? 0
               : mem_array_bytes((size_t)parallel_threads(ctx) * COLUMNS * k, sizeof(uint16_t));
}

/* A segment ends with a tile that is not full. */
size_t bf16_places_bytes(size_t m, size_t segments)
{
    return mem_array_bytes(m / ROWS + segments, 2 * sizeof(size_t));
}
