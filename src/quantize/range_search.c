/* Counting into bins and the greedy L2 range search, shared by both histograms. */
#include <math.h>
#include <string.h>

#include "base/carver.h"
#include "base/parallel.h"
#include "quantize/histogram.h"

enum {
    BLOCK = 1024,     /* elements whose bins are computed at a time */
    TABLES = 4,       /* sub-histograms: neighbours of equal value don't wait for each other */
    PIECE = 1u << 15, /* elements of one piece of parallel work: fits uint32 counts */
    SLOTS = HISTOGRAM_BINS + 1
};

typedef struct count_job {
    bin_function *bins_of;
    double low, high;
    const float *x;
    size_t count, threads;
    uint64_t *totals; /* [threads, SLOTS] */
} count_job;

static void lay_out(carver *c, void *component)
{
    count_job *job = component;
    job->totals = carve(c, job->threads, SLOTS * sizeof *job->totals);
}

static void count_piece(void *user, size_t index, int thread)
{
    const count_job *job = user;
    uint32_t tables[TABLES][SLOTS];
    int32_t bins[BLOCK];
    uint64_t *totals = job->totals + (size_t)thread * SLOTS;
    size_t begin = index * PIECE, left = job->count - begin;
    const float *x = job->x + begin;
    left = left < PIECE ? left : PIECE;
    memset(tables, 0, sizeof tables);
    while (left > 0) {
        size_t n = left < BLOCK ? left : BLOCK, i = 0;
        job->bins_of(job->low, job->high, x, n, bins);
        for (; i + TABLES <= n; i += TABLES) {
            for (size_t t = 0; t < TABLES; t++)
                tables[t][bins[i + t]]++;
        }
        for (; i < n; i++)
            tables[0][bins[i]]++;
        x += n;
        left -= n;
    }
    for (size_t i = 0; i < SLOTS; i++) {
        for (size_t t = 0; t < TABLES; t++)
            totals[i] += tables[t][i];
    }
}

tare_status histogram_count(tare_context *ctx, bin_function *bins_of, double low, double high,
                            const float *x, size_t count, uint64_t *counts)
{
    uint64_t own[SLOTS] = {0};
    size_t threads = (size_t)parallel_threads(ctx), pieces = size_divide_up(count, PIECE);
    count_job job = {bins_of, low, high, x, count, threads, own};
    if (pieces <= 1 || threads <= 1) {
        for (size_t i = 0; i < pieces; i++)
            count_piece(&job, i, 0);
        memcpy(counts, own, HISTOGRAM_BINS * sizeof *counts);
        return TARE_OK;
    }
    tare_status status = carver_alloc(ctx, lay_out, &job);
    if (status != TARE_OK)
        return status;
    memset(job.totals, 0, threads * sizeof own);
    parallel_for(ctx, pieces, count_piece, &job);
    memset(counts, 0, HISTOGRAM_BINS * sizeof *counts);
    for (size_t t = 0; t < threads; t++) {
        for (size_t i = 0; i < HISTOGRAM_BINS; i++)
            counts[i] += job.totals[t * SLOTS + i];
    }
    mem_free(ctx, job.totals);
    return TARE_OK;
}

size_t histogram_count_bytes(const tare_context *ctx)
{
    return carver_bytes(lay_out, &(count_job){.threads = (size_t)parallel_threads(ctx)});
}

static double share_of(const range_search *s, double share)
{
    double mass = share * s->total;
    return s->fp32_thresholds ? (double)(float)mass : mass;
}

/* Both ends move inwards only and the shares only grow, so l and r go on where they stood: the
 * first element of a later scan is never before the last of an earlier one. */
void range_search_run(const range_search *s, size_t *first, size_t *last)
{
    const double step = 1e-5, *c = s->cumulative;
    size_t a = 0, z = HISTOGRAM_BINS - 1, l = a, r = z;
    double alpha = 0.0, beta = 1.0, best = INFINITY;
    while (alpha < beta && a < z) {
        double low = share_of(s, alpha + step), high = share_of(s, beta - step);
        l = l < z ? l : z;
        r = r > a ? r : a;
        while (l < z && c[l] < low)
            l++;
        while (r > a && c[r] > high)
            r--;
        size_t next_a = a, next_z = z;
        if (l - a > z - r) {
            next_a = l;
            alpha += step;
        } else {
            next_z = r;
            beta -= step;
        }
        if (next_a == a && next_z == z)
            continue;
        double error = s->error(s->user, next_a, next_z);
        if (error > best)
            break;
        best = error;
        a = next_a;
        z = next_z;
    }
    *first = a;
    *last = z;
}
