/* Keys and values of the sequences that are being continued, after rotation, FP32: in memory, or in
 * a scratch file a sequence, of which one layer at a time is in memory. */
#ifndef TARE_FORWARD_KV_CACHE_H
#define TARE_FORWARD_KV_CACHE_H

#include "file/io.h"

typedef struct kv_cache {
    tare_context *ctx;
    size_t capacity; /* tokens */
    size_t layers;
    size_t cols[2];     /* of keys, of values */
    float *data;        /* in memory: [layers], each keys [capacity, cols], then values */
    scratch_file *file; /* spilled: the same */
} kv_cache;

/* `folder` NULL: in memory. */
tare_status kv_cache_create(tare_context *ctx, size_t layers, const size_t cols[2], size_t capacity,
                            const char *folder, kv_cache *out);
void kv_cache_free(kv_cache *c);
/* Accounted bytes, at most. */
size_t kv_cache_bytes(size_t layers, const size_t cols[2], size_t capacity, bool spill);
/* Appends `count` tokens of one layer behind `past` ones; k and v [count, cols]. *keys and *values
 * are the past+count that there are then; where they are spilled they lie in `room`, keys and
 * behind them values of `capacity` tokens (else it may be NULL), and with past 0 are not brought
 * there: both NULL. */
tare_status kv_cache_append(kv_cache *c, size_t layer, size_t past, size_t count, const float *k,
                            const float *v, float *room, const float **keys, const float **values);

#endif
