/* Causal attention of one sample with grouped key/value heads. */
#ifndef TARE_TENSOR_ATTENTION_H
#define TARE_TENSOR_ATTENTION_H

#include <math.h>

#include "base/dtype.h"
#include "base/memory.h"

typedef struct attention_shape {
    size_t tokens, num_heads, num_kv_heads, head_dim;
    size_t window;    /* sliding window in tokens, itself included; 0: none */
    tare_dtype round; /* F16, BF16: scores, probabilities and outputs as eager attention of a model
                       * in that dtype rounds them (tensor/rounded.h); F32: not at all */
    float scale;      /* of scores; 0: 1 / sqrt(head_dim) */
    float softcap;    /* scores become softcap * tanh(score / softcap); 0: they stay */
    size_t value_dim; /* of a head's values; 0: head_dim */
    size_t kept;      /* the tokens from this one on only pad: no query sees their keys; 0: none */
} attention_shape;

static inline size_t attention_value_dim(const attention_shape *shape)
{
    return shape->value_dim ? shape->value_dim : shape->head_dim;
}

static inline float attention_scale(const attention_shape *shape)
{
    return shape->scale != 0 ? shape->scale : (float)(1 / sqrt((double)shape->head_dim));
}

/* q [tokens, num_heads*head_dim], k [tokens, num_kv_heads*head_dim], v [tokens,
 * num_kv_heads*value_dim], rotated already; row strides in elements. out [tokens,
 * num_heads*value_dim] = softmax(softcap(q k^T * scale) +
 * causal mask) v. FP32; never tokens x tokens in memory: works on blocks of about 96 rows.
 * `scratch`: attention_scratch_size() floats for each of parallel_threads(ctx) threads, 64-byte
 * aligned. Parallel over key/value heads and row blocks; threads change nothing. tokens, head_dim >
 * 0; num_heads a multiple of num_kv_heads. */
void attention_forward(const tare_context *ctx, const attention_shape *shape, const float *q,
                       size_t q_stride, const float *k, size_t k_stride, const float *v,
                       size_t v_stride, float *out, size_t out_stride, float *scratch);
/* Whatever the window: layers may differ in it. Grows with tokens: the longest sample's serves all.
 */
size_t attention_scratch_size(const attention_shape *shape);

/* The last token of a sequence against all of it, itself included. */
typedef struct attention_step {
    const float *q;     /* [num_heads*head_dim], rotated */
    const float *k, *v; /* [tokens, num_kv_heads*head_dim], [tokens, num_kv_heads*value_dim] */
    size_t tokens;
    float *out; /* [num_heads*value_dim] */
} attention_step;

/* The same attention for `count` sequences, one query each; in FP32, in an order of its own. Of
 * `shape`, tokens is the most that any of them has, and scratch as above for that many. Parallel
 * over sequences and key/value heads; a sequence's result depends on nothing but that sequence. */
void attention_steps(const tare_context *ctx, const attention_shape *shape,
                     const attention_step *steps, size_t count, float *scratch);

#endif
