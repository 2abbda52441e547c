/* Ranges that make the squared error of an input smallest (act_method 4): each end among fractions
 * of its extreme. Rounding is what inputs inside the range pay, clipping what those outside do; a
 * histogram says how many there are of each, so that samples pass once. */
#include <math.h>

#include "quantize/histogram.h"

enum { FRACTIONS = 15, ROUNDS = 2 }; /* 1.00, 0.95, ... 0.30 */

/* With u = x / scale and k its level, an antiderivative of (u - k)^2 that is continuous: from one
 * level to the next it gains 1/12, and beyond the last it goes on from there. */
static double error_up_to(double u, double first, double last)
{
    double k = fmin(fmax(rint(u), first), last), v = u - k;
    return v * v * v / 3.0 + k / 12.0;
}

double rounding_error(const double *mass, size_t bins, double low, double width, double scale,
                      double first, double last)
{
    double sum = 0.0, end = 0.0, step = width / scale;
    bool known = false; /* what the bin before ended with */
    for (size_t i = 0; i < bins; i++) {
        if (mass[i] == 0.0) {
            known = false;
            continue;
        }
        double u = low / scale + (double)i * step;
        double begin = known ? end : error_up_to(u, first, last);
        end = error_up_to(u + step, first, last);
        known = true;
        sum += mass[i] * (end - begin);
    }
    return sum / step * scale * scale;
}

typedef struct mse_search {
    const histogram *h;
    const numerics *num;
    double low, high, best; /* the extremes; the smallest error so far */
    int below, above;       /* which fraction of each */
} mse_search;

static double fraction(int index)
{
    return 1.0 - 0.05 * index;
}

static void try_ends(mse_search *s, int below, int above)
{
    const histogram *h = s->h;
    act_params p = act_params_of(s->num, fraction(below) * s->low, fraction(above) * s->high,
                                 false);
    double error = rounding_error(h->mass, HISTOGRAM_BINS, h->min,
                                  (h->max - h->min) / HISTOGRAM_BINS, (double)p.scale,
                                  -128.0 - (double)p.offset, 127.0 - (double)p.offset);
    if (!(error < s->best)) /* nor one that is not a number */
        return;
    s->best = error;
    s->below = below;
    s->above = above;
}

/* The lower end, then the upper one, twice; with offset 0 the larger one alone counts, so both move
 * together. */
void histogram_mse_range(const histogram *h, const numerics *num, double low, double high,
                         double *lo, double *hi)
{
    mse_search s = {.h = h, .num = num, .low = low, .high = high, .best = INFINITY};
    for (int round = 0; h->max > h->min && round < ROUNDS; round++) {
        for (int i = 0; i < FRACTIONS; i++)
            try_ends(&s, i, num->act_symmetric ? i : s.above);
        for (int i = 0; i < FRACTIONS && !num->act_symmetric; i++)
            try_ends(&s, s.below, i);
    }
    *lo = fraction(s.below) * low;
    *hi = fraction(s.above) * high;
}
