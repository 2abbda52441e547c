/* JSON writing, with the escapes, separators and layout of Python's json.dumps. */
#include "file/json.h"

#include <locale.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Code point at text[0], 1 to 4 bytes long, or U+FFFD for one byte that begins none. */
static uint32_t decode_utf8(const char *text, size_t length, size_t *used)
{
    const unsigned char *p = (const unsigned char *)text;
    size_t n = p[0] < 0xc0 ? 1 : p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3 : 4;
    *used = 1;
    if (n == 1 || n > length || !utf8_valid(text, n))
        return 0xfffd;
    *used = n;
    uint32_t code = p[0] & (0x7fU >> n);
    for (size_t i = 1; i < n; i++)
        code = code << 6 | (p[i] & 0x3fU);
    return code;
}

static void write_escape(buffer *out, uint32_t code)
{
    switch (code) {
    case '"':
    case '\\':
        buffer_putc(out, '\\');
        buffer_putc(out, (char)code);
        break;
    case '\b':
        buffer_puts(out, "\\b");
        break;
    case '\f':
        buffer_puts(out, "\\f");
        break;
    case '\n':
        buffer_puts(out, "\\n");
        break;
    case '\r':
        buffer_puts(out, "\\r");
        break;
    case '\t':
        buffer_puts(out, "\\t");
        break;
    default:
        if (code >= 0x10000)
            buffer_printf(out, "\\u%04x\\u%04x", 0xd800 + ((code - 0x10000) >> 10),
                          0xdc00 + (code & 0x3ff));
        else
            buffer_printf(out, "\\u%04x", code);
    }
}

void json_write_string(buffer *out, const char *text, size_t length)
{
    buffer_putc(out, '"');
    size_t i = 0;
    while (i < length && out->status == TARE_OK) {
        size_t plain = i;
        while (i < length && text[i] >= 0x20 && text[i] < 0x7f && text[i] != '"' && text[i] != '\\')
            i++;
        buffer_append(out, text + plain, i - plain);
        if (i == length)
            break;
        size_t used = 1;
        unsigned char c = (unsigned char)text[i];
        write_escape(out, c < 0x80 ? c : decode_utf8(text + i, length - i, &used));
        i += used;
    }
    buffer_putc(out, '"');
}

static void write_break(buffer *out, int indent, int level)
{
    if (!indent)
        return;
    buffer_putc(out, '\n');
    buffer_printf(out, "%*s", indent * level, "");
}

/* Recurses as deep as the tree, which the parsers limit to JSON_MAX_DEPTH. */
static void write_container(buffer *out, const value *v, int indent, int level)
{
    bool map = v->type == VALUE_MAP;
    buffer_putc(out, map ? '{' : '[');
    for (size_t i = 0; i < v->count && out->status == TARE_OK; i++) {
        if (i)
            buffer_puts(out, indent ? "," : ", ");
        write_break(out, indent, level + 1);
        if (map) {
            json_write_string(out, v->keys[i].text, v->keys[i].length);
            buffer_puts(out, ": ");
        }
        json_write_value(out, &v->items[i], indent, level + 1);
    }
    if (v->count)
        write_break(out, indent, level);
    buffer_putc(out, map ? '}' : ']');
}

void json_write_value(buffer *out, const value *v, int indent, int level)
{
    switch (v->type) {
    case VALUE_NULL:
        buffer_puts(out, "null");
        break;
    case VALUE_BOOL:
        buffer_puts(out, v->boolean ? "true" : "false");
        break;
    case VALUE_NUMBER:
        buffer_append(out, v->text, v->length);
        break;
    case VALUE_STRING:
        json_write_string(out, v->text, v->length);
        break;
    case VALUE_LIST:
    case VALUE_MAP:
        write_container(out, v, indent, level);
        break;
    }
}

void json_write_double(buffer *out, double number)
{
    if (isnan(number)) {
        buffer_puts(out, "NaN");
    } else if (isinf(number)) {
        buffer_puts(out, number < 0 ? "-Infinity" : "Infinity");
    } else {
        /* %.15g drops trailing zeros, so it is the shortest wherever 15 digits are enough; only
           subnormal numbers carry fewer digits than that. */
        int digits = fpclassify(number) == FP_SUBNORMAL ? 1 : 15;
        char text[32];
        locale_t previous = uselocale(newlocale(LC_ALL_MASK, "C", NULL));
        do
            snprintf(text, sizeof(text), "%.*g", digits, number);
        while (strtod(text, NULL) != number && ++digits <= 17);
        uselocale(previous);
        buffer_puts(out, text);
    }
}
