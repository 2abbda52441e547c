/* The architecture tables (names and shapes: spec/models.md, sections 1.1, 1.2 and 1.5). */
#include "model/arch.h"

#include <string.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))

/* Rows that all dense decoders share; the macros take what differs: the bias rules. */
#define DENSE_LINEARS(qkv_bias, o_bias, mlp_bias)                                                  \
    {ROLE_Q, GROUP_QKV, "self_attn.q_proj", DIM_QUERY, DIM_HIDDEN, qkv_bias},                      \
        {ROLE_K, GROUP_QKV, "self_attn.k_proj", DIM_KEY_VALUE, DIM_HIDDEN, qkv_bias},              \
        {ROLE_V, GROUP_QKV, "self_attn.v_proj", DIM_KEY_VALUE, DIM_HIDDEN, qkv_bias},              \
        {ROLE_O, GROUP_O, "self_attn.o_proj", DIM_HIDDEN, DIM_QUERY, o_bias},                      \
        {ROLE_GATE, GROUP_GATE_UP, "mlp.gate_proj", DIM_INTERMEDIATE, DIM_HIDDEN, mlp_bias},       \
        {ROLE_UP, GROUP_GATE_UP, "mlp.up_proj", DIM_INTERMEDIATE, DIM_HIDDEN, mlp_bias},           \
    {                                                                                              \
        ROLE_DOWN, GROUP_DOWN, "mlp.down_proj", DIM_HIDDEN, DIM_INTERMEDIATE, mlp_bias             \
    }

#define DENSE_NORMS                                                                                \
    {NORM_INPUT, "input_layernorm", DIM_HIDDEN},                                                   \
    {                                                                                              \
        NORM_POST_ATTENTION, "post_attention_layernorm", DIM_HIDDEN                                \
    }

static const linear_spec llama_linears[] = {
    DENSE_LINEARS(BIAS_ATTENTION, BIAS_ATTENTION, BIAS_MLP)};
static const linear_spec qwen2_linears[] = {DENSE_LINEARS(BIAS_ALWAYS, BIAS_NEVER, BIAS_NEVER)};
static const linear_spec qwen3_linears[] = {
    DENSE_LINEARS(BIAS_ATTENTION, BIAS_ATTENTION, BIAS_NEVER)};

static const linear_spec mistral_linears[] = {DENSE_LINEARS(BIAS_NEVER, BIAS_NEVER, BIAS_NEVER)};

static const norm_spec dense_norms[] = {DENSE_NORMS};
static const norm_spec qwen3_norms[] = {
    {NORM_Q, "self_attn.q_norm", DIM_HEAD}, {NORM_K, "self_attn.k_norm", DIM_HEAD}, DENSE_NORMS};

#define NORMS_FIRST                                                                                \
    {                                                                                              \
        PAIR_INPUT, PAIR_POST_ATTENTION, PAIR_VALUE_OUTPUT, PAIR_UP_DOWN                           \
    }
#define VALUES_FIRST                                                                               \
    {                                                                                              \
        PAIR_VALUE_OUTPUT, PAIR_INPUT, PAIR_UP_DOWN, PAIR_POST_ATTENTION                           \
    }

static const architecture architectures[] = {
    {.model_type = "llama",
     .linears = llama_linears,
     .num_linears = COUNT(llama_linears),
     .norms = dense_norms,
     .num_norms = COUNT(dense_norms),
     .pairs = NORMS_FIRST,
     .smooth_alpha = 0.9},
    {.model_type = "qwen2",
     .linears = qwen2_linears,
     .num_linears = COUNT(qwen2_linears),
     .norms = dense_norms,
     .num_norms = COUNT(dense_norms),
     .pairs = NORMS_FIRST,
     .smooth_alpha = 0.9,
     .default_kv_heads = 32,
     .window = WINDOW_BY_LAYER},
    {.model_type = "qwen3",
     .linears = qwen3_linears,
     .num_linears = COUNT(qwen3_linears),
     .norms = qwen3_norms,
     .num_norms = COUNT(qwen3_norms),
     .pairs = VALUES_FIRST,
     .smooth_alpha = 0.5,
     .smooth_shift = true,
     .default_kv_heads = 32,
     .default_head_dim = 128,
     .window = WINDOW_BY_LAYER},
    {.model_type = "mistral",
     .linears = mistral_linears,
     .num_linears = COUNT(mistral_linears),
     .norms = dense_norms,
     .num_norms = COUNT(dense_norms),
     .pairs = NORMS_FIRST,
     .smooth_alpha = 0.9,
     .default_kv_heads = 8,
     .window = WINDOW_ALWAYS},
};

const architecture *architecture_find(const char *model_type)
{
    for (size_t i = 0; i < COUNT(architectures); i++) {
        if (strcmp(architectures[i].model_type, model_type) == 0)
            return &architectures[i];
    }
    return NULL;
}

const char *architecture_name(size_t index)
{
    return index < COUNT(architectures) ? architectures[index].model_type : NULL;
}

const linear_spec *architecture_linear(const architecture *arch, linear_role role)
{
    for (size_t i = 0; i < arch->num_linears; i++) {
        if (arch->linears[i].role == role)
            return &arch->linears[i];
    }
    return NULL;
}

linear_group smooth_pair_targets(smooth_pair pair)
{
    static const linear_group targets[] = {[PAIR_INPUT] = GROUP_QKV,
                                           [PAIR_POST_ATTENTION] = GROUP_GATE_UP,
                                           [PAIR_VALUE_OUTPUT] = GROUP_O,
                                           [PAIR_UP_DOWN] = GROUP_DOWN};
    return targets[pair];
}

const char *linear_group_name(linear_group group)
{
    static const char *const names[] = {"qkv", "o", "gate_up", "down", "head"};
    return names[group];
}
