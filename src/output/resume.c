/* An output that goes on in another process: what is on the disk, and how it is found again. */
#include <string.h>
#include <xxhash.h>

#include "output/output_internal.h"

enum { CHECK_PIECE = 1024 * 1024 };

/* ---- what is written ---- */

static tare_status add_range(output *o, const saved_range *range)
{
    tare_status status = mem_grow(o->ctx, (void **)&o->ranges, &o->ranges_capacity,
                                  o->num_ranges + 1, sizeof *o->ranges);
    if (status == TARE_OK)
        o->ranges[o->num_ranges++] = *range;
    return status;
}

tare_status output_note_range(output *o, output_folder *f, const planned_tensor *t, uint64_t offset,
                              const void *data, size_t size)
{
    const weight_file *w = &f->files[t->file];
    saved_range range = {.folder = (uint32_t)(f - o->folders),
                         .file = (uint32_t)t->file,
                         .tensor = (uint32_t)(t - f->tensors),
                         .place = safetensors_place(w->writer, t->index) + offset,
                         .length = size,
                         .hash = XXH3_64bits(data, size)};
    return size > 0 ? add_range(o, &range) : TARE_OK;
}

/* ---- saving ---- */

/* The npy files' ranges come behind those of the tensors, for as long as the state is written. */
static tare_status sync_files(output *o)
{
    tare_status status = TARE_OK;
    for (size_t i = 0; i < o->num_folders; i++) {
        output_folder *f = &o->folders[i];
        for (size_t j = 0; j < f->num_files; j++)
            if (f->files[j].writer)
                TRY(safetensors_sync(f->files[j].writer));
        for (uint32_t j = 0; j < NPY_FILES; j++) {
            saved_range range = {.folder = (uint32_t)i, .file = j, .tensor = WHOLE_FILE};
            if (!f->npy[j])
                continue;
            TRY(npy_sync(f->npy[j], &range.length, &range.hash));
            TRY(add_range(o, &range));
        }
        TRY(folder_sync(o->ctx, f->stage));
    }
done:
    return status;
}

/* A string of at most 255 bytes. */
static tare_status archive_name(archive *a, char name[256])
{
    uint8_t length = (uint8_t)strnlen(name, 255);
    tare_status status = TARE_OK;
    TRY(archive_bytes(a, &length, 1));
    TRY(archive_bytes(a, name, length));
    name[length] = '\0';
done:
    return status;
}

/* The names of the files below the stage, for a check without the plan. */
static tare_status save_names(output *o, archive *a)
{
    tare_status status = TARE_OK;
    char name[256];
    for (size_t i = 0; i < o->num_ranges; i++) {
        const saved_range *r = &o->ranges[i];
        const output_folder *f = &o->folders[r->folder];
        const char *sub = strrchr(f->stage, '/') + 1;
        buffer path;
        buffer_init(&path, o->ctx);
        buffer_printf(&path, "%s%s%s", o->num_folders > 1 ? sub : "", o->num_folders > 1 ? "/" : "",
                      r->tensor == WHOLE_FILE ? npy_file_name((npy_file)r->file)
                                              : f->files[r->file].name);
        bool fits = path.status == TARE_OK && path.length < sizeof name;
        memcpy(name, fits ? path.data : "", fits ? path.length + 1 : 1);
        status = path.status;
        buffer_free(&path);
        TRY(status);
        TRY(archive_name(a, name));
    }
done:
    return status;
}

tare_status output_save(output *o, archive *a)
{
    tare_status status = TARE_OK;
    size_t tensors = o->num_ranges;
    uint64_t counts[2];
    TRY(archive_bytes(a, &o->begun, sizeof o->begun));
    if (!o->begun)
        goto done;
    TRY(sync_files(o));
    counts[0] = o->num_units;
    counts[1] = o->num_ranges;
    TRY(archive_bytes(a, counts, sizeof counts));
    TRY(archive_bytes(a, o->ranges, o->num_ranges * sizeof *o->ranges));
    TRY(save_names(o, a));
    for (size_t i = 0; i < o->num_units; i++)
        TRY(archive_bytes(a, &o->units[i].complete, sizeof(bool)));
done:
    o->num_ranges = tensors;
    return status;
}

void output_keep(output *o)
{
    o->keep = true;
}

void output_leave_files(output_folder *f)
{
    for (size_t i = 0; i < f->num_files; i++) {
        safetensors_leave(f->files[i].writer);
        f->files[i].writer = NULL;
    }
    for (int i = 0; i < NPY_FILES; i++) {
        npy_leave(f->npy[i]);
        f->npy[i] = NULL;
    }
}

/* ---- reading it back ---- */

/* `names` (may be NULL) gets the ranges' files, in `home`. */
static tare_status read_saved(tare_context *ctx, archive *a, saved_stage *s, arena *home,
                              char ***names)
{
    tare_status status = TARE_OK;
    char name[256] = "";
    *s = (saved_stage){0};
    TRY(archive_bytes(a, &s->begun, sizeof s->begun));
    if (!s->begun)
        goto done;
    TRY(archive_bytes(a, &s->num_units, sizeof s->num_units));
    TRY(archive_bytes(a, &s->num_ranges, sizeof s->num_ranges));
    s->ranges = mem_alloc_array(ctx, s->num_ranges, sizeof *s->ranges);
    s->complete = mem_alloc_array(ctx, s->num_units, sizeof *s->complete);
    if (names)
        *names = arena_calloc(home, s->num_ranges, sizeof **names);
    TRY(s->ranges && s->complete && (!names || *names) ? TARE_OK : TARE_E_MEMORY);
    TRY(archive_bytes(a, s->ranges, s->num_ranges * sizeof *s->ranges));
    for (size_t i = 0; i < s->num_ranges; i++) {
        TRY(archive_name(a, name));
        if (names && !((*names)[i] = arena_strndup(home, name, strlen(name))))
            TRY(TARE_E_MEMORY);
    }
    TRY(archive_bytes(a, s->complete, s->num_units * sizeof *s->complete));
done:
    return status;
}

static tare_status check_range(tare_context *ctx, file *f, const saved_range *r, char *piece,
                               XXH3_state_t *hash)
{
    XXH3_64bits_reset(hash);
    for (uint64_t at = 0; at < r->length;) {
        size_t size = r->length - at < CHECK_PIECE ? (size_t)(r->length - at) : CHECK_PIECE;
        tare_status status = file_read_at(f, r->place + at, piece, size);
        if (status != TARE_OK)
            return status;
        XXH3_64bits_update(hash, piece, size);
        at += size;
    }
    if (XXH3_64bits_digest(hash) == r->hash)
        return TARE_OK;
    return TARE_FAIL(ctx, TARE_E_DATA, "'%s' is not what was written", file_path(f));
}

tare_status output_check_saved(tare_context *ctx, archive *a, const char *stage)
{
    tare_status status = TARE_OK;
    saved_stage s = {0};
    char **names = NULL, *path = NULL, *piece = mem_alloc(ctx, CHECK_PIECE);
    XXH3_state_t *hash = XXH3_createState();
    file *f = NULL;
    arena home;
    arena_init(&home, ctx);
    TRY(piece && hash ? TARE_OK : TARE_FAIL(ctx, TARE_E_MEMORY, "out of memory: checking a stage"));
    TRY(read_saved(ctx, a, &s, &home, &names));
    for (size_t i = 0; i < s.num_ranges; i++) {
        if (!f || strcmp(names[i], names[i - 1]) != 0) {
            file_close(f);
            f = NULL;
            mem_free(ctx, path);
            path = path_join(ctx, stage, names[i]);
            TRY(path ? TARE_OK : TARE_E_MEMORY);
            TRY(file_open(ctx, path, &f));
        }
        TRY(context_check_cancelled(ctx));
        TRY(check_range(ctx, f, &s.ranges[i], piece, hash));
    }
done:
    file_close(f);
    XXH3_freeState(hash);
    mem_free(ctx, path);
    mem_free(ctx, piece);
    mem_free(ctx, s.ranges);
    mem_free(ctx, s.complete);
    arena_free(&home);
    return status;
}

/* `path`: a file or a folder. */
static tare_status digest_path(tare_context *ctx, const char *path, char *piece, XXH3_state_t *hash)
{
    tare_status status = TARE_OK;
    char **names = NULL, *inner = NULL;
    size_t count = 0;
    file *f = NULL;
    if (path_is_folder(path)) {
        TRY(folder_list(ctx, path, &names, &count));
        for (size_t i = 0; i < count; i++) {
            XXH3_64bits_update(hash, names[i], strlen(names[i]) + 1);
            inner = path_join(ctx, path, names[i]);
            TRY(inner ? digest_path(ctx, inner, piece, hash) : TARE_E_MEMORY);
            mem_free(ctx, inner);
            inner = NULL;
        }
        goto done;
    }
    TRY(file_open(ctx, path, &f));
    for (uint64_t at = 0, size = file_size(f); at < size;) {
        size_t part = size - at < CHECK_PIECE ? (size_t)(size - at) : CHECK_PIECE;
        TRY(file_read_at(f, at, piece, part));
        XXH3_64bits_update(hash, piece, part);
        at += part;
    }
done:
    file_close(f);
    mem_free(ctx, inner);
    folder_list_free(ctx, names, count);
    return status;
}

tare_status output_digest_stage(tare_context *ctx, const char *stage, uint64_t *digest)
{
    char *piece = mem_alloc(ctx, CHECK_PIECE);
    XXH3_state_t *hash = XXH3_createState();
    tare_status status = TARE_OK;
    TRY(piece && hash ? TARE_OK : TARE_FAIL(ctx, TARE_E_MEMORY, "out of memory: checking a stage"));
    XXH3_64bits_reset(hash);
    TRY(digest_path(ctx, stage, piece, hash));
    *digest = XXH3_64bits_digest(hash);
done:
    XXH3_freeState(hash);
    mem_free(ctx, piece);
    return status;
}

tare_status output_restore(output *o, archive *a)
{
    return read_saved(o->ctx, a, &o->saved, NULL, NULL);
}

/* ---- going on ---- */

typedef struct left_folder {
    const output *o;
    const output_folder *f;
} left_folder;

/* What the end of a run stages is made anew. */
static bool is_ours(const void *user, const char *name)
{
    const left_folder *l = user;
    if (l->f->stage == l->o->stage && strcmp(name, STATISTICS_FOLDER) == 0)
        return true;
    for (size_t i = 0; i < l->f->num_files; i++)
        if (strcmp(name, l->f->files[i].name) == 0)
            return true;
    for (size_t i = 0; i < l->o->saved.num_ranges; i++) {
        const saved_range *r = &l->o->saved.ranges[i];
        if (r->tensor == WHOLE_FILE && &l->o->folders[r->folder] == l->f &&
            strcmp(name, npy_file_name((npy_file)r->file)) == 0)
            return true;
    }
    return false;
}

/* Bytes of each tensor of a weight file that are there. */
static void count_written(const output *o, const output_folder *f, size_t which, uint64_t *written)
{
    for (size_t i = 0; i < o->saved.num_ranges; i++) {
        const saved_range *r = &o->saved.ranges[i];
        if (r->tensor != WHOLE_FILE && &o->folders[r->folder] == f && r->file == which)
            written[f->tensors[r->tensor].index] += r->length;
    }
}

static tare_status reopen_file(output *o, output_folder *f, size_t which)
{
    weight_file *w = &f->files[which];
    tare_status status = TARE_OK;
    char *path = path_join(o->ctx, f->stage, w->name);
    uint64_t *written = mem_calloc(o->ctx, w->count, sizeof *written);
    TRY(path && written ? TARE_OK : TARE_E_MEMORY);
    count_written(o, f, which, written);
    for (size_t i = 0; i < w->count; i++)
        w->bytes_left -= written[i];
    if (w->bytes_left > 0)
        TRY(safetensors_reopen(o->ctx, path, w->tensors, w->count, written, &w->writer));
done:
    mem_free(o->ctx, path);
    mem_free(o->ctx, written);
    return status;
}

static tare_status reopen_npy(output *o, const saved_range *r)
{
    output_folder *f = &o->folders[r->folder];
    char *path = path_join(o->ctx, f->stage, npy_file_name((npy_file)r->file));
    tare_status status = path ? npy_reopen(o->ctx, path, output_npy_values(o), r->length,
                                           &f->npy[r->file])
                              : TARE_E_MEMORY;
    mem_free(o->ctx, path);
    return status;
}

static tare_status check_plan(const output *o)
{
    bool same = o->saved.num_units == o->num_units;
    for (size_t i = 0; same && i < o->saved.num_ranges; i++) {
        const saved_range *r = &o->saved.ranges[i];
        same = r->folder < o->num_folders;
        if (same && r->tensor == WHOLE_FILE)
            same = r->file < NPY_FILES;
        else if (same)
            same = r->tensor < o->folders[r->folder].num_tensors &&
                   o->folders[r->folder].tensors[r->tensor].file == r->file;
    }
    return same ? TARE_OK
                : TARE_FAIL(o->ctx, TARE_E_DATA, "%s: the journal belongs to another output",
                            o->dir);
}

tare_status output_reopen_files(output *o)
{
    tare_status status = TARE_OK;
    TRY(check_plan(o));
    for (size_t i = 0; i < o->num_folders; i++) {
        output_folder *f = &o->folders[i];
        for (size_t j = 0; f->has_files && j < f->num_files; j++)
            TRY(reopen_file(o, f, j));
        TRY(folder_clear(o->ctx, f->stage, is_ours, &(left_folder){o, f}));
    }
    for (size_t i = 0; i < o->saved.num_ranges; i++) {
        if (o->saved.ranges[i].tensor == WHOLE_FILE)
            TRY(reopen_npy(o, &o->saved.ranges[i]));
        else
            TRY(add_range(o, &o->saved.ranges[i]));
    }
    for (size_t i = 0; i < o->num_units; i++) {
        output_unit *u = &o->units[i];
        u->complete = o->saved.complete[i];
        u->written = u->complete ? u->tensor.bytes : 0;
        o->fa_written += u->kind == UNIT_FA && u->complete;
    }
done:
    return status;
}
