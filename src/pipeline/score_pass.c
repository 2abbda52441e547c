/* Scores of the linears' inputs with the float model: a pass of its own for disable_level, one
 * layer at a time for act_method 3. */
#include <string.h>

#include "pipeline/run.h"

/* A float layer that also scores the inputs of its linears: layer_ops.linears with this as `user`.
 */
typedef struct scored_layer {
    run *run;
    float_layer linears;
    score_state scores[GROUP_COUNT];
    float *scratch; /* for score_update: 2 * the widest input */
} scored_layer;

static tare_status scored_linears(void *user, linear_group group, const batch *b, const float *x,
                                  float *const *y)
{
    scored_layer *s = user;
    run *r = s->run;
    const model_linear *first = NULL;
    const architecture *arch = r->model->config.arch;
    for (size_t i = 0; i < arch->num_linears && !first; i++) {
        if (arch->linears[i].group == group)
            first = &r->model->layers[0].linears[arch->linears[i].role];
    }
    size_t row = 0;
    for (size_t i = 0; i < b->samples; i++) {
        tare_status status = score_update(r->ctx, &r->num, &s->scores[group], x + row * first->k,
                                          b->lengths[i], first->k, s->scratch);
        if (status != TARE_OK)
            return TARE_WRAP(r->ctx, status, "input of group %s, sample %zu",
                             linear_group_name(group), b->first + i);
        row += b->lengths[i];
    }
    return float_layer_linears(&s->linears, group, b, x, y);
}

static void store_scores(run *r, size_t layer, const scored_layer *s)
{
    const architecture *arch = r->model->config.arch;
    for (size_t i = 0; i < arch->num_linears; i++) {
        fallback_linear *f = &r->linears[layer * r->linears_per_layer + i];
        f->has_score = true;
        f->score = score_value(&r->num, &s->scores[arch->linears[i].group]);
    }
}

static size_t widest_input(const run *r)
{
    size_t widest = r->model->config.hidden_size;
    const architecture *arch = r->model->config.arch;
    for (size_t i = 0; i < arch->num_linears; i++) {
        size_t k = r->model->layers[0].linears[arch->linears[i].role].k;
        widest = k > widest ? k : widest;
    }
    return widest;
}

tare_status score_layer(run *r, size_t layer, float *x)
{
    tare_status status = TARE_OK;
    layer_norms norms = {0};
    scored_layer s = {.run = r, .linears = {.model = r->model}};
    for (int g = 0; g < GROUP_COUNT; g++)
        score_init(&s.scores[g]);
    if (!(s.scratch = mem_alloc_array(r->ctx, 2 * widest_input(r), sizeof *s.scratch)))
        return TARE_E_MEMORY;
    TRY(layer_norms_load(r->model, layer, &norms));
    TRY(float_layer_load(r->model, layer, r->compute, &s.linears));
    layer_ops ops = {.user = &s, .linears = scored_linears};
    size_t row = 0;
    for (size_t first = 0; first < r->score_samples;) {
        batch b = batch_next(r->samples.lengths, first, r->score_samples, r->batch_rows);
        TRY(context_check_cancelled(r->ctx));
        TRY(decoder_layer_forward(r->model, layer, &norms, &ops, &b, &r->workspace,
                                  x + row * r->model->config.hidden_size));
        first += b.samples;
        row += b.rows;
        progress_sample(&r->progress, first, r->score_samples);
    }
    store_scores(r, layer, &s);
done:
    float_layer_free(&s.linears);
    layer_norms_free(r->ctx, &norms);
    mem_free(r->ctx, s.scratch);
    return TARE_WRAP(r->ctx, status, "model.layers.%zu", layer);
}

tare_status score_head(run *r, float *x)
{
    tare_status status = TARE_OK;
    const model_config *c = &r->model->config;
    fallback_linear *f = &r->linears[r->num_linears - 1];
    score_state state;
    float *norm = NULL, *scratch = mem_alloc_array(r->ctx, 2 * c->hidden_size, sizeof *scratch);
    score_init(&state);
    if (!scratch)
        return TARE_E_MEMORY;
    TRY(model_read_vector(r->model, r->model->final_norm, &norm));
    norm_rows(r->ctx, x, norm, r->score_tokens, c->hidden_size, c->rms_norm_eps, r->workspace.round,
              x);
    for (size_t i = 0, row = 0; i < r->score_samples; row += r->samples.lengths[i++])
        TRY(score_update(r->ctx, &r->num, &state, x + row * c->hidden_size, r->samples.lengths[i],
                         c->hidden_size, scratch));
    f->has_score = true;
    f->score = score_value(&r->num, &state);
done:
    mem_free(r->ctx, norm);
    mem_free(r->ctx, scratch);
    return TARE_WRAP(r->ctx, status, "lm_head");
}

tare_status score_pass(run *r)
{
    tare_status status = TARE_OK;
    size_t layers = r->model->config.num_layers;
    float *x = mem_alloc_array(r->ctx, r->score_tokens * r->model->config.hidden_size, sizeof *x);
    if (!x)
        return TARE_E_MEMORY;
    progress_begin(&r->progress, r->ctx, "score", "layer", layers);
    TRY(embed_tokens(r->model, r->samples.ids, r->score_tokens, NULL, NULL, x));
    for (size_t i = 0; i < layers; i++) {
        TRY(score_layer(r, i, x));
        progress_unit_done(&r->progress);
    }
    if (!r->linears[r->num_linears - 1].is_float)
        TRY(score_head(r, x));
done:
    mem_free(r->ctx, x);
    return status;
}
