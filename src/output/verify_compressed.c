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
static const demand ACTIVATIONS[] = {
    {"num_bits", VALUE_NUMBER, "8", false},    {"type", VALUE_STRING, "int", false},
    {"symmetric", VALUE_BOOL, "false", false}, {"strategy", VALUE_STRING, "tensor", false},
    {"dynamic", VALUE_BOOL, "false", false},   {"zp_dtype", VALUE_STRING, "torch.int8", false},
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

static void check_text(vfolder *f, const value *map, const char *where, const demand *d)
{
    char name[128];
    const value *v = value_get(map, d->key);
    if (!v && d->may_be_absent)
        return;
    if (v && v->type == d->type && strcmp(text_of(v), d->text) == 0)
        return;
    snprintf(name, sizeof name, "%s.%s", where, d->key);
    verify_fail(f->v, 23, name, d->text, "%s", text_of(v));
}

static void check_map(vfolder *f, const value *map, const char *where, const demand *demands,
                      size_t count)
{
    if (!map || map->type != VALUE_MAP) {
        verify_fail(f->v, 23, where, "a map", "%s", text_of(map));
        return;
    }
    for (size_t i = 0; i < count; i++)
        check_text(f, map, where, &demands[i]);
}

static bool is_only_item(const value *list, const char *text)
{
    return list && list->type == VALUE_LIST && list->count == 1 &&
           list->items[0].type == VALUE_STRING && strcmp(list->items[0].text, text) == 0;
}

/* The one group of linears that share a scheme. */
static void check_group(vfolder *f, const value *groups, const demand *format)
{
    bool alone = strcmp(format->text, "pack-quantized") == 0;
    bool single = groups && groups->type == VALUE_MAP && groups->count == 1;
    const value *group = single ? &groups->items[0] : NULL;
    const value *outputs = value_get(group, "output_activations");
    const value *inputs = value_get(group, "input_activations");
    if (!single) {
        verify_fail(f->v, 23, CONFIG ".config_groups", "a map with one group", "%s",
                    groups && groups->type == VALUE_MAP ? "another number" : text_of(groups));
        return;
    }
    check_map(f, group, CONFIG ".config_groups", format, 1);
    if (!is_only_item(value_get(group, "targets"), "Linear"))
        verify_fail(f->v, 23, CONFIG ".config_groups.targets", "[\"Linear\"]", "%s",
                    text_of(value_get(group, "targets")));
    if (outputs && outputs->type != VALUE_NULL)
        verify_fail(f->v, 23, CONFIG ".config_groups.output_activations", "null", "%s",
                    text_of(outputs));
    check_map(f, value_get(group, "weights"), CONFIG ".weights", WEIGHTS, COUNT(WEIGHTS));
    if (!alone)
        check_map(f, inputs, CONFIG ".input_activations", ACTIVATIONS, COUNT(ACTIVATIONS));
    else if (inputs && inputs->type != VALUE_NULL)
        verify_fail(f->v, 23, CONFIG ".input_activations", "null: weights alone are packed", "%s",
                    text_of(inputs));
}

/* Sparsity and rotations, which need tensors of their own. */
static void check_empty(vfolder *f, const value *config, const char *key)
{
    const value *v = value_get(config, key);
    char name[128];
    if (!v || v->type == VALUE_NULL || (v->type == VALUE_MAP && v->count == 0))
        return;
    snprintf(name, sizeof name, CONFIG ".%s", key);
    verify_fail(f->v, 23, name, "{}", "%s", text_of(v));
}

tare_status rule_compressed_config(vfolder *f)
{
    const value *config = value_get(f->config, CONFIG);
    const value *format = value_get(config, "format");
    bool packed = format && format->type == VALUE_STRING &&
                  strcmp(format->text, "pack-quantized") == 0;
    if (!f->config) {
        verify_fail(f->v, 23, "config.json", "the model's configuration", "no such JSON object");
        return TARE_OK;
    }
    if (!config && f->num_linears == 0) /* a float checkpoint: nothing was quantized */
        return TARE_OK;
    check_map(f, config, CONFIG, TOP, COUNT(TOP));
    if (!config || config->type != VALUE_MAP)
        return TARE_OK;
    const demand named = {"format", VALUE_STRING, packed ? "pack-quantized" : "int-quantized",
                          false};
    const demand repeated = {"format", VALUE_STRING, named.text, true};
    check_text(f, config, CONFIG, &named);
    check_empty(f, config, "sparsity_config");
    check_empty(f, config, "transform_config");
    check_group(f, value_get(config, "config_groups"), &repeated);
    return TARE_OK;
}

/* ---- with tensors ---- */

static const char HEAD[] = "lm_head";

/* Is there, or (as tied heads) need there not be, a FLOAT weight of this name? */
static bool is_float_linear(const vfolder *f, const char *module)
{
    char name[1024];
    snprintf(name, sizeof name, "%s.weight", module);
    const vtensor *t = verify_find(f, name);
    return t ? t->info.rank == 2 : strcmp(module, HEAD) == 0;
}

static tare_status check_ignored(vfolder *f, const value *ignore, strmap *names, bool *patterns)
{
    tare_status status = TARE_OK;
    for (size_t i = 0; i < ignore->count; i++) {
        const value *name = &ignore->items[i];
        if (name->type != VALUE_STRING) {
            verify_fail(f->v, 23, CONFIG ".ignore", "names of linears", "%s", text_of(name));
            continue;
        }
        TRY(strmap_put(names, name->text, name->length, (uint32_t)i, NULL));
        if (str_starts_with(name->text, "re:")) {
            verify_warn(f->v, 23, name->text, "names of linears",
                        "a pattern: what it covers is not checked");
            *patterns = true;
        } else if (verify_find_linear(f, name->text, name->length)) {
            verify_fail(f->v, 23, name->text, "FLOAT linears in " CONFIG ".ignore",
                        "a quantized one");
        } else if (!is_float_linear(f, name->text)) {
            verify_fail(f->v, 23, name->text, "FLOAT linears in " CONFIG ".ignore",
                        "no linear of this name");
        }
    }
done:
    return status;
}

static void expect_ignored(vfolder *f, const strmap *names, const char *module, size_t length)
{
    char name[1024];
    if (strmap_get(names, module, length, &(uint32_t){0}))
        return;
    snprintf(name, sizeof name, "%.*s", (int)length, module);
    verify_fail(f->v, 23, name, "its name in " CONFIG ".ignore, as it is FLOAT", "none");
}

static tare_status check_ignore(vfolder *f)
{
    const value *ignore = value_get(value_get(f->config, CONFIG), "ignore");
    bool patterns = false;
    strmap names;
    size_t length;
    tare_status status = TARE_OK;
    strmap_init(&names, f->v->ctx);
    if (!ignore || ignore->type != VALUE_LIST) {
        verify_fail(f->v, 23, CONFIG ".ignore", "a list of names", "%s", text_of(ignore));
        goto done;
    }
    TRY(check_ignored(f, ignore, &names, &patterns));
    for (size_t i = 0; i < f->num_tensors && !patterns; i++) {
        const char *name = f->tensors[i].info.name;
        if (role_of_name(name, &length) == TENSOR_WEIGHT && !verify_find_linear(f, name, length) &&
            graph_linear_of(&f->graph, name, length))
            expect_ignored(f, &names, name, length);
    }
    if (!patterns && !verify_find_linear(f, HEAD, strlen(HEAD)))
        expect_ignored(f, &names, HEAD, strlen(HEAD));
done:
    strmap_free(&names);
    return status;
}

tare_status rule_compressed_linears(vfolder *f)
{
    const char *target = f->v->options->target;
    const value *config = value_get(f->config, CONFIG);
    tare_status status = TARE_OK;
    TRY(rule_linear_tensors(f));
    if (config && config->type == VALUE_MAP)
        TRY(check_ignore(f));
    if (target && strcmp(target, "vllm-ascend") == 0 && f->num_linears > 0)
        verify_warn(f->v, 23, CONFIG ".input_activations",
                    "symmetric or dynamic activations, as this engine needs",
                    "%s: it loads ascendv1 instead",
                    strcmp(f->quant_type, scheme_of(SCHEME_W8A16)->type) == 0
                        ? "weights alone"
                        : "an asymmetric scale for the tensor");
done:
    return status;
}
