/* safetensors: whatever the bytes, a header is refused with a message, or its tensors lie side by
 * side and fill the data. The input is taken as a header, and as a whole file that is opened and
 * read. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "file/safetensors.h"

static void check(bool ok)
{
    if (!ok)
        abort();
}

static void check_tensors(const tensor_info *tensors, size_t count, uint64_t at, uint64_t end)
{
    for (size_t i = 0; i < count; i++) {
        const tensor_info *t = &tensors[i];
        check(t->offset == at && t->name[0] && t->rank >= 0 && t->rank <= TENSOR_MAX_RANK);
        check(t->bytes == tensor_elements(t) * dtype_size(t->dtype));
        at += t->bytes;
    }
    check(at == end);
}

/* The size of the data is not part of a header, so it is given. */
static void try_header(tare_context *ctx, const uint8_t *data, size_t size, uint64_t data_bytes)
{
    arena a;
    tensor_info *tensors;
    size_t count;
    arena_init(&a, ctx);
    tare_status status = safetensors_parse_header(ctx, &a, (const char *)data, size, 8 + size,
                                                  data_bytes, "fuzz", &tensors, &count);
    check(status == TARE_OK || (status == TARE_E_FORMAT && !tensors && tare_last_error(ctx)[0]));
    if (status == TARE_OK)
        check_tensors(tensors, count, 8 + size, 8 + size + data_bytes);
    arena_free(&a);
}

static void try_file(tare_context *ctx, const uint8_t *data, size_t size)
{
    char path[64], piece[256];
    safetensors *s;
    int fd = memfd_create("fuzz", MFD_CLOEXEC);
    check(fd >= 0 && write(fd, data, size) == (ssize_t)size);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    tare_status status = safetensors_open(ctx, path, &s);
    check(status == TARE_OK || (status == TARE_E_FORMAT && !s));
    for (size_t i = 0; status == TARE_OK && i < safetensors_count(s); i++) {
        const tensor_info *t = safetensors_at(s, i);
        check(safetensors_find(s, t->name) == t);
        size_t part = t->bytes < sizeof piece ? (size_t)t->bytes : sizeof piece;
        check(safetensors_read(s, t, t->bytes - part, piece, part) == TARE_OK);
    }
    safetensors_close(s);
    close(fd);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    tare_context *ctx;
    check(tare_context_create(&ctx, NULL) == TARE_OK);
    try_file(ctx, data, size);
    if (size > 8) {
        /* The input is a file: its header may as well have another length than it says. */
        try_header(ctx, data + 8, size - 8, 0);
        try_header(ctx, data + 8, size - 8, data[0]);
    }
    check(tare_memory_used(ctx) == 0);
    tare_context_free(ctx);
    return 0;
}
