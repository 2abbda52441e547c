/* The run as a whole: check, plan, (score,) then layer by layer load - calibrate - quantize -
 * write (of weights alone tensor by tensor read - quantize - write), then the head, and finish.
 * Everything that can be refused is refused before the first weight is read. Passes over the
 * checkpoint: one, or two with disable_level. */
#include <string.h>

#include "base/sized.h"
#include "pipeline/means.h"
#include "pipeline/smoothing.h"
#include "pipeline/statistics.h"
#include "pipeline/work_plan.h"

tare_status open_output(run *r, bool rehearsal)
{
    const model_config *c = &r->model->config;
    output_options o = {.dir = rehearsal ? NULL : r->env->options->out,
                        .rehearsal = rehearsal,
                        .rehearsed = !rehearsal && !r->env->tape,
                        .tape = r->env->tape,
                        .model_dir = r->model->folder,
                        .config_json = r->model->config_json,
                        .save = r->env->save,
                        .part_file_size = (int)r->env->recipe->part_file_size,
                        .npy_torch = recipe_npy_torch(r->env->recipe),
                        .num = r->env->num,
                        .untie = r->model->head_is_unlike,
                        .no_mtp = r->env->recipe->mtp == MTP_NONE,
                        .dtype_given = r->env->recipe->dtype >= 0 || !c->has_dtype ||
                                       c->has_two_dtypes,
                        .scheme = recipe_scheme(r->env->recipe),
                        .target = r->env->recipe->target,
                        .weight_offsets = !r->env->recipe->w_sym,
                        .fa_amp = (size_t)r->env->recipe->fa_amp,
                        .fa_latent = c->arch->latent_attention,
                        .overwrite = r->overwrite,
                        .copy_code = r->env->options->copy_code,
                        .verify = r->env->options->verify,
                        .rotation = r->env->options->save_rotation,
                        .rotation_bytes = rotation_file_size(r->model),
                        .journal = !r->env->options->no_resume && !r->env->tape,
                        .before_publish = resume_before_publish,
                        .user = r};
    return output_open(r->ctx, &o, &r->out);
}

tare_status create_states(run *r, bool of_floats)
{
    const run_plan *p = r->plan;
    const sample_set *s = &r->env->samples;
    flow *f = of_floats ? &r->floats : &r->calibrated;
    *f = of_floats ? (flow){.samples = p->float_samples, .tokens = p->float_tokens}
                   : (flow){.samples = s->count, .tokens = s->tokens};
    tare_status status = mtp_begin_flow(r, f);
    return status != TARE_OK ? status
                             : stream_create(r->ctx, f->tokens, r->model->config.hidden_size,
                                             plan_most_rows(p), run_spill_folder(r), &f->states);
}

void run_stop(run *r)
{
    overlap_stop(r);
    pieces_stop(r);
    workspace_free(&r->work);
    r->work = (workspace){0};
    flow_free(r, &r->calibrated);
    flow_free(r, &r->floats);
    for (size_t i = 0; r->attentions && i < r->model->num_blocks; i++) {
        kv_observer_free(r->attentions[i].kv);
        r->attentions[i].kv = NULL;
    }
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
    if (status == TARE_OK && r->floats.states && index < r->plan->float_tokens)
        status = stream_put(r->floats.states, index, 1, x);
    return status;
}

/* The boundary before the first layer; the float stream starts from the same embeddings. */
static tare_status embed(run *r)
{
    tare_status status = TARE_OK;
    bool beside = r->plan->float_beside;
    if (r->resume.restores)
        return TARE_OK;
    TRY(create_states(r, false));
    if (beside)
        TRY(create_states(r, true));
    TRY(embed_tokens(r->model, r->env->samples.ids, r->env->samples.tokens, put_row, copy_embedding,
                     r));
    stream_flip(r->calibrated.states);
    if (beside)
        stream_flip(r->floats.states);
done:
    return status;
}

static tare_status begin(run *r)
{
    bool calibrates = r->plan->calibrates;
    progress_begin(&r->progress, r->ctx, calibrates ? "calibrate" : "quantize",
                   calibrates ? "layer" : "tensor",
                   calibrates ? r->model->num_blocks : pieces_steps(r->plan));
    progress_skip(&r->progress, r->resume.layer);
    return calibrates ? overlap_start(r) : pieces_start(r, r->resume.layer);
}

/* What the samples tell of the head, which reads what the last layer put out. */
static tare_status see_head(run *r)
{
    tare_status status = TARE_OK;
    linear_scheme scheme = r->plan->linears[r->model->num_linears - 1].scheme;
    if (r->floats.states && r->plan->wants_scores)
        TRY(score_head(r));
    if (scheme_of(scheme)->activations == ACT_STATIC || r->plan->keeps_statistics)
        TRY(observe_head(r));
done:
    return status;
}

/* In front of the MTP layers, each of which changes what it reads. */
static tare_status enter_mtp(run *r, size_t layer)
{
    tare_status status = TARE_OK;
    if (layer < r->model->config.num_layers)
        return TARE_OK;
    TRY(overlap_wait(r));
    if (layer == r->model->config.num_layers)
        TRY(see_head(r));
    TRY(mtp_enter(r, &r->model->blocks[layer]));
done:
    return status;
}

static tare_status calibrate_layer(run *r, size_t layer)
{
    tare_status status = TARE_OK;
    if (layer < r->resume.layer)
        return TARE_OK;
    if (r->resume.expert == 0) /* else the run goes on behind that */
        TRY(enter_mtp(r, layer));
    TRY(quantize_block(r, &r->model->blocks[layer]));
    progress_unit_done(&r->progress);
    if (resume_due(r, true)) {
        TRY(overlap_wait(r));
        TRY(resume_save(r, layer + 1, 0));
    }
done:
    return status;
}

/* Behind the last layer. */
static tare_status end_layers(run *r)
{
    tare_status status = TARE_OK;
    TRY(overlap_wait(r));
    overlap_stop(r);
    if (mtp_blocks(r->model) == 0)
        TRY(see_head(r));
    TRY(pieces_start(r, 0));
done:
    return status;
}

/* The way of the data: all samples through a layer, or, where nothing is calibrated, its tensors in
 * pieces, as go those behind the layers. */
static tare_status run_model(run *r)
{
    tare_status status = TARE_OK;
    bool calibrates = r->plan->calibrates;
    size_t layers = r->model->num_blocks;
    TRY(begin(r));
    TRY(calibrates ? embed(r) : pieces_run(r, PART_EMBEDDING));
    for (size_t i = 0; i < layers; i++)
        TRY(calibrates ? calibrate_layer(r, i) : pieces_run(r, PART_LAYERS + i));
    if (calibrates)
        TRY(end_layers(r));
    TRY(pieces_run(r, PART_LAYERS + layers));
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
    run_stop(r);
    TRY(run_record(r, &record, &places));
    if (r->env->tape)
        TRY(recording_note(r, record.data, &places));
    TRY(statistics_finish(r));
    TRY(statistics_pass_on(r));
    TRY(rotation_file_write(r));
    TRY(output_finish(r->out, record.data, &result->bytes_out));
    coverage_tell(r);
    result->linears_quantized = r->num_quantized;
    result->saturated_rows = r->saturated_rows;
done:
    buffer_free(&record);
    return status;
}

/* ---- memory ---- */

static void layers_hold(ledger *l)
{
    const run_plan *plan = l->plan;
    const tare_model *m = plan->env->model;
    size_t tokens = plan->env->samples.tokens, h = m->config.hidden_size;
    l->now[TERM_ACTIVATIONS] += ledger_stream_bytes(l, tokens, h) +
                                mtp_flow_bytes(plan, plan->env->samples.count);
    if (plan->float_beside)
        l->now[TERM_ACTIVATIONS] += ledger_stream_bytes(l, plan->float_tokens, h) +
                                    mtp_flow_bytes(plan, plan->float_samples);
    ledger_moment(l, "model.embed_tokens",
                  embed_tokens_bytes(m, tokens) + write_float_rows_bytes(plan->env, &m->embedding));
    for (size_t i = 0; i < m->num_blocks; i++) {
        mtp_enter_hold(l, &m->blocks[i], true);
        quantize_block_hold(l, &m->blocks[i]);
    }
    if (!plan_is_float(&plan->linears[m->num_linears - 1]) || plan->keeps_statistics)
        observe_head_hold(l);
    ledger_moment(l, m->head->name, pieces_bytes(plan));
}

/* Weight files of a layout that are written to at a time: a shard and the next one, but all of them
 * where attention comes last. */
static size_t open_files(const run_plan *plan, layout which)
{
    const tare_recipe *recipe = plan->env->recipe;
    int gib = recipe->part_file_size >= 0 ? (int)recipe->part_file_size
                                          : save_type_of(which)->part_gib;
    if (which == LAYOUT_NUMPY)
        return NPY_FILES;
    if (gib == 0)
        return 1;
    uint64_t shards = checkpoint_bytes(plan->env->model->checkpoint) / ((uint64_t)gib << 30) + 1;
    return recipe->fa_amp > 0 && plan->num_fa > 0 ? (size_t)shards : shards > 1 ? 2 : 1;
}

/* The output's lists, journal and checkpoints, and the buffers of direct writes. */
static size_t files_bytes(const run_plan *plan)
{
    enum { CHECKPOINT = 2 << 20, RANGE = 160 };
    unsigned save = plan->env->save;
    size_t tensors = plan_tensors(plan);
    size_t bytes = output_state_bytes(tensors, save) + CHECKPOINT + RANGE * tensors;
    for (int which = 0; which < SAVE_TYPES; which++) {
        if (save & 1u << which)
            bytes += open_files(plan, (layout)which) * file_write_bytes();
    }
    return bytes + statistics_bytes(plan);
}

static size_t finish_bytes(const run_plan *plan)
{
    const tare_model *m = plan->env->model;
    size_t widest = m->config.vocab_size, int4 = 0;
    for (size_t i = 0; i < m->num_linears; i++) {
        widest = size_max(widest, m->linears[i].n);
        if (scheme_of(plan->linears[i].scheme)->weight_bits == 4)
            int4 = size_max(int4, m->linears[i].n);
    }
    return output_finish_bytes(plan_tensors(plan), widest, int4);
}

/* What the float pass knows of all layers waits for the second one. */
static size_t waiting_bytes(const run_plan *plan)
{
    const tare_model *m = plan->env->model;
    size_t bytes = 0;
    for (size_t i = 0; i < m->num_blocks; i++) {
        bytes += smoothing_solves(plan) ? smoothing_layer_bytes(plan, &m->blocks[i]) : 0;
        bytes += kv_cache_of_floats(plan) ? kv_cache_kept_bytes(plan, i) : 0;
    }
    return bytes;
}

void run_hold(ledger *l, const run_pass *only)
{
    const run_plan *plan = l->plan;
    const run_env *e = plan->env;
    l->now[TERM_OUTPUT] += e->goal == GOAL_OUTPUT ? files_bytes(plan) : 0;
    l->now[TERM_FIXED] += means_bytes(plan);
    const ledger before = *l;
    if (l->rows > 0)
        l->now[TERM_WORKSPACE] += workspace_bytes(e->model, l->rows, e->samples.longest, false);
    if (plan_passes_means(plan) && (!only || *only == PASS_MEANS))
        means_hold(l);
    l->now[TERM_SMOOTHING] += plan->two_passes ? waiting_bytes(plan) : 0;
    if (plan->two_passes && (!only || *only == PASS_FLOAT))
        float_pass_hold(l);
    if (e->goal == GOAL_SMOOTHING)
        ledger_moment(l, "the smoothing", smoothing_keep_bytes(plan));
    if (e->goal != GOAL_OUTPUT)
        return;
    if (plan->calibrates && (!only || *only == PASS_QUANTIZE))
        layers_hold(l);
    memcpy(l->now, before.now, sizeof l->now); /* run_stop */
    if (!plan->calibrates)
        ledger_moment(l, "pieces of weights", pieces_bytes(plan));
    ledger_moment(l, "the rotation's file", rotation_file_bytes(plan));
    ledger_moment(l, "the finished files", finish_bytes(plan));
}

/* ---- the run ---- */

/* The first of two passes, if there are two: what disable_level ranks. */
static tare_status choose_fallback(run_job *j)
{
    tare_status status = TARE_OK;
    run *r = &j->run;
    if (j->plan.two_passes && r->resume.pass == PASS_FLOAT) {
        job_pass(j, PASS_FLOAT);
        TRY(float_pass(r));
    }
    r->resume.pass = PASS_QUANTIZE;
    if (!j->plan.two_passes)
        return TARE_OK;
    TRY(rules_apply_level(j->env.recipe, j->plan.linears, r->scores, r->model->num_linears));
    j->plan.levels_known = true;
done:
    return status;
}

static tare_status run_all(run_job *j, tare_quantize_result *result)
{
    tare_status status = TARE_OK;
    run *r = &j->run;
    TRY(job_prepare(j));
    result->linears = r->model->num_linears;
    result->samples = j->env.samples.count;
    result->tokens = j->env.samples.tokens;
    result->truncated = j->env.samples.truncated;
    result->bytes_in = checkpoint_bytes(r->model->checkpoint);
    TRY(j->env.tape ? open_output(r, false) : resume_open(r));
    if ((result->was_finished = r->resume.finished)) {
        TRY(rotation_file_check_finished(r));
        goto done;
    }
    TRY(job_workspace(j));
    TRY(means_pass(j));
    TRY(resume_restore(r));
    TRY(choose_fallback(j));
    TRY(plan_output(r));
    TRY(statistics_open(r));
    if (!j->plan.calibrates) /* a ranking may have been made */
        run_stop(r);
    job_pass(j, PASS_QUANTIZE);
    TRY(run_model(r));
    TRY(finish(r, result));
done:
    return status;
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
    out->batch_tokens = m->last_pass.batch_rows;
    out->whole_layer = m->last_pass.whole_layer;
    out->spill = m->last_pass.spill;
    out->overlap = m->last_pass.overlap;
    out->layer_parts = m->segments;
}

tare_status tare_quantize_plan(tare_context *ctx, const tare_quantize_options *options,
                               tare_plan *plan)
{
    tare_quantize_options o;
    tare_plan made = {.seconds = -1};
    run_job j;
    tare_status status = SIZED_CHECK(ctx, tare_plan, plan);
    if (status != TARE_OK)
        return status;
    if ((status = take_options(ctx, options, &o)) != TARE_OK)
        goto given;
    TRY(job_begin(&j, ctx, &o));
    status = job_plan(&j);
    note_memory(&j.memory, &made);
    TRY(status);
    TRY(work_plan_make(&j.plan, o.probe, &made));
done:
    job_end(&j);
given:
    sized_give(plan, &made, sizeof made);
    return status;
}

tare_status quantize(tare_context *ctx, const tare_quantize_options *options,
                     tare_recording *recording, tare_quantize_result *result)
{
    double started = clock_seconds();
    tare_quantize_result made = {0};
    run_job j;
    tare_status status = SIZED_CHECK(ctx, tare_quantize_result, result);
    if (status != TARE_OK)
        return status;
    status = job_begin(&j, ctx, options);
    j.env.recording = recording;
    j.env.tape = recording_tape(recording);
    if (status == TARE_OK)
        status = run_all(&j, &made);
    run_stop(&j.run); /* nobody writes any more */
    resume_close(&j.run, status);
    made.peak_memory = job_end(&j);
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
