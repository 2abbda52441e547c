/* Mixtures of experts and latent attention in config.json (spec/models.md 1.8, 1.9): everything
 * that a forward pass relies on is checked here. */
#include <math.h>
#include <string.h>

#include "model/config_parse.h"

/* ---- which layers ---- */

static tare_status check_numbers(parse *p, const char *key, const value *list)
{
    if (!list || list->type == VALUE_NULL)
        return TARE_OK;
    bool fits = list->type == VALUE_LIST;
    for (size_t i = 0; fits && i < list->count; i++)
        fits = list->items[i].type == VALUE_NUMBER;
    return fits ? TARE_OK : REFUSE(p, "%s must be a list of numbers of layers", key);
}

static bool lists_number(const value *list, size_t number)
{
    for (size_t i = 0; list && list->type == VALUE_LIST && i < list->count; i++) {
        if (list->items[i].type == VALUE_NUMBER && list->items[i].number == (double)number)
            return true;
    }
    return false;
}

/* decoder_sparse_step and mlp_only_layers; first_k_dense_replace; all. */
static tare_status find_sparse(parse *p)
{
    tare_status status = TARE_OK;
    model_config *c = p->out;
    const expert_form *form = c->arch->experts;
    size_t step = 1, first = form->default_first, any = 0;
    const value *dense = value_get(p->root, "mlp_only_layers");
    size_t layers = c->num_layers + c->num_mtp;
    bool *sparse = arena_calloc(p->arena, layers, sizeof *sparse);
    TRY(sparse ? TARE_OK : TARE_E_MEMORY);
    if (form->by_step) {
        TRY(parse_size(p, "decoder_sparse_step", 1, SIZE_MAX, &step));
        TRY(check_numbers(p, "mlp_only_layers", dense));
    }
    if (form->from_first)
        TRY(value_get_size(p->ctx, p->root, p->what, "first_k_dense_replace", &first));
    for (size_t i = first; i < layers; i++) {
        sparse[i] = (i + 1) % step == 0 && !(form->by_step && lists_number(dense, i));
        any += sparse[i];
    }
    c->sparse = any ? sparse : NULL;
done:
    return status;
}

/* ---- their router ---- */

/* The first of those that are known stands for none. */
static tare_status parse_choice(parse *p, const char *key, const char *const *known,
                                const char **out)
{
    *out = known[0];
    if (value_get_string(p->ctx, p->root, p->what, key, out) != TARE_OK)
        return TARE_E_MODEL;
    for (const char *const *k = known; *k; k++) {
        if (strcmp(*k, *out) == 0)
            return TARE_OK;
    }
    return REFUSE(p, "%s \"%.40s\" is not supported for %s; supported: %s%s%s", key, *out,
                  p->out->arch->model_type, known[0], known[1] ? ", " : "",
                  known[1] ? known[1] : "");
}

/* The groups that a DeepSeek's router chooses first. */
static tare_status parse_groups(parse *p)
{
    static const char *const v2[] = {"greedy", "group_limited_greedy", NULL};
    static const char *const v3[] = {"noaux_tc", NULL};
    tare_status status = TARE_OK;
    route_spec *r = &p->out->route;
    const char *method;
    bool sigmoid = r->scores == ROUTE_SIGMOID;
    TRY(parse_choice(p, "topk_method", sigmoid ? v3 : v2, &method));
    if (strcmp(method, "greedy") == 0)
        return TARE_OK;
    TRY(parse_size(p, "n_group", sigmoid ? 8 : 1, r->experts, &r->groups));
    TRY(parse_size(p, "topk_group", sigmoid ? 4 : r->groups, r->experts, &r->chosen_groups));
    r->best = sigmoid ? 2 : 1;
    if (r->experts % r->groups != 0)
        return REFUSE(p, "n_group %zu does not divide the %zu experts", r->groups, r->experts);
    if (r->experts / r->groups < r->best)
        return REFUSE(p, "n_group %zu leaves groups of %zu experts, whose best %zu count",
                      r->groups, r->experts / r->groups, r->best);
    if (r->chosen_groups > r->groups)
        return REFUSE(p, "topk_group %zu is more than n_group %zu", r->chosen_groups, r->groups);
done:
    return status;
}

static tare_status parse_route(parse *p)
{
    static const char *const softmax[] = {"softmax", NULL}, *const sigmoid[] = {"sigmoid", NULL};
    tare_status status = TARE_OK;
    const expert_form *form = p->out->arch->experts;
    route_spec *r = &p->out->route;
    const char *scores;
    bool is_sigmoid = form->scores == ROUTE_SIGMOID;
    *r = (route_spec){.experts = p->out->experts.count,
                      .scores = form->scores,
                      .normalizes = form->normalizes,
                      .scale = 1,
                      .groups = 1,
                      .chosen_groups = 1,
                      .best = 1,
                      .correction = form->correction};
    TRY(parse_size(p, "num_experts_per_tok", form->default_chosen, r->experts, &r->chosen));
    if (form->may_normalize) {
        r->normalizes = is_sigmoid;
        TRY(value_get_bool(p->ctx, p->root, p->what, "norm_topk_prob", &r->normalizes));
    }
    if (!form->shared)
        return TARE_OK;
    r->scale = is_sigmoid ? 2.5 : 1;
    TRY(value_get_double(p->ctx, p->root, p->what, "routed_scaling_factor", &r->scale));
    if (!(r->scale > 0 && r->scale < 1e6))
        return REFUSE(p, "routed_scaling_factor %g is out of range", r->scale);
    TRY(parse_choice(p, "scoring_func", is_sigmoid ? sigmoid : softmax, &scores));
    TRY(parse_groups(p));
    if (r->chosen > r->experts / r->groups * r->chosen_groups)
        return REFUSE(p, "num_experts_per_tok %zu is more than topk_group %zu groups have",
                      r->chosen, r->chosen_groups);
done:
    return status;
}

/* ---- all ---- */

static tare_status parse_shared(parse *p)
{
    tare_status status = TARE_OK;
    size_t shared = p->out->arch->experts->scores == ROUTE_SIGMOID ? 1 : 2, frequency = 1;
    const value *given = value_get(p->root, "n_shared_experts");
    if (!p->out->arch->experts->shared)
        return TARE_OK;
    TRY(value_get_size(p->ctx, p->root, p->what, "n_shared_experts", &shared));
    TRY(value_get_size(p->ctx, p->root, p->what, "moe_layer_freq", &frequency));
    if (frequency != 1)
        return REFUSE(p, "moe_layer_freq %zu is not supported; supported: 1", frequency);
    if (given && given->type == VALUE_NULL)
        shared = 0;
    if (shared > MAX_DIM / p->out->experts.width)
        return REFUSE(p, "n_shared_experts %zu is out of range", shared);
    p->out->shared_width = shared * p->out->experts.width;
done:
    return status;
}

tare_status parse_experts(parse *p)
{
    tare_status status = TARE_OK;
    model_config *c = p->out;
    const expert_form *form = c->arch->experts;
    if (!form)
        return TARE_OK;
    size_t count = form->default_count;
    TRY(value_get_size(p->ctx, p->root, p->what, form->count_key, &count));
    if (count == 0 && form->by_step)
        return TARE_OK;
    TRY(parse_size(p, form->count_key, form->default_count, MAX_LAYERS, &c->experts.count));
    c->experts.width = c->intermediate_size;
    if (form->width_key)
        TRY(parse_size(p, form->width_key, form->default_width, MAX_DIM, &c->experts.width));
    c->experts.module = form->module;
    memcpy(c->experts.names, form->names, sizeof form->names);
    TRY(find_sparse(p));
    TRY(parse_route(p));
    TRY(parse_shared(p));
done:
    return status == TARE_OK || status == TARE_E_MEMORY ? status : TARE_E_MODEL;
}

/* ---- latent attention ---- */

tare_status parse_latent_sizes(parse *p)
{
    tare_status status = TARE_OK;
    model_config *c = p->out;
    size_t nope;
    bool interleaves = true;
    const value *rank = value_get(p->root, "q_lora_rank");
    TRY(parse_size(p, "max_position_embeddings", c->arch->default_positions, (size_t)1 << 31,
                   &c->max_position_embeddings));
    TRY(parse_size(p, "qk_nope_head_dim", 128, 65536, &nope));
    TRY(parse_size(p, "qk_rope_head_dim", 64, 65536, &c->rope_dim));
    TRY(parse_size(p, "v_head_dim", 128, 65536, &c->value_dim));
    TRY(parse_size(p, "kv_lora_rank", 512, MAX_DIM, &c->kv_rank));
    if (!rank || rank->type != VALUE_NULL)
        TRY(parse_size(p, "q_lora_rank", 1536, MAX_DIM, &c->query_rank));
    TRY(value_get_bool(p->ctx, p->root, p->what, "rope_interleave", &interleaves));
    if (!interleaves)
        return REFUSE(p, "rope_interleave false is not supported: neighbours turn together");
    c->head_dim = nope + c->rope_dim;
    c->num_kv_heads = c->num_heads;
    if (c->rope_dim % 2 != 0)
        return REFUSE(p, "qk_rope_head_dim %zu is odd; rotary embedding needs an even one",
                      c->rope_dim);
    if (c->num_heads * (c->head_dim + c->value_dim) > MAX_DIM)
        return REFUSE(p, "num_attention_heads %zu times their sizes is out of range", c->num_heads);
done:
    return status;
}
