/* Families of models: a row each, with the defaults of config.json and a function that builds the
 * graph of a block. A family is one file arch_FAMILY.c; arch.c lists the rows. */
#ifndef TARE_MODEL_ARCH_H
#define TARE_MODEL_ARCH_H

#include "model/graph.h"

struct model_config;

/* Which layers attend within config.json's sliding_window (spec/models.md 1.3). */
typedef enum window_rule {
    WINDOW_NEVER,
    WINDOW_BY_LAYER, /* use_sliding_window, layer_types and max_window_layers say */
    WINDOW_IF_USED,  /* all, if use_sliding_window */
    WINDOW_IN_TURN,  /* layer_types says; without it every other one, beginning with the first */
    WINDOW_PATTERN,  /* layer_types says; without it all but each sliding_window_pattern-th */
    WINDOW_ALWAYS    /* all, unless sliding_window is null */
} window_rule;

/* Mixtures of experts: names, and the keys of config.json that only the family has. */
typedef struct expert_form {
    const char *router, *module, *names[EXPERT_LINEARS]; /* behind the block's */
    const char *count_key;                               /* "num_experts" */
    size_t default_count, default_chosen, default_width;
    const char *width_key; /* "moe_intermediate_size"; NULL: intermediate_size */
    bool by_step;    /* decoder_sparse_step and mlp_only_layers say which layers have experts */
    bool from_first; /* those from first_k_dense_replace on have; else all */
    size_t default_first;
    bool normalizes; /* always; else norm_topk_prob says, where `may_normalize` */
    bool may_normalize;
    bool shared; /* n_shared_experts, n_group, routed_scaling_factor (DeepSeek) */
    route_scores scores;
    const char *correction; /* as in route_spec */
} expert_form;

typedef struct architecture {
    const char *model_type; /* of config.json */
    /* The graph of a block, with experts or (of a family without any, always) a plain MLP, for
     * sizes that config.json determines. (Where names alone count, sizes may be anything.) */
    void (*block)(const struct model_config *config, bool experts, block_graph *out);
    size_t default_kv_heads;           /* if config.json has none; 0: as many as heads */
    size_t default_head_dim;           /* if config.json has none; 0: hidden_size / heads */
    size_t default_positions;          /* max_position_embeddings; 0: 2048 */
    size_t default_original_positions; /* of longrope; 0: max_position_embeddings */
    size_t default_window;             /* sliding_window; 0: none */
    double default_theta;              /* rope_theta; 0: 10000 */
    double default_eps;                /* rms_norm_eps; 0: 1e-6 */
    double default_rotary_factor;      /* partial_rotary_factor; 0: another than 1 is refused */
    bool default_attention_bias, default_tied; /* attention_bias, tie_word_embeddings */
    /* Keys that only some families read, and their defaults; 0: not read; INFINITY: none. */
    double default_local_theta;              /* rope_local_base_freq, of layers with a window */
    double default_query_scalar;             /* query_pre_attn_scalar */
    double default_attention_softcap;        /* attn_logit_softcapping */
    double default_final_softcap;            /* final_logit_softcapping */
    const char *activation_key, *activation; /* the only one there is; NULL: hidden_act, silu */
    float norm_base;                         /* a norm multiplies by this + its weight */
    bool scales_embeddings;                  /* by sqrt(hidden_size) */
    double smooth_alpha;                     /* m4's exponent */
    bool smooth_shift; /* m4 moves the centre of norm outputs too, which creates biases */
    window_rule window;
    const expert_form *experts; /* of families that may have any */
    bool latent_attention;      /* MLA: its own geometry (config_experts.c) */
    bool mtp;                   /* num_nextn_predict_layers is read (mtp.h) */
} architecture;

/* NULL if unknown. */
const architecture *architecture_find(const char *model_type);
/* The known model types in order; NULL behind the last. */
const char *architecture_name(size_t index);

/* The rows, each in its family's file. */
extern const architecture arch_llama, arch_mistral, arch_qwen2, arch_qwen3, arch_qwen3_moe,
    arch_phi3, arch_glm, arch_glm4, arch_gemma2, arch_gemma3_text, arch_mixtral, arch_deepseek_v2,
    arch_deepseek_v3, arch_kimi_k2;

/* What dense decoders share: attention and a gated MLP, each behind its norm and added to the
 * stream. */
typedef struct dense_form {
    bool qkv_bias, o_bias, mlp_bias;
    bool head_norms;               /* of queries and keys */
    bool fused_qkv, fused_gate_up; /* one linear, self_attn.qkv_proj and mlp.gate_up_proj */
    rope_pairing pairing;
    gate_activation activation;
    const char *before_mlp;                  /* its norm; NULL: "post_attention_layernorm" */
    const char *after_attention, *after_mlp; /* norms of what they add; NULL: none */
    bool smooth_values_first;                /* the order of the pairs */
} dense_form;

/* `experts`: a mixture of them is in place of the MLP. */
void arch_dense_block(const struct model_config *config, const dense_form *form, bool experts,
                      block_graph *out);
/* What a gated MLP, or a mixture of experts with what all rows go through beside it, makes of h. */
graph_value arch_mlp(const struct model_config *config, const dense_form *form, block_graph *g,
                     graph_value h);
graph_value arch_mixture(const struct model_config *config, block_graph *g, graph_value h);

#endif
