/* Pieces of text, and the reading of stage descriptions. */
#include "tokenizer/stage.h"

#include <string.h>

void pieces_init(pieces *p, tare_context *ctx)
{
    *p = (pieces){.ctx = ctx};
    buffer_init(&p->own, ctx);
}

void pieces_free(pieces *p)
{
    buffer_free(&p->own);
    mem_free(p->ctx, p->spans);
    pieces_init(p, p->ctx);
}

tare_status pieces_set(pieces *p, const char *text, size_t length)
{
    p->text = text;
    p->count = 0;
    return pieces_add(p, 0, length);
}

tare_status pieces_add(pieces *p, size_t start, size_t length)
{
    tare_status status = mem_grow(p->ctx, (void **)&p->spans, &p->capacity, p->count + 1,
                                  sizeof(span));
    if (status == TARE_OK)
        p->spans[p->count++] = (span){(uint32_t)start, (uint32_t)length};
    return status;
}

tare_status pieces_finish_rewrite(pieces *from, pieces *to)
{
    if (to->own.status != TARE_OK)
        return to->own.status;
    if (to->own.length > UINT32_MAX)
        return TARE_FAIL(from->ctx, TARE_E_DATA,
                         "a text that grows to %zu bytes before it is tokenized; at most 4 GiB",
                         to->own.length);
    to->text = to->own.length ? to->own.data : ""; /* never NULL: pieces add to it */
    pieces result = *to;
    *to = *from;
    *from = result;
    return TARE_OK;
}

tare_status stage_read_tree(const stage_reader *r, const char *section, const value *v,
                            const stage_type *types, size_t type_count, const char *sequence_key,
                            void *target)
{
    if (!v || v->type == VALUE_NULL)
        return TARE_OK;
    const value *type = value_get(v, "type");
    if (!type || type->type != VALUE_STRING)
        return TARE_FAIL(r->ctx, TARE_E_MODEL, "%s: %s has no \"type\"", r->what, section);
    if (strcmp(type->text, "Sequence") == 0) {
        const value *list = value_get(v, sequence_key);
        if (!list || list->type != VALUE_LIST)
            return TARE_FAIL(r->ctx, TARE_E_MODEL, "%s: a Sequence in %s has no list \"%s\"",
                             r->what, section, sequence_key);
        tare_status status = TARE_OK;
        for (size_t i = 0; i < list->count && status == TARE_OK; i++)
            status = stage_read_tree(r, section, &list->items[i], types, type_count, sequence_key,
                                     target);
        return status;
    }
    for (size_t i = 0; i < type_count; i++) {
        if (strcmp(type->text, types[i].name) == 0)
            return types[i].read(r, v, target);
    }
    return TARE_FAIL(r->ctx, TARE_E_MODEL, "%s: %s of type \"%s\" is not supported", r->what,
                     section, type->text);
}

tare_status stage_bool(const stage_reader *r, const value *stage, const char *key, bool *out)
{
    const value *v = value_get(stage, key);
    if (!v || v->type != VALUE_BOOL)
        return TARE_FAIL(r->ctx, TARE_E_MODEL, "%s: line %d: \"%s\" must be true or false", r->what,
                         stage->line, key);
    *out = v->boolean;
    return TARE_OK;
}

tare_status stage_string(const stage_reader *r, const value *stage, const char *key,
                         const value **out)
{
    *out = value_get(stage, key);
    if (!*out || (*out)->type != VALUE_STRING)
        return TARE_FAIL(r->ctx, TARE_E_MODEL, "%s: line %d: \"%s\" must be a string", r->what,
                         stage->line, key);
    return TARE_OK;
}

tare_status stage_text(const stage_reader *r, const value *stage, const char *key, char **text,
                       size_t *length)
{
    const value *v;
    tare_status status = stage_string(r, stage, key, &v);
    if (status != TARE_OK)
        return status;
    *length = v->length;
    *text = mem_strndup(r->ctx, v->text, v->length);
    return *text ? TARE_OK : TARE_E_MEMORY;
}
