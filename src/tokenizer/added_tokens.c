/* Added tokens, with the precedences of `tokenizers`: of entries with equal content the first
 * special one, else each one, is searched for; the flags of the last one count. Those of the file
 * and those behind them are added one after the other: what was searched for stays so. */
#include "tokenizer/added_tokens.h"

#include <string.h>

#include "tokenizer/unicode.h"

enum { NONE = UINT32_MAX };

void added_tokens_init(added_tokens *a, tare_context *ctx)
{
    *a = (added_tokens){.ctx = ctx, .first_new = ADDED_TOKEN_ANY_ID};
    arena_init(&a->arena, ctx);
    strmap_init(&a->by_id, ctx);
    strmap_init(&a->specials, ctx);
    token_finder_init(&a->raw, ctx);
    token_finder_init(&a->normalized, ctx);
}

void added_tokens_free(added_tokens *a)
{
    strmap_free(&a->by_id);
    strmap_free(&a->specials);
    token_finder_free(&a->raw);
    token_finder_free(&a->normalized);
    arena_free(&a->arena);
}

const added_token *added_tokens_get(const added_tokens *a, uint32_t id)
{
    uint32_t index;
    return strmap_get(&a->by_id, (const char *)&id, sizeof id, &index) ? &a->tokens[index] : NULL;
}

bool added_tokens_id(const added_tokens *a, const char *content, size_t length, uint32_t *id)
{
    for (size_t i = 0; i < a->count; i++) {
        const added_token *t = &a->tokens[i];
        *id = t->id;
        if (t->length == length && memcmp(t->content, content, length) == 0)
            return true;
    }
    return false;
}

bool added_tokens_is_special(const added_tokens *a, const char *content, size_t length)
{
    return strmap_get(&a->specials, content, length, NULL);
}

/* ---- reading ---- */

/* A content that entries have in common. */
typedef struct content_group {
    uint32_t id;
    uint32_t first_special; /* entry; NONE */
} content_group;

typedef struct reading {
    added_tokens *to;
    const stage_reader *r;
    const vocabulary *vocabulary;
    added_token *entries; /* one for each item of the list, and for each of those behind it */
    size_t listed;        /* entries of the list */
    content_group *groups;
    uint32_t *group_of; /* entry -> group; NONE: an entry that counts for nothing */
    size_t group_count, token_count;
    strmap by_content; /* -> group */
    uint32_t next_id; /* above those of the vocabulary, unless that has gaps, and of added tokens */
    bool warned;
} reading;

static tare_status read_token(reading *g, const value *v, added_token *t)
{
    const stage_reader *r = g->r;
    const value *content, *id = value_get(v, "id");
    tare_status status = TARE_OK;
    TRY(stage_string(r, v, "content", &content));
    TRY(stage_bool(r, v, "special", &t->special));
    TRY(stage_bool(r, v, "single_word", &t->single_word));
    TRY(stage_bool(r, v, "lstrip", &t->lstrip));
    TRY(stage_bool(r, v, "rstrip", &t->rstrip));
    TRY(stage_bool(r, v, "normalized", &t->normalized));
    if (!id || id->type != VALUE_NUMBER || !id->is_integer || id->integer < 0 ||
        id->integer > INT32_MAX)
        return TARE_FAIL(r->ctx, TARE_E_MODEL,
                         "%s: line %d: \"id\" must be an integer from 0 to 2^31-1", r->what,
                         v->line);
    t->id = (uint32_t)id->integer;
    t->length = (uint32_t)content->length;
    t->content = arena_strndup(&g->to->arena, content->text, content->length);
    if (!t->content)
        return TARE_E_MEMORY;
done:
    return status;
}

/* Is the entry in all the same as what its token is by now? */
static bool is_repeated(const reading *g, const added_token *t)
{
    const added_token *o = added_tokens_get(g->to, t->id);
    return o && o->special == t->special && o->single_word == t->single_word &&
           o->lstrip == t->lstrip && o->rstrip == t->rstrip && o->normalized == t->normalized;
}

/* The group of an entry's content, a new one with an id of its own if there is none. */
static tare_status find_group(reading *g, const added_token *t, bool listed, uint32_t *out)
{
    bool existed;
    *out = (uint32_t)g->group_count;
    tare_status status = strmap_put(&g->by_content, t->content, t->length, *out, &existed);
    if (status != TARE_OK)
        return status;
    if (existed) {
        strmap_get(&g->by_content, t->content, t->length, out);
        return TARE_OK;
    }
    uint32_t id;
    if (!vocabulary_id(g->vocabulary, t->content, t->length, &id)) {
        id = g->next_id;
        if (id > INT32_MAX)
            return TARE_FAIL(g->r->ctx, TARE_E_MODEL, "%s: too many added tokens", g->r->what);
        if (!listed && g->to->first_new == ADDED_TOKEN_ANY_ID)
            g->to->first_new = id;
    }
    if (id >= g->next_id)
        g->next_id = id + 1;
    if (id != t->id && t->id != ADDED_TOKEN_ANY_ID && !g->warned) {
        g->warned = true;
        TARE_WARN(g->r->ctx, "%s: added token \"%.*s\" gets the id %u, not %u as the file says",
                  g->r->what, vocabulary_clip(t->content, t->length), t->content, id, t->id);
    }
    g->groups[g->group_count++] = (content_group){.id = id, .first_special = NONE};
    return TARE_OK;
}

/* Makes `t` the token of its id. */
static tare_status put_token(reading *g, const added_token *t)
{
    added_tokens *a = g->to;
    uint32_t index = (uint32_t)g->token_count;
    bool existed;
    a->tokens[index] = *t;
    /* The key must lie where it stays: in the token itself. */
    tare_status status = strmap_put(&a->by_id, (const char *)&a->tokens[index].id, sizeof t->id,
                                    index, &existed);
    if (status != TARE_OK)
        return status;
    if (!existed) {
        g->token_count++;
        return TARE_OK;
    }
    strmap_get(&a->by_id, (const char *)&t->id, sizeof t->id, &index);
    a->tokens[index] = *t;
    return TARE_OK;
}

static tare_status add_entry(reading *g, uint32_t index)
{
    added_token *t = &g->entries[index];
    g->group_of[index] = NONE;
    if (t->length == 0)
        return TARE_OK;
    uint32_t group_index;
    tare_status status = find_group(g, t, index < g->listed, &group_index);
    if (status != TARE_OK)
        return status;
    content_group *group = &g->groups[group_index];
    t->id = group->id;
    if (is_repeated(g, t))
        return TARE_OK;
    g->group_of[index] = group_index;
    if (t->special && group->first_special == NONE) {
        group->first_special = index;
        status = strmap_put(&g->to->specials, t->content, t->length, 1, NULL);
    }
    return status == TARE_OK ? put_token(g, t) : status;
}

/* A token from elsewhere becomes an entry. */
static tare_status copy_entry(reading *g, const added_token *from, added_token *t)
{
    *t = *from;
    t->content = arena_strndup(&g->to->arena, from->content, from->length);
    return t->content ? TARE_OK : TARE_E_MEMORY;
}

/* Is an entry that is not the first special one of its content searched for? Only if it came before
 * its content was special: all that come at once are special or not together. */
static bool is_searched(const reading *g, uint32_t first_special, uint32_t index)
{
    return first_special == NONE || (index < g->listed && first_special >= g->listed);
}

static tare_status add_to_finder(added_tokens *a, const added_token *t, const normalizer *n,
                                 normalizer_scratch *s)
{
    const char *text = t->content;
    size_t length = t->length;
    if (!t->normalized)
        return token_finder_add(&a->raw, text, length, t->id);
    tare_status status = normalizer_run(n, text, length, s, &text, &length);
    if (status == TARE_OK && length)
        status = token_finder_add(&a->normalized, text, length, t->id);
    return status;
}

/* Special tokens first: of two that are equal once they are normalized the first is found. */
static tare_status build_finders(reading *g, size_t count, const normalizer *n)
{
    added_tokens *a = g->to;
    tare_status status = TARE_OK;
    normalizer_scratch scratch;
    normalizer_scratch_init(&scratch, a->ctx);
    for (int pass = 0; pass < 2; pass++) {
        for (uint32_t i = 0; i < count; i++) {
            if (g->group_of[i] == NONE)
                continue;
            uint32_t first_special = g->groups[g->group_of[i]].first_special;
            if (pass == 0 ? first_special == i : is_searched(g, first_special, i))
                TRY(add_to_finder(a, &g->entries[i], n, &scratch));
        }
    }
    TRY(token_finder_build(&a->raw));
    TRY(token_finder_build(&a->normalized));
done:
    normalizer_scratch_free(&scratch);
    return status;
}

tare_status added_tokens_read(added_tokens *a, const stage_reader *r, const value *list,
                              const added_token *more, size_t more_count, const vocabulary *v,
                              const normalizer *n)
{
    reading g = {.to = a, .r = r, .vocabulary = v, .next_id = (uint32_t)v->count};
    tare_status status = TARE_OK;
    bool is_list = list && list->type == VALUE_LIST;
    if (list && !is_list && list->type != VALUE_NULL)
        return TARE_FAIL(r->ctx, TARE_E_MODEL, "%s: \"added_tokens\" must be a list", r->what);
    g.listed = is_list ? list->count : 0;
    size_t count = g.listed + more_count;
    if (count == 0)
        return TARE_OK;
    strmap_init(&g.by_content, r->ctx);
    g.entries = mem_calloc(r->ctx, count, sizeof *g.entries);
    g.groups = mem_alloc_array(r->ctx, count, sizeof *g.groups);
    g.group_of = mem_alloc_array(r->ctx, count, sizeof *g.group_of);
    /* One more: put_token writes there before it knows whether the id is new. */
    a->tokens = arena_alloc_array(&a->arena, count + 1, sizeof *a->tokens);
    if (!g.entries || !g.groups || !g.group_of || !a->tokens) {
        status = TARE_E_MEMORY;
        goto done;
    }
    for (uint32_t i = 0; i < count; i++) {
        TRY(i < g.listed ? read_token(&g, &list->items[i], &g.entries[i])
                         : copy_entry(&g, &more[i - g.listed], &g.entries[i]));
        TRY(add_entry(&g, i));
    }
    a->count = g.token_count;
    TRY(build_finders(&g, count, n));
done:
    mem_free(r->ctx, g.entries);
    mem_free(r->ctx, g.groups);
    mem_free(r->ctx, g.group_of);
    strmap_free(&g.by_content);
    return status;
}

/* ---- splitting ---- */

void text_parts_init(text_parts *p, tare_context *ctx)
{
    *p = (text_parts){.ctx = ctx, .matches = {.ctx = ctx}};
}

void text_parts_free(text_parts *p)
{
    mem_free(p->ctx, p->items);
    mem_free(p->ctx, p->matches.items);
    text_parts_init(p, p->ctx);
}

static tare_status add_part(text_parts *p, text_part part)
{
    if (part.start >= part.end)
        return TARE_OK;
    tare_status status = mem_grow(p->ctx, (void **)&p->items, &p->capacity, p->count + 1,
                                  sizeof part);
    if (status == TARE_OK)
        p->items[p->count++] = part;
    return status;
}

static bool stands_alone(const uint8_t *text, size_t length, size_t start, size_t end)
{
    size_t size;
    if (start > 0 && unicode_flags(utf8_decode(utf8_previous(text + start), &size)) & UNICODE_WORD)
        return false;
    return end == length || !(unicode_flags(utf8_decode(text + end, &size)) & UNICODE_WORD);
}

/* Start of the white space that ends at `end`, not before `floor`. */
static size_t spaces_before(const uint8_t *text, size_t floor, size_t end)
{
    size_t size;
    while (end > floor) {
        const uint8_t *p = utf8_previous(text + end);
        if (!(unicode_flags(utf8_decode(p, &size)) & UNICODE_SPACE))
            break;
        end = (size_t)(p - text);
    }
    return end;
}

static size_t spaces_behind(const uint8_t *text, size_t length, size_t start)
{
    size_t size;
    while (start < length && unicode_flags(utf8_decode(text + start, &size)) & UNICODE_SPACE)
        start += size;
    return start;
}

tare_status added_tokens_split(const added_tokens *a, bool normalized, const char *string,
                               size_t length, text_parts *out)
{
    const uint8_t *text = (const uint8_t *)string;
    const token_finder *finder = normalized ? &a->normalized : &a->raw;
    size_t done_to = 0;
    size_t run_start = 1, run_end = 0; /* white space that was walked through last */
    out->count = 0;
    tare_status status = token_finder_run(finder, string, length, &out->matches);
    for (size_t i = 0; i < out->matches.count && status == TARE_OK; i++) {
        const finder_match *m = &out->matches.items[i];
        const added_token *t = added_tokens_get(a, m->value);
        size_t start = m->start, end = start + m->length;
        if (t->single_word && !stands_alone(text, length, start, end))
            continue;
        if (a->split_special && added_tokens_is_special(a, t->content, t->length))
            continue;
        if (t->lstrip)
            start = start > done_to ? spaces_before(text, done_to, start) : done_to;
        if (t->rstrip) {
            /* Tokens of white space may follow each other: the run is not walked again for each. */
            if (end < run_start || end > run_end) {
                run_start = end;
                run_end = spaces_behind(text, length, end);
            }
            end = run_end;
        }
        if (done_to < start)
            status = add_part(out, (text_part){(uint32_t)done_to, (uint32_t)start, false, 0});
        if (status == TARE_OK)
            status = add_part(out, (text_part){(uint32_t)start, (uint32_t)end, true, t->id});
        done_to = end;
    }
    if (status == TARE_OK)
        status = add_part(out, (text_part){(uint32_t)done_to, (uint32_t)length, false, 0});
    return status;
}
