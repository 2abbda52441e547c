/* How many values there are of which magnitude: a histogram from 0 to a power of two, which doubles
 * as larger values come (two bins become one, exactly). It says the same whatever order the values
 * come in. */
#ifndef TARE_QUANTIZE_MAGNITUDES_H
#define TARE_QUANTIZE_MAGNITUDES_H

#include <stddef.h>

enum { MAGNITUDE_BINS = 2048 }; /* at least half of them below the largest value */

typedef struct magnitudes {
    double limit;                  /* above all values; 0: zeros alone were seen */
    double counts[MAGNITUDE_BINS]; /* whole numbers */
} magnitudes;

void magnitudes_clear(magnitudes *m);
/* x [n], all finite. */
void magnitudes_add(magnitudes *m, const float *x, size_t n);
/* Sum of the squared errors of x' = scale * clamp(rne(x / scale), -127, 127). */
double magnitudes_error(const magnitudes *m, double scale);

#endif
