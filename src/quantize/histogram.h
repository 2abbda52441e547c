/* Histograms behind act_method 2: the exact one (spec/w8a8.md 4.4, doubles) and the reference's
 * FP32 one (9.3), with the counting and the greedy range search that they share; act_method 4 looks
 * at the exact one. Private to the observers and the histogram files. */
#ifndef TARE_QUANTIZE_HISTOGRAM_H
#define TARE_QUANTIZE_HISTOGRAM_H

#include "base/context.h"
#include "quantize/scheme.h"

enum {
    HISTOGRAM_BINS = 2048,
    HISTOGRAM_SUB_BINS = 128, /* an old bin is divided into so many when the range grows */
    HISTOGRAM_LEVELS = 256    /* target levels of the error estimate */
};

typedef struct histogram {
    bool started;
    double min, max;
    double mass[HISTOGRAM_BINS];
} histogram;

/* x [count], count > 0, with extremes low and high, all finite. Nothing changes on failure. */
tare_status histogram_update(tare_context *ctx, histogram *h, const float *x, size_t count,
                             float low, float high);
void histogram_range(const histogram *h, double *low, double *high);
/* The range of act_method 4, inside the extremes [low,high] of what was counted (range_mse.c). */
void histogram_mse_range(const histogram *h, const numerics *num, double low, double high,
                         double *lo, double *hi);

/* Sum over bins [low + i*width, low + (i+1)*width) of mass[i], spread evenly in its bin, times the
 * squared error of x' = scale * clamp(rne(x / scale), first, last). width > 0. */
double rounding_error(const double *mass, size_t bins, double low, double width, double scale,
                      double first, double last);

typedef struct histogram_compat {
    bool started;
    float min, max;
    float mass[HISTOGRAM_BINS];
} histogram_compat;

tare_status histogram_compat_update(tare_context *ctx, histogram_compat *h, const float *x,
                                    size_t count, float low, float high);
void histogram_compat_range(const histogram_compat *h, double *low, double *high);

/* Bin of each of x[n]; HISTOGRAM_BINS for an element that is dropped. [low,high] is what the
 * histogram_count() below was given. */
typedef void bin_function(double low, double high, const float *x, size_t n, int32_t *bins);

/* counts[HISTOGRAM_BINS] <- elements a bin. Parallel for large counts; exact, so the same for any
 * number of threads. */
tare_status histogram_count(tare_context *ctx, bin_function *bins_of, double low, double high,
                            const float *x, size_t count, uint64_t *counts);

/* Accounted bytes, at most. */
size_t histogram_count_bytes(const tare_context *ctx);

/* The greedy search of 4.4 narrows [0, HISTOGRAM_BINS-1] to [*first,*last]. error() is asked for
 * ranges each of which lies inside the one before. `cumulative` [HISTOGRAM_BINS]. */
typedef struct range_search {
    const double *cumulative;
    double total;
    bool fp32_thresholds; /* compat: shares of the total are rounded to FP32 */
    double (*error)(void *user, size_t first, size_t last);
    void *user;
} range_search;

void range_search_run(const range_search *search, size_t *first, size_t *last);

#endif
