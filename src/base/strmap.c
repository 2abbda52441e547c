/* Map from byte strings to uint32_t: open addressing, linear probing, at most half full, xxHash. */
#include <string.h>
#include <xxhash.h>

#include "base/strings.h"

typedef struct strmap_slot {
    const char *key; /* NULL: empty */
    size_t length;
    uint32_t hash, value;
} strmap_slot;

void strmap_init(strmap *m, tare_context *ctx)
{
    *m = (strmap){.ctx = ctx};
}

void strmap_free(strmap *m)
{
    mem_free(m->ctx, m->slots);
    *m = (strmap){.ctx = m->ctx};
}

static strmap_slot *find_slot(strmap_slot *slots, size_t capacity, const char *key, size_t length,
                              uint32_t hash)
{
    size_t i = hash & (capacity - 1);
    while (slots[i].key && (slots[i].hash != hash || slots[i].length != length ||
                            memcmp(slots[i].key, key, length) != 0))
        i = (i + 1) & (capacity - 1);
    return &slots[i];
}

static uint32_t hash_key(const char *key, size_t length)
{
    return (uint32_t)XXH3_64bits(key, length);
}

tare_status strmap_reserve(strmap *m, size_t count)
{
    size_t capacity = m->capacity ? m->capacity : 16;
    while (capacity - capacity / 4 < count) { /* at most three of four are taken */
        if (!size_mul(capacity, 2, &capacity))
            return TARE_FAIL(m->ctx, TARE_E_MEMORY, "out of memory: a map of %zu names", count);
    }
    if (capacity == m->capacity)
        return TARE_OK;
    strmap_slot *slots = mem_calloc(m->ctx, capacity, sizeof *slots);
    if (!slots)
        return TARE_E_MEMORY;
    for (size_t i = 0; i < m->capacity; i++) {
        strmap_slot *s = &m->slots[i];
        if (s->key)
            *find_slot(slots, capacity, s->key, s->length, s->hash) = *s;
    }
    mem_free(m->ctx, m->slots);
    m->slots = slots;
    m->capacity = capacity;
    return TARE_OK;
}

tare_status strmap_put(strmap *m, const char *key, size_t length, uint32_t value, bool *existed)
{
    tare_status status = strmap_reserve(m, m->count + 1);
    if (status != TARE_OK)
        return status;
    uint32_t hash = hash_key(key, length);
    strmap_slot *s = find_slot(m->slots, m->capacity, key, length, hash);
    if (existed)
        *existed = s->key != NULL;
    if (!s->key) {
        *s = (strmap_slot){.key = key, .length = length, .hash = hash, .value = value};
        m->count++;
    }
    return TARE_OK;
}

bool strmap_get(const strmap *m, const char *key, size_t length, uint32_t *value)
{
    if (!m->capacity)
        return false;
    const strmap_slot *s = find_slot(m->slots, m->capacity, key, length, hash_key(key, length));
    if (s->key && value)
        *value = s->value;
    return s->key != NULL;
}
