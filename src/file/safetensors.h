/* safetensors: u64 little-endian header length, JSON header, data. Reading checks everything before
 * a byte of data is used: header at most 100 MB, known dtypes, shape product without overflow,
 * dtype*shape = bytes, offsets contiguous from 0 to the end of the file without gaps or overlaps,
 * no duplicate key, no empty name or zero byte in one. All such faults are TARE_E_FORMAT naming
 * file and tensor. */
#ifndef TARE_FILE_SAFETENSORS_H
#define TARE_FILE_SAFETENSORS_H

#include "base/dtype.h"
#include "file/io.h"

enum { TENSOR_MAX_RANK = 8 };

typedef struct tensor_info {
    const char *name; /* belongs to the file handle */
    tare_dtype dtype;
    int rank;
    size_t shape[TENSOR_MAX_RANK];
    uint64_t offset; /* of the data, from the start of the file */
    uint64_t bytes;
} tensor_info;

typedef struct safetensors safetensors;

tare_status safetensors_open(tare_context *ctx, const char *path, safetensors **out);
void safetensors_close(safetensors *s);
const char *safetensors_path(const safetensors *s);
uint64_t safetensors_file_size(const safetensors *s);
/* Time of the last change as the file system tells it, "seconds.nanoseconds". */
void safetensors_modified(const safetensors *s, char *text, size_t length);
/* TARE_E_DATA if the file was written to since it was opened. */
tare_status safetensors_check_unchanged(const safetensors *s);
/* By offset, as they stand in the file (which need not be the order of the header). */
size_t safetensors_count(const safetensors *s);
const tensor_info *safetensors_at(const safetensors *s, size_t index);
/* NULL if absent. */
const tensor_info *safetensors_find(const safetensors *s, const char *name);
/* Reads bytes [offset, offset+size) of the tensor's data. */
tare_status safetensors_read(safetensors *s, const tensor_info *tensor, uint64_t offset, void *data,
                             size_t size);
/* The same by file_read_in: `room` has file_read_room(size) bytes. */
tare_status safetensors_read_in(safetensors *s, const tensor_info *tensor, uint64_t offset,
                                size_t size, void *room, void **data);
/* Does this range of the tensor's data lie on disk (no hole of a sparse file)? */
bool safetensors_has_data(const safetensors *s, const tensor_info *tensor, uint64_t offset,
                          size_t size);
/* Is the tensor's data from `offset` on a hole throughout? */
bool safetensors_is_hole(const safetensors *s, const tensor_info *tensor, uint64_t offset);
/* Number of elements. */
size_t tensor_elements(const tensor_info *tensor);

/* Parses a header alone (for fuzzing and for safetensors_open): `header` [length] is the JSON text,
 * `data_bytes` what follows it. *tensors (sorted by offset) and the names live in `home`. */
tare_status safetensors_parse_header(tare_context *ctx, arena *home, const char *header,
                                     size_t length, uint64_t data_start, uint64_t data_bytes,
                                     const char *what, tensor_info **tensors, size_t *count);

/* Writer of one file whose tensors are all known beforehand. In the file they are ordered by
 * element size (8, 4, 2, 1), then by name; header padded with spaces to a multiple of 8;
 * __metadata__ {"format":"pt"}. */
typedef struct safetensors_writer safetensors_writer;

/* name, dtype, rank and shape of `tensors` are read (names borrowed until finish); offset and bytes
 * are ignored. */
tare_status safetensors_create(tare_context *ctx, const char *path, const tensor_info *tensors,
                               size_t count, safetensors_writer **out);
/* Goes on with a file that create made in an earlier process from the same `tensors`; written[i]
 * bytes of tensor i are there. TARE_E_DATA if it is not that file. */
tare_status safetensors_reopen(tare_context *ctx, const char *path, const tensor_info *tensors,
                               size_t count, const uint64_t *written, safetensors_writer **out);
/* Where the data of tensor `index` begins in the file. */
uint64_t safetensors_place(const safetensors_writer *w, size_t index);
/* What was written so far is on the disk. */
tare_status safetensors_sync(safetensors_writer *w);
/* Writes bytes [offset, offset+size) of tensor `index` (in the order given to create). Thread-safe
 * for disjoint ranges. */
tare_status safetensors_write(safetensors_writer *w, size_t index, uint64_t offset,
                              const void *data, size_t size);
/* Gives tensors other names: `tensors` as given to create, in that order, but for names. All names
 * together must be no longer than before, as the header keeps its size (padded with spaces);
 * TARE_E_FORMAT (a bug) otherwise. The data stays where the first names put it. */
tare_status safetensors_rename(safetensors_writer *w, const tensor_info *tensors);
/* Fails (a bug) unless as many bytes were written to each tensor as it has. Syncs, closes; frees
 * `w` in any case. */
tare_status safetensors_finish(safetensors_writer *w);
void safetensors_abandon(safetensors_writer *w);
/* Closes the file and leaves it, for safetensors_reopen. */
void safetensors_leave(safetensors_writer *w);
/* Total size of the file that create would make, header included. */
tare_status safetensors_planned_size(tare_context *ctx, const tensor_info *tensors, size_t count,
                                     uint64_t *bytes);

#endif
