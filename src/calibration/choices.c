#include "calibration/choices.h"

#include <string.h>

#include "file/foreign.h"
#include "file/json.h"

/* ---- one file ---- */

static tare_status as_data(tare_status status)
{
    return status == TARE_E_FORMAT ? TARE_E_DATA : status;
}

tare_status choice_file_read(calib_input *in, const char *path, choice_file *f)
{
    arena_init(&f->arena, in->ctx);
    f->table.ctx = in->ctx;
    return input_read(in, path, &f->text);
}

tare_status choice_file_parse(calib_input *in, const char *path, choice_file *f)
{
    tare_status status = TARE_OK;
    csv_table *t = &f->table;
    bool bad;
    TRY(as_data(csv_parse(in->ctx, f->text.text, f->text.length, path, t)));
    if (t->count && t->rows[t->count - 1].unterminated) { /* can only be the last */
        status = TARE_FAIL(in->ctx, TARE_E_DATA, "a quote that is never closed");
        TRY(input_judge(in, status, path, t->rows[--t->count].line, &bad));
        f->skipped++;
    }
    if (t->count == 0)
        status = TARE_FAIL(in->ctx, TARE_E_DATA, "%s: holds no rows", path);
done:
    return status;
}

void choice_file_free(tare_context *ctx, choice_file *f)
{
    if (!f->arena.ctx)
        return; /* was never read */
    csv_free(&f->table);
    mem_free(ctx, f->text.data);
    arena_free(&f->arena);
    *f = (choice_file){0};
}

static value text_value(const char *text, size_t length)
{
    return (value){.type = VALUE_STRING, .text = text, .length = length};
}

/* The cells of a row behind its id; those that it lacks have no text. */
static void take_cells(const choice_file *f, const csv_row *row, size_t id, choice_record *r)
{
    *r = (choice_record){.line = row->line};
    for (size_t c = 0; c < CHOICE_COLUMNS; c++) {
        csv_cell cell = {0};
        if (id + c < row->count)
            cell = f->table.cells[row->first + id + c];
        r->cells[c] = text_value(cell.text, cell.length);
    }
}

static tare_status check_columns(calib_input *in, const char *path, size_t columns)
{
    if (columns < CHOICE_COLUMNS)
        return TARE_FAIL(in->ctx, TARE_E_DATA, "%s: has %zu columns of questions, not %d or more",
                         path, columns, CHOICE_COLUMNS);
    return TARE_OK;
}

static tare_status check_record(const calib_input *in, const choice_record *r, size_t columns,
                                size_t most)
{
    const value *q = &r->cells[CHOICE_QUESTION];
    if (columns > most)
        return TARE_FAIL(in->ctx, TARE_E_DATA, "%zu cells, where the first row has %zu", columns,
                         most);
    for (size_t c = 0; c < CHOICE_COLUMNS && !in->compat; c++) {
        if (!r->cells[c].text)
            return TARE_FAIL(in->ctx, TARE_E_DATA, "only %zu cells", columns);
    }
    if (q->length == 0 || (in->compat && pandas_is_missing(q->text, q->length)))
        return TARE_FAIL(in->ctx, TARE_E_DATA, "the question is empty");
    return TARE_OK;
}

/* Where the first row is a bad record that is skipped, the next one fixes the number of columns. */
static tare_status make_records(calib_input *in, const char *path, bool header, choice_file *f)
{
    tare_status status = TARE_OK;
    const csv_table *t = &f->table;
    size_t most = header ? t->rows[0].count : 0;
    if (!(f->records = arena_alloc_array(&f->arena, t->count, sizeof *f->records)))
        return TARE_E_MEMORY;
    if (header)
        TRY(check_columns(in, path, most - 1));
    for (size_t i = header; i < t->count; i++) {
        const csv_row *row = &t->rows[i];
        choice_record *r = &f->records[f->count];
        size_t limit = most ? most : row->count;
        bool bad;
        TRY(check_columns(in, path, limit - header));
        take_cells(f, row, header, r);
        TRY(input_judge(in, check_record(in, r, row->count, limit), path, row->line, &bad));
        f->skipped += bad;
        f->count += !bad;
        most = bad ? most : limit;
    }
done:
    return status;
}

tare_status choice_file_check(calib_input *in, const char *path, bool header, size_t least,
                              choice_file *f)
{
    tare_status status = TARE_OK;
    choice_record names;
    TRY(make_records(in, path, header, f));
    if (f->count < least) {
        status = TARE_FAIL(in->ctx, TARE_E_DATA, "%s: has %zu records, but %zu are needed", path,
                           f->count, least);
        goto done;
    }
    if (in->compat) {
        take_cells(f, &f->table.rows[0], header, &names);
        TRY(pandas_type_cells(&f->arena, f->records, f->count, header ? names.cells : NULL));
    }
    input_report(in, path, f->skipped);
done:
    return foreign_explain(in->ctx, status, path, f->text.text, f->text.length);
}

tare_status choice_file_load(calib_input *in, const char *path, bool header, size_t least,
                             choice_file *f)
{
    tare_status status = choice_file_read(in, path, f);
    if (status == TARE_OK)
        status = choice_file_parse(in, path, f);
    if (status == TARE_OK)
        status = choice_file_check(in, path, header, least, f);
    return status;
}

/* ---- prompts ---- */

static void put_cell(buffer *out, const value *v)
{
    if (v->type == VALUE_STRING)
        buffer_append(out, v->text, v->length);
    else
        json_write_repr(out, v->number);
}

static void put_question(buffer *out, const choice_record *r)
{
    put_cell(out, &r->cells[CHOICE_QUESTION]);
    for (size_t c = CHOICE_A; c <= CHOICE_D; c++) {
        buffer_printf(out, "\n%c. ", (char)('A' + (c - CHOICE_A)));
        put_cell(out, &r->cells[c]);
    }
    buffer_puts(out, "\nAnswer:");
}

/* A space and each part of the name: two spaces stand behind "about". */
static void put_subject(buffer *out, const char *name)
{
    for (const char *p = name;; p++) {
        size_t n = strcspn(p, "_");
        buffer_putc(out, ' ');
        buffer_append(out, p, n);
        p += n;
        if (!*p)
            break;
    }
}

/* The subject of a question: the last one that begins at or before it. */
static const choice_subject *find_subject(const choice_set *set, uint64_t index)
{
    size_t low = 0, high = set->count - 1;
    while (low < high) {
        size_t middle = high - (high - low) / 2;
        if (set->subjects[middle].first <= index)
            low = middle;
        else
            high = middle - 1;
    }
    return &set->subjects[low];
}

tare_status choice_set_make(tare_context *ctx, const void *data, uint64_t record, arena *a,
                            buffer *prompt, const value **ans)
{
    const choice_set *set = data;
    const choice_subject *s = find_subject(set, record);
    const choice_record *question = &s->questions.records[record - s->first];
    (void)ctx, (void)a;
    if (set->examples > 0) {
        buffer_puts(prompt, set->heading);
        put_subject(prompt, s->name);
        buffer_puts(prompt, ".\n\n");
    }
    for (size_t i = 0; i < set->examples; i++) {
        put_question(prompt, &s->dev.records[i]);
        buffer_putc(prompt, ' ');
        put_cell(prompt, &s->dev.records[i].cells[CHOICE_ANSWER]);
        buffer_puts(prompt, "\n\n");
    }
    put_question(prompt, question);
    *ans = &question->cells[CHOICE_ANSWER];
    return prompt->status;
}
