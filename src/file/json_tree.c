/* JSON documents as trees. */
#include "file/foreign.h"
#include "file/io.h"
#include "file/json.h"
#include "file/value_builder.h"

static tare_status add_token(value_builder *b, const json_token *t)
{
    value v = {.line = t->line};
    switch (t->kind) {
    case JSON_MAP_BEGIN:
        return value_builder_open(b, VALUE_MAP, t->line);
    case JSON_LIST_BEGIN:
        return value_builder_open(b, VALUE_LIST, t->line);
    case JSON_MAP_END:
    case JSON_LIST_END:
        return value_builder_close(b);
    case JSON_KEY:
    case JSON_STRING:
        return value_builder_string(b, t->text, t->length, t->line);
    case JSON_NUMBER:
        v.type = VALUE_NUMBER;
        v.is_integer = t->is_integer;
        v.integer = t->integer;
        v.number = t->number;
        v.text = t->text;
        v.length = t->length;
        break;
    case JSON_TRUE:
    case JSON_FALSE:
        v.type = VALUE_BOOL;
        v.boolean = t->kind == JSON_TRUE;
        break;
    default:
        v.type = VALUE_NULL;
        break;
    }
    return value_builder_add(b, &v);
}

/* Adds the value that begins with `token`, which is overwritten. */
static tare_status add_value(value_builder *b, json_reader *r, json_token *token)
{
    tare_status status = TARE_OK;
    for (size_t depth = 0;;) {
        depth += token->kind == JSON_LIST_BEGIN || token->kind == JSON_MAP_BEGIN;
        depth -= token->kind == JSON_LIST_END || token->kind == JSON_MAP_END;
        TRY(add_token(b, token));
        if (depth == 0)
            break;
        TRY(json_next(r, token));
    }
done:
    return status;
}

tare_status json_next_item(json_reader *r, arena *a, const value **item)
{
    tare_status status = TARE_OK;
    value_builder builder;
    json_token token;

    *item = NULL;
    json_reader_builder(r, a, &builder);
    TRY(json_next(r, &token));
    if (token.kind == JSON_LIST_END)
        goto done;
    TRY(add_value(&builder, r, &token));
    TRY(value_builder_finish(&builder, item));
done:
    value_builder_free(&builder);
    return status;
}

tare_status json_parse(tare_context *ctx, arena *a, const char *data, size_t length,
                       const char *what, json_dialect dialect, const value **root)
{
    json_reader *reader;
    value_builder builder;
    json_token token;

    *root = NULL;
    tare_status status = json_reader_create(ctx, data, length, what, dialect, &reader);
    if (status != TARE_OK)
        return status;
    json_reader_builder(reader, a, &builder);
    TRY(json_next(reader, &token));
    TRY(add_value(&builder, reader, &token));
    TRY(json_next(reader, &token)); /* JSON_END, or the fault of what follows */
    TRY(value_builder_finish(&builder, root));
done:
    json_reader_free(reader);
    value_builder_free(&builder);
    return what ? foreign_explain(ctx, status, what, data, length) : status;
}

tare_status json_parse_file(tare_context *ctx, arena *a, const char *path, size_t limit,
                            const value **root)
{
    char *data = NULL;
    size_t length;
    *root = NULL;
    tare_status status = file_read_all(ctx, path, limit, &data, &length);
    if (status == TARE_OK)
        status = json_parse(ctx, a, data, length, path, JSON_STRICT, root);
    mem_free(ctx, data);
    return status;
}
