/* Tokenizer from a tokenizer.json: normalizer -> pre-tokenizer -> BPE -> post-processor, and the
 * decoder. Ids equal those of the Hugging Face `tokenizers` library for every pipeline that is
 * accepted; an unknown stage type is TARE_E_MODEL and named. */
#ifndef TARE_TOKENIZER_TOKENIZER_H
#define TARE_TOKENIZER_TOKENIZER_H

#include "base/memory.h"

/* From the text of a tokenizer.json; `what` names it in errors. */
tare_status tokenizer_parse(tare_context *ctx, const char *json, size_t length, const char *what,
                            tare_tokenizer **out);

#endif
