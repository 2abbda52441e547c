/* Finding all matches of a pattern. */
#include "tokenizer/pattern.h"

#include <string.h>

#include "tokenizer/unicode.h"

tare_status match_list_add(match_list *list, size_t start, size_t end, bool is_match)
{
    tare_status status = mem_grow(list->ctx, (void **)&list->items, &list->capacity,
                                  list->count + 1, sizeof(match));
    if (status == TARE_OK)
        list->items[list->count++] = (match){(uint32_t)start, (uint32_t)end, is_match};
    return status;
}

tare_status pattern_from_regex(tare_context *ctx, const char *expression, size_t length,
                               bool force_regex, pattern *out)
{
    *out = (pattern){.kind = PATTERN_SCANNER};
    if (!force_regex)
        out->scan = scanner_find(expression, length);
    if (out->scan)
        return TARE_OK;
    out->kind = PATTERN_REGEX;
    return regex_create(ctx, expression, length, &out->regex);
}

tare_status pattern_from_literal(tare_context *ctx, const char *text, size_t length, pattern *out)
{
    if (length == 0) /* matches between all characters, as an empty expression does */
        return pattern_from_regex(ctx, text, length, true, out);
    *out = (pattern){.kind = PATTERN_LITERAL, .literal_length = length};
    out->literal = mem_strndup(ctx, text, length);
    return out->literal ? TARE_OK : TARE_E_MEMORY;
}

tare_status pattern_read(const stage_reader *r, const value *stage, const char *type, pattern *out)
{
    const value *v = value_get(stage, "pattern");
    const value *expression = value_get(v, "Regex"), *literal = value_get(v, "String");
    const value *text = expression ? expression : literal;
    if (!text || text->type != VALUE_STRING || v->count != 1)
        return TARE_FAIL(r->ctx, TARE_E_MODEL,
                         "%s: the pattern of a %s must be {\"Regex\": …} or {\"String\": …}",
                         r->what, type);
    tare_status status = expression
                             ? pattern_from_regex(r->ctx, text->text, text->length, false, out)
                             : pattern_from_literal(r->ctx, text->text, text->length, out);
    return TARE_WRAP(r->ctx, status, "%s: pattern of a %s", r->what, type);
}

void pattern_free(tare_context *ctx, pattern *p)
{
    regex_free(p->regex);
    mem_free(ctx, p->literal);
    *p = (pattern){0};
}

static tare_status find_with_scanner(scanner scan, const char *text, size_t length, match_list *out)
{
    const uint8_t *begin = (const uint8_t *)text, *end = begin + length;
    tare_status status = TARE_OK;
    for (const uint8_t *p = begin; p < end && status == TARE_OK;) {
        const uint8_t *stop = p + scan(p, end);
        status = match_list_add(out, (size_t)(p - begin), (size_t)(stop - begin), true);
        p = stop;
    }
    return status;
}

static tare_status find_literal(const pattern *p, const char *text, size_t length, match_list *out)
{
    tare_status status = TARE_OK;
    size_t previous = 0;
    const char *found;
    while ((found = memmem(text + previous, length - previous, p->literal, p->literal_length))) {
        size_t start = (size_t)(found - text);
        if (previous < start)
            TRY(match_list_add(out, previous, start, false));
        TRY(match_list_add(out, start, start + p->literal_length, true));
        previous = start + p->literal_length;
    }
    if (previous < length)
        TRY(match_list_add(out, previous, length, false));
done:
    return status;
}

static tare_status find_class(unsigned flags, const char *text, size_t length, match_list *out)
{
    const uint8_t *p = (const uint8_t *)text;
    tare_status status = TARE_OK;
    size_t previous = 0, size;
    for (size_t i = 0; i < length; i += size) {
        if (!(unicode_flags(utf8_decode(p + i, &size)) & flags))
            continue;
        if (previous < i)
            TRY(match_list_add(out, previous, i, false));
        TRY(match_list_add(out, i, i + size, true));
        previous = i + size;
    }
    if (previous < length)
        TRY(match_list_add(out, previous, length, false));
done:
    return status;
}

tare_status pattern_find(const pattern *p, const char *text, size_t length, match_list *out)
{
    out->count = 0;
    switch (p->kind) {
    case PATTERN_SCANNER:
        return find_with_scanner(p->scan, text, length, out);
    case PATTERN_REGEX:
        return regex_find(p->regex, text, length, out);
    case PATTERN_LITERAL:
        return find_literal(p, text, length, out);
    case PATTERN_CLASS:
        return find_class(p->class_flags, text, length, out);
    }
    return TARE_OK;
}

tare_status pattern_replace(const pattern *p, const char *text, size_t length, const char *content,
                            size_t content_length, match_list *matches, buffer *out)
{
    tare_status status = pattern_find(p, text, length, matches);
    for (size_t i = 0; status == TARE_OK && i < matches->count; i++) {
        const match *m = &matches->items[i];
        if (m->is_match)
            buffer_append(out, content, content_length);
        else
            buffer_append(out, text + m->start, m->end - m->start);
        status = out->status;
    }
    return status;
}
