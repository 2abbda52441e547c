/* Reading the merge rules. */
#include "tokenizer/merges.h"

#include <string.h>

void merges_init(merges *m, tare_context *ctx)
{
    *m = (merges){.ctx = ctx, .shift = 63};
}

void merges_free(merges *m)
{
    mem_free(m->ctx, m->slots);
    merges_init(m, m->ctx);
}

static tare_status allocate(merges *m, size_t count)
{
    m->shift = 60;
    while (m->shift > 1 && ((size_t)1 << (64 - m->shift)) / 2 < count)
        m->shift--;
    size_t slots = (size_t)1 << (64 - m->shift);
    m->slots = mem_alloc_array(m->ctx, slots, sizeof(merge));
    if (!m->slots)
        return TARE_E_MEMORY;
    for (size_t i = 0; i < slots; i++)
        m->slots[i].pair = UINT64_MAX;
    return TARE_OK;
}

static void put(merges *m, uint64_t pair, uint32_t rank, uint32_t id)
{
    size_t mask = ((size_t)1 << (64 - m->shift)) - 1, i = merges_slot(m, pair);
    while (m->slots[i].pair != pair && m->slots[i].pair != UINT64_MAX)
        i = (i + 1) & mask;
    m->slots[i] = (merge){pair, rank, id};
}

/* The two sides of a rule in either form. */
static tare_status read_sides(const stage_reader *r, const value *v, bool as_list, value sides[2])
{
    if (as_list && v->type == VALUE_LIST && v->count == 2 && v->items[0].type == VALUE_STRING &&
        v->items[1].type == VALUE_STRING) {
        sides[0] = v->items[0];
        sides[1] = v->items[1];
        return TARE_OK;
    }
    if (!as_list && v->type == VALUE_STRING) {
        const char *space = memchr(v->text, ' ', v->length), *end = v->text + v->length;
        if (space && !memchr(space + 1, ' ', (size_t)(end - space - 1))) {
            sides[0].text = v->text;
            sides[0].length = (size_t)(space - v->text);
            sides[1].text = space + 1;
            sides[1].length = (size_t)(end - space - 1);
            return TARE_OK;
        }
    }
    return TARE_FAIL(r->ctx, TARE_E_MODEL, "%s: line %d: a merge must be %s, and all of them alike",
                     r->what, v->line, as_list ? "[\"a\", \"b\"]" : "\"a b\"");
}

static tare_status find_token(const stage_reader *r, const vocabulary *v, const char *text,
                              size_t length, int line, uint32_t *id)
{
    if (vocabulary_id(v, text, length, id))
        return TARE_OK;
    return TARE_FAIL(
        r->ctx, TARE_E_MODEL,
        "%s: line %d: a merge needs the token \"%.*s\", which is not in the vocabulary", r->what,
        line, vocabulary_clip(text, length), text);
}

tare_status merges_read(merges *m, const stage_reader *r, const value *list, const vocabulary *v)
{
    tare_status status = TARE_OK;
    buffer joined;
    buffer_init(&joined, r->ctx);
    if (!list || list->type != VALUE_LIST)
        return TARE_FAIL(r->ctx, TARE_E_MODEL, "%s: the model has no list \"merges\"", r->what);
    TRY(allocate(m, list->count));
    bool as_list = list->count > 0 && list->items[0].type == VALUE_LIST;
    for (size_t i = 0; i < list->count; i++) {
        const value *rule = &list->items[i];
        value sides[2] = {{0}, {0}};
        uint32_t left, right, id;
        if (rule->type == VALUE_STRING && str_starts_with(rule->text, "#version"))
            continue;
        TRY(read_sides(r, rule, as_list, sides));
        TRY(find_token(r, v, sides[0].text, sides[0].length, rule->line, &left));
        TRY(find_token(r, v, sides[1].text, sides[1].length, rule->line, &right));
        joined.length = 0;
        buffer_append(&joined, sides[0].text, sides[0].length);
        buffer_append(&joined, sides[1].text, sides[1].length);
        TRY(joined.status);
        TRY(find_token(r, v, joined.data, joined.length, rule->line, &id));
        put(m, (uint64_t)left << 32 | right, (uint32_t)i, id);
    }
done:
    buffer_free(&joined);
    return status;
}
