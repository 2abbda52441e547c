#include "file/io.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/number.h"
#include "file/foreign.h"
#include "file/io_internal.h"

enum { PIECE = 4 * 1024 * 1024 }; /* of one direct read */

struct file {
    tare_context *ctx;
    char *path;
    uint64_t size;
    struct timespec modified;
    int fd;             /* buffered */
    int direct_fd;      /* the same file with O_DIRECT, or -1 */
    atomic_bool direct; /* false once the file system refused a direct read */
};

static const char *io_hint(int error)
{
    switch (error) {
    case ENOENT:
        return " (check the path)";
    case EACCES:
    case EPERM:
        return " (check owner and permissions)";
    case ENOSPC:
    case EDQUOT:
        return " (free some space, or choose a folder on another disk)";
    case EROFS:
        return " (choose a folder on a writable disk)";
    case EMFILE:
        return " (raise the limit of open files: ulimit -n)";
    case EEXIST:
        return " (remove it, or choose another name)";
    case EFBIG:
        return " (raise the limit of file sizes: ulimit -f; or write smaller parts)";
    case EIO:
        return " (the disk or its connection has a fault: see dmesg)";
    default:
        return "";
    }
}

tare_status io_fail(tare_context *ctx, const char *verb, const char *path, int error)
{
    return context_fail_errno(ctx, TARE_E_IO, error, "cannot %s '%s': %s%s", verb, path,
                              errno_text(error), io_hint(error));
}

int io_open_direct(const char *path, int fd, int access)
{
#ifdef O_DIRECT
    int direct = open(path, access | O_NONBLOCK | O_CLOEXEC | O_DIRECT);
    struct stat a, b;
    if (direct >= 0 && (fstat(fd, &a) != 0 || fstat(direct, &b) != 0 || a.st_dev != b.st_dev ||
                        a.st_ino != b.st_ino)) {
        close(direct);
        direct = -1;
    }
    return direct;
#else
    (void)path, (void)fd, (void)access;
    return -1;
#endif
}

tare_status file_open(tare_context *ctx, const char *path, file **out)
{
    tare_status status = TARE_OK;
    struct stat st;
    *out = NULL;
    file *f = mem_calloc(ctx, 1, sizeof *f);
    if (!f)
        return TARE_E_MEMORY;
    f->ctx = ctx;
    f->direct_fd = -1;
    /* O_NONBLOCK: opening a FIFO must not wait for a writer. */
    f->fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
    if (f->fd < 0) {
        status = io_fail(ctx, "open", path, errno);
        goto done;
    }
    if (!(f->path = mem_strdup(ctx, path))) {
        status = TARE_E_MEMORY;
        goto done;
    }
    if (fstat(f->fd, &st) != 0) {
        status = io_fail(ctx, "open", path, errno);
        goto done;
    }
    if (!S_ISREG(st.st_mode)) {
        status = context_fail_errno(ctx, TARE_E_IO, S_ISDIR(st.st_mode) ? EISDIR : EINVAL,
                                    "cannot open '%s': it is %s, not a regular file", path,
                                    S_ISDIR(st.st_mode) ? "a folder" : "a device, pipe or socket");
        goto done;
    }
    f->size = (uint64_t)st.st_size;
    f->modified = st.st_mtim;
    if (f->size >= SMALL_FILE)
        f->direct_fd = io_open_direct(path, f->fd, O_RDONLY);
    atomic_init(&f->direct, f->direct_fd >= 0);
    *out = f;
done:
    if (status != TARE_OK)
        file_close(f);
    return status;
}

void file_close(file *f)
{
    if (!f)
        return;
    /* Nothing can be lost by closing a file that was only read. */
    if (f->fd >= 0)
        (void)close(f->fd);
    if (f->direct_fd >= 0)
        (void)close(f->direct_fd);
    mem_free(f->ctx, f->path);
    mem_free(f->ctx, f);
}

uint64_t file_size(const file *f)
{
    return f->size;
}

const char *file_path(const file *f)
{
    return f->path;
}

struct timespec file_modified(const file *f)
{
    return f->modified;
}

tare_status file_stat(const file *f, struct stat *out)
{
    return fstat(f->fd, out) == 0 ? TARE_OK : io_fail(f->ctx, "read", f->path, errno);
}

tare_status file_check_unchanged(const file *f)
{
    struct stat st;
    if (fstat(f->fd, &st) != 0)
        return io_fail(f->ctx, "read", f->path, errno);
    if ((uint64_t)st.st_size == f->size && st.st_mtim.tv_sec == f->modified.tv_sec &&
        st.st_mtim.tv_nsec == f->modified.tv_nsec)
        return TARE_OK;
    return TARE_FAIL(f->ctx, TARE_E_DATA, "'%s' was changed while it was read; start again",
                     f->path);
}

static tare_status fail_truncated(file *f, uint64_t offset, size_t size)
{
    return TARE_FAIL(f->ctx, TARE_E_FORMAT,
                     "'%s' is truncated: %zu bytes at offset %llu do not exist (download or copy "
                     "it again)",
                     f->path, size, (unsigned long long)offset);
}

static tare_status read_buffered(file *f, uint64_t offset, char *data, size_t size)
{
    while (size > 0) {
        size_t want = size < (size_t)1 << 30 ? size : (size_t)1 << 30;
        ssize_t got = pread(f->fd, data, want, (off_t)offset);
        if (got < 0) {
            if (errno == EINTR)
                continue;
            return io_fail(f->ctx, "read", f->path, errno);
        }
        if (got == 0)
            return fail_truncated(f, offset, size);
        data += got;
        offset += (uint64_t)got;
        size -= (size_t)got;
    }
    return TARE_OK;
}

/* One direct read at a block boundary. *got < `need` only where direct reading is over: at the end
 * of the file, after a short read off a block boundary, or when the file system refuses. */
static tare_status read_blocks(file *f, uint64_t offset, char *blocks, size_t size, size_t need,
                               size_t *got)
{
    *got = 0;
    while (*got < need && *got % BLOCK == 0) {
        ssize_t n = pread(f->direct_fd, blocks + *got, size - *got, (off_t)(offset + *got));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EINVAL) {
            atomic_store_explicit(&f->direct, false, memory_order_relaxed);
            break;
        }
        if (n < 0)
            return io_fail(f->ctx, "read", f->path, errno);
        if (n == 0)
            break;
        *got += (size_t)n;
    }
    return TARE_OK;
}

/* Reads as much of [offset, offset+size) as works directly; *done tells how much. The rest is left
 * to the buffered way, which also finds out about the end of the file. */
static tare_status read_direct(file *f, uint64_t offset, char *data, size_t size, size_t *done)
{
    tare_status status = TARE_OK;
    *done = 0;
    size_t lead = (size_t)(offset % BLOCK);
    bool aligned = lead == 0 && (uintptr_t)data % BLOCK == 0;
    /* Rounded up to blocks; lead < BLOCK and no object comes near SIZE_MAX. */
    size_t span = (lead + size + BLOCK - 1) / BLOCK * BLOCK;
    size_t piece = span < PIECE ? span : PIECE;
    char *bounce = NULL, *blocks = NULL;
    if (!aligned) {
        if (!(bounce = mem_alloc(f->ctx, piece + BLOCK)))
            return TARE_E_MEMORY;
        blocks = bounce + (BLOCK - (uintptr_t)bounce % BLOCK) % BLOCK;
    }
    while (*done < size && atomic_load_explicit(&f->direct, memory_order_relaxed)) {
        lead = (size_t)((offset + *done) % BLOCK);
        size_t left = size - *done, got;
        if (aligned) {
            size_t whole = left < PIECE ? left / BLOCK * BLOCK : PIECE;
            if (whole == 0)
                break; /* the last part of a block has no room for all of it */
            TRY(read_blocks(f, offset + *done, data + *done, whole, whole, &got));
            *done += got;
            if (got < whole)
                break;
            continue;
        }
        size_t take = left < piece - lead ? left : piece - lead;
        size_t ask = (lead + take + BLOCK - 1) / BLOCK * BLOCK;
        TRY(read_blocks(f, offset + *done - lead, blocks, ask, lead + take, &got));
        size_t useful = got <= lead ? 0 : (got - lead < take ? got - lead : take);
        memcpy(data + *done, blocks + lead, useful);
        *done += useful;
        if (useful < take)
            break;
    }
done:
    mem_free(f->ctx, bounce);
    return status;
}

bool file_has_data(file *f, uint64_t offset, size_t size)
{
    off_t data = lseek(f->fd, (off_t)offset, SEEK_DATA);
    return data == (off_t)offset && lseek(f->fd, data, SEEK_HOLE) >= (off_t)(offset + size);
}

bool file_is_hole(file *f, uint64_t offset, uint64_t size)
{
    off_t data = lseek(f->fd, (off_t)offset, SEEK_DATA);
    return data < 0 ? errno == ENXIO : (uint64_t)data >= offset + size;
}

/* The bounce buffer of read_direct; a lead and a tail may stand in blocks of their own. */
size_t file_read_bytes(size_t size)
{
    if (size < SMALL_PART)
        return 0;
    return mem_block_bytes((size < PIECE - 2 * BLOCK ? size + 2 * BLOCK : PIECE) + BLOCK);
}

tare_status file_read_at(file *f, uint64_t offset, void *data, size_t size)
{
    size_t done = 0;
    if (offset > f->size || size > f->size - offset)
        return fail_truncated(f, offset, size);
    if (size >= SMALL_PART && atomic_load_explicit(&f->direct, memory_order_relaxed)) {
        tare_status status = read_direct(f, offset, data, size, &done);
        if (status != TARE_OK)
            return status;
    }
    return read_buffered(f, offset + done, (char *)data + done, size - done);
}

size_t file_read_room(size_t size)
{
    return size + 3 * BLOCK; /* to the first boundary, and parts of blocks at both ends */
}

tare_status file_read_in(file *f, uint64_t offset, size_t size, void *room, void **data)
{
    size_t lead = (size_t)(offset % BLOCK), got = 0;
    char *blocks = (char *)room + (BLOCK - (uintptr_t)room % BLOCK) % BLOCK;
    if (offset > f->size || size > f->size - offset)
        return fail_truncated(f, offset, size);
    if (size >= SMALL_PART && atomic_load_explicit(&f->direct, memory_order_relaxed)) {
        size_t span = (lead + size + BLOCK - 1) / BLOCK * BLOCK;
        tare_status status = read_blocks(f, offset - lead, blocks, span, lead + size, &got);
        if (status != TARE_OK)
            return status;
        got = got <= lead ? 0 : got - lead < size ? got - lead : size;
    }
    tare_status status = read_buffered(f, offset + got, blocks + lead + got, size - got);
    *data = blocks + lead;
    if (status == TARE_OK && lead % 8) /* no writer of today aligns its tensors to less */
        *data = memmove(blocks, blocks + lead, size);
    return status;
}

tare_status file_read_all(tare_context *ctx, const char *path, size_t limit, char **data,
                          size_t *length)
{
    tare_status status = TARE_OK;
    file *f = NULL;
    char *text = NULL;
    *data = NULL;
    *length = 0;
    TRY(file_open(ctx, path, &f));
    if (f->size > limit || f->size >= SIZE_MAX) {
        status = TARE_FAIL(ctx, TARE_E_FORMAT, "'%s' has %llu bytes, but at most %zu are accepted",
                           path, (unsigned long long)f->size, limit);
        status = foreign_explain_path(ctx, status, path, FOREIGN_TEXT);
        goto done;
    }
    if (!(text = mem_alloc(ctx, (size_t)f->size + 1))) {
        status = TARE_E_MEMORY;
        goto done;
    }
    TRY(file_read_at(f, 0, text, (size_t)f->size));
    text[f->size] = '\0';
    *data = text;
    *length = (size_t)f->size;
    text = NULL;
done:
    mem_free(ctx, text);
    file_close(f);
    return status;
}
