/* Opening a model: what its files share. */
#ifndef TARE_MODEL_MODEL_INTERNAL_H
#define TARE_MODEL_MODEL_INTERNAL_H

#include "model/model.h"
#include "model/tensor_names.h"

/* Finds the float tensor `module`.`part` and checks it. */
tare_status model_find_tensor(tare_model *m, const char *module, const char *part, int rank,
                              size_t rows, size_t cols, const tensor_info **out);
/* The matrix `module`.weight: floats, or in the form that config.json tells. */
tare_status model_find_weight(tare_model *m, const char *module, size_t n, size_t k,
                              stored_weight *out);
/* All of a block that is laid out. */
tare_status model_find_block(tare_model *m, model_block *b);

/* ---- others.c ---- */

/* What no layer needs; `quiet`: this model was opened, and warned about, before. */
tare_status model_collect_others(tare_model *m, bool quiet);

/* ---- mtp.c ---- */

/* The MTP layers that the model was opened for, and the blocks that are laid out for them. */
tare_status mtp_find(tare_model *m);
/* Does what the model was opened for copy a tensor of this use? */
bool mtp_is_copied(const tare_model *m, tensor_use use);

#endif
