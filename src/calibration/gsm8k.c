/* GSM8K: word problems with numbers for answers (section 5.2). */
#include <string.h>

#include "calibration/json_lines.h"
#include "calibration/text.h"

static const char MARK[] = "####";
enum { MARK_LENGTH = sizeof MARK - 1 };

static tare_status make(tare_context *ctx, const value *record, arena *a, buffer *prompt,
                        const value **ans)
{
    tare_status status = TARE_OK;
    const value *question, *answer;
    TRY(json_line_string(ctx, record, "question", &question));
    TRY(json_line_string(ctx, record, "answer", &answer));
    const char *end = answer->text + answer->length;
    const char *begin = memmem(answer->text, answer->length, MARK, MARK_LENGTH);
    if (!begin) {
        status = TARE_FAIL(ctx, TARE_E_DATA, "key \"answer\" holds no \"%s\"", MARK);
        goto done;
    }
    begin += MARK_LENGTH;
    const char *second = memmem(begin, (size_t)(end - begin), MARK, MARK_LENGTH);
    text_span number = text_strip((text_span){begin, (size_t)((second ? second : end) - begin)});
    value *v = arena_calloc(a, 1, sizeof *v);
    char *copy = v ? arena_strndup(a, number.text, number.length) : NULL;
    if (!copy) {
        status = TARE_E_MEMORY;
        goto done;
    }
    *v = (value){.type = VALUE_STRING, .text = copy, .length = number.length};
    *ans = v;
    buffer_puts(prompt, "Question: ");
    buffer_append(prompt, question->text, question->length);
    buffer_putc(prompt, '\n');
done:
    return status;
}

static tare_status load(calib_input *in, const char *path, void **data, uint64_t *count)
{
    return json_lines_load(in, path, make, data, count);
}

const set_kind set_gsm8k = {
    .name = "gsm8k",
    .rule = RULE_LAST_NUMBER,
    .load = load,
    .make = json_lines_make,
    .free = json_lines_free,
};
