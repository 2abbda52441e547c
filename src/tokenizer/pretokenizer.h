/* Pre-tokenizer: cuts normalized text into the words that BPE works on. The stages of
 * tokenizer.json (ByteLevel, Digits, Metaspace, Split, Sequence of them) are flattened into a row
 * of steps, each of which takes every piece on its own. */
#ifndef TARE_TOKENIZER_PRETOKENIZER_H
#define TARE_TOKENIZER_PRETOKENIZER_H

#include "tokenizer/byte_level.h"
#include "tokenizer/pattern.h"
#include "tokenizer/stage.h"

typedef enum split_behavior {
    SPLIT_ISOLATED,
    SPLIT_REMOVED,
    SPLIT_MERGED_WITH_PREVIOUS,
    SPLIT_MERGED_WITH_NEXT,
    SPLIT_CONTIGUOUS
} split_behavior;

typedef enum pretokenizer_op {
    OP_SPLIT,
    OP_PREFIX_SPACE,
    OP_BYTE_MAP,
    OP_METASPACE
} pretokenizer_op;

/* Which pieces get a replacement character in front, if they do not begin with one. */
typedef enum prepend_scheme {
    PREPEND_ALWAYS,
    PREPEND_FIRST, /* the one that begins where the text does */
    PREPEND_NEVER
} prepend_scheme;

/* The visible character that stands for a space (U+2581 as a rule). */
typedef struct metaspace {
    char replacement[4];
    size_t length;
    prepend_scheme prepend;
} metaspace;

/* Members "replacement" and "prepend_scheme" of a pre-tokenizer or decoder. */
tare_status metaspace_read(const stage_reader *r, const value *stage, metaspace *out);

typedef struct pretokenizer_step {
    pretokenizer_op op;
    pattern pattern; /* of OP_SPLIT */
    split_behavior behavior;
    metaspace metaspace;
    bool invert; /* what lies between matches counts as match, and the other way round */
} pretokenizer_step;

typedef struct pretokenizer {
    tare_context *ctx;
    pretokenizer_step *steps;
    size_t count, capacity;
    byte_alphabet alphabet;
} pretokenizer;

void pretokenizer_init(pretokenizer *p, tare_context *ctx);
void pretokenizer_free(pretokenizer *p);
/* `v`: the member "pre_tokenizer"; null or absent: no step. */
tare_status pretokenizer_read(pretokenizer *p, const stage_reader *r, const value *v);

/* Reused from call to call. */
typedef struct pretokenizer_scratch {
    pieces spare;
    match_list matches;
} pretokenizer_scratch;

void pretokenizer_scratch_init(pretokenizer_scratch *s, tare_context *ctx);
void pretokenizer_scratch_free(pretokenizer_scratch *s);
/* Cuts the pieces of `text` further. No piece of the result is empty. `at_start`: the first piece
 * begins where the text that is encoded does. */
tare_status pretokenizer_run(const pretokenizer *p, bool at_start, pieces *text,
                             pretokenizer_scratch *s);

#endif
