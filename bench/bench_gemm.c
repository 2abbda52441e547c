/* Rates of the matrix products, as CSV: kind,cpu,threads,m,n,k,gops,gops_cpu (10^9 multiplications
 * and additions a second of the clock, and a second that every thread computed, which a busy
 * machine does not change; the best of several runs). oneDNN's dnnl_sgemm is the yardstick in the
 * same run of a build that has it. The last lines are the machine's rates: the best of the FP32,
 * the BF16 and the 8-bit lines.
 */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#ifdef TARE_ONEDNN
#include <dnnl.h>
#endif

#include "base/parallel.h"
#include "tensor/gemm.h"
#include "tensor/kernels.h"

enum { RUNS = 7 };

typedef struct product {
    tare_context *ctx;
    size_t m, n, k;
    float *x, *w, *y;
    uint8_t *x8;
    int8_t *w8;
    int32_t *acc;
    gemm_weight *weight;
} product;

typedef struct rates {
    double clock, cpu;
} rates;

enum { INT8 = GEMM_BF16 + 1, KINDS };
static const char *const kinds[KINDS] = {"fp32", "bf16", "int8"};

static double seconds(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void require(const tare_context *ctx, tare_status status)
{
    if (status == TARE_OK)
        return;
    fprintf(stderr, "bench_gemm: %s\n", tare_last_error(ctx));
    exit(1);
}

static void *allocate(tare_context *ctx, size_t count, size_t size)
{
    void *p = mem_calloc(ctx, count, size);
    require(ctx, p ? TARE_OK : TARE_E_MEMORY);
    return p;
}

static void run_float(product *p)
{
    require(p->ctx, gemm_float(p->ctx, p->weight, p->x, p->m, NULL, p->y));
}

static void run_int8(product *p)
{
    require(p->ctx, gemm_u8s8(p->ctx, p->x8, p->w8, p->m, p->n, p->k, p->acc));
}

#ifdef TARE_ONEDNN
static void run_sgemm(product *p)
{
    dnnl_dim_t m = (dnnl_dim_t)p->m, n = (dnnl_dim_t)p->n, k = (dnnl_dim_t)p->k;
    if (dnnl_sgemm('N', 'T', m, n, k, 1.0f, p->x, k, p->w, k, 0.0f, p->y, n) != dnnl_success)
        exit(1);
}
#endif

static void raise_rates(rates *best, rates found)
{
    best->clock = found.clock > best->clock ? found.clock : best->clock;
    best->cpu = found.cpu > best->cpu ? found.cpu : best->cpu;
}

static rates measure(const char *kind, product *p, void (*run)(product *))
{
    rates best = {0};
    double operations = 2e-9 * (double)p->m * (double)p->n * (double)p->k;
    run(p);
    for (int i = 0; i < RUNS; i++) {
        size_t calls = 0;
        double begin = seconds(CLOCK_MONOTONIC), cpu = seconds(CLOCK_PROCESS_CPUTIME_ID), time;
        do {
            run(p);
            calls++;
        } while ((time = seconds(CLOCK_MONOTONIC) - begin) < 0.02);
        cpu = seconds(CLOCK_PROCESS_CPUTIME_ID) - cpu;
        rates found = {operations * (double)calls / time,
                       operations * (double)calls * parallel_threads(p->ctx) / cpu};
        raise_rates(&best, found);
    }
    printf("%s,%s,%d,%zu,%zu,%zu,%.1f,%.1f\n", kind, tare_cpu_name(p->ctx),
           parallel_threads(p->ctx), p->m, p->n, p->k, best.clock, best.cpu);
    return best;
}

static void measure_shape(tare_context *ctx, const size_t *shape, rates best[KINDS])
{
    product p = {.ctx = ctx, .m = shape[0], .n = shape[1], .k = shape[2]};
    p.x = allocate(ctx, p.m * p.k, sizeof *p.x);
    p.w = allocate(ctx, p.n * p.k, sizeof *p.w);
    p.y = allocate(ctx, p.m * p.n, sizeof *p.y);
    p.x8 = allocate(ctx, p.m, p.k);
    p.w8 = allocate(ctx, p.n, p.k);
    p.acc = allocate(ctx, p.m * p.n, sizeof *p.acc);
    for (size_t i = 0; i < p.m * p.k; i++)
        p.x[i] = (float)(p.x8[i] = (uint8_t)(i * 2654435761u >> 24)) / 128 - 1;
    for (size_t i = 0; i < p.n * p.k; i++)
        p.w[i] = (float)(p.w8[i] = (int8_t)(i * 2246822519u >> 24)) / 128;
    for (int compute = GEMM_FP32; compute <= GEMM_BF16; compute++) {
        require(ctx,
                gemm_weight_create(ctx, (gemm_compute)compute, TARE_F32, p.w, p.n, p.k, &p.weight));
        rates found = measure(kinds[compute], &p, run_float);
        raise_rates(&best[compute], found);
        gemm_weight_free(ctx, p.weight);
    }
    raise_rates(&best[INT8], measure(kinds[INT8], &p, run_int8));
#ifdef TARE_ONEDNN
    if (parallel_threads(ctx) == parallel_default_threads())
        measure("dnnl_sgemm", &p, run_sgemm);
#endif
    void *blocks[] = {p.x, p.w, p.y, p.x8, p.w8, p.acc};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++)
        mem_free(ctx, blocks[i]);
}

/* A few rows of text that is being generated, by a BF16 weight that no cache holds: 2 * n * k bytes
 * pass by for 2 * m * n * k operations. The last two straddle where the tiles take over. */
static void measure_few(tare_context *ctx)
{
    static const size_t rows[] = {1, 2, 3, 4, 6, 8, 12, 16, 17};
    product p = {.ctx = ctx, .n = 8192, .k = 3072};
    uint16_t *w = allocate(ctx, p.n * p.k, sizeof *w);
    p.x = allocate(ctx, 17 * p.k, sizeof *p.x);
    p.y = allocate(ctx, 17 * p.n, sizeof *p.y);
    for (size_t i = 0; i < p.n * p.k; i++)
        w[i] = (uint16_t)(0x3c00 + (i * 2654435761u >> 25));
    for (size_t i = 0; i < 17 * p.k; i++)
        p.x[i] = (float)(i % 251) / 128 - 1;
    require(ctx, gemm_weight_create(ctx, GEMM_FP32, TARE_BF16, w, p.n, p.k, &p.weight));
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        p.m = rows[i];
        measure("few_bf16", &p, run_float);
    }
    gemm_weight_free(ctx, p.weight);
    mem_free(ctx, w);
    mem_free(ctx, p.x);
    mem_free(ctx, p.y);
}

int main(void)
{
    /* A sample through SmolLM2's MLP, ten samples, a slice of a 70B layer. */
    const size_t shapes[][3] = {
        {165, 1536, 576}, {1650, 1536, 576}, {1650, 576, 1536}, {1024, 2048, 8192}};
    rates best[KINDS] = {{0}};
    printf("kind,cpu,threads,m,n,k,gops,gops_cpu\n");
    for (int cpu = TARE_CPU_AVX2; cpu <= TARE_CPU_AMX; cpu++) {
        tare_context_options options;
        tare_context *ctx;
        tare_context_options_init(&options);
        options.cpu = (tare_cpu)cpu;
        if (!kernels_of(options.cpu))
            continue;
        if (tare_context_create(&ctx, &options) != TARE_OK)
            return 1;
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
            measure_shape(ctx, shapes[i], best);
        measure_few(ctx);
        tare_context_free(ctx);
    }
    for (int i = 0; i < KINDS; i++)
        printf("machine_%s,,%d,,,,%.1f,%.1f\n", kinds[i], parallel_default_threads(), best[i].clock,
               best[i].cpu);
    return 0;
}
