/* Remembers the tokens of words that were encoded before: most words of a text are. Bounded; when
 * it is full it starts anew, so it follows the text. */
#ifndef TARE_TOKENIZER_WORD_CACHE_H
#define TARE_TOKENIZER_WORD_CACHE_H

#include "base/memory.h"

enum { WORD_CACHE_LONGEST = 64 }; /* bytes of a word that is remembered */

typedef struct word_cache {
    tare_context *ctx;
    struct word_slot *slots;
    char *store; /* words and their ids */
    size_t used, count;
} word_cache;

void word_cache_init(word_cache *c, tare_context *ctx);
/* About 4 MiB. */
tare_status word_cache_allocate(word_cache *c);
void word_cache_free(word_cache *c);
/* Hash of a word of at most WORD_CACHE_LONGEST bytes, for both calls below. */
uint64_t word_cache_hash(const char *word, size_t length);
/* NULL if the word is not there; else its ids, until the next put. */
const uint32_t *word_cache_get(const word_cache *c, uint64_t hash, const char *word, size_t length,
                               size_t *count);
/* `count` <= `length`. */
void word_cache_put(word_cache *c, uint64_t hash, const char *word, size_t length,
                    const uint32_t *ids, size_t count);

#endif
