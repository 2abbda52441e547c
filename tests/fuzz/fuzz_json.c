/* JSON: whatever the bytes, the parser ends with a tree or a message. What it accepts is written
 * and parsed again: the second text must equal the first. The first byte chooses the dialect
 * (with its writer) and the indentation. */
#include <stdlib.h>
#include <string.h>

#include "file/json.h"

static void check(bool ok)
{
    if (!ok)
        abort();
}

/* Pulls all tokens, skipping a value here and there. */
static void pull(tare_context *ctx, const char *text, size_t length, json_dialect dialect,
                 bool accepted)
{
    json_reader *reader;
    json_token token;
    tare_status status = json_reader_create(ctx, text, length, "fuzz", dialect, &reader);
    while (status == TARE_OK && (status = json_next(reader, &token)) == TARE_OK) {
        if (token.text)
            check(token.text[token.length] == 0 &&
                  (dialect == JSON_DATA || utf8_valid(token.text, token.length)));
        if (token.kind == JSON_END)
            break;
        if (token.kind == JSON_KEY && token.length % 2)
            status = json_skip(reader);
    }
    check(!accepted || status == TARE_OK);
    json_reader_free(reader);
}

/* A list read item by item holds what the tree of the whole holds; a faulty one fails. */
static void read_items(tare_context *ctx, const char *text, size_t length, json_dialect dialect,
                       const value *root)
{
    json_reader *reader;
    json_token token;
    const value *item = NULL;
    arena a;
    buffer mine, other;
    arena_init(&a, ctx);
    buffer_init(&mine, ctx);
    buffer_init(&other, ctx);
    tare_status status = json_reader_create(ctx, text, length, "fuzz", dialect, &reader);
    if (status == TARE_OK && (status = json_next(reader, &token)) == TARE_OK &&
        token.kind == JSON_LIST_BEGIN) {
        size_t count = 0;
        while ((status = json_next_item(reader, &a, &item)) == TARE_OK && item) {
            if (root && count < root->count) {
                mine.length = other.length = 0;
                json_write_value(&mine, item, 0, 0);
                json_write_value(&other, &root->items[count], 0, 0);
                check(mine.length == other.length && !memcmp(mine.data, other.data, mine.length));
            }
            count++;
            arena_free(&a);
        }
        if (status == TARE_OK)
            status = json_next(reader, &token);
        check((status == TARE_OK) == (root != NULL) && (!root || root->count == count));
    }
    buffer_free(&mine);
    buffer_free(&other);
    arena_free(&a);
    json_reader_free(reader);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!size)
        return 0;
    json_dialect dialect = data[0] & 8 ? JSON_DATA : data[0] & 1 ? JSON_PYTHON : JSON_STRICT;
    void (*write)(buffer *, const value *, int, int) = dialect == JSON_DATA ? json_write_data
                                                                            : json_write_value;
    const char *text = (const char *)data + 1;
    tare_context *ctx;
    check(tare_context_create(&ctx, NULL) == TARE_OK);
    arena a;
    arena_init(&a, ctx);
    buffer first, second;
    buffer_init(&first, ctx);
    buffer_init(&second, ctx);
    const value *root, *again;
    tare_status status = json_parse(ctx, &a, text, size - 1, "fuzz", dialect, &root);
    check(status == TARE_OK || (status == TARE_E_FORMAT && !root && tare_last_error(ctx)[0]));
    pull(ctx, text, size - 1, dialect, status == TARE_OK);
    read_items(ctx, text, size - 1, dialect, root);
    if (status == TARE_OK) {
        write(&first, root, data[0] >> 1 & 3, 0);
        check(json_parse(ctx, &a, first.data, first.length, "fuzz", dialect, &again) == TARE_OK);
        write(&second, again, data[0] >> 1 & 3, 0);
        check(first.length == second.length && !memcmp(first.data, second.data, first.length));
    }
    buffer_free(&first);
    buffer_free(&second);
    arena_free(&a);
    check(tare_memory_used(ctx) == 0);
    tare_context_free(ctx);
    return 0;
}
