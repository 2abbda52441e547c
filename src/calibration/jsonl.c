/* Samples as they are: a prompt and an answer a line (section 5.6). */
#include "calibration/json_lines.h"

static tare_status make(tare_context *ctx, const value *record, arena *a, buffer *prompt,
                        const value **ans)
{
    const value *text;
    (void)a;
    tare_status status = json_line_string(ctx, record, "prompt", &text);
    if (status == TARE_OK)
        status = json_line_member(ctx, record, "ans", ans);
    if (status == TARE_OK)
        buffer_append(prompt, text->text, text->length);
    return status;
}

static tare_status load(calib_input *in, const char *path, void **data, uint64_t *count)
{
    return json_lines_load(in, path, make, data, count);
}

const set_kind set_jsonl = {
    .name = "jsonl",
    .rule = RULE_NONE,
    .load = load,
    .make = json_lines_make,
    .free = json_lines_free,
};
