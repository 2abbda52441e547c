/* Qwen2, Qwen2.5, Qwen3 and Qwen3-MoE (spec/models.md 1.5, 1.8). */
#include "model/config.h"

static void qwen2_block(const model_config *c, bool experts, block_graph *out)
{
    arch_dense_block(c, &(dense_form){.qkv_bias = true}, experts, out);
}

static void qwen3_block(const model_config *c, bool experts, block_graph *out)
{
    dense_form form = {.qkv_bias = c->attention_bias,
                       .o_bias = c->attention_bias,
                       .head_norms = true,
                       .smooth_values_first = true};
    arch_dense_block(c, &form, experts, out);
}

static const expert_form qwen3_experts = {.router = "mlp.gate",
                                          .module = "mlp.experts",
                                          .names = {"gate_proj", "up_proj", "down_proj"},
                                          .count_key = "num_experts",
                                          .default_count = 128,
                                          .default_chosen = 8,
                                          .width_key = "moe_intermediate_size",
                                          .default_width = 768,
                                          .by_step = true,
                                          .may_normalize = true};

const architecture arch_qwen2 = {.model_type = "qwen2",
                                 .block = qwen2_block,
                                 .smooth_alpha = 0.9,
                                 .default_kv_heads = 32,
                                 .default_window = 4096,
                                 .window = WINDOW_BY_LAYER};

const architecture arch_qwen3 = {.model_type = "qwen3",
                                 .block = qwen3_block,
                                 .smooth_alpha = 0.5,
                                 .smooth_shift = true,
                                 .default_kv_heads = 32,
                                 .default_window = 4096,
                                 .default_head_dim = 128,
                                 .window = WINDOW_BY_LAYER};

const architecture arch_qwen3_moe = {.model_type = "qwen3_moe",
                                     .block = qwen3_block,
                                     .smooth_alpha = 0.5,
                                     .smooth_shift = true,
                                     .default_kv_heads = 4,
                                     .default_positions = 32768,
                                     .default_window = 4096,
                                     .window = WINDOW_IF_USED,
                                     .experts = &qwen3_experts};
