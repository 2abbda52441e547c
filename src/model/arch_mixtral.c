/* Mixtral: a Mistral with experts in every layer (spec/models.md 1.8). */
#include "model/config.h"

static void mixtral_block(const model_config *c, bool experts, block_graph *out)
{
    arch_dense_block(c, &(dense_form){0}, experts, out);
}

static const expert_form mixtral_experts = {.router = "block_sparse_moe.gate",
                                            .module = "block_sparse_moe.experts",
                                            .names = {"w1", "w3", "w2"},
                                            .count_key = "num_local_experts",
                                            .default_count = 8,
                                            .default_chosen = 2,
                                            .normalizes = true};

const architecture arch_mixtral = {.model_type = "mixtral",
                                   .block = mixtral_block,
                                   .smooth_alpha = 0.9,
                                   .default_kv_heads = 8,
                                   .default_positions = 131072,
                                   .default_theta = 1e6,
                                   .default_eps = 1e-5,
                                   .window = WINDOW_ALWAYS,
                                   .experts = &mixtral_experts};
