/* Which layouts an output has: recognised by the names of its files. */
#include "output/reader.h"

#include <string.h>

#include "file/json.h"
#include "output/reader_internal.h"

enum { CONFIG_MAX_BYTES = 16 << 20 };

/* A checkpoint is tare's if tare left its record beside it, and anybody's compressed-tensors if
 * config.json says so. */
static tare_status is_compressed(tare_context *ctx, const char *dir, char *const *names,
                                 size_t count, bool *out)
{
    const value *config = NULL;
    bool weights = false;
    tare_status status = TARE_OK;
    char *path = NULL;
    arena a;
    arena_init(&a, ctx);
    *out = false;
    for (size_t i = 0; i < count; i++) {
        weights |= layout_is_model_file(names[i]);
        *out |= strcmp(names[i], "tare_run.json") == 0;
    }
    *out &= weights;
    if (*out || !weights)
        goto done;
    path = path_join(ctx, dir, "config.json");
    TRY(path ? TARE_OK : TARE_E_MEMORY);
    status = json_parse_file(ctx, &a, path, CONFIG_MAX_BYTES, &config);
    if (status == TARE_E_FORMAT || status == TARE_E_IO)
        status = TARE_OK; /* it says nothing */
    *out = value_is(value_get(value_get(config, "quantization_config"), "quant_method"),
                    "compressed-tensors");
done:
    mem_free(ctx, path);
    arena_free(&a);
    return status;
}

/* The name of the safe_tensor layout's description or only weight file as the options give it. */
static bool is_given_name(const reader *r, const char *name)
{
    const reader_options *o = &r->options;
    return (o->json_name && strcmp(name, o->json_name) == 0) ||
           (o->safetensors_name && strcmp(name, o->safetensors_name) == 0);
}

/* Layouts whose files are among the names, as bits; compressed-tensors has no names of its
 * own. */
static unsigned recognise(const reader *r, char *const *names, size_t count)
{
    bool ascend = false, safe = false, ascend_weights = false, safe_weights = false;
    unsigned found = 0;
    for (size_t i = 0; i < count; i++) {
        const char *name = names[i];
        ascend |= strcmp(name, "quant_model_description.json") == 0;
        safe |= str_starts_with(name, "quant_model_description_") || is_given_name(r, name);
        ascend_weights |= str_starts_with(name, "quant_model_weights");
        safe_weights |= str_starts_with(name, "quant_model_weight_");
        for (int k = 0; k < NPY_FILES; k++)
            if (strcmp(name, npy_file_name((npy_file)k)) == 0)
                found |= SAVE_NUMPY;
    }
    if (ascend || (!safe && ascend_weights))
        found |= SAVE_ASCENDV1;
    else if (safe || safe_weights)
        found |= SAVE_SAFE_TENSOR;
    return found;
}

static tare_status open_layouts(reader *r, const char *dir)
{
    char **names = NULL;
    size_t count = 0;
    tare_status status = TARE_OK;

    TRY(folder_list(r->ctx, dir, &names, &count));
    unsigned found = recognise(r, names, count);
    if (!found) {
        bool compressed;
        TRY(is_compressed(r->ctx, dir, names, count, &compressed));
        found = compressed ? SAVE_COMPRESSED_TENSORS : 0;
    }
    r->found |= found;
    for (int which = 0; which < SAVE_TYPES; which++)
        if ((found >> which & 1) && r->num_layouts < READER_LAYOUTS)
            TRY(reader_layout_open(r, (layout)which, dir, NULL, &r->layouts[r->num_layouts++]));
done:
    folder_list_free(r->ctx, names, count);
    return status;
}

tare_status reader_open(tare_context *ctx, const char *dir, const reader_options *options,
                        reader *r)
{
    tare_status status = TARE_OK;
    *r = (reader){.ctx = ctx, .options = *options};
    arena_init(&r->arena, ctx);
    TRY(open_layouts(r, dir));
    bool inside = r->found == 0;
    for (int i = 0; i < SAVE_TYPES && inside; i++) {
        char *inner = arena_printf(&r->arena, "%s/%s", dir, save_type_of((layout)i)->folder);
        TRY(inner ? TARE_OK : TARE_E_MEMORY);
        if (save_types_beside((layout)i) && path_is_folder(inner))
            TRY(open_layouts(r, inner));
    }
done:
    return status;
}

tare_status reader_open_plan(tare_context *ctx, const reader_plan *plan,
                             const reader_options *options, reader *r)
{
    *r = (reader){.ctx = ctx, .options = *options, .found = 1u << plan->layout, .num_layouts = 1};
    arena_init(&r->arena, ctx);
    return reader_layout_open(r, plan->layout, "", plan, &r->layouts[0]);
}

void reader_close(reader *r)
{
    for (size_t i = 0; i < r->num_layouts; i++)
        reader_layout_close(&r->layouts[i]);
    arena_free(&r->arena);
    r->num_layouts = 0;
}
