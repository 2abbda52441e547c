/* The run as a whole: check, plan, (score,) then layer by layer load - calibrate - quantize -
 * write, then finish; of weights alone tensor by tensor read - quantize - write. Everything
 * that can be refused is refused before the first weight is read. Passes over the checkpoint: one,
 * or two with disable_level. */
#include <string.h>

#include "base/sized.h"
#include "model/zeros.h"
#include "pipeline/work_plan.h"
#include "tensor/kernels.h"

void tare_quantize_options_init_sized(tare_quantize_options *options, size_t size)
{
    static const tare_quantize_options defaults = {.verify = true, .probe = true};
    sized_init(options, size, &defaults, sizeof defaults);
}

/* Does any linear need a range of its inputs? */
static bool uses_static(const run *r)
{
    for (size_t i = 0; i < r->model->num_linears; i++) {
        if (scheme_of(r->linears[i].scheme)->activations == ACT_STATIC)
            return true;
    }
    return false;
}

static tare_status open_model(run *r)
{
    tare_status status = TARE_OK;
    const tare_recipe *recipe = r->recipe;
    if (r->options->source)
        TRY(model_reopen(r->ctx, r->options->source, &r->model));
    else
        TRY(tare_model_open(r->ctx, r->options->model, &r->model));
    const model_config *c = &r->model->config;
    r->num.compat = recipe->compat;
    r->num.dtype = recipe->dtype >= 0 ? (tare_dtype)recipe->dtype : c->dtype;
    if (r->num.compat)
        model_load_as(r->model, r->num.dtype);
    if (r->num.dtype == TARE_F32 && !r->num.compat && r->goal == GOAL_OUTPUT)
        TARE_WARN(
            r->ctx,
            "the serving dtype is float32, which engines serve as float16: give --dtype float16 or "
            "bfloat16 so that the scales are rounded for it");
    if (!r->tape)
        TRY(save_types_parse(r->ctx, (const char *const *)recipe->save_types.items,
                             recipe->save_types.count, &r->save));
    r->compute = recipe->compute == COMPUTE_FP32   ? GEMM_FP32
                 : recipe->compute == COMPUTE_BF16 ? GEMM_BF16
                 : r->num.compat                   ? GEMM_FP32
                                                   : compute_default(r->model);
done:
    return status;
}

static size_t tokens_of(const run *r, size_t samples)
{
    size_t tokens = 0;
    for (size_t i = 0; i < samples; i++)
        tokens += r->samples.lengths[i];
    return tokens;
}

/* m3 looks at the first sample, the other methods at all of them, the score at a few.
 *
 * disable_level ranks all layers before the first is quantized: a float pass of its own, which also
 * finds the smoothing. Without it the float stream, if there is one, runs beside the quantized one,
 * layer by layer - except where compat's FP16 output depends on the observers' kind, which is
 * declared beforehand. */
static void plan_float_stream(run *r)
{
    size_t all = r->samples.count;
    r->wants_scores = r->recipe->disable_level > 0 ||
                      (r->recipe->act_method == 3 && uses_static(r));
    r->wants_scores = r->wants_scores && r->goal == GOAL_OUTPUT;
    r->score_samples = all < SCORE_SAMPLES ? all : SCORE_SAMPLES;
    if (smoothing_solves(r))
        r->floats.samples = r->smooth.method == SMOOTH_M3 ? 1 : all;
    if (r->goal == GOAL_SCORES)
        r->floats.samples = all;
    if (r->wants_scores && r->floats.samples < r->score_samples)
        r->floats.samples = r->score_samples;
    r->calibrated.samples = all;
    r->calibrated.tokens = r->samples.tokens;
    r->score_tokens = tokens_of(r, r->score_samples);
    r->floats.tokens = tokens_of(r, r->floats.samples);
    r->two_passes = r->goal != GOAL_OUTPUT ||
                    (r->wants_scores && (r->recipe->disable_level > 0 || r->num.compat));
    r->float_beside = !r->two_passes && r->floats.samples > 0;
}

static bool samples_given(const run *r)
{
    return r->options->calib || r->options->calib_count > 0;
}

/* "W8A8 needs" */
static const char *who_needs_samples(const run *r)
{
    return r->goal == GOAL_SCORES      ? "scores need"
           : r->goal == GOAL_SMOOTHING ? "smoothing needs"
           : uses_static(r)            ? "W8A8 needs"
           : r->recipe->fa_quant       ? "fa_quant needs"
                                       : "anti_outlier.anti_method needs";
}

static tare_status load_samples(run *r)
{
    const model_config *c = &r->model->config;
    if (!samples_given(r))
        return TARE_FAIL(r->ctx, TARE_E_USAGE,
                         "%s calibration samples: give --calib FILE or --calib builtin",
                         who_needs_samples(r));
    sample_options o = {.file = r->options->calib,
                        .ids = r->options->calib_ids,
                        .lengths = r->options->calib_lengths,
                        .count = r->options->calib_count,
                        .model = r->model->folder,
                        .samples = (size_t)r->recipe->samples,
                        .max_length = (size_t)r->recipe->max_length,
                        .model_max = model_config_max_tokens(c),
                        .vocab_size = c->vocab_size};
    tare_status status = sample_set_load(r->ctx, &o, &r->samples);
    if (status != TARE_OK)
        return status;
    plan_float_stream(r);
    if (r->samples.truncated)
        TARE_INFO(r->ctx, "%zu samples were cut to %lld tokens", r->samples.truncated,
                  (long long)r->recipe->max_length);
    TARE_INFO(r->ctx, "%zu calibration samples, %zu tokens, the longest %zu", r->samples.count,
              r->samples.tokens, r->samples.longest);
    return TARE_OK;
}

tare_status open_output(run *r, bool rehearsal)
{
    const model_config *c = &r->model->config;
    output_options o = {.dir = rehearsal ? NULL : r->options->out,
                        .rehearsal = rehearsal,
                        .rehearsed = !rehearsal && !r->tape,
                        .tape = r->tape,
                        .model_dir = r->model->folder,
                        .config_json = r->model->config_json,
                        .save = r->save,
                        .part_file_size = (int)r->recipe->part_file_size,
                        .npy_torch = recipe_npy_torch(r->recipe),
                        .num = r->num,
                        .untie = r->model->head_is_unlike,
                        .dtype_given = r->recipe->dtype >= 0 || !c->has_dtype || c->has_two_dtypes,
                        .scheme = recipe_scheme(r->recipe),
                        .fa_amp = (size_t)r->recipe->fa_amp,
                        .overwrite = r->overwrite,
                        .copy_code = r->options->copy_code,
                        .verify = r->options->verify,
                        .journal = !r->options->no_resume && !r->tape,
                        .before_publish = resume_before_publish,
                        .user = r};
    return output_open(r->ctx, &o, &r->out);
}

/* Weights alone need prompts for nothing but a ranking. */
static bool needs_samples(const run *r)
{
    bool given = samples_given(r);
    if (r->calibrates)
        return true;
    if (r->recipe->disable_level > 0 && !given)
        TARE_WARN(r->ctx, "disable_level L%lld is taken as L0: the ranking needs prompts (--calib)",
                  (long long)r->recipe->disable_level);
    if (r->recipe->disable_level == 0 && given)
        TARE_INFO(r->ctx, "--calib is not read: without static W8A8, anti_method, fa_quant and "
                          "disable_level a run looks at weights alone");
    return r->recipe->disable_level > 0 && given;
}

/* Of one batch: a sample that is longer than a batch goes alone. */
static size_t most_rows(const run *r)
{
    return r->samples.longest > r->layout.batch_rows ? r->samples.longest : r->layout.batch_rows;
}

/* What can be known, and refused, before any weight is read. */
static tare_status plan_run(run *r, memory_plan *plan)
{
    tare_status status = TARE_OK;
    bool saves = r->goal == GOAL_OUTPUT && !r->tape;
    TRY(saves ? recipe_check(r->recipe) : recipe_check_scheme(r->recipe));
    TRY(open_model(r));
    TRY(model_warn_of_zeros(r->model));
    TRY(plan_linears(r));
    r->calibrates = r->goal != GOAL_OUTPUT || uses_static(r) || r->recipe->anti_method != 0 ||
                    r->recipe->fa_quant;
    if (needs_samples(r))
        TRY(load_samples(r));
    TRY(memory_plan_make(r, plan));
    r->layout = plan->layout;
    if (saves)
        TRY(rehearse_output(r));
done:
    return status;
}

tare_status plan_memory(run *r)
{
    memory_plan plan;
    tare_status status = plan_run(r, &plan);
    if (status != TARE_OK)
        return status;
    if (!(r->plan = arena_alloc(&r->arena, sizeof *r->plan)))
        return TARE_E_MEMORY;
    *r->plan = plan;
    int passes = r->two_passes && r->goal == GOAL_OUTPUT ? 2 : 1;
    TARE_INFO(
        r->ctx,
        "plan: at most %zu MiB (at %s), %d %s over the weights, batches of %zu tokens%s%s%s%s",
        (plan.peak.total >> 20) + 1, plan.peak.unit, passes, passes == 1 ? "pass" : "passes",
        plan.layout.batch_rows, plan.layout.overlap ? ", layers read ahead" : "",
        plan.layout.spill ? ", hidden states in scratch files" : "",
        plan.layout.whole_layer || r->floats.samples == 0 ? "" : ", one linear at a time",
        plan.layout.cut == CUT_NONE    ? ""
        : plan.layout.cut == CUT_PARTS ? ", a part of a layer in memory"
                                       : ", the linears of one input in memory");
    r->ctx->options.memory_limit = plan.budget - plan.reserve < SIZE_MAX
                                       ? (size_t)plan.budget - plan.reserve
                                       : 0;
    mem_keep_scratch(r->ctx, plan.keeps_scratch);
    return TARE_OK;
}

tare_status alloc_workspace(run *r)
{
    size_t rows = most_rows(r);
    rows = r->samples.tokens < rows ? r->samples.tokens : rows;
    if (rows == 0) /* weights alone */
        return TARE_OK;
    return workspace_create(r->model, rows, r->samples.longest,
                            r->num.compat ? r->num.dtype : TARE_F32, &r->work);
}

tare_status create_states(run *r, bool of_floats)
{
    flow *f = of_floats ? &r->floats : &r->calibrated;
    return stream_create(r->ctx, f->tokens, r->model->config.hidden_size, most_rows(r),
                         run_spill_folder(r), &f->states);
}

static void free_states(run *r)
{
    overlap_stop(r);
    workspace_free(&r->work);
    r->work = (workspace){0};
    flow_free(&r->calibrated);
    flow_free(&r->floats);
}

static tare_status choose_fallback(run *r)
{
    tare_status status = TARE_OK;
    if (r->two_passes && r->resume.pass == PASS_FLOAT)
        TRY(float_pass(r));
    r->resume.pass = PASS_QUANTIZE;
    if (!r->two_passes)
        return TARE_OK;
    TRY(rules_apply_level(r->recipe, r->linears, r->model->num_linears));
    r->levels_known = true;
done:
    return status;
}

static tare_status copy_embedding(void *user, size_t first, size_t count, const coded_rows *rows)
{
    run *r = user;
    return write_float_rows(r, &r->model->embedding, first, count, rows);
}

static tare_status put_row(void *user, size_t index, const float *x)
{
    run *r = user;
    tare_status status = stream_put(r->calibrated.states, index, 1, x);
    if (status == TARE_OK && r->floats.states && index < r->floats.tokens)
        status = stream_put(r->floats.states, index, 1, x);
    return status;
}

/* The boundary before the first layer; the float stream starts from the same embeddings. */
static tare_status embed(run *r)
{
    tare_status status = TARE_OK;
    bool beside = r->float_beside;
    TRY(create_states(r, false));
    if (beside)
        TRY(create_states(r, true));
    TRY(embed_tokens(r->model, r->samples.ids, r->samples.tokens, put_row, copy_embedding, r));
    stream_flip(r->calibrated.states);
    if (beside)
        stream_flip(r->floats.states);
done:
    return status;
}

static tare_status run_head(run *r)
{
    tare_status status = TARE_OK;
    bool is_float = plan_is_float(&r->linears[r->model->num_linears - 1]);
    float *norm = NULL;
    TRY(model_read_vector(r->model, r->model->final_norm, &norm));
    TRY(write_norm(r, r->model->final_norm, norm, NULL));
    if (is_float && !r->model->head_is_tied)
        TRY(copy_tensor(r, &r->model->head->weight));
    if (!is_float && r->floats.states && r->wants_scores)
        TRY(score_head(r));
    if (!is_float)
        TRY(quantize_head(r));
done:
    mem_free(r->ctx, norm);
    return status;
}

/* The way of the data. */
static tare_status run_layers(run *r)
{
    tare_status status = TARE_OK;
    size_t layers = r->model->config.num_layers;
    memory_plan_pass(r, r->plan, PASS_QUANTIZE);
    progress_begin(&r->progress, r->ctx, "calibrate", "layer", layers);
    if (!r->resume.restores)
        TRY(embed(r));
    TRY(overlap_start(r));
    progress_skip(&r->progress, r->resume.layer);
    for (size_t i = r->resume.layer; i < layers; i++) {
        TRY(quantize_block(r, &r->model->blocks[i]));
        progress_unit_done(&r->progress);
        if (resume_due(r, true)) {
            TRY(overlap_wait(r));
            TRY(resume_save(r, i + 1));
        }
    }
    TRY(overlap_wait(r));
    overlap_stop(r);
    TRY(run_head(r));
    for (size_t i = 0; i < r->model->num_extra; i++) {
        stored_weight extra = stored_whole(r->model->extra[i]);
        TRY(copy_tensor(r, &extra));
    }
    TRY(write_late_attentions(r));
done:
    return status;
}

static tare_status finish(run *r, tare_quantize_result *result)
{
    tare_status status = TARE_OK;
    buffer record;
    record_places places;
    buffer_init(&record, r->ctx);
    TRY(checkpoint_check_unchanged(r->model->checkpoint));
    free_states(r);
    TRY(run_record(r, &record, &places));
    if (r->tape)
        TRY(recording_note(r, record.data, &places));
    TRY(output_finish(r->out, record.data, &result->bytes_out));
    result->linears_quantized = r->num_quantized;
    result->saturated_rows = r->saturated_rows;
done:
    buffer_free(&record);
    return status;
}

static void run_free(run *r)
{
    free_states(r);
    for (size_t i = 0; r->smoothing && i < r->model->config.num_layers; i++)
        smoothing_free_layer(r, i);
    sample_set_free(r->ctx, &r->samples);
    tare_model_free(r->model);
    arena_free(&r->arena);
}

static tare_status run_all(run *r, tare_quantize_result *result)
{
    tare_status status = TARE_OK;
    TRY(plan_memory(r));
    result->linears = r->model->num_linears;
    result->samples = r->samples.count;
    result->tokens = r->samples.tokens;
    result->truncated = r->samples.truncated;
    result->bytes_in = checkpoint_bytes(r->model->checkpoint);
    TRY(r->tape ? open_output(r, false) : resume_open(r));
    if ((result->was_finished = r->resume.finished))
        goto done;
    TRY(alloc_workspace(r));
    TRY(resume_restore(r));
    TRY(choose_fallback(r));
    TRY(plan_output(r));
    if (r->calibrates) {
        TRY(run_layers(r));
    } else {
        free_states(r);
        TRY(quantize_weights(r));
    }
    TRY(finish(r, result));
done:
    return status;
}

tare_status run_init(run *r, tare_context *ctx, const tare_quantize_options *options,
                     tare_recipe **owned)
{
    *owned = NULL;
    *r = (run){.ctx = ctx,
               .options = options,
               .recipe = options->recipe,
               .owners_limit = ctx->options.memory_limit};
    arena_init(&r->arena, ctx);
    /* The plan looks at the peak of this call alone. */
    r->earlier_peak = atomic_exchange(&ctx->memory_peak, tare_memory_used(ctx));
    if (!options->recipe) {
        tare_status status = tare_recipe_create(ctx, owned);
        if (status != TARE_OK)
            return status;
        r->recipe = *owned;
    }
    if (options->smoothing) {
        smoothing_recipe(options->smoothing, r->recipe, &r->effective);
        r->recipe = &r->effective;
    }
    return TARE_OK;
}

size_t run_end(run *r, tare_recipe *owned)
{
    tare_context *ctx = r->ctx;
    overlap_stop(r); /* its threads look at the limit */
    ctx->options.memory_limit = r->owners_limit;
    size_t own = tare_memory_peak(ctx);
    mem_keep_scratch(ctx, false);
    run_free(r);
    tare_recipe_free(owned);
    if (r->earlier_peak > own)
        atomic_store(&ctx->memory_peak, r->earlier_peak);
    return own;
}

tare_status take_options(tare_context *ctx, const tare_quantize_options *given,
                         tare_quantize_options *o)
{
    tare_quantize_options_init(o);
    tare_status status = SIZED_TAKE(ctx, tare_quantize_options, given, o);
    if (status != TARE_OK)
        return status;
    if (!o->model == !o->source)
        return TARE_FAIL(ctx, TARE_E_USAGE, "a model is needed: a folder or an open model");
    if (o->calib && o->calib_count > 0)
        return TARE_FAIL(ctx, TARE_E_USAGE,
                         "calibration samples come from a file or from memory, not from both");
    if (o->calib_count > 0 && (!o->calib_ids || !o->calib_lengths))
        return TARE_FAIL(ctx, TARE_E_USAGE, "calibration samples in memory lack ids or lengths");
    return TARE_OK;
}

static void note_memory(const memory_plan *m, tare_plan *out)
{
    const memory_peak *p = m->peak.total ? &m->peak : &m->smallest;
    out->budget = m->budget;
    out->smallest = m->smallest.total;
    out->peak = p->total;
    out->weights = p->terms[TERM_WEIGHTS];
    out->packed = p->terms[TERM_PACKED];
    out->activations = p->terms[TERM_ACTIVATIONS];
    out->workspace = p->terms[TERM_WORKSPACE];
    out->smoothing = p->terms[TERM_SMOOTHING];
    out->scratch = p->terms[TERM_SCRATCH];
    out->output = p->terms[TERM_OUTPUT];
    out->fixed = p->terms[TERM_FIXED];
    memcpy(out->peak_unit, p->unit, sizeof out->peak_unit);
    out->batch_tokens = m->layout.batch_rows;
    out->whole_layer = m->layout.whole_layer;
    out->spill = m->layout.spill;
    out->overlap = m->layout.overlap;
    out->layer_parts = m->segments;
}

tare_status tare_quantize_plan(tare_context *ctx, const tare_quantize_options *options,
                               tare_plan *plan)
{
    tare_quantize_options o;
    tare_plan made = {.seconds = -1};
    tare_recipe *defaults;
    memory_plan memory = {0};
    run r;
    tare_status status = SIZED_CHECK(ctx, tare_plan, plan);
    if (status != TARE_OK)
        return status;
    if ((status = take_options(ctx, options, &o)) != TARE_OK)
        goto given;
    TRY(run_init(&r, ctx, &o, &defaults));
    status = plan_run(&r, &memory);
    note_memory(&memory, &made);
    TRY(status);
    TRY(work_plan_make(&r, o.probe, &made));
done:
    run_end(&r, defaults);
given:
    sized_give(plan, &made, sizeof made);
    return status;
}

tare_status quantize(tare_context *ctx, const tare_quantize_options *options,
                     tare_recording *recording, tare_quantize_result *result)
{
    double started = clock_seconds();
    tare_recipe *defaults;
    tare_quantize_result made = {0};
    run r;
    tare_status status = SIZED_CHECK(ctx, tare_quantize_result, result);
    if (status != TARE_OK)
        return status;
    status = run_init(&r, ctx, options, &defaults);
    r.recording = recording;
    r.tape = recording_tape(recording);
    if (status == TARE_OK)
        status = run_all(&r, &made);
    overlap_stop(&r); /* nobody writes any more */
    resume_close(&r, status);
    made.peak_memory = run_end(&r, defaults);
    made.seconds = clock_seconds() - started;
    sized_give(result, &made, sizeof made);
    return status;
}

tare_status tare_quantize(tare_context *ctx, const tare_quantize_options *options,
                          tare_quantize_result *result)
{
    tare_quantize_options o;
    tare_status status = take_options(ctx, options, &o);
    if (status == TARE_OK && !o.out)
        status = TARE_FAIL(ctx, TARE_E_USAGE, "an output folder is needed");
    return status == TARE_OK ? quantize(ctx, &o, NULL, result) : status;
}
