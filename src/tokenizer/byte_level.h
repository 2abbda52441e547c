/* The byte alphabet of GPT-2: a printable character for each byte. Bytes 33-126, 161-172 and
 * 174-255 stand for themselves (as code points), the other 68 are U+0100, U+0101, … in order. */
#ifndef TARE_TOKENIZER_BYTE_LEVEL_H
#define TARE_TOKENIZER_BYTE_LEVEL_H

#include "base/strings.h"

typedef struct byte_alphabet {
    char text[256][2];   /* UTF-8 of each byte's character */
    uint8_t length[256]; /* 1 or 2 */
    int16_t byte[0x144]; /* of a code point; -1: not in the alphabet */
} byte_alphabet;

void byte_alphabet_init(byte_alphabet *a);
/* Appends the characters of `text`'s bytes. */
void byte_alphabet_encode(const byte_alphabet *a, const char *text, size_t length, buffer *out);
/* Appends the bytes of a token; as it stands if any character of it is not in the alphabet. */
void byte_alphabet_decode(const byte_alphabet *a, const char *token, size_t length, buffer *out);

#endif
