/* Fallback to float by name and by level. */
#include "quantize/fallback.h"

#include <math.h>
#include <string.h>

#include "base/sort.h"

static tare_status refuse_name(const tare_recipe *r, const char *entry,
                               const fallback_linear *linears, size_t count,
                               const char *const *extra, size_t num_extra)
{
    tare_context *ctx = r->ctx;
    const char **names = mem_alloc_array(ctx, count + num_extra, sizeof *names);
    if (!names)
        return TARE_E_MEMORY;
    for (size_t i = 0; i < count + num_extra; i++)
        names[i] = i < count ? linears[i].name : extra[i - count];
    buffer near;
    buffer_init(&near, ctx);
    nearest_names(&near, entry, names, count + num_extra, 3);
    tare_status status = near.status;
    if (status == TARE_OK)
        status = TARE_FAIL(
            ctx, TARE_E_USAGE,
            "fallback.disable_names: \"%s\" names no linear layer of this model; near: %s", entry,
            near.data);
    buffer_free(&near);
    mem_free(ctx, names);
    return status;
}

bool fallback_names(const tare_recipe *r, const char *module)
{
    for (size_t i = 0; i < r->disable_names.count; i++)
        if (pattern_match(r->disable_names.items[i], module))
            return true;
    return false;
}

static tare_status apply_entry(const tare_recipe *r, const char *entry, fallback_linear *linears,
                               size_t count, const char *const *extra, size_t num_extra)
{
    bool found = false;
    for (size_t i = 0; i < count; i++) {
        if (pattern_match(entry, linears[i].name))
            found = linears[i].is_float = true;
    }
    for (size_t i = 0; i < num_extra && !found; i++)
        found = pattern_match(entry, extra[i]);
    return found ? TARE_OK : refuse_name(r, entry, linears, count, extra, num_extra);
}

static size_t unit_end(const fallback_linear *linears, size_t count, size_t first)
{
    size_t end = first + 1;
    while (end < count && linears[end].unit == linears[first].unit)
        end++;
    return end;
}

/* Engines refuse or mix up a fused group with two types. */
static void settle_units(const tare_recipe *r, fallback_linear *linears, size_t count)
{
    for (size_t first = 0, end; first < count; first = end) {
        size_t floats = 0;
        end = unit_end(linears, count, first);
        for (size_t i = first; i < end; i++)
            floats += linears[i].is_float;
        if (floats == 0 || floats == end - first)
            continue;
        if (r->compat) {
            TARE_WARN(r->ctx,
                      "%s and the linears fused with it are only in part float: engines refuse "
                      "such a checkpoint",
                      linears[first].name);
            continue;
        }
        for (size_t i = first; i < end; i++) {
            if (!linears[i].is_float)
                TARE_WARN(r->ctx, "%s is kept float too: engines fuse it with one that is",
                          linears[i].name);
            linears[i].is_float = true;
        }
    }
}

tare_status fallback_by_name(const tare_recipe *r, fallback_linear *linears, size_t count,
                             const char *const *extra, size_t num_extra)
{
    for (size_t i = 0; i < r->disable_names.count; i++) {
        tare_status status = apply_entry(r, r->disable_names.items[i], linears, count, extra,
                                         num_extra);
        if (status != TARE_OK)
            return status;
    }
    for (size_t i = 0; i < count; i++)
        linears[i].is_float |= linears[i].is_head && r->disable_last_linear;
    settle_units(r, linears, count);
    return TARE_OK;
}

/* A unit to rank: a fused group, or in compat one linear. */
typedef struct ranked {
    double score;
    size_t first, end;
} ranked;

static int by_falling_score(const void *a, const void *b)
{
    const ranked *p = a, *q = b;
    if (p->score != q->score)
        return p->score > q->score ? -1 : 1;
    return p->first < q->first ? -1 : p->first > q->first;
}

tare_status fallback_by_level(const tare_recipe *r, fallback_linear *linears, size_t count)
{
    size_t wanted = (size_t)r->disable_level, taken = 0, n = 0;
    if (wanted == 0)
        return TARE_OK;
    ranked *units = mem_alloc_array(r->ctx, count, sizeof *units);
    void **order = mem_alloc_array(r->ctx, count, sizeof *order);
    for (size_t first = 0, end; units && order && first < count; first = end) {
        end = r->compat ? first + 1 : unit_end(linears, count, first);
        if (linears[first].is_float || !linears[first].has_score || isnan(linears[first].score))
            continue;
        units[n] = (ranked){linears[first].score, first, end};
        order[n] = &units[n];
        n++;
    }
    if (units && order)
        sort_pointers(order, n, by_falling_score);
    for (size_t u = 0; u < n && taken < wanted; u++) {
        const ranked *unit = order[u];
        for (size_t i = unit->first; i < unit->end; i++, taken++) {
            linears[i].is_float = true;
            TARE_INFO(r->ctx, "disable_level: %s stays float (score %.4g)", linears[i].name,
                      unit->score);
        }
    }
    tare_status status = units && order ? TARE_OK : TARE_E_MEMORY;
    mem_free(r->ctx, units);
    mem_free(r->ctx, order);
    if (status != TARE_OK)
        return status;
    TARE_INFO(r->ctx, "disable_level L%zu: %zu linears fell back to float", wanted, taken);
    if (taken < wanted)
        TARE_WARN(r->ctx, "disable_level L%zu exceeds the model: nothing is left to quantize",
                  wanted);
    return TARE_OK;
}
