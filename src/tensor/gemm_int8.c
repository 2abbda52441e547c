/* u8 x s8 -> s32: tiles of rows x columns over threads. Integer sums are exact in any order, so
 * tiles may follow the number of threads. */
#include <dnnl.h>

#include "base/parallel.h"
#include "tensor/gemm.h"
#include "tensor/kernels.h"

/* oneDNN packs both operands anew in every call, so large tiles are best (512 x 512: 1.0 Tops a
 * core at K = 8192, 256 x 512: 0.87; Zen 5); small ones serve to keep all threads at work. */
enum { LARGEST = 512, SMALLEST = 128 };

static size_t divide_up(size_t a, size_t b)
{
    return a / b + (a % b != 0);
}

typedef struct int8_job {
    tare_context *ctx;
    const kernels *kernels;
    bool onednn;
    const uint8_t *x;
    const int8_t *w;
    size_t m, n, k, rows, columns, row_tiles;
    int32_t *acc; /* [m,n]; or with `tile`: [rows,columns] for each thread */
    gemm_tile_fn tile;
    void *user;
    atomic_int status;
} int8_job;

static tare_status onednn_tile(const int8_job *job, const uint8_t *x, size_t m, const int8_t *w,
                               size_t n, int32_t *acc, size_t stride)
{
    const int32_t no_offset = 0;
    dnnl_status_t s = dnnl_gemm_u8s8s32(
        'N', 'T', 'F', (dnnl_dim_t)m, (dnnl_dim_t)n, (dnnl_dim_t)job->k, 1.0f, x,
        (dnnl_dim_t)job->k, 0, w, (dnnl_dim_t)job->k, 0, 0.0f, acc, (dnnl_dim_t)stride, &no_offset);
    if (s == dnnl_success)
        return TARE_OK;
    return TARE_FAIL(job->ctx, TARE_E_MEMORY, "oneDNN's dnnl_gemm_u8s8s32 failed with status %d",
                     (int)s);
}

static void int8_tile(void *user, size_t index, int thread)
{
    int8_job *job = user;
    size_t row = index % job->row_tiles * job->rows, column = index / job->row_tiles * job->columns;
    size_t m = job->m - row < job->rows ? job->m - row : job->rows;
    size_t n = job->n - column < job->columns ? job->n - column : job->columns;
    const uint8_t *x = job->x + row * job->k;
    const int8_t *w = job->w + column * job->k;
    size_t stride = job->tile ? job->columns : job->n;
    int32_t *acc = job->acc +
                   (job->tile ? (size_t)thread * job->rows * job->columns : row * job->n + column);
    tare_status status = TARE_OK;
    if (job->onednn)
        status = onednn_tile(job, x, m, w, n, acc, stride);
    else
        job->kernels->gemm_u8s8(x, m, w, n, job->k, acc, stride);
    if (status != TARE_OK)
        atomic_store(&job->status, (int)status);
    else if (job->tile)
        job->tile(job->user, row, m, column, n, acc, stride);
}

/* Large tiles, but enough of them for all threads. */
static void choose_tiles(int8_job *job)
{
    size_t enough = 3 * (size_t)parallel_threads(job->ctx);
    job->rows = job->columns = LARGEST;
    while (divide_up(job->m, job->rows) * divide_up(job->n, job->columns) < enough &&
           (job->rows > SMALLEST || job->columns > SMALLEST)) {
        if (job->rows < job->columns || job->rows == SMALLEST)
            job->columns /= 2;
        else
            job->rows /= 2;
    }
    job->row_tiles = divide_up(job->m, job->rows);
}

static tare_status run_job(int8_job *job)
{
    tare_context *ctx = job->ctx;
    if (job->k > GEMM_MAX_K)
        return TARE_FAIL(ctx, TARE_E_MODEL, "a linear layer with %zu inputs; at most %d in 8 bits",
                         job->k, GEMM_MAX_K);
    if (job->m == 0 || job->n == 0)
        return TARE_OK;
    choose_tiles(job);
    job->kernels = kernels_get(ctx);
    job->onednn = cpu_of(ctx) >= TARE_CPU_AVX512 && cpu_has_vnni();
    int32_t *scratch = NULL;
    if (job->tile) {
        size_t tiles = (size_t)parallel_threads(ctx);
        scratch = mem_alloc_array(ctx, tiles * job->rows * job->columns, sizeof *scratch);
        if (!scratch)
            return TARE_E_MEMORY;
        job->acc = scratch;
    }
    atomic_init(&job->status, TARE_OK);
    parallel_for(ctx, job->row_tiles * divide_up(job->n, job->columns), int8_tile, job);
    mem_free(ctx, scratch);
    return (tare_status)atomic_load(&job->status);
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

size_t gemm_u8s8_tiles_bytes(const tare_context *ctx)
{
    return mem_array_bytes((size_t)parallel_threads(ctx), LARGEST * LARGEST * sizeof(int32_t));
}
