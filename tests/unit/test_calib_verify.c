/* Positive verification: what counts as a right answer (calibration_sets.md section 7), with a
 * verifier that says what the test wants. */
#include "calib_fixture.h"
#include "folder_fixture.h"

/* One record and the model's answer to it. */
typedef struct scripted {
    const char *record; /* a JSON line, or a CSV row */
    float yes, no;
    const char *text;
    bool too_long, positive;
} scripted;

typedef struct script {
    const scripted *cases;
    size_t count;
    tare_calib_task task;
    const char *mark; /* in each prompt, before the index of its case and "." */
    size_t largest;   /* number of questions at once */
    uint32_t seed[2];
    bool sample;
} script;

static tare_status answer(void *user, tare_calib_task task, const tare_calib_question *questions,
                          size_t count, tare_calib_answer *answers)
{
    script *s = user;
    tare_status status = TARE_OK;
    assert_int_equal(task, s->task);
    s->largest = count > s->largest ? count : s->largest;
    for (size_t i = 0; i < count && status == TARE_OK; i++) {
        const tare_calib_question *q = &questions[i];
        const char *at = strstr(q->prompt, s->mark);
        assert_non_null(at);
        size_t index = strtoul(at + strlen(s->mark), NULL, 10);
        assert_true(index < s->count && strlen(q->prompt) == q->prompt_length);
        assert_int_equal(q->sample, s->sample);
        assert_true(q->seed[0] == s->seed[0] && q->seed[1] == s->seed[1] && q->seed[2] == index);
        const scripted *c = &s->cases[index];
        answers[i].yes = c->yes;
        answers[i].no = c->no;
        answers[i].too_long = c->too_long;
        if (c->text) {
            char text[512];
            snprintf(text, sizeof text, "%s%s", task == TARE_CALIB_SOLVE ? q->prompt : "", c->text);
            status = tare_calib_answer_text(&answers[i], text, strlen(text));
        }
    }
    return status;
}

/* Opens a mix of one set, whose data has been written to "data" or "mmlu". */
static tare_calib *open_mix(tare_context *ctx, const char *name, const char *path,
                            const tare_calib_options *o)
{
    char config[128], text[512];
    tare_calib *calib;
    snprintf(text, sizeof text,
             "{\"configurations\": [{\"dataset_name\": \"%s\", \"dataset_path\": \"%s/%s\"}]}",
             name, folder, path);
    write_text(folder, "config.json", text);
    snprintf(config, sizeof config, "%s/config.json", folder);
    assert_ok(ctx, tare_calib_open(ctx, config, NULL, o, &calib));
    return calib;
}

/* Which records come out, for several batch sizes. */
static void assert_positive(tare_context *ctx, tare_calib *calib, const char *name, script *s)
{
    static const int64_t batches[] = {1, 2, 7, 1000};
    size_t expected = 0;
    const tare_calib_verifier verifier = {.size = sizeof verifier, .answer = answer, .user = s};
    assert_ok(ctx, tare_calib_set_verifier(calib, &verifier));
    assert_ok(ctx, set_size(calib, name, 1000));
    for (size_t i = 0; i < s->count; i++)
        expected += s->cases[i].positive;
    for (size_t b = 0; b < sizeof batches / sizeof *batches; b++) {
        tare_calib_result *result;
        s->largest = 0;
        assert_ok(ctx, tare_calib_set_batch_size(calib, batches[b]));
        assert_ok(ctx, tare_calib_process(calib, &result));
        for (size_t i = 0; i < tare_calib_result_count(result); i++) {
            tare_calib_entry e;
            tare_calib_result_entry(result, i, &e);
            if (!s->cases[e.sample.record].positive)
                fail_msg("taken: %s", s->cases[e.sample.record].record);
        }
        assert_int_equal(tare_calib_result_count(result), expected);
        assert_true(s->largest <= (size_t)batches[b]);
        tare_calib_result_free(result);
    }
    tare_calib_free(calib);
}

static void write_lines(const scripted *cases, size_t count)
{
    char text[16384];
    size_t n = 0;
    for (size_t i = 0; i < count; i++)
        n += (size_t)snprintf(text + n, sizeof text - n, "%s\n", cases[i].record);
    assert_true(n < sizeof text);
    write_text(folder, "data", text);
}

#define BOOLQ(index, label)                                                                        \
    "{\"title\": \"t" index ".\", \"passage\": \"p\", \"question\": \"q\", \"answer\": " label "}"

static void test_yes_no(void **state)
{
    (void)state;
    static const scripted cases[] = {
        {BOOLQ("0", "true"), -1, -2, NULL, false, true},
        {BOOLQ("1", "true"), -2, -1, NULL, false, false},
        {BOOLQ("2", "false"), -2, -1, NULL, false, true},
        {BOOLQ("3", "false"), -1, -2, NULL, false, false},
        /* A tie is no. */
        {BOOLQ("4", "true"), -1, -1, NULL, false, false},
        {BOOLQ("5", "false"), -1, -1, NULL, false, true},
        /* Numbers as in Python; nothing else is equal to a truth value. */
        {BOOLQ("6", "1"), -1, -2, NULL, false, true},
        {BOOLQ("7", "1.0"), -1, -2, NULL, false, true},
        {BOOLQ("8", "0"), -2, -1, NULL, false, true},
        {BOOLQ("9", "-0.0"), -2, -1, NULL, false, true},
        {BOOLQ("10", "2"), -1, -2, NULL, false, false},
        {BOOLQ("11", "\"true\""), -1, -2, NULL, false, false},
        {BOOLQ("12", "null"), -2, -1, NULL, false, false},
        {BOOLQ("13", "[]"), -2, -1, NULL, false, false},
        {BOOLQ("14", "true"), -1, -2, NULL, true, false},
    };
    tare_context *ctx = new_context(1);
    script s = {cases, sizeof cases / sizeof *cases, TARE_CALIB_CHOOSE, "t", 0, {0}, false};
    write_lines(cases, s.count);
    assert_positive(ctx, open_mix(ctx, "boolq", "data", NULL), "boolq", &s);
    free_context(ctx);
}

static void test_first_letter(void **state)
{
    (void)state;
    static const scripted cases[] = {
        {"q0.,a,b,c,d,A\n", 0, 0, "A", false, true},
        {"q1.,a,b,c,d,A\n", 0, 0,
         " \n\xc2\xa0\xe3\x80\x80"
         "Anything",
         false, true},
        {"q2.,a,b,c,d,A\n", 0, 0, "a", false, false},
        {"q3.,a,b,c,d,A\n", 0, 0, "(A)", false, false},
        {"q4.,a,b,c,d,AB\n", 0, 0, "AB", false, false},
        {"q5.,a,b,c,d,-1\n", 0, 0, " \n ", false, true},
        {"q6.,a,b,c,d,-1\n", 0, 0, NULL, false, true},
        {"q7.,a,b,c,d,-\n", 0, 0, "-1", false, true},
        {"q8.,a,b,c,d,\xe7\x94\xb2\n", 0, 0, "\xe7\x94\xb2\xe4\xb9\x99", false, true},
        {"q9.,a,b,c,d,\n", 0, 0, "", false, false},
        {"q10.,a,b,c,d,A\n", 0, 0, "A", true, false},
        {"q11.,a,b,c,d, A\n", 0, 0, " A", false, false},
    };
    tare_context *ctx = new_context(1);
    script s = {cases, sizeof cases / sizeof *cases, TARE_CALIB_CONTINUE, "q", 0, {0}, false};
    char path[128], text[1024] = "";
    for (size_t i = 0; i < s.count; i++)
        strcat(text, cases[i].record);
    snprintf(path, sizeof path, "%s/mmlu/test", folder);
    assert_ok(ctx, folder_create(ctx, path));
    write_text(path, "s_test.csv", text);
    assert_positive(ctx, open_mix(ctx, "mmlu", "mmlu", NULL), "mmlu", &s);
    free_context(ctx);
}

#define GSM8K(index, label) "{\"question\": \"#" index ".\", \"answer\": \"#### " label "\"}"

/* The answer text is the prompt again with these words behind it; what is decoded is stripped, and
 * as many characters as the prompt has ("Question: #0.\n") are dropped from its front. */
static void test_last_number(void **state)
{
    (void)state;
    static const scripted cases[] = {
        {GSM8K("0", "12"), 0, 0, "It is 12.", false, true},
        {GSM8K("1", "12"), 0, 0, "7 and 12 apples\n\n99", false, true},
        {GSM8K("2", "12"), 0, 0, "012", false, false},
        {GSM8K("3", "1,250"), 0, 0, "1,250", false, false},
        {GSM8K("4", "250"), 0, 0, "1,250", false, true},
        {GSM8K("5", ""), 0, 0, "no digit", false, true},
        {GSM8K("6", ""), 0, 0, "", false, true},
        {GSM8K("7", "5"), 0, 0, "", false, false},
        {GSM8K("8", "\xd9\xa3\xd9\xa4"), 0, 0, "x \xd9\xa3\xd9\xa4 y", false, true},
        {GSM8K("9", "\xc2\xb2"), 0, 0, "x\xc2\xb2", false, false}, /* a digit, but not Nd */
        {GSM8K("10", "3"), 0, 0, "3\n\n4", false, true},
        {GSM8K("11", "-3"), 0, 0, "-3", false, false},
        {GSM8K("12", "3"), 0, 0, "3", true, false},
        {GSM8K("13", "4"), 0, 0, "4\xe3\x80\x80 \n", false, true},
    };
    static const uint32_t seed[] = {7, 9, 11};
    tare_context *ctx = new_context(1);
    script s = {cases, sizeof cases / sizeof *cases, TARE_CALIB_SOLVE, "#", 0, {0}, false};
    write_lines(cases, s.count);
    assert_positive(ctx, open_mix(ctx, "gsm8k", "data", NULL), "gsm8k", &s);
    /* Sampled: the seed comes along, two words of it. */
    tare_calib_options o;
    tare_calib_options_init(&o);
    o.gsm8k_sampling = 1;
    o.gsm8k_seed = seed;
    o.gsm8k_seed_words = 3;
    s.sample = true;
    s.seed[0] = 7;
    s.seed[1] = 9;
    assert_positive(ctx, open_mix(ctx, "gsm8k", "data", &o), "gsm8k", &s);
    free_context(ctx);
}

/* A decoder need not give the prompt back as it was: characters are counted all the same. */
static tare_status answer_other(void *user, tare_calib_task task,
                                const tare_calib_question *questions, size_t count,
                                tare_calib_answer *answers)
{
    (void)user, (void)task, (void)questions;
    assert_int_equal(count, 1);
    /* 14 characters of 3 bytes for "Question: #1.\n" */
    static const char text[] = " \xe8\x8c\xb6\xe8\x8c\xb6\xe8\x8c\xb6\xe8\x8c\xb6\xe8\x8c\xb6"
                               "\xe8\x8c\xb6\xe8\x8c\xb6\xe8\x8c\xb6\xe8\x8c\xb6\xe8\x8c\xb6"
                               "\xe8\x8c\xb6\xe8\x8c\xb6\xe8\x8c\xb6\xe8\x8c\xb6"
                               "8 ";
    return tare_calib_answer_text(&answers[0], text, sizeof text - 1);
}

static void test_characters_of_the_prompt(void **state)
{
    (void)state;
    const tare_calib_verifier verifier = {.size = sizeof verifier, .answer = answer_other};
    tare_context *ctx = new_context(1);
    write_text(folder, "data", GSM8K("1", "8"));
    tare_calib *calib = open_mix(ctx, "gsm8k", "data", NULL);
    tare_calib_stats stats = {.size = sizeof stats};
    assert_ok(ctx, tare_calib_set_verifier(calib, &verifier));
    assert_ok(ctx, set_size(calib, "gsm8k", 1));
    assert_ok(ctx, tare_calib_process(calib, NULL));
    assert_ok(ctx, tare_calib_get_stats(calib, "gsm8k", &stats));
    assert_int_equal(stats.delivered, 1);
    tare_calib_free(calib);
    free_context(ctx);
}

static tare_status fail_to_answer(void *user, tare_calib_task task,
                                  const tare_calib_question *questions, size_t count,
                                  tare_calib_answer *answers)
{
    (void)task, (void)questions, (void)count;
    tare_status status = tare_calib_answer_text(&answers[0], "x", 1);
    return status == TARE_OK ? *(tare_status *)user : status;
}

static void test_failing_verifier(void **state)
{
    (void)state;
    tare_status wanted = TARE_E_CANCELLED;
    const tare_calib_verifier verifier = {
        .size = sizeof verifier, .answer = fail_to_answer, .user = &wanted};
    tare_context *ctx = new_context(1);
    write_text(folder, "data", GSM8K("1", "8"));
    tare_calib *calib = open_mix(ctx, "gsm8k", "data", NULL);
    assert_ok(ctx, tare_calib_set_verifier(calib, &verifier));
    assert_ok(ctx, set_size(calib, "gsm8k", 1));
    assert_int_equal(tare_calib_process(calib, NULL), TARE_E_CANCELLED);
    tare_calib_free(calib);
    free_context(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_yes_no),           cmocka_unit_test(test_first_letter),
        cmocka_unit_test(test_last_number),      cmocka_unit_test(test_characters_of_the_prompt),
        cmocka_unit_test(test_failing_verifier),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_all);
}
