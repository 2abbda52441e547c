/* The JSON pull reader: one pass over the buffer, no allocation but one scratch buffer for the text
 * of the current token. */
#include "file/json.h"

#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/number.h"
#include "file/value_builder.h"

/* What the grammar allows next. */
typedef enum json_expect {
    EXPECT_VALUE, /* the document, a member's value, an item behind a comma */
    EXPECT_FIRST, /* just inside a container: an item or key, or the end */
    EXPECT_COMMA, /* behind an item or member: a comma, or the end */
    EXPECT_END    /* behind the document */
} json_expect;

struct json_reader {
    tare_context *ctx;
    const char *what;
    json_dialect dialect;
    const char *next, *end;
    int line;
    json_expect expect;
    int depth;
    bool in_map[JSON_DATA_MAX_DEPTH];
    char *scratch;
    size_t capacity;
    tare_status status; /* errors stick */
};

tare_status json_reader_create(tare_context *ctx, const char *data, size_t length, const char *what,
                               json_dialect dialect, json_reader **out)
{
    json_reader *r = mem_calloc(ctx, 1, sizeof(*r));
    *out = r;
    if (!r)
        return TARE_E_MEMORY;
    r->ctx = ctx;
    r->what = what;
    r->dialect = dialect;
    r->next = length ? data : "";
    r->end = r->next + length;
    r->line = 1;
    return TARE_OK;
}

void json_reader_free(json_reader *r)
{
    if (!r)
        return;
    mem_free(r->ctx, r->scratch);
    mem_free(r->ctx, r);
}

void json_reader_builder(const json_reader *r, arena *a, value_builder *b)
{
    value_builder_init(b, r->ctx, a, r->what);
    b->last_wins = r->dialect == JSON_DATA;
}

/* ---- errors ---- */

static tare_status fail(const json_reader *r, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
static tare_status fail(const json_reader *r, const char *format, ...)
{
    char problem[128];
    va_list args;
    va_start(args, format);
    text_vformat(problem, sizeof problem, format, args);
    va_end(args);
    tare_status status = TARE_FAIL(r->ctx, TARE_E_FORMAT, "%s", problem);
    return r->what ? TARE_WRAP(r->ctx, status, "%s: line %d", r->what, r->line) : status;
}

static tare_status unexpected(const json_reader *r, const char *expected)
{
    if (r->next == r->end)
        return fail(r, "expected %s, but the text ends", expected);
    unsigned char c = (unsigned char)*r->next;
    if (r->end - r->next >= 3 && memcmp(r->next, "\xef\xbb\xbf", 3) == 0)
        return fail(r, "expected %s, found a byte order mark; save it as UTF-8 without one",
                    expected);
    if (c > ' ' && c < 0x7f)
        return fail(r, "expected %s, found '%c'", expected, c);
    return fail(r, "expected %s, found byte 0x%02x", expected, c);
}

/* ---- characters ---- */

static void skip_space(json_reader *r)
{
    for (; r->next < r->end; r->next++) {
        switch (*r->next) {
        case '\n':
            if (r->line < INT_MAX)
                r->line++;
            break;
        case ' ':
        case '\t':
        case '\r':
            break;
        default:
            return;
        }
    }
}

static bool take(json_reader *r, char c)
{
    if (r->next == r->end || *r->next != c)
        return false;
    r->next++;
    return true;
}

static bool take_word(json_reader *r, const char *word)
{
    size_t n = strlen(word);
    if ((size_t)(r->end - r->next) < n || memcmp(r->next, word, n) != 0)
        return false;
    r->next += n;
    return true;
}

/* ---- strings ---- */

/* Value of the four hexadecimal digits at `p`, or -1. */
static int hex4(const char *p, const char *end)
{
    int code = 0;
    if (end - p < 4)
        return -1;
    for (int i = 0; i < 4; i++) {
        char c = p[i];
        if (c >= '0' && c <= '9')
            code = code * 16 + (c - '0');
        else if (c >= 'a' && c <= 'f')
            code = code * 16 + (c - 'a' + 10);
        else if (c >= 'A' && c <= 'F')
            code = code * 16 + (c - 'A' + 10);
        else
            return -1;
    }
    return code;
}

static char *put_utf8(char *out, int code)
{
    if (code < 0x80) {
        *out++ = (char)code;
    } else if (code < 0x800) {
        *out++ = (char)(0xc0 | code >> 6);
        *out++ = (char)(0x80 | (code & 0x3f));
    } else if (code < 0x10000) {
        *out++ = (char)(0xe0 | code >> 12);
        *out++ = (char)(0x80 | (code >> 6 & 0x3f));
        *out++ = (char)(0x80 | (code & 0x3f));
    } else {
        *out++ = (char)(0xf0 | code >> 18);
        *out++ = (char)(0x80 | (code >> 12 & 0x3f));
        *out++ = (char)(0x80 | (code >> 6 & 0x3f));
        *out++ = (char)(0x80 | (code & 0x3f));
    }
    return out;
}

/* Decodes what follows "\u", a pair of surrogates too. *p stands behind the u, and is moved on. */
static tare_status decode_unicode(const json_reader *r, const char **p, const char *end, char **out)
{
    int code = hex4(*p, end);
    if (code < 0)
        return fail(r, "\\u needs four hexadecimal digits");
    *p += 4;
    if (code >= 0xd800 && code <= 0xdfff) {
        int low = -1;
        if (code < 0xdc00 && end - *p >= 6 && (*p)[0] == '\\' && (*p)[1] == 'u')
            low = hex4(*p + 2, end);
        if (low >= 0xdc00 && low <= 0xdfff) {
            code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
            *p += 6;
        } else if (r->dialect == JSON_STRICT) {
            return fail(r, "a \\u surrogate without its partner");
        } else if (r->dialect == JSON_PYTHON) {
            code = 0xfffd;
        }
    }
    *out = put_utf8(*out, code);
    return TARE_OK;
}

/* Decodes [p,end), in which every backslash has a character behind it, to `out`; moves *out. The
 * result is never longer than its source. */
static tare_status decode_escapes(const json_reader *r, const char *p, const char *end, char **out)
{
    /* At the index of the letter, what it stands for. */
    static const char simple[128] = {['"'] = '"',  ['\\'] = '\\', ['/'] = '/',  ['b'] = '\b',
                                     ['f'] = '\f', ['n'] = '\n',  ['r'] = '\r', ['t'] = '\t'};
    while (p < end) {
        const char *stop = memchr(p, '\\', (size_t)(end - p));
        size_t run = (size_t)((stop ? stop : end) - p);
        memcpy(*out, p, run);
        *out += run;
        p += run;
        if (!stop)
            break;
        unsigned char c = (unsigned char)p[1];
        p += 2;
        if (c == 'u') {
            tare_status status = decode_unicode(r, &p, end, out);
            if (status != TARE_OK)
                return status;
        } else if (c < 128 && simple[c]) {
            *(*out)++ = simple[c];
        } else {
            return fail(r, "a backslash before a character that needs none");
        }
    }
    return TARE_OK;
}

static tare_status reserve_scratch(json_reader *r, size_t length)
{
    if (length < r->capacity)
        return TARE_OK;
    return mem_grow(r->ctx, (void **)&r->scratch, &r->capacity, length + 1, 1);
}

/* Reads a string whose opening quote was taken. */
static tare_status read_string(json_reader *r, json_token *token)
{
    const char *start = r->next, *p = start;
    bool escaped = false;
    unsigned char high = 0;
    tare_status status;

    for (;;) {
        unsigned char c = 0;
        while (p < r->end && (c = (unsigned char)*p) >= 0x20 && c != '"' && c != '\\') {
            high |= c;
            p++;
        }
        if (p == r->end)
            return fail(r, "a string without its closing quote");
        if (c == '"')
            break;
        if (c < 0x20)
            return fail(r, "control character 0x%02x in a string", c);
        escaped = true;
        p += r->end - p > 1 ? 2 : 1;
    }
    size_t length = (size_t)(p - start);
    r->next = p + 1;
    if (high & 0x80 && !utf8_valid(start, length))
        return fail(r, "a string that is not UTF-8; save it as UTF-8");
    if ((status = reserve_scratch(r, length)) != TARE_OK)
        return status;
    char *out = r->scratch;
    if (escaped) {
        if ((status = decode_escapes(r, start, p, &out)) != TARE_OK)
            return status;
    } else {
        memcpy(out, start, length);
        out += length;
    }
    *out = 0;
    token->text = r->scratch;
    token->length = (size_t)(out - r->scratch);
    return TARE_OK;
}

/* ---- numbers ---- */

static const char *skip_digits(const char *p, const char *end)
{
    while (p < end && *p >= '0' && *p <= '9')
        p++;
    return p;
}

size_t json_number_length(const char *text, size_t length)
{
    const char *p = text, *end = text + length, *digits;
    if (p < end && *p == '-')
        p++;
    digits = p;
    p = p < end && *p == '0' ? p + 1 : skip_digits(p, end);
    if (p == digits)
        return 0;
    if (p < end && *p == '.') {
        digits = p + 1;
        p = skip_digits(digits, end);
        if (p == digits)
            return 0;
    }
    if (p < end && (*p == 'e' || *p == 'E')) {
        digits = p + 1;
        if (digits < end && (*digits == '+' || *digits == '-'))
            digits++;
        p = skip_digits(digits, end);
        if (p == digits)
            return 0;
    }
    return (size_t)(p - text);
}

void json_number_convert(json_token *token)
{
    const char *p = token->text;
    bool negative = *p == '-', fits = true;
    int64_t sum = 0; /* kept negative: INT64_MIN has no positive twin */
    for (p += negative; *p >= '0' && *p <= '9' && fits; p++)
        fits = !__builtin_mul_overflow(sum, 10, &sum) &&
               !__builtin_sub_overflow(sum, *p - '0', &sum);
    if (fits && !*p && (negative || sum != INT64_MIN)) {
        token->is_integer = true;
        token->integer = negative ? sum : -sum;
        token->number = (double)token->integer;
        return;
    }
    token->is_integer = false;
    token->number = number_read(token->text, NULL);
}

/* Sets the token's text to `length` bytes at r->next, and takes them. */
static tare_status take_text(json_reader *r, json_token *token, size_t length)
{
    tare_status status = reserve_scratch(r, length);
    if (status != TARE_OK)
        return status;
    memcpy(r->scratch, r->next, length);
    r->scratch[length] = 0;
    r->next += length;
    token->kind = JSON_NUMBER;
    token->text = r->scratch;
    token->length = length;
    return TARE_OK;
}

static tare_status read_number(json_reader *r, json_token *token)
{
    size_t length = json_number_length(r->next, (size_t)(r->end - r->next));
    if (!length)
        return fail(r, "a malformed number");
    tare_status status = take_text(r, token, length);
    if (status != TARE_OK)
        return status;
    json_number_convert(token);
    if (r->dialect == JSON_STRICT && !isfinite(token->number))
        return fail(r, "a number beyond the range of double");
    return TARE_OK;
}

/* Python's words for what is no number in JSON. *found tells whether one stood there. */
static tare_status read_python_number(json_reader *r, json_token *token, bool *found)
{
    static const struct {
        const char *word;
        double number;
    } words[] = {{"NaN", NAN}, {"Infinity", INFINITY}, {"-Infinity", -INFINITY}};
    *found = false;
    for (size_t i = 0; i < sizeof(words) / sizeof(*words) && !*found; i++) {
        size_t n = strlen(words[i].word);
        if ((size_t)(r->end - r->next) >= n && memcmp(r->next, words[i].word, n) == 0) {
            *found = true;
            token->number = words[i].number;
            return take_text(r, token, n);
        }
    }
    return TARE_OK;
}

/* ---- the grammar ---- */

static void value_ended(json_reader *r)
{
    r->expect = r->depth ? EXPECT_COMMA : EXPECT_END;
}

static tare_status open_container(json_reader *r, json_token *token)
{
    int limit = r->dialect == JSON_DATA ? JSON_DATA_MAX_DEPTH : JSON_MAX_DEPTH;
    if (r->depth == limit)
        return fail(r, "nested deeper than %d levels", limit);
    bool map = *r->next++ == '{';
    r->in_map[r->depth++] = map;
    r->expect = EXPECT_FIRST;
    token->kind = map ? JSON_MAP_BEGIN : JSON_LIST_BEGIN;
    return TARE_OK;
}

static tare_status read_value(json_reader *r, json_token *token)
{
    tare_status status = TARE_OK;
    bool python = false;
    char c = r->next < r->end ? *r->next : 0;

    if (c == '{' || c == '[')
        return open_container(r, token);
    if (r->dialect != JSON_STRICT && (c == 'N' || c == 'I' || c == '-'))
        status = read_python_number(r, token, &python);
    if (python) {
        /* done */
    } else if (take(r, '"')) {
        token->kind = JSON_STRING;
        status = read_string(r, token);
    } else if (c == '-' || (c >= '0' && c <= '9')) {
        status = read_number(r, token);
    } else if (take_word(r, "null")) {
        token->kind = JSON_NULL;
    } else if (take_word(r, "true")) {
        token->kind = JSON_TRUE;
    } else if (take_word(r, "false")) {
        token->kind = JSON_FALSE;
    } else {
        return unexpected(r, "a value");
    }
    value_ended(r);
    return status;
}

static tare_status read_key(json_reader *r, json_token *token)
{
    if (!take(r, '"'))
        return unexpected(r, "a key in double quotes");
    token->kind = JSON_KEY;
    tare_status status = read_string(r, token);
    if (status != TARE_OK)
        return status;
    skip_space(r);
    if (!take(r, ':'))
        return unexpected(r, "':'");
    r->expect = EXPECT_VALUE;
    return TARE_OK;
}

static tare_status next_token(json_reader *r, json_token *token)
{
    skip_space(r);
    token->line = r->line;
    if (r->expect == EXPECT_END) {
        token->kind = JSON_END;
        return r->next == r->end ? TARE_OK : unexpected(r, "the end of the document");
    }
    if (r->expect == EXPECT_VALUE)
        return read_value(r, token);

    bool map = r->in_map[r->depth - 1];
    if (take(r, map ? '}' : ']')) {
        token->kind = map ? JSON_MAP_END : JSON_LIST_END;
        r->depth--;
        value_ended(r);
        return TARE_OK;
    }
    if (r->expect == EXPECT_COMMA) {
        if (!take(r, ','))
            return unexpected(r, map ? "',' or '}'" : "',' or ']'");
        skip_space(r);
        token->line = r->line;
    }
    return map ? read_key(r, token) : read_value(r, token);
}

tare_status json_next(json_reader *r, json_token *token)
{
    *token = (json_token){.line = r->line};
    if (r->status == TARE_OK)
        r->status = next_token(r, token);
    return r->status;
}

tare_status json_skip(json_reader *r)
{
    json_token token;
    int depth = 0;
    do {
        tare_status status = json_next(r, &token);
        if (status != TARE_OK)
            return status;
        if (token.kind == JSON_LIST_BEGIN || token.kind == JSON_MAP_BEGIN)
            depth++;
        else if (token.kind == JSON_LIST_END || token.kind == JSON_MAP_END)
            depth--;
        if (depth < 0 || token.kind == JSON_END || (depth == 0 && token.kind == JSON_KEY))
            return r->status = fail(r, "expected a value");
    } while (depth > 0);
    return TARE_OK;
}
