/* Decoder: ByteLevel, ByteFallback, Fuse, Metaspace, Replace, Strip, Sequence of them, or none. */
#ifndef TARE_TOKENIZER_DECODER_H
#define TARE_TOKENIZER_DECODER_H

#include "tokenizer/pretokenizer.h"

typedef enum decoder_op {
    DECODE_BYTE_LEVEL,
    DECODE_BYTE_FALLBACK, /* tokens <0xNN> become the text of their bytes, U+FFFD each if ill-formed
                           */
    DECODE_FUSE,          /* all tokens become one */
    DECODE_METASPACE,     /* replacement to space; in the first token to nothing, unless "never" */
    DECODE_REPLACE,       /* each match of `pattern` by `text` */
    DECODE_STRIP /* up to `start` and `stop` times `text`, a character, at a token's ends */
} decoder_op;

typedef struct decoder_step {
    decoder_op op;
    metaspace metaspace;
    pattern pattern;
    char *text; /* owned */
    size_t length, start, stop;
} decoder_step;

typedef struct decoder {
    tare_context *ctx;
    bool present; /* without a decoder tokens are joined with spaces */
    decoder_step *steps;
    size_t count, capacity;
    byte_alphabet alphabet;
} decoder;

void decoder_init(decoder *d, tare_context *ctx);
void decoder_free(decoder *d);
/* `v`: the member "decoder". */
tare_status decoder_read(decoder *d, const stage_reader *r, const value *v);
/* Appends the text of `tokens`, a piece each. `tokens` is used up, `spare` is scratch. */
tare_status decoder_run(const decoder *d, pieces *tokens, pieces *spare, buffer *out);

#endif
