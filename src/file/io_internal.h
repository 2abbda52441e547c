/* Shared by the files of file/ that talk to the system. */
#ifndef TARE_FILE_IO_INTERNAL_H
#define TARE_FILE_IO_INTERNAL_H

#include "file/io.h"

enum {
    BLOCK = 4096,             /* satisfies the alignment of every disk that Linux drives */
    SMALL_FILE = 1024 * 1024, /* files below go through the page cache */
    SMALL_PART = 128 * 1024   /* reads and writes below too: rows of a table, headers */
};

/* Opens `path` once more, with O_DIRECT; -1 where that is impossible or it is not the file of `fd`.
 */
int io_open_direct(const char *path, int fd, int access);

/* TARE_E_IO "cannot <verb> '<path>': <strerror> (what would help)". */
tare_status io_fail(tare_context *ctx, const char *verb, const char *path, int error);
/* Takes the space of a new file at once where the file system can. */
tare_status io_reserve(tare_context *ctx, int fd, const char *path, uint64_t size);
/* Writes all of [offset, offset+size), which fits int64. */
tare_status io_write(tare_context *ctx, int fd, const char *path, uint64_t offset, const void *data,
                     size_t size);

#endif
