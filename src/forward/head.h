/* The head (lm_head, or the embedding that serves as it): logits of hidden states. Its matrix is
 * the largest of many models, so it is read and packed in panels of rows and never held twice. */
#ifndef TARE_FORWARD_HEAD_H
#define TARE_FORWARD_HEAD_H

#include "forward/linear.h"

/* Packed; in panels of the vocabulary. */
typedef struct head_weights {
    gemm_weight **panels; /* [count] */
    size_t count;
} head_weights;

tare_status head_weights_load(tare_model *model, head_weights *out);
void head_weights_free(tare_context *ctx, head_weights *h);

/* logits [count, vocab] of x [count, hidden] after the final norm: with packed weights, or
 * streamed. The same bits. */
tare_status head_logits_kept(tare_model *model, const head_weights *h, const float *x, size_t count,
                             float *logits);
tare_status head_logits(tare_model *model, const float *x, size_t count, float *logits);

/* best [count] <- for each row of x [count, hidden] the first of its largest logits, rounded to
 * `round`, by any head; streamed, and no more logits are held than a panel has. */
tare_status head_best(tare_model *model, const stored_weight *head, const float *x, size_t count,
                      tare_dtype round, uint32_t *best);
size_t head_best_bytes(const tare_model *model, const stored_weight *head, size_t count);

/* Accounted bytes, at most: of packed weights, what loading needs beside them, and what the two
 * products need. */
size_t head_weights_bytes(const tare_model *model);
size_t head_weights_loading_bytes(const tare_model *model);
size_t head_kept_bytes(const tare_model *model, size_t count);
size_t head_logits_bytes(const tare_model *model, size_t count);

#endif
