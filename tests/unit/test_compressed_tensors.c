/* The save type compressed-tensors: bytes, config.json and refusals (worked out by hand in
 * output_fixture.h and here, from section 7 of the specification of formats), and the rules of
 * `tare verify` for it. */
#include "verify_fixture.h"

#define MODEL_SHARD "model-00001-of-00001.safetensors"
#define MODEL_INDEX "model.safetensors.index.json"
#define CONFIG      "config.json"

static void init_compressed(output_case *c)
{
    init_case(c);
    c->save = SAVE_COMPRESSED_TENSORS;
}

/* ---- what is written ---- */

#define CONFIG_OF(format, ignored)                                                                 \
    "\"quantization_config\":{\"quant_method\":\"compressed-tensors\","                            \
    "\"quantization_status\":\"compressed\",\"format\":\"" format "\","                            \
    "\"global_compression_ratio\":null,\"kv_cache_scheme\":null,\"sparsity_config\":{},"           \
    "\"transform_config\":{},\"version\":\"0.19.0\",\"ignore\":[" ignored "],"                     \
    "\"config_groups\":{\"group_0\":{\"targets\":[\"Linear\"],\"format\":\"" format                \
    "\",\"output_activations\":null,\"weights\":{"

static void test_w8a8(void **state)
{
    output_case c;
    uint64_t bytes;
    (void)state;
    init_compressed(&c);
    tare_context *ctx = new_context(1);
    assert_ok(ctx, make_output(ctx, &c, &bytes));
    /* embed 12, q 6 + 4 + 4 + 2 + 1, k 3 + 2 + 2 + 1, o 12, norm 6 */
    assert_int_equal(bytes, 55);
    assert_string_equal(names_in(c.out),
                        "config.json " MODEL_SHARD " " MODEL_INDEX " tare_run.json tokenizer.json");
    safetensors *s = open_weights(ctx, c.out, MODEL_SHARD);
    assert_int_equal(safetensors_count(s), 12);
    assert_tensor(s, Q_PROJ ".weight", TARE_I8, 2, 2, 3, Q_INTEGERS, sizeof Q_INTEGERS);
    assert_tensor(s, Q_PROJ ".weight_scale", TARE_BF16, 2, 2, 1, HALVES(0x3f00, 0x3e80));
    assert_tensor(s, Q_PROJ ".input_scale", TARE_BF16, 1, 1, 0, HALVES(0x3e00));
    assert_tensor(s, Q_PROJ ".input_zero_point", TARE_I8, 1, 1, 0, &(int8_t){-7}, 1);
    assert_tensor(s, Q_PROJ ".bias", TARE_BF16, 1, 2, 0, BIAS_BF16, sizeof BIAS_BF16);
    assert_tensor(s, K_PROJ ".weight", TARE_I8, 2, 1, 3, K_INTEGERS, sizeof K_INTEGERS);
    assert_tensor(s, K_PROJ ".input_zero_point", TARE_I8, 1, 1, 0, &(int8_t){-7}, 1);
    assert_tensor(s, O_PROJ ".weight", TARE_BF16, 2, 3, 2, O_BF16, sizeof O_BF16);
    assert_tensor(s, "model.norm.weight", TARE_BF16, 1, 3, 0, NORM_BF16, sizeof NORM_BF16);
    safetensors_close(s);
    const char *config = compact(read_text(c.out, CONFIG));
    assert_non_null(strstr(config, CONFIG_OF("int-quantized", "\"" O_PROJ "\",\"lm_head\"")));
    assert_non_null(strstr(config, "\"model_type\":\"llama\""));
    assert_non_null(strstr(compact(read_text(c.out, MODEL_INDEX)),
                           "{\"metadata\":{\"total_size\":55},\"weight_map\":{\"model.embed_tokens."
                           "weight\":\"" MODEL_SHARD "\""));
    free_context(ctx);
    end_case(&c);
}

/* One scale of a matrix is repeated: engines want [N,1]. A quantized head is not ignored. */
static void test_per_tensor_and_head(void **state)
{
    output_case c;
    (void)state;
    init_compressed(&c);
    c.per_tensor = c.is_head = true;
    c.part_file_size = 0;
    c.verify = false; /* k_proj stands for the head, and there is no other */
    make_good_output(&c);
    tare_context *ctx = new_context(1);
    safetensors *s = open_weights(ctx, c.out, "model.safetensors");
    assert_tensor(s, Q_PROJ ".weight_scale", TARE_BF16, 2, 2, 1, HALVES(0x3f00, 0x3f00));
    safetensors_close(s);
    free_context(ctx);
    assert_non_null(strstr(compact(read_text(c.out, CONFIG)), "\"ignore\":[\"" O_PROJ "\"]"));
    end_case(&c);
}

static void test_float16_and_float32(void **state)
{
    (void)state;
    for (int half = 0; half < 2; half++) {
        output_case c;
        init_compressed(&c);
        c.num.dtype = half ? TARE_F16 : TARE_F32;
        c.dtype_given = true;
        make_good_output(&c);
        tare_context *ctx = new_context(1);
        safetensors *s = open_weights(ctx, c.out, MODEL_SHARD);
        if (half)
            assert_tensor(s, Q_PROJ ".weight_scale", TARE_F16, 2, 2, 1, HALVES(0x3800, 0x3400));
        else
            assert_tensor(s, Q_PROJ ".weight_scale", TARE_F32, 2, 2, 1, FLOATS(0.5f, 0.25f));
        assert_tensor(s, Q_PROJ ".input_zero_point", TARE_I8, 1, 1, 0, &(int8_t){-7}, 1);
        safetensors_close(s);
        free_context(ctx);
        end_case(&c);
    }
}

/* ---- weights alone ---- */

static const int8_t WIDE[10] = {127, -64, 1, -127, 0, -1, 2, -3, 4, 127};

/* A linear of 5 columns, written a row at a time; compressed-tensors and ascendv1 if `both`. */
static void make_w8a16(const output_case *c, bool both)
{
    output *o;
    float scales[2] = {0.5f, 0.25f};
    tare_context *ctx = new_context(1);
    tensor_info norm = bf16_tensor("model.norm.weight", 3, 0);
    output_options options = {.dir = c->out,
                              .model_dir = c->model,
                              .save = both ? SAVE_ASCENDV1 | SAVE_COMPRESSED_TENSORS
                                           : SAVE_COMPRESSED_TENSORS,
                              .part_file_size = -1,
                              .num = c->num,
                              .scheme = SCHEME_W8A16,
                              .verify = true};
    assert_ok(ctx, output_open(ctx, &options, &o));
    assert_ok(ctx, declare_weights(o, SCHEME_W8A16, Q_PROJ, 2, 5, false, NULL));
    assert_ok(ctx, output_declare_norm(o, &norm, NORM_PLAIN));
    assert_ok(ctx, output_declare_float_linear(o, "lm_head"));
    assert_ok(ctx, output_begin(o));
    for (size_t row = 0; row < 2; row++) {
        weight_codes codes = {.q = (int8_t *)(uintptr_t)(WIDE + 5 * row), .scales = scales + row};
        assert_ok(ctx, write_rows(o, Q_PROJ, row, 1, &codes, NULL));
    }
    assert_ok(ctx, output_write_norm(o, "model.norm.weight", NORM_BF16, NULL));
    assert_ok(ctx, output_finish(o, "{}\n", NULL));
    output_free(o);
    free_context(ctx);
}

/* value + 128 in a byte, the first lowest: 255 64 129 1 | 128, and 127 130 125 132 | 255. */
static void test_packed(void **state)
{
    output_case c;
    (void)state;
    init_compressed(&c);
    make_w8a16(&c, false);
    tare_context *ctx = new_context(1);
    safetensors *s = open_weights(ctx, c.out, MODEL_SHARD);
    assert_int_equal(safetensors_count(s), 4);
    assert_tensor(s, Q_PROJ ".weight_packed", TARE_I32, 2, 2, 2,
                  WORDS(0x018140ff, 0x80, (int32_t)0x847d827fu, 0xff));
    assert_tensor(s, Q_PROJ ".weight_shape", TARE_I64, 1, 2, 0, LONGS(2, 5));
    assert_tensor(s, Q_PROJ ".weight_scale", TARE_BF16, 2, 2, 1, HALVES(0x3f00, 0x3e80));
    safetensors_close(s);
    const char *config = compact(read_text(c.out, CONFIG));
    assert_non_null(strstr(config, CONFIG_OF("pack-quantized", "\"lm_head\"")));
    assert_non_null(strstr(config, "\"input_activations\":null"));
    free_context(ctx);
    expect_findings(&c, NULL, 0, 0);
    int64_t columns = 9;
    patch(&c, MODEL_SHARD, Q_PROJ ".weight_shape", 8, &columns, sizeof columns);
    expect_findings(&c, NULL, RULE(23), 0);
    end_case(&c);
}

static void test_packed_agrees(void **state)
{
    output_case c, inner;
    uint8_t other = 0x80;
    (void)state;
    init_compressed(&c);
    make_w8a16(&c, true);
    assert_string_equal(names_in(c.out), "ascendv1 compressed-tensors");
    expect_findings(&c, NULL, 0, 0);
    inner = c;
    snprintf(inner.out, sizeof inner.out, "%s/out/compressed-tensors", c.root);
    patch(&inner, MODEL_SHARD, Q_PROJ ".weight_packed", 9, &other, 1);
    expect_findings(&c, NULL, RULE(27), 0);
    end_case(&c);
}

/* ---- what it cannot hold ---- */

static void test_refusals(void **state)
{
    output_case c;
    output *o;
    tensor_info norm = bf16_tensor("model.norm.weight", 3, 0);
    tensor_info bias = bf16_tensor(O_PROJ ".bias", 3, 0);
    (void)state;
    init_compressed(&c);
    tare_context *ctx = new_context(1);
    assert_ok(ctx, open_case(ctx, &c, &o));
    assert_fails(ctx, output_declare_fa(o, "a", (size_t[FA_KINDS]){2, 1, 1}), TARE_E_USAGE,
                 "no FA tensors");
    output_free(o);
    assert_ok(ctx, open_case(ctx, &c, &o));
    assert_ok(ctx, output_declare_norm(o, &norm, NORM_SHIFTED));
    assert_fails(ctx, output_begin(o), TARE_E_USAGE, "compressed-tensors cannot hold the biases");
    output_free(o);
    assert_ok(ctx, open_case(ctx, &c, &o));
    assert_ok(ctx, output_declare_new_bias(o, &bias));
    assert_fails(ctx, output_begin(o), TARE_E_USAGE, "compressed-tensors cannot hold the bias");
    output_free(o);
    assert_false(path_exists(c.out));
    free_context(ctx);
    end_case(&c);
}

/* Suppression without a shift changes norms' weights alone. */
static void test_wrapped_norm(void **state)
{
    output_case c;
    output *o;
    float scale = 1.0f;
    tensor_info norm = bf16_tensor("model.norm.weight", 3, 0);
    (void)state;
    init_compressed(&c);
    tare_context *ctx = new_context(1);
    assert_ok(ctx, open_case(ctx, &c, &o));
    assert_ok(ctx, output_declare_norm(o, &norm, NORM_WRAPPED));
    assert_ok(ctx, declare_w8a8(o, "lm_head", 1, 3, false, TARE_BF16, NULL, true));
    assert_ok(ctx, output_begin(o));
    quantized_weight q = {
        .n = 1, .k = 3, .q = (int8_t *)(uintptr_t)K_INTEGERS, .scales = &scale, .num_scales = 1};
    act_params act = {0.125f, 127.0f, TARE_BF16};
    assert_ok(ctx, write_w8a8(o, "lm_head", &q, &act, &scale, (int32_t[]){0}, NULL));
    assert_ok(ctx, output_write_norm(o, "model.norm.weight", NORM_BF16, NULL));
    assert_ok(ctx, output_finish(o, "{}\n", NULL));
    output_free(o);
    safetensors *s = open_weights(ctx, c.out, MODEL_SHARD);
    assert_int_equal(safetensors_count(s), 5);
    assert_tensor(s, "lm_head.input_zero_point", TARE_I8, 1, 1, 0, &(int8_t){127}, 1);
    assert_tensor(s, "model.norm.weight", TARE_BF16, 1, 3, 0, NORM_BF16, sizeof NORM_BF16);
    safetensors_close(s);
    assert_non_null(strstr(compact(read_text(c.out, CONFIG)), "\"ignore\":[]"));
    assert_non_null(strstr(read_text(c.out, CONFIG), "\"tie_word_embeddings\": false"));
    free_context(ctx);
    end_case(&c);
}

/* ---- folders ---- */

static void assert_refused(const output_case *c, const char *part)
{
    output *o;
    tare_context *ctx = new_context(1);
    assert_fails(ctx, open_case(ctx, c, &o), TARE_E_FOLDER, part);
    free_context(ctx);
}

/* Its names are those of any checkpoint: only tare's own record makes them replaceable. */
static void test_overwrite(void **state)
{
    output_case c;
    (void)state;
    init_compressed(&c);
    c.overwrite = true;
    assert_int_equal(mkdir(c.out, 0755), 0);
    write_text(c.out, "model-00001-of-00002.safetensors", "somebody's");
    write_text(c.out, CONFIG, "{}");
    assert_refused(&c, "holds model-00001-of-00002.safetensors, which tare did not write");
    c.save = SAVE_ASCENDV1;
    assert_refused(&c, "holds model-00001-of-00002.safetensors, which tare did not write");
    assert_string_equal(names_in(c.out), "config.json model-00001-of-00002.safetensors");

    write_text(c.out, "tare_run.json", "{}");
    write_text(c.out, MODEL_INDEX, "old");
    make_good_output(&c);
    assert_string_equal(names_in(c.out),
                        "config.json quant_model_description.json "
                        "quant_model_weights-00001-of-00001.safetensors "
                        "quant_model_weights.safetensors.index.json tare_run.json tokenizer.json");
    c.save = SAVE_COMPRESSED_TENSORS;
    make_good_output(&c);
    expect_findings(&c, NULL, 0, 0);
    assert_string_equal(names_in(c.out),
                        "config.json " MODEL_SHARD " " MODEL_INDEX " tare_run.json tokenizer.json");
    write_text(c.out, "extra.safetensors", "x");
    assert_refused(&c, "extra.safetensors");
    end_case(&c);
}

/* What is left of a run that was killed between two of its last renames: config.json comes last. */
static void test_publish_rest(void **state)
{
    output_case c;
    char stage[160];
    (void)state;
    init_compressed(&c);
    make_good_output(&c);
    snprintf(stage, sizeof stage, "%s/stage", c.root);
    assert_int_equal(rename(c.out, stage), 0);
    assert_int_equal(mkdir(c.out, 0755), 0);
    tare_context *ctx = new_context(1);
    char config[160];
    snprintf(config, sizeof config, "%s/config.json", c.out);
    assert_int_equal(mkdir(config, 0755), 0); /* the last rename fails, and nothing before it */
    assert_int_equal(output_publish_rest(ctx, stage, c.out), TARE_E_IO);
    assert_string_equal(names_in(stage), "config.json");
    assert_int_equal(rmdir(config), 0);
    assert_ok(ctx, output_publish_rest(ctx, stage, c.out));
    expect_findings(&c, NULL, 0, 0);
    free_context(ctx);
    end_case(&c);
}

/* ---- broken outputs ---- */

static void truncated(const output_case *c)
{
    char path[256];
    file_path_of(c, MODEL_SHARD, path, sizeof path);
    assert_int_equal(truncate(path, 700), 0);
}
static void temporary(const output_case *c)
{
    write_text(c->out, "model.safetensors.tmp", "");
}
static void stranger(const output_case *c)
{
    write_text(c->out, "consolidated.safetensors", "");
}
static void foreign_index(const output_case *c)
{
    write_text(c->out, "quant.safetensors.index.json", "{}");
}
static void no_index(const output_case *c)
{
    delete_file(c, MODEL_INDEX);
}
static void wrong_total(const output_case *c)
{
    replace(c, MODEL_INDEX, "\"total_size\": 55", "\"total_size\": 56");
}
static void patch_half(const output_case *c, const char *tensor, uint16_t half)
{
    patch(c, MODEL_SHARD, tensor, 0, &half, sizeof half);
}
static void negative_scale(const output_case *c)
{
    patch_half(c, Q_PROJ ".weight_scale", 0xbf00);
}
static void infinite_input_scale(const output_case *c)
{
    patch_half(c, Q_PROJ ".input_scale", 0x7f80);
    patch_half(c, K_PROJ ".input_scale", 0x7f80);
}
static void unequal_input_scale(const output_case *c)
{
    patch_half(c, K_PROJ ".input_scale", 0x3e80);
}
static void unequal_zero_point(const output_case *c)
{
    int8_t six = -6;
    patch(c, MODEL_SHARD, K_PROJ ".input_zero_point", 0, &six, 1);
}
/* The same letters for another name, in the shard and in its index. */
static void rename_tensor(const output_case *c, const char *from, const char *to)
{
    replace(c, MODEL_SHARD, from, to);
    replace(c, MODEL_INDEX, from, to);
}
static void no_zero_point(const output_case *c)
{
    rename_tensor(c, "k_proj.input_zero_point", "k_proj.input_zero_paint");
}
static void no_weight_scale(const output_case *c)
{
    rename_tensor(c, "k_proj.weight_scale", "k_proj.weight_scala");
}
static void float_zero_point(const output_case *c)
{
    replace(c, MODEL_SHARD, "zero_point\":{\"dtype\":\"I8\"", "zero_point\":{\"dtype\":\"U8\"");
}
static void no_config(const output_case *c)
{
    delete_file(c, CONFIG);
}
static void bad_config(const output_case *c)
{
    replace(c, CONFIG, "{", "[");
}
static void no_quantization(const output_case *c)
{
    replace(c, CONFIG, "quantization_config", "quantisation_config");
}
static void other_method(const output_case *c)
{
    replace(c, CONFIG, "\"quant_method\": \"compressed-tensors\"", "\"quant_method\": \"awq\"");
}
static void not_compressed(const output_case *c)
{
    replace(c, CONFIG, "\"quantization_status\": \"compressed\"",
            "\"quantization_status\": \"frozen\"");
}
static void other_format(const output_case *c)
{
    replace(c, CONFIG, "\"format\": \"int-quantized\"", "\"format\": \"float-quantized\"");
}
static void quantized_cache(const output_case *c)
{
    replace(c, CONFIG, "\"kv_cache_scheme\": null", "\"kv_cache_scheme\": {\"num_bits\": 8}");
}
static void sparse(const output_case *c)
{
    replace(c, CONFIG, "\"sparsity_config\": {}", "\"sparsity_config\": {\"format\": \"x\"}");
}
static void four_bits(const output_case *c)
{
    replace(c, CONFIG, "\"num_bits\": 8", "\"num_bits\": 4");
}
static void per_tensor_weights(const output_case *c)
{
    replace(c, CONFIG, "\"strategy\": \"channel\"", "\"strategy\": \"tensor\"");
}
/* An engine would leave the stored zero points out. */
static void symmetric_activations(const output_case *c)
{
    replace(c, CONFIG, "\"symmetric\": false", "\"symmetric\": true");
}
static void dynamic_activations(const output_case *c)
{
    replace(c, CONFIG, "\"strategy\": \"tensor\"", "\"strategy\": \"token\"");
}
static void no_zp_dtype(const output_case *c)
{
    replace(c, CONFIG, "\"torch.int8\"", "null");
}
static void other_targets(const output_case *c)
{
    replace(c, CONFIG, "\"Linear\"", "\"Embedding\"");
}
static void ignores_less(const output_case *c)
{
    replace(c, CONFIG, "\"" O_PROJ "\",", "");
}
static void forgets_head(const output_case *c)
{
    replace(c, CONFIG, "\"" O_PROJ "\",", "\"" O_PROJ "\"");
    replace(c, CONFIG, "\"lm_head\"", "");
}
static void ignores_quantized(const output_case *c)
{
    replace(c, CONFIG, "\"lm_head\"", "\"lm_head\", \"" Q_PROJ "\"");
}
static void ignores_nothing_known(const output_case *c)
{
    replace(c, CONFIG, "\"lm_head\"", "\"lm_head\", \"model.layers.7.mlp.up_proj\"");
}
static void ignores_by_pattern(const output_case *c)
{
    replace(c, CONFIG, "\"" O_PROJ "\"", "\"re:.*o_proj\"");
}

static const broken COMPRESSED[] = {
    {truncated, RULE(1), 0},
    {temporary, RULE(1), 0},
    {stranger, RULE(2), 0},
    {foreign_index, RULE(2), 0},
    {no_index, RULE(2), 0},
    {wrong_total, RULE(2), 0},
    {negative_scale, RULE(8), 0},
    {infinite_input_scale, RULE(8), 0},
    {unequal_input_scale, RULE(13), 0},
    {unequal_zero_point, RULE(13), 0},
    {no_zero_point, RULE(23), 0},
    {no_weight_scale, RULE(23), 0},
    {float_zero_point, RULE(23), 0},
    {no_config, RULE(23), 0},
    {bad_config, RULE(23), 0},
    {no_quantization, RULE(23), 0},
    {other_method, RULE(23), 0},
    {not_compressed, RULE(23), 0},
    {other_format, RULE(23), 0},
    {quantized_cache, RULE(23), 0},
    {sparse, RULE(23), 0},
    {four_bits, RULE(23), 0},
    {per_tensor_weights, RULE(23), 0},
    {symmetric_activations, RULE(23), 0},
    {dynamic_activations, RULE(23), 0},
    {no_zp_dtype, RULE(23), 0},
    {other_targets, RULE(23), 0},
    {ignores_less, RULE(23), 0},
    {forgets_head, RULE(23), 0},
    {ignores_quantized, RULE(23), 0},
    {ignores_nothing_known, RULE(23), 0},
    {ignores_by_pattern, 0, RULE(23)},
};

static void test_broken(void **state)
{
    (void)state;
    break_each(COMPRESSED, sizeof COMPRESSED / sizeof *COMPRESSED, SAVE_COMPRESSED_TENSORS);
}

/* Half of a fused group in FLOAT, and rightly ignored: an engine cannot fuse it. */
static void test_mixed_group(void **state)
{
    output_case c;
    output *o;
    tensor_info v = bf16_tensor("model.layers.0.self_attn.v_proj.weight", 1, 3);
    (void)state;
    init_compressed(&c);
    c.verify = false;
    tare_context *ctx = new_context(1);
    assert_ok(ctx, open_case(ctx, &c, &o));
    assert_ok(ctx, declare_case(&c, o));
    assert_ok(ctx, output_declare_float(o, &v));
    assert_ok(ctx, output_declare_float_linear(o, "model.layers.0.self_attn.v_proj"));
    assert_ok(ctx, output_begin(o));
    assert_ok(ctx, write_case(&c, o));
    assert_ok(ctx, output_write_float(o, v.name, 0, K_BF16, sizeof K_BF16));
    assert_ok(ctx, output_finish(o, "{}\n", NULL));
    output_free(o);
    free_context(ctx);
    expect_findings(&c, NULL, RULE(13), 0);
    end_case(&c);
}

static void test_with_base(void **state)
{
    output_case c;
    uint16_t quarter = 0x3e80;
    (void)state;
    init_compressed(&c);
    write_model_weights(&c);
    make_good_output(&c);
    expect_findings(&c, c.model, 0, 0);
    delete_file(&c, "tokenizer.json");
    expect_findings(&c, c.model, RULE(25), 0);
    write_text(c.out, "tokenizer.json", "{}");
    patch(&c, MODEL_SHARD, Q_PROJ ".weight_scale", 0, &quarter, sizeof quarter);
    expect_findings(&c, c.model, RULE(15), 0);
    end_case(&c);
}

static void test_disagreeing_layouts(void **state)
{
    static const struct {
        const char *tensor;
        uint8_t byte;
    } ROWS[] = {{Q_PROJ ".input_zero_point", 0xfa}, {Q_PROJ ".weight", 126}, {Q_PROJ ".bias", 1}};
    (void)state;
    for (size_t i = 0; i < sizeof ROWS / sizeof *ROWS; i++) {
        output_case c, inner;
        init_compressed(&c);
        c.save = SAVE_SAFE_TENSOR | SAVE_COMPRESSED_TENSORS;
        make_good_output(&c);
        inner = c;
        snprintf(inner.out, sizeof inner.out, "%s/out/compressed-tensors", c.root);
        patch(&inner, MODEL_SHARD, ROWS[i].tensor, 0, &ROWS[i].byte, 1);
        expect_findings(&c, NULL, RULE(27) | (i == 0 ? RULE(13) : 0), 0);
        end_case(&c);
    }
}

/* vLLM-Ascend loads symmetric or dynamic activations only. */
static void test_target(void **state)
{
    output_case c;
    (void)state;
    init_compressed(&c);
    make_good_output(&c);
    c.target = "vllm"; /* which drops q_proj's bias, as Llama has none by default */
    expect_findings(&c, NULL, RULE(28), 0);
    replace(&c, CONFIG, "\"model_type\"", "\"attention_bias\": true, \"model_type\"");
    expect_findings(&c, NULL, 0, 0);
    c.target = "vllm-ascend";
    expect_findings(&c, NULL, RULE(23), 0);
    end_case(&c);
}

/* A config that says symmetric, and no zero points, which vLLM has no parameter for then. */
static void test_symmetric(void **state)
{
    output_case c;
    (void)state;
    init_compressed(&c);
    c.num.act_symmetric = true;
    make_good_output(&c);
    tare_context *ctx = new_context(1);
    safetensors *s = open_weights(ctx, c.out, MODEL_SHARD);
    assert_int_equal(safetensors_count(s), 10);
    assert_tensor(s, Q_PROJ ".input_scale", TARE_BF16, 1, 1, 0, HALVES(0x3e00));
    assert_null(safetensors_find(s, Q_PROJ ".input_zero_point"));
    assert_null(safetensors_find(s, K_PROJ ".input_zero_point"));
    safetensors_close(s);
    free_context(ctx);
    c.target = "vllm-ascend";
    expect_findings(&c, NULL, 0, 0);
    replace(&c, CONFIG, "\"strategy\": \"tensor\"", "\"strategy\": \"token\"");
    expect_findings(&c, NULL, RULE(23), 0);
    end_case(&c);
}

/* A checkpoint without the config is no output; one of another tool with it is. */
static void test_recognised(void **state)
{
    output_case c;
    (void)state;
    init_compressed(&c);
    make_good_output(&c);
    delete_file(&c, "tare_run.json");
    expect_findings(&c, NULL, 0, 0);
    replace(&c, CONFIG, "quantization_config", "quantisation_config");
    expect_findings(&c, NULL, RULE(0), 0);
    end_case(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_w8a8),
        cmocka_unit_test(test_per_tensor_and_head),
        cmocka_unit_test(test_float16_and_float32),
        cmocka_unit_test(test_packed),
        cmocka_unit_test(test_packed_agrees),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_wrapped_norm),
        cmocka_unit_test(test_overwrite),
        cmocka_unit_test(test_publish_rest),
        cmocka_unit_test(test_broken),
        cmocka_unit_test(test_mixed_group),
        cmocka_unit_test(test_with_base),
        cmocka_unit_test(test_disagreeing_layouts),
        cmocka_unit_test(test_target),
        cmocka_unit_test(test_symmetric),
        cmocka_unit_test(test_recognised),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
