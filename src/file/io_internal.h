/* Shared by io_read.c, io_write.c and folder.c. */
#ifndef TARE_FILE_IO_INTERNAL_H
#define TARE_FILE_IO_INTERNAL_H

#include "file/io.h"

/* TARE_E_IO "cannot <verb> '<path>': <strerror> (what would help)". */
tare_status io_fail(tare_context *ctx, const char *verb, const char *path, int error);

#endif
