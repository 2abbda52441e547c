/* Rule 23: compressed-tensors, whose quantization_config in config.json says which linears are
 * quantized and how (specification: output_formats.md 7). */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "output/verify_internal.h"

#define CONFIG "quantization_config"

/* What a member of one of the config's maps has to be. */
typedef struct demand {
    const char *key;
    value_type type;
    const char *text; /* of a string or number; "true", "false" */
    bool may_be_absent;
} demand;

static const demand TOP[] = {{"quant_method", VALUE_STRING, "compressed-tensors", false},
                             {"quantization_status", VALUE_STRING, "compressed", false},
                             {"kv_cache_scheme", VALUE_NULL, "null", true}};
static const demand WEIGHTS[] = {
    {"num_bits", VALUE_NUMBER, "8", false},   {"type", VALUE_STRING, "int", false},
    {"symmetric", VALUE_BOOL, "true", false}, {"strategy", VALUE_STRING, "channel", false},
    {"dynamic", VALUE_BOOL, "false", false},  {"group_size", VALUE_NULL, "null", true},
};
static const demand STATIC[] = {
    {"num_bits", VALUE_NUMBER, "8", false},    {"type", VALUE_STRING, "int", false},
    {"symmetric", VALUE_BOOL, "false", false}, {"strategy", VALUE_STRING, "tensor", false},
    {"dynamic", VALUE_BOOL, "false", false},   {"zp_dtype", VALUE_STRING, "torch.int8", false},
};
static const demand STATIC_SYMMETRIC[] = {
    {"num_bits", VALUE_NUMBER, "8", false},   {"type", VALUE_STRING, "int", false},
    {"symmetric", VALUE_BOOL, "true", false}, {"strategy", VALUE_STRING, "tensor", false},
    {"dynamic", VALUE_BOOL, "false", false},  {"zp_dtype", VALUE_NULL, "null", true},
};
static const demand PER_TOKEN[] = {
    {"num_bits", VALUE_NUMBER, "8", false},   {"type", VALUE_STRING, "int", false},
    {"symmetric", VALUE_BOOL, "true", false}, {"strategy", VALUE_STRING, "token", false},
    {"dynamic", VALUE_BOOL, "true", false},
};
#define COUNT(array) (sizeof(array) / sizeof *(array))

static const char *text_of(const value *v)
{
    return !v                                                   ? "no such key"
           : v->type == VALUE_NULL                              ? "null"
           : v->type == VALUE_BOOL                              ? v->boolean ? "true" : "false"
           : v->type == VALUE_STRING || v->type == VALUE_NUMBER ? v->text
           : v->type == VALUE_LIST                              ? "a list"
                                                                : "a map";
}

static void check_text(verify *v, const value *map, const char *where, const demand *d)
{
    char name[128];
    const value *found = value_get(map, d->key);
    if (!found && d->may_be_absent)
        return;
    if (found && found->type == d->type && strcmp(text_of(found), d->text) == 0)
        return;
    snprintf(name, sizeof name, "%s.%s", where, d->key);
    verify_fail(v, 23, name, d->text, "%s", text_of(found));
}

static void check_map(verify *v, const value *map, const char *where, const demand *demands,
                      size_t count)
{
    if (!map || map->type != VALUE_MAP) {
        verify_fail(v, 23, where, "a map", "%s", text_of(map));
        return;
    }
    for (size_t i = 0; i < count; i++)
        check_text(v, map, where, &demands[i]);
}

static void check_activations(verify *v, const value *group, act_kind kind)
{
    static const char name[] = CONFIG ".input_activations";
    const value *inputs = value_get(group, "input_activations");
    if (kind == ACT_STATIC && reader_group_symmetric(group))
        check_map(v, inputs, name, STATIC_SYMMETRIC, COUNT(STATIC_SYMMETRIC));
    else if (kind == ACT_STATIC)
        check_map(v, inputs, name, STATIC, COUNT(STATIC));
    else if (kind == ACT_PER_TOKEN)
        check_map(v, inputs, name, PER_TOKEN, COUNT(PER_TOKEN));
    else if (inputs && inputs->type != VALUE_NULL)
        verify_fail(v, 23, name, "null: weights alone are packed", "%s", text_of(inputs));
}

/* Linears that share a scheme: all, or those that are named. */
static void check_targets(verify *v, const reader_layout *f, const value *targets, bool only,
                          linear_scheme scheme)
{
    static const char name[] = CONFIG ".config_groups.targets";
    bool list = targets && targets->type == VALUE_LIST && targets->count > 0;
    if (!list)
        verify_fail(v, 23, name, only ? "[\"Linear\"]" : "names of linears", "%s",
                    text_of(targets));
    for (size_t i = 0; list && i < targets->count; i++) {
        const value *t = &targets->items[i];
        const char *text = value_text(t);
        const reader_linear *l = text ? reader_find_linear(f, text, t->length) : NULL;
        if (f->broken || value_is(t, "Linear"))
            continue;
        if (text && str_starts_with(text, "re:"))
            verify_warn(v, 23, t->text, "names of linears",
                        "a pattern: what it covers is not checked");
        else if (!l)
            verify_fail(v, 23, name, "names of quantized linears", "%s", text_of(t));
        else if (l->form.scheme != scheme)
            verify_fail(v, 23, l->module, "one target of this name", "others of %s",
                        scheme_of(l->form.scheme)->type);
    }
}

static void check_group(verify *v, const reader_layout *f, const value *group, bool only)
{
    const value *outputs = value_get(group, "output_activations");
    const value *config = value_get(f->config, CONFIG);
    linear_scheme scheme = reader_group_scheme(config, group);
    const demand format = {"format", VALUE_STRING, compressed_format(1u << scheme), only};
    check_map(v, group, CONFIG ".config_groups", &format, 1);
    check_targets(v, f, value_get(group, "targets"), only, scheme);
    if (outputs && outputs->type != VALUE_NULL)
        verify_fail(v, 23, CONFIG ".config_groups.output_activations", "null", "%s",
                    text_of(outputs));
    check_map(v, value_get(group, "weights"), CONFIG ".weights", WEIGHTS, COUNT(WEIGHTS));
    check_activations(v, group, scheme_of(scheme)->activations);
}

/* A group for each scheme; with several every linear is somebody's target. */
static unsigned check_groups(verify *v, const reader_layout *f, const value *groups)
{
    unsigned schemes = 0;
    if (!groups || groups->type != VALUE_MAP || groups->count == 0) {
        verify_fail(v, 23, CONFIG ".config_groups", "a map with a group", "%s",
                    groups && groups->type == VALUE_MAP ? "none" : text_of(groups));
        return 0;
    }
    for (size_t i = 0; i < groups->count; i++) {
        check_group(v, f, &groups->items[i], groups->count == 1);
        schemes |= 1u << reader_group_scheme(value_get(f->config, CONFIG), &groups->items[i]);
    }
    return schemes;
}

/* Sparsity and rotations, which need tensors of their own. */
static void check_empty(verify *v, const value *config, const char *key)
{
    const value *found = value_get(config, key);
    char name[128];
    if (!found || found->type == VALUE_NULL || (found->type == VALUE_MAP && found->count == 0))
        return;
    snprintf(name, sizeof name, CONFIG ".%s", key);
    verify_fail(v, 23, name, "{}", "%s", text_of(found));
}

tare_status rule_compressed_config(verify *v, reader_layout *f)
{
    const value *config = value_get(f->config, CONFIG);
    if (!f->config) {
        verify_fail(v, 23, "config.json", "the model's configuration", "no such JSON object");
        return TARE_OK;
    }
    if (!config && f->num_linears == 0) /* a float checkpoint: nothing was quantized */
        return TARE_OK;
    check_map(v, config, CONFIG, TOP, COUNT(TOP));
    if (!config || config->type != VALUE_MAP)
        return TARE_OK;
    check_empty(v, config, "sparsity_config");
    check_empty(v, config, "transform_config");
    unsigned schemes = check_groups(v, f, value_get(config, "config_groups"));
    const demand format = {"format", VALUE_STRING, compressed_format(schemes), false};
    check_text(v, config, CONFIG, &format);
    return TARE_OK;
}

/* ---- with tensors ---- */

static const char HEAD[] = "lm_head";

/* Is there, or (as tied heads) need there not be, a FLOAT weight of this name? */
static bool is_float_linear(const reader_layout *f, const char *module)
{
    char name[1024];
    snprintf(name, sizeof name, "%s.weight", module);
    const reader_tensor *t = reader_find(f, name);
    return t ? t->info.rank == 2 : strcmp(module, HEAD) == 0;
}

static tare_status check_ignored(verify *v, reader_layout *f, const value *ignore, strmap *names,
                                 bool *patterns)
{
    tare_status status = TARE_OK;
    for (size_t i = 0; i < ignore->count; i++) {
        const value *name = &ignore->items[i];
        if (name->type != VALUE_STRING) {
            verify_fail(v, 23, CONFIG ".ignore", "names of linears", "%s", text_of(name));
            continue;
        }
        TRY(strmap_put(names, name->text, name->length, (uint32_t)i, NULL));
        if (str_starts_with(name->text, "re:")) {
            verify_warn(v, 23, name->text, "names of linears",
                        "a pattern: what it covers is not checked");
            *patterns = true;
        } else if (reader_find_linear(f, name->text, name->length)) {
            verify_fail(v, 23, name->text, "FLOAT linears in " CONFIG ".ignore", "a quantized one");
        } else if (!is_float_linear(f, name->text)) {
            verify_fail(v, 23, name->text, "FLOAT linears in " CONFIG ".ignore",
                        "no linear of this name");
        }
    }
done:
    return status;
}

static void expect_ignored(verify *v, const strmap *names, const char *module, size_t length)
{
    char name[1024];
    if (strmap_get(names, module, length, &(uint32_t){0}))
        return;
    snprintf(name, sizeof name, "%.*s", (int)length, module);
    verify_fail(v, 23, name, "its name in " CONFIG ".ignore, as it is FLOAT", "none");
}

static tare_status check_ignore(verify *v, reader_layout *f)
{
    const value *ignore = value_get(value_get(f->config, CONFIG), "ignore");
    bool patterns = false;
    strmap names;
    size_t length;
    tare_status status = TARE_OK;
    strmap_init(&names, f->ctx);
    if (!ignore || ignore->type != VALUE_LIST) {
        verify_fail(v, 23, CONFIG ".ignore", "a list of names", "%s", text_of(ignore));
        goto done;
    }
    TRY(check_ignored(v, f, ignore, &names, &patterns));
    for (size_t i = 0; i < f->num_tensors && !patterns; i++) {
        const char *name = f->tensors[i].info.name;
        if (role_of_name(name, &length) == TENSOR_WEIGHT && !reader_find_linear(f, name, length) &&
            graph_linear_of(&f->graph, name, length))
            expect_ignored(v, &names, name, length);
    }
    if (!patterns && !reader_find_linear(f, HEAD, strlen(HEAD)))
        expect_ignored(v, &names, HEAD, strlen(HEAD));
done:
    strmap_free(&names);
    return status;
}

tare_status rule_compressed_linears(verify *v, reader_layout *f)
{
    const value *config = value_get(f->config, CONFIG);
    tare_status status = TARE_OK;
    TRY(rule_linear_tensors(v, f));
    for (size_t i = 0; i < f->num_linears; i++)
        if (!f->linears[i].targeted)
            verify_fail(v, 23, f->linears[i].module, "its name in one of the config_groups",
                        "none");
    if (config && config->type == VALUE_MAP)
        TRY(check_ignore(v, f));
done:
    return status;
}
