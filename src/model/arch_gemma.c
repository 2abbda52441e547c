/* Gemma 2 and 3: norms before and after attention and MLP, whose weights count from 1; a sliding
 * window in most layers. Gemma 2 bends scores and logits by tanh; Gemma 3 norms queries and keys
 * instead, and turns them faster in layers with a window. */
#include <math.h>

#include "model/config.h"

static void gemma_block(const model_config *c, bool head_norms, bool experts, block_graph *out)
{
    dense_form form = {.qkv_bias = c->attention_bias,
                       .o_bias = c->attention_bias,
                       .head_norms = head_norms,
                       .activation = GATE_GELU_TANH,
                       .after_attention = "post_attention_layernorm",
                       .before_mlp = "pre_feedforward_layernorm",
                       .after_mlp = "post_feedforward_layernorm"};
    arch_dense_block(c, &form, experts, out);
}

static void gemma2_block(const model_config *c, bool experts, block_graph *out)
{
    gemma_block(c, false, experts, out);
}

static void gemma3_block(const model_config *c, bool experts, block_graph *out)
{
    gemma_block(c, true, experts, out);
}

const architecture arch_gemma2 = {.model_type = "gemma2",
                                  .block = gemma2_block,
                                  .smooth_alpha = 0.9,
                                  .default_kv_heads = 4,
                                  .default_head_dim = 256,
                                  .default_positions = 8192,
                                  .default_window = 4096,
                                  .default_tied = true,
                                  .default_query_scalar = 256,
                                  .default_attention_softcap = 50,
                                  .default_final_softcap = 30,
                                  .activation_key = "hidden_activation",
                                  .activation = "gelu_pytorch_tanh",
                                  .norm_base = 1,
                                  .scales_embeddings = true,
                                  .window = WINDOW_IN_TURN};

const architecture arch_gemma3_text = {.model_type = "gemma3_text",
                                       .block = gemma3_block,
                                       .smooth_alpha = 0.9,
                                       .default_kv_heads = 4,
                                       .default_head_dim = 256,
                                       .default_positions = 131072,
                                       .default_window = 4096,
                                       .default_theta = 1e6,
                                       .default_local_theta = 10000,
                                       .default_tied = true,
                                       .default_query_scalar = 256,
                                       .default_final_softcap = INFINITY,
                                       .activation_key = "hidden_activation",
                                       .activation = "gelu_pytorch_tanh",
                                       .norm_base = 1,
                                       .scales_embeddings = true,
                                       .window = WINDOW_PATTERN};
