/* Gemma 2: norms before and after attention and MLP, whose weights count from 1; scores and logits
 * bent by tanh; a sliding window in every other layer. */
#include "model/config.h"

static void gemma2_block(const model_config *c, block_graph *out)
{
    dense_form form = {.qkv_bias = c->attention_bias,
                       .o_bias = c->attention_bias,
                       .activation = GATE_GELU_TANH,
                       .after_attention = "post_attention_layernorm",
                       .before_mlp = "pre_feedforward_layernorm",
                       .after_mlp = "post_feedforward_layernorm"};
    arch_dense_block(c, &form, out);
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
