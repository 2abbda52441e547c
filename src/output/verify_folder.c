/* Opening one layout of a folder for verification: containers, description, config.json, and the
 * table of its tensors and quantized linears. */
#include <stdio.h>
#include <string.h>

#include "file/json.h"
#include "output/verify_internal.h"

#define JSON_MAX_BYTES ((size_t)512 << 20)

/* A fault of the file is a finding; only what says nothing about the file stops the verification.
 */
static bool is_fault_of_file(tare_status status)
{
    return status == TARE_E_FORMAT || status == TARE_E_IO;
}

/* ---- JSON files ---- */

static tare_status open_json(vfolder *f, const char *name, int rule, json_dialect dialect,
                             const value **out)
{
    tare_context *ctx = f->v->ctx;
    tare_status status = TARE_OK;
    char *path = path_join(ctx, f->dir, name), *data = NULL;
    size_t length;
    *out = NULL;
    TRY(path ? TARE_OK : TARE_E_MEMORY);
    if (!path_exists(path))
        goto done;
    status = file_read_all(ctx, path, JSON_MAX_BYTES, &data, &length);
    if (status == TARE_OK)
        status = json_parse(ctx, &f->arena, data, length, name, dialect, out);
    if (is_fault_of_file(status)) {
        verify_fail(f->v, rule, name, "a JSON object", "%s", tare_last_error(ctx));
        *out = NULL;
        status = TARE_OK;
    } else if (status == TARE_OK && (*out)->type != VALUE_MAP) {
        verify_fail(f->v, rule, name, "a JSON object", "another JSON value");
        *out = NULL;
    }
done:
    mem_free(ctx, data);
    mem_free(ctx, path);
    return status;
}

static bool dtype_from_torch(const value *v, tare_dtype *out)
{
    static const char *const NAMES[] = {"float32", "float16", "bfloat16"};
    static const tare_dtype DTYPES[] = {TARE_F32, TARE_F16, TARE_BF16};
    if (!v || v->type != VALUE_STRING)
        return false;
    const char *name = str_starts_with(v->text, "torch.") ? v->text + 6 : v->text;
    for (int i = 0; i < 3; i++) {
        if (strcmp(name, NAMES[i]) == 0) {
            *out = DTYPES[i];
            return true;
        }
    }
    return false;
}

static tare_status open_config(vfolder *f)
{
    int rule = f->layout == LAYOUT_ASCENDV1 ? 21 : f->layout == LAYOUT_COMPRESSED_TENSORS ? 23 : 22;
    tare_status status = open_json(f, "config.json", rule, JSON_PYTHON, &f->config);
    const value *nested = value_get(f->config, "text_config");
    const value *type = value_get(f->config, "model_type");
    f->dtype_known = dtype_from_torch(value_get(f->config, "torch_dtype"), &f->num.dtype) ||
                     dtype_from_torch(value_get(f->config, "dtype"), &f->num.dtype) ||
                     dtype_from_torch(value_get(nested, "torch_dtype"), &f->num.dtype) ||
                     dtype_from_torch(value_get(nested, "dtype"), &f->num.dtype);
    const architecture *arch = type && type->type == VALUE_STRING ? architecture_find(type->text)
                                                                  : NULL;
    /* else the names of nearly all decoder models */
    model_config_names(arch ? arch : architecture_find("llama"), false, false, &f->graph);
    return status;
}

static tare_status open_description(vfolder *f)
{
    tare_status status = TARE_OK;
    const char *given = f->v->options->json_name;
    for (size_t i = 0; i < f->num_names; i++) {
        const char *name = f->names[i];
        bool plain = strcmp(name, "quant_model_description.json") == 0;
        bool typed = given ? strcmp(name, given) == 0
                           : str_starts_with(name, "quant_model_description_");
        if (f->layout == LAYOUT_ASCENDV1 ? plain : typed)
            f->description_name = name;
    }
    if (!f->description_name)
        return TARE_OK;
    TRY(open_json(f, f->description_name, 3, JSON_STRICT, &f->description));
    if (!f->description)
        goto done;
    const value *type = value_get(f->description, "model_quant_type");
    if (type && type->type == VALUE_STRING)
        f->quant_type = type->text;
    TRY(strmap_reserve(&f->types, f->description->count));
    for (size_t i = 0; i < f->description->count; i++)
        TRY(strmap_put(&f->types, f->description->keys[i].text, f->description->keys[i].length,
                       (uint32_t)i, NULL));
done:
    return status;
}

/* compressed-tensors describes its tensors in config.json. */
static void type_of_compressed(vfolder *f)
{
    const value *format = value_get(value_get(f->config, "quantization_config"), "format");
    if (format && format->type == VALUE_STRING && strcmp(format->text, "pack-quantized") == 0)
        f->quant_type = scheme_of(SCHEME_W8A16)->type;
}

/* ---- weight files ---- */

/* M of "<prefix>-00001-of-0000M.safetensors"; 0 if `name` is no such name. */
static size_t shards_of_name(const char *name, const char *prefix)
{
    size_t length = strlen(prefix);
    unsigned long number, of;
    char again[64];
    if (strncmp(name, prefix, length) != 0 ||
        sscanf(name + length, "-%5lu-of-%5lu.safetensors", &number, &of) != 2)
        return 0;
    snprintf(again, sizeof again, "-%05lu-of-%05lu.safetensors", number, of);
    return number >= 1 && number <= of && strcmp(name + length, again) == 0 ? of : 0;
}

static bool is_member(const vfolder *f, const char *name)
{
    if (f->shards > 0)
        return shards_of_name(name, f->prefix) == f->shards;
    size_t length = strlen(f->prefix);
    return strncmp(name, f->prefix, length) == 0 && strcmp(name + length, ".safetensors") == 0;
}

static tare_status open_weight_files(vfolder *f)
{
    tare_status status = TARE_OK;
    const char *given = f->v->options->safetensors_name;
    if (given && f->layout == LAYOUT_SAFE_TENSOR && str_ends_with(given, ".safetensors"))
        f->prefix = arena_strndup(&f->arena, given, strlen(given) - strlen(".safetensors"));
    else
        f->prefix = layout_weight_prefix(&f->arena, f->layout, f->num.compat, f->quant_type);
    f->file_names = arena_alloc_array(&f->arena, f->num_names, sizeof *f->file_names);
    f->files = arena_calloc(&f->arena, f->num_names, sizeof *f->files);
    TRY(f->prefix && f->file_names && f->files ? TARE_OK : TARE_E_MEMORY);
    for (size_t i = 0; i < f->num_names && f->shards == 0; i++)
        f->shards = shards_of_name(f->names[i], f->prefix);
    for (size_t i = 0; i < f->num_names; i++) {
        if (!is_member(f, f->names[i]))
            continue;
        char *path = path_join(f->v->ctx, f->dir, f->names[i]);
        TRY(path ? TARE_OK : TARE_E_MEMORY);
        status = safetensors_open(f->v->ctx, path, &f->files[f->num_files]);
        mem_free(f->v->ctx, path);
        if (is_fault_of_file(status)) {
            verify_fail(f->v, 1, f->names[i], "a whole safetensors file", "%s",
                        tare_last_error(f->v->ctx));
            f->files[f->num_files] = NULL;
            f->broken = true;
            status = TARE_OK;
            continue;
        }
        TRY(status);
        f->file_names[f->num_files++] = f->names[i];
    }
done:
    return status;
}

static tare_status open_npy_files(vfolder *f)
{
    tare_status status = TARE_OK;
    for (int i = 0; i < NPY_FILES; i++) {
        char *path = path_join(f->v->ctx, f->dir, npy_file_name((npy_file)i));
        TRY(path ? TARE_OK : TARE_E_MEMORY);
        if (path_exists(path))
            status = npy_open(f->v->ctx, path, &f->npy[i]);
        mem_free(f->v->ctx, path);
        if (is_fault_of_file(status)) {
            verify_fail(f->v, 26, npy_file_name((npy_file)i), "a pickled dict of arrays", "%s",
                        tare_last_error(f->v->ctx));
            f->npy[i] = NULL;
            f->broken = true;
            status = TARE_OK;
        }
        TRY(status);
    }
done:
    return status;
}

/* ---- tensors ---- */

static tare_status add_tensor(vfolder *f, const vtensor *t)
{
    bool existed;
    size_t length = strlen(t->info.name);
    tare_status status = TARE_OK;
    TRY(strmap_put(&f->by_name, t->info.name, length, (uint32_t)f->num_tensors, &existed));
    if (existed)
        verify_fail(f->v, 1, t->info.name, "one tensor of this name", "another one");
    else
        f->tensors[f->num_tensors++] = *t;
done:
    return status;
}

static const char *type_of(const vfolder *f, const char *name)
{
    uint32_t index;
    if (!strmap_get(&f->types, name, strlen(name), &index))
        return NULL;
    const value *v = &f->description->items[index];
    return v->type == VALUE_STRING ? v->text : NULL;
}

static tare_status collect_safetensors(vfolder *f)
{
    tare_status status = TARE_OK;
    for (size_t i = 0; i < f->num_files; i++) {
        for (size_t j = 0; j < safetensors_count(f->files[i]); j++) {
            vtensor t = {.info = *safetensors_at(f->files[i], j), .source = i};
            t.type = type_of(f, t.info.name);
            TRY(add_tensor(f, &t));
        }
    }
done:
    return status;
}

/* The safetensors name behind an entry: npy_place() backwards. */
static char *name_of_entry(vfolder *f, npy_file where, const char *key)
{
    bool named = where == NPY_QUANT_WEIGHT && str_ends_with(key, ".bias");
    return arena_printf(&f->arena, "%s%s", key, named ? "" : role_suffix(npy_role(where)));
}

static tare_status collect_npy(vfolder *f)
{
    tare_status status = TARE_OK;
    for (int i = 0; i < NPY_FILES; i++) {
        for (size_t j = 0; f->npy[i] && j < npy_count(f->npy[i]); j++) {
            const npy_entry *e = npy_at(f->npy[i], j);
            vtensor t = {.source = (size_t)i, .entry = e};
            t.info = (tensor_info){.name = name_of_entry(f, (npy_file)i, e->key),
                                   .dtype = e->dtype,
                                   .rank = e->rank,
                                   .offset = e->offset,
                                   .bytes = e->bytes};
            TRY(t.info.name ? TARE_OK : TARE_E_MEMORY);
            memcpy(t.info.shape, e->shape, sizeof t.info.shape);
            TRY(add_tensor(f, &t));
        }
    }
done:
    return status;
}

static tare_status collect_tensors(vfolder *f)
{
    size_t count = 0;
    tare_status status = TARE_OK;
    for (size_t i = 0; i < f->num_files; i++)
        count += safetensors_count(f->files[i]);
    for (int i = 0; i < NPY_FILES; i++)
        count += f->npy[i] ? npy_count(f->npy[i]) : 0;
    f->tensors = arena_alloc_array(&f->arena, count, sizeof *f->tensors);
    TRY(f->tensors ? TARE_OK : TARE_E_MEMORY);
    TRY(strmap_reserve(&f->by_name, count));
    TRY(f->layout == LAYOUT_NUMPY ? collect_npy(f) : collect_safetensors(f));
done:
    return status;
}

/* ---- linears ---- */

/* Does this tensor make its module a quantized one? */
static bool marks_quantized(const vtensor *t, tensor_role role)
{
    if (role == TENSOR_FLOAT || role == TENSOR_BIAS)
        return false;
    if (role != TENSOR_WEIGHT)
        return true;
    if (t->info.dtype == TARE_I8)
        return true;
    return t->type && strcmp(t->type, "FLOAT") != 0 && verify_is_known_type(t->type);
}

static tare_status add_linear(vfolder *f, const char *name, size_t length)
{
    uint32_t index;
    tare_status status = TARE_OK;
    /* norms that outlier suppression wrapped are copies of FLOAT tensors (rule 17) */
    if ((length > 7 && memcmp(name + length - 7, ".module", 7) == 0) ||
        strmap_get(&f->by_module, name, length, &index))
        return TARE_OK;
    TRY(mem_grow(f->v->ctx, (void **)&f->linears, &f->linears_capacity, f->num_linears + 1,
                 sizeof *f->linears));
    vlinear *l = &f->linears[f->num_linears];
    memset(l, 0, sizeof *l);
    l->module = arena_strndup(&f->arena, name, length);
    TRY(l->module ? TARE_OK : TARE_E_MEMORY);
    TRY(strmap_put(&f->by_module, l->module, length, (uint32_t)f->num_linears, NULL));
    f->num_linears++;
done:
    return status;
}

static tare_status collect_linears(vfolder *f)
{
    tare_status status = TARE_OK;
    size_t length;
    uint32_t index;
    for (size_t i = 0; i < f->num_tensors; i++) {
        const vtensor *t = &f->tensors[i];
        if (marks_quantized(t, role_of_name(t->info.name, &length)))
            TRY(add_linear(f, t->info.name, length));
    }
    for (size_t i = 0; i < f->num_tensors; i++) {
        const vtensor *t = &f->tensors[i];
        tensor_role role = role_of_name(t->info.name, &length);
        if (role != TENSOR_FLOAT && strmap_get(&f->by_module, t->info.name, length, &index))
            f->linears[index].parts[role] = t;
    }
done:
    return status;
}

/* No file of compressed-tensors says which tensor has which type: their names do. */
static void name_types(vfolder *f)
{
    size_t length;
    if (f->num_linears == 0)
        f->quant_type = "FLOAT";
    for (size_t i = 0; i < f->num_tensors; i++) {
        vtensor *t = &f->tensors[i];
        tensor_role role = role_of_name(t->info.name, &length);
        bool quantized = role != TENSOR_FLOAT && role != TENSOR_BIAS &&
                         verify_find_linear(f, t->info.name, length);
        t->type = quantized ? f->quant_type : "FLOAT";
    }
}

/* Without a dtype in config.json the first float weight stands in for it. */
static void guess_dtype(vfolder *f)
{
    f->num.dtype = f->dtype_known ? f->num.dtype : TARE_F32;
    for (size_t i = 0; i < f->num_tensors && !f->dtype_known; i++) {
        const tensor_info *t = &f->tensors[i].info;
        if (str_ends_with(t->name, ".weight") && dtype_is_float(t->dtype)) {
            f->num.dtype = t->dtype;
            return;
        }
    }
}

tare_status verify_folder_open(verify *v, layout which, const char *dir, vfolder *out)
{
    tare_status status = TARE_OK;
    *out = (vfolder){.v = v, .layout = which, .quant_type = "W8A8"};
    out->num.compat = v->compat;
    arena_init(&out->arena, v->ctx);
    strmap_init(&out->types, v->ctx);
    strmap_init(&out->by_name, v->ctx);
    strmap_init(&out->by_module, v->ctx);
    out->dir = arena_strndup(&out->arena, dir, strlen(dir));
    TRY(out->dir ? TARE_OK : TARE_E_MEMORY);
    TRY(folder_list(v->ctx, dir, &out->names, &out->num_names));
    TRY(open_config(out));
    if (which == LAYOUT_COMPRESSED_TENSORS) {
        type_of_compressed(out);
        TRY(open_weight_files(out));
    } else if (which != LAYOUT_NUMPY) {
        TRY(open_description(out));
        TRY(open_weight_files(out));
    } else {
        TRY(open_npy_files(out));
    }
    TRY(collect_tensors(out));
    TRY(collect_linears(out));
    guess_dtype(out);
    if (which == LAYOUT_COMPRESSED_TENSORS)
        name_types(out);
    /* The npy layout has no description: its weights are alone if no linear has an input scale. */
    if (which == LAYOUT_NUMPY && out->npy[NPY_WEIGHT_SCALE] && !out->npy[NPY_INPUT_SCALE])
        out->quant_type = scheme_of(SCHEME_W8A16)->type;
done:
    return TARE_WRAP(v->ctx, status, "%s", dir);
}

void verify_folder_close(vfolder *f)
{
    tare_context *ctx = f->v->ctx;
    for (size_t i = 0; i < f->num_files; i++)
        safetensors_close(f->files[i]);
    for (int i = 0; i < NPY_FILES; i++)
        npy_close(f->npy[i]);
    folder_list_free(ctx, f->names, f->num_names);
    mem_free(ctx, f->linears);
    strmap_free(&f->types);
    strmap_free(&f->by_name);
    strmap_free(&f->by_module);
    arena_free(&f->arena);
}
