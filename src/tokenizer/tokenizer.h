/* Tokenizer from a tokenizer.json: normalizer -> pre-tokenizer -> BPE -> post-processor, and the
 * decoder. Ids equal those of the Hugging Face `tokenizers` library for every pipeline that is
 * accepted; an unknown stage type is TARE_E_MODEL and named.
 *
 *     text -> added tokens that are not "normalized" are cut out      added_tokens.h
 *          -> normalizer                                              normalizer.h
 *          -> added tokens that are "normalized" are cut out
 *          -> pre-tokenizer: words                                    pretokenizer.h, pattern.h
 *          -> BPE: ids                                                bpe.h, merges.h, word_cache.h
 *          -> post-processor: special tokens around them              postprocess.h
 *     ids  -> decoder: text                                           decoder.h
 *
 * What stands beside the file in a model's folder changes some of it: tokenizer_config.h.
 *
 * A new stage type is a function that reads it, named in the table of its file, and a step that
 * runs it. Not applied, with a warning: the file's truncation and padding, which the callers of
 * `tokenizers` override as well. A tokenizer serves one thread at a time (it remembers words).
 * Texts have 1 GiB at most (TARE_E_DATA); decoding leaves out ids in a gap of the vocabulary. */
#ifndef TARE_TOKENIZER_TOKENIZER_H
#define TARE_TOKENIZER_TOKENIZER_H

#include "base/memory.h"

/* From the text of a tokenizer.json; `what` names it in errors. `config`: what stands beside it
 * (tokenizer_config.h), so that ids equal those of transformers' AutoTokenizer; NULL: nothing. */
struct tokenizer_config;

tare_status tokenizer_parse(tare_context *ctx, const char *json, size_t length, const char *what,
                            const struct tokenizer_config *config, tare_tokenizer **out);
/* One owner more: each frees it. */
tare_tokenizer *tokenizer_keep(tare_tokenizer *tokenizer);

#endif
