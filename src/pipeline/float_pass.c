/* The float model beside the quantized one: what outlier suppression and the scores look at. One
 * layer at a time: its linears run on the first float_samples, their inputs are observed, smoothing
 * is solved from that, and the score sees the smoothed inputs. The float stream never sees a scale:
 * smoothing keeps the layer's function, so its output is the smoothed layer's too
 * (spec/anti_outlier.md 1.6). */
#include <string.h>

#include "pipeline/memory_plan.h"

/* layer_ops.linears with this as `user`. */
typedef struct float_work {
    run *run;
    size_t layer;
    float_layer linears;
    pair_watch watch[PAIR_COUNT]; /* stats NULL: nobody asks */
    bool scoring;                 /* inputs are scored as they come; */
    bool measuring;               /* or measured, to be scored once their scales are known */
    score_state scores[GROUP_COUNT];
    score_columns columns[GROUP_COUNT][SCORE_SAMPLES];
    layer_selector *selectors[GROUP_COUNT]; /* NULL: nobody asks */
    float *scratch;                         /* for score_update: 2 * the widest input */
    float *smoothed;                        /* one sample's input divided by its scales */
} float_work;

static const model_linear *group_first(const run *r, size_t layer, linear_group group)
{
    const architecture *arch = r->model->config.arch;
    for (size_t i = 0; i < arch->num_linears; i++) {
        if (arch->linears[i].group == group)
            return &r->model->layers[layer].linears[arch->linears[i].role];
    }
    return NULL;
}

/* What the smoothed layer's linears would read: (x - shift) / s. */
static const float *smoothed_input(const float_work *w, linear_group group, const float *x,
                                   size_t rows, size_t k)
{
    const layer_smoothing *s = w->run->smoothing ? &w->run->smoothing[w->layer] : NULL;
    const float *scale = s ? s->input_scale[group] : NULL,
                *shift = s ? s->input_shift[group] : NULL;
    if (!scale)
        return x;
    for (size_t i = 0; i < rows; i++) {
        for (size_t j = 0; j < k; j++)
            w->smoothed[i * k + j] = (x[i * k + j] - (shift ? shift[j] : 0)) / scale[j];
    }
    return w->smoothed;
}

static tare_status score_samples(float_work *w, linear_group group, const batch *b, const float *x,
                                 size_t k)
{
    run *r = w->run;
    for (size_t i = 0, row = 0; i < b->samples; row += b->lengths[i++]) {
        const float *input = smoothed_input(w, group, x + row * k, b->lengths[i], k);
        tare_status status = score_update(r->ctx, &r->num, &w->scores[group], input, b->lengths[i],
                                          k, w->scratch);
        if (status != TARE_OK)
            return TARE_WRAP(r->ctx, status, "input of group %s, sample %zu",
                             linear_group_name(group), b->first + i);
    }
    return TARE_OK;
}

static tare_status measure_samples(float_work *w, linear_group group, const batch *b,
                                   const float *x, size_t k)
{
    run *r = w->run;
    for (size_t i = 0, row = 0; i < b->samples && b->first + i < r->score_samples;
         row += b->lengths[i++]) {
        tare_status status = score_columns_create(r->ctx, x + row * k, b->lengths[i], k,
                                                  &w->columns[group][b->first + i]);
        if (status != TARE_OK)
            return TARE_WRAP(r->ctx, status, "input of group %s, sample %zu",
                             linear_group_name(group), b->first + i);
    }
    return TARE_OK;
}

static tare_status select_samples(float_work *w, linear_group group, const batch *b, const float *x,
                                  size_t k)
{
    for (size_t i = 0, row = 0; i < b->samples; row += b->lengths[i++]) {
        tare_status status = layer_selector_update(w->selectors[group], x + row * k, b->lengths[i],
                                                   k);
        if (status != TARE_OK)
            return TARE_WRAP(w->run->ctx, status, "input of group %s, sample %zu",
                             linear_group_name(group), b->first + i);
    }
    return TARE_OK;
}

static void score_measured(float_work *w)
{
    const layer_smoothing *s = &w->run->smoothing[w->layer];
    for (int group = 0; group < GROUP_COUNT; group++) {
        for (size_t i = 0; i < SCORE_SAMPLES && w->columns[group][i].rows; i++)
            score_update_scaled(&w->scores[group], &w->columns[group][i], s->input_scale[group],
                                s->input_shift[group]);
    }
}

static tare_status observed_linears(void *user, linear_group group, const batch *b, const float *x,
                                    float *const *y)
{
    tare_status status = TARE_OK;
    float_work *w = user;
    size_t k = group_first(w->run, w->layer, group)->k;
    for (int pair = 0; pair < PAIR_COUNT; pair++) {
        if (w->watch[pair].stats && smooth_pair_targets((smooth_pair)pair) == group)
            TRY(pair_watch_inputs(w->run, &w->watch[pair], b, x, k));
    }
    if (w->scoring)
        TRY(score_samples(w, group, b, x, k));
    if (w->measuring)
        TRY(measure_samples(w, group, b, x, k));
    if (w->selectors[group])
        TRY(select_samples(w, group, b, x, k));
    TRY(float_layer_linears(&w->linears, group, b, x, y));
done:
    return status;
}

static tare_status forward(float_work *w, const layer_norms *norms)
{
    tare_status status = TARE_OK;
    run *r = w->run;
    layer_ops ops = {.user = w, .linears = observed_linears};
    for (size_t first = 0, row = 0; first < r->float_samples;) {
        batch b = batch_next(r->samples.lengths, first, r->float_samples, r->layout.batch_rows);
        float *x;
        TRY(context_check_cancelled(r->ctx));
        TRY(stream_get(r->float_states, row, b.rows, &x));
        TRY(decoder_layer_forward(r->model, w->layer, norms, &ops, &b, &r->workspace, x));
        TRY(stream_put(r->float_states, row, b.rows, x));
        first += b.samples;
        row += b.rows;
        progress_sample(&r->progress, first, r->float_samples);
    }
    stream_flip(r->float_states);
done:
    return status;
}

static tare_status create_selectors(float_work *w)
{
    tare_status status = TARE_OK;
    for (int g = 0; g < GROUP_COUNT && status == TARE_OK; g++)
        status = layer_selector_create(w->run->ctx, w->run->range_method, &w->selectors[g]);
    return status;
}

/* Members of a group stand next to each other. */
static tare_status store_selections(float_work *w)
{
    tare_status status = TARE_OK;
    run *r = w->run;
    const architecture *arch = r->model->config.arch;
    fallback_linear *f = &r->linears[w->layer * r->linears_per_layer];
    for (size_t i = 0; i < arch->num_linears; i++) {
        linear_group group = arch->linears[i].group;
        if (i > 0 && arch->linears[i - 1].group == group)
            f[i].score = f[i - 1].score;
        else
            TRY(layer_selector_score(w->selectors[group], &f[i].score));
        f[i].has_score = true;
    }
done:
    return status;
}

/* The buffers of one update and the final one do not meet. */
size_t layer_selectors_bytes(const run *r)
{
    const sample_set *s = &r->samples;
    size_t bytes = 0, most = 0;
    for (int g = 0; g < GROUP_COUNT; g++) {
        const model_linear *l = group_first(r, 0, (linear_group)g);
        if (!l)
            continue;
        size_t update = layer_selector_update_bytes(r->ctx, r->range_method, s->longest, l->k),
               score = layer_selector_score_bytes(r->ctx, r->range_method, s->lengths, s->count,
                                                  l->k);
        bytes += layer_selector_bytes(r->range_method, s->lengths, s->count, l->k);
        most = update > most ? update : most;
        most = score > most ? score : most;
    }
    return bytes + most;
}

static void store_scores(float_work *w)
{
    run *r = w->run;
    const architecture *arch = r->model->config.arch;
    for (size_t i = 0; i < arch->num_linears; i++) {
        fallback_linear *f = &r->linears[w->layer * r->linears_per_layer + i];
        f->has_score = true;
        f->score = score_value(&r->num, &w->scores[arch->linears[i].group]);
    }
}

static size_t widest_input(const run *r)
{
    size_t widest = r->model->config.hidden_size;
    for (int group = 0; group < GROUP_COUNT; group++) {
        const model_linear *l = group_first(r, 0, (linear_group)group);
        widest = l && l->k > widest ? l->k : widest;
    }
    return widest;
}

static tare_status alloc_scoring(float_work *w)
{
    run *r = w->run;
    size_t widest = widest_input(r), cells;
    for (int g = 0; g < GROUP_COUNT; g++)
        score_init(&w->scores[g]);
    if (!r->wants_scores)
        return TARE_OK;
    if (!(w->scratch = mem_alloc_array(r->ctx, 2 * widest, sizeof *w->scratch)))
        return TARE_E_MEMORY;
    if (!r->smoothing || !r->num.compat)
        return TARE_OK;
    if (!size_mul(r->samples.longest, widest, &cells))
        return TARE_FAIL(r->ctx, TARE_E_MEMORY, "out of memory: a sample of %zu tokens",
                         r->samples.longest);
    w->smoothed = mem_alloc_array(r->ctx, cells, sizeof *w->smoothed);
    return w->smoothed ? TARE_OK : TARE_E_MEMORY;
}

size_t float_scoring_bytes(const run *r)
{
    size_t widest = widest_input(r);
    if (!r->wants_scores)
        return 0;
    size_t bytes = mem_array_bytes(2 * widest, sizeof(float));
    if (r->smoothing && r->num.compat)
        bytes += mem_array_bytes(r->samples.longest * widest, sizeof(float));
    else if (r->smoothing)
        bytes += GROUP_COUNT * SCORE_SAMPLES *
                 (2 * mem_array_bytes(widest, sizeof(float)) +
                  2 * mem_array_bytes(widest, sizeof(double)));
    return bytes;
}

/* The scored samples' part of the float stream, sample by sample; the caller frees it. */
static tare_status copy_scored(run *r, float **out)
{
    tare_status status = TARE_OK;
    size_t h = r->model->config.hidden_size;
    if (!(*out = mem_alloc_array(r->ctx, r->score_tokens * h, sizeof **out)))
        return TARE_E_MEMORY;
    for (size_t i = 0, row = 0; i < r->score_samples; row += r->samples.lengths[i++]) {
        float *x;
        TRY(stream_get(r->float_states, row, r->samples.lengths[i], &x));
        memcpy(*out + row * h, x, r->samples.lengths[i] * h * sizeof *x);
    }
done:
    return status;
}

/* Runs the layer again over the scored samples alone. */
static tare_status score_again(float_work *w, const layer_norms *norms, float *x)
{
    tare_status status = TARE_OK;
    run *r = w->run;
    layer_ops ops = {.user = w, .linears = observed_linears};
    w->scoring = true;
    for (size_t first = 0, row = 0; first < r->score_samples;) {
        batch b = batch_next(r->samples.lengths, first, r->score_samples, r->layout.batch_rows);
        TRY(context_check_cancelled(r->ctx));
        TRY(decoder_layer_forward(r->model, w->layer, norms, &ops, &b, &r->workspace,
                                  x + row * r->model->config.hidden_size));
        first += b.samples;
        row += b.rows;
    }
done:
    return status;
}

/* Scores are taken of smoothed inputs, which are known only after the layer ran once. What that run
 * leaves of each input is enough; only compat, which rounds element by element, runs the layer
 * again on the scored samples. */
static tare_status smooth_then_score(float_work *w, const layer_norms *norms, layer_source *source)
{
    tare_status status = TARE_OK;
    run *r = w->run;
    float *again = NULL;
    w->measuring = r->wants_scores && !r->num.compat;
    if (r->wants_scores && r->num.compat)
        TRY(copy_scored(r, &again));
    if (smoothing_solves(r))
        TRY(smoothing_watch(r, w->layer, w->watch));
    TRY(forward(w, norms));
    if (smoothing_solves(r))
        TRY(smoothing_solve(r, w->layer, source, w->watch));
    smoothing_unwatch(r, w->watch);
    if (w->measuring)
        score_measured(w);
    if (again)
        TRY(score_again(w, norms, again));
done:
    smoothing_unwatch(r, w->watch);
    mem_free(r->ctx, again);
    return status;
}

tare_status float_layer_pass(run *r, size_t layer, layer_source *source)
{
    tare_status status = TARE_OK;
    layer_norms norms = {0};
    float_work w = {.run = r, .layer = layer, .linears = {.model = r->model}};
    TRY(layer_source_load(r, layer, source));
    TRY(alloc_scoring(&w));
    if (r->goal == GOAL_SCORES)
        TRY(create_selectors(&w));
    TRY(layer_norms_load(r->model, layer, &norms));
    if (r->layout.whole_layer)
        TRY(float_layer_create(r->model, layer, r->compute, source->raw, &w.linears));
    else
        float_layer_borrow(r->model, layer, r->compute, source->raw, &w.linears);
    if (r->smoothing) {
        TRY(smooth_then_score(&w, &norms, source));
    } else {
        w.scoring = r->wants_scores;
        TRY(forward(&w, &norms));
    }
    if (r->wants_scores)
        store_scores(&w);
    if (r->goal == GOAL_SCORES)
        TRY(store_selections(&w));
done:
    for (int group = 0; group < GROUP_COUNT; group++) {
        layer_selector_free(w.selectors[group]);
        for (size_t i = 0; i < SCORE_SAMPLES; i++)
            score_columns_free(r->ctx, &w.columns[group][i]);
    }
    float_layer_free(&w.linears);
    layer_norms_free(r->ctx, &norms);
    mem_free(r->ctx, w.scratch);
    mem_free(r->ctx, w.smoothed);
    return status;
}

tare_status score_head(run *r)
{
    tare_status status = TARE_OK;
    const model_config *c = &r->model->config;
    fallback_linear *f = &r->linears[r->num_linears - 1];
    score_state state;
    layer_selector *selector = NULL;
    float *norm = NULL, *x, *y = mem_alloc_array(r->ctx, r->samples.longest * c->hidden_size, 4),
          *scratch = mem_alloc_array(r->ctx, 2 * c->hidden_size, sizeof *scratch);
    score_init(&state);
    TRY(y && scratch ? TARE_OK : TARE_E_MEMORY);
    TRY(model_read_vector(r->model, r->model->final_norm, &norm));
    if (r->goal == GOAL_SCORES)
        TRY(layer_selector_create(r->ctx, r->range_method, &selector));
    for (size_t i = 0, row = 0; i < (selector ? r->float_samples : r->score_samples);
         row += r->samples.lengths[i++]) {
        size_t rows = r->samples.lengths[i];
        TRY(stream_get(r->float_states, row, rows, &x));
        norm_rows(r->ctx, x, norm, NULL, rows, c->hidden_size, c->rms_norm_eps, r->workspace.round,
                  y);
        if (selector)
            TRY(layer_selector_update(selector, y, rows, c->hidden_size));
        else
            TRY(score_update(r->ctx, &r->num, &state, y, rows, c->hidden_size, scratch));
    }
    f->has_score = true;
    f->score = score_value(&r->num, &state);
    if (selector)
        TRY(layer_selector_score(selector, &f->score));
done:
    layer_selector_free(selector);
    mem_free(r->ctx, norm);
    mem_free(r->ctx, y);
    mem_free(r->ctx, scratch);
    return TARE_WRAP(r->ctx, status, "lm_head");
}

static tare_status put_float_row(void *user, size_t index, const float *x)
{
    run *r = user;
    return stream_put(r->float_states, index, 1, x);
}

tare_status float_pass(run *r)
{
    tare_status status = TARE_OK;
    size_t layers = r->model->config.num_layers;
    memory_plan_pass(r, r->plan, PASS_FLOAT);
    progress_begin(&r->progress, r->ctx, r->goal == GOAL_SMOOTHING ? "smooth" : "score", "layer",
                   layers);
    if (!r->resume.restores) {
        TRY(create_states(r, true));
        TRY(embed_tokens(r->model, r->samples.ids, r->float_tokens, put_float_row, NULL, r));
        stream_flip(r->float_states);
    }
    TRY(overlap_start(r));
    progress_skip(&r->progress, r->resume.layer);
    for (size_t i = r->resume.layer; i < layers; i++) {
        layer_source source = {0};
        status = overlap_read(r, i, &source);
        if (status == TARE_OK)
            status = float_layer_pass(r, i, &source);
        layer_source_free(r, &source);
        TRY(TARE_WRAP(r->ctx, status, "model.layers.%zu", i));
        progress_unit_done(&r->progress);
        if (resume_due(r, true))
            TRY(resume_save(r, i + 1));
    }
    if (r->goal == GOAL_SCORES || (r->wants_scores && !r->linears[r->num_linears - 1].is_float))
        TRY(score_head(r));
    overlap_stop(r);
    stream_free(r->float_states);
    r->float_states = NULL;
    r->resume.layer = 0;
    r->resume.restores = false; /* the second pass begins at its beginning */
done:
    return status;
}
