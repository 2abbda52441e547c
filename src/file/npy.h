/* npy files that hold one pickled dict of named arrays or torch tensors:
 * numpy.load(f, allow_pickle=True).item().
 * Written as a stream, entry by entry; read with an unpickler that knows only the opcodes and
 * globals that such files use and nothing else (bytes: output_formats specification, section 6.1).
 */
#ifndef TARE_FILE_NPY_H
#define TARE_FILE_NPY_H

#include "base/dtype.h"
#include "file/io.h"

enum { NPY_MAX_RANK = 8 };

typedef struct npy_writer npy_writer;

/* What the values of the dict are. */
typedef enum npy_values { NPY_ARRAYS, NPY_TENSORS } npy_values;

tare_status npy_create(tare_context *ctx, const char *path, npy_values values, npy_writer **out);
/* Goes on with a file that create made in an earlier process, behind its first `end` bytes (what
 * npy_sync said); TARE_E_DATA if there is no such file. */
tare_status npy_reopen(tare_context *ctx, const char *path, npy_values values, uint64_t end,
                       npy_writer **out);
/* Between two entries: all of them are on the disk, in `end` bytes with that XXH3-64. */
tare_status npy_sync(npy_writer *w, uint64_t *end, uint64_t *digest);
/* Begins the entry `key` -> array of `shape` [rank], C order, dtype one of I8 I32 I64 F16 F32, for
 * tensors also BF16; its data follows in any number of npy_append calls, and must be complete
 * before the next entry or the end (else the call fails: a bug). */
tare_status npy_begin(npy_writer *w, const char *key, tare_dtype dtype, int rank,
                      const size_t *shape);
tare_status npy_append(npy_writer *w, const void *data, size_t size);
/* Ends the pickle, syncs, closes; frees `w` in any case. */
tare_status npy_finish(npy_writer *w);
void npy_abandon(npy_writer *w);
/* Closes the file and leaves it, for npy_reopen. */
void npy_leave(npy_writer *w);

typedef struct npy_entry {
    const char *key;
    tare_dtype dtype;
    bool torch; /* a tensor, not an ndarray */
    int rank;
    size_t shape[NPY_MAX_RANK];
    uint64_t offset, bytes; /* of the raw data in the file */
} npy_entry;

typedef struct npy_dict npy_dict;

/* Reads the structure of a file; data stays on disk. Also read: the same dict as numpy 1 and 2 and
 * torch themselves save it (pickle protocols 3 and 4). Anything outside the whitelist is
 * TARE_E_FORMAT: nothing a file names is ever looked up or run. */
tare_status npy_open(tare_context *ctx, const char *path, npy_dict **out);
void npy_close(npy_dict *d);
/* In file order. */
size_t npy_count(const npy_dict *d);
const npy_entry *npy_at(const npy_dict *d, size_t index);
const npy_entry *npy_find(const npy_dict *d, const char *key);
/* Reads bytes [offset, offset+size) of the entry's data. */
tare_status npy_read(npy_dict *d, const npy_entry *entry, uint64_t offset, void *data, size_t size);

#endif
