/* The rules of docs/verify.md: a good output passes, and each rule catches an output in which one
 * thing was broken. */
#include "verify_fixture.h"

#include <math.h>

#include "output/verify_internal.h"

/* ---- good outputs ---- */

/* The tiny model leaves v_proj out and has a float o_proj; nothing else is unusual. */
static void test_good_outputs(void **state)
{
    (void)state;
    for (unsigned save = 1; save < 1u << SAVE_TYPES; save++) {
        output_case c;
        findings all;
        tare_verify_result result = {.size = sizeof result};
        init_case(&c);
        write_model_weights(&c);
        c.save = save;
        c.verify = false;
        make_good_output(&c);
        tare_context *ctx = new_context(1);
        if (run_verify(ctx, &c, c.model, &all, &result) != TARE_OK || all.warned != 0)
            fail_msg("%s:\n%s", tare_last_error(ctx), all.text);
        assert_int_equal(result.failures + result.warnings, 0);
        static const char *const NAMES[] = {"ascendv1", "safe_tensor", "numpy",
                                            "compressed-tensors"};
        static const size_t TENSORS[] = {18, 18, 18, 12};
        char layouts[128] = "";
        size_t tensors = 0;
        for (unsigned i = 0; i < SAVE_TYPES; i++) {
            if (!(save & 1u << i))
                continue;
            size_t used = strlen(layouts);
            snprintf(layouts + used, sizeof layouts - used, "%s%s", used ? ", " : "", NAMES[i]);
            tensors += TENSORS[i];
        }
        assert_string_equal(result.layout, layouts);
        assert_int_equal(result.tensors, tensors);
        free_context(ctx);
        end_case(&c);
    }
}

/* ---- one broken thing a row, in the ascendv1 output ---- */

static void truncate_shard(const output_case *c)
{
    char path[256];
    file_path_of(c, SHARD, path, sizeof path);
    assert_int_equal(truncate(path, 900), 0);
}
static void leave_temporary(const output_case *c)
{
    write_text(c->out, "x.tmp", "");
}
static void add_stranger(const output_case *c)
{
    write_text(c->out, "model.safetensors", "");
}
static void add_index(const output_case *c)
{
    write_text(c->out, "model.safetensors.index.json", "{}");
}
static void delete_index(const output_case *c)
{
    delete_file(c, INDEX);
}
static void wrong_total(const output_case *c)
{
    replace(c, INDEX, "\"total_size\": 107", "\"total_size\": 108");
}
static void wrong_place(const output_case *c)
{
    replace(c, INDEX, "weight\": \"quant", "weight\": \"quint");
}
static void lost_shard(const output_case *c)
{
    char from[256], to[256];
    file_path_of(c, SHARD, from, sizeof from);
    file_path_of(c, "quant_model_weights-00001-of-00002.safetensors", to, sizeof to);
    assert_int_equal(rename(from, to), 0);
    write_text(c->out, INDEX, "{\"metadata\": {\"total_size\": 107}, \"weight_map\": {}}");
}
static void no_description(const output_case *c)
{
    delete_file(c, DESCRIPTION);
}
static void bad_json(const output_case *c)
{
    replace(c, DESCRIPTION, "{", "[");
}
static void null_key(const output_case *c)
{
    replace(c, DESCRIPTION, "\"optional\": {}", "\"optional\": {\"a\": [null]}");
}
static void number_key(const output_case *c)
{
    replace(c, DESCRIPTION, "norm.weight\": \"FLOAT\"", "norm.weight\": 1");
}
static void wrong_version(const output_case *c)
{
    replace(c, DESCRIPTION, "1.0.0", "1.0.1");
}
static void two_descriptions(const output_case *c)
{
    write_text(c->out, SAFE_TYPES, "{}");
}
static void key_without_tensor(const output_case *c)
{
    replace(c, DESCRIPTION, "\"optional\": {}", "\"optional\": {}, \"x.weight\": \"FLOAT\"");
}
static void tensor_without_key(const output_case *c)
{
    replace(c, DESCRIPTION, ",\n  \"model.norm.weight\": \"FLOAT\"", "");
}
static void unknown_type(const output_case *c)
{
    replace(c, DESCRIPTION, "norm.weight\": \"FLOAT\"", "norm.weight\": \"FLOOT\"");
}
static void disagreeing_type(const output_case *c)
{
    replace(c, DESCRIPTION, "quant_bias\": \"W8A8\"", "quant_bias\": \"FLOAT\"");
}
static void wrong_scheme(const output_case *c)
{
    replace(c, DESCRIPTION, "quant_type\": \"W8A8\"", "quant_type\": \"W4A16\"");
}
static void announced_fa(const output_case *c)
{
    replace(c, DESCRIPTION, "\"optional\": {}", "\"optional\": {}, \"fa_quant_type\": \"FAQuant\"");
}
static void kv_and_fa(const output_case *c)
{
    replace(c, DESCRIPTION, "\"optional\": {}",
            "\"optional\": {}, \"fa_quant_type\": \"FAQuant\", \"kv_cache_type\": \"C8\"");
}
static void renamed_tensor(const output_case *c)
{
    replace(c, SHARD, "k_proj.deq_scale", "k_proj.deq_scala");
}
static void wrong_shape(const output_case *c)
{
    replace(c, SHARD, "q_proj.input_scale\":{\"dtype\":\"F32\",\"shape\":[1]",
            "q_proj.input_scale\":{\"dtype\":\"I32\",\"shape\":[1]");
}
static void negative_scale(const output_case *c)
{
    patch_float(c, Q_PROJ ".weight_scale", -0.5f);
}
static void unserved_scale(const output_case *c)
{
    patch_float(c, Q_PROJ ".weight_scale", 0.5001f);
}
static void infinite_deq(const output_case *c)
{
    patch_float(c, Q_PROJ ".deq_scale", INFINITY);
}
static void fractional_offset(const output_case *c)
{
    patch_float(c, K_PROJ ".input_offset", -7.5f);
}
static void weight_offset(const output_case *c)
{
    patch_float(c, Q_PROJ ".weight_offset", 1.0f);
}
static void next_deq(const output_case *c)
{
    patch_float(c, K_PROJ ".deq_scale", nextafterf(0.125f, 1.0f));
}
static void wrong_bias(const output_case *c)
{
    int32_t one_off = 465;
    patch(c, SHARD, Q_PROJ ".quant_bias", 0, &one_off, sizeof one_off);
}
/* -128 instead of -127, with the bias that goes with it: (-128 + 0 + 2) * 7 = -882 */
static void minus_128(const output_case *c)
{
    int8_t q = -128;
    int32_t bias = -64 - 882;
    patch(c, SHARD, Q_PROJ ".weight", 3, &q, 1);
    patch(c, SHARD, Q_PROJ ".quant_bias", 4, &bias, sizeof bias);
}
/* (100, -64, 1): sum 37, bias 16 + 259 */
static void weak_row(const output_case *c)
{
    int8_t q = 100;
    int32_t bias = 275;
    patch(c, SHARD, Q_PROJ ".weight", 0, &q, 1);
    patch(c, SHARD, Q_PROJ ".quant_bias", 0, &bias, sizeof bias);
}
/* k_proj with its own input scale: 0.25, so deq 0.25; q_proj keeps 0.125 */
static void unequal_input_scale(const output_case *c)
{
    patch_float(c, K_PROJ ".input_scale", 0.25f);
    patch_float(c, K_PROJ ".deq_scale", 0.25f);
}
static void mixed_group(const output_case *c)
{
    replace(c, SHARD, "o_proj.weight", "v_proj.weight");
    replace(c, DESCRIPTION, "o_proj.weight", "v_proj.weight");
    replace(c, INDEX, "o_proj.weight", "v_proj.weight");
}
static void module_norm(const output_case *c)
{
    replace(c, SHARD, "model.norm.weight", "m.module.x.weight");
    replace(c, DESCRIPTION, "model.norm.weight", "m.module.x.weight");
    replace(c, INDEX, "model.norm.weight", "m.module.x.weight");
}
static void norm_bias_alone(const output_case *c)
{
    replace(c, SHARD, "model.norm.weight", "model.x_norm.bias");
    replace(c, DESCRIPTION, "model.norm.weight", "model.x_norm.bias");
    replace(c, INDEX, "model.norm.weight", "model.x_norm.bias");
}
static void other_quantization(const output_case *c)
{
    replace(c, "config.json", "{", "{\"text_config\": {\"quantization_config\": {}},");
}
static void no_dtype(const output_case *c)
{
    replace(c, "config.json", "torch_dtype", "dtypo");
}
static void float32_model(const output_case *c)
{
    replace(c, "config.json", "bfloat16", "float32");
}
static void no_model_type(const output_case *c)
{
    replace(c, "config.json", "\"model_type\": \"llama\"", "\"model_type\": 3");
}
static void duplicate_key(const output_case *c)
{
    replace(c, DESCRIPTION, "\"optional\": {}", "\"optional\": {}, \"optional\": {}");
}

static const broken ASCENDV1[] = {
    {truncate_shard, RULE(1), 0},
    {leave_temporary, RULE(1), 0},
    {add_stranger, RULE(2), 0},
    {add_index, RULE(2), 0},
    {delete_index, RULE(2), 0},
    {wrong_total, RULE(2), 0},
    {wrong_place, RULE(2), 0},
    {lost_shard, RULE(2), 0},
    {no_description, RULE(3), 0},
    {bad_json, RULE(3), 0},
    {null_key, RULE(3), 0},
    {number_key, RULE(3), 0},
    {wrong_version, RULE(3), 0},
    {two_descriptions, RULE(3), 0},
    {duplicate_key, RULE(3), 0},
    {key_without_tensor, RULE(4), 0},
    {tensor_without_key, RULE(4), 0},
    {unknown_type, RULE(5), 0},
    {disagreeing_type, RULE(5), 0},
    {wrong_scheme, RULE(5), 0},
    {announced_fa, RULE(5), 0},
    {kv_and_fa, RULE(5) | RULE(20), 0},
    {renamed_tensor, RULE(2) | RULE(4) | RULE(6), 0},
    {wrong_shape, RULE(6), 0},
    {float32_model, RULE(7), RULE(21)},
    {negative_scale, RULE(8) | RULE(10), 0},
    {unserved_scale, RULE(8) | RULE(10), 0},
    {infinite_deq, RULE(8) | RULE(10) | RULE(11), 0},
    {fractional_offset, RULE(9) | RULE(13), 0},
    {weight_offset, RULE(9), 0},
    {next_deq, RULE(10), 0},
    {wrong_bias, RULE(11), 0},
    {minus_128, RULE(12), 0},
    {weak_row, 0, RULE(12)},
    {unequal_input_scale, RULE(13), 0},
    {mixed_group, RULE(13), 0},
    {module_norm, RULE(16), 0},
    {norm_bias_alone, RULE(16), 0},
    {other_quantization, RULE(21), 0},
    {no_dtype, RULE(7) | RULE(21), 0},
    {no_model_type, RULE(21), 0},
};

static void test_broken_ascendv1(void **state)
{
    (void)state;
    break_each(ASCENDV1, sizeof ASCENDV1 / sizeof *ASCENDV1, SAVE_ASCENDV1);
}

/* ---- safe_tensor ---- */

static void no_quantize(const output_case *c)
{
    replace(c, "config.json", "quantize", "qoantize");
}
static void safe_version(const output_case *c)
{
    replace(c, SAFE_TYPES, "{", "{\"version\": \"1.0.0\",");
}
static void safe_name(const output_case *c)
{
    char from[256], to[256];
    file_path_of(c, SAFE_TYPES, from, sizeof from);
    file_path_of(c, "quant_model_description_w8.json", to, sizeof to);
    assert_int_equal(rename(from, to), 0);
}
static const broken SAFE_TENSOR[] = {
    {no_quantize, RULE(22), 0},
    {safe_version, RULE(3), 0},
    {safe_name, RULE(3), 0},
};

static void test_broken_safe_tensor(void **state)
{
    (void)state;
    break_each(SAFE_TENSOR, sizeof SAFE_TENSOR / sizeof *SAFE_TENSOR, SAVE_SAFE_TENSOR);
}

/* Norms that outlier suppression wrapped: four tensors, two of them copies. */
static void make_wrapped_norm(const output_case *c, bool all_four, uint16_t last)
{
    static const char *const NAMES[] = {"n.norm.weight", "n.norm.module.weight", "n.norm.bias",
                                        "n.norm.module.bias"};
    output *o;
    tare_context *ctx = new_context(1);
    uint16_t data[3] = {0x3f80, 0x4000, 0x3f00};
    assert_ok(ctx, open_case(ctx, c, &o));
    assert_ok(ctx, declare_case(c, o));
    for (int i = 0; i < (all_four ? 4 : 3); i++) {
        tensor_info t = bf16_tensor(NAMES[i], 3, 0);
        assert_ok(ctx, output_declare_float(o, &t));
    }
    assert_ok(ctx, output_begin(o));
    assert_ok(ctx, write_case(c, o));
    for (int i = 0; i < (all_four ? 4 : 3); i++) {
        data[2] = i == 3 ? last : 0x3f00;
        assert_ok(ctx, output_write_float(o, NAMES[i], 0, data, sizeof data));
    }
    assert_ok(ctx, output_finish(o, "{}\n", NULL));
    output_free(o);
    free_context(ctx);
}

static void test_wrapped_norms(void **state)
{
    static const struct {
        bool all_four;
        uint16_t last;
        unsigned failed;
    } ROWS[] = {{true, 0x3f00, 0}, {true, 0x3f01, RULE(17)}, {false, 0, RULE(17)}};
    (void)state;
    for (size_t i = 0; i < 3; i++) {
        output_case c;
        init_case(&c);
        c.save = SAVE_SAFE_TENSOR;
        c.verify = false;
        make_wrapped_norm(&c, ROWS[i].all_four, ROWS[i].last);
        expect_findings(&c, NULL, ROWS[i].failed, 0);
        end_case(&c);
    }
}

static void test_i64_deq_scale(void **state)
{
    output_case c;
    int64_t upper = 0x13d800000, negative = 0xbd800000;
    (void)state;
    init_case(&c);
    c.save = SAVE_SAFE_TENSOR;
    c.num.dtype = TARE_F16;
    c.dtype_given = true;
    make_good_output(&c);
    expect_findings(&c, NULL, 0, 0);
    patch(&c, SAFE_WEIGHTS, Q_PROJ ".deq_scale", 0, &upper, sizeof upper);
    expect_findings(&c, NULL, RULE(7), 0);
    patch(&c, SAFE_WEIGHTS, Q_PROJ ".deq_scale", 0, &negative, sizeof negative);
    expect_findings(&c, NULL, RULE(7) | RULE(10) | RULE(11), 0);
    end_case(&c);
}

/* ---- prefixes, with a module of its own ---- */

static void test_prefix_of_float_sibling(void **state)
{
    output_case c;
    output *o;
    tensor_info sibling = bf16_tensor(Q_PROJ "_gate.weight", 1, 3);
    (void)state;
    for (int compat = 0; compat < 2; compat++) {
        init_case(&c);
        c.verify = false;
        c.num.compat = compat;
        tare_context *ctx = new_context(1);
        assert_ok(ctx, open_case(ctx, &c, &o));
        assert_ok(ctx, declare_case(&c, o));
        assert_ok(ctx, output_declare_float(o, &sibling));
        assert_ok(ctx, output_begin(o));
        assert_ok(ctx, write_case(&c, o));
        assert_ok(ctx, output_write_float(o, sibling.name, 0, K_BF16, sizeof K_BF16));
        assert_ok(ctx, output_finish(o, "{}\n", NULL));
        output_free(o);
        free_context(ctx);
        expect_findings(&c, NULL, compat ? 0 : RULE(29), compat ? RULE(29) : 0);
        end_case(&c);
    }
}

/* ---- numpy ---- */

static void test_broken_numpy(void **state)
{
    output_case c;
    (void)state;
    init_case(&c);
    c.save = SAVE_NUMPY;
    make_good_output(&c);
    delete_file(&c, "quant_bias.npy");
    expect_findings(&c, NULL, RULE(6) | RULE(26), 0);
    end_case(&c);

    init_case(&c);
    c.save = SAVE_NUMPY;
    make_good_output(&c);
    replace(&c, "deq_scale.npy", "_reconstruct", "_reconstruc!");
    expect_findings(&c, NULL, RULE(26), 0);
    end_case(&c);
}

/* ---- compat ---- */

/* Tolerance 1 on quant_bias, and split groups are a warning. */
static void test_compat(void **state)
{
    output_case c;
    int32_t bias = 465;
    (void)state;
    init_case(&c);
    c.save = SAVE_SAFE_TENSOR;
    c.num.compat = true;
    make_good_output(&c);
    patch(&c, SAFE_WEIGHTS, Q_PROJ ".quant_bias", 0, &bias, sizeof bias);
    expect_findings(&c, NULL, 0, 0);
    bias = 466;
    patch(&c, SAFE_WEIGHTS, Q_PROJ ".quant_bias", 0, &bias, sizeof bias);
    expect_findings(&c, NULL, RULE(11), 0);
    bias = 464;
    patch(&c, SAFE_WEIGHTS, Q_PROJ ".quant_bias", 0, &bias, sizeof bias);
    uint16_t offset = 0xc0c0; /* -6: the bias of k_proj is 0 whatever the offset */
    patch(&c, SAFE_WEIGHTS, K_PROJ ".input_offset", 0, &offset, sizeof offset);
    expect_findings(&c, NULL, 0, RULE(13));
    end_case(&c);
}

/* ---- with a base ---- */

static void patch_model(const output_case *c, const char *tensor, size_t offset, uint16_t half)
{
    output_case model = *c;
    memcpy(model.out, c->model, sizeof model.out);
    patch(&model, "model.safetensors", tensor, offset, &half, sizeof half);
}

static void test_base(void **state)
{
    output_case c;
    (void)state;
    init_case(&c);
    write_model_weights(&c);
    make_good_output(&c);
    expect_findings(&c, c.model, 0, 0);
    /* 127 * 0.5 = 63.5; 63.75 is half a scale away, 64 rounds to 128 and is clipped, 63 is too far
     */
    patch_model(&c, Q_PROJ ".weight", 0, 0x427f);
    expect_findings(&c, c.model, 0, 0);
    patch_model(&c, Q_PROJ ".weight", 0, 0x4280);
    expect_findings(&c, c.model, 0, 0);
    patch_model(&c, Q_PROJ ".weight", 0, 0x427c);
    expect_findings(&c, c.model, RULE(15), 0);
    patch_model(&c, Q_PROJ ".weight", 0, Q_BF16[0]);
    patch_model(&c, "model.norm.weight", 2, 0x4001);
    expect_findings(&c, c.model, RULE(14), 0);
    end_case(&c);
}

static void test_base_files(void **state)
{
    output_case c;
    char path[256];
    (void)state;
    init_case(&c);
    write_model_weights(&c);
    make_good_output(&c);
    delete_file(&c, "tokenizer.json");
    expect_findings(&c, c.model, RULE(25), 0);
    snprintf(path, sizeof path, "%s/tokenizer.json", c.model);
    assert_int_equal(unlink(path), 0);
    expect_findings(&c, c.model, 0, RULE(25));
    end_case(&c);
}

/* ---- several layouts ---- */

static void test_disagreeing_layouts(void **state)
{
    output_case c, inner;
    (void)state;
    init_case(&c);
    c.save = SAVE_ASCENDV1 | SAVE_SAFE_TENSOR;
    make_good_output(&c);
    expect_findings(&c, NULL, 0, 0);
    inner = c;
    snprintf(inner.out, sizeof inner.out, "%s/out/safe_tensor", c.root);
    uint16_t other = 0x4001;
    patch(&inner, SAFE_WEIGHTS, "model.norm.weight", 2, &other, sizeof other);
    expect_findings(&c, NULL, RULE(27), 0);
    end_case(&c);
}

/* ---- the rest ---- */

static void test_unrecognised(void **state)
{
    output_case c;
    (void)state;
    init_case(&c);
    assert_int_equal(mkdir(c.out, 0755), 0);
    write_text(c.out, "config.json", MODEL_CONFIG);
    expect_findings(&c, NULL, RULE(0), 0);
    end_case(&c);
}

static void test_options(void **state)
{
    tare_verify_options options;
    (void)state;
    tare_context *ctx = new_context(1);
    tare_verify_options_init(&options);
    options.dir = "/nonexistent";
    assert_fails(ctx, tare_verify(ctx, &options, NULL), TARE_E_USAGE, "not a folder");
    options.dir = "/tmp";
    options.target = "tensorrt";
    assert_fails(ctx, tare_verify(ctx, &options, NULL), TARE_E_USAGE, "vllm-ascend");
    options.target = NULL;
    options.compat = "other";
    assert_fails(ctx, tare_verify(ctx, &options, NULL), TARE_E_USAGE, "msmodelslim");
    free_context(ctx);
}

static void test_fused_groups(void **state)
{
    block_graph graph;
    buffer key;
    (void)state;
    model_config_names(architecture_find("llama"), &(config_flags){0}, &graph);
    tare_context *ctx = new_context(1);
    buffer_init(&key, ctx);
    assert_true(fused_group_of(&graph, "model.layers.3.self_attn.v_proj", &key));
    assert_string_equal(key.data, "model.layers.3.qkv");
    assert_true(fused_group_of(&graph, "model.layers.3.mlp.up_proj", &key));
    assert_string_equal(key.data, "model.layers.3.gate_up");
    assert_false(fused_group_of(&graph, "model.layers.3.self_attn.o_proj", &key));
    assert_false(fused_group_of(&graph, "model.layers.3.xself_attn.v_proj", &key));
    assert_false(fused_group_of(&graph, "lm_head", &key));
    buffer_free(&key);
    free_context(ctx);
}

static tare_status verify_again(tare_context *ctx, void *user)
{
    findings all;
    const output_case *c = user;
    return run_verify(ctx, c, c->model, &all, NULL);
}

/* For an engine that refuses it: there is no v_proj. */
static tare_status verify_for_target(tare_context *ctx, void *user)
{
    findings all;
    output_case c = *(const output_case *)user;
    c.target = "vllm-ascend";
    tare_status status = run_verify(ctx, &c, NULL, &all, NULL);
    if (status == TARE_E_VERIFY)
        assert_int_equal(all.failed, RULE(30));
    return status == TARE_E_VERIFY ? TARE_OK : status;
}

static void test_allocation_failures(void **state)
{
    output_case c;
    (void)state;
    init_case(&c);
    write_model_weights(&c);
    c.save = (1u << SAVE_TYPES) - 1;
    make_good_output(&c);
    each_allocation_fails(verify_again, &c);
    each_allocation_fails(verify_for_target, &c);
    end_case(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_good_outputs),
        cmocka_unit_test(test_broken_ascendv1),
        cmocka_unit_test(test_broken_safe_tensor),
        cmocka_unit_test(test_wrapped_norms),
        cmocka_unit_test(test_i64_deq_scale),
        cmocka_unit_test(test_prefix_of_float_sibling),
        cmocka_unit_test(test_broken_numpy),
        cmocka_unit_test(test_compat),
        cmocka_unit_test(test_base),
        cmocka_unit_test(test_base_files),
        cmocka_unit_test(test_disagreeing_layouts),
        cmocka_unit_test(test_unrecognised),
        cmocka_unit_test(test_options),
        cmocka_unit_test(test_fused_groups),
        cmocka_unit_test(test_allocation_failures),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
