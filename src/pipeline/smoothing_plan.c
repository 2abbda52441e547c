/* Which pairs of a run are smoothed, by the recipe, the model and the schemes of its linears:
 * decided before any weight is read. */
#include <math.h>
#include <string.h>

#include "pipeline/smoothing.h"

static const model_block *block_of(const run_plan *plan, const model_linear *l)
{
    return &plan->env->model->blocks[plan->env->model->units[l->unit].block];
}

bool is_down_pair(const block_graph *g, const pair_spec *pair)
{
    return !pair->of_norm && strcmp(g->units[pair->unit].kind, "down") == 0;
}

static bool has_down_pair(const block_graph *g)
{
    for (size_t p = 0; p < g->num_pairs; p++)
        if (is_down_pair(g, &g->pairs[p]))
            return true;
    return false;
}

/* Balance is for what an input in integers loses token by token; a static input's range may get
 * worse by it. */
static bool balances_pair(const run_plan *plan, const model_block *block, const pair_spec *pair)
{
    size_t target = block->first_linear + block->graph->units[pair->unit].first;
    return is_down_pair(block->graph, pair) &&
           scheme_of(plan->linears[target].scheme)->activations != ACT_STATIC;
}

static bool method_takes(const run_plan *plan, const model_block *block, const pair_spec *pair)
{
    switch (plan->smooth.method) {
    case SMOOTH_M1:
    case SMOOTH_M2:
    case SMOOTH_M3:
    case SMOOTH_M5:
        return pair->of_norm;
    case SMOOTH_M4:
    case SMOOTH_M6:
        return true;
    case SMOOTH_BALANCE:
        return balances_pair(plan, block, pair);
    }
    return false; /* only queries and keys are balanced */
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
static bool pair_is_disabled(const run_plan *plan, const model_block *block, const pair_spec *pair)
{
    const model_unit *unit = block_unit(plan->env->model, block, pair->unit);
    smooth_method m = plan->smooth.method;
    if (plan->env->num.compat && (m == SMOOTH_M1 || m == SMOOTH_M2 || m == SMOOTH_M5))
        return false;
    for (size_t i = unit->first; i < unit->first + unit->count; i++) {
        if (is_listed(&plan->env->recipe->disable_anti_names, plan->env->model->linears[i].name))
            return true;
    }
    return false;
}

bool smoothing_moves_rows(const run_plan *plan)
{
    return plan->smooth.method == SMOOTH_M4 || plan->smooth.method == SMOOTH_M6 ||
           plan->smooth.method == SMOOTH_BALANCE || plan->env->recipe->fa_balance;
}

bool smoothing_pair_active(const run_plan *plan, const model_block *block, const pair_spec *pair)
{
    return method_takes(plan, block, pair) && !pair_is_disabled(plan, block, pair);
}

/* The active pair whose targets `l` is one of; NULL: none. */
static const pair_spec *active_pair_of(const run_plan *plan, const model_linear *l)
{
    if (!plan->smooths || linear_is_head(plan->env->model, l))
        return NULL;
    const model_block *block = block_of(plan, l);
    for (size_t p = 0; p < block->graph->num_pairs; p++) {
        const pair_spec *pair = &block->graph->pairs[p];
        if (block->first_unit + pair->unit == l->unit)
            return smoothing_pair_active(plan, block, pair) ? pair : NULL;
    }
    return NULL;
}

static tare_status check_names(const run_plan *plan)
{
    tare_status status = TARE_OK;
    const string_list *names = &plan->env->recipe->disable_anti_names;
    const char **known = mem_alloc_array(plan->env->ctx, plan->env->model->num_linears,
                                         sizeof *known);
    buffer near;
    buffer_init(&near, plan->env->ctx);
    if (!known)
        return TARE_E_MEMORY;
    for (size_t i = 0; i < plan->env->model->num_linears; i++)
        known[i] = plan->linears[i].name;
    for (size_t n = 0; n < names->count; n++) {
        bool found = false;
        for (size_t i = 0; i < plan->env->model->num_linears && !found; i++)
            found = strcmp(known[i], names->items[n]) == 0;
        if (found)
            continue;
        nearest_names(&near, names->items[n], known, plan->env->model->num_linears, 3);
        TRY(near.status);
        TRY(TARE_FAIL(
            plan->env->ctx, TARE_E_USAGE,
            "anti_outlier.disable_anti_names: \"%s\" names no linear layer of this model; near: %s",
            names->items[n], near.data));
    }
done:
    buffer_free(&near);
    mem_free(plan->env->ctx, known);
    return status;
}

bool smoothing_shifts(const run_plan *plan)
{
    return plan->smooths && plan->smooth.method == SMOOTH_M4 &&
           plan->env->model->config.arch->smooth_shift;
}

norm_kind smoothing_norm_kind(const run_plan *plan)
{
    bool wraps = plan->smooths && plan->smooth.method >= SMOOTH_M1 &&
                 plan->smooth.method <= SMOOTH_M5;
    if (!wraps)
        return NORM_PLAIN;
    return smoothing_shifts(plan) ? NORM_SHIFTED : NORM_WRAPPED;
}

bool smoothing_creates_bias(const run_plan *plan, const model_linear *l)
{
    const pair_spec *pair = smoothing_shifts(plan) && !l->bias ? active_pair_of(plan, l) : NULL;
    return pair && pair->of_norm;
}

bool smoothing_solves(const run_plan *plan)
{
    return plan->smooths && plan->calibrates && !plan->smoothing_given;
}

/* Magnitudes of queries and keys show in a few; the methods take what the reference takes. */
size_t smoothing_samples(const run_plan *plan)
{
    enum { BALANCE_SAMPLES = 16 };
    switch (plan->smooth.method) {
    case SMOOTH_M3:
        return 1;
    case SMOOTH_M1:
    case SMOOTH_M2:
    case SMOOTH_M4:
    case SMOOTH_M5:
    case SMOOTH_M6:
    case SMOOTH_BALANCE:
        return SIZE_MAX;
    }
    return BALANCE_SAMPLES; /* of queries and keys alone */
}

static void warn_of_no_pair(const run_plan *plan)
{
    const tare_model *m = plan->env->model;
    for (size_t i = 0; i < m->num_blocks; i++)
        for (size_t p = 0; p < m->blocks[i].graph->num_pairs; p++)
            if (smoothing_pair_active(plan, &m->blocks[i], &m->blocks[i].graph->pairs[p]))
                return;
    TARE_WARN(plan->env->ctx, "anti_outlier.anti_method balance moves nothing: no down_proj is "
                              "quantized per token (mix \"*.mlp.down_proj\": w8a8_dynamic)");
}

tare_status smoothing_plan(run_plan *plan)
{
    tare_status status = TARE_OK;
    const tare_recipe *recipe = plan->env->recipe;
    if (!(plan->smooths = recipe->anti_method != 0 || recipe->fa_balance))
        return TARE_OK;
    if (recipe->fa_balance)
        TRY(balance_check(plan));
    if (plan->env->options->smoothing)
        return smoothing_take(plan, plan->env->options->smoothing);
    plan->smooth = (smooth_config){.method = (smooth_method)recipe->anti_method,
                                   .w_bit = (int)recipe->anti_w_bit,
                                   .w_sym = recipe->anti_w_sym,
                                   .has_alpha = !isnan(recipe->anti_alpha),
                                   .has_beta = !isnan(recipe->anti_beta),
                                   .alpha = recipe->anti_alpha,
                                   .beta = recipe->anti_beta,
                                   .num = plan->env->num};
    TRY(check_names(plan));
    const tare_model *m = plan->env->model;
    if (recipe->anti_method == SMOOTH_BALANCE && !has_down_pair(&m->graphs[BLOCK_PLAIN]))
        TRY(TARE_FAIL(plan->env->ctx, TARE_E_USAGE,
                      "anti_outlier.anti_method balance: %s models have no up_proj and down_proj "
                      "that scales are moved between; leave it out",
                      m->config.arch->model_type));
    if (recipe->anti_method == SMOOTH_BALANCE)
        warn_of_no_pair(plan);
done:
    return status;
}

bool smoothing_targets(const run_plan *plan, const model_linear *l)
{
    return smoothing_solves(plan) && active_pair_of(plan, l) != NULL;
}
