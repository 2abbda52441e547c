/* The codecs, and rows by way of them. */
#include "tensor/codec.h"

#include <string.h>

#include "base/parallel.h"
#include "base/sizes.h"
#include "tensor/convert.h"
#include "tensor/kernels.h"
#include "tensor/round.h"

enum { FP8_BLOCK = 128, CHUNK = 256, PIECE_ELEMENTS = 1 << 16 };

static const char *element_at(const coded_rows *r, size_t row, size_t column)
{
    tare_dtype stored = r->codec ? r->codec->stored : r->dtype;
    return (const char *)r->data + (row * r->k + column) * dtype_size(stored);
}

/* ---- the codecs ---- */

static void decode_float(const kernels *k, const coded_rows *r, size_t row, size_t column,
                         size_t count, float *out)
{
    widen_run(k, r->codec->stored, element_at(r, row, column), count, out);
}

static void decode_fp8(const kernels *k, const coded_rows *r, size_t row, size_t column,
                       size_t count, float *out)
{
    const uint8_t *x = (const uint8_t *)element_at(r, row, column);
    const float *scales = r->scales +
                          (r->first + row) / FP8_BLOCK * size_divide_up(r->k, FP8_BLOCK);
    for (size_t i = 0, n; i < count; i += n) {
        float scale = scales[(column + i) / FP8_BLOCK];
        n = size_min(count - i, FP8_BLOCK - (column + i) % FP8_BLOCK);
        k->fp8_to_float(x + i, n, scale, out + i);
    }
}

/* 448 is the largest FP8 number; with scales up to 2^119 no product leaves BF16. */
static const codec codecs[] = {
    {.stored = TARE_F32, .values = TARE_F32, .decode = decode_float},
    {.stored = TARE_F16, .values = TARE_F16, .decode = decode_float},
    {.stored = TARE_BF16, .values = TARE_BF16, .decode = decode_float},
    {.stored = TARE_F8_E4M3,
     .values = TARE_BF16,
     .block = FP8_BLOCK,
     .scales = "weight_scale_inv",
     .most_scale = 0x1p119f,
     .decode = decode_fp8},
};

static void decode_integers(const coded_rows *r, size_t row, size_t column, size_t count,
                            float scale, float *out)
{
    const int8_t *q = (const int8_t *)element_at(r, row, column);
    for (size_t i = 0; i < count; i++)
        out[i] = (float)q[i] * scale;
}

static void decode_scaled_rows(const kernels *k, const coded_rows *r, size_t row, size_t column,
                               size_t count, float *out)
{
    (void)k;
    decode_integers(r, row, column, count, r->scales[r->first + row], out);
}

static void decode_scaled(const kernels *k, const coded_rows *r, size_t row, size_t column,
                          size_t count, float *out)
{
    (void)k;
    decode_integers(r, row, column, count, r->scales[0], out);
}

/* Of results: no checkpoint has them. */
static const codec integers_by_row = {TARE_I8, TARE_F32, .decode = decode_scaled_rows},
                   integers = {TARE_I8, TARE_F32, .decode = decode_scaled};

const codec *codec_of(tare_dtype stored)
{
    for (size_t i = 0; i < sizeof codecs / sizeof *codecs; i++)
        if (codecs[i].stored == stored)
            return &codecs[i];
    return NULL;
}

/* ---- rows ---- */

coded_rows coded_plain(tare_dtype dtype, const void *data, size_t k)
{
    const codec *c = codec_of(dtype);
    return (coded_rows){.codec = c && !c->block ? c : NULL,
                        .dtype = dtype,
                        .data = (void *)(uintptr_t)data,
                        .k = k};
}

coded_rows coded_integers(tare_dtype dtype, const int8_t *q, const float *scales, bool one_scale,
                          size_t k)
{
    return (coded_rows){.codec = one_scale ? &integers : &integers_by_row,
                        .dtype = dtype,
                        .data = (void *)(uintptr_t)q,
                        .scales = (float *)(uintptr_t)scales,
                        .k = k};
}

coded_rows coded_from(const coded_rows *rows, size_t row)
{
    coded_rows from = *rows;
    from.room = NULL;
    from.data = (void *)(uintptr_t)element_at(rows, row, 0);
    from.first += row;
    return from;
}

void coded_free(tare_context *ctx, coded_rows *rows)
{
    mem_free(ctx, rows->room ? rows->room : rows->data);
    mem_free(ctx, rows->scales);
    rows->room = rows->data = NULL;
    rows->scales = NULL;
}

const void *coded_in_place(const coded_rows *rows, tare_dtype dtype, size_t row, size_t column)
{
    bool stored = rows->dtype == dtype && (!rows->codec || rows->codec->stored == dtype);
    return stored ? element_at(rows, row, column) : NULL;
}

void coded_decode(const kernels *k, const coded_rows *rows, size_t row, size_t column, size_t count,
                  float *out)
{
    rows->codec->decode(k, rows, row, column, count, out);
    if (rows->dtype == rows->codec->values)
        return;
    if (rows->dtype == TARE_BF16)
        for (size_t i = 0; i < count; i++)
            out[i] = round_bf16(out[i]);
    else if (rows->dtype == TARE_F16)
        for (size_t i = 0; i < count; i++)
            out[i] = round_fp16(out[i]);
}

void coded_convert(const kernels *k, const coded_rows *rows, size_t row, size_t column,
                   size_t count, tare_dtype dtype, void *out)
{
    const void *there = coded_in_place(rows, dtype, row, column);
    size_t size = dtype_size(dtype);
    float wide[CHUNK];
    if (there) {
        memcpy(out, there, count * size);
        return;
    }
    for (size_t i = 0, n; i < count; i += n) {
        const float *x = coded_in_place(rows, TARE_F32, row, column + i);
        n = size_min(count - i, CHUNK);
        if (!x) {
            coded_decode(k, rows, row, column + i, n, wide);
            x = wide;
        }
        narrow_run(k, dtype, x, n, (char *)out + i * size);
    }
}

typedef struct convert_job {
    const kernels *kernels;
    const coded_rows *rows;
    size_t row, count, step;
    tare_dtype dtype;
    char *out;
} convert_job;

static void convert_piece(void *user, size_t index, int thread)
{
    (void)thread;
    const convert_job *job = user;
    size_t k = job->rows->k, end = size_min((index + 1) * job->step, job->count);
    for (size_t i = index * job->step; i < end; i++)
        coded_convert(job->kernels, job->rows, job->row + i, 0, k, job->dtype,
                      job->out + i * k * dtype_size(job->dtype));
}

void coded_convert_rows(const tare_context *ctx, const coded_rows *rows, size_t row, size_t count,
                        tare_dtype dtype, void *out)
{
    convert_job job = {kernels_get(ctx), rows, row, count, 1, dtype, out};
    if (rows->k < PIECE_ELEMENTS)
        job.step = PIECE_ELEMENTS / size_max(rows->k, 1);
    parallel_for(ctx, size_divide_up(count, job.step), convert_piece, &job);
}
