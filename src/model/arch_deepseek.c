/* DeepSeek V2, V3, R1 and what is V3 by its config.json, as Kimi-K2 (spec/models.md 1.9): latent
 * attention (MLA), whose keys and values come from one narrow vector a token,
 *
 *     q = q_b(norm(q_a(h)));  [c | k_rope] = kv_a(h);  [k | v] = kv_b(norm(c));  x += o(attend)
 *
 * and mixtures of many experts behind a few plain layers. Engines fold kv_b_proj into queries and
 * outputs, so it stays float. */
#include "model/config.h"

/* Of the norms inside of attention, whatever rms_norm_eps says. */
static const float NORM_EPS = 1e-6f;

static graph_value queries(const model_config *c, block_graph *g, graph_value h, graph_value *kv_a)
{
    size_t heads = c->num_heads * c->head_dim, latent = c->kv_rank + c->rope_dim;
    const char *kv_name = "self_attn.kv_a_proj_with_mqa";
    graph_unit unit = graph_linears(g, h, "q_a_kv_a");
    if (c->query_rank == 0) {
        graph_value q = graph_linear(g, unit, "self_attn.q_proj", heads, false);
        *kv_a = graph_linear(g, unit, kv_name, latent, c->attention_bias);
        return q;
    }
    graph_value q = graph_linear(g, unit, "self_attn.q_a_proj", c->query_rank, c->attention_bias);
    *kv_a = graph_linear(g, unit, kv_name, latent, c->attention_bias);
    q = graph_norm(g, q, "self_attn.q_a_layernorm");
    graph_norm_eps(g, NORM_EPS);
    return graph_single(g, q, "q_b", "self_attn.q_b_proj", heads, false);
}

static graph_value latent_attention(const model_config *c, block_graph *g, graph_value h)
{
    graph_value kv_a, latent[2], kv[2], q = queries(c, g, h, &kv_a);
    size_t nope = c->head_dim - c->rope_dim;
    graph_split(g, kv_a, (size_t[]){c->kv_rank, c->rope_dim}, 2, latent);
    graph_value normed = graph_norm(g, latent[0], "self_attn.kv_a_layernorm");
    graph_norm_eps(g, NORM_EPS);
    graph_rope_latent(g, q, latent[1], c->head_dim, nope);
    graph_value both = graph_single(g, normed, "kv_b", "self_attn.kv_b_proj",
                                    c->num_heads * (nope + c->value_dim), false);
    graph_keep_float(g);
    graph_latent(g, both, latent[1], c->num_heads, c->head_dim, c->value_dim, kv);
    graph_value a = graph_attend(g, q, kv[0], kv[1], c->head_dim, c->value_dim);
    graph_attend_latent(g, normed);
    return graph_single(g, a, "o", "self_attn.o_proj", c->hidden_size, c->attention_bias);
}

static void smooth_pairs(const model_config *c, block_graph *g)
{
    size_t nope = c->head_dim - c->rope_dim;
    graph_smooth_rows(g, "self_attn.kv_b_proj", nope, "o", c->num_heads, nope + c->value_dim,
                      c->value_dim, 1);
    graph_smooth_norm(g, "input_layernorm", "q_a_kv_a");
    if (c->query_rank)
        graph_smooth_norm(g, "self_attn.q_a_layernorm", "q_b");
    else
        graph_smooth_norm(g, "self_attn.kv_a_layernorm", "kv_b");
}

static void deepseek_block(const model_config *c, bool experts, block_graph *g)
{
    graph_value x = graph_input(g, c->hidden_size);
    graph_value h = graph_norm(g, x, "input_layernorm");
    graph_add(g, x, latent_attention(c, g, h));
    h = graph_norm(g, x, "post_attention_layernorm");
    graph_add(g, x, experts ? arch_mixture(c, g, h) : arch_mlp(c, &(dense_form){0}, g, h));
    smooth_pairs(c, g);
    graph_finish(g);
}

static const expert_form v2_experts = {.router = "mlp.gate",
                                       .module = "mlp.experts",
                                       .names = {"gate_proj", "up_proj", "down_proj"},
                                       .count_key = "n_routed_experts",
                                       .default_count = 64,
                                       .width_key = "moe_intermediate_size",
                                       .default_width = 1407,
                                       .from_first = true,
                                       .shared = true};

static const expert_form v3_experts = {.router = "mlp.gate",
                                       .module = "mlp.experts",
                                       .names = {"gate_proj", "up_proj", "down_proj"},
                                       .count_key = "n_routed_experts",
                                       .default_count = 256,
                                       .default_chosen = 8,
                                       .width_key = "moe_intermediate_size",
                                       .default_width = 2048,
                                       .from_first = true,
                                       .default_first = 3,
                                       .may_normalize = true,
                                       .shared = true,
                                       .scores = ROUTE_SIGMOID,
                                       .correction = "mlp.gate.e_score_correction_bias"};

const architecture arch_deepseek_v2 = {.model_type = "deepseek_v2",
                                       .block = deepseek_block,
                                       .smooth_alpha = 0.5,
                                       .smooth_shift = true,
                                       .default_positions = 2048,
                                       .experts = &v2_experts,
                                       .latent_attention = true};

const architecture arch_deepseek_v3 = {.model_type = "deepseek_v3",
                                       .block = deepseek_block,
                                       .smooth_alpha = 0.5,
                                       .smooth_shift = true,
                                       .default_positions = 4096,
                                       .experts = &v3_experts,
                                       .mtp = true,
                                       .latent_attention = true};

/* Its config.json and tensors are a DeepSeek-V3's, in sizes of its own. */
const architecture arch_kimi_k2 = {.model_type = "kimi_k2",
                                   .block = deepseek_block,
                                   .smooth_alpha = 0.5,
                                   .smooth_shift = true,
                                   .default_positions = 4096,
                                   .experts = &v3_experts,
                                   .mtp = true,
                                   .latent_attention = true};
