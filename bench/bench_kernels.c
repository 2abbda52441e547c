/* Each vector kernel on every instruction set, one thread, on a row that fits the L2 cache, as CSV:
 * kernel,cpu,gbs (10^9 bytes read and written a second, the best of several runs). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tensor/kernels.h"

enum { N = 16384, RUNS = 5 };

typedef struct rows {
    const kernels *k;
    float x[N], y[N], z[N];
    uint16_t half[N];
    uint8_t bytes[N];
    int32_t acc[N];
    int64_t sums[N];
} rows;

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void run_bf16_to_float(rows *r)
{
    r->k->bf16_to_float(r->half, N, r->z);
}

static void run_fp16_to_float(rows *r)
{
    r->k->fp16_to_float(r->half, N, r->z);
}

static void run_float_to_bf16(rows *r)
{
    r->k->float_to_bf16(r->x, N, r->half);
}

static void run_float_to_fp16(rows *r)
{
    r->k->float_to_fp16(r->x, N, r->half);
}

static void run_min_max(rows *r)
{
    bool finite = true;
    r->k->min_max(r->x, N, &r->z[0], &r->z[1], &finite);
}

static void run_abs_max(rows *r)
{
    bool finite = true;
    r->k->abs_max(r->x, N, r->z, &finite);
}

static void run_quantize_symmetric(rows *r)
{
    r->sums[0] = r->k->quantize_symmetric(r->x, N, 0.01f, 127, (int8_t *)r->bytes);
}

static void run_quantize_asymmetric(rows *r)
{
    r->k->quantize_asymmetric(r->x, N, 0.01f, -3, r->bytes);
}

static void run_rms_norm(rows *r)
{
    r->k->rms_norm(r->x, r->y, N, 1e-6f, 0, r->z);
}

static void run_rope(rows *r)
{
    r->k->rope(r->z, r->x, r->y, N);
}

static void run_silu_mul(rows *r)
{
    memcpy(r->z, r->x, sizeof r->z); /* counted: the kernel works in place */
    r->k->silu_mul(r->z, r->y, N);
}

static void run_add(rows *r)
{
    r->k->add(r->z, r->x, N);
}

static void run_dot(rows *r)
{
    r->z[0] = r->k->dot(r->x, r->y, N);
}

static void run_axpy(rows *r)
{
    r->k->axpy(1e-6f, r->x, N, r->z);
}

static void run_softmax(rows *r)
{
    memcpy(r->z, r->x, sizeof r->z);
    r->k->softmax(r->z, N);
}

static void run_dequantize_row(rows *r)
{
    r->k->dequantize_row(r->acc, N, 131, r->sums, 0.01f, r->x, N, r->y, r->z);
}

static const struct {
    const char *name;
    size_t bytes; /* an element */
    void (*run)(rows *r);
} benches[] = {{"bf16_to_float", 6, run_bf16_to_float},
               {"fp16_to_float", 6, run_fp16_to_float},
               {"float_to_bf16", 6, run_float_to_bf16},
               {"float_to_fp16", 6, run_float_to_fp16},
               {"min_max", 4, run_min_max},
               {"abs_max", 4, run_abs_max},
               {"quantize_symmetric", 5, run_quantize_symmetric},
               {"quantize_asymmetric", 5, run_quantize_asymmetric},
               {"rms_norm", 12, run_rms_norm},
               {"rope", 12, run_rope},
               {"silu_mul", 20, run_silu_mul},
               {"add", 12, run_add},
               {"dot", 8, run_dot},
               {"axpy", 12, run_axpy},
               {"softmax", 16, run_softmax},
               {"dequantize_row", 24, run_dequantize_row}};

static double measure(rows *r, void (*run)(rows *r), double amount)
{
    double best = 0;
    for (int i = 0; i < RUNS; i++) {
        size_t calls = 0;
        double begin = seconds(), time;
        do {
            run(r);
            calls++;
        } while ((time = seconds() - begin) < 0.004);
        double rate = amount * (double)calls / time * 1e-9;
        best = rate > best ? rate : best;
    }
    return best;
}

int main(void)
{
    rows *r = calloc(1, sizeof *r);
    if (!r)
        return 1;
    printf("kernel,cpu,gbs\n");
    for (size_t b = 0; b < sizeof benches / sizeof *benches; b++) {
        for (int cpu = TARE_CPU_SCALAR; cpu <= TARE_CPU_AVX512; cpu++) {
            r->k = kernels_of((tare_cpu)cpu);
            if (!r->k)
                continue;
            for (size_t i = 0; i < N; i++) {
                r->x[i] = (float)(i * 2654435761u % 4096) / 1024 - 2;
                r->y[i] = r->z[i] = 0.5f;
                r->half[i] = (uint16_t)(i & 0x3fff);
                r->acc[i] = (int32_t)i;
            }
            double rate = measure(r, benches[b].run, (double)benches[b].bytes * N);
            printf("%s,%s,%.2f\n", benches[b].name, r->k->name, rate);
        }
    }
    free(r);
    return 0;
}
