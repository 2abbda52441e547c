/* Which linears stay float (spec/w8a8.md, section 6; compat: 9.4). Works on a flat list of the
 * model's linears in module order; knows nothing of models, layers or files. */
#ifndef TARE_QUANTIZE_FALLBACK_H
#define TARE_QUANTIZE_FALLBACK_H

#include "quantize/recipe.h"

typedef struct fallback_linear {
    const char *name; /* module name */
    size_t unit;      /* fused group: equal for its members, which stand next to each other */
    bool is_head;
    bool is_float; /* in and out */
    bool has_score;
    double score;
} fallback_linear;

/* Applies disable_names (names or patterns; in compat too, where the reference knows names alone
 * and refuses a pattern, so that shipped recipes work) and disable_last_linear. `extra` [num_extra]
 * are further module names that may be named without effect here (attention modules). An entry that
 * matches nothing: TARE_E_USAGE with the nearest names. A fused group left mixed is completed with
 * a warning (compat: left as given, with a warning). */
tare_status fallback_by_name(const tare_recipe *recipe, fallback_linear *linears, size_t count,
                             const char *const *extra, size_t num_extra);

/* Does an entry of disable_names name `module`, exactly or by a pattern? For modules that are no
 * linears: an attention's FA quantization. */
bool fallback_names(const tare_recipe *recipe, const char *module);

/* Applies disable_level: whole groups by falling score until at least n linears were taken (compat:
 * single linears, exactly n). Ties keep module order. Logs what was taken and the scores. */
tare_status fallback_by_level(const tare_recipe *recipe, fallback_linear *linears, size_t count);

#endif
