/* A checkpoint as a model: config.json plus the tensors of every layer, found and checked. */
#ifndef TARE_MODEL_MODEL_H
#define TARE_MODEL_MODEL_H

#include "model/checkpoint.h"
#include "model/config.h"

/* One linear of the model. `name` is the module's: "model.layers.0.self_attn.q_proj" or "lm_head".
 */
typedef struct model_linear {
    const char *name;
    const linear_spec *spec; /* NULL for the head */
    linear_group group;
    size_t layer;              /* num_layers for the head */
    size_t n, k;               /* out, in */
    const tensor_info *weight; /* of a tied head: the embedding */
    const tensor_info *bias;   /* NULL: none */
} model_linear;

typedef struct model_layer {
    model_linear linears[ROLE_COUNT];     /* by role */
    const tensor_info *norms[NORM_COUNT]; /* by role; NULL: the architecture has none */
} model_layer;

struct tare_model {
    tare_context *ctx;
    atomic_uint owners; /* who must free it before it goes: its caller, verifiers */
    arena arena;
    char *dir;    /* the checkpoint's folder, or what stands for it in messages */
    char *folder; /* of the tokenizer and other files; NULL: none */
    model_config config;
    char *config_json; /* text of config.json, zero-terminated */
    bool config_given; /* as such: there is no file */
    size_t config_length;
    checkpoint *checkpoint;
    const tensor_info *embedding, *final_norm;
    model_linear head;
    bool head_is_tied;   /* the embedding serves: there is no lm_head.weight in the checkpoint, or
                          * one that differs, which is left out */
    bool head_is_unlike; /* in memory: not the embedding, though config.json ties them */
    model_layer *layers; /* [config.num_layers] */
    const tensor_info **extra; /* tensors of modules that the architecture does not have
                                  (tensor_names.h), copied through */
    size_t num_extra;
    /* TARE_DTYPE_COUNT: weights are used as stored. F16, BF16, F32: float tensors are rounded to it
     * when they are read, as loading the model in that dtype does. */
    tare_dtype load_dtype;
    struct generation *generation; /* what generation keeps between calls (generate.h); NULL yet */
};

/* One owner more. */
tare_model *model_keep(tare_model *model);
/* The same model once more, for a caller that sets load_dtype; `source` must outlive it. */
tare_status model_reopen(tare_context *ctx, const tare_model *source, tare_model **out);

/* `n` stored elements to FP32, by way of load_dtype. */
void model_widen(const tare_model *model, tare_dtype dtype, const void *from, size_t n, float *to);
/* Reads a float tensor of at most a few MB whole, widened to FP32 [elements]; freed with mem_free.
 */
tare_status model_read_vector(tare_model *model, const tensor_info *tensor, float **out);

/* Accounted bytes, at most: of the result of model_read_vector, and while it is read. */
size_t model_vector_bytes(const tensor_info *tensor);
size_t model_read_vector_bytes(const tensor_info *tensor);

/* Called with each piece of a tensor, in order: rows [first, first+count) as stored. */
typedef tare_status (*model_rows_fn)(void *user, size_t first, size_t count, const void *rows);
/* Streams a matrix in pieces of at most 16 MiB (at least one row). */
tare_status model_stream_rows(tare_model *model, const tensor_info *tensor, model_rows_fn piece,
                              void *user);
/* Rows of one piece, and accounted bytes of the stream at most, without what `piece` needs. */
size_t model_stream_step(const tensor_info *tensor);
size_t model_stream_bytes(const tensor_info *tensor);

#endif
