/* Building a block's graph, and placing its values. */
#include "model/graph.h"

#include <assert.h>
#include <string.h>

static graph_value add_value(block_graph *g, size_t columns)
{
    assert(g->num_values < GRAPH_VALUES);
    g->values[g->num_values] = (value_spec){
        .columns = columns, .first = (int)g->num_nodes, .last = (int)g->num_nodes};
    return (graph_value)g->num_values++;
}

static graph_node *add_node(block_graph *g, node_kind kind, graph_value a, graph_value b,
                            graph_value c)
{
    assert(g->num_nodes < GRAPH_NODES);
    const graph_value in[3] = {a, b, c};
    graph_node *node = &g->nodes[g->num_nodes];
    *node = (graph_node){.kind = kind, .in = {a, b, c}, .out = -1, .latent = -1};
    for (size_t i = 0; i < 3; i++) {
        if (in[i] >= 0)
            g->values[in[i]].last = (int)g->num_nodes;
    }
    return node;
}

static size_t add_norm(block_graph *g, const char *name, size_t size)
{
    assert(g->num_norms < BLOCK_NORMS);
    g->norms[g->num_norms] = (norm_spec){name, size, 0};
    return g->num_norms++;
}

graph_value graph_input(block_graph *g, size_t columns)
{
    *g = (block_graph){0};
    return add_value(g, columns);
}

graph_value graph_norm(block_graph *g, graph_value x, const char *name)
{
    size_t columns = g->values[x].columns;
    graph_node *node = add_node(g, NODE_NORM, x, -1, -1);
    node->index = add_norm(g, name, columns);
    node->width = columns;
    node->out = add_value(g, columns);
    g->num_nodes++;
    return node->out;
}

void graph_head_norm(block_graph *g, graph_value x, const char *name, size_t width)
{
    graph_node *node = add_node(g, NODE_NORM, x, -1, -1);
    node->index = add_norm(g, name, width);
    node->width = width;
    node->out = x;
    g->num_nodes++;
}

graph_unit graph_linears(block_graph *g, graph_value x, const char *kind)
{
    assert(g->num_units < BLOCK_UNITS);
    graph_node *node = add_node(g, NODE_LINEARS, x, -1, -1);
    node->index = g->num_units;
    node->out = (graph_value)g->num_values;
    g->units[g->num_units] = (unit_spec){kind, g->num_linears, 0, g->values[x].columns};
    g->num_nodes++;
    return g->num_units++;
}

graph_value graph_linear(block_graph *g, graph_unit unit, const char *name, size_t n, bool bias)
{
    assert(unit + 1 == g->num_units && g->units[unit].count < UNIT_LINEARS);
    assert(g->num_linears < BLOCK_LINEARS);
    g->linears[g->num_linears++] = (linear_spec){name, n, g->units[unit].k, bias, false, unit};
    g->units[unit].count++;
    graph_value y = add_value(g, n);
    g->values[y].first--; /* the unit's node makes it */
    return y;
}

graph_value graph_single(block_graph *g, graph_value x, const char *kind, const char *name,
                         size_t n, bool bias)
{
    return graph_linear(g, graph_linears(g, x, kind), name, n, bias);
}

void graph_split(block_graph *g, graph_value x, const size_t *columns, size_t count,
                 graph_value *out)
{
    size_t sum = 0;
    graph_node *node = add_node(g, NODE_SPLIT, x, -1, -1);
    node->out = (graph_value)g->num_values;
    node->index = count;
    for (size_t i = 0; i < count; i++) {
        out[i] = add_value(g, columns[i]);
        sum += columns[i];
    }
    assert(sum == g->values[x].columns);
    g->num_nodes++;
}

void graph_rope(block_graph *g, graph_value q, graph_value k, size_t head, size_t width,
                rope_pairing pairing)
{
    graph_node *node = add_node(g, NODE_ROPE, q, k, -1);
    node->head[0] = node->head[1] = head;
    node->width = width;
    node->pairing = pairing;
    g->num_nodes++;
}

void graph_rope_latent(block_graph *g, graph_value q, graph_value k, size_t head, size_t skip)
{
    graph_node *node = add_node(g, NODE_ROPE, q, k, -1);
    node->head[0] = head;
    node->head[1] = node->width = head - skip;
    node->skip = skip;
    node->pairing = ROPE_NEIGHBOURS;
    assert(g->values[k].columns == node->width);
    g->num_nodes++;
}

void graph_latent(block_graph *g, graph_value kv, graph_value k_rope, size_t heads, size_t keys,
                  size_t values, graph_value out[2])
{
    graph_node *node = add_node(g, NODE_LATENT, kv, k_rope, -1);
    node->head[0] = keys;
    node->head[1] = values;
    assert(g->values[kv].columns == heads * (keys - g->values[k_rope].columns + values));
    node->out = out[0] = add_value(g, heads * keys);
    out[1] = add_value(g, heads * values);
    g->num_nodes++;
}

graph_value graph_attend(block_graph *g, graph_value q, graph_value k, graph_value v, size_t keys,
                         size_t values)
{
    graph_node *node = add_node(g, NODE_ATTEND, q, k, v);
    node->out = add_value(g, g->values[q].columns / keys * values);
    g->num_nodes++;
    return node->out;
}

void graph_attend_latent(block_graph *g, graph_value latent)
{
    g->nodes[g->num_nodes - 1].latent = latent;
    g->values[latent].last = (int)g->num_nodes - 1;
}

graph_value graph_gate(block_graph *g, graph_value gate, graph_value up, gate_activation activation)
{
    assert(g->values[gate].columns == g->values[up].columns);
    add_node(g, NODE_GATE, gate, up, -1)->activation = activation;
    g->num_nodes++;
    return gate;
}

void graph_add(block_graph *g, graph_value x, graph_value y)
{
    assert(g->values[x].columns == g->values[y].columns);
    add_node(g, NODE_ADD, x, y, -1);
    g->num_nodes++;
}

graph_value graph_route(block_graph *g, graph_value scores, const route_spec *route)
{
    graph_node *node = add_node(g, NODE_ROUTE, scores, -1, -1);
    assert(g->values[scores].columns == route->experts);
    g->route = *route;
    node->out = add_value(g, 2 * route->chosen);
    g->num_nodes++;
    return node->out;
}

graph_value graph_experts(block_graph *g, graph_value x, graph_value routing,
                          const experts_spec *experts)
{
    graph_node *node = add_node(g, NODE_EXPERTS, x, routing, -1);
    g->experts = *experts;
    g->experts.columns = g->values[x].columns;
    node->out = add_value(g, g->experts.columns);
    g->num_nodes++;
    return node->out;
}

graph_value graph_gated(block_graph *g, graph_value x, const char *const kinds[2],
                        const char *const names[EXPERT_LINEARS], size_t width)
{
    graph_unit unit = graph_linears(g, x, kinds[0]);
    graph_value gate = graph_linear(g, unit, names[0], width, false);
    graph_value up = graph_linear(g, unit, names[1], width, false);
    gate = graph_gate(g, gate, up, GATE_SILU);
    return graph_single(g, gate, kinds[1], names[2], g->values[x].columns, false);
}

void graph_expert(const experts_spec *e, block_graph *g)
{
    graph_value x = graph_input(g, e->columns);
    graph_gated(g, x, (const char *[]){"expert_gate_up", "expert_down"}, e->names, e->width);
    graph_finish(g);
}

void graph_keep_float(block_graph *g)
{
    g->linears[g->num_linears - 1].stays_float = true;
}

void graph_norm_eps(block_graph *g, float eps)
{
    g->norms[g->num_norms - 1].eps = eps;
}

/* ---- pairs ---- */

static graph_unit unit_named(const block_graph *g, const char *kind)
{
    graph_unit u = 0;
    for (; strcmp(g->units[u].kind, kind) != 0; u++)
        assert(u + 1 < g->num_units);
    return u;
}

static pair_spec *add_pair(block_graph *g, const char *unit)
{
    assert(g->num_pairs < BLOCK_PAIRS);
    pair_spec *p = &g->pairs[g->num_pairs++];
    *p = (pair_spec){.unit = unit_named(g, unit)};
    return p;
}

void graph_smooth_norm(block_graph *g, const char *norm, const char *unit)
{
    pair_spec *p = add_pair(g, unit);
    p->of_norm = true;
    for (; strcmp(g->norms[p->source].name, norm) != 0; p->source++)
        assert(p->source + 1 < g->num_norms);
}

void graph_smooth_rows(block_graph *g, const char *linear, size_t first, const char *unit,
                       size_t heads, size_t stride, size_t width, size_t repeat)
{
    pair_spec *p = add_pair(g, unit);
    for (; strcmp(g->linears[p->source].name, linear) != 0; p->source++)
        assert(p->source + 1 < g->num_linears);
    p->first = first;
    p->heads = heads;
    p->stride = stride;
    p->width = width;
    p->repeat = repeat;
    assert(heads * width * repeat == g->units[p->unit].k);
}

/* ---- placing ---- */

static bool meet(const value_spec *a, const value_spec *b)
{
    return a->first <= b->last && b->first <= a->last;
}

/* The lowest place where `v` overlaps no earlier value that lives at the same time. */
static void place(block_graph *g, size_t v)
{
    value_spec *value = &g->values[v];
    for (bool moved = true; moved;) {
        moved = false;
        for (size_t i = 1; i < v; i++) {
            const value_spec *other = &g->values[i];
            bool apart = value->offset + value->columns <= other->offset ||
                         other->offset + other->columns <= value->offset;
            if (apart || !meet(value, other))
                continue;
            value->offset = other->offset + other->columns;
            moved = true;
        }
    }
    size_t end = value->offset + value->columns;
    g->columns = end > g->columns ? end : g->columns;
}

void graph_finish(block_graph *g)
{
    for (size_t v = 1; v < g->num_values; v++)
        place(g, v);
}

/* ---- cutting ---- */

/* Values that are made before node `at` and needed from it on. */
static size_t carried_at(const block_graph *g, size_t at, graph_value *values)
{
    size_t count = 0;
    for (size_t v = 1; v < g->num_values; v++) {
        if (g->values[v].first >= (int)at || g->values[v].last < (int)at)
            continue;
        assert(!values || count < SEGMENT_VALUES);
        if (values)
            values[count] = (graph_value)v;
        count++;
    }
    return count;
}

static size_t carried_columns(const block_graph *g, size_t at)
{
    size_t columns = 0;
    for (size_t v = 1; v < g->num_values; v++) {
        if (g->values[v].first < (int)at && g->values[v].last >= (int)at)
            columns += g->values[v].columns;
    }
    return columns;
}

size_t node_of_unit(const block_graph *g, size_t unit)
{
    size_t n = 0;
    while (g->nodes[n].kind != NODE_LINEARS || g->nodes[n].index != unit)
        n++;
    return n;
}

/* Is a norm smoothed into a unit behind this one? */
static bool is_norm_of_later(const block_graph *g, size_t norm, size_t unit)
{
    for (size_t p = 0; p < g->num_pairs; p++) {
        const pair_spec *pair = &g->pairs[p];
        if (pair->of_norm && pair->source == norm && pair->unit > unit)
            return true;
    }
    return false;
}

/* Where to cut between a unit and the next one. A norm runs with the unit that it is smoothed into:
 * its scales are known there. */
static size_t best_cut(const block_graph *g, size_t unit)
{
    size_t begin = node_of_unit(g, unit), end = node_of_unit(g, unit + 1);
    for (size_t n = begin; n < end; n++) {
        if (g->nodes[n].kind == NODE_NORM && is_norm_of_later(g, g->nodes[n].index, unit))
            end = n;
    }
    size_t best = end;
    for (size_t at = end; at > begin; at--) {
        if (carried_columns(g, at) < carried_columns(g, best))
            best = at;
    }
    return best;
}

static bool rows_pair_across(const block_graph *g, size_t unit)
{
    for (size_t p = 0; p < g->num_pairs; p++) {
        const pair_spec *pair = &g->pairs[p];
        if (!pair->of_norm && g->linears[pair->source].unit <= unit && pair->unit > unit)
            return true;
    }
    return false;
}

static size_t end_of_linears(const block_graph *g, size_t unit)
{
    return g->units[unit].first + g->units[unit].count;
}

/* The node that experts are; num_nodes: none. */
static size_t experts_node(const block_graph *g)
{
    size_t n = 0;
    while (n < g->num_nodes && g->nodes[n].kind != NODE_EXPERTS)
        n++;
    return n;
}

void graph_leave_out_experts(block_graph *g)
{
    size_t node = experts_node(g);
    if (node == g->num_nodes)
        return;
    while (g->nodes[g->num_units ? node_of_unit(g, g->num_units - 1) : 0].kind == NODE_LINEARS &&
           node_of_unit(g, g->num_units - 1) > node)
        g->num_units--;
    g->num_linears = end_of_linears(g, g->num_units - 1);
    g->num_nodes = node - 1; /* the router's choice stands in front of them */
    g->experts.count = 0;
}

/* Appends a segment that ends before a node and behind a unit. */
static void end_segment(const block_graph *g, size_t node, size_t units, block_segment *out,
                        size_t *count)
{
    block_segment *s = &out[(*count)++];
    const block_segment *last = *count > 1 ? s - 1 : NULL;
    assert(*count <= BLOCK_SEGMENTS);
    *s = (block_segment){.first_node = last ? last->end_node : 0,
                         .end_node = node,
                         .first_unit = last ? last->end_unit : 0,
                         .end_unit = units,
                         .first_linear = last ? last->end_linear : 0,
                         .end_linear = units ? end_of_linears(g, units - 1) : 0};
    s->experts = s->first_node < g->num_nodes && g->nodes[s->first_node].kind == NODE_EXPERTS;
    if (last)
        s->num_carried = carried_at(g, s->first_node, s->carried);
}

size_t graph_segments(const block_graph *g, graph_cut cut, bool keep_rows,
                      block_segment out[BLOCK_SEGMENTS])
{
    size_t count = 0, experts = experts_node(g);
    for (size_t u = 0; u < g->num_units; u++) {
        bool last = u + 1 == g->num_units;
        size_t next = last ? g->num_nodes : node_of_unit(g, u + 1);
        if (node_of_unit(g, u) < experts && experts < next) { /* between this unit and the next */
            end_segment(g, experts, u + 1, out, &count);
            end_segment(g, experts + 1, u + 1, out, &count);
            if (last)
                end_segment(g, g->num_nodes, u + 1, out, &count);
            continue;
        }
        size_t at = last ? g->num_nodes : best_cut(g, u);
        bool may = cut == CUT_UNITS || (cut == CUT_PARTS && carried_columns(g, at) == 0);
        if (last || (may && !(keep_rows && rows_pair_across(g, u))))
            end_segment(g, at, u + 1, out, &count);
    }
    return count;
}

block_segment graph_experts_segment(const block_graph *g)
{
    block_segment segments[BLOCK_SEGMENTS];
    size_t at = 0, count = graph_segments(g, CUT_NONE, false, segments);
    while (at + 1 < count && !segments[at].experts)
        at++;
    return segments[at];
}

bool segment_has_norm(const block_graph *g, const block_segment *s, size_t norm)
{
    for (size_t n = s ? s->first_node : 0; n < (s ? s->end_node : g->num_nodes); n++) {
        if (g->nodes[n].kind == NODE_NORM && g->nodes[n].index == norm)
            return true;
    }
    return false;
}

static bool has_node(const block_graph *g, const block_segment *s, node_kind kind)
{
    for (size_t n = s ? s->first_node : 0; n < (s ? s->end_node : g->num_nodes); n++) {
        if (g->nodes[n].kind == kind)
            return true;
    }
    return false;
}

bool unit_reads_norm(const block_graph *g, graph_unit unit)
{
    size_t reader = node_of_unit(g, unit);
    for (size_t n = 0; n < reader; n++) {
        if (g->nodes[n].kind == NODE_NORM && g->nodes[n].out == g->nodes[reader].in[0])
            return true;
    }
    return false;
}

bool segment_attends(const block_graph *g, const block_segment *s)
{
    return has_node(g, s, NODE_ATTEND);
}

bool segment_routes(const block_graph *g, const block_segment *s)
{
    return has_node(g, s, NODE_ROUTE);
}

/* ---- queries and keys ---- */

static const graph_node *only_node(const block_graph *g, node_kind kind)
{
    for (size_t n = 0; n < g->num_nodes; n++) {
        if (g->nodes[n].kind == kind)
            return &g->nodes[n];
    }
    return NULL;
}

/* Backwards, from the value to the linear. */
static bool trace_rows(const block_graph *g, graph_value v, attention_source *out)
{
    for (size_t n = g->num_nodes; n-- > 0;) {
        const graph_node *node = &g->nodes[n];
        const unit_spec *u = &g->units[node->kind == NODE_LINEARS ? node->index : 0];
        if (node->kind == NODE_NORM && node->in[0] == v && node->out == v) {
            out->norm = (int)node->index;
        } else if (node->kind == NODE_SPLIT && v >= node->out &&
                   v < node->out + (graph_value)node->index) {
            while (v-- > node->out)
                out->first += g->values[v].columns;
            v = node->in[0];
        } else if (node->kind == NODE_LINEARS && v >= node->out &&
                   v < node->out + (graph_value)u->count) {
            out->linear = u->first + (size_t)(v - node->out);
            return true;
        }
    }
    return false;
}

bool graph_attention_source(const block_graph *g, int operand, attention_source *out)
{
    const graph_node *attend = only_node(g, NODE_ATTEND), *rope = only_node(g, NODE_ROPE);
    *out = (attention_source){.norm = -1};
    if (!attend || !rope || attend->latent >= 0 || rope->skip > 0)
        return false;
    out->columns = g->values[attend->in[operand]].columns;
    out->head = rope->head[operand];
    return trace_rows(g, attend->in[operand], out);
}

size_t graph_turning_groups(const block_graph *g, size_t head)
{
    return head - only_node(g, NODE_ROPE)->width / 2;
}

size_t graph_turning_group(const block_graph *g, size_t channel)
{
    const graph_node *rope = only_node(g, NODE_ROPE);
    size_t half = rope->width / 2;
    if (channel >= rope->width)
        return channel - half;
    return rope->pairing == ROPE_HALVES ? channel % half : channel / 2;
}

/* ---- looking things up ---- */

bool graph_norm_is_inside(const block_graph *g, size_t norm)
{
    return strchr(g->norms[norm].name, '.') != NULL;
}

size_t graph_norm_in_order(const block_graph *g, size_t i)
{
    for (int own = 0; own < 2; own++) {
        for (size_t n = 0; n < g->num_norms; n++) {
            if (graph_norm_is_inside(g, n) != own && i-- == 0)
                return n;
        }
    }
    assert(false);
    return 0;
}

const linear_spec *graph_linear_of(const block_graph *g, const char *module, size_t length)
{
    for (size_t i = 0; i < g->num_linears; i++) {
        size_t tail = strlen(g->linears[i].name);
        if (length > tail && module[length - tail - 1] == '.' &&
            memcmp(module + length - tail, g->linears[i].name, tail) == 0)
            return &g->linears[i];
    }
    return NULL;
}
