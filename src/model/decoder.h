/* The decoder layer over a batch of samples. What a linear does (float, fake-quantized, observed)
 * is not known here: the caller supplies it as a function, so quantization never touches this file
 * and an architecture never touches quantization. */
#ifndef TARE_MODEL_DECODER_H
#define TARE_MODEL_DECODER_H

#include "model/model.h"
#include "tensor/attention.h"

/* Consecutive samples of a set; their rows (tokens) lie one after the other. */
typedef struct batch {
    size_t first; /* index of the first sample in the set */
    size_t samples;
    const size_t *lengths; /* [samples] tokens of each */
    size_t rows;           /* sum of the lengths */
    const size_t *past;    /* [samples] tokens of each that went through before; NULL: none did */
} batch;

/* What a decoder layer asks of its owner. */
typedef struct layer_ops {
    void *user;
    /* The linears of a group: y[i] [rows, n_i] of each member in order of role, from x [rows, k].
     */
    tare_status (*linears)(void *user, linear_group group, const batch *b, const float *x,
                           float *const *y);
    /* Sees q, k and v of a batch as attention takes them: after bias, q/k norm and rotation, before
     * KV heads are repeated; rows dense [rows, heads*head_dim]. NULL: nobody looks. */
    tare_status (*attention)(void *user, const batch *b, const float *q, const float *k,
                             const float *v);
    /* Attention itself, for samples whose earlier keys and values somebody keeps: out [rows, H*D]
     * from the same q, k and v. `scratch` as attention_forward's, for the workspace's longest
     * sample. NULL: a batch without a past. */
    tare_status (*attend)(void *user, const batch *b, const float *q, const float *k,
                          const float *v, float *out, float *scratch);
} layer_ops;

/* Norm weights of one layer in FP32, by role; NULL: none. */
typedef struct layer_norms {
    float *weights[NORM_COUNT];
    float *biases[NORM_COUNT]; /* NULL: none; what a shift of the norm's output made */
} layer_norms;

/* How attention is shaped for a sample of so many tokens in this layer. */
attention_shape layer_attention_shape(const model_config *c, size_t layer, size_t tokens);

tare_status layer_norms_load(tare_model *model, size_t layer, layer_norms *out);
void layer_norms_free(tare_context *ctx, layer_norms *norms);

/* Buffers for batches of up to `rows` rows whose longest sample has `longest` tokens, past
 * included. */
typedef struct decoder_workspace {
    tare_context *ctx;
    size_t rows;
    tare_dtype round; /* F16, BF16: the layer computes as a model in that dtype does, each result
                       * rounded once (tensor/rounded.h); F32: not at all */
    rope_table rope;
    float *input;               /* [rows, max(hidden, H*D)] what the linears of a group read */
    float *outputs[ROLE_COUNT]; /* [rows, n] */
    float *attention_scratch;
} decoder_workspace;

tare_status decoder_workspace_create(tare_model *model, size_t rows, size_t longest,
                                     tare_dtype round, decoder_workspace *out);
void decoder_workspace_free(decoder_workspace *w);
/* Accounted bytes, at most. */
size_t decoder_workspace_bytes(const tare_model *model, size_t rows, size_t longest);
/* The same of one layer's norms, loading included. */
size_t layer_norms_bytes(const tare_model *model, size_t layer);

/* x [rows, hidden] <- x + attention(norm(x)), then x + mlp(norm(x)). */
tare_status decoder_layer_forward(tare_model *model, size_t layer, const layer_norms *norms,
                                  const layer_ops *ops, const batch *b, decoder_workspace *w,
                                  float *x);

/* y [rows, cols] = RMSNorm(x) * weight + bias (NULL: none), row by row, rounded to `round`. */
void norm_rows(tare_context *ctx, const float *x, const float *weight, const float *bias,
               size_t rows, size_t cols, float eps, tare_dtype round, float *y);

/* Cuts samples [first, count) into the next batch: whole samples, at most `max_rows` rows (at least
 * one sample). */
batch batch_next(const size_t *lengths, size_t first, size_t count, size_t max_rows);

#endif
