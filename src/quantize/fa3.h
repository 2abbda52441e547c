/* FA3: INT8 scales for q, k and v of an attention module (spec/fa3.md 1.3, 1.4 and 1.6). Everything
 * is per head: the reach of most values of each sample, the running extremes of that reach over all
 * samples, one symmetric scale. Results depend neither on the number of threads nor on how samples
 * are grouped into batches. */
#ifndef TARE_QUANTIZE_FA3_H
#define TARE_QUANTIZE_FA3_H

#include "quantize/scheme.h"
#include "tensor/kernels.h"

typedef enum fa_kind { FA_Q, FA_K, FA_V, FA_KINDS } fa_kind;

/* "fa_q", "fa_k", "fa_v" */
const char *fa_kind_name(fa_kind kind);

/* ---- one row: the narrowest window over the share `rho` of its values ---- */

/* Fed with the values of a row in any order and any pieces; keeps the `keep` smallest and the
 * `keep` largest in two heaps, which is all that the sorted row is needed for. */
typedef struct fa_window {
    size_t keep, count;
    float *low, *high; /* [keep] max-heaps; `high` holds negated values */
    bool finite;
} fa_window;

/* The share of a row that its window spans: 0.9999 of q and k, all of v. */
double fa_window_share(fa_kind kind);
/* N - m + 1 of a row of `count` > 0 values. */
size_t fa_window_keep(double rho, size_t count);
/* `storage` [2*keep] is borrowed. */
void fa_window_init(fa_window *w, size_t keep, float *storage);
void fa_window_add(fa_window *w, const kernels *k, const float *x, size_t n);
/* Ends of the window, after at least `keep` values; false if one of the values was NaN or infinite.
 * Spoils the heaps. */
bool fa_window_end(fa_window *w, float *low, float *high);

/* ---- one attention module ---- */

/* q, k or v of consecutive tokens: element (token t, head h, channel d) is
 * x[t*row_stride + h*head_dim + d]. */
typedef struct fa_input {
    const float *x;
    size_t row_stride, head_dim;
} fa_input;

typedef struct fa_observer fa_observer;

/* `module` is the attention's name ("model.layers.0.self_attn"), copied. heads: of q, k and v.
 * v_method: how the scales of v come from its values; those of q and k from their largest. */
typedef enum fa_v_method {
    FA_V_MAX, /* the largest / 127 */
    FA_V_MSE  /* of the fractions 1.00, 0.95, ... 0.50 of that the one with the smallest squared
                 error (spec/rotation.md 5) */
} fa_v_method;
tare_status fa_observer_create(tare_context *ctx, const char *module, const size_t heads[FA_KINDS],
                               fa_v_method v_method, fa_observer **out);
void fa_observer_free(fa_observer *o);
/* `samples` samples that lie one after the other in `in`, with lengths[s] tokens each; `first` is
 * the number of the first one, for messages. The first sample of all is scored too. NaN or
 * infinity: TARE_E_NUMERIC that names module, tensor, head and sample; a sample without tokens:
 * TARE_E_DATA. Nothing changes on failure. */
tare_status fa_observe(fa_observer *o, size_t first, const size_t *lengths, size_t samples,
                       const fa_input in[FA_KINDS]);
/* Accounted bytes, at most, of an observer, and of fa_observe with up to `samples` samples, the
 * longest of which has `longest` tokens. */
size_t fa_observer_bytes(const size_t heads[FA_KINDS], fa_v_method v_method);
size_t fa_observe_bytes(const tare_context *ctx, const size_t heads[FA_KINDS], size_t head_dim,
                        size_t samples, size_t longest);
/* scales [heads] of one tensor, rounded to num->dtype; offsets are all 0. TARE_E_NUMERIC without a
 * sample, or if a scale does not fit the dtype. */
tare_status fa_observer_scales(const fa_observer *o, const numerics *num, fa_kind kind,
                               float *scales);
/* The same of heads whose windows reach from low[h] to high[h]. */
tare_status fa_scales(tare_context *ctx, const char *module, fa_kind kind, const float *low,
                      const float *high, size_t heads, tare_dtype dtype, float *scales);
/* The scores of q, k and v on the first sample; NULL before it. */
const float *fa_observer_scores(const fa_observer *o);

/* ---- which modules go without ---- */

/* The score of 1.6 of one tensor, all of whose values are finite; high = hard to quantize. */
tare_status fa_score(tare_context *ctx, const fa_input *in, size_t heads, size_t tokens,
                     float *score);

/* Accounted bytes, at most. */
size_t fa_score_bytes(const tare_context *ctx, size_t heads);

typedef struct fa_module {
    const char *name;
    float scores[FA_KINDS];
    bool fallback; /* out */
} fa_module;

/* Marks the `fa_amp` modules with the highest scores (the worst of its tensors counts; ties: the
 * earlier module). Warns when there are fewer; logs names and scores. */
tare_status fa_fall_back(tare_context *ctx, fa_module *modules, size_t count, size_t fa_amp);

#endif
