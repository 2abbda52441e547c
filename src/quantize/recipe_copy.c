/* A recipe that outlives the one it comes from. */
#include <string.h>

#include "quantize/recipe.h"

static tare_status copy_list(const string_list *from, arena *a, string_list *out)
{
    *out = (string_list){.items = arena_alloc_array(a, from->count, sizeof *out->items)};
    if (!out->items)
        return TARE_E_MEMORY;
    for (; out->count < from->count; out->count++) {
        const char *text = from->items[out->count];
        if (!(out->items[out->count] = arena_strndup(a, text, strlen(text))))
            return TARE_E_MEMORY;
    }
    return TARE_OK;
}

static tare_status copy_mix(const mix_list *from, arena *a, mix_list *out)
{
    *out = (mix_list){.items = arena_alloc_array(a, from->count, sizeof *out->items)};
    if (!out->items)
        return TARE_E_MEMORY;
    for (; out->count < from->count; out->count++) {
        const mix_entry *e = &from->items[out->count];
        char *pattern = arena_strndup(a, e->pattern, strlen(e->pattern));
        if (!pattern)
            return TARE_E_MEMORY;
        out->items[out->count] = (mix_entry){pattern, e->scheme};
    }
    return TARE_OK;
}

tare_status recipe_copy(const tare_recipe *recipe, arena *a, tare_recipe *out)
{
    tare_status status = TARE_OK;
    *out = *recipe;
    out->max_memory = (max_memory){0};
    TRY(copy_list(&recipe->disable_anti_names, a, &out->disable_anti_names));
    TRY(copy_list(&recipe->disable_names, a, &out->disable_names));
    TRY(copy_list(&recipe->save_types, a, &out->save_types));
    TRY(copy_mix(&recipe->mix, a, &out->mix));
done:
    return status;
}
