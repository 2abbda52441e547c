/* Which scheme each linear gets, and why (spec/w8a8.md, section 6, compat: 9.4; spec/schemes.md 7):
 * the rules of disable_names, disable_last_linear, mix and the run's own scheme, in that order, and
 * disable_level once scores are known. Works on a flat list of the model's linears in module order;
 * knows nothing of models, layers or files. */
#ifndef TARE_QUANTIZE_RULES_H
#define TARE_QUANTIZE_RULES_H

#include "quantize/recipe.h"
#include "quantize/schemes.h"

typedef enum plan_reason {
    WHY_SCHEME, /* the run's */
    WHY_MIX,    /* an entry of mix */
    WHY_NAME,   /* an entry of disable_names */
    WHY_HEAD,   /* disable_last_linear */
    WHY_FUSED,  /* a linear that engines fuse it with is float */
    WHY_LEVEL,  /* disable_level */
    WHY_KEPT,   /* no engine quantizes it: a router, kv_b_proj */
    WHY_EXPERTS /* another expert of its layer is float */
} plan_reason;

typedef struct linear_plan {
    const char *name; /* module name */
    size_t unit;      /* equal for linears that engines fuse, which stand next to each other */
    bool is_head;
    bool stays_float;     /* whatever is said of it */
    bool is_mlp;          /* in a model with experts, which engines take per token at most */
    size_t mixture;       /* equal for all experts of a layer, which stand next to each other; 0: it
                             is no expert's */
    size_t n, k, slices;  /* its shape, and linear_form.slices if its weights are of 4 bits */
    linear_scheme scheme; /* out, from here on */
    plan_reason why;
    const char *rule; /* the entry of MIX and NAME; the recipe's */
} linear_plan;

/* How hard a linear's input is to quantize; equal in a unit. */
typedef struct linear_score {
    bool known;
    double value;
} linear_score;

static inline bool plan_is_float(const linear_plan *l)
{
    return l->scheme == SCHEME_FLOAT;
}

/* Everything but disable_level. An MLP of a model with experts is W8A8_DYNAMIC where the run's own
 * scheme is static; experts cannot be static, and those of a layer have one type (spec/schemes.md
 * 8); W4A8_DYNAMIC is theirs alone, and engines limit its shapes (section 6.2). Entries are names
 * or patterns (in compat too, where the reference knows names alone for disable_names and refuses a
 * pattern, so that shipped recipes work). `extra` [num_extra] are further module names that
 * disable_names may name without effect here (attention modules). An entry that matches nothing:
 * TARE_E_USAGE with the nearest names. A unit of which disable_names leaves a part float is
 * completed with a warning (compat: left as given, with a warning); a mix that splits a unit is
 * TARE_E_USAGE that names both rules (compat: a warning). */
tare_status rules_apply(const tare_recipe *recipe, linear_plan *linears, size_t count,
                        const char *const *extra, size_t num_extra);

/* Does an entry of disable_names name `module`, exactly or by a pattern? For modules that are no
 * linears: an attention's FA quantization. */
bool rules_disable(const tare_recipe *recipe, const char *module);

/* disable_level: whole units by falling score until at least n linears were taken (compat: single
 * linears, exactly n), whatever their scheme. Ties keep module order. Logs what was taken and the
 * scores. */
tare_status rules_apply_level(const tare_recipe *recipe, linear_plan *linears,
                              const linear_score *scores, size_t count);

#endif
