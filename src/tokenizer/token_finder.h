/* Finds the added tokens in a text: the leftmost match first, of those that begin at one place the
 * longest, without overlap. Linear in the text whatever the tokens are: an Aho-Corasick automaton
 * of the reversed tokens runs from the end of the text to its beginning and so learns, at every
 * place, the longest token that begins there. */
#ifndef TARE_TOKENIZER_TOKEN_FINDER_H
#define TARE_TOKENIZER_TOKEN_FINDER_H

#include "base/memory.h"

typedef struct token_finder {
    tare_context *ctx;
    struct finder_node *nodes; /* 0: the root */
    size_t count, capacity;
    struct finder_edge *edges; /* open addressing, by node and byte */
    size_t edge_capacity;
    uint32_t *queue;         /* while building */
    uint8_t last_bytes[256]; /* does a token end with this byte? */
} token_finder;

/* A place where a token begins. */
typedef struct finder_match {
    uint32_t start, length;
    uint32_t value;
} finder_match;

typedef struct finder_matches {
    tare_context *ctx;
    finder_match *items;
    size_t count, capacity;
} finder_matches;

void token_finder_init(token_finder *f, tare_context *ctx);
void token_finder_free(token_finder *f);
/* Adds a token, not empty. Of equal ones the first stays. */
tare_status token_finder_add(token_finder *f, const char *text, size_t length, uint32_t value);
/* To be called once, when all tokens are in. */
tare_status token_finder_build(token_finder *f);
/* Replaces `out` by the matches in `text`, from left to right. `length` < 4 GiB. */
tare_status token_finder_run(const token_finder *f, const char *text, size_t length,
                             finder_matches *out);

#endif
