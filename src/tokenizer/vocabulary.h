/* The vocabulary of a model: tokens and their ids, both ways. */
#ifndef TARE_TOKENIZER_VOCABULARY_H
#define TARE_TOKENIZER_VOCABULARY_H

#include "tokenizer/stage.h"

typedef struct token {
    const char *text; /* UTF-8, may hold \0; zero-terminated */
    uint32_t length, id;
} token;

typedef struct vocabulary {
    tare_context *ctx;
    token *tokens; /* in the order of the file */
    token **by_id; /* the same, sorted */
    size_t count;
    char *texts;
    strmap ids;
} vocabulary;

void vocabulary_init(vocabulary *v, tare_context *ctx);
void vocabulary_free(vocabulary *v);
/* `map`: the model's "vocab". Ids are 0 .. 2^31-1 and may have gaps; TARE_E_MODEL for another value
 * and for an id that two tokens have. */
tare_status vocabulary_read(vocabulary *v, const stage_reader *r, const value *map);
bool vocabulary_id(const vocabulary *v, const char *text, size_t length, uint32_t *id);
/* NULL if no token has this id. */
const token *vocabulary_token(const vocabulary *v, uint32_t id);

/* At most this many bytes of a foreign text go into a message; cuts between characters. */
int vocabulary_clip(const char *text, size_t length);

#endif
