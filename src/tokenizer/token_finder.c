/* Aho-Corasick over reversed tokens. */
#include "tokenizer/token_finder.h"

#include <string.h>

enum { NO_NODE = UINT32_MAX };

typedef struct finder_node {
    uint32_t parent;
    uint32_t fail;   /* the longest proper suffix of this node's path that is a node too */
    uint32_t output; /* this node or the nearest one along `fail` that is a token; 0: none */
    uint32_t length, value;
    bool is_token;
    uint8_t byte; /* of the edge that leads here */
} finder_node;

typedef struct finder_edge {
    uint32_t node, child; /* child 0: an empty slot (nothing leads to the root) */
    uint8_t byte;
} finder_edge;

void token_finder_init(token_finder *f, tare_context *ctx)
{
    *f = (token_finder){.ctx = ctx};
}

void token_finder_free(token_finder *f)
{
    mem_free(f->ctx, f->nodes);
    mem_free(f->ctx, f->edges);
    mem_free(f->ctx, f->queue);
    token_finder_init(f, f->ctx);
}

static finder_edge *find_edge(finder_edge *edges, size_t capacity, uint32_t node, uint8_t byte)
{
    uint64_t hash = ((uint64_t)node << 8 | byte) * 0x9e3779b97f4a7c15u;
    size_t i = (size_t)(hash >> 32) & (capacity - 1);
    while (edges[i].child && (edges[i].node != node || edges[i].byte != byte))
        i = (i + 1) & (capacity - 1);
    return &edges[i];
}

static uint32_t child_of(const token_finder *f, uint32_t node, uint8_t byte)
{
    const finder_edge *e = find_edge(f->edges, f->edge_capacity, node, byte);
    return e->child ? e->child : NO_NODE;
}

/* Room for another `count` nodes and their edges. */
static tare_status reserve(token_finder *f, size_t count)
{
    size_t need, capacity = f->edge_capacity ? f->edge_capacity : 64;
    if (!size_add(f->count, count, &need) || need >= NO_NODE / 4)
        return TARE_FAIL(f->ctx, TARE_E_MODEL, "the added tokens are too long together");
    tare_status status = mem_grow(f->ctx, (void **)&f->nodes, &f->capacity, need,
                                  sizeof(finder_node));
    if (status != TARE_OK)
        return status;
    while (capacity / 2 < need)
        capacity *= 2;
    if (capacity == f->edge_capacity)
        return TARE_OK;
    finder_edge *edges = mem_calloc(f->ctx, capacity, sizeof *edges);
    if (!edges)
        return TARE_E_MEMORY;
    for (size_t i = 0; i < f->edge_capacity; i++) {
        const finder_edge *e = &f->edges[i];
        if (e->child)
            *find_edge(edges, capacity, e->node, e->byte) = *e;
    }
    mem_free(f->ctx, f->edges);
    f->edges = edges;
    f->edge_capacity = capacity;
    return TARE_OK;
}

tare_status token_finder_add(token_finder *f, const char *text, size_t length, uint32_t value)
{
    tare_status status = reserve(f, length + 1);
    if (status != TARE_OK)
        return status;
    if (f->count == 0)
        f->nodes[f->count++] = (finder_node){0};
    uint32_t node = 0;
    for (size_t i = length; i > 0; i--) {
        uint8_t byte = (uint8_t)text[i - 1];
        finder_edge *e = find_edge(f->edges, f->edge_capacity, node, byte);
        if (!e->child) {
            *e = (finder_edge){node, (uint32_t)f->count, byte};
            f->nodes[f->count++] = (finder_node){.parent = node, .byte = byte};
        }
        node = e->child;
    }
    if (!f->nodes[node].is_token) {
        f->nodes[node].is_token = true;
        f->nodes[node].length = (uint32_t)length;
        f->nodes[node].value = value;
        f->last_bytes[(uint8_t)text[length - 1]] = 1;
    }
    return TARE_OK;
}

/* The node that `byte` leads to from `node`, along fail links where there is no edge. */
static uint32_t step(const token_finder *f, uint32_t node, uint8_t byte)
{
    for (;;) {
        uint32_t child = child_of(f, node, byte);
        if (child != NO_NODE)
            return child;
        if (node == 0)
            return 0;
        node = f->nodes[node].fail;
    }
}

/* Nodes in order of depth, into f->queue: those of the next depth are found by a counting sort,
 * since a parent always stands before its children in the array of nodes. */
static tare_status order_by_depth(token_finder *f)
{
    tare_status status = TARE_OK;
    size_t deepest = 0, *first = NULL;
    uint32_t *depth = mem_alloc_array(f->ctx, f->count, sizeof *depth);
    f->queue = mem_alloc_array(f->ctx, f->count, sizeof *f->queue);
    if (!depth || !f->queue) {
        status = TARE_E_MEMORY;
        goto done;
    }
    for (size_t i = 0; i < f->count; i++) {
        depth[i] = i ? depth[f->nodes[i].parent] + 1 : 0;
        if (depth[i] > deepest)
            deepest = depth[i];
    }
    first = mem_calloc(f->ctx, deepest + 2, sizeof *first);
    if (!first) {
        status = TARE_E_MEMORY;
        goto done;
    }
    for (size_t i = 0; i < f->count; i++)
        first[depth[i] + 1]++;
    for (size_t i = 0; i <= deepest; i++)
        first[i + 1] += first[i];
    for (size_t i = 0; i < f->count; i++)
        f->queue[first[depth[i]]++] = (uint32_t)i;
done:
    mem_free(f->ctx, first);
    mem_free(f->ctx, depth);
    return status;
}

tare_status token_finder_build(token_finder *f)
{
    if (f->count == 0)
        return TARE_OK;
    tare_status status = order_by_depth(f);
    if (status != TARE_OK)
        return status;
    for (size_t i = 1; i < f->count; i++) {
        uint32_t index = f->queue[i];
        finder_node *n = &f->nodes[index];
        n->fail = n->parent == 0 ? 0 : step(f, f->nodes[n->parent].fail, n->byte);
        n->output = n->is_token ? index : f->nodes[n->fail].output;
    }
    mem_free(f->ctx, f->queue);
    f->queue = NULL;
    return TARE_OK;
}

static void reverse(finder_match *items, size_t count)
{
    for (size_t i = 0; i < count / 2; i++) {
        finder_match m = items[i];
        items[i] = items[count - 1 - i];
        items[count - 1 - i] = m;
    }
}

tare_status token_finder_run(const token_finder *f, const char *text, size_t length,
                             finder_matches *out)
{
    uint32_t node = 0;
    out->count = 0;
    if (f->count == 0)
        return TARE_OK;
    for (size_t i = length; i > 0; i--) {
        uint8_t byte = (uint8_t)text[i - 1];
        if (node == 0 && !f->last_bytes[byte])
            continue;
        node = step(f, node, byte);
        const finder_node *found = &f->nodes[f->nodes[node].output];
        if (!found->is_token)
            continue;
        tare_status status = mem_grow(f->ctx, (void **)&out->items, &out->capacity, out->count + 1,
                                      sizeof(finder_match));
        if (status != TARE_OK)
            return status;
        out->items[out->count++] = (finder_match){(uint32_t)(i - 1), found->length, found->value};
    }
    reverse(out->items, out->count);
    size_t kept = 0, end = 0;
    for (size_t i = 0; i < out->count; i++) {
        if (out->items[i].start < end)
            continue;
        out->items[kept++] = out->items[i];
        end = (size_t)out->items[i].start + out->items[i].length;
    }
    out->count = kept;
    return TARE_OK;
}
