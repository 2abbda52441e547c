#include <string.h>

#include "file/foreign.h"
#include "file/npy_internal.h"

struct npy_dict {
    tare_context *ctx;
    file *file;
    npy_table table;
    strmap by_key;
};

/* Checks the NPY header; *offset is where the pickle begins. */
static tare_status read_npy_header(npy_dict *d, uint64_t *offset)
{
    static const char expected[] = "{'descr': '|O', 'fortran_order': False, 'shape': (), }";
    const char *path = file_path(d->file);
    const size_t text_length = sizeof expected - 1;
    unsigned char start[10];
    if (file_size(d->file) < sizeof start)
        return TARE_FAIL(d->ctx, TARE_E_FORMAT, "%s: too short for an npy file", path);
    tare_status status = file_read_at(d->file, 0, start, sizeof start);
    if (status != TARE_OK)
        return status;
    if (memcmp(start, "\x93NUMPY\x01\x00", 8) != 0)
        return TARE_FAIL(d->ctx, TARE_E_FORMAT, "%s: not an npy file of version 1.0", path);
    size_t length = start[8] | (size_t)start[9] << 8;
    char *text = mem_alloc(d->ctx, length + 1);
    if (!text)
        return TARE_E_MEMORY;
    status = file_read_at(d->file, sizeof start, text, length);
    if (status == TARE_OK) {
        bool right = length > text_length && memcmp(text, expected, text_length) == 0 &&
                     text[length - 1] == '\n';
        for (size_t i = text_length; right && i < length - 1; i++)
            right = text[i] == ' ';
        if (!right)
            status = TARE_FAIL(d->ctx, TARE_E_FORMAT,
                               "%s: holds no dict of arrays (its npy header differs)", path);
    }
    mem_free(d->ctx, text);
    *offset = sizeof start + length;
    return status;
}

static tare_status map_keys(npy_dict *d)
{
    npy_table *t = &d->table;
    tare_status status = strmap_reserve(&d->by_key, t->count);
    for (size_t i = 0; status == TARE_OK && i < t->count; i++) {
        bool existed = false;
        const char *key = t->entries[i].key = t->text.data + t->key_at[i];
        status = strmap_put(&d->by_key, key, strlen(key), (uint32_t)i, &existed);
        if (status == TARE_OK && existed)
            status = TARE_FAIL(d->ctx, TARE_E_FORMAT, "%s: the key '%.300s' stands twice",
                               file_path(d->file), key);
    }
    return status;
}

tare_status npy_open(tare_context *ctx, const char *path, npy_dict **out)
{
    tare_status status = TARE_OK;
    uint64_t offset = 0;
    *out = NULL;
    npy_dict *d = mem_calloc(ctx, 1, sizeof *d);
    if (!d)
        return TARE_E_MEMORY;
    d->ctx = ctx;
    buffer_init(&d->table.text, ctx);
    strmap_init(&d->by_key, ctx);
    TRY(file_open(ctx, path, &d->file));
    TRY(read_npy_header(d, &offset));
    TRY(npy_unpickle(ctx, d->file, offset, &d->table));
    TRY(map_keys(d));
    *out = d;
    d = NULL;
done:
    npy_close(d);
    return foreign_explain_path(ctx, status, path, FOREIGN_NPY);
}

void npy_close(npy_dict *d)
{
    if (!d)
        return;
    strmap_free(&d->by_key);
    mem_free(d->ctx, d->table.entries);
    mem_free(d->ctx, d->table.key_at);
    buffer_free(&d->table.text);
    file_close(d->file);
    mem_free(d->ctx, d);
}

size_t npy_count(const npy_dict *d)
{
    return d->table.count;
}

const npy_entry *npy_at(const npy_dict *d, size_t index)
{
    return &d->table.entries[index];
}

const npy_entry *npy_find(const npy_dict *d, const char *key)
{
    uint32_t index;
    return strmap_get(&d->by_key, key, strlen(key), &index) ? &d->table.entries[index] : NULL;
}

tare_status npy_read(npy_dict *d, const npy_entry *entry, uint64_t offset, void *data, size_t size)
{
    if (offset > entry->bytes || size > entry->bytes - offset)
        return TARE_FAIL(d->ctx, TARE_E_FORMAT,
                         "%s: '%.300s' has %llu bytes; %zu at %llu were asked for",
                         file_path(d->file), entry->key, (unsigned long long)entry->bytes, size,
                         (unsigned long long)offset);
    tare_status status = file_read_at(d->file, entry->offset + offset, data, size);
    return TARE_WRAP(d->ctx, status, "'%.300s'", entry->key);
}
