/* The byte alphabet. */
#include "tokenizer/byte_level.h"

#include <string.h>

#include "tokenizer/unicode.h"

void byte_alphabet_init(byte_alphabet *a)
{
    uint32_t next = 0x100;
    memset(a->byte, -1, sizeof a->byte);
    for (unsigned b = 0; b < 256; b++) {
        bool printable = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
        uint32_t code = printable ? b : next++;
        char text[4];
        a->length[b] = (uint8_t)utf8_encode(code, text);
        memcpy(a->text[b], text, 2);
        a->byte[code] = (int16_t)b;
    }
}

void byte_alphabet_encode(const byte_alphabet *a, const char *text, size_t length, buffer *out)
{
    char chunk[512]; /* one append for many characters */
    size_t used = 0;
    for (size_t i = 0; i < length; i++) {
        uint8_t b = (uint8_t)text[i];
        if (used > sizeof chunk - 2) {
            buffer_append(out, chunk, used);
            used = 0;
        }
        memcpy(chunk + used, a->text[b], 2);
        used += a->length[b];
    }
    buffer_append(out, chunk, used);
}

void byte_alphabet_decode(const byte_alphabet *a, const char *token, size_t length, buffer *out)
{
    const uint8_t *p = (const uint8_t *)token;
    size_t before = out->length, size;
    for (size_t i = 0; i < length; i += size) {
        uint32_t code = utf8_decode(p + i, &size);
        if (code >= sizeof a->byte / sizeof a->byte[0] || a->byte[code] < 0) {
            if (out->status == TARE_OK)
                out->length = before;
            buffer_append(out, token, length);
            return;
        }
        buffer_putc(out, (char)a->byte[code]);
    }
}
