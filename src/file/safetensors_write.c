#include <stdatomic.h>
#include <string.h>

#include "base/sort.h"
#include "file/json.h"
#include "file/safetensors.h"

enum { MAX_HEADER = 100 * 1000 * 1000 };
#define HEADER_START "{\"__metadata__\":{\"format\":\"pt\"}"

/* One tensor of the file to be written. */
typedef struct slot {
    const tensor_info *info; /* valid while the plan is made */
    const char *name;
    uint64_t offset, bytes;
    _Atomic uint64_t written;
} slot;

/* Where everything stands in the file. */
typedef struct plan {
    buffer header; /* the eight bytes of its length included */
    slot *slots;   /* in the order of the caller */
    size_t count;
    uint64_t size; /* of the file */
} plan;

struct safetensors_writer {
    tare_context *ctx;
    char *path;
    file_writer *file;
    plan plan;
};

static int compare_slots(const void *a, const void *b)
{
    const slot *x = a, *y = b;
    size_t m = dtype_size(x->info->dtype), n = dtype_size(y->info->dtype);
    if (m != n)
        return m > n ? -1 : 1;
    return strcmp(x->name, y->name);
}

static void plan_free(tare_context *ctx, plan *p)
{
    buffer_free(&p->header);
    mem_free(ctx, p->slots);
}

static tare_status check_slot(tare_context *ctx, slot *s)
{
    const tensor_info *info = s->info;
    size_t bytes = dtype_size(info->dtype);
    bool fits = info->rank >= 0 && info->rank <= TENSOR_MAX_RANK;
    for (int i = 0; fits && i < info->rank; i++)
        fits = size_mul(bytes, info->shape[i], &bytes);
    if (!fits)
        return TARE_FAIL(ctx, TARE_E_FORMAT, "tensor '%.300s': its shape cannot be stored",
                         s->name);
    if (!*s->name || strcmp(s->name, "__metadata__") == 0 || !utf8_valid(s->name, strlen(s->name)))
        return TARE_FAIL(ctx, TARE_E_FORMAT, "'%.300s' cannot be the name of a tensor", s->name);
    s->bytes = bytes;
    return TARE_OK;
}

static void write_entry(buffer *header, const slot *s, uint64_t begin)
{
    buffer_putc(header, ',');
    json_write_string(header, s->name, strlen(s->name));
    buffer_printf(header, ":{\"dtype\":\"%s\",\"shape\":[", dtype_name(s->info->dtype));
    for (int i = 0; i < s->info->rank; i++)
        buffer_printf(header, "%s%zu", i ? "," : "", s->info->shape[i]);
    buffer_printf(header, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)begin,
                  (unsigned long long)(begin + s->bytes));
}

/* Pads the header, fills in its length, and moves the offsets behind it. */
static tare_status finish_plan(tare_context *ctx, plan *p, uint64_t data_bytes)
{
    buffer_putc(&p->header, '}');
    while (p->header.status == TARE_OK && p->header.length % 8)
        buffer_putc(&p->header, ' ');
    if (p->header.status != TARE_OK)
        return p->header.status;
    uint64_t length = p->header.length - 8;
    if (length > MAX_HEADER ||
        __builtin_add_overflow(data_bytes, (uint64_t)p->header.length, &p->size))
        return TARE_FAIL(ctx, TARE_E_FORMAT,
                         "too many tensors for one safetensors file (%zu; use smaller parts)",
                         p->count);
    for (int i = 0; i < 8; i++)
        p->header.data[i] = (char)(length >> (8 * i) & 255);
    for (size_t i = 0; i < p->count; i++)
        p->slots[i].offset += p->header.length;
    return TARE_OK;
}

/* plan_free must follow in any case. */
static tare_status plan_make(tare_context *ctx, const tensor_info *tensors, size_t count, plan *p)
{
    tare_status status = TARE_OK;
    memset(p, 0, sizeof *p);
    buffer_init(&p->header, ctx);
    p->slots = mem_calloc(ctx, count, sizeof *p->slots);
    void **order = mem_alloc_array(ctx, count, sizeof *order);
    if (!p->slots || !order) {
        status = TARE_E_MEMORY;
        goto done;
    }
    p->count = count;
    for (size_t i = 0; i < count; i++) {
        p->slots[i].info = &tensors[i];
        p->slots[i].name = tensors[i].name;
        TRY(check_slot(ctx, &p->slots[i]));
        order[i] = &p->slots[i];
    }
    sort_pointers(order, count, compare_slots);
    buffer_append(&p->header, "\0\0\0\0\0\0\0\0", 8);
    buffer_puts(&p->header, HEADER_START);
    uint64_t at = 0;
    for (size_t i = 0; i < count; i++) {
        slot *s = order[i];
        if (i > 0 && compare_slots(order[i - 1], s) == 0) {
            status = TARE_FAIL(ctx, TARE_E_FORMAT, "tensor '%.300s' would be written twice",
                               s->name);
            goto done;
        }
        s->offset = at;
        if (__builtin_add_overflow(at, s->bytes, &at) || at > INT64_MAX) {
            status = TARE_FAIL(ctx, TARE_E_FORMAT, "tensor '%.300s': the file would be too large",
                               s->name);
            goto done;
        }
        write_entry(&p->header, s, s->offset);
    }
    TRY(finish_plan(ctx, p, at));
done:
    mem_free(ctx, order);
    return status;
}

tare_status safetensors_planned_size(tare_context *ctx, const tensor_info *tensors, size_t count,
                                     uint64_t *bytes)
{
    plan p;
    tare_status status = plan_make(ctx, tensors, count, &p);
    *bytes = status == TARE_OK ? p.size : 0;
    plan_free(ctx, &p);
    return status;
}

/* Plans the file; its writer has no file yet. */
static tare_status writer_create(tare_context *ctx, const char *path, const tensor_info *tensors,
                                 size_t count, safetensors_writer **out)
{
    tare_status status = TARE_OK;
    *out = NULL;
    safetensors_writer *w = mem_calloc(ctx, 1, sizeof *w);
    if (!w)
        return TARE_E_MEMORY;
    w->ctx = ctx;
    buffer_init(&w->plan.header, ctx);
    if (!(w->path = mem_strdup(ctx, path))) {
        status = TARE_E_MEMORY;
        goto done;
    }
    status = plan_make(ctx, tensors, count, &w->plan);
    TRY(TARE_WRAP(ctx, status, "%s", path));
    *out = w;
    w = NULL;
done:
    safetensors_abandon(w);
    return status;
}

/* The header's megabytes are better used elsewhere. */
static void drop_header(safetensors_writer *w)
{
    buffer_free(&w->plan.header);
    buffer_init(&w->plan.header, w->ctx);
}

tare_status safetensors_create(tare_context *ctx, const char *path, const tensor_info *tensors,
                               size_t count, safetensors_writer **out)
{
    safetensors_writer *w = NULL;
    tare_status status = TARE_OK;
    *out = NULL;
    TRY(writer_create(ctx, path, tensors, count, &w));
    TRY(file_create(ctx, path, w->plan.size, &w->file));
    TRY(file_append(w->file, w->plan.header.data, w->plan.header.length));
    drop_header(w);
    *out = w;
    w = NULL;
done:
    safetensors_abandon(w);
    return status;
}

tare_status safetensors_reopen(tare_context *ctx, const char *path, const tensor_info *tensors,
                               size_t count, const uint64_t *written, safetensors_writer **out)
{
    safetensors_writer *w = NULL;
    tare_status status = TARE_OK;
    *out = NULL;
    TRY(writer_create(ctx, path, tensors, count, &w));
    TRY(file_reopen(ctx, path, w->plan.size, 0, &w->file));
    TRY(file_append(w->file, w->plan.header.data, w->plan.header.length));
    drop_header(w);
    for (size_t i = 0; i < count; i++)
        atomic_store(&w->plan.slots[i].written, written[i]);
    *out = w;
    w = NULL;
done:
    safetensors_leave(w);
    return status;
}

tare_status safetensors_sync(safetensors_writer *w)
{
    return file_sync(w->file);
}

uint64_t safetensors_place(const safetensors_writer *w, size_t index)
{
    return w->plan.slots[index].offset;
}

tare_status safetensors_write(safetensors_writer *w, size_t index, uint64_t offset,
                              const void *data, size_t size)
{
    if (index >= w->plan.count)
        return TARE_FAIL(w->ctx, TARE_E_FORMAT, "%s: a bug: there is no tensor %zu", w->path,
                         index);
    slot *s = &w->plan.slots[index];
    if (offset > s->bytes || size > s->bytes - offset)
        return TARE_FAIL(w->ctx, TARE_E_FORMAT,
                         "%s: a bug: %zu bytes at %llu do not fit tensor '%.300s' of %llu bytes",
                         w->path, size, (unsigned long long)offset, s->name,
                         (unsigned long long)s->bytes);
    tare_status status = file_write_at(w->file, s->offset + offset, data, size);
    if (status == TARE_OK)
        atomic_fetch_add_explicit(&s->written, size, memory_order_relaxed);
    return TARE_WRAP(w->ctx, status, "tensor '%.300s'", s->name);
}

static int compare_offsets(const void *a, const void *b)
{
    const slot *x = a, *y = b;
    if (x->offset != y->offset)
        return x->offset < y->offset ? -1 : 1;
    return x->bytes < y->bytes ? -1 : x->bytes > y->bytes; /* empty tensors share an offset */
}

tare_status safetensors_rename(safetensors_writer *w, const tensor_info *tensors)
{
    tare_status status = TARE_OK;
    plan *p = &w->plan;
    uint64_t start = p->size;
    void **order = mem_alloc_array(w->ctx, p->count, sizeof *order);
    buffer_init(&p->header, w->ctx);
    TRY(order ? TARE_OK : TARE_E_MEMORY);
    for (size_t i = 0; i < p->count; i++) {
        p->slots[i].info = &tensors[i];
        p->slots[i].name = tensors[i].name;
        order[i] = &p->slots[i];
        start = p->slots[i].offset < start ? p->slots[i].offset : start;
    }
    sort_pointers(order, p->count, compare_offsets);
    buffer_puts(&p->header, HEADER_START);
    for (size_t i = 0; i < p->count; i++) {
        const slot *s = order[i];
        write_entry(&p->header, s, s->offset - start);
    }
    buffer_putc(&p->header, '}');
    while (p->header.status == TARE_OK && p->header.length < start - 8)
        buffer_putc(&p->header, ' ');
    TRY(p->header.status);
    if (p->header.length != start - 8)
        TRY(TARE_FAIL(w->ctx, TARE_E_FORMAT, "%s: a bug: the new names do not fit", w->path));
    TRY(file_write_at(w->file, 8, p->header.data, p->header.length));
done:
    buffer_free(&p->header);
    buffer_init(&p->header, w->ctx);
    mem_free(w->ctx, order);
    return status;
}

static void writer_free(safetensors_writer *w)
{
    plan_free(w->ctx, &w->plan);
    mem_free(w->ctx, w->path);
    mem_free(w->ctx, w);
}

tare_status safetensors_finish(safetensors_writer *w)
{
    tare_status status = TARE_OK;
    for (size_t i = 0; i < w->plan.count; i++) {
        slot *s = &w->plan.slots[i];
        uint64_t written = atomic_load(&s->written);
        if (written != s->bytes) {
            status = TARE_FAIL(w->ctx, TARE_E_FORMAT,
                               "%s: a bug: %llu of the %llu bytes of tensor '%.300s' were written",
                               w->path, (unsigned long long)written, (unsigned long long)s->bytes,
                               s->name);
            goto done;
        }
    }
    file_writer *finished = w->file;
    w->file = NULL;
    TRY(file_finish(finished));
done:
    file_abandon(w->file);
    writer_free(w);
    return status;
}

void safetensors_abandon(safetensors_writer *w)
{
    if (!w)
        return;
    file_abandon(w->file);
    writer_free(w);
}

void safetensors_leave(safetensors_writer *w)
{
    if (!w)
        return;
    file_leave(w->file);
    writer_free(w);
}
