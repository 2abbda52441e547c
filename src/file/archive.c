#include "file/archive.h"

#include <string.h>
#include <xxhash.h>

enum { ARCHIVE_BUFFER = 1024 * 1024 };

struct archive {
    tare_context *ctx;
    file *in;         /* reading */
    file_writer *out; /* writing */
    uint64_t at;      /* reading: of what follows the buffer */
    char *buffer;     /* [ARCHIVE_BUFFER] small pieces on their way */
    size_t start, end;
    XXH3_state_t *hash;
};

static void archive_free(archive *a)
{
    XXH3_freeState(a->hash);
    file_close(a->in);
    file_abandon(a->out);
    mem_free(a->ctx, a->buffer);
    mem_free(a->ctx, a);
}

static tare_status archive_new(tare_context *ctx, archive **out)
{
    archive *a = mem_calloc(ctx, 1, sizeof *a);
    *out = NULL;
    if (!a)
        return TARE_E_MEMORY;
    a->ctx = ctx;
    a->buffer = mem_alloc(ctx, ARCHIVE_BUFFER);
    a->hash = XXH3_createState();
    if (!a->buffer || !a->hash) {
        archive_free(a);
        return TARE_FAIL(ctx, TARE_E_MEMORY, "out of memory: an archive's buffer");
    }
    XXH3_64bits_reset(a->hash);
    *out = a;
    return TARE_OK;
}

tare_status archive_create(tare_context *ctx, const char *path, archive **out)
{
    tare_status status = archive_new(ctx, out);
    if (status != TARE_OK)
        return status;
    status = file_create(ctx, path, 0, &(*out)->out);
    if (status != TARE_OK) {
        archive_free(*out);
        *out = NULL;
    }
    return status;
}

static tare_status check_digest(archive *a, uint64_t digest)
{
    for (uint64_t at = 0, size = file_size(a->in); at < size; at += a->end) {
        a->end = size - at < ARCHIVE_BUFFER ? (size_t)(size - at) : ARCHIVE_BUFFER;
        tare_status status = file_read_at(a->in, at, a->buffer, a->end);
        if (status != TARE_OK)
            return status;
        XXH3_64bits_update(a->hash, a->buffer, a->end);
    }
    a->end = 0;
    if (XXH3_64bits_digest(a->hash) == digest)
        return TARE_OK;
    return TARE_FAIL(a->ctx, TARE_E_DATA, "'%s' is not what was written", file_path(a->in));
}

tare_status archive_open(tare_context *ctx, const char *path, uint64_t digest, archive **out)
{
    tare_status status = archive_new(ctx, out);
    if (status != TARE_OK)
        return status;
    TRY(file_open(ctx, path, &(*out)->in));
    TRY(check_digest(*out, digest));
done:
    if (status != TARE_OK) {
        archive_free(*out);
        *out = NULL;
    }
    return status;
}

bool archive_reads(const archive *a)
{
    return a->in != NULL;
}

static tare_status flush(archive *a)
{
    tare_status status = file_append(a->out, a->buffer, a->end);
    a->end = 0;
    return status;
}

static tare_status write_bytes(archive *a, const void *data, size_t size)
{
    tare_status status = TARE_OK;
    XXH3_64bits_update(a->hash, data, size);
    if (size > ARCHIVE_BUFFER - a->end)
        TRY(flush(a));
    if (size > ARCHIVE_BUFFER)
        return file_append(a->out, data, size);
    memcpy(a->buffer + a->end, data, size);
    a->end += size;
done:
    return status;
}

static tare_status read_bytes(archive *a, char *data, size_t size)
{
    while (size > 0) {
        if (a->start == a->end) {
            uint64_t left = file_size(a->in) - a->at;
            size_t most = left < ARCHIVE_BUFFER ? (size_t)left : ARCHIVE_BUFFER;
            if (most == 0)
                return TARE_FAIL(a->ctx, TARE_E_DATA, "'%s' ends early", file_path(a->in));
            tare_status status = file_read_at(a->in, a->at, a->buffer, most);
            if (status != TARE_OK)
                return status;
            a->at += most;
            a->start = 0;
            a->end = most;
        }
        size_t part = size < a->end - a->start ? size : a->end - a->start;
        memcpy(data, a->buffer + a->start, part);
        a->start += part;
        data += part;
        size -= part;
    }
    return TARE_OK;
}

tare_status archive_bytes(archive *a, void *data, size_t size)
{
    return a->in ? read_bytes(a, data, size) : write_bytes(a, data, size);
}

tare_status archive_floats(archive *a, float **data, size_t count)
{
    tare_status status = TARE_OK;
    bool there = *data != NULL;
    TRY(archive_bytes(a, &there, sizeof there));
    if (a->in) {
        *data = there ? mem_alloc_array(a->ctx, count, sizeof **data) : NULL;
        if (there && !*data)
            return TARE_E_MEMORY;
    }
    if (there)
        TRY(archive_bytes(a, *data, count * sizeof **data));
done:
    return status;
}

tare_status archive_finish(archive *a, uint64_t *digest)
{
    tare_status status = TARE_OK;
    if (a->in) {
        if (a->start != a->end || a->at != file_size(a->in))
            status = TARE_FAIL(a->ctx, TARE_E_DATA, "'%s' holds more than was expected",
                               file_path(a->in));
        goto done;
    }
    TRY(flush(a));
    file_writer *finished = a->out;
    a->out = NULL;
    TRY(file_finish(finished));
    *digest = XXH3_64bits_digest(a->hash);
done:
    archive_free(a);
    return status;
}

void archive_abandon(archive *a)
{
    if (a)
        archive_free(a);
}
