/* The dense decoder layer that most families share (spec/models.md 1.2, 1.3):
 *
 *     x += o(attend(rope(norm(q)), rope(norm(k)), v)), q, k, v of input_layernorm(x)
 *     x += down(activation(gate) * up), gate, up of post_attention_layernorm(x)
 *
 * Some norm what they add, too. */
#include "model/config.h"

static const char *norm_before_mlp(const dense_form *f)
{
    return f->before_mlp ? f->before_mlp : "post_attention_layernorm";
}

/* Channels that attention and the gate leave as they are, so that scales may move through them. */
static void smooth_rows(const model_config *c, const dense_form *f, block_graph *g, bool attention)
{
    size_t query = c->num_heads * c->head_dim, kv = c->num_kv_heads * c->head_dim;
    size_t wide = c->intermediate_size;
    if (attention)
        graph_smooth_rows(g, f->fused_qkv ? "self_attn.qkv_proj" : "self_attn.v_proj",
                          f->fused_qkv ? query + kv : 0, "o", c->num_kv_heads, c->head_dim,
                          c->head_dim, c->num_heads / c->num_kv_heads);
    else
        graph_smooth_rows(g, f->fused_gate_up ? "mlp.gate_up_proj" : "mlp.up_proj",
                          f->fused_gate_up ? wide : 0, "down", 1, wide, wide, 1);
}

static void smooth_pairs(const model_config *c, const dense_form *f, block_graph *g)
{
    /* None for the MLP where a router reads its input in other layers. */
    bool values_first = f->smooth_values_first, mlp = !c->arch->experts;
    if (values_first)
        smooth_rows(c, f, g, true);
    graph_smooth_norm(g, "input_layernorm", "qkv");
    if (values_first && mlp)
        smooth_rows(c, f, g, false);
    if (mlp)
        graph_smooth_norm(g, norm_before_mlp(f), "gate_up");
    if (values_first)
        return;
    smooth_rows(c, f, g, true);
    if (mlp)
        smooth_rows(c, f, g, false);
}

/* Queries, keys and values of h. */
static void project(const model_config *c, const dense_form *f, block_graph *g, graph_value h,
                    graph_value out[3])
{
    size_t query = c->num_heads * c->head_dim, kv = c->num_kv_heads * c->head_dim;
    graph_unit qkv = graph_linears(g, h, "qkv");
    if (f->fused_qkv) {
        const char *name = "self_attn.qkv_proj";
        graph_value all = graph_linear(g, qkv, name, query + 2 * kv, f->qkv_bias);
        graph_split(g, all, (size_t[]){query, kv, kv}, 3, out);
        return;
    }
    out[0] = graph_linear(g, qkv, "self_attn.q_proj", query, f->qkv_bias);
    out[1] = graph_linear(g, qkv, "self_attn.k_proj", kv, f->qkv_bias);
    out[2] = graph_linear(g, qkv, "self_attn.v_proj", kv, f->qkv_bias);
}

static graph_value attention(const model_config *c, const dense_form *f, block_graph *g,
                             graph_value h)
{
    graph_value qkv[3];
    project(c, f, g, h, qkv);
    if (f->head_norms) {
        graph_head_norm(g, qkv[0], "self_attn.q_norm", c->head_dim);
        graph_head_norm(g, qkv[1], "self_attn.k_norm", c->head_dim);
    }
    graph_rope(g, qkv[0], qkv[1], c->head_dim, c->rotary_dim, f->pairing);
    graph_value a = graph_attend(g, qkv[0], qkv[1], qkv[2], c->head_dim, c->head_dim);
    return graph_single(g, a, "o", "self_attn.o_proj", c->hidden_size, f->o_bias);
}

graph_value arch_mlp(const model_config *c, const dense_form *f, block_graph *g, graph_value h)
{
    size_t wide = c->intermediate_size;
    graph_value gate_up[2];
    graph_unit unit = graph_linears(g, h, "gate_up");
    if (f->fused_gate_up) {
        graph_value both = graph_linear(g, unit, "mlp.gate_up_proj", 2 * wide, f->mlp_bias);
        graph_split(g, both, (size_t[]){wide, wide}, 2, gate_up);
    } else {
        gate_up[0] = graph_linear(g, unit, "mlp.gate_proj", wide, f->mlp_bias);
        gate_up[1] = graph_linear(g, unit, "mlp.up_proj", wide, f->mlp_bias);
    }
    graph_value gate = graph_gate(g, gate_up[0], gate_up[1], f->activation);
    return graph_single(g, gate, "down", "mlp.down_proj", c->hidden_size, f->mlp_bias);
}

/* m = experts chosen by the router, and beside them what every row goes through (DeepSeek) */
graph_value arch_mixture(const model_config *c, block_graph *g, graph_value h)
{
    const expert_form *form = c->arch->experts;
    graph_value scores = graph_single(g, h, "router", form->router, c->route.experts, false);
    graph_keep_float(g);
    graph_value routing = graph_route(g, scores, &c->route);
    graph_value m = graph_experts(g, h, routing, &c->experts);
    if (c->shared_width == 0)
        return m;
    graph_add(
        g, m,
        graph_gated(g, h, (const char *[]){"shared_gate_up", "shared_down"},
                    (const char *[]){"mlp.shared_experts.gate_proj", "mlp.shared_experts.up_proj",
                                     "mlp.shared_experts.down_proj"},
                    c->shared_width));
    return m;
}

void arch_dense_block(const model_config *c, const dense_form *f, bool experts, block_graph *g)
{
    graph_value x = graph_input(g, c->hidden_size);
    graph_value h = graph_norm(g, x, "input_layernorm");
    graph_value a = attention(c, f, g, h);
    if (f->after_attention)
        graph_head_norm(g, a, f->after_attention, c->hidden_size);
    graph_add(g, x, a);

    h = graph_norm(g, x, norm_before_mlp(f));
    graph_value m = experts ? arch_mixture(c, g, h) : arch_mlp(c, f, g, h);
    if (f->after_mlp)
        graph_head_norm(g, m, f->after_mlp, c->hidden_size);
    graph_add(g, x, m);

    smooth_pairs(c, f, g);
    graph_finish(g);
}
