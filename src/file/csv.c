#include "file/csv.h"

#include <string.h>

#include "base/strings.h"
#include "file/foreign.h"

typedef struct parser {
    const char *next, *end;
    char *out; /* unquoted cells, each with a zero behind it in the place of its separator */
    size_t line;
} parser;

/* Takes a line end, if one is next. */
static bool take_line_end(parser *p)
{
    if (p->next == p->end || (*p->next != '\n' && *p->next != '\r'))
        return false;
    p->next += *p->next == '\r' && p->end - p->next > 1 && p->next[1] == '\n' ? 2 : 1;
    p->line++;
    return true;
}

/* The quoted part of a cell, whose opening quote was taken. false if it does not end. */
static bool read_quoted(parser *p)
{
    while (p->next < p->end) {
        const char *start = p->next;
        if (take_line_end(p)) {
            memcpy(p->out, start, (size_t)(p->next - start));
            p->out += p->next - start;
            continue;
        }
        p->next++;
        if (*start == '"') {
            if (p->next == p->end || *p->next != '"')
                return true;
            p->next++;
        }
        *p->out++ = *start;
    }
    return false;
}

/* Reads a cell; *quoted and *open tell whether it began with a quote, and whether that has no end.
 */
static csv_cell read_cell(parser *p, bool *quoted, bool *open)
{
    csv_cell cell = {.text = p->out};
    *quoted = p->next < p->end && *p->next == '"';
    if (*quoted) {
        p->next++;
        *open = !read_quoted(p);
    }
    while (p->next < p->end && *p->next != ',' && *p->next != '\n' && *p->next != '\r')
        *p->out++ = *p->next++;
    cell.length = (size_t)(p->out - cell.text);
    *p->out++ = 0;
    return cell;
}

static tare_status read_row(parser *p, csv_table *t)
{
    tare_status status = TARE_OK;
    csv_row row = {.line = p->line, .first = t->num_cells};
    bool quoted = false;
    for (bool more = true; more;) {
        TRY(mem_grow(t->ctx, (void **)&t->cells, &t->cells_capacity, t->num_cells + 1,
                     sizeof *t->cells));
        t->cells[t->num_cells++] = read_cell(p, &quoted, &row.unterminated);
        more = p->next < p->end && *p->next == ',';
        p->next += more;
    }
    take_line_end(p);
    row.count = t->num_cells - row.first;
    const csv_cell *cell = &t->cells[row.first];
    if (row.count == 1 && !quoted && strspn(cell->text, " \t") == cell->length) {
        t->num_cells = row.first;
        return TARE_OK;
    }
    TRY(mem_grow(t->ctx, (void **)&t->rows, &t->rows_capacity, t->count + 1, sizeof *t->rows));
    t->rows[t->count++] = row;
done:
    return status;
}

/* TARE_E_FORMAT naming the first line that is not clean text. */
static tare_status check_text(tare_context *ctx, const char *data, size_t length, const char *what)
{
    if (utf8_valid(data, length) && !memchr(data, 0, length))
        return TARE_OK;
    size_t line = 1;
    for (const char *p = data, *end = data + length; p < end; line++) {
        const char *stop = memchr(p, '\n', (size_t)(end - p));
        size_t n = (size_t)((stop ? stop : end) - p);
        if (memchr(p, 0, n))
            return TARE_FAIL(ctx, TARE_E_FORMAT, "%s:%zu: a NUL byte", what, line);
        if (!utf8_valid(p, n))
            break;
        p += n + 1;
    }
    return TARE_FAIL(ctx, TARE_E_FORMAT, "%s:%zu: text that is not UTF-8; save it as UTF-8", what,
                     line);
}

tare_status csv_parse(tare_context *ctx, const char *data, size_t length, const char *what,
                      csv_table *out)
{
    tare_status status = TARE_OK;
    *out = (csv_table){.ctx = ctx};
    TRY(check_text(ctx, data, length, what));
    /* A cell is no longer than its source; the last may have no separator for its zero. */
    if (!(out->text = mem_alloc(ctx, length + 1))) {
        status = TARE_E_MEMORY;
        goto done;
    }
    parser p = {.next = data, .end = data + length, .out = out->text, .line = 1};
    while (p.next < p.end)
        TRY(read_row(&p, out));
done:
    if (status != TARE_OK)
        csv_free(out);
    return foreign_explain(ctx, status, what, data, length);
}

void csv_free(csv_table *table)
{
    mem_free(table->ctx, table->rows);
    mem_free(table->ctx, table->cells);
    mem_free(table->ctx, table->text);
    *table = (csv_table){.ctx = table->ctx};
}
