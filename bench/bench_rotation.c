/* How fast a rotation turns a layer of Llama-3.1-70B (R1 of 8192 on every matrix that reads or
 * writes the residual stream, R2 on the values), as stored BF16 to BF16; as CSV: what,unit,value.
 * The yardstick of the same run is memory: reading and writing the same weights once, by the same
 * threads, as copies of the same pieces do. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/context.h"
#include "base/parallel.h"
#include "model/edit.h"

enum { HIDDEN = 8192, WIDE = 28672, KEYS = 1024, HEAD = 128, PIECE = 1 << 20, RUNS = 3 };

typedef struct matrix {
    const char *name;
    size_t n, k;
    bool reads, writes; /* the stream */
} matrix;

static const matrix LAYER[] = {
    {"q_proj", HIDDEN, HIDDEN, true, false},  {"k_proj", KEYS, HIDDEN, true, false},
    {"v_proj", KEYS, HIDDEN, true, false},    {"o_proj", HIDDEN, HIDDEN, false, true},
    {"gate_proj", WIDE, HIDDEN, true, false}, {"up_proj", WIDE, HIDDEN, true, false},
    {"down_proj", HIDDEN, WIDE, false, true},
};
enum { MATRICES = sizeof LAYER / sizeof *LAYER };

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void require(const tare_context *ctx, tare_status status)
{
    if (status == TARE_OK)
        return;
    fprintf(stderr, "bench_rotation: %s\n", tare_last_error(ctx));
    exit(1);
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *times)
{
    qsort(times, RUNS, sizeof *times, by_size);
    return times[RUNS / 2];
}

typedef struct copy_job {
    const char *from;
    char *to;
    size_t bytes;
} copy_job;

static void copy_piece(void *user, size_t index, int thread)
{
    const copy_job *job = user;
    size_t at = index * PIECE, left = job->bytes - at;
    (void)thread;
    memcpy(job->to + at, job->from + at, left < PIECE ? left : PIECE);
}

static double copy(tare_context *ctx, const void *from, void *to, size_t bytes)
{
    copy_job job = {from, to, bytes};
    double begin = seconds();
    parallel_for(ctx, (bytes + PIECE - 1) / PIECE, copy_piece, &job);
    return seconds() - begin;
}

/* One matrix: seconds of the median run, and of the copy. */
static void turn(tare_context *ctx, const matrix *m, const rotation *stream, const rotation *values,
                 double *turned, double *copied)
{
    size_t bytes = m->n * m->k * sizeof(uint16_t);
    uint16_t *from = malloc(bytes), *to = malloc(bytes);
    double times[RUNS], copies[RUNS];
    weight_edit e = {.right_blocks = 1, .right_share = 1};
    if (!from || !to)
        exit(1);
    for (size_t i = 0; i < m->n * m->k; i++)
        from[i] = (uint16_t)(0x3C00 + i * 2654435761u % 1024 + (i & 1) * 0x8000);
    memset(to, 0, bytes);
    e.right = m->reads ? stream : NULL;
    e.left = m->writes ? stream : NULL;
    if (strcmp(m->name, "o_proj") == 0) { /* and its columns by heads */
        e.right = values;
        e.right_blocks = KEYS / HEAD;
        e.right_share = HIDDEN / KEYS;
    }
    for (int i = 0; i < RUNS; i++) {
        coded_rows rows = coded_plain(TARE_BF16, from, m->k);
        double begin = seconds();
        require(ctx, edit_rows(ctx, &e, m->n, 0, m->n, &rows, TARE_BF16, to));
        times[i] = seconds() - begin;
        copies[i] = copy(ctx, from, to, bytes);
    }
    *turned = median(times);
    *copied = median(copies);
    free(from);
    free(to);
}

int main(void)
{
    tare_context *ctx;
    rotation stream, values[KEYS / HEAD];
    double all = 0, memory = 0, weights = 0;
    if (tare_context_create(&ctx, NULL) != TARE_OK)
        return 1;
    require(ctx, rotation_create(ctx, HIDDEN, 0, 0, &stream));
    for (size_t h = 0; h < KEYS / HEAD; h++)
        require(ctx, rotation_create(ctx, HEAD, 0, (uint32_t)(1 + h), &values[h]));
    printf("what,unit,value\n");
    for (size_t i = 0; i < MATRICES; i++) {
        double turned, copied;
        turn(ctx, &LAYER[i], &stream, values, &turned, &copied);
        printf("%s,s,%.3f\n%s of a copy's speed,share,%.3f\n", LAYER[i].name, turned, LAYER[i].name,
               copied / turned);
        all += turned;
        memory += copied;
        weights += (double)LAYER[i].n * (double)LAYER[i].k;
    }
    printf("layer,s,%.3f\nlayer,M weights/s,%.0f\nlayer of a copy's speed,share,%.3f\n", all,
           weights / all * 1e-6, memory / all);
    for (size_t h = 0; h < KEYS / HEAD; h++)
        rotation_free(ctx, &values[h]);
    rotation_free(ctx, &stream);
    tare_context_free(ctx);
    return 0;
}
