/* Scratch files: what does not fit in memory. Unlinked at once, so that nothing is left behind
 * however the process ends; their space is reserved at once, so that a full disk shows early. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "file/io_internal.h"

struct scratch_file {
    tare_context *ctx;
    char *path; /* for messages */
    int fd;
};

static tare_status open_unnamed(scratch_file *f, uint64_t size)
{
    f->fd = mkostemp(f->path, O_CLOEXEC); /* mode 0600, O_EXCL */
    if (f->fd < 0)
        return io_fail(f->ctx, "create", f->path, errno);
    if (unlink(f->path) != 0)
        return io_fail(f->ctx, "unlink", f->path, errno);
    return io_reserve(f->ctx, f->fd, f->path, size);
}

tare_status scratch_create(tare_context *ctx, const char *folder, uint64_t size, scratch_file **out)
{
    tare_status status = TARE_OK;
    *out = NULL;
    scratch_file *f = mem_calloc(ctx, 1, sizeof *f);
    if (!f)
        return TARE_E_MEMORY;
    *f = (scratch_file){.ctx = ctx, .fd = -1};
    f->path = path_join(ctx, folder, "tare-scratch-XXXXXX");
    TRY(f->path ? TARE_OK : TARE_E_MEMORY);
    TRY(open_unnamed(f, size));
    *out = f;
    f = NULL;
done:
    scratch_free(f);
    return status;
}

tare_status scratch_read(scratch_file *f, uint64_t offset, void *data, size_t size)
{
    for (char *next = data; size > 0;) {
        ssize_t got = pread(f->fd, next, size, (off_t)offset);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return io_fail(f->ctx, "read", f->path, got < 0 ? errno : EIO);
        next += got;
        offset += (uint64_t)got;
        size -= (size_t)got;
    }
    return TARE_OK;
}

tare_status scratch_write(scratch_file *f, uint64_t offset, const void *data, size_t size)
{
    return io_write(f->ctx, f->fd, f->path, offset, data, size);
}

void scratch_free(scratch_file *f)
{
    if (!f)
        return;
    if (f->fd >= 0)
        (void)close(f->fd); /* nobody reads it again */
    mem_free(f->ctx, f->path);
    mem_free(f->ctx, f);
}
