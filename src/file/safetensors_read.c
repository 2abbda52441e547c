#include <stdio.h>
#include <string.h>

#include "base/sort.h"
#include "file/foreign.h"
#include "file/json.h"
#include "file/safetensors.h"

enum { MAX_HEADER = 100 * 1000 * 1000 };

struct safetensors {
    tare_context *ctx;
    file *file;
    arena arena; /* tensors and their names */
    tensor_info *tensors;
    size_t count;
    strmap by_name;
};

/* One header being parsed. */
typedef struct parser {
    tare_context *ctx;
    json_reader *json;
    const char *what;
    uint64_t data_start, data_bytes;
    void *entries; /* tensor_info[count]; until place_names, `name` is NULL */
    void *name_at; /* size_t[count]: where each name begins in `names` */
    size_t count, entries_capacity, name_at_capacity;
    buffer names; /* zero-terminated, one after the other */
} parser;

static const char *current_name(const parser *p)
{
    return p->names.data + ((const size_t *)p->name_at)[p->count];
}

#define FAIL_TENSOR(p, format, ...)                                                                \
    TARE_FAIL((p)->ctx, TARE_E_FORMAT, "%s: tensor '%.300s': " format, (p)->what, __VA_ARGS__)

static tare_status expect(parser *p, json_token *t, json_kind kind, const char *member)
{
    tare_status status = json_next(p->json, t);
    if (status == TARE_OK && t->kind != kind)
        return FAIL_TENSOR(p, "%s", current_name(p), member);
    return status;
}

static tare_status parse_dtype(parser *p, tensor_info *tensor)
{
    json_token t;
    tare_status status = expect(p, &t, JSON_STRING, "dtype must be a string");
    if (status == TARE_OK && !dtype_from_name(t.text, t.length, &tensor->dtype))
        return FAIL_TENSOR(p, "unknown dtype '%.40s'", current_name(p), t.text);
    return status;
}

/* Reads at most `limit` integers of a list into `out`; *count tells how many there were. */
static tare_status parse_sizes(parser *p, const char *member, uint64_t *out, int limit, int *count)
{
    json_token t;
    tare_status status = expect(p, &t, JSON_LIST_BEGIN, member);
    *count = 0;
    while (status == TARE_OK) {
        status = json_next(p->json, &t);
        if (status != TARE_OK || t.kind == JSON_LIST_END)
            break;
        if (t.kind != JSON_NUMBER || !t.is_integer || t.integer < 0 || *count == limit)
            return FAIL_TENSOR(p, "%s", current_name(p), member);
        out[(*count)++] = (uint64_t)t.integer;
    }
    return status;
}

static tare_status parse_shape(parser *p, tensor_info *tensor)
{
    uint64_t sizes[TENSOR_MAX_RANK];
    tare_status status = parse_sizes(p, "shape must be a list of at most 8 sizes", sizes,
                                     TENSOR_MAX_RANK, &tensor->rank);
    for (int i = 0; status == TARE_OK && i < tensor->rank; i++) {
        tensor->shape[i] = (size_t)sizes[i];
        if (tensor->shape[i] != sizes[i])
            return FAIL_TENSOR(p, "size %llu is too large", current_name(p),
                               (unsigned long long)sizes[i]);
    }
    return status;
}

static tare_status parse_offsets(parser *p, tensor_info *tensor)
{
    const char *rule = "data_offsets must be a list of two sizes";
    uint64_t at[2];
    int count;
    tare_status status = parse_sizes(p, rule, at, 2, &count);
    if (status != TARE_OK)
        return status;
    if (count != 2)
        return FAIL_TENSOR(p, "%s", current_name(p), rule);
    if (at[0] > at[1] || at[1] > p->data_bytes)
        return FAIL_TENSOR(p, "data_offsets [%llu, %llu] lie outside the %llu bytes of data",
                           current_name(p), (unsigned long long)at[0], (unsigned long long)at[1],
                           (unsigned long long)p->data_bytes);
    tensor->offset = at[0];
    tensor->bytes = at[1] - at[0];
    return TARE_OK;
}

static tare_status check_bytes(const parser *p, const tensor_info *tensor)
{
    size_t bytes = dtype_size(tensor->dtype);
    for (int i = 0; i < tensor->rank; i++)
        if (!size_mul(bytes, tensor->shape[i], &bytes))
            return FAIL_TENSOR(p, "%s", current_name(p), "its shape is too large");
    if (bytes != tensor->bytes)
        return FAIL_TENSOR(p, "%s and shape need %zu bytes, data_offsets give %llu",
                           current_name(p), dtype_name(tensor->dtype), bytes,
                           (unsigned long long)tensor->bytes);
    return TARE_OK;
}

/* The value of one tensor's key: a map with dtype, shape and data_offsets, each once. Other members
 * are passed over, as the format's own library does. */
static tare_status parse_tensor(parser *p)
{
    static const char *const members[] = {"dtype", "shape", "data_offsets"};
    tare_status (*const parse[])(parser *, tensor_info *) = {parse_dtype, parse_shape,
                                                             parse_offsets};
    tensor_info tensor = {0};
    bool seen[3] = {false};
    json_token t;
    tare_status status = expect(p, &t, JSON_MAP_BEGIN, "its value must be an object");
    while (status == TARE_OK) {
        status = json_next(p->json, &t);
        if (status != TARE_OK || t.kind == JSON_MAP_END)
            break;
        int m = 0;
        while (m < 3 && (strcmp(t.text, members[m]) != 0 || t.length != strlen(members[m])))
            m++;
        if (m == 3) {
            status = json_skip(p->json);
            continue;
        }
        if (seen[m])
            return FAIL_TENSOR(p, "%s stands twice", current_name(p), members[m]);
        seen[m] = true;
        status = parse[m](p, &tensor);
    }
    if (status != TARE_OK)
        return status;
    for (int m = 0; m < 3; m++)
        if (!seen[m])
            return FAIL_TENSOR(p, "%s is missing", current_name(p), members[m]);
    status = check_bytes(p, &tensor);
    if (status == TARE_OK)
        ((tensor_info *)p->entries)[p->count] = tensor;
    return status;
}

static tare_status parse_metadata(parser *p)
{
    json_token t;
    tare_status status = json_next(p->json, &t);
    if (status == TARE_OK && t.kind == JSON_NULL) /* as if it were absent */
        return TARE_OK;
    bool right = t.kind == JSON_MAP_BEGIN;
    while (status == TARE_OK && right) {
        status = json_next(p->json, &t);
        if (status != TARE_OK || t.kind == JSON_MAP_END)
            return status;
        status = json_next(p->json, &t); /* of the key just read */
        right = t.kind == JSON_STRING;
    }
    if (status != TARE_OK)
        return status;
    return TARE_FAIL(p->ctx, TARE_E_FORMAT,
                     "%s: __metadata__ must be an object of strings, or null", p->what);
}

static tare_status add_tensor(parser *p, const json_token *key)
{
    tare_status status = TARE_OK;
    if (key->length == 0 || memchr(key->text, '\0', key->length))
        return TARE_FAIL(p->ctx, TARE_E_FORMAT, "%s: tensor %zu: its name is %s", p->what, p->count,
                         key->length ? "not text: it holds a zero byte" : "empty");
    TRY(mem_grow(p->ctx, &p->entries, &p->entries_capacity, p->count + 1, sizeof(tensor_info)));
    TRY(mem_grow(p->ctx, &p->name_at, &p->name_at_capacity, p->count + 1, sizeof(size_t)));
    ((size_t *)p->name_at)[p->count] = p->names.length;
    buffer_append(&p->names, key->text, key->length + 1);
    TRY(p->names.status);
    TRY(parse_tensor(p));
    p->count++;
done:
    return status;
}

static tare_status parse_members(parser *p)
{
    json_token t;
    bool metadata = false;
    tare_status status = json_next(p->json, &t);
    if (status == TARE_OK && t.kind != JSON_MAP_BEGIN)
        return TARE_FAIL(p->ctx, TARE_E_FORMAT, "%s: the header must be an object", p->what);
    while (status == TARE_OK) {
        status = json_next(p->json, &t);
        if (status != TARE_OK)
            break;
        if (t.kind == JSON_MAP_END)
            return json_next(p->json, &t); /* JSON_END, or the fault of what follows */
        if (strcmp(t.text, "__metadata__") != 0 || t.length != strlen("__metadata__")) {
            status = add_tensor(p, &t);
            continue;
        }
        if (metadata)
            return TARE_FAIL(p->ctx, TARE_E_FORMAT, "%s: __metadata__ stands twice", p->what);
        metadata = true;
        status = parse_metadata(p);
    }
    return status;
}

/* Moves the names into the arena and points the entries at them. */
static tare_status place_names(parser *p, arena *home)
{
    char *names = arena_alloc(home, p->names.length + 1);
    if (!names)
        return TARE_E_MEMORY;
    if (p->names.length)
        memcpy(names, p->names.data, p->names.length);
    tensor_info *tensors = p->entries;
    for (size_t i = 0; i < p->count; i++)
        tensors[i].name = names + ((size_t *)p->name_at)[i];
    return TARE_OK;
}

static tare_status map_names(tare_context *ctx, const char *what, const tensor_info *tensors,
                             size_t count, strmap *map)
{
    tare_status status = strmap_reserve(map, count);
    for (size_t i = 0; status == TARE_OK && i < count; i++) {
        bool existed = false;
        status = strmap_put(map, tensors[i].name, strlen(tensors[i].name), (uint32_t)i, &existed);
        if (status == TARE_OK && existed)
            return TARE_FAIL(ctx, TARE_E_FORMAT, "%s: tensor '%.300s' stands twice", what,
                             tensors[i].name);
    }
    return status;
}

/* By offset; empty tensors before the one that begins where they are; else in header order. */
static int compare_offsets(const void *a, const void *b)
{
    const tensor_info *x = a, *y = b;
    if (x->offset != y->offset)
        return x->offset < y->offset ? -1 : 1;
    if (x->bytes != y->bytes)
        return x->bytes < y->bytes ? -1 : 1;
    return x < y ? -1 : x > y;
}

/* Puts the tensors into the arena by offset, and checks that they fill the data exactly. */
static tare_status place_tensors(parser *p, arena *home, tensor_info **out)
{
    tare_status status = TARE_OK;
    tensor_info *tensors = p->entries;
    tensor_info *sorted = arena_alloc_array(home, p->count, sizeof *sorted);
    void **order = mem_alloc_array(p->ctx, p->count, sizeof *order);
    if (!sorted || !order) {
        status = TARE_E_MEMORY;
        goto done;
    }
    for (size_t i = 0; i < p->count; i++)
        order[i] = &tensors[i];
    sort_pointers(order, p->count, compare_offsets);
    uint64_t end = 0;
    for (size_t i = 0; i < p->count; i++) {
        sorted[i] = *(const tensor_info *)order[i];
        if (sorted[i].offset != end) {
            status = FAIL_TENSOR(p, "its data begins at %llu, but the data before it ends at %llu",
                                 sorted[i].name, (unsigned long long)sorted[i].offset,
                                 (unsigned long long)end);
            goto done;
        }
        end += sorted[i].bytes; /* <= data_bytes: parse_offsets saw to it */
        sorted[i].offset += p->data_start;
    }
    if (end != p->data_bytes) {
        status = TARE_FAIL(p->ctx, TARE_E_FORMAT,
                           "%s: the tensors end at %llu, but there are %llu bytes of data", p->what,
                           (unsigned long long)end, (unsigned long long)p->data_bytes);
        goto done;
    }
    *out = sorted;
done:
    mem_free(p->ctx, order);
    return status;
}

tare_status safetensors_parse_header(tare_context *ctx, arena *home, const char *header,
                                     size_t length, uint64_t data_start, uint64_t data_bytes,
                                     const char *what, tensor_info **tensors, size_t *count)
{
    tare_status status = TARE_OK;
    parser p = {.ctx = ctx, .what = what, .data_start = data_start, .data_bytes = data_bytes};
    uint64_t file_end;
    strmap map;
    *tensors = NULL;
    *count = 0;
    buffer_init(&p.names, ctx);
    strmap_init(&map, ctx);
    if (length > MAX_HEADER || __builtin_add_overflow(data_start, data_bytes, &file_end)) {
        status = TARE_FAIL(ctx, TARE_E_FORMAT, "%s: the header is too large", what);
        goto done;
    }
    if (length == 0 || header[0] != '{') {
        status = TARE_FAIL(ctx, TARE_E_FORMAT, "%s: the header does not begin with '{'", what);
        goto done;
    }
    TRY(json_reader_create(ctx, header, length, what, JSON_STRICT, &p.json));
    TRY(parse_members(&p));
    TRY(place_names(&p, home));
    TRY(map_names(ctx, what, p.entries, p.count, &map));
    TRY(place_tensors(&p, home, tensors));
    *count = p.count;
done:
    json_reader_free(p.json);
    strmap_free(&map);
    buffer_free(&p.names);
    mem_free(ctx, p.entries);
    mem_free(ctx, p.name_at);
    return status;
}

/* Reads the eight bytes and the JSON text after them; *header is freed with mem_free. */
static tare_status read_header(safetensors *s, char **header, size_t *length)
{
    uint64_t size = file_size(s->file);
    const char *path = file_path(s->file);
    unsigned char raw[8];
    if (size < sizeof raw)
        return TARE_FAIL(s->ctx, TARE_E_FORMAT, "%s: too short for a safetensors file (%llu bytes)",
                         path, (unsigned long long)size);
    tare_status status = file_read_at(s->file, 0, raw, sizeof raw);
    if (status != TARE_OK)
        return status;
    uint64_t n = 0;
    for (int i = 7; i >= 0; i--)
        n = n << 8 | raw[i];
    if (n > MAX_HEADER || n > size - sizeof raw)
        return TARE_FAIL(s->ctx, TARE_E_FORMAT,
                         "%s: no safetensors file, or truncated: header of %llu bytes in a file of "
                         "%llu",
                         path, (unsigned long long)n, (unsigned long long)size);
    *length = (size_t)n;
    if (!(*header = mem_alloc(s->ctx, *length)))
        return TARE_E_MEMORY;
    return file_read_at(s->file, sizeof raw, *header, *length);
}

tare_status safetensors_open(tare_context *ctx, const char *path, safetensors **out)
{
    tare_status status = TARE_OK;
    char *header = NULL;
    size_t length = 0;
    *out = NULL;
    safetensors *s = mem_calloc(ctx, 1, sizeof *s);
    if (!s)
        return TARE_E_MEMORY;
    s->ctx = ctx;
    arena_init(&s->arena, ctx);
    strmap_init(&s->by_name, ctx);
    TRY(file_open(ctx, path, &s->file));
    TRY(read_header(s, &header, &length));
    uint64_t start = 8 + (uint64_t)length;
    TRY(safetensors_parse_header(ctx, &s->arena, header, length, start, file_size(s->file) - start,
                                 path, &s->tensors, &s->count));
    TRY(map_names(ctx, path, s->tensors, s->count, &s->by_name));
    *out = s;
    s = NULL;
done:
    mem_free(ctx, header);
    safetensors_close(s);
    return foreign_explain_path(ctx, status, path, FOREIGN_SAFETENSORS);
}

void safetensors_close(safetensors *s)
{
    if (!s)
        return;
    strmap_free(&s->by_name);
    arena_free(&s->arena);
    file_close(s->file);
    mem_free(s->ctx, s);
}

const char *safetensors_path(const safetensors *s)
{
    return file_path(s->file);
}

void safetensors_modified(const safetensors *s, char *text, size_t length)
{
    struct timespec t = file_modified(s->file);
    snprintf(text, length, "%lld.%09ld", (long long)t.tv_sec, t.tv_nsec);
}

tare_status safetensors_check_unchanged(const safetensors *s)
{
    return file_check_unchanged(s->file);
}

uint64_t safetensors_file_size(const safetensors *s)
{
    return file_size(s->file);
}

size_t safetensors_count(const safetensors *s)
{
    return s->count;
}

const tensor_info *safetensors_at(const safetensors *s, size_t index)
{
    return &s->tensors[index];
}

const tensor_info *safetensors_find(const safetensors *s, const char *name)
{
    uint32_t index;
    return strmap_get(&s->by_name, name, strlen(name), &index) ? &s->tensors[index] : NULL;
}

bool safetensors_has_data(const safetensors *s, const tensor_info *tensor, uint64_t offset,
                          size_t size)
{
    return file_has_data(s->file, tensor->offset + offset, size);
}

bool safetensors_is_hole(const safetensors *s, const tensor_info *tensor, uint64_t offset)
{
    return file_is_hole(s->file, tensor->offset + offset, tensor->bytes - offset);
}

static tare_status check_range(safetensors *s, const tensor_info *tensor, uint64_t offset,
                               size_t size)
{
    if (offset <= tensor->bytes && size <= tensor->bytes - offset)
        return TARE_OK;
    return TARE_FAIL(s->ctx, TARE_E_FORMAT,
                     "%s: tensor '%.300s' has %llu bytes; %zu at %llu were asked for",
                     file_path(s->file), tensor->name, (unsigned long long)tensor->bytes, size,
                     (unsigned long long)offset);
}

tare_status safetensors_read(safetensors *s, const tensor_info *tensor, uint64_t offset, void *data,
                             size_t size)
{
    tare_status status = check_range(s, tensor, offset, size);
    if (status != TARE_OK)
        return status;
    status = file_read_at(s->file, tensor->offset + offset, data, size);
    return TARE_WRAP(s->ctx, status, "tensor '%.300s'", tensor->name);
}

tare_status safetensors_read_in(safetensors *s, const tensor_info *tensor, uint64_t offset,
                                size_t size, void *room, void **data)
{
    tare_status status = check_range(s, tensor, offset, size);
    if (status != TARE_OK)
        return status;
    status = file_read_in(s->file, tensor->offset + offset, size, room, data);
    return TARE_WRAP(s->ctx, status, "tensor '%.300s'", tensor->name);
}

size_t tensor_elements(const tensor_info *tensor)
{
    size_t elements = 1;
    for (int i = 0; i < tensor->rank; i++)
        elements *= tensor->shape[i];
    return elements;
}
