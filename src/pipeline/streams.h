/* Hidden states of samples at a layer boundary, [rows, cols] FP32: the only thing that a run
 * carries from layer to layer. They lie in memory, or (spilled) in two scratch files: one holds the
 * boundary before the layer in work, the other what came out of it so far. For each batch in order:
 *
 *     stream_get(s, first, count, &x);   rows [first, first+count)
 *     …                                  x is worked on in place
 *     stream_put(s, first, count, x);
 *
 * and behind the last batch stream_flip(s). */
#ifndef TARE_PIPELINE_STREAMS_H
#define TARE_PIPELINE_STREAMS_H

#include "file/archive.h"

typedef struct state_stream state_stream;

/* `folder` NULL: in memory. `most`: rows of the largest batch. */
tare_status stream_create(tare_context *ctx, size_t rows, size_t cols, size_t most,
                          const char *folder, state_stream **out);
void stream_free(state_stream *s);
size_t stream_rows(const state_stream *s);
/* Accounted bytes. */
size_t stream_bytes(size_t rows, size_t cols, size_t most, bool spilled);
/* *x is valid until the next call. */
tare_status stream_get(state_stream *s, size_t first, size_t count, float **x);
tare_status stream_put(state_stream *s, size_t first, size_t count, const float *x);
/* What was put is what the next layer gets. */
void stream_flip(state_stream *s);
/* Between layers: writes all rows to an archive, or reads them from one. */
tare_status stream_archive(state_stream *s, archive *a);

#endif
