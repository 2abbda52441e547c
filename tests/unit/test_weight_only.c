/* W8A16 in the layouts and under `tare verify`: q_proj [2,3] with a bias and k_proj [1,3], worked
 * out by hand, written in rows. */
#include "output_fixture.h"

#define SHARD   "quant_model_weights-00001-of-00001.safetensors"
#define RULE(n) (1u << (n))

/* q_proj's rows span 255 steps from their zeros, -28 and 127; k_proj's zero is -128. */
static const int8_t Q_ASYM[6] = {127, -128, -28, -128, 126, 127}, K_ASYM[3] = {127, -128, 0};
static const float Q_ZEROS[2] = {-28.0f, 127.0f}, K_ZEROS[1] = {-128.0f};

typedef struct weight_case {
    output_case base;
    bool symmetric, per_tensor;
} weight_case;

static void init(weight_case *c, bool symmetric, unsigned save)
{
    *c = (weight_case){.symmetric = symmetric};
    init_case(&c->base);
    c->base.save = save;
}

static tare_status open_output(tare_context *ctx, const weight_case *c, output **o)
{
    output_options options = {.dir = c->base.out,
                              .model_dir = c->base.model,
                              .save = c->base.save,
                              .part_file_size = -1,
                              .num = c->base.num,
                              .scheme = SCHEME_W8A16,
                              .verify = true};
    tensor_info embed = bf16_tensor("model.embed_tokens.weight", 2, 3);
    tensor_info norm = bf16_tensor("model.norm.weight", 3, 0);
    tensor_info bias = bf16_tensor(Q_PROJ ".bias", 2, 0);
    tare_status status = TARE_OK;
    TRY(output_open(ctx, &options, o));
    TRY(output_declare_float(*o, &embed));
    TRY(declare_weights(*o, SCHEME_W8A16, Q_PROJ, 2, 3, c->per_tensor, &bias));
    TRY(declare_weights(*o, SCHEME_W8A16, K_PROJ, 1, 3, false, NULL));
    TRY(output_declare_float(*o, &norm));
    TRY(output_begin(*o));
done:
    return status;
}

static weight_codes codes_of(const weight_case *c, size_t row)
{
    static float scales[2] = {0.5f, 0.25f};
    const int8_t *q = c->symmetric ? Q_INTEGERS : Q_ASYM;
    size_t at = c->per_tensor ? 0 : row;
    return (weight_codes){.q = (int8_t *)(uintptr_t)(q + 3 * row),
                          .scales = scales + at,
                          .offsets = c->symmetric ? NULL : (float *)(uintptr_t)(Q_ZEROS + at)};
}

static tare_status write_rest(const weight_case *c, output *o)
{
    float one = 1.0f;
    weight_codes k = {.q = (int8_t *)(uintptr_t)(c->symmetric ? K_INTEGERS : K_ASYM),
                      .scales = &one,
                      .offsets = c->symmetric ? NULL : (float *)(uintptr_t)K_ZEROS};
    tare_status status = TARE_OK;
    TRY(write_rows(o, K_PROJ, 0, 1, &k, NULL));
    TRY(output_write_float(o, "model.norm.weight", 0, NORM_BF16, sizeof NORM_BF16));
    TRY(output_write_float(o, "model.embed_tokens.weight", 0, EMBED_BF16, sizeof EMBED_BF16));
done:
    return status;
}

static tare_status write_output(tare_context *ctx, void *user)
{
    const weight_case *c = user;
    output *o = NULL;
    tare_status status = TARE_OK;
    TRY(open_output(ctx, c, &o));
    for (size_t row = 0; row < 2; row++) {
        weight_codes codes = codes_of(c, row);
        TRY(write_rows(o, Q_PROJ, row, 1, &codes, row == 1 ? BIAS_BF16 : NULL));
    }
    TRY(write_rest(c, o));
    TRY(output_finish(o, "{}\n", NULL));
done:
    output_free(o);
    return status;
}

static void write_good(weight_case *c)
{
    tare_context *ctx = new_context(1);
    assert_ok(ctx, write_output(ctx, c));
    free_context(ctx);
}

/* ---- what is written ---- */

static void expect_tensor(safetensors *s, const char *name, tare_dtype dtype, int rank,
                          const void *data, size_t size)
{
    char bytes[64];
    const tensor_info *t = safetensors_find(s, name);
    if (!t)
        fail_msg("no tensor %s", name);
    assert_int_equal(t->dtype, dtype);
    assert_int_equal(t->rank, rank);
    assert_int_equal(t->bytes, size);
    assert_int_equal(safetensors_read(s, t, 0, bytes, size), TARE_OK);
    assert_memory_equal(bytes, data, size);
}

static safetensors *open_file(tare_context *ctx, const weight_case *c, const char *name)
{
    char path[256];
    safetensors *s;
    snprintf(path, sizeof path, "%s/%s", c->base.out, name);
    assert_ok(ctx, safetensors_open(ctx, path, &s));
    return s;
}

static void test_ascendv1(void **state)
{
    (void)state;
    static const float scales[2] = {0.5f, 0.25f};
    weight_case c;
    init(&c, false, SAVE_ASCENDV1);
    write_good(&c);
    tare_context *ctx = new_context(1);
    safetensors *s = open_file(ctx, &c, SHARD);
    assert_int_equal(safetensors_count(s), 9);
    expect_tensor(s, Q_PROJ ".weight", TARE_I8, 2, Q_ASYM, 6);
    expect_tensor(s, Q_PROJ ".weight_scale", TARE_F32, 2, scales, sizeof scales);
    expect_tensor(s, Q_PROJ ".weight_offset", TARE_F32, 2, Q_ZEROS, sizeof Q_ZEROS);
    expect_tensor(s, Q_PROJ ".bias", TARE_BF16, 1, BIAS_BF16, sizeof BIAS_BF16);
    expect_tensor(s, K_PROJ ".weight", TARE_I8, 2, K_ASYM, 3);
    safetensors_close(s);
    assert_string_equal(read_text(c.base.out, "quant_model_description.json"),
                        "{\n  \"version\": \"1.0.0\",\n  \"model_quant_type\": \"W8A16\",\n"
                        "  \"group_size\": 0,\n  \"metadata\": {},\n  \"optional\": {},\n"
                        "  \"model.embed_tokens.weight\": \"FLOAT\",\n"
                        "  \"" Q_PROJ ".weight\": \"W8A16\",\n"
                        "  \"" Q_PROJ ".bias\": \"FLOAT\",\n"
                        "  \"" Q_PROJ ".weight_scale\": \"W8A16\",\n"
                        "  \"" Q_PROJ ".weight_offset\": \"W8A16\",\n"
                        "  \"" K_PROJ ".weight\": \"W8A16\",\n"
                        "  \"" K_PROJ ".weight_scale\": \"W8A16\",\n"
                        "  \"" K_PROJ ".weight_offset\": \"W8A16\",\n"
                        "  \"model.norm.weight\": \"FLOAT\"\n}\n");
    free_context(ctx);
    end_case(&c.base);
}

/* 0.5 and 0 in BF16; one scale is one number here, and repeated in ascendv1. */
static void test_one_scale(void **state)
{
    (void)state;
    static const uint16_t half[1] = {0x3f00}, zero[1] = {0};
    static const float repeated[2] = {0.5f, 0.5f};
    weight_case c;
    tare_context *ctx = new_context(1);
    init(&c, true, SAVE_SAFE_TENSOR);
    c.per_tensor = true;
    write_good(&c);
    safetensors *s = open_file(ctx, &c, "quant_model_weight_w8a16.safetensors");
    expect_tensor(s, Q_PROJ ".weight", TARE_I8, 2, Q_INTEGERS, 6);
    expect_tensor(s, Q_PROJ ".weight_scale", TARE_BF16, 1, half, 2);
    expect_tensor(s, Q_PROJ ".weight_offset", TARE_BF16, 1, zero, 2);
    safetensors_close(s);
    end_case(&c.base);
    init(&c, true, SAVE_ASCENDV1);
    c.per_tensor = true;
    write_good(&c);
    s = open_file(ctx, &c, SHARD);
    expect_tensor(s, Q_PROJ ".weight_scale", TARE_F32, 2, repeated, sizeof repeated);
    safetensors_close(s);
    end_case(&c.base);
    free_context(ctx);
}

static void test_wrong_calls(void **state)
{
    (void)state;
    weight_case c;
    output *o;
    init(&c, false, SAVE_ASCENDV1);
    tare_context *ctx = new_context(1);
    assert_ok(ctx, open_output(ctx, &c, &o));
    weight_codes codes = codes_of(&c, 0);
    const char *differs = "differs from what was declared";
    assert_fails(ctx, write_rows(o, O_PROJ, 0, 1, &codes, NULL), TARE_E_USAGE, "was not declared");
    assert_fails(ctx, write_rows(o, Q_PROJ, 1, 1, &codes, NULL), TARE_E_USAGE, differs);
    assert_fails(ctx, write_rows(o, Q_PROJ, 0, 3, &codes, NULL), TARE_E_USAGE, differs);
    assert_fails(ctx, write_rows(o, Q_PROJ, 0, 2, &codes, NULL), TARE_E_USAGE, differs);
    assert_fails(ctx, write_rows(o, Q_PROJ, 0, 1, &codes, BIAS_BF16), TARE_E_USAGE, differs);
    assert_ok(ctx, write_rows(o, Q_PROJ, 0, 1, &codes, NULL));
    assert_ok(ctx, write_rest(&c, o));
    assert_fails(ctx, output_finish(o, "{}\n", NULL), TARE_E_USAGE, Q_PROJ " was declared");
    output_free(o);
    free_context(ctx);
    end_case(&c.base);
}

static void test_failing_allocations(void **state)
{
    (void)state;
    weight_case c;
    init(&c, false, SAVE_ASCENDV1 | SAVE_NUMPY);
    c.base.overwrite = true;
    each_allocation_fails(write_output, &c);
    end_case(&c.base);
}

/* ---- verify ---- */

typedef struct findings {
    unsigned failed, warned;
} findings;

static void keep(void *user, const tare_finding *f)
{
    findings *all = user;
    *(f->severity == TARE_FINDING_FAILURE ? &all->failed : &all->warned) |= RULE(f->rule);
}

static void expect_findings(const weight_case *c, const char *target, unsigned failed,
                            unsigned warned)
{
    findings all = {0};
    tare_verify_options options;
    tare_context *ctx = new_context(1);
    tare_verify_options_init(&options);
    options.dir = c->base.out;
    options.target = target;
    options.finding = keep;
    options.user = &all;
    tare_status status = tare_verify(ctx, &options, NULL);
    if (all.failed != failed || all.warned != warned)
        fail_msg("failures %#x (expected %#x), warnings %#x (%#x): %s", all.failed, failed,
                 all.warned, warned, tare_last_error(ctx));
    assert_int_equal(status, failed ? TARE_E_VERIFY : TARE_OK);
    free_context(ctx);
}

static void patch(const weight_case *c, const char *tensor, const void *data, size_t size)
{
    char path[256];
    tare_context *ctx = new_context(1);
    safetensors *s = open_file(ctx, c, SHARD);
    snprintf(path, sizeof path, "%s/%s", c->base.out, SHARD);
    FILE *f = fopen(path, "r+b");
    assert_non_null(f);
    fseek(f, (long)safetensors_find(s, tensor)->offset, SEEK_SET);
    fwrite(data, 1, size, f);
    fclose(f);
    safetensors_close(s);
    free_context(ctx);
}

/* Writes a good output, breaks one tensor, and expects these findings. */
static void check_broken(bool symmetric, const char *tensor, const void *data, size_t size,
                         unsigned failed, unsigned warned)
{
    weight_case c;
    init(&c, symmetric, SAVE_ASCENDV1);
    write_good(&c);
    patch(&c, tensor, data, size);
    expect_findings(&c, NULL, failed, warned);
    end_case(&c.base);
}

static void test_verify(void **state)
{
    (void)state;
    weight_case c;
    for (int symmetric = 0; symmetric < 2; symmetric++) {
        init(&c, symmetric, SAVE_ASCENDV1 | SAVE_SAFE_TENSOR | SAVE_NUMPY);
        write_good(&c);
        expect_findings(&c, NULL, 0, 0);
        /* q_proj has a bias, which Llama has none of by default; and there is no v_proj */
        expect_findings(&c, "mindie", 0, RULE(30));
        expect_findings(&c, "vllm-ascend", symmetric ? RULE(30) : RULE(9), 0);
        end_case(&c.base);
    }
    const float half = 0.5f, negative = -1.0f, large = 200.0f;
    const int8_t least = -128, narrow[3] = {10, -128, -28};
    check_broken(false, Q_PROJ ".weight_offset", &half, sizeof half, RULE(9), 0);
    check_broken(false, Q_PROJ ".weight_offset", &large, sizeof large, RULE(9), 0);
    check_broken(false, Q_PROJ ".weight_scale", &negative, sizeof negative, RULE(8), 0);
    check_broken(false, Q_PROJ ".weight", narrow, sizeof narrow, 0, RULE(12));
    check_broken(true, Q_PROJ ".weight", &least, 1, RULE(12), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ascendv1),    cmocka_unit_test(test_one_scale),
        cmocka_unit_test(test_wrong_calls), cmocka_unit_test(test_failing_allocations),
        cmocka_unit_test(test_verify),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
