/* calibration/samples: each file format, limits and refusals. Token ids only: text goes through the
 * tokenizer's own tests. */
#include "folder_fixture.h"

#include "calibration/samples.h"

static tare_status load(tare_context *ctx, const char *name, const char *text, sample_options o,
                        sample_set *set)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    write_text(folder, name, text);
    o.file = path;
    o.model = folder;
    return sample_set_load(ctx, &o, set);
}

static void test_id_lists(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    sample_set s;
    assert_ok(ctx, load(ctx, "a.json", " [[1, 2, 3], [4], [5, 6]]", (sample_options){0}, &s));
    assert_true(s.count == 3 && s.tokens == 6 && s.longest == 3 && s.lengths[1] == 1 &&
                s.ids[5] == 6);
    sample_set_free(ctx, &s);
    assert_ok(ctx, load(ctx, "a.json", "[[1, 2, 3], [4], [5, 6]]",
                        (sample_options){.samples = 2, .max_length = 2}, &s));
    assert_true(s.count == 2 && s.tokens == 3 && s.truncated == 1 && s.ids[1] == 2);
    sample_set_free(ctx, &s);
    free_context(ctx);
}

/* In memory a sample may be several sequences of equal length, padded or not. */
static void test_sequences(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    sample_set s;
    const uint32_t ids[] = {1, 2, 3, 4, 5, 6, 7, 8};
    const size_t lengths[] = {6, 2}, sequences[] = {2, 1}, none[] = {0, 1}, odd[] = {4, 1},
                 kept[] = {3, 1, 2}, long_ones[] = {3, 1, 3}, empty[] = {3, 0, 2};
    sample_options o = {.ids = ids,
                        .lengths = lengths,
                        .count = 2,
                        .sequences = sequences,
                        .kept = kept,
                        .model_max = 3};
    assert_ok(ctx, sample_set_load(ctx, &o, &s));
    assert_true(s.count == 2 && s.tokens == 8 && s.longest == 6 && s.sequences == sequences &&
                s.kept == kept);
    sample_set_free(ctx, &s);
    o.model_max = 2;
    assert_fails(ctx, sample_set_load(ctx, &o, &s), TARE_E_DATA,
                 "row 1: 3 tokens exceed the model's maximum of 2");
    o.model_max = 0;
    o.kept = long_ones;
    assert_fails(ctx, sample_set_load(ctx, &o, &s), TARE_E_DATA,
                 "row 2: of a sequence of 2 tokens 3 are no padding");
    o.kept = empty;
    assert_fails(ctx, sample_set_load(ctx, &o, &s), TARE_E_DATA,
                 "row 1: of a sequence of 3 tokens 0 are no padding");
    o.kept = NULL;
    o.sequences = none;
    assert_fails(ctx, sample_set_load(ctx, &o, &s), TARE_E_DATA,
                 "row 1: 6 tokens are no 0 sequences of equal length");
    o.sequences = odd;
    assert_fails(ctx, sample_set_load(ctx, &o, &s), TARE_E_DATA,
                 "row 1: 6 tokens are no 4 sequences of equal length");
    o.sequences = sequences;
    o.max_length = 4;
    assert_fails(ctx, sample_set_load(ctx, &o, &s), TARE_E_USAGE, "cannot be cut");
    free_context(ctx);
}

/* What stands behind the first --samples is not read, whatever it is. */
static void test_stops(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    sample_set s;
    static const char *const texts[][2] = {{"a.json", "[[1, 2], [3], [-1]]"},
                                           {"a.json", "[[1, 2], [3], {]"},
                                           {"a.json", "[[1, 2], [3]"},
                                           {"a.json", "[[1, 2], [3] garbage"},
                                           {"a.json", "[[1, 2], [3], \xff\xff"}};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        assert_ok(ctx, load(ctx, texts[i][0], texts[i][1], (sample_options){.samples = 2}, &s));
        assert_true(s.count == 2 && s.tokens == 3 && s.ids[2] == 3);
        sample_set_free(ctx, &s);
        assert_int_not_equal(
            load(ctx, texts[i][0], texts[i][1], (sample_options){.samples = 3}, &s), TARE_OK);
    }
    assert_fails(ctx, load(ctx, "a.json", "[[1]] x", (sample_options){0}, &s), TARE_E_FORMAT,
                 "a.json: line 1: expected the end of the document");
    assert_fails(ctx, load(ctx, "a.json", "[[1],\n[2]", (sample_options){0}, &s), TARE_E_FORMAT,
                 "a.json: line 2: expected ',' or ']', but the text ends");
    assert_fails(ctx, load(ctx, "a.json", "[{\"x\": 1, \"x\": 2}]", (sample_options){0}, &s),
                 TARE_E_FORMAT, "a.json: line 1: duplicate key \"x\"");
    assert_fails(ctx, load(ctx, "a.jsonl", "{\"x\": 1, \"x\": 2}", (sample_options){0}, &s),
                 TARE_E_FORMAT, "a.jsonl: row 1: JSON: duplicate key \"x\"");
    free_context(ctx);
}

/* A list is read item by item: memory does not grow with what is not taken. */
static void test_memory(void **state)
{
    (void)state;
    enum { ROWS = 100000 };
    tare_context *ctx = new_context(1);
    sample_set s;
    char *text = malloc(ROWS * 8 + 2);
    size_t n = 0;
    text[n++] = '[';
    for (size_t i = 0; i < ROWS; i++)
        n += (size_t)sprintf(text + n, "%s[1,2,3]", i ? "," : "");
    text[n++] = ']';
    text[n] = 0;
    assert_ok(ctx, load(ctx, "a.json", text, (sample_options){.samples = 1}, &s));
    assert_true(s.count == 1 && s.tokens == 3);
    assert_true(tare_memory_peak(ctx) < n + 100000);
    sample_set_free(ctx, &s);
    assert_ok(ctx, load(ctx, "a.json", text, (sample_options){0}, &s));
    assert_true(s.count == ROWS && s.tokens == 3 * ROWS);
    sample_set_free(ctx, &s);
    free(text);
    free_context(ctx);
}

static tare_status load_any(tare_context *ctx, void *user)
{
    sample_set s;
    tare_status status = load(ctx, "a.json", user, (sample_options){.samples = 2}, &s);
    if (status == TARE_OK)
        sample_set_free(ctx, &s);
    return status;
}

static void test_every_allocation_may_fail(void **state)
{
    (void)state;
    each_allocation_fails(load_any, (void *)(uintptr_t) "[[1, 2], [3, 4, 5], [6]]");
}

/* Kinds of files that a reader of text lines would take for text. */
static void test_text_that_is_none(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    sample_set s;
    assert_fails(ctx,
                 load(ctx, "a.txt",
                      "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
                      (sample_options){0}, &s),
                 TARE_E_DATA, "a.txt: this is a Git LFS pointer");
    /* A page may be meant as prompts: it goes to the tokenizer, which is not there. */
    assert_fails(ctx, load(ctx, "a.txt", "<html>", (sample_options){0}, &s), TARE_E_IO,
                 "tokenizer.json");
    free_context(ctx);
}

static void test_refusals(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    sample_set s;
    static const struct {
        const char *name, *text, *message;
    } cases[] = {
        {"a.jsonl", "", "holds no calibration samples"},
        {"a.jsonl", "\n \n", "holds no calibration samples"},
        {"a.json", "[]", "holds no calibration samples"},
        {"a.txt", "\n", "holds no calibration samples"},
        {"a.json", "[[1], []]", "row 2: a sample without tokens"},
        {"a.json", "[[1, 2, 3, 4, 5]]",
         "row 1: 5 tokens exceed the model's maximum of 4; --max-length 4"},
        {"a.json", "[[1], [10]]", "row 2: token id 10 is out of range: the vocabulary has 10"},
        {"a.json", "[[1.5]]", "row 1: element 1 is not a token id"},
        {"a.json", "[[-1]]", "element 1 is not a token id"},
        {"a.json", "[[4294967296]]", "element 1 is not a token id"},
        {"a.json", "[1]", "row 1: holds no text"},
        {"a.jsonl", "{\"id\": 1}", "row 1: holds no text"},
        {"a.jsonl", "{\"prompt\": \"\"}", "row 1: holds no text"},
        {"a.jsonl", "\n{bad", "row 2"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        sample_options o = {.model_max = 4, .vocab_size = 10};
        tare_status status = load(ctx, cases[i].name, cases[i].text, o, &s);
        if (status == TARE_OK || !strstr(tare_last_error(ctx), cases[i].message))
            fail_msg("%s: status %d: %s", cases[i].text, (int)status, tare_last_error(ctx));
        assert_int_equal(s.count, 0);
    }
    /* Text, but no tokenizer in the folder. */
    assert_fails(ctx, load(ctx, "a.jsonl", "{\"text\": \"x\"}", (sample_options){0}, &s), TARE_E_IO,
                 "tokenizer.json");
    free_context(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_id_lists),
                                       cmocka_unit_test(test_sequences),
                                       cmocka_unit_test(test_stops),
                                       cmocka_unit_test(test_memory),
                                       cmocka_unit_test(test_every_allocation_may_fail),
                                       cmocka_unit_test(test_text_that_is_none),
                                       cmocka_unit_test(test_refusals)};
    return cmocka_run_group_tests(tests, make_folder, remove_all);
}
