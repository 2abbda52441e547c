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

static bool is_in_layer(const model_config *config, const char *name)
{
    const architecture *arch = config->arch;
    for (size_t i = 0; i < arch->num_linears; i++) {
        const linear_spec *spec = &arch->linears[i];
        if (is_part(name, spec->name, model_config_has_bias(config, spec->bias)))
            return true;
    }
    for (size_t i = 0; i < arch->num_norms; i++)
        if (is_part(name, arch->norms[i].name, false))
            return true;
    return false;
}

/* "<number>.": *number is SIZE_MAX where it is not one as it is written. */
static const char *skip_layer(const char *text, size_t *number)
{
    size_t digits = strspn(text, "0123456789");
    *number = 0;
    if (digits == 0 || digits > 9 || (digits > 1 && text[0] == '0') || text[digits] != '.')
        *number = SIZE_MAX;
    for (size_t i = 0; *number != SIZE_MAX && i < digits; i++)
        *number = *number * 10 + (size_t)(text[i] - '0');
    return *number == SIZE_MAX ? text : text + digits + 1;
}

tensor_use tensor_use_of(const model_config *config, const char *name)
{
    static const char layers[] = "model.layers.";
    static const char *const modules[] = {"model.embed_tokens", "model.norm", "lm_head"};
    if (str_ends_with(name, ".rotary_emb.inv_freq"))
        return TENSOR_BUFFER;
    if (str_starts_with(name, layers)) {
        size_t layer;
        const char *rest = skip_layer(name + sizeof layers - 1, &layer);
        if (layer != SIZE_MAX && layer >= config->num_layers)
            return TENSOR_BEYOND;
        return layer != SIZE_MAX && is_in_layer(config, rest) ? TENSOR_NEEDED : TENSOR_UNUSED;
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
