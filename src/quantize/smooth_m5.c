/* m5 (1.5): channels whose extremes stand out are pulled in, by the activations alone. */
#include <stdlib.h>

#include "quantize/smooth_internal.h"

static int descending(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return x < y ? 1 : x > y ? -1 : 0;
}

/* Linear interpolation; v is sorted in descending order. */
static float quantile(const float *v, size_t n, double q)
{
    double position = q * (double)(n - 1), low = floor(position);
    float a = v[n - 1 - (size_t)low], b = v[n - 1 - (size_t)ceil(position)];
    return a + (b - a) * (float)(position - low);
}

/* The split of v [n], descending, with the best gap for its spread. Returns where `low` begins.
 * `upper`: the spread of the upper part counts, else that of the lower. Moments are taken about the
 * mean, so that prefix sums lose nothing. */
static size_t best_split(const float *v, size_t n, bool upper)
{
    double mean = 0, sum = 0, squares = 0, best = -INFINITY;
    size_t best_k = 1;
    for (size_t i = 0; i < n; i++)
        mean += (double)v[i] / (double)n;
    for (size_t i = 0; i < n && !upper; i++) {
        sum += v[i] - mean;
        squares += (v[i] - mean) * (v[i] - mean);
    }
    for (size_t k = 1; k < n; k++) {
        double d = v[k - 1] - mean, count = upper ? (double)k : (double)(n - k);
        sum += upper ? d : -d;
        squares += upper ? d * d : -d * d;
        double variance = count > 1 ? (squares - sum * sum / count) / (count - 1) : 0;
        double score = fabs((double)v[k - 1] - (double)v[k]) - fmax(variance, 0);
        if (score > best) {
            best = score;
            best_k = k;
        }
    }
    return best_k;
}

typedef struct cuts {
    float above, below;
} cuts;

/* `sorted` [n]: M, then m, in descending order. */
static float cut_above(const float *sorted, size_t n)
{
    float high = quantile(sorted, n, 0.8), cut = high + 1.5f * (high - quantile(sorted, n, 0.2));
    size_t count = 0;
    while (count < n && sorted[count] > cut)
        count++;
    return count > 1 ? sorted[best_split(sorted, count, false)] : cut;
}

static float cut_below(const float *sorted, size_t n)
{
    float low = quantile(sorted, n, 0.2), cut = low - 1.5f * (quantile(sorted, n, 0.8) - low);
    size_t count = 0;
    while (count < n && sorted[n - 1 - count] < cut)
        count++;
    const float *v = sorted + n - count;
    return count > 1 ? v[best_split(v, count, true) - 1] : cut;
}

/* At least 1, because a cut is never on the near side of its bound. A ratio that is no scale leaves
 * the channel alone, as do bounds of 0 or of the other sign (below); that covers the
 * specification's "mn = 0: s = s+" and "s_c = 0 -> 1". */
static float pulled(float extreme, float bound)
{
    float ratio = extreme / bound;
    if (!(ratio > 0) || !isfinite(ratio))
        return 1;
    return powf(ratio, 0.7f);
}

tare_status smooth_solve_m5(const smooth_task *t)
{
    size_t n = t->g->channels;
    const float *max = t->stats->max, *min = t->stats->min;
    float *sorted = mem_alloc_array(t->ctx, n, sizeof *sorted);
    if (!sorted)
        return TARE_E_MEMORY;
    cuts cut;
    memcpy(sorted, max, n * sizeof *sorted);
    qsort(sorted, n, sizeof *sorted, descending);
    cut.above = cut_above(sorted, n);
    memcpy(sorted, min, n * sizeof *sorted);
    qsort(sorted, n, sizeof *sorted, descending);
    cut.below = cut_below(sorted, n);
    mem_free(t->ctx, sorted);
    float bound_above = -INFINITY, bound_below = INFINITY;
    for (size_t c = 0; c < n; c++) {
        if (!(max[c] > cut.above))
            bound_above = fmaxf(bound_above, max[c]);
        if (!(min[c] < cut.below))
            bound_below = fminf(bound_below, min[c]);
    }
    for (size_t c = 0; c < n; c++) {
        float above = max[c] > cut.above && bound_above > 0 ? pulled(max[c], bound_above) : 1;
        float below = min[c] < cut.below && bound_below < 0 ? pulled(min[c], bound_below) : 1;
        t->out->s[c] = round_native(fmaxf(above, below), t->native);
    }
    return TARE_OK;
}
