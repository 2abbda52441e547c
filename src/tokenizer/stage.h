/* What the stages of a tokenizer share: a text in pieces, and the reading of a stage's description
 * in tokenizer.json. */
#ifndef TARE_TOKENIZER_STAGE_H
#define TARE_TOKENIZER_STAGE_H

#include "base/strings.h"
#include "file/value.h"

typedef struct span {
    uint32_t start, length;
} span;

/* A text and the pieces of it that a stage hands to the next. */
typedef struct pieces {
    tare_context *ctx;
    const char *text; /* borrowed, or own.data */
    buffer own;
    span *spans;
    size_t count, capacity;
} pieces;

void pieces_init(pieces *p, tare_context *ctx);
void pieces_free(pieces *p);
/* Makes `p` one piece: the whole of `text`, which is borrowed. */
tare_status pieces_set(pieces *p, const char *text, size_t length);
/* Appends a piece. */
tare_status pieces_add(pieces *p, size_t start, size_t length);
/* Ends the rewriting of texts: `to` holds the pieces of `from` anew in to->own. Swaps the two, so
 * that `from` is the result. TARE_E_DATA if the text grew beyond what spans can name. */
tare_status pieces_finish_rewrite(pieces *from, pieces *to);

/* ---- reading */

/* A file that is being read: errors begin with its name. */
typedef struct stage_reader {
    tare_context *ctx;
    const char *what;
} stage_reader;

/* Adds what a stage object says to `target`. */
typedef tare_status (*stage_read)(const stage_reader *r, const value *stage, void *target);

typedef struct stage_type {
    const char *name;
    stage_read read;
} stage_type;

/* Reads the stage `v` with the entry of `types` that has its "type"; a Sequence reads the members
 * of its list `sequence_key` one after the other, and null reads nothing. TARE_E_MODEL names
 * `section` and a type that is not in the table. The depth is that of the JSON, so limited. */
tare_status stage_read_tree(const stage_reader *r, const char *section, const value *v,
                            const stage_type *types, size_t type_count, const char *sequence_key,
                            void *target);

/* Members that must be there: TARE_E_MODEL otherwise. */
tare_status stage_bool(const stage_reader *r, const value *stage, const char *key, bool *out);
tare_status stage_string(const stage_reader *r, const value *stage, const char *key,
                         const value **out);
/* A copy of a string (mem_free), zero-terminated, and its length. */
tare_status stage_text(const stage_reader *r, const value *stage, const char *key, char **text,
                       size_t *length);

#endif
