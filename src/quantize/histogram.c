/* The default histogram: true edges, double precision. */
#include "quantize/histogram.h"

#include <math.h>
#include <string.h>

enum { BINS = HISTOGRAM_BINS, SUB_BINS = HISTOGRAM_SUB_BINS, LEVELS = HISTOGRAM_LEVELS };

/* All x lie in [low,high] but for rounding of an extended upper edge: that goes to the last bin. */
static void bins_exact(double low, double high, const float *x, size_t n, int32_t *bins)
{
    double width = high - low;
    for (size_t i = 0; i < n; i++) {
        int32_t bin = (int32_t)(((double)x[i] - low) * BINS / width);
        bins[i] = bin < BINS - 1 ? bin : BINS - 1;
    }
}

static tare_status count_exact(tare_context *ctx, double low, double high, const float *x,
                               size_t count, uint64_t *counts)
{
    if (high > low)
        return histogram_count(ctx, bins_exact, low, high, x, count, counts);
    memset(counts, 0, BINS * sizeof *counts);
    counts[0] = count;
    return TARE_OK;
}

/* Spreads the old mass over bins of `scale` sub-bins each, the old histogram starting at sub-bin
 * `start`. An old bin covers no more than two new ones, since the new range contains the old. The
 * positions are whole numbers, exact up to 2^53. */
static void spread_mass(const histogram *h, double start, double scale, double *mass)
{
    for (size_t i = 0; i < BINS; i++) {
        double begin = start + (double)i * SUB_BINS;
        double bin = fmin(floor(begin / scale), BINS - 1);
        double inside = fmin(fmax((bin + 1) * scale - begin, 0.0), SUB_BINS);
        size_t k = (size_t)bin;
        if (k + 1 >= BINS)
            inside = SUB_BINS;
        mass[k] += h->mass[i] * inside / SUB_BINS;
        if (inside < SUB_BINS)
            mass[k + 1] += h->mass[i] * (SUB_BINS - inside) / SUB_BINS;
    }
}

static double total_mass(const histogram *h)
{
    double total = 0.0;
    for (size_t i = 0; i < BINS; i++)
        total += h->mass[i];
    return total;
}

static tare_status merge(tare_context *ctx, histogram *h, const float *x, size_t count, double low,
                         double high)
{
    tare_status status = TARE_OK;
    uint64_t counts[BINS];
    double mass[BINS] = {0}, start = 0.0, scale = SUB_BINS;
    double width = (h->max - h->min) / ((double)BINS * SUB_BINS);
    if (width > 0.0) {
        scale = ceil((high - low) / (BINS * width));
        start = rint((h->min - low) / width);
        high += width * BINS * scale - (high - low);
    }
    TRY(count_exact(ctx, low, high, x, count, counts));
    if (low == h->min && high == h->max) {
        memcpy(mass, h->mass, sizeof mass);
    } else if (width > 0.0) {
        spread_mass(h, start, scale, mass);
    } else {
        double bin = floor((h->min - low) * BINS / (high - low));
        mass[(size_t)fmin(bin, BINS - 1)] = total_mass(h);
    }
    for (size_t i = 0; i < BINS; i++)
        h->mass[i] = (double)counts[i] + mass[i];
    h->min = low;
    h->max = high;
done:
    return status;
}

tare_status histogram_update(tare_context *ctx, histogram *h, const float *x, size_t count,
                             float low, float high)
{
    tare_status status = TARE_OK;
    if (h->started)
        return merge(ctx, h, x, count, fmin(h->min, low), fmax(h->max, high));
    uint64_t counts[BINS];
    TRY(count_exact(ctx, low, high, x, count, counts));
    for (size_t i = 0; i < BINS; i++)
        h->mass[i] = (double)counts[i];
    h->min = low;
    h->max = high;
    h->started = true;
done:
    return status;
}

/* sum of mass[i] * (1, p, p^2), p = distance of bin i from its end of the histogram, over the bins
 * outside the candidate range on one side. */
typedef struct moments {
    double m0, m1, m2;
    size_t bins; /* taken so far */
} moments;

typedef struct error_state {
    const histogram *h;
    moments left, right;
} error_state;

/* `end`: the outermost bin; `step` +1 or -1: the way inwards. */
static void moments_extend(moments *m, const double *end, ptrdiff_t step, size_t bins)
{
    for (; m->bins < bins; m->bins++) {
        double p = (double)m->bins, w = end[step * (ptrdiff_t)m->bins];
        m->m0 += w;
        m->m1 += w * p;
        m->m2 += w * p * p;
    }
}

/* A clipped bin whose near edge lies u-1 from the nearest level costs u^3 - (u-1)^3 = 3u^2 - 3u + 1
 * (times 1/3), u = reach - p. */
static double clipped_error(const moments *m, double reach)
{
    double u1 = reach * m->m0 - m->m1;
    double u2 = reach * (reach * m->m0 - 2.0 * m->m1) + m->m2;
    return 3.0 * u2 - 3.0 * u1 + m->m0;
}

/* With u the distance from `first` in bins, F(u) is the antiderivative of 3 * (u - level(u))^2; a
 * bin costs mass * (F(u+1) - F(u)) / 3. Bins wide, so the unit (bin width)^2 is left out, and with
 * it the case of width 0. F is continuous: a level edge that rounds to the other side costs
 * nothing. */
static double inside_error(const double *mass, size_t bins)
{
    double edge[BINS + 4], sum[4] = {0};
    double level = (double)bins / LEVELS, inverse = LEVELS / (double)bins, half = level / 2;
    double whole = 2.0 * half * half * half;
    for (int32_t i = 0; i <= (int32_t)bins; i++) {
        int32_t j = (int32_t)((double)i * inverse);
        double k = j < LEVELS - 1 ? j : LEVELS - 1;
        double v = (double)i - (k + 0.5) * level;
        edge[i] = v * v * v + whole * k;
    }
    size_t i = 0;
    for (; i + 4 <= bins; i += 4) {
        for (size_t t = 0; t < 4; t++)
            sum[t] += mass[i + t] * (edge[i + t + 1] - edge[i + t]);
    }
    for (; i < bins; i++)
        sum[0] += mass[i] * (edge[i + 1] - edge[i]);
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

static double range_error(void *user, size_t first, size_t last)
{
    error_state *s = user;
    size_t bins = last - first + 1;
    double half = (double)bins / LEVELS / 2;
    moments_extend(&s->left, s->h->mass, 1, first);
    moments_extend(&s->right, s->h->mass + BINS - 1, -1, BINS - 1 - last);
    return clipped_error(&s->left, (double)first + half) +
           clipped_error(&s->right, (double)(BINS - 1 - last) + half) +
           inside_error(s->h->mass + first, bins);
}

void histogram_range(const histogram *h, double *low, double *high)
{
    double cumulative[BINS], total = 0.0;
    error_state state = {.h = h};
    size_t first, last;
    double width = (h->max - h->min) / BINS;
    *low = h->min;
    *high = h->max;
    if (width == 0.0)
        return;
    for (size_t i = 0; i < BINS; i++) {
        total += h->mass[i];
        cumulative[i] = total;
    }
    range_search search = {cumulative, total, false, range_error, &state};
    range_search_run(&search, &first, &last);
    *low = h->min + width * (double)first;
    *high = h->min + width * (double)(last + 1);
}
