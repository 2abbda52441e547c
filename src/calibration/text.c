#include "calibration/text.h"

#include "base/strings.h"

/* What str.isspace() is true for. */
static bool is_space(uint32_t c)
{
    return (c >= 0x09 && c <= 0x0d) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 ||
           c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 ||
           c == 0x202f || c == 0x205f || c == 0x3000;
}

uint32_t text_first(text_span s, size_t *bytes)
{
    const unsigned char *p = (const unsigned char *)s.text;
    size_t n = p[0] < 0xc0 ? 1 : p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3 : 4;
    n = n < s.length ? n : s.length;
    uint32_t code = n == 1 ? p[0] : p[0] & (0x7fU >> n);
    for (size_t i = 1; i < n; i++)
        code = code << 6 | (p[i] & 0x3fU);
    *bytes = n;
    return code;
}

static text_span drop_bytes(text_span s, size_t bytes)
{
    return (text_span){s.text + bytes, s.length - bytes};
}

size_t text_characters(text_span s)
{
    size_t count = 0, bytes;
    for (; s.length; s = drop_bytes(s, bytes), count++)
        text_first(s, &bytes);
    return count;
}

text_span text_drop(text_span s, size_t count)
{
    for (size_t bytes; s.length && count; count--) {
        text_first(s, &bytes);
        s = drop_bytes(s, bytes);
    }
    return s;
}

text_span text_lstrip(text_span s)
{
    for (size_t bytes; s.length && is_space(text_first(s, &bytes));)
        s = drop_bytes(s, bytes);
    return s;
}

bool text_is_blank(text_span s)
{
    while (s.length > 0 &&
           (*s.text == ' ' || *s.text == '\t' || *s.text == '\r' || *s.text == '\n'))
        s = (text_span){s.text + 1, s.length - 1};
    return s.length == 0;
}

text_span text_strip(text_span s)
{
    s = text_lstrip(s);
    while (s.length) {
        size_t last = s.length - 1, bytes;
        while (last && ((unsigned char)s.text[last] & 0xc0) == 0x80)
            last--;
        if (!is_space(text_first(drop_bytes(s, last), &bytes)))
            break;
        s.length = last;
    }
    return s;
}
