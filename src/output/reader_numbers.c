/* Access to the tensors of an opened layout, whatever file they are in; the numbers of one linear.
 */
#include <stdio.h>
#include <string.h>

#include "base/read_ahead.h"
#include "output/reader.h"
#include "tensor/convert.h"

enum { SCAN_PIECE = 4 << 20, COMPARE_PIECE = 1 << 16 };

const reader_tensor *reader_find(const reader_layout *f, const char *name)
{
    uint32_t index;
    return strmap_get(&f->by_name, name, strlen(name), &index) ? &f->tensors[index] : NULL;
}

const reader_linear *reader_find_linear(const reader_layout *f, const char *module, size_t length)
{
    uint32_t index;
    return strmap_get(&f->by_module, module, length, &index) ? &f->linears[index] : NULL;
}

tare_dtype reader_stored_dtype(const reader_layout *f, const reader_tensor *t, tare_dtype dtype)
{
    bool array = f->layout == LAYOUT_NUMPY && !(t && t->entry->torch);
    return array ? numpy_dtype(dtype) : dtype;
}

tare_status reader_read(const reader_layout *f, const reader_tensor *t, uint64_t offset, void *data,
                        size_t size)
{
    if (t->entry)
        return npy_read(f->npy[t->source], t->entry, offset, data, size);
    return safetensors_read(f->files[t->source], &t->info, offset, data, size);
}

/* The low or the high nibble of a byte, two's complement. */
static int8_t nibble(uint8_t byte, bool high)
{
    return (int8_t)((int8_t)(high ? byte & 0xf0 : byte << 4) / 16);
}

/* One row. */
static tare_status int4_row(const reader_layout *f, const reader_tensor *t, size_t k, size_t row,
                            size_t column, size_t count, int8_t *out)
{
    tare_status status = reader_read(f, t, (uint64_t)(row / 2) * k + column, out, count);
    for (size_t i = 0; i < count && status == TARE_OK; i++)
        out[i] = nibble((uint8_t)out[i], row % 2 == 1);
    return status;
}

/* Pairs of rows: their bytes are read to the second half of `out` and spread from the front. The
 * last pair's high rows stand where its bytes were. */
static tare_status int4_pairs(const reader_layout *f, const reader_tensor *t, size_t k, size_t pair,
                              size_t pairs, int8_t *out)
{
    tare_status status = TARE_OK;
    int8_t *packed = out + pairs * k;
    TRY(reader_read(f, t, (uint64_t)pair * k, packed, pairs * k));
    for (size_t p = 0; p < pairs; p++) {
        const int8_t *bytes = packed + p * k;
        int8_t *low = out + 2 * p * k, *high = low + k;
        for (size_t i = 0; i < k; i++) {
            uint8_t byte = (uint8_t)bytes[i];
            low[i] = nibble(byte, false);
            high[i] = nibble(byte, true);
        }
    }
done:
    return status;
}

static tare_status int4_codes(const reader_layout *f, const reader_tensor *t, size_t k,
                              size_t first, size_t count, int8_t *out)
{
    tare_status status = TARE_OK;
    while (count > 0) {
        size_t column = first % k, n = size_min(count, k - column), pairs = count / (2 * k);
        if (first % (2 * k) == 0 && pairs > 0) {
            n = pairs * 2 * k;
            TRY(int4_pairs(f, t, k, first / (2 * k), pairs, out));
        } else {
            TRY(int4_row(f, t, k, first / k, column, n, out));
        }
        first += n;
        out += n;
        count -= n;
    }
done:
    return status;
}

tare_status reader_codes(const reader_layout *f, const reader_linear *l, size_t first, size_t count,
                         int8_t *out)
{
    const reader_tensor *t = reader_weight(l);
    size_t k = l->form.k, stride = packed_words(k) * sizeof(uint32_t);
    tare_status status = TARE_OK;
    if (form_is_int4(&l->form))
        return int4_codes(f, t, k, first, count, out);
    if (t == l->parts[TENSOR_WEIGHT])
        return reader_read(f, t, first, out, count);
    while (count > 0) {
        size_t column = first % k, left = stride == k ? count : k - column;
        size_t n = left < count ? left : count;
        TRY(reader_read(f, t, (uint64_t)(first / k) * stride + column, out, n));
        for (size_t i = 0; i < n; i++)
            out[i] = (int8_t)(out[i] ^ INT8_MIN);
        first += n;
        out += n;
        count -= n;
    }
done:
    return status;
}

tare_status reader_same_bytes(const reader_layout *f, const reader_tensor *a,
                              const reader_layout *g, const reader_tensor *b, bool *same)
{
    tare_status status = TARE_OK;
    char *left = mem_alloc(f->ctx, COMPARE_PIECE), *right = mem_alloc(f->ctx, COMPARE_PIECE);
    *same = a->info.bytes == b->info.bytes;
    TRY(left && right ? TARE_OK : TARE_E_MEMORY);
    for (uint64_t at = 0; *same && at < a->info.bytes; at += COMPARE_PIECE) {
        uint64_t rest = a->info.bytes - at;
        size_t size = rest < COMPARE_PIECE ? (size_t)rest : COMPARE_PIECE;
        TRY(reader_read(f, a, at, left, size));
        TRY(reader_read(g, b, at, right, size));
        *same = memcmp(left, right, size) == 0;
    }
done:
    mem_free(f->ctx, left);
    mem_free(f->ctx, right);
    return status;
}

float reader_element(tare_dtype dtype, const char *raw)
{
    uint16_t half;
    uint64_t wide;
    uint32_t word;
    float x;
    if (dtype == TARE_F32) {
        memcpy(&x, raw, sizeof x);
    } else if (dtype == TARE_I64) { /* a deq_scale */
        memcpy(&wide, raw, sizeof wide);
        word = (uint32_t)wide;
        memcpy(&x, &word, sizeof x);
    } else if (dtype == TARE_I8) { /* a zero point */
        x = (float)(int8_t)*raw;
    } else {
        memcpy(&half, raw, sizeof half);
        x = dtype == TARE_BF16 ? bf16_to_float(half) : fp16_to_float(half);
    }
    return x;
}

tare_status reader_elements(const reader_layout *f, const reader_tensor *t, size_t first,
                            size_t count, float *out)
{
    size_t width = dtype_size(t->info.dtype);
    char piece[16384];
    size_t fit = sizeof piece / width;
    tare_status status = TARE_OK;
    while (count > 0) {
        size_t n = count < fit ? count : fit;
        TRY(reader_read(f, t, (uint64_t)first * width, piece, n * width));
        for (size_t i = 0; i < n; i++)
            out[i] = reader_element(t->info.dtype, piece + i * width);
        out += n;
        first += n;
        count -= n;
    }
done:
    return status;
}

tare_status reader_floats(const reader_layout *f, const reader_tensor *t, float **out)
{
    tare_context *ctx = f->ctx;
    size_t count = tensor_elements(&t->info);
    float *values = mem_alloc_array(ctx, count, sizeof *values);
    tare_status status = values ? reader_elements(f, t, 0, count, values) : TARE_E_MEMORY;
    if (status != TARE_OK) {
        mem_free(ctx, values);
        values = NULL;
    }
    *out = values;
    return status;
}

void tensor_shape_text(const tensor_info *t, char *out, size_t size)
{
    size_t used = (size_t)snprintf(out, size, "%s [", dtype_name(t->dtype));
    for (int i = 0; i < t->rank && used < size; i++)
        used += (size_t)snprintf(out + used, size - used, "%s%zu", i ? "," : "", t->shape[i]);
    if (used < size)
        snprintf(out + used, size - used, "]");
}

/* ---- one linear ---- */

static tare_status load_deq(const reader_layout *f, const reader_tensor *t, reader_numbers *n)
{
    tare_context *ctx = f->ctx;
    tare_status status = TARE_OK;
    n->num_deq = tensor_elements(&t->info);
    if (t->info.dtype == TARE_F32)
        return reader_floats(f, t, &n->deq_scale);
    n->deq_bits = mem_alloc_array(ctx, n->num_deq, sizeof *n->deq_bits);
    n->deq_scale = mem_alloc_array(ctx, n->num_deq, sizeof *n->deq_scale);
    TRY(n->deq_bits && n->deq_scale ? TARE_OK : TARE_E_MEMORY);
    TRY(reader_read(f, t, 0, n->deq_bits, n->num_deq * sizeof *n->deq_bits));
    for (size_t i = 0; i < n->num_deq; i++) {
        uint32_t bits = (uint32_t)n->deq_bits[i];
        memcpy(&n->deq_scale[i], &bits, sizeof bits);
    }
done:
    return status;
}

/* `count` integers of one row into its running sum and extremes. */
static void scan_segment(const int8_t *q, size_t count, int64_t *sum, int8_t *min, int8_t *max)
{
    int8_t lo = *min, hi = *max;
    while (count > 0) {
        /* short enough for an int32 */
        size_t part = count < 65536 ? count : 65536;
        int32_t s = 0;
        for (size_t i = 0; i < part; i++) {
            s += q[i];
            lo = q[i] < lo ? q[i] : lo;
            hi = q[i] > hi ? q[i] : hi;
        }
        *sum += s;
        q += part;
        count -= part;
    }
    *min = lo;
    *max = hi;
}

/* A weight on its way from the disk. */
typedef struct scan_work {
    const reader_layout *f;
    const reader_tensor *t;
    void *room[2], *data[2]; /* of the two pieces that are there at a time */
} scan_work;

static size_t piece_size(const scan_work *w, size_t index)
{
    uint64_t left = w->t->info.bytes - (uint64_t)index * SCAN_PIECE;
    return left < SCAN_PIECE ? (size_t)left : SCAN_PIECE;
}

static tare_status read_scan_piece(void *user, size_t index, size_t slot)
{
    scan_work *w = user;
    uint64_t at = (uint64_t)index * SCAN_PIECE;
    size_t size = piece_size(w, index);
    if (!w->t->entry)
        return safetensors_read_in(w->f->files[w->t->source], &w->t->info, at, size, w->room[slot],
                                   &w->data[slot]);
    w->data[slot] = w->room[slot];
    return reader_read(w->f, w->t, at, w->data[slot], size);
}

/* `size` bytes from `begin` on; a piece need not end with a row. */
static void scan_rows(const int8_t *q, uint64_t begin, size_t size, reader_numbers *n)
{
    for (size_t at = 0; at < size;) {
        size_t row = (size_t)((begin + at) / n->k), left = n->k - (size_t)((begin + at) % n->k);
        size_t count = size_min(left, size - at);
        scan_segment(q + at, count, &n->row_sums[row], &n->row_min[row], &n->row_max[row]);
        at += count;
    }
}

/* Sums of nibbles, slice by slice: a byte is of two rows. */
static void scan_int4(const uint8_t *bytes, uint64_t begin, size_t size, size_t slices,
                      reader_numbers *n)
{
    size_t width = n->k / slices;
    for (size_t at = 0, count; at < size; at += count) {
        size_t row = 2 * (size_t)((begin + at) / n->k), column = (size_t)((begin + at) % n->k);
        size_t slice = column / width;
        int64_t low = 0, high = 0;
        count = size_min(size - at, (slice + 1) * width - column);
        for (size_t i = 0; i < count; i++) {
            low += nibble(bytes[at + i], false);
            high += nibble(bytes[at + i], true);
        }
        n->sums[row * slices + slice] += low;
        n->sums[(row + 1) * slices + slice] += high;
    }
}

static tare_status allocate_rows(tare_context *ctx, reader_numbers *n)
{
    n->row_sums = mem_calloc(ctx, n->n, sizeof *n->row_sums);
    n->row_min = mem_alloc(ctx, n->n);
    n->row_max = mem_alloc(ctx, n->n);
    if (!n->row_sums || !n->row_min || !n->row_max)
        return TARE_E_MEMORY;
    memset(n->row_min, INT8_MAX, n->n);
    memset(n->row_max, (unsigned char)INT8_MIN, n->n);
    return TARE_OK;
}

/* Streams the weight once: one piece is read while the one before it is looked at. */
static tare_status scan_weight(const reader_layout *f, const reader_linear *l, reader_numbers *n)
{
    tare_context *ctx = f->ctx;
    tare_status status = TARE_OK;
    read_ahead *pieces = NULL;
    const reader_tensor *t = l->parts[TENSOR_WEIGHT];
    bool int4 = form_is_int4(&l->form);
    scan_work w = {.f = f, .t = t};
    size_t slot, most = t->info.bytes < SCAN_PIECE ? (size_t)t->info.bytes : SCAN_PIECE;
    read_ahead_work work = {.user = &w,
                            .read = read_scan_piece,
                            .count = (size_t)((t->info.bytes + SCAN_PIECE - 1) / SCAN_PIECE),
                            .readers = 1,
                            .ahead = 1};

    if (int4)
        n->sums = mem_calloc(ctx, n->n * l->form.slices, sizeof *n->sums);
    else
        TRY(allocate_rows(ctx, n));
    for (int i = 0; i < 2; i++)
        w.room[i] = mem_alloc(ctx, file_read_room(most));
    TRY((n->sums || !int4) && w.room[0] && w.room[1] ? TARE_OK : TARE_E_MEMORY);
    TRY(read_ahead_start(ctx, &work, &pieces));
    for (size_t i = 0; i < work.count; i++) {
        TRY(read_ahead_take(pieces, i, &slot));
        if (int4)
            scan_int4(w.data[slot], (uint64_t)i * SCAN_PIECE, piece_size(&w, i), l->form.slices, n);
        else
            scan_rows(w.data[slot], (uint64_t)i * SCAN_PIECE, piece_size(&w, i), n);
    }
done:
    read_ahead_stop(pieces);
    for (int i = 0; i < 2; i++)
        mem_free(ctx, w.room[i]);
    return status;
}

static tare_status load_activations(const reader_layout *f, const reader_tensor *const *parts,
                                    reader_numbers *out)
{
    bool compressed = f->layout == LAYOUT_COMPRESSED_TENSORS;
    const reader_tensor *offset = parts[compressed ? TENSOR_INPUT_ZERO_POINT : TENSOR_INPUT_OFFSET];
    tare_status status = TARE_OK;
    out->activations = true;
    TRY(reader_elements(f, parts[TENSOR_INPUT_SCALE], 0, 1, &out->input_scale));
    if (offset) /* else symmetric */
        TRY(reader_elements(f, offset, 0, 1, &out->input_offset));
    if (compressed)
        goto done;
    out->quant_bias = mem_alloc_array(f->ctx, out->n, sizeof *out->quant_bias);
    TRY(out->quant_bias ? TARE_OK : TARE_E_MEMORY);
    TRY(reader_read(f, parts[TENSOR_QUANT_BIAS], 0, out->quant_bias,
                    out->n * sizeof *out->quant_bias));
    TRY(load_deq(f, parts[TENSOR_DEQ_SCALE], out));
done:
    return status;
}

tare_status reader_numbers_load(const reader_layout *f, const reader_linear *l, reader_numbers *out)
{
    const reader_tensor *const *parts = l->parts;
    tare_status status = TARE_OK;

    *out = (reader_numbers){.n = l->form.n, .k = l->form.k};
    out->num_scales = tensor_elements(&parts[TENSOR_WEIGHT_SCALE]->info);
    TRY(reader_floats(f, parts[TENSOR_WEIGHT_SCALE], &out->weight_scale));
    if (parts[TENSOR_WEIGHT_OFFSET])
        TRY(reader_floats(f, parts[TENSOR_WEIGHT_OFFSET], &out->weight_offset));
    else
        out->weight_offset = mem_calloc(f->ctx, out->num_scales, sizeof *out->weight_offset);
    TRY(out->weight_offset ? TARE_OK : TARE_E_MEMORY);
    if (parts[TENSOR_BIAS])
        TRY(reader_floats(f, parts[TENSOR_BIAS], &out->bias));
    if (form_is_int4(&l->form))
        TRY(reader_floats(f, parts[TENSOR_SCALE_BIAS], &out->scale_bias));
    if (scheme_of(l->form.scheme)->activations == ACT_STATIC)
        TRY(load_activations(f, parts, out));
    if (f->layout != LAYOUT_COMPRESSED_TENSORS)
        TRY(scan_weight(f, l, out));
done:
    if (status != TARE_OK)
        reader_numbers_free(f->ctx, out);
    return status;
}

size_t reader_numbers_bytes(size_t n, size_t int4)
{
    return 4 * mem_array_bytes(n, sizeof(float)) + 2 * mem_array_bytes(n, sizeof(int32_t)) +
           2 * mem_array_bytes(n, sizeof(int64_t)) + 2 * mem_block_bytes(n) +
           mem_array_bytes(int4 * INT4_SLICES, sizeof(int64_t)) +
           mem_array_bytes(int4 * INT4_SLICES, sizeof(float)) +
           2 * mem_block_bytes(file_read_room(SCAN_PIECE)) + read_ahead_bytes();
}

void reader_numbers_free(tare_context *ctx, reader_numbers *n)
{
    mem_free(ctx, n->weight_scale);
    mem_free(ctx, n->weight_offset);
    mem_free(ctx, n->bias);
    mem_free(ctx, n->quant_bias);
    mem_free(ctx, n->deq_scale);
    mem_free(ctx, n->deq_bits);
    mem_free(ctx, n->row_sums);
    mem_free(ctx, n->sums);
    mem_free(ctx, n->scale_bias);
    mem_free(ctx, n->row_min);
    mem_free(ctx, n->row_max);
    memset(n, 0, sizeof *n);
}
