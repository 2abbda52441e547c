/* YAML through libyaml's events, into the same tree as JSON. Core-schema scalars (null, booleans
 * true/false, numbers, strings); no anchors, aliases, tags or merge keys, one document, depth at
 * most JSON_MAX_DEPTH, no duplicate keys. Errors are TARE_E_FORMAT: "<what>: line L: …". */
#ifndef TARE_FILE_YAML_H
#define TARE_FILE_YAML_H

#include "file/value.h"

/* An empty document gives a map without members. */
tare_status yaml_parse(tare_context *ctx, arena *arena, const char *data, size_t length,
                       const char *what, const value **root);
tare_status yaml_parse_file(tare_context *ctx, arena *arena, const char *path, size_t limit,
                            const value **root);

#endif
