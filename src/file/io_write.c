#include "file/io.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "file/io_internal.h"

enum { COPY_PIECE = 1024 * 1024, BOUNCE = 1024 * 1024 };

struct file_writer {
    tare_context *ctx;
    char *path;
    int fd;
    uint64_t end; /* of what was appended */
    /* Direct writing; opened by the first large write. */
    pthread_mutex_t lock;
    bool tried;
    int direct_fd;          /* or -1 */
    char *bounce, *aligned; /* BOUNCE bytes at `aligned` */
};

/* fallocate(2), not posix_fallocate(3): where the file system cannot reserve, the latter would
 * write every block. */
tare_status io_reserve(tare_context *ctx, int fd, const char *path, uint64_t size)
{
    if (size > INT64_MAX)
        return io_fail(ctx, "reserve space for", path, EFBIG);
    int failed;
    do
        failed = fallocate(fd, 0, 0, (off_t)size) != 0 ? errno : 0;
    while (failed == EINTR);
    if (failed == EOPNOTSUPP || failed == ENOSYS || failed == EINVAL) {
        do
            failed = ftruncate(fd, (off_t)size) != 0 ? errno : 0;
        while (failed == EINTR);
    }
    if (failed) {
        char verb[64];
        snprintf(verb, sizeof verb, "reserve %llu bytes for", (unsigned long long)size);
        return io_fail(ctx, verb, path, failed);
    }
    return TARE_OK;
}

tare_status file_create(tare_context *ctx, const char *path, uint64_t size, file_writer **out)
{
    tare_status status = TARE_OK;
    *out = NULL;
    file_writer *w = mem_calloc(ctx, 1, sizeof *w);
    if (!w)
        return TARE_E_MEMORY;
    w->ctx = ctx;
    w->fd = w->direct_fd = -1;
    pthread_mutex_init(&w->lock, NULL);
    if (!(w->path = mem_strdup(ctx, path))) {
        status = TARE_E_MEMORY;
        goto done;
    }
    w->fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666);
    if (w->fd < 0) {
        status = io_fail(ctx, "create", path, errno);
        goto done;
    }
    if (size > 0)
        TRY(io_reserve(ctx, w->fd, path, size));
    *out = w;
    w = NULL;
done:
    file_abandon(w);
    return status;
}

tare_status file_reopen(tare_context *ctx, const char *path, uint64_t size, uint64_t end,
                        file_writer **out)
{
    tare_status status = TARE_OK;
    struct stat st;
    *out = NULL;
    file_writer *w = mem_calloc(ctx, 1, sizeof *w);
    if (!w)
        return TARE_E_MEMORY;
    *w = (file_writer){.ctx = ctx, .fd = -1, .direct_fd = -1, .end = end};
    pthread_mutex_init(&w->lock, NULL);
    if (!(w->path = mem_strdup(ctx, path))) {
        status = TARE_E_MEMORY;
        goto done;
    }
    w->fd = open(path, O_WRONLY | O_NOFOLLOW | O_CLOEXEC);
    if (w->fd < 0 || fstat(w->fd, &st) != 0)
        status = io_fail(ctx, "open", path, errno);
    else if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size < end ||
             (size > 0 && (uint64_t)st.st_size != size))
        status = TARE_FAIL(ctx, TARE_E_DATA, "'%s' is not the file that was left", path);
    else if (size == 0 && ftruncate(w->fd, (off_t)end) != 0)
        status = io_fail(ctx, "cut", path, errno);
done:
    if (status == TARE_OK)
        *out = w;
    else
        file_leave(w);
    return status;
}

tare_status io_write(tare_context *ctx, int fd, const char *path, uint64_t offset, const void *data,
                     size_t size)
{
    const char *next = data;
    while (size > 0) {
        size_t want = size < (size_t)1 << 30 ? size : (size_t)1 << 30;
        ssize_t put = pwrite(fd, next, want, (off_t)offset);
        if (put < 0) {
            if (errno == EINTR)
                continue;
            return io_fail(ctx, "write", path, errno);
        }
        if (put == 0) /* never for a regular file; must not become an endless loop */
            return io_fail(ctx, "write", path, EIO);
        next += put;
        offset += (uint64_t)put;
        size -= (size_t)put;
    }
    return TARE_OK;
}

size_t file_write_bytes(void)
{
    return mem_block_bytes(sizeof(file_writer)) + mem_block_bytes(BOUNCE + BLOCK);
}

static tare_status open_direct(file_writer *w)
{
    w->tried = true;
    if (!(w->bounce = mem_alloc(w->ctx, BOUNCE + BLOCK)))
        return TARE_E_MEMORY;
    w->aligned = w->bounce + (BLOCK - (uintptr_t)w->bounce % BLOCK) % BLOCK;
    w->direct_fd = io_open_direct(w->path, w->fd, O_WRONLY);
    return TARE_OK;
}

static void close_direct(file_writer *w)
{
    if (w->direct_fd >= 0)
        (void)close(w->direct_fd); /* a direct write has told its errors already */
    w->direct_fd = -1;
    mem_free(w->ctx, w->bounce);
    w->bounce = NULL;
}

/* Whole blocks at a block boundary; *done tells how many bytes went this way. */
static tare_status write_blocks(file_writer *w, uint64_t offset, const char *data, size_t size,
                                size_t *done)
{
    for (*done = 0; size - *done >= BLOCK && *done % BLOCK == 0;) {
        size_t left = (size - *done) / BLOCK * BLOCK, part = left < BOUNCE ? left : BOUNCE;
        memcpy(w->aligned, data + *done, part);
        ssize_t put = pwrite(w->direct_fd, w->aligned, part, (off_t)(offset + *done));
        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0 && errno == EINVAL) { /* the file system refuses after all */
            close_direct(w);
            break;
        }
        if (put <= 0)
            return io_fail(w->ctx, "write", w->path, put < 0 ? errno : EIO);
        *done += (size_t)put;
    }
    return TARE_OK;
}

/* What is left of [offset, offset+size) after direct writing has done what it can. */
static tare_status write_direct(file_writer *w, uint64_t *offset, const char **data, size_t *size)
{
    size_t head = (size_t)(-*offset % BLOCK), done = 0;
    tare_status status = TARE_OK;
    pthread_mutex_lock(&w->lock);
    if (!w->tried)
        TRY(open_direct(w));
    if (w->direct_fd >= 0) {
        TRY(io_write(w->ctx, w->fd, w->path, *offset, *data, head));
        TRY(write_blocks(w, *offset + head, *data + head, *size - head, &done));
        done += head;
    }
done:
    pthread_mutex_unlock(&w->lock);
    *offset += done;
    *data += done;
    *size -= done;
    return status;
}

tare_status file_write_at(file_writer *w, uint64_t offset, const void *data, size_t size)
{
    const char *next = data;
    uint64_t end;
    if (__builtin_add_overflow(offset, (uint64_t)size, &end) || end > INT64_MAX)
        return io_fail(w->ctx, "write", w->path, EFBIG);
    tare_status status = size < SMALL_PART ? TARE_OK : write_direct(w, &offset, &next, &size);
    return status == TARE_OK ? io_write(w->ctx, w->fd, w->path, offset, next, size) : status;
}

tare_status file_append(file_writer *w, const void *data, size_t size)
{
    tare_status status = file_write_at(w, w->end, data, size);
    if (status == TARE_OK)
        w->end += size;
    return status;
}

static void writer_free(file_writer *w)
{
    close_direct(w);
    pthread_mutex_destroy(&w->lock);
    mem_free(w->ctx, w->path);
    mem_free(w->ctx, w);
}

tare_status file_sync(file_writer *w)
{
    int failed;
    do
        failed = fsync(w->fd) != 0 ? errno : 0;
    while (failed == EINTR);
    return failed ? io_fail(w->ctx, "sync", w->path, failed) : TARE_OK;
}

tare_status file_finish(file_writer *w)
{
    tare_status status = file_sync(w);
    /* Linux has closed the descriptor even when close says EINTR, and the data is synced. */
    if (close(w->fd) != 0 && errno != EINTR && status == TARE_OK)
        status = io_fail(w->ctx, "close", w->path, errno);
    w->fd = -1;
    if (status != TARE_OK)
        (void)unlink(w->path); /* the first error is the one worth telling */
    writer_free(w);
    return status;
}

void file_abandon(file_writer *w)
{
    if (!w)
        return;
    /* The file goes away: what close and unlink say changes nothing. */
    if (w->fd >= 0) {
        (void)close(w->fd);
        (void)unlink(w->path);
    }
    writer_free(w);
}

void file_leave(file_writer *w)
{
    if (!w)
        return;
    if (w->fd >= 0) /* what was not synced is written again */
        (void)close(w->fd);
    writer_free(w);
}

tare_status file_write_all(tare_context *ctx, const char *path, const void *data, size_t size)
{
    tare_status status = TARE_OK;
    file_writer *w = NULL;
    TRY(file_create(ctx, path, size, &w));
    TRY(file_append(w, data, size));
    file_writer *finished = w;
    w = NULL;
    TRY(file_finish(finished));
done:
    file_abandon(w);
    return status;
}

/* A name in the folder of `path` that no file has. */
static tare_status name_beside(tare_context *ctx, const char *path, char **out)
{
    const char *slash = strrchr(path, '/');
    size_t folder = slash ? (size_t)(slash - path) + 1 : 0;
    char *name = mem_alloc(ctx, folder + 64);
    if (!name)
        return TARE_E_MEMORY;
    memcpy(name, path, folder);
    for (unsigned n = 0;; n++) {
        snprintf(name + folder, 64, ".tare-%ld-%u.tmp", (long)getpid(), n);
        if (!path_exists(name))
            break;
    }
    *out = name;
    return TARE_OK;
}

tare_status file_replace(tare_context *ctx, const char *path, const void *data, size_t size)
{
    tare_status status = TARE_OK;
    char *fresh = NULL;
    file_writer *w = NULL;
    bool written = false;
    TRY(name_beside(ctx, path, &fresh));
    TRY(file_create(ctx, fresh, size, &w));
    if (fchmod(w->fd, 0640) != 0) {
        status = io_fail(ctx, "set the mode of", fresh, errno);
        goto done;
    }
    TRY(file_append(w, data, size));
    file_writer *finished = w;
    w = NULL;
    TRY(file_finish(finished));
    written = true;
    TRY(file_rename(ctx, fresh, path));
    written = false;
done:
    file_abandon(w);
    if (written)
        (void)unlink(fresh); /* the first error is the one worth telling */
    mem_free(ctx, fresh);
    return TARE_WRAP(ctx, status, "'%s' was not written", path);
}

tare_status file_copy(tare_context *ctx, const char *from, const char *to, uint64_t limit)
{
    tare_status status = TARE_OK;
    file *source = NULL;
    file_writer *w = NULL;
    char *piece = NULL;
    TRY(file_open(ctx, from, &source));
    uint64_t size = file_size(source);
    if (size > limit) {
        status = TARE_FAIL(ctx, TARE_E_FORMAT, "'%s' has %llu bytes, but at most %llu are accepted",
                           from, (unsigned long long)size, (unsigned long long)limit);
        goto done;
    }
    TRY(file_create(ctx, to, size, &w));
    size_t capacity = size < COPY_PIECE ? (size_t)size : COPY_PIECE;
    if (!(piece = mem_alloc(ctx, capacity ? capacity : 1))) {
        status = TARE_E_MEMORY;
        goto done;
    }
    for (uint64_t at = 0; at < size;) {
        size_t part = size - at < capacity ? (size_t)(size - at) : capacity;
        TRY(file_read_at(source, at, piece, part));
        TRY(file_append(w, piece, part));
        at += part;
    }
    file_writer *finished = w;
    w = NULL;
    TRY(file_finish(finished));
done:
    mem_free(ctx, piece);
    file_abandon(w);
    file_close(source);
    return status;
}
