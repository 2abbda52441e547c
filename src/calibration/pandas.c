/* What pandas.read_csv makes of cells (section 11.2): per column, missing words, integers, doubles,
 * booleans, and text for the rest. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/number.h"
#include "calibration/choices.h"
#include "file/json.h"

bool pandas_is_missing(const char *text, size_t length)
{
    static const char *const words[] = {"",         "#N/A", "#N/A N/A", "#NA",    "-1.#IND",
                                        "-1.#QNAN", "-NaN", "-nan",     "1.#IND", "1.#QNAN",
                                        "<NA>",     "N/A",  "NA",       "NULL",   "NaN",
                                        "None",     "n/a",  "nan",      "null"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        if (strlen(words[i]) == length && memcmp(words[i], text, length) == 0)
            return true;
    }
    return false;
}

/* What a cell, or a column of cells, can be. */
enum { IS_MISSING = 1, IS_INTEGER = 2, IS_NUMBER = 4, IS_BOOLEAN = 8, IS_TOO_LARGE = 16 };

static bool is_missing(const value *v)
{
    return !v->text || pandas_is_missing(v->text, v->length);
}

static bool boolean_of(const char *text, bool *out)
{
    static const char *const words[] = {"True", "TRUE", "true", "False", "FALSE", "false"};
    for (size_t i = 0; i < 6; i++) {
        if (strcmp(text, words[i]) == 0) {
            *out = i < 3;
            return true;
        }
    }
    return false;
}

/* A decimal number with blanks and tabs around it: digits with or without a point and an exponent,
 * or a word for infinity. Its start and length in *number. */
static int number_of(const char *text, size_t length, const char **number, size_t *n)
{
    const char *p = text + strspn(text, " \t"), *end = text + length;
    while (end > p && (end[-1] == ' ' || end[-1] == '\t'))
        end--;
    *number = p;
    *n = (size_t)(end - p);
    p += p < end && (*p == '+' || *p == '-');
    if (((end - p == 3 && ascii_same_n(p, "inf", 3)) ||
         (end - p == 8 && ascii_same_n(p, "infinity", 8))) &&
        *n == length)
        return IS_NUMBER;
    size_t digits = strspn(p, "0123456789"), fraction = 0;
    p += digits;
    if (p == end && digits)
        return IS_INTEGER | IS_NUMBER;
    if (*p == '.') {
        fraction = strspn(++p, "0123456789");
        p += fraction;
    }
    if (digits + fraction == 0)
        return 0;
    if (*p == 'e' || *p == 'E') {
        p += p[1] == '+' || p[1] == '-' ? 2 : 1;
        digits = strspn(p, "0123456789");
        p += digits;
        if (!digits)
            return 0;
    }
    return p == end ? IS_NUMBER : 0;
}

/* false where it leaves the range. `text` begins with a sign or digit. */
static bool integer_of(const char *text, int64_t *out)
{
    bool negative = *text == '-';
    int64_t sum = 0; /* kept negative: INT64_MIN has no positive twin */
    for (text += *text == '-' || *text == '+'; *text >= '0' && *text <= '9'; text++) {
        if (__builtin_mul_overflow(sum, 10, &sum) || __builtin_sub_overflow(sum, *text - '0', &sum))
            return false;
    }
    *out = sum;
    return negative || !__builtin_sub_overflow(0, sum, out);
}

static int classify(const value *v)
{
    const char *number;
    size_t length;
    int64_t integer;
    bool boolean;
    if (is_missing(v))
        return IS_MISSING;
    if (boolean_of(v->text, &boolean))
        return IS_BOOLEAN;
    int kind = number_of(v->text, v->length, &number, &length);
    return kind & IS_INTEGER && !integer_of(number, &integer) ? kind | IS_TOO_LARGE : kind;
}

/* IS_INTEGER, IS_NUMBER or IS_BOOLEAN for what all its cells are; 0 for text. */
static int type_column(const choice_record *records, size_t count, const value *header, size_t c)
{
    int all = IS_INTEGER | IS_NUMBER | IS_BOOLEAN, any = 0;
    for (size_t i = 0; i < count + (header != NULL); i++) {
        int kind = classify(i < count ? &records[i].cells[c] : &header[c]);
        any |= kind;
        if (kind != IS_MISSING)
            all &= kind;
        else
            all &= ~IS_INTEGER;
    }
    if (any & IS_TOO_LARGE)
        return 0;
    return all & IS_INTEGER ? IS_INTEGER : all & IS_NUMBER ? IS_NUMBER : all & IS_BOOLEAN;
}

static tare_status set_text(arena *a, value *v, const char *text)
{
    char *copy = arena_strndup(a, text, strlen(text));
    *v = (value){.type = VALUE_STRING, .text = copy, .length = strlen(text)};
    return copy ? TARE_OK : TARE_E_MEMORY;
}

/* A double: as text in a prompt, as a number where it is an answer. */
static tare_status set_number(arena *a, value *v, double number, bool answer)
{
    buffer text;
    buffer_init(&text, a->ctx);
    json_write_repr(&text, number);
    tare_status status = text.status;
    if (status == TARE_OK)
        status = set_text(a, v, text.data);
    if (status == TARE_OK && answer) {
        v->type = VALUE_NUMBER;
        v->number = number;
    }
    buffer_free(&text);
    return status;
}

static tare_status set_cell(arena *a, value *v, int type, bool answer)
{
    char text[32];
    const char *number;
    size_t length;
    int64_t integer = 0;
    bool boolean = false;
    if (is_missing(v))
        return set_number(a, v, NAN, answer);
    if (type == IS_NUMBER) {
        number_of(v->text, v->length, &number, &length);
        return set_number(a, v, number_read(number, NULL), answer);
    }
    if (type == 0 || answer)
        return TARE_OK;
    if (type == IS_BOOLEAN) {
        boolean_of(v->text, &boolean);
        return set_text(a, v, boolean ? "True" : "False");
    }
    number_of(v->text, v->length, &number, &length);
    integer_of(number, &integer);
    snprintf(text, sizeof text, "%" PRId64, integer);
    return set_text(a, v, text);
}

tare_status pandas_type_cells(arena *a, choice_record *records, size_t count, const value *header)
{
    tare_status status = TARE_OK;
    for (size_t c = CHOICE_A; c < CHOICE_COLUMNS; c++) {
        int type = type_column(records, count, header, c);
        for (size_t i = 0; i < count; i++)
            TRY(set_cell(a, &records[i].cells[c], type, c == CHOICE_ANSWER));
    }
done:
    return status;
}
