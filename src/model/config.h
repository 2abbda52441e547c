/* config.json of a checkpoint, checked. */
#ifndef TARE_MODEL_CONFIG_H
#define TARE_MODEL_CONFIG_H

#include "base/dtype.h"
#include "base/memory.h"
#include "model/arch.h"
#include "model/mtp.h"
#include "model/rope.h"

typedef struct model_config {
    const architecture *arch;
    size_t hidden_size, intermediate_size, vocab_size, max_position_embeddings;
    size_t num_layers, num_heads, num_kv_heads, head_dim;
    size_t num_mtp;    /* MTP layers behind those (mtp.h) */
    size_t rotary_dim; /* columns at the front of each head that turn */
    float rms_norm_eps;
    float attention_scale;                  /* of scores; 0: 1 / sqrt(head_dim) */
    float attention_softcap, final_softcap; /* of scores and logits; 0: none */
    rope_config rope;
    bool has_local_rope; /* layers with a window turn by another one */
    rope_config local_rope;
    bool attention_bias, mlp_bias, tie_word_embeddings;
    bool has_dtype;                       /* torch_dtype or dtype is given */
    bool has_two_dtypes;                  /* both are, and they disagree */
    tare_dtype dtype;                     /* of a model without: that of its weights */
    size_t value_dim;                     /* of a head's values; head_dim but in latent attention */
    size_t query_rank, kv_rank, rope_dim; /* of latent attention: q_lora_rank (0: queries have one
                                             linear), kv_lora_rank, qk_rope_head_dim */
    const bool *sparse; /* [num_layers + num_mtp] which have experts; NULL: none. In the arena */
    route_spec route;   /* of those */
    experts_spec experts;
    size_t shared_width;   /* of what all rows go through beside them; 0: nothing */
    const size_t *windows; /* [num_layers] sliding window in tokens, 0: none; NULL: none anywhere.
                              In the arena */
} model_config;

/* From the text of a config.json; `what` names it. Unknown model_type lists the known ones; errors
 * are TARE_E_MODEL. */
tare_status model_config_parse(tare_context *ctx, arena *a, const char *json, size_t length,
                               const char *what, model_config *out);
/* What the names in a block depend on beside its architecture. */
typedef struct config_flags {
    bool attention_bias, mlp_bias;
    bool one_query; /* q_lora_rank is null: queries come from one matrix */
} config_flags;

/* The names alone of a block's modules, where no whole config.json is at hand: sizes are made up.
 */
void model_config_names(const architecture *arch, const config_flags *flags, block_graph *out);
bool model_config_sparse(const model_config *config, size_t layer);
/* What blocks a model may have: those of a kind have one graph. */
typedef enum block_kind { BLOCK_PLAIN, BLOCK_EXPERTS, BLOCK_KINDS } block_kind;
/* Of a kind that no layer has nothing is set. */
void model_config_graphs(const model_config *config, block_graph graphs[BLOCK_KINDS]);
/* What torch calls a dtype: bfloat16, float16 (half), float32 (float); false for others. */
bool torch_dtype_find(const char *name, tare_dtype *out);
size_t model_config_window(const model_config *config, size_t layer);
/* Columns of all heads of a token's keys, and of its values. */
void model_config_kv_columns(const model_config *config, size_t out[2]);
/* Tokens of the longest sequence that the model is made for: max_position_embeddings, stretched by
 * the rope settings' factor where these leave that key at the length before stretching. */
size_t model_config_max_tokens(const model_config *config);

#endif
