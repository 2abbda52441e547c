/* JSON: a pull reader over a buffer in memory, a tree built from it, and a writer. The reader is
 * strict RFC 8259 (UTF-8 checked, no trailing text, no duplicate keys in trees, nesting at most
 * JSON_MAX_DEPTH) except for what `dialect` allows. Errors are TARE_E_FORMAT: "<what>: line L: …",
 * or the bare reason where `what` is NULL; a whole document that is a file of another kind is
 * called that (file/foreign.h). */
#ifndef TARE_FILE_JSON_H
#define TARE_FILE_JSON_H

#include "base/strings.h"
#include "file/value.h"

enum { JSON_MAX_DEPTH = 64, JSON_DATA_MAX_DEPTH = 512 };

typedef enum json_dialect {
    JSON_STRICT,
    /* Also NaN, Infinity, -Infinity, and lone surrogates (\ud800), which become U+FFFD: what
       Python's json module writes. Numbers beyond the range of double become infinite, where
       JSON_STRICT refuses them. */
    JSON_PYTHON,
    /* As JSON_PYTHON, for data sets, of which nothing may be lost: lone surrogates are kept as the
       three bytes that UTF-8 would give them (ED A0 80 …), the last of duplicate keys counts, at
       the place of the first, and nesting is at most JSON_DATA_MAX_DEPTH. */
    JSON_DATA
} json_dialect;

typedef enum json_kind {
    JSON_END, /* the document is complete */
    JSON_NULL,
    JSON_TRUE,
    JSON_FALSE,
    JSON_NUMBER,
    JSON_STRING,
    JSON_KEY, /* of a member; its value follows */
    JSON_LIST_BEGIN,
    JSON_LIST_END,
    JSON_MAP_BEGIN,
    JSON_MAP_END
} json_kind;

typedef struct json_token {
    json_kind kind;
    int line;
    const char *text; /* string, key: decoded UTF-8; number: as written. Valid until the next call.
                         Zero-terminated */
    size_t length;
    bool is_integer;
    int64_t integer;
    double number;
} json_token;

typedef struct json_reader json_reader;

/* `what` (a file name) and `data` are borrowed. */
tare_status json_reader_create(tare_context *ctx, const char *data, size_t length, const char *what,
                               json_dialect dialect, json_reader **out);
void json_reader_free(json_reader *r);
tare_status json_next(json_reader *r, json_token *token);
/* Skips the value that comes next (after a JSON_KEY, or in a list), whatever its depth. There must
 * be one: the end of the list or of the document is an error. */
tare_status json_skip(json_reader *r);

/* Reads the next item of the list that the reader stands in, as a tree in `a`: once after each
 * item, however large the list is. *item is NULL at its end. Duplicate keys as in json_parse. */
tare_status json_next_item(json_reader *r, arena *a, const value **item);

/* Length of the JSON number (RFC 8259) that `text` begins with; 0 if it begins with none. */
size_t json_number_length(const char *text, size_t length);
/* Sets is_integer, integer and number of `token` from its text, a JSON number. "-0" is the integer
 * 0. Independent of the locale. */
void json_number_convert(json_token *token);

/* Parses the whole document; *root lives in `a`, also when `data` is gone. A duplicate key is
 * an error but in JSON_DATA. */
tare_status json_parse(tare_context *ctx, arena *a, const char *data, size_t length,
                       const char *what, json_dialect dialect, const value **root);
/* Reads and parses a file of at most `limit` bytes, strictly. */
tare_status json_parse_file(tare_context *ctx, arena *a, const char *path, size_t limit,
                            const value **root);

/* Appends `text` as a JSON string with its quotes; beyond ASCII as \uXXXX (as Python's
 * ensure_ascii). Bytes that are not UTF-8 become \ufffd. */
void json_write_string(buffer *out, const char *text, size_t length);
/* Appends a tree, indented by `indent` spaces a level (0: on one line), keys in order; numbers as
 * they were written. `level`: of the first line's own indentation. */
void json_write_value(buffer *out, const value *v, int indent, int level);
/* Appends the shortest decimal text that reads back as the same double; NaN and infinities as
 * Python writes them. */
void json_write_double(buffer *out, double number);

/* Appends a tree with the bytes that Python's json.dumps gives what json.loads made of it: as
 * json_write_value, but numbers other than integers are written as Python's repr of their double,
 * and the bytes of a lone surrogate as its escape. */
void json_write_data(buffer *out, const value *v, int indent, int level);
/* Appends Python's repr of a double, finite or not ("nan", "inf"): "100000.0", "1e+16". */
void json_write_repr(buffer *out, double number);

#endif
