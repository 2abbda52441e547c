/* A recipe, and what a run would write down of it. */
#ifndef TARE_TESTS_RECIPE_FIXTURE_H
#define TARE_TESTS_RECIPE_FIXTURE_H

#include "fixture.h"

#include "quantize/recipe.h"

static inline tare_recipe *new_recipe(tare_context *ctx)
{
    tare_recipe *r;
    assert_ok(ctx, tare_recipe_create(ctx, &r));
    return r;
}

static inline void expect_written(tare_context *ctx, const tare_recipe *r, const char *part)
{
    buffer out;
    buffer_init(&out, ctx);
    recipe_write(r, &out, 0);
    assert_ok(ctx, out.status);
    if (!strstr(out.data, part))
        fail_msg("no %s in %s", part, out.data);
    buffer_free(&out);
}

#endif
