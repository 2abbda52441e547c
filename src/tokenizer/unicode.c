/* Classes of code points by binary search: text stays within few ranges, so the search predicts
 * well. */
#include "tokenizer/unicode.h"

unsigned unicode_search(uint32_t code)
{
    size_t low = 0, high = unicode_range_count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (unicode_ranges[middle].last < code)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == unicode_range_count || code < unicode_ranges[low].first)
        return 0;
    return unicode_ranges[low].flags;
}

size_t utf8_encode(uint32_t code, char *out)
{
    if (code < 0x80) {
        out[0] = (char)code;
        return 1;
    }
    if (code < 0x800) {
        out[0] = (char)(0xc0 | code >> 6);
        out[1] = (char)(0x80 | (code & 0x3f));
        return 2;
    }
    if (code < 0x10000) {
        out[0] = (char)(0xe0 | code >> 12);
        out[1] = (char)(0x80 | (code >> 6 & 0x3f));
        out[2] = (char)(0x80 | (code & 0x3f));
        return 3;
    }
    out[0] = (char)(0xf0 | code >> 18);
    out[1] = (char)(0x80 | (code >> 12 & 0x3f));
    out[2] = (char)(0x80 | (code >> 6 & 0x3f));
    out[3] = (char)(0x80 | (code & 0x3f));
    return 4;
}
