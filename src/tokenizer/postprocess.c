/* Templates. */
#include "tokenizer/postprocess.h"

#include <string.h>

void postprocessor_init(postprocessor *p, tare_context *ctx)
{
    *p = (postprocessor){.ctx = ctx};
}

void postprocessor_free(postprocessor *p)
{
    for (size_t i = 0; i < p->count; i++)
        mem_free(p->ctx, p->pieces[i].ids);
    mem_free(p->ctx, p->pieces);
    postprocessor_init(p, p->ctx);
}

/* ---- reading ---- */

static tare_status read_ids(const stage_reader *r, const value *list, template_piece *piece)
{
    piece->ids = mem_alloc_array(r->ctx, list->count, sizeof *piece->ids);
    if (!piece->ids)
        return TARE_E_MEMORY;
    for (size_t i = 0; i < list->count; i++) {
        const value *id = &list->items[i];
        if (id->type != VALUE_NUMBER || !id->is_integer || id->integer < 0 ||
            id->integer > INT32_MAX)
            return TARE_FAIL(r->ctx, TARE_E_MODEL,
                             "%s: TemplateProcessing: ids must be integers from 0 to 2^31-1",
                             r->what);
        piece->ids[piece->count++] = (uint32_t)id->integer;
    }
    return TARE_OK;
}

static tare_status read_piece(const stage_reader *r, const value *v, const value *specials,
                              template_piece *piece)
{
    const value *sequence = value_get(v, "Sequence"), *special = value_get(v, "SpecialToken");
    const value *name;
    if (!v || v->count != 1 || (!sequence && !special))
        return TARE_FAIL(r->ctx, TARE_E_MODEL, "%s: TemplateProcessing: unknown kind of piece",
                         r->what);
    tare_status status = stage_string(r, sequence ? sequence : special, "id", &name);
    if (status != TARE_OK)
        return status;
    piece->is_text = sequence != NULL;
    if (sequence && strcmp(name->text, "A") != 0)
        return TARE_FAIL(r->ctx, TARE_E_MODEL,
                         "%s: TemplateProcessing: \"single\" must use the sequence A only",
                         r->what);
    if (sequence)
        return TARE_OK;
    const value *ids = value_get(value_get(specials, name->text), "ids");
    if (!ids || ids->type != VALUE_LIST)
        return TARE_FAIL(r->ctx, TARE_E_MODEL,
                         "%s: TemplateProcessing: special token \"%.*s\" has no list of ids",
                         r->what, vocabulary_clip(name->text, name->length), name->text);
    return read_ids(r, ids, piece);
}

static tare_status read_template(const stage_reader *r, const value *stage, void *target)
{
    postprocessor *p = target;
    const value *single = value_get(stage, "single");
    if (p->has_template) /* the second would take what the first made for a pair of texts */
        return TARE_FAIL(r->ctx, TARE_E_MODEL,
                         "%s: post_processor with two TemplateProcessing is not supported",
                         r->what);
    if (!single || single->type != VALUE_LIST)
        return TARE_FAIL(r->ctx, TARE_E_MODEL, "%s: TemplateProcessing has no list \"single\"",
                         r->what);
    p->has_template = true;
    for (size_t i = 0; i < single->count; i++) {
        tare_status status = mem_grow(p->ctx, (void **)&p->pieces, &p->capacity, p->count + 1,
                                      sizeof(template_piece));
        if (status != TARE_OK)
            return status;
        p->pieces[p->count++] = (template_piece){0};
        status = read_piece(r, &single->items[i], value_get(stage, "special_tokens"),
                            &p->pieces[p->count - 1]);
        if (status != TARE_OK)
            return status;
    }
    return TARE_OK;
}

static tare_status read_byte_level(const stage_reader *r, const value *stage, void *target)
{
    (void)r, (void)stage, (void)target;
    return TARE_OK;
}

static const stage_type types[] = {
    {"ByteLevel", read_byte_level},
    {"TemplateProcessing", read_template},
};

tare_status postprocessor_read(postprocessor *p, const stage_reader *r, const value *v)
{
    return stage_read_tree(r, "post_processor", v, types, sizeof types / sizeof types[0],
                           "processors", p);
}

/* ---- making ---- */

static tare_status add_piece(postprocessor *p, const uint32_t *id)
{
    template_piece piece = {.is_text = id == NULL};
    tare_status status = mem_grow(p->ctx, (void **)&p->pieces, &p->capacity, p->count + 1,
                                  sizeof piece);
    if (status != TARE_OK)
        return status;
    if (id) {
        piece.ids = mem_alloc_array(p->ctx, 1, sizeof *piece.ids);
        if (!piece.ids)
            return TARE_E_MEMORY;
        piece.ids[piece.count++] = *id;
    }
    p->pieces[p->count++] = piece;
    return TARE_OK;
}

tare_status postprocessor_set(postprocessor *p, const uint32_t *front, const uint32_t *behind)
{
    postprocessor_free(p);
    p->has_template = true;
    tare_status status = front ? add_piece(p, front) : TARE_OK;
    if (status == TARE_OK)
        status = add_piece(p, NULL);
    return status == TARE_OK && behind ? add_piece(p, behind) : status;
}

/* ---- running ---- */

tare_status postprocessor_run(const postprocessor *p, bool add_special_tokens, id_list *ids)
{
    id_list result = {.ctx = p->ctx};
    tare_status status = TARE_OK;
    if (!p->has_template)
        return TARE_OK;
    for (size_t i = 0; i < p->count; i++) {
        const template_piece *piece = &p->pieces[i];
        if (piece->is_text)
            TRY(id_list_append(&result, ids->items, ids->count));
        else if (add_special_tokens)
            TRY(id_list_append(&result, piece->ids, piece->count));
    }
    id_list_free(ids);
    *ids = result;
    return TARE_OK;
done:
    id_list_free(&result);
    return status;
}
