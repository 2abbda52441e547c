/* A recipe's life: made, copied, changed as a whole, freed. */
#include <math.h>
#include <string.h>

#include "quantize/recipe.h"

/* ---- lists ---- */

void string_list_clear(tare_context *ctx, string_list *l)
{
    for (size_t i = 0; i < l->count; i++)
        mem_free(ctx, l->items[i]);
    mem_free(ctx, l->items);
    *l = (string_list){0};
}

tare_status string_list_add(tare_context *ctx, string_list *l, const char *text, size_t length)
{
    tare_status status = mem_grow(ctx, (void **)&l->items, &l->capacity, l->count + 1,
                                  sizeof *l->items);
    if (status != TARE_OK)
        return status;
    if (!(l->items[l->count] = mem_strndup(ctx, text, length)))
        return TARE_E_MEMORY;
    l->count++;
    return TARE_OK;
}

void mix_list_clear(tare_context *ctx, mix_list *l)
{
    for (size_t i = 0; i < l->count; i++)
        mem_free(ctx, l->items[i].pattern);
    mem_free(ctx, l->items);
    *l = (mix_list){0};
}

tare_status mix_list_add(tare_context *ctx, mix_list *l, const char *pattern, size_t length,
                         linear_scheme scheme)
{
    tare_status status = mem_grow(ctx, (void **)&l->items, &l->capacity, l->count + 1,
                                  sizeof *l->items);
    if (status != TARE_OK)
        return status;
    char *copy = mem_strndup(ctx, pattern, length);
    if (!copy)
        return TARE_E_MEMORY;
    l->items[l->count++] = (mix_entry){copy, scheme};
    return TARE_OK;
}

/* ---- life ---- */

tare_status tare_recipe_create(tare_context *ctx, tare_recipe **out)
{
    *out = NULL;
    tare_recipe *r = mem_calloc(ctx, 1, sizeof *r);
    if (!r)
        return TARE_E_MEMORY;
    *r = (tare_recipe){.ctx = ctx,
                       .scheme = -1,
                       .a_sym = -1,
                       .final_scales = -1,
                       .w_bit = 8,
                       .a_bit = 8,
                       .act_method = 1,
                       .w_sym = true,
                       .weight_method = WEIGHTS_SSZ,
                       .kv_sym = true,
                       .rotation_r1 = true,
                       .rotation_r2 = true,
                       .rotation_align = true,
                       .rotation_flips = true,
                       .pr = 1.0,
                       .anti_w_bit = 8,
                       .anti_a_bit = 8,
                       .anti_w_sym = true,
                       .anti_alpha = NAN,
                       .anti_beta = NAN,
                       .disable_last_linear = true,
                       .part_file_size = -1,
                       .mtp = -1,
                       .npy_values = -1,
                       .dtype = -1};
    tare_status status = string_list_add(ctx, &r->save_types, "ascendv1", strlen("ascendv1"));
    if (status != TARE_OK)
        tare_recipe_free(r);
    else
        *out = r;
    return status;
}

static void clear(tare_recipe *r)
{
    string_list_clear(r->ctx, &r->disable_anti_names);
    string_list_clear(r->ctx, &r->disable_names);
    string_list_clear(r->ctx, &r->save_types);
    mix_list_clear(r->ctx, &r->mix);
    max_memory_clear(r->ctx, &r->max_memory);
}

void tare_recipe_free(tare_recipe *r)
{
    if (!r)
        return;
    clear(r);
    mem_free(r->ctx, r);
}

/* ---- copies ---- */

static tare_status add_mix(tare_context *ctx, const mix_list *from, mix_list *to)
{
    tare_status status = TARE_OK;
    for (size_t i = 0; status == TARE_OK && i < from->count; i++) {
        const mix_entry *e = &from->items[i];
        status = mix_list_add(ctx, to, e->pattern, strlen(e->pattern), e->scheme);
    }
    return status;
}

static tare_status add_list(tare_context *ctx, const string_list *from, string_list *to)
{
    tare_status status = TARE_OK;
    for (size_t i = 0; status == TARE_OK && i < from->count; i++)
        status = string_list_add(ctx, to, from->items[i], strlen(from->items[i]));
    return status;
}

tare_status recipe_draft(const tare_recipe *recipe, tare_recipe *draft)
{
    tare_status status = TARE_OK;
    tare_context *ctx = recipe->ctx;
    *draft = *recipe;
    draft->disable_anti_names = draft->disable_names = draft->save_types = (string_list){0};
    draft->mix = (mix_list){0};
    draft->max_memory = (max_memory){0};
    TRY(add_mix(ctx, &recipe->mix, &draft->mix));
    TRY(add_list(ctx, &recipe->disable_anti_names, &draft->disable_anti_names));
    TRY(add_list(ctx, &recipe->disable_names, &draft->disable_names));
    TRY(add_list(ctx, &recipe->save_types, &draft->save_types));
    TRY(max_memory_copy(ctx, &recipe->max_memory, &draft->max_memory));
done:
    return status;
}

tare_status recipe_settle(tare_recipe *recipe, tare_recipe *draft, tare_status status)
{
    if (status == TARE_OK) {
        clear(recipe);
        *recipe = *draft;
    } else {
        clear(draft);
    }
    return status;
}

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
