/* What will be quantized, and how samples will pass: decided before any weight is read. */
#include <string.h>

#include "pipeline/smoothing.h"
#include "quantize/gptq.h"

/* Of a block with the graph `g`; those behind its own are experts'. */
static void list_block(run_plan *plan, const model_block *b)
{
    const tare_model *m = plan->env->model;
    const block_graph *g = b->graph;
    bool mixed = m->graphs[BLOCK_EXPERTS].num_nodes > 0;
    for (size_t i = b->first_linear; i < b->end_linear; i++) {
        linear_plan *l = &plan->linears[i];
        size_t own = i - b->first_linear;
        bool expert = own >= g->num_linears;
        l->stays_float = !expert && g->linears[own].stays_float;
        l->is_mlp = mixed && (expert || !strstr(m->linears[i].name, ".self_attn."));
        l->mixture = expert ? b->index + 1 : 0;
        l->n = m->linears[i].n;
        l->k = m->linears[i].k;
        l->slices = expert && (own - g->num_linears + 1) % EXPERT_LINEARS == 0 ? INT4_SLICES : 1;
    }
}

static void list_linears(run_plan *plan)
{
    const tare_model *m = plan->env->model;
    for (size_t i = 0; i < m->num_linears; i++)
        plan->linears[i] = (linear_plan){.name = m->linears[i].name,
                                         .unit = m->linears[i].unit,
                                         .is_head = linear_is_head(m, &m->linears[i])};
    for (size_t i = 0; i < m->num_blocks; i++)
        list_block(plan, &m->blocks[i]);
}

static void tell_left_out(const run_plan *plan)
{
    size_t wide = 0;
    for (size_t i = 0; plan->gptq && i < plan->env->model->num_linears; i++) {
        const linear_plan *l = &plan->linears[i];
        wide += !plan_is_float(l) && !l->is_head && !plan_rounds(plan, i);
    }
    if (wide > 0)
        TARE_INFO(
            plan->env->ctx,
            "quant.weight_method gptq: %zu linears read more than %d channels, and are rounded "
            "as by minmax",
            wide, GPTQ_MOST_CHANNELS);
}

static tare_status check_kv_cache(const run_plan *plan)
{
    const tare_model *m = plan->env->model;
    if (m->config.arch->latent_attention)
        return TARE_FAIL(plan->env->ctx, TARE_E_USAGE,
                         "quant.kv_cache: %s models have latent attention, of whose cache engines "
                         "know no such scales; leave it out",
                         m->config.arch->model_type);
    if (!graph_linear_of(model_graph(m), KEY_LINEAR, strlen(KEY_LINEAR)))
        return TARE_FAIL(plan->env->ctx, TARE_E_USAGE,
                         "quant.kv_cache: %s models have one linear for queries, keys and values, "
                         "and engines look for the scales beside k_proj and v_proj",
                         m->config.arch->model_type);
    for (size_t i = 0; plan->env->num.compat && i < model_graph(m)->num_norms; i++) {
        if (graph_norm_is_inside(model_graph(m), i))
            return TARE_FAIL(plan->env->ctx, TARE_E_USAGE,
                             "quant.kv_cache with run.compat: msModelSlim writes no scales for %s "
                             "models, which have a norm for queries and keys; leave run.compat out",
                             m->config.arch->model_type);
    }
    if (m->config.head_dim % 32 != 0)
        TARE_WARN(plan->env->ctx,
                  "quant.kv_cache: vLLM-Ascend needs a head_dim that is a multiple of 32, and that "
                  "of this model is %zu",
                  m->config.head_dim);
    return TARE_OK;
}

/* Attention modules may be named in disable_names: "model.layers.0.self_attn". */
static tare_status plan_attentions(run_plan *plan, const char ***names)
{
    tare_status status = TARE_OK;
    const run_env *e = plan->env;
    size_t layers = e->model->num_blocks;
    plan->attentions = arena_calloc(e->arena, layers, sizeof *plan->attentions);
    *names = arena_alloc_array(e->arena, layers, sizeof **names);
    if (!plan->attentions || !*names)
        return TARE_E_MEMORY;
    if (e->recipe->kv_cache)
        TRY(check_kv_cache(plan));
    for (size_t i = 0; i < layers; i++) {
        attention_plan *a = &plan->attentions[i];
        if (!(a->name = arena_printf(e->arena, "model.layers.%zu.self_attn", i)))
            return TARE_E_MEMORY;
        (*names)[i] = a->name;
        a->quantize = e->recipe->fa_quant && !rules_disable(e->recipe, a->name);
        a->kv_cache = e->recipe->kv_cache && !rules_disable(e->recipe, a->name);
        plan->num_fa += a->quantize;
        plan->num_kv += a->kv_cache;
    }
done:
    return status;
}

tare_status plan_linears(run_plan *plan)
{
    tare_status status = TARE_OK;
    const char **attentions;
    size_t count = plan->env->model->num_linears;
    plan->linears = arena_calloc(plan->env->arena, count, sizeof *plan->linears);
    if (!plan->linears)
        return TARE_E_MEMORY;
    list_linears(plan);
    TRY(plan_attentions(plan, &attentions));
    TRY(rules_apply(plan->env->recipe, plan->linears, count, attentions,
                    plan->env->model->num_blocks));
    TRY(smoothing_plan(plan));
    const run_env *e = plan->env;
    plan->gptq = e->goal == GOAL_OUTPUT && recipe_gptq(e->recipe);
    plan->weights_alone = e->goal == GOAL_OUTPUT && !plan_uses_static(plan) && !plan->smooths &&
                          !e->recipe->fa_quant && !e->recipe->kv_cache && !plan->gptq;
    plan->calibrates = !plan->weights_alone && !e->options->statistics;
    plan->final_scales = plan->calibrates && plan_uses_static(plan) &&
                         recipe_final_scales(e->recipe);
    plan->keeps_statistics = plan->calibrates && e->goal == GOAL_OUTPUT && !e->tape;
    tell_left_out(plan);
done:
    return status;
}

bool plan_uses_static(const run_plan *plan)
{
    for (size_t i = 0; i < plan->env->model->num_linears; i++) {
        if (scheme_of(plan->linears[i].scheme)->activations == ACT_STATIC)
            return true;
    }
    return false;
}

bool plan_rounds(const run_plan *plan, size_t index)
{
    const linear_plan *l = &plan->linears[index];
    return plan->gptq && !plan_is_float(l) && !l->is_head && l->k <= GPTQ_MOST_CHANNELS;
}

static size_t tokens_of(const run_plan *plan, size_t samples)
{
    size_t tokens = 0;
    for (size_t i = 0; i < samples; i++)
        tokens += plan->env->samples.lengths[i];
    return tokens;
}

/* m3 looks at the first sample, balance at some, the other methods at all, as compat does at keys
 * and values; the score at a few.
 *
 * disable_level ranks all layers before the first is quantized: a float pass of its own, which also
 * finds the smoothing. Without it the float stream, if there is one, runs beside the quantized one,
 * layer by layer - except where compat's FP16 output depends on the observers' kind, which is
 * declared beforehand. */
void plan_streams(run_plan *plan)
{
    size_t all = plan->env->samples.count;
    plan->wants_scores = plan->env->recipe->disable_level > 0 ||
                         (plan->env->recipe->act_method == 3 && plan_uses_static(plan));
    plan->wants_scores = plan->wants_scores && plan->env->goal == GOAL_OUTPUT;
    plan->score_samples = all < SCORE_SAMPLES ? all : SCORE_SAMPLES;
    if (smoothing_solves(plan))
        plan->float_samples = size_min(all, smoothing_samples(plan));
    if (plan->env->goal == GOAL_SCORES || kv_cache_of_floats(plan))
        plan->float_samples = all;
    if (plan->wants_scores && plan->float_samples < plan->score_samples)
        plan->float_samples = plan->score_samples;
    plan->score_tokens = tokens_of(plan, plan->score_samples);
    plan->float_tokens = tokens_of(plan, plan->float_samples);
    plan->two_passes = plan->env->goal != GOAL_OUTPUT ||
                       (plan->wants_scores &&
                        (plan->env->recipe->disable_level > 0 || plan->env->num.compat));
    plan->float_beside = !plan->two_passes && plan->float_samples > 0;
}

size_t plan_most_rows(const run_plan *plan)
{
    return size_max(plan->env->samples.longest, plan->layout.batch_rows);
}

size_t plan_batch_rows(const run_plan *plan)
{
    return size_min(plan_most_rows(plan), plan->env->samples.tokens);
}

/* npy files are streams whose entries have one order: of a whole block. A layer that scores by
 * running again (compat) begins with its input alone. */
void plan_segments(const run_plan *plan, graph_cut cut, segment_list out[BLOCK_KINDS])
{
    const tare_model *m = plan->env->model;
    bool rows = plan->smooths && smoothing_moves_rows(plan);
    if (plan->env->save & SAVE_NUMPY || plan->env->tape)
        cut = CUT_NONE;
    if (cut == CUT_UNITS && plan->smooths && plan->wants_scores && plan->env->num.compat)
        cut = CUT_PARTS;
    for (int kind = 0; kind < BLOCK_KINDS; kind++)
        out[kind].count = graph_segments(&m->graphs[kind], cut, rows, out[kind].items);
}

size_t plan_segment_count(const run_plan *plan, const model_block *block)
{
    return plan->segments[block_kind_of(block)].count;
}

segment_work plan_segment(const run_plan *plan, const model_block *block, size_t index)
{
    const segment_list *list = &plan->segments[block_kind_of(block)];
    return (segment_work){.block = block,
                          .segment = &list->items[index],
                          .next = index + 1 < list->count ? &list->items[index + 1] : NULL};
}

segment_work plan_expert(const run_plan *plan, const model_block *block, size_t expert,
                         expert_place *place)
{
    static const block_segment whole = {.end_node = 3, .end_unit = 2, .end_linear = EXPERT_LINEARS};
    place->block = expert_block(plan->env->model, block, expert, place->name);
    return (segment_work){
        .block = &place->block, .segment = &whole, .is_expert = true, .expert = expert};
}

/* Experts run one by one, in place of the segment that they are. */
static size_t count_in_block(const run_plan *plan, const model_block *b)
{
    size_t segments = plan_segment_count(plan, b), experts = block_experts(b);
    return experts ? segments - 1 + experts : segments;
}

/* The place of the experts among a block's segments; behind all: there are none. */
static size_t place_of_experts(const run_plan *plan, const model_block *b)
{
    const segment_list *list = &plan->segments[block_kind_of(b)];
    size_t i = 0;
    while (i < list->count && !list->items[i].experts)
        i++;
    return i;
}

size_t plan_segments_of_model(const run_plan *plan)
{
    size_t count = 0;
    for (size_t i = 0; i < plan->env->model->num_blocks; i++)
        count += count_in_block(plan, &plan->env->model->blocks[i]);
    return count;
}

segment_work plan_segment_of_model(const run_plan *plan, size_t index, expert_place *place)
{
    const model_block *b = plan->env->model->blocks;
    for (size_t count; index >= (count = count_in_block(plan, b)); b++)
        index -= count;
    size_t first = place_of_experts(plan, b), end = first + block_experts(b);
    if (index >= first && index < end)
        return plan_expert(plan, b, index - first, place);
    return plan_segment(plan, b, index < first ? index : index - end + first + 1);
}

size_t plan_segment_index(const run_plan *plan, const segment_work *s)
{
    const model_block *b = &plan->env->model->blocks[s->block->index];
    size_t index = 0, first = place_of_experts(plan, b);
    for (size_t i = 0; i < b->index; i++)
        index += count_in_block(plan, &plan->env->model->blocks[i]);
    if (s->is_expert)
        return index + first + s->expert;
    size_t at = (size_t)(s->segment - plan->segments[block_kind_of(b)].items);
    return index + (at <= first ? at : at - 1 + block_experts(b));
}

size_t segment_first(const segment_work *s)
{
    return s->block->first_linear + s->segment->first_linear;
}

size_t segment_end(const segment_work *s)
{
    return s->block->first_linear + s->segment->end_linear;
}

bool plan_may_fall_back(const run_plan *plan)
{
    return plan->env->recipe->disable_level > 0 && !plan->levels_known;
}

/* A static linear has eight tensors, another one four (a bias among them), a norm up to four, an
 * attention six. */
size_t plan_tensors(const run_plan *plan)
{
    const tare_model *m = plan->env->model;
    size_t a_block = 4 * model_graph(m)->num_norms + FA_KINDS * 2, count = 0;
    for (size_t i = 0; i < m->num_linears; i++)
        count += scheme_of(plan->linears[i].scheme)->activations == ACT_STATIC ? 8 : 4;
    return count + m->num_blocks * a_block + m->num_extra + 16;
}
