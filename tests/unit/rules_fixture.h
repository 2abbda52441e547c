/* Which scheme each linear gets, by the recipe. */
#ifndef TARE_TESTS_RULES_FIXTURE_H
#define TARE_TESTS_RULES_FIXTURE_H

#include "recipe_fixture.h"

#include "quantize/rules.h"

typedef struct rule_case {
    const char *scheme, *mix, *disable; /* NULL: not set */
    const char *letters;                /* of the linears; NULL: refused */
    const char *message;
    bool compat;
} rule_case;

/* A letter a linear: 8 W8A8, d W8A8_DYNAMIC, m W8A8_MIX, w W8A16, - float. */
static inline void expect_schemes(const linear_plan *l, size_t count, const char *letters)
{
    static const char of[SCHEMES] = {[SCHEME_FLOAT] = '-',
                                     [SCHEME_W8A8_DYNAMIC] = 'd',
                                     [SCHEME_W8A8] = '8',
                                     [SCHEME_W8A8_MIX] = 'm',
                                     [SCHEME_W8A16] = 'w'};
    char found[64] = "";
    assert_true(count < sizeof found);
    for (size_t i = 0; i < count; i++)
        found[i] = of[l[i].scheme];
    assert_string_equal(found, letters);
}

static inline void check_rules(linear_plan *l, size_t count, const rule_case *c)
{
    tare_context *ctx = new_context(1);
    tare_recipe *r = new_recipe(ctx);
    r->compat = c->compat;
    if (c->scheme)
        assert_ok(ctx, tare_recipe_set(r, "quant.scheme", c->scheme));
    if (c->disable)
        assert_ok(ctx, tare_recipe_set(r, "fallback.disable_names", c->disable));
    if (c->mix)
        assert_ok(ctx, tare_recipe_set(r, "mix", c->mix));
    tare_status status = rules_apply(r, l, count, NULL, 0);
    if (c->letters) {
        assert_ok(ctx, status);
        expect_schemes(l, count, c->letters);
    } else {
        assert_fails(ctx, status, TARE_E_USAGE, c->message);
    }
    tare_recipe_free(r);
    free_context(ctx);
}

#endif
