/* Which folders an output fills, and whether it may (specification: output_formats.md 1 and 1.1).
 * Everything that can be refused is refused here, before calibration. */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "base/number.h"
#include "output/output_internal.h"

/* Left by a killed run, or the journal of one that will be resumed: not a reason to refuse. */
#define WORK_FOLDER ".tare"

static bool is_foreign_weight_file(const output *o, const char *name, bool ours)
{
    bool weights = str_ends_with(name, ".safetensors") ||
                   str_ends_with(name, ".safetensors.index.json");
    return weights && !output_owns_file(o, name, ours);
}

/* Did tare write what lies here? A record says so, or the stage of a run that was killed while it
 * gave its files their names. */
static bool written_by_tare(const output *o, char *const *names, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (strcmp(names[i], "tare_run.json") == 0)
            return true;
    return path_exists(o->stage);
}

/* Engines read every *.safetensors of a folder: a float shard beside ours corrupts the model.
 * *ours: an earlier output may be replaced. */
static tare_status check_contents(output *o, const char *dir, bool *ours)
{
    char **names = NULL;
    size_t count = 0;
    if (!path_exists(dir))
        return TARE_OK;
    if (!path_is_folder(dir))
        return TARE_FAIL(o->ctx, TARE_E_FOLDER, "%s is not a folder", dir);
    tare_status status = folder_list(o->ctx, dir, &names, &count);
    if (status != TARE_OK)
        return status;
    *ours = written_by_tare(o, names, count);
    for (size_t i = 0; i < count && status == TARE_OK; i++) {
        if (strcmp(names[i], WORK_FOLDER) == 0)
            continue;
        if (is_foreign_weight_file(o, names[i], *ours))
            status = TARE_FAIL(
                o->ctx, TARE_E_FOLDER,
                "output folder %s holds %s, which tare did not write; choose an empty folder", dir,
                names[i]);
        else if (!o->options.overwrite)
            status = TARE_FAIL(
                o->ctx, TARE_E_FOLDER,
                "output folder %s is not empty (it holds %s); choose another or use --overwrite",
                dir, names[i]);
    }
    folder_list_free(o->ctx, names, count);
    return status;
}

static tare_status check_overlap(output *o)
{
    if (!o->model_dir)
        return TARE_OK;
    if (!path_contains(o->dir, o->model_dir) && !path_contains(o->model_dir, o->dir))
        return TARE_OK;
    return TARE_FAIL(o->ctx, TARE_E_FOLDER,
                     "output folder %s and model folder %s must not lie in each other", o->dir,
                     o->model_dir);
}

static tare_status resolve(output *o, const char *path, char **out)
{
    char *real = NULL;
    tare_status status = path_real(o->ctx, path, &real);
    if (status != TARE_OK)
        return status == TARE_E_IO ? TARE_E_FOLDER : status;
    *out = arena_strndup(&o->arena, real, strlen(real));
    mem_free(o->ctx, real);
    return *out ? TARE_OK : TARE_E_MEMORY;
}

static tare_status add_folder(output *o, layout which, bool alone)
{
    output_folder *f = &o->folders[o->num_folders++];
    const char *sub = alone ? NULL : save_type_of(which)->folder;
    f->layout = which;
    f->has_files = o->options.save >> which & 1;
    f->has_numpy = o->options.save & save_types_beside(which) & SAVE_NUMPY;
    f->dir = sub ? output_path(o, o->dir, sub) : o->dir;
    f->stage = sub ? output_path(o, o->stage, sub) : o->stage;
    return f->dir && f->stage ? TARE_OK : TARE_E_MEMORY;
}

static tare_status choose_folders(output *o)
{
    tare_status status = TARE_OK;
    for (int i = 0; i < SAVE_TYPES; i++) {
        unsigned beside = save_types_beside((layout)i);
        if (o->options.save & beside)
            TRY(add_folder(o, (layout)i, (o->options.save & ~beside) == 0));
    }
done:
    return status;
}

/* Engines read every *.safetensors beside the weights, and look for this one in its own place. */
static tare_status claim_rotation(output *o)
{
    tare_status status = TARE_OK;
    char *real = NULL;
    bool claimed = false;
    if (!o->options.rotation)
        return TARE_OK;
    TRY(resolve(o, o->options.rotation, &real));
    for (size_t i = 0; i < o->num_folders; i++) {
        output_folder *f = &o->folders[i];
        char *place = output_path(o, f->dir, ROTATION_FILE);
        TRY(place ? TARE_OK : TARE_E_MEMORY);
        f->rotation = f->layout == LAYOUT_ASCENDV1 && strcmp(place, real) == 0;
        claimed |= f->rotation;
    }
    if (path_contains(o->dir, real) && !claimed)
        TRY(TARE_FAIL(o->ctx, TARE_E_USAGE,
                      "cannot save the rotation as '%s': in the output folder it is " ROTATION_FILE
                      " beside the weights of ascendv1",
                      o->options.rotation));
    if (o->model_dir && path_contains(o->model_dir, real))
        TRY(TARE_FAIL(o->ctx, TARE_E_USAGE,
                      "cannot save the rotation as '%s': it lies in the model folder",
                      o->options.rotation));
done:
    return status;
}

/* The stage lies inside the output folder, so the final renames stay on one file system. */
tare_status output_prepare_stage(output *o)
{
    tare_status status = TARE_OK;
    o->made_dir = !path_exists(o->dir);
    o->staged = true;
    if (!o->saved.begun)
        TRY(folder_remove(o->ctx, o->stage));
    for (size_t i = 0; i < o->num_folders; i++) {
        TRY(folder_create(o->ctx, o->folders[i].stage));
        if (access(o->folders[i].stage, W_OK | X_OK) != 0)
            TRY(TARE_FAIL(o->ctx, TARE_E_FOLDER, "output folder %s: %s", o->dir,
                          errno_text(errno)));
    }
done:
    if (status == TARE_E_IO)
        status = TARE_E_FOLDER;
    return status;
}

tare_status output_prepare_folders(output *o)
{
    tare_status status = TARE_OK;
    char *work = NULL;

    if (o->options.model_dir)
        TRY(resolve(o, o->options.model_dir, &o->model_dir));
    if (o->options.rehearsal) {
        o->dir = o->stage = output_path(o, "", "");
        TRY(o->dir ? choose_folders(o) : TARE_E_MEMORY);
        goto done;
    }
    TRY(resolve(o, o->options.dir, &o->dir));
    TRY(check_overlap(o));
    work = output_path(o, o->dir, WORK_FOLDER);
    o->stage = work ? output_path(o, work, "stage") : NULL;
    TRY(o->stage ? TARE_OK : TARE_E_MEMORY);
    TRY(choose_folders(o));
    TRY(claim_rotation(o));
    if (o->num_folders == 1 || !o->options.overwrite)
        TRY(check_contents(o, o->dir, &o->folders[0].ours));
    for (size_t i = 0; i < o->num_folders && o->num_folders > 1; i++)
        TRY(check_contents(o, o->folders[i].dir, &o->folders[i].ours));
done:
    return status;
}

/* Runs after failures: the message that stands is the one that says what went wrong. */
void output_remove_stage(output *o)
{
    error_note first = context_error(o->ctx);
    if (!o->staged)
        return;
    tare_status status = folder_remove(o->ctx, o->stage);
    if (status != TARE_OK) {
        TARE_WARN(o->ctx, "a temporary folder stays behind: %s", tare_last_error(o->ctx));
        context_set_error(o->ctx, &first);
    }
    /* <dir>/.tare and a folder that this run made go only if nothing else is in them. */
    char *end = strrchr(o->stage, '/');
    *end = '\0';
    rmdir(o->stage);
    *end = '/';
    if (o->made_dir)
        rmdir(o->dir);
    o->staged = false;
}
