/* The npy files of the numpy save type (specification: output_formats.md 6). Entries are streamed,
 * so a FLOAT tensor must be written to its end before the next entry of its file begins. */
#include <string.h>

#include "output/output_internal.h"
#include "tensor/convert.h"

enum { WIDEN_PIECE = 16384 }; /* elements converted at a time */

/* numpy has no bfloat16, torch has. */
static tare_dtype stored_dtype(const output *o, tare_dtype dtype)
{
    return o->options.npy_torch ? dtype : numpy_dtype(dtype);
}

static bool npy_can_hold(tare_dtype dtype)
{
    return dtype == TARE_I8 || dtype == TARE_I32 || dtype == TARE_I64 || dtype == TARE_F16 ||
           dtype == TARE_BF16 || dtype == TARE_F32;
}

tare_status output_numpy_check(output *o, const tensor_info *tensor)
{
    if (npy_can_hold(tensor->dtype))
        return TARE_OK;
    return TARE_FAIL(o->ctx, TARE_E_MODEL, "%s: save type numpy cannot hold dtype %s", tensor->name,
                     dtype_name(tensor->dtype));
}

static tare_status begin_entry(output *o, output_folder *f, const tensor_info *tensor,
                               tensor_role role, npy_file *where)
{
    size_t length;
    *where = npy_place(tensor->name, role, &length);
    char *key = mem_strndup(o->ctx, tensor->name, length);
    if (!key)
        return TARE_E_MEMORY;
    tare_status status = npy_begin(f->npy[*where], key, stored_dtype(o, tensor->dtype),
                                   tensor->rank, tensor->shape);
    mem_free(o->ctx, key);
    return status;
}

/* Tensors without elements get no call of output_write_float. */
static tare_status write_empty(output *o, output_folder *f)
{
    tare_status status = TARE_OK;
    npy_file where;
    for (size_t i = 0; i < o->num_units; i++)
        if (o->units[i].kind == UNIT_FLOAT && o->units[i].tensor.bytes == 0)
            TRY(begin_entry(o, f, &o->units[i].tensor, TENSOR_FLOAT, &where));
done:
    return status;
}

npy_values output_npy_values(const output *o)
{
    return o->options.npy_torch ? NPY_TENSORS : NPY_ARRAYS;
}

tare_status output_numpy_open(output *o, output_folder *f)
{
    bool used[NPY_FILES] = {false};
    tare_status status = TARE_OK;
    char *path = NULL;
    size_t length;

    for (size_t i = 0; i < f->num_tensors; i++) {
        const planned_tensor *t = &f->tensors[i];
        if (!t->not_numpy && (!t->absent || o->fa_kept > 0))
            used[npy_place(t->info.name, t->role, &length)] = true;
    }
    for (int i = 0; i < NPY_FILES; i++) {
        if (!used[i])
            continue;
        path = path_join(o->ctx, f->stage, npy_file_name((npy_file)i));
        TRY(path ? TARE_OK : TARE_E_MEMORY);
        TRY(npy_create(o->ctx, path, output_npy_values(o), &f->npy[i]));
        mem_free(o->ctx, path);
        path = NULL;
    }
    TRY(write_empty(o, f));
done:
    mem_free(o->ctx, path);
    return status;
}

static tare_status append_widened(output *o, npy_writer *w, const void *data, size_t size)
{
    size_t left = size / sizeof(uint16_t);
    const char *from = data;
    tare_status status = TARE_OK;
    float *piece = mem_alloc_array(o->ctx, WIDEN_PIECE, sizeof *piece);
    TRY(piece ? TARE_OK : TARE_E_MEMORY);
    while (left > 0) {
        size_t n = left < WIDEN_PIECE ? left : WIDEN_PIECE;
        widen_to_float(o->ctx, TARE_BF16, from, n, piece);
        TRY(npy_append(w, piece, n * sizeof *piece));
        from += n * sizeof(uint16_t);
        left -= n;
    }
done:
    mem_free(o->ctx, piece);
    return status;
}

tare_status output_numpy_write(output *o, output_folder *f, const tensor_info *tensor,
                               tensor_role role, uint64_t offset, const void *data, size_t size)
{
    size_t length;
    npy_file where = npy_place(tensor->name, role, &length);
    tare_status status = TARE_OK;

    if (offset == 0)
        TRY(begin_entry(o, f, tensor, role, &where));
    if (stored_dtype(o, tensor->dtype) == tensor->dtype)
        return npy_append(f->npy[where], data, size);
    if (size % sizeof(uint16_t) != 0)
        return TARE_FAIL(o->ctx, TARE_E_USAGE, "%s: half an element was written", tensor->name);
    if (!o->numpy_widened)
        TARE_INFO(o->ctx, "numpy has no bfloat16: such tensors become float32 in the npy files");
    o->numpy_widened = true;
    TRY(append_widened(o, f->npy[where], data, size));
done:
    return status;
}

tare_status output_numpy_close(output *o, output_folder *f)
{
    tare_status status = TARE_OK;
    for (int i = 0; i < NPY_FILES; i++) {
        npy_writer *w = f->npy[i];
        if (!w)
            continue;
        f->npy[i] = NULL;
        TRY(npy_finish(w));
        TRY(output_note_staged(o, f, npy_file_name((npy_file)i)));
    }
done:
    return status;
}
