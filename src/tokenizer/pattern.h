/* Patterns that split text: a known regular expression with a scanner of its own, any other one
 * through Oniguruma, a literal, or a class of code points. A pattern finds all its matches in a
 * text, from left to right and without overlap, as `tokenizers` (the `onig` crate) does. */
#ifndef TARE_TOKENIZER_PATTERN_H
#define TARE_TOKENIZER_PATTERN_H

#include "tokenizer/stage.h"

/* Bytes [start,end) of a text; together the ranges of a list cover the text without a gap. */
typedef struct match {
    uint32_t start, end;
    bool is_match; /* or what lies between two matches */
} match;

typedef struct match_list {
    tare_context *ctx;
    match *items;
    size_t count, capacity;
} match_list;

tare_status match_list_add(match_list *list, size_t start, size_t end, bool is_match);

/* ---- scanners: one for each regular expression that common checkpoints use */

/* Length of the match at `p` < `end`, at least 1: these expressions match any text without a gap.
 * `p`..`end` is valid UTF-8. */
typedef size_t (*scanner)(const uint8_t *p, const uint8_t *end);

/* The one for exactly this expression; NULL if there is none. */
scanner scanner_find(const char *expression, size_t length);
/* That of the ByteLevel pre-tokenizer. */
scanner scanner_gpt2(void);

/* ---- Oniguruma */

typedef struct regex regex;

/* TARE_E_MODEL if `expression` is malformed. What Oniguruma allocates is not accounted: it takes
 * no allocator. */
tare_status regex_create(tare_context *ctx, const char *expression, size_t length, regex **out);
void regex_free(regex *r);
/* Appends the matches in `text` and what lies between them. TARE_E_MODEL if the matcher steps
 * back more often than honest expressions do. Not for two threads at once. */
tare_status regex_find(const regex *r, const char *text, size_t length, match_list *out);

/* ---- patterns */

typedef enum pattern_kind {
    PATTERN_SCANNER,
    PATTERN_REGEX,
    PATTERN_LITERAL,
    PATTERN_CLASS
} pattern_kind;

typedef struct pattern {
    pattern_kind kind;
    scanner scan;
    regex *regex;  /* owned */
    char *literal; /* owned */
    size_t literal_length;
    unsigned class_flags; /* a match is one code point that has any of these UNICODE_… */
} pattern;

/* Takes a scanner if there is one for `expression`, unless `force_regex` (tests compare the two).
 */
tare_status pattern_from_regex(tare_context *ctx, const char *expression, size_t length,
                               bool force_regex, pattern *out);
tare_status pattern_from_literal(tare_context *ctx, const char *text, size_t length, pattern *out);
/* A stage's member "pattern": {"Regex": …} or {"String": …}. TARE_E_MODEL names the stage's type.
 */
tare_status pattern_read(const stage_reader *r, const value *stage, const char *type, pattern *out);
void pattern_free(tare_context *ctx, pattern *p);
/* Replaces the contents of `out`. `length` < 4 GiB. */
tare_status pattern_find(const pattern *p, const char *text, size_t length, match_list *out);
/* Appends `text` with `content` in place of each match; `matches` is scratch. */
tare_status pattern_replace(const pattern *p, const char *text, size_t length, const char *content,
                            size_t content_length, match_list *matches, buffer *out);

#endif
