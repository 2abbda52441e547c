/* output/: FA tensors of attention modules, norms that outlier suppression changed, biases that it
 * created; rule 19 of verify. */
#include "output_fixture.h"

#include "file/npy.h"

enum { LAYERS = 12, Q_HEADS = 2 };

#define FA_CONFIG(heads)                                                                           \
    "{\n  \"model_type\": \"llama\",\n  \"torch_dtype\": \"bfloat16\",\n"                          \
    "  \"num_attention_heads\": " #heads ",\n  \"num_key_value_heads\": 1\n}\n"

typedef struct fa_case {
    output_case base;
    bool fa, float_bias;
    size_t fa_amp;
    const size_t *kept; /* NULL: all */
    size_t num_kept;
    norm_kind norm;
    float scale; /* of q's first head in layer 0; others are powers of two */
} fa_case;

static void init_fa(fa_case *c)
{
    memset(c, 0, sizeof *c);
    init_case(&c->base);
    write_text(c->base.model, "config.json", FA_CONFIG(2));
    c->fa = true;
    c->scale = 0.5f;
}

static tare_status declare_all(const fa_case *c, output *o)
{
    static const size_t heads[FA_KINDS] = {Q_HEADS, 1, 1};
    tare_status status = TARE_OK;
    for (size_t i = 0; i < LAYERS; i++) {
        char attention[64], norm[64];
        snprintf(attention, sizeof attention, "model.layers.%zu.self_attn", i);
        snprintf(norm, sizeof norm, "model.layers.%zu.input_layernorm.weight", i);
        tensor_info t = bf16_tensor(norm, 3, 0);
        if (c->fa)
            TRY(output_declare_fa(o, attention, heads));
        if (i == 0)
            TRY(declare_w8a8(o, K_PROJ, 1, 3, false, c->base.num.dtype, NULL, false));
        TRY(output_declare_norm(o, &t, c->norm));
    }
    if (c->float_bias) {
        tensor_info gate = bf16_tensor("model.layers.0.mlp.gate_proj.bias", 3, 0);
        tensor_info up = bf16_tensor("model.layers.0.mlp.up_proj.bias", 3, 0);
        TRY(output_declare_new_bias(o, &gate));
        TRY(output_declare_new_bias(o, &up));
    }
done:
    return status;
}

static bool keeps(const fa_case *c, size_t layer)
{
    for (size_t i = 0; i < c->num_kept; i++)
        if (c->kept[i] == layer)
            return true;
    return !c->kept;
}

/* Layer i: q (scale, 2^-i), k 2^(1-i), v 2^(2-i). */
static tare_status write_scales(const fa_case *c, output *o)
{
    tare_status status = TARE_OK;
    for (size_t i = 0; i < LAYERS && c->fa; i++) {
        char attention[64];
        float unit = 1.0f / (float)(1u << i), q[Q_HEADS] = {c->scale, unit}, k = 2 * unit,
              v = 4 * unit;
        snprintf(attention, sizeof attention, "model.layers.%zu.self_attn", i);
        if (keeps(c, i))
            TRY(output_write_fa(o, attention, (const float *[]){q, &k, &v}));
    }
done:
    return status;
}

static tare_status write_all(const fa_case *c, output *o)
{
    static const float bias[3] = {0.25f, 0, -1};
    float scale = 1, deq = 0.125f;
    int64_t sum = 0;
    int32_t quant_bias = 0;
    bool zero = false;
    quantized_weight w = {1, 3, (int8_t *)(uintptr_t)K_INTEGERS, &scale, 1, &sum, &zero};
    act_params act = {0.125f, -7.0f, c->base.num.dtype};
    tare_status status = TARE_OK;
    if (c->fa_amp == 0)
        TRY(write_scales(c, o));
    TRY(write_w8a8(o, K_PROJ, &w, &act, &deq, &quant_bias, NULL));
    for (size_t i = 0; i < LAYERS; i++) {
        char norm[64];
        snprintf(norm, sizeof norm, "model.layers.%zu.input_layernorm.weight", i);
        TRY(output_write_norm(o, norm, NORM_BF16, c->norm == NORM_SHIFTED ? bias : NULL));
    }
    for (int i = 0; i < 2 && c->float_bias; i++)
        TRY(output_write_float(
            o, i ? "model.layers.0.mlp.up_proj.bias" : "model.layers.0.mlp.gate_proj.bias", 0,
            NORM_BF16, sizeof NORM_BF16));
    if (c->fa_amp > 0)
        TRY(write_scales(c, o));
done:
    return status;
}

static tare_status make(tare_context *ctx, const fa_case *c)
{
    output *o = NULL;
    output_options options = {.dir = c->base.out,
                              .model_dir = c->base.model,
                              .save = c->base.save,
                              .part_file_size = c->base.part_file_size,
                              .num = c->base.num,
                              .scheme = SCHEME_W8A8,
                              .fa_amp = c->fa_amp,
                              .overwrite = c->base.overwrite,
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

static void make_good(const fa_case *c)
{
    tare_context *ctx = new_context(1);
    assert_ok(ctx, make(ctx, c));
    free_context(ctx);
}

static void expect_tensor(const char *folder, const char *file_name, const char *name,
                          tare_dtype dtype, size_t rows, const void *data)
{
    char path[512], got[64];
    safetensors *s;
    tare_context *ctx = new_context(1);
    snprintf(path, sizeof path, "%s/%s", folder, file_name);
    assert_ok(ctx, safetensors_open(ctx, path, &s));
    const tensor_info *t = safetensors_find(s, name);
    if (!t)
        fail_msg("%s: no %s", path, name);
    assert_int_equal(t->dtype, dtype);
    assert_int_equal(t->shape[0], rows);
    assert_ok(ctx, safetensors_read(s, t, 0, got, (size_t)t->bytes));
    assert_memory_equal(got, data, (size_t)t->bytes);
    safetensors_close(s);
    free_context(ctx);
}

static size_t count_tensors(const char *folder, const char *file_name, const char *part)
{
    char path[512];
    size_t found = 0;
    safetensors *s;
    tare_context *ctx = new_context(1);
    snprintf(path, sizeof path, "%s/%s", folder, file_name);
    assert_ok(ctx, safetensors_open(ctx, path, &s));
    for (size_t i = 0; i < safetensors_count(s); i++)
        found += strstr(safetensors_at(s, i)->name, part) != NULL;
    safetensors_close(s);
    free_context(ctx);
    return found;
}

#define ASCEND_FILE "quant_model_weights-00001-of-00001.safetensors"
#define SAFE_FILE   "quant_model_weight_w8a8.safetensors"

static const int8_t ZEROS[2] = {0, 0};

static void test_all_layouts(void **state)
{
    static const uint16_t q_bf16[2] = {0x3f00, 0x3f80}; /* 0.5, 1 */
    static const float q[2] = {0.5f, 1.0f};
    char ascend[160], safe[160];
    fa_case c;
    (void)state;
    init_fa(&c);
    c.base.save = SAVE_ASCENDV1 | SAVE_SAFE_TENSOR | SAVE_NUMPY;
    make_good(&c);
    snprintf(ascend, sizeof ascend, "%s/ascendv1", c.base.out);
    snprintf(safe, sizeof safe, "%s/safe_tensor", c.base.out);
    expect_tensor(ascend, ASCEND_FILE, "model.layers.0.self_attn.fa_q.scale", TARE_F32, 2, q);
    expect_tensor(ascend, ASCEND_FILE, "model.layers.0.self_attn.fa_q.offset", TARE_I8, 2, ZEROS);
    expect_tensor(safe, SAFE_FILE, "model.layers.0.self_attn.fa_q.scale", TARE_BF16, 2, q_bf16);
    assert_int_equal(count_tensors(ascend, ASCEND_FILE, ".fa_"), 6 * LAYERS);
    static const char order[] = "  \"model.layers.0.self_attn.fa_q.scale\": \"FAQuant\",\n"
                                "  \"model.layers.0.self_attn.fa_k.scale\": \"FAQuant\",\n"
                                "  \"model.layers.0.self_attn.fa_v.scale\": \"FAQuant\",\n"
                                "  \"model.layers.0.self_attn.fa_q.offset\": \"FAQuant\",\n"
                                "  \"model.layers.0.self_attn.fa_k.offset\": \"FAQuant\",\n"
                                "  \"model.layers.0.self_attn.fa_v.offset\": \"FAQuant\",\n"
                                "  \"model.layers.0.self_attn.k_proj.weight\": \"W8A8\",\n";
    const char *text = read_text(safe, "quant_model_description_w8a8.json");
    assert_non_null(strstr(text, order));
    assert_non_null(strstr(text, "{\n  \"model_quant_type\": \"W8A8\",\n"
                                 "  \"fa_quant_type\": \"FAQuant\",\n"));
    assert_non_null(strstr(read_text(ascend, "quant_model_description.json"), order));
    assert_non_null(strstr(read_text(safe, "config.json"), "\"quantization_config\": {\n    "
                                                           "\"fa_quant_type\": \"FAQuant\"\n  }"));
    assert_null(strstr(read_text(ascend, "config.json"), "quantization_config"));
    assert_non_null(strstr(names_in(safe), "fa_quant_offset.npy fa_quant_scale.npy"));
    end_case(&c.base);
}

/* Modules 1, 10 and 11 keep their tensors: longer and shorter names than the ones before them. */
static void test_late_choice(void **state)
{
    static const size_t kept[] = {1, 10, 11};
    static const float first[2] = {0.5f, 0.5f}, last[1] = {4.0f / 2048};
    (void)state;
    for (int sharded = 0; sharded < 2; sharded++) {
        fa_case c;
        const char *name = sharded ? ASCEND_FILE : "quant_model_weights.safetensors";
        init_fa(&c);
        c.base.part_file_size = sharded;
        c.fa_amp = 9;
        c.kept = kept;
        c.num_kept = 3;
        make_good(&c);
        assert_int_equal(count_tensors(c.base.out, name, ".fa_"), 18);
        expect_tensor(c.base.out, name, "model.layers.1.self_attn.fa_q.scale", TARE_F32, 2, first);
        expect_tensor(c.base.out, name, "model.layers.11.self_attn.fa_v.scale", TARE_F32, 1, last);
        expect_tensor(c.base.out, name, "model.layers.10.self_attn.fa_q.offset", TARE_I8, 2, ZEROS);
        /* the description keeps model order */
        const char *text = read_text(c.base.out, "quant_model_description.json");
        const char *fa = strstr(text, "model.layers.1.self_attn.fa_q.scale"),
                   *norm = strstr(text, "model.layers.1.input_layernorm.weight");
        assert_true(fa && norm && fa < norm);
        assert_null(strstr(text, "model.layers.2.self_attn.fa_"));
        end_case(&c.base);
    }
}

static void test_none_left(void **state)
{
    (void)state;
    for (int compat = 0; compat < 2; compat++) {
        fa_case c;
        init_fa(&c);
        c.base.save = SAVE_SAFE_TENSOR | SAVE_NUMPY;
        c.base.num.compat = compat != 0;
        c.fa_amp = 99;
        c.kept = (const size_t[]){0};
        make_good(&c);
        assert_int_equal(count_tensors(c.base.out, SAFE_FILE, ".fa_"), 0);
        bool key = strstr(read_text(c.base.out, "quant_model_description_w8a8.json"),
                          "\"fa_quant_type\": \"FAQuant\"") != NULL;
        assert_int_equal(key, compat);
        assert_null(strstr(names_in(c.base.out), "fa_quant"));
        end_case(&c.base);
    }
}

/* ---- norms ---- */

static void test_norms(void **state)
{
    /* number of tensors of the 12 norms */
    static const struct {
        unsigned save;
        bool compat;
        norm_kind kind;
        size_t tensors, copies;
    } cases[] = {{SAVE_ASCENDV1, false, NORM_PLAIN, 12, 0},
                 {SAVE_ASCENDV1, false, NORM_WRAPPED, 12, 0},
                 {SAVE_ASCENDV1, false, NORM_SHIFTED, 24, 0},
                 {SAVE_ASCENDV1, true, NORM_WRAPPED, 24, 0},
                 {SAVE_SAFE_TENSOR, false, NORM_PLAIN, 12, 0},
                 {SAVE_SAFE_TENSOR, false, NORM_WRAPPED, 48, 24},
                 {SAVE_SAFE_TENSOR, true, NORM_SHIFTED, 48, 24}};
    static const float zeros[3] = {0, 0, 0}, shift[3] = {0.25f, 0, -1};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        fa_case c;
        bool safe = cases[i].save == SAVE_SAFE_TENSOR;
        const char *name = safe || cases[i].compat ? SAFE_FILE : ASCEND_FILE;
        const float *bias = cases[i].kind == NORM_SHIFTED ? shift : zeros;
        init_fa(&c);
        c.fa = false;
        c.base.save = cases[i].save;
        c.base.num.compat = cases[i].compat;
        c.norm = cases[i].kind;
        make_good(&c);
        assert_int_equal(count_tensors(c.base.out, name, "norm."), cases[i].tensors);
        assert_int_equal(count_tensors(c.base.out, name, "norm.module."), cases[i].copies);
        expect_tensor(c.base.out, name, "model.layers.3.input_layernorm.weight", TARE_BF16, 3,
                      NORM_BF16);
        if (cases[i].tensors > LAYERS)
            expect_tensor(c.base.out, name, "model.layers.3.input_layernorm.bias", TARE_F32, 3,
                          bias);
        if (cases[i].copies > 0) {
            expect_tensor(c.base.out, name, "model.layers.3.input_layernorm.module.bias", TARE_F32,
                          3, bias);
            assert_non_null(
                strstr(read_text(c.base.out, "quant_model_description_w8a8.json"),
                       "  \"model.layers.0.input_layernorm.weight\": \"FLOAT\",\n"
                       "  \"model.layers.0.input_layernorm.bias\": \"FLOAT\",\n"
                       "  \"model.layers.0.input_layernorm.module.weight\": \"W8A8\",\n"
                       "  \"model.layers.0.input_layernorm.module.bias\": \"W8A8\",\n"));
        }
        end_case(&c.base);
    }
}

static void test_norms_in_npy(void **state)
{
    fa_case c;
    char path[256];
    npy_dict *d;
    (void)state;
    init_fa(&c);
    c.fa = false;
    c.base.save = SAVE_SAFE_TENSOR | SAVE_NUMPY;
    c.norm = NORM_SHIFTED;
    make_good(&c);
    tare_context *ctx = new_context(1);
    snprintf(path, sizeof path, "%s/anti_fp_norm.npy", c.base.out);
    assert_ok(ctx, npy_open(ctx, path, &d));
    assert_int_equal(npy_count(d), 24);
    assert_non_null(npy_find(d, "model.layers.11.input_layernorm.bias"));
    npy_close(d);
    free_context(ctx);
    end_case(&c.base);
}

static void test_new_bias(void **state)
{
    fa_case c;
    (void)state;
    init_fa(&c);
    c.float_bias = true;
    tare_context *ctx = new_context(1);
    assert_fails(ctx, make(ctx, &c), TARE_E_USAGE,
                 "model.layers.0.mlp.gate_proj, model.layers.0.mlp.up_proj; choose");
    assert_string_equal(names_in(c.base.out), "");
    c.base.save = SAVE_SAFE_TENSOR;
    assert_ok(ctx, make(ctx, &c));
    expect_tensor(c.base.out, SAFE_FILE, "model.layers.0.mlp.up_proj.bias", TARE_BF16, 3,
                  NORM_BF16);
    free_context(ctx);
    end_case(&c.base);
}

/* ---- refusals ---- */

static void test_misuse(void **state)
{
    static const size_t kept[] = {0, 1, 2};
    fa_case c;
    (void)state;
    init_fa(&c);
    c.fa_amp = 10;
    c.kept = kept;
    c.num_kept = 3;
    tare_context *ctx = new_context(1);
    assert_fails(ctx, make(ctx, &c), TARE_E_USAGE, "one module too many");
    c.num_kept = 1;
    assert_fails(ctx, make(ctx, &c), TARE_E_USAGE, "1 attention modules were written, not 2");
    free_context(ctx);
    end_case(&c.base);
}

static void keep_finding(void *user, const tare_finding *finding)
{
    char *text = user;
    if (finding->severity == TARE_FINDING_FAILURE && finding->rule < 30) /* there is no v_proj */
        snprintf(text, 256, "%d %s", finding->rule, finding->tensor);
}

static void test_rule_19(void **state)
{
    fa_case c;
    char found[256] = "";
    (void)state;
    init_fa(&c);
    tare_context *ctx = new_context(1);
    c.scale = -0.5f;
    assert_fails(ctx, make(ctx, &c), TARE_E_VERIFY,
                 "rule 19: model.layers.0.self_attn.fa_q.scale: found -0.5 in element 0");
    c.scale = 0.1f; /* no BF16 number, which F32 would betray */
    assert_fails(ctx, make(ctx, &c), TARE_E_VERIFY, "positive numbers of the serving dtype");
    c.scale = 0.5f;
    write_text(c.base.model, "config.json", FA_CONFIG(4));
    assert_fails(ctx, make(ctx, &c), TARE_E_VERIFY, "found F32 [2,1], expected F32 [4,1]");
    write_text(c.base.model, "config.json", FA_CONFIG(2));
    assert_ok(ctx, make(ctx, &c));
    tare_verify_options options;
    tare_verify_options_init(&options);
    options.dir = c.base.out;
    options.finding = keep_finding;
    options.user = found;
    assert_ok(ctx, tare_verify(ctx, &options, NULL));
    options.target = "vllm-ascend";
    assert_int_equal(tare_verify(ctx, &options, NULL), TARE_E_VERIFY);
    assert_string_equal(found, "19 model.layers.*.self_attn");
    free_context(ctx);
    end_case(&c.base);
}

/* A bias that slipped through as an ordinary FLOAT tensor. */
static void test_rule_28(void **state)
{
    output *o = NULL;
    fa_case c;
    (void)state;
    init_fa(&c);
    tare_context *ctx = new_context(1);
    output_options options = {.dir = c.base.out,
                              .model_dir = c.base.model,
                              .save = SAVE_ASCENDV1,
                              .part_file_size = -1,
                              .num = c.base.num,
                              .scheme = SCHEME_W8A8,
                              .verify = true};
    tensor_info bias = bf16_tensor("model.layers.0.mlp.up_proj.bias", 3, 0);
    assert_ok(ctx, output_open(ctx, &options, &o));
    assert_ok(ctx, output_declare_float(o, &bias));
    assert_ok(ctx, output_begin(o));
    assert_ok(ctx, output_write_float(o, bias.name, 0, NORM_BF16, sizeof NORM_BF16));
    assert_fails(ctx, output_finish(o, "{}\n", NULL), TARE_E_VERIFY,
                 "rule 28: model.layers.0.mlp.up_proj.bias");
    output_free(o);
    free_context(ctx);
    end_case(&c.base);
}

/* ---- late names in a safetensors file ---- */

static void test_rename(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    const char *d = temporary_folder();
    char path[128];
    safetensors_writer *w;
    tensor_info t[3] = {{.name = "000000", .dtype = TARE_I8, .rank = 1, .shape = {2}},
                        {.name = "b", .dtype = TARE_I32, .rank = 1, .shape = {1}},
                        {.name = "c", .dtype = TARE_I8, .rank = 1, .shape = {0}}};
    snprintf(path, sizeof path, "%s/x.safetensors", d);
    for (int fits = 1; fits >= 0; fits--) {
        t[0].name = "000000";
        assert_ok(ctx, safetensors_create(ctx, path, t, 3, &w));
        assert_ok(ctx, safetensors_write(w, 0, 0, "\1\2", 2));
        assert_ok(ctx, safetensors_write(w, 1, 0, "\1\0\0\0", 4));
        t[0].name = fits ? "z" : "0123456789012345678901234567890";
        if (!fits) {
            assert_fails(ctx, safetensors_rename(w, t), TARE_E_FORMAT, "do not fit");
            safetensors_abandon(w);
            continue;
        }
        assert_ok(ctx, safetensors_rename(w, t));
        assert_ok(ctx, safetensors_finish(w));
        expect_tensor(d, "x.safetensors", "z", TARE_I8, 2, "\1\2");
        expect_tensor(d, "x.safetensors", "b", TARE_I32, 1, "\1\0\0\0");
        assert_int_equal(count_tensors(d, "x.safetensors", ""), 3);
        assert_int_equal(unlink(path), 0);
    }
    assert_ok(ctx, folder_remove(ctx, d));
    free_context(ctx);
}

static tare_status whole_life(tare_context *ctx, void *user)
{
    fa_case *c = user;
    tare_status status = make(ctx, c);
    c->base.overwrite = true;
    return status;
}

static void test_allocation_failures(void **state)
{
    static const size_t kept[] = {3};
    fa_case c;
    (void)state;
    init_fa(&c);
    c.norm = NORM_SHIFTED;
    c.fa_amp = 11;
    c.kept = kept;
    c.num_kept = 1;
    each_allocation_fails(whole_life, &c);
    end_case(&c.base);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_all_layouts),
                                       cmocka_unit_test(test_late_choice),
                                       cmocka_unit_test(test_none_left),
                                       cmocka_unit_test(test_norms),
                                       cmocka_unit_test(test_norms_in_npy),
                                       cmocka_unit_test(test_new_bias),
                                       cmocka_unit_test(test_misuse),
                                       cmocka_unit_test(test_rule_19),
                                       cmocka_unit_test(test_rule_28),
                                       cmocka_unit_test(test_rename),
                                       cmocka_unit_test(test_allocation_failures)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
