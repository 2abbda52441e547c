/* YAML through libyaml's events. libyaml allocates on its own, outside the accounted memory: the
 * size of the input is bounded instead. */
#include "file/yaml.h"

#include <math.h>
#include <string.h>
#include <yaml.h>

#include "file/foreign.h"
#include "file/io.h"
#include "file/value_builder.h"

typedef struct yaml_state {
    tare_context *ctx;
    const char *what, *data;
    size_t length;
    yaml_parser_t parser;
    value_builder builder;
    int line;     /* of the current event */
    bool started; /* the document's root was seen */
} yaml_state;

static tare_status fail(const yaml_state *y, int line, const char *problem)
{
    return TARE_FAIL(y->ctx, TARE_E_FORMAT, "%s: line %d: %s", y->what, line, problem);
}

/* What libyaml found wrong. Its reader reports an offset, its scanner and parser a line. */
static tare_status fail_parser(const yaml_state *y)
{
    const yaml_parser_t *p = &y->parser;
    if (p->error == YAML_MEMORY_ERROR)
        return TARE_FAIL(y->ctx, TARE_E_MEMORY, "%s: out of memory in libyaml", y->what);
    size_t line = p->problem_mark.line + 1;
    if (p->error == YAML_READER_ERROR) {
        line = 1;
        for (size_t i = 0; i < p->problem_offset && i < y->length; i++)
            line += y->data[i] == '\n';
    }
    return fail(y, (int)line, p->problem ? p->problem : "malformed YAML");
}

/* ---- scalars ---- */

static bool is_any(const char *text, size_t length, const char *const *words)
{
    for (; *words; words++) {
        if (strlen(*words) == length && memcmp(*words, text, length) == 0)
            return true;
    }
    return false;
}

/* Is it a decimal number of the core schema? Then writes it to `out` as JSON would have it: no
 * plus, a digit on either side of the point. Leading zeros are left out: YAML 1.1 and 1.2 disagree
 * on them. */
static bool normalize_number(const char *text, size_t length, char *out, size_t capacity)
{
    size_t n = 0;
    bool point = false;
    if (length + 2 > capacity) /* one digit more, and the zero */
        return false;
    for (size_t i = 0; i < length; i++) {
        char c = text[i];
        bool digit_before = i && text[i - 1] >= '0' && text[i - 1] <= '9';
        bool digit_after = i + 1 < length && text[i + 1] >= '0' && text[i + 1] <= '9';
        if (c == '+' && i == 0)
            continue;
        if (c == '.' && (point || (!digit_before && !digit_after)))
            return false;
        point |= c == '.';
        if (c == '.' && !digit_before)
            out[n++] = '0';
        out[n++] = c;
        if (c == '.' && !digit_after)
            out[n++] = '0';
    }
    out[n] = 0;
    /* "+-1" lost its plus above. */
    return n && !(text[0] == '+' && out[0] == '-') && json_number_length(out, n) == n;
}

/* A plain scalar by the core schema. `number` [256] holds a number's text. */
static value resolve_plain(const char *text, size_t length, int line, char *number)
{
    static const char *const nulls[] = {"", "~", "null", "Null", "NULL", NULL};
    static const char *const trues[] = {"true", "True", "TRUE", NULL};
    static const char *const falses[] = {"false", "False", "FALSE", NULL};
    value v = {.line = line};
    if (is_any(text, length, nulls)) {
        v.type = VALUE_NULL;
    } else if (is_any(text, length, trues) || is_any(text, length, falses)) {
        v.type = VALUE_BOOL;
        v.boolean = is_any(text, length, trues);
    } else {
        json_token token = {.text = text, .length = length};
        v.type = VALUE_STRING;
        if (normalize_number(text, length, number, 256)) {
            token.text = number;
            token.length = strlen(number);
            json_number_convert(&token);
            if (isfinite(token.number)) {
                v.type = VALUE_NUMBER;
                v.is_integer = token.is_integer;
                v.integer = token.integer;
                v.number = token.number;
            }
        }
        v.text = v.type == VALUE_NUMBER ? token.text : text;
        v.length = v.type == VALUE_NUMBER ? token.length : length;
    }
    return v;
}

/* ---- events ---- */

static tare_status check_properties(const yaml_state *y, const yaml_char_t *anchor,
                                    const yaml_char_t *tag)
{
    if (anchor)
        return fail(y, y->line, "anchors (&) are not supported");
    return tag ? fail(y, y->line, "tags (!) are not supported") : TARE_OK;
}

static tare_status add_scalar(yaml_state *y, const yaml_event_t *event)
{
    const char *text = (const char *)event->data.scalar.value;
    size_t length = event->data.scalar.length;
    bool plain = event->data.scalar.style == YAML_PLAIN_SCALAR_STYLE;
    tare_status status = check_properties(y, event->data.scalar.anchor, event->data.scalar.tag);
    if (status != TARE_OK)
        return status;
    if (!y->started && plain && !length) { /* "---" and nothing else */
        status = value_builder_open(&y->builder, VALUE_MAP, y->line);
        return status == TARE_OK ? value_builder_close(&y->builder) : status;
    }
    if (value_builder_wants_key(&y->builder)) {
        if (plain && length == 2 && memcmp(text, "<<", 2) == 0)
            return fail(y, y->line, "merge keys (<<) are not supported");
        return value_builder_string(&y->builder, text, length, y->line);
    }
    if (!plain)
        return value_builder_string(&y->builder, text, length, y->line);
    char number[256];
    value v = resolve_plain(text, length, y->line, number);
    return value_builder_add(&y->builder, &v);
}

static tare_status open_container(yaml_state *y, value_type type, const yaml_char_t *anchor,
                                  const yaml_char_t *tag)
{
    if (value_builder_wants_key(&y->builder))
        return fail(y, y->line, "a key must be a scalar");
    tare_status status = check_properties(y, anchor, tag);
    return status == TARE_OK ? value_builder_open(&y->builder, type, y->line) : status;
}

static tare_status add_event(yaml_state *y, const yaml_event_t *event)
{
    tare_status status = TARE_OK;
    y->line = (int)event->start_mark.line + 1;
    switch (event->type) {
    case YAML_DOCUMENT_START_EVENT:
        return y->started ? fail(y, y->line, "more than one document") : TARE_OK;
    case YAML_ALIAS_EVENT:
        return fail(y, y->line, "aliases (*) are not supported");
    case YAML_SCALAR_EVENT:
        status = add_scalar(y, event);
        break;
    case YAML_SEQUENCE_START_EVENT:
        status = open_container(y, VALUE_LIST, event->data.sequence_start.anchor,
                                event->data.sequence_start.tag);
        break;
    case YAML_MAPPING_START_EVENT:
        status = open_container(y, VALUE_MAP, event->data.mapping_start.anchor,
                                event->data.mapping_start.tag);
        break;
    case YAML_SEQUENCE_END_EVENT:
    case YAML_MAPPING_END_EVENT:
        status = value_builder_close(&y->builder);
        break;
    default: /* stream start and end, document end */
        return TARE_OK;
    }
    y->started = true;
    return status;
}

/* All events up to the end of the stream. */
static tare_status read_events(yaml_state *y)
{
    tare_status status = TARE_OK;
    bool more = true;
    while (more && status == TARE_OK) {
        yaml_event_t event;
        if (!yaml_parser_parse(&y->parser, &event))
            return fail_parser(y);
        more = event.type != YAML_STREAM_END_EVENT;
        status = add_event(y, &event);
        yaml_event_delete(&event);
    }
    return status;
}

tare_status yaml_parse(tare_context *ctx, arena *a, const char *data, size_t length,
                       const char *what, const value **root)
{
    tare_status status = TARE_OK;
    yaml_state y = {.ctx = ctx, .what = what, .data = data, .length = length, .line = 1};

    *root = NULL;
    if (length > YAML_MAX_SIZE)
        return TARE_FAIL(ctx, TARE_E_FORMAT,
                         "%s: line 1: %zu bytes, more than the %d of a YAML file", what, length,
                         YAML_MAX_SIZE);
    if (!yaml_parser_initialize(&y.parser))
        return TARE_FAIL(ctx, TARE_E_MEMORY, "%s: out of memory in libyaml", what);
    /* Named, so that libyaml does not take what begins like UTF-16 for that. */
    yaml_parser_set_encoding(&y.parser, YAML_UTF8_ENCODING);
    yaml_parser_set_input_string(&y.parser, (const unsigned char *)(length ? data : ""), length);
    value_builder_init(&y.builder, ctx, a, what);
    TRY(read_events(&y));
    if (!y.started) {
        TRY(value_builder_open(&y.builder, VALUE_MAP, 1));
        TRY(value_builder_close(&y.builder));
    }
    TRY(value_builder_finish(&y.builder, root));
done:
    value_builder_free(&y.builder);
    yaml_parser_delete(&y.parser);
    return foreign_explain(ctx, status, what, data, length);
}

tare_status yaml_parse_file(tare_context *ctx, arena *a, const char *path, size_t limit,
                            const value **root)
{
    char *data = NULL;
    size_t length;
    *root = NULL;
    tare_status status = file_read_all(ctx, path, limit, &data, &length);
    if (status == TARE_OK)
        status = yaml_parse(ctx, a, data, length, path, root);
    mem_free(ctx, data);
    return status;
}
