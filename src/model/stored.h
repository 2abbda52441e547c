/* Stored weights: where the rows of a matrix come from. Its tensors in the checkpoint, the codec of
 * their bytes, which rows of them are its own, and what is done to the numbers: they are rounded to
 * `dtype`. Rows come as they are stored (tensor/codec.h), or as numbers; whoever reads them does
 * not know what is on disk. A norm, a bias or a tensor that is only copied is one as well. */
#ifndef TARE_MODEL_STORED_H
#define TARE_MODEL_STORED_H

#include "model/checkpoint.h"
#include "model/edit.h"

typedef struct stored_weight {
    const char *name;                   /* of the tensor that its numbers make */
    const tensor_info *tensor, *scales; /* scales NULL: the codec has none */
    const codec *codec;                 /* NULL: no numbers, rows can be copied alone */
    tare_dtype dtype;                   /* of the numbers: what the codec gives, until it is set */
    size_t n, k;                        /* rows and their elements */
    size_t first; /* of the tensor's rows of k elements, the matrices of [E,n,k] one after another;
                     all of them in one matrix */
    const weight_edit
        *edit; /* NULL: the numbers are as they are stored. Else rows come as `dtype` */
} stored_weight;

/* A tensor without scales as `rows` rows. */
stored_weight stored_tensor(const tensor_info *tensor, size_t rows);
/* The same with the rows of its first dimension. */
stored_weight stored_whole(const tensor_info *tensor);
/* Rows [first, first+n) of the matrix or matrices `tensor`, whose dtype has a codec. `scales`: with
 * a codec that has them, [ceil(N/block), ceil(K/block)] (in front of that E) for matrices [N,K], in
 * F32, F16 or BF16. */
stored_weight stored_matrix(const char *name, const tensor_info *tensor, const tensor_info *scales,
                            size_t first, size_t n);
/* The tensor of its numbers: what a float copy of the whole is. Its offset means nothing. */
tensor_info stored_values(const stored_weight *w);

/* ---- rows as they are stored ---- */

/* Memory for `rows` of them, for coded_free. */
tare_status stored_room(const checkpoint *c, const stored_weight *w, size_t rows, coded_rows *out);
/* Rows [first, first+count) into such memory. A NaN or infinity is TARE_E_NUMERIC and names the
 * tensor. */
tare_status stored_read(checkpoint *c, const stored_weight *w, size_t first, size_t count,
                        coded_rows *room);
/* The same by checkpoint_read_in: *out becomes rows in `room`, and in `scales`, of
 * stored_scales(w, count) floats. Whether they are finite is not looked at, but for the scales. */
tare_status stored_read_in(checkpoint *c, const stored_weight *w, size_t first, size_t count,
                           void *room, float *scales, coded_rows *out);
/* All rows in memory of their own. */
tare_status stored_load(checkpoint *c, const stored_weight *w, coded_rows *out);

/* Called with each piece, in order: rows [first, first+count). */
typedef tare_status (*stored_rows_fn)(void *user, size_t first, size_t count,
                                      const coded_rows *rows);
/* Streams all rows in pieces of at most 16 MiB (at least one row). */
tare_status stored_stream(checkpoint *c, const stored_weight *w, stored_rows_fn piece, void *user);

/* ---- rows as numbers ---- */

/* Rows [first, first+count) in `dtype` F32, F16 or BF16, straight from the checkpoint; without a
 * codec in the tensor's own. */
tare_status stored_read_rows(checkpoint *c, const stored_weight *w, size_t first, size_t count,
                             tare_dtype dtype, void *out);

/* ---- sizes ---- */

/* Do its rows come one from another, so that all of them have to be read together? */
bool stored_is_whole(const stored_weight *w);
/* Bytes of a row in memory, and floats that scale `rows` rows at most. */
size_t stored_row_bytes(const stored_weight *w);
size_t stored_scales(const stored_weight *w, size_t rows);
/* Bytes in the checkpoint. */
uint64_t stored_bytes(const stored_weight *w);
/* Accounted bytes, at most: of `rows` rows in memory, and what reading them needs beside. */
size_t stored_room_bytes(const stored_weight *w, size_t rows);
size_t stored_reading_bytes(const stored_weight *w, size_t rows);
/* Rows of a piece of stored_stream, and accounted bytes of the stream at most, without what `piece`
 * needs. */
size_t stored_step(const stored_weight *w);
size_t stored_stream_bytes(const stored_weight *w);

#endif
