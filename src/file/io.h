/* Files: checked, large direct reads; writes that are synced; folders. Every error names the path
 * and what the system said. Only regular files are ever opened (a FIFO or device is refused without
 * blocking). */
#ifndef TARE_FILE_IO_H
#define TARE_FILE_IO_H

#include <sys/stat.h>
#include <time.h>

#include "base/memory.h"
#include "base/strings.h"

typedef struct file file;

/* Opens a regular file for reading (a symbolic link to one is fine). Large reads of large files are
 * direct (O_DIRECT) where the file system allows, in aligned pieces of 4 MiB through a buffer that
 * lives as long as the call; the others go through the page cache. */
tare_status file_open(tare_context *ctx, const char *path, file **out);
void file_close(file *f);
uint64_t file_size(const file *f);
const char *file_path(const file *f);
struct timespec file_modified(const file *f);
tare_status file_stat(const file *f, struct stat *out);
/* TARE_E_DATA if somebody wrote to the file since it was opened. */
tare_status file_check_unchanged(const file *f);
/* Reads exactly `size` bytes at `offset`; the end of the file before that is TARE_E_FORMAT
 * ("truncated"). Thread-safe. */
tare_status file_read_at(file *f, uint64_t offset, void *data, size_t size);
/* The same without a copy on the way: the whole blocks that hold the bytes are read into `room`, of
 * file_read_room(size) bytes, and *data (8-byte aligned) is where they begin in it. For streams
 * whose buffers are used again and again. */
tare_status file_read_in(file *f, uint64_t offset, size_t size, void *room, void **data);
size_t file_read_room(size_t size);

/* Does the range lie on disk, or is part of it a hole of a sparse file? */
bool file_has_data(file *f, uint64_t offset, size_t size);
/* Is the range a hole (and so reads as zeros) throughout? */
bool file_is_hole(file *f, uint64_t offset, uint64_t size);
/* Accounted bytes that a read of `size` bytes needs beside its target, at most. */
size_t file_read_bytes(size_t size);

/* Accounted bytes of a file that is written to, at most. */
size_t file_write_bytes(void);
/* The whole of a regular file, zero-terminated, at most `limit` bytes; *data is freed with
 * mem_free. */
tare_status file_read_all(tare_context *ctx, const char *path, size_t limit, char **data,
                          size_t *length);

typedef struct file_writer file_writer;

/* Creates `path` anew (mode 0666 less the umask, must not exist). `size` > 0 reserves that many
 * bytes, so a full disk shows at once. */
tare_status file_create(tare_context *ctx, const char *path, uint64_t size, file_writer **out);
/* Opens a file that file_create made in an earlier process. Appending goes on at `end`. TARE_E_DATA
 * unless it has `size` bytes; with size 0 at least `end`, and what is beyond is cut off. */
tare_status file_reopen(tare_context *ctx, const char *path, uint64_t size, uint64_t end,
                        file_writer **out);
/* Thread-safe for ranges that do not overlap. The whole blocks of a large range are written
 * directly (O_DIRECT) where the file system allows, through a buffer of 1 MiB: the page cache would
 * keep what nobody reads, and write it back in bursts. */
tare_status file_write_at(file_writer *w, uint64_t offset, const void *data, size_t size);
/* Appends after what was appended before. */
tare_status file_append(file_writer *w, const void *data, size_t size);
/* What was written so far is on the disk. */
tare_status file_sync(file_writer *w);
/* Syncs and closes; frees `w` in any case, and removes the file on failure. */
tare_status file_finish(file_writer *w);
/* Closes and removes the file; NULL is allowed. */
void file_abandon(file_writer *w);
/* Closes the file and leaves it as it is, for file_reopen; NULL is allowed. */
void file_leave(file_writer *w);
/* Puts a file of these bytes, with mode 0640 whatever the umask, in the place of `path`, a real
 * path: written and synced beside it first, so that it is the old file or the new, and nothing else
 * stays after a failure. */
tare_status file_replace(tare_context *ctx, const char *path, const void *data, size_t size);
/* file_create + append + finish. */
tare_status file_write_all(tare_context *ctx, const char *path, const void *data, size_t size);
/* Copies a regular file of at most `limit` bytes to a new file. */
tare_status file_copy(tare_context *ctx, const char *from, const char *to, uint64_t limit);

/* A file of `size` bytes without a name, in `folder`: it goes with the process. Thread-safe for
 * ranges that do not overlap. */
typedef struct scratch_file scratch_file;
tare_status scratch_create(tare_context *ctx, const char *folder, uint64_t size,
                           scratch_file **out);
tare_status scratch_read(scratch_file *f, uint64_t offset, void *data, size_t size);
tare_status scratch_write(scratch_file *f, uint64_t offset, const void *data, size_t size);
void scratch_free(scratch_file *f);

/* Also true for a symbolic link that leads nowhere. */
bool path_exists(const char *path);
bool path_is_folder(const char *path);
/* dir + "/" + name, freed with mem_free; NULL when out of memory. */
char *path_join(tare_context *ctx, const char *dir, const char *name);
/* Resolved path of `path`; of a path that does not exist yet, of its nearest existing parent plus
 * the rest. */
tare_status path_real(tare_context *ctx, const char *path, char **out);
/* TARE_E_USAGE, with the reason, unless a file can be saved as `path`: in a folder that can be
 * written to, in the place of nothing or of a regular file. */
tare_status path_check_place(tare_context *ctx, const char *path);
/* Does real path `inner` equal `outer` or lie below it? */
bool path_contains(const char *outer, const char *inner);
/* Makes the folder (mode 0777 less the umask) and its missing parents. */
tare_status folder_create(tare_context *ctx, const char *path);
/* The same with mode 0700 for the folder itself: whatever lies in it is for its owner alone. */
tare_status folder_create_private(tare_context *ctx, const char *path);
tare_status folder_sync(tare_context *ctx, const char *path);
/* Names in a folder without . and .., sorted by bytes. Free with folder_list_free. */
tare_status folder_list(tare_context *ctx, const char *path, char ***names, size_t *count);
void folder_list_free(tare_context *ctx, char **names, size_t count);
/* rename(2). */
tare_status file_rename(tare_context *ctx, const char *from, const char *to);
/* Removes a folder and what is in it (no symlink is followed); an absent one is no error. */
tare_status folder_remove(tare_context *ctx, const char *path);
/* Removes a file, or a folder with what is in it; an absent one is no error. */
tare_status path_remove(tare_context *ctx, const char *path);
/* Removes what is in a folder but for the names that `keep` wants. */
tare_status folder_clear(tare_context *ctx, const char *path,
                         bool (*keep)(const void *user, const char *name), const void *user);
/* Free bytes on the file system of `path`. */
tare_status folder_free_space(tare_context *ctx, const char *path, uint64_t *bytes);

#endif
