/* The subjects of a multiple-choice set: from its mapping, or from the files that are there. */
#include <errno.h>
#include <string.h>

#include "base/sort.h"
#include "calibration/choices.h"
#include "file/io.h"
#include "file/json.h"

char *choice_set_path(choice_set *set, const char *folder, const char *part, const char *name)
{
    size_t n = strlen(folder);
    const char *slash = n > 0 && folder[n - 1] == '/' ? "" : "/";
    return arena_printf(&set->arena, "%s%s%s/%s_%s.csv", folder, slash, part, name, part);
}

/* The string becomes part of a path and of prompts. */
static tare_status add_subject(choice_set *set, const char *what, const char *name, size_t length)
{
    if (memchr(name, 0, length) || memchr(name, '/', length) || !utf8_valid(name, length))
        return TARE_FAIL(set->ctx, TARE_E_DATA, "%s: \"%.*s\" cannot be the name of a subject",
                         what, length < 200 ? (int)length : 200, name);
    char *copy = arena_strndup(&set->arena, name, length);
    if (!copy)
        return TARE_E_MEMORY;
    set->subjects[set->count++] = (choice_subject){.name = copy};
    return TARE_OK;
}

static tare_status reserve(choice_set *set, size_t count)
{
    set->subjects = mem_calloc(set->ctx, count, sizeof *set->subjects);
    return set->subjects ? TARE_OK : TARE_E_MEMORY;
}

static tare_status parse_mapping(choice_set *set, const input_text *text, const char *path,
                                 const char *key)
{
    tare_status status = TARE_OK;
    const value *root;
    arena a;
    arena_init(&a, set->ctx);
    status = json_parse(set->ctx, &a, text->text, text->length, path, JSON_DATA, &root);
    if (status != TARE_OK) {
        status = status == TARE_E_FORMAT ? TARE_E_DATA : status;
        goto done;
    }
    const value *list = key ? value_get(root, key) : root;
    bool object = !key && root->type == VALUE_MAP;
    if (!list || (list->type != VALUE_LIST && !object)) {
        status = TARE_FAIL(set->ctx, TARE_E_DATA, "%s: holds no list of subjects%s%s", path,
                           key ? " under the key " : "", key ? key : "");
        goto done;
    }
    TRY(reserve(set, list->count));
    const value *names = object ? list->keys : list->items;
    for (size_t i = 0; i < list->count; i++) {
        if (names[i].type != VALUE_STRING) {
            status = TARE_FAIL(set->ctx, TARE_E_DATA, "%s: line %d: a subject must be a string",
                               path, names[i].line);
            goto done;
        }
        TRY(add_subject(set, path, names[i].text, names[i].length));
    }
done:
    arena_free(&a);
    return status;
}

static int compare_texts(const void *a, const void *b)
{
    return strcmp(a, b);
}

/* From the files `folder`/NAME`ending`, in the order of the names' bytes. */
static tare_status find_subjects(choice_set *set, const char *folder, const char *ending)
{
    tare_status status = TARE_OK;
    char **names;
    size_t count, kept = 0;
    TRY(folder_list(set->ctx, folder, &names, &count));
    TRY(reserve(set, count));
    for (size_t i = 0; i < count; i++) {
        char *name = names[i];
        if (name[0] == '.' || !str_ends_with(name, ending)) /* as a shell's * does */
            continue;
        name[strlen(name) - strlen(ending)] = 0;
        names[i] = names[kept];
        names[kept++] = name;
    }
    sort_pointers((void **)names, kept, compare_texts);
    for (size_t i = 0; i < kept; i++)
        TRY(add_subject(set, folder, names[i], strlen(names[i])));
    if (kept == 0)
        status = TARE_FAIL(set->ctx, TARE_E_DATA, "%s: holds no file *%s", folder, ending);
done:
    folder_list_free(set->ctx, names, count);
    return status;
}

static tare_status read_subjects(calib_input *in, choice_set *set, const char *folder,
                                 const char *key, const char *part)
{
    input_text text = {0};
    char *path = path_join(in->ctx, folder, "subject_mapping.json");
    char *files = path_join(in->ctx, folder, part);
    char *ending = arena_printf(&set->arena, "_%s.csv", part);
    tare_status status = TARE_E_MEMORY;
    if (path && files && ending) {
        status = input_read(in, path, &text);
        if (status == TARE_OK)
            status = parse_mapping(set, &text, path, key);
        else if (status == TARE_E_IO && tare_last_errno(in->ctx) == ENOENT && !path_exists(path))
            status = find_subjects(set, files, ending);
    }
    mem_free(in->ctx, text.data);
    mem_free(in->ctx, files);
    mem_free(in->ctx, path);
    return status;
}

tare_status choice_set_load(calib_input *in, const char *folder, const char *key, const char *part,
                            const char *heading, size_t examples, choice_load load, void **data,
                            uint64_t *count)
{
    tare_status status = TARE_OK;
    uint64_t questions = 0;
    choice_set *set = mem_calloc(in->ctx, 1, sizeof *set);
    if (!set)
        return TARE_E_MEMORY;
    *set = (choice_set){.ctx = in->ctx, .heading = heading, .examples = examples};
    arena_init(&set->arena, in->ctx);
    TRY(read_subjects(in, set, folder, key, part));
    for (size_t i = 0; i < set->count; i++) {
        choice_subject *s = &set->subjects[i];
        TRY(context_check_cancelled(in->ctx));
        TRY(load(in, set, s, folder));
        s->first = questions;
        questions += s->questions.count;
    }
    *count = questions;
    *data = set;
    set = NULL;
done:
    choice_set_free(in->ctx, set);
    return status;
}

void choice_set_free(tare_context *ctx, void *data)
{
    choice_set *set = data;
    if (!set)
        return;
    for (size_t i = 0; i < set->count; i++) {
        choice_file_free(ctx, &set->subjects[i].dev);
        choice_file_free(ctx, &set->subjects[i].questions);
    }
    mem_free(ctx, set->subjects);
    arena_free(&set->arena);
    mem_free(ctx, set);
}
