/* u8 x s8 -> s32: tiles of rows x columns over threads. Integer sums are exact in any order, so
 * tiles may follow the number of threads. */
#include <dnnl.h>

#include "base/parallel.h"
#include "tensor/gemm.h"
#include "tensor/kernels.h"

/* oneDNN packs the weight slice anew in every call: many rows a call, and slices that stay in the
 * L2 cache (bench/bench_gemm.c). */
enum { ROWS = 256, COLUMNS = 512 };

typedef struct int8_job {
    tare_context *ctx;
    const kernels *kernels;
    bool onednn;
    const uint8_t *x;
    const int8_t *w;
    size_t m, n, k, rows, columns, row_tiles;
    int32_t *acc;
    atomic_int status;
} int8_job;

static tare_status onednn_tile(const int8_job *job, const uint8_t *x, size_t m, const int8_t *w,
                               size_t n, int32_t *acc)
{
    const int32_t no_offset = 0;
    dnnl_status_t s = dnnl_gemm_u8s8s32(
        'N', 'T', 'F', (dnnl_dim_t)m, (dnnl_dim_t)n, (dnnl_dim_t)job->k, 1.0f, x,
        (dnnl_dim_t)job->k, 0, w, (dnnl_dim_t)job->k, 0, 0.0f, acc, (dnnl_dim_t)job->n, &no_offset);
    if (s == dnnl_success)
        return TARE_OK;
    return TARE_FAIL(job->ctx, TARE_E_MEMORY, "oneDNN's dnnl_gemm_u8s8s32 failed with status %d",
                     (int)s);
}

static void int8_tile(void *user, size_t index, int thread)
{
    (void)thread;
    int8_job *job = user;
    size_t row = index % job->row_tiles * job->rows, column = index / job->row_tiles * job->columns;
    size_t m = job->m - row < job->rows ? job->m - row : job->rows;
    size_t n = job->n - column < job->columns ? job->n - column : job->columns;
    const uint8_t *x = job->x + row * job->k;
    const int8_t *w = job->w + column * job->k;
    int32_t *acc = job->acc + row * job->n + column;
    if (!job->onednn) {
        job->kernels->gemm_u8s8(x, m, w, n, job->k, acc, job->n);
        return;
    }
    tare_status status = onednn_tile(job, x, m, w, n, acc);
    if (status != TARE_OK)
        atomic_store(&job->status, (int)status);
}

tare_status gemm_u8s8(tare_context *ctx, const uint8_t *x, const int8_t *w, size_t m, size_t n,
                      size_t k, int32_t *acc)
{
    if (k > GEMM_MAX_K)
        return TARE_FAIL(ctx, TARE_E_MODEL, "a linear layer with %zu inputs; at most %d in 8 bits",
                         k, GEMM_MAX_K);
    if (m == 0 || n == 0)
        return TARE_OK;
    int8_job job = {.ctx = ctx,
                    .kernels = kernels_get(ctx),
                    .onednn = cpu_of(ctx) >= TARE_CPU_AVX512 && cpu_has_vnni(),
                    .x = x,
                    .w = w,
                    .m = m,
                    .n = n,
                    .k = k,
                    .rows = ROWS,
                    .columns = COLUMNS,
                    .row_tiles = (m + ROWS - 1) / ROWS,
                    .acc = acc};
    atomic_init(&job.status, TARE_OK);
    parallel_for(ctx, job.row_tiles * ((n + COLUMNS - 1) / COLUMNS), int8_tile, &job);
    return (tare_status)atomic_load(&job.status);
}
