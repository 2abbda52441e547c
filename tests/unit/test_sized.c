/* base/sized, and each public struct that begins with its size: callers of an older and a newer
 * version work, nothing is read or written beyond what a caller has, and a forgotten size is told.
 * Structs lie at the end of heap blocks of just their size, so that a sanitizer sees more. */
#include "calib_fixture.h"
#include "pipeline_fixture.h"

#include "base/sized.h"

#define MODEL TARE_TEST_DATA "/golden/llama/model"

/* A struct of the library, and callers that know less or more of it. */
typedef struct known {
    size_t size;
    int64_t a, b;
    bool c;
} known;

static const known DEFAULTS = {.a = 1, .b = 2, .c = true};

static void test_init(void **state)
{
    (void)state;
    unsigned char raw[64];
    for (size_t size = sizeof(size_t); size <= sizeof raw; size++) {
        size_t copied = size < sizeof(known) ? size : sizeof(known), set;
        memset(raw, 0xa5, sizeof raw);
        sized_init(raw, size, &DEFAULTS, sizeof DEFAULTS);
        memcpy(&set, raw, sizeof set);
        assert_int_equal(set, size);
        assert_memory_equal(raw + sizeof set, (const char *)&DEFAULTS + sizeof set,
                            copied - sizeof set);
        for (size_t i = copied; i < size; i++)
            assert_int_equal(raw[i], 0);
        for (size_t i = size; i < sizeof raw; i++)
            assert_int_equal(raw[i], 0xa5);
    }
}

static void test_take(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    union {
        known k;
        unsigned char raw[sizeof(known) + 16];
    } given;
    known got;
    memset(&given, 0, sizeof given);
    given.k = (known){.size = offsetof(known, b), .a = 5, .b = 6, .c = false};
    got = DEFAULTS; /* older: b and c keep their defaults */
    assert_ok(ctx, SIZED_TAKE(ctx, known, &given, &got));
    assert_true(got.size == sizeof got && got.a == 5 && got.b == 2 && got.c);
    given.k.size = sizeof given; /* newer, and nothing new is asked for */
    assert_ok(ctx, SIZED_TAKE(ctx, known, &given, &got));
    assert_true(got.size == sizeof got && got.a == 5 && got.b == 6 && !got.c);
    given.raw[sizeof given - 1] = 1;
    assert_fails(ctx, SIZED_TAKE(ctx, known, &given, &got), TARE_E_USAGE,
                 "known: it has a setting that tare");
    assert_ok(ctx, SIZED_TAKE(ctx, known, NULL, &got));
    static const size_t absurd[] = {0, 1, sizeof(size_t), 4097, SIZE_MAX, 0xa5a5a5a5a5a5a5a5u};
    for (size_t i = 0; i < sizeof absurd / sizeof *absurd; i++) {
        given.k.size = absurd[i];
        assert_fails(ctx, SIZED_TAKE(ctx, known, &given, &got), TARE_E_USAGE,
                     "set it to sizeof(known) first");
    }
    free_context(ctx);
}

static void test_give(void **state)
{
    (void)state;
    const known made = {.size = 99, .a = 5, .b = 6, .c = true};
    unsigned char raw[64];
    for (size_t size = 2 * sizeof(size_t); size <= sizeof raw; size++) {
        size_t copied = size < sizeof made ? size : sizeof made, set;
        memset(raw, 0xa5, sizeof raw);
        memcpy(raw, &size, sizeof size);
        sized_give(raw, &made, sizeof made);
        memcpy(&set, raw, sizeof set);
        assert_int_equal(set, size); /* the caller's */
        assert_memory_equal(raw + sizeof set, (const char *)&made + sizeof set,
                            copied - sizeof set);
        for (size_t i = copied; i < sizeof raw; i++)
            assert_int_equal(raw[i], i < size ? 0 : 0xa5);
    }
    sized_give(NULL, &made, sizeof made);
}

/* The first `size` bytes of a struct in a block of their own, as an older caller has it. (Not
 * inline, as the compiler would warn of just that.) */
__attribute__((noinline)) static void *older(const void *whole, size_t size)
{
    void *block = malloc(size);
    assert_non_null(block);
    memcpy(block, whole, size);
    memcpy(block, &size, sizeof size);
    return block;
}

static void test_context(void **state)
{
    (void)state;
    tare_context *ctx;
    const tare_context_options none = {0};
    tare_context_options *o = older(&none, offsetof(tare_context_options, cpu));
    tare_context_options_init_sized(o, offsetof(tare_context_options, cpu));
    o->threads = 1;
    assert_int_equal(tare_context_create(&ctx, o), TARE_OK);
    free_context(ctx);
    o->size = 0;
    assert_int_equal(tare_context_create(&ctx, o), TARE_E_USAGE);
    assert_null(ctx);
    free(o);
}

/* A caller that was compiled before resume, verify and all that follows, and whose result ended
 * with its third member. The rest has its defaults: the output is verified. */
static void test_quantize(void **state)
{
    (void)state;
    tare_context *ctx = new_context(2);
    char out[128];
    snprintf(out, sizeof out, "%s/out", temporary_folder());
    tare_quantize_options whole;
    tare_quantize_options_init(&whole);
    assert_true(whole.size == sizeof whole && whole.verify && whole.probe);
    whole.model = MODEL;
    whole.out = out;
    whole.calib = CALIB;
    const tare_quantize_result none = {0};
    tare_quantize_options *o = older(&whole, offsetof(tare_quantize_options, resume));
    tare_quantize_result *r = older(&none, offsetof(tare_quantize_result, tokens));
    assert_ok(ctx, tare_quantize(ctx, o, r));
    assert_true(r->size == offsetof(tare_quantize_result, tokens) && r->samples == 6);
    o->size = 0;
    assert_fails(ctx, tare_quantize(ctx, o, r), TARE_E_USAGE,
                 "tare_quantize_options: its size is 0; call tare_quantize_options_init first");
    assert_fails(ctx, tare_quantize(ctx, NULL, NULL), TARE_E_USAGE, "a model is needed");
    o->size = offsetof(tare_quantize_options, resume);
    r->size = 0;
    assert_fails(ctx, tare_quantize(ctx, o, r), TARE_E_USAGE,
                 "tare_quantize_result: its size is 0; set it to sizeof(tare_quantize_result)");
    free(r);
    free(o);
    struct {
        tare_quantize_options known;
        const char *later;
    } newer;
    tare_quantize_options_init_sized(&newer.known, sizeof newer);
    assert_true(newer.known.size == sizeof newer && !newer.later && newer.known.verify);
    newer.known.model = MODEL;
    newer.known.out = out;
    newer.known.calib = CALIB;
    newer.known.overwrite = true;
    assert_ok(ctx, tare_quantize(ctx, &newer.known, NULL));
    newer.later = "unheard of";
    assert_fails(ctx, tare_quantize(ctx, &newer.known, NULL), TARE_E_USAGE,
                 "tare_quantize_options: it has a setting that tare");
    out[strlen(out) - strlen("/out")] = 0;
    remove_tree(out);
    free_context(ctx);
}

static void test_plan(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    tare_quantize_options o;
    tare_quantize_options_init(&o);
    o.model = MODEL;
    o.calib = CALIB;
    o.probe = false;
    const tare_plan none = {0};
    tare_plan all = {.size = sizeof all};
    tare_plan *first = older(&none, offsetof(tare_plan, weights));
    assert_ok(ctx, tare_quantize_plan(ctx, &o, &all));
    assert_ok(ctx, tare_quantize_plan(ctx, &o, first));
    assert_true(first->peak == all.peak && first->peak > 0 && all.layers > 0);
    free(first);
    all.size = 0;
    assert_fails(ctx, tare_quantize_plan(ctx, &o, &all), TARE_E_USAGE, "sizeof(tare_plan)");
    free_context(ctx);
}

static void count_finding(void *user, const tare_finding *finding)
{
    (void)finding;
    ++*(size_t *)user;
}

static void test_verify(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    size_t found = 0;
    tare_verify_options o;
    tare_verify_options_init(&o);
    o.dir = MODEL; /* no output: one finding */
    o.finding = count_finding;
    o.user = &found;
    const tare_verify_result none = {0};
    tare_verify_result *r = older(&none, offsetof(tare_verify_result, tensors));
    assert_int_equal(tare_verify(ctx, &o, r), TARE_E_VERIFY);
    assert_true(found == 1 && *r->layout);
    free(r);
    tare_verify_options *early = older(&o, offsetof(tare_verify_options, finding));
    assert_int_equal(tare_verify(ctx, early, NULL), TARE_E_VERIFY);
    assert_int_equal(found, 1); /* it has nobody to tell */
    early->size = 1;
    assert_fails(ctx, tare_verify(ctx, early, NULL), TARE_E_USAGE, "tare_verify_options_init");
    free(early);
    free_context(ctx);
}

static void test_generate(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    tare_model *model;
    const uint32_t prompt[] = {1, 2, 3}, *prompts[] = {prompt};
    const size_t lengths[] = {3};
    tare_generation g;
    float logprob;
    assert_ok(ctx, tare_model_open(ctx, MODEL, &model));
    tare_generate_options whole;
    tare_generate_options_init(&whole);
    assert_true(whole.max_new_tokens == 20 && whole.top_p < 0);
    whole.max_new_tokens = 2;
    tare_generate_options *o = older(&whole, offsetof(tare_generate_options, temperature));
    assert_ok(ctx, tare_generate(model, o, prompts, lengths, 1, &g));
    assert_int_equal(g.count, 2);
    tare_generations_free(ctx, &g, 1);
    const tare_generation_plan none = {0};
    tare_generation_plan *p = older(&none, offsetof(tare_generation_plan, smallest_kept));
    assert_ok(ctx, tare_generate_plan(model, o, lengths, 1, p));
    assert_true(p->peak > 0);
    free(p);
    o->size = 0;
    assert_fails(ctx, tare_generate(model, o, prompts, lengths, 1, &g), TARE_E_USAGE,
                 "tare_generate_options_init");
    assert_fails(ctx, tare_last_logprobs(model, o, prompts, lengths, 1, prompt, 1, &logprob),
                 TARE_E_USAGE, "tare_generate_options_init");
    free(o);
    tare_model_rates rates = {0};
    assert_fails(ctx, tare_model_probe(model, 1, &rates), TARE_E_USAGE, "tare_model_rates");
    tare_model_free(model);
    free_context(ctx);
}

static tare_status never_asked(void *user, tare_calib_task task,
                               const tare_calib_question *questions, size_t count,
                               tare_calib_answer *answers)
{
    (void)user, (void)task, (void)questions, (void)count, (void)answers;
    return TARE_E_DATA;
}

static void test_calib(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    const char *d = temporary_folder();
    char config[128];
    numbers n = {.prefix = "n", .count = 3};
    tare_calib_options whole;
    tare_calib_options_init(&whole);
    assert_int_equal(whole.mmlu_shots, TARE_CALIB_UNSET);
    tare_calib_options *o = older(&whole, offsetof(tare_calib_options, mmlu_shots));
    tare_calib *calib = empty_mix(ctx, d, NULL, o);
    const tare_calib_source source = {
        .count = numbers_size, .process = numbers_process, .user = &n};
    tare_calib_source *s = older(&source, sizeof source);
    assert_ok(ctx, tare_calib_add_set(calib, "n", s));
    free(s);
    const tare_calib_stats none = {0};
    tare_calib_stats *stats = older(&none, offsetof(tare_calib_stats, skipped));
    assert_ok(ctx, tare_calib_get_stats(calib, "n", stats));
    assert_int_equal(stats->available, 3);
    stats->size = 0;
    assert_fails(ctx, tare_calib_get_stats(calib, "n", stats), TARE_E_USAGE, "tare_calib_stats");
    free(stats);
    const tare_calib_verifier verifier = {.answer = never_asked};
    tare_calib_verifier *v = older(&verifier, offsetof(tare_calib_verifier, plan));
    assert_ok(ctx, tare_calib_set_verifier(calib, v));
    v->size = 0;
    assert_fails(ctx, tare_calib_set_verifier(calib, v), TARE_E_USAGE, "tare_calib_verifier");
    free(v);
    tare_generation_plan generation = {.size = sizeof generation, .peak = 1};
    tare_calib_plan plan = {.size = sizeof plan, .records = 1, .generation = &generation};
    assert_ok(ctx, tare_calib_get_plan(calib, "n", &plan)); /* none is asked for: all is 0 */
    assert_true(plan.records == 0 && plan.generation == &generation && generation.peak == 0);
    generation.size = 0;
    assert_fails(ctx, tare_calib_get_plan(calib, "n", &plan), TARE_E_USAGE,
                 "tare_generation_plan: its size is 0");
    tare_calib_free(calib);
    o->size = 0;
    snprintf(config, sizeof config, "%s/empty.json", d);
    assert_fails(ctx, tare_calib_open(ctx, config, NULL, o, &calib), TARE_E_USAGE,
                 "tare_calib_options_init");
    free(o);
    remove_tree(d);
    free_context(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_init),     cmocka_unit_test(test_take),
        cmocka_unit_test(test_give),     cmocka_unit_test(test_context),
        cmocka_unit_test(test_quantize), cmocka_unit_test(test_plan),
        cmocka_unit_test(test_verify),   cmocka_unit_test(test_generate),
        cmocka_unit_test(test_calib)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
