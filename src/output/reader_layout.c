/* Opening one layout of a folder: containers, description, config.json, and the table of its
 * tensors. */
#include <stdio.h>
#include <string.h>

#include "file/json.h"
#include "output/reader_internal.h"

#define JSON_MAX_BYTES ((size_t)512 << 20)

/* Only what says nothing about the file stops the reading. */
static bool is_fault_of_file(tare_status status)
{
    return status == TARE_E_FORMAT || status == TARE_E_IO;
}

static void report(const reader_layout *f, reader_fault fault, const char *name,
                   const char *expected, const char *found)
{
    f->r->faults++;
    if (f->r->options.fault)
        f->r->options.fault(f->r->options.user, fault, f->layout, name, expected, found);
}

/* ---- JSON files ---- */

/* *data stays NULL if there is no such file. */
static tare_status read_json(reader_layout *f, const char *name, char **data, size_t *length)
{
    tare_status status = TARE_OK;
    char *path = path_join(f->ctx, f->dir, name);
    TRY(path ? TARE_OK : TARE_E_MEMORY);
    if (path_exists(path))
        TRY(file_read_all(f->ctx, path, JSON_MAX_BYTES, data, length));
done:
    mem_free(f->ctx, path);
    return status;
}

static tare_status open_json(reader_layout *f, const char *name, reader_fault fault,
                             json_dialect dialect, const value **out)
{
    tare_context *ctx = f->ctx;
    tare_status status = TARE_OK;
    char *data = NULL;
    const char *text = NULL;
    size_t length = 0;
    *out = NULL;
    if (f->plan) {
        text = strcmp(name, "config.json") == 0 ? f->plan->config : f->plan->description;
        length = strlen(text);
    } else {
        status = read_json(f, name, &data, &length);
        text = data;
    }
    if (status == TARE_OK && !text)
        return TARE_OK;
    if (status == TARE_OK)
        status = json_parse(ctx, &f->arena, text, length, name, dialect, out);
    if (is_fault_of_file(status)) {
        report(f, fault, name, "a JSON object", tare_last_error(ctx));
        *out = NULL;
        status = TARE_OK;
    } else if (status == TARE_OK && (*out)->type != VALUE_MAP) {
        report(f, fault, name, "a JSON object", "another JSON value");
        *out = NULL;
    }
    mem_free(ctx, data);
    return status;
}

static bool dtype_from_torch(const value *v, tare_dtype *out)
{
    const char *name = value_text(v);
    return name && torch_dtype_find(str_starts_with(name, "torch.") ? name + 6 : name, out);
}

bool reader_has_one_query(const reader_layout *f)
{
    const value *rank = value_get(f->config, "q_lora_rank");
    return rank && rank->type == VALUE_NULL;
}

static tare_status open_config(reader_layout *f)
{
    tare_status status = open_json(f, "config.json", FAULT_CONFIG, JSON_PYTHON, &f->config);
    const value *nested = value_get(f->config, "text_config");
    const char *type = value_text(value_get(f->config, "model_type"));
    f->dtype_known = dtype_from_torch(value_get(f->config, "torch_dtype"), &f->num.dtype) ||
                     dtype_from_torch(value_get(f->config, "dtype"), &f->num.dtype) ||
                     dtype_from_torch(value_get(nested, "torch_dtype"), &f->num.dtype) ||
                     dtype_from_torch(value_get(nested, "dtype"), &f->num.dtype);
    f->arch = type ? architecture_find(type) : NULL;
    /* else the names of nearly all decoder models */
    model_config_names(f->arch ? f->arch : architecture_find("llama"),
                       &(config_flags){.one_query = reader_has_one_query(f)}, &f->graph);
    return status;
}

static tare_status open_description(reader_layout *f)
{
    tare_status status = TARE_OK;
    const char *given = f->r->options.json_name;
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
    TRY(open_json(f, f->description_name, FAULT_DESCRIPTION, JSON_STRICT, &f->description));
    if (!f->description)
        goto done;
    const char *type = value_text(value_get(f->description, "model_quant_type"));
    f->quant_type = type ? type : f->quant_type;
    TRY(strmap_reserve(&f->types, f->description->count));
    for (size_t i = 0; i < f->description->count; i++)
        TRY(strmap_put(&f->types, f->description->keys[i].text, f->description->keys[i].length,
                       (uint32_t)i, NULL));
done:
    return status;
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

static bool is_member(const reader_layout *f, const char *name)
{
    if (f->shards > 0)
        return shards_of_name(name, f->prefix) == f->shards;
    size_t length = strlen(f->prefix);
    return strncmp(name, f->prefix, length) == 0 && strcmp(name + length, ".safetensors") == 0;
}

/* Of an ascendv1 layout without weight files of its own name: what stands before .safetensors in
 * the name of the only other index, or else of the only other file. NULL: there is none. */
static const char *other_weight_name(const reader_layout *f, const char *end)
{
    const char *found = NULL;
    for (size_t i = 0; i < f->num_names; i++) {
        if (!str_ends_with(f->names[i], end))
            continue;
        if (found)
            return NULL;
        found = f->names[i];
    }
    return found;
}

static bool has_weight_file(const reader_layout *f, const char *prefix)
{
    for (size_t i = 0; i < f->num_names; i++)
        if (str_starts_with(f->names[i], prefix))
            return true;
    return false;
}

static const char *weight_prefix(reader_layout *f)
{
    const char *end = ".safetensors", *given = f->r->options.safetensors_name;
    bool nameable = f->layout == LAYOUT_SAFE_TENSOR || f->layout == LAYOUT_ASCENDV1;
    const char *own = layout_weight_prefix(&f->arena, f->layout, f->num.compat, f->quant_type);
    if (!given && own && f->layout == LAYOUT_ASCENDV1 && !has_weight_file(f, own)) {
        given = other_weight_name(f, ".safetensors.index.json");
        given = given ? given : other_weight_name(f, end);
    }
    const char *stop = given && nameable ? strstr(given, end) : NULL;
    return stop ? arena_strndup(&f->arena, given, (size_t)(stop - given)) : own;
}

static tare_status open_weight_files(reader_layout *f)
{
    tare_status status = TARE_OK;
    f->prefix = weight_prefix(f);
    f->file_names = arena_alloc_array(&f->arena, f->num_names, sizeof *f->file_names);
    f->files = arena_calloc(&f->arena, f->num_names, sizeof *f->files);
    TRY(f->prefix && f->file_names && f->files ? TARE_OK : TARE_E_MEMORY);
    if (f->plan)
        goto done;
    for (size_t i = 0; i < f->num_names && f->shards == 0; i++)
        f->shards = shards_of_name(f->names[i], f->prefix);
    for (size_t i = 0; i < f->num_names; i++) {
        if (!is_member(f, f->names[i]))
            continue;
        char *path = path_join(f->ctx, f->dir, f->names[i]);
        TRY(path ? TARE_OK : TARE_E_MEMORY);
        status = safetensors_open(f->ctx, path, &f->files[f->num_files]);
        mem_free(f->ctx, path);
        if (is_fault_of_file(status)) {
            report(f, FAULT_WEIGHTS, f->names[i], "a whole safetensors file",
                   tare_last_error(f->ctx));
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

static tare_status open_npy_files(reader_layout *f)
{
    tare_status status = TARE_OK;
    for (int i = 0; i < NPY_FILES; i++) {
        char *path = path_join(f->ctx, f->dir, npy_file_name((npy_file)i));
        TRY(path ? TARE_OK : TARE_E_MEMORY);
        if (path_exists(path))
            status = npy_open(f->ctx, path, &f->npy[i]);
        mem_free(f->ctx, path);
        if (is_fault_of_file(status)) {
            report(f, FAULT_NPY, npy_file_name((npy_file)i), "a pickled dict of arrays",
                   tare_last_error(f->ctx));
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

static tare_status add_tensor(reader_layout *f, const reader_tensor *t)
{
    bool existed;
    size_t length = strlen(t->info.name);
    tare_status status = TARE_OK;
    TRY(strmap_put(&f->by_name, t->info.name, length, (uint32_t)f->num_tensors, &existed));
    if (existed)
        report(f, FAULT_TWICE, t->info.name, "one tensor of this name", "another one");
    else
        f->tensors[f->num_tensors++] = *t;
done:
    return status;
}

static const char *type_of(const reader_layout *f, const char *name)
{
    uint32_t index;
    if (!strmap_get(&f->types, name, strlen(name), &index))
        return NULL;
    return value_text(&f->description->items[index]);
}

static tare_status collect_safetensors(reader_layout *f)
{
    tare_status status = TARE_OK;
    for (size_t i = 0; f->plan && i < f->plan->num_tensors; i++) {
        reader_tensor t = {0};
        const tensor_info *info = f->plan->tensor(f->plan->user, i, &t.type);
        if (!info)
            continue;
        t.info = *info;
        TRY(add_tensor(f, &t));
    }
    for (size_t i = 0; i < f->num_files; i++) {
        for (size_t j = 0; j < safetensors_count(f->files[i]); j++) {
            reader_tensor t = {.info = *safetensors_at(f->files[i], j), .source = i};
            t.type = type_of(f, t.info.name);
            TRY(add_tensor(f, &t));
        }
    }
done:
    return status;
}

/* The safetensors name behind an entry: npy_place() backwards. */
static char *name_of_entry(reader_layout *f, npy_file where, const char *key)
{
    bool named = where == NPY_QUANT_WEIGHT && str_ends_with(key, ".bias");
    return arena_printf(&f->arena, "%s%s", key, named ? "" : role_suffix(npy_role(where)));
}

static tare_status collect_npy(reader_layout *f)
{
    tare_status status = TARE_OK;
    for (int i = 0; i < NPY_FILES; i++) {
        for (size_t j = 0; f->npy[i] && j < npy_count(f->npy[i]); j++) {
            const npy_entry *e = npy_at(f->npy[i], j);
            reader_tensor t = {.source = (size_t)i, .entry = e};
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

static tare_status collect_tensors(reader_layout *f)
{
    size_t count = f->plan ? f->plan->num_tensors : 0;
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

/* Without a dtype in config.json the first float weight stands in for it. */
static void guess_dtype(reader_layout *f)
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

/* The names that rules look for. */
static tare_status list_names(reader_layout *f)
{
    const reader_plan *plan = f->plan;
    if (!plan)
        return folder_list(f->ctx, f->dir, &f->names, &f->num_names);
    f->names = mem_calloc(f->ctx, 1, sizeof *f->names);
    if (!f->names)
        return TARE_E_MEMORY;
    if (!plan->description_name)
        return TARE_OK;
    f->names[0] = mem_strdup(f->ctx, plan->description_name);
    f->num_names = f->names[0] != NULL;
    return f->names[0] ? TARE_OK : TARE_E_MEMORY;
}

tare_status reader_layout_open(reader *r, layout which, const char *dir, const reader_plan *plan,
                               reader_layout *out)
{
    tare_status status = TARE_OK;
    *out = (reader_layout){
        .r = r, .ctx = r->ctx, .plan = plan, .layout = which, .quant_type = "W8A8"};
    out->num.compat = r->options.compat;
    arena_init(&out->arena, r->ctx);
    strmap_init(&out->types, r->ctx);
    strmap_init(&out->by_name, r->ctx);
    strmap_init(&out->by_module, r->ctx);
    out->dir = arena_strndup(&out->arena, dir, strlen(dir));
    TRY(out->dir ? TARE_OK : TARE_E_MEMORY);
    TRY(list_names(out));
    TRY(open_config(out));
    if (which != LAYOUT_NUMPY && which != LAYOUT_COMPRESSED_TENSORS)
        TRY(open_description(out));
    if (!plan)
        TRY(which == LAYOUT_NUMPY ? open_npy_files(out) : open_weight_files(out));
    TRY(collect_tensors(out));
    guess_dtype(out);
    TRY(reader_collect_linears(out));
done:
    return plan ? status : TARE_WRAP(r->ctx, status, "%s", dir);
}

void reader_layout_close(reader_layout *f)
{
    tare_context *ctx = f->ctx;
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
