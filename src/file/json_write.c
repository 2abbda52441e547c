/* JSON writing, with the escapes, separators and layout of Python's json.dumps. */
#include "file/json.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/number.h"

/* Code point at text[0], 1 to 4 bytes long, or U+FFFD for one byte that begins none. `surrogates`:
 * so are their three bytes. */
static uint32_t decode_utf8(const char *text, size_t length, bool surrogates, size_t *used)
{
    const unsigned char *p = (const unsigned char *)text;
    size_t n = p[0] < 0xc0 ? 1 : p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3 : 4;
    *used = 1;
    surrogates = surrogates && n <= length && p[0] == 0xed && p[1] >= 0xa0 && p[1] <= 0xbf &&
                 p[2] >= 0x80 && p[2] <= 0xbf;
    if (n == 1 || n > length || (!surrogates && !utf8_valid(text, n)))
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

static void write_string(buffer *out, const char *text, size_t length, bool surrogates)
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
        write_escape(out, c < 0x80 ? c : decode_utf8(text + i, length - i, surrogates, &used));
        i += used;
    }
    buffer_putc(out, '"');
}

void json_write_string(buffer *out, const char *text, size_t length)
{
    write_string(out, text, length, false);
}

static void write_break(buffer *out, int indent, int level)
{
    if (!indent)
        return;
    buffer_putc(out, '\n');
    buffer_printf(out, "%*s", indent * level, "");
}

static void write_value(buffer *out, const value *v, int indent, int level, bool data);

/* Recurses as deep as the tree, which the parsers limit. */
static void write_container(buffer *out, const value *v, int indent, int level, bool data)
{
    bool map = v->type == VALUE_MAP;
    buffer_putc(out, map ? '{' : '[');
    for (size_t i = 0; i < v->count && out->status == TARE_OK; i++) {
        if (i)
            buffer_puts(out, indent ? "," : ", ");
        write_break(out, indent, level + 1);
        if (map) {
            write_string(out, v->keys[i].text, v->keys[i].length, data);
            buffer_puts(out, ": ");
        }
        write_value(out, &v->items[i], indent, level + 1, data);
    }
    if (v->count)
        write_break(out, indent, level);
    buffer_putc(out, map ? '}' : ']');
}

/* As Python writes the number that it read: integers of any length keep their digits. */
static void write_data_number(buffer *out, const value *v)
{
    bool integer = v->text[strspn(v->text, "-0123456789")] == 0;
    if (!integer && !isfinite(v->number))
        json_write_double(out, v->number);
    else if (!integer)
        json_write_repr(out, v->number);
    else if (strcmp(v->text, "-0") == 0)
        buffer_putc(out, '0');
    else
        buffer_append(out, v->text, v->length);
}

static void write_value(buffer *out, const value *v, int indent, int level, bool data)
{
    switch (v->type) {
    case VALUE_NULL:
        buffer_puts(out, "null");
        break;
    case VALUE_BOOL:
        buffer_puts(out, v->boolean ? "true" : "false");
        break;
    case VALUE_NUMBER:
        if (data)
            write_data_number(out, v);
        else
            buffer_append(out, v->text, v->length);
        break;
    case VALUE_STRING:
        write_string(out, v->text, v->length, data);
        break;
    case VALUE_LIST:
    case VALUE_MAP:
        write_container(out, v, indent, level, data);
        break;
    }
}

void json_write_value(buffer *out, const value *v, int indent, int level)
{
    write_value(out, v, indent, level, false);
}

void json_write_data(buffer *out, const value *v, int indent, int level)
{
    write_value(out, v, indent, level, true);
}

/* The fewest decimal digits that read back as `number` (finite, above 0): *digits * 10^*exponent.
 * The nearest decimal of a length is not always among them: below a power of two doubles lie twice
 * as dense as above, so the next decimal above may read back where the nearest, below, does not. */
static void shortest_digits(double number, uint64_t *digits, int *exponent)
{
    char text[48];
    for (int length = 0; length < 17; length++) {
        text_format(text, sizeof text, "%.*e", length, number);
        char *e = strchr(text, 'e');
        *exponent = (int)strtol(e + 1, NULL, 10) - length;
        *digits = (uint64_t)(text[0] - '0');
        for (char *p = text + 2; p < e; p++)
            *digits = *digits * 10 + (uint64_t)(*p - '0');
        for (int up = 0; up < 2; up++, ++*digits) {
            snprintf(text, sizeof text, "%" PRIu64 "e%d", *digits, *exponent);
            if (number_read(text, NULL) == number)
                return;
        }
    }
}

/* `length` digits with the point behind the `point`-th, which may lie outside them. */
static void write_fixed(buffer *out, const char *digits, int length, int point)
{
    if (point <= 0)
        buffer_printf(out, "0.%.*s%s", -point, "0000", digits);
    else if (point >= length)
        buffer_printf(out, "%s%.*s.0", digits, point - length, "0000000000000000");
    else
        buffer_printf(out, "%.*s.%s", point, digits, digits + point);
}

void json_write_repr(buffer *out, double number)
{
    char text[24];
    uint64_t digits;
    int exponent;
    if (isnan(number)) {
        buffer_puts(out, "nan");
        return;
    }
    if (signbit(number))
        buffer_putc(out, '-');
    if (isinf(number) || number == 0) {
        buffer_puts(out, number == 0 ? "0.0" : "inf");
        return;
    }
    shortest_digits(fabs(number), &digits, &exponent);
    for (; digits % 10 == 0; exponent++)
        digits /= 10;
    int length = snprintf(text, sizeof text, "%" PRIu64, digits), point = length + exponent;
    if (point > -4 && point <= 16)
        write_fixed(out, text, length, point);
    else
        buffer_printf(out, "%c%s%se%c%02d", text[0], length > 1 ? "." : "", text + 1,
                      point > 0 ? '+' : '-', abs(point - 1));
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
        do
            text_format(text, sizeof text, "%.*g", digits, number);
        while (number_read(text, NULL) != number && ++digits <= 17);
        buffer_puts(out, text);
    }
}
