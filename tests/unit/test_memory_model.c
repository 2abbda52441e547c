/* Models and samples in the caller's memory: the same outputs as from files, to the byte. */
#include "model/model.h"
#include "pipeline_fixture.h"

#define MODEL(name) TARE_TEST_DATA "/golden/" name "/model"

static char folder[64], from_files[96], from_memory[96];

static int set_up(void **state)
{
    (void)state;
    snprintf(folder, sizeof folder, "%s", temporary_folder());
    snprintf(from_files, sizeof from_files, "%s/files", folder);
    snprintf(from_memory, sizeof from_memory, "%s/memory", folder);
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
    bool text_alone, samples;
    const char *settings[8];
} run_case;

static void quantize_both(tare_context *ctx, const run_case *c, const memory_samples *samples)
{
    memory_tensors m = load_tensors(ctx, c->model);
    char *config = read_text(c->model, "config.json");
    tare_recipe *recipe = make_recipe(ctx, c->settings);
    tare_quantize_options o;
    tare_model *source;
    tare_quantize_result result = {.size = sizeof result};
    tare_quantize_options_init(&o);
    o.model = c->model;
    o.out = from_files;
    o.recipe = recipe;
    o.calib = c->samples ? CALIB : NULL;
    assert_ok(ctx, tare_quantize(ctx, &o, NULL));
    assert_ok(ctx, tare_model_from_tensors(ctx, c->text_alone ? config : NULL,
                                           c->text_alone ? NULL : c->model, m.tensors, m.count,
                                           &source));
    o.model = NULL;
    o.source = source;
    o.out = from_memory;
    o.calib = NULL;
    o.calib_ids = samples->ids;
    o.calib_lengths = samples->lengths;
    o.calib_count = c->samples ? samples->count : 0;
    assert_ok(ctx, tare_quantize(ctx, &o, &result));
    assert_int_equal(result.samples, c->samples ? samples->count : 0);
    tare_model_free(source);
    tare_recipe_free(recipe);
    free(config);
    free_tensors(ctx, &m);
}

static void test_the_same_bytes(void **state)
{
    (void)state;
    static const run_case cases[] = {
        {MODEL("llama"), false, true, {"quant.act_method=2"}},
        {MODEL("llama"),
         true,
         true,
         {"quant.act_method=3", "anti_outlier.anti_method=m4", "fallback.disable_level=L1",
          "fa_quant=true", "save.types=safe_tensor,numpy"}},
        {MODEL("qwen2"), false, true, {"run.compat=msmodelslim", "run.dtype=bfloat16"}},
        {MODEL("qwen3"), true, false, {"quant.a_bit=16"}},
    };
    static memory_samples samples;
    tare_context *ctx = new_context(2);
    load_ids(ctx, &samples);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        remove_tree(from_files);
        remove_tree(from_memory);
        quantize_both(ctx, &cases[i], &samples);
        assert_same_folders(from_files, from_memory,
                            cases[i].text_alone
                                ? "-x tare -x tare_run.json -x generation_config.json"
                                : "-x tare -x tare_run.json");
    }
    free_context(ctx);
}

static void test_the_same_logits(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    memory_tensors m = load_tensors(ctx, MODEL("qwen2"));
    tare_model *a, *b;
    const uint32_t ids[] = {3, 14, 159, 26};
    assert_ok(ctx, tare_model_open(ctx, MODEL("qwen2"), &a));
    assert_ok(ctx, tare_model_from_tensors(ctx, NULL, MODEL("qwen2"), m.tensors, m.count, &b));
    size_t count = 4 * tare_model_vocab_size(a);
    assert_int_equal(tare_model_vocab_size(b), tare_model_vocab_size(a));
    float *x = malloc(count * 4), *y = malloc(count * 4);
    assert_ok(ctx, tare_model_logits(a, ids, 4, x));
    assert_ok(ctx, tare_model_logits(b, ids, 4, y));
    assert_memory_equal(x, y, count * 4);
    free(x);
    free(y);
    tare_model_free(a);
    tare_model_free(b);
    free_tensors(ctx, &m);
    free_context(ctx);
}

/* ---- going on ---- */

static void cancel_in_layer(void *user, const tare_progress *p)
{
    if (strcmp(p->stage, "calibrate") == 0 && p->done == 2)
        tare_cancel(*(tare_context **)user);
}

/* The journal knows the values: a run does not go on with others. */
static void test_resume_knows_the_values(void **state)
{
    (void)state;
    static memory_samples samples;
    tare_context *ctx, *first;
    tare_context_options options;
    tare_model *source;
    tare_quantize_options o;
    init_options(&options);
    options.threads = 1;
    options.progress = cancel_in_layer;
    options.user = &first;
    ctx = new_context(1);
    assert_int_equal(tare_context_create(&first, &options), TARE_OK);
    load_ids(ctx, &samples);
    memory_tensors m = load_tensors(ctx, MODEL("llama"));
    remove_tree(from_files);
    remove_tree(from_memory);
    tare_quantize_options_init(&o);
    assert_ok(ctx, tare_model_from_tensors(ctx, NULL, MODEL("llama"), m.tensors, m.count, &source));
    o.source = source;
    o.out = from_files;
    o.calib_ids = samples.ids;
    o.calib_lengths = samples.lengths;
    o.calib_count = samples.count;
    o.checkpoint_every = 1;
    assert_ok(ctx, tare_quantize(ctx, &o, NULL));
    o.out = from_memory;
    o.resume = true;
    assert_fails(first, tare_quantize(first, &o, NULL), TARE_E_CANCELLED, "--resume goes on");
    float *values = m.data[0], kept = values[7];
    values[7] += 1;
    assert_fails(ctx, tare_quantize(ctx, &o, NULL), TARE_E_FOLDER,
                 "(changed: values of the tensors in memory)");
    values[7] = kept;
    samples.lengths[0]--; /* and the samples */
    samples.lengths[1]++;
    assert_fails(ctx, tare_quantize(ctx, &o, NULL), TARE_E_FOLDER,
                 "(changed: lengths of the samples)");
    samples.lengths[0]++;
    samples.lengths[1]--;
    assert_ok(ctx, tare_quantize(ctx, &o, NULL));
    assert_same_folders(from_files, from_memory, "");
    tare_model_free(source);
    free_tensors(ctx, &m);
    tare_context_free(first);
    free_context(ctx);
}

/* ---- refusals ---- */

static void expect_refusal(tare_context *ctx, memory_tensors *m, size_t index,
                           const tare_tensor *wrong, const char *message)
{
    tare_model *model;
    tare_tensor kept = m->tensors[index];
    m->tensors[index] = *wrong;
    assert_fails(ctx,
                 tare_model_from_tensors(ctx, NULL, MODEL("llama"), m->tensors, m->count, &model),
                 TARE_E_MODEL, message);
    assert_null(model);
    m->tensors[index] = kept;
}

static size_t index_of(const memory_tensors *m, const char *name)
{
    size_t i = 0;
    while (strcmp(m->tensors[i].name, name) != 0)
        i++;
    return i;
}

static void test_refusals(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    memory_tensors m = load_tensors(ctx, MODEL("llama"));
    size_t k = index_of(&m, "model.layers.0.self_attn.k_proj.weight");
    const tare_tensor t = m.tensors[k];
    const size_t turned[] = {t.shape[1], t.shape[0]};
    const ptrdiff_t plain[] = {(ptrdiff_t)t.shape[1], 1}, other[] = {1, (ptrdiff_t)t.shape[0]};
    tare_model *model;
    tare_tensor w = t;
    w.name = "model.layers.0.self_attn.other.weight";
    expect_refusal(ctx, &m, k, &w, "model.layers.0.self_attn.k_proj.weight is missing");
    w = t, w.shape = turned;
    expect_refusal(ctx, &m, k, &w, "config.json makes it [32,64]");
    w = t, w.strides = other;
    expect_refusal(ctx, &m, k, &w, "k_proj.weight: its rows are not contiguous");
    w = t, w.bytes--;
    expect_refusal(ctx, &m, k, &w, "k_proj.weight: 8191 bytes are not what its shape takes");
    w = t, w.data = NULL;
    expect_refusal(ctx, &m, k, &w, "k_proj.weight: 0 bytes are not");
    w = t, w.dtype = "complex";
    expect_refusal(ctx, &m, k, &w, "unknown dtype \"complex\"");
    w = t, w.dtype = "I32";
    expect_refusal(ctx, &m, k, &w, "dtype I32 is not supported for weights");
    w = t, w.rank = 9;
    expect_refusal(ctx, &m, k, &w, "9 dimensions");
    w = t, w.name = "";
    expect_refusal(ctx, &m, k, &w, "a tensor has no name");
    w = t, w.name = m.tensors[k + 1].name;
    expect_refusal(ctx, &m, k, &w, "is given twice");
    m.tensors[k].strides = plain;
    assert_ok(ctx, tare_model_from_tensors(ctx, NULL, MODEL("llama"), m.tensors, m.count, &model));
    tare_model_free(model);
    assert_fails(ctx, tare_model_from_tensors(ctx, NULL, NULL, m.tensors, m.count, &model),
                 TARE_E_USAGE, "needs the text of its config.json");
    assert_fails(ctx, tare_model_from_tensors(ctx, "{}", NULL, NULL, 0, &model), TARE_E_MODEL,
                 "has no tensors");
    assert_fails(ctx, tare_model_from_tensors(ctx, "{}", NULL, m.tensors, m.count, &model),
                 TARE_E_MODEL, "config.json");
    free_tensors(ctx, &m);
    free_context(ctx);
}

static void test_wrong_options(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    tare_model *source;
    tare_quantize_options o;
    tare_plan plan = {.size = sizeof plan};
    const uint32_t ids[] = {1, 1000000};
    const size_t lengths[] = {1, 1}, empty[] = {1, 0};
    assert_ok(ctx, tare_model_open(ctx, MODEL("llama"), &source));
    tare_quantize_options_init(&o);
    o.out = from_memory;
    assert_fails(ctx, tare_quantize(ctx, &o, NULL), TARE_E_USAGE, "a model is needed");
    assert_fails(ctx, tare_quantize_plan(ctx, &o, &plan), TARE_E_USAGE, "a model is needed");
    o.model = MODEL("llama");
    o.source = source;
    assert_fails(ctx, tare_quantize(ctx, &o, NULL), TARE_E_USAGE, "a model is needed");
    o.model = NULL;
    assert_fails(ctx, tare_quantize(ctx, &o, NULL), TARE_E_USAGE, "needs calibration samples");
    o.calib = CALIB;
    o.calib_count = 2;
    assert_fails(ctx, tare_quantize(ctx, &o, NULL), TARE_E_USAGE, "not from both");
    o.calib = NULL;
    assert_fails(ctx, tare_quantize(ctx, &o, NULL), TARE_E_USAGE, "lack ids or lengths");
    o.calib_ids = ids;
    o.calib_lengths = lengths;
    assert_fails(ctx, tare_quantize(ctx, &o, NULL), TARE_E_DATA,
                 "calibration data: row 2: token id 1000000 is out of range");
    o.calib_lengths = empty;
    assert_fails(ctx, tare_quantize(ctx, &o, NULL), TARE_E_DATA,
                 "calibration data: row 2: a sample without tokens");
    tare_model_free(source);
    free_context(ctx);
}

/* ---- tied heads ---- */

/* A state_dict names a tied head, which lies where the embedding lies; a head of its own counts as
 * one even so. */
static void test_tied_heads(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    memory_tensors m = load_tensors(ctx, MODEL("llama"));
    char *config = read_text(MODEL("llama"), "config.json");
    char *tied = strstr(config, "\"tie_word_embeddings\": false");
    tare_model *model;
    size_t head = index_of(&m, "lm_head.weight"),
           embedding = index_of(&m, "model.embed_tokens.weight");
    assert_non_null(tied);
    memcpy(tied, "\"tie_word_embeddings\": true ", 28);
    assert_ok(ctx, tare_model_from_tensors(ctx, config, NULL, m.tensors, m.count, &model));
    assert_false(model->head_is_tied);
    tare_model_free(model);
    m.tensors[head].data = m.tensors[embedding].data;
    assert_ok(ctx, tare_model_from_tensors(ctx, config, NULL, m.tensors, m.count, &model));
    assert_true(model->head_is_tied && model->num_extra == 0);
    tare_model_free(model);
    free(config);
    free_tensors(ctx, &m);
    free_context(ctx);
}

/* ---- what the folder says beside the weights ---- */

/* A tokenizer of single letters, cut to `max_length` tokens. */
static void write_tokenizer(const char *to, size_t max_length)
{
    static const char letters[] = "abcdefghijklmnopqrstuvwxyzH:";
    char text[1024], *at = text;
    at += sprintf(at, "{\"model\":{\"type\":\"BPE\",\"merges\":[],\"vocab\":{\"\u0120\":0");
    for (size_t i = 0; letters[i]; i++)
        at += sprintf(at, ",\"%c\":%zu", letters[i], i + 1);
    sprintf(at, "}},\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,"
                "\"trim_offsets\":true,\"use_regex\":true},\"decoder\":{\"type\":\"ByteLevel\"}}");
    write_text(to, "tokenizer.json", text);
    sprintf(text, "{\"model_max_length\": %zu, \"tokenizer_class\": \"PreTrainedTokenizerFast\"}",
            max_length);
    write_text(to, "tokenizer_config.json", text);
}

/* The log-probability of yes behind `prompt`. */
static float ask_yes(tare_context *ctx, const memory_tensors *m, const char *prompt)
{
    tare_model *model;
    tare_tokenizer *tokenizer;
    tare_calib_verifier verifier = {.size = sizeof verifier};
    tare_calib_question question = {.prompt = prompt, .prompt_length = strlen(prompt)};
    tare_calib_answer answer = {.yes = 0};
    assert_ok(ctx, tare_model_from_tensors(ctx, NULL, folder, m->tensors, m->count, &model));
    assert_ok(ctx, tare_tokenizer_open(ctx, folder, &tokenizer));
    assert_ok(ctx, tare_model_verifier_create(model, tokenizer, &verifier));
    assert_ok(ctx, verifier.answer(verifier.user, TARE_CALIB_CHOOSE, &question, 1, &answer));
    tare_model_verifier_free(&verifier);
    tare_tokenizer_free(tokenizer);
    tare_model_free(model);
    return answer.yes;
}

/* A verifier cuts prompts to the model_max_length of the folder. */
static void test_tokenizer_config(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    memory_tensors m = load_tensors(ctx, MODEL("llama"));
    char *config = read_text(MODEL("llama"), "config.json");
    write_text(folder, "config.json", config);
    write_tokenizer(folder, 100);
    float two = ask_yes(ctx, &m, "ab"), four = ask_yes(ctx, &m, "abcd");
    assert_true(two != four);
    write_tokenizer(folder, 2);
    assert_true(ask_yes(ctx, &m, "abcd") == two);
    free(config);
    free_tensors(ctx, &m);
    free_context(ctx);
}

/* ---- memory ---- */

static tare_status open_it(tare_context *ctx, void *user)
{
    const memory_tensors *m = user;
    tare_model *model, *again = NULL;
    tare_status status = tare_model_from_tensors(ctx, NULL, MODEL("llama"), m->tensors, m->count,
                                                 &model);
    if (status == TARE_OK)
        status = model_reopen(ctx, model, MTP_NONE, &again);
    tare_model_free(again);
    tare_model_free(model);
    return status;
}

static void test_allocations_may_fail(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    memory_tensors m = load_tensors(ctx, MODEL("llama"));
    each_allocation_fails(open_it, &m);
    free_tensors(ctx, &m);
    free_context(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_same_bytes),          cmocka_unit_test(test_the_same_logits),
        cmocka_unit_test(test_resume_knows_the_values), cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_wrong_options),           cmocka_unit_test(test_tied_heads),
        cmocka_unit_test(test_tokenizer_config),        cmocka_unit_test(test_allocations_may_fail),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
