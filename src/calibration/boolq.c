/* BoolQ: yes-no questions about a passage (section 5.1). */
#include <math.h>
#include <string.h>

#include "calibration/json_lines.h"
#include "file/json.h"

/* Appends a value as Python's str() prints it. */
static tare_status put_member(tare_context *ctx, const value *record, const char *key, buffer *out)
{
    const value *v;
    tare_status status = json_line_member(ctx, record, key, &v);
    if (status != TARE_OK)
        return status;
    switch (v->type) {
    case VALUE_NULL:
        buffer_puts(out, "None");
        break;
    case VALUE_BOOL:
        buffer_puts(out, v->boolean ? "True" : "False");
        break;
    case VALUE_NUMBER:
        if (isfinite(v->number) || v->text[strspn(v->text, "-0123456789")] == 0)
            json_write_data(out, v, 0, 0);
        else
            json_write_repr(out, v->number);
        break;
    case VALUE_STRING:
        buffer_append(out, v->text, v->length);
        break;
    default:
        return TARE_FAIL(ctx, TARE_E_DATA, "key \"%s\" is a list or an object", key);
    }
    return out->status;
}

static tare_status make(tare_context *ctx, const value *record, arena *a, buffer *prompt,
                        const value **ans)
{
    tare_status status = TARE_OK;
    (void)a;
    TRY(put_member(ctx, record, "title", prompt));
    buffer_puts(prompt, " -- ");
    TRY(put_member(ctx, record, "passage", prompt));
    buffer_puts(prompt, "\nQuestion: ");
    TRY(put_member(ctx, record, "question", prompt));
    buffer_puts(prompt, "?\nAnswer:");
    TRY(json_line_member(ctx, record, "answer", ans));
done:
    return status;
}

static tare_status load(calib_input *in, const char *path, void **data, uint64_t *count)
{
    return json_lines_load(in, path, make, data, count);
}

const set_kind set_boolq = {
    .name = "boolq",
    .rule = RULE_YES_NO,
    .load = load,
    .make = json_lines_make,
    .free = json_lines_free,
};
