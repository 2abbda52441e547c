/* INT8 scales for the keys and values that an engine keeps (C8, spec/schemes.md 5.1): one for each
 * channel, from the extremes over all tokens of all samples. Keys are observed as they go into the
 * cache: behind their norm and their rotation (compat: as the projection puts them out, 5.2).
 * Results depend neither on the number of threads nor on how samples are grouped into batches. */
#ifndef TARE_QUANTIZE_KV_OBSERVER_H
#define TARE_QUANTIZE_KV_OBSERVER_H

#include "file/archive.h"
#include "quantize/scheme.h"

typedef enum kv_kind { KV_KEYS, KV_VALUES, KV_KINDS } kv_kind;

typedef struct kv_observer kv_observer;

/* `module` is the attention's name, copied; channels: kv_heads * head_dim, head-major. */
tare_status kv_observer_create(tare_context *ctx, const char *module, size_t channels,
                               kv_observer **out);
void kv_observer_free(kv_observer *o);
/* rows: keys and values [tokens,channels] of `samples` samples that lie one after the other, with
 * lengths[s] tokens each; `first` is the number of the first one, for messages. NaN or infinity:
 * TARE_E_NUMERIC that names module, channel and sample; the observer is of no more use then. */
tare_status kv_observe(kv_observer *o, size_t first, const size_t *lengths, size_t samples,
                       const float *const rows[KV_KINDS]);
/* What was observed so far becomes what it would be with each channel divided by divisors
 * [channels], which are positive: by outlier suppression, once it is known. */
void kv_observer_divide(kv_observer *o, kv_kind kind, const float *divisors);
/* scales, offsets [channels] <- symmetric: max(max|x|/127, 2^-23) rounded to num.dtype, and 0; else
 * of the range with 0 (spec/w8a8.md 4.1). TARE_E_NUMERIC without a sample, or if a scale does not
 * fit the dtype. */
tare_status kv_observer_params(const kv_observer *o, kv_kind kind, const numerics *num,
                               bool symmetric, float *scales, float *offsets);
/* low, high [channels] of all so far; and an observer that is told them instead of samples. */
void kv_observer_get(const kv_observer *o, kv_kind kind, float *low, float *high);
void kv_observer_set(kv_observer *o, kv_kind kind, const float *low, const float *high);
/* Writes it, or reads it into one just created. */
tare_status kv_observer_archive(kv_observer *o, archive *a);
/* Accounted bytes, at most; kv_observe takes no others. */
size_t kv_observer_bytes(size_t channels);

#endif
