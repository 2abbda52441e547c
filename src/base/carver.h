/* How a component lays itself out in one block of memory: a function takes its arrays from a
 * carver, one after the other. A carver without memory adds up what they need, one with memory
 * hands them out, so that what a plan counts is what is then allocated.
 *
 *     static void lay_out(carver *c, void *component)
 *     {
 *         search *s = component;
 *         s->sums = carve(c, s->rows, sizeof *s->sums);
 *     }
 *     TRY(carver_alloc(ctx, lay_out, &s)); … mem_free(ctx, s.sums);
 *     bytes = carver_bytes(lay_out, &(search){.rows = rows});
 */
#ifndef TARE_BASE_CARVER_H
#define TARE_BASE_CARVER_H

#include "base/memory.h"

typedef struct carver {
    char *memory;  /* 64-byte aligned; NULL: it adds up */
    size_t used;   /* bytes, a multiple of 64 */
    bool overflow; /* more than size_t holds */
} carver;

/* The next `count` * `size` bytes, undefined, 64-byte aligned; NULL while it adds up. */
void *carve(carver *c, size_t count, size_t size);

/* Sets the pointers of `component`. What it takes depends on sizes alone, not on pointers. */
typedef void carver_layout(carver *c, void *component);

/* One block for all that the layout takes: mem_free of what it takes first. On failure
 * (TARE_E_MEMORY) the pointers are NULL. */
tare_status carver_alloc(tare_context *ctx, carver_layout *layout, void *component);
/* The bytes that this takes, as mem_block_bytes. Leaves the pointers NULL. */
size_t carver_bytes(carver_layout *layout, void *component);

#endif
