/* m5 (1.5): channels whose extremes stand out are pulled in, by the activations alone. */
#include <string.h>

#include "base/sort.h"
#include "quantize/smooth_internal.h"

/* v [n] in descending order. */
static tare_status sort_descending(tare_context *ctx, float *v, size_t n, float *scratch)
{
    tare_status status = sort_floats(ctx, v, n, scratch);
    for (size_t i = 0; i < n / 2; i++) {
        float x = v[i];
        v[i] = v[n - 1 - i];
        v[n - 1 - i] = x;
    }
    return status;
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
    size_t n;
    float *sorted, *scratch; /* [n] in work */
    float above, below;
} cuts;

static void lay_out(carver *c, void *component)
{
    cuts *cut = component;
    cut->sorted = carve(c, cut->n, sizeof *cut->sorted);
    cut->scratch = carve(c, cut->n, sizeof *cut->scratch);
}

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

static tare_status find_cuts(const smooth_task *t, cuts *out)
{
    tare_status status = TARE_OK;
    size_t n = out->n = t->g->channels;
    TRY(carver_alloc(t->ctx, lay_out, out));
    memcpy(out->sorted, t->stats->max, n * sizeof *out->sorted);
    TRY(sort_descending(t->ctx, out->sorted, n, out->scratch));
    out->above = cut_above(out->sorted, n);
    memcpy(out->sorted, t->stats->min, n * sizeof *out->sorted);
    TRY(sort_descending(t->ctx, out->sorted, n, out->scratch));
    out->below = cut_below(out->sorted, n);
done:
    mem_free(t->ctx, out->sorted);
    return status;
}

size_t smooth_m5_bytes(const tare_context *ctx, const smooth_group *g)
{
    return carver_bytes(lay_out, &(cuts){.n = g->channels}) + sort_floats_bytes(ctx);
}

tare_status smooth_solve_m5(const smooth_task *t)
{
    size_t n = t->g->channels;
    const float *max = t->stats->max, *min = t->stats->min;
    cuts cut;
    tare_status status = find_cuts(t, &cut);
    if (status != TARE_OK)
        return status;
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
