/* Text as Python's str sees it, for data sets: UTF-8 in which a lone surrogate stands as its three
 * bytes. A "character" is a code point. */
#ifndef TARE_CALIBRATION_TEXT_H
#define TARE_CALIBRATION_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct text_span {
    const char *text;
    size_t length;
} text_span;

/* The first character, of 1 to 4 bytes; the text is not empty. */
uint32_t text_first(text_span s, size_t *bytes);
size_t text_characters(text_span s);
/* Without its first `count` characters. */
text_span text_drop(text_span s, size_t count);
/* Nothing but spaces, tabs and line ends: such a line of a file is no record. */
bool text_is_blank(text_span s);
/* Without white space on the left; on both sides (str.lstrip, str.strip). */
text_span text_lstrip(text_span s);
text_span text_strip(text_span s);

#endif
