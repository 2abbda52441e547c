/* Phi-3, Phi-3.5 and Phi-4: a Llama whose matrices come fused. */
#include "model/config.h"

static void phi3_block(const model_config *c, bool experts, block_graph *out)
{
    arch_dense_block(c, &(dense_form){.fused_qkv = true, .fused_gate_up = true}, experts, out);
}

const architecture arch_phi3 = {.model_type = "phi3",
                                .block = phi3_block,
                                .smooth_alpha = 0.9,
                                .default_positions = 4096,
                                .default_original_positions = 4096,
                                .default_eps = 1e-5,
                                .default_rotary_factor = 1,
                                .window = WINDOW_ALWAYS};
