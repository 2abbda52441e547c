/* Shared by io_read.c, io_write.c and folder.c. */
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

#endif
