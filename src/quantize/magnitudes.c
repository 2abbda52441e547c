#include "quantize/magnitudes.h"

#include <math.h>
#include <string.h>

#include "quantize/histogram.h"

enum { BINS = MAGNITUDE_BINS };

void magnitudes_clear(magnitudes *m)
{
    memset(m, 0, sizeof *m);
}

static void grow(magnitudes *m, double limit)
{
    if (m->limit == 0)
        m->limit = limit; /* zeros are in the first bin */
    for (; m->limit < limit; m->limit *= 2) {
        for (size_t i = 0; i < BINS / 2; i++)
            m->counts[i] = m->counts[2 * i] + m->counts[2 * i + 1];
        memset(m->counts + BINS / 2, 0, BINS / 2 * sizeof *m->counts);
    }
}

void magnitudes_add(magnitudes *m, const float *x, size_t n)
{
    float max = 0;
    int exponent;
    for (size_t i = 0; i < n; i++)
        max = fmaxf(max, fabsf(x[i]));
    frexp((double)max, &exponent); /* max < 2^exponent */
    if (max > 0)
        grow(m, ldexp(1, exponent));
    double bins = m->limit > 0 ? BINS / m->limit : 0; /* a power of two: nothing is rounded */
    for (size_t i = 0; i < n; i++)
        m->counts[(size_t)((double)fabsf(x[i]) * bins)]++;
}

double magnitudes_error(const magnitudes *m, double scale)
{
    return m->limit > 0 ? rounding_error(m->counts, BINS, 0, m->limit / BINS, scale, -127, 127) : 0;
}
