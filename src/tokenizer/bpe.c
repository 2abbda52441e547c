/* Byte-pair encoding. */
#include "tokenizer/bpe.h"

#include <stdio.h>
#include <string.h>

#include "tokenizer/unicode.h"

enum { SHORT_WORD = 32 /* tokens; up to here a scan for the best pair beats the heap */ };

/* A token of the word that is being merged; a list linked both ways. */
typedef struct symbol {
    uint32_t id; /* MERGE_NONE: merged into its left neighbour */
    uint32_t previous, next;
} symbol;

enum { NO_SYMBOL = UINT32_MAX };

/* A pair that can be merged. Stale once one of its two symbols has changed. */
typedef struct candidate {
    uint32_t rank, position, id;
} candidate;

typedef struct bpe_scratch {
    uint32_t *ids;
    symbol *symbols;
    candidate *heap;
    size_t id_capacity, symbol_capacity, heap_count, heap_capacity;
} bpe_scratch;

/* ---- lists of ids ---- */

tare_status id_list_append(id_list *list, const uint32_t *ids, size_t count)
{
    tare_status status = mem_grow(list->ctx, (void **)&list->items, &list->capacity,
                                  list->count + count, sizeof *ids);
    if (status == TARE_OK && count) {
        memcpy(list->items + list->count, ids, count * sizeof *ids);
        list->count += count;
    }
    return status;
}

tare_status id_list_add(id_list *list, uint32_t id)
{
    return id_list_append(list, &id, 1);
}

void id_list_free(id_list *list)
{
    mem_free(list->ctx, list->items);
    *list = (id_list){.ctx = list->ctx};
}

/* ---- reading ---- */

void bpe_init(bpe *b, tare_context *ctx)
{
    *b = (bpe){.ctx = ctx};
    vocabulary_init(&b->vocabulary, ctx);
    merges_init(&b->merges, ctx);
    word_cache_init(&b->cache, ctx);
}

void bpe_free(bpe *b)
{
    if (b->scratch) {
        mem_free(b->ctx, b->scratch->ids);
        mem_free(b->ctx, b->scratch->symbols);
        mem_free(b->ctx, b->scratch->heap);
    }
    mem_free(b->ctx, b->scratch);
    mem_free(b->ctx, b->unk_token);
    vocabulary_free(&b->vocabulary);
    merges_free(&b->merges);
    word_cache_free(&b->cache);
}

static tare_status refuse(const stage_reader *r, const char *option)
{
    return TARE_FAIL(r->ctx, TARE_E_MODEL, "%s: the model's \"%s\" is not supported", r->what,
                     option);
}

static tare_status read_options(bpe *b, const stage_reader *r, const value *model)
{
    tare_status status = TARE_OK;
    const char *type = "BPE", *prefix = "", *suffix = "", *unk = NULL;
    double dropout = 0;
    TRY(value_get_string(r->ctx, model, r->what, "type", &type));
    if (strcmp(type, "BPE") != 0)
        return TARE_FAIL(r->ctx, TARE_E_MODEL, "%s: a model of type \"%s\" is not supported",
                         r->what, type);
    TRY(value_get_double(r->ctx, model, r->what, "dropout", &dropout));
    TRY(value_get_bool(r->ctx, model, r->what, "byte_fallback", &b->byte_fallback));
    TRY(value_get_string(r->ctx, model, r->what, "continuing_subword_prefix", &prefix));
    TRY(value_get_string(r->ctx, model, r->what, "end_of_word_suffix", &suffix));
    TRY(value_get_bool(r->ctx, model, r->what, "fuse_unk", &b->fuse_unk));
    TRY(value_get_bool(r->ctx, model, r->what, "ignore_merges", &b->ignore_merges));
    TRY(value_get_string(r->ctx, model, r->what, "unk_token", &unk));
    if (dropout != 0)
        return refuse(r, "dropout");
    if (*prefix)
        return refuse(r, "continuing_subword_prefix");
    if (*suffix)
        return refuse(r, "end_of_word_suffix");
    if (unk && !(b->unk_token = mem_strdup(r->ctx, unk)))
        return TARE_E_MEMORY;
done:
    return status;
}

static void find_byte_ids(bpe *b)
{
    for (unsigned i = 0; i < 256; i++) {
        char text[8];
        uint32_t id;
        size_t length = (size_t)snprintf(text, sizeof text, "<0x%02X>", i);
        b->bytes[i] = vocabulary_id(&b->vocabulary, text, length, &id) ? (int32_t)id : -1;
    }
}

static void find_direct_ids(bpe *b)
{
    for (uint32_t code = 0; code < BPE_DIRECT_CODES; code++) {
        char text[4];
        uint32_t id;
        size_t length = utf8_encode(code, text);
        b->direct[code] = vocabulary_id(&b->vocabulary, text, length, &id) ? (int32_t)id : -1;
    }
}

tare_status bpe_read(bpe *b, const stage_reader *r, const value *model)
{
    tare_status status = TARE_OK;
    if (!model || model->type != VALUE_MAP)
        return TARE_FAIL(r->ctx, TARE_E_MODEL, "%s: there is no \"model\"", r->what);
    TRY(read_options(b, r, model));
    TRY(vocabulary_read(&b->vocabulary, r, value_get(model, "vocab")));
    TRY(merges_read(&b->merges, r, value_get(model, "merges"), &b->vocabulary));
    TRY(word_cache_allocate(&b->cache));
    find_direct_ids(b);
    find_byte_ids(b);
    if (b->unk_token)
        b->has_unk_id = vocabulary_id(&b->vocabulary, b->unk_token, strlen(b->unk_token),
                                      &b->unk_id);
    b->scratch = mem_calloc(r->ctx, 1, sizeof *b->scratch);
    if (!b->scratch)
        return TARE_E_MEMORY;
done:
    return status;
}

/* ---- characters to tokens ---- */

static bool character_id(const bpe *b, const char *p, size_t *length, uint32_t *id)
{
    uint32_t code = utf8_decode((const uint8_t *)p, length);
    if (code >= BPE_DIRECT_CODES)
        return vocabulary_id(&b->vocabulary, p, *length, id);
    *id = (uint32_t)b->direct[code];
    return b->direct[code] >= 0;
}

/* Appends the byte tokens of a character; false if one of them is missing. */
static bool add_byte_ids(const bpe *b, const char *p, size_t length, size_t *count)
{
    for (size_t i = 0; i < length; i++) {
        if (b->bytes[(uint8_t)p[i]] < 0)
            return false;
    }
    for (size_t i = 0; i < length; i++)
        b->scratch->ids[(*count)++] = (uint32_t)b->bytes[(uint8_t)p[i]];
    return true;
}

/* Tokens of the characters in scratch->ids. As in `tokenizers` an unknown token waits until the
 * next known character, byte tokens overtake it. */
static tare_status split_characters(const bpe *b, const char *word, size_t length, size_t *count)
{
    bpe_scratch *s = b->scratch;
    size_t n = 0, size;
    bool waiting = false; /* an unknown token */
    tare_status status = mem_grow(b->ctx, (void **)&s->ids, &s->id_capacity, length,
                                  sizeof *s->ids);
    if (status != TARE_OK)
        return status;
    for (size_t i = 0; i < length; i += size) {
        uint32_t id;
        bool known = character_id(b, word + i, &size, &id);
        if (!known && b->byte_fallback && add_byte_ids(b, word + i, size, &n))
            continue;
        if (!known && b->unk_token && !b->has_unk_id)
            return TARE_FAIL(b->ctx, TARE_E_MODEL,
                             "the unknown token \"%.*s\" is not in the vocabulary",
                             vocabulary_clip(b->unk_token, strlen(b->unk_token)), b->unk_token);
        if (waiting && (known || (b->unk_token && !b->fuse_unk))) {
            s->ids[n++] = b->unk_id;
            waiting = false;
        }
        if (known)
            s->ids[n++] = id;
        else
            waiting = b->unk_token != NULL;
    }
    if (waiting)
        s->ids[n++] = b->unk_id;
    *count = n;
    return TARE_OK;
}

/* ---- merging ---- */

/* Merges ids[0..count) in place and returns how many are left. */
static size_t merge_short(const bpe *b, uint32_t *ids, size_t count)
{
    uint32_t ranks[SHORT_WORD], joined[SHORT_WORD]; /* of ids[i] and ids[i+1] */
    for (size_t i = 0; i + 1 < count; i++)
        ranks[i] = merges_rank(&b->merges, ids[i], ids[i + 1], &joined[i]);
    while (count > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < count; i++) {
            if (ranks[i] < ranks[best])
                best = i;
        }
        if (ranks[best] == MERGE_NONE)
            break;
        ids[best] = joined[best];
        size_t behind = count - best - 2; /* tokens behind the pair, and pairs behind it */
        memmove(ids + best + 1, ids + best + 2, behind * sizeof *ids);
        memmove(ranks + best, ranks + best + 1, behind * sizeof *ranks);
        memmove(joined + best, joined + best + 1, behind * sizeof *joined);
        count--;
        if (best > 0)
            ranks[best - 1] = merges_rank(&b->merges, ids[best - 1], ids[best], &joined[best - 1]);
        if (best + 1 < count)
            ranks[best] = merges_rank(&b->merges, ids[best], ids[best + 1], &joined[best]);
    }
    return count;
}

static bool before(const candidate *a, const candidate *b)
{
    return a->rank != b->rank ? a->rank < b->rank : a->position < b->position;
}

/* Puts the pair at `position` and its right neighbour on the heap, if a rule joins them. */
static tare_status push_candidate(const bpe *b, uint32_t position)
{
    bpe_scratch *s = b->scratch;
    const symbol *left = &s->symbols[position];
    candidate c = {.position = position};
    if (left->next == NO_SYMBOL)
        return TARE_OK;
    c.rank = merges_rank(&b->merges, left->id, s->symbols[left->next].id, &c.id);
    if (c.rank == MERGE_NONE)
        return TARE_OK;
    tare_status status = mem_grow(b->ctx, (void **)&s->heap, &s->heap_capacity, s->heap_count + 1,
                                  sizeof(candidate));
    if (status != TARE_OK)
        return status;
    size_t i = s->heap_count++;
    for (; i > 0 && before(&c, &s->heap[(i - 1) / 2]); i = (i - 1) / 2)
        s->heap[i] = s->heap[(i - 1) / 2];
    s->heap[i] = c;
    return TARE_OK;
}

static candidate pop_candidate(bpe_scratch *s)
{
    candidate top = s->heap[0], last = s->heap[--s->heap_count];
    size_t i = 0;
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= s->heap_count)
            break;
        if (child + 1 < s->heap_count && before(&s->heap[child + 1], &s->heap[child]))
            child++;
        if (!before(&s->heap[child], &last))
            break;
        s->heap[i] = s->heap[child];
        i = child;
    }
    s->heap[i] = last;
    return top;
}

static tare_status apply_candidate(const bpe *b, const candidate *c)
{
    symbol *symbols = b->scratch->symbols, *left = &symbols[c->position];
    uint32_t id = 0;
    if (left->id == MERGE_NONE || left->next == NO_SYMBOL)
        return TARE_OK;
    symbol *right = &symbols[left->next];
    if (merges_rank(&b->merges, left->id, right->id, &id) == MERGE_NONE || id != c->id)
        return TARE_OK; /* stale */
    left->id = id;
    left->next = right->next;
    right->id = MERGE_NONE;
    if (left->next != NO_SYMBOL)
        symbols[left->next].previous = c->position;
    tare_status status = push_candidate(b, c->position);
    if (status == TARE_OK && left->previous != NO_SYMBOL)
        status = push_candidate(b, left->previous);
    return status;
}

static tare_status merge_long(const bpe *b, size_t *count)
{
    bpe_scratch *s = b->scratch;
    size_t n = *count;
    tare_status status = mem_grow(b->ctx, (void **)&s->symbols, &s->symbol_capacity, n,
                                  sizeof(symbol));
    if (status != TARE_OK)
        return status;
    for (size_t i = 0; i < n; i++)
        s->symbols[i] = (symbol){s->ids[i], i ? (uint32_t)i - 1 : NO_SYMBOL,
                                 i + 1 < n ? (uint32_t)i + 1 : NO_SYMBOL};
    s->heap_count = 0;
    for (size_t i = 0; i < n && status == TARE_OK; i++)
        status = push_candidate(b, (uint32_t)i);
    while (s->heap_count && status == TARE_OK) {
        candidate c = pop_candidate(s);
        status = apply_candidate(b, &c);
    }
    *count = 0;
    for (uint32_t i = 0; i != NO_SYMBOL && status == TARE_OK; i = s->symbols[i].next)
        s->ids[(*count)++] = s->symbols[i].id;
    return status;
}

/* What a long word needed is given back: texts with such words are rare. */
static void trim_scratch(const bpe *b)
{
    bpe_scratch *s = b->scratch;
    if (s->id_capacity <= 65536)
        return;
    mem_free(b->ctx, s->ids);
    mem_free(b->ctx, s->symbols);
    mem_free(b->ctx, s->heap);
    *s = (bpe_scratch){0};
}

static tare_status encode_anew(bpe *b, const char *word, size_t length, id_list *out)
{
    size_t count = 0;
    uint32_t id;
    if (b->ignore_merges && vocabulary_id(&b->vocabulary, word, length, &id))
        return id_list_add(out, id);
    tare_status status = split_characters(b, word, length, &count);
    if (status != TARE_OK)
        return status;
    if (count <= SHORT_WORD)
        count = merge_short(b, b->scratch->ids, count);
    else
        status = merge_long(b, &count);
    if (status == TARE_OK)
        status = id_list_append(out, b->scratch->ids, count);
    trim_scratch(b);
    return status;
}

tare_status bpe_encode(bpe *b, const char *word, size_t length, id_list *out)
{
    if (length > WORD_CACHE_LONGEST)
        return encode_anew(b, word, length, out);
    uint64_t hash = word_cache_hash(word, length);
    size_t count, first = out->count;
    const uint32_t *ids = word_cache_get(&b->cache, hash, word, length, &count);
    if (ids)
        return id_list_append(out, ids, count);
    tare_status status = encode_anew(b, word, length, out);
    if (status == TARE_OK && out->count > first)
        word_cache_put(&b->cache, hash, word, length, out->items + first, out->count - first);
    return status;
}
