/* Targets: names and versions, which facts hold for a layer, and that the table is whole. */
#include "fixture.h"

#include "output/targets.h"

/* ---- versions ---- */

static void expect_target(const char *text, engine which, uint32_t version)
{
    serving_target t;
    tare_context *ctx = new_context(1);
    assert_ok(ctx, serving_target_parse(ctx, text, &t));
    assert_int_equal(t.engine, which);
    assert_int_equal(t.version, version);
    free_context(ctx);
}

static void test_versions(void **state)
{
    char text[TARGET_TEXT];
    (void)state;
    expect_target("vllm-ascend@0.23", ENGINE_VLLM_ASCEND, ENGINE_VERSION(0, 23));
    expect_target("vllm-ascend@v0.23.0", ENGINE_VLLM_ASCEND, ENGINE_VERSION(0, 23));
    expect_target("vllm-ascend@0.23.0.post1", ENGINE_VLLM_ASCEND, ENGINE_VERSION(0, 23));
    expect_target("vllm-ascend@0.26.0rc1", ENGINE_VLLM_ASCEND, ENGINE_VERSION(0, 26));
    expect_target("vllm-ascend@main", ENGINE_VLLM_ASCEND, ENGINE_MAIN);
    expect_target("vllm-ascend", ENGINE_VLLM_ASCEND, ENGINE_MAIN); /* the newest */
    expect_target("sglang", ENGINE_SGLANG, ENGINE_MAIN);
    expect_target("mindie", ENGINE_MINDIE, ENGINE_VERSION(3, 1));
    expect_target("mindie@3.1.0", ENGINE_MINDIE, ENGINE_VERSION(3, 1));
    expect_target("vllm", ENGINE_VLLM, ENGINE_VERSION(0, 33));
    const serving_target t = {ENGINE_VLLM_ASCEND, ENGINE_VERSION(0, 24)};
    assert_string_equal(serving_target_text(&t, text), "vllm-ascend@0.24");
}

static void test_unknown_versions(void **state)
{
    static const char *const ROWS[] = {"vllm-ascend@0.22",    "vllm-ascend@0.2",
                                       "vllm-ascend@0.230",   "vllm-ascend@23",
                                       "vllm-ascend@0",       "vllm-ascend@0.",
                                       "vllm-ascend@.23",     "vllm-ascend@-0.23",
                                       "vllm-ascend@ 0.23",   "vllm-ascend@0.23 ",
                                       "vllm-ascend@0.23@",   "vllm-ascend@vv0.23",
                                       "vllm-ascend@main2",   "vllm-ascend@65536.23",
                                       "vllm-ascend@0.65559", "vllm-ascend@99999999999999999999.23",
                                       "vllm-ascend@"};
    serving_target t;
    tare_context *ctx = new_context(1);
    (void)state;
    for (size_t i = 0; i < sizeof ROWS / sizeof *ROWS; i++)
        assert_fails(ctx, serving_target_parse(ctx, ROWS[i], &t), TARE_E_USAGE,
                     "is unknown; known are vllm-ascend@0.23, vllm-ascend@0.24, vllm-ascend@0.25, "
                     "vllm-ascend@0.26, vllm-ascend@main");
    assert_fails(ctx, serving_target_parse(ctx, "vllm-asc", &t), TARE_E_USAGE,
                 "vllm-ascend@main, sglang@main, mindie@3.1, vllm@0.33");
    assert_fails(ctx, serving_target_parse(ctx, "none", &t), TARE_E_USAGE, "is unknown");
    assert_fails(ctx, serving_target_parse(ctx, "", &t), TARE_E_USAGE, "is unknown");
    free_context(ctx);
}

/* ---- which facts hold ---- */

static bool holds_in(uint32_t from, uint32_t to, uint32_t version)
{
    const target_fact fact = {
        .engine = ENGINE_VLLM_ASCEND, .from = from, .to = to, .subjects = SUBJECT_ANY};
    const target_layer layer = {.subject = SUBJECT_LINEAR, .type = TYPE_FLOAT, .family = ""};
    const serving_target t = {ENGINE_VLLM_ASCEND, version}, other = {ENGINE_VLLM, version};
    assert_false(target_fact_holds(&fact, &other, &layer));
    return target_fact_holds(&fact, &t, &layer);
}

static void test_ranges(void **state)
{
    const uint32_t v23 = ENGINE_VERSION(0, 23), v24 = ENGINE_VERSION(0, 24),
                   v25 = ENGINE_VERSION(0, 25);
    (void)state;
    assert_true(holds_in(0, 0, v23) && holds_in(0, 0, ENGINE_MAIN)); /* no bounds */
    assert_true(holds_in(v24, 0, v24) && holds_in(v24, 0, v25) && holds_in(v24, 0, ENGINE_MAIN));
    assert_false(holds_in(v24, 0, v23));
    assert_true(holds_in(0, v24, v23) && holds_in(0, v24, v24));
    assert_false(holds_in(0, v24, v25) || holds_in(0, v24, ENGINE_MAIN));
    assert_true(holds_in(v24, v24, v24));
    assert_false(holds_in(v24, v24, v23) || holds_in(v24, v24, v25));
    assert_true(holds_in(ENGINE_MAIN, 0, ENGINE_MAIN));
    assert_false(holds_in(ENGINE_MAIN, 0, v25));
    assert_true(ENGINE_VERSION(1, 0) > ENGINE_VERSION(0, 99)); /* as numbers, not as text */
    assert_true(ENGINE_VERSION(0, 100) > ENGINE_VERSION(0, 99));
}

static void test_conditions(void **state)
{
    const serving_target t = {ENGINE_MINDIE, ENGINE_VERSION(3, 1)};
    target_fact fact = {.engine = ENGINE_MINDIE,
                        .layouts = SAVE_ASCENDV1 | SAVE_NUMPY,
                        .subjects = SUBJECT_EXPERT,
                        .types = TYPE_W8A8 | TYPE_W8A16,
                        .traits = TRAIT_GROUPS | TRAIT_STAGED,
                        .without = TRAIT_LATENT,
                        .families = "llama qwen2"};
    const target_layer good = {.layout = LAYOUT_NUMPY,
                               .subject = SUBJECT_EXPERT,
                               .type = TYPE_W8A16,
                               .traits = TRAIT_GROUPS | TRAIT_STAGED | TRAIT_FLOAT16,
                               .family = "qwen2"};
    target_layer layer = good;
    (void)state;
    assert_true(target_fact_holds(&fact, &t, &layer));
    layer.layout = LAYOUT_SAFE_TENSOR;
    assert_false(target_fact_holds(&fact, &t, &layer));
    layer = good, layer.subject = SUBJECT_LINEAR;
    assert_false(target_fact_holds(&fact, &t, &layer));
    layer = good, layer.type = TYPE_FLOAT;
    assert_false(target_fact_holds(&fact, &t, &layer));
    layer = good, layer.traits = TRAIT_GROUPS; /* all are needed */
    assert_false(target_fact_holds(&fact, &t, &layer));
    layer = good, layer.traits |= TRAIT_LATENT;
    assert_false(target_fact_holds(&fact, &t, &layer));
    for (const char *const *family =
             (const char *const[]){"qwen", "qwen22", "llama qwen2", "", NULL};
         *family; family++) {
        layer = good, layer.family = *family;
        assert_false(target_fact_holds(&fact, &t, &layer));
        fact.others = fact.families, fact.families = NULL;
        assert_true(target_fact_holds(&fact, &t, &layer));
        fact.families = fact.others, fact.others = NULL;
    }
    fact.others = fact.families, fact.families = NULL;
    assert_false(target_fact_holds(&fact, &t, &good));
}

/* The worst counts, whatever its place; and what no fact is about is not known. */
static void test_the_worst_counts(void **state)
{
    const serving_target t = {ENGINE_VLLM_ASCEND, ENGINE_MAIN};
    target_layer layer = {.layout = LAYOUT_ASCENDV1,
                          .subject = SUBJECT_ATTENTION,
                          .type = TYPE_C8,
                          .family = "llama"};
    (void)state;
    assert_int_equal(target_judge(&t, &layer)->verdict, TARE_VERDICT_LOADS);
    layer.traits = TRAIT_NO_CACHE_TYPE;
    assert_int_equal(target_judge(&t, &layer)->verdict, TARE_VERDICT_UNQUANTIZED);
    layer.traits |= TRAIT_CACHE_OFFSETS;
    assert_int_equal(target_judge(&t, &layer)->verdict, TARE_VERDICT_REFUSED);
    layer.type = TYPE_OTHER;
    assert_int_equal(target_judge(&t, &layer)->verdict, TARE_VERDICT_UNKNOWN);
}

static void test_layouts(void **state)
{
    static const struct {
        const char *name;
        unsigned reads, found;
        layout given;
    } ROWS[] = {
        {"vllm-ascend", SAVE_ASCENDV1 | SAVE_COMPRESSED_TENSORS, 15, LAYOUT_ASCENDV1},
        {"sglang", SAVE_ASCENDV1 | SAVE_COMPRESSED_TENSORS,
         SAVE_SAFE_TENSOR | SAVE_COMPRESSED_TENSORS, LAYOUT_COMPRESSED_TENSORS},
        {"mindie", SAVE_SAFE_TENSOR, 15, LAYOUT_SAFE_TENSOR},
        {"vllm", SAVE_COMPRESSED_TENSORS, 15, LAYOUT_COMPRESSED_TENSORS},
        {"vllm", SAVE_COMPRESSED_TENSORS, SAVE_SAFE_TENSOR | SAVE_NUMPY, LAYOUT_SAFE_TENSOR}};
    tare_context *ctx = new_context(1);
    (void)state;
    for (size_t i = 0; i < sizeof ROWS / sizeof *ROWS; i++) {
        serving_target t;
        assert_ok(ctx, serving_target_parse(ctx, ROWS[i].name, &t));
        assert_int_equal(target_layouts(&t), ROWS[i].reads);
        assert_int_equal(target_layout(&t, ROWS[i].found), ROWS[i].given);
    }
    free_context(ctx);
}

/* ---- the table ---- */

/* For each type that tare writes and each layout that an engine reads something is known. */
static void test_every_scheme_is_judged(void **state)
{
    static const unsigned types[] = {TYPE_FLOAT, TYPE_W8A8, TYPE_W8A8_DYNAMIC};
    (void)state;
    for (int e = ENGINE_NONE + 1; e < ENGINES; e++) {
        for (const uint32_t *version = engine_of((engine)e)->versions; *version; version++) {
            const serving_target t = {(engine)e, *version};
            for (size_t i = 0; i < 3; i++) {
                for (int l = 0; l < SAVE_TYPES; l++) {
                    const target_layer layer = {.layout = (layout)l,
                                                .subject = SUBJECT_LINEAR,
                                                .type = types[i],
                                                .family = ""};
                    assert_int_not_equal(target_judge(&t, &layer)->verdict, TARE_VERDICT_UNKNOWN);
                }
            }
        }
    }
}

/* Each fact can hold for some version that is known, says why, what works, and whence it is. */
static void test_every_fact_is_whole(void **state)
{
    (void)state;
    for (size_t i = 0; i < num_target_facts; i++) {
        const target_fact *f = &target_facts[i];
        bool covers = false;
        for (const uint32_t *v = engine_of(f->engine)->versions; *v; v++)
            covers |= f->from <= *v && (f->to == 0 || *v <= f->to);
        assert_true(f->engine != ENGINE_NONE && covers);
        assert_true(f->why && f->source && *f->source);
        assert_true(f->verdict == TARE_VERDICT_LOADS || *f->why);
        assert_true(f->verdict == TARE_VERDICT_LOADS || f->subjects == 0 || f->works);
        assert_true(f->rule >= 0 && f->rule <= 30);
        assert_false(f->families && f->others);
    }
}

static void test_words(void **state)
{
    (void)state;
    assert_int_equal(target_type_of("W8A8"), TYPE_W8A8);
    assert_int_equal(target_type_of("W8A8_DYNAMIC"), TYPE_W8A8_DYNAMIC);
    assert_int_equal(target_type_of("C8"), TYPE_C8);
    assert_int_equal(target_type_of("FAQuant"), TYPE_FAQUANT);
    assert_int_equal(target_type_of("w8a8"), TYPE_OTHER);
    assert_int_equal(target_type_of(""), TYPE_OTHER);
    assert_string_equal(target_type_text(TYPE_W4A8_DYNAMIC), "W4A8_DYNAMIC");
    assert_string_equal(target_verdict_text(TARE_VERDICT_UNQUANTIZED), "runs unquantized");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_versions),
        cmocka_unit_test(test_unknown_versions),
        cmocka_unit_test(test_ranges),
        cmocka_unit_test(test_conditions),
        cmocka_unit_test(test_the_worst_counts),
        cmocka_unit_test(test_layouts),
        cmocka_unit_test(test_every_scheme_is_judged),
        cmocka_unit_test(test_every_fact_is_whole),
        cmocka_unit_test(test_words),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
