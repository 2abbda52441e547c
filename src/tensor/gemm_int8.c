/* u8 x s8 -> s32: tiles of rows x columns over threads. Integer sums are exact in any order, so
 * tiles may follow the number of threads. */
#include <string.h>

#ifdef TARE_ONEDNN
#include <dnnl.h>
#endif

#include "base/parallel.h"
#include "base/sizes.h"
#include "tensor/gemm.h"
#include "tensor/kernels.h"

/* oneDNN packs both operands anew in every call, so large tiles are best (512 x 512: 1.0 Tops a
 * core at K = 8192, 256 x 512: 0.87; Zen 5); small ones serve to keep all threads at work. */
enum { LARGEST = 512, SMALLEST = 128 };

/* AMX: a block of x of so many columns stays in the L2 cache, and of w in the L1. */
enum { BLOCK_DEPTH = 512 };

/* Beside the columns of a tile in memory: rows whole pages apart would share cache sets. */
enum { STRIDE_MORE = 16 };

typedef struct block_scratch {
    _Alignas(64) uint8_t x[LARGEST * BLOCK_DEPTH];
    _Alignas(64) int8_t w[GEMM_PANEL * BLOCK_DEPTH];
} block_scratch;

typedef struct int8_job {
    tare_context *ctx;
    const kernels *kernels;
    const uint8_t *x;
    const int8_t *w;
    size_t m, n, k, rows, columns, row_tiles;
    int32_t *acc;         /* [m,n] */
    char *scratch;        /* of each thread: a tile, and in front of it a block_scratch for */
    size_t scratch_bytes; /* kernels.block_u8s8; NULL: straight into acc */
    gemm_tile_fn tile;    /* or NULL */
    void *user;
    atomic_int status;
} int8_job;

/* A tile whose operands are multiplied where they lie. */
static tare_status plain_tile(const int8_job *job, const uint8_t *x, size_t m, const int8_t *w,
                              size_t n, int32_t *acc, size_t stride)
{
#ifdef TARE_ONEDNN
    if (cpu_uses_onednn(job->ctx)) {
        const int32_t no_offset = 0;
        dnnl_status_t s = dnnl_gemm_u8s8s32('N', 'T', 'F', (dnnl_dim_t)m, (dnnl_dim_t)n,
                                            (dnnl_dim_t)job->k, 1.0f, x, (dnnl_dim_t)job->k, 0, w,
                                            (dnnl_dim_t)job->k, 0, 0.0f, acc, (dnnl_dim_t)stride,
                                            &no_offset);
        if (s == dnnl_success)
            return TARE_OK;
        return TARE_FAIL(job->ctx, TARE_E_MEMORY,
                         "oneDNN's dnnl_gemm_u8s8s32 failed with status %d", (int)s);
    }
#endif
    job->kernels->gemm_u8s8(x, m, w, n, job->k, acc, stride);
    return TARE_OK;
}

/* Asks for the next panel while this one is multiplied. */
static void fetch_panel(const int8_t *w, size_t ldw, size_t columns, size_t depth)
{
    for (size_t r = 0; r < GEMM_PANEL && r < columns; r++) {
        for (size_t i = 0; i < depth; i += 64)
            __builtin_prefetch(w + r * ldw + i, 0, 2);
    }
}

/* acc has room for whole blocks; missing rows and columns count as zero. */
static void block_tile(const int8_job *job, const uint8_t *x, size_t m, const int8_t *w, size_t n,
                       int32_t *acc, size_t stride, block_scratch *s)
{
    size_t rows = size_round_up(m, GEMM_BLOCK_STEP);
    memset(acc, 0, rows * stride * sizeof *acc);
    memset(s->x + m * BLOCK_DEPTH, 0, (rows - m) * BLOCK_DEPTH);
    for (size_t k0 = 0; k0 < job->k; k0 += BLOCK_DEPTH) {
        size_t depth = job->k - k0 < BLOCK_DEPTH ? job->k - k0 : BLOCK_DEPTH;
        size_t padded = size_round_up(depth, (size_t)2 * GEMM_BLOCK_STEP);
        for (size_t i = 0; i < m; i++) {
            memcpy(s->x + i * BLOCK_DEPTH, x + i * job->k + k0, depth);
            memset(s->x + i * BLOCK_DEPTH + depth, 0, padded - depth);
        }
        for (size_t c = 0; c < n; c += GEMM_PANEL) {
            size_t columns = n - c < GEMM_PANEL ? n - c : GEMM_PANEL;
            fetch_panel(w + (c + GEMM_PANEL) * job->k + k0, job->k,
                        n - c > GEMM_PANEL ? n - c - GEMM_PANEL : 0, depth);
            job->kernels->pack_u8s8(w + c * job->k + k0, job->k, columns, depth, s->w);
            job->kernels->block_u8s8(s->x, BLOCK_DEPTH, s->w, padded, rows, acc + c, stride);
        }
    }
}

static void int8_tile(void *user, size_t index, int thread)
{
    int8_job *job = user;
    size_t row = index % job->row_tiles * job->rows, column = index / job->row_tiles * job->columns;
    size_t m = job->m - row < job->rows ? job->m - row : job->rows;
    size_t n = job->n - column < job->columns ? job->n - column : job->columns;
    const uint8_t *x = job->x + row * job->k;
    const int8_t *w = job->w + column * job->k;
    size_t stride = job->scratch ? job->columns + STRIDE_MORE : job->n;
    void *own = job->scratch ? job->scratch + (size_t)thread * job->scratch_bytes : NULL;
    block_scratch *block = job->kernels->block_u8s8 ? own : NULL;
    int32_t *acc = block          ? (int32_t *)(void *)(block + 1)
                   : job->scratch ? own
                                  : job->acc + row * job->n + column;
    tare_status status = TARE_OK;
    if (block)
        block_tile(job, x, m, w, n, acc, stride, block);
    else
        status = plain_tile(job, x, m, w, n, acc, stride);
    if (status != TARE_OK)
        atomic_store(&job->status, (int)status);
    else if (job->tile)
        job->tile(job->user, row, m, column, n, acc, stride);
    else if (job->scratch)
        for (size_t i = 0; i < m; i++)
            memcpy(job->acc + (row + i) * job->n + column, acc + i * stride, n * sizeof *acc);
}

/* Large tiles, but enough of them for all threads. */
static void choose_tiles(const tare_context *ctx, int8_job *job)
{
    size_t enough = 3 * (size_t)parallel_threads(ctx);
    job->rows = job->columns = LARGEST;
    while (size_divide_up(job->m, job->rows) * size_divide_up(job->n, job->columns) < enough &&
           (job->rows > SMALLEST || job->columns > SMALLEST)) {
        if (job->rows < job->columns || job->rows == SMALLEST)
            job->columns /= 2;
        else
            job->rows /= 2;
    }
    job->row_tiles = size_divide_up(job->m, job->rows);
}

/* Of a thread. */
static size_t scratch_bytes(const tare_context *ctx, size_t rows, size_t columns, bool tiles)
{
    bool blocks = kernels_get(ctx)->block_u8s8;
    size_t tile = tiles || blocks ? rows * (columns + STRIDE_MORE) * sizeof(int32_t) : 0;
    return tile + (blocks ? sizeof(block_scratch) : 0);
}

static tare_status run_job(int8_job *job)
{
    tare_context *ctx = job->ctx;
    if (job->k > GEMM_MAX_K)
        return TARE_FAIL(ctx, TARE_E_MODEL, "a linear layer with %zu inputs; at most %d in 8 bits",
                         job->k, GEMM_MAX_K);
    if (job->m == 0 || job->n == 0)
        return TARE_OK;
    choose_tiles(ctx, job);
    job->kernels = kernels_get(ctx);
    job->scratch_bytes = scratch_bytes(ctx, job->rows, job->columns, job->tile);
    if (job->scratch_bytes) {
        size_t threads = (size_t)parallel_threads(ctx);
        job->scratch = mem_take_scratch(ctx, threads, job->scratch_bytes);
        if (!job->scratch)
            return TARE_E_MEMORY;
    }
    atomic_init(&job->status, TARE_OK);
    parallel_for(ctx, job->row_tiles * size_divide_up(job->n, job->columns), int8_tile, job);
    mem_give_scratch(ctx, job->scratch);
    return (tare_status)atomic_load(&job->status);
}

void gemm_onednn_version(buffer *out)
{
#ifdef TARE_ONEDNN
    const dnnl_version_t *v = dnnl_version();
    buffer_printf(out, "%d.%d.%d", v->major, v->minor, v->patch);
#else
    buffer_puts(out, "none");
#endif
}

tare_status gemm_u8s8(tare_context *ctx, const uint8_t *x, const int8_t *w, size_t m, size_t n,
                      size_t k, int32_t *acc)
{
    int8_job job = {.ctx = ctx, .x = x, .w = w, .m = m, .n = n, .k = k, .acc = acc};
    return run_job(&job);
}

tare_status gemm_u8s8_tiles(tare_context *ctx, const uint8_t *x, const int8_t *w, size_t m,
                            size_t n, size_t k, gemm_tile_fn tile, void *user)
{
    int8_job job = {.ctx = ctx, .x = x, .w = w, .m = m, .n = n, .k = k, .tile = tile, .user = user};
    return run_job(&job);
}

size_t gemm_u8s8_bytes(const tare_context *ctx, size_t m, size_t n)
{
    int8_job job = {.m = m, .n = n};
    choose_tiles(ctx, &job);
    return mem_array_bytes((size_t)parallel_threads(ctx),
                           scratch_bytes(ctx, job.rows, job.columns, false));
}

size_t gemm_u8s8_tiles_bytes(const tare_context *ctx)
{
    return mem_array_bytes((size_t)parallel_threads(ctx),
                           scratch_bytes(ctx, LARGEST, LARGEST, true));
}
