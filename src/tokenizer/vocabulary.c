/* Tokens and ids. */
#include "tokenizer/vocabulary.h"

#include <string.h>

#include "base/sort.h"

void vocabulary_init(vocabulary *v, tare_context *ctx)
{
    *v = (vocabulary){.ctx = ctx};
    strmap_init(&v->ids, ctx);
}

void vocabulary_free(vocabulary *v)
{
    mem_free(v->ctx, v->tokens);
    mem_free(v->ctx, v->by_id);
    mem_free(v->ctx, v->texts);
    strmap_free(&v->ids);
    vocabulary_init(v, v->ctx);
}

int vocabulary_clip(const char *text, size_t length)
{
    enum { LONGEST = 60 };
    if (length <= LONGEST)
        return (int)length;
    length = LONGEST;
    while (length > 0 && ((uint8_t)text[length] & 0xc0) == 0x80)
        length--;
    return (int)length;
}

static tare_status allocate(vocabulary *v, const value *map)
{
    size_t bytes = 0;
    for (size_t i = 0; i < map->count; i++)
        bytes += map->keys[i].length + 1;
    v->tokens = mem_alloc_array(v->ctx, map->count, sizeof(token));
    v->by_id = mem_alloc_array(v->ctx, map->count, sizeof(token *));
    v->texts = mem_alloc(v->ctx, bytes);
    if (!v->tokens || !v->by_id || !v->texts)
        return TARE_E_MEMORY;
    return strmap_reserve(&v->ids, map->count);
}

static int compare_ids(const void *a, const void *b)
{
    const token *x = a, *y = b;
    return x->id < y->id ? -1 : x->id > y->id;
}

/* Files list their tokens by id, as a rule. */
static tare_status sort_by_id(vocabulary *v, const stage_reader *r)
{
    bool sorted = true;
    for (size_t i = 1; i < v->count && sorted; i++)
        sorted = v->by_id[i - 1]->id <= v->by_id[i]->id;
    if (!sorted)
        sort_pointers((void **)v->by_id, v->count, compare_ids);
    for (size_t i = 1; i < v->count; i++) {
        const token *a = v->by_id[i - 1], *b = v->by_id[i];
        if (a->id == b->id)
            return TARE_FAIL(r->ctx, TARE_E_MODEL,
                             "%s: the tokens \"%.*s\" and \"%.*s\" have the same id %u", r->what,
                             vocabulary_clip(a->text, a->length), a->text,
                             vocabulary_clip(b->text, b->length), b->text, a->id);
    }
    return TARE_OK;
}

tare_status vocabulary_read(vocabulary *v, const stage_reader *r, const value *map)
{
    if (!map || map->type != VALUE_MAP)
        return TARE_FAIL(r->ctx, TARE_E_MODEL, "%s: the model has no map \"vocab\"", r->what);
    tare_status status = allocate(v, map);
    if (status != TARE_OK)
        return status;
    char *text = v->texts;
    for (size_t i = 0; i < map->count; i++) {
        const value *key = &map->keys[i], *id = &map->items[i];
        if (id->type != VALUE_NUMBER || !id->is_integer || id->integer < 0 ||
            id->integer > INT32_MAX)
            return TARE_FAIL(
                r->ctx, TARE_E_MODEL,
                "%s: line %d: the id of token \"%.*s\" must be an integer from 0 to 2^31-1",
                r->what, id->line, vocabulary_clip(key->text, key->length), key->text);
        memcpy(text, key->text, key->length + 1);
        v->tokens[i] = (token){text, (uint32_t)key->length, (uint32_t)id->integer};
        v->by_id[i] = &v->tokens[i];
        v->count++;
        status = strmap_put(&v->ids, text, key->length, v->tokens[i].id, NULL);
        if (status != TARE_OK)
            return status;
        text += key->length + 1;
    }
    return sort_by_id(v, r);
}

bool vocabulary_id(const vocabulary *v, const char *text, size_t length, uint32_t *id)
{
    return strmap_get(&v->ids, text, length, id);
}

const token *vocabulary_token(const vocabulary *v, uint32_t id)
{
    size_t low = 0, high = v->count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (v->by_id[middle]->id < id)
            low = middle + 1;
        else
            high = middle;
    }
    return low < v->count && v->by_id[low]->id == id ? v->by_id[low] : NULL;
}
