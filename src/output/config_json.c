/* The output's config.json: the model's, key order kept, with the edits of output_formats.md 1.2.
 */
#include <stdio.h>
#include <string.h>

#include "file/json.h"
#include "output/output_internal.h"

enum { CONFIG_MAX_BYTES = 16 << 20, MAX_EDITS = 13 };

/* Changes to one map: a key without a value is removed. */
typedef struct edit {
    const char *key;
    const value *to;
    bool only_if_present;
} edit;

static const char *torch_name(tare_dtype dtype)
{
    return dtype == TARE_BF16 ? "bfloat16" : dtype == TARE_F16 ? "float16" : "float32";
}

static value string_value(const char *text)
{
    return (value){.type = VALUE_STRING, .text = text, .length = strlen(text)};
}

static const edit *edit_of(const edit *edits, size_t count, const char *key)
{
    for (size_t i = 0; i < count; i++)
        if (strcmp(edits[i].key, key) == 0)
            return &edits[i];
    return NULL;
}

/* A copy of `map` with the edits done; keys that were not there come last. */
static tare_status edit_map(arena *a, const value *map, const edit *edits, size_t count, value *out)
{
    value *keys = arena_alloc_array(a, map->count + count, sizeof *keys);
    value *items = arena_alloc_array(a, map->count + count, sizeof *items);
    if (!keys || !items)
        return TARE_E_MEMORY;
    size_t n = 0;
    for (size_t i = 0; i < map->count; i++) {
        const edit *e = edit_of(edits, count, map->keys[i].text);
        if (e && !e->to)
            continue;
        keys[n] = map->keys[i];
        items[n++] = e ? *e->to : map->items[i];
    }
    for (size_t i = 0; i < count; i++) {
        if (edits[i].only_if_present || !edits[i].to || value_get(map, edits[i].key))
            continue;
        keys[n] = string_value(edits[i].key);
        items[n++] = *edits[i].to;
    }
    *out = *map;
    out->keys = keys;
    out->items = items;
    out->count = n;
    return TARE_OK;
}

/* Does "module.Class" name a file that is copied? A list has one reference for each variant. */
static bool code_is_copied(output *o, const value *reference)
{
    if (reference->type == VALUE_LIST) {
        for (size_t i = 0; i < reference->count; i++)
            if (reference->items[i].type != VALUE_STRING && reference->items[i].type != VALUE_NULL)
                return false;
            else if (reference->items[i].type == VALUE_STRING &&
                     !code_is_copied(o, &reference->items[i]))
                return false;
        return true;
    }
    if (reference->type != VALUE_STRING || strstr(reference->text, "--") ||
        strchr(reference->text, '/'))
        return false;
    char name[256];
    size_t length = strcspn(reference->text, ".");
    if (length == 0 || length > sizeof name - sizeof ".py")
        return false;
    snprintf(name, sizeof name, "%.*s.py", (int)length, reference->text);
    char *path = path_join(o->ctx, o->model_dir, name);
    bool copied = path && !copy_obstacle(path);
    mem_free(o->ctx, path);
    return copied;
}

static bool keep_auto_map(output *o, const value *auto_map)
{
    if (!o->options.copy_code || !o->model_dir || auto_map->type != VALUE_MAP)
        return false;
    for (size_t i = 0; i < auto_map->count; i++)
        if (!code_is_copied(o, &auto_map->items[i]))
            return false;
    return true;
}

/* {"fa_quant_type": "FAQuant"} */
static tare_status attention_quantization(arena *a, const char *key, const char *type, value *out)
{
    value *pair = arena_alloc_array(a, 2, sizeof *pair);
    if (!pair)
        return TARE_E_MEMORY;
    pair[0] = string_value(key);
    pair[1] = string_value(type);
    *out = (value){.type = VALUE_MAP, .keys = &pair[0], .items = &pair[1], .count = 1};
    return TARE_OK;
}

/* What the linears of MTP layers are quantized to, by the naming rule of the whole; SCHEME_FLOAT:
 * there are none. */
static linear_scheme mtp_scheme(const output *o, const value *config)
{
    const value *layers = value_get(config, "num_hidden_layers");
    unsigned schemes = 0;
    for (size_t i = 0; layers && layers->is_integer && i < o->num_units; i++) {
        const output_unit *u = &o->units[i];
        long long layer;
        if (u->kind == UNIT_LINEAR && sscanf(u->name, "model.layers.%lld.", &layer) == 1 &&
            layer >= layers->integer)
            schemes |= 1u << u->linear.scheme;
    }
    return scheme_naming(schemes);
}

/* Has it the keys of MindIE for DeepSeek's models with 4-bit experts? */
static bool has_narrow_experts(const output *o)
{
    return o->options.fa_latent && (o->schemes >> SCHEME_W4A8_DYNAMIC & 1);
}

/* What msModelSlim's service writes for DeepSeek's models with 4-bit experts, whatever attention is
 * but for FA3 (spec/schemes.md 6.2). */
static void add_mindie_keys(const output *o, edit *edits, size_t *n, value texts[3])
{
    static const char *const KEYS[] = {"quantize", "moe_quantize", "mla_quantize"};
    if (!has_narrow_experts(o))
        return;
    texts[0] = string_value("w8a8_dynamic");
    texts[1] = string_value("w4a8_dynamic");
    texts[2] = string_value(o->fa_kept > 0 ? "w8a8" : "w8a8_dynamic");
    for (size_t i = 0; i < 3; i++)
        edits[(*n)++] = (edit){.key = KEYS[i], .to = &texts[i]};
}

/* What MindIE goes by in quantized MTP layers; and that there are none. */
static tare_status add_mtp_keys(output *o, output_folder *f, arena *a, const value *config,
                                edit *edits, size_t *n, value *text)
{
    static const value none = {.type = VALUE_NUMBER, .text = "0", .length = 1, .is_integer = true};
    linear_scheme scheme = mtp_scheme(o, config);
    bool mindie = (f->layout == LAYOUT_SAFE_TENSOR && f->has_files) || has_narrow_experts(o);
    if (o->options.no_mtp)
        edits[(*n)++] = (edit){
            .key = "num_nextn_predict_layers", .to = &none, .only_if_present = true};
    if (!mindie || scheme == SCHEME_FLOAT)
        return TARE_OK;
    char *name = layout_lower_case(a, output_type(o, f->layout, scheme));
    if (!name)
        return TARE_E_MEMORY;
    *text = string_value(name);
    edits[(*n)++] = (edit){.key = "mtp_quantize", .to = text};
    return TARE_OK;
}

static tare_status edit_config(output *o, output_folder *f, arena *a, const value *config,
                               value *out)
{
    value dtype = string_value(torch_name(o->options.num.dtype)), no = {.type = VALUE_BOOL};
    value text_config, type = {0}, quantization, mindie[3], mtp;
    const value *compressed = NULL;
    const value *nested = value_get(config, "text_config");
    const value *auto_map = value_get(config, "auto_map");
    const value *tied = value_get(config, "tie_word_embeddings");
    char *name = layout_lower_case(a, output_type(o, f->layout, o->named_by));
    tare_status status = TARE_OK;
    edit edits[MAX_EDITS], inner[MAX_EDITS];
    size_t n = 0, m;

    TRY(name ? TARE_OK : TARE_E_MEMORY);
    type = string_value(name);
    edits[n++] = (edit){.key = "quantization_config"};
    edits[n++] = (edit){.key = "compression_config"};
    edits[n++] = (edit){.key = "quantization"};
    if (o->options.dtype_given) {
        edits[n++] = (edit){.key = "dtype", .to = &dtype, .only_if_present = true};
        edits[n++] = (edit){.key = "torch_dtype", .to = &dtype};
    }
    if ((o->head_quantized || o->options.untie) &&
        !(tied && tied->type == VALUE_BOOL && !tied->boolean))
        edits[n++] = (edit){.key = "tie_word_embeddings", .to = &no};
    memcpy(inner, edits, sizeof edits);
    m = n;
    for (size_t i = 0; i < m; i++)
        inner[i].only_if_present = true;
    if (f->layout == LAYOUT_COMPRESSED_TENSORS && o->schemes) {
        TRY(output_quantization_config(o, a, &compressed));
        edits[0].to = compressed;
    }
    if (f->layout == LAYOUT_SAFE_TENSOR && f->has_files && (o->fa_kept > 0 || o->kv_cache)) {
        TRY(attention_quantization(a, o->kv_cache ? "kv_quant_type" : "fa_quant_type",
                                   o->kv_cache ? "C8" : "FAQuant", &quantization));
        edits[0].to = &quantization;
    }
    if (f->layout == LAYOUT_SAFE_TENSOR && f->has_files)
        edits[n++] = (edit){.key = "quantize", .to = &type};
    add_mindie_keys(o, edits, &n, mindie);
    TRY(add_mtp_keys(o, f, a, config, edits, &n, &mtp));
    if (auto_map && !keep_auto_map(o, auto_map)) {
        if (!o->options.rehearsed && f == o->folders)
            TARE_WARN(o->ctx, "config.json: auto_map is dropped, the code it names is not copied");
        edits[n++] = (edit){.key = "auto_map"};
    }
    if (nested && nested->type == VALUE_MAP) {
        TRY(edit_map(a, nested, inner, m, &text_config));
        edits[n++] = (edit){.key = "text_config", .to = &text_config};
    }
    TRY(edit_map(a, config, edits, n, out));
done:
    return status;
}

static tare_status read_config(output *o, arena *a, const value **config)
{
    char *path = NULL, *data = NULL;
    const char *text = o->options.config_json;
    size_t length = text ? strlen(text) : 0;
    tare_status status = TARE_OK;

    if (!text) {
        path = path_join(o->ctx, o->model_dir, "config.json");
        TRY(path ? TARE_OK : TARE_E_MEMORY);
        TRY(file_read_all(o->ctx, path, CONFIG_MAX_BYTES, &data, &length));
        text = data;
    }
    TRY(json_parse(o->ctx, a, text, length, path ? path : "config.json", JSON_PYTHON, config));
    if ((*config)->type != VALUE_MAP)
        TRY(TARE_FAIL(o->ctx, TARE_E_MODEL, "%s is not a JSON object",
                      path ? path : "config.json"));
done:
    mem_free(o->ctx, data);
    mem_free(o->ctx, path);
    return status;
}

tare_status output_config_text(output *o, output_folder *f, buffer *out)
{
    const value *config;
    value edited;
    arena a;
    tare_status status = TARE_OK;

    arena_init(&a, o->ctx);
    TRY(read_config(o, &a, &config));
    TRY(edit_config(o, f, &a, config, &edited));
    json_write_value(out, &edited, 2, 0);
    buffer_putc(out, '\n');
    TRY(out->status);
done:
    arena_free(&a);
    return status;
}

tare_status output_stage_config(output *o, output_folder *f)
{
    buffer b;
    tare_status status = TARE_OK;
    buffer_init(&b, o->ctx);
    TRY(output_config_text(o, f, &b));
    TRY(output_stage_text(o, f, "config.json", b.data, b.length));
done:
    buffer_free(&b);
    return status;
}
