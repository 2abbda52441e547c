/* However a run is laid out in memory (whole blocks, parts, units; streams in memory or spilled;
 * one batch or many), the output is the same. */
#include "pipeline_fixture.h"

#define MODEL(name) TARE_TEST_DATA "/golden/" name "/model"

enum { LAYOUTS = 16 }; /* more than there are: the last ones are the smallest again */

static char folder[64], first[96], other[96];

static int set_up(void **state)
{
    (void)state;
    snprintf(folder, sizeof folder, "%s", temporary_folder());
    snprintf(first, sizeof first, "%s/first", folder);
    snprintf(other, sizeof other, "%s/other", folder);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    remove_tree(folder);
    return 0;
}

static void quantize_into(tare_context *ctx, const char *model, const char *calib,
                          const tare_recipe *recipe, size_t skip, const char *out)
{
    tare_quantize_options o;
    tare_quantize_options_init(&o);
    o.model = model;
    o.out = out;
    o.recipe = recipe;
    o.calib = calib;
    o.skip_layouts = skip;
    remove_tree(out);
    assert_ok(ctx, tare_quantize(ctx, &o, NULL));
}

static void expect_one_output_of(const char *model, const char *calib, const char *const *settings)
{
    tare_context *ctx = new_context(2);
    tare_recipe *recipe = make_recipe(ctx, settings);
    quantize_into(ctx, model, calib, recipe, 0, first);
    for (size_t skip = 1; skip < LAYOUTS; skip++) {
        quantize_into(ctx, model, calib, recipe, skip, other);
        assert_same_folders(first, other, "");
    }
    tare_recipe_free(recipe);
    free_context(ctx);
}

static void expect_one_output(const char *model, const char *const *settings)
{
    expect_one_output_of(model, CALIB, settings);
}

static void test_plain(void **state)
{
    (void)state;
    expect_one_output(MODEL("llama"),
                      (const char *[]){"quant.act_method=2", "fa_quant=true", NULL});
    expect_one_output(MODEL("qwen3"), (const char *[]){"quant.kv_cache=c8", NULL});
}

static void test_two_passes(void **state)
{
    (void)state;
    expect_one_output(MODEL("qwen2"),
                      (const char *[]){"quant.act_method=3", "anti_outlier.anti_method=m3",
                                       "fallback.disable_level=L3", NULL});
}

/* m4 and m6 smooth from rows of a linear: its unit and the next stay together. */
static void test_pairs_of_linears(void **state)
{
    (void)state;
    expect_one_output(MODEL("llama"), (const char *[]){"anti_outlier.anti_method=m6", NULL});
    expect_one_output(MODEL("qwen3"), (const char *[]){"anti_outlier.anti_method=m4",
                                                       "save.types=safe_tensor", NULL});
}

static void test_compat(void **state)
{
    (void)state;
    expect_one_output(MODEL("llama"),
                      (const char *[]){"run.compat=msmodelslim", "quant.act_method=3",
                                       "anti_outlier.anti_method=m3", "run.dtype=bfloat16", NULL});
}

static void test_npy_files_are_streams(void **state)
{
    (void)state;
    expect_one_output(MODEL("llama"),
                      (const char *[]){"save.types=ascendv1,numpy", "quant.kv_cache=c8",
                                       "fallback.disable_names=*.o_proj", NULL});
}

/* The inputs of dynamic linears are measured token by token, beside static ones of the layer. */
static void test_several_schemes(void **state)
{
    (void)state;
    expect_one_output(MODEL("qwen2"),
                      (const char *[]){"quant.scheme=w8a8_dynamic", "run.dtype=bfloat16",
                                       "mix=*.o_proj=w8a16,*.self_attn.*=w8a8", NULL});
    expect_one_output(MODEL("llama"),
                      (const char *[]){"quant.scheme=w8a8_dynamic", "quant.pr=0.5",
                                       "anti_outlier.anti_method=m3", "fa_quant=true",
                                       "fallback.disable_level=L2", NULL});
    expect_one_output(MODEL("qwen2"),
                      (const char *[]){"run.compat=msmodelslim", "mix=*.mlp.*=w8a8_dynamic",
                                       "save.types=safe_tensor", NULL});
}

/* Samples run up to a unit, then through it: the units of a block in one segment, where npy files
 * ask for that, or each by itself. */
static void test_final_scales(void **state)
{
    (void)state;
    expect_one_output(
        MODEL("llama"),
        (const char *[]){"quant.act_method=4", "fa_quant.v_method=mse", "fa_quant=true", NULL});
    expect_one_output(MODEL("qwen2"),
                      (const char *[]){"quant.final_scales=true", "quant.act_method=3",
                                       "anti_outlier.anti_method=m6", "quant.kv_cache=c8",
                                       "mix=*.o_proj=w8a8_dynamic,*.down_proj=float",
                                       "quant.pr=0.5", NULL});
    expect_one_output(MODEL("qwen3"),
                      (const char *[]){"save.types=ascendv1,numpy", "quant.act_method=4", NULL});
}

/* Hessians sum the same rows in the same order, whatever a batch holds; balance sees the same. */
static void test_gptq(void **state)
{
    (void)state;
    expect_one_output(MODEL("llama"),
                      (const char *[]){"quant.weight_method=gptq", "quant.act_method=4",
                                       "rotation=true", "fa_quant=true", "fa_quant.balance=true",
                                       "anti_outlier.anti_method=balance",
                                       "mix=*.down_proj=w8a8_dynamic", NULL});
    expect_one_output(MODEL("qwen2"),
                      (const char *[]){"quant.weight_method=gptq", "anti_outlier.anti_method=m6",
                                       "mix=*.o_proj=w8a16,*.down_proj=w8a8_dynamic",
                                       "fallback.disable_level=L3", NULL});
    expect_one_output(MODEL("llama"), (const char *[]){"quant.weight_method=gptq", "quant.pr=0.5",
                                                       "save.types=ascendv1,numpy", NULL});
}

/* The same of experts, whose rows of all samples may be one batch. */
static void test_gptq_of_experts(void **state)
{
    (void)state;
    expect_one_output_of(MODEL("qwen3_moe"), TARE_TEST_DATA "/golden/qwen3_moe/calib_ids.json",
                         (const char *[]){"quant.weight_method=gptq", "quant.scheme=w8a8_dynamic",
                                          "mix=*.mlp.experts.*=w4a8_dynamic", NULL});
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_plain),
                                       cmocka_unit_test(test_two_passes),
                                       cmocka_unit_test(test_pairs_of_linears),
                                       cmocka_unit_test(test_compat),
                                       cmocka_unit_test(test_npy_files_are_streams),
                                       cmocka_unit_test(test_several_schemes),
                                       cmocka_unit_test(test_final_scales),
                                       cmocka_unit_test(test_gptq),
                                       cmocka_unit_test(test_gptq_of_experts)};
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
