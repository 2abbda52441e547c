#include "output/copy_files.h"

#include <string.h>
#include <sys/stat.h>

#include "output/output_internal.h"

static const char *const WANTED[] = {"generation_config.json",
                                     "preprocessor_config.json",
                                     "tokenizer*",
                                     "vocab*",
                                     "*.tiktoken",
                                     "special_tokens_map.json",
                                     "added_tokens.json",
                                     "merges.txt",
                                     "chat_template*",
                                     "*.jinja",
                                     "LICENSE*",
                                     "NOTICE*",
                                     "README*"};

/* Weights and pickles, whatever their name begins with. */
static const char *const NEVER[] = {"*.safetensors", "*.index.json", "*.bin",  "*.pt",     "*.pth",
                                    "*.pkl",         "*.pickle",     "*.npy",  "*.npz",    "*.h5",
                                    "*.ckpt",        "*.gguf",       "*.onnx", "*.msgpack"};

static bool matches_any(const char *name, const char *const *patterns, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (pattern_match(patterns[i], name))
            return true;
    return false;
}

bool copy_wanted(const char *name, bool copy_code)
{
    if (matches_any(name, NEVER, sizeof NEVER / sizeof *NEVER))
        return false;
    if (str_ends_with(name, ".py"))
        return copy_code;
    return matches_any(name, WANTED, sizeof WANTED / sizeof *WANTED);
}

/* The blobs folder of the Hugging Face cache that <cache>/snapshots/<revision> belongs to; NULL if
 * `model_dir` is no snapshot. Freed by the caller. */
static tare_status cache_blobs(tare_context *ctx, const char *model_dir, char **out)
{
    static const char SNAPSHOTS[] = "/snapshots";
    const char *revision = strrchr(model_dir, '/');
    size_t length = sizeof SNAPSHOTS - 1, before = revision ? (size_t)(revision - model_dir) : 0;
    *out = NULL;
    if (before <= length || memcmp(revision - length, SNAPSHOTS, length) != 0)
        return TARE_OK;
    char *cache = mem_strndup(ctx, model_dir, before - length);
    if (!cache)
        return TARE_E_MEMORY;
    *out = path_join(ctx, cache, "blobs");
    mem_free(ctx, cache);
    return *out ? TARE_OK : TARE_E_MEMORY;
}

tare_status copy_resolve(tare_context *ctx, const char *model_dir, const char *name, char **path,
                         const char **why)
{
    char *joined = path_join(ctx, model_dir, name), *blobs = NULL, *real = NULL;
    tare_status status = TARE_OK;
    struct stat st;

    *path = NULL;
    *why = "no such file";
    TRY(joined ? TARE_OK : TARE_E_MEMORY);
    if (stat(joined, &st) != 0)
        goto done;
    *why = "not a plain file";
    if (!S_ISREG(st.st_mode))
        goto done;
    *why = "larger than 64 MiB";
    if ((uint64_t)st.st_size > COPY_MAX_BYTES)
        goto done;
    *why = "a link that leaves the model folder";
    TRY(path_real(ctx, joined, &real));
    TRY(cache_blobs(ctx, model_dir, &blobs));
    if (path_contains(model_dir, real) || (blobs && path_contains(blobs, real))) {
        *path = real;
        real = NULL;
        *why = NULL;
    }
done:
    mem_free(ctx, joined);
    mem_free(ctx, blobs);
    mem_free(ctx, real);
    return status;
}

/* Left out of the list of left-out files: what every checkpoint has and every output replaces. */
static bool is_expected(const char *name)
{
    return name[0] == '.' || strcmp(name, "config.json") == 0 ||
           str_ends_with(name, ".safetensors") || str_ends_with(name, ".safetensors.index.json");
}

static void note_left_out(buffer *list, const char *name, const char *why)
{
    buffer_printf(list, "%s%s%s%s%s", list->length > 0 ? ", " : "", name, why ? " (" : "",
                  why ? why : "", why ? ")" : "");
}

static tare_status copy_one(output *o, output_folder *f, const char *name, buffer *left_out)
{
    char *from = NULL, *to = NULL;
    const char *why = NULL;
    tare_status status = TARE_OK;

    if (!copy_wanted(name, o->options.copy_code)) {
        if (!is_expected(name))
            note_left_out(left_out, name, NULL);
        return left_out->status;
    }
    TRY(copy_resolve(o->ctx, o->model_dir, name, &from, &why));
    if (!from) {
        note_left_out(left_out, name, why);
        TRY(left_out->status);
        goto done;
    }
    to = path_join(o->ctx, f->stage, name);
    TRY(to ? TARE_OK : TARE_E_MEMORY);
    TRY(file_copy(o->ctx, from, to, COPY_MAX_BYTES));
    TRY(output_note_staged(o, f, name));
done:
    mem_free(o->ctx, from);
    mem_free(o->ctx, to);
    return status;
}

tare_status output_copy_files(output *o, output_folder *f)
{
    char **names = NULL;
    size_t count = 0;
    buffer left_out;
    tare_status status = TARE_OK;

    if (!o->model_dir)
        return TARE_OK;
    buffer_init(&left_out, o->ctx);
    TRY(folder_list(o->ctx, o->model_dir, &names, &count));
    for (size_t i = 0; i < count; i++)
        TRY(copy_one(o, f, names[i], &left_out));
    if (left_out.length > 0 && f == o->folders)
        TARE_WARN(o->ctx, "not copied from %s: %s", o->model_dir, left_out.data);
done:
    folder_list_free(o->ctx, names, count);
    buffer_free(&left_out);
    return status;
}
