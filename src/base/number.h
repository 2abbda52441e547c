/* Numbers and messages as text, the same under every locale: a host process may have called
 * setlocale(), and the C library's own functions then read "1.5" as 1 and write "1,5". Nothing else
 * in the library calls strtod, vsnprintf with what a caller formats, strerror or strcasecmp. */
#ifndef TARE_BASE_NUMBER_H
#define TARE_BASE_NUMBER_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>

/* strtod: *end (may be NULL) is `text` where no number begins. */
double number_read(const char *text, char **end);
/* snprintf and vsnprintf. */
int text_format(char *text, size_t size, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
int text_vformat(char *text, size_t size, const char *format, va_list args)
    __attribute__((format(printf, 3, 0)));
/* What an errno means, in English; lives until the thread's next call. */
const char *errno_text(int error_number);
/* Are the strings equal but for the case of A to Z? (Turkish has another i for I.) */
bool ascii_same(const char *a, const char *b);
/* The same of the first `length` bytes, as strncasecmp. */
bool ascii_same_n(const char *a, const char *b, size_t length);

#endif
