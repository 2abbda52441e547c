/* Decoder: ByteLevel, Sequence of decoders, or none. */
#ifndef TARE_TOKENIZER_DECODER_H
#define TARE_TOKENIZER_DECODER_H

#include "tokenizer/byte_level.h"
#include "tokenizer/stage.h"

typedef enum decoder_op { DECODE_BYTE_LEVEL } decoder_op;

typedef struct decoder {
    tare_context *ctx;
    bool present; /* without a decoder tokens are joined with spaces */
    decoder_op *steps;
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
