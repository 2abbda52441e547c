/* Byte-pair encoding of one word: its characters become tokens, and of all neighbours that a rule
 * joins, the pair of lowest rank, leftmost first, is merged until none is left. */
#ifndef TARE_TOKENIZER_BPE_H
#define TARE_TOKENIZER_BPE_H

#include "tokenizer/merges.h"
#include "tokenizer/word_cache.h"

/* A growing list of token ids. */
typedef struct id_list {
    tare_context *ctx;
    uint32_t *items;
    size_t count, capacity;
} id_list;

tare_status id_list_add(id_list *list, uint32_t id);
tare_status id_list_append(id_list *list, const uint32_t *ids, size_t count);
void id_list_free(id_list *list);

enum { BPE_DIRECT_CODES = 0x200 };

typedef struct bpe {
    tare_context *ctx;
    vocabulary vocabulary;
    merges merges;
    bool ignore_merges; /* a word that is a token is not taken apart */
    bool fuse_unk;      /* neighbours that are unknown become one unknown token */
    char *unk_token;    /* NULL: unknown characters are dropped */
    bool has_unk_id;
    uint32_t unk_id;
    bool byte_fallback; /* unknown characters become the tokens <0x00> to <0xFF> of their bytes */
    int32_t bytes[256]; /* these tokens; -1: none */
    int32_t direct[BPE_DIRECT_CODES]; /* token of a character up to here; -1: none */
    word_cache cache;
    struct bpe_scratch *scratch;
} bpe;

void bpe_init(bpe *b, tare_context *ctx);
void bpe_free(bpe *b);
/* `model`: the member "model". TARE_E_MODEL for another type than BPE and for options that are not
 * supported: dropout, continuing_subword_prefix, end_of_word_suffix. */
tare_status bpe_read(bpe *b, const stage_reader *r, const value *model);
/* Appends the tokens of a word (valid UTF-8, not empty). n log n in its length. TARE_E_MODEL if it
 * needs an unknown token that the vocabulary does not have. */
tare_status bpe_encode(bpe *b, const char *word, size_t length, id_list *out);

#endif
