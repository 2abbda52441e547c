#include "model/rotate.h"

#include <math.h>
#include <string.h>

/* What the linears of a block have to do with the residual stream. */
typedef struct stream_role {
    bool reads, writes;
    int norm; /* between the stream and what reads it; -1: none */
} stream_role;

typedef struct stream_roles {
    stream_role linears[BLOCK_LINEARS], experts;
    bool norms[BLOCK_NORMS]; /* those that read the stream */
    const char *obstacle;    /* NULL: a rotation passes through */
} stream_roles;

struct model_rotation {
    rotation_settings settings;
    rotation stream;
    rotation **values; /* [blocks] of heads each; NULL: none */
    size_t *heads;     /* [blocks] */
    float *ones;       /* [hidden_size]: what folded norms are */
    float *flips;      /* signs and weights of flipped norms */
    stream_roles roles[BLOCK_KINDS];
    stored_weight *edited; /* all that is, norms and biases among it, by name: */
    size_t num_edited, edited_capacity;
    strmap by_name;
};

/* ---- roles ---- */

/* What is added to the stream, straight or by way of other sums. */
static void mark_written(const block_graph *g, bool written[GRAPH_VALUES])
{
    memset(written, 0, GRAPH_VALUES * sizeof *written);
    for (size_t n = g->num_nodes; n-- > 0;) {
        const graph_node *node = &g->nodes[n];
        if (node->kind == NODE_ADD && (node->in[0] == 0 || written[node->in[0]]))
            written[node->in[1]] = true;
    }
}

static void find_roles(const block_graph *g, stream_roles *out)
{
    bool written[GRAPH_VALUES];
    int norm_of[GRAPH_VALUES];
    *out = (stream_roles){0};
    mark_written(g, written);
    for (size_t v = 0; v < GRAPH_VALUES; v++)
        norm_of[v] = -1;
    for (size_t n = 0; n < g->num_nodes; n++) {
        const graph_node *node = &g->nodes[n];
        graph_value in = node->in[0];
        stream_role role = {.reads = in == 0 || norm_of[in] >= 0, .norm = norm_of[in]};
        const unit_spec *unit = &g->units[node->kind == NODE_LINEARS ? node->index : 0];
        switch (node->kind) {
        case NODE_NORM:
            if (in == 0 && node->out != 0) {
                norm_of[node->out] = (int)node->index;
                out->norms[node->index] = true;
            } else if (role.reads || written[in]) {
                out->obstacle = "it norms what it adds to the stream";
            }
            break;
        case NODE_LINEARS:
            for (size_t i = 0; i < unit->count; i++) {
                role.writes = written[(size_t)node->out + i];
                out->linears[unit->first + i] = role;
            }
            break;
        case NODE_EXPERTS:
            role.writes = written[node->out];
            out->experts = role;
            break;
        case NODE_ADD:
            if (norm_of[in] >= 0 || norm_of[node->in[1]] >= 0)
                out->obstacle = "it adds to a norm's output";
            break;
        default:
            if (role.reads)
                out->obstacle = "its stream passes more than norms and linears";
            break;
        }
    }
}

static tare_status check_architecture(tare_model *m, const struct model_rotation *r)
{
    if (m->mtp != MTP_NONE)
        return TARE_FAIL(
            m->ctx, TARE_E_USAGE,
            "rotation: MTP layers cannot be rotated by this version, and unrotated ones "
            "read nothing that they know; leave them out (quant.mtp none)");
    for (int kind = 0; kind < BLOCK_KINDS; kind++) {
        if (r->settings.r1 && r->roles[kind].obstacle)
            return TARE_FAIL(m->ctx, TARE_E_USAGE, "rotation: %s models cannot be rotated: %s",
                             m->config.arch->model_type, r->roles[kind].obstacle);
    }
    return TARE_OK;
}

/* ---- norms and biases ---- */

static tare_status add_edited(tare_model *m, const stored_weight *w)
{
    tare_status status = TARE_OK;
    struct model_rotation *r = m->rotation;
    TRY(mem_grow(m->ctx, (void **)&r->edited, &r->edited_capacity, r->num_edited + 1,
                 sizeof *r->edited));
    TRY(strmap_put(&r->by_name, w->name, strlen(w->name), (uint32_t)r->num_edited, NULL));
    r->edited[r->num_edited++] = *w;
done:
    return status;
}

static tare_status add_vector(tare_model *m, const tensor_info *t, const float *values)
{
    stored_weight w = stored_whole(t);
    weight_edit *e = arena_calloc(&m->arena, 1, sizeof *e);
    if (!e)
        return TARE_E_MEMORY;
    e->values = values;
    w.edit = e;
    return add_edited(m, &w);
}

/* A weight with which a norm multiplies by 1. */
static tare_status fold_norm(tare_model *m, const tensor_info *norm, const float **factors)
{
    tare_status status = TARE_OK;
    float *read = NULL, *kept;
    size_t size = norm->shape[0];
    TRY(model_read_vector(m, norm, &read));
    kept = arena_alloc_array(&m->arena, size, sizeof *kept);
    TRY(kept ? TARE_OK : TARE_E_MEMORY);
    for (size_t i = 0; i < size; i++)
        kept[i] = m->config.arch->norm_base + read[i];
    *factors = kept;
    TRY(add_vector(m, norm, m->rotation->ones));
done:
    mem_free(m->ctx, read);
    return status;
}

/* The bias of a linear whose rows are mixed: one column of its weight. */
static tare_status turn_bias(tare_model *m, const model_linear *l, const weight_edit *e)
{
    tare_status status = TARE_OK;
    float *read = NULL, *kept;
    weight_edit column = {.left = e->left, .left_blocks = e->left_blocks};
    if (!l->bias || !e->left)
        return TARE_OK;
    TRY(model_read_vector(m, l->bias, &read));
    kept = arena_alloc_array(&m->arena, l->n, sizeof *kept);
    TRY(kept ? TARE_OK : TARE_E_MEMORY);
    coded_rows rows = coded_plain(TARE_F32, read, 1);
    TRY(edit_rows(m->ctx, &column, l->n, 0, l->n, &rows, TARE_F32, kept));
    TRY(add_vector(m, l->bias, kept));
done:
    mem_free(m->ctx, read);
    return status;
}

/* ---- weights ---- */

/* They are all made here. */
static weight_edit *edit_of(const stored_weight *w)
{
    return (weight_edit *)(uintptr_t)w->edit;
}

static weight_edit *add_edit(tare_model *m, model_linear *l)
{
    weight_edit *e = arena_calloc(&m->arena, 1, sizeof *e);
    if (e) {
        e->right_blocks = e->right_share = 1;
        l->weight.edit = e;
    }
    return e;
}

static tare_status edit_linear(tare_model *m, model_linear *l, const stream_role *role,
                               const float *const *norms)
{
    const struct model_rotation *r = m->rotation;
    if (!role->reads && !role->writes)
        return TARE_OK;
    weight_edit *e = add_edit(m, l);
    if (!e)
        return TARE_E_MEMORY;
    if (role->reads) {
        e->columns = role->norm >= 0 ? norms[role->norm] : NULL;
        e->right = &r->stream;
    }
    if (role->writes)
        e->left = &r->stream;
    return TARE_OK;
}

static tare_status edit_experts(tare_model *m, const model_block *b, const stream_role *role,
                                const float *const *norms)
{
    tare_status status = TARE_OK;
    stream_role reader = {.reads = role->reads, .norm = role->norm},
                writer = {.writes = role->writes, .norm = -1};
    for (size_t e = 0; e < block_experts(b); e++) {
        for (size_t i = 0; i < EXPERT_LINEARS; i++) {
            model_linear *l = (model_linear *)(uintptr_t)expert_linear(m, b, e, i);
            TRY(edit_linear(m, l, i + 1 == EXPERT_LINEARS ? &writer : &reader, norms));
        }
    }
done:
    return status;
}

static tare_status edit_stream(tare_model *m, const model_block *b)
{
    tare_status status = TARE_OK;
    const block_graph *g = b->graph;
    const stream_roles *roles = &m->rotation->roles[block_kind_of(b)];
    const float *norms[BLOCK_NORMS] = {0};
    for (size_t i = 0; i < g->num_norms; i++)
        if (roles->norms[i])
            TRY(fold_norm(m, b->norms[i], &norms[i]));
    for (size_t i = 0; i < g->num_linears; i++)
        TRY(edit_linear(m, &m->linears[b->first_linear + i], &roles->linears[i], norms));
    TRY(edit_experts(m, b, &roles->experts, norms));
done:
    return status;
}

/* Between the rows that make values and the unit that reads what attention makes of them scales may
 * move, head by head (graph.h): so may a rotation. */
static tare_status edit_values(tare_model *m, const model_block *b)
{
    tare_status status = TARE_OK;
    struct model_rotation *r = m->rotation;
    const block_graph *g = b->graph;
    for (size_t p = 0; p < g->num_pairs; p++) {
        const pair_spec *pair = &g->pairs[p];
        const unit_spec *unit = &g->units[pair->unit];
        if (pair->of_norm || strcmp(unit->kind, "o") != 0)
            continue;
        r->heads[b->index] = pair->heads;
        rotation *heads = r->values[b->index] = mem_calloc(m->ctx, pair->heads, sizeof *heads);
        TRY(heads ? TARE_OK : TARE_E_MEMORY);
        for (size_t h = 0; h < pair->heads; h++)
            TRY(rotation_create(m->ctx, pair->width, r->settings.seed,
                                (uint32_t)(1 + b->index * pair->heads + h), &heads[h]));
        model_linear *from = &m->linears[b->first_linear + pair->source],
                     *to = &m->linears[b->first_linear + unit->first];
        weight_edit *rows = edit_of(&from->weight), *columns = edit_of(&to->weight);
        rows = rows ? rows : add_edit(m, from);
        columns = columns ? columns : add_edit(m, to);
        TRY(rows && columns ? TARE_OK : TARE_E_MEMORY);
        rows->left = heads;
        rows->left_blocks = (block_rows){pair->first, pair->stride, pair->width, pair->heads};
        columns->right = heads;
        columns->right_blocks = pair->heads;
        columns->right_share = pair->repeat;
    }
done:
    return status;
}

/* A tied head becomes a matrix of its own, read from the embedding. */
static tare_status edit_ends(tare_model *m)
{
    tare_status status = TARE_OK;
    const float *final_norm;
    weight_edit *embedding = arena_calloc(&m->arena, 1, sizeof *embedding), *head;
    TRY(fold_norm(m, m->final_norm, &final_norm));
    m->head_is_unlike |= m->head_is_tied;
    m->head_is_tied = false;
    m->head->weight.name = "lm_head.weight";
    head = add_edit(m, m->head);
    TRY(embedding && head ? TARE_OK : TARE_E_MEMORY);
    *embedding = (weight_edit){.right = &m->rotation->stream, .right_blocks = 1, .right_share = 1};
    head->right = &m->rotation->stream;
    head->columns = final_norm;
    m->embedding.edit = embedding;
done:
    return status;
}

static tare_status list_edited(tare_model *m)
{
    tare_status status = TARE_OK;
    if (m->embedding.edit)
        TRY(add_edited(m, &m->embedding));
    for (size_t i = 0; i < m->num_linears; i++) {
        const model_linear *l = &m->linears[i];
        if (!l->weight.edit)
            continue;
        TRY(add_edited(m, &l->weight));
        TRY(turn_bias(m, l, l->weight.edit));
    }
done:
    return status;
}

/* Tensors that no rule knows are copied, and may belong to what reads the stream. */
static void warn_of_extra(const tare_model *m)
{
    const char *first = NULL;
    size_t count = 0;
    for (size_t i = 0; i < m->num_extra; i++) {
        const tensor_info *t = m->extra[i].tensor;
        bool wide = false;
        for (int d = 0; d < t->rank; d++)
            wide |= t->shape[d] == m->config.hidden_size;
        if (wide && count++ == 0)
            first = t->name;
    }
    if (count > 0)
        TARE_WARN(m->ctx,
                  "rotation: %zu unknown tensors of the size of the residual stream do not know "
                  "that it is turned (first: %s)",
                  count, first);
}

tare_status model_rotate(tare_model *m, const rotation_settings *settings)
{
    tare_status status = TARE_OK;
    size_t hidden = m->config.hidden_size, layers = m->config.num_layers;
    struct model_rotation *r = m->rotation = mem_calloc(m->ctx, 1, sizeof *r);
    if (!r)
        return TARE_E_MEMORY;
    strmap_init(&r->by_name, m->ctx);
    r->settings = *settings;
    for (int kind = 0; kind < BLOCK_KINDS; kind++)
        find_roles(&m->graphs[kind], &r->roles[kind]);
    TRY(check_architecture(m, r));
    r->ones = mem_alloc_array(m->ctx, hidden, sizeof *r->ones);
    r->values = mem_calloc(m->ctx, layers, sizeof *r->values);
    r->heads = mem_calloc(m->ctx, layers, sizeof *r->heads);
    TRY(r->ones && r->values && r->heads ? TARE_OK : TARE_E_MEMORY);
    for (size_t i = 0; i < hidden; i++)
        r->ones[i] = 1 - m->config.arch->norm_base;
    if (settings->r1) {
        TRY(rotation_create(m->ctx, hidden, settings->seed, 0, &r->stream));
        for (size_t i = 0; i < layers; i++)
            TRY(edit_stream(m, &m->blocks[i]));
        TRY(edit_ends(m));
        warn_of_extra(m);
    }
    for (size_t i = 0; settings->r2 && i < layers; i++)
        TRY(edit_values(m, &m->blocks[i]));
    TRY(list_edited(m));
done:
    return status;
}

/* ---- alignment ---- */

int model_stream_norm(const tare_model *m, const model_block *b, graph_unit unit)
{
    const stream_roles *roles = &m->rotation->roles[block_kind_of(b)];
    const stream_role *role = &roles->linears[b->graph->units[unit].first];
    return role->reads ? role->norm : -1;
}

/* The rows that count: of all layers but the first two, where there are more. */
static size_t list_rows(const tare_model *m, const float *const *means, const float **rows)
{
    size_t count = 0, first = m->config.num_layers > 2 ? 2 : 0;
    for (size_t i = first * BLOCK_NORMS; i < m->config.num_layers * BLOCK_NORMS; i++)
        if (means[i])
            rows[count++] = means[i];
    return count;
}

/* Products [count,count] of rows [n] made as long as 1; rows of zeros have none. */
static void unit_products(const float *const *rows, size_t count, size_t n, double *products,
                          double *lengths)
{
    for (size_t a = 0; a < count; a++) {
        for (size_t b = 0; b <= a; b++) {
            double dot = 0;
            for (size_t i = 0; i < n; i++)
                dot += (double)rows[a][i] * (double)rows[b][i];
            products[a * count + b] = products[b * count + a] = dot;
        }
        lengths[a] = sqrt(products[a * count + a]);
    }
    for (size_t a = 0; a < count; a++)
        for (size_t b = 0; b < count; b++)
            products[a * count + b] = lengths[a] > 0 && lengths[b] > 0
                                          ? products[a * count + b] / (lengths[a] * lengths[b])
                                          : 0;
}

/* weights [count] <- the first eigenvector of products, by power iteration; false: they are 0. */
static bool first_eigenvector(const double *products, size_t count, double *weights, double *next)
{
    enum { STEPS = 500 };
    for (size_t a = 0; a < count; a++)
        weights[a] = 1;
    for (int step = 0; step < STEPS; step++) {
        double length = 0;
        for (size_t a = 0; a < count; a++) {
            next[a] = 0;
            for (size_t b = 0; b < count; b++)
                next[a] += products[a * count + b] * weights[b];
            length += next[a] * next[a];
        }
        if (!(length > 0))
            return false;
        for (size_t a = 0; a < count; a++)
            weights[a] = next[a] / sqrt(length);
    }
    return true;
}

/* u [n]: of rows as long as 1 the first right singular vector, towards (1, ..., 1); false: all are
 * 0. */
static bool shared_direction(const float *const *rows, size_t count, size_t n, double *room,
                             double *u)
{
    double *lengths = room + count * count, *weights = lengths + count, length = 0, sum = 0;
    unit_products(rows, count, n, room, lengths);
    if (!first_eigenvector(room, count, weights, weights + count))
        return false;
    for (size_t i = 0; i < n; i++) {
        u[i] = 0;
        for (size_t a = 0; a < count; a++)
            u[i] += lengths[a] > 0 ? weights[a] / lengths[a] * (double)rows[a][i] : 0;
        length += u[i] * u[i];
        sum += u[i];
    }
    for (size_t i = 0; i < n; i++)
        u[i] /= sum < 0 ? -sqrt(length) : sqrt(length);
    return length > 0;
}

/* v [n] <- what mirrors u to (1, ..., 1) / sqrt(n); false: it lies there. */
static bool mirror_of(const double *u, size_t n, float *v)
{
    double length = 0, there = 1 / sqrt((double)n);
    for (size_t i = 0; i < n; i++)
        length += (u[i] - there) * (u[i] - there);
    for (size_t i = 0; i < n; i++)
        v[i] = (float)((u[i] - there) / sqrt(length));
    return length > 1e-12;
}

static tare_status mirror_stream(tare_model *m, const float *const *means, float *v, bool *mirrored)
{
    tare_status status = TARE_OK;
    tare_context *ctx = m->ctx;
    size_t n = m->config.hidden_size, most = m->config.num_layers * BLOCK_NORMS;
    const float **rows = mem_alloc_array(ctx, most, sizeof *rows);
    double *u = mem_alloc_array(ctx, n, sizeof *u), *room = NULL;
    *mirrored = false;
    TRY(rows && u ? TARE_OK : TARE_E_MEMORY);
    size_t count = list_rows(m, means, rows);
    room = mem_alloc_array(ctx, count * (count + 3), sizeof *room);
    TRY(room ? TARE_OK : TARE_E_MEMORY);
    *mirrored = shared_direction(rows, count, n, room, u) && mirror_of(u, n, v);
    if (*mirrored)
        TRY(rotation_mirror(ctx, &m->rotation->stream, v));
done:
    mem_free(ctx, rows);
    mem_free(ctx, u);
    mem_free(ctx, room);
    return status;
}

static void flip_linear(const model_linear *l, const float *signs)
{
    if (l->weight.edit)
        edit_of(&l->weight)->signs = signs;
}

/* The norm multiplies by what its readers' columns are multiplied by, `signs` [2,n], which stay. v
 * NULL: nothing is mirrored. */
static void flip_norm(tare_model *m, const model_block *b, size_t norm, const float *mean,
                      const float *v, float *signs)
{
    const stream_roles *roles = &m->rotation->roles[block_kind_of(b)];
    size_t n = m->config.hidden_size;
    double dot = 0;
    float *weight = signs + n;
    stored_weight w;
    for (size_t i = 0; v && i < n; i++)
        dot += (double)v[i] * (double)mean[i];
    for (size_t i = 0; i < n; i++) {
        signs[i] = (double)mean[i] - (v ? 2 * (double)v[i] * dot : 0) < 0 ? -1.0f : 1.0f;
        weight[i] = signs[i] - m->config.arch->norm_base;
    }
    if (model_find_rotated(m, b->norms[norm]->name, &w))
        edit_of(&w)->values = weight;
    for (size_t i = 0; i < b->graph->num_linears; i++)
        if (roles->linears[i].reads && roles->linears[i].norm == (int)norm)
            flip_linear(block_linear(m, b, i), signs);
    for (size_t e = 0; roles->experts.norm == (int)norm && e < block_experts(b); e++)
        for (size_t i = 0; i + 1 < EXPERT_LINEARS; i++)
            flip_linear(expert_linear(m, b, e, i), signs);
}

size_t model_align_bytes(const tare_model *m, size_t norms)
{
    size_t n = m->config.hidden_size, most = m->num_blocks * BLOCK_NORMS;
    return mem_array_bytes(norms, 2 * n * sizeof(float)) + 2 * mem_array_bytes(n, sizeof(float)) +
           mem_array_bytes(n, sizeof(double)) + mem_array_bytes(most, sizeof(float *)) +
           mem_array_bytes(norms, (norms + 3) * sizeof(double));
}

tare_status model_align(tare_model *m, const float *const *means)
{
    tare_status status = TARE_OK;
    struct model_rotation *r = m->rotation;
    bool mirrored = false;
    size_t n = m->config.hidden_size, all = m->config.num_layers * BLOCK_NORMS, count = 0;
    float *v = mem_alloc_array(m->ctx, n, sizeof *v);
    TRY(v ? TARE_OK : TARE_E_MEMORY);
    if (r->settings.align)
        TRY(mirror_stream(m, means, v, &mirrored));
    if (!r->settings.flips)
        goto done;
    for (size_t i = 0; i < all; i++)
        count += means[i] != NULL;
    TRY((r->flips = mem_alloc_array(m->ctx, count, 2 * n * sizeof *r->flips)) ? TARE_OK
                                                                              : TARE_E_MEMORY);
    for (size_t i = 0, at = 0; i < all; i++)
        if (means[i])
            flip_norm(m, &m->blocks[i / BLOCK_NORMS], i % BLOCK_NORMS, means[i],
                      mirrored ? v : NULL, r->flips + 2 * n * at++);
done:
    mem_free(m->ctx, v);
    return status;
}

const rotation *model_stream_rotation(const tare_model *m)
{
    return m->rotation && m->rotation->settings.r1 ? &m->rotation->stream : NULL;
}

bool model_find_rotated(const tare_model *m, const char *name, stored_weight *out)
{
    uint32_t index;
    if (!m->rotation || !strmap_get(&m->rotation->by_name, name, strlen(name), &index))
        return false;
    *out = m->rotation->edited[index];
    return true;
}

const weight_edit *model_vector_edit(const tare_model *m, const tensor_info *t)
{
    stored_weight w;
    return model_find_rotated(m, t->name, &w) ? w.edit : NULL;
}

size_t model_edit_bytes(const tare_model *m)
{
    size_t most = 0;
    for (size_t i = 0; m->rotation && i < m->num_linears; i++) {
        const model_linear *l = &m->linears[i];
        if (l->weight.edit)
            most = size_max(most, edit_bytes(m->ctx, l->weight.edit, l->n, l->k));
    }
    return most;
}

void model_rotation_free(tare_model *m)
{
    struct model_rotation *r = m->rotation;
    if (!r)
        return;
    for (size_t i = 0; r->values && i < m->config.num_layers; i++) {
        for (size_t h = 0; r->values[i] && h < r->heads[i]; h++)
            rotation_free(m->ctx, &r->values[i][h]);
        mem_free(m->ctx, r->values[i]);
    }
    rotation_free(m->ctx, &r->stream);
    strmap_free(&r->by_name);
    mem_free(m->ctx, r->flips);
    mem_free(m->ctx, r->edited);
    mem_free(m->ctx, r->values);
    mem_free(m->ctx, r->heads);
    mem_free(m->ctx, r->ones);
    mem_free(m->ctx, r);
    m->rotation = NULL;
}
