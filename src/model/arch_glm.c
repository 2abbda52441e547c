/* GLM-4: the first half of each head turns, neighbours together (glm), and later what attention and
 * the MLP add is normed too (glm4). */
#include "model/config.h"

static void glm_block(const model_config *c, bool experts, block_graph *out)
{
    dense_form form = {
        .qkv_bias = c->attention_bias, .fused_gate_up = true, .pairing = ROPE_NEIGHBOURS};
    arch_dense_block(c, &form, experts, out);
}

static void glm4_block(const model_config *c, bool experts, block_graph *out)
{
    dense_form form = {.qkv_bias = c->attention_bias,
                       .fused_gate_up = true,
                       .pairing = ROPE_NEIGHBOURS,
                       .after_attention = "post_self_attn_layernorm",
                       .after_mlp = "post_mlp_layernorm"};
    arch_dense_block(c, &form, experts, out);
}

const architecture arch_glm = {.model_type = "glm",
                               .block = glm_block,
                               .smooth_alpha = 0.9,
                               .default_kv_heads = 2,
                               .default_head_dim = 128,
                               .default_positions = 131072,
                               .default_eps = 0.00000015625,
                               .default_rotary_factor = 0.5,
                               .default_attention_bias = true};

const architecture arch_glm4 = {.model_type = "glm4",
                                .block = glm4_block,
                                .smooth_alpha = 0.9,
                                .default_kv_heads = 2,
                                .default_head_dim = 128,
                                .default_positions = 131072,
                                .default_eps = 0.00000015625,
                                .default_rotary_factor = 0.5,
                                .default_attention_bias = true};
