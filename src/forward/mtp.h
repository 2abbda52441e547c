/* What surrounds the block of an MTP layer (model/mtp.h): its input, and the tokens that it is
 * told. Rows are independent of each other. */
#ifndef TARE_FORWARD_MTP_H
#define TARE_FORWARD_MTP_H

#include "forward/linear.h"

/* Where its positions begin (batch.turn): token t of a sample stands at position t + 1 of the first
 * MTP layer, the last one at 0, as the reference system rolls them. 0: it is a block of none. */
static inline size_t mtp_turn(const tare_model *m, const model_block *b)
{
    return b->index < m->config.num_layers ? 0 : b->index - m->config.num_layers + 1;
}

/* Norms and the projection of one layer, loaded. */
typedef struct mtp_input {
    struct mtp_input *self; /* with what the rows in work need behind it */
    tare_model *model;
    const mtp_layer *layer;
    size_t hidden;
    tare_dtype round; /* as workspace.round */
    float *enorm, *hnorm;
    float_linear projection;
    float *token, *both; /* [rows, hidden], [rows, 2 hidden] */
} mtp_input;

tare_status mtp_input_open(tare_model *model, const mtp_layer *layer, gemm_compute compute,
                           tare_dtype round, mtp_input **out);
void mtp_input_close(mtp_input *m); /* NULL: nothing */
/* x [count, hidden] of the layer before <- what the layer's block reads; ids [count]: of each row
 * the token behind those that x has seen. */
tare_status mtp_input_run(mtp_input *m, const uint32_t *ids, size_t count, float *x);
/* Accounted bytes, at most, loading included. */
size_t mtp_input_bytes(const tare_model *model, const mtp_layer *layer, gemm_compute compute);

/* The likeliest next token of each row of x [count, hidden], which is overwritten: by the logits of
 * the model or, from 1 on, of an MTP layer, which are counted from 1 here. */
tare_status mtp_next_tokens(tare_model *model, size_t layer, float *x, size_t count,
                            tare_dtype round, uint32_t *out);
size_t mtp_next_tokens_bytes(const tare_model *model, size_t layer, size_t count);

#endif
