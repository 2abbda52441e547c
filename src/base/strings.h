/* Strings: a growing byte buffer, a map from strings to indices, patterns, nearness of names. */
#ifndef TARE_BASE_STRINGS_H
#define TARE_BASE_STRINGS_H

#include "base/memory.h"

/* A growing, always zero-terminated byte buffer. Errors stick: after one, every call does nothing,
 * and `status` tells. */
typedef struct buffer {
    tare_context *ctx;
    char *data;
    size_t length, capacity;
    tare_status status;
} buffer;

void buffer_init(buffer *b, tare_context *ctx);
void buffer_free(buffer *b);
void buffer_append(buffer *b, const void *data, size_t length);
void buffer_puts(buffer *b, const char *text);
void buffer_putc(buffer *b, char c);
void buffer_printf(buffer *b, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Open-addressing map from byte strings to uint32_t values. Keys are borrowed: they must outlive
 * the map. */
typedef struct strmap {
    tare_context *ctx;
    struct strmap_slot *slots;
    size_t capacity, count;
} strmap;

void strmap_init(strmap *m, tare_context *ctx);
void strmap_free(strmap *m);
/* Makes room for `count` keys at once. */
tare_status strmap_reserve(strmap *m, size_t count);
/* Puts key -> value. *existed (may be NULL) tells whether the key was there; its old value then
 * stays. */
tare_status strmap_put(strmap *m, const char *key, size_t length, uint32_t value, bool *existed);
bool strmap_get(const strmap *m, const char *key, size_t length, uint32_t *value);

/* fnmatch as in Python: * ? [seq] [!seq], case sensitive, no escapes; matches the whole of `text`.
 */
bool pattern_match(const char *pattern, const char *text);
/* Does `text` hold any of * ? [ ? */
bool pattern_has_wildcard(const char *text);
/* Levenshtein distance in bytes; names longer than 255 bytes are compared by their first 255. */
size_t edit_distance(const char *a, const char *b);
/* Appends up to `limit` of `names`, nearest to `name` first, separated by ", ". */
void nearest_names(buffer *out, const char *name, const char *const *names, size_t count,
                   size_t limit);

bool str_starts_with(const char *text, const char *prefix);
bool str_ends_with(const char *text, const char *suffix);
/* Is `data` [length] well-formed UTF-8 (no surrogates, no overlong forms, <= U+10FFFF)? */
bool utf8_valid(const char *data, size_t length);

#endif
