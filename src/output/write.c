/* The data of declared tensors, on its way into the files of every folder. */
#include <string.h>

#include "output/output_internal.h"
#include "tensor/convert.h"

static tare_status write_planned(output_folder *f, const planned_tensor *t, uint64_t offset,
                                 const void *data, size_t size)
{
    weight_file *w = &f->files[t->file];
    tare_status status = TARE_OK;
    TRY(safetensors_write(w->writer, t->index, offset, data, size));
    w->bytes_left -= size;
    if (w->bytes_left == 0) { /* complete: give its descriptor back */
        safetensors_writer *writer = w->writer;
        if (w->has_slots)
            TRY(safetensors_rename(writer, w->tensors));
        w->writer = NULL;
        TRY(safetensors_finish(writer));
    }
done:
    return status;
}

tare_status output_write_tensor(output *o, output_folder *f, const planned_tensor *t,
                                uint64_t offset, const void *data, size_t size)
{
    tare_status status = TARE_OK;
    if (f->has_files) {
        if (o->options.journal) /* while the writer still knows where the tensor lies */
            TRY(output_note_range(o, f, t, offset, data, size));
        TRY(write_planned(f, t, offset, data, size));
    }
    if (f->has_numpy && !t->not_numpy)
        TRY(output_numpy_write(o, f, &t->info, t->role, offset, data, size));
done:
    return status;
}

output_unit *output_find_unit(output *o, const strmap *map, const char *name, unit_kind kind)
{
    uint32_t index;
    if (!o->begun || !strmap_get(map, name, strlen(name), &index) || o->units[index].kind != kind)
        return NULL;
    return &o->units[index];
}

tare_status output_write_float(output *o, const char *name, uint64_t offset, const void *data,
                               size_t size)
{
    output_unit *u = output_find_unit(o, &o->floats, name, UNIT_FLOAT);
    tare_status status = TARE_OK;

    if (!u)
        return TARE_FAIL(o->ctx, TARE_E_USAGE, "tensor %s was not declared for the output", name);
    if (offset != u->written || size > u->tensor.bytes - u->written)
        return TARE_FAIL(o->ctx, TARE_E_USAGE, "tensor %s: written out of order or beyond its end",
                         name);
    for (size_t i = 0; i < o->num_folders && size > 0; i++) {
        output_folder *f = &o->folders[i];
        TRY(output_write_tensor(o, f, &f->tensors[u->first[i]], offset, data, size));
    }
    if (o->options.tape)
        TRY(output_tape_float(o, u, offset, data, size));
    u->written += size;
    u->complete = u->written == u->tensor.bytes;
done:
    return TARE_WRAP(o->ctx, status, "%s", name);
}

/* x, which is representable in `dtype` unless that is I64: a deq_scale, kept as the bits of its
 * FP32 value. */
static void store_value(tare_dtype dtype, float x, void *at)
{
    if (dtype == TARE_I64) {
        int32_t bits;
        memcpy(&bits, &x, sizeof bits);
        memcpy(at, &(int64_t){bits}, sizeof(int64_t));
    } else if (dtype == TARE_I8) { /* a zero point: integral */
        memcpy(at, &(int8_t){(int8_t)x}, sizeof(int8_t));
    } else if (dtype == TARE_BF16) {
        memcpy(at, &(uint16_t){float_to_bf16(x)}, sizeof(uint16_t));
    } else if (dtype == TARE_F16) {
        memcpy(at, &(uint16_t){float_to_fp16(x)}, sizeof(uint16_t));
    } else {
        memcpy(at, &x, sizeof x);
    }
}

/* Elements of a tensor from FP32 values: `count` is their number, or 1 that is repeated; NULL:
 * zeros. */
static void fill_small(const tensor_info *t, const float *values, size_t count, char *out)
{
    size_t elements = tensor_elements(t), width = dtype_size(t->dtype);
    for (size_t i = 0; i < elements; i++)
        store_value(t->dtype, values ? values[count == 1 ? 0 : i] : 0.0f, out + i * width);
}

/* What a linear's parts become on their way into files. */
typedef struct part_room {
    void *small;  /* [count] of 8 bytes */
    char *packed; /* rows of packed_words, or pairs of rows of 4 bits; NULL: no folder holds any */
    float *scale_bias;
    int64_t shape[2];
} part_room;

/* [count,k] integers as words of four (packed_words). */
static void pack_rows(const int8_t *q, size_t count, size_t k, char *out)
{
    size_t row_bytes = packed_words(k) * sizeof(uint32_t);
    for (size_t i = 0; i < count; i++, q += k, out += row_bytes) {
        for (size_t j = 0; j < k; j++)
            out[j] = (char)(q[j] ^ INT8_MIN);
        memset(out + k, 0, row_bytes - k);
    }
}

/* Two's complement nibbles, of each two rows the first one low (spec/output_formats.md 5.2). */
static void pack_int4(const int8_t *q, size_t count, size_t k, char *out)
{
    for (size_t i = 0; i < count / 2; i++, q += 2 * k, out += k) {
        for (size_t j = 0; j < k; j++)
            out[j] = (char)((q[j] & 15) | (uint8_t)q[k + j] << 4);
    }
}

/* 8 * sum of the dequantized weights, slice by slice: the kernel reads nibbles as unsigned. */
static void sum_int4(const int8_t *q, const float *scales, size_t count, const linear_form *form,
                     float *out)
{
    size_t width = form->k / form->slices;
    for (size_t i = 0; i < count * form->slices; i++, q += width) {
        int64_t sum = 0;
        for (size_t j = 0; j < width; j++)
            sum += q[j];
        out[i] = (float)(8.0 * (double)sum * (double)scales[i / form->slices]);
    }
}

static tare_status make_int4(output *o, const linear_form *form, const linear_parts *p,
                             part_room *room)
{
    room->packed = mem_alloc_array(o->ctx, p->count / 2, form->k);
    room->scale_bias = mem_alloc_array(o->ctx, p->count * form->slices, sizeof(float));
    if (!room->packed || !room->scale_bias)
        return TARE_E_MEMORY;
    pack_int4(p->data[TENSOR_WEIGHT], p->count, form->k, room->packed);
    sum_int4(p->data[TENSOR_WEIGHT], p->data[TENSOR_WEIGHT_SCALE], p->count, form,
             room->scale_bias);
    return TARE_OK;
}

static tare_status make_room(output *o, const linear_form *form, const linear_parts *p,
                             part_room *room)
{
    tensor_info packed;
    bool packs = (o->options.save & SAVE_COMPRESSED_TENSORS) &&
                 linear_tensor(LAYOUT_COMPRESSED_TENSORS, &o->options.num, form,
                               TENSOR_WEIGHT_PACKED, &packed);
    *room = (part_room){.shape = {(int64_t)form->n, (int64_t)form->k}};
    if (!(room->small = mem_alloc_array(o->ctx, p->count, sizeof(int64_t))))
        return TARE_E_MEMORY;
    if (form_is_int4(form))
        return make_int4(o, form, p, room);
    if (!packs)
        return TARE_OK;
    room->packed = mem_alloc_array(o->ctx, p->count * packed_words(form->k), sizeof(uint32_t));
    if (!room->packed)
        return TARE_E_MEMORY;
    pack_rows(p->data[TENSOR_WEIGHT], p->count, form->k, room->packed);
    return TARE_OK;
}

/* The data of (rows of) a tensor: one of the parts, or made of one. */
static const void *part_data(const tensor_info *t, tensor_role role, const linear_form *form,
                             const linear_parts *p, const part_room *room)
{
    tensor_role part = role == TENSOR_INPUT_ZERO_POINT ? TENSOR_INPUT_OFFSET : role;
    switch (role) {
    case TENSOR_WEIGHT:
        return form_is_int4(form) ? room->packed : p->data[role];
    case TENSOR_BIAS:
    case TENSOR_QUANT_BIAS:
        return p->data[role];
    case TENSOR_SCALE_BIAS:
        return room->scale_bias;
    case TENSOR_WEIGHT_PACKED:
        return room->packed;
    case TENSOR_WEIGHT_SHAPE:
        return room->shape;
    default:
        break;
    }
    fill_small(t, p->data[part], part_bytes(form, part, p->count) / sizeof(float), room->small);
    return room->small;
}

/* What is not by row, a single scale among it, goes with the last rows. */
static tare_status write_part(output *o, output_folder *f, const planned_tensor *t,
                              const linear_form *form, const linear_parts *p, const part_room *room)
{
    bool int4 = t->role == TENSOR_WEIGHT && form_is_int4(form);
    size_t height = int4 ? 2 : 1; /* rows of the linear in one of the tensor */
    bool by_row = part_is_by_row(t->role) && t->info.shape[0] == form->n / height;
    tensor_info rows = t->info;
    uint64_t offset = 0;
    if (!by_row && p->first + p->count < form->n)
        return TARE_OK;
    if (by_row) {
        uint64_t row_bytes = t->info.bytes / t->info.shape[0];
        rows.shape[0] = p->count / height;
        rows.bytes = row_bytes * rows.shape[0];
        offset = row_bytes * (p->first / height);
    }
    return output_write_tensor(o, f, t, offset, part_data(&rows, t->role, form, p, room),
                               rows.bytes);
}

static tare_status write_parts(output *o, const output_unit *u, const linear_parts *p,
                               const part_room *room)
{
    tare_status status = TARE_OK;
    for (size_t i = 0; i < o->num_folders; i++) {
        output_folder *f = &o->folders[i];
        const planned_tensor *t = &f->tensors[u->first[i]];
        for (int role = 0; role < TENSOR_COUNT; role++) {
            tensor_info info;
            if (linear_tensor(f->layout, &o->options.num, &u->linear, (tensor_role)role, &info))
                TRY(write_part(o, f, t++, &u->linear, p, room));
        }
    }
done:
    return status;
}

/* The next rows of the linear, and the parts that come with them? */
static bool parts_fit(const output_unit *u, const linear_parts *p)
{
    const linear_form *form = &u->linear;
    if (u->complete || p->count == 0 || p->first != u->written || p->count > form->n - u->written)
        return false;
    if (form_is_int4(form) && p->count % 2 != 0)
        return false;
    for (int role = 0; role < TENSOR_COUNT; role++) {
        bool due = form_has_part(form, (tensor_role)role) &&
                   (part_is_by_row((tensor_role)role) || p->first + p->count == form->n);
        bool optional = due && role == TENSOR_WEIGHT_OFFSET;
        if ((p->data[role] != NULL) != due && !optional)
            return false;
    }
    return true;
}

tare_status output_write_linear(output *o, const char *module, const linear_parts *parts)
{
    output_unit *u = output_find_unit(o, &o->linears, module, UNIT_LINEAR);
    tare_status status = TARE_OK;
    part_room room = {0};

    if (!u)
        return TARE_FAIL(o->ctx, TARE_E_USAGE, "linear %s was not declared for the output", module);
    if (!parts_fit(u, parts))
        return TARE_FAIL(o->ctx, TARE_E_USAGE, "linear %s differs from what was declared", module);
    TRY(make_room(o, &u->linear, parts, &room));
    TRY(write_parts(o, u, parts, &room));
    if (o->options.tape)
        TRY(output_tape_linear(o, u, parts));
    u->written += parts->count;
    u->complete = u->written == u->linear.n;
done:
    mem_free(o->ctx, room.small);
    mem_free(o->ctx, room.packed);
    mem_free(o->ctx, room.scale_bias);
    return TARE_WRAP(o->ctx, status, "%s", module);
}

tare_status output_open_files(output *o)
{
    tare_status status = TARE_OK;
    char *path = NULL;
    for (size_t i = 0; i < o->num_folders; i++) {
        output_folder *f = &o->folders[i];
        for (size_t j = 0; f->has_files && j < f->num_files; j++) {
            weight_file *w = &f->files[j];
            path = path_join(o->ctx, f->stage, w->name);
            TRY(path ? TARE_OK : TARE_E_MEMORY);
            TRY(safetensors_create(o->ctx, path, w->tensors, w->count, &w->writer));
            mem_free(o->ctx, path);
            path = NULL;
        }
        if (f->has_numpy)
            TRY(output_numpy_open(o, f));
    }
done:
    mem_free(o->ctx, path);
    return status;
}

tare_status output_close_files(output *o, output_folder *f)
{
    tare_status status = TARE_OK;
    for (size_t i = 0; f->has_files && i < f->num_files; i++) {
        safetensors_writer *writer = f->files[i].writer;
        f->files[i].writer = NULL;
        if (writer) /* only a file without data is still open */
            TRY(safetensors_finish(writer));
        TRY(output_note_staged(o, f, f->files[i].name));
    }
    if (f->has_numpy)
        TRY(output_numpy_close(o, f));
done:
    return status;
}

void output_abandon_files(output_folder *f)
{
    for (size_t i = 0; i < f->num_files; i++) {
        safetensors_abandon(f->files[i].writer);
        f->files[i].writer = NULL;
    }
    for (int i = 0; i < NPY_FILES; i++) {
        npy_abandon(f->npy[i]);
        f->npy[i] = NULL;
    }
}
