/* CSV (calibration_sets.md section 4.2): UTF-8, separator ',', rows that end at LF, CRLF or CR
 * outside quotes. '"' opens quoting only as the first character of a cell; inside, '""' is one
 * quote; text behind the closing quote belongs to the cell as it is. Rows that are empty or hold
 * only spaces and tabs are left out. Cells are never stripped or retyped. */
#ifndef TARE_FILE_CSV_H
#define TARE_FILE_CSV_H

#include "base/memory.h"

typedef struct csv_cell {
    const char *text; /* zero-terminated */
    size_t length;
} csv_cell;

typedef struct csv_row {
    size_t line;       /* its first one in the file, from 1 */
    size_t first;      /* of its cells */
    size_t count;      /* > 0 */
    bool unterminated; /* a quote was still open at the end of the file */
} csv_row;

typedef struct csv_table {
    tare_context *ctx;
    csv_row *rows;
    size_t count, rows_capacity;
    csv_cell *cells;
    size_t num_cells, cells_capacity;
    char *text;
} csv_table;

/* `what` names the file in errors: TARE_E_FORMAT for text that is not UTF-8 or holds a NUL byte.
 * `out` owns all its memory, and needs no freeing after a failure. */
tare_status csv_parse(tare_context *ctx, const char *data, size_t length, const char *what,
                      csv_table *out);
void csv_free(csv_table *table);

#endif
