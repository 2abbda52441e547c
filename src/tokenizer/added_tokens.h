/* Added tokens: found in the text before anything else is done with it (those that are not
 * "normalized"), or after the normalizer. */
#ifndef TARE_TOKENIZER_ADDED_TOKENS_H
#define TARE_TOKENIZER_ADDED_TOKENS_H

#include "tokenizer/normalizer.h"
#include "tokenizer/token_finder.h"
#include "tokenizer/vocabulary.h"

enum { ADDED_TOKEN_ANY_ID = UINT32_MAX };

typedef struct added_token {
    const char *content; /* in the arena */
    uint32_t length, id;
    bool special;        /* left out by a decoder that skips special tokens */
    bool single_word;    /* only where no word character stands beside it */
    bool lstrip, rstrip; /* takes white space on that side with it */
    bool normalized;     /* searched for, in its normalized form, in normalized text */
} added_token;

typedef struct added_tokens {
    tare_context *ctx;
    arena arena;
    added_token *tokens; /* one for each id */
    size_t count;
    strmap by_id;                 /* 4 bytes -> index in `tokens` */
    strmap specials;              /* contents */
    token_finder raw, normalized; /* values are ids */
    uint32_t first_new;           /* id of the first of `more` that is new; ADDED_TOKEN_ANY_ID */
    bool split_special;           /* special tokens are not looked for: their text is text */
} added_tokens;

void added_tokens_init(added_tokens *a, tare_context *ctx);
void added_tokens_free(added_tokens *a);
/* `list`: the member "added_tokens", may be absent; behind its tokens come those of `more`, which
 * are copied. A token's id is that of the vocabulary if its content is in there, else the next free
 * one, counted from the vocabulary's size and above all that added tokens have; the "id" that a
 * file gives it decides nothing, as in `tokenizers`, but a difference is a warning
 * (ADDED_TOKEN_ANY_ID: none is given). */
tare_status added_tokens_read(added_tokens *a, const stage_reader *r, const value *list,
                              const added_token *more, size_t more_count, const vocabulary *v,
                              const normalizer *n);
/* The id of an added token by its content; false: there is none. Looks at all of them. */
bool added_tokens_id(const added_tokens *a, const char *content, size_t length, uint32_t *id);
/* NULL: `id` is no added token's. */
const added_token *added_tokens_get(const added_tokens *a, uint32_t id);
bool added_tokens_is_special(const added_tokens *a, const char *content, size_t length);

/* A part of a text: an added token or what lies between two. */
typedef struct text_part {
    uint32_t start, end;
    bool is_token;
    uint32_t id;
} text_part;

typedef struct text_parts {
    tare_context *ctx;
    text_part *items;
    size_t count, capacity;
    finder_matches matches;
} text_parts;

void text_parts_init(text_parts *p, tare_context *ctx);
void text_parts_free(text_parts *p);
/* Replaces `out` by the parts of `text`; none is empty. `normalized`: which tokens to look for. */
tare_status added_tokens_split(const added_tokens *a, bool normalized, const char *text,
                               size_t length, text_parts *out);

#endif
