/* Computing now and saving later, as often as one likes: the run's output is kept on a tape
 * (output/tape.h), from which tare_save writes what tare_quantize would have written. Its
 * tare_run.json too: what the save types change in it is put in there, the recipe and its digest.
 */
#include <string.h>

#include "base/sized.h"
#include "output/copy_files.h"
#include "pipeline/job.h"

struct tare_recording {
    tare_context *ctx;
    arena arena;
    output_tape *tape;
    tare_recipe recipe; /* in the arena */
    char *run_json;
    record_places places; /* in it */
};

output_tape *recording_tape(tare_recording *recording)
{
    return recording ? recording->tape : NULL;
}

tare_status recording_note(run *r, const char *run_json, const record_places *places)
{
    tare_recording *k = r->env->recording;
    tare_status status = TARE_OK;
    TRY(recipe_copy(r->env->recipe, &k->arena, &k->recipe));
    k->run_json = arena_strndup(&k->arena, run_json, strlen(run_json));
    TRY(k->run_json ? TARE_OK : TARE_E_MEMORY);
    k->places = *places;
done:
    return status;
}

tare_status tare_record(tare_context *ctx, const tare_quantize_options *options,
                        tare_recording **out, tare_quantize_result *result)
{
    tare_recording *k = NULL;
    tare_quantize_options o;
    *out = NULL;
    tare_status status = take_options(ctx, options, &o);
    if (status == TARE_OK && !o.scratch_dir)
        status = TARE_FAIL(ctx, TARE_E_USAGE, "a recording needs a folder for scratch files");
    if (status != TARE_OK)
        return status;
    if (!(k = mem_calloc(ctx, 1, sizeof *k)))
        return TARE_E_MEMORY;
    k->ctx = ctx;
    arena_init(&k->arena, ctx);
    TRY(output_tape_create(ctx, o.scratch_dir, &k->tape));
    TRY(quantize(ctx, &o, k, result));
    *out = k;
    k = NULL;
done:
    tare_recording_free(k);
    return status;
}

void tare_recording_free(tare_recording *k)
{
    if (!k)
        return;
    output_tape_free(k->tape);
    arena_free(&k->arena);
    mem_free(k->ctx, k);
}

/* ---- saving ---- */

void tare_save_options_init_sized(tare_save_options *options, size_t size)
{
    static const tare_save_options defaults = {.part_file_size = -1, .verify = true};
    sized_init(options, size, &defaults, sizeof defaults);
}

/* A name of its own in the folder, beside what else is written there. */
static tare_status check_name(tare_context *ctx, const char *key, const char *name,
                              const char *ending)
{
    enum { LONGEST = 200 };
    if (!name)
        return TARE_OK;
    bool plain = strlen(name) > strlen(ending) && strlen(name) < LONGEST && name[0] != '.' &&
                 !strchr(name, '/') && str_ends_with(name, ending);
    if (!plain)
        return TARE_FAIL(ctx, TARE_E_USAGE, "%s \"%s\" must be a file name that ends in %s", key,
                         name, ending);
    if (strcmp(name, "config.json") == 0 || strcmp(name, "tare_run.json") == 0 ||
        str_ends_with(name, ".index.json") || copy_wanted(name, false))
        return TARE_FAIL(ctx, TARE_E_USAGE, "%s \"%s\" is the name of another file of the output",
                         key, name);
    return TARE_OK;
}

static tare_status check_save(const tare_recording *k, const tare_save_options *o)
{
    tare_status status = TARE_OK;
    if (!o->out)
        return TARE_FAIL(k->ctx, TARE_E_USAGE, "an output folder is needed");
    if (o->part_file_size < -1)
        return TARE_FAIL(k->ctx, TARE_E_USAGE,
                         "part_file_size %d is not possible: GiB, 0 for one file, -1 for the save "
                         "type's default",
                         o->part_file_size);
    TRY(check_name(k->ctx, "safetensors_name", o->safetensors_name, ".safetensors"));
    TRY(check_name(k->ctx, "json_name", o->json_name, ".json"));
done:
    return status;
}

/* tare_run.json of a run with `recipe`, which differs from the recorded one in its save types. */
static tare_status run_json_with(const tare_recording *k, const tare_recipe *recipe, buffer *out)
{
    const char *text = k->run_json;
    const text_range *first = &k->places.recipe, *second = &k->places.fingerprint;
    buffer_append(out, text, first->begin);
    recipe_write(recipe, out, 1);
    buffer_append(out, text + first->end, second->begin - first->end);
    tare_status status = fingerprint_recipe(recipe, out);
    buffer_puts(out, text + second->end);
    return status == TARE_OK ? out->status : status;
}

/* An ascendv1 description has one name, by which engines find it. */
static void warn_of_names(tare_context *ctx, const tare_save_options *o, unsigned save)
{
    bool weights = save & (SAVE_SAFE_TENSOR | SAVE_ASCENDV1),
         description = save & SAVE_SAFE_TENSOR ||
                       (save & SAVE_ASCENDV1 && o->json_name &&
                        strcmp(o->json_name, "quant_model_description.json") == 0);
    if ((o->safetensors_name && !weights) || (o->json_name && !description))
        TARE_WARN(ctx, "file names are for save type safe_tensor, safetensors_name for ascendv1 "
                       "too; the others have their own");
}

static tare_status save(const tare_recording *k, const tare_save_options *o, uint64_t *bytes)
{
    tare_status status = TARE_OK;
    tare_recipe recipe = k->recipe;
    output_options how = {.dir = o->out,
                          .part_file_size = o->part_file_size,
                          .safetensors_name = o->safetensors_name,
                          .json_name = o->json_name,
                          .overwrite = o->overwrite,
                          .verify = o->verify};
    arena names;
    buffer run_json;
    buffer_init(&run_json, k->ctx);
    arena_init(&names, k->ctx);
    TRY(check_save(k, o));
    TRY(save_types_parse(k->ctx, o->types, o->num_types, &how.save));
    warn_of_names(k->ctx, o, how.save);
    recipe.part_file_size = o->part_file_size;
    recipe.save_types.count = o->num_types;
    recipe.save_types.items = arena_alloc_array(&names, o->num_types, sizeof(char *));
    TRY(recipe.save_types.items ? TARE_OK : TARE_E_MEMORY);
    for (size_t i = 0; i < o->num_types; i++) {
        recipe.save_types.items[i] = arena_strndup(&names, o->types[i], strlen(o->types[i]));
        TRY(recipe.save_types.items[i] ? TARE_OK : TARE_E_MEMORY);
    }
    TRY(recipe_check_save(&recipe));
    TRY(run_json_with(k, &recipe, &run_json));
    TRY(output_tape_play(k->tape, &how, run_json.data, bytes));
done:
    buffer_free(&run_json);
    arena_free(&names);
    return status;
}

tare_status tare_save(const tare_recording *k, const tare_save_options *options, uint64_t *bytes)
{
    tare_save_options o;
    tare_save_options_init(&o);
    tare_status status = SIZED_TAKE(k->ctx, tare_save_options, options, &o);
    return status == TARE_OK ? save(k, &o, bytes) : status;
}
