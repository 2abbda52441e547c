/* Every line is checked when the file is loaded and parsed again when it is drawn: what stays in
 * memory is the text. */
#include "calibration/json_lines.h"

#include <string.h>

#include "calibration/text.h"
#include "file/foreign.h"
#include "file/json.h"

struct json_lines {
    input_text file;
    json_line_make make;
    struct line_span {
        const char *text;
        size_t length;
    } * lines; /* of the good records */
    size_t count, capacity;
};

static tare_status make_line(tare_context *ctx, json_line_make make, struct line_span line,
                             arena *a, buffer *prompt, const value **ans)
{
    const value *record;
    tare_status status = json_parse(ctx, a, line.text, line.length, NULL, JSON_DATA, &record);
    if (status != TARE_OK)
        return status;
    if (record->type != VALUE_MAP)
        return TARE_FAIL(ctx, TARE_E_DATA, "not a JSON object");
    status = make(ctx, record, a, prompt, ans);
    return status == TARE_OK ? prompt->status : status;
}

static tare_status check_line(calib_input *in, json_lines *d, const char *path, size_t number,
                              struct line_span line)
{
    tare_status status = TARE_OK;
    const value *ans;
    arena a;
    buffer prompt;
    bool bad;
    arena_init(&a, in->ctx);
    buffer_init(&prompt, in->ctx);
    status = make_line(in->ctx, d->make, line, &a, &prompt, &ans);
    TRY(input_judge(in, status, path, number, &bad));
    if (bad)
        goto done;
    TRY(mem_grow(in->ctx, (void **)&d->lines, &d->capacity, d->count + 1, sizeof *d->lines));
    d->lines[d->count++] = line;
done:
    buffer_free(&prompt);
    arena_free(&a);
    return status;
}

tare_status json_lines_load(calib_input *in, const char *path, json_line_make make, void **data,
                            uint64_t *count)
{
    tare_status status = TARE_OK;
    size_t number = 0;
    uint64_t skipped = in->skipped;
    json_lines *d = mem_calloc(in->ctx, 1, sizeof *d);
    if (!d)
        return TARE_E_MEMORY;
    d->make = make;
    TRY(input_read(in, path, &d->file));
    for (const char *p = d->file.text, *end = p + d->file.length; p < end;) {
        struct line_span line = {.text = p};
        while (p < end && *p != '\n' && *p != '\r')
            p++;
        line.length = (size_t)(p - line.text);
        TRY(context_check_cancelled(in->ctx));
        number++;
        if (!text_is_blank((text_span){line.text, line.length}))
            TRY(check_line(in, d, path, number, line));
        if (p < end)
            p += *p == '\r' && end - p > 1 && p[1] == '\n' ? 2 : 1;
    }
    /* All lines skipped: perhaps they are none. */
    if (d->count == 0 && in->skipped > skipped && foreign_recognise(d->file.text, d->file.length)) {
        status = TARE_E_DATA;
        goto done;
    }
    input_report(in, path, in->skipped - skipped);
    *data = d;
    *count = d->count;
    d = NULL;
done:
    if (d)
        status = foreign_explain(in->ctx, status, path, d->file.text, d->file.length);
    json_lines_free(in->ctx, d);
    return status;
}

tare_status json_lines_make(tare_context *ctx, const void *data, uint64_t record, arena *a,
                            buffer *prompt, const value **ans)
{
    const json_lines *d = data;
    return make_line(ctx, d->make, d->lines[record], a, prompt, ans);
}

void json_lines_free(tare_context *ctx, void *data)
{
    json_lines *d = data;
    if (!d)
        return;
    mem_free(ctx, d->file.data);
    mem_free(ctx, d->lines);
    mem_free(ctx, d);
}

tare_status json_line_member(tare_context *ctx, const value *record, const char *key,
                             const value **out)
{
    *out = value_get(record, key);
    return *out ? TARE_OK : TARE_FAIL(ctx, TARE_E_DATA, "key \"%s\" is missing", key);
}

tare_status json_line_string(tare_context *ctx, const value *record, const char *key,
                             const value **out)
{
    tare_status status = json_line_member(ctx, record, key, out);
    if (status == TARE_OK && (*out)->type != VALUE_STRING)
        status = TARE_FAIL(ctx, TARE_E_DATA, "key \"%s\" is not a string", key);
    return status;
}
