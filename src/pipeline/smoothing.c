/* Outlier suppression in a run: which pairs are smoothed, what is watched while the float layer
 * runs, and what smoothing leaves behind for the layer's weights, biases and norms: vectors, kept
 * until the layer is written (from the first pass to the second, if there are two). The formulas
 * are in quantize/smooth*. */
#include <assert.h>
#include <math.h>
#include <string.h>

#include "pipeline/run.h"
#include "tensor/convert.h"

/* ---- what is smoothed ---- */

static bool is_norm_pair(smooth_pair pair)
{
    return pair == PAIR_INPUT || pair == PAIR_POST_ATTENTION;
}

static bool method_takes(const run *r, smooth_pair pair)
{
    return is_norm_pair(pair) || r->smooth.method == SMOOTH_M4 || r->smooth.method == SMOOTH_M6;
}

static bool is_listed(const string_list *names, const char *name)
{
    for (size_t i = 0; i < names->count; i++) {
        if (strcmp(names->items[i], name) == 0)
            return true;
    }
    return false;
}

/* A pair is left out if one of its targets is listed; the reference's m1, m2 and m5 ignore the
 * list. */
static bool pair_is_disabled(const run *r, size_t layer, smooth_pair pair)
{
    const architecture *arch = r->model->config.arch;
    smooth_method m = r->smooth.method;
    if (r->num.compat && (m == SMOOTH_M1 || m == SMOOTH_M2 || m == SMOOTH_M5))
        return false;
    for (size_t i = 0; i < arch->num_linears; i++) {
        if (arch->linears[i].group == smooth_pair_targets(pair) &&
            is_listed(&r->recipe->disable_anti_names,
                      r->model->layers[layer].linears[arch->linears[i].role].name))
            return true;
    }
    return false;
}

static bool pair_is_active(const run *r, size_t layer, smooth_pair pair)
{
    return method_takes(r, pair) && !pair_is_disabled(r, layer, pair);
}

static tare_status check_names(const run *r)
{
    tare_status status = TARE_OK;
    const string_list *names = &r->recipe->disable_anti_names;
    const char **known = mem_alloc_array(r->ctx, r->num_linears, sizeof *known);
    buffer near;
    buffer_init(&near, r->ctx);
    if (!known)
        return TARE_E_MEMORY;
    for (size_t i = 0; i < r->num_linears; i++)
        known[i] = r->linears[i].name;
    for (size_t n = 0; n < names->count; n++) {
        bool found = false;
        for (size_t i = 0; i < r->num_linears && !found; i++)
            found = strcmp(known[i], names->items[n]) == 0;
        if (found)
            continue;
        nearest_names(&near, names->items[n], known, r->num_linears, 3);
        TRY(near.status);
        TRY(TARE_FAIL(
            r->ctx, TARE_E_USAGE,
            "anti_outlier.disable_anti_names: \"%s\" names no linear layer of this model; near: %s",
            names->items[n], near.data));
    }
done:
    buffer_free(&near);
    mem_free(r->ctx, known);
    return status;
}

bool smoothing_shifts(const run *r)
{
    return r->smoothing && r->smooth.method == SMOOTH_M4 && r->model->config.arch->smooth_shift;
}

norm_kind smoothing_norm_kind(const run *r)
{
    if (!r->smoothing || r->smooth.method == SMOOTH_M6)
        return NORM_PLAIN;
    return smoothing_shifts(r) ? NORM_SHIFTED : NORM_WRAPPED;
}

bool smoothing_creates_bias(const run *r, const model_linear *l)
{
    return smoothing_shifts(r) && !l->bias &&
           (l->group == GROUP_QKV || l->group == GROUP_GATE_UP) &&
           pair_is_active(r, l->layer, l->group == GROUP_QKV ? PAIR_INPUT : PAIR_POST_ATTENTION);
}

bool smoothing_solves(const run *r)
{
    return r->smoothing && !r->smoothing_given;
}

tare_status smoothing_plan(run *r)
{
    const tare_recipe *recipe = r->recipe;
    tare_status status = TARE_OK;
    if (recipe->anti_method == 0)
        return TARE_OK;
    if (r->options->smoothing)
        return smoothing_take(r, r->options->smoothing);
    r->smooth = (smooth_config){.method = (smooth_method)recipe->anti_method,
                                .w_bit = (int)recipe->anti_w_bit,
                                .w_sym = recipe->anti_w_sym,
                                .has_alpha = !isnan(recipe->anti_alpha),
                                .has_beta = !isnan(recipe->anti_beta),
                                .alpha = recipe->anti_alpha,
                                .beta = recipe->anti_beta,
                                .num = r->num};
    TRY(check_names(r));
    r->smoothing = arena_calloc(&r->arena, r->model->config.num_layers, sizeof *r->smoothing);
    if (!r->smoothing)
        return TARE_E_MEMORY;
done:
    return status;
}

/* ---- the vectors of one layer ---- */

static tare_status ones(tare_context *ctx, size_t n, float **out)
{
    if (!(*out = mem_alloc_array(ctx, n, sizeof **out)))
        return TARE_E_MEMORY;
    for (size_t i = 0; i < n; i++)
        (*out)[i] = 1;
    return TARE_OK;
}

static tare_status prepare_weight(run *r, const model_linear *l, bool stays_float, smooth_weight *w)
{
    tare_status status = TARE_OK;
    *w = (smooth_weight){.name = l->name, .n = l->n, .k = l->k, .has_bias = l->bias != NULL};
    w->stored = stays_float ? output_tensor(r, l->weight).dtype : TARE_F32;
    TRY(ones(r->ctx, l->n, &w->row_scale));
    TRY(ones(r->ctx, l->k, &w->col_scale));
    if (l->bias)
        TRY(model_read_vector(r->model, l->bias, &w->bias));
    else if (smoothing_creates_bias(r, l) && !(w->bias = mem_calloc(r->ctx, l->n, sizeof *w->bias)))
        status = TARE_E_MEMORY;
done:
    return status;
}

static tare_status prepare_norm(run *r, const tensor_info *t, smooth_norm *n)
{
    *n = (smooth_norm){.stored = output_tensor(r, t).dtype};
    tare_status status = model_read_vector(r->model, t, &n->weight);
    if (status == TARE_OK && smoothing_shifts(r) &&
        !(n->bias = mem_calloc(r->ctx, t->shape[0], sizeof *n->bias)))
        status = TARE_E_MEMORY;
    return status;
}

static tare_status prepare_layer(run *r, size_t layer, const layer_source *source)
{
    tare_status status = TARE_OK;
    layer_smoothing *s = &r->smoothing[layer];
    const model_layer *m = &r->model->layers[layer];
    const architecture *arch = r->model->config.arch;
    for (size_t i = 0; i < arch->num_linears; i++) {
        linear_role role = arch->linears[i].role;
        smooth_weight *w = &s->weights[role];
        TRY(prepare_weight(r, &m->linears[role],
                           r->linears[layer * r->linears_per_layer + i].is_float, w));
        w->raw = source->raw[role].data;
        w->dtype = source->raw[role].dtype;
    }
    TRY(prepare_norm(r, m->norms[NORM_INPUT], &s->norms[NORM_INPUT]));
    TRY(prepare_norm(r, m->norms[NORM_POST_ATTENTION], &s->norms[NORM_POST_ATTENTION]));
done:
    return status;
}

void layer_smoothing_free(tare_context *ctx, layer_smoothing *s)
{
    for (int role = 0; role < ROLE_COUNT; role++) {
        mem_free(ctx, s->weights[role].row_scale);
        mem_free(ctx, s->weights[role].col_scale);
        mem_free(ctx, s->weights[role].bias);
    }
    for (int role = 0; role < NORM_COUNT; role++) {
        mem_free(ctx, s->norms[role].weight);
        mem_free(ctx, s->norms[role].bias);
    }
    for (int group = 0; group < GROUP_COUNT; group++) {
        mem_free(ctx, s->input_scale[group]);
        mem_free(ctx, s->input_shift[group]);
    }
    *s = (layer_smoothing){0};
}

void smoothing_free_layer(run *r, size_t layer)
{
    if (smoothing_solves(r))
        layer_smoothing_free(r->ctx, &r->smoothing[layer]);
}

static tare_status archive_weight(archive *a, const model_linear *l, smooth_weight *w)
{
    tare_status status = TARE_OK;
    TRY(archive_floats(a, &w->row_scale, l->n));
    TRY(archive_floats(a, &w->col_scale, l->k));
    TRY(archive_floats(a, &w->bias, l->n));
    TRY(archive_bytes(a, &w->has_bias, sizeof w->has_bias));
    TRY(archive_bytes(a, &w->stored, sizeof w->stored));
    TRY(archive_bytes(a, &w->rows_scaled, sizeof w->rows_scaled));
    TRY(archive_bytes(a, &w->cols_scaled, sizeof w->cols_scaled));
    TRY(archive_bytes(a, &w->rows_first, sizeof w->rows_first));
    TRY(archive_bytes(a, &w->round, sizeof w->round));
    w->name = l->name;
    w->n = l->n;
    w->k = l->k;
done:
    return status;
}

tare_status smoothing_archive(run *r, size_t layer, archive *a)
{
    tare_status status = TARE_OK;
    layer_smoothing *s = &r->smoothing[layer];
    const model_layer *m = &r->model->layers[layer];
    const architecture *arch = r->model->config.arch;
    for (size_t i = 0; i < arch->num_linears; i++) {
        const model_linear *l = &m->linears[arch->linears[i].role];
        TRY(archive_weight(a, l, &s->weights[arch->linears[i].role]));
        if (i > 0 && arch->linears[i - 1].group == l->group)
            continue; /* members of a group stand next to each other and share their input */
        TRY(archive_floats(a, &s->input_scale[l->group], l->k));
        TRY(archive_floats(a, &s->input_shift[l->group], l->k));
    }
    for (int role = 0; role < NORM_COUNT; role++) {
        smooth_norm *n = &s->norms[role];
        size_t size = m->norms[role] ? m->norms[role]->shape[0] : 0;
        TRY(archive_floats(a, &n->weight, size));
        TRY(archive_floats(a, &n->bias, size));
        TRY(archive_bytes(a, &n->stored, sizeof n->stored));
    }
done:
    return status;
}

/* ---- watching the inputs ---- */

typedef struct pair_group {
    smooth_group group;
    smooth_weight *targets[ROLE_COUNT]; /* of one group: no more than there are roles */
} pair_group;

static const char *source_name(const run *r, size_t layer, smooth_pair pair)
{
    const model_layer *m = &r->model->layers[layer];
    if (is_norm_pair(pair))
        return m->norms[pair == PAIR_INPUT ? NORM_INPUT : NORM_POST_ATTENTION]->name;
    return m->linears[pair == PAIR_VALUE_OUTPUT ? ROLE_V : ROLE_UP].name;
}

static void describe_pair(run *r, size_t layer, smooth_pair pair, pair_group *out)
{
    const model_config *c = &r->model->config;
    layer_smoothing *s = &r->smoothing[layer];
    smooth_group *g = &out->group;
    *out = (pair_group){.group = {.name = source_name(r, layer, pair),
                                  .alpha = c->arch->smooth_alpha,
                                  .shift = c->arch->smooth_shift}};
    g->targets = out->targets;
    for (size_t i = 0; i < c->arch->num_linears; i++) {
        if (c->arch->linears[i].group != smooth_pair_targets(pair))
            continue;
        assert(g->num_targets < ROLE_COUNT);
        out->targets[g->num_targets++] = &s->weights[c->arch->linears[i].role];
    }
    g->channels = out->targets[0]->k;
    if (is_norm_pair(pair)) {
        g->norm = &s->norms[pair == PAIR_INPUT ? NORM_INPUT : NORM_POST_ATTENTION];
    } else if (pair == PAIR_VALUE_OUTPUT) {
        g->source = &s->weights[ROLE_V];
        g->rows = (smooth_rows){.heads = c->num_kv_heads,
                                .stride = c->head_dim,
                                .width = c->head_dim,
                                .repeat = c->num_heads / c->num_kv_heads};
    } else {
        g->source = &s->weights[ROLE_UP];
        g->rows = (smooth_rows){
            .heads = 1, .stride = g->channels, .width = g->channels, .repeat = 1};
    }
}

/* Rows of a pair's inputs that its method reads again. */
static size_t watched_rows(const run *r)
{
    smooth_need need = smooth_needs(&r->smooth);
    return need == SMOOTH_ALL_SAMPLES    ? r->float_tokens
           : need == SMOOTH_FIRST_SAMPLE ? r->samples.lengths[0]
                                         : 0;
}

/* Names and sizes are enough for statistics; the vectors come with smoothing_solve. */
tare_status smoothing_watch(run *r, size_t layer, pair_watch watch[PAIR_COUNT])
{
    tare_status status = TARE_OK;
    for (int p = 0; p < PAIR_COUNT; p++) {
        const model_layer *m = &r->model->layers[layer];
        linear_role role = p == PAIR_INPUT            ? ROLE_Q
                           : p == PAIR_POST_ATTENTION ? ROLE_GATE
                           : p == PAIR_VALUE_OUTPUT   ? ROLE_O
                                                      : ROLE_DOWN;
        smooth_weight target = {
            .name = m->linears[role].name, .n = m->linears[role].n, .k = m->linears[role].k};
        smooth_weight *targets[1] = {&target};
        smooth_group g = {.name = source_name(r, layer, (smooth_pair)p),
                          .targets = targets,
                          .num_targets = 1,
                          .channels = target.k};
        if (!pair_is_active(r, layer, (smooth_pair)p))
            continue;
        TRY(smooth_stats_create(r->ctx, &r->smooth, &g, &watch[p].stats));
        watch[p].channels = target.k;
        watch[p].rows = watched_rows(r);
        size_t cells;
        if (!size_mul(watch[p].rows, target.k, &cells))
            return TARE_FAIL(r->ctx, TARE_E_MEMORY, "out of memory: inputs of %zu tokens",
                             watch[p].rows);
        if (cells && !(watch[p].inputs = mem_alloc_array(r->ctx, cells, sizeof(float))))
            return TARE_E_MEMORY;
    }
done:
    return status;
}

void smoothing_unwatch(run *r, pair_watch watch[PAIR_COUNT])
{
    for (int p = 0; p < PAIR_COUNT; p++) {
        smooth_stats_free(r->ctx, watch[p].stats);
        mem_free(r->ctx, watch[p].inputs);
        watch[p] = (pair_watch){0};
    }
}

tare_status pair_watch_inputs(run *r, pair_watch *w, const batch *b, const float *x, size_t k)
{
    for (size_t i = 0, row = 0; i < b->samples; row += b->lengths[i++]) {
        tare_status status = smooth_stats_update(r->ctx, w->stats, x + row * k, b->lengths[i]);
        if (status != TARE_OK)
            return status;
    }
    size_t room = w->rows - w->seen, kept = b->rows < room ? b->rows : room;
    if (kept)
        memcpy(w->inputs + w->seen * k, x, kept * k * sizeof *x);
    w->seen += kept;
    return TARE_OK;
}

/* ---- solving ---- */

static tare_status read_inputs(void *user, size_t first, size_t count, float *x)
{
    const pair_watch *w = user;
    memcpy(x, w->inputs + first * w->channels, count * w->channels * sizeof *x);
    return TARE_OK;
}

/* The input's own scale and shift, for the scores. */
static tare_status keep_input_scale(run *r, size_t layer, smooth_pair pair, const smooth_group *g,
                                    const smooth_scales *found)
{
    layer_smoothing *s = &r->smoothing[layer];
    linear_group group = smooth_pair_targets(pair);
    if (!(s->input_scale[group] = mem_alloc_array(r->ctx, g->channels, sizeof(float))))
        return TARE_E_MEMORY;
    memcpy(s->input_scale[group], g->targets[0]->col_scale, g->channels * sizeof(float));
    if (!found->shift)
        return TARE_OK;
    if (!(s->input_shift[group] = mem_alloc_array(r->ctx, g->channels, sizeof(float))))
        return TARE_E_MEMORY;
    memcpy(s->input_shift[group], found->shift, g->channels * sizeof(float));
    return TARE_OK;
}

/* What is allowed but calls for a look, for the layer's one warning. */
static void note_oddities(buffer *notes, const smooth_group *g, const smooth_scales *found)
{
    const struct {
        size_t count;
        const char *what;
    } oddities[] = {
        {found->dead, "dead channels"},
        {found->zero_columns, "all-zero weight columns"},
        {found->zero_rows, "all-zero weight rows"},
        {found->overflows, "channels left alone because a stored value would not fit its dtype"},
    };
    bool named = false;
    for (size_t i = 0; i < sizeof oddities / sizeof *oddities; i++) {
        if (oddities[i].count == 0)
            continue;
        if (!named)
            buffer_printf(notes, "%s%s: ", notes->length ? "; " : "", g->name);
        buffer_printf(notes, "%s%zu %s", named ? ", " : "", oddities[i].count, oddities[i].what);
        named = true;
    }
}

static tare_status solve_pair(run *r, size_t layer, smooth_pair pair, pair_watch *watch,
                              buffer *notes)
{
    tare_status status = TARE_OK;
    pair_group p;
    smooth_scales found = {0};
    smooth_inputs inputs = {.user = watch, .read = read_inputs};
    describe_pair(r, layer, pair, &p);
    TRY(smooth_solve(r->ctx, &r->smooth, &p.group, watch->stats, &inputs, &found));
    TRY(smooth_apply(r->ctx, &r->smooth, &p.group, &found));
    TRY(keep_input_scale(r, layer, pair, &p.group, &found));
    note_oddities(notes, &p.group, &found);
    TARE_DEBUG(r->ctx, "smoothing %s: candidate %d, alpha %g, beta %g, loss %g, %zu evaluated",
               p.group.name, found.candidate, found.alpha, found.beta, found.loss, found.evaluated);
done:
    smooth_scales_free(r->ctx, &found);
    return status;
}

tare_status smoothing_solve(run *r, size_t layer, const layer_source *source,
                            pair_watch watch[PAIR_COUNT])
{
    tare_status status = TARE_OK;
    const architecture *arch = r->model->config.arch;
    buffer notes;
    buffer_init(&notes, r->ctx);
    TRY(prepare_layer(r, layer, source));
    for (int i = 0; i < PAIR_COUNT; i++) {
        smooth_pair pair = arch->pairs[i];
        if (watch[pair].stats)
            TRY(solve_pair(r, layer, pair, &watch[pair], &notes));
    }
    TRY(notes.status);
    if (notes.length)
        TARE_WARN(r->ctx, "smoothing met %s", notes.data);
done:
    buffer_free(&notes);
    return status;
}

/* ---- memory ---- */

/* A pair by its sizes alone. */
typedef struct pair_size {
    smooth_group group;
    smooth_weight targets[3], source;
    smooth_weight *list[3];
} pair_size;

static void measure_pair(const run *r, size_t layer, smooth_pair pair, pair_size *out)
{
    const architecture *arch = r->model->config.arch;
    const model_layer *m = &r->model->layers[layer];
    *out = (pair_size){0};
    for (size_t i = 0; i < arch->num_linears; i++) {
        const model_linear *l = &m->linears[arch->linears[i].role];
        size_t n = out->group.num_targets;
        if (l->group != smooth_pair_targets(pair))
            continue;
        out->targets[n] = (smooth_weight){.name = l->name, .n = l->n, .k = l->k};
        out->list[n] = &out->targets[n];
        out->group.num_targets++;
        out->group.channels = l->k;
    }
    out->group.targets = out->list;
    if (!is_norm_pair(pair)) {
        out->source.k = m->linears[pair == PAIR_VALUE_OUTPUT ? ROLE_V : ROLE_UP].k;
        out->group.source = &out->source;
    }
}

size_t smoothing_layer_bytes(const run *r, size_t layer)
{
    const architecture *arch = r->model->config.arch;
    size_t bytes = 0, hidden = mem_array_bytes(r->model->config.hidden_size, sizeof(float));
    for (size_t i = 0; i < arch->num_linears; i++) {
        const model_linear *l = &r->model->layers[layer].linears[arch->linears[i].role];
        bytes += 2 * mem_array_bytes(l->n, sizeof(float)) +
                 3 * mem_array_bytes(l->k, sizeof(float)); /* scales, bias; the input's own */
    }
    return bytes + 4 * hidden;
}

bool smoothing_targets(const run *r, const model_linear *l)
{
    for (int p = 0; smoothing_solves(r) && p < PAIR_COUNT; p++) {
        if (smooth_pair_targets((smooth_pair)p) == l->group)
            return pair_is_active(r, l->layer, (smooth_pair)p);
    }
    return false;
}

size_t smoothing_watch_bytes(const run *r, size_t layer)
{
    size_t bytes = 0;
    pair_size p;
    for (int i = 0; i < PAIR_COUNT; i++) {
        if (!pair_is_active(r, layer, (smooth_pair)i))
            continue;
        measure_pair(r, layer, (smooth_pair)i, &p);
        bytes += smooth_stats_bytes(&r->smooth, p.group.channels);
        if (watched_rows(r))
            bytes += mem_array_bytes(watched_rows(r) * p.group.channels, sizeof(float));
    }
    return bytes;
}

size_t smoothing_solve_bytes(const run *r, size_t layer)
{
    size_t most = 0;
    pair_size p;
    for (int i = 0; i < PAIR_COUNT; i++) {
        if (!pair_is_active(r, layer, (smooth_pair)i))
            continue;
        measure_pair(r, layer, (smooth_pair)i, &p);
        size_t bytes = smooth_solve_bytes(r->ctx, &r->smooth, &p.group, r->samples.lengths[0],
                                          r->float_tokens);
        most = bytes > most ? bytes : most;
    }
    return most;
}

/* Row by row to FP32; what stays float is narrowed again. */
size_t smoothing_weight_bytes(const run *r, const model_linear *l, bool quantize)
{
    size_t wide = mem_array_bytes(l->n * l->k, sizeof(float)), raw = linear_raw_bytes(r->model, l);
    tare_dtype to = quantize ? TARE_F32 : output_tensor(r, l->weight).dtype;
    size_t stored = to == TARE_F32 ? 0 : mem_array_bytes(l->n * l->k, dtype_size(to));
    return wide + (raw > stored ? raw : stored);
}

/* ---- what the layer is made of afterwards ---- */

tare_status smoothing_norms(run *r, size_t layer, layer_norms *norms)
{
    if (!r->smoothing)
        return TARE_OK;
    for (int role = 0; role < NORM_COUNT; role++) {
        const smooth_norm *n = &r->smoothing[layer].norms[role];
        size_t size = n->weight ? r->model->layers[layer].norms[role]->shape[0] : 0;
        if (!n->weight)
            continue;
        /* As it is stored, so that calibration sees what an engine will compute. */
        for (size_t i = 0; i < size; i++)
            norms->weights[role][i] = round_to_dtype((double)n->weight[i], n->stored);
        if (!n->bias)
            continue;
        if (!(norms->biases[role] = mem_alloc_array(r->ctx, size, sizeof(float))))
            return TARE_E_MEMORY;
        memcpy(norms->biases[role], n->bias, size * sizeof(float));
    }
    return TARE_OK;
}

tare_status smoothing_weight(run *r, const model_linear *l, bool quantize, raw_weight *raw)
{
    smooth_weight *w = &r->smoothing[l->layer].weights[l->spec->role];
    tare_dtype to = quantize ? TARE_F32 : output_tensor(r, l->weight).dtype;
    float *wide = mem_alloc_array(r->ctx, l->n * l->k, sizeof *wide);
    if (!wide)
        return TARE_E_MEMORY;
    w->raw = raw->data;
    w->dtype = raw->dtype;
    smooth_weight_rows(r->ctx, w, 0, l->n, wide);
    mem_free(r->ctx, raw->data);
    *raw = (raw_weight){wide, TARE_F32};
    if (to == TARE_F32)
        return TARE_OK;
    void *stored = mem_alloc_array(r->ctx, l->n * l->k, dtype_size(to));
    if (!stored)
        return TARE_E_MEMORY;
    narrow_from_float(r->ctx, to, wide, l->n * l->k, stored);
    mem_free(r->ctx, wide);
    *raw = (raw_weight){stored, to};
    return TARE_OK;
}
