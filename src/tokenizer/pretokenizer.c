/* The steps of a pre-tokenizer. */
#include "tokenizer/pretokenizer.h"

#include <string.h>

#include "tokenizer/unicode.h"

void pretokenizer_init(pretokenizer *p, tare_context *ctx)
{
    *p = (pretokenizer){.ctx = ctx};
    byte_alphabet_init(&p->alphabet);
}

void pretokenizer_free(pretokenizer *p)
{
    for (size_t i = 0; i < p->count; i++)
        pattern_free(p->ctx, &p->steps[i].pattern);
    mem_free(p->ctx, p->steps);
    p->steps = NULL;
    p->count = p->capacity = 0;
}

/* ---- reading ---- */

/* Appends a step, which the caller completes. */
static tare_status add_step(pretokenizer *p, const stage_reader *r, pretokenizer_op op)
{
    enum { MAX_STEPS = 64 }; /* ByteLevel may double a text, so their number must be small */
    if (p->count == MAX_STEPS)
        return TARE_FAIL(r->ctx, TARE_E_MODEL, "%s: a pre_tokenizer of more than %d steps", r->what,
                         MAX_STEPS);
    tare_status status = mem_grow(p->ctx, (void **)&p->steps, &p->capacity, p->count + 1,
                                  sizeof(pretokenizer_step));
    if (status == TARE_OK)
        p->steps[p->count++] = (pretokenizer_step){.op = op};
    return status;
}

static pretokenizer_step *last_step(pretokenizer *p)
{
    return &p->steps[p->count - 1];
}

static tare_status read_byte_level(const stage_reader *r, const value *stage, void *target)
{
    pretokenizer *p = target;
    bool prefix_space, use_regex = true;
    tare_status status = stage_bool(r, stage, "add_prefix_space", &prefix_space);
    if (status == TARE_OK)
        status = value_get_bool(r->ctx, stage, r->what, "use_regex", &use_regex);
    if (status == TARE_OK && prefix_space)
        status = add_step(p, r, OP_PREFIX_SPACE);
    if (status == TARE_OK && use_regex) {
        status = add_step(p, r, OP_SPLIT);
        if (status == TARE_OK)
            last_step(p)->pattern = (pattern){.kind = PATTERN_SCANNER, .scan = scanner_gpt2()};
    }
    if (status == TARE_OK)
        status = add_step(p, r, OP_BYTE_MAP);
    return status;
}

static tare_status read_digits(const stage_reader *r, const value *stage, void *target)
{
    pretokenizer *p = target;
    bool individual;
    tare_status status = stage_bool(r, stage, "individual_digits", &individual);
    if (status == TARE_OK)
        status = add_step(p, r, OP_SPLIT);
    if (status == TARE_OK) {
        last_step(p)->pattern = (pattern){.kind = PATTERN_CLASS, .class_flags = UNICODE_NUMERIC};
        last_step(p)->behavior = individual ? SPLIT_ISOLATED : SPLIT_CONTIGUOUS;
    }
    return status;
}

static tare_status read_behavior(const stage_reader *r, const value *stage, split_behavior *out)
{
    static const char *const names[] = {"Isolated", "Removed", "MergedWithPrevious",
                                        "MergedWithNext", "Contiguous"};
    const value *v;
    tare_status status = stage_string(r, stage, "behavior", &v);
    if (status != TARE_OK)
        return status;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (strcmp(v->text, names[i]) == 0) {
            *out = (split_behavior)i;
            return TARE_OK;
        }
    }
    return TARE_FAIL(r->ctx, TARE_E_MODEL, "%s: Split has the unknown behavior \"%s\"", r->what,
                     v->text);
}

static tare_status read_split(const stage_reader *r, const value *stage, void *target)
{
    pretokenizer *p = target;
    tare_status status = add_step(p, r, OP_SPLIT);
    if (status != TARE_OK)
        return status;
    pretokenizer_step *step = last_step(p);
    status = stage_bool(r, stage, "invert", &step->invert);
    if (status == TARE_OK)
        status = read_behavior(r, stage, &step->behavior);
    if (status == TARE_OK)
        status = pattern_read(r, stage, "Split", &step->pattern);
    return status;
}

/* Before there was "prepend_scheme" there was "add_prefix_space". */
static tare_status read_prepend(const stage_reader *r, const value *stage, prepend_scheme *out)
{
    static const char *const names[] = {"always", "first", "never"};
    bool prefix_space = true;
    const char *scheme = "always";
    tare_status status = value_get_string(r->ctx, stage, r->what, "prepend_scheme", &scheme);
    if (status == TARE_OK)
        status = value_get_bool(r->ctx, stage, r->what, "add_prefix_space", &prefix_space);
    if (status != TARE_OK)
        return status;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (strcmp(scheme, names[i]) != 0)
            continue;
        *out = (prepend_scheme)i;
        if (prefix_space || *out == PREPEND_NEVER)
            return TARE_OK;
        return TARE_FAIL(r->ctx, TARE_E_MODEL,
                         "%s: Metaspace: add_prefix_space false contradicts prepend_scheme \"%s\"",
                         r->what, scheme);
    }
    return TARE_FAIL(r->ctx, TARE_E_MODEL, "%s: Metaspace has the unknown prepend_scheme \"%s\"",
                     r->what, scheme);
}

tare_status metaspace_read(const stage_reader *r, const value *stage, metaspace *out)
{
    const value *v;
    size_t size = 0;
    tare_status status = stage_string(r, stage, "replacement", &v);
    if (status != TARE_OK)
        return status;
    if (v->length > 0)
        size = utf8_length((uint8_t)v->text[0]);
    if (size == 0 || size != v->length)
        return TARE_FAIL(r->ctx, TARE_E_MODEL,
                         "%s: line %d: the replacement of Metaspace must be one character", r->what,
                         v->line);
    memcpy(out->replacement, v->text, size);
    out->length = size;
    return read_prepend(r, stage, &out->prepend);
}

/* `tokenizers` counts several pieces as first then. */
static bool adds_in_front(const pretokenizer *p)
{
    for (size_t i = 0; i < p->count; i++) {
        if (p->steps[i].op == OP_PREFIX_SPACE ||
            (p->steps[i].op == OP_METASPACE && p->steps[i].metaspace.prepend != PREPEND_NEVER))
            return true;
    }
    return false;
}

static tare_status read_metaspace(const stage_reader *r, const value *stage, void *target)
{
    pretokenizer *p = target;
    metaspace m = {0};
    bool cut = true;
    tare_status status = TARE_OK;
    TRY(metaspace_read(r, stage, &m));
    if (m.prepend == PREPEND_FIRST && adds_in_front(p))
        return TARE_FAIL(r->ctx, TARE_E_MODEL,
                         "%s: Metaspace with prepend_scheme \"first\" behind a stage that puts a "
                         "space in front is not supported",
                         r->what);
    TRY(value_get_bool(r->ctx, stage, r->what, "split", &cut));
    TRY(add_step(p, r, OP_METASPACE));
    last_step(p)->metaspace = m;
    if (cut) {
        TRY(add_step(p, r, OP_SPLIT));
        last_step(p)->behavior = SPLIT_MERGED_WITH_NEXT;
        TRY(pattern_from_literal(r->ctx, m.replacement, m.length, &last_step(p)->pattern));
    }
done:
    return status;
}

static const stage_type types[] = {
    {"ByteLevel", read_byte_level},
    {"Digits", read_digits},
    {"Metaspace", read_metaspace},
    {"Split", read_split},
};

tare_status pretokenizer_read(pretokenizer *p, const stage_reader *r, const value *v)
{
    return stage_read_tree(r, "pre_tokenizer", v, types, sizeof types / sizeof types[0],
                           "pretokenizers", p);
}

/* ---- running ---- */

void pretokenizer_scratch_init(pretokenizer_scratch *s, tare_context *ctx)
{
    pieces_init(&s->spare, ctx);
    s->matches = (match_list){.ctx = ctx};
}

void pretokenizer_scratch_free(pretokenizer_scratch *s)
{
    pieces_free(&s->spare);
    mem_free(s->matches.ctx, s->matches.items);
    s->matches = (match_list){.ctx = s->matches.ctx};
}

/* Empty pieces are dropped, as everywhere in `tokenizers`. */
static tare_status add_piece(pieces *out, size_t start, size_t end)
{
    return start < end ? pieces_add(out, start, end - start) : TARE_OK;
}

/* The pieces that `list` makes of one that begins at `base`. */
static tare_status add_split(const match_list *list, const pretokenizer_step *step, size_t base,
                             pieces *out)
{
    tare_status status = TARE_OK;
    size_t start = 0;
    for (size_t i = 0; i < list->count && status == TARE_OK; i++) {
        const match *m = &list->items[i];
        bool is_match = m->is_match != step->invert, last = i + 1 == list->count;
        bool next = !last && list->items[i + 1].is_match != step->invert;
        bool join = false; /* does the next range belong to the same piece? */
        switch (step->behavior) {
        case SPLIT_ISOLATED:
            break;
        case SPLIT_REMOVED:
            if (is_match)
                continue;
            start = m->start;
            break;
        case SPLIT_CONTIGUOUS:
            join = !last && next == is_match;
            break;
        case SPLIT_MERGED_WITH_PREVIOUS:
            join = next && !is_match;
            break;
        case SPLIT_MERGED_WITH_NEXT:
            join = !last && is_match && !next;
            break;
        }
        if (join)
            continue;
        status = add_piece(out, base + start, base + m->end);
        start = m->end;
    }
    return status;
}

/* The common case, without a list of matches: each match of a scanner is a piece. */
static tare_status split_isolated(scanner scan, const char *text, span piece, pieces *out)
{
    const uint8_t *begin = (const uint8_t *)text, *p = begin + piece.start;
    const uint8_t *end = p + piece.length;
    tare_status status = TARE_OK;
    while (p < end && status == TARE_OK) {
        size_t length = scan(p, end);
        status = pieces_add(out, (size_t)(p - begin), length);
        p += length;
    }
    return status;
}

static tare_status split(const pretokenizer_step *step, pieces *text, pretokenizer_scratch *s)
{
    pieces *out = &s->spare;
    tare_status status = TARE_OK;
    out->count = 0;
    for (size_t i = 0; i < text->count; i++) {
        span piece = text->spans[i];
        if (step->pattern.kind == PATTERN_SCANNER && step->behavior == SPLIT_ISOLATED) {
            TRY(split_isolated(step->pattern.scan, text->text, piece, out));
            continue;
        }
        TRY(pattern_find(&step->pattern, text->text + piece.start, piece.length, &s->matches));
        TRY(add_split(&s->matches, step, piece.start, out));
    }
    /* The text stays; the lists of pieces change places. */
    span *spans = text->spans;
    size_t capacity = text->capacity;
    text->spans = out->spans;
    text->count = out->count;
    text->capacity = out->capacity;
    out->spans = spans;
    out->capacity = capacity;
done:
    return status;
}

static bool begins_with(const char *text, size_t length, const metaspace *m)
{
    return length >= m->length && memcmp(text, m->replacement, m->length) == 0;
}

/* `first`: the piece begins where the whole text does. */
static void rewrite_metaspace(const metaspace *m, const char *piece, size_t length, bool first,
                              buffer *out)
{
    if ((m->prepend == PREPEND_ALWAYS || (m->prepend == PREPEND_FIRST && first)) &&
        piece[0] != ' ' && !begins_with(piece, length, m))
        buffer_append(out, m->replacement, m->length);
    for (size_t i = 0, stop; i < length; i = stop) {
        const char *space = memchr(piece + i, ' ', length - i);
        stop = space ? (size_t)(space - piece) : length;
        buffer_append(out, piece + i, stop - i);
        if (space) {
            buffer_append(out, m->replacement, m->length);
            stop++;
        }
    }
}

/* Writes each piece anew: with a space in front, in the byte alphabet, or with its spaces replaced.
 */
static tare_status rewrite(const pretokenizer *p, const pretokenizer_step *step, bool at_start,
                           pieces *text, pretokenizer_scratch *s)
{
    pieces *out = &s->spare;
    tare_status status = TARE_OK;
    out->count = 0;
    out->own.length = 0;
    for (size_t i = 0; i < text->count; i++) {
        const char *piece = text->text + text->spans[i].start;
        size_t length = text->spans[i].length, start = out->own.length;
        if (step->op == OP_BYTE_MAP) {
            byte_alphabet_encode(&p->alphabet, piece, length, &out->own);
        } else if (step->op == OP_METASPACE) {
            rewrite_metaspace(&step->metaspace, piece, length, at_start && i == 0, &out->own);
        } else {
            if (piece[0] != ' ')
                buffer_putc(&out->own, ' ');
            buffer_append(&out->own, piece, length);
        }
        TRY(pieces_add(out, start, out->own.length - start));
    }
    TRY(pieces_finish_rewrite(text, out));
done:
    return status;
}

tare_status pretokenizer_run(const pretokenizer *p, bool at_start, pieces *text,
                             pretokenizer_scratch *s)
{
    tare_status status = TARE_OK;
    for (size_t i = 0; i < p->count && status == TARE_OK; i++) {
        const pretokenizer_step *step = &p->steps[i];
        /* What a Split has removed in front is not there any more. */
        at_start = at_start && text->count > 0 && text->spans[0].start == 0;
        status = step->op == OP_SPLIT ? split(step, text, s) : rewrite(p, step, at_start, text, s);
    }
    return status;
}
