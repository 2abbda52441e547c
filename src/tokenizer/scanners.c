/* Hand-written scanners for the expressions of GPT-2, Llama-3 (tiktoken's cl100k) and Qwen2. Each
 * alternative of an expression is one step of its function, tried in the same order. */
#include <string.h>

#include "tokenizer/pattern.h"
#include "tokenizer/unicode.h"

enum { SPACE = UNICODE_SPACE, LETTER = UNICODE_LETTER, NUMBER = UNICODE_NUMBER };

/* Of the three classes that these expressions know; 0 is [^\s\p{L}\p{N}]. */
static unsigned class_at(const uint8_t *p, size_t *length)
{
    return unicode_flags(utf8_decode(p, length)) & (SPACE | LETTER | NUMBER);
}

/* End of the run of characters of class `wanted` that begins at `p`. */
static const uint8_t *run(const uint8_t *p, const uint8_t *end, unsigned wanted)
{
    size_t length;
    while (p < end && class_at(p, &length) == wanted)
        p += length;
    return p;
}

static const uint8_t *run_of_newlines(const uint8_t *p, const uint8_t *end)
{
    while (p < end && (*p == '\r' || *p == '\n'))
        p++;
    return p;
}

/* \s+(?!\S)|\s+ where a white-space character stands at `p` and the run ends at `stop`. */
static size_t match_spaces(const uint8_t *p, const uint8_t *stop, const uint8_t *end)
{
    if (stop == end)
        return (size_t)(stop - p);
    const uint8_t *last = utf8_previous(stop);
    return (size_t)((last > p ? last : stop) - p);
}

/* 's|'t|'re|'ve|'m|'ll|'d in lower case; 0 if none stands at `p`. */
static size_t match_contraction(const uint8_t *p, const uint8_t *end)
{
    if (*p != '\'' || end - p < 2)
        return 0;
    if (memchr("stmd", p[1], 4))
        return 2;
    if (end - p < 3)
        return 0;
    bool two = (p[1] == 'l' && p[2] == 'l') || ((p[1] == 'r' || p[1] == 'v') && p[2] == 'e');
    return two ? 3 : 0;
}

/* (?i:'s|'t|'re|'ve|'m|'ll|'d); 0 if none stands at `p`. U+017F folds to s; nothing else that folds
 * to one of these letters lies beyond ASCII. */
static size_t match_any_case_contraction(const uint8_t *p, const uint8_t *end)
{
    if (*p != '\'' || end - p < 2)
        return 0;
    uint8_t lower[3] = {'\'', p[1] | 0x20, end - p > 2 ? p[2] | 0x20 : 0};
    if (end - p > 2 && p[1] == 0xc5 && p[2] == 0xbf)
        return 3;
    return match_contraction(lower, lower + (end - p > 2 ? 3 : 2));
}

static size_t scan_gpt2(const uint8_t *p, const uint8_t *end)
{
    size_t length = match_contraction(p, end);
    if (length)
        return length;
    unsigned class = class_at(p, &length);
    if (class != SPACE)
        return (size_t)(run(p + length, end, class) - p);
    if (*p == ' ' && p + 1 < end) {
        class = class_at(p + 1, &length);
        if (class != SPACE)
            return (size_t)(run(p + 1 + length, end, class) - p);
    }
    return match_spaces(p, run(p, end, SPACE), end);
}

/* \s*[\r\n]+|\s+(?!\S)|\s+ where a white-space character stands at `p`. */
static size_t match_lines_or_spaces(const uint8_t *p, const uint8_t *end)
{
    const uint8_t *stop = run(p, end, SPACE);
    for (const uint8_t *q = stop; q > p; q--) {
        if (q[-1] == '\r' || q[-1] == '\n')
            return (size_t)(q - p);
    }
    return match_spaces(p, stop, end);
}

/* The common form of Llama-3 and Qwen2, which differ in the length of a run of digits. */
static size_t scan_cl100k(const uint8_t *p, const uint8_t *end, int max_digits)
{
    size_t length, next_length = 0;
    if ((length = match_any_case_contraction(p, end)) > 0)
        return length;
    unsigned class = class_at(p, &length);
    if (class == LETTER)
        return (size_t)(run(p + length, end, LETTER) - p);
    if (class == NUMBER) {
        const uint8_t *q = p + length;
        for (int i = 1; i < max_digits && q < end && class_at(q, &length) == NUMBER; i++)
            q += length;
        return (size_t)(q - p);
    }
    unsigned next = p + length < end ? class_at(p + length, &next_length) : SPACE;
    if (next == LETTER && *p != '\r' && *p != '\n')
        return (size_t)(run(p + length + next_length, end, LETTER) - p);
    if (class == 0 || (*p == ' ' && next == 0))
        return (size_t)(run_of_newlines(run(p + length, end, 0), end) - p);
    return match_lines_or_spaces(p, end);
}

static size_t scan_llama3(const uint8_t *p, const uint8_t *end)
{
    return scan_cl100k(p, end, 3);
}

static size_t scan_qwen2(const uint8_t *p, const uint8_t *end)
{
    return scan_cl100k(p, end, 1);
}

#define CONTRACTIONS "'s|'t|'re|'ve|'m|'ll|'d"
#define CL100K_WORDS "(?i:" CONTRACTIONS ")|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|"
#define CL100K_REST  "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

static const struct {
    const char *expression;
    scanner scan;
} scanners[] = {
    {CONTRACTIONS "| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+", scan_gpt2},
    {CL100K_WORDS "\\p{N}{1,3}" CL100K_REST, scan_llama3},
    {CL100K_WORDS "\\p{N}" CL100K_REST, scan_qwen2},
};

scanner scanner_find(const char *expression, size_t length)
{
    for (size_t i = 0; i < sizeof scanners / sizeof scanners[0]; i++) {
        const char *known = scanners[i].expression;
        if (strlen(known) == length && memcmp(known, expression, length) == 0)
            return scanners[i].scan;
    }
    return NULL;
}

scanner scanner_gpt2(void)
{
    return scan_gpt2;
}
