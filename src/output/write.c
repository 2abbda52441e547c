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

/* What a linear's small tensors are made from. */
typedef struct small_tensor {
    const float *values; /* NULL: zeros */
    size_t count;        /* of values: the tensor's number of elements, or 1 that is repeated */
} small_tensor;

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

static void fill_small(const tensor_info *t, const small_tensor *s, char *out)
{
    size_t elements = tensor_elements(t), width = dtype_size(t->dtype);
    for (size_t i = 0; i < elements; i++)
        store_value(t->dtype, s->values ? s->values[s->count == 1 ? 0 : i] : 0.0f, out + i * width);
}

/* The data of one tensor of a linear: a pointer into the arguments, or made in `scratch`. */
static const void *linear_data(const tensor_info *t, tensor_role role, const quantized_weight *w,
                               const act_params *act, const float *deq_scale,
                               const int32_t *quant_bias, const void *bias, void *scratch)
{
    small_tensor s = {NULL, 1};
    switch (role) {
    case TENSOR_WEIGHT:
        return w->q;
    case TENSOR_BIAS:
        return bias;
    case TENSOR_QUANT_BIAS:
        return quant_bias;
    case TENSOR_WEIGHT_SCALE:
        s = (small_tensor){w->scales, w->num_scales};
        break;
    case TENSOR_DEQ_SCALE:
        s = (small_tensor){deq_scale, w->num_scales};
        break;
    case TENSOR_INPUT_SCALE:
        s = (small_tensor){&act->scale, 1};
        break;
    case TENSOR_INPUT_OFFSET:
    case TENSOR_INPUT_ZERO_POINT:
        s = (small_tensor){&act->offset, 1};
        break;
    default: /* the weight offset of a symmetric scheme */
        break;
    }
    fill_small(t, &s, scratch);
    return scratch;
}

static tare_status write_linear(output *o, const output_unit *u, const quantized_weight *w,
                                const act_params *act, const float *deq_scale,
                                const int32_t *quant_bias, const void *bias, void *scratch)
{
    tare_status status = TARE_OK;
    for (size_t i = 0; i < o->num_folders; i++) {
        output_folder *f = &o->folders[i];
        const planned_tensor *t = &f->tensors[u->first[i]];
        for (int role = 0; role < TENSOR_COUNT; role++) {
            tensor_info info;
            if (!linear_tensor(f->layout, &o->options.num, &u->linear, (tensor_role)role, &info))
                continue;
            const void *data = linear_data(&t->info, t->role, w, act, deq_scale, quant_bias, bias,
                                           scratch);
            TRY(output_write_tensor(o, f, t, 0, data, t->info.bytes));
            t++;
        }
    }
done:
    return status;
}

tare_status output_write_w8a8(output *o, const char *module, const quantized_weight *w,
                              const act_params *act, const float *deq_scale,
                              const int32_t *quant_bias, const void *bias)
{
    output_unit *u = output_find_unit(o, &o->linears, module, UNIT_LINEAR);
    tare_status status = TARE_OK;
    void *scratch = NULL;

    if (!u)
        return TARE_FAIL(o->ctx, TARE_E_USAGE, "linear %s was not declared for the output", module);
    if (u->complete || u->linear.scheme != SCHEME_W8A8 || w->n != u->linear.n ||
        w->k != u->linear.k || w->num_scales != (u->linear.per_tensor ? 1 : w->n) ||
        (bias != NULL) != u->linear.has_bias)
        return TARE_FAIL(o->ctx, TARE_E_USAGE, "linear %s differs from what was declared", module);
    scratch = mem_alloc_array(o->ctx, w->n, sizeof(int64_t));
    TRY(scratch ? TARE_OK : TARE_E_MEMORY);
    TRY(write_linear(o, u, w, act, deq_scale, quant_bias, bias, scratch));
    if (o->options.tape)
        TRY(output_tape_w8a8(o, u, w, act, deq_scale, quant_bias, bias));
    u->complete = true;
done:
    mem_free(o->ctx, scratch);
    return TARE_WRAP(o->ctx, status, "%s", module);
}

/* What the rows of a W8A16 linear are written from. */
typedef struct row_data {
    const weight_codes *codes;
    size_t first, count;
    void *scratch; /* [count] of float */
    char *packed;  /* NULL: no folder holds them packed */
} row_data;

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

/* Rows of one tensor of a W8A16 linear; what is not by row goes with the first. */
static tare_status write_rows(output *o, output_folder *f, const planned_tensor *t,
                              const linear_form *form, const row_data *d)
{
    uint64_t row_bytes = t->info.bytes / t->info.shape[0];
    size_t first = d->first, count = d->count;
    void *scratch = d->scratch;
    if (t->role == TENSOR_WEIGHT || t->role == TENSOR_WEIGHT_PACKED)
        return output_write_tensor(o, f, t, first * row_bytes,
                                   t->role == TENSOR_WEIGHT ? (const void *)d->codes->q : d->packed,
                                   count * row_bytes);
    if (t->role == TENSOR_WEIGHT_SHAPE) {
        int64_t shape[2] = {(int64_t)form->n, (int64_t)form->k};
        return first > 0 ? TARE_OK : output_write_tensor(o, f, t, 0, shape, sizeof shape);
    }
    small_tensor s = {t->role == TENSOR_WEIGHT_SCALE ? d->codes->scales : d->codes->offsets,
                      form->per_tensor ? 1 : count};
    tensor_info rows = t->info;
    if (t->info.rank == 1 && first > 0)
        return TARE_OK;
    if (t->info.rank == 2)
        rows.shape[0] = count;
    fill_small(&rows, &s, scratch);
    return output_write_tensor(o, f, t, first * row_bytes, scratch, rows.shape[0] * row_bytes);
}

/* The bias comes after the weight: in the npy layout they follow each other in one file. */
static tare_status write_all_rows(output *o, const output_unit *u, const row_data *d,
                                  const void *bias)
{
    tare_status status = TARE_OK;
    for (size_t i = 0; i < o->num_folders; i++) {
        output_folder *f = &o->folders[i];
        const planned_tensor *t = &f->tensors[u->first[i]], *bias_tensor = NULL;
        for (int role = 0; role < TENSOR_COUNT; role++) {
            tensor_info info;
            if (!linear_tensor(f->layout, &o->options.num, &u->linear, (tensor_role)role, &info))
                continue;
            if (role == TENSOR_BIAS)
                bias_tensor = t;
            else
                TRY(write_rows(o, f, t, &u->linear, d));
            t++;
        }
        if (bias && bias_tensor)
            TRY(output_write_tensor(o, f, bias_tensor, 0, bias, bias_tensor->info.bytes));
    }
done:
    return status;
}

tare_status output_write_w8a16(output *o, const char *module, size_t first, size_t count,
                               const weight_codes *codes, const void *bias)
{
    output_unit *u = output_find_unit(o, &o->linears, module, UNIT_LINEAR);
    tare_status status = TARE_OK;
    row_data d = {.codes = codes, .first = first, .count = count};

    if (!u)
        return TARE_FAIL(o->ctx, TARE_E_USAGE, "linear %s was not declared for the output", module);
    bool last = count == u->linear.n - u->written;
    if (u->complete || u->linear.scheme != SCHEME_W8A16 || first != u->written ||
        count > u->linear.n - u->written || (bias != NULL) != (last && u->linear.has_bias))
        return TARE_FAIL(o->ctx, TARE_E_USAGE, "linear %s differs from what was declared", module);
    d.scratch = mem_alloc_array(o->ctx, count, sizeof(float));
    TRY(d.scratch ? TARE_OK : TARE_E_MEMORY);
    if (o->options.save & SAVE_COMPRESSED_TENSORS) {
        d.packed = mem_alloc_array(o->ctx, count * packed_words(u->linear.k), sizeof(uint32_t));
        TRY(d.packed ? TARE_OK : TARE_E_MEMORY);
        pack_rows(codes->q, count, u->linear.k, d.packed);
    }
    TRY(write_all_rows(o, u, &d, bias));
    if (o->options.tape)
        TRY(output_tape_w8a16(o, u, first, count, codes, bias));
    u->written += count;
    u->complete = last;
done:
    mem_free(o->ctx, d.scratch);
    mem_free(o->ctx, d.packed);
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
