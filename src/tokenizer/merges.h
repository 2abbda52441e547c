/* The merge rules of BPE: pair of token ids -> rank (its place in the list) and the merged token's
 * id. */
#ifndef TARE_TOKENIZER_MERGES_H
#define TARE_TOKENIZER_MERGES_H

#include "tokenizer/vocabulary.h"

enum { MERGE_NONE = UINT32_MAX };

typedef struct merge {
    uint64_t pair; /* left id in the high half; UINT64_MAX: an empty slot */
    uint32_t rank, id;
} merge;

/* Open addressing, at most half full. */
typedef struct merges {
    tare_context *ctx;
    merge *slots;
    int shift; /* 64 - log2 of the number of slots */
} merges;

void merges_init(merges *m, tare_context *ctx);
void merges_free(merges *m);
/* `list`: the model's "merges", all "a b" or all ["a","b"]; of equal pairs the last one counts.
 * TARE_E_MODEL if a rule is malformed or names a token that is not in the vocabulary. */
tare_status merges_read(merges *m, const stage_reader *r, const value *list, const vocabulary *v);

static inline size_t merges_slot(const merges *m, uint64_t pair)
{
    return (size_t)((pair * 0x9e3779b97f4a7c15u) >> m->shift);
}

/* The rank of the pair, MERGE_NONE if no rule joins it; *id gets the merged token. */
static inline uint32_t merges_rank(const merges *m, uint32_t left, uint32_t right, uint32_t *id)
{
    uint64_t pair = (uint64_t)left << 32 | right;
    size_t mask = ((size_t)1 << (64 - m->shift)) - 1;
    for (size_t i = merges_slot(m, pair);; i = (i + 1) & mask) {
        const merge *slot = &m->slots[i];
        if (slot->pair == pair) {
            *id = slot->id;
            return slot->rank;
        }
        if (slot->pair == UINT64_MAX)
            return MERGE_NONE;
    }
}

#endif
