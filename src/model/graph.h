/* A block (decoder layer) of a model as a graph: its linears in units, its norms, the pairs between
 * which smoothing may act, and the nodes that compute the block over named values. A graph is built
 * once for a kind of block by a function in arch_FAMILY.c that reads like the model's equations:
 *
 *     graph_value x = graph_input(g, c->hidden_size);
 *     graph_value h = graph_norm(g, x, "input_layernorm");
 *     graph_unit qkv = graph_linears(g, h, "qkv");
 *     graph_value q = graph_linear(g, qkv, "self_attn.q_proj", query, bias);
 *     …
 *     graph_add(g, x, o);
 *
 * Everything walks the same graph: the executors (forward/), the memory plan (liveness of values
 * gives the workspace), smoothing, what is declared and what is verified. Data alone; nothing here
 * knows how a linear is computed. */
#ifndef TARE_MODEL_GRAPH_H
#define TARE_MODEL_GRAPH_H

#include <stdbool.h>
#include <stddef.h>

/* Bounds of one block; more is a mistake in arch_*.c and stops in an assert. */
enum {
    GRAPH_NODES = 40,
    GRAPH_VALUES = 40,
    BLOCK_LINEARS = 16,
    BLOCK_UNITS = 8,
    BLOCK_NORMS = 8,
    BLOCK_PAIRS = 8,
    UNIT_LINEARS = 4,
    BLOCK_SEGMENTS = BLOCK_UNITS + 2,
    SEGMENT_VALUES = 4
};

/* Rows of activations, [rows, columns] FP32, dense. */
typedef int graph_value;
/* Index of a unit in its block. */
typedef size_t graph_unit;

/* A linear layer of the block. */
typedef struct linear_spec {
    const char *name; /* behind the block's: "self_attn.q_proj" */
    size_t n, k;      /* out, in */
    bool has_bias;
    bool stays_float; /* no engine quantizes it: a router, kv_b_proj */
    graph_unit unit;
} linear_spec;

/* Linears that read one input and that engines fuse into one matrix: they share one scheme and one
 * input scale. They stand next to each other. */
typedef struct unit_spec {
    const char *kind; /* "qkv", "o", "gate_up", "down" */
    size_t first, count;
    size_t k;
} unit_spec;

typedef struct norm_spec {
    const char *name; /* of the module: "input_layernorm" */
    size_t size;
    float eps; /* 0: the model's */
} norm_spec;

/* Who of a mixture of experts sees a row (spec/models.md 1.8, 1.9). The scores of the router's
 * output are taken over all experts, in FP32; with groups only the experts of the best groups can
 * be chosen. */
typedef enum route_scores { ROUTE_SOFTMAX, ROUTE_SIGMOID } route_scores;

typedef struct route_spec {
    size_t experts, chosen; /* of them for each row */
    route_scores scores;
    bool normalizes; /* weights of the chosen are divided by their sum */
    double scale;    /* and multiplied by this */
    size_t groups, chosen_groups;
    size_t best;            /* a group's score: the sum of so many of its best */
    const char *correction; /* tensor [experts] that is added to the scores for the choice alone,
                               behind the block's name; NULL: none */
} route_spec;

/* Experts: gated MLPs with one form, down(silu(gate(x)) * up(x)). Their linears stand behind the
 * block's own, expert by expert: gate, up, down. */
enum { EXPERT_LINEARS = 3, EXPERT_UNITS = 2 };
typedef struct experts_spec {
    size_t count;                      /* 0: the block has none */
    const char *module;                /* "mlp.experts" */
    const char *names[EXPERT_LINEARS]; /* "gate_proj", "up_proj", "down_proj" */
    size_t width, columns;             /* inside; of what they read and put out */
} experts_spec;

/* Neighbours between which outlier suppression may move scales: the output of a norm, or rows of a
 * linear, that the linears of a unit alone read (spec/anti_outlier.md 1.2). Channel ((h * repeat) +
 * g) * width + d of the unit's input reads row first + h * stride + d of the source. */
typedef struct pair_spec {
    bool of_norm;
    size_t source; /* of the block's norms, or of its linears */
    graph_unit unit;
    size_t first, heads, stride, width, repeat; /* of a linear */
} pair_spec;

typedef enum node_kind {
    NODE_NORM,    /* out = norm(in[0]); each `width` columns by themselves */
    NODE_LINEARS, /* out, out + 1, … of the unit's linears, from in[0] */
    NODE_SPLIT,   /* out, … out + index - 1: the columns of in[0], one part after the other */
    NODE_ROPE,    /* rotates the heads of in[0] and in[1] (queries, keys), in place */
    NODE_LATENT,  /* out, out + 1 = keys and values of latent attention: in[0] has for each head its
                     keys and its values, in[1] the rotated part of the keys that all heads share */
    NODE_ATTEND,  /* out = attention of queries, keys and values in[0..2] */
    NODE_GATE,    /* in[0] <- activation(in[0]) * in[1] */
    NODE_ADD,     /* in[0] += in[1] */
    NODE_ROUTE,   /* out = the experts chosen by in[0], and behind their numbers their weights */
    NODE_EXPERTS  /* out = weighted sum of what the experts make of in[0], as in[1] chose them */
} node_kind;

/* Which two columns of a head turn together: j and j + half, or 2 j and 2 j + 1. */
typedef enum rope_pairing { ROPE_HALVES, ROPE_NEIGHBOURS } rope_pairing;

typedef enum gate_activation { GATE_SILU, GATE_GELU_TANH } gate_activation;

typedef struct graph_node {
    node_kind kind;
    graph_value in[3], out;
    size_t index;   /* NORM: of the block's norms; LINEARS: of its units; SPLIT: how many parts */
    size_t width;   /* NORM; ROPE: columns of each head that turn */
    size_t skip;    /* ROPE: columns of each query head in front of them */
    size_t head[2]; /* ROPE: columns of a head of in[0] and of in[1]; LATENT: of a head's
                       keys, and of its values */
    rope_pairing pairing;
    gate_activation activation;
    graph_value latent; /* ATTEND: what keys and values are made from; -1: they have linears */
} graph_node;

typedef struct value_spec {
    size_t columns;
    int first, last; /* nodes between which it is needed */
    size_t offset;   /* in columns of the workspace, where no value overlaps that lives meanwhile */
} value_spec;

typedef struct block_graph {
    linear_spec linears[BLOCK_LINEARS]; /* in module order */
    unit_spec units[BLOCK_UNITS];
    norm_spec norms[BLOCK_NORMS];
    pair_spec pairs[BLOCK_PAIRS]; /* in the order in which they are smoothed */
    graph_node nodes[GRAPH_NODES];
    value_spec values[GRAPH_VALUES]; /* 0: the block's input, which becomes its output */
    size_t num_linears, num_units, num_norms, num_pairs, num_nodes, num_values;
    route_spec route;
    experts_spec experts;
    size_t columns; /* of the workspace */
} block_graph;

/* A stretch of a block that can be run by itself: its nodes, and the units and linears that run in
 * them. */
typedef struct block_segment {
    bool experts; /* its only node is NODE_EXPERTS */
    size_t first_node, end_node, first_unit, end_unit, first_linear, end_linear;
    /* Values of earlier segments that it needs beside the block's input. */
    graph_value carried[SEGMENT_VALUES];
    size_t num_carried;
} block_segment;

typedef enum graph_cut {
    CUT_NONE,  /* the whole block */
    CUT_PARTS, /* only where nothing but the block's input goes on: attention, feed-forward */
    CUT_UNITS  /* each unit by itself */
} graph_cut;

/* ---- building ---- */

/* The residual stream: what the block reads and, changed in place, leaves. The first call. */
graph_value graph_input(block_graph *g, size_t columns);
/* A norm over all columns, with a weight of its own. */
graph_value graph_norm(block_graph *g, graph_value x, const char *name);
/* One weight [width] for each head of x, in place; all columns may be one head. */
void graph_head_norm(block_graph *g, graph_value x, const char *name, size_t width);
/* A unit; its linears follow before anything else. */
graph_unit graph_linears(block_graph *g, graph_value x, const char *kind);
graph_value graph_linear(block_graph *g, graph_unit unit, const char *name, size_t n, bool bias);
/* A unit of one linear. */
graph_value graph_single(block_graph *g, graph_value x, const char *kind, const char *name,
                         size_t n, bool bias);
/* Cuts the columns of x into `count` values. */
void graph_split(block_graph *g, graph_value x, const size_t *columns, size_t count,
                 graph_value *out);
/* The first `width` columns of each head turn. */
void graph_rope(block_graph *g, graph_value q, graph_value k, size_t head, size_t width,
                rope_pairing pairing);
/* The columns of each query head behind the first `skip`, and all of the one head k; neighbours. */
void graph_rope_latent(block_graph *g, graph_value q, graph_value k, size_t head, size_t skip);
/* Keys of `keys` columns a head, and values of `values`. */
void graph_latent(block_graph *g, graph_value kv, graph_value k_rope, size_t heads, size_t keys,
                  size_t values, graph_value out[2]);
/* Heads of queries and keys have `keys` columns, those of values `values`. */
graph_value graph_attend(block_graph *g, graph_value q, graph_value k, graph_value v, size_t keys,
                         size_t values);
/* The last attention's keys and values are made from `latent`, which stays until then. */
void graph_attend_latent(block_graph *g, graph_value latent);
/* gate <- activation(gate) * up; the result. */
graph_value graph_gate(block_graph *g, graph_value gate, graph_value up,
                       gate_activation activation);
void graph_add(block_graph *g, graph_value x, graph_value y);
/* The router's choice, of its scores; what the experts make of x by it. */
graph_value graph_route(block_graph *g, graph_value scores, const route_spec *route);
graph_value graph_experts(block_graph *g, graph_value x, graph_value routing,
                          const experts_spec *experts);
/* down(silu(gate(x)) * up(x)): units of gate and up, and of down; linears of the three. */
graph_value graph_gated(block_graph *g, graph_value x, const char *const kinds[2],
                        const char *const names[EXPERT_LINEARS], size_t width);
/* The graph of one expert: value 0 is what it reads, the last value what it makes of that. */
void graph_expert(const experts_spec *experts, block_graph *out);
/* What is left of a block without its experts and what stands behind them: a graph that can be run,
 * if not for its result. */
void graph_leave_out_experts(block_graph *g);
/* The last linear added stays float. */
void graph_keep_float(block_graph *g);
/* The last norm added has an eps of its own. */
void graph_norm_eps(block_graph *g, float eps);

/* Pairs, in the order in which they are to be smoothed. Rows begin at `first` of the linear's, a
 * head's are `stride` apart. */
void graph_smooth_norm(block_graph *g, const char *norm, const char *unit);
void graph_smooth_rows(block_graph *g, const char *linear, size_t first, const char *unit,
                       size_t heads, size_t stride, size_t width, size_t repeat);
/* Places the values. The last call. */
void graph_finish(block_graph *g);

/* ---- cutting ---- */

/* The segments, in order; how many. Between two units the block is cut where the fewest columns go
 * on. With `keep_rows` the two sides of a pair whose source is a linear stay together. Experts are
 * a segment of their own in any case. */
size_t graph_segments(const block_graph *g, graph_cut cut, bool keep_rows,
                      block_segment out[BLOCK_SEGMENTS]);
/* That segment of a block with experts, which is the same however the block is cut. */
block_segment graph_experts_segment(const block_graph *g);
/* Does the norm stand in a segment (NULL: the block)? */
bool segment_has_norm(const block_graph *g, const block_segment *s, size_t norm);
/* Does attention? */
bool segment_attends(const block_graph *g, const block_segment *s);
/* The node that runs the unit's linears. */
size_t node_of_unit(const block_graph *g, graph_unit unit);
/* Where the queries (operand 0) or the keys (1) of a block's attention come from: rows of a linear
 * from `first` on, and the norm that they pass then, in place; -1: none. False: the block does not
 * attend, or what it makes them from is no linear's rows alone. */
typedef struct attention_source {
    size_t linear, first;
    int norm;
    size_t columns, head; /* of the operand, and of one of its heads */
} attention_source;
bool graph_attention_source(const block_graph *g, int operand, attention_source *out);
/* Channels of a head of queries that rotary positions turn as one: how many such groups a head has,
 * and the group of a channel. One that does not turn is a group by itself. */
size_t graph_turning_groups(const block_graph *g, size_t head);
size_t graph_turning_group(const block_graph *g, size_t channel);
/* Is what the unit reads the output of a norm? */
bool unit_reads_norm(const block_graph *g, graph_unit unit);
/* Does the choice of experts (of a segment, NULL: of the block)? */
bool segment_routes(const block_graph *g, const block_segment *s);

/* ---- looking things up ---- */

/* Is it a module's ("self_attn.q_norm") and not the block's own? */
bool graph_norm_is_inside(const block_graph *g, size_t norm);
/* The index of the i-th norm in module order, in which those inside come first. */
size_t graph_norm_in_order(const block_graph *g, size_t i);

/* The linear whose name a module's ends with ("model.layers.3.self_attn.q_proj"), of which the
 * first `length` characters count; NULL: none. */
const linear_spec *graph_linear_of(const block_graph *g, const char *module, size_t length);

#endif
