/* How hard a linear's input is to quantize, for those who choose float layers by hand: the two
 * measures of the reference's LayerSelector. Both look at all calls (samples), in FP32:
 *
 *   std       max|x| over all calls / the largest of the calls' std(x - (column max + column min)),
 *             unbiased, extremes of the call: score.h without its limit of samples
 *   quantile  of each call every 100th value of its sorted elements from the 50th on (all of fewer
 *             than 100), of all calls joined and sorted to x[n]:
 *             (2 max|x| / 254) / (x[3 (n/4)] - x[n/4])
 *
 * Without any spread the score is infinite, of zeros alone 0 (the reference: NaN). */
#ifndef TARE_QUANTIZE_LAYER_SELECTOR_H
#define TARE_QUANTIZE_LAYER_SELECTOR_H

#include "quantize/score.h"

typedef struct layer_selector layer_selector; /* of one input */

tare_status layer_selector_create(tare_context *ctx, tare_range_method method,
                                  layer_selector **out);
void layer_selector_free(layer_selector *s);
/* One call: x [rows, cols], both > 0. NaN or infinity: TARE_E_NUMERIC. */
tare_status layer_selector_update(layer_selector *s, const float *x, size_t rows, size_t cols);
/* After at least one call, and the end: of no use afterwards. */
tare_status layer_selector_score(layer_selector *s, double *score);

/* Accounted bytes, at most: of one that sees samples of these lengths, `cols` wide; of an update
 * with up to `rows` rows, or of layer_selector_score, beside that. */
size_t layer_selector_bytes(tare_range_method method, const size_t *lengths, size_t samples,
                            size_t cols);
size_t layer_selector_update_bytes(const tare_context *ctx, tare_range_method method, size_t rows,
                                   size_t cols);
size_t layer_selector_score_bytes(const tare_context *ctx, tare_range_method method,
                                  const size_t *lengths, size_t samples, size_t cols);

#endif
