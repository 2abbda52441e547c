/* Outlier suppression in a run, of the pairs that smoothing_plan.c chose: what is watched while the
 * float layer runs, and what smoothing leaves behind for the layer's weights, biases and norms:
 * vectors, kept until the layer is written (from the first pass to the second, if there are two).
 * The formulas are in quantize/smooth*. */
#include <math.h>
#include <string.h>

#include "base/parallel.h"
#include "pipeline/smoothing.h"

smooth_weight *smoothing_of(const run *r, const model_linear *l)
{
    if (!r->smoothing || linear_is_head(r->model, l))
        return NULL;
    const model_block *block = &r->model->blocks[r->model->units[l->unit].block];
    size_t own = (size_t)(l - r->model->linears) - block->first_linear;
    if (own >= block->graph->num_linears) /* an expert's */
        return NULL;
    smooth_weight *w = &r->smoothing[block->index].weights[own];
    return w->name ? w : NULL;
}

tare_status smoothing_begin(run *r)
{
    if (!r->plan->smooths)
        return TARE_OK;
    r->smoothing = arena_calloc(r->env->arena, r->model->num_blocks, sizeof *r->smoothing);
    if (!r->smoothing)
        return TARE_E_MEMORY;
    if (r->plan->smoothing_given)
        smoothing_borrow(r, r->env->options->smoothing);
    return TARE_OK;
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
    w->stored = stays_float ? output_weight(r->env, &l->weight).dtype : TARE_F32;
    TRY(ones(r->ctx, l->n, &w->row_scale));
    TRY(ones(r->ctx, l->k, &w->col_scale));
    if (l->bias)
        TRY(model_read_vector(r->model, l->bias, &w->bias));
    else if (smoothing_creates_bias(r->plan, l) &&
             !(w->bias = mem_calloc(r->ctx, l->n, sizeof *w->bias)))
        status = TARE_E_MEMORY;
done:
    return status;
}

static tare_status prepare_norm(run *r, const tensor_info *t, smooth_norm *n)
{
    *n = (smooth_norm){.stored = output_tensor(r->env, t).dtype,
                       .offset = r->model->config.arch->norm_base != 0};
    tare_status status = model_read_vector(r->model, t, &n->weight);
    if (status == TARE_OK && smoothing_shifts(r->plan) &&
        !(n->bias = mem_calloc(r->ctx, t->shape[0], sizeof *n->bias)))
        status = TARE_E_MEMORY;
    return status;
}

/* Is the pair smoothed with this segment? */
static bool pair_in(const segment_work *s, const pair_spec *pair)
{
    return pair->unit >= s->segment->first_unit && pair->unit < s->segment->end_unit;
}

static tare_status prepare_segment(run *r, const segment_work *work, const layer_source *source)
{
    tare_status status = TARE_OK;
    const model_block *block = work->block;
    layer_smoothing *s = &r->smoothing[block->index];
    const block_graph *g = block->graph;
    for (size_t i = work->segment->first_linear; i < work->segment->end_linear; i++) {
        smooth_weight *w = &s->weights[i];
        TRY(prepare_weight(r, block_linear(r->model, block, i),
                           plan_is_float(&r->plan->linears[block->first_linear + i]), w));
        w->raw = source->raw[i];
    }
    for (size_t p = 0; p < g->num_pairs; p++) {
        if (g->pairs[p].of_norm && pair_in(work, &g->pairs[p]))
            TRY(prepare_norm(r, block->norms[g->pairs[p].source], &s->norms[g->pairs[p].source]));
    }
    for (int operand = 0; operand < 2; operand++) {
        int norm = balance_norm(r->plan, block, operand);
        if (norm >= 0 && segment_has_norm(g, work->segment, (size_t)norm))
            TRY(prepare_norm(r, block->norms[norm], &s->norms[norm]));
    }
done:
    return status;
}

void layer_smoothing_free(tare_context *ctx, layer_smoothing *s)
{
    for (size_t i = 0; i < BLOCK_LINEARS; i++) {
        mem_free(ctx, s->weights[i].row_scale);
        mem_free(ctx, s->weights[i].col_scale);
        mem_free(ctx, s->weights[i].bias);
    }
    for (size_t i = 0; i < BLOCK_NORMS; i++) {
        mem_free(ctx, s->norms[i].weight);
        mem_free(ctx, s->norms[i].bias);
    }
    for (size_t u = 0; u < BLOCK_UNITS; u++) {
        mem_free(ctx, s->input_scale[u]);
        mem_free(ctx, s->input_shift[u]);
    }
    *s = (layer_smoothing){0};
}

void smoothing_free_layer(run *r, size_t layer)
{
    if (smoothing_solves(r->plan))
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

tare_status smoothing_archive(run *r, const model_block *block, archive *a)
{
    tare_status status = TARE_OK;
    layer_smoothing *s = &r->smoothing[block->index];
    const block_graph *g = block->graph;
    for (size_t i = 0; i < g->num_linears; i++)
        TRY(archive_weight(a, block_linear(r->model, block, i), &s->weights[i]));
    for (size_t u = 0; u < g->num_units; u++) {
        TRY(archive_floats(a, &s->input_scale[u], g->units[u].k));
        TRY(archive_floats(a, &s->input_shift[u], g->units[u].k));
    }
    for (size_t i = 0; i < g->num_norms; i++) {
        smooth_norm *n = &s->norms[i];
        TRY(archive_floats(a, &n->weight, g->norms[i].size));
        TRY(archive_floats(a, &n->bias, g->norms[i].size));
        TRY(archive_bytes(a, &n->stored, sizeof n->stored));
    }
done:
    return status;
}

/* ---- watching the inputs ---- */

typedef struct pair_group {
    smooth_group group;
    smooth_weight *targets[UNIT_LINEARS];
} pair_group;

static const char *source_name(const run *r, const model_block *block, const pair_spec *pair)
{
    return pair->of_norm ? block->norms[pair->source]->name
                         : block_linear(r->model, block, pair->source)->name;
}

static void describe_pair(run *r, const model_block *block, const pair_spec *pair, pair_group *out)
{
    const architecture *arch = r->model->config.arch;
    const unit_spec *unit = &block->graph->units[pair->unit];
    layer_smoothing *s = &r->smoothing[block->index];
    smooth_group *g = &out->group;
    *out = (pair_group){.group = {.name = source_name(r, block, pair),
                                  .channels = unit->k,
                                  .alpha = arch->smooth_alpha,
                                  .shift = arch->smooth_shift}};
    g->targets = out->targets;
    for (size_t i = unit->first; i < unit->first + unit->count; i++)
        out->targets[g->num_targets++] = &s->weights[i];
    if (pair->of_norm) {
        g->norm = &s->norms[pair->source];
        return;
    }
    g->source = &s->weights[pair->source];
    g->rows = (smooth_rows){.first = pair->first,
                            .heads = pair->heads,
                            .stride = pair->stride,
                            .width = pair->width,
                            .repeat = pair->repeat};
}

size_t smoothing_watched_rows(const run_plan *plan)
{
    smooth_need need = smooth_needs(&plan->smooth);
    return need == SMOOTH_ALL_SAMPLES    ? plan->float_tokens
           : need == SMOOTH_FIRST_SAMPLE ? plan->env->samples.lengths[0]
                                         : 0;
}

/* Names and sizes are enough for statistics; the vectors come with smoothing_solve. */
static tare_status watch_pair(run *r, const model_block *block, const pair_spec *pair,
                              pair_watch *w)
{
    const model_linear *first = &r->model->linears[block_unit(r->model, block, pair->unit)->first];
    smooth_weight target = {.name = first->name, .n = first->n, .k = first->k};
    smooth_weight *targets[1] = {&target};
    smooth_group g = {.name = source_name(r, block, pair),
                      .targets = targets,
                      .num_targets = 1,
                      .channels = target.k};
    size_t cells;
    tare_status status = smooth_stats_create(r->ctx, &r->plan->smooth, &g, &w->stats);
    if (status != TARE_OK)
        return status;
    w->channels = target.k;
    w->rows = smoothing_watched_rows(r->plan);
    if (!size_mul(w->rows, target.k, &cells))
        return TARE_FAIL(r->ctx, TARE_E_MEMORY, "out of memory: inputs of %zu tokens", w->rows);
    if (cells && !(w->inputs = mem_alloc_array(r->ctx, cells, sizeof(float))))
        return TARE_E_MEMORY;
    if (r->plan->smooth.method == SMOOTH_BALANCE &&
        !(w->units = mem_alloc_array(r->ctx, plan_most_rows(r->plan), sizeof(float))))
        return TARE_E_MEMORY;
    return TARE_OK;
}

tare_status smoothing_watch(run *r, const segment_work *s, pair_watch watch[BLOCK_PAIRS])
{
    tare_status status = TARE_OK;
    for (size_t p = 0; p < s->block->graph->num_pairs; p++) {
        const pair_spec *pair = &s->block->graph->pairs[p];
        if (pair_in(s, pair) && smoothing_pair_active(r->plan, s->block, pair))
            TRY(watch_pair(r, s->block, pair, &watch[p]));
    }
done:
    return status;
}

void smoothing_unwatch(run *r, pair_watch watch[BLOCK_PAIRS])
{
    for (size_t p = 0; p < BLOCK_PAIRS; p++) {
        smooth_stats_free(r->ctx, watch[p].stats);
        mem_free(r->ctx, watch[p].inputs);
        mem_free(r->ctx, watch[p].units);
        watch[p] = (pair_watch){0};
    }
}

typedef struct length_job {
    const float *x; /* [rows, n] */
    size_t n;
    float *lengths;
} length_job;

static void measure_row(void *user, size_t row, int thread)
{
    const length_job *job = user;
    const float *x = job->x + row * job->n;
    double sum = 0;
    (void)thread;
    for (size_t i = 0; i < job->n; i++)
        sum += (double)x[i] * (double)x[i];
    job->lengths[row] = (float)sqrt(sum);
}

tare_status pair_watch_inputs(run *r, pair_watch *w, const batch *b, const float *x, size_t k)
{
    length_job job = {.x = r->work.stream, .n = r->model->config.hidden_size, .lengths = w->units};
    if (w->units)
        parallel_for(r->ctx, b->rows, measure_row, &job);
    for (size_t i = 0, row = 0; i < b->samples; row += b->lengths[i++]) {
        tare_status status = smooth_stats_update(r->ctx, w->stats, x + row * k,
                                                 w->units ? w->units + row : NULL, b->lengths[i]);
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
static tare_status keep_input_scale(run *r, layer_smoothing *s, graph_unit unit,
                                    const smooth_group *g, const smooth_scales *found)
{
    if (!(s->input_scale[unit] = mem_alloc_array(r->ctx, g->channels, sizeof(float))))
        return TARE_E_MEMORY;
    memcpy(s->input_scale[unit], g->targets[0]->col_scale, g->channels * sizeof(float));
    if (!found->shift)
        return TARE_OK;
    if (!(s->input_shift[unit] = mem_alloc_array(r->ctx, g->channels, sizeof(float))))
        return TARE_E_MEMORY;
    memcpy(s->input_shift[unit], found->shift, g->channels * sizeof(float));
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

static tare_status solve_pair(run *r, const model_block *block, const pair_spec *pair,
                              pair_watch *watch, buffer *notes)
{
    tare_status status = TARE_OK;
    pair_group p;
    smooth_scales found = {0};
    smooth_inputs inputs = {.user = watch, .read = read_inputs};
    describe_pair(r, block, pair, &p);
    TRY(smooth_solve(r->ctx, &r->plan->smooth, &p.group, watch->stats, &inputs, &found));
    TRY(smooth_apply(r->ctx, &r->plan->smooth, &p.group, &found));
    TRY(keep_input_scale(r, &r->smoothing[block->index], pair->unit, &p.group, &found));
    note_oddities(notes, &p.group, &found);
    TARE_DEBUG(r->ctx, "smoothing %s: candidate %d, alpha %g, beta %g, loss %g, %zu evaluated",
               p.group.name, found.candidate, found.alpha, found.beta, found.loss, found.evaluated);
done:
    smooth_scales_free(r->ctx, &found);
    return status;
}

tare_status smoothing_solve(run *r, const segment_work *s, const layer_source *source,
                            pair_watch watch[BLOCK_PAIRS], const head_watch *heads)
{
    tare_status status = TARE_OK;
    buffer notes;
    buffer_init(&notes, r->ctx);
    TRY(prepare_segment(r, s, source));
    for (size_t p = 0; p < s->block->graph->num_pairs; p++) {
        if (watch[p].stats)
            TRY(solve_pair(r, s->block, &s->block->graph->pairs[p], &watch[p], &notes));
    }
    TRY(balance_solve(r, s->block, heads));
    TRY(notes.status);
    if (notes.length && !r->clock)
        TARE_WARN(r->ctx, "smoothing met %s", notes.data);
done:
    buffer_free(&notes);
    return status;
}

/* ---- memory ---- */

/* A pair by its sizes alone. */
typedef struct pair_size {
    smooth_group group;
    smooth_weight targets[UNIT_LINEARS], source;
    smooth_weight *list[UNIT_LINEARS];
} pair_size;

static void measure_pair(const run_plan *plan, const model_block *block, const pair_spec *pair,
                         pair_size *out)
{
    const model_unit *unit = block_unit(plan->env->model, block, pair->unit);
    *out = (pair_size){0};
    for (size_t i = 0; i < unit->count; i++) {
        const model_linear *l = &plan->env->model->linears[unit->first + i];
        out->targets[i] = (smooth_weight){.name = l->name, .n = l->n, .k = l->k};
        out->list[i] = &out->targets[i];
    }
    out->group.num_targets = unit->count;
    out->group.channels = unit->k;
    out->group.targets = out->list;
    if (!pair->of_norm) {
        out->source.k = block->graph->linears[pair->source].k;
        out->group.source = &out->source;
    }
}

size_t smoothing_layer_bytes(const run_plan *plan, const model_block *block)
{
    size_t bytes = 0, hidden = mem_array_bytes(plan->env->model->config.hidden_size, sizeof(float));
    for (size_t i = 0; i < block->graph->num_linears; i++) {
        const linear_spec *l = &block->graph->linears[i];
        bytes += 2 * mem_array_bytes(l->n, sizeof(float)) +
                 3 * mem_array_bytes(l->k, sizeof(float)); /* scales, bias; the input's own */
    }
    return bytes + 4 * hidden;
}

size_t smoothing_watch_bytes(const run_plan *plan, const segment_work *s)
{
    size_t bytes = balance_watch_bytes(plan, s);
    for (size_t p = 0; p < s->block->graph->num_pairs; p++) {
        const pair_spec *pair = &s->block->graph->pairs[p];
        size_t channels = s->block->graph->units[pair->unit].k;
        if (!pair_in(s, pair) || !smoothing_pair_active(plan, s->block, pair))
            continue;
        bytes += smooth_stats_bytes(&plan->smooth, channels);
        if (plan->smooth.method == SMOOTH_BALANCE)
            bytes += mem_array_bytes(plan_most_rows(plan), sizeof(float));
        if (smoothing_watched_rows(plan))
            bytes += mem_array_bytes(smoothing_watched_rows(plan) * channels, sizeof(float));
    }
    return bytes;
}

size_t smoothing_solve_bytes(const run_plan *plan, const segment_work *s)
{
    size_t most = 0;
    pair_size p;
    for (size_t i = 0; i < s->block->graph->num_pairs; i++) {
        const pair_spec *pair = &s->block->graph->pairs[i];
        if (!pair_in(s, pair) || !smoothing_pair_active(plan, s->block, pair))
            continue;
        measure_pair(plan, s->block, pair, &p);
        size_t bytes = smooth_solve_bytes(plan->env->ctx, &plan->smooth, &p.group,
                                          plan->env->samples.lengths[0], plan->float_tokens);
        most = bytes > most ? bytes : most;
    }
    return most;
}
