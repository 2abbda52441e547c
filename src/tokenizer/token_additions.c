/* The tokens that transformers adds behind those of tokenizer.json: _from_pretrained of
 * tokenization_utils_base.py and __init__ of tokenization_utils_fast.py, 4.57. */
#include <stdlib.h>
#include <string.h>

#include "base/sort.h"
#include "tokenizer/tokenizer_config.h"

enum { NONE = UINT32_MAX };

/* What stands in the way to the list. Strings are borrowed from the files' trees. */
typedef struct collecting {
    const tokenizer_config *c;
    const value *file;     /* root of tokenizer.json */
    config_token *decoder; /* added_tokens_decoder */
    size_t decoder_count, decoder_capacity;
    config_token *specials; /* one for each content, in order */
    size_t specials_count, specials_capacity;
    strmap by_content;  /* -> the first of `decoder` with this content */
    strmap special_set; /* contents of `specials` */
    strmap known;       /* contents of tokenizer.json's added tokens, and of `decoder` */
    strmap listed;      /* -> one of `decoder` that is in the list */
} collecting;

static tare_status push(tare_context *ctx, config_token **items, size_t *count, size_t *capacity,
                        const config_token *t)
{
    tare_status status = mem_grow(ctx, (void **)items, capacity, *count + 1, sizeof *t);
    if (status == TARE_OK)
        (*items)[(*count)++] = *t;
    return status;
}

/* ---- added_tokens_decoder ---- */

/* `named`: special tokens of this content take after it, the last one of them. */
static tare_status add_decoder_token(collecting *g, const config_token *t, bool named)
{
    uint32_t index = (uint32_t)g->decoder_count, first = index;
    bool existed;
    tare_status status = push(g->c->ctx, &g->decoder, &g->decoder_count, &g->decoder_capacity, t);
    if (status != TARE_OK || !named)
        return status;
    status = strmap_put(&g->by_content, t->text, t->length, index, &existed);
    if (status == TARE_OK) {
        strmap_get(&g->by_content, t->text, t->length, &first);
        g->decoder[first].latest = index;
    }
    return status;
}

/* Python's int() of a key, as far as files have it. */
static tare_status read_key(const collecting *g, const value *key, int64_t *out)
{
    char *end;
    *out = strtoll(key->text, &end, 10);
    if (key->length == 0 || key->length > 18 || end != key->text + key->length)
        return TARE_FAIL(g->c->ctx, TARE_E_MODEL,
                         "%s: line %d: the keys of \"added_tokens_decoder\" must be ids",
                         g->c->what, key->line);
    return TARE_OK;
}

static tare_status read_decoder_map(collecting *g, const value *map)
{
    tare_status status = TARE_OK;
    config_token t;
    if (map->type != VALUE_MAP)
        return TARE_FAIL(g->c->ctx, TARE_E_MODEL, "%s: \"added_tokens_decoder\" must be a map",
                         g->c->what);
    for (size_t i = 0; i < map->count; i++) {
        const value *v = &map->items[i];
        if (v->type != VALUE_MAP)
            return TARE_FAIL(g->c->ctx, TARE_E_MODEL,
                             "%s: line %d: an entry of \"added_tokens_decoder\" must be a map",
                             g->c->what, v->line);
        TRY(tokenizer_config_token(g->c, v, map->keys[i].text, &t));
        TRY(read_key(g, &map->keys[i], &t.id));
        TRY(add_decoder_token(g, &t, true));
    }
done:
    return status;
}

/* The contents of special tokens that a file gives as text, or special_tokens_map.json in any form:
 * objects of tokenizer_config.json are not made yet where this counts. */
static tare_status read_given(const collecting *g, strmap *given)
{
    static const char additional[] = "additional_special_tokens";
    const value *const files[] = {g->c->root, g->c->map};
    tare_status status = TARE_OK;
    config_token t;
    for (int k = 0; k < NUM_SPECIAL; k++) {
        const value *v = tokenizer_config_get(g->c, special_names[k]);
        TRY(tokenizer_config_token(g->c, v, special_names[k], &t));
        if (t.text && (t.is_text || v == value_get(g->c->map, special_names[k])))
            TRY(strmap_put(given, t.text, t.length, 1, NULL));
    }
    for (int f = 0; f < 2; f++) {
        const value *list = value_get(files[f], additional);
        for (size_t i = 0; list && list->type == VALUE_LIST && i < list->count; i++) {
            TRY(tokenizer_config_token(g->c, &list->items[i], additional, &t));
            if (t.text && (t.is_text || files[f] == g->c->map))
                TRY(strmap_put(given, t.text, t.length, 1, NULL));
        }
    }
done:
    return status;
}

/* added_tokens.json: token -> id. */
static tare_status read_added_file(collecting *g)
{
    tare_status status = TARE_OK;
    const value *map = g->c->added;
    strmap given;
    strmap_init(&given, g->c->ctx);
    TRY(read_given(g, &given));
    for (size_t i = 0; map && i < map->count; i++) {
        const value *id = &map->items[i], *key = &map->keys[i];
        config_token t = {.text = key->text, .length = key->length, .has_normalized = true};
        if (id->type != VALUE_NUMBER || !id->is_integer || !utf8_valid(key->text, key->length)) {
            status = TARE_FAIL(g->c->ctx, TARE_E_MODEL,
                               "added_tokens.json beside %s: line %d: must map tokens to ids",
                               g->c->what, id->line);
            goto done;
        }
        t.special = strmap_get(&given, t.text, t.length, NULL);
        t.normalized = !t.special;
        t.id = id->integer;
        TRY(add_decoder_token(g, &t, false));
    }
done:
    strmap_free(&given);
    return status;
}

/* Without added_tokens_decoder the tokens of tokenizer.json stand for it. */
static tare_status read_file_tokens(collecting *g, bool as_decoder)
{
    tare_status status = TARE_OK;
    const value *list = value_get(g->file, "added_tokens");
    for (size_t i = 0; list && list->type == VALUE_LIST && i < list->count; i++) {
        const value *id = value_get(&list->items[i], "id");
        config_token t;
        TRY(tokenizer_config_token(g->c, &list->items[i], "added_tokens", &t));
        if (!t.text)
            continue;
        TRY(strmap_put(&g->known, t.text, t.length, 1, NULL));
        t.id = id && id->type == VALUE_NUMBER && id->is_integer ? id->integer : 0;
        if (as_decoder)
            TRY(add_decoder_token(g, &t, true));
    }
done:
    return status;
}

static tare_status read_decoder(collecting *g)
{
    tare_status status = TARE_OK;
    const value *map = value_get(g->c->root, "added_tokens_decoder");
    if (map) {
        TRY(read_decoder_map(g, map));
    } else {
        TRY(read_added_file(g));
    }
    TRY(read_file_tokens(g, map == NULL));
    for (size_t i = 0; i < g->decoder_count; i++)
        TRY(strmap_put(&g->known, g->decoder[i].text, g->decoder[i].length, 1, NULL));
done:
    return status;
}

/* ---- special tokens ---- */

static tare_status add_special(collecting *g, const config_token *t)
{
    bool existed;
    if (!t->text || t->length == 0)
        return TARE_OK;
    tare_status status = strmap_put(&g->special_set, t->text, t->length, 1, &existed);
    if (status == TARE_OK && !existed)
        status = push(g->c->ctx, &g->specials, &g->specials_count, &g->specials_capacity, t);
    return status;
}

/* bos_token and its like: a token that added_tokens_decoder has is that one. */
static tare_status add_named(collecting *g, special_kind kind)
{
    const tokenizer_class *k = g->c->class;
    config_token t;
    uint32_t index;
    bool given = tokenizer_config_get(g->c, special_names[kind]) != NULL;
    tare_status status = tokenizer_config_special(g->c, kind, &t);
    if (status != TARE_OK)
        return status;
    if (kind == SPECIAL_PAD && !given && !k->pad_is_set) {
        const value *padding = value_get(g->file, "padding");
        status = tokenizer_config_token(g->c, value_get(padding, "pad_token"), "pad_token", &t);
        if (status != TARE_OK)
            return status;
    } else if (given && t.text && strmap_get(&g->by_content, t.text, t.length, &index)) {
        t = g->decoder[g->decoder[index].latest];
    }
    if (k->token_objects && t.is_text &&
        (kind == SPECIAL_BOS || kind == SPECIAL_EOS || kind == SPECIAL_UNK ||
         kind == SPECIAL_PAD)) {
        t.is_text = false;
        t.special = t.has_normalized = true;
    }
    return add_special(g, &t);
}

static tare_status add_list(collecting *g, const value *list, const char *key)
{
    tare_status status = TARE_OK;
    config_token t;
    if (!list || list->type == VALUE_NULL)
        return TARE_OK;
    if (list->type != VALUE_LIST && list->type != VALUE_MAP)
        return TARE_FAIL(g->c->ctx, TARE_E_MODEL, "%s: \"%s\" must be a list of tokens", g->c->what,
                         key);
    for (size_t i = 0; i < list->count; i++) {
        TRY(tokenizer_config_token(g->c, &list->items[i], key, &t));
        TRY(add_special(g, &t));
    }
done:
    return status;
}

static tare_status read_specials(collecting *g)
{
    static const char additional[] = "additional_special_tokens", extra[] = "extra_special_tokens";
    tare_status status = TARE_OK;
    for (int k = 0; k < NUM_SPECIAL; k++)
        TRY(add_named(g, (special_kind)k));
    const value *winner = value_get(g->c->overrides, additional);
    if (winner) {
        TRY(add_list(g, winner, additional));
    } else { /* the two files' lists are joined */
        TRY(add_list(g, value_get(g->c->root, additional), additional));
        TRY(add_list(g, value_get(g->c->map, additional), additional));
    }
    for (size_t i = 0; g->c->class->more && g->c->class->more[i]; i++) {
        const char *text = g->c->class->more[i];
        TRY(add_special(g, &(config_token){.text = text, .length = strlen(text), .is_text = true}));
    }
    TRY(add_list(g, tokenizer_config_get(g->c, extra), extra));
done:
    return status;
}

/* ---- the list ---- */

static int by_id(const void *a, const void *b)
{
    const config_token *x = a, *y = b;
    if (x->id != y->id)
        return x->id < y->id ? -1 : 1;
    return x < y ? -1 : x > y; /* the order of the file */
}

static added_token finished(const config_token *t, bool special, bool has_id)
{
    return (added_token){.content = t->text,
                         .length = (uint32_t)t->length,
                         .id = has_id && t->id >= 0 && t->id <= INT32_MAX ? (uint32_t)t->id
                                                                          : ADDED_TOKEN_ANY_ID,
                         .special = special,
                         .single_word = t->single_word,
                         .lstrip = t->lstrip,
                         .rstrip = t->rstrip,
                         .normalized = t->has_normalized ? t->normalized : !special};
}

/* Same content is known. As it stands, not as it will be added. */
static bool is_equal(const config_token *a, const config_token *b)
{
    const added_token x = finished(a, a->special, false), y = finished(b, b->special, false);
    return x.special == y.special && x.single_word == y.single_word && x.lstrip == y.lstrip &&
           x.rstrip == y.rstrip && x.normalized == y.normalized;
}

/* added_tokens_decoder, by id; of one id the last counts. Those of a content are chained. */
static tare_status list_decoder(collecting *g, config_token **order, added_token *out,
                                size_t *count)
{
    size_t n = g->decoder_count;
    uint32_t head;
    for (size_t i = 0; i < n; i++)
        order[i] = &g->decoder[i];
    sort_pointers((void **)order, n, by_id);
    for (size_t i = 0; i < n; i++) {
        config_token *t = order[i];
        bool existed, special = t->special;
        if (i + 1 < n && order[i + 1]->id == t->id)
            continue;
        special = special || strmap_get(&g->special_set, t->text, t->length, NULL);
        out[(*count)++] = finished(t, special, true);
        t->next = NONE;
        tare_status status = strmap_put(&g->listed, t->text, t->length, (uint32_t)(t - g->decoder),
                                        &existed);
        if (status != TARE_OK)
            return status;
        if (existed && strmap_get(&g->listed, t->text, t->length, &head)) {
            t->next = g->decoder[head].next;
            g->decoder[head].next = (uint32_t)(t - g->decoder);
        }
    }
    return TARE_OK;
}

/* Is the special token there already? Of text any with its content counts, of an object only its
 * equal in added_tokens_decoder. */
static bool is_there(const collecting *g, const config_token *t)
{
    uint32_t i = NONE;
    if (t->is_text)
        return strmap_get(&g->known, t->text, t->length, NULL);
    strmap_get(&g->listed, t->text, t->length, &i);
    while (i != NONE && !is_equal(&g->decoder[i], t))
        i = g->decoder[i].next;
    return i != NONE;
}

static tare_status make_list(collecting *g, added_token **out, size_t *count)
{
    tare_context *ctx = g->c->ctx;
    tare_status status = TARE_E_MEMORY;
    config_token **order = mem_alloc_array(ctx, g->decoder_count, sizeof *order);
    *out = arena_alloc_array(g->c->arena, g->decoder_count + g->specials_count, sizeof **out);
    if (order && *out)
        status = list_decoder(g, order, *out, count);
    mem_free(ctx, order);
    for (size_t i = 0; status == TARE_OK && i < g->specials_count; i++) {
        if (!is_there(g, &g->specials[i]))
            (*out)[(*count)++] = finished(&g->specials[i], true, false);
    }
    return status;
}

tare_status tokenizer_config_additions(const tokenizer_config *c, const value *file,
                                       added_token **out, size_t *count)
{
    tare_status status = TARE_OK;
    collecting g = {.c = c, .file = file};
    *out = NULL;
    *count = 0;
    strmap_init(&g.by_content, c->ctx);
    strmap_init(&g.special_set, c->ctx);
    strmap_init(&g.known, c->ctx);
    strmap_init(&g.listed, c->ctx);
    TRY(read_decoder(&g));
    TRY(read_specials(&g));
    TRY(make_list(&g, out, count));
done:
    mem_free(c->ctx, g.decoder);
    mem_free(c->ctx, g.specials);
    strmap_free(&g.by_content);
    strmap_free(&g.special_set);
    strmap_free(&g.known);
    strmap_free(&g.listed);
    return status;
}
