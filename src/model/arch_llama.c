/* Llama 2 to 3.3 and Mistral (spec/models.md 1.5). */
#include "model/config.h"

static void llama_block(const model_config *c, bool experts, block_graph *out)
{
    dense_form form = {
        .qkv_bias = c->attention_bias, .o_bias = c->attention_bias, .mlp_bias = c->mlp_bias};
    arch_dense_block(c, &form, experts, out);
}

static void mistral_block(const model_config *c, bool experts, block_graph *out)
{
    arch_dense_block(c, &(dense_form){0}, experts, out);
}

const architecture arch_llama = {.model_type = "llama", .block = llama_block, .smooth_alpha = 0.9};

const architecture arch_mistral = {.model_type = "mistral",
                                   .block = mistral_block,
                                   .smooth_alpha = 0.9,
                                   .default_kv_heads = 8,
                                   .default_window = 4096,
                                   .window = WINDOW_ALWAYS};
