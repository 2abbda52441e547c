#include "base/carver.h"

#include <assert.h>

#include "base/poison.h"

enum { ALIGNMENT = 64 }; /* of mem_alloc */

void *carve(carver *c, size_t count, size_t size)
{
    size_t bytes, end;
    void *taken = c->memory ? c->memory + c->used : NULL;
    if (!size_mul(count, size, &bytes) || !size_add(bytes, ALIGNMENT - 1, &bytes) ||
        !size_add(c->used, bytes & ~(size_t)(ALIGNMENT - 1), &end))
        c->overflow = true;
    else
        c->used = end;
    if (taken && !c->overflow)
        POISON((char *)taken + count * size, c->memory + end - (char *)taken - count * size);
    return taken;
}

tare_status carver_alloc(tare_context *ctx, carver_layout *layout, void *component)
{
    carver sum = {0}, hand = {0};
    layout(&sum, component);
    if (sum.overflow)
        return TARE_FAIL(ctx, TARE_E_MEMORY, "out of memory: more bytes than there are addresses");
    hand.memory = mem_alloc(ctx, sum.used);
    if (!hand.memory)
        return TARE_E_MEMORY;
    layout(&hand, component);
    assert(hand.used == sum.used && !hand.overflow);
    return TARE_OK;
}

size_t carver_bytes(carver_layout *layout, void *component)
{
    carver c = {0};
    layout(&c, component);
    return c.overflow ? MEM_ABSURD : mem_block_bytes(c.used);
}
