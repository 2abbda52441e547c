/* Weights in memory as they are stored, and what their bytes mean. A codec is a row of a table; it
 * alone knows the bytes, everybody else asks for rows as numbers. */
#ifndef TARE_TENSOR_CODEC_H
#define TARE_TENSOR_CODEC_H

#include "base/dtype.h"
#include "base/memory.h"

struct kernels;
typedef struct coded_rows coded_rows;

typedef struct codec {
    tare_dtype stored;  /* of the elements on disk */
    tare_dtype values;  /* of the numbers that they stand for: F32, F16 or BF16 */
    size_t block;       /* elements share a scale in blocks [block,block]; 0: there are no scales */
    const char *scales; /* name of the scales' tensor behind that of the module */
    float most_scale;   /* with which every element is finite */
    /* out[count] <- columns [column, column+count) of a row. */
    void (*decode)(const struct kernels *k, const coded_rows *rows, size_t row, size_t column,
                   size_t count, float *out);
} codec;

/* The codec of a weight whose elements are stored in a dtype; NULL: there is none. F8_E4M3: a
 * number is element * scale, rounded to BF16; blocks at the right and lower edge are cut. */
const codec *codec_of(tare_dtype stored);

/* Rows of a weight. */
struct coded_rows {
    const codec *codec; /* NULL: no numbers, they can be copied alone */
    tare_dtype dtype;   /* that the numbers are rounded to: F32, F16 or BF16 */
    void *data;         /* [rows,k] as they are stored */
    float *scales;      /* [blocks of rows, blocks of k]; NULL: the codec has none */
    size_t first;       /* row 0 stands in row `first` of the scales' blocks */
    size_t k;
    void *room; /* that data lies in, and is freed in its place; NULL: none */
};

/* Borrowed data [rows,k] without scales. */
coded_rows coded_plain(tare_dtype dtype, const void *data, size_t k);
/* Borrowed integers [rows,k]: a number is integer * scale, in FP32 and rounded to `dtype`; each row
 * has its scale, or all have `one_scale`. */
coded_rows coded_integers(tare_dtype dtype, const int8_t *q, const float *scales, bool one_scale,
                          size_t k);
/* The rows from `row` on, borrowed. */
coded_rows coded_from(const coded_rows *rows, size_t row);
/* Data (or its room) and scales are freed. */
void coded_free(tare_context *ctx, coded_rows *rows);

/* Where row and column stand as numbers in `dtype`; NULL: they have to be decoded. */
const void *coded_in_place(const coded_rows *rows, tare_dtype dtype, size_t row, size_t column);
/* Columns [column, column+count) of a row in FP32; `out` may not be where they stand. */
void coded_decode(const struct kernels *k, const coded_rows *rows, size_t row, size_t column,
                  size_t count, float *out);
/* The same in `dtype`. */
void coded_convert(const struct kernels *k, const coded_rows *rows, size_t row, size_t column,
                   size_t count, tare_dtype dtype, void *out);
/* Whole rows [row, row+count) in `dtype`, or of rows without a codec as they are. Parallel. */
void coded_convert_rows(const tare_context *ctx, const coded_rows *rows, size_t row, size_t count,
                        tare_dtype dtype, void *out);

#endif
