/* Runs that end with the float pass: what a caller wants to know of the float model, without an
 * output. The same plan, the same streaming, no journal. */
#include <math.h>

#include "pipeline/job.h"
#include "pipeline/smoothing.h"

static tare_status run_float_model(run_job *j)
{
    tare_status status = TARE_OK;
    TRY(job_prepare(j));
    TRY(job_workspace(j));
    job_pass(j, PASS_FLOAT);
    TRY(float_pass(&j->run));
    TRY(checkpoint_check_unchanged(j->env.model->checkpoint));
done:
    return status;
}

/* Settings of what comes after the float pass have no say. */
static tare_recipe of_float_pass(const tare_recipe *recipe)
{
    tare_recipe r = *recipe;
    r.disable_level = 0;
    r.fa_quant = r.fa_amp_given = r.fa_balance = false;
    r.fa_amp = r.kv_cache = 0;
    r.kv_sym = true;
    r.a_bit = 8;
    return r;
}

/* ---- scores ---- */

/* The float model as it stands: none of the settings that change it or choose from it either. */
static tare_recipe of_plain_model(const tare_recipe *recipe)
{
    tare_recipe r = of_float_pass(recipe);
    r.anti_method = 0;
    r.anti_alpha = r.anti_beta = NAN;
    r.disable_anti_names = r.disable_names = (string_list){0};
    r.rotation = false;
    return r;
}

tare_status tare_score_layers(tare_context *ctx, const tare_quantize_options *options,
                              tare_range_method method,
                              tare_status (*score)(void *user, const char *name, double value),
                              void *user)
{
    run_job j;
    tare_quantize_options o;
    tare_status status = take_options(ctx, options, &o);
    if (status != TARE_OK)
        return status;
    if (method != TARE_RANGE_QUANTILE && method != TARE_RANGE_STD)
        return TARE_FAIL(ctx, TARE_E_USAGE, "range method %d is not known", (int)method);
    TRY(job_begin(&j, ctx, &o));
    j.effective = of_plain_model(j.env.recipe);
    j.env.recipe = &j.effective;
    j.env.goal = GOAL_SCORES;
    j.env.range_method = method;
    TRY(run_float_model(&j));
    for (size_t i = 0; i < j.env.model->num_linears; i++)
        TRY(score(user, j.plan.linears[i].name, j.run.scores[i].value));
done:
    job_end(&j);
    return status;
}

/* ---- smoothing ---- */

tare_status tare_smooth(tare_context *ctx, const tare_quantize_options *options,
                        tare_smoothing **out)
{
    run_job j;
    tare_quantize_options o;
    *out = NULL;
    tare_status status = take_options(ctx, options, &o);
    if (status != TARE_OK)
        return status;
    if (o.smoothing)
        return TARE_FAIL(ctx, TARE_E_USAGE, "a smoothing cannot be made from another one");
    TRY(job_begin(&j, ctx, &o));
    if (j.env.recipe->anti_method == 0)
        TRY(TARE_FAIL(ctx, TARE_E_USAGE,
                      "smoothing needs an anti_outlier.anti_method: m1, m2, m3, m4, m5 or m6"));
    if (j.env.recipe->anti_method == SMOOTH_BALANCE)
        TRY(TARE_FAIL(ctx, TARE_E_USAGE,
                      "anti_outlier.anti_method balance looks at the schemes of layers, and is a "
                      "part of quantizing alone; possible: m1, m2, m3, m4, m5, m6"));
    j.effective = of_float_pass(j.env.recipe);
    j.env.recipe = &j.effective;
    j.env.goal = GOAL_SMOOTHING;
    TRY(run_float_model(&j));
    TRY(smoothing_keep(&j.run, out));
done:
    job_end(&j);
    return status;
}
