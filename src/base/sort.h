/* Sorting without hidden allocations (the qsort of some C libraries takes memory of its own, which
 * the budget would not see). */
#ifndef TARE_BASE_SORT_H
#define TARE_BASE_SORT_H

#include <stddef.h>

#include "base/context.h"

/* In-place heap sort of pointers: n log n in the worst case. Not stable. */
/* `compare` gets two of the pointers themselves, not pointers to them. */
void sort_pointers(void **items, size_t count, int (*compare)(const void *a, const void *b));

/* x [count], ascending, on the context's threads; `scratch` has as many. NaN goes to the ends: with
 * a sign bit to the beginning, else to the end. -0 stands before 0. */
tare_status sort_floats(tare_context *ctx, float *x, size_t count, float *scratch);
/* Accounted bytes of sort_floats, at most. */
size_t sort_floats_bytes(const tare_context *ctx);

#endif
