/* Open addressing, at most half full, over a store that only grows until all is dropped. */
#include "tokenizer/word_cache.h"

#include <string.h>
#include <xxhash.h>

enum { SLOTS = 1 << 17, STORE = 2 * 1024 * 1024 };

typedef struct word_slot {
    uint32_t hash;
    uint32_t word, ids;    /* offsets in the store */
    uint8_t length, count; /* length 0: empty */
} word_slot;

void word_cache_init(word_cache *c, tare_context *ctx)
{
    *c = (word_cache){.ctx = ctx};
}

tare_status word_cache_allocate(word_cache *c)
{
    c->slots = mem_calloc(c->ctx, SLOTS, sizeof(word_slot));
    c->store = mem_alloc(c->ctx, STORE);
    return c->slots && c->store ? TARE_OK : TARE_E_MEMORY;
}

void word_cache_free(word_cache *c)
{
    mem_free(c->ctx, c->slots);
    mem_free(c->ctx, c->store);
    word_cache_init(c, c->ctx);
}

uint64_t word_cache_hash(const char *word, size_t length)
{
    return XXH3_64bits(word, length);
}

static word_slot *find_slot(const word_cache *c, uint64_t hash, const char *word, size_t length)
{
    size_t i = (size_t)(hash >> 32) % SLOTS;
    for (;; i = (i + 1) % SLOTS) {
        word_slot *s = &c->slots[i];
        if (s->length == 0 || (s->hash == (uint32_t)hash && s->length == length &&
                               memcmp(c->store + s->word, word, length) == 0))
            return s;
    }
}

const uint32_t *word_cache_get(const word_cache *c, uint64_t hash, const char *word, size_t length,
                               size_t *count)
{
    const word_slot *s = find_slot(c, hash, word, length);
    if (s->length == 0)
        return NULL;
    *count = s->count;
    return (const uint32_t *)(const void *)(c->store + s->ids);
}

void word_cache_put(word_cache *c, uint64_t hash, const char *word, size_t length,
                    const uint32_t *ids, size_t count)
{
    size_t size = (length + 3) / 4 * 4 + count * sizeof *ids; /* ids lie 4-aligned */
    if (length == 0 || length > WORD_CACHE_LONGEST || count > length)
        return;
    if (c->used + size > STORE || c->count == SLOTS / 2) {
        memset(c->slots, 0, SLOTS * sizeof(word_slot));
        c->used = c->count = 0;
    }
    word_slot *s = find_slot(c, hash, word, length);
    s->hash = (uint32_t)hash;
    s->word = (uint32_t)c->used;
    s->ids = (uint32_t)(c->used + size - count * sizeof *ids);
    s->length = (uint8_t)length;
    s->count = (uint8_t)count;
    memcpy(c->store + s->word, word, length);
    if (count)
        memcpy(c->store + s->ids, ids, count * sizeof *ids);
    c->used += size;
    c->count++;
}
