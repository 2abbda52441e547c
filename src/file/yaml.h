/* YAML through libyaml's events, into the same tree as JSON. One document, depth at most
 * JSON_MAX_DEPTH, at most YAML_MAX_SIZE bytes; no anchors, aliases, tags or merge keys, no
 * duplicate keys; keys are scalars and always strings ("0", "true"). Errors are TARE_E_FORMAT:
 * "<what>: line L: …".
 *
 * Plain scalars follow the core schema of YAML 1.2: null, ~ and nothing; true and false, also as
 * True, TRUE (but no yes, no, on, off); finite decimal numbers. Everything else is a string, so are
 * quoted and block scalars, .inf, .nan, 0x10, 0o7, 1_000 and, as YAML 1.1 and 1.2 disagree, numbers
 * with leading zeros. A number's text is as JSON writes it ("+.5" becomes "0.5"). */
#ifndef TARE_FILE_YAML_H
#define TARE_FILE_YAML_H

#include "file/value.h"

enum { YAML_MAX_SIZE = 1024 * 1024 };

/* An empty document gives a map without members. */
tare_status yaml_parse(tare_context *ctx, arena *a, const char *data, size_t length,
                       const char *what, const value **root);
/* `limit` in bytes, as in json_parse_file. */
tare_status yaml_parse_file(tare_context *ctx, arena *a, const char *path, size_t limit,
                            const value **root);

#endif
