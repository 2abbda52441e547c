/* Normalizer: null, NFC, NFD, NFKC, NFKD, Prepend, Replace and Sequence of them. Code points
 * younger than Unicode 9.0 are left as they are, like in `tokenizers` (unicode.h: UNICODE_INERT).
 */
#ifndef TARE_TOKENIZER_NORMALIZER_H
#define TARE_TOKENIZER_NORMALIZER_H

#include "tokenizer/pattern.h"

typedef enum normalizer_op {
    NORMALIZE_NFC,
    NORMALIZE_NFD,
    NORMALIZE_NFKC,
    NORMALIZE_NFKD,
    NORMALIZE_PREPEND, /* `text` in front of a text that is not empty */
    NORMALIZE_REPLACE  /* each match of `pattern` by `text` */
} normalizer_op;

typedef struct normalizer_step {
    normalizer_op op;
    pattern pattern;
    char *text; /* owned */
    size_t length;
} normalizer_step;

typedef struct normalizer {
    tare_context *ctx;
    normalizer_step *steps;
    size_t count, capacity;
} normalizer;

void normalizer_init(normalizer *n, tare_context *ctx);
void normalizer_free(normalizer *n);
/* `v`: the member "normalizer"; null or absent: no step. */
tare_status normalizer_read(normalizer *n, const stage_reader *r, const value *v);

/* Reused from call to call. */
typedef struct normalizer_scratch {
    buffer text[2];
    int32_t *codes, *sorted; /* code points of one run */
    size_t capacity, sorted_capacity;
    match_list matches;
} normalizer_scratch;

void normalizer_scratch_init(normalizer_scratch *s, tare_context *ctx);
void normalizer_scratch_free(normalizer_scratch *s);
/* *out is `text` itself or lies in the scratch, until its next use. */
tare_status normalizer_run(const normalizer *n, const char *text, size_t length,
                           normalizer_scratch *s, const char **out, size_t *out_length);

#endif
