/* Computing now, saving later: the bytes of tare_quantize with the same save types, as often as one
 * likes. */
#include "model/model.h"
#include "pipeline_fixture.h"

#define MODEL(name) TARE_TEST_DATA "/golden/" name "/model"

static char folder[64], scratch[96], direct[96], saved[96];

static int set_up(void **state)
{
    (void)state;
    snprintf(folder, sizeof folder, "%s", temporary_folder());
    snprintf(scratch, sizeof scratch, "%s/scratch", folder);
    snprintf(direct, sizeof direct, "%s/direct", folder);
    snprintf(saved, sizeof saved, "%s/saved", folder);
    tare_context *ctx = new_context(1);
    assert_ok(ctx, folder_create(ctx, scratch));
    free_context(ctx);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    remove_tree(folder);
    return 0;
}

static size_t entries(const char *path)
{
    tare_context *ctx = new_context(1);
    char **names;
    size_t count;
    assert_ok(ctx, folder_list(ctx, path, &names, &count));
    folder_list_free(ctx, names, count);
    free_context(ctx);
    return count;
}

/* ---- the same bytes ---- */

typedef struct save_as {
    const char *types; /* "ascendv1,numpy" */
    int part_file_size;
} save_as;

typedef struct run_case {
    const char *model;
    const char *settings[9];
    save_as saves[4];
} run_case;

static void split_types(char *text, const char *types[4], size_t *count)
{
    *count = 0;
    for (char *at = strtok(text, ","); at; at = strtok(NULL, ","))
        types[(*count)++] = at;
}

static void quantize_directly(tare_context *ctx, const run_case *c, const save_as *as)
{
    tare_recipe *recipe = make_recipe(ctx, c->settings);
    tare_quantize_options o;
    char number[16];
    snprintf(number, sizeof number, "%d", as->part_file_size);
    assert_ok(ctx, tare_recipe_set(recipe, "save.types", as->types));
    if (as->part_file_size >= 0)
        assert_ok(ctx, tare_recipe_set(recipe, "save.part_file_size", number));
    tare_quantize_options_init(&o);
    o.model = c->model;
    o.calib = CALIB;
    o.out = direct;
    o.recipe = recipe;
    assert_ok(ctx, tare_quantize(ctx, &o, NULL));
    tare_recipe_free(recipe);
}

static void save(tare_context *ctx, const tare_recording *recording, const save_as *as)
{
    tare_save_options o;
    char text[64];
    const char *types[4];
    uint64_t bytes = 0;
    snprintf(text, sizeof text, "%s", as->types);
    tare_save_options_init(&o);
    split_types(text, types, &o.num_types);
    o.types = types;
    o.part_file_size = as->part_file_size;
    o.out = saved;
    assert_ok(ctx, tare_save(recording, &o, &bytes));
    assert_true(bytes > 100000);
}

static void check_case(const run_case *c)
{
    tare_context *ctx = new_context(2);
    tare_recipe *recipe = make_recipe(ctx, c->settings);
    tare_recording *recording;
    tare_quantize_options o;
    tare_quantize_result result = {.size = sizeof result};
    tare_quantize_options_init(&o);
    o.model = c->model;
    o.calib = CALIB;
    o.recipe = recipe;
    o.scratch_dir = scratch;
    assert_ok(ctx, tare_record(ctx, &o, &recording, &result));
    tare_recipe_free(recipe);
    assert_true(result.linears_quantized > 0 && result.bytes_out > 100000);
    assert_int_equal(entries(scratch), 0); /* the file has no name */
    for (size_t i = 0; i < 4 && c->saves[i].types; i++) {
        quantize_directly(ctx, c, &c->saves[i]);
        save(ctx, recording, &c->saves[i]);
        assert_same_folders(direct, saved, "-x tare"); /* statistics are not recorded */
        remove_tree(direct);
        remove_tree(saved);
    }
    tare_recording_free(recording);
    free_context(ctx);
}

static void test_the_same_bytes(void **state)
{
    (void)state;
    static const run_case cases[] = {
        {MODEL("llama"),
         {"run.dtype=bfloat16"},
         {{"ascendv1", -1}, {"safe_tensor,numpy", -1}, {"ascendv1", 0}}},
        /* what is saved alone decides of symmetry where nobody did, and a recording cannot know it
         */
        {MODEL("llama"),
         {"run.dtype=bfloat16", "quant.a_sym=false"},
         {{"compressed-tensors", 0}, {"ascendv1", -1}}},
        {MODEL("llama"),
         {"run.dtype=bfloat16", "quant.a_sym=true"},
         {{"compressed-tensors", 0}, {"ascendv1,compressed-tensors", -1}}},
        {MODEL("llama"),
         {"run.dtype=float16", "fa_quant=true", "fa_quant.fa_amp=1", "quant.act_method=3",
          "anti_outlier.anti_method=m4", "fallback.disable_level=L1"},
         {{"ascendv1,safe_tensor,numpy", 1}, {"numpy", -1}}},
        /* biases; one scale for a matrix; float linears that are smoothed */
        {MODEL("qwen2"),
         {"quant.mm_tensor=true", "anti_outlier.anti_method=m1", "run.dtype=bfloat16",
          "fallback.disable_names=model.layers.1.*,lm_head"},
         {{"safe_tensor", -1}, {"ascendv1", -1}, {"compressed-tensors,safe_tensor", -1}}},
        /* a shift, which gives float linears new biases; a quantized head */
        {MODEL("qwen3"),
         {"anti_outlier.anti_method=m4", "fallback.disable_names=model.layers.1.mlp.*",
          "fallback.disable_last_linear=false"},
         {{"safe_tensor,numpy", -1}}},
        {MODEL("qwen2"),
         {"run.compat=msmodelslim", "run.dtype=float16", "quant.act_method=2"},
         {{"safe_tensor,numpy", -1}, {"ascendv1", 1}}},
        {MODEL("qwen3"),
         {"quant.kv_cache=c8", "run.dtype=bfloat16"},
         {{"safe_tensor,numpy", -1}, {"ascendv1", -1}}},
        {MODEL("qwen3"),
         {"quant.a_bit=16", "run.dtype=bfloat16"},
         {{"ascendv1", -1}, {"safe_tensor,numpy", -1}, {"compressed-tensors", -1}}},
        {MODEL("llama"),
         {"quant.a_bit=16", "quant.w_sym=false", "run.dtype=bfloat16"},
         {{"safe_tensor", -1}, {"numpy", -1}}},
        {MODEL("qwen2"),
         {"quant.a_bit=16", "quant.mm_tensor=true", "run.dtype=bfloat16"},
         {{"safe_tensor", -1}, {"ascendv1,compressed-tensors", -1}}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        check_case(&cases[i]);
}

/* ---- a recording of its own ---- */

static tare_recording *record(tare_context *ctx, const char *model, const char *const *settings)
{
    tare_recipe *recipe = make_recipe(ctx, settings);
    tare_recording *recording;
    tare_quantize_options o;
    tare_quantize_options_init(&o);
    o.model = model;
    o.calib = CALIB;
    o.recipe = recipe;
    o.scratch_dir = scratch;
    assert_ok(ctx, tare_record(ctx, &o, &recording, NULL));
    tare_recipe_free(recipe);
    return recording;
}

static const char *const safe_tensor[] = {"safe_tensor"}, *const ascendv1[] = {"ascendv1"};

static bool is_there(const char *name)
{
    char path[256];
    snprintf(path, sizeof path, "%s/%s", saved, name);
    return path_exists(path);
}

static void test_names(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    tare_recording *recording = record(ctx, MODEL("llama"),
                                       (const char *const[]){"run.dtype=bfloat16", NULL});
    tare_save_options o;
    tare_save_options_init(&o);
    o.types = safe_tensor;
    o.num_types = 1;
    o.out = saved;
    o.safetensors_name = "mine.safetensors";
    o.json_name = "mine_too.json";
    assert_ok(ctx, tare_save(recording, &o, NULL));
    assert_true(is_there("mine.safetensors") && is_there("mine_too.json"));
    assert_false(is_there("quant_model_weight_w8a8.safetensors") ||
                 is_there("quant_model_description_w8a8.json"));

    /* Verify knows the names if it is told. */
    tare_verify_options v;
    tare_verify_result result = {.size = sizeof result};
    tare_verify_options_init(&v);
    v.dir = saved;
    assert_int_equal(tare_verify(ctx, &v, &result), TARE_E_VERIFY);
    v.safetensors_name = o.safetensors_name;
    v.json_name = o.json_name;
    assert_ok(ctx, tare_verify(ctx, &v, &result));
    assert_string_equal(result.layout, "safe_tensor");

    /* Once more, in shards: the old file goes. Under other names it would stay, so it is refused.
     */
    assert_fails(ctx, tare_save(recording, &o, NULL), TARE_E_FOLDER, "is not empty");
    o.overwrite = true;
    o.part_file_size = 1;
    assert_ok(ctx, tare_save(recording, &o, NULL));
    assert_true(is_there("mine-00001-of-00001.safetensors") &&
                is_there("mine.safetensors.index.json") && is_there("mine_too.json"));
    assert_false(is_there("mine.safetensors"));
    o.safetensors_name = "other.safetensors";
    assert_fails(ctx, tare_save(recording, &o, NULL), TARE_E_FOLDER, "which tare did not write");
    remove_tree(saved);

    /* One name alone; the same data as under the own names. */
    o.json_name = NULL;
    o.part_file_size = -1;
    assert_ok(ctx, tare_save(recording, &o, NULL));
    assert_true(is_there("other.safetensors") && is_there("quant_model_description_w8a8.json"));
    o.out = direct;
    o.safetensors_name = NULL;
    assert_ok(ctx, tare_save(recording, &o, NULL));
    char command[400];
    snprintf(command, sizeof command, "cmp '%s/other.safetensors' '%s/%s'", saved, direct,
             "quant_model_weight_w8a8.safetensors");
    assert_int_equal(system(command), 0);
    remove_tree(saved);
    remove_tree(direct);

    /* ascendv1 has fixed names. */
    o.types = ascendv1;
    o.out = saved;
    o.safetensors_name = "other.safetensors";
    assert_ok(ctx, tare_save(recording, &o, NULL));
    assert_true(is_there("quant_model_description.json"));
    assert_false(is_there("other.safetensors"));
    remove_tree(saved);
    tare_recording_free(recording);
    free_context(ctx);
}

static void test_refusals(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    tare_recording *recording = record(
        ctx, MODEL("qwen3"),
        (const char *const[]){"anti_outlier.anti_method=m4", "fa_quant=true",
                              "fallback.disable_names=model.layers.1.self_attn.k_proj", NULL});
    tare_save_options plain, o;
    tare_save_options_init(&plain);
    plain.types = safe_tensor;
    plain.num_types = 1;
    plain.out = saved;
#define EXPECT(change, message)                                                                    \
    (o = plain, change, assert_fails(ctx, tare_save(recording, &o, NULL), TARE_E_USAGE, message))
    EXPECT(o.out = NULL, "an output folder is needed");
    EXPECT(o.num_types = 0, "at least one save type");
    EXPECT(o.types = (const char *const[]){"gguf"}, "\"gguf\" is not known");
    EXPECT(o.types = (const char *const[]){"compressed-tensors"}, "cannot hold the scales of fa");
    EXPECT(o.types = ascendv1, "cannot hold the bias");
    EXPECT(o.part_file_size = -2, "part_file_size -2");
    static const char *const weights[] = {"a.bin", ".safetensors", "x/y.safetensors",
                                          ".a.safetensors", ""};
    for (size_t i = 0; i < sizeof weights / sizeof *weights; i++)
        EXPECT(o.safetensors_name = weights[i], "must be a file name that ends in .safetensors");
    EXPECT(o.json_name = "../a.json", "must be a file name that ends in .json");
    EXPECT(o.json_name = "config.json", "another file of the output");
    EXPECT(o.json_name = "tokenizer.json", "another file of the output");
    EXPECT(o.json_name = "tare_run.json", "another file of the output");
    assert_false(path_exists(saved));
    tare_recording_free(recording);

    tare_quantize_options q;
    tare_quantize_options_init(&q);
    q.model = MODEL("llama");
    q.calib = CALIB;
    assert_fails(ctx, tare_record(ctx, &q, &recording, NULL), TARE_E_USAGE,
                 "needs a folder for scratch files");
    assert_null(recording);
    q.scratch_dir = "/no/such/folder";
    assert_fails(ctx, tare_record(ctx, &q, &recording, NULL), TARE_E_IO, "/no/such/folder");
    q.calib = NULL;
    assert_fails(ctx, tare_record(ctx, &q, &recording, NULL), TARE_E_USAGE,
                 "needs calibration samples");
    free_context(ctx);
}

/* The model may be gone by then, and with it all that is not copied from its folder. */
static void test_a_model_that_is_gone(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    memory_tensors m = load_tensors(ctx, MODEL("llama"));
    char *config = read_text(MODEL("llama"), "config.json");
    tare_model *model;
    tare_recording *recording;
    tare_quantize_options o;
    static memory_samples samples;
    load_ids(ctx, &samples);
    assert_ok(ctx, tare_model_from_tensors(ctx, config, NULL, m.tensors, m.count, &model));
    tare_quantize_options_init(&o);
    o.source = model;
    o.calib_ids = samples.ids;
    o.calib_lengths = samples.lengths;
    o.calib_count = samples.count;
    o.scratch_dir = scratch;
    assert_ok(ctx, tare_record(ctx, &o, &recording, NULL));
    tare_model_free(model);
    free(config);
    free_tensors(ctx, &m);
    save(ctx, recording, &(save_as){"ascendv1", -1});
    tare_recording_free(recording);
    quantize_directly(ctx, &(run_case){.model = MODEL("llama")}, &(save_as){"ascendv1", -1});
    assert_same_folders(direct, saved, "-x tare -x tare_run.json -x generation_config.json");
    remove_tree(direct);
    remove_tree(saved);
    free_context(ctx);
}

/* ---- memory ---- */

static tare_status record_and_save(tare_context *ctx, void *user)
{
    tare_recording *recording = NULL;
    tare_quantize_options q;
    tare_save_options o;
    (void)user;
    tare_quantize_options_init(&q);
    q.model = MODEL("qwen2");
    q.calib = CALIB;
    q.scratch_dir = scratch;
    tare_save_options_init(&o);
    o.types = safe_tensor;
    o.num_types = 1;
    o.out = saved;
    o.json_name = "mine.json";
    tare_status status = tare_record(ctx, &q, &recording, NULL);
    if (status == TARE_OK)
        status = tare_save(recording, &o, NULL);
    assert_true(status == TARE_OK || !is_there("config.json"));
    tare_recording_free(recording);
    remove_tree(saved);
    return status;
}

static void test_allocations_may_fail(void **state)
{
    (void)state;
    some_allocations_fail(record_and_save, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_same_bytes),
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_a_model_that_is_gone),
        cmocka_unit_test(test_allocations_may_fail),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
