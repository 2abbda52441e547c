/* Shared by npy_read.c and npy_unpickle.c. */
#ifndef TARE_FILE_NPY_INTERNAL_H
#define TARE_FILE_NPY_INTERNAL_H

#include "file/npy.h"

/* The entries of a dict. `key` of an entry is NULL; its text stands in `text` at key_at, zero-
 * terminated. The owner frees entries, key_at (mem_free) and text, also after a failure. */
typedef struct npy_table {
    npy_entry *entries;
    size_t *key_at;
    size_t count;
    buffer text;
} npy_table;

/* Reads the pickle that reaches from `offset` to the end of the file. `table` comes zeroed, its
 * text initialised. */
tare_status npy_unpickle(tare_context *ctx, file *f, uint64_t offset, npy_table *table);

#endif
