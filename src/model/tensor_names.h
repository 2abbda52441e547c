/* What a tensor of a checkpoint is to a model, by its name alone. */
#ifndef TARE_MODEL_TENSOR_NAMES_H
#define TARE_MODEL_TENSOR_NAMES_H

#include "model/config.h"

typedef enum tensor_use {
    TENSOR_NEEDED,    /* the architecture has it; lm_head.weight of a tied model too */
    TENSOR_BUFFER,    /* a table that is computed anew: rotary inv_freq of old checkpoints */
    TENSOR_MTP_BLOCK, /* of the decoder block of an MTP layer (mtp.h) */
    TENSOR_MTP,       /* of what surrounds it */
    TENSOR_BEYOND,    /* of a layer that num_hidden_layers leaves out */
    TENSOR_UNUSED,    /* of a module that the architecture has, but it has no such tensor */
    TENSOR_FOREIGN    /* of a module that the architecture does not have */
} tensor_use;

/* `graphs`: of the blocks, one for those without experts and one for those with. */
tensor_use tensor_use_of(const model_config *config, const block_graph graphs[BLOCK_KINDS],
                         const char *name);

#endif
