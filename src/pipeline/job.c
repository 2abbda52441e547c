#include "pipeline/means.h"
#include "pipeline/smoothing.h"
#include "pipeline/statistics.h"

#include <string.h>

#include "base/sized.h"
#include "model/zeros.h"

void tare_quantize_options_init_sized(tare_quantize_options *options, size_t size)
{
    static const tare_quantize_options defaults = {.verify = true, .probe = true};
    sized_init(options, size, &defaults, sizeof defaults);
}

tare_status take_options(tare_context *ctx, const tare_quantize_options *given,
                         tare_quantize_options *o)
{
    tare_quantize_options_init(o);
    tare_status status = SIZED_TAKE(ctx, tare_quantize_options, given, o);
    if (status != TARE_OK)
        return status;
    if (o->statistics && (o->calib || o->calib_count > 0 || o->smoothing))
        return TARE_FAIL(
            ctx, TARE_E_USAGE,
            "with the statistics of an earlier run neither samples nor a smoothing can "
            "be given");
    if (!o->model == !o->source)
        return TARE_FAIL(ctx, TARE_E_USAGE, "a model is needed: a folder or an open model");
    if (o->calib && o->calib_count > 0)
        return TARE_FAIL(ctx, TARE_E_USAGE,
                         "calibration samples come from a file or from memory, not from both");
    if (o->calib_count > 0 && (!o->calib_ids || !o->calib_lengths))
        return TARE_FAIL(ctx, TARE_E_USAGE, "calibration samples in memory lack ids or lengths");
    if ((o->calib_sequences && o->calib_count == 0) || (o->calib_kept && !o->calib_sequences))
        return TARE_FAIL(ctx, TARE_E_USAGE, "sequences lack samples, or padding lacks sequences");
    if (o->calib_sequences && o->recipe && o->recipe->mtp == MTP_MIX)
        return TARE_FAIL(
            ctx, TARE_E_USAGE,
            "quant.mtp mix: MTP layers look behind the end of each sample, which must be "
            "one sequence");
    return TARE_OK;
}

/* ---- what is given ---- */

/* Nobody said what becomes of the MTP layers. */
static void tell_left_out(const run_env *e)
{
    size_t count = model_mtp_tensors(e->model);
    if (count > 0)
        TARE_WARN(e->ctx,
                  "%s: the %zu tensors of its MTP layers (from model.layers.%zu on) are left out; "
                  "--mtp mix quantizes them, float copies them, none leaves them out without this "
                  "warning",
                  e->model->dir, count, e->model->config.num_layers);
}

static tare_status open_model(run_env *e)
{
    tare_status status = TARE_OK;
    const tare_recipe *recipe = e->recipe;
    mtp_mode mtp = recipe->mtp < 0 ? MTP_NONE : (mtp_mode)recipe->mtp;
    if (e->options->source)
        TRY(model_reopen(e->ctx, e->options->source, mtp, &e->model));
    else
        TRY(model_open(e->ctx, e->options->model, mtp, &e->model));
    const model_config *c = &e->model->config;
    if (recipe->mtp < 0 && e->goal == GOAL_OUTPUT)
        tell_left_out(e);
    e->num.compat = recipe->compat;
    e->num.dtype = recipe->dtype >= 0 ? (tare_dtype)recipe->dtype : c->dtype;
    if (e->num.compat)
        model_load_as(e->model, e->num.dtype);
    if (recipe->rotation)
        TRY(model_rotate(e->model, &(rotation_settings){.seed = (uint64_t)recipe->rotation_seed,
                                                        .r1 = recipe->rotation_r1,
                                                        .r2 = recipe->rotation_r2,
                                                        .align = recipe->rotation_align,
                                                        .flips = recipe->rotation_flips}));
    if (e->num.dtype == TARE_F32 && !e->num.compat && e->goal == GOAL_OUTPUT)
        TARE_WARN(
            e->ctx,
            "the serving dtype is float32, which engines serve as float16: give --dtype float16 or "
            "bfloat16 so that the scales are rounded for it");
    if (!e->tape)
        TRY(save_types_parse(e->ctx, (const char *const *)recipe->save_types.items,
                             recipe->save_types.count, &e->save));
    e->compute = recipe->compute == COMPUTE_FP32   ? GEMM_FP32
                 : recipe->compute == COMPUTE_BF16 ? GEMM_BF16
                 : e->num.compat                   ? GEMM_FP32
                                                   : compute_default(e->model);
done:
    return status;
}

static bool samples_given(const run_env *e)
{
    return e->options->calib || e->options->calib_count > 0;
}

/* "W8A8 needs" */
static const char *who_needs_samples(const run_plan *plan)
{
    return plan->env->goal == GOAL_SCORES      ? "scores need"
           : plan->env->goal == GOAL_SMOOTHING ? "smoothing needs"
           : plan_uses_static(plan)            ? "W8A8 needs"
           : plan->gptq                        ? "quant.weight_method gptq needs"
           : plan->env->recipe->fa_quant       ? "fa_quant needs"
           : plan->env->recipe->kv_cache       ? "quant.kv_cache needs"
                                               : "anti_outlier.anti_method needs";
}

/* Weights alone need prompts for nothing but a ranking. */
static bool needs_samples(const run_plan *plan)
{
    const run_env *e = plan->env;
    bool given = samples_given(e);
    if (e->options->statistics)
        return false;
    if (plan->calibrates)
        return true;
    if (e->recipe->disable_level > 0 && !given)
        TARE_WARN(e->ctx, "disable_level L%lld is taken as L0: the ranking needs prompts (--calib)",
                  (long long)e->recipe->disable_level);
    if (e->recipe->disable_level == 0 && given)
        TARE_INFO(e->ctx, "--calib is not read: without static W8A8, gptq, anti_method, fa_quant, "
                          "kv_cache and disable_level a run looks at weights alone");
    return e->recipe->disable_level > 0 && given;
}

static tare_status load_samples(run_env *e, const run_plan *plan)
{
    const model_config *c = &e->model->config;
    if (!samples_given(e))
        return TARE_FAIL(e->ctx, TARE_E_USAGE,
                         "%s calibration samples: give --calib FILE or --calib builtin",
                         who_needs_samples(plan));
    sample_options o = {.file = e->options->calib,
                        .ids = e->options->calib_ids,
                        .lengths = e->options->calib_lengths,
                        .count = e->options->calib_count,
                        .sequences = e->options->calib_sequences,
                        .kept = e->options->calib_kept,
                        .model = e->model->folder,
                        .samples = (size_t)e->recipe->samples,
                        .max_length = (size_t)e->recipe->max_length,
                        .model_max = model_config_max_tokens(c),
                        .vocab_size = c->vocab_size};
    tare_status status = sample_set_load(e->ctx, &o, &e->samples);
    if (status != TARE_OK)
        return status;
    if (e->samples.truncated)
        TARE_INFO(e->ctx, "%zu samples were cut to %lld tokens", e->samples.truncated,
                  (long long)e->recipe->max_length);
    TARE_INFO(e->ctx, "%zu calibration samples, %zu tokens, the longest %zu", e->samples.count,
              e->samples.tokens, e->samples.longest);
    return TARE_OK;
}

/* ---- the job ---- */

tare_status job_begin(run_job *j, tare_context *ctx, const tare_quantize_options *options)
{
    *j = (run_job){.owners_limit = ctx->options.memory_limit};
    arena_init(&j->arena, ctx);
    j->env = (run_env){
        .ctx = ctx, .options = options, .recipe = options->recipe, .arena = &j->arena};
    j->plan.env = &j->env;
    j->run = (run){.ctx = ctx, .env = &j->env, .plan = &j->plan};
    /* The plan looks at the peak of this call alone. */
    j->earlier_peak = atomic_exchange(&ctx->memory_peak, tare_memory_used(ctx));
    if (!options->recipe) {
        tare_status status = tare_recipe_create(ctx, &j->defaults);
        if (status != TARE_OK)
            return status;
        j->env.recipe = j->defaults;
    }
    if (options->smoothing) {
        smoothing_recipe(options->smoothing, j->env.recipe, &j->effective);
        j->env.recipe = &j->effective;
    }
    return TARE_OK;
}

size_t job_end(run_job *j)
{
    tare_context *ctx = j->env.ctx;
    run_stop(&j->run); /* its threads look at the limit */
    ctx->options.memory_limit = j->owners_limit;
    size_t own = tare_memory_peak(ctx);
    mem_keep_scratch(ctx, false);
    mem_keep_blocks(ctx, 0);
    for (size_t i = 0; j->run.smoothing && i < j->env.model->num_blocks; i++)
        smoothing_free_layer(&j->run, i);
    statistics_let_go(&j->run);
    means_free(&j->run, j->run.means);
    sample_set_free(ctx, &j->env.samples);
    tare_model_free(j->env.model);
    arena_free(&j->arena);
    tare_recipe_free(j->defaults);
    if (j->earlier_peak > own)
        atomic_store(&ctx->memory_peak, j->earlier_peak);
    return own;
}

/* What the run keeps of each linear and layer. */
static tare_status begin_run(run_job *j)
{
    run *r = &j->run;
    r->model = j->env.model;
    r->scores = arena_calloc(&j->arena, r->model->num_linears, sizeof *r->scores);
    r->attentions = arena_calloc(&j->arena, r->model->num_blocks, sizeof *r->attentions);
    r->inputs = arena_calloc(&j->arena, r->model->num_units, sizeof *r->inputs);
    if (!r->scores || !r->attentions || !r->inputs)
        return TARE_E_MEMORY;
    tare_status status = coverage_begin(r);
    return status == TARE_OK ? smoothing_begin(r) : status;
}

/* Where nobody said: what engines take best from compressed-tensors, unless its numbers are those
 * of other save types too. From here on the recipe says it. */
static void settle_symmetry(run_job *j)
{
    run_env *e = &j->env;
    bool chosen = e->recipe->a_sym < 0 && e->save == SAVE_COMPRESSED_TENSORS && !e->num.compat &&
                  plan_uses_static(&j->plan);
    e->num.act_symmetric = chosen || e->recipe->a_sym > 0;
    j->effective = *e->recipe;
    j->effective.a_sym = e->num.act_symmetric;
    e->recipe = &j->effective;
    if (chosen)
        TARE_INFO(e->ctx,
                  "static activations are symmetric, as vLLM and vLLM-Ascend both take them "
                  "from compressed-tensors; --no-act-sym gives them a zero point");
}

tare_status job_plan(run_job *j)
{
    tare_status status = TARE_OK;
    run_env *e = &j->env;
    run_plan *plan = &j->plan;
    bool saves = e->goal == GOAL_OUTPUT && !e->tape;
    TRY(saves ? recipe_check(e->recipe) : recipe_check_scheme(e->recipe));
    TRY(open_model(e));
    if (e->goal == GOAL_OUTPUT)
        TRY(rotation_file_check(e));
    TRY(model_warn_of_zeros(e->model));
    TRY(plan_linears(plan));
    settle_symmetry(j);
    TRY(begin_run(j));
    if (e->options->statistics)
        TRY(statistics_take(&j->run, plan));
    if (needs_samples(plan)) {
        TRY(load_samples(e, plan));
        plan_streams(plan);
    }
    TRY(memory_plan_make(plan, &j->memory));
    plan->layout = j->memory.layout;
    if (saves)
        TRY(rehearse_output(&j->run));
done:
    return status;
}

static void tell_plan(const run_plan *plan, const memory_plan *m)
{
    const run_layout *l = &m->last_pass;
    size_t passes = count_passes(plan);
    TARE_INFO(
        plan->env->ctx,
        "plan: at most %zu MiB (at %s), %zu %s over the weights, batches of %zu tokens%s%s%s%s",
        (m->peak.total >> 20) + 1, m->peak.unit, passes, passes == 1 ? "pass" : "passes",
        l->batch_rows, l->overlap ? ", layers read ahead" : "",
        l->spill ? ", hidden states in scratch files" : "",
        l->whole_layer || plan->float_samples == 0 ? "" : ", one linear at a time",
        l->cut == CUT_NONE    ? ""
        : l->cut == CUT_PARTS ? ", a part of a layer in memory"
                              : ", the linears of one input in memory");
}

tare_status job_prepare(run_job *j)
{
    const memory_plan *m = &j->memory;
    tare_context *ctx = j->env.ctx;
    tare_status status = job_plan(j);
    if (status != TARE_OK)
        return status;
    tell_plan(&j->plan, m);
    ctx->options.memory_limit = m->budget - m->reserve < SIZE_MAX ? (size_t)m->budget - m->reserve
                                                                  : 0;
    mem_keep_scratch(ctx, m->keeps_scratch);
    mem_keep_blocks(ctx, m->peak.total - m->reserve);
    return TARE_OK;
}

tare_status job_workspace(run_job *j)
{
    const run_env *e = &j->env;
    size_t rows = plan_batch_rows(&j->plan);
    if (rows == 0) /* weights alone */
        return TARE_OK;
    return workspace_create(e->model, rows, e->samples.longest,
                            e->num.compat ? e->num.dtype : TARE_F32, false, &j->run.work);
}

void job_pass(run_job *j, run_pass pass)
{
    memory_plan_pass(&j->plan, &j->memory, pass, j->run.calibrated.states || j->run.floats.states);
}
