/* Builds a value tree from a parser's events: the common back of the JSON and YAML parsers.
 *
 *     value_builder_init(&b, ctx, arena, what);
 *     value_builder_open(&b, VALUE_MAP, line);           {
 *     value_builder_string(&b, "a", 1, line);              "a":
 *     value_builder_add(&b, &(value){.type = …});                1
 *     value_builder_close(&b);                           }
 *     value_builder_finish(&b, &root);
 *     value_builder_free(&b);
 *
 * Children wait on a stack until their container closes, and are then copied once into the arena:
 * arrays and texts are packed, 8 and 1 byte aligned. */
#ifndef TARE_FILE_VALUE_BUILDER_H
#define TARE_FILE_VALUE_BUILDER_H

#include "file/json.h"

typedef struct value_builder {
    tare_context *ctx;
    arena *arena;
    const char *what; /* borrowed; NULL: messages are the bare reason */
    bool last_wins;   /* of duplicate keys, to JSON_DATA_MAX_DEPTH; else they are refused */
    value *stack;     /* finished children of all open containers; in maps key, value, key, … */
    size_t count, capacity;
    struct {
        value_type type;
        int line;
        size_t first; /* its children begin here in the stack */
    } open[JSON_DATA_MAX_DEPTH];
    int depth;
    char *front,
        *back; /* free rest of the newest chunk: arrays from its front, texts from behind */
    size_t chunk;
} value_builder;

void value_builder_init(value_builder *b, tare_context *ctx, arena *a, const char *what);
/* For the values of a reader, by its dialect. */
void json_reader_builder(const json_reader *r, arena *a, value_builder *b);
/* Frees what is outside the arena. */
void value_builder_free(value_builder *b);
/* Adds a child; its `text` (string, number) is copied. In a map keys and values take turns, and
 * keys are strings. */
tare_status value_builder_add(value_builder *b, const value *v);
tare_status value_builder_string(value_builder *b, const char *text, size_t length, int line);
/* VALUE_LIST or VALUE_MAP. TARE_E_FORMAT beyond JSON_MAX_DEPTH (JSON_DATA_MAX_DEPTH with
 * last_wins). */
tare_status value_builder_open(value_builder *b, value_type type, int line);
/* TARE_E_FORMAT if a map has a key twice, but with last_wins. */
tare_status value_builder_close(value_builder *b);
/* In a map: is a key due? */
bool value_builder_wants_key(const value_builder *b);
/* The tree, once every container is closed. */
tare_status value_builder_finish(value_builder *b, const value **root);

#endif
