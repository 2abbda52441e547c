/* The state of a long run in one file, so that another process can go on from it. The same calls
 * write and read it, in the same order:
 *
 *     archive_create(ctx, path, &a)  or  archive_open(ctx, path, digest, &a)
 *     archive_bytes(a, &count, sizeof count); archive_floats(a, &vector, n); …
 *     archive_finish(a, &digest)
 *
 * Numbers are stored as they lie in memory: the file is for the machine that wrote it. */
#ifndef TARE_FILE_ARCHIVE_H
#define TARE_FILE_ARCHIVE_H

#include "file/io.h"

typedef struct archive archive;

tare_status archive_create(tare_context *ctx, const char *path, archive **out);
/* Reads the file once to compare its XXH3-64 with `digest`: TARE_E_DATA if it differs. */
tare_status archive_open(tare_context *ctx, const char *path, uint64_t digest, archive **out);
bool archive_reads(const archive *a);
tare_status archive_bytes(archive *a, void *data, size_t size);
/* *data may be NULL (nothing is there); when reading it is allocated (mem_free) or set to NULL. */
tare_status archive_floats(archive *a, float **data, size_t count);
/* Writing: syncs, and gives the XXH3-64 of the file. Reading: TARE_E_DATA unless all was read.
 * Frees `a` in any case. */
tare_status archive_finish(archive *a, uint64_t *digest);
/* Frees `a`; a file that was being written goes away. NULL is allowed. */
void archive_abandon(archive *a);

#endif
