/* From the stage to the final names. A folder that has a description is complete at every moment:
 * with --overwrite the old description goes first, the new one comes last.
 * (compressed-tensors has none; there it is config.json.) */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/number.h"
#include "output/output_internal.h"

static tare_status remove_file(output *o, const char *dir, const char *name)
{
    tare_status status = TARE_OK;
    char *path = path_join(o->ctx, dir, name);
    if (!path)
        return TARE_E_MEMORY;
    if (unlink(path) != 0 && errno != ENOENT && errno != ENOTDIR)
        status = TARE_FAIL(o->ctx, TARE_E_IO, "remove %s: %s", path, errno_text(errno));
    mem_free(o->ctx, path);
    return status;
}

/* What says that a folder is complete: the description, or config.json where there is none. */
enum { PLAIN_FILE, CONFIG_FILE, DESCRIPTION_FILE };

static int kind_of_file(const char *name)
{
    if (str_starts_with(name, "quant_model_description"))
        return DESCRIPTION_FILE;
    return strcmp(name, "config.json") == 0 ? CONFIG_FILE : PLAIN_FILE;
}

/* Removes an earlier output's own files: its description, and when that is on disk the rest. */
static tare_status remove_old(output *o, const output_folder *f)
{
    const char *dir = f->dir;
    char **names = NULL;
    size_t count = 0;
    tare_status status = TARE_OK;

    TRY(folder_list(o->ctx, dir, &names, &count));
    for (int pass = 0; pass < 2; pass++) {
        for (size_t i = 0; i < count; i++)
            if (output_owns_file(o, names[i], f->ours) &&
                (kind_of_file(names[i]) != PLAIN_FILE || output_is_description(o, names[i])) ==
                    (pass == 0))
                TRY(remove_file(o, dir, names[i]));
        TRY(folder_sync(o->ctx, dir));
    }
done:
    folder_list_free(o->ctx, names, count);
    return status;
}

tare_status output_make_parent(output *o, const char *dir, const char *name)
{
    const char *slash = strrchr(name, '/');
    tare_status status = TARE_OK;
    if (!slash)
        return TARE_OK;
    char *path = path_join(o->ctx, dir, name);
    TRY(path ? TARE_OK : TARE_E_MEMORY);
    *strrchr(path, '/') = '\0';
    TRY(folder_create(o->ctx, path));
done:
    mem_free(o->ctx, path);
    return status;
}

/* *published counts it from the rename on, whatever fails behind that. */
static tare_status rename_staged(output *o, const char *stage, const char *dir, const char *name,
                                 size_t *published)
{
    char *from = path_join(o->ctx, stage, name), *to = path_join(o->ctx, dir, name);
    tare_status status = TARE_OK;
    TRY(from && to ? TARE_OK : TARE_E_MEMORY);
    TRY(output_make_parent(o, dir, name));
    TRY(file_rename(o->ctx, from, to));
    ++*published;
    if (strchr(name, '/')) {
        *strrchr(to, '/') = '\0';
        TRY(folder_sync(o->ctx, to));
    }
done:
    mem_free(o->ctx, from);
    mem_free(o->ctx, to);
    return status;
}

static tare_status publish_folder(output *o, output_folder *f)
{
    tare_status status = TARE_OK;
    TRY(folder_create(o->ctx, f->dir));
    for (size_t i = 0; i < f->num_staged; i++) {
        if (i + 1 == f->num_staged) /* the last file says that the others are there */
            TRY(folder_sync(o->ctx, f->dir));
        TRY(rename_staged(o, f->stage, f->dir, f->staged[i], &f->published));
    }
    TRY(folder_sync(o->ctx, f->dir));
done:
    return status;
}

tare_status output_stage_statistics(output *o, const char **path)
{
    tare_status status = TARE_OK;
    TRY(output_make_parent(o, o->stage, STATISTICS_FILE));
    *path = output_path(o, o->stage, STATISTICS_FILE);
    TRY(*path ? TARE_OK : TARE_E_MEMORY);
    o->statistics = true;
done:
    return status;
}

tare_status output_stage_rotation(output *o, const char **path)
{
    tare_status status = TARE_OK;
    *path = NULL;
    for (size_t i = 0; i < o->num_folders; i++) {
        output_folder *f = &o->folders[i];
        if (!f->rotation)
            continue;
        TRY(output_make_parent(o, f->stage, ROTATION_FILE));
        *path = output_path(o, f->stage, ROTATION_FILE);
        TRY(*path ? output_note_staged(o, f, ROTATION_FILE) : TARE_E_MEMORY);
    }
done:
    return status;
}

static tare_status publish_statistics(output *o)
{
    return o->statistics
               ? rename_staged(o, o->stage, o->dir, STATISTICS_FILE, &o->statistics_published)
               : TARE_OK;
}

/* Of an earlier output, whether there will be a new one or not. */
static tare_status remove_below(output *o, const char *dir, const char *sub, const char *name)
{
    tare_status status = remove_file(o, dir, name);
    char *folder = output_path(o, dir, sub);
    if (!folder)
        return TARE_E_MEMORY;
    rmdir(folder); /* if it is empty */
    return status;
}

/* A failed run leaves nothing under a final name: back to the stage with it, where --resume or the
 * end of the run finds it. Needs no memory, which may be what is lacking; errors here would only
 * hide the first one. */
static void take_file_back(const char *dir, const char *stage, const char *name)
{
    char from[PATH_MAX], to[PATH_MAX];
    int n = snprintf(from, sizeof from, "%s/%s", dir, name),
        m = snprintf(to, sizeof to, "%s/%s", stage, name);
    if (n <= 0 || (size_t)n >= sizeof from)
        return;
    if (m > 0 && (size_t)m < sizeof to)
        (void)rename(from, to);
    if (strchr(name, '/')) {
        *strrchr(from, '/') = '\0';
        rmdir(from); /* if it is empty */
    }
}

static void take_back(output *o)
{
    for (size_t i = 0; i < o->num_folders; i++) {
        output_folder *f = &o->folders[i];
        while (f->published > 0)
            take_file_back(f->dir, f->stage, f->staged[--f->published]);
        if (o->num_folders > 1)
            rmdir(f->dir);
    }
    if (o->statistics_published)
        take_file_back(o->dir, o->stage, STATISTICS_FILE);
    o->statistics_published = 0;
}

static tare_status begin_publishing(output *o)
{
    tare_status status = TARE_OK;
    for (size_t i = 0; i < o->num_folders; i++) {
        const output_folder *f = &o->folders[i];
        if (!o->options.overwrite || !path_exists(f->dir))
            continue;
        TRY(remove_old(o, f));
        if (f->ours)
            TRY(remove_below(o, f->dir, ROTATION_FOLDER, ROTATION_FILE));
    }
    if (o->options.overwrite)
        TRY(remove_below(o, o->dir, STATISTICS_FOLDER, STATISTICS_FILE));
    if (o->options.before_publish)
        TRY(o->options.before_publish(o->options.user));
done:
    return status;
}

tare_status output_publish(output *o)
{
    tare_status status = TARE_OK;
    TRY(begin_publishing(o));
    TRY(publish_statistics(o));
    for (size_t i = 0; i < o->num_folders; i++)
        TRY(publish_folder(o, &o->folders[i]));
    if (o->num_folders > 1)
        TRY(folder_sync(o->ctx, o->dir));
done:
    if (status != TARE_OK)
        take_back(o);
    return status;
}

static tare_status move_file(tare_context *ctx, const char *stage, const char *dir,
                             const char *name)
{
    tare_status status = TARE_OK;
    char *from = path_join(ctx, stage, name), *to = path_join(ctx, dir, name);
    TRY(from && to ? TARE_OK : TARE_E_MEMORY);
    if (path_is_folder(from))
        TRY(output_publish_rest(ctx, from, to)); /* a layout's own folder: one level deep */
    else
        TRY(file_rename(ctx, from, to));
done:
    mem_free(ctx, from);
    mem_free(ctx, to);
    return status;
}

tare_status output_publish_rest(tare_context *ctx, const char *stage, const char *dir)
{
    char **names = NULL;
    size_t count = 0;
    tare_status status = TARE_OK;
    TRY(folder_create(ctx, dir));
    TRY(folder_list(ctx, stage, &names, &count));
    for (int kind = PLAIN_FILE; kind <= DESCRIPTION_FILE; kind++) {
        for (size_t i = 0; i < count; i++)
            if (kind_of_file(names[i]) == kind)
                TRY(move_file(ctx, stage, dir, names[i]));
        TRY(folder_sync(ctx, dir));
    }
done:
    folder_list_free(ctx, names, count);
    return status;
}

tare_status output_publish_stage(output *o)
{
    tare_status status = TARE_OK;
    if (o->options.verify)
        TRY(output_verify_stage(o));
    TRY(begin_publishing(o));
    TRY(output_publish_rest(o->ctx, o->stage, o->dir));
done:
    return status;
}
