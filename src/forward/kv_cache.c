#include "forward/kv_cache.h"

#include <string.h>

#include "base/carver.h"

static void lay_out(carver *c, void *component)
{
    kv_cache *k = component;
    k->data = carve(c, k->capacity, k->layers * (k->cols[0] + k->cols[1]) * sizeof *k->data);
}

tare_status kv_cache_create(tare_context *ctx, size_t layers, const size_t cols[2], size_t capacity,
                            const char *folder, kv_cache *out)
{
    carver size = {0};
    *out = (kv_cache){
        .ctx = ctx, .capacity = capacity, .layers = layers, .cols = {cols[0], cols[1]}};
    if (!folder)
        return carver_alloc(ctx, lay_out, out);
    lay_out(&size, out);
    if (size.overflow)
        return TARE_FAIL(ctx, TARE_E_MEMORY, "out of memory: keys and values of %zu tokens",
                         capacity);
    return scratch_create(ctx, folder, size.used, &out->file);
}

void kv_cache_free(kv_cache *c)
{
    if (!c->ctx)
        return;
    scratch_free(c->file);
    mem_free(c->ctx, c->data);
    *c = (kv_cache){0};
}

size_t kv_cache_bytes(size_t layers, const size_t cols[2], size_t capacity, bool spill)
{
    kv_cache k = {.capacity = capacity, .layers = layers, .cols = {cols[0], cols[1]}};
    size_t bytes = carver_bytes(lay_out, &k);
    return spill && bytes < MEM_ABSURD ? 1024 : bytes;
}

/* Writes the new tokens, after reading the earlier ones into `room` where there are any. */
static tare_status append_spilled(kv_cache *c, size_t layer, size_t past, size_t count,
                                  const float *const from[2], float *room)
{
    tare_status status = TARE_OK;
    uint64_t at = (uint64_t)layer * c->capacity * (c->cols[0] + c->cols[1]);
    for (size_t i = 0; i < 2; i++) {
        size_t old = past * c->cols[i], fresh = count * c->cols[i];
        if (past > 0) {
            TRY(scratch_read(c->file, at * sizeof(float), room, old * sizeof(float)));
            memcpy(room + old, from[i], fresh * sizeof(float));
        }
        TRY(scratch_write(c->file, (at + old) * sizeof(float), from[i], fresh * sizeof(float)));
        at += c->capacity * c->cols[i];
        room = room ? room + c->capacity * c->cols[i] : NULL;
    }
done:
    return status;
}

tare_status kv_cache_append(kv_cache *c, size_t layer, size_t past, size_t count, const float *k,
                            const float *v, float *room, const float **keys, const float **values)
{
    const float *const from[2] = {k, v};
    size_t half = c->capacity * c->cols[0];
    if (c->file) {
        *keys = past > 0 ? room : NULL;
        *values = past > 0 ? room + half : NULL;
        return append_spilled(c, layer, past, count, from, room);
    }
    float *base = c->data + layer * c->capacity * (c->cols[0] + c->cols[1]);
    for (size_t i = 0; i < 2; i++)
        memcpy(base + i * half + past * c->cols[i], from[i], count * c->cols[i] * sizeof(float));
    *keys = base;
    *values = base + half;
    return TARE_OK;
}
