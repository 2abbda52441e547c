/* npy dicts: whatever the bytes, a file is refused with a message, or every entry lies inside it
 * and is found by its key. Memory stays in proportion to the file. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "file/npy.h"

static void check(bool ok)
{
    if (!ok)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char path[64], piece[256];
    npy_dict *d;
    tare_context *ctx;
    check(tare_context_create(&ctx, NULL) == TARE_OK);
    int fd = memfd_create("fuzz", MFD_CLOEXEC);
    check(fd >= 0 && write(fd, data, size) == (ssize_t)size);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    tare_status status = npy_open(ctx, path, &d);
    check(status == TARE_OK || (status == TARE_E_FORMAT && !d && tare_last_error(ctx)[0]));
    for (size_t i = 0; status == TARE_OK && i < npy_count(d); i++) {
        const npy_entry *e = npy_at(d, i);
        check(npy_find(d, e->key) == e && e->rank >= 0 && e->rank <= NPY_MAX_RANK);
        size_t bytes = dtype_size(e->dtype);
        for (int k = 0; k < e->rank; k++)
            bytes *= e->shape[k];
        check(e->bytes == bytes && e->offset <= size && e->bytes <= size - e->offset);
        size_t part = bytes < sizeof piece ? bytes : sizeof piece;
        check(npy_read(d, e, bytes - part, piece, part) == TARE_OK);
    }
    npy_close(d);
    check(tare_memory_peak(ctx) < (size_t)1024 * 1024 + 1024 * size);
    check(tare_memory_used(ctx) == 0);
    close(fd);
    tare_context_free(ctx);
    return 0;
}
