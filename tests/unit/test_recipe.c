/* quantize/recipe and fallback: settings from text and YAML, refusals, which linears stay float. */
#include "fixture.h"

#include "quantize/fallback.h"
#include "quantize/recipe.h"

static tare_recipe *new_recipe(tare_context *ctx)
{
    tare_recipe *r;
    assert_ok(ctx, tare_recipe_create(ctx, &r));
    return r;
}

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
        {"quant.act_method", "4", "quant.act_method: \"4\" is not a whole number from 1 to 3"},
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
        {"quant: {act_method: 4}", "line 1: quant.act_method"},
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

/* ---- fallback ---- */

enum { LINEARS = 5 };

static void reset(fallback_linear *l)
{
    static const struct {
        const char *name;
        size_t unit;
        double score;
    } rows[LINEARS] = {
        {"0.q", 1, 3}, {"0.k", 1, 3}, {"0.o", 2, 9}, {"0.down", 3, 5}, {"head", 4, 1}};
    for (size_t i = 0; i < LINEARS; i++)
        l[i] = (fallback_linear){.name = rows[i].name,
                                 .unit = rows[i].unit,
                                 .is_head = i == 4,
                                 .has_score = true,
                                 .score = rows[i].score};
}

static void expect_floats(const fallback_linear *l, const char *bits)
{
    for (size_t i = 0; i < LINEARS; i++) {
        if (l[i].is_float != (bits[i] == '1'))
            fail_msg("%s: is_float %d, expected %s", l[i].name, l[i].is_float, bits);
    }
}

static void test_fallback_by_name(void **state)
{
    (void)state;
    static const char *const extra[] = {"0.attn"};
    tare_context *ctx = new_context(1);
    fallback_linear l[LINEARS];
    tare_recipe *r = new_recipe(ctx);
    reset(l);
    assert_ok(ctx, fallback_by_name(r, l, LINEARS, extra, 1));
    expect_floats(l, "00001");
    assert_ok(ctx, tare_recipe_set(r, "fallback.disable_names", "0.k,*.down,0.attn"));
    reset(l);
    assert_ok(ctx, fallback_by_name(r, l, LINEARS, extra, 1));
    expect_floats(l, "11011"); /* q follows k: engines fuse them */
    assert_ok(ctx, tare_recipe_set(r, "run.compat", "msmodelslim"));
    reset(l);
    assert_fails(ctx, fallback_by_name(r, l, LINEARS, extra, 1), TARE_E_USAGE,
                 "\"*.down\" names no linear");
    assert_ok(ctx, tare_recipe_set(r, "fallback.disable_names", "0.k"));
    assert_ok(ctx, tare_recipe_set(r, "fallback.disable_last_linear", "false"));
    reset(l);
    assert_ok(ctx, fallback_by_name(r, l, LINEARS, extra, 1));
    expect_floats(l, "01000");
    assert_ok(ctx, tare_recipe_set(r, "fallback.disable_names", "0.donw"));
    assert_fails(ctx, fallback_by_name(r, l, LINEARS, extra, 1), TARE_E_USAGE, "near: 0.down");
    tare_recipe_free(r);
    free_context(ctx);
}

static void test_fallback_by_level(void **state)
{
    (void)state;
    static const char *const expected[2][6] = {
        /* L0 to L5: whole groups by falling score; o (9), down (5), {q,k} (3), head (1) */
        {"00000", "00100", "00110", "11110", "11110", "11111"},
        /* compat: single linears, ties in module order */
        {"00000", "00100", "00110", "10110", "11110", "11111"}};
    tare_context *ctx = new_context(1);
    fallback_linear l[LINEARS];
    tare_recipe *r = new_recipe(ctx);
    for (int compat = 0; compat < 2; compat++) {
        r->compat = compat;
        for (int level = 0; level < 6; level++) {
            r->disable_level = level;
            reset(l);
            assert_ok(ctx, fallback_by_level(r, l, LINEARS));
            expect_floats(l, expected[compat][level]);
        }
    }
    r->compat = 0;
    r->disable_level = 1;
    reset(l);
    l[2].is_float = true;   /* already float: skipped */
    l[3].has_score = false; /* never taken */
    assert_ok(ctx, fallback_by_level(r, l, LINEARS));
    expect_floats(l, "11100");
    tare_recipe_free(r);
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
    assert_ok(ctx, folder_remove(ctx, d));
    free_context(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_defaults),
                                       cmocka_unit_test(test_set_and_refuse),
                                       cmocka_unit_test(test_yaml),
                                       cmocka_unit_test(test_fallback_by_name),
                                       cmocka_unit_test(test_fallback_by_level),
                                       cmocka_unit_test(test_every_allocation_may_fail)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
