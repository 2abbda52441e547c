/* A parsed JSON or YAML document as a tree. All of it lives in the arena it was parsed into. */
#ifndef TARE_FILE_VALUE_H
#define TARE_FILE_VALUE_H

#include "base/memory.h"

/* One byte, and the unions below: 48 bytes a value, as documents have hundreds of thousands. */
typedef enum __attribute__((packed)) value_type {
    VALUE_NULL,
    VALUE_BOOL,
    VALUE_NUMBER,
    VALUE_STRING,
    VALUE_LIST,
    VALUE_MAP
} value_type;

typedef struct value {
    value_type type;
    bool boolean;
    bool is_integer; /* number without fraction or exponent that fits int64: `integer` is exact */
    int line;        /* in the source, from 1 */
    union {
        int64_t integer;           /* number with `is_integer` */
        const struct value *items; /* list items, or the values of a map */
    };
    union {
        double number;            /* number */
        const struct value *keys; /* the keys of a map (strings), in document order */
    };
    const char *text; /* string (UTF-8, may hold \0), or the number as written; zero-terminated */
    size_t length;
    size_t count; /* of list items or map members; 0 for the rest */
} value;

/* Member of a map; NULL if `map` is NULL, no map, or has no such key. Searches all keys: for many
 * look-ups in a large map build a strmap. */
const value *value_get(const value *map, const char *key);
/* Of a string; NULL: `v` is NULL or no string. */
const char *value_text(const value *v);
/* Is it this string? */
bool value_is(const value *v, const char *text);
/* The boolean true? */
bool value_is_true(const value *v);
/* Typed reads of an optional member: absent or null leaves *out alone; a wrong type or range is
 * TARE_E_FORMAT, "<what>: key "<key>" must be …". */
tare_status value_get_size(tare_context *ctx, const value *map, const char *what, const char *key,
                           size_t *out);
tare_status value_get_double(tare_context *ctx, const value *map, const char *what, const char *key,
                             double *out);
tare_status value_get_bool(tare_context *ctx, const value *map, const char *what, const char *key,
                           bool *out);
/* *out borrows from the tree. */
tare_status value_get_string(tare_context *ctx, const value *map, const char *what, const char *key,
                             const char **out);

#endif
