/* Runs a block's graph over a batch of samples. What a linear does (float, fake-quantized,
 * observed) is not known here: the caller supplies it as a function, so quantization never touches
 * this file and an architecture never touches quantization. */
#ifndef TARE_FORWARD_EXECUTOR_H
#define TARE_FORWARD_EXECUTOR_H

#include "model/model.h"
#include "tensor/attention.h"

/* Consecutive samples of a set; their rows (tokens) lie one after the other. */
typedef struct batch {
    size_t first; /* index of the first sample in the set */
    size_t samples;
    const size_t *lengths; /* [samples] tokens of each */
    size_t rows;           /* sum of the lengths */
    const size_t *past;    /* [samples] tokens of each that went through before; NULL: none did */
    size_t turn; /* positions begin here, and behind the last one comes 0; only without past
                    (MTP layers) */
    /* [samples] sequences of equal length that each is made of, which do not see each other; NULL:
     * one. `kept`: tokens of each sequence before those that only pad it; NULL: all. */
    const size_t *sequences, *kept;
} batch;

/* What a block asks of its owner. */
typedef struct block_ops {
    void *user;
    /* The linears of a unit: y[i] [rows, n_i] of each in order, from x [rows, k]. */
    tare_status (*linears)(void *user, graph_unit unit, const batch *b, const float *x,
                           float *const *y);
    /* The linears of an expert's unit, as `linears`; x [rows, k] of the rows that chose it. NULL:
     * the model has no experts. */
    tare_status (*expert)(void *user, size_t expert, graph_unit unit, size_t rows, const float *x,
                          float *const *y);
    /* Sees q, k and v of a batch as attention takes them: after bias, q/k norm and rotation, before
     * KV heads are repeated; rows dense [rows, heads*head_dim]. `latent` [rows, kv_rank]: the
     * vectors that k and v were made from; NULL: they have linears. NULL: nobody looks. */
    tare_status (*attention)(void *user, const batch *b, const float *q, const float *k,
                             const float *v, const float *latent);
    /* Attention itself, for samples whose earlier keys and values somebody keeps: out [rows, H*D]
     * from the same q, k and v. `scratch` as attention_forward's, for the workspace's longest
     * sample. NULL: a batch without a past. */
    tare_status (*attend)(void *user, const batch *b, const float *q, const float *k,
                          const float *v, float *out, float *scratch);
} block_ops;

/* Norm weights of one block in FP32, in the graph's order. */
typedef struct block_norms {
    float *weights[BLOCK_NORMS];
    float *biases[BLOCK_NORMS]; /* NULL: none; what a shift of the norm's output made */
    float *correction;          /* of the router; NULL: none */
} block_norms;

/* Those of a segment; NULL: all. */
tare_status block_norms_load(tare_model *model, const model_block *block,
                             const block_segment *segment, block_norms *out);
void block_norms_free(tare_context *ctx, block_norms *norms);
/* Accounted bytes, at most, loading included. */
size_t block_norms_bytes(const model_block *block);

/* How attention is shaped for a sample of so many tokens in this layer. */
attention_shape layer_attention_shape(const model_config *c, size_t layer, size_t tokens);

/* Room for the values of a graph, for batches of up to `rows` rows whose longest sample has
 * `longest` tokens, past included. Values that do not live at the same time share it. */
typedef struct workspace {
    tare_context *ctx;
    size_t rows;
    tare_dtype round; /* F16, BF16: the block computes as a model in that dtype does, each result
                       * rounded once (tensor/rounded.h); F32: not at all */
    rope_table rope, local_rope; /* of layers with a window, where they have their own */
    float *values;               /* [graph columns, rows], rows rounded up */
    float *stream;               /* value 0 of the batch in work */
    float *attention_scratch;
    struct expert_room *experts; /* executor_experts.c; NULL: none run by it */
} workspace;

/* `experts`: NODE_EXPERTS will be run, if the model has any. */
tare_status workspace_create(tare_model *model, size_t rows, size_t longest, tare_dtype round,
                             bool experts, workspace *out);
void workspace_free(workspace *w);
/* Accounted bytes, at most. */
size_t workspace_bytes(const tare_model *model, size_t rows, size_t longest, bool experts);

/* Where a value of the graph lies; the first one, the block's input, while a batch passes. */
float *workspace_value(const workspace *w, const block_graph *graph, graph_value v);

/* x [rows, hidden] <- the block's output, or what a segment (NULL: all) leaves of it. The values
 * that a segment is carried must be in the workspace. */
tare_status block_forward(tare_model *model, const model_block *block, const block_segment *segment,
                          const block_norms *norms, const block_ops *ops, const batch *b,
                          workspace *w, float *x);

/* y [rows, cols] = RMSNorm(x) * weight + bias (NULL: none), row by row, rounded to `round`; with
 * the model's eps and the base of its norms' weights. */
void norm_rows(const tare_model *model, const float *x, const float *weight, const float *bias,
               size_t rows, size_t cols, tare_dtype round, float *y);

/* Cuts samples [first, count) into the next batch: whole samples, at most `max_rows` rows (at least
 * one sample). */
batch batch_next(const size_t *lengths, size_t first, size_t count, size_t max_rows);

#endif
