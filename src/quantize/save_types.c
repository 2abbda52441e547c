/* The table of save types. */
#include "quantize/save_types.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "file/io.h"

const choice save_type_names[] = {{"ascendv1", LAYOUT_ASCENDV1},
                                  {"ascendV1", LAYOUT_ASCENDV1},
                                  {"safe_tensor", LAYOUT_SAFE_TENSOR},
                                  {"numpy", LAYOUT_NUMPY},
                                  {"compressed-tensors", LAYOUT_COMPRESSED_TENSORS},
                                  {NULL, 0}};

static const save_type types[SAVE_TYPES] = {
    [LAYOUT_ASCENDV1] = {.folder = "ascendv1", .part_gib = 4, .flags = SAVE_DROPS_BIASES},
    [LAYOUT_SAFE_TENSOR] = {.folder = "safe_tensor", .flags = SAVE_NO_INT4},
    [LAYOUT_NUMPY] = {.folder = "safe_tensor", .flags = SAVE_NO_INT4},
    [LAYOUT_COMPRESSED_TENSORS] = {.folder = "compressed-tensors",
                                   .part_gib = 4,
                                   .flags = SAVE_PLAIN | SAVE_DROPS_BIASES | SAVE_NO_INT4},
};

const save_type *save_type_of(layout which)
{
    return &types[which];
}

unsigned save_types_with(unsigned save, unsigned flag)
{
    for (int i = 0; i < SAVE_TYPES; i++)
        if (!(types[i].flags & flag))
            save &= ~(1u << i);
    return save;
}

unsigned save_types_beside(layout which)
{
    unsigned beside = 0;
    for (int i = 0; i < SAVE_TYPES; i++) {
        if (strcmp(types[i].folder, types[which].folder) != 0)
            continue;
        if (i < (int)which)
            return 0;
        beside |= 1u << i;
    }
    return beside;
}

static char texts[1 << SAVE_TYPES][64];

static void make_texts(void)
{
    snprintf(texts[0], sizeof texts[0], "unknown");
    for (unsigned save = 1; save < 1u << SAVE_TYPES; save++) {
        unsigned named = 0;
        size_t used = 0;
        for (const choice *c = save_type_names; c->name; c++) {
            unsigned bit = 1u << c->number;
            if ((save & bit) && !(named & bit))
                used += (size_t)snprintf(texts[save] + used, sizeof texts[save] - used, "%s%s",
                                         named ? ", " : "", c->name);
            named |= save & bit;
        }
    }
}

const char *save_types_text(unsigned save)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, make_texts);
    return texts[save];
}

tare_status save_types_parse(tare_context *ctx, const char *const *names, size_t count,
                             unsigned *save)
{
    *save = 0;
    for (size_t i = 0; i < count; i++) {
        const choice *c = save_type_names;
        while (c->name && names[i] && strcmp(c->name, names[i]) != 0)
            c++;
        if (!c->name || !names[i])
            return TARE_FAIL(ctx, TARE_E_USAGE, "save type \"%s\" is not known; possible: %s",
                             names[i] ? names[i] : "", save_types_text((1u << SAVE_TYPES) - 1));
        *save |= 1u << c->number;
    }
    return TARE_OK;
}

tare_status save_types_record(tare_context *ctx, const char *dir, char **path)
{
    for (int i = -1; i < SAVE_TYPES; i++) {
        char name[64] = "tare_run.json";
        if (i >= 0)
            snprintf(name, sizeof name, "%s/tare_run.json", save_type_of((layout)i)->folder);
        if (!(*path = path_join(ctx, dir, name)))
            return TARE_E_MEMORY;
        if (path_exists(*path))
            return TARE_OK;
        mem_free(ctx, *path);
    }
    *path = NULL;
    return TARE_OK;
}
