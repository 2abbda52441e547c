/* The journal of a run: a file in its work folder, one JSON object a line, each line ending with
 * its own XXH3-64 (spec/low_memory.md 1.7). It is appended to and synced, never rewritten: whatever
 * a kill leaves behind its last whole line is dropped. A lock beside it keeps two runs apart. */
#ifndef TARE_FILE_JOURNAL_H
#define TARE_FILE_JOURNAL_H

#include "file/io.h"
#include "file/value.h"

typedef struct journal journal;

/* Makes `folder` (for its owner alone) if need be and takes its lock: TARE_E_FOLDER while another
 * run holds it. Reads the records that an earlier run left. */
tare_status journal_open(tare_context *ctx, const char *folder, journal **out);
/* Gives the lock back; files stay. NULL is allowed. */
void journal_close(journal *j);
const char *journal_folder(const journal *j);
/* Whole records, in order; the trees live as long as the journal. */
size_t journal_count(const journal *j);
const value *journal_at(const journal *j, size_t index);
/* Begins anew: what is in the folder but for the lock goes away. */
tare_status journal_restart(journal *j);
/* Appends a record, JSON text without a line break, and syncs it. */
tare_status journal_add(journal *j, const char *json);
/* On success: removes the folder with all that is in it. */
tare_status journal_remove(journal *j);

#endif
