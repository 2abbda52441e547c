/* The public side of generation: settings, and the loop that keeps a batch of sequences going. When
 * one ends, the next prompt takes its place. */
#include <math.h>
#include <string.h>

#include "base/carver.h"
#include "base/sized.h"
#include "generate/generate.h"

void tare_generate_options_init_sized(tare_generate_options *options, size_t size)
{
    static const tare_generate_options defaults = {.max_new_tokens = 20,
                                                   .temperature = -1,
                                                   .top_k = -1,
                                                   .top_p = -1,
                                                   .repetition_penalty = -1};
    sized_init(options, size, &defaults, sizeof defaults);
}

tare_status generation_take_options(tare_model *model, const tare_generate_options *given,
                                    tare_generate_options *out)
{
    tare_generate_options_init(out);
    return SIZED_TAKE(model->ctx, tare_generate_options, given, out);
}

/* ---- what stays in the model ---- */

tare_status generation_get(tare_model *model, generation **out)
{
    tare_status status = TARE_OK;
    *out = model->generation;
    if (*out)
        return TARE_OK;
    generation *g = mem_calloc(model->ctx, 1, sizeof *g);
    if (!g)
        return TARE_E_MEMORY;
    arena_init(&g->arena, model->ctx);
    model->generation = g;
    TRY(generation_config_read(model, g));
    *out = g;
done:
    if (status != TARE_OK)
        tare_model_unload(model);
    return status;
}

void tare_model_unload(tare_model *model)
{
    generation *g = model->generation;
    if (!g)
        return;
    kept_weights_free(g->weights);
    if (g->config) {
        buffer_free(&g->config->greedy_ignored);
        buffer_free(&g->config->sampling_ignored);
    }
    arena_free(&g->arena);
    mem_free(model->ctx, g);
    model->generation = NULL;
}

/* ---- a call ---- */

typedef struct generate_run {
    tare_model *model;
    generation *g;
    const tare_generate_options *options;
    const uint32_t *const *prompts;
    const size_t *lengths;
    size_t n, next; /* prompts; the first that has no place yet */
    generation_layout layout;
    size_t longest;
    const uint32_t *eos_ids;
    size_t num_eos;
    forward forward;
    sampler sampler;
    sequence *slots; /* [batch]; ids NULL: free */
    tare_generation *results;
} generate_run;

tare_status generation_check_prompts(const tare_model *model, const uint32_t *const *prompts,
                                     const size_t *lengths, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (lengths[i] == 0)
            return TARE_FAIL(model->ctx, TARE_E_DATA, "prompt %zu has no tokens", i);
        for (size_t j = 0; j < lengths[i]; j++) {
            if (prompts[i][j] >= model->config.vocab_size)
                return TARE_FAIL(model->ctx, TARE_E_DATA,
                                 "prompt %zu: token id %u is out of range: the vocabulary has %zu",
                                 i, prompts[i][j], model->config.vocab_size);
        }
    }
    return TARE_OK;
}

static tare_status check_number(const tare_model *model, const char *name, double x, bool fits,
                                const char *must)
{
    return fits ? TARE_OK : TARE_FAIL(model->ctx, TARE_E_USAGE, "%s %g must be %s", name, x, must);
}

/* The options where they say something, else the checkpoint's settings. */
static tare_status resolve(generate_run *r, sampling_settings *out)
{
    tare_status status = TARE_OK;
    const tare_generate_options *o = r->options;
    const generation_config *c = r->g->config;
    int64_t top_k = o->top_k < 0 ? c->top_k : o->top_k;
    *out = (sampling_settings){.draw = o->do_sample,
                               .temperature = o->temperature < 0 ? c->temperature : o->temperature,
                               .top_p = o->top_p < 0 ? c->top_p : o->top_p,
                               .repetition_penalty = o->repetition_penalty < 0
                                                         ? c->repetition_penalty
                                                         : o->repetition_penalty,
                               .top_k = (size_t)top_k};
    TRY(check_number(r->model, "repetition_penalty", out->repetition_penalty,
                     out->repetition_penalty > 0 && isfinite(out->repetition_penalty), "above 0"));
    if (out->draw) {
        TRY(check_number(r->model, "temperature", out->temperature,
                         out->temperature > 0 && isfinite(out->temperature), "above 0"));
        TRY(check_number(r->model, "top_p", out->top_p, out->top_p > 0 && out->top_p <= 1,
                         "above 0 and at most 1"));
    }
    r->eos_ids = o->eos_ids ? o->eos_ids : c->eos_ids;
    r->num_eos = o->eos_ids ? o->num_eos : c->num_eos;
done:
    return status;
}

/* Once a model, as calls come in dozens. */
static void warn_ignored(generate_run *r)
{
    buffer *const notes[] = {&r->g->config->greedy_ignored, &r->g->config->sampling_ignored};
    for (size_t i = 0; i < (r->options->do_sample ? 2 : 1); i++) {
        if (notes[i]->length > 0)
            TARE_WARN(r->model->ctx,
                      "%s/generation_config.json: tare does not follow %s: the text may differ "
                      "from that of other engines",
                      r->model->folder, notes[i]->data);
        buffer_free(notes[i]);
        buffer_init(notes[i], r->model->ctx);
    }
}

tare_status generation_settle(tare_model *model, generation *g, weight_mode mode)
{
    size_t before = tare_memory_used(model->ctx);
    if (mode == WEIGHTS_KEPT && g->weights)
        return TARE_OK;
    if (mode == WEIGHTS_KEPT) {
        tare_status status = kept_weights_load(model, &g->weights);
        g->weight_bytes = tare_memory_used(model->ctx) - before;
        return status;
    }
    kept_weights_free(g->weights);
    g->weights = NULL;
    g->weight_bytes = 0;
    return TARE_OK;
}

static generation_work work_of(const tare_generate_options *o, const size_t *lengths, size_t n)
{
    return (generation_work){.lengths = lengths,
                             .n = n,
                             .max_new = o->max_new_tokens,
                             .sampled = o->do_sample,
                             .max_batch = o->batch,
                             .may_spill = o->scratch_dir != NULL};
}

/* ---- sequences ---- */

static void lay_out(carver *c, void *component)
{
    sequence *s = component;
    s->ids = carve(c, s->most, sizeof *s->ids);
    s->generator = s->drawn ? carve(c, 1, sizeof *s->generator) : NULL;
}

size_t sequence_bytes(size_t most, bool drawn)
{
    return carver_bytes(lay_out, &(sequence){.most = most, .drawn = drawn});
}

static void free_sequence(generate_run *r, sequence *s)
{
    kv_cache_free(&s->cache);
    mem_free(r->model->ctx, s->ids);
    *s = (sequence){0};
}

static tare_status begin_sequence(generate_run *r, size_t prompt, sequence *s)
{
    tare_status status = TARE_OK;
    const model_config *c = &r->model->config;
    const tare_generate_options *o = r->options;
    size_t length = r->lengths[prompt];
    *s = (sequence){.prompt = prompt,
                    .length = length,
                    .count = length,
                    .most = generation_most(c, length, o->max_new_tokens),
                    .drawn = o->do_sample};
    TRY(carver_alloc(r->model->ctx, lay_out, s));
    if (s->drawn)
        sampler_seed(s->generator, o->seed, o->records ? o->records[prompt] : (uint32_t)prompt);
    memcpy(s->ids, r->prompts[prompt], length * sizeof *s->ids);
    size_t kv[2];
    model_config_kv_columns(c, kv);
    TRY(kv_cache_create(r->model->ctx, c->num_layers, kv, s->most - 1,
                        r->layout.spill ? o->scratch_dir : NULL, &s->cache));
done:
    if (status != TARE_OK)
        free_sequence(r, s);
    return status;
}

/* Gives free places to prompts, while their rows fit into the pass. */
static tare_status admit(generate_run *r)
{
    size_t rows = 0;
    for (size_t i = 0; i < r->layout.batch; i++)
        rows += r->slots[i].ids ? 1 : 0;
    for (size_t i = 0; i < r->layout.batch; i++) {
        if (r->slots[i].ids)
            continue;
        while (r->next < r->n && r->results[r->next].finish == TARE_FINISH_TOO_LONG)
            r->next++;
        if (r->next == r->n || rows + r->lengths[r->next] > r->layout.pass_rows)
            break;
        rows += r->lengths[r->next];
        tare_status status = begin_sequence(r, r->next++, &r->slots[i]);
        if (status != TARE_OK)
            return status;
    }
    return TARE_OK;
}

static bool is_eos(const generate_run *r, uint32_t id)
{
    for (size_t i = 0; i < r->num_eos; i++) {
        if (r->eos_ids[i] == id)
            return true;
    }
    return false;
}

/* True if the text is complete; why, in *finish. */
static bool is_complete(generate_run *r, const sequence *s, tare_finish *finish)
{
    const tare_generate_options *o = r->options;
    uint32_t id = s->ids[s->count - 1];
    bool goes_on = !o->token || o->token(o->user, s->prompt, id);
    *finish = is_eos(r, id)                               ? TARE_FINISH_EOS
              : !goes_on                                  ? TARE_FINISH_STOPPED
              : s->count - s->length == o->max_new_tokens ? TARE_FINISH_LENGTH
                                                          : TARE_FINISH_CONTEXT;
    return *finish == TARE_FINISH_EOS || !goes_on || s->count == s->most;
}

static tare_status finish_sequence(generate_run *r, sequence *s, tare_finish finish)
{
    tare_generation *result = &r->results[s->prompt];
    size_t count = s->count - s->length;
    result->ids = mem_alloc_array(r->model->ctx, count, sizeof *result->ids);
    if (!result->ids)
        return TARE_E_MEMORY;
    memcpy(result->ids, s->ids + s->length, count * sizeof *result->ids);
    result->count = count;
    result->finish = finish;
    free_sequence(r, s);
    return TARE_OK;
}

static tare_status run_pass(generate_run *r)
{
    tare_status status = TARE_OK;
    forward *f = &r->forward;
    size_t vocab = r->model->config.vocab_size;
    f->num_sequences = 0;
    for (size_t i = 0; i < r->layout.batch; i++) {
        if (r->slots[i].ids)
            f->sequences[f->num_sequences++] = &r->slots[i];
    }
    TRY(forward_pass(f));
    for (size_t i = 0; i < f->num_sequences; i++) {
        sequence *s = f->sequences[i];
        tare_finish finish;
        s->ids[s->count] = sampler_choose(&r->sampler, s->generator, f->logits + i * vocab, s->ids,
                                          s->count);
        s->count++;
        if (is_complete(r, s, &finish))
            TRY(finish_sequence(r, s, finish));
    }
done:
    return status;
}

static bool anybody_left(const generate_run *r)
{
    for (size_t i = 0; i < r->layout.batch; i++) {
        if (r->slots[i].ids)
            return true;
    }
    return false;
}

static tare_status run_sequences(generate_run *r, const sampling_settings *settings)
{
    tare_status status = TARE_OK;
    tare_context *ctx = r->model->ctx;
    TRY(sampler_create(ctx, settings, r->model->config.vocab_size, &r->sampler));
    TRY(forward_create(r->model, &r->layout, r->longest, r->g->weights, &r->forward));
    r->slots = mem_calloc(ctx, r->layout.batch, sizeof *r->slots);
    TRY(r->slots ? TARE_OK : TARE_E_MEMORY);
    for (;;) {
        TRY(admit(r));
        if (!anybody_left(r))
            break;
        TRY(run_pass(r));
    }
done:
    for (size_t i = 0; i < r->layout.batch && r->slots; i++)
        free_sequence(r, &r->slots[i]);
    mem_free(ctx, r->slots);
    forward_free(&r->forward);
    sampler_free(&r->sampler);
    return status;
}

/* Marks the prompts that are too long, and finds how many tokens of a sequence go through the model
 * at most; 0: all prompts are too long. */
static size_t sort_out(generate_run *r)
{
    size_t longest = 0;
    for (size_t i = 0; i < r->n; i++) {
        size_t most = generation_most(&r->model->config, r->lengths[i], r->options->max_new_tokens);
        if (most == 0)
            r->results[i].finish = TARE_FINISH_TOO_LONG;
        else if (most - 1 > longest)
            longest = most - 1;
    }
    return longest;
}

tare_status generation_run(tare_model *model, const tare_generate_options *options,
                           const generation_layout *layout, const uint32_t *const *prompts,
                           const size_t *lengths, size_t n, tare_generation *results)
{
    tare_status status = TARE_OK;
    sampling_settings settings;
    generate_run r = {.model = model,
                      .options = options,
                      .prompts = prompts,
                      .lengths = lengths,
                      .n = n,
                      .layout = *layout,
                      .results = results};
    TRY(generation_get(model, &r.g));
    TRY(resolve(&r, &settings));
    warn_ignored(&r);
    r.longest = sort_out(&r);
    if (r.longest > 0 && options->max_new_tokens > 0) {
        TRY(generation_settle(model, r.g, layout->mode));
        TRY(run_sequences(&r, &settings));
    }
done:
    return status;
}

tare_status tare_generate(tare_model *model, const tare_generate_options *options,
                          const uint32_t *const *prompts, const size_t *lengths, size_t n,
                          tare_generation *results)
{
    tare_status status = TARE_OK;
    tare_generate_options o;
    tare_generation_plan plan;
    generation_layout layout;
    memset(results, 0, n * sizeof *results);
    TRY(generation_take_options(model, options, &o));
    generation_work work = work_of(&o, lengths, n);
    TRY(generation_check_prompts(model, prompts, lengths, n));
    TRY(generation_layout_make(model, &work, &layout, &plan));
    TRY(generation_run(model, &o, &layout, prompts, lengths, n, results));
done:
    if (status != TARE_OK)
        tare_generations_free(model->ctx, results, n);
    return status;
}

void tare_generations_free(tare_context *ctx, tare_generation *results, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        mem_free(ctx, results[i].ids);
        results[i] = (tare_generation){0};
    }
}

tare_status tare_generate_plan(tare_model *model, const tare_generate_options *options,
                               const size_t *lengths, size_t n, tare_generation_plan *plan)
{
    tare_status status = TARE_OK;
    tare_generate_options o;
    tare_generation_plan made;
    generation_layout layout;
    TRY(SIZED_CHECK(model->ctx, tare_generation_plan, plan));
    TRY(generation_take_options(model, options, &o));
    generation_work work = work_of(&o, lengths, n);
    status = generation_layout_make(model, &work, &layout, &made);
    sized_give(plan, &made, sizeof made); /* also of a budget that is too small */
done:
    return status;
}
