/* Architectures as tables: which linears and norms one decoder layer has, under which tensor names,
 * with which shapes, and how the defaults of config.json differ. Adding a dense decoder model is
 * adding a row to `architectures` in arch.c. */
#ifndef TARE_MODEL_ARCH_H
#define TARE_MODEL_ARCH_H

#include <stdbool.h>
#include <stddef.h>

/* A size that config.json determines. */
typedef enum model_dim {
    DIM_HIDDEN,       /* hidden_size */
    DIM_QUERY,        /* num_attention_heads * head_dim */
    DIM_KEY_VALUE,    /* num_key_value_heads * head_dim */
    DIM_INTERMEDIATE, /* intermediate_size */
    DIM_HEAD          /* head_dim */
} model_dim;

/* What a linear does in the layer. */
typedef enum linear_role {
    ROLE_Q,
    ROLE_K,
    ROLE_V,
    ROLE_O,
    ROLE_GATE,
    ROLE_UP,
    ROLE_DOWN,
    ROLE_COUNT
} linear_role;

/* Linears that read the same tensor. Engines fuse the members of a group into one matrix, so they
 * share one quantization type and one input scale. The head (lm_head) is a group of its own outside
 * the layers. */
typedef enum linear_group {
    GROUP_QKV,
    GROUP_O,
    GROUP_GATE_UP,
    GROUP_DOWN,
    GROUP_COUNT,
    GROUP_HEAD = GROUP_COUNT
} linear_group;

typedef enum norm_role { NORM_INPUT, NORM_POST_ATTENTION, NORM_Q, NORM_K, NORM_COUNT } norm_role;

typedef enum bias_rule {
    BIAS_NEVER,
    BIAS_ALWAYS,
    BIAS_ATTENTION, /* if config.json's attention_bias */
    BIAS_MLP        /* if config.json's mlp_bias */
} bias_rule;

/* A pair of neighbours between which outlier suppression may move scales: the source's output is
 * read by the targets alone (spec/anti_outlier.md 1.2). */
typedef enum smooth_pair {
    PAIR_INPUT,          /* input_layernorm -> q, k, v */
    PAIR_POST_ATTENTION, /* post_attention_layernorm -> gate, up */
    PAIR_VALUE_OUTPUT,   /* v -> o, by KV head */
    PAIR_UP_DOWN,        /* up -> down */
    PAIR_COUNT
} smooth_pair;

/* Which layers attend within config.json's sliding_window (spec/models.md 1.3). */
typedef enum window_rule {
    WINDOW_NEVER,
    WINDOW_BY_LAYER, /* use_sliding_window, layer_types and max_window_layers say */
    WINDOW_ALWAYS    /* all, unless sliding_window is null */
} window_rule;

typedef struct linear_spec {
    linear_role role;
    linear_group group;
    const char *name; /* behind "model.layers.N." */
    model_dim out, in;
    bias_rule bias;
} linear_spec;

typedef struct norm_spec {
    norm_role role;
    const char *name;
    model_dim size;
} norm_spec;

typedef struct architecture {
    const char *model_type;     /* of config.json */
    const linear_spec *linears; /* in module order */
    size_t num_linears;
    const norm_spec *norms;
    size_t num_norms;
    size_t default_kv_heads; /* if config.json has none; 0: as many as heads */
    size_t default_head_dim; /* if config.json has none; 0: hidden_size / heads */
    /* All pairs, in the order in which m4 and m6 treat them; other methods take the norms' alone.
     */
    smooth_pair pairs[PAIR_COUNT];
    double smooth_alpha; /* m4's exponent */
    bool smooth_shift;   /* m4 moves the centre of norm outputs too, which creates biases */
    window_rule window;
} architecture;

/* NULL if unknown. */
const architecture *architecture_find(const char *model_type);
/* The known model types in order; NULL behind the last. */
const char *architecture_name(size_t index);
/* The spec of a role; NULL if the architecture has no such linear. */
const linear_spec *architecture_linear(const architecture *arch, linear_role role);
/* The linears that read a pair's source. */
linear_group smooth_pair_targets(smooth_pair pair);
/* "qkv", "o", "gate_up", "down", "head". */
const char *linear_group_name(linear_group group);

#endif
