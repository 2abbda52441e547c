/* Value trees: building them, reading members. */
#include "file/value.h"

#include <math.h>
#include <string.h>

#include "file/value_builder.h"

enum {
    CHUNK_MIN = 1024, /* a short document stays small */
    CHUNK_MAX = 128 * 1024,
    FEW_KEYS = 8 /* up to here comparing each with each beats a hash table */
};

void value_builder_init(value_builder *b, tare_context *ctx, arena *a, const char *what)
{
    *b = (value_builder){.ctx = ctx, .arena = a, .what = what, .chunk = CHUNK_MIN / 2};
}

void value_builder_free(value_builder *b)
{
    mem_free(b->ctx, b->stack);
}

/* ---- memory ---- */

/* Makes `size` bytes free between front and back, or gives them on their own in *own. */
static tare_status reserve(value_builder *b, size_t size, char **own)
{
    *own = NULL;
    if ((size_t)(b->back - b->front) >= size)
        return TARE_OK;
    if (size > b->chunk / 4 && size > CHUNK_MIN / 4) {
        *own = arena_alloc(b->arena, size);
        return *own ? TARE_OK : TARE_E_MEMORY;
    }
    size_t chunk = b->chunk < CHUNK_MAX ? b->chunk * 2 : CHUNK_MAX;
    char *fresh = arena_alloc(b->arena, chunk);
    if (!fresh)
        return TARE_E_MEMORY;
    b->front = fresh;
    b->back = fresh + chunk;
    b->chunk = chunk;
    return TARE_OK;
}

static value *alloc_values(value_builder *b, size_t count)
{
    char *own;
    size_t size;
    if (!size_mul(count, sizeof(value), &size) || reserve(b, size, &own) != TARE_OK)
        return NULL;
    if (!own) {
        own = b->front;
        b->front += size;
    }
    return (value *)own;
}

static const char *copy_text(value_builder *b, const char *text, size_t length)
{
    char *own;
    if (reserve(b, length + 1, &own) != TARE_OK)
        return NULL;
    if (!own)
        own = b->back -= length + 1;
    memcpy(own, text, length);
    own[length] = 0;
    return own;
}

/* ---- building ---- */

static tare_status push(value_builder *b, const value *v)
{
    tare_status status = mem_grow(b->ctx, (void **)&b->stack, &b->capacity, b->count + 1,
                                  sizeof(value));
    if (status == TARE_OK)
        b->stack[b->count++] = *v;
    return status;
}

tare_status value_builder_add(value_builder *b, const value *v)
{
    value copy = *v;
    if (v->text && !(copy.text = copy_text(b, v->text, v->length)))
        return TARE_E_MEMORY;
    return push(b, &copy);
}

tare_status value_builder_string(value_builder *b, const char *text, size_t length, int line)
{
    value v = {.type = VALUE_STRING, .line = line, .text = text, .length = length};
    return value_builder_add(b, &v);
}

/* Puts "<what>: line L: " before the reason, where there is a `what`. */
static tare_status at_line(const value_builder *b, int line, tare_status status)
{
    return b->what ? TARE_WRAP(b->ctx, status, "%s: line %d", b->what, line) : status;
}

tare_status value_builder_open(value_builder *b, value_type type, int line)
{
    int limit = b->last_wins ? JSON_DATA_MAX_DEPTH : JSON_MAX_DEPTH;
    if (b->depth == limit)
        return at_line(b, line,
                       TARE_FAIL(b->ctx, TARE_E_FORMAT, "nested deeper than %d levels", limit));
    b->open[b->depth].type = type;
    b->open[b->depth].line = line;
    b->open[b->depth].first = b->count;
    b->depth++;
    return TARE_OK;
}

bool value_builder_wants_key(const value_builder *b)
{
    return b->depth && b->open[b->depth - 1].type == VALUE_MAP &&
           (b->count - b->open[b->depth - 1].first) % 2 == 0;
}

static tare_status fail_duplicate(const value_builder *b, const value *key)
{
    int shown = key->length < 200 ? (int)key->length : 200;
    return at_line(b, key->line,
                   TARE_FAIL(b->ctx, TARE_E_FORMAT, "duplicate key \"%.*s\"", shown, key->text));
}

static tare_status check_few_keys(const value_builder *b, const value *keys, size_t count)
{
    for (size_t i = 1; i < count; i++) {
        for (size_t j = 0; j < i; j++) {
            if (keys[i].length == keys[j].length &&
                memcmp(keys[i].text, keys[j].text, keys[i].length) == 0)
                return fail_duplicate(b, &keys[i]);
        }
    }
    return TARE_OK;
}

static tare_status check_many_keys(const value_builder *b, const value *keys, size_t count)
{
    tare_status status = TARE_OK;
    strmap seen;
    strmap_init(&seen, b->ctx);
    TRY(strmap_reserve(&seen, count));
    for (size_t i = 0; i < count; i++) {
        bool existed;
        TRY(strmap_put(&seen, keys[i].text, keys[i].length, 0, &existed));
        if (existed)
            TRY(fail_duplicate(b, &keys[i]));
    }
done:
    strmap_free(&seen);
    return status;
}

/* Of members with the same key one stays: the first's place, the last's value. */
static tare_status merge_duplicates(const value_builder *b, value *keys, value *items,
                                    size_t *count)
{
    tare_status status = TARE_OK;
    size_t kept = 0;
    strmap seen;
    strmap_init(&seen, b->ctx);
    for (size_t i = 0; i < *count; i++) {
        uint32_t at;
        if (strmap_get(&seen, keys[i].text, keys[i].length, &at)) {
            items[at] = items[i];
            continue;
        }
        if (kept == UINT32_MAX) {
            status = at_line(b, keys->line, TARE_FAIL(b->ctx, TARE_E_FORMAT, "too many keys"));
            goto done;
        }
        TRY(strmap_put(&seen, keys[i].text, keys[i].length, (uint32_t)kept, NULL));
        keys[kept] = keys[i];
        items[kept++] = items[i];
    }
    *count = kept;
done:
    strmap_free(&seen);
    return status;
}

tare_status value_builder_close(value_builder *b)
{
    b->depth--;
    value v = {.type = b->open[b->depth].type, .line = b->open[b->depth].line};
    size_t first = b->open[b->depth].first, children = b->count - first;
    const value *source = children ? b->stack + first : NULL;
    value *array = NULL;
    if (children && !(array = alloc_values(b, children)))
        return TARE_E_MEMORY;
    if (v.type == VALUE_LIST) {
        v.count = children;
        if (children)
            memcpy(array, source, children * sizeof(value));
        v.items = array;
    } else {
        v.count = children / 2;
        for (size_t i = 0; i < v.count; i++) {
            array[i] = source[2 * i];
            array[v.count + i] = source[2 * i + 1];
        }
        v.keys = array;
        v.items = array ? array + v.count : NULL;
        tare_status status = v.count < 2    ? TARE_OK
                             : b->last_wins ? merge_duplicates(b, array, array + v.count, &v.count)
                             : v.count <= FEW_KEYS ? check_few_keys(b, v.keys, v.count)
                                                   : check_many_keys(b, v.keys, v.count);
        if (status != TARE_OK)
            return status;
    }
    b->count = first;
    return push(b, &v);
}

tare_status value_builder_finish(value_builder *b, const value **root)
{
    value *v = alloc_values(b, 1);
    if (!v)
        return TARE_E_MEMORY;
    *v = b->stack[0];
    *root = v;
    return TARE_OK;
}

/* ---- reading ---- */

const value *value_get(const value *map, const char *key)
{
    if (!map || map->type != VALUE_MAP)
        return NULL;
    size_t length = strlen(key);
    for (size_t i = 0; i < map->count; i++) {
        if (map->keys[i].length == length && memcmp(map->keys[i].text, key, length) == 0)
            return &map->items[i];
    }
    return NULL;
}

const char *value_text(const value *v)
{
    return v && v->type == VALUE_STRING ? v->text : NULL;
}

bool value_is_true(const value *v)
{
    return v && v->type == VALUE_BOOL && v->boolean;
}

bool value_is(const value *v, const char *text)
{
    return value_text(v) && strcmp(v->text, text) == 0;
}

/* Member `key` unless it is absent or null. */
static const value *get_set(const value *map, const char *key)
{
    const value *v = value_get(map, key);
    return v && v->type != VALUE_NULL ? v : NULL;
}

static tare_status fail_member(tare_context *ctx, const char *what, const char *key,
                               const char *must_be)
{
    return TARE_FAIL(ctx, TARE_E_FORMAT, "%s: key \"%s\" must be %s", what, key, must_be);
}

tare_status value_get_size(tare_context *ctx, const value *map, const char *what, const char *key,
                           size_t *out)
{
    const value *v = get_set(map, key);
    if (!v)
        return TARE_OK;
    if (v->type != VALUE_NUMBER || !v->is_integer || v->integer < 0)
        return fail_member(ctx, what, key, "a whole number, 0 or more");
    *out = (size_t)v->integer;
    return TARE_OK;
}

tare_status value_get_double(tare_context *ctx, const value *map, const char *what, const char *key,
                             double *out)
{
    const value *v = get_set(map, key);
    if (!v)
        return TARE_OK;
    if (v->type != VALUE_NUMBER || !isfinite(v->number))
        return fail_member(ctx, what, key, "a finite number");
    *out = v->number;
    return TARE_OK;
}

tare_status value_get_bool(tare_context *ctx, const value *map, const char *what, const char *key,
                           bool *out)
{
    const value *v = get_set(map, key);
    if (!v)
        return TARE_OK;
    if (v->type != VALUE_BOOL)
        return fail_member(ctx, what, key, "true or false");
    *out = v->boolean;
    return TARE_OK;
}

tare_status value_get_string(tare_context *ctx, const value *map, const char *what, const char *key,
                             const char **out)
{
    const value *v = get_set(map, key);
    if (!v)
        return TARE_OK;
    /* The caller gets no length: a zero inside would cut the text short behind its back. */
    if (v->type != VALUE_STRING || memchr(v->text, 0, v->length))
        return fail_member(ctx, what, key, "a string");
    *out = v->text;
    return TARE_OK;
}
