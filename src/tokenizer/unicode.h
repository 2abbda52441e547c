/* What the tokenizer needs to know of a code point, and UTF-8 decoding of text that is known to be
 * valid. The classes are those that the `tokenizers` library works with (see unicode_ranges.c). */
#ifndef TARE_TOKENIZER_UNICODE_H
#define TARE_TOKENIZER_UNICODE_H

#include <stddef.h>
#include <stdint.h>

enum {
    UNICODE_LETTER = 1,  /* \p{L} in a pattern */
    UNICODE_NUMBER = 2,  /* \p{N} in a pattern */
    UNICODE_SPACE = 4,   /* \s everywhere: White_Space */
    UNICODE_NUMERIC = 8, /* what the Digits pre-tokenizer calls a digit: Nd, Nl, No */
    UNICODE_WORD = 16,   /* \w beside an added token */
    UNICODE_INERT = 32 /* younger than the normalization tables: never reordered or (de)composed */
};

typedef struct unicode_range {
    uint32_t first, last;
    uint8_t flags;
} unicode_range;

/* Sorted; code points in no range have no flags. */
extern const unicode_range unicode_ranges[];
extern const size_t unicode_range_count;
extern const uint8_t unicode_ascii[128];

unsigned unicode_search(uint32_t code);

static inline unsigned unicode_flags(uint32_t code)
{
    return code < 128 ? unicode_ascii[code] : unicode_search(code);
}

/* Length in bytes of the character that begins with `lead`. */
static inline size_t utf8_length(uint8_t lead)
{
    return lead < 0x80 ? 1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
}

/* Code point at `p`, of valid UTF-8; *length gets its bytes. */
static inline uint32_t utf8_decode(const uint8_t *p, size_t *length)
{
    *length = utf8_length(p[0]);
    switch (*length) {
    case 1:
        return p[0];
    case 2:
        return (p[0] & 0x1fu) << 6 | (p[1] & 0x3fu);
    case 3:
        return (p[0] & 0x0fu) << 12 | (p[1] & 0x3fu) << 6 | (p[2] & 0x3fu);
    default:
        return (p[0] & 0x07u) << 18 | (p[1] & 0x3fu) << 12 | (p[2] & 0x3fu) << 6 | (p[3] & 0x3fu);
    }
}

/* Start of the character that ends before `p`; `p` is not the start of the text. */
static inline const uint8_t *utf8_previous(const uint8_t *p)
{
    do
        p--;
    while ((*p & 0xc0) == 0x80);
    return p;
}

/* Writes `code` at `out` (room for 4) and returns the bytes written. */
size_t utf8_encode(uint32_t code, char *out);

#endif
