#include "output/copy_files.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "output/output_internal.h"

#define TEMPLATES "additional_chat_templates"

/* The names that transformers and engines look for. */
static const char *const TOKENIZER[] = {"tokenizer*",   "vocab*",           "*.tiktoken",
                                        "spiece.model", "sentencepiece*",   "tekken.json",
                                        "merges.txt",   "added_tokens.json"};
static const char *const SETTINGS[] = {"generation_config.json",  "preprocessor_config.json",
                                       "processor_config.json",   "video_preprocessor_config.json",
                                       "special_tokens_map.json", "normalizer.json",
                                       "chat_template*",          "*.jinja"};
static const char *const DOCUMENTS[] = {"LICENSE*", "NOTICE*", "README*"};

/* Weights and pickles, whatever their name begins with. */
static const char *const NEVER[] = {"*.safetensors", "*.index.json", "*.bin",  "*.pt",     "*.pth",
                                    "*.pkl",         "*.pickle",     "*.npy",  "*.npz",    "*.h5",
                                    "*.ckpt",        "*.gguf",       "*.onnx", "*.msgpack"};

#define COUNT(array) (sizeof(array) / sizeof *(array))

static bool matches_any(const char *name, const char *const *patterns, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (pattern_match(patterns[i], name))
            return true;
    return false;
}

bool copy_is_tokenizer(const char *name)
{
    return !matches_any(name, NEVER, COUNT(NEVER)) &&
           matches_any(name, TOKENIZER, COUNT(TOKENIZER));
}

bool copy_wanted(const char *name, bool copy_code)
{
    if (matches_any(name, NEVER, COUNT(NEVER)))
        return false;
    if (str_ends_with(name, ".py"))
        return copy_code;
    return matches_any(name, TOKENIZER, COUNT(TOKENIZER)) ||
           matches_any(name, SETTINGS, COUNT(SETTINGS)) ||
           matches_any(name, DOCUMENTS, COUNT(DOCUMENTS));
}

/* Left out of the list of left-out files: what every checkpoint has and every output replaces. */
static bool is_expected(const char *name)
{
    return name[0] == '.' || strcmp(name, "config.json") == 0 ||
           str_ends_with(name, ".safetensors") || str_ends_with(name, ".safetensors.index.json");
}

static const char NOT_A_FILE[] = "not a plain file", TOO_LARGE[] = "larger than 64 MiB";

const char *copy_obstacle(const char *path)
{
    struct stat st;
    if (stat(path, &st) != 0)
        return errno == ENOENT || errno == ENOTDIR
                   ? path_exists(path) ? "a link that leads nowhere" : "no such file"
               : errno == ELOOP  ? "a link that leads in a circle"
               : errno == EACCES ? "it cannot be reached (check the permissions)"
                                 : "it cannot be reached";
    if (!S_ISREG(st.st_mode))
        return NOT_A_FILE;
    if ((uint64_t)st.st_size > COPY_MAX_BYTES)
        return TOO_LARGE;
    return access(path, R_OK) == 0 ? NULL : "it cannot be read (check the permissions)";
}

/* ---- the list ---- */

typedef struct list_maker {
    tare_context *ctx;
    arena *arena;
    const char *dir;
    bool copy_code;
    copy_list *out;
    size_t capacity; /* of out->files, which is in the arena */
} list_maker;

static tare_status add(list_maker *m, const copy_file *f)
{
    if (m->out->count == m->capacity) {
        size_t more = m->capacity ? 2 * m->capacity : 32;
        copy_file *files = arena_alloc_array(m->arena, more, sizeof *files);
        if (!files)
            return TARE_E_MEMORY;
        if (m->out->count > 0)
            memcpy(files, m->out->files, m->out->count * sizeof *files);
        m->out->files = files;
        m->capacity = more;
    }
    m->out->files[m->out->count++] = *f;
    return TARE_OK;
}

/* `prefix`: "", or the folder of the name with its slash. */
static tare_status add_name(list_maker *m, const char *prefix, const char *name)
{
    copy_file f = {.name = arena_printf(m->arena, "%s%s", prefix, name)};
    const char *path = f.name ? arena_printf(m->arena, "%s/%s", m->dir, f.name) : NULL;
    if (!path)
        return TARE_E_MEMORY;
    if (*prefix ? str_ends_with(name, ".jinja") : copy_wanted(name, m->copy_code)) {
        f.why = copy_obstacle(path);
        f.path = f.why ? NULL : path;
        f.missed = f.why && f.why != NOT_A_FILE && !matches_any(name, DOCUMENTS, COUNT(DOCUMENTS));
        f.broken = f.missed && f.why != TOO_LARGE;
    } else if (is_expected(name)) {
        return TARE_OK;
    }
    return add(m, &f);
}

/* Templates beside the default one, a file each. */
static tare_status add_templates(list_maker *m)
{
    tare_status status = TARE_OK;
    char **names = NULL, *dir = path_join(m->ctx, m->dir, TEMPLATES);
    size_t count = 0;
    TRY(dir ? TARE_OK : TARE_E_MEMORY);
    TRY(folder_list(m->ctx, dir, &names, &count));
    for (size_t i = 0; i < count; i++)
        TRY(add_name(m, TEMPLATES "/", names[i]));
done:
    folder_list_free(m->ctx, names, count);
    mem_free(m->ctx, dir);
    return status;
}

static tare_status add_entry(list_maker *m, const char *name)
{
    if (strcmp(name, TEMPLATES) != 0)
        return add_name(m, "", name);
    char *path = path_join(m->ctx, m->dir, name);
    if (!path)
        return TARE_E_MEMORY;
    const char *why = copy_obstacle(path);
    bool folder = path_is_folder(path);
    mem_free(m->ctx, path);
    copy_file f = {.name = TEMPLATES,
                   .why = why ? why : "not a folder",
                   .missed = why != NULL,
                   .broken = why != NULL};
    return folder ? add_templates(m) : add(m, &f);
}

tare_status copy_list_make(tare_context *ctx, arena *a, const char *model_dir, bool copy_code,
                           copy_list *out)
{
    list_maker m = {.ctx = ctx, .arena = a, .dir = model_dir, .copy_code = copy_code, .out = out};
    char **names = NULL;
    size_t count = 0;
    tare_status status = TARE_OK;
    *out = (copy_list){0};
    TRY(folder_list(ctx, model_dir, &names, &count));
    for (size_t i = 0; i < count; i++)
        TRY(add_entry(&m, names[i]));
done:
    folder_list_free(ctx, names, count);
    return status;
}

/* ---- of an output ---- */

static void note_left_out(buffer *list, const copy_file *f)
{
    buffer_printf(list, "%s%s%s%s%s", list->length > 0 ? ", " : "", f->name, f->why ? " (" : "",
                  f->why ? f->why : "", f->why ? ")" : "");
}

tare_status output_find_copies(output *o, arena *a, copy_list *out)
{
    tare_status status = TARE_OK;
    buffer left_out;
    buffer_init(&left_out, o->ctx);
    *out = (copy_list){0};
    if (o->model_dir)
        TRY(copy_list_make(o->ctx, a, o->model_dir, o->options.copy_code, out));
    for (size_t i = 0; i < out->count; i++) {
        const copy_file *f = &out->files[i];
        if (f->broken)
            TRY(TARE_FAIL(o->ctx,
                          TARE_E_IO, /* at a run's end: --resume goes on once it is mended */
                          "%s/%s: %s; the output would lack it: mend it, or take it out of the "
                          "folder",
                          o->model_dir, f->name, f->why));
        if (!f->path)
            note_left_out(&left_out, f);
    }
    TRY(left_out.status);
    if (left_out.length > 0 && !o->options.rehearsed)
        TARE_WARN(o->ctx, "not copied from %s: %s", o->model_dir, left_out.data);
done:
    buffer_free(&left_out);
    return status;
}

static tare_status copy_one(output *o, output_folder *f, const copy_file *item)
{
    char *to = path_join(o->ctx, f->stage, item->name);
    tare_status status = TARE_OK;
    TRY(to ? TARE_OK : TARE_E_MEMORY);
    TRY(output_make_parent(o, f->stage, item->name));
    TRY(file_copy(o->ctx, item->path, to, COPY_MAX_BYTES));
    TRY(output_note_staged(o, f, item->name));
done:
    mem_free(o->ctx, to);
    return status;
}

tare_status output_copy_files(output *o, output_folder *f, const copy_list *files)
{
    tare_status status = TARE_OK;
    for (size_t i = 0; i < files->count; i++)
        if (files->files[i].path)
            TRY(copy_one(o, f, &files->files[i]));
done:
    return status;
}
