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
                                       cmocka_unit_test(test_refusals)};
    return cmocka_run_group_tests(tests, make_folder, remove_all);
}
