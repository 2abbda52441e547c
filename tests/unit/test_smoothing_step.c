/* Smoothing as a step of its own: with the same data and settings the bytes of one run, with data
 * of its own the vectors that it found. */
#include <math.h>

#include "pipeline_fixture.h"

#define MODEL(name) TARE_TEST_DATA "/golden/" name "/model"

static char folder[64], one_run[96], two_steps[96];

static int set_up(void **state)
{
    (void)state;
    snprintf(folder, sizeof folder, "%s", temporary_folder());
    snprintf(one_run, sizeof one_run, "%s/one", folder);
    snprintf(two_steps, sizeof two_steps, "%s/two", folder);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    remove_tree(folder);
    return 0;
}

/* ---- the same bytes ---- */

typedef struct run_case {
    const char *model;
    const char *settings[8];
} run_case;

static void check_case(const run_case *c)
{
    tare_context *ctx = new_context(2);
    tare_recipe *recipe = make_recipe(ctx, c->settings);
    tare_smoothing *smoothing;
    tare_quantize_options o;
    tare_quantize_options_init(&o);
    o.model = c->model;
    o.calib = CALIB;
    o.recipe = recipe;
    o.out = one_run;
    assert_ok(ctx, tare_quantize(ctx, &o, NULL));
    o.out = NULL;
    assert_ok(ctx, tare_smooth(ctx, &o, &smoothing));
    assert_true(tare_smoothing_count(smoothing) > 0);
    o.out = two_steps;
    o.smoothing = smoothing;
    assert_ok(ctx, tare_quantize(ctx, &o, NULL));
    tare_smoothing_free(smoothing);
    tare_recipe_free(recipe);
    free_context(ctx);
    assert_same_folders(one_run, two_steps, "-x tare_run.json");
    remove_tree(one_run);
    remove_tree(two_steps);
}

static void test_every_method(void **state)
{
    (void)state;
    static const char *const models[] = {MODEL("llama"), MODEL("qwen2"), MODEL("qwen3")};
    for (int m = 1; m <= 6; m++) {
        char method[40];
        snprintf(method, sizeof method, "anti_outlier.anti_method=m%d", m);
        for (size_t i = 0; i < 3; i++)
            check_case(&(run_case){models[i],
                                   {method, "quant.act_method=1", "save.types=safe_tensor,numpy"}});
    }
}

/* What else looks at smoothed numbers: scores, levels, FA, float linears, narrow dtypes. */
static void test_what_meets_smoothing(void **state)
{
    (void)state;
    static const run_case cases[] = {
        {MODEL("llama"),
         {"anti_outlier.anti_method=m4", "quant.act_method=3", "fallback.disable_level=L2",
          "fa_quant=true", "fa_quant.fa_amp=1"}},
        {MODEL("llama"), {"anti_outlier.anti_method=m6", "quant.act_method=3"}},
        {MODEL("qwen2"),
         {"anti_outlier.anti_method=m3", "anti_outlier.w_bit=4", "quant.act_method=3",
          "run.compat=msmodelslim", "run.dtype=bfloat16", "fallback.disable_level=L1"}},
        {MODEL("qwen2"),
         {"anti_outlier.anti_method=m4", "run.dtype=float16",
          "fallback.disable_names=model.layers.1.*", "save.types=ascendv1"}},
        {MODEL("qwen3"),
         {"anti_outlier.anti_method=m4", "quant.act_method=3",
          "anti_outlier.disable_anti_names=model.layers.2.self_attn.k_proj"}},
        {MODEL("llama"),
         {"anti_outlier.anti_method=m6", "anti_outlier.alpha=0.7", "anti_outlier.beta=0.2",
          "run.max_memory=cpu=1GiB"}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        check_case(&cases[i]);
}

/* ---- other data ---- */

static const tare_smoothing_vector *find_vector(const tare_smoothing *s, const char *name)
{
    const tare_smoothing_vector *v;
    for (size_t i = 0; (v = tare_smoothing_at(s, i)); i++) {
        if (strcmp(v->name, name) == 0)
            return v;
    }
    return NULL;
}

/* A tensor of the output in FP32; mem_free. */
static float *read_output(tare_context *ctx, const char *name)
{
    char path[160];
    snprintf(path, sizeof path, "%s/quant_model_weight_w8a8.safetensors", two_steps);
    safetensors *s = open_tensors(ctx, path);
    float *values = read_floats(ctx, s, safetensors_find(s, name));
    safetensors_close(s);
    return values;
}

/* Smoothing on the last three samples, calibration on the first two: norms come from the former,
 * the range of an input (act_method 1: the mean of the samples' extremes) from the latter. Of layer
 * 0 that can be had by hand: x = norm(embedding), with the smoothed gain. */
static void test_data_of_its_own(void **state)
{
    (void)state;
    static memory_samples samples;
    static const char *const settings[] = {"anti_outlier.anti_method=m1", "quant.act_method=1",
                                           "save.types=safe_tensor", NULL};
    tare_context *ctx = new_context(1);
    tare_recipe *recipe = make_recipe(ctx, settings);
    tare_smoothing *smoothing;
    tare_quantize_options o;
    load_ids(ctx, &samples);
    size_t first_ids = 0;
    for (size_t i = 0; i < samples.count - 3; i++)
        first_ids += samples.lengths[i];
    tare_quantize_options_init(&o);
    o.model = MODEL("llama");
    o.recipe = recipe;
    o.calib_ids = samples.ids + first_ids;
    o.calib_lengths = samples.lengths + samples.count - 3;
    o.calib_count = 3;
    assert_ok(ctx, tare_smooth(ctx, &o, &smoothing));
    o.smoothing = smoothing;
    o.out = two_steps;
    o.calib_ids = samples.ids;
    o.calib_lengths = samples.lengths;
    o.calib_count = 2;
    assert_ok(ctx, tare_quantize(ctx, &o, NULL));

    const tare_smoothing_vector *gain = find_vector(smoothing,
                                                    "model.layers.0.input_layernorm.weight");
    assert_non_null(gain);
    float *written = read_output(ctx, "model.layers.0.input_layernorm.weight");
    assert_memory_equal(written, gain->values, gain->length * sizeof(float));
    memory_tensors m = load_tensors(ctx, MODEL("llama"));
    const float *embedding = NULL;
    for (size_t i = 0; i < m.count; i++) {
        if (strcmp(m.tensors[i].name, "model.embed_tokens.weight") == 0)
            embedding = m.data[i];
    }
    assert_non_null(embedding);
    double low = 0, high = 0;
    for (size_t i = 0, at = 0; i < 2; at += samples.lengths[i++]) {
        double lo = INFINITY, hi = -INFINITY;
        for (size_t t = 0; t < samples.lengths[i]; t++) {
            const float *e = embedding + samples.ids[at + t] * gain->length;
            double squares = 0;
            for (size_t c = 0; c < gain->length; c++)
                squares += (double)e[c] * e[c];
            double factor = 1 / sqrt(squares / (double)gain->length + 1e-6);
            for (size_t c = 0; c < gain->length; c++) {
                lo = fmin(lo, e[c] * factor * gain->values[c]);
                hi = fmax(hi, e[c] * factor * gain->values[c]);
            }
        }
        low += lo / 2;
        high += hi / 2;
    }
    float *scale = read_output(ctx, "model.layers.0.self_attn.q_proj.input_scale");
    assert_true(fabs(scale[0] / ((high - low) / 255) - 1) < 1e-5);
    mem_free(ctx, scale);
    mem_free(ctx, written);
    free_tensors(ctx, &m);
    tare_smoothing_free(smoothing);
    tare_recipe_free(recipe);
    free_context(ctx);
    remove_tree(two_steps);
}

/* ---- the vectors ---- */

static size_t count_of(const tare_smoothing *s, const char *suffix)
{
    const tare_smoothing_vector *v;
    size_t n = 0;
    for (size_t i = 0; (v = tare_smoothing_at(s, i)); i++)
        n += strlen(v->name) >= strlen(suffix) &&
             strcmp(v->name + strlen(v->name) - strlen(suffix), suffix) == 0;
    return n;
}

static tare_smoothing *smooth_with(tare_context *ctx, const char *model,
                                   const char *const *settings)
{
    tare_recipe *recipe = make_recipe(ctx, settings);
    tare_smoothing *smoothing;
    tare_quantize_options o;
    tare_quantize_options_init(&o);
    o.model = model;
    o.calib = CALIB;
    o.recipe = recipe;
    assert_ok(ctx, tare_smooth(ctx, &o, &smoothing));
    tare_recipe_free(recipe);
    return smoothing;
}

static tare_smoothing *smooth(tare_context *ctx, const char *model, const char *method)
{
    return smooth_with(ctx, model, (const char *const[]){method, NULL});
}

/* What is taken from a norm or a row goes to the columns that read it: gain * columns is the gain
 * of the checkpoint, up's rows are down's columns. */
static void test_vectors(void **state)
{
    (void)state;
    tare_context *ctx = new_context(2);
    memory_tensors m = load_tensors(ctx, MODEL("llama"));
    tare_smoothing *s = smooth(ctx, MODEL("llama"), "anti_outlier.anti_method=m4");
    /* Four layers; all seven linears read something smoothed; v and up are sources; two norms. */
    assert_int_equal(count_of(s, ".weight.columns"), 4 * 7);
    assert_int_equal(count_of(s, ".weight.rows"), 4 * 2);
    assert_int_equal(count_of(s, "layernorm.weight"), 4 * 2);
    assert_int_equal(tare_smoothing_count(s), 4 * 11);
    const tare_smoothing_vector *gain = find_vector(s, "model.layers.1.input_layernorm.weight"),
                                *columns = find_vector(
                                    s, "model.layers.1.self_attn.k_proj.weight.columns"),
                                *rows = find_vector(s, "model.layers.3.mlp.up_proj.weight.rows"),
                                *reader = find_vector(
                                    s, "model.layers.3.mlp.down_proj.weight.columns");
    assert_true(gain && columns && rows && reader);
    assert_int_equal(gain->length, 64);
    assert_int_equal(columns->length, 64);
    for (size_t i = 0; i < m.count; i++) {
        const float *g = m.data[i];
        if (strcmp(m.tensors[i].name, "model.layers.1.input_layernorm.weight") != 0)
            continue;
        for (size_t c = 0; c < 64; c++)
            assert_true(fabsf(gain->values[c] * columns->values[c] / g[c] - 1) < 1e-6f);
    }
    assert_int_equal(rows->length, reader->length);
    assert_memory_equal(rows->values, reader->values, rows->length * sizeof(float));
    assert_null(tare_smoothing_at(s, tare_smoothing_count(s)));
    tare_smoothing_free(s);
    free_tensors(ctx, &m);

    /* With a shift: q, k, v, gate and up get biases, both norms too. */
    s = smooth(ctx, MODEL("qwen3"), "anti_outlier.anti_method=m4");
    assert_int_equal(count_of(s, "proj.bias"), 4 * 5);
    assert_int_equal(count_of(s, "layernorm.bias"), 4 * 2);
    tare_smoothing_free(s);
    free_context(ctx);
}

/* ---- going on ---- */

static void cancel_in_layer(void *user, const tare_progress *p)
{
    if (strcmp(p->stage, "calibrate") == 0 && p->done == 2)
        tare_cancel(*(tare_context **)user);
}

static void test_resume(void **state)
{
    (void)state;
    static const char *const settings[] = {"quant.act_method=3", NULL};
    tare_context *ctx = new_context(1), *first;
    tare_context_options options;
    tare_quantize_options o;
    init_options(&options);
    options.threads = 1;
    options.progress = cancel_in_layer;
    options.user = &first;
    assert_int_equal(tare_context_create(&first, &options), TARE_OK);
    tare_recipe *recipe = make_recipe(ctx, settings);
    tare_smoothing *a = smooth(ctx, MODEL("llama"), "anti_outlier.anti_method=m4"),
                   *b = smooth(ctx, MODEL("llama"), "anti_outlier.anti_method=m1");
    tare_quantize_options_init(&o);
    o.model = MODEL("llama");
    o.calib = CALIB;
    o.recipe = recipe;
    o.smoothing = a;
    o.checkpoint_every = 1;
    o.out = one_run;
    assert_ok(ctx, tare_quantize(ctx, &o, NULL));
    o.out = two_steps;
    o.resume = true;
    assert_fails(first, tare_quantize(first, &o, NULL), TARE_E_CANCELLED, "--resume goes on");
    o.smoothing = b;
    assert_fails(ctx, tare_quantize(ctx, &o, NULL), TARE_E_FOLDER, "smoothing");
    o.smoothing = NULL;
    assert_fails(ctx, tare_quantize(ctx, &o, NULL), TARE_E_FOLDER, "changed: recipe");
    o.smoothing = a;
    assert_ok(ctx, tare_quantize(ctx, &o, NULL));
    assert_same_folders(one_run, two_steps, "");
    tare_smoothing_free(a);
    tare_smoothing_free(b);
    tare_recipe_free(recipe);
    tare_context_free(first);
    free_context(ctx);
    remove_tree(one_run);
    remove_tree(two_steps);
}

/* ---- refusals ---- */

static void test_refusals(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    static const char *const none[] = {"quant.act_method=1", NULL},
                             *const narrow[] = {"run.dtype=bfloat16", NULL},
                             *const compat[] = {"run.compat=msmodelslim", NULL},
                             *const weights[] = {"quant.a_bit=16", NULL},
                             *const rotated[] = {"rotation=true", NULL},
                             *const otherwise[] = {"rotation=true", "rotation.seed=2", NULL};
    static const struct {
        const char *const *settings;
        const char *model, *message;
    } cases[] = {
        {narrow, MODEL("llama"), "was computed for F32, this run is for BF16"},
        {compat, MODEL("llama"), "this run is for F32 with compat"},
        {weights, MODEL("llama"), "anti_outlier.anti_method needs the calibration"},
        {none, MODEL("qwen2"), "of other shapes"},
        {rotated, MODEL("llama"), "rotated otherwise"},
    };
    tare_smoothing *s = smooth(ctx, MODEL("llama"), "anti_outlier.anti_method=m1"), *other,
                   *turned = smooth_with(ctx, MODEL("llama"),
                                         (const char *const[]){"anti_outlier.anti_method=m4",
                                                               "rotation=true", "rotation.seed=1",
                                                               NULL});
    tare_quantize_options o;
    tare_quantize_options_init(&o);
    o.out = two_steps;
    o.calib = CALIB;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        tare_recipe *recipe = make_recipe(ctx, cases[i].settings);
        o.model = cases[i].model;
        o.recipe = recipe;
        o.smoothing = s;
        assert_fails(ctx, tare_quantize(ctx, &o, NULL), TARE_E_USAGE, cases[i].message);
        tare_recipe_free(recipe);
    }
    o.smoothing = turned;
    o.model = MODEL("llama");
    static const char *const *const settings[] = {none, otherwise};
    for (size_t i = 0; i < 2; i++) {
        tare_recipe *recipe = make_recipe(ctx, settings[i]);
        o.recipe = recipe;
        assert_fails(ctx, tare_quantize(ctx, &o, NULL), TARE_E_USAGE, "rotated otherwise");
        tare_recipe_free(recipe);
    }
    tare_smoothing_free(turned);
    o.smoothing = s;
    o.recipe = NULL;
    assert_fails(ctx, tare_smooth(ctx, &o, &other), TARE_E_USAGE, "from another one");
    o.smoothing = NULL;
    assert_fails(ctx, tare_smooth(ctx, &o, &other), TARE_E_USAGE, "needs an anti_outlier");
    assert_null(other);
    tare_recipe *recipe = make_recipe(ctx,
                                      (const char *const[]){"anti_outlier.anti_method=m1", NULL});
    o.recipe = recipe;
    o.calib = NULL;
    assert_fails(ctx, tare_smooth(ctx, &o, &other), TARE_E_USAGE,
                 "smoothing needs calibration samples");
    tare_recipe_free(recipe);
    tare_smoothing_free(s);
    free_context(ctx);
}

/* ---- memory ---- */

static tare_status smooth_and_quantize(tare_context *ctx, void *user)
{
    tare_recipe *recipe = NULL;
    tare_smoothing *smoothing = NULL;
    tare_quantize_options o;
    (void)user;
    tare_quantize_options_init(&o);
    o.model = MODEL("qwen3");
    o.calib = CALIB;
    o.out = two_steps;
    tare_status status = tare_recipe_create(ctx, &recipe);
    if (status == TARE_OK)
        status = tare_recipe_set(recipe, "anti_outlier.anti_method", "m4");
    if (status == TARE_OK)
        status = tare_recipe_set(recipe, "anti_outlier.disable_anti_names",
                                 "model.layers.2.self_attn.k_proj");
    o.recipe = recipe;
    if (status == TARE_OK)
        status = tare_smooth(ctx, &o, &smoothing);
    o.smoothing = smoothing;
    if (status == TARE_OK)
        status = tare_quantize(ctx, &o, NULL);
    tare_smoothing_free(smoothing);
    tare_recipe_free(recipe);
    remove_tree(two_steps);
    return status;
}

/* Within the smallest budget that works, hidden states in scratch files, the same vectors; and so
 * for the run that takes them, recorded there. */
static void test_the_smallest_budget(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    tare_smoothing *plain = smooth(ctx, MODEL("llama"), "anti_outlier.anti_method=m6"), *tight;
    tare_recipe *recipe = make_recipe(ctx,
                                      (const char *const[]){"anti_outlier.anti_method=m6", NULL});
    tare_recording *recording;
    tare_quantize_options o;
    tare_quantize_options_init(&o);
    o.model = MODEL("llama");
    o.calib = CALIB;
    o.recipe = recipe;
    o.scratch_dir = folder;
    assert_ok(ctx, tare_recipe_set(recipe, "run.max_memory", "cpu=1MiB"));
    assert_int_equal(tare_smooth(ctx, &o, &tight), TARE_E_BUDGET);
    assert_ok(ctx, tare_recipe_set(recipe, "run.max_memory", smallest_budget(ctx)));
    assert_ok(ctx, tare_smooth(ctx, &o, &tight));
    assert_int_equal(tare_smoothing_count(tight), tare_smoothing_count(plain));
    for (size_t i = 0; i < tare_smoothing_count(plain); i++) {
        const tare_smoothing_vector *a = tare_smoothing_at(plain, i),
                                    *b = tare_smoothing_at(tight, i);
        assert_string_equal(a->name, b->name);
        assert_memory_equal(a->values, b->values, a->length * sizeof(float));
    }
    o.smoothing = tight;
    assert_ok(ctx, tare_recipe_set(recipe, "run.max_memory", "cpu=1MiB"));
    assert_int_equal(tare_record(ctx, &o, &recording, NULL), TARE_E_BUDGET);
    assert_ok(ctx, tare_recipe_set(recipe, "run.max_memory", smallest_budget(ctx)));
    assert_ok(ctx, tare_record(ctx, &o, &recording, NULL));
    tare_recording_free(recording);
    tare_smoothing_free(plain);
    tare_smoothing_free(tight);
    tare_recipe_free(recipe);
    free_context(ctx);
}

static void test_allocations_may_fail(void **state)
{
    (void)state;
    some_allocations_fail(smooth_and_quantize, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_method),
        cmocka_unit_test(test_what_meets_smoothing),
        cmocka_unit_test(test_data_of_its_own),
        cmocka_unit_test(test_vectors),
        cmocka_unit_test(test_resume),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_the_smallest_budget),
        cmocka_unit_test(test_allocations_may_fail),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
