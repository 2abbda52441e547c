/* Shared by the files of file/ that talk to the system. */
#ifndef TARE_FILE_IO_INTERNAL_H
#define TARE_FILE_IO_INTERNAL_H

#include "file/io.h"

/* TARE_E_IO "cannot <verb> '<path>': <strerror> (what would help)". */
tare_status io_fail(tare_context *ctx, const char *verb, const char *path, int error);
/* Takes the space of a new file at once where the file system can. */
tare_status io_reserve(tare_context *ctx, int fd, const char *path, uint64_t size);
/* Writes all of [offset, offset+size), which fits int64. */
tare_status io_write(tare_context *ctx, int fd, const char *path, uint64_t offset, const void *data,
                     size_t size);

#endif
