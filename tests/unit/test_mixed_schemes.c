/* Outputs whose linears have several schemes, W8A8_DYNAMIC among them (specification: schemes.md 2
 * and 7.3, output_formats.md 4.1 and 7): attention is dynamic, gate and up weights alone, down
 * static; the numbers are those of output_fixture.h. */
#include "output/tape.h"
#include "verify_fixture.h"

#define CONFIG "config.json"
#define GATE   "model.layers.0.mlp.gate_proj"
#define UP     "model.layers.0.mlp.up_proj"
#define DOWN   "model.layers.0.mlp.down_proj"
#define TYPED  "quant_model_description_w8a8_dynamic.json"

static const float SCALES[2] = {0.5f, 0.25f}, ONE = 1.0f;

typedef struct mixed_case {
    output_case base;
    bool alone;    /* attention alone is quantized */
    bool new_bias; /* k_proj's bias is one that the architecture does not have */
    output_tape *tape;
} mixed_case;

static void init(mixed_case *c, bool alone, unsigned save)
{
    *c = (mixed_case){.alone = alone};
    init_case(&c->base);
    c->base.save = save;
    write_text(c->base.model, CONFIG,
               "{\n  \"model_type\": \"llama\",\n  \"torch_dtype\": \"bfloat16\",\n"
               "  \"attention_bias\": true,\n  \"tie_word_embeddings\": true\n}\n");
}

static tare_status declare_all(const mixed_case *c, output *o)
{
    tensor_info embed = bf16_tensor("model.embed_tokens.weight", 2, 3);
    tensor_info norm = bf16_tensor("model.norm.weight", 3, 0);
    tensor_info bias = bf16_tensor(Q_PROJ ".bias", 2, 0), one = bf16_tensor(K_PROJ ".bias", 1, 0);
    linear_form k = {.scheme = SCHEME_W8A8_DYNAMIC, .n = 1, .k = 3, .new_bias = c->new_bias};
    tare_status status = TARE_OK;
    TRY(output_declare_float(o, &embed));
    TRY(declare_weights(o, SCHEME_W8A8_DYNAMIC, Q_PROJ, 2, 3, false, &bias));
    TRY(output_declare_linear(o, K_PROJ, &k, c->new_bias ? &one : NULL, false));
    if (!c->alone) {
        TRY(declare_weights(o, SCHEME_W8A16, GATE, 2, 3, false, NULL));
        TRY(declare_weights(o, SCHEME_W8A16, UP, 2, 3, false, NULL));
        TRY(declare_w8a8(o, DOWN, 1, 3, false, TARE_BF16, NULL, false));
    }
    TRY(output_declare_norm(o, &norm, NORM_WRAPPED));
    TRY(output_declare_float_linear(o, "lm_head"));
done:
    return status;
}

static tare_status write_all(const mixed_case *c, output *o)
{
    quantized_weight down = {.n = 1,
                             .k = 3,
                             .q = (int8_t *)(uintptr_t)K_INTEGERS,
                             .scales = (float *)(uintptr_t)&ONE,
                             .num_scales = 1};
    act_params act = {0.125f, -7.0f, TARE_BF16};
    tare_status status = TARE_OK;
    weight_codes q = {.q = (int8_t *)(uintptr_t)Q_INTEGERS, .scales = (float *)(uintptr_t)SCALES};
    weight_codes k = {.q = (int8_t *)(uintptr_t)K_INTEGERS, .scales = (float *)(uintptr_t)&ONE};
    TRY(write_rows(o, Q_PROJ, 0, 2, &q, BIAS_BF16));
    TRY(write_rows(o, K_PROJ, 0, 1, &k, c->new_bias ? BIAS_BF16 : NULL));
    for (size_t i = 0; i < 4 && !c->alone; i++) { /* a row at a time */
        weight_codes row = {.q = q.q + i % 2 * 3, .scales = q.scales + i % 2};
        TRY(write_rows(o, i < 2 ? GATE : UP, i % 2, 1, &row, NULL));
    }
    if (!c->alone)
        TRY(write_w8a8(o, DOWN, &down, &act, &(float){0.125f}, &(int32_t){0}, NULL));
    TRY(output_write_float(o, "model.embed_tokens.weight", 0, EMBED_BF16, sizeof EMBED_BF16));
    TRY(output_write_norm(o, "model.norm.weight", NORM_BF16, NULL));
done:
    return status;
}

static tare_status make(tare_context *ctx, void *user)
{
    const mixed_case *c = user;
    output *o = NULL;
    output_options options = {.dir = c->base.out,
                              .tape = c->tape,
                              .model_dir = c->base.model,
                              .save = c->tape ? 0 : c->base.save,
                              .part_file_size = -1,
                              .num = c->base.num,
                              .scheme = SCHEME_W8A8,
                              .overwrite = true,
                              .verify = true};
    tare_status status = TARE_OK;
    TRY(output_open(ctx, &options, &o));
    TRY(declare_all(c, o));
    TRY(output_begin(o));
    TRY(write_all(c, o));
    TRY(output_finish(o, "{}\n", NULL));
done:
    output_free(o);
    return status;
}

static void make_good(mixed_case *c)
{
    tare_context *ctx = new_context(1);
    assert_ok(ctx, make(ctx, c));
    free_context(ctx);
}

static void assert_holds(const char *text, const char *part)
{
    if (!strstr(text, part))
        fail_msg("no %s in\n%s", part, text);
}

/* ---- what is written ---- */

static void test_dynamic(void **state)
{
    mixed_case c;
    (void)state;
    init(&c, true, SAVE_ASCENDV1);
    make_good(&c);
    tare_context *ctx = new_context(1);
    safetensors *s = open_weights(ctx, c.base.out, SHARD);
    assert_int_equal(safetensors_count(s), 9);
    assert_tensor(s, Q_PROJ ".weight", TARE_I8, 2, 2, 3, Q_INTEGERS, sizeof Q_INTEGERS);
    assert_tensor(s, Q_PROJ ".weight_scale", TARE_F32, 2, 2, 1, FLOATS(0.5f, 0.25f));
    assert_tensor(s, Q_PROJ ".weight_offset", TARE_F32, 2, 2, 1, FLOATS(0, 0));
    assert_tensor(s, Q_PROJ ".bias", TARE_BF16, 1, 2, 0, BIAS_BF16, sizeof BIAS_BF16);
    safetensors_close(s);
    free_context(ctx);
    assert_string_equal(read_text(c.base.out, DESCRIPTION),
                        "{\n  \"version\": \"1.0.0\",\n  \"model_quant_type\": \"W8A8_DYNAMIC\",\n"
                        "  \"group_size\": 0,\n  \"metadata\": {},\n  \"optional\": {},\n"
                        "  \"model.embed_tokens.weight\": \"FLOAT\",\n"
                        "  \"" Q_PROJ ".weight\": \"W8A8_DYNAMIC\",\n  \"" Q_PROJ
                        ".bias\": \"FLOAT\",\n"
                        "  \"" Q_PROJ ".weight_scale\": \"W8A8_DYNAMIC\",\n"
                        "  \"" Q_PROJ ".weight_offset\": \"W8A8_DYNAMIC\",\n"
                        "  \"" K_PROJ ".weight\": \"W8A8_DYNAMIC\",\n"
                        "  \"" K_PROJ ".weight_scale\": \"W8A8_DYNAMIC\",\n"
                        "  \"" K_PROJ ".weight_offset\": \"W8A8_DYNAMIC\",\n"
                        "  \"model.norm.weight\": \"FLOAT\"\n}\n");
    end_case(&c.base);
}

#define ALL ((1u << SAVE_TYPES) - 1)

/* Each linear by its own type; the model by the first of W8A8_DYNAMIC, W8A8, W8A16; copies of norms
 * by the run's. */
static void test_mixed(void **state)
{
    mixed_case c;
    char safe[192];
    (void)state;
    init(&c, false, ALL);
    make_good(&c);
    snprintf(safe, sizeof safe, "%s/safe_tensor", c.base.out);
    const char *types = read_text(safe, TYPED);
    assert_holds(types, "{\n  \"model_quant_type\": \"W8A8_DYNAMIC\",\n");
    assert_holds(types, "\"" K_PROJ ".weight\": \"W8A8_DYNAMIC\"");
    assert_holds(types, "\"" UP ".weight_scale\": \"W8A16\"");
    assert_holds(types, "\"" DOWN ".deq_scale\": \"W8A8\"");
    assert_holds(types, "\"model.norm.module.weight\": \"W8A8\"");
    assert_holds(read_text(safe, CONFIG), "\"quantize\": \"w8a8_dynamic\"");
    assert_true(strstr(names_in(safe), "quant_model_weight_w8a8_dynamic.safetensors") != NULL);
    expect_findings(&c.base, NULL, 0, 0);
    c.base.target = "mindie";
    expect_findings(&c.base, NULL, 0, 0);
    c.base.target = "vllm-ascend"; /* whose q, k and v are one linear: there is no v_proj */
    expect_findings(&c.base, NULL, RULE(30), 0);
    end_case(&c.base);
}

/* compat: the type of the run, whatever its linears have. */
static void test_compat(void **state)
{
    mixed_case c;
    (void)state;
    init(&c, false, SAVE_SAFE_TENSOR);
    c.base.num.compat = true;
    make_good(&c);
    const char *types = read_text(c.base.out, SAFE_TYPES);
    assert_holds(types, "\"model_quant_type\": \"W8A8\"");
    assert_holds(types, "\"" Q_PROJ ".weight\": \"W8A8_DYNAMIC\"");
    expect_findings(&c.base, NULL, 0, 0);
    c.base.target = "mindie"; /* which needs W8A8_DYNAMIC for static beside dynamic */
    expect_findings(&c.base, NULL, RULE(5), 0);
    end_case(&c.base);
    init(&c, true, SAVE_SAFE_TENSOR);
    c.base.num.compat = true;
    tare_context *ctx = new_context(1);
    assert_fails(ctx, make(ctx, &c), TARE_E_VERIFY, "rule 5");
    free_context(ctx);
    end_case(&c.base);
}

/* As llm-compressor writes W8A8 with dynamic activations. */
#define PER_TOKEN                                                                                  \
    "\"input_activations\":{\"num_bits\":8,\"type\":\"int\",\"symmetric\":true,"                   \
    "\"group_size\":null,\"strategy\":\"token\",\"block_structure\":null,\"dynamic\":true,"        \
    "\"actorder\":null,\"scale_dtype\":null,\"zp_dtype\":null,\"observer\":null,"                  \
    "\"observer_kwargs\":{}}"

static void test_compressed(void **state)
{
    mixed_case c;
    (void)state;
    init(&c, true, SAVE_COMPRESSED_TENSORS);
    make_good(&c);
    tare_context *ctx = new_context(1);
    safetensors *s = open_weights(ctx, c.base.out, "model-00001-of-00001.safetensors");
    assert_int_equal(safetensors_count(s), 7);
    assert_tensor(s, Q_PROJ ".weight", TARE_I8, 2, 2, 3, Q_INTEGERS, sizeof Q_INTEGERS);
    assert_tensor(s, Q_PROJ ".weight_scale", TARE_BF16, 2, 2, 1, HALVES(0x3f00, 0x3e80));
    safetensors_close(s);
    free_context(ctx);
    const char *config = compact(read_text(c.base.out, CONFIG));
    assert_holds(config, "\"format\":\"int-quantized\",\"global_compression_ratio\"");
    assert_holds(config, "\"group_0\":{\"targets\":[\"Linear\"],\"format\":\"int-quantized\"");
    assert_holds(config, PER_TOKEN "}}");
    c.base.target = "vllm-ascend";
    expect_findings(&c.base, NULL, 0, 0);
    end_case(&c.base);

    init(&c, false, SAVE_COMPRESSED_TENSORS);
    make_good(&c);
    config = compact(read_text(c.base.out, CONFIG));
    assert_holds(config, "\"format\":\"mixed-precision\",\"global_compression_ratio\"");
    assert_holds(config, "\"group_0\":{\"targets\":[\"" Q_PROJ "\",\"" K_PROJ
                         "\"],\"format\":\"int-quantized\"");
    assert_holds(config, PER_TOKEN "},\"group_1\":{\"targets\":[\"" DOWN
                                   "\"],\"format\":\"int-quantized\"");
    assert_holds(config, "\"group_2\":{\"targets\":[\"" GATE "\",\"" UP
                         "\"],\"format\":\"pack-quantized\"");
    end_case(&c.base);
}

/* The same calls, kept and made again. */
static void test_tape(void **state)
{
    mixed_case c;
    char direct[65536];
    (void)state;
    init(&c, false, SAVE_ASCENDV1);
    make_good(&c);
    char path[256];
    file_path_of(&c.base, SHARD, path, sizeof path);
    FILE *f = fopen(path, "rb");
    size_t size = fread(direct, 1, sizeof direct, f);
    fclose(f);
    tare_context *ctx = new_context(1);
    assert_ok(ctx, output_tape_create(ctx, c.base.root, &c.tape));
    assert_ok(ctx, make(ctx, &c));
    output_options how = {
        .dir = c.base.out, .save = ALL, .part_file_size = -1, .overwrite = true, .verify = true};
    assert_ok(ctx, output_tape_play(c.tape, &how, "{}\n", NULL));
    output_tape_free(c.tape);
    snprintf(path, sizeof path, "%s/ascendv1", c.base.out);
    const char *again = read_text(path, SHARD);
    assert_memory_equal(again, direct, size);
    free_context(ctx);
    end_case(&c.base);
}

/* Engines drop a bias that the architecture does not have, and nothing else holds it. */
static void test_new_bias(void **state)
{
    mixed_case c;
    (void)state;
    init(&c, true, SAVE_ASCENDV1 | SAVE_SAFE_TENSOR);
    c.new_bias = true;
    tare_context *ctx = new_context(1);
    assert_fails(ctx, make(ctx, &c), TARE_E_USAGE, "ascendv1 cannot hold the bias");
    assert_holds(tare_last_error(ctx), "(engines drop it): " K_PROJ ";");
    c.base.save = SAVE_SAFE_TENSOR;
    assert_ok(ctx, make(ctx, &c));
    free_context(ctx);
    end_case(&c.base);
}

static void test_allocation_failures(void **state)
{
    mixed_case c;
    (void)state;
    init(&c, false, ALL);
    each_allocation_fails(make, &c);
    end_case(&c.base);
}

/* ---- what verify says ---- */

static void retype(const output_case *c)
{
    replace(c, DESCRIPTION, K_PROJ ".weight\": \"W8A8_DYNAMIC\"", K_PROJ ".weight\": \"W8A8\"");
}

static void untype(const output_case *c)
{
    replace(c, DESCRIPTION, "quant_type\": \"W8A8_DYNAMIC\"", "quant_type\": \"W8A8_MIX\"");
}

static void drop_bias_of_architecture(const output_case *c)
{
    replace(c, CONFIG, "\"attention_bias\": true", "\"attention_bias\": false");
}

static void least(const output_case *c)
{
    patch(c, SHARD, Q_PROJ ".weight", 0, &(int8_t){-128}, 1);
}

static void weak(const output_case *c)
{
    patch(c, SHARD, Q_PROJ ".weight", 0, (int8_t[]){1, 2, 3}, 3);
}

static void offset(const output_case *c)
{
    patch_float(c, Q_PROJ ".weight_offset", 1);
}

static void negative(const output_case *c)
{
    patch_float(c, Q_PROJ ".weight_scale", -0.5f);
}

/* One more tensor, of a static linear. */
static void extra(const output_case *c)
{
    replace(c, SHARD, K_PROJ ".weight_offset\"", K_PROJ ".input_offset\" ");
}

static void no_tokens(const output_case *c)
{
    replace(c, CONFIG, "\"strategy\": \"token\"", "\"strategy\": \"tensor\"");
}

static void static_tokens(const output_case *c)
{
    replace(c, CONFIG, "\"dynamic\": true", "\"dynamic\": false");
}

static void other_target(const output_case *c)
{
    replace(c, CONFIG, "\"" UP "\"", "\"" DOWN "\"");
}

static void pattern(const output_case *c)
{
    replace(c, CONFIG, "\"" GATE "\"", "\"re:.*(gate|up)_proj\"");
    replace(c, CONFIG, "\"" UP "\"", "\"re:.*up_proj\"");
}

static void one_format(const output_case *c)
{
    replace(c, CONFIG, "\"mixed-precision\"", "\"int-quantized\"");
}

static void test_broken(void **state)
{
    static const struct {
        broken what;
        unsigned save;
        bool alone;
    } cases[] = {
        {{retype, RULE(5) | RULE(6) | RULE(13), 0}, SAVE_ASCENDV1, true},
        {{untype, RULE(5), 0}, SAVE_ASCENDV1, true},
        {{drop_bias_of_architecture, RULE(28), 0}, SAVE_ASCENDV1, true},
        {{least, RULE(12), 0}, SAVE_ASCENDV1, true},
        {{weak, 0, RULE(12)}, SAVE_ASCENDV1, true},
        {{offset, RULE(9), 0}, SAVE_ASCENDV1, true},
        {{negative, RULE(8), 0}, SAVE_ASCENDV1, true},
        {{extra, RULE(2) | RULE(4) | RULE(6), 0}, SAVE_ASCENDV1, true},
        {{no_tokens, RULE(23), 0}, SAVE_COMPRESSED_TENSORS, true},
        {{static_tokens, RULE(23), 0}, SAVE_COMPRESSED_TENSORS, true},
        {{no_tokens, RULE(23), 0}, SAVE_COMPRESSED_TENSORS, false},
        {{other_target, RULE(23), 0}, SAVE_COMPRESSED_TENSORS, false},
        {{pattern, 0, RULE(23)}, SAVE_COMPRESSED_TENSORS, false},
        {{one_format, RULE(23), 0}, SAVE_COMPRESSED_TENSORS, false},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        mixed_case c;
        init(&c, cases[i].alone, cases[i].save);
        make_good(&c);
        cases[i].what.action(&c.base);
        expect_findings(&c.base, NULL, cases[i].what.failed, cases[i].what.warned);
        end_case(&c.base);
    }
}

/* Within half a scale of the source: q_proj's row 0 is 63.5, -32, 0.5. */
static void test_base(void **state)
{
    mixed_case c;
    (void)state;
    init(&c, true, SAVE_ASCENDV1);
    write_model_weights(&c.base);
    make_good(&c);
    /* the model's o_proj is not in this output */
    expect_findings(&c.base, c.base.model, RULE(14), 0);
    patch(&c.base, SHARD, Q_PROJ ".weight", 1, &(int8_t){-63}, 1);
    expect_findings(&c.base, c.base.model, RULE(14) | RULE(15), 0);
    end_case(&c.base);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dynamic),
        cmocka_unit_test(test_mixed),
        cmocka_unit_test(test_compat),
        cmocka_unit_test(test_compressed),
        cmocka_unit_test(test_tape),
        cmocka_unit_test(test_new_bias),
        cmocka_unit_test(test_allocation_failures),
        cmocka_unit_test(test_broken),
        cmocka_unit_test(test_base),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
