/* A checkpoint as a model: config.json plus the tensors of every layer, found and checked. */
#ifndef TARE_MODEL_MODEL_H
#define TARE_MODEL_MODEL_H

#include "model/checkpoint.h"
#include "model/config.h"
#include "model/stored.h"

/* One linear of the model. `name` is the module's: "model.layers.0.self_attn.q_proj" or "lm_head".
 */
typedef struct model_linear {
    const char *name;
    size_t unit;             /* of model.units */
    size_t n, k;             /* out, in */
    stored_weight weight;    /* [n,k]; of a tied head: the embedding */
    const tensor_info *bias; /* NULL: none */
} model_linear;

/* What surrounds the block of an MTP layer (mtp.h). */
typedef struct mtp_layer {
    const tensor_info *enorm, *hnorm; /* [hidden] */
    model_linear projection;          /* [hidden, 2 hidden] */
    stored_weight embedding;          /* [vocab, hidden] */
    const tensor_info *head_norm;
    stored_weight head; /* [vocab, hidden] */
} mtp_layer;

/* Linears that read one input and are fused by engines: model.linears [first, first+count). */
typedef struct model_unit {
    const char *kind; /* "qkv", "o", …, "head" */
    size_t block;     /* num_blocks for the head */
    size_t first, count;
    size_t k;
} model_unit;

/* A decoder layer: what its graph speaks of by numbers begins at these of the model's. Behind them
 * stand the linears of its experts, expert by expert, and their units. */
typedef struct model_block {
    const char *name; /* "model.layers.0" */
    const block_graph *graph;
    size_t index;
    size_t first_linear, end_linear, first_unit;
    const tensor_info *norms[BLOCK_NORMS]; /* their weights */
    const tensor_info *correction;         /* of its router; NULL: none */
} model_block;

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
    stored_weight embedding; /* [vocab, hidden] */
    const tensor_info *final_norm;
    bool head_is_tied;   /* the embedding serves: there is no lm_head.weight in the checkpoint, or
                          * one that differs, which is left out */
    bool head_is_unlike; /* in memory: not the embedding, though config.json ties them */
    block_graph expert;  /* of each of its experts, if it has any */
    block_graph graphs[BLOCK_KINDS]; /* of its blocks; without nodes: there is no such block */
    mtp_mode mtp;                    /* what it was opened for */
    model_block *blocks;             /* [num_blocks] config.num_layers, and with MTP_MIX those of
                                      * the MTP layers behind them */
    size_t num_blocks;
    mtp_layer *mtp_layers; /* [config.num_mtp]; NULL with MTP_NONE */
    model_linear *linears; /* [num_linears] in module order, the head last */
    model_unit *units;     /* [num_units], the head's last */
    size_t num_linears, num_units;
    model_linear *head;
    stored_weight *extra; /* tensors of modules that the architecture does not have
                                  (tensor_names.h), copied through */
    size_t num_extra;
    bool fp8_blocks; /* config.json says that linears are in FP8 (quantized.h) */
    /* TARE_DTYPE_COUNT: weights are used as stored. F16, BF16, F32: float tensors are rounded to it
     * when they are read, as loading the model in that dtype does (model_load_as). */
    tare_dtype load_dtype;
    struct model_rotation *rotation; /* rotate.h; NULL: weights are as they are stored */
    struct generation *generation; /* what generation keeps between calls (generate.h); NULL yet */
};

/* The linears of a block in order, i < block->graph->num_linears; and a unit of it. */
static inline const model_linear *block_linear(const tare_model *m, const model_block *b, size_t i)
{
    return &m->linears[b->first_linear + i];
}

/* Linear i < EXPERT_LINEARS of an expert: gate, up, down; and how many experts there are. */
static inline const model_linear *expert_linear(const tare_model *m, const model_block *b,
                                                size_t expert, size_t i)
{
    return &m->linears[b->first_linear + b->graph->num_linears + expert * EXPERT_LINEARS + i];
}

static inline size_t block_experts(const model_block *b)
{
    return b->graph->experts.count;
}

/* An expert as a block of its own; its name is printed to `name`. */
enum { EXPERT_NAME = 256 };
model_block expert_block(const tare_model *m, const model_block *b, size_t expert,
                         char name[EXPERT_NAME]);

static inline block_kind block_kind_of(const model_block *b)
{
    return block_experts(b) ? BLOCK_EXPERTS : BLOCK_PLAIN;
}

/* A graph that the model has: what names alone are asked of. */
static inline const block_graph *model_graph(const tare_model *m)
{
    return &m->graphs[m->graphs[BLOCK_PLAIN].num_nodes ? BLOCK_PLAIN : BLOCK_EXPERTS];
}

static inline const model_unit *block_unit(const tare_model *m, const model_block *b, size_t i)
{
    return &m->units[b->first_unit + i];
}

static inline bool linear_is_head(const tare_model *m, const model_linear *l)
{
    return l == m->head;
}

/* The MTP layer that a block is of; NULL: it is none of one. */
static inline const mtp_layer *block_mtp(const tare_model *m, const model_block *b)
{
    return b->index < m->config.num_layers ? NULL : &m->mtp_layers[b->index - m->config.num_layers];
}

/* One owner more. */
tare_model *model_keep(tare_model *model);
/* tare_model_open with its MTP layers, which must be there unless the mode is MTP_NONE. */
tare_status model_open(tare_context *ctx, const char *path, mtp_mode mtp, tare_model **out);
/* The same model once more, for a caller that sets load_dtype; `source` must outlive it. */
tare_status model_reopen(tare_context *ctx, const tare_model *source, mtp_mode mtp,
                         tare_model **out);
/* The name (in `a`) of the linear whose weight an extra tensor is, if it is one of an MTP layer;
 * NULL: it is none, or there is no memory. */
const char *model_extra_linear(const tare_model *model, const stored_weight *w, arena *a);
/* How many tensors of MTP layers the checkpoint has. */
size_t model_mtp_tensors(const tare_model *model);

/* What rotation makes of a norm or bias; NULL: nothing. */
const weight_edit *model_vector_edit(const tare_model *model, const tensor_info *tensor);

/* Sets load_dtype: of the model and of its stored weights. */
void model_load_as(tare_model *model, tare_dtype dtype);
/* A norm's weight, a bias: one row of numbers. */
stored_weight model_vector(const tare_model *model, const tensor_info *tensor);
/* Reads a float tensor of at most a few MB whole, widened to FP32 [elements]; freed with mem_free.
 */
tare_status model_read_vector(tare_model *model, const tensor_info *tensor, float **out);

/* Accounted bytes, at most: of the result of model_read_vector, and while it is read. */
size_t model_vector_bytes(const tensor_info *tensor);
size_t model_read_vector_bytes(const tensor_info *tensor);

#endif
