/* Rotating a model: edits of its stored weights (edit.h) after which it computes the same numbers,
 * while nothing of the residual stream, and of attention's values, stands out any more
 * (specification: spec/rotation.md 1, 2). Weights of norms move into the linears that read them;
 * readers of the stream become W R1, its writers R1^T W; each head of values is turned by an R2 of
 * its own, which what reads them undoes. The head of a tied model gets a weight of its own. */
#ifndef TARE_MODEL_ROTATE_H
#define TARE_MODEL_ROTATE_H

#include "model/model.h"
#include "tensor/rotation.h"

typedef struct rotation_settings {
    uint64_t seed;
    bool r1, r2;       /* of the stream; of values */
    bool align, flips; /* the stream's by the means of norms (model_align) */
} rotation_settings;

/* The model's weights from now on. TARE_E_USAGE for an architecture whose stream passes something
 * that a rotation does not pass through. */
tare_status model_rotate(tare_model *model, const rotation_settings *settings);
/* Does the unit read the stream by way of a norm? Its number in the block; -1: no. */
int model_stream_norm(const tare_model *model, const model_block *block, graph_unit unit);
/* A rotated model whose R1 is mirrored so that the direction that most means of its norms' outputs
 * share becomes (1, ..., 1), which an offset absorbs; and channels of norms are flipped so that
 * their means are positive (section 3). means [num_blocks * BLOCK_NORMS]: [hidden_size] of the
 * rotated model's norms that read the stream, in block order; NULL for others. */
tare_status model_align(tare_model *model, const float *const *means);
/* Accounted bytes, at most, that it keeps and works with, for so many norms with means. */
size_t model_align_bytes(const tare_model *model, size_t norms);
/* R1, of the model's lifetime; NULL: its stream is not rotated. */
const rotation *model_stream_rotation(const tare_model *model);
/* The weight, norm or bias that the tensor `name` has become; false: it is as it was. */
bool model_find_rotated(const tare_model *model, const char *name, stored_weight *out);
/* Accounted bytes, at most, that reading an edited weight needs beside what stored_reading_bytes
 * says. */
size_t model_edit_bytes(const tare_model *model);
void model_rotation_free(tare_model *model);

#endif
