/* In-place heap sort of pointers: n log n in the worst case and no hidden allocation (the qsort of
 * some C libraries takes memory of its own, which the budget would not see). Not stable. */
#ifndef TARE_BASE_SORT_H
#define TARE_BASE_SORT_H

#include <stddef.h>

/* `compare` gets two of the pointers themselves, not pointers to them. */
void sort_pointers(void **items, size_t count, int (*compare)(const void *a, const void *b));

#endif
