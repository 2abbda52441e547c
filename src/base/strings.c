/* Buffers, patterns, nearness of names, UTF-8. */
#include "base/strings.h"

#include <string.h>

#include "base/number.h"

void buffer_init(buffer *b, tare_context *ctx)
{
    *b = (buffer){.ctx = ctx};
}

void buffer_free(buffer *b)
{
    mem_free(b->ctx, b->data);
    *b = (buffer){.ctx = b->ctx};
}

static bool buffer_reserve(buffer *b, size_t more)
{
    size_t need;
    if (b->status != TARE_OK)
        return false;
    if (!size_add(b->length, more, &need) || !size_add(need, 1, &need)) {
        b->status = TARE_FAIL(b->ctx, TARE_E_MEMORY, "out of memory: a text of absurd length");
        return false;
    }
    b->status = mem_grow(b->ctx, (void **)&b->data, &b->capacity, need, 1);
    return b->status == TARE_OK;
}

void buffer_append(buffer *b, const void *data, size_t length)
{
    if (!buffer_reserve(b, length))
        return;
    if (length)
        memcpy(b->data + b->length, data, length);
    b->length += length;
    b->data[b->length] = 0;
}

void buffer_puts(buffer *b, const char *text)
{
    buffer_append(b, text, strlen(text));
}

void buffer_putc(buffer *b, char c)
{
    buffer_append(b, &c, 1);
}

void buffer_printf(buffer *b, const char *format, ...)
{
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int n = text_vformat(NULL, 0, format, args);
    va_end(args);
    if (n >= 0 && buffer_reserve(b, (size_t)n)) {
        text_vformat(b->data + b->length, (size_t)n + 1, format, again);
        b->length += (size_t)n;
    }
    va_end(again);
}

/* The set that begins behind '[' of *pattern holds `c`? Moves *pattern behind its ']'; an unclosed
 * '[' stands for itself. */
static bool match_set(const char **pattern, char c)
{
    const char *p = *pattern;
    bool negate = *p == '!';
    if (negate)
        p++;
    const char *first = p, *end = strchr(*p ? p + 1 : p, ']');
    if (!*p || !end)
        return c == '[';
    bool found = false;
    for (p = first; p < end; p++) {
        if (p + 2 < end && p[1] == '-') {
            found |= (unsigned char)p[0] <= (unsigned char)c &&
                     (unsigned char)c <= (unsigned char)p[2];
            p += 2;
        } else {
            found |= *p == c;
        }
    }
    *pattern = end + 1;
    return found != negate;
}

bool pattern_match(const char *pattern, const char *text)
{
    /* On a mismatch only the last star is tried again, one character further: linear in pattern
     * times text. */
    const char *star = NULL, *retry = NULL;
    for (;;) {
        const char *p = pattern;
        if (*p == '*') {
            star = ++pattern;
            retry = text;
            continue;
        }
        bool ok = false;
        if (*text && *p) {
            p++;
            ok = p[-1] == '?' || (p[-1] == '[' ? match_set(&p, *text) : p[-1] == *text);
        }
        if (ok) {
            pattern = p;
            text++;
        } else if (!*text && !*pattern) {
            return true;
        } else if (star && *retry) {
            pattern = star;
            text = ++retry;
        } else {
            return false;
        }
    }
}

bool pattern_has_wildcard(const char *text)
{
    return strpbrk(text, "*?[") != NULL;
}

size_t edit_distance(const char *a, const char *b)
{
    size_t n = strlen(a), m = strlen(b), row[256];
    n = n < 255 ? n : 255;
    m = m < 255 ? m : 255;
    for (size_t j = 0; j <= m; j++)
        row[j] = j;
    for (size_t i = 1; i <= n; i++) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= m; j++) {
            size_t best = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            if (row[j] + 1 < best)
                best = row[j] + 1;
            if (row[j - 1] + 1 < best)
                best = row[j - 1] + 1;
            row[j] = best;
        }
    }
    return row[m];
}

void nearest_names(buffer *out, const char *name, const char *const *names, size_t count,
                   size_t limit)
{
    enum { MOST = 8 };
    size_t best[MOST], distance[MOST], kept = 0;
    limit = limit < MOST ? limit : MOST;
    for (size_t i = 0; i < count && limit; i++) {
        size_t d = edit_distance(name, names[i]), at = kept;
        while (at > 0 && distance[at - 1] > d)
            at--;
        if (at == limit)
            continue;
        if (kept < limit)
            kept++;
        for (size_t j = kept - 1; j > at; j--) {
            best[j] = best[j - 1];
            distance[j] = distance[j - 1];
        }
        best[at] = i;
        distance[at] = d;
    }
    for (size_t i = 0; i < kept; i++)
        buffer_printf(out, "%s%s", i ? ", " : "", names[best[i]]);
}

bool str_starts_with(const char *text, const char *prefix)
{
    return strncmp(text, prefix, strlen(prefix)) == 0;
}

bool str_ends_with(const char *text, const char *suffix)
{
    size_t n = strlen(text), m = strlen(suffix);
    return n >= m && memcmp(text + n - m, suffix, m) == 0;
}

bool utf8_valid(const char *data, size_t length)
{
    const unsigned char *p = (const unsigned char *)data, *end = p + length;
    while (p < end) {
        unsigned c = *p++;
        if (c < 0x80)
            continue;
        size_t more = c >= 0xf0 ? 3 : c >= 0xe0 ? 2 : 1;
        if (c < 0xc2 || c > 0xf4 || (size_t)(end - p) < more)
            return false;
        unsigned second = *p;
        if ((c == 0xe0 && second < 0xa0) || (c == 0xed && second > 0x9f) ||
            (c == 0xf0 && second < 0x90) || (c == 0xf4 && second > 0x8f))
            return false;
        for (; more; more--) {
            if ((*p++ & 0xc0) != 0x80)
                return false;
        }
    }
    return true;
}
