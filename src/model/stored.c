/* Reading rows of stored weights. */
#include "model/stored.h"

#include <math.h>
#include <string.h>

#include "tensor/convert.h"

enum { PIECE_BYTES = 16 << 20 };

stored_weight stored_tensor(const tensor_info *tensor, size_t rows)
{
    stored_weight w = {.name = tensor->name,
                       .tensor = tensor,
                       .codec = coded_plain(tensor->dtype, NULL, 0).codec,
                       .dtype = tensor->dtype,
                       .n = rows};
    w.k = rows ? tensor_elements(tensor) / rows : 0;
    return w;
}

stored_weight stored_whole(const tensor_info *tensor)
{
    return stored_tensor(tensor, tensor->rank > 0 ? tensor->shape[0] : 1);
}

stored_weight stored_matrix(const char *name, const tensor_info *tensor, const tensor_info *scales,
                            size_t first, size_t n)
{
    const codec *c = codec_of(tensor->dtype);
    return (stored_weight){.name = name,
                           .tensor = tensor,
                           .scales = scales,
                           .codec = c,
                           .dtype = c->values,
                           .n = n,
                           .k = tensor->shape[tensor->rank - 1],
                           .first = first};
}

tensor_info stored_values(const stored_weight *w)
{
    tensor_info t = *w->tensor;
    bool whole = tensor_elements(&t) == w->n * w->k && (t.rank <= 2 || t.shape[0] == w->n);
    t.name = w->name;
    t.dtype = w->dtype;
    if (!whole) {
        t.rank = 2;
        t.shape[0] = w->n;
        t.shape[1] = w->k;
    }
    t.bytes = (uint64_t)w->n * w->k * dtype_size(t.dtype);
    return t;
}

/* ---- sizes ---- */

bool stored_is_whole(const stored_weight *w)
{
    return w->edit && edit_mixes_rows(w->edit);
}

/* In the checkpoint. */
static size_t disk_row_bytes(const stored_weight *w)
{
    return w->k * dtype_size(w->tensor->dtype);
}

/* Is what was read edited where it stands? Else it is read to memory of its own. */
static bool edits_in_place(const stored_weight *w)
{
    return w->tensor->dtype == w->dtype;
}

size_t stored_row_bytes(const stored_weight *w)
{
    return w->k * dtype_size(w->edit ? w->dtype : w->tensor->dtype);
}

/* Of rows as they are stored, where they are edited elsewhere. */
static stored_weight unedited(const stored_weight *w)
{
    stored_weight plain = *w;
    plain.edit = NULL;
    plain.dtype = w->codec->values;
    return plain;
}

/* Do its rows come with scales? */
static bool is_scaled(const stored_weight *w)
{
    return w->scales && !w->edit;
}

/* The rows may begin and end in the middle of a block. */
size_t stored_scales(const stored_weight *w, size_t rows)
{
    size_t block = is_scaled(w) ? w->codec->block : 0;
    return block ? (rows / block + 2) * size_divide_up(w->k, block) : 0;
}

uint64_t stored_bytes(const stored_weight *w)
{
    uint64_t scales = 0;
    if (w->scales)
        scales = size_divide_up(w->n, w->codec->block) * size_divide_up(w->k, w->codec->block) *
                 dtype_size(w->scales->dtype);
    return (uint64_t)w->n * disk_row_bytes(w) + scales;
}

size_t stored_room_bytes(const stored_weight *w, size_t rows)
{
    size_t bytes;
    if (!size_mul(rows, stored_row_bytes(w), &bytes))
        return MEM_ABSURD;
    return mem_block_bytes(file_read_room(bytes)) +
           (is_scaled(w) ? mem_array_bytes(stored_scales(w, rows), sizeof(float)) : 0);
}

size_t stored_reading_bytes(const stored_weight *w, size_t rows)
{
    size_t scales = stored_scales(w, rows) * sizeof(float);
    if (w->edit) {
        stored_weight plain = unedited(w);
        return stored_reading_bytes(&plain, rows) +
               (edits_in_place(w) ? 0 : stored_room_bytes(&plain, rows));
    }
    return w->scales ? file_read_bytes(scales) + mem_block_bytes(scales) : 0;
}

size_t stored_step(const stored_weight *w)
{
    size_t row_bytes = stored_row_bytes(w);
    if (stored_is_whole(w))
        return w->n;
    return row_bytes ? size_min(w->n, size_max(PIECE_BYTES / row_bytes, 1)) : 0;
}

size_t stored_stream_bytes(const stored_weight *w)
{
    size_t step = stored_step(w);
    return step ? stored_room_bytes(w, step) + stored_reading_bytes(w, step) : 0;
}

/* ---- rows as they are stored ---- */

static coded_rows rows_of(const stored_weight *w)
{
    if (w->edit)
        return coded_plain(w->dtype, NULL, w->k);
    return (coded_rows){.codec = w->codec, .dtype = w->dtype, .k = w->k};
}

tare_status stored_room(const checkpoint *c, const stored_weight *w, size_t rows, coded_rows *out)
{
    tare_context *ctx = checkpoint_context(c);
    size_t bytes;
    *out = rows_of(w);
    if (!size_mul(rows, stored_row_bytes(w), &bytes) || bytes > MEM_ABSURD)
        return TARE_FAIL(ctx, TARE_E_MEMORY, "out of memory: %zu rows of %s", rows,
                         w->tensor->name);
    out->data = out->room = mem_alloc(ctx, file_read_room(bytes));
    if (is_scaled(w))
        out->scales = mem_alloc_array(ctx, stored_scales(w, rows), sizeof *out->scales);
    if (out->data && (out->scales || !is_scaled(w)))
        return TARE_OK;
    coded_free(ctx, out);
    return TARE_E_MEMORY;
}

static tare_status check_scales(tare_context *ctx, const stored_weight *w, const float *scales,
                                size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (!(fabsf(scales[i]) <= w->codec->most_scale))
            return TARE_FAIL(ctx, TARE_E_NUMERIC,
                             "%s: a scale of %g makes numbers that are infinite", w->scales->name,
                             (double)scales[i]);
    return TARE_OK;
}

/* *at: row `first` in their blocks. */
static tare_status read_scales(checkpoint *c, const stored_weight *w, size_t first, size_t count,
                               float *scales, size_t *at)
{
    tare_status status = TARE_OK;
    tare_context *ctx = checkpoint_context(c);
    const tensor_info *t = w->scales;
    *at = 0;
    if (!t || count == 0)
        return TARE_OK;
    /* Blocks do not reach from one matrix into the next. */
    size_t matrix_rows = w->tensor->shape[w->tensor->rank - 2], block = w->codec->block;
    size_t matrix = (w->first + first) / matrix_rows, row = (w->first + first) % matrix_rows;
    size_t columns = size_divide_up(w->k, block), width = dtype_size(t->dtype);
    size_t grid = size_divide_up(row + count, block) - row / block, cells = grid * columns;
    uint64_t begin = (uint64_t)matrix * size_divide_up(matrix_rows, block) + row / block;
    void *stored = mem_alloc_array(ctx, cells, width);
    if (!stored)
        return TARE_E_MEMORY;
    TRY(checkpoint_read(c, t, begin * columns * width, stored, cells * width));
    widen_to_float(ctx, t->dtype, stored, cells, scales);
    TRY(check_scales(ctx, w, scales, cells));
    *at = row % block;
done:
    mem_free(ctx, stored);
    return status;
}

/* *data: rows in `room`, which has as much as file_read_in needs. */
static tare_status read_edited(checkpoint *c, const stored_weight *w, size_t first, size_t count,
                               void *room, void **data)
{
    tare_status status = TARE_OK;
    tare_context *ctx = checkpoint_context(c);
    stored_weight plain = unedited(w);
    coded_rows rows = rows_of(&plain), own = {0};
    *data = room;
    if (w->edit->values)
        return edit_rows(ctx, w->edit, w->n, first, count, &rows, w->dtype, room);
    if (edits_in_place(w)) {
        rows.room = room;
        TRY(stored_read(c, &plain, first, count, &rows));
        *data = rows.data;
    } else {
        TRY(stored_room(c, &plain, count, &own));
        TRY(stored_read(c, &plain, first, count, &own));
        rows = own;
    }
    TRY(edit_rows(ctx, w->edit, w->n, first, count, &rows, w->dtype, *data));
done:
    coded_free(ctx, &own);
    return status;
}

tare_status stored_read(checkpoint *c, const stored_weight *w, size_t first, size_t count,
                        coded_rows *room)
{
    if (w->edit)
        return read_edited(c, w, first, count, room->room, &room->data);
    size_t row_bytes = stored_row_bytes(w), size = count * row_bytes;
    uint64_t at = (uint64_t)(w->first + first) * row_bytes;
    tare_status status = checkpoint_read_in(c, w->tensor, at, size, room->room, &room->data);
    if (status == TARE_OK)
        status = checkpoint_check_finite(c, w->tensor, at, room->data, size);
    return status == TARE_OK ? read_scales(c, w, first, count, room->scales, &room->first) : status;
}

tare_status stored_read_in(checkpoint *c, const stored_weight *w, size_t first, size_t count,
                           void *room, float *scales, coded_rows *out)
{
    size_t row_bytes = stored_row_bytes(w);
    *out = rows_of(w);
    if (w->edit)
        return read_edited(c, w, first, count, room, &out->data);
    out->scales = scales;
    tare_status status = checkpoint_read_in(c, w->tensor, (uint64_t)(w->first + first) * row_bytes,
                                            count * row_bytes, room, &out->data);
    return status == TARE_OK ? read_scales(c, w, first, count, scales, &out->first) : status;
}

tare_status stored_load(checkpoint *c, const stored_weight *w, coded_rows *out)
{
    tare_status status = stored_room(c, w, w->n, out);
    if (status == TARE_OK)
        status = stored_read(c, w, 0, w->n, out);
    if (status != TARE_OK)
        coded_free(checkpoint_context(c), out);
    return status;
}

tare_status stored_stream(checkpoint *c, const stored_weight *w, stored_rows_fn piece, void *user)
{
    size_t step = stored_step(w);
    coded_rows rows;
    if (step == 0)
        return TARE_OK;
    tare_status status = stored_room(c, w, step, &rows);
    for (size_t first = 0; first < w->n && status == TARE_OK; first += step) {
        size_t count = size_min(w->n - first, step);
        TRY(context_check_cancelled(checkpoint_context(c)));
        TRY(stored_read(c, w, first, count, &rows));
        TRY(piece(user, first, count, &rows));
    }
done:
    coded_free(checkpoint_context(c), &rows);
    return status;
}

/* ---- rows as numbers ---- */

tare_status stored_read_rows(checkpoint *c, const stored_weight *w, size_t first, size_t count,
                             tare_dtype dtype, void *out)
{
    tare_status status = TARE_OK;
    coded_rows rows = {0};
    if (w->tensor->dtype == dtype && w->dtype == dtype && !w->edit)
        return checkpoint_read(c, w->tensor, (uint64_t)(w->first + first) * stored_row_bytes(w),
                               out, count * stored_row_bytes(w));
    TRY(stored_room(c, w, count, &rows));
    TRY(stored_read(c, w, first, count, &rows));
    coded_convert_rows(checkpoint_context(c), &rows, 0, count, dtype, out);
done:
    coded_free(checkpoint_context(c), &rows);
    return status;
}
