/* Rules on files and their JSON: 1 containers, 2 shards, 3 description, 20 exclusive schemes, 21
 * and 22 config.json. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "file/json.h"
#include "output/verify_internal.h"

#define INDEX_MAX_BYTES ((size_t)512 << 20)

/* What does not parse was reported when the folder was opened. */
tare_status rule_containers(verify *v, reader_layout *f)
{
    for (size_t i = 0; i < f->num_names; i++) {
        const char *name = f->names[i];
        if (str_starts_with(name, ".tare") || str_ends_with(name, ".tmp"))
            verify_fail(v, 1, name, "no temporary files", "a leftover of an interrupted run");
    }
    return TARE_OK;
}

/* ---- rule 2 ---- */

static bool is_file_of_set(const reader_layout *f, const char *name)
{
    for (size_t i = 0; i < f->num_files; i++)
        if (strcmp(f->file_names[i], name) == 0)
            return true;
    return false;
}

static bool has_name(const reader_layout *f, const char *name)
{
    size_t lo = 0, hi = f->num_names;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        int order = strcmp(f->names[mid], name);
        if (order == 0)
            return true;
        if (order < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return false;
}

static tare_status check_shard_numbers(verify *v, reader_layout *f)
{
    size_t of = f->shards, missing = 0;
    char first[256] = "";
    for (size_t i = 1; i <= (of ? of : 1); i++) {
        char name[256];
        if (of)
            snprintf(name, sizeof name, "%s-%05zu-of-%05zu.safetensors", f->prefix, i, of);
        else
            snprintf(name, sizeof name, "%s.safetensors", f->prefix);
        if (has_name(f, name))
            continue;
        if (missing++ == 0)
            memcpy(first, name, sizeof first);
    }
    if (missing > 0)
        verify_fail(v, 2, first, "every weight file", "%zu missing, this is the first", missing);
    return TARE_OK;
}

/* Engines read every *.safetensors they find. A broken member counts as ours. */
static void check_strangers(verify *v, reader_layout *f, const char *index_name)
{
    for (size_t i = 0; i < f->num_names; i++) {
        const char *name = f->names[i];
        bool index = str_ends_with(name, ".safetensors.index.json");
        if (index && strcmp(name, index_name) != 0)
            verify_fail(v, 2, name, "no other index", "a foreign index");
        if (str_ends_with(name, ".safetensors") && !is_file_of_set(f, name) && !f->broken)
            verify_fail(v, 2, name, "no other weight file", "a file outside the set");
    }
}

static tare_status check_placement(verify *v, reader_layout *f, const char *index_name,
                                   const value *map)
{
    size_t missing = 0;
    strmap keys;
    tare_status status = TARE_OK;
    strmap_init(&keys, f->ctx);
    TRY(strmap_reserve(&keys, map->count));
    for (size_t i = 0; i < map->count; i++) {
        TRY(strmap_put(&keys, map->keys[i].text, map->keys[i].length, (uint32_t)i, NULL));
        if (!reader_find(f, map->keys[i].text))
            verify_fail(v, 2, map->keys[i].text, "a stored tensor", "only an entry of %s",
                        index_name);
    }
    for (size_t i = 0; i < f->num_tensors; i++) {
        const reader_tensor *t = &f->tensors[i];
        uint32_t at;
        bool listed = strmap_get(&keys, t->info.name, strlen(t->info.name), &at);
        const char *to = value_text(listed ? &map->items[at] : NULL);
        if (to && strcmp(to, f->file_names[t->source]) == 0)
            continue;
        if (missing++ < 10)
            verify_fail(v, 2, t->info.name, f->file_names[t->source], "%s in %s",
                        to ? to : "nothing", index_name);
    }
done:
    strmap_free(&keys);
    return status;
}

static tare_status check_index(verify *v, reader_layout *f, const char *index_name)
{
    tare_context *ctx = f->ctx;
    const value *root = NULL;
    uint64_t total = 0;
    arena a;
    tare_status status = TARE_OK;
    char *path = path_join(ctx, f->dir, index_name);

    arena_init(&a, ctx);
    TRY(path ? TARE_OK : TARE_E_MEMORY);
    status = json_parse_file(ctx, &a, path, INDEX_MAX_BYTES, &root);
    if (status == TARE_E_FORMAT || status == TARE_E_IO) {
        verify_fail(v, 2, index_name, "an index", "%s", tare_last_error(ctx));
        status = TARE_OK;
        goto done;
    }
    TRY(status);
    const value *map = value_get(root, "weight_map");
    const value *size = value_get(value_get(root, "metadata"), "total_size");
    if (!map || map->type != VALUE_MAP)
        verify_fail(v, 2, index_name, "a weight_map", "none");
    else
        TRY(check_placement(v, f, index_name, map));
    for (size_t i = 0; i < f->num_tensors; i++)
        total += f->tensors[i].info.bytes;
    if (!size || !size->is_integer || size->integer < 0 || (uint64_t)size->integer != total)
        verify_fail(v, 2, index_name, "the sum of the tensors' bytes",
                    "total_size %s, sum %" PRIu64,
                    size && size->type == VALUE_NUMBER ? size->text : "missing", total);
done:
    mem_free(ctx, path);
    arena_free(&a);
    return status;
}

tare_status rule_shards(verify *v, reader_layout *f)
{
    tare_status status = TARE_OK;
    char *index_name = arena_printf(&f->arena, "%s.safetensors.index.json", f->prefix);
    TRY(index_name ? TARE_OK : TARE_E_MEMORY);
    TRY(check_shard_numbers(v, f));
    check_strangers(v, f, index_name);
    if (has_name(f, index_name)) {
        if (!f->broken)
            TRY(check_index(v, f, index_name));
    } else if (f->shards > 0) {
        verify_fail(v, 2, index_name, "the index of the shards", "no such file");
    }
done:
    return status;
}

/* ---- rule 3 ---- */

bool verify_is_global_key(const char *key)
{
    static const char *const GLOBALS[] = {"version",       "model_quant_type", "group_size",
                                          "metadata",      "optional",         "kv_cache_type",
                                          "kv_quant_type", "fa_quant_type"};
    for (size_t i = 0; i < sizeof GLOBALS / sizeof *GLOBALS; i++)
        if (strcmp(GLOBALS[i], key) == 0)
            return true;
    return false;
}

/* The parser has bounded the depth. */
static bool has_null(const value *v)
{
    if (v->type == VALUE_NULL)
        return true;
    for (size_t i = 0; i < v->count && (v->type == VALUE_LIST || v->type == VALUE_MAP); i++)
        if (has_null(&v->items[i]))
            return true;
    return false;
}

static void check_description_values(verify *v, reader_layout *f)
{
    const value *d = f->description;
    for (size_t i = 0; i < d->count; i++) {
        const char *key = d->keys[i].text;
        if (has_null(&d->items[i]))
            verify_fail(v, 3, key, "no null anywhere in the description", "null");
        else if (d->items[i].type != VALUE_STRING && !verify_is_global_key(key))
            verify_fail(v, 3, key, "a string", "another value");
    }
}

static void check_globals(verify *v, reader_layout *f)
{
    const value *version = value_get(f->description, "version");
    const value *group = value_get(f->description, "group_size");
    const value *type = value_get(f->description, "model_quant_type");
    bool ascend = f->layout == LAYOUT_ASCENDV1;
    if (!value_text(type))
        verify_fail(v, 3, "model_quant_type", "a string", type ? "another value" : "no such key");
    if (ascend && !value_is(version, "1.0.0"))
        verify_fail(v, 3, "version", "\"1.0.0\"", "%s%s",
                    value_text(version) ? version->text : "no string",
                    version ? "" : " (no such key)");
    if (!ascend && version)
        verify_fail(v, 3, "version", "no such key in this layout", "present");
    if (ascend && !f->num.compat && (!group || !group->is_integer || group->integer < 0))
        verify_fail(v, 3, "group_size", "an integer", group ? "another value" : "no such key");
}

tare_status rule_description(verify *v, reader_layout *f)
{
    const char *given = v->options->json_name,
               *expected = given && f->layout == LAYOUT_SAFE_TENSOR
                               ? given
                               : layout_description_name(&f->arena, f->layout, f->quant_type);
    if (!expected)
        return TARE_E_MEMORY;
    if (!f->description_name) {
        verify_fail(v, 3, expected, "the description", "no such file");
        return TARE_OK;
    }
    for (size_t i = 0; i < f->num_names; i++)
        if (str_starts_with(f->names[i], "quant_model_description") &&
            strcmp(f->names[i], f->description_name) != 0)
            verify_fail(v, 3, f->names[i], "exactly one description", "another one, %s",
                        f->description_name);
    if (!f->description)
        return TARE_OK;
    if (strcmp(expected, f->description_name) != 0)
        verify_fail(v, 3, f->description_name, expected, "this name");
    check_description_values(v, f);
    check_globals(v, f);
    return TARE_OK;
}

/* ---- rules 20 to 22 ---- */

tare_status rule_kv_or_fa(verify *v, reader_layout *f)
{
    const value *d = f->description;
    bool kv = value_get(d, "kv_cache_type") || value_get(d, "kv_quant_type");
    bool fa = value_get(d, "fa_quant_type") != NULL;
    for (size_t i = 0; i < f->num_tensors; i++) {
        const char *type = f->tensors[i].type;
        kv |= type && strcmp(type, "C8") == 0;
        fa |= type && strcmp(type, "FAQuant") == 0;
    }
    if (kv && fa)
        verify_fail(v, 20, "kv_cache_type", "KV cache or attention quantization, not both", "both");
    return TARE_OK;
}

static void check_no_quantization_config(verify *v, const value *map, const char *where)
{
    static const char *const KEYS[] = {"quantization_config", "compression_config"};
    for (int i = 0; i < 2; i++)
        if (value_get(map, KEYS[i]))
            verify_fail(v, 21, KEYS[i], "absent: engines would ignore the description", "in %s",
                        where);
}

tare_status rule_config_ascend(verify *v, reader_layout *f)
{
    const value *nested = value_get(f->config, "text_config");
    if (!f->config) {
        verify_fail(v, 21, "config.json", "the model's configuration", "no such JSON object");
        return TARE_OK;
    }
    check_no_quantization_config(v, f->config, "config.json");
    check_no_quantization_config(v, nested, "text_config of config.json");
    if (!f->dtype_known)
        verify_fail(v, 21, "torch_dtype", "bfloat16 or float16", "no dtype that is known");
    else if (f->num.dtype == TARE_F32)
        verify_warn(v, 21, "torch_dtype", "bfloat16 or float16",
                    "float32: it must be served as float16");
    if (!value_text(value_get(f->config, "model_type")))
        verify_fail(v, 21, "model_type", "a string", "no such key");
    return TARE_OK;
}

tare_status rule_config_quantize(verify *v, reader_layout *f)
{
    const char *quantize = value_text(value_get(f->config, "quantize"));
    char *expected = layout_lower_case(&f->arena, f->quant_type);
    if (!expected)
        return TARE_E_MEMORY;
    if (!quantize || strcmp(quantize, expected) != 0)
        verify_fail(v, 22, "quantize", expected, "%s",
                    quantize ? quantize : "no such key in config.json");
    return TARE_OK;
}
