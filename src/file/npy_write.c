#include "file/npy_torch.h"

#include <string.h>
#include <xxhash.h>

struct npy_writer {
    tare_context *ctx;
    char *path;
    npy_values values;
    int rank; /* of the current entry, with its shape */
    size_t shape[NPY_MAX_RANK];
    file_writer *file;
    buffer pending;     /* pickle text not yet appended to the file */
    uint64_t left;      /* bytes of the current entry that are still to come */
    uint64_t end;       /* of what the file holds */
    XXH3_state_t *hash; /* of what the file holds */
};

static const char npy_magic[] = "\x93NUMPY\x01";
static const char npy_header[] = "{'descr': '|O', 'fortran_order': False, 'shape': (), }";

/* The pickle opcodes in use; names as in Python's pickletools. */
enum {
    MARK = '(',
    STOP = '.',
    BINBYTES = 'B',
    BINBYTES8 = 0x8e,
    BININT = 'J',
    BININT1 = 'K',
    BININT2 = 'M',
    LONG1 = 0x8a,
    NONE = 'N',
    REDUCE = 'R',
    BINUNICODE = 'X',
    SHORT_BINUNICODE = 0x8c,
    EMPTY_LIST = ']',
    APPEND = 'a',
    BUILD = 'b',
    SETITEM = 's',
    TUPLE = 't',
    EMPTY_TUPLE = ')',
    EMPTY_DICT = '}',
    PROTO = 0x80,
    TUPLE1 = 0x85,
    TUPLE3 = 0x87,
    NEWTRUE = 0x88,
    NEWFALSE = 0x89,
    STACK_GLOBAL = 0x93
};

static void put(buffer *out, int opcode)
{
    buffer_putc(out, (char)opcode);
}

static void put_little_endian(buffer *out, uint64_t value, int bytes)
{
    for (int i = 0; i < bytes; i++)
        put(out, (int)(value >> (8 * i) & 255));
}

static void put_int(buffer *out, int64_t value)
{
    if (value >= 0 && value < 256) {
        put(out, BININT1);
        put_little_endian(out, (uint64_t)value, 1);
    } else if (value >= 0 && value < 65536) {
        put(out, BININT2);
        put_little_endian(out, (uint64_t)value, 2);
    } else if (value >= INT32_MIN && value <= INT32_MAX) {
        put(out, BININT);
        put_little_endian(out, (uint64_t)value, 4);
    } else {
        put(out, LONG1);
        put(out, 8);
        put_little_endian(out, (uint64_t)value, 8);
    }
}

static void put_string(buffer *out, const char *text)
{
    size_t length = strlen(text);
    put(out, length < 256 ? SHORT_BINUNICODE : BINUNICODE);
    put_little_endian(out, length, length < 256 ? 1 : 4);
    buffer_append(out, text, length);
}

/* The bytes themselves follow. */
static void put_bytes_length(buffer *out, uint64_t length)
{
    put(out, length <= UINT32_MAX ? BINBYTES : BINBYTES8);
    put_little_endian(out, length, length <= UINT32_MAX ? 4 : 8);
}

static void put_global(buffer *out, const char *module, const char *name)
{
    put_string(out, module);
    put_string(out, name);
    put(out, STACK_GLOBAL);
}

static void put_shape(buffer *out, int rank, const size_t *shape)
{
    if (rank == 0) {
        put(out, EMPTY_TUPLE);
        return;
    }
    if (rank > 3)
        put(out, MARK);
    for (int i = 0; i < rank; i++)
        put_int(out, (int64_t)shape[i]);
    put(out, rank > 3 ? TUPLE : TUPLE1 + rank - 1);
}

static void put_dtype(buffer *out, const char *code, const char *order, int flags)
{
    put_global(out, "numpy", "dtype");
    put_string(out, code);
    put(out, NEWFALSE);
    put(out, NEWTRUE);
    put(out, TUPLE3);
    put(out, REDUCE);
    put(out, MARK);
    put_int(out, 3);
    put_string(out, order);
    for (int i = 0; i < 3; i++)
        put(out, NONE);
    put_int(out, -1);
    put_int(out, -1);
    put_int(out, flags);
    put(out, TUPLE);
    put(out, BUILD);
}

/* An array up to its payload; end_array follows that. */
static void begin_array(buffer *out, int rank, const size_t *shape, const char *code,
                        const char *order, int flags)
{
    put_global(out, "numpy.core.multiarray", "_reconstruct");
    put_global(out, "numpy", "ndarray");
    put_int(out, 0);
    put(out, TUPLE1);
    put_bytes_length(out, 1);
    buffer_putc(out, 'b');
    put(out, TUPLE3);
    put(out, REDUCE);
    put(out, MARK);
    put_int(out, 1);
    put_shape(out, rank, shape);
    put_dtype(out, code, order, flags);
    put(out, NEWFALSE);
}

static void end_array(buffer *out)
{
    put(out, TUPLE);
    put(out, BUILD);
}

/* A storage of `elements` up to its data, as torch.save puts it. */
static void put_storage_head(buffer *out, tare_dtype dtype, uint64_t elements)
{
    static const char key[] = "\x01\0\0\0"
                              "0",
                      location[] = "\x03\0\0\0"
                                   "cpu";
    buffer_append(out, TORCH_HEAD, sizeof TORCH_HEAD - 1);
    buffer_puts(out, torch_storage_name(dtype));
    buffer_append(out, TORCH_KEY, sizeof TORCH_KEY - 1);
    buffer_append(out, key, sizeof key - 1);
    buffer_append(out, TORCH_LOCATION, sizeof TORCH_LOCATION - 1);
    buffer_append(out, location, sizeof location - 1);
    buffer_append(out, TORCH_ELEMENTS, sizeof TORCH_ELEMENTS - 1);
    put_int(out, (int64_t)elements);
    buffer_append(out, TORCH_KEYS, sizeof TORCH_KEYS - 1);
    buffer_append(out, key, sizeof key - 1);
    buffer_append(out, TORCH_END, sizeof TORCH_END - 1);
    put_little_endian(out, elements, 8);
}

/* A tensor up to its data; end_tensor follows that. */
static void begin_tensor(buffer *out, tare_dtype dtype, uint64_t bytes)
{
    buffer head;
    buffer_init(&head, out->ctx);
    put_storage_head(&head, dtype, bytes / dtype_size(dtype));
    put_global(out, "torch._utils", "_rebuild_tensor_v2");
    put(out, MARK);
    put_global(out, "torch.storage", "_load_from_bytes");
    put_bytes_length(out, head.length + bytes);
    buffer_append(out, head.data, head.length);
    if (head.status != TARE_OK)
        out->status = head.status;
    buffer_free(&head);
}

static void end_tensor(buffer *out, int rank, const size_t *shape)
{
    size_t strides[NPY_MAX_RANK], step = 1;
    for (int i = rank - 1; i >= 0; i--) {
        strides[i] = step;
        step *= shape[i] > 0 ? shape[i] : 1;
    }
    put(out, TUPLE1);
    put(out, REDUCE);
    put_int(out, 0);
    put_shape(out, rank, shape);
    put_shape(out, rank, strides);
    put(out, NEWFALSE);
    put_global(out, "collections", "OrderedDict");
    put(out, EMPTY_TUPLE);
    put(out, REDUCE);
    put(out, TUPLE);
    put(out, REDUCE);
}

/* Magic, version 1.0, length, text; padded so that the pickle begins at a multiple of 64. */
static void put_file_header(buffer *out)
{
    size_t before = sizeof npy_magic + 2; /* the minor version is the magic's closing zero */
    size_t whole = (before + sizeof npy_header + 63) / 64 * 64;
    buffer_append(out, npy_magic, sizeof npy_magic);
    put_little_endian(out, whole - before, 2);
    buffer_puts(out, npy_header);
    while (out->status == TARE_OK && out->length < whole - 1)
        buffer_putc(out, ' ');
    buffer_putc(out, '\n');
}

static tare_status append(npy_writer *w, const void *data, size_t size)
{
    XXH3_64bits_update(w->hash, data, size);
    w->end += size;
    return file_append(w->file, data, size);
}

static tare_status flush(npy_writer *w)
{
    tare_status status = w->pending.status;
    if (status == TARE_OK && w->pending.length > 0)
        status = append(w, w->pending.data, w->pending.length);
    w->pending.length = 0;
    return status;
}

/* A writer without a file. */
static tare_status writer_create(tare_context *ctx, const char *path, npy_values values,
                                 npy_writer **out)
{
    npy_writer *w = mem_calloc(ctx, 1, sizeof *w);
    *out = NULL;
    if (!w)
        return TARE_E_MEMORY;
    w->ctx = ctx;
    w->values = values;
    buffer_init(&w->pending, ctx);
    w->path = mem_strdup(ctx, path);
    w->hash = XXH3_createState();
    if (!w->path || !w->hash) {
        npy_abandon(w);
        return TARE_FAIL(ctx, TARE_E_MEMORY, "out of memory: the writer of %s", path);
    }
    XXH3_64bits_reset(w->hash);
    *out = w;
    return TARE_OK;
}

tare_status npy_create(tare_context *ctx, const char *path, npy_values values, npy_writer **out)
{
    tare_status status = TARE_OK;
    npy_writer *w = NULL;
    *out = NULL;
    TRY(writer_create(ctx, path, values, &w));
    put_file_header(&w->pending);
    put(&w->pending, PROTO);
    put(&w->pending, 4);
    begin_array(&w->pending, 0, NULL, "O8", "|", 63);
    put(&w->pending, EMPTY_LIST);
    put(&w->pending, EMPTY_DICT);
    TRY(w->pending.status);
    TRY(file_create(ctx, path, 0, &w->file));
    *out = w;
    w = NULL;
done:
    npy_abandon(w);
    return status;
}

/* The hash goes on from where the earlier process left it. */
static tare_status hash_again(npy_writer *w, uint64_t end)
{
    enum { PIECE = 1024 * 1024 };
    tare_status status = TARE_OK;
    file *f = NULL;
    char *piece = mem_alloc(w->ctx, PIECE);
    TRY(piece ? TARE_OK : TARE_E_MEMORY);
    TRY(file_open(w->ctx, w->path, &f));
    for (size_t size; w->end < end; w->end += size) {
        size = end - w->end < PIECE ? (size_t)(end - w->end) : PIECE;
        TRY(file_read_at(f, w->end, piece, size));
        XXH3_64bits_update(w->hash, piece, size);
    }
done:
    file_close(f);
    mem_free(w->ctx, piece);
    return status;
}

tare_status npy_reopen(tare_context *ctx, const char *path, npy_values values, uint64_t end,
                       npy_writer **out)
{
    tare_status status = TARE_OK;
    npy_writer *w = NULL;
    *out = NULL;
    TRY(writer_create(ctx, path, values, &w));
    TRY(file_reopen(ctx, path, 0, end, &w->file));
    TRY(hash_again(w, end));
    *out = w;
    w = NULL;
done:
    npy_leave(w);
    return status;
}

tare_status npy_sync(npy_writer *w, uint64_t *end, uint64_t *digest)
{
    tare_status status = TARE_OK;
    TRY(flush(w));
    TRY(file_sync(w->file));
    *end = w->end;
    *digest = XXH3_64bits_digest(w->hash);
done:
    return status;
}

static const char *dtype_code(tare_dtype dtype)
{
    switch (dtype) {
    case TARE_I8:
        return "i1";
    case TARE_I32:
        return "i4";
    case TARE_I64:
        return "i8";
    case TARE_F16:
        return "f2";
    case TARE_F32:
        return "f4";
    default:
        return NULL;
    }
}

static tare_status check_complete(npy_writer *w)
{
    if (w->left == 0)
        return TARE_OK;
    return TARE_FAIL(w->ctx, TARE_E_FORMAT, "%s: a bug: the last entry lacks %llu bytes", w->path,
                     (unsigned long long)w->left);
}

static tare_status end_entry(npy_writer *w)
{
    if (w->values == NPY_TENSORS)
        end_tensor(&w->pending, w->rank, w->shape);
    else
        end_array(&w->pending);
    put(&w->pending, SETITEM);
    return w->pending.status;
}

tare_status npy_begin(npy_writer *w, const char *key, tare_dtype dtype, int rank,
                      const size_t *shape)
{
    tare_status status = check_complete(w);
    if (status != TARE_OK)
        return status;
    bool tensors = w->values == NPY_TENSORS;
    const char *code = tensors ? torch_storage_name(dtype) : dtype_code(dtype);
    size_t bytes = dtype_size(dtype);
    bool fits = rank >= 0 && rank <= NPY_MAX_RANK;
    for (int i = 0; fits && i < rank; i++)
        fits = size_mul(bytes, shape[i], &bytes) && shape[i] <= INT64_MAX;
    if (!code || !fits || bytes > INT64_MAX)
        return TARE_FAIL(w->ctx, TARE_E_FORMAT, "%s: '%.300s': %s has no %s of this shape", w->path,
                         key, tensors ? "torch" : "numpy", code ? "array" : dtype_name(dtype));
    if (!utf8_valid(key, strlen(key)))
        return TARE_FAIL(w->ctx, TARE_E_FORMAT, "%s: the key '%.300s' is not UTF-8", w->path, key);
    put_string(&w->pending, key);
    if (tensors) {
        begin_tensor(&w->pending, dtype, bytes);
    } else {
        begin_array(&w->pending, rank, shape, code, dtype == TARE_I8 ? "|" : "<", 0);
        put_bytes_length(&w->pending, bytes);
    }
    w->rank = rank;
    for (int i = 0; i < rank; i++)
        w->shape[i] = shape[i];
    w->left = bytes;
    return bytes == 0 ? end_entry(w) : w->pending.status;
}

tare_status npy_append(npy_writer *w, const void *data, size_t size)
{
    tare_status status = TARE_OK;
    if (size > w->left)
        return TARE_FAIL(w->ctx, TARE_E_FORMAT, "%s: a bug: %zu bytes too many for an entry",
                         w->path, (size_t)(size - w->left));
    if (size == 0)
        return TARE_OK;
    TRY(flush(w));
    TRY(append(w, data, size));
    w->left -= size;
    if (w->left == 0)
        status = end_entry(w);
done:
    return status;
}

static void writer_free(npy_writer *w)
{
    buffer_free(&w->pending);
    XXH3_freeState(w->hash);
    mem_free(w->ctx, w->path);
    mem_free(w->ctx, w);
}

tare_status npy_finish(npy_writer *w)
{
    tare_status status = TARE_OK;
    TRY(check_complete(w));
    put(&w->pending, APPEND);
    end_array(&w->pending);
    put(&w->pending, STOP);
    TRY(flush(w));
    file_writer *finished = w->file;
    w->file = NULL;
    TRY(file_finish(finished));
done:
    file_abandon(w->file);
    writer_free(w);
    return status;
}

void npy_abandon(npy_writer *w)
{
    if (!w)
        return;
    file_abandon(w->file);
    writer_free(w);
}

void npy_leave(npy_writer *w)
{
    if (!w)
        return;
    file_leave(w->file);
    writer_free(w);
}
