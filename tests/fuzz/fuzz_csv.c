/* CSV: whatever the bytes, the parser ends with a table or a message. A table that is written with
 * every cell in quotes is read back as the same. */
#include <stdlib.h>
#include <string.h>

#include "base/strings.h"
#include "file/csv.h"

static void check(bool ok)
{
    if (!ok)
        abort();
}

static void write_cell(buffer *out, const csv_cell *cell)
{
    buffer_putc(out, '"');
    for (size_t i = 0; i < cell->length; i++)
        buffer_puts(out, cell->text[i] == '"' ? "\"\"" : (char[]){cell->text[i], 0});
    buffer_putc(out, '"');
}

static void write_table(buffer *out, const csv_table *t)
{
    for (size_t i = 0; i < t->count; i++) {
        check(t->rows[i].count > 0 && t->rows[i].line > 0);
        for (size_t c = 0; c < t->rows[i].count; c++) {
            const csv_cell *cell = &t->cells[t->rows[i].first + c];
            check(cell->text[cell->length] == 0 && utf8_valid(cell->text, cell->length));
            if (c)
                buffer_putc(out, ',');
            write_cell(out, cell);
        }
        buffer_putc(out, '\n');
    }
}

static void compare(const csv_table *a, const csv_table *b)
{
    check(a->count == b->count);
    for (size_t i = 0; i < a->count; i++) {
        check(a->rows[i].count == b->rows[i].count && !b->rows[i].unterminated);
        for (size_t c = 0; c < a->rows[i].count; c++) {
            const csv_cell *x = &a->cells[a->rows[i].first + c];
            const csv_cell *y = &b->cells[b->rows[i].first + c];
            check(x->length == y->length && memcmp(x->text, y->text, x->length) == 0);
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    tare_context *ctx;
    csv_table table, again;
    buffer out;
    check(tare_context_create(&ctx, NULL) == TARE_OK);
    buffer_init(&out, ctx);
    tare_status status = csv_parse(ctx, (const char *)data, size, "fuzz", &table);
    check(status == TARE_OK || (status == TARE_E_FORMAT && tare_last_error(ctx)[0]));
    if (status == TARE_OK) {
        write_table(&out, &table);
        buffer_putc(&out, '\n');
        check(csv_parse(ctx, out.data, out.length, "fuzz", &again) == TARE_OK);
        compare(&table, &again);
        csv_free(&again);
        csv_free(&table);
    }
    buffer_free(&out);
    check(tare_memory_used(ctx) == 0);
    tare_context_free(ctx);
    return 0;
}
