/* Everything goes through the "C" locale, which is static in the C library: newlocale() allocates
 * nothing for it, and there is nothing to free. */
#include "base/number.h"

#include <locale.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static locale_t c_locale(void)
{
    return newlocale(LC_ALL_MASK, "C", NULL);
}

double number_read(const char *text, char **end)
{
    return strtod_l(text, end, c_locale());
}

int text_vformat(char *text, size_t size, const char *format, va_list args)
{
    locale_t previous = uselocale(c_locale()); /* of this thread alone */
    int length = vsnprintf(text, size, format, args);
    uselocale(previous);
    return length;
}

int text_format(char *text, size_t size, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int length = text_vformat(text, size, format, args);
    va_end(args);
    return length;
}

const char *errno_text(int error_number)
{
    return strerror_l(error_number, c_locale());
}

static unsigned char lower(char c)
{
    return (unsigned char)(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
}

bool ascii_same_n(const char *a, const char *b, size_t length)
{
    for (size_t i = 0; i < length; i++) {
        if (lower(a[i]) != lower(b[i]))
            return false;
        if (!a[i])
            break;
    }
    return true;
}

bool ascii_same(const char *a, const char *b)
{
    return ascii_same_n(a, b, SIZE_MAX);
}
