#include "base/sort.h"

static void sift_down(void **items, size_t root, size_t count,
                      int (*compare)(const void *, const void *))
{
    void *item = items[root];
    for (size_t child; (child = 2 * root + 1) < count; root = child) {
        if (child + 1 < count && compare(items[child], items[child + 1]) < 0)
            child++;
        if (compare(item, items[child]) >= 0)
            break;
        items[root] = items[child];
    }
    items[root] = item;
}

void sort_pointers(void **items, size_t count, int (*compare)(const void *a, const void *b))
{
    for (size_t i = count / 2; i-- > 0;)
        sift_down(items, i, count, compare);
    for (size_t last = count; last-- > 1;) {
        void *largest = items[0];
        items[0] = items[last];
        items[last] = largest;
        sift_down(items, 0, last, compare);
    }
}
