/* quantize/recipe and rules: several schemes in one model (specification: spec/schemes.md 7.1 and
 * 7.2). */
#include "rules_fixture.h"

enum { LINEARS = 8 };

static const char *const names[LINEARS] = {"0.attn.q",   "0.attn.k", "0.attn.v",   "0.attn.o",
                                           "0.mlp.gate", "0.mlp.up", "0.mlp.down", "head"};

static void reset(linear_plan *l)
{
    static const size_t units[LINEARS] = {1, 1, 1, 2, 3, 3, 4, 5};
    for (size_t i = 0; i < LINEARS; i++)
        l[i] = (linear_plan){.name = names[i], .unit = units[i], .is_head = i == LINEARS - 1};
}

static void check(const rule_case *c)
{
    linear_plan l[LINEARS];
    reset(l);
    check_rules(l, LINEARS, c);
}

static void test_which_rule_decides(void **state)
{
    (void)state;
    static const rule_case cases[] = {
        {.letters = "8888888-"},
        {.scheme = "w8a8_dynamic", .letters = "ddddddd-"},
        {.scheme = "w8a16", .letters = "wwwwwww-"},
        {.mix = "*.mlp.*=w8a8_dynamic", .letters = "8888ddd-"},
        /* the first pattern that matches */
        {.mix = "*.down=w8a16,*.mlp.*=w8a8_dynamic", .letters = "8888ddw-"},
        {.mix = "*.mlp.*=w8a8_dynamic,*.down=w8a16", .letters = "8888ddd-"},
        {.mix = "*=float,*.mlp.*=w8a8_dynamic", .letters = "--------"},
        /* an exact name before any pattern, of several the first */
        {.mix = "*.mlp.*=w8a8_dynamic,0.mlp.down=float", .letters = "8888dd--"},
        {.mix = "*.mlp.*=w8a8_dynamic,0.mlp.down=w8a16,0.mlp.down=w8a8", .letters = "8888ddw-"},
        /* what mix does not name has the scheme of the run */
        {.scheme = "w8a8_dynamic", .mix = "*.attn.*=w8a8", .letters = "8888ddd-"},
        /* the run's own scheme by name */
        {.mix = "0.attn.o=w8a8,*.attn.o=w8a16", .letters = "8888888-"},
        /* head and disable_names before mix */
        {.mix = "*=w8a8_dynamic", .letters = "ddddddd-"},
        {.mix = "head=w8a8_dynamic", .letters = "8888888-"},
        {.mix = "0.mlp.down=w8a8_dynamic", .disable = "*.down", .letters = "888888--"},
        {.mix = "*=w8a8_dynamic", .disable = "*.attn.k", .letters = "---dddd-"},
        /* case counts, sets and single letters are patterns */
        {.mix = "*.[qkv]=w8a8_dynamic,?.attn.o=w8a16", .letters = "dddw888-"},
        {.mix = "*.MLP.*=w8a16", .message = "mix: \"*.MLP.*\" names no linear layer"},
        {.mix = "0.mlp.donw=float", .message = "near: 0.mlp.down"},
        {.mix = "*=w8a16,*.expert.*=float", .message = "\"*.expert.*\" names no linear layer"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        check(&cases[i]);
}

/* Engines fuse q, k, v and gate, up. */
static void test_fused_units(void **state)
{
    (void)state;
    static const rule_case cases[] = {
        {.mix = "*.k=w8a16",
         .message = "mix: engines fuse 0.attn.q, 0.attn.k, 0.attn.v, which need one type: 0.attn.q "
                    "(w8a8, by the scheme of the run) and 0.attn.k (w8a16, by *.k)"},
        {.mix = "*.q=w8a8_dynamic,*.attn.?=w8a16",
         .message = "0.attn.q (w8a8_dynamic, by *.q) and 0.attn.k (w8a16, by *.attn.?)"},
        {.mix = "0.mlp.up=float",
         .message = "0.mlp.gate (w8a8, by the scheme of the run) and 0.mlp.up (float, by 0.mlp"},
        {.mix = "*.k=w8a16,*.v=float", .compat = true, .letters = "8w-8888-"},
        /* disable_names completes a unit, whatever mix gives the rest */
        {.mix = "*.mlp.*=w8a16", .disable = "*.up", .letters = "8888--w-"},
        {.mix = "*.mlp.*=w8a16", .disable = "*.up", .compat = true, .letters = "8888w-w-"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        check(&cases[i]);
}

/* Over all that is not float, whatever its type. */
static void test_level(void **state)
{
    (void)state;
    static const char *const expected[] = {"888wddd-", "888wdd--", "888w----",
                                           "888w----", "888-----", "--------"};
    tare_context *ctx = new_context(1);
    tare_recipe *r = new_recipe(ctx);
    linear_plan l[LINEARS];
    linear_score scores[LINEARS]; /* as their units are numbered */
    reset(l);
    for (size_t i = 0; i < LINEARS; i++)
        scores[i] = (linear_score){.known = true, .value = (double)l[i].unit};
    assert_ok(ctx, tare_recipe_set(r, "mix", "*.mlp.*=w8a8_dynamic,*.o=w8a16"));
    for (int level = 0; level < 6; level++) {
        r->disable_level = level;
        reset(l);
        assert_ok(ctx, rules_apply(r, l, LINEARS, NULL, 0));
        assert_ok(ctx, rules_apply_level(r, l, scores, LINEARS));
        expect_schemes(l, LINEARS, expected[level]);
    }
    tare_recipe_free(r);
    free_context(ctx);
}

/* Each form of the list gives the same, also what a run writes down. */
static void test_forms(void **state)
{
    (void)state;
    static const char written[] =
        "\"mix\": [{\"*.mlp.*\": \"w8a8_dynamic\"}, {\"0.attn.[q,k]\": \"float\"}]";
    static const char *const forms[] = {
        "mix:\n  - \"*.mlp.*\": w8a8_dynamic\n  - \"0.attn.[q,k]\": float\n",
        "mix: [{\"*.mlp.*\": w8a8_dynamic}, \"0.attn.[q,k]=float\"]\n",
        "mix: {\"*.mlp.*\": w8a8_dynamic, \"0.attn.[q,k]\": float}\n",
        "mix: [{\"*.mlp.*\": w8a8_dynamic, \"0.attn.[q,k]\": float}]\n",
        "mix: [\"*.mlp.*=w8a8_dynamic\", \"0.attn.[q,k]=float\"]\nquant: {scheme: w8a8}\n"};
    tare_context *ctx = new_context(1);
    const char *d = temporary_folder();
    char path[128];
    snprintf(path, sizeof path, "%s/r.yaml", d);
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
        tare_recipe *r = new_recipe(ctx);
        write_text(d, "r.yaml", forms[i]);
        assert_ok(ctx, tare_recipe_set(r, "mix", "before=float")); /* a file's list replaces it */
        assert_ok(ctx, tare_recipe_load(r, path));
        expect_written(ctx, r, written);
        tare_recipe_free(r);
    }
    tare_recipe *r = new_recipe(ctx);
    assert_ok(ctx, tare_recipe_append(r, "mix", "*.mlp.*=w8a8_dynamic"));
    assert_ok(ctx, tare_recipe_append(r, "mix", "0.attn.[q,k]=float"));
    expect_written(ctx, r, written);
    assert_ok(ctx, tare_recipe_set(r, "mix", "a=b=w8a16")); /* the last "=" parts them */
    expect_written(ctx, r, "\"mix\": [{\"a=b\": \"w8a16\"}]");
    tare_recipe_free(r);
    assert_ok(ctx, folder_remove(ctx, d));
    free_context(ctx);
}

static void test_refused_forms(void **state)
{
    (void)state;
    static const char *const texts[][2] = {
        {"*.mlp.*", "\"*.mlp.*\" is not PATTERN=TYPE"},
        {"=w8a8", "mix: a type without a pattern"},
        {"", "is not PATTERN=TYPE"},
        {"*=w4a8",
         "mix: \"w4a8\" is no type; possible: w8a8, w8a8_dynamic, w8a16, w8a8_mix, w4a8_dynamic, "
         "float"},
        {"*=W8A8", "\"W8A8\" is no type"}, /* types of recipes are lower-case */
        {"*=", "\"\" is no type"},
        {"*=w8a8,", "is not PATTERN=TYPE"}};
    static const char *const files[][2] = {
        {"quant: {}\nmix: 3\n", "line 2: mix: \"3\" is not PATTERN=TYPE"},
        {"mix: [[a]]\n", "line 1: mix: needs maps of a pattern and a type"},
        {"mix: {a: [w8a8]}\n", "the type of \"a\" is not a string"},
        {"mix: {a: 8}\n", "\"8\" is no type"},
        {"mix: {a: {b: w8a8}}\n", "the type of \"a\" is not a string"},
        {"mix: [{a: w8a8}, {b: nf4}]\n", "\"nf4\" is no type"}};
    tare_context *ctx = new_context(1);
    const char *d = temporary_folder();
    char path[128];
    snprintf(path, sizeof path, "%s/r.yaml", d);
    tare_recipe *r = new_recipe(ctx);
    assert_ok(ctx, tare_recipe_set(r, "mix", "a=float"));
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        assert_fails(ctx, tare_recipe_set(r, "mix", texts[i][0]), TARE_E_USAGE, texts[i][1]);
        assert_fails(ctx, tare_recipe_append(r, "mix", texts[i][0]), TARE_E_USAGE, texts[i][1]);
    }
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        write_text(d, "r.yaml", files[i][0]);
        assert_fails(ctx, tare_recipe_load(r, path), TARE_E_USAGE, files[i][1]);
    }
    expect_written(ctx, r, "\"mix\": [{\"a\": \"float\"}]"); /* all or nothing */
    assert_fails(ctx, tare_recipe_set(r, "mix.a", "float"), TARE_E_USAGE, "is not known");
    tare_recipe_free(r);
    assert_ok(ctx, folder_remove(ctx, d));
    free_context(ctx);
}

/* Settings that do not go together, and those that do. */
static void test_checks(void **state)
{
    (void)state;
    static const struct {
        const char *settings[3][2], *message; /* NULL: fine */
    } cases[] = {
        {{{"quant.scheme", "w8a8"}, {"quant.a_bit", "16"}}, "contradicts quant.scheme w8a8"},
        {{{"quant.scheme", "w8a8_dynamic"}, {"quant.a_bit", "16"}}, "contradicts"},
        {{{"quant.scheme", "w8a16"}, {"quant.a_bit", "16"}}, NULL},
        {{{"quant.scheme", "w8a16"}}, NULL},
        {{{"quant.a_bit", "16"}, {"mix", "a=w8a8_dynamic"}}, NULL},
        {{{"quant.scheme", "w8a8_dynamic"}, {"quant.mm_tensor", "true"}}, "w8a8_dynamic needs a"},
        {{{"quant.mm_tensor", "true"}, {"mix", "a=w8a8_dynamic"}}, "w8a8_dynamic needs a"},
        {{{"quant.mm_tensor", "true"}, {"mix", "a=w8a16"}}, NULL},
        {{{"quant.scheme", "w8a8_dynamic"}, {"quant.w_sym", "false"}}, "need symmetric weights"},
        {{{"quant.scheme", "w8a16"}, {"quant.w_sym", "false"}, {"mix", "a=w8a8"}}, "symmetric"},
        {{{"quant.scheme", "w8a16"}, {"quant.w_sym", "false"}, {"mix", "a=float"}}, NULL},
        {{{"quant.scheme", "w8a16"}, {"anti_outlier.anti_method", "m3"}}, "weights alone"},
        {{{"quant.scheme", "w8a8_dynamic"}, {"anti_outlier.anti_method", "m3"}}, NULL},
        {{{"quant.scheme", "w8a16"}, {"fa_quant", "true"}, {"mix", "a=w8a8_dynamic"}}, NULL},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        tare_context *ctx = new_context(1);
        tare_recipe *r = new_recipe(ctx);
        for (size_t s = 0; s < 3 && cases[i].settings[s][0]; s++)
            assert_ok(ctx, tare_recipe_set(r, cases[i].settings[s][0], cases[i].settings[s][1]));
        if (cases[i].message)
            assert_fails(ctx, recipe_check(r), TARE_E_USAGE, cases[i].message);
        else
            assert_ok(ctx, recipe_check(r));
        tare_recipe_free(r);
        free_context(ctx);
    }
}

static tare_status load_and_apply(tare_context *ctx, void *user)
{
    tare_status status = TARE_OK;
    tare_recipe *r = NULL;
    linear_plan l[LINEARS];
    reset(l);
    TRY(tare_recipe_create(ctx, &r));
    TRY(tare_recipe_load(r, user));
    TRY(tare_recipe_append(r, "mix", "*.o=w8a16"));
    TRY(rules_apply(r, l, LINEARS, NULL, 0));
    expect_schemes(l, LINEARS, "888wdd--");
done:
    tare_recipe_free(r);
    return status;
}

static void test_every_allocation_may_fail(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    const char *d = temporary_folder();
    char path[128];
    snprintf(path, sizeof path, "%s/r.yaml", d);
    write_text(d, "r.yaml", "mix: [{\"*.mlp.*\": w8a8_dynamic}, \"0.mlp.down=float\"]\n");
    each_allocation_fails(load_and_apply, path);
    assert_ok(ctx, folder_remove(ctx, d));
    free_context(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_which_rule_decides),
                                       cmocka_unit_test(test_fused_units),
                                       cmocka_unit_test(test_level),
                                       cmocka_unit_test(test_forms),
                                       cmocka_unit_test(test_refused_forms),
                                       cmocka_unit_test(test_checks),
                                       cmocka_unit_test(test_every_allocation_may_fail)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
