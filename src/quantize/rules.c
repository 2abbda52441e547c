/* The rules' table, as a list of entries for each linear: the first that applies decides. */
#include "quantize/rules.h"

#include <math.h>
#include <string.h>

#include "base/sort.h"
#include "quantize/parts.h"

static tare_status refuse_name(const tare_recipe *r, const char *setting, const char *entry,
                               const linear_plan *linears, size_t count, const char *const *extra,
                               size_t num_extra)
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
        status = TARE_FAIL(ctx, TARE_E_USAGE,
                           "%s: \"%s\" names no linear layer of this model; near: %s", setting,
                           entry, near.data);
    buffer_free(&near);
    mem_free(ctx, names);
    return status;
}

bool rules_disable(const tare_recipe *r, const char *module)
{
    for (size_t i = 0; i < r->disable_names.count; i++)
        if (pattern_match(r->disable_names.items[i], module))
            return true;
    return false;
}

static void decide(linear_plan *l, linear_scheme scheme, plan_reason why, const char *rule)
{
    l->scheme = scheme;
    l->why = why;
    l->rule = rule;
}

static tare_status apply_name(const tare_recipe *r, const char *entry, linear_plan *linears,
                              size_t count, const char *const *extra, size_t num_extra)
{
    bool found = false;
    for (size_t i = 0; i < count; i++) {
        if (!pattern_match(entry, linears[i].name))
            continue;
        found = true;
        decide(&linears[i], SCHEME_FLOAT, WHY_NAME, entry);
    }
    for (size_t i = 0; i < num_extra && !found; i++)
        found = pattern_match(entry, extra[i]);
    return found
               ? TARE_OK
               : refuse_name(r, "fallback.disable_names", entry, linears, count, extra, num_extra);
}

/* In a run of W8A8_MIX there is no other W8A8 (spec/schemes.md 3). */
static linear_scheme mixed_scheme(const tare_recipe *r, linear_scheme scheme)
{
    return scheme == SCHEME_W8A8 && recipe_scheme(r) == SCHEME_W8A8_MIX ? SCHEME_W8A8_MIX : scheme;
}

/* An entry that could do nothing but quantize a router or kv_b_proj. */
static tare_status refuse_kept(const tare_recipe *r, const mix_entry *e, const linear_plan *kept)
{
    return TARE_FAIL(r->ctx, TARE_E_USAGE,
                     "mix: \"%s\" says %s of %s, which stays float: engines have no quantized form "
                     "of it",
                     e->pattern, scheme_of(e->scheme)->name, kept->name);
}

static tare_status refuse_int4(const tare_recipe *r, const mix_entry *e, const linear_plan *l)
{
    return TARE_FAIL(r->ctx, TARE_E_USAGE,
                     "mix: \"%s\" says w4a8_dynamic of %s, which is no routed expert: engines have "
                     "it for those alone",
                     e->pattern, l->name);
}

/* An exact name wins over patterns, of which the first counts. */
static tare_status apply_mix(const tare_recipe *r, linear_plan *linears, size_t count)
{
    for (size_t m = 0; m < r->mix.count; m++) {
        const mix_entry *e = &r->mix.items[m];
        const linear_plan *kept = NULL;
        bool found = false, settable = false;
        for (size_t i = 0; i < count; i++) {
            linear_plan *l = &linears[i];
            bool exact = strcmp(e->pattern, l->name) == 0;
            if (!exact && !pattern_match(e->pattern, l->name))
                continue;
            found = true;
            settable = settable || !l->stays_float;
            kept = l->stays_float ? l : kept;
            if (l->why != WHY_SCHEME &&
                !(exact && l->why == WHY_MIX && strcmp(l->rule, l->name) != 0))
                continue;
            if (e->scheme == SCHEME_W4A8_DYNAMIC && !l->mixture)
                return refuse_int4(r, e, l);
            decide(l, mixed_scheme(r, e->scheme), WHY_MIX, e->pattern);
        }
        if (!found)
            return refuse_name(r, "mix", e->pattern, linears, count, NULL, 0);
        if (!settable && e->scheme != SCHEME_FLOAT)
            return refuse_kept(r, e, kept);
    }
    return TARE_OK;
}

static size_t unit_end(const linear_plan *linears, size_t count, size_t first)
{
    size_t end = first + 1;
    while (end < count && linears[end].unit == linears[first].unit)
        end++;
    return end;
}

static const char *rule_text(const linear_plan *l)
{
    return l->rule ? l->rule : "the scheme of the run";
}

/* Names the whole unit, and the rules that give two of its members their types. */
static tare_status refuse_split(const tare_recipe *r, const linear_plan *members, size_t count,
                                const linear_plan *a, const linear_plan *b)
{
    buffer names;
    buffer_init(&names, r->ctx);
    for (size_t i = 0; i < count; i++)
        buffer_printf(&names, "%s%s", i == 0 ? "" : ", ", members[i].name);
    tare_status status = names.status;
    if (status == TARE_OK)
        status = TARE_FAIL(r->ctx, TARE_E_USAGE,
                           "mix: engines fuse %s, which need one type: %s (%s, by %s) and %s (%s, "
                           "by %s)",
                           names.data, a->name, scheme_of(a->scheme)->name, rule_text(a), b->name,
                           scheme_of(b->scheme)->name, rule_text(b));
    buffer_free(&names);
    return status;
}

/* The members that are not float. */
static tare_status check_unit(const tare_recipe *r, const linear_plan *linears, size_t count)
{
    const linear_plan *first = NULL;
    for (size_t i = 0; i < count; i++) {
        const linear_plan *l = &linears[i];
        if (plan_is_float(l) && l->why != WHY_MIX)
            continue;
        first = first ? first : l;
        if (l->scheme == first->scheme)
            continue;
        if (!r->compat)
            return refuse_split(r, linears, count, first, l);
        TARE_WARN(r->ctx, "%s and %s, which engines fuse, are of different types", first->name,
                  l->name);
    }
    return TARE_OK;
}

/* Engines refuse or mix up a fused unit with two types. */
static void complete_unit(const tare_recipe *r, linear_plan *linears, size_t count)
{
    size_t floats = 0;
    for (size_t i = 0; i < count; i++)
        floats += plan_is_float(&linears[i]) && linears[i].why != WHY_MIX;
    if (floats == 0 || floats == count)
        return;
    if (r->compat) {
        TARE_WARN(r->ctx,
                  "%s and the linears fused with it are only in part float: engines refuse such a "
                  "checkpoint",
                  linears[0].name);
        return;
    }
    for (size_t i = 0; i < count; i++) {
        if (plan_is_float(&linears[i]))
            continue;
        TARE_WARN(r->ctx, "%s is kept float too: engines fuse it with one that is",
                  linears[i].name);
        decide(&linears[i], SCHEME_FLOAT, WHY_FUSED, NULL);
    }
}

/* ---- experts ---- */

static bool is_static(const linear_plan *l)
{
    return scheme_of(l->scheme)->activations == ACT_STATIC;
}

static tare_status refuse_static_expert(const tare_recipe *r, const linear_plan *l)
{
    return TARE_FAIL(
        r->ctx, TARE_E_USAGE,
        "%s would be %s (by %s), for which no engine has a kernel in experts; possible: "
        "w8a8_dynamic, w4a8_dynamic, float",
        l->name, scheme_of(l->scheme)->name, rule_text(l));
}

static tare_status check_int4(const tare_recipe *r, const linear_plan *l)
{
    if (l->scheme != SCHEME_W4A8_DYNAMIC || int4_shape_fits(l->n, l->k, l->slices))
        return TARE_OK;
    return TARE_FAIL(r->ctx, TARE_E_USAGE,
                     "%s [%zu,%zu] would be w4a8_dynamic (by %s), which needs rows in multiples of "
                     "%d and columns in multiples of %zu",
                     l->name, l->n, l->k, rule_text(l),
                     l->slices > 1 ? INT4_SLICED_ROWS : INT4_ROWS, l->slices);
}

/* Engines read the type of all experts from the first. */
static tare_status settle_mixture(const tare_recipe *r, linear_plan *experts, size_t count)
{
    size_t floats = 0;
    const linear_plan *named = NULL;
    for (size_t i = 0; i < count; i++) {
        const linear_plan *l = &experts[i];
        if (is_static(l))
            return refuse_static_expert(r, l);
        tare_status status = check_int4(r, l);
        if (status != TARE_OK)
            return status;
        if (l->scheme != experts[0].scheme && (l->why == WHY_MIX || experts[0].why == WHY_MIX))
            return TARE_FAIL(
                r->ctx, TARE_E_USAGE,
                "mix: engines take all experts of a layer to be of one type: %s (%s, by "
                "%s) and %s (%s, by %s)",
                experts[0].name, scheme_of(experts[0].scheme)->name, rule_text(&experts[0]),
                l->name, scheme_of(l->scheme)->name, rule_text(l));
        floats += plan_is_float(l);
        named = plan_is_float(l) && !named ? l : named;
    }
    if (floats == 0 || floats == count)
        return TARE_OK;
    TARE_WARN(r->ctx,
              "all experts of its layer are kept float, as %s is: engines take them to be of "
              "one type",
              named->name);
    for (size_t i = 0; i < count; i++) {
        if (!plan_is_float(&experts[i]))
            decide(&experts[i], SCHEME_FLOAT, WHY_EXPERTS, NULL);
    }
    return TARE_OK;
}

static tare_status settle_mixtures(const tare_recipe *r, linear_plan *linears, size_t count)
{
    tare_status status = TARE_OK;
    for (size_t first = 0, end; first < count && status == TARE_OK; first = end) {
        end = first + 1;
        while (end < count && linears[end].mixture == linears[first].mixture)
            end++;
        if (linears[first].mixture)
            status = settle_mixture(r, linears + first, end - first);
    }
    return status;
}

/* The run's own scheme. */
static void decide_by_scheme(const tare_recipe *r, linear_plan *l)
{
    decide(l, recipe_scheme(r), WHY_SCHEME, NULL);
    if (l->is_mlp && is_static(l))
        l->scheme = SCHEME_W8A8_DYNAMIC;
    if (l->stays_float)
        decide(l, SCHEME_FLOAT, WHY_KEPT, NULL);
}

tare_status rules_apply(const tare_recipe *r, linear_plan *linears, size_t count,
                        const char *const *extra, size_t num_extra)
{
    tare_status status = TARE_OK;
    for (size_t i = 0; i < count; i++)
        decide_by_scheme(r, &linears[i]);
    for (size_t i = 0; i < r->disable_names.count; i++)
        TRY(apply_name(r, r->disable_names.items[i], linears, count, extra, num_extra));
    for (size_t i = 0; i < count; i++) {
        if (linears[i].is_head && r->disable_last_linear && !plan_is_float(&linears[i]))
            decide(&linears[i], SCHEME_FLOAT, WHY_HEAD, NULL);
    }
    TRY(apply_mix(r, linears, count));
    for (size_t first = 0, end; first < count; first = end) {
        end = unit_end(linears, count, first);
        TRY(check_unit(r, linears + first, end - first));
        complete_unit(r, linears + first, end - first);
    }
    TRY(settle_mixtures(r, linears, count));
done:
    return status;
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

tare_status rules_apply_level(const tare_recipe *r, linear_plan *linears,
                              const linear_score *scores, size_t count)
{
    size_t wanted = (size_t)r->disable_level, taken = 0, n = 0;
    if (wanted == 0)
        return TARE_OK;
    ranked *units = mem_alloc_array(r->ctx, count, sizeof *units);
    void **order = mem_alloc_array(r->ctx, count, sizeof *order);
    for (size_t first = 0, end; units && order && first < count; first = end) {
        end = r->compat ? first + 1 : unit_end(linears, count, first);
        if (plan_is_float(&linears[first]) || !scores[first].known || isnan(scores[first].value))
            continue;
        units[n] = (ranked){scores[first].value, first, end};
        order[n] = &units[n];
        n++;
    }
    if (units && order)
        sort_pointers(order, n, by_falling_score);
    for (size_t u = 0; u < n && taken < wanted; u++) {
        const ranked *unit = order[u];
        for (size_t i = unit->first; i < unit->end; i++, taken++) {
            decide(&linears[i], SCHEME_FLOAT, WHY_LEVEL, NULL);
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
