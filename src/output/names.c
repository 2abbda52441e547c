/* Names of an output's files: those of its layouts (layout.c), or those that a caller gives the
 * safe_tensor layout; of weight files also ascendv1's, whose description engines know by its name.
 */
#include <string.h>

#include "output/output_internal.h"

static size_t stem_length(const char *safetensors_name)
{
    return strlen(safetensors_name) - strlen(".safetensors");
}

const char *output_type(const output *o, layout which, linear_scheme scheme)
{
    bool static_half = o->options.num.compat && which != LAYOUT_ASCENDV1;
    return scheme_of(static_half && scheme == SCHEME_W8A8_MIX ? SCHEME_W8A8 : scheme)->type;
}

char *output_weight_prefix(output *o, layout which)
{
    const char *name = o->options.safetensors_name;
    if (name && (which == LAYOUT_SAFE_TENSOR || which == LAYOUT_ASCENDV1))
        return arena_strndup(&o->arena, name, stem_length(name));
    return layout_weight_prefix(&o->arena, which, o->options.num.compat,
                                output_type(o, which, o->named_by));
}

char *output_description_name(output *o, layout which)
{
    const char *name = o->options.json_name;
    if (name && which == LAYOUT_SAFE_TENSOR)
        return arena_strndup(&o->arena, name, strlen(name));
    return layout_description_name(&o->arena, which, output_type(o, which, o->named_by));
}

/* The file, one of its shards, or their index. */
static bool is_given_weight_file(const char *given, const char *name)
{
    size_t stem = stem_length(given);
    if (strncmp(name, given, stem) != 0)
        return false;
    return strcmp(name + stem, ".safetensors") == 0 ||
           strcmp(name + stem, ".safetensors.index.json") == 0 ||
           pattern_match("-[0-9][0-9][0-9][0-9][0-9]-of-[0-9][0-9][0-9][0-9][0-9].safetensors",
                         name + stem);
}

bool output_owns_file(const output *o, const char *name, bool by_tare)
{
    const output_options *n = &o->options;
    return layout_owns_file(name, by_tare) ||
           (by_tare && n->json_name && strcmp(name, n->json_name) == 0) ||
           (by_tare && n->safetensors_name && is_given_weight_file(n->safetensors_name, name));
}

bool output_is_description(const output *o, const char *name)
{
    return str_starts_with(name, "quant_model_description") ||
           (o->options.json_name && strcmp(name, o->options.json_name) == 0);
}
