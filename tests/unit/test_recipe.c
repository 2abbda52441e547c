/* quantize/recipe and fallback: settings from text and YAML, refusals, which linears stay float. */
#include "recipe_fixture.h"

#include "quantize/rules.h"

static void test_defaults(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    tare_recipe *r = new_recipe(ctx);
    assert_true(r->w_bit == 8 && r->a_bit == 8 && r->act_method == 1 && r->w_sym && !r->mm_tensor &&
                r->pr == 1);
    assert_true(r->disable_level == 0 && r->disable_last_linear && r->compat == 0 &&
                r->dtype == -1);
    assert_int_equal(r->save_types.count, 1);
    assert_ok(ctx, recipe_check(r));
    tare_recipe_free(r);
    free_context(ctx);
}

static void test_set_and_refuse(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    tare_recipe *r = new_recipe(ctx);
    assert_ok(ctx, tare_recipe_set(r, "quant.act_method", "3"));
    assert_int_equal(r->act_method, 3);
    assert_ok(ctx, tare_recipe_set(r, "fallback.disable_level", "L12"));
    assert_int_equal(r->disable_level, 12);
    assert_ok(ctx, tare_recipe_set(r, "run.dtype", "float16"));
    assert_int_equal(r->dtype, TARE_F16);
    assert_ok(ctx, tare_recipe_set(r, "fallback.disable_names", "a,b[,x]c,d"));
    assert_int_equal(r->disable_names.count, 3);
    assert_string_equal(r->disable_names.items[1], "b[,x]c");
    assert_ok(ctx, tare_recipe_append(r, "fallback.disable_names", "e"));
    assert_int_equal(r->disable_names.count, 4);
    assert_ok(ctx, tare_recipe_set(r, "fallback.disable_names", "f"));
    assert_int_equal(r->disable_names.count, 1);

    static const struct {
        const char *name, *text, *message;
    } refused[] = {
        {"quant.act_method", "5", "quant.act_method: \"5\" is not a whole number from 1 to 4"},
        {"quant.act_method", "", "whole number"},
        {"quant.act_method", "2x", "whole number"},
        {"quant.pr", "1.5", "from 0 to 1"},
        {"quant.pr", "nan", "from 0 to 1"},
        {"quant.mm_tensor", "yes", "neither true nor false"},
        {"fallback.disable_level", "L01", "is not a level"},
        {"fallback.disable_level", "5", "is not a level"},
        {"fallback.disable_level", "L", "is not a level"},
        {"run.dtype", "int8", "possible: bfloat16, float16, float32"},
        {"save.types", "onnx", "possible: ascendv1"},
        {"save.types", "", "is not known"},
        {"fallback.disable_names", "a,,b", "empty"},
        {"quant.act_metod", "1", "near: quant.act_method"},
        {"nothing", "1", "is not known"},
    };
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
        assert_fails(ctx, tare_recipe_set(r, refused[i].name, refused[i].text), TARE_E_USAGE,
                     refused[i].message);
    tare_recipe_free(r);
    r = new_recipe(ctx);
    assert_ok(ctx, tare_recipe_set(r, "quant.w_bit", "4"));
    assert_fails(ctx, recipe_check(r), TARE_E_USAGE, "supported: 8 with 8");
    tare_recipe_free(r);
    free_context(ctx);
}

static void test_yaml(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    const char *d = temporary_folder();
    char path[128];
    snprintf(path, sizeof path, "%s/r.yaml", d);
    tare_recipe *r = new_recipe(ctx);
    write_text(d, "r.yaml",
               "quant: {w_bit: 8, act_method: 2, pr: 0.5, mm_tensor: true}\n"
               "fallback:\n  disable_level: L5\n  disable_last_linear: false\n"
               "  disable_names: [\"model.layers.*.mlp.down_proj\", lm_head]\n"
               "calibration: {samples: 50, max_length: 4096}\n"
               "save: {types: [ascendv1, numpy], part_file_size: 2}\n"
               "run: {dtype: bfloat16, compute: fp32, compat: null}\n");
    assert_ok(ctx, tare_recipe_load(r, path));
    assert_true(r->act_method == 2 && r->pr == 0.5 && r->mm_tensor && r->disable_level == 5 &&
                !r->disable_last_linear);
    assert_true(r->samples == 50 && r->max_length == 4096 && r->part_file_size == 2 &&
                r->dtype == TARE_BF16);
    assert_int_equal(r->disable_names.count, 2);
    assert_int_equal(r->save_types.count, 2);
    assert_true(r->compute == COMPUTE_FP32 && r->compat == 0);

    static const char *const refused[][2] = {
        {"quant: {act_method: 5}", "line 1: quant.act_method"},
        {"quant:\n  bits: 4\n", "line 2: setting \"quant.bits\" is not known"},
        {"quant: 3", "section \"quant\" must be a map"},
        {"- 1", "a recipe is a map of sections"},
        {"quant: {act_method: [1]}", "needs a single value"},
        {"fallback: {disable_names: [[a]]}", "is not a string"},
        {"quant: {", "line"}};
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        write_text(d, "r.yaml", refused[i][0]);
        assert_fails(ctx, tare_recipe_load(r, path), TARE_E_USAGE, refused[i][1]);
    }
    tare_recipe_free(r);
    assert_ok(ctx, folder_remove(ctx, d));
    free_context(ctx);
}

static void test_fa_quant(void **state)
{
    (void)state;
    static const struct {
        const char *yaml;
        bool on;
        int64_t amp;
        const char *written;
    } cases[] = {{"quant: {w_bit: 8}", false, 0, "\"fa_quant\": false"},
                 {"fa_quant: {fa_amp: 3}", true, 3,
                  "\"fa_quant\": {\"fa_amp\": 3, \"balance\": false, \"v_method\": \"max\"}"},
                 {"fa_quant: {}", true, 0,
                  "\"fa_quant\": {\"fa_amp\": 0, \"balance\": false, \"v_method\": \"max\"}"},
                 {"fa_quant: true", true, 0,
                  "\"fa_quant\": {\"fa_amp\": 0, \"balance\": false, \"v_method\": \"max\"}"},
                 {"fa_quant: {fa_amp: null}", true, 0,
                  "\"fa_quant\": {\"fa_amp\": 0, \"balance\": false, \"v_method\": \"max\"}"},
                 {"fa_quant: false", false, 0, "\"fa_quant\": false"},
                 {"fa_quant:", false, 0, "\"fa_quant\": false"}};
    static const char *const refused[][2] = {
        {"fa_quant: {fa_amp: 1.5}", "fa_amp must be int, not float."},
        {"fa_quant: {fa_amp: true}", "fa_amp must be int, not bool."},
        {"fa_quant: {fa_amp: many}", "fa_amp must be int, not str."},
        {"fa_quant: {fa_amp: -1}", "fa_amp = -1 is smaller than 0."},
        {"fa_quant: 3", "line 1: fa_quant: \"3\" is neither true nor false"},
        {"fa_quant: [1]", "line 1: fa_quant: needs a single value"},
        {"fa_quant: {fa_apm: 1}", "near: fa_quant.fa_amp"}};
    tare_context *ctx = new_context(1);
    const char *d = temporary_folder();
    char path[128];
    snprintf(path, sizeof path, "%s/r.yaml", d);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        tare_recipe *r = new_recipe(ctx);
        write_text(d, "r.yaml", cases[i].yaml);
        assert_ok(ctx, tare_recipe_load(r, path));
        assert_ok(ctx, recipe_check(r));
        assert_true(r->fa_quant == cases[i].on && r->fa_amp == cases[i].amp);
        expect_written(ctx, r, cases[i].written);
        tare_recipe_free(r);
    }
    tare_recipe *r = new_recipe(ctx);
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        write_text(d, "r.yaml", refused[i][0]);
        assert_fails(ctx, tare_recipe_load(r, path), TARE_E_USAGE, refused[i][1]);
    }
    tare_recipe_free(r);
    r = new_recipe(ctx);
    assert_ok(ctx, tare_recipe_set(r, "fa_quant.fa_amp", "0"));
    assert_fails(ctx, recipe_check(r), TARE_E_USAGE, "fa_amp is given, but fa_quant is not");
    assert_ok(ctx, tare_recipe_set(r, "fa_quant", "true"));
    assert_ok(ctx, recipe_check(r));
    assert_ok(ctx, tare_recipe_set(r, "fa_quant", "false"));
    assert_ok(ctx, recipe_check(r));
    tare_recipe_free(r);
    assert_ok(ctx, folder_remove(ctx, d));
    free_context(ctx);
}

static void test_anti_outlier(void **state)
{
    (void)state;
    enum { MAX_SET = 3 };
    static const struct {
        const char *set[MAX_SET][2], *refusal; /* NULL: accepted */
    } cases[] = {
        {{{"anti_method", "m1"}}, NULL},
        {{{"anti_method", "m6"}, {"alpha", "0.5"}, {"beta", "0.5"}}, NULL},
        {{{"anti_method", "m6"}, {"alpha", "-1.5"}}, NULL}, /* odd: two warnings */
        {{{"anti_method", "m3"}, {"w_bit", "4"}, {"a_bit", "16"}}, NULL},
        {{{"anti_method", "m3"}, {"w_sym", "false"}}, NULL},
        {{{"anti_method", "m2"}, {"disable_anti_names", "a,b"}}, NULL},
        {{{"anti_method", "m1"}, {"w_bit", "6"}},
         "anti_outlier.w_bit 6 is not known; possible: 4, 8"},
        {{{"anti_method", "m4"}, {"a_bit", "16"}},
         "anti_outlier.a_bit 16 is not known; possible: 8, and 16 with m3"},
        {{{"anti_method", "m3"}, {"a_bit", "12"}}, "possible: 8, and 16 with m3"},
        {{{"anti_method", "m5"}, {"w_sym", "false"}}, "anti_outlier.w_sym: false is possible with"},
        {{{"alpha", "0.5"}}, "possible: m1, m2, m3, m4, m5, m6"},
        {{{"disable_anti_names", "a"}}, "without an anti_method"},
        {{{"anti_method", "none"}}, NULL}};
    tare_context *ctx = new_context(1);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        tare_recipe *r = new_recipe(ctx);
        for (size_t j = 0; j < MAX_SET && cases[i].set[j][0]; j++) {
            char name[64];
            snprintf(name, sizeof name, "anti_outlier.%s", cases[i].set[j][0]);
            assert_ok(ctx, tare_recipe_set(r, name, cases[i].set[j][1]));
        }
        if (cases[i].refusal)
            assert_fails(ctx, recipe_check(r), TARE_E_USAGE, cases[i].refusal);
        else
            assert_ok(ctx, recipe_check(r));
        tare_recipe_free(r);
    }
    tare_recipe *r = new_recipe(ctx);
    assert_fails(ctx, tare_recipe_set(r, "anti_outlier.anti_method", "m7"), TARE_E_USAGE,
                 "anti_outlier.anti_method: \"m7\" is not known; possible: none, m1, m2, m3, m4, "
                 "m5, m6");
    assert_fails(ctx, tare_recipe_set(r, "anti_outlier.w_bit", "2"), TARE_E_USAGE, "from 4 to 8");
    assert_fails(ctx, tare_recipe_set(r, "anti_outlier.alpha", "inf"), TARE_E_USAGE,
                 "is not a number");
    expect_written(ctx, r, "\"anti_outlier\": {\"anti_method\": \"none\", \"w_bit\": 8, ");
    expect_written(ctx, r, "\"alpha\": null");
    tare_recipe_free(r);
    free_context(ctx);
}

/* The files themselves and the names give the same; default.yaml says what a new recipe is. */
static void test_shipped_recipes(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    assert_int_equal(num_shipped_recipes, 12);
    for (size_t i = 0; i < num_shipped_recipes; i++) {
        char path[1024];
        buffer texts[2];
        for (int by_path = 0; by_path < 2; by_path++) {
            tare_recipe *r = new_recipe(ctx);
            snprintf(path, sizeof path, "%s/%s.yaml", TARE_RECIPES, shipped_recipes[i].name);
            assert_ok(ctx, tare_recipe_load(r, by_path ? path : shipped_recipes[i].name));
            assert_ok(ctx, recipe_check(r));
            buffer_init(&texts[by_path], ctx);
            recipe_write(r, &texts[by_path], 0);
            assert_ok(ctx, texts[by_path].status);
            tare_recipe_free(r);
        }
        assert_string_equal(texts[0].data, texts[1].data);
        if (strcmp(shipped_recipes[i].name, "default") == 0) {
            tare_recipe *r = new_recipe(ctx);
            expect_written(ctx, r, texts[0].data);
            tare_recipe_free(r);
        }
        buffer_free(&texts[0]);
        buffer_free(&texts[1]);
    }
    tare_recipe *r = new_recipe(ctx);
    assert_ok(ctx, tare_recipe_load(r, "llama3.1-70b"));
    assert_true(r->anti_method == 3 && r->act_method == 3 && r->disable_level == 5 && r->fa_quant &&
                r->fa_amp == 0 && r->disable_last_linear && r->samples == 50);
    assert_string_equal(r->disable_names.items[0], "model.layers.*.mlp.down_proj");
    tare_recipe_free(r);
    r = new_recipe(ctx);
    assert_ok(ctx, tare_recipe_load(r, "qwen2.5-72b"));
    assert_true(r->anti_method == 0 && r->act_method == 1 && r->disable_level == 0 && r->fa_quant &&
                r->fa_amp == 0 && r->disable_names.count == 1);
    assert_fails(ctx, tare_recipe_load(r, "llama"), TARE_E_USAGE,
                 "llama: neither a file nor one of the recipes that ship with tare: all-int8, "
                 "best-c8, best-static, deepseek-r1-w8a8-fa3, deepseek-v3-w4a8, deepseek-v3-w8a8, "
                 "deepseek-v3-w8a8-fa3, "
                 "deepseek-v3.1-w8a8-fa3, default, llama3.1-70b, qwen2.5-72b, qwen3-moe-w8a8");
    tare_recipe_free(r);
    free_context(ctx);
}

/* ---- fallback ---- */

enum { LINEARS = 5 };

static void reset(linear_plan *l)
{
    static const struct {
        const char *name;
        size_t unit;
    } rows[LINEARS] = {{"0.q", 1}, {"0.k", 1}, {"0.o", 2}, {"0.down", 3}, {"head", 4}};
    for (size_t i = 0; i < LINEARS; i++)
        l[i] = (linear_plan){
            .name = rows[i].name, .scheme = SCHEME_W8A8, .unit = rows[i].unit, .is_head = i == 4};
}

static void expect_floats(const linear_plan *l, const char *bits)
{
    for (size_t i = 0; i < LINEARS; i++) {
        if (plan_is_float(&l[i]) != (bits[i] == '1'))
            fail_msg("%s: %s, expected %s", l[i].name, scheme_of(l[i].scheme)->name, bits);
    }
}

static void test_rules_apply(void **state)
{
    (void)state;
    static const char *const extra[] = {"0.attn"};
    tare_context *ctx = new_context(1);
    linear_plan l[LINEARS];
    tare_recipe *r = new_recipe(ctx);
    reset(l);
    assert_ok(ctx, rules_apply(r, l, LINEARS, extra, 1));
    expect_floats(l, "00001");
    assert_ok(ctx, tare_recipe_set(r, "fallback.disable_names", "0.k,*.down,0.attn"));
    reset(l);
    assert_ok(ctx, rules_apply(r, l, LINEARS, extra, 1));
    expect_floats(l, "11011"); /* q follows k: engines fuse them */
    assert_ok(ctx, tare_recipe_set(r, "run.compat", "msmodelslim"));
    reset(l);
    assert_ok(ctx, rules_apply(r, l, LINEARS, extra, 1));
    expect_floats(l, "01011"); /* the reference does not complete a group */
    assert_ok(ctx, tare_recipe_set(r, "fallback.disable_names", "*.up"));
    reset(l);
    assert_fails(ctx, rules_apply(r, l, LINEARS, extra, 1), TARE_E_USAGE,
                 "\"*.up\" names no linear");
    assert_ok(ctx, tare_recipe_set(r, "fallback.disable_names", "0.k"));
    assert_ok(ctx, tare_recipe_set(r, "fallback.disable_last_linear", "false"));
    reset(l);
    assert_ok(ctx, rules_apply(r, l, LINEARS, extra, 1));
    expect_floats(l, "01000");
    assert_ok(ctx, tare_recipe_set(r, "fallback.disable_names", "0.donw"));
    assert_fails(ctx, rules_apply(r, l, LINEARS, extra, 1), TARE_E_USAGE, "near: 0.down");
    assert_true(rules_disable(r, "0.donw") && !rules_disable(r, "0.don*"));
    r->compat = 0;
    assert_ok(ctx, tare_recipe_set(r, "fallback.disable_names", "*.attn"));
    assert_true(rules_disable(r, "0.attn") && !rules_disable(r, "0.attn.q"));
    tare_recipe_free(r);
    free_context(ctx);
}

static void test_rules_apply_level(void **state)
{
    (void)state;
    static const char *const expected[2][6] = {
        /* L0 to L5: whole groups by falling score; o (9), down (5), {q,k} (3), head (1) */
        {"00000", "00100", "00110", "11110", "11110", "11111"},
        /* compat: single linears, ties in module order */
        {"00000", "00100", "00110", "10110", "11110", "11111"}};
    tare_context *ctx = new_context(1);
    linear_plan l[LINEARS];
    linear_score scores[LINEARS] = {{true, 3}, {true, 3}, {true, 9}, {true, 5}, {true, 1}};
    tare_recipe *r = new_recipe(ctx);
    for (int compat = 0; compat < 2; compat++) {
        r->compat = compat;
        for (int level = 0; level < 6; level++) {
            r->disable_level = level;
            reset(l);
            assert_ok(ctx, rules_apply_level(r, l, scores, LINEARS));
            expect_floats(l, expected[compat][level]);
        }
    }
    r->compat = 0;
    r->disable_level = 1;
    reset(l);
    l[2].scheme = SCHEME_FLOAT; /* already float: skipped */
    scores[3].known = false;    /* never taken */
    assert_ok(ctx, rules_apply_level(r, l, scores, LINEARS));
    expect_floats(l, "11100");
    tare_recipe_free(r);
    free_context(ctx);
}

/* Everything that a recipe holds, as text. */
static void describe(const tare_recipe *r, buffer *out)
{
    out->length = 0;
    recipe_write(r, out, 0);
    for (size_t i = 0; i < r->max_memory.count; i++)
        buffer_printf(out, " %lld=%llu", (long long)r->max_memory.items[i].device,
                      (unsigned long long)r->max_memory.items[i].bytes);
    buffer_printf(out, " %d", r->fa_amp_given);
    assert_ok(r->ctx, out->status);
}

/* A failure in the middle of a file, a list or a number of devices leaves the recipe as it was. */
static void test_all_or_nothing(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    const char *d = temporary_folder();
    char path[128];
    buffer before, after;
    buffer_init(&before, ctx);
    buffer_init(&after, ctx);
    snprintf(path, sizeof path, "%s/r.yaml", d);
    tare_recipe *r = new_recipe(ctx);
    assert_ok(ctx, tare_recipe_set(r, "fallback.disable_names", "x,y"));
    assert_ok(ctx, tare_recipe_set(r, "run.max_memory", "cpu=8GiB,0=1GiB"));
    describe(r, &before);
    static const char *const files[] = {
        "quant: {act_method: 2, pr: 0.5}\nfallback: {disable_names: [a], disable_level: 5}\n",
        "fallback: {disable_names: [a, [b]]}\n",
        "save: {types: [numpy, onnx]}\n",
        "run: {dtype: float16, max_memory: {cpu: 1GiB, 1: 3}}\nquant: {w_bit: eight}\n",
        "run: {max_memory: {cpu: 1GiB, 1: none}}\n",
        "fa_quant: {fa_amp: 1}\nquant: 3\n",
        "quant: {act_method: 2}\nqant: {act_method: 3}\n"};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        write_text(d, "r.yaml", files[i]);
        assert_int_equal(tare_recipe_load(r, path), TARE_E_USAGE);
        describe(r, &after);
        assert_string_equal(after.data, before.data);
    }
    static const char *const settings[][2] = {{"fallback.disable_names", "a,,b"},
                                              {"save.types", "numpy,onnx"},
                                              {"run.max_memory", "1=1GiB,cpu=2"},
                                              {"fa_quant.fa_amp", "99999999999999999999"}};
    for (size_t i = 0; i < sizeof settings / sizeof *settings; i++) {
        assert_int_equal(tare_recipe_set(r, settings[i][0], settings[i][1]), TARE_E_USAGE);
        assert_int_equal(tare_recipe_append(r, settings[i][0], settings[i][1]), TARE_E_USAGE);
        describe(r, &after);
        assert_string_equal(after.data, before.data);
    }
    buffer_free(&before);
    buffer_free(&after);
    tare_recipe_free(r);
    assert_ok(ctx, folder_remove(ctx, d));
    free_context(ctx);
}

static tare_status load_recipe(tare_context *ctx, void *user)
{
    tare_recipe *r = NULL;
    tare_status status = tare_recipe_create(ctx, &r);
    if (status == TARE_OK)
        status = tare_recipe_load(r, user);
    if (status == TARE_OK)
        status = tare_recipe_append(r, "fallback.disable_names", "x,y");
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
    write_text(d, "r.yaml", "fallback: {disable_names: [a, b]}\nquant: {act_method: 2}\n");
    each_allocation_fails(load_recipe, path);
    each_allocation_fails(load_recipe, (void *)(uintptr_t) "llama3.1-70b");
    assert_ok(ctx, folder_remove(ctx, d));
    free_context(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),       cmocka_unit_test(test_set_and_refuse),
        cmocka_unit_test(test_yaml),           cmocka_unit_test(test_fa_quant),
        cmocka_unit_test(test_anti_outlier),   cmocka_unit_test(test_shipped_recipes),
        cmocka_unit_test(test_rules_apply),    cmocka_unit_test(test_rules_apply_level),
        cmocka_unit_test(test_all_or_nothing), cmocka_unit_test(test_every_allocation_may_fail)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
