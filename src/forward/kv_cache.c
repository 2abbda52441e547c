#include "forward/kv_cache.h"

#include <string.h>

/* Elements of one layer's keys, and of all; false if that overflows. */
static bool cache_sizes(size_t layers, size_t cols, size_t capacity, size_t *half, size_t *all)
{
    size_t bytes;
    return size_mul(cols, capacity, half) && size_mul(*half, 2 * layers, all) &&
           size_mul(*all, sizeof(float), &bytes);
}

tare_status kv_cache_create(tare_context *ctx, size_t layers, size_t cols, size_t capacity,
                            const char *folder, kv_cache *out)
{
    size_t half, all;
    *out = (kv_cache){.ctx = ctx, .capacity = capacity, .layers = layers, .cols = cols};
    if (!cache_sizes(layers, cols, capacity, &half, &all))
        return TARE_FAIL(ctx, TARE_E_MEMORY, "out of memory: keys and values of %zu tokens",
                         capacity);
    if (folder)
        return scratch_create(ctx, folder, all * sizeof(float), &out->file);
    out->data = mem_alloc_array(ctx, all, sizeof(float));
    return out->data ? TARE_OK : TARE_E_MEMORY;
}

void kv_cache_free(kv_cache *c)
{
    if (!c->ctx)
        return;
    scratch_free(c->file);
    mem_free(c->ctx, c->data);
    *c = (kv_cache){0};
}

size_t kv_cache_bytes(size_t layers, size_t cols, size_t capacity, bool spill)
{
    size_t half, all;
    if (!cache_sizes(layers, cols, capacity, &half, &all))
        return MEM_ABSURD;
    return spill ? 1024 : mem_array_bytes(all, sizeof(float));
}

/* Writes the new tokens, after reading the earlier ones into `room` where there are any. */
static tare_status append_spilled(kv_cache *c, size_t layer, size_t past, size_t count,
                                  const float *const from[2], float *room)
{
    tare_status status = TARE_OK;
    size_t half = c->capacity * c->cols, old = past * c->cols, fresh = count * c->cols;
    for (size_t i = 0; i < 2; i++) {
        uint64_t at = ((uint64_t)layer * 2 + i) * half;
        if (past > 0) {
            TRY(scratch_read(c->file, at * sizeof(float), room + i * half, old * sizeof(float)));
            memcpy(room + i * half + old, from[i], fresh * sizeof(float));
        }
        TRY(scratch_write(c->file, (at + old) * sizeof(float), from[i], fresh * sizeof(float)));
    }
done:
    return status;
}

tare_status kv_cache_append(kv_cache *c, size_t layer, size_t past, size_t count, const float *k,
                            const float *v, float *room, const float **keys, const float **values)
{
    const float *const from[2] = {k, v};
    size_t half = c->capacity * c->cols, old = past * c->cols, fresh = count * c->cols;
    if (c->file) {
        *keys = past > 0 ? room : NULL;
        *values = past > 0 ? room + half : NULL;
        return append_spilled(c, layer, past, count, from, room);
    }
    float *base = c->data + layer * 2 * half;
    for (size_t i = 0; i < 2; i++)
        memcpy(base + i * half + old, from[i], fresh * sizeof(float));
    *keys = base;
    *values = base + half;
    return TARE_OK;
}
