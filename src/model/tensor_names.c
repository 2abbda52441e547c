#include "model/tensor_names.h"

#include <string.h>

#include "base/strings.h"

/* Is `name` `module`.weight, or, where there is one, `module`.bias? */
static bool is_part(const char *name, const char *module, bool has_bias)
{
    size_t length = strlen(module);
    if (strncmp(name, module, length) != 0)
        return false;
    return strcmp(name + length, ".weight") == 0 ||
           (has_bias && strcmp(name + length, ".bias") == 0);
}

/* "<number>.": *number is SIZE_MAX where it is not one as it is written. */
static const char *skip_number(const char *text, size_t *number)
{
    size_t digits = strspn(text, "0123456789");
    *number = 0;
    if (digits == 0 || digits > 9 || (digits > 1 && text[0] == '0') || text[digits] != '.')
        *number = SIZE_MAX;
    for (size_t i = 0; *number != SIZE_MAX && i < digits; i++)
        *number = *number * 10 + (size_t)(text[i] - '0');
    return *number == SIZE_MAX ? text : text + digits + 1;
}

/* "mlp.experts.3.up_proj.weight" */
static bool is_of_expert(const experts_spec *e, const char *name)
{
    size_t length = e->count ? strlen(e->module) : 0, expert;
    if (length == 0 || strncmp(name, e->module, length) != 0 || name[length] != '.')
        return false;
    const char *rest = skip_number(name + length + 1, &expert);
    for (size_t i = 0; expert < e->count && i < EXPERT_LINEARS; i++) {
        if (is_part(rest, e->names[i], false))
            return true;
    }
    return false;
}

static bool is_in_block(const block_graph *graph, const char *name)
{
    const route_spec *r = &graph->route;
    if (is_of_expert(&graph->experts, name))
        return true;
    if (graph->experts.count && r->correction && strcmp(name, r->correction) == 0)
        return true;
    for (size_t i = 0; i < graph->num_linears; i++)
        if (is_part(name, graph->linears[i].name, graph->linears[i].has_bias))
            return true;
    for (size_t i = 0; i < graph->num_norms; i++)
        if (is_part(name, graph->norms[i].name, false))
            return true;
    return false;
}

static bool is_around_mtp(const char *name)
{
    for (int i = 0; i < MTP_MODULES; i++) {
        if (is_part(name, mtp_module_name((mtp_module)i), false))
            return true;
    }
    return false;
}

/* Of a layer, by its name in the layer. */
static tensor_use use_in_layer(const model_config *c, const block_graph graphs[BLOCK_KINDS],
                               size_t layer, const char *name)
{
    if (layer == SIZE_MAX)
        return TENSOR_UNUSED;
    if (layer >= c->num_layers + c->num_mtp)
        return TENSOR_BEYOND;
    if (layer >= c->num_layers && is_around_mtp(name))
        return TENSOR_MTP;
    if (!is_in_block(&graphs[model_config_sparse(c, layer)], name))
        return TENSOR_UNUSED;
    return layer < c->num_layers ? TENSOR_NEEDED : TENSOR_MTP_BLOCK;
}

tensor_use tensor_use_of(const model_config *config, const block_graph graphs[BLOCK_KINDS],
                         const char *name)
{
    static const char layers[] = "model.layers.";
    static const char *const modules[] = {"model.embed_tokens", "model.norm", "lm_head"};
    if (str_ends_with(name, ".rotary_emb.inv_freq"))
        return TENSOR_BUFFER;
    if (str_starts_with(name, layers)) {
        size_t layer;
        const char *rest = skip_number(name + sizeof layers - 1, &layer);
        return use_in_layer(config, graphs, layer, rest);
    }
    for (size_t i = 0; i < sizeof modules / sizeof *modules; i++) {
        size_t length = strlen(modules[i]);
        if (is_part(name, modules[i], false))
            return TENSOR_NEEDED;
        if (strncmp(name, modules[i], length) == 0 && name[length] == '.')
            return TENSOR_UNUSED;
    }
    return TENSOR_FOREIGN;
}
