/* Mixed calibration sets through the C API: sizes, seeds, sets of the caller's, the order of the
 * mix. The files of the built-in sets are the matter of tests/cli/test_calib*.py. */
#include "calib_fixture.h"
#include "folder_fixture.h"

static const uint32_t one = 1;

/* Runs the mix, and compares its prompts. */
static void assert_mix(tare_context *ctx, tare_calib *calib, const char *expected)
{
    tare_calib_result *result;
    assert_ok(ctx, tare_calib_process(calib, &result));
    assert_string_equal(prompts_of(result), expected);
    tare_calib_result_free(result);
}

/* The vectors of the specification, section 6.4: two sets of 10, 3 of each. With sampling seed 0
 * joined b7 b8 b1 g7 g8 g1. */
static void test_order(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    numbers b = {.prefix = "b", .count = 10}, g = {.prefix = "g", .count = 10};
    tare_calib *calib = empty_mix(ctx, folder, NULL, NULL);
    assert_ok(ctx, add_numbers(calib, "boolq", &b));
    assert_ok(ctx, add_numbers(calib, "gsm8k", &g));
    assert_ok(
        ctx, tare_calib_set_sizes(calib, (const char *[]){"gsm8k", "boolq"}, (int64_t[]){3, 3}, 2));
    assert_mix(ctx, calib, "g8 b1 b8 b7 g1 g7 ");
    assert_ok(ctx, tare_calib_set_shuffle_seed(calib, &one, 1));
    assert_mix(ctx, calib, "b1 g7 g1 b7 g8 b8 ");
    for (int64_t size = 1; size < 6; size++) {
        assert_ok(ctx, tare_calib_set_batch_size(calib, size));
        assert_mix(ctx, calib, "b1 g7 g1 b7 g8 b8 ");
    }
    assert_int_equal(tare_calib_num_sets(calib), 2);
    assert_string_equal(tare_calib_set_name(calib, 1), "gsm8k");
    tare_calib_free(calib);
    assert_true(b.released == 1 && g.released == 1);
    free_context(ctx);
}

/* A set samples by the shuffle seed of the moment when it was added. Python, seed 1 of 10:
 * 6 8 9 7 5 3 0 4 1 2; then [x0..x2] shuffled by seed 1: random.Random(1).shuffle([0, 1, 2]). */
static void test_seed_of_added_sets(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    numbers early = {.prefix = "e", .count = 10}, late = {.prefix = "l", .count = 10};
    tare_calib *calib = empty_mix(ctx, folder, NULL, NULL);
    assert_ok(ctx, add_numbers(calib, "early", &early));
    assert_ok(ctx, tare_calib_set_shuffle_seed(calib, &one, 1));
    assert_ok(ctx, add_numbers(calib, "late", &late));
    assert_ok(ctx, tare_calib_set_shuffle_seed(calib, NULL, 0));
    assert_ok(ctx, set_size(calib, "early", 3));
    assert_mix(ctx, calib, "e7 e1 e8 "); /* 7 8 1 by [0, 2, 1] */
    assert_ok(ctx, set_size(calib, "early", 0));
    assert_ok(ctx, set_size(calib, "late", 3));
    assert_mix(ctx, calib, "l6 l9 l8 "); /* 6 8 9 by [0, 2, 1] */
    tare_calib_free(calib);

    tare_calib_options o;
    tare_calib_options_init(&o);
    o.sample_seed = &one;
    o.sample_seed_words = 1;
    calib = empty_mix(ctx, folder, NULL, &o);
    assert_ok(ctx, add_numbers(calib, "early", &early));
    assert_ok(ctx, set_size(calib, "early", 3));
    assert_mix(ctx, calib, "e6 e9 e8 ");
    tare_calib_free(calib);
    free_context(ctx);
}

/* How many a set of the reference's delivers (section 11.1): whole batches, looked at before each.
 */
static size_t compat_count(size_t count, size_t size, size_t batch, size_t every)
{
    size_t collected = 0, seen = 0;
    for (size_t at = 0; at < count; at += batch) {
        if (collected >= size)
            return size;
        for (size_t i = at; i < at + batch && i < count; i++)
            collected += seen++ % every == 0;
    }
    return collected;
}

static tare_status no_answer(void *user, tare_calib_task task, const tare_calib_question *questions,
                             size_t count, tare_calib_answer *answers)
{
    (void)user, (void)task, (void)questions, (void)count, (void)answers;
    fail_msg("a set of the caller's is verified by itself");
    return TARE_OK;
}

static void assert_counts(tare_context *ctx, const tare_calib_options *o, bool compat, size_t every)
{
    static const tare_calib_verifier verifier = {.size = sizeof verifier, .answer = no_answer};
    for (size_t count = 0; count <= 14; count++) {
        for (int64_t batch = 1; batch <= 5; batch++) {
            numbers n = {.prefix = "n", .count = count, .every = every};
            tare_calib *calib = empty_mix(ctx, folder, NULL, o);
            tare_calib_stats stats = {.size = sizeof stats};
            assert_ok(ctx, tare_calib_set_batch_size(calib, batch));
            assert_ok(ctx, add_numbers(calib, "n", &n));
            if (every)
                assert_ok(ctx, tare_calib_set_verifier(calib, &verifier));
            for (size_t size = 0; size <= 16; size++) {
                n.seen = 0;
                size_t positive = every ? (count + every - 1) / every : count;
                size_t expected = positive < size ? positive : size;
                if (compat && size)
                    expected = compat_count(count, size, (size_t)batch, every ? every : 1);
                assert_ok(ctx, set_size(calib, "n", (int64_t)size));
                assert_ok(ctx, tare_calib_process(calib, NULL));
                assert_ok(ctx, tare_calib_get_stats(calib, "n", &stats));
                assert_int_equal(stats.delivered, expected);
                assert_int_equal(stats.requested, size);
                assert_int_equal(stats.available, count);
            }
            tare_calib_free(calib);
        }
    }
}

static void test_never_more_than_asked(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    tare_calib_options o;
    tare_calib_options_init(&o);
    assert_counts(ctx, &o, false, 0);
    assert_counts(ctx, &o, false, 2);
    o.compat = "msmodelslim";
    assert_counts(ctx, &o, true, 0);
    assert_counts(ctx, &o, true, 2);
    free_context(ctx);
}

static void test_again(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    numbers n = {.prefix = "n", .count = 5}; /* [2, 1, 0, 4, 3] by seed 0 */
    tare_calib *calib = empty_mix(ctx, folder, NULL, NULL);
    assert_mix(ctx, calib, "");
    assert_ok(ctx, add_numbers(calib, "n", &n));
    assert_mix(ctx, calib, ""); /* sizes begin at 0 */
    assert_ok(ctx, set_size(calib, "n", 9));
    for (int i = 0; i < 3; i++)
        assert_mix(ctx, calib, "n0 n1 n2 n3 n4 "); /* the order of the order */
    assert_ok(ctx, set_size(calib, "n", 2));
    assert_mix(ctx, calib, "n2 n1 ");
    n.count = 1; /* asked anew each time */
    assert_mix(ctx, calib, "n0 ");
    tare_calib_free(calib);
    free_context(ctx);
}

static void test_replaced(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    numbers a = {.prefix = "a", .count = 1}, b = {.prefix = "b", .count = 1},
            c = {.prefix = "c", .count = 1};
    tare_calib *calib = empty_mix(ctx, folder, NULL, NULL);
    assert_ok(ctx, add_numbers(calib, "first", &a));
    assert_ok(ctx, add_numbers(calib, "second", &b));
    assert_ok(ctx, tare_calib_set_sizes(calib, (const char *[]){"first", "second"},
                                        (int64_t[]){1, 1}, 2));
    assert_mix(ctx, calib, "a0 b0 ");
    assert_ok(ctx, add_numbers(calib, "first", &c));
    assert_int_equal(a.released, 1);
    assert_mix(ctx, calib, "b0 ");
    assert_ok(ctx, set_size(calib, "first", 1));
    assert_mix(ctx, calib, "c0 b0 ");
    tare_calib_free(calib);
    free_context(ctx);
}

static void test_refused_settings(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    numbers a = {.prefix = "a", .count = 9}, b = {.prefix = "b", .count = 9};
    tare_calib *calib = empty_mix(ctx, folder, NULL, NULL);
    tare_calib_stats stats = {.size = sizeof stats};
    assert_ok(ctx, add_numbers(calib, "a", &a));
    assert_ok(ctx, add_numbers(calib, "b", &b));
    assert_ok(ctx, tare_calib_set_sizes(calib, (const char *[]){"a", "b"}, (int64_t[]){1, 1}, 2));
    /* The unknown name first, in the middle, last: nothing is set. */
    static const char *const orders[][3] = {{"A", "a", "b"}, {"a", "A", "b"}, {"a", "b", "A"}};
    for (size_t i = 0; i < 3; i++)
        assert_fails(ctx, tare_calib_set_sizes(calib, orders[i], (int64_t[]){5, 5, 5}, 3),
                     TARE_E_USAGE, "Dataset A has no handler");
    assert_fails(ctx,
                 tare_calib_set_sizes(calib, (const char *[]){"a", "b"}, (int64_t[]){5, -1}, 2),
                 TARE_E_USAGE, "Dataset b");
    assert_ok(ctx, tare_calib_get_stats(calib, "a", &stats));
    assert_int_equal(stats.requested, 1);
    assert_fails(ctx, tare_calib_get_stats(calib, "A", &stats), TARE_E_USAGE, "Dataset A");
    assert_fails(ctx, tare_calib_set_batch_size(calib, 0), TARE_E_USAGE, "batch_size cant be zero");
    assert_fails(ctx, tare_calib_set_batch_size(calib, -1), TARE_E_USAGE, "batch_size");
    const tare_calib_source nothing = {.size = sizeof nothing}, unsized = {0};
    assert_fails(ctx, tare_calib_add_set(calib, "x", &nothing), TARE_E_USAGE,
                 "Dataset x: count and process are needed");
    assert_fails(ctx, tare_calib_add_set(calib, "x", &unsized), TARE_E_USAGE,
                 "Dataset x: tare_calib_source: its size is 0");
    assert_int_equal(tare_calib_num_sets(calib), 2);
    tare_calib_free(calib);

    tare_calib_options o;
    tare_calib_options_init(&o);
    char config[128];
    snprintf(config, sizeof config, "%s/empty.json", folder);
    o.mmlu_shots = -1;
    assert_fails(ctx, tare_calib_open(ctx, config, NULL, &o, &calib), TARE_E_USAGE, "mmlu_shots");
    assert_null(calib);
    o.mmlu_shots = 5;
    o.compat = "other";
    assert_fails(ctx, tare_calib_open(ctx, config, NULL, &o, &calib), TARE_E_USAGE, "other");
    assert_fails(ctx, tare_calib_open(ctx, "/gone/config", NULL, NULL, &calib), TARE_E_USAGE,
                 "/gone/config");
    assert_int_equal(tare_last_errno(ctx), 2); /* ENOENT */
    assert_fails(ctx, tare_calib_open(ctx, "", NULL, NULL, &calib), TARE_E_USAGE,
                 "The value of the path cannot be empty.");
    assert_int_equal(tare_last_errno(ctx), 0);
    free_context(ctx);
}

/* What a source gives that is no sample, or fails: the call fails, the old file stays. */
static void test_bad_samples(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    char out[128];
    snprintf(out, sizeof out, "%s/bad.json", folder);
    numbers n = {.prefix = "n", .count = 3};
    tare_calib *calib = empty_mix(ctx, folder, out, NULL);
    assert_ok(ctx, add_numbers(calib, "n", &n));
    assert_ok(ctx, set_size(calib, "n", 2));
    n.ans = "tru";
    assert_fails(ctx, tare_calib_process(calib, NULL), TARE_E_USAGE, "Dataset n");
    n.ans = NULL;
    n.extra = "[]";
    assert_fails(ctx, tare_calib_process(calib, NULL), TARE_E_USAGE, "Dataset n");
    n.extra = "{\"ans\": 1}";
    assert_fails(ctx, tare_calib_process(calib, NULL), TARE_E_USAGE, "Dataset n");
    n.extra = NULL;
    n.status = TARE_E_NUMERIC;
    assert_int_equal(tare_calib_process(calib, NULL), TARE_E_NUMERIC);
    assert_false(path_exists(out));
    n.status = TARE_OK;
    n.count = (uint64_t)1 << 33;
    assert_fails(ctx, tare_calib_process(calib, NULL), TARE_E_DATA, "records");
    n.count = 3;
    assert_ok(ctx, tare_calib_process(calib, NULL));
    assert_true(path_exists(out));
    tare_calib_free(calib);
    free_context(ctx);
}

/* Bytes as Python's json.dumps(…, indent=2) gives them. */
static void test_json(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    numbers n = {.prefix = "\xed\xa0\x80\"\n",
                 .count = 1,
                 .ans = "{\"a\":[],\"b\":[1.50,-0]}",
                 .extra = "{\"k\":1e5}"};
    tare_calib *calib = empty_mix(ctx, folder, NULL, NULL);
    tare_calib_result *result;
    tare_calib_entry entry;
    char *text;
    size_t length;
    assert_ok(ctx, add_numbers(calib, "n", &n));
    assert_ok(ctx, set_size(calib, "n", 1));
    assert_ok(ctx, tare_calib_process(calib, &result));
    tare_calib_free(calib); /* the result does not need it */
    assert_ok(ctx, tare_calib_result_json(result, &text, &length));
    assert_string_equal(text, "[\n  {\n    \"prompt\": \"\\ud800\\\"\\n0\",\n    \"ans\": {\n"
                              "      \"a\": [],\n      \"b\": [\n        1.5,\n        0\n      ]\n"
                              "    },\n    \"k\": 100000.0\n  }\n]");
    assert_int_equal(length, strlen(text));
    tare_free(ctx, text);
    tare_calib_result_entry(result, 0, &entry);
    assert_string_equal(entry.sample.ans, "{\"a\": [], \"b\": [1.5, 0]}");
    assert_string_equal(entry.set, "n");
    tare_calib_result_entry(result, 1, &entry);
    assert_null(entry.sample.prompt);
    tare_calib_result_free(result);
    free_context(ctx);
}

/* The caller's set is asked to verify if and only if the mix has a verifier. */
static void test_verified_by_itself(void **state)
{
    (void)state;
    static const tare_calib_verifier verifier = {.size = sizeof verifier, .answer = no_answer};
    tare_context *ctx = new_context(1);
    numbers n = {.prefix = "n", .count = 10, .every = 3, .extra = "{\"k\":1}"};
    tare_calib *calib = empty_mix(ctx, folder, NULL, NULL);
    assert_ok(ctx, add_numbers(calib, "n", &n));
    assert_ok(ctx, set_size(calib, "n", 3));
    assert_mix(ctx, calib, "n7 n1 n8 ");
    assert_int_equal(n.verified, 0);
    assert_ok(ctx, tare_calib_set_verifier(calib, &verifier));
    assert_mix(ctx, calib, "n7 n2 n5 "); /* of 7 8 1 5, 3 4 2 0: 7, 5 and 2, by [0, 2, 1] */
    assert_ok(ctx, tare_calib_set_verifier(calib, NULL));
    assert_mix(ctx, calib, "n7 n1 n8 ");
    tare_calib_free(calib);
    free_context(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_order),
        cmocka_unit_test(test_seed_of_added_sets),
        cmocka_unit_test(test_never_more_than_asked),
        cmocka_unit_test(test_again),
        cmocka_unit_test(test_replaced),
        cmocka_unit_test(test_refused_settings),
        cmocka_unit_test(test_bad_samples),
        cmocka_unit_test(test_json),
        cmocka_unit_test(test_verified_by_itself),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_all);
}
