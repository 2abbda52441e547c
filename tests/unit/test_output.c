/* Writing outputs: bytes, names, dtypes and shapes of every layout (worked out by hand in
 * output_fixture.h, from the tables of the specification), refused folders, overwriting, faults. */
#include "output_fixture.h"

#include "file/npy.h"
#include "output/copy_files.h"
#include "output/output_internal.h"

/* What is equal in every safetensors layout. */
static void assert_common_tensors(safetensors *s)
{
    assert_tensor(s, "model.embed_tokens.weight", TARE_BF16, 2, 2, 3, EMBED_BF16,
                  sizeof EMBED_BF16);
    assert_tensor(s, Q_PROJ ".weight", TARE_I8, 2, 2, 3, Q_INTEGERS, sizeof Q_INTEGERS);
    assert_tensor(s, Q_PROJ ".bias", TARE_BF16, 1, 2, 0, BIAS_BF16, sizeof BIAS_BF16);
    assert_tensor(s, K_PROJ ".weight", TARE_I8, 2, 1, 3, K_INTEGERS, sizeof K_INTEGERS);
    assert_tensor(s, K_PROJ ".quant_bias", TARE_I32, 1, 1, 0, WORDS(0));
    assert_tensor(s, O_PROJ ".weight", TARE_BF16, 2, 3, 2, O_BF16, sizeof O_BF16);
    assert_tensor(s, "model.norm.weight", TARE_BF16, 1, 3, 0, NORM_BF16, sizeof NORM_BF16);
    assert_int_equal(safetensors_count(s), 18);
}

#define LINEAR_KEYS(module)                                                                        \
    "  \"" module ".weight_scale\": \"W8A8\",\n  \"" module ".weight_offset\": \"W8A8\",\n"        \
    "  \"" module ".input_scale\": \"W8A8\",\n  \"" module ".input_offset\": \"W8A8\",\n"          \
    "  \"" module ".quant_bias\": \"W8A8\",\n  \"" module ".deq_scale\": \"W8A8\",\n"

#define TENSOR_KEYS                                                                                \
    "  \"model.embed_tokens.weight\": \"FLOAT\",\n  \"" Q_PROJ ".weight\": \"W8A8\",\n  \"" Q_PROJ \
    ".bias\": \"FLOAT\",\n" LINEAR_KEYS(                                                           \
        Q_PROJ) "  \"" K_PROJ                                                                      \
                ".weight\": \"W8A8\",\n" LINEAR_KEYS(                                              \
                    K_PROJ) "  \"" O_PROJ                                                          \
                            ".weight\": \"FLOAT\",\n  \"model.norm.weight\": \"FLOAT\"\n}\n"

static void test_ascendv1(void **state)
{
    output_case c;
    uint64_t bytes;
    (void)state;
    init_case(&c);
    tare_context *ctx = new_context(1);
    assert_ok(ctx, make_output(ctx, &c, &bytes));
    /* embed 12, q 6 + 4 + 8 + 8 + 4 + 4 + 8 + 8, k 3 + 4 + 4 + 4 + 4 + 4 + 4, o 12, norm 6 */
    assert_int_equal(bytes, 107);
    assert_string_equal(names_in(c.out),
                        "config.json quant_model_description.json "
                        "quant_model_weights-00001-of-00001.safetensors "
                        "quant_model_weights.safetensors.index.json tare_run.json tokenizer.json");
    safetensors *s = open_weights(ctx, c.out, "quant_model_weights-00001-of-00001.safetensors");
    assert_common_tensors(s);
    assert_tensor(s, Q_PROJ ".weight_scale", TARE_F32, 2, 2, 1, FLOATS(0.5f, 0.25f));
    assert_tensor(s, Q_PROJ ".weight_offset", TARE_F32, 2, 2, 1, FLOATS(0.0f, 0.0f));
    assert_tensor(s, Q_PROJ ".input_scale", TARE_F32, 1, 1, 0, FLOATS(0.125f));
    assert_tensor(s, Q_PROJ ".input_offset", TARE_F32, 1, 1, 0, FLOATS(-7.0f));
    assert_tensor(s, Q_PROJ ".deq_scale", TARE_F32, 1, 2, 0, FLOATS(0.0625f, 0.03125f));
    assert_tensor(s, Q_PROJ ".quant_bias", TARE_I32, 1, 2, 0, WORDS(464, -939));
    safetensors_close(s);
    assert_string_equal(
        read_text(c.out, "quant_model_description.json"),
        "{\n  \"version\": \"1.0.0\",\n  \"model_quant_type\": \"W8A8\",\n"
        "  \"group_size\": 0,\n  \"metadata\": {},\n  \"optional\": {},\n" TENSOR_KEYS);
    const char *index = read_text(c.out, "quant_model_weights.safetensors.index.json");
    assert_non_null(strstr(index, "\"total_size\": 107"));
    assert_non_null(
        strstr(index, "\"model.norm.weight\": \"quant_model_weights-00001-of-00001.safetensors\""));
    assert_string_equal(read_text(c.out, "config.json"), MODEL_CONFIG);
    assert_string_equal(read_text(c.out, "tare_run.json"), "{}\n");
    free_context(ctx);
    end_case(&c);
}

static void test_modes(void **state)
{
    output_case c;
    struct stat st;
    char path[256];
    (void)state;
    init_case(&c);
    mode_t before = umask(002);
    make_good_output(&c);
    umask(before);
    assert_int_equal(stat(c.out, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0775);
    snprintf(path, sizeof path, "%s/quant_model_description.json", c.out);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0664);
    end_case(&c);
}

static void test_safe_tensor(void **state)
{
    output_case c;
    (void)state;
    init_case(&c);
    c.save = SAVE_SAFE_TENSOR;
    make_good_output(&c);
    assert_string_equal(names_in(c.out),
                        "config.json quant_model_description_w8a8.json "
                        "quant_model_weight_w8a8.safetensors tare_run.json tokenizer.json");
    tare_context *ctx = new_context(1);
    safetensors *s = open_weights(ctx, c.out, "quant_model_weight_w8a8.safetensors");
    assert_common_tensors(s);
    assert_tensor(s, Q_PROJ ".weight_scale", TARE_BF16, 2, 2, 1, HALVES(0x3f00, 0x3e80));
    assert_tensor(s, Q_PROJ ".weight_offset", TARE_BF16, 2, 2, 1, HALVES(0, 0));
    assert_tensor(s, Q_PROJ ".input_scale", TARE_BF16, 1, 1, 0, HALVES(0x3e00));
    assert_tensor(s, Q_PROJ ".input_offset", TARE_BF16, 1, 1, 0, HALVES(0xc0e0));
    assert_tensor(s, Q_PROJ ".deq_scale", TARE_F32, 1, 2, 0, FLOATS(0.0625f, 0.03125f));
    safetensors_close(s);
    assert_string_equal(read_text(c.out, "quant_model_description_w8a8.json"),
                        "{\n  \"model_quant_type\": \"W8A8\",\n" TENSOR_KEYS);
    assert_non_null(strstr(read_text(c.out, "config.json"), "\"quantize\": \"w8a8\""));
    free_context(ctx);
    end_case(&c);
}

/* FP16: deq_scale is I64, the bits of 0.0625 and 0.03125 (0x3d800000, 0x3d000000). */
static void test_float16(void **state)
{
    output_case c;
    (void)state;
    init_case(&c);
    c.save = SAVE_SAFE_TENSOR;
    c.num.dtype = TARE_F16;
    c.dtype_given = true;
    make_good_output(&c);
    tare_context *ctx = new_context(1);
    safetensors *s = open_weights(ctx, c.out, "quant_model_weight_w8a8.safetensors");
    assert_tensor(s, Q_PROJ ".deq_scale", TARE_I64, 1, 2, 0, LONGS(0x3d800000, 0x3d000000));
    assert_tensor(s, Q_PROJ ".weight_scale", TARE_F16, 2, 2, 1, HALVES(0x3800, 0x3400));
    assert_tensor(s, Q_PROJ ".input_offset", TARE_F16, 1, 1, 0, HALVES(0xc700));
    safetensors_close(s);
    assert_non_null(strstr(read_text(c.out, "config.json"), "\"torch_dtype\": \"float16\""));
    free_context(ctx);
    end_case(&c);
}

/* One scale: [1] in safe_tensor, repeated in ascendv1, whose engines assert [N,1] and [N]. */
static void test_per_tensor(void **state)
{
    output_case c;
    char folder[160];
    (void)state;
    init_case(&c);
    c.save = SAVE_ASCENDV1 | SAVE_SAFE_TENSOR;
    c.per_tensor = true;
    c.part_file_size = 0;
    make_good_output(&c);
    assert_string_equal(names_in(c.out), "ascendv1 safe_tensor");
    tare_context *ctx = new_context(1);
    snprintf(folder, sizeof folder, "%s/ascendv1", c.out);
    safetensors *s = open_weights(ctx, folder, "quant_model_weights.safetensors");
    assert_tensor(s, Q_PROJ ".weight_scale", TARE_F32, 2, 2, 1, FLOATS(0.5f, 0.5f));
    assert_tensor(s, Q_PROJ ".weight_offset", TARE_F32, 2, 2, 1, FLOATS(0.0f, 0.0f));
    assert_tensor(s, Q_PROJ ".deq_scale", TARE_F32, 1, 2, 0, FLOATS(0.0625f, 0.0625f));
    safetensors_close(s);
    snprintf(folder, sizeof folder, "%s/safe_tensor", c.out);
    s = open_weights(ctx, folder, "quant_model_weight_w8a8.safetensors");
    assert_tensor(s, Q_PROJ ".weight_scale", TARE_BF16, 1, 1, 0, HALVES(0x3f00));
    assert_tensor(s, Q_PROJ ".weight_offset", TARE_BF16, 1, 1, 0, HALVES(0));
    assert_tensor(s, Q_PROJ ".deq_scale", TARE_F32, 1, 1, 0, FLOATS(0.0625f));
    assert_tensor(s, Q_PROJ ".quant_bias", TARE_I32, 1, 2, 0, WORDS(464, -907));
    safetensors_close(s);
    free_context(ctx);
    end_case(&c);
}

static void test_compat(void **state)
{
    output_case c;
    (void)state;
    init_case(&c);
    c.num.compat = true;
    make_good_output(&c);
    assert_string_equal(names_in(c.out), "config.json quant_model_description.json "
                                         "quant_model_weight_w8a8.safetensors tare_run.json "
                                         "tokenizer.json");
    tare_context *ctx = new_context(1);
    safetensors *s = open_weights(ctx, c.out, "quant_model_weight_w8a8.safetensors");
    assert_tensor(s, Q_PROJ ".weight_scale", TARE_BF16, 2, 2, 1, HALVES(0x3f00, 0x3e80));
    assert_tensor(s, Q_PROJ ".input_scale", TARE_BF16, 1, 1, 0, HALVES(0x3e00));
    safetensors_close(s);
    assert_string_equal(
        read_text(c.out, "quant_model_description.json"),
        "{\n  \"version\": \"1.0.0\",\n  \"model_quant_type\": \"W8A8\",\n" TENSOR_KEYS);
    free_context(ctx);
    end_case(&c);
}

/* ---- numpy ---- */

static void assert_entry(tare_context *ctx, const char *folder, const char *name, const char *key,
                         tare_dtype dtype, int rank, size_t rows, const void *data, size_t size)
{
    npy_dict *d;
    char path[512], got[64];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    assert_ok(ctx, npy_open(ctx, path, &d));
    const npy_entry *e = npy_find(d, key);
    if (!e)
        fail_msg("%s has no %s", name, key);
    assert_int_equal(e->dtype, dtype);
    assert_int_equal(e->rank, rank);
    assert_int_equal(e->shape[0], rows);
    assert_int_equal(e->bytes, size);
    assert_ok(ctx, npy_read(d, e, 0, got, size));
    assert_memory_equal(got, data, size);
    npy_close(d);
}

static void test_numpy(void **state)
{
    output_case c;
    (void)state;
    init_case(&c);
    c.save = SAVE_NUMPY;
    make_good_output(&c);
    assert_string_equal(names_in(c.out),
                        "anti_fp_norm.npy config.json deq_scale.npy input_offset.npy "
                        "input_scale.npy quant_bias.npy quant_weight.npy tare_run.json "
                        "tokenizer.json weight_offset.npy weight_scale.npy");
    tare_context *ctx = new_context(1);
    const char *o = c.out;
    assert_entry(ctx, o, "quant_weight.npy", Q_PROJ, TARE_I8, 2, 2, Q_INTEGERS, 6);
    assert_entry(ctx, o, "quant_weight.npy", Q_PROJ ".bias", TARE_F32, 1, 2, FLOATS(1.0f, -2.0f));
    assert_entry(ctx, o, "quant_weight.npy", "model.embed_tokens", TARE_F32, 2, 2,
                 FLOATS(1.0f, 0.0f, 2.0f, 0.0f, 0.0f, -1.0f));
    assert_entry(ctx, o, "anti_fp_norm.npy", "model.norm.weight", TARE_F32, 1, 3,
                 FLOATS(1.0f, 2.0f, 0.5f));
    assert_entry(ctx, o, "weight_scale.npy", Q_PROJ, TARE_F32, 2, 2, FLOATS(0.5f, 0.25f));
    assert_entry(ctx, o, "input_offset.npy", K_PROJ, TARE_F32, 1, 1, FLOATS(-7.0f));
    assert_entry(ctx, o, "quant_bias.npy", Q_PROJ, TARE_I32, 1, 2, WORDS(464, -939));
    assert_entry(ctx, o, "deq_scale.npy", Q_PROJ, TARE_F32, 1, 2, FLOATS(0.0625f, 0.03125f));
    free_context(ctx);
    end_case(&c);
}

static void test_numpy_beside_others(void **state)
{
    output_case c;
    char folder[160];
    (void)state;
    init_case(&c);
    c.save = SAVE_NUMPY | SAVE_SAFE_TENSOR | SAVE_ASCENDV1;
    make_good_output(&c);
    snprintf(folder, sizeof folder, "%s/safe_tensor", c.out);
    assert_non_null(strstr(names_in(folder), "quant_weight.npy"));
    assert_non_null(strstr(names_in(folder), "quant_model_weight_w8a8.safetensors"));
    snprintf(folder, sizeof folder, "%s/ascendv1", c.out);
    assert_null(strstr(names_in(folder), ".npy"));
    end_case(&c);
}

/* ---- shards ---- */

static void test_plan_shards(void **state)
{
    /* pending + next >= limit closes; one tensor alone may be larger */
    const uint64_t sizes[] = {30, 30, 39, 1, 150, 10, 90};
    const size_t expected[] = {0, 0, 0, 1, 2, 3, 4};
    size_t file_of[7];
    (void)state;
    assert_int_equal(output_plan_shards(sizes, 7, 100, file_of), 5);
    assert_memory_equal(file_of, expected, sizeof expected);
    assert_int_equal(output_plan_shards(sizes, 7, 0, file_of), 1);
    assert_int_equal(output_plan_shards(sizes, 7, UINT64_MAX, file_of), 1);
    const uint64_t huge[] = {UINT64_MAX, UINT64_MAX};
    assert_int_equal(output_plan_shards(huge, 2, UINT64_MAX, file_of), 2);
}

static void test_shard_names(void **state)
{
    output_case c;
    output *o;
    (void)state;
    init_case(&c);
    tare_context *ctx = new_context(1);
    assert_ok(ctx, open_case(ctx, &c, &o));
    assert_ok(ctx, declare_case(&c, o));
    /* embed 12 | weight 6, bias 4 … : with 16 bytes a file, embed alone and then 6 + 4 */
    assert_ok(ctx, output_plan_folder(o, &o->folders[0], 16, true));
    const output_folder *f = &o->folders[0];
    char first[64];
    snprintf(first, sizeof first, "quant_model_weights-00001-of-%05zu.safetensors", f->num_files);
    assert_string_equal(f->files[0].name, first);
    assert_int_equal(f->files[0].count, 1);
    assert_int_equal(f->files[0].bytes, 12);
    assert_int_equal(f->files[1].count, 2);
    assert_int_equal(f->files[1].bytes, 10);
    assert_int_equal(output_planned_bytes(f), 107);
    output_free(o);
    free_context(ctx);
    end_case(&c);
}

/* ---- folders ---- */

static void assert_open_refused(output_case *c, const char *part)
{
    output *o;
    tare_context *ctx = new_context(1);
    tare_status status = open_case(ctx, c, &o);
    assert_null(o);
    assert_fails(ctx, status, TARE_E_FOLDER, part);
    free_context(ctx);
}

static void test_refused_folders(void **state)
{
    output_case c;
    (void)state;
    init_case(&c);
    char model[sizeof c.model], out[sizeof c.out];
    memcpy(model, c.model, sizeof model);
    memcpy(out, c.out, sizeof out);

    snprintf(c.out, sizeof c.out, "%s/model/inner/deep", c.root); /* inside the model folder */
    assert_open_refused(&c, "must not lie in each other");
    assert_string_equal(names_in(c.model), "config.json tokenizer.json");
    /* the model folder, under another name */
    snprintf(c.out, sizeof c.out, "%s/model/../model", c.root);
    assert_open_refused(&c, "must not lie in each other");
    snprintf(c.out, sizeof c.out, "%s", c.root); /* around it */
    assert_open_refused(&c, "must not lie in each other");
    snprintf(c.out, sizeof c.out, "%s/link", c.root); /* a link to the model folder */
    assert_int_equal(symlink(model, c.out), 0);
    assert_open_refused(&c, "must not lie in each other");
    snprintf(c.out, sizeof c.out, "%s/plain", c.root); /* a file */
    write_text(c.root, "plain", "x");
    assert_open_refused(&c, "not a folder");

    memcpy(c.out, out, sizeof out); /* not empty */
    assert_int_equal(mkdir(c.out, 0755), 0);
    write_text(c.out, "notes.txt", "x");
    assert_open_refused(&c, "not empty (it holds notes.txt)");
    c.overwrite = true;
    write_text(c.out, "model.safetensors", "x");
    assert_open_refused(&c, "model.safetensors");
    assert_string_equal(names_in(c.out), "model.safetensors notes.txt");
    end_case(&c);
}

static void test_no_space(void **state)
{
    output_case c;
    output *o;
    (void)state;
    init_case(&c);
    tare_context *ctx = new_context(1);
    tensor_info huge = bf16_tensor("huge.weight", (size_t)1 << 30, (size_t)1 << 25);
    assert_ok(ctx, open_case(ctx, &c, &o));
    assert_ok(ctx, output_declare_float(o, &huge));
    assert_fails(ctx, output_begin(o), TARE_E_FOLDER, "MiB are free");
    output_free(o);
    assert_false(path_exists(c.out));
    free_context(ctx);
    end_case(&c);
}

static void test_overwrite(void **state)
{
    output_case c;
    (void)state;
    init_case(&c);
    make_good_output(&c);
    write_text(c.out, "quant_model_weights-00002-of-00002.safetensors", "old shard");
    write_text(c.out, "quant_model_description_w8a8.json", "old layout");
    write_text(c.out, "weight_scale.npy", "old numpy");
    write_text(c.out, "notes.txt", "mine");
    assert_open_refused(&c, "not empty");
    c.overwrite = true;
    make_good_output(&c);
    assert_string_equal(names_in(c.out),
                        "config.json notes.txt quant_model_description.json "
                        "quant_model_weights-00001-of-00001.safetensors "
                        "quant_model_weights.safetensors.index.json tare_run.json tokenizer.json");
    end_case(&c);
}

/* What a killed run left does not stop the next one. */
static void test_stale_stage(void **state)
{
    output_case c;
    char stage[160], work[160];
    (void)state;
    init_case(&c);
    snprintf(work, sizeof work, "%s/.tare", c.out);
    snprintf(stage, sizeof stage, "%s/.tare/stage", c.out);
    assert_int_equal(mkdir(c.out, 0755) | mkdir(work, 0755) | mkdir(stage, 0755), 0);
    write_text(stage, "tare_run.json", "old");
    make_good_output(&c);
    assert_false(path_exists(work));
    end_case(&c);
}

/* ---- before anything is written ---- */

static tare_status rehearse(tare_context *ctx, const output_case *c, const char *more)
{
    output_options options = {.rehearsal = true,
                              .model_dir = c->model,
                              .save = c->save,
                              .part_file_size = -1,
                              .num = c->num,
                              .scheme = SCHEME_W8A8,
                              .verify = c->verify};
    output *o = NULL;
    tensor_info extra = bf16_tensor(more ? more : "", 3, 2);
    tare_status status = TARE_OK;
    TRY(output_open(ctx, &options, &o));
    TRY(declare_case(c, o));
    if (more)
        TRY(output_declare_float(o, &extra));
    TRY(output_begin(o));
done:
    output_free(o);
    return status;
}

static void test_rehearsal(void **state)
{
    output_case c;
    tare_context *ctx = new_context(1);
    char path[256];
    (void)state;
    init_case(&c);
    for (unsigned save = 1; save < 1u << SAVE_TYPES; save++) {
        c.save = save;
        assert_ok(ctx, rehearse(ctx, &c, NULL));
    }
    /* rule 29: q_proj is quantized and begins the name of a FLOAT module beside it */
    c.save = SAVE_SAFE_TENSOR;
    assert_ok(ctx, rehearse(ctx, &c, Q_PROJ "_lora.weight"));
    c.save = SAVE_ASCENDV1 | SAVE_SAFE_TENSOR;
    assert_fails(ctx, rehearse(ctx, &c, Q_PROJ "_lora.weight"), TARE_E_VERIFY,
                 "the output would break 1 rule, the first is rule 29: " Q_PROJ);
    c.verify = false;
    assert_ok(ctx, rehearse(ctx, &c, Q_PROJ "_lora.weight"));
    c.verify = true;
    /* rules 21 and 7: a dtype that no engine serves */
    write_text(c.model, "config.json",
               "{\"model_type\": \"llama\", \"torch_dtype\": \"float8_e4m3fn\"}");
    for (int i = 0; i < SAVE_TYPES; i++) {
        c.save = 1u << i;
        if (c.save == SAVE_COMPRESSED_TENSORS) /* a guess serves there */
            assert_ok(ctx, rehearse(ctx, &c, NULL));
        else
            assert_fails(ctx, rehearse(ctx, &c, NULL), TARE_E_VERIFY, "torch_dtype");
    }
    write_text(c.model, "config.json", MODEL_CONFIG);
    snprintf(path, sizeof path, "%s/vocab.json", c.model);
    assert_int_equal(symlink("nowhere", path), 0);
    assert_fails(ctx, rehearse(ctx, &c, NULL), TARE_E_IO, "vocab.json: a link that leads nowhere");
    assert_false(path_exists(c.out));
    free_context(ctx);
    end_case(&c);
}

/* ---- copied files and config.json ---- */

typedef struct log_text {
    char text[4096];
} log_text;

static void keep_log(void *user, tare_log_level level, const char *message)
{
    log_text *log = user;
    size_t used = strlen(log->text);
    if (level == TARE_LOG_WARNING)
        snprintf(log->text + used, sizeof log->text - used, "%s\n", message);
}

static void make_logged_output(const output_case *c, log_text *log)
{
    tare_context *ctx;
    tare_context_options options;
    init_options(&options);
    options.threads = 1;
    options.log = keep_log;
    options.user = log;
    log->text[0] = '\0';
    assert_int_equal(tare_context_create(&ctx, &options), TARE_OK);
    assert_ok(ctx, make_output(ctx, c, NULL));
    free_context(ctx);
}

static void test_copy_wanted(void **state)
{
    static const char *const YES[] = {
        "tokenizer.model", "vocab.json", "qwen.tiktoken", "LICENSE", "chat_template.jinja",
        "README.md", "merges.txt", "generation_config.json",
        /* transformers 4: VOCAB_FILES_NAMES and utils/__init__.py */
        "spiece.model", "sentencepiece.bpe.model", "processor_config.json",
        "video_preprocessor_config.json", "preprocessor_config.json", "added_tokens.json",
        "special_tokens_map.json", "normalizer.json", "vocab.txt", "chat_template.json"};
    static const char *const NO[] = {"model.safetensors", "tokenizer.bin", "pytorch_model.bin",
                                     "tokenizer.pkl",     "config.json",   "modeling_x.py",
                                     "tokenizer_x.py",    "id_rsa",        "x.index.json"};
    (void)state;
    for (size_t i = 0; i < sizeof YES / sizeof *YES; i++)
        assert_true(copy_wanted(YES[i], false));
    for (size_t i = 0; i < sizeof NO / sizeof *NO; i++)
        assert_false(copy_wanted(NO[i], false));
    assert_true(copy_wanted("modeling_x.py", true));
}

static void test_copied_files(void **state)
{
    output_case c;
    log_text log;
    char from[256];
    (void)state;
    init_case(&c);
    write_text(c.root, "elsewhere", "shared");
    write_text(c.model, "real_license", "MIT");
    write_text(c.model, "modeling_x.py", "raise SystemExit");
    write_text(c.model, "pytorch_model.bin", "pickle");
    write_text(c.model, "model.safetensors", "weights");
    write_text(c.model, "tokenizer.model", "");
    snprintf(from, sizeof from, "%s/tokenizer.model", c.model);
    assert_int_equal(truncate(from, (off_t)COPY_MAX_BYTES + 1), 0);
    snprintf(from, sizeof from, "%s/README.md", c.model);
    assert_int_equal(symlink("../elsewhere", from), 0);
    snprintf(from, sizeof from, "%s/NOTICE", c.model);
    assert_int_equal(symlink("nowhere", from), 0);
    snprintf(from, sizeof from, "%s/LICENSE", c.model);
    assert_int_equal(symlink("real_license", from), 0);
    make_logged_output(&c, &log);
    assert_string_equal(names_in(c.out),
                        "LICENSE README.md config.json quant_model_description.json "
                        "quant_model_weights-00001-of-00001.safetensors "
                        "quant_model_weights.safetensors.index.json tare_run.json tokenizer.json");
    assert_string_equal(read_text(c.out, "LICENSE"), "MIT");
    assert_string_equal(read_text(c.out, "README.md"), "shared");
    assert_non_null(strstr(log.text, "NOTICE (a link that leads nowhere)"));
    assert_non_null(strstr(log.text, "tokenizer.model (larger than 64 MiB)"));
    assert_non_null(strstr(log.text, "modeling_x.py"));
    assert_non_null(strstr(log.text, "pytorch_model.bin"));
    assert_null(strstr(log.text, "model.safetensors"));
    end_case(&c);
}

/* <cache>/snapshots/<revision>/file -> ../../blobs/<digest> is how Hugging Face stores files. */
static void test_cache_links(void **state)
{
    output_case c;
    char path[256], cache[128];
    (void)state;
    init_case(&c);
    snprintf(cache, sizeof cache, "%s/snapshots", c.root);
    assert_int_equal(mkdir(cache, 0755), 0);
    snprintf(path, sizeof path, "%s/blobs", c.root);
    assert_int_equal(mkdir(path, 0755), 0);
    write_text(path, "abc", MODEL_CONFIG);
    write_text(path, "def", "merges");
    snprintf(c.model, sizeof c.model, "%s/snapshots/rev", c.root);
    assert_int_equal(mkdir(c.model, 0755), 0);
    snprintf(path, sizeof path, "%s/config.json", c.model);
    assert_int_equal(symlink("../../blobs/abc", path), 0);
    snprintf(path, sizeof path, "%s/merges.txt", c.model);
    assert_int_equal(symlink("../../blobs/def", path), 0);
    make_good_output(&c);
    assert_string_equal(read_text(c.out, "merges.txt"), "merges");
    end_case(&c);
}

static void test_config_edits(void **state)
{
    output_case c;
    log_text log;
    (void)state;
    init_case(&c);
    write_text(c.model, "config.json",
               "{\"z\": 1e-06, \"quantization_config\": {\"a\": 1}, \"dtype\": \"float32\", "
               "\"auto_map\": {\"AutoConfig\": \"configuration_x.X\"}, \"text_config\": "
               "{\"b\": Infinity, \"compression_config\": {}, \"torch_dtype\": \"float32\"}, "
               "\"tie_word_embeddings\": true, \"model_type\": \"llama\"}");
    c.dtype_given = true;
    c.is_head = true;
    make_logged_output(&c, &log);
    assert_string_equal(read_text(c.out, "config.json"),
                        "{\n  \"z\": 1e-06,\n  \"dtype\": \"bfloat16\",\n  \"text_config\": {\n"
                        "    \"b\": Infinity,\n    \"torch_dtype\": \"bfloat16\"\n  },\n"
                        "  \"tie_word_embeddings\": false,\n  \"model_type\": \"llama\",\n"
                        "  \"torch_dtype\": \"bfloat16\"\n}\n");
    assert_non_null(strstr(log.text, "auto_map is dropped"));
    end_case(&c);
}

static void test_auto_map_kept(void **state)
{
    output_case c;
    log_text log;
    (void)state;
    init_case(&c);
    write_text(c.model, "config.json",
               "{\"model_type\": \"llama\", \"torch_dtype\": \"bfloat16\", \"auto_map\": "
               "{\"AutoConfig\": \"configuration_x.X\", \"T\": [\"configuration_x.Y\", null]}}");
    write_text(c.model, "configuration_x.py", "x = 1\n");
    c.copy_code = true;
    make_logged_output(&c, &log);
    assert_non_null(strstr(read_text(c.out, "config.json"), "configuration_x.Y"));
    assert_string_equal(read_text(c.out, "configuration_x.py"), "x = 1\n");
    end_case(&c);
}

/* ---- faults ---- */

static void test_freed_without_finish(void **state)
{
    output_case c;
    output *o;
    (void)state;
    init_case(&c);
    tare_context *ctx = new_context(1);
    assert_ok(ctx, open_case(ctx, &c, &o));
    assert_ok(ctx, declare_case(&c, o));
    assert_ok(ctx, output_begin(o));
    output_free(o);
    assert_false(path_exists(c.out));
    free_context(ctx);
    end_case(&c);
}

static void test_misuse(void **state)
{
    output_case c;
    output *o;
    tensor_info twice = bf16_tensor(Q_PROJ ".weight", 2, 3);
    (void)state;
    init_case(&c);
    tare_context *ctx = new_context(1);
    assert_ok(ctx, open_case(ctx, &c, &o));
    assert_ok(ctx, declare_case(&c, o));
    assert_ok(ctx, output_declare_float(o, &twice));
    assert_fails(ctx, output_begin(o), TARE_E_MODEL, "would be written twice");
    output_free(o);
    assert_ok(ctx, open_case(ctx, &c, &o));
    assert_ok(ctx, declare_case(&c, o));
    assert_ok(ctx, output_begin(o));
    assert_fails(ctx, output_write_float(o, "unknown", 0, "x", 1), TARE_E_USAGE, "not declared");
    assert_fails(ctx, output_write_float(o, "model.norm.weight", 2, "x", 1), TARE_E_USAGE,
                 "out of order");
    assert_fails(ctx, output_finish(o, "{}", NULL), TARE_E_USAGE, "not written");
    output_free(o);
    assert_false(path_exists(c.out));
    free_context(ctx);
    end_case(&c);
}

static void test_failed_verification(void **state)
{
    output_case c;
    (void)state;
    init_case(&c);
    c.save = SAVE_ASCENDV1 | SAVE_SAFE_TENSOR | SAVE_NUMPY;
    c.wrong_deq = 0.5f;
    tare_context *ctx = new_context(1);
    assert_fails(ctx, make_output(ctx, &c, NULL), TARE_E_VERIFY, "rule 10: " Q_PROJ ".deq_scale");
    assert_false(path_exists(c.out));
    c.verify = false;
    assert_ok(ctx, make_output(ctx, &c, NULL));
    free_context(ctx);
    end_case(&c);
}

static tare_status whole_life(tare_context *ctx, void *user)
{
    output_case *c = user;
    tare_status status = make_output(ctx, c, NULL);
    if (status != TARE_OK)
        assert_string_equal(names_in(c->out), "");
    else
        assert_ok(ctx, folder_remove(ctx, c->out));
    return status;
}

static void test_allocation_failures(void **state)
{
    output_case c;
    (void)state;
    init_case(&c);
    c.save = (1u << SAVE_TYPES) - 1;
    each_allocation_fails(whole_life, &c);
    end_case(&c);
}

static void test_save_types(void **state)
{
    static const char *const all[] = {"numpy", "ascendV1", "compressed-tensors", "safe_tensor"};
    unsigned save;
    (void)state;
    tare_context *ctx = new_context(1);
    for (size_t i = 0; i < 4; i++) {
        static const unsigned bits[] = {SAVE_NUMPY, SAVE_ASCENDV1, SAVE_COMPRESSED_TENSORS,
                                        SAVE_SAFE_TENSOR};
        assert_ok(ctx, save_types_parse(ctx, &all[i], 1, &save));
        assert_int_equal(save, bits[i]);
    }
    assert_ok(ctx, save_types_parse(ctx, all, 4, &save));
    assert_string_equal(save_types_text(save), "ascendv1, safe_tensor, numpy, compressed-tensors");
    assert_string_equal(save_types_text(SAVE_NUMPY | SAVE_ASCENDV1), "ascendv1, numpy");
    assert_fails(ctx, save_types_parse(ctx, (const char *[]){"ascendv1", "safetensors"}, 2, &save),
                 TARE_E_USAGE,
                 "\"safetensors\" is not known; possible: ascendv1, safe_tensor, numpy, "
                 "compressed-tensors");
    free_context(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ascendv1),
        cmocka_unit_test(test_modes),
        cmocka_unit_test(test_safe_tensor),
        cmocka_unit_test(test_float16),
        cmocka_unit_test(test_per_tensor),
        cmocka_unit_test(test_compat),
        cmocka_unit_test(test_numpy),
        cmocka_unit_test(test_numpy_beside_others),
        cmocka_unit_test(test_plan_shards),
        cmocka_unit_test(test_shard_names),
        cmocka_unit_test(test_refused_folders),
        cmocka_unit_test(test_no_space),
        cmocka_unit_test(test_overwrite),
        cmocka_unit_test(test_stale_stage),
        cmocka_unit_test(test_copy_wanted),
        cmocka_unit_test(test_rehearsal),
        cmocka_unit_test(test_copied_files),
        cmocka_unit_test(test_cache_links),
        cmocka_unit_test(test_config_edits),
        cmocka_unit_test(test_auto_map_kept),
        cmocka_unit_test(test_freed_without_finish),
        cmocka_unit_test(test_misuse),
        cmocka_unit_test(test_failed_verification),
        cmocka_unit_test(test_allocation_failures),
        cmocka_unit_test(test_save_types),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
