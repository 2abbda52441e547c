/* The reference's histogram, operation by operation in FP32 (spec/w8a8.md 9.3). Even its losses
 * count: integer edges that drop mass, and the rounding residue of the merged histogram. */
#include <float.h>
#include <math.h>
#include <string.h>

#include "quantize/histogram.h"
#include "quantize/observer.h"
#include "tensor/round.h"

enum { BINS = HISTOGRAM_BINS, SUB_BINS = HISTOGRAM_SUB_BINS, LEVELS = HISTOGRAM_LEVELS };

static void bins_fp32(double low, double high, const float *x, size_t n, int32_t *bins)
{
    float a = (float)low, b = (float)high, width = b - a;
    for (size_t i = 0; i < n; i++) {
        float position = (x[i] - a) * (float)BINS / width;
        bool outside = (x[i] < a) | (x[i] > b);
        int32_t bin = (int32_t)(outside ? (float)BINS : position);
        bins[i] = outside || bin < BINS ? bin : BINS - 1;
    }
}

/* [edge_low,edge_high] truncated toward zero; if that is one point, the tensor's own [low,high]. */
static tare_status count_truncated(tare_context *ctx, float edge_low, float edge_high, float low,
                                   float high, const float *x, size_t count, float *mass)
{
    tare_status status = TARE_OK;
    uint64_t counts[BINS];
    float a = truncf(edge_low), b = truncf(edge_high);
    if (a == b) {
        a = low;
        b = high;
    }
    if (a == b) {
        a -= 1.0f;
        b += 1.0f;
    }
    /* Beyond 2^24 the offset of 1 is lost and the reference divides by 0. */
    if (a == b) {
        memset(mass, 0, BINS * sizeof *mass);
        mass[0] = (float)count;
        return TARE_OK;
    }
    if (!isfinite((b - a) * (float)BINS))
        return TARE_FAIL(ctx, TARE_E_NUMERIC, "the range [%g, %g] is too wide for a histogram",
                         (double)low, (double)high);
    TRY(histogram_count(ctx, bins_fp32, a, b, x, count, counts));
    for (size_t i = 0; i < BINS; i++)
        mass[i] = (float)counts[i];
done:
    return status;
}

/* sum + h, n times over. One product gives the same where no addition rounds: sum and h are whole
 * multiples of the last place of the result. */
static double add_repeatedly(double sum, double h, size_t n)
{
    if (h == 0.0)
        return sum;
    double end = sum + h * (double)n;
    int exponent;
    frexp(fmax(fabs(end), fabs(sum)), &exponent);
    double magic = ldexp(1.5, exponent); /* its last place is that of numbers < 2^(exponent+1) */
    if ((h + magic) - magic == h && (sum + magic) - magic == sum)
        return end;
    for (size_t j = 0; j < n; j++)
        sum += h;
    return sum;
}

/* Double prefix sum over the sub-bins, sampled at the end of every new bin of `scale` sub-bins, the
 * old histogram starting at sub-bin `start`. What is subtracted is the sample before it rounded to
 * FP32, and the rest of that rounding stays in the histogram. */
static void spread_mass(const float *old, double start, double scale, float *mass)
{
    double sum = 0.0;
    float before = 0.0f;
    size_t taken = 0;
    for (size_t k = 0; k < BINS; k++) {
        double end = (double)(k + 1) * scale - start;
        end = fmin(fmax(end, 0.0), (double)BINS * SUB_BINS);
        while (taken < (size_t)end) {
            size_t left = (size_t)end - taken, room = SUB_BINS - taken % SUB_BINS;
            size_t n = left < room ? left : room;
            sum = add_repeatedly(sum, old[taken / SUB_BINS], n);
            taken += n;
        }
        mass[k] += (float)((sum - (double)before) / SUB_BINS);
        before = (float)sum;
    }
}

/* Not defined by the reference, which divides by 0: as the default histogram. */
static void move_point_mass(const histogram_compat *h, float low, float high, float *mass)
{
    float bin = floorf((h->min - low) * (float)BINS / (high - low));
    mass[(size_t)fminf(bin, BINS - 1)] += torch_sum(h->mass, BINS);
}

static tare_status merge(tare_context *ctx, histogram_compat *h, const float *x, size_t count,
                         float x_low, float x_high)
{
    tare_status status = TARE_OK;
    float mass[BINS], scale = SUB_BINS, start = 0.0f;
    float low = fminf(h->min, x_low), high = fmaxf(h->max, x_high);
    float width = (h->max - h->min) / ((float)BINS * SUB_BINS);
    if (width > 0.0f)
        scale = ceilf((high - low) / ((float)BINS * width));
    /* The reference could not hold so many sub-bins: at this scale the old range is a point. */
    if (!(scale <= 0x1p40f))
        width = 0.0f;
    if (width > 0.0f) {
        start = rintf((h->min - low) / width);
        high += scale * ((float)BINS * width) - (high - low);
    }
    TRY(count_truncated(ctx, low, high, x_low, x_high, x, count, mass));
    if (low == h->min && high == h->max) {
        for (size_t i = 0; i < BINS; i++)
            mass[i] += h->mass[i];
    } else if (width > 0.0f) {
        spread_mass(h->mass, start, scale, mass);
    } else {
        move_point_mass(h, low, high, mass);
    }
    memcpy(h->mass, mass, sizeof mass);
    h->min = low;
    h->max = high;
done:
    return status;
}

tare_status histogram_compat_update(tare_context *ctx, histogram_compat *h, const float *x,
                                    size_t count, float low, float high)
{
    tare_status status = TARE_OK;
    if (h->started)
        return merge(ctx, h, x, count, low, high);
    TRY(count_truncated(ctx, low, high, low, high, x, count, h->mass));
    h->min = low;
    h->max = high;
    h->started = true;
done:
    return status;
}

typedef struct error_state {
    const histogram_compat *h;
    double width;
    float density[BINS]; /* mass / bin width */
} error_state;

/* Index of the level that holds position p: floor(p / level), clamped. */
static inline float level_of(float p, float level)
{
    float j = p / level;
    j = j > 0.0f ? j : 0.0f;
    j = j < (float)(LEVELS - 1) ? j : (float)(LEVELS - 1);
    return (float)(int32_t)j;
}

static double range_error(void *user, size_t first, size_t last)
{
    const error_state *s = user;
    double level_width = s->width * (double)(last - first + 1) / LEVELS;
    if (level_width == 0.0)
        return 0.0;
    float width = (float)s->width, level = (float)level_width, half = (float)(level_width / 2);
    float terms[BINS], half_cube = half * half * half;
    float whole = (half_cube + half_cube) / 3.0f;
    for (size_t i = 0; i < BINS; i++) {
        float begin = (float)((int32_t)i - (int32_t)first) * width, end = begin + width;
        float j = level_of(begin, level), k = level_of(end, level), d = s->density[i];
        float u = begin - (j + 0.5f) * level, v = end - (k * level + half);
        float norm = d * ((half_cube - u * u * u) / 3.0f);
        norm += (k - j - 1.0f) * (d * whole);
        norm += d * ((v * v * v + half_cube) / 3.0f);
        terms[i] = norm;
    }
    return torch_sum(terms, BINS);
}

void histogram_compat_range(const histogram_compat *h, double *low, double *high)
{
    double cumulative[BINS], sum = 0.0;
    error_state state = {.h = h, .width = ((double)h->max - (double)h->min) / BINS};
    size_t first, last;
    float width = (h->max - h->min) / (float)BINS;
    *low = h->min;
    *high = h->max;
    if (width == 0.0f)
        return;
    for (size_t i = 0; i < BINS; i++) {
        sum += h->mass[i];
        cumulative[i] = (double)(float)sum;
        state.density[i] = h->mass[i] / (float)state.width;
    }
    range_search search = {cumulative, torch_sum(h->mass, BINS), true, range_error, &state};
    range_search_run(&search, &first, &last);
    *low = h->min + width * (float)first;
    *high = h->min + width * (float)(last + 1);
}
