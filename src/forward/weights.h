/* The weights of a model in compute format, layer after layer: kept in memory from the first pass
 * on, or read anew in each. For FP32 products on weights as they are stored. */
#ifndef TARE_FORWARD_WEIGHTS_H
#define TARE_FORWARD_WEIGHTS_H

#include "base/read_ahead.h"
#include "forward/linear.h"

/* What is in memory at once; in the order of preference. */
typedef enum weight_mode {
    WEIGHTS_KEPT,   /* all layers and the head */
    WEIGHTS_AHEAD,  /* a layer, and the next one as it is read */
    WEIGHTS_LAYER,  /* a layer */
    WEIGHTS_LINEAR, /* a linear: read again for each batch */
    WEIGHT_MODES
} weight_mode;

/* All layers and the head, once they have been loaded. */
typedef struct kept_weights kept_weights;

tare_status kept_weights_load(tare_model *model, kept_weights **out);
void kept_weights_free(kept_weights *k);

typedef struct weight_source {
    tare_model *model;
    weight_mode mode;
    const kept_weights *kept;
    read_ahead *layers; /* AHEAD: items are layers, read into */
    coded_rows ahead[2][BLOCK_LINEARS];
    size_t layer;
    float_block linears; /* AHEAD, LAYER */
    block_norms norms;   /* all but KEPT */
    float *final_norm;   /* all but KEPT */
} weight_source;

/* `kept` is borrowed, and NULL unless mode is KEPT. */
tare_status weight_source_open(tare_model *model, weight_mode mode, const kept_weights *kept,
                               weight_source *out);
void weight_source_close(weight_source *w);
/* Makes `layer` the current one; layers are asked for in order, from 0 on again and again. */
tare_status weight_source_layer(weight_source *w, size_t layer, const block_norms **norms);
/* block_ops.linears with `user` = weight_source, of the current layer. Looks for cancellation
 * between pieces of rows. */
tare_status weight_source_linears(void *user, graph_unit unit, const batch *b, const float *x,
                                  float *const *y);
/* block_ops.expert: the weights of the expert are read, whatever the mode. */
tare_status weight_source_expert(void *user, size_t expert, graph_unit unit, size_t rows,
                                 const float *x, float *const *y);
/* logits [rows, vocab] of hidden states x [rows, hidden], which are normed in place. */
tare_status weight_source_logits(weight_source *w, float *x, size_t rows, float *logits);

/* Accounted bytes, at most: of kept_weights (while they are loaded, and after), and of a pass with
 * the most that its calls need, with `head_rows` rows at the head. */
size_t kept_weights_loading_bytes(const tare_model *model);
size_t kept_weights_bytes(const tare_model *model);
size_t weight_source_bytes(const tare_model *model, weight_mode mode, size_t head_rows);
/* Of the checkpoint: bytes of all layers and the head. */
uint64_t weight_source_read(const tare_model *model);
/* Their elements. */
uint64_t weight_source_parameters(const tare_model *model);

#endif
