/* The dense decoder layer that most families share (spec/models.md 1.2, 1.3):
 *
 *     x += o(attend(rope(norm(q)), rope(norm(k)), v)), q, k, v of input_layernorm(x)
 *     x += down(silu(gate) * up), gate, up of post_attention_layernorm(x) */
#include "model/config.h"

static void smooth_pairs(const model_config *c, bool values_first, block_graph *g)
{
    size_t repeat = c->num_heads / c->num_kv_heads;
    if (values_first)
        graph_smooth_rows(g, "self_attn.v_proj", "o", c->num_kv_heads, c->head_dim, repeat);
    graph_smooth_norm(g, "input_layernorm", "qkv");
    if (values_first)
        graph_smooth_rows(g, "mlp.up_proj", "down", 1, c->intermediate_size, 1);
    graph_smooth_norm(g, "post_attention_layernorm", "gate_up");
    if (values_first)
        return;
    graph_smooth_rows(g, "self_attn.v_proj", "o", c->num_kv_heads, c->head_dim, repeat);
    graph_smooth_rows(g, "mlp.up_proj", "down", 1, c->intermediate_size, 1);
}

void arch_dense_block(const model_config *c, const dense_form *f, block_graph *g)
{
    size_t query = c->num_heads * c->head_dim, kv = c->num_kv_heads * c->head_dim;
    graph_value x = graph_input(g, c->hidden_size);

    graph_value h = graph_norm(g, x, "input_layernorm");
    graph_unit qkv = graph_linears(g, h, "qkv");
    graph_value q = graph_linear(g, qkv, "self_attn.q_proj", query, f->qkv_bias);
    graph_value k = graph_linear(g, qkv, "self_attn.k_proj", kv, f->qkv_bias);
    graph_value v = graph_linear(g, qkv, "self_attn.v_proj", kv, f->qkv_bias);
    if (f->head_norms) {
        graph_head_norm(g, q, "self_attn.q_norm", c->head_dim);
        graph_head_norm(g, k, "self_attn.k_norm", c->head_dim);
    }
    graph_rope(g, q, k);
    graph_value a = graph_attend(g, q, k, v);
    graph_value o = graph_single(g, a, "o", "self_attn.o_proj", c->hidden_size, f->o_bias);
    graph_add(g, x, o);

    h = graph_norm(g, x, "post_attention_layernorm");
    graph_unit gate_up = graph_linears(g, h, "gate_up");
    graph_value gate = graph_linear(g, gate_up, "mlp.gate_proj", c->intermediate_size, f->mlp_bias);
    graph_value up = graph_linear(g, gate_up, "mlp.up_proj", c->intermediate_size, f->mlp_bias);
    gate = graph_gate(g, gate, up);
    graph_value down = graph_single(g, gate, "down", "mlp.down_proj", c->hidden_size, f->mlp_bias);
    graph_add(g, x, down);

    smooth_pairs(c, f->smooth_values_first, g);
    graph_finish(g);
}
