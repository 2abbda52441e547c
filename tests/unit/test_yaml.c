/* YAML: core-schema scalars, structure, what is refused with which line. Expected values by hand,
 * from the tables of the YAML 1.2 specification (10.3.2). */
#include <math.h>
#include <stdio.h>
#include <unistd.h>

#include "json_fixture.h"

#include "file/yaml.h"

static tare_status parse_yaml(fixture *f, const char *text, size_t length)
{
    char *copy = malloc(length ? length : 1);
    assert_non_null(copy);
    memcpy(copy, text, length);
    tare_status status = yaml_parse(f->ctx, &f->arena, copy, length, "test.yaml", &f->root);
    free(copy);
    return status;
}

static const value *good(fixture *f, const char *text)
{
    if (parse_yaml(f, text, strlen(text)) != TARE_OK)
        fail_msg("%s refused: %s", text, tare_last_error(f->ctx));
    return f->root;
}

static void test_empty(void **state)
{
    static const char *const texts[] = {"",         "\n\n",         "# nothing\n",
                                        "---\n",    "---\n...\n",   "{}",
                                        "--- {}\n", "\xef\xbb\xbf", "%YAML 1.1\n---\n"};
    for (size_t i = 0; i < sizeof(texts) / sizeof(*texts); i++) {
        const value *root = good(*state, texts[i]);
        assert_int_equal(root->type, VALUE_MAP);
        assert_int_equal(root->count, 0);
    }
    assert_int_equal(good(*state, "null")->type, VALUE_NULL);
}

static void test_words(void **state)
{
    const value *root = good(*state,
                             "[~, null, Null, NULL, true, True, TRUE, false, False, FALSE]");
    assert_int_equal(root->count, 10);
    for (size_t i = 0; i < 10; i++) {
        assert_int_equal(root->items[i].type, i < 4 ? VALUE_NULL : VALUE_BOOL);
        assert_int_equal(root->items[i].boolean, i >= 4 && i < 7);
    }
    root = good(*state, "a:\nb: # comment\nc: ''\n");
    assert_int_equal(root->items[0].type, VALUE_NULL);
    assert_int_equal(root->items[1].type, VALUE_NULL);
    assert_text(&root->items[2], "", 0);
}

static void test_integers(void **state)
{
    static const struct {
        const char *source;
        int64_t integer;
        const char *text;
    } cases[] = {{"0", 0, "0"},
                 {"-0", 0, "-0"},
                 {"+7", 7, "7"},
                 {"-42", -42, "-42"},
                 {"9223372036854775807", INT64_MAX, "9223372036854775807"},
                 {"-9223372036854775808", INT64_MIN, "-9223372036854775808"}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        const value *v = good(*state, cases[i].source);
        assert_int_equal(v->type, VALUE_NUMBER);
        assert_true(v->is_integer);
        assert_true(v->integer == cases[i].integer && v->number == (double)cases[i].integer);
        assert_text(v, cases[i].text, strlen(cases[i].text));
    }
}

static void test_floats(void **state)
{
    static const struct {
        const char *source;
        double number;
        const char *text;
    } cases[] = {{"1.5", 1.5, "1.5"},
                 {"1.", 1, "1.0"},
                 {".5", 0.5, "0.5"},
                 {"-.5", -0.5, "-0.5"},
                 {"+.5", 0.5, "0.5"},
                 {"1e3", 1000, "1e3"},
                 {"1.e+1", 10, "1.0e+1"},
                 {"+1.25E-2", 0.0125, "1.25E-2"},
                 {"9223372036854775808", 0x1p63, "9223372036854775808"}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        const value *v = good(*state, cases[i].source);
        assert_int_equal(v->type, VALUE_NUMBER);
        assert_false(v->is_integer);
        assert_true(v->number == cases[i].number);
        assert_text(v, cases[i].text, strlen(cases[i].text));
    }
}

/* Plain scalars that are strings. */
static void test_plain_strings(void **state)
{
    static const char *const texts[] = {
        "yes",        "no",           "on",     "off",  "y",     "n",     "nULL",     "tRUE",
        "8GiB",       "m3",           "L0..L5", ".inf", "-.inf", ".nan",  ".NaN",     "NaN",
        "Infinity",   "0x10",         "0o17",   "010",  "-01",   "1_000", "1,000",    "1e999",
        "1e",         "1.2.3",        "1.1.1.", ".",    "+",     "+-1",   "++1",      "-+1",
        "1e+",        "1.e",          "..",     "1 2",  "=",     "a b",   "1.e1.e1.", "12:30:45",
        "2001-12-14", "\xe2\x82\xac", "-x"};
    for (size_t i = 0; i < sizeof(texts) / sizeof(*texts); i++) {
        const value *v = good(*state, texts[i]);
        assert_int_equal(v->type, VALUE_STRING);
        assert_text(v, texts[i], strlen(texts[i]));
    }
    char digits[402] = {0};
    memset(digits, '1', 401);
    assert_int_equal(good(*state, digits)->type, VALUE_STRING);
    for (int i = 0; i < 400; i += 4)
        memcpy(digits + i, "1.e1", 4);
    assert_int_equal(good(*state, digits)->type, VALUE_STRING);
}

/* Quoted and block scalars are strings whatever they spell. */
static void test_quoted(void **state)
{
    const value *v = good(*state, "- '5'\n- \"true\"\n- 'null'\n- |\n  5\n- >-\n  1\n  2\n"
                                  "- \"\\u20ac\\U0001F600\\0\"\n- 'it''s'\n");
    static const struct {
        const char *text;
        size_t length;
    } expected[] = {{"5", 1},   {"true", 4}, {"null", 4},
                    {"5\n", 2}, {"1 2", 3},  {"\xe2\x82\xac\xf0\x9f\x98\x80\0", 8},
                    {"it's", 4}};
    assert_int_equal(v->count, 7);
    for (size_t i = 0; i < 7; i++) {
        assert_int_equal(v->items[i].type, VALUE_STRING);
        assert_text(&v->items[i], expected[i].text, expected[i].length);
    }
}

static void test_recipe(void **state)
{
    const value *root = good(*state, "# a recipe\n"
                                     "quant: {w_bit: 8, mm_tensor: false, pr: 1.0}\n"
                                     "fallback:\n"
                                     "  disable_level: L5\n"
                                     "  disable_names:\n"
                                     "  - \"model.layers.*.mlp.down_proj\"\n"
                                     "  - lm_head\n"
                                     "run:\n"
                                     "  compat: null\n"
                                     "  max_memory: {cpu: 8GiB, 0: 25GiB}\n");
    assert_int_equal(root->count, 3);
    const value *quant = value_get(root, "quant"), *fallback = value_get(root, "fallback");
    const value *names = value_get(fallback, "disable_names"), *run = value_get(root, "run");
    assert_int_equal(value_get(quant, "w_bit")->integer, 8);
    assert_int_equal(value_get(quant, "mm_tensor")->type, VALUE_BOOL);
    assert_true(value_get(quant, "pr")->number == 1.0);
    assert_text(value_get(fallback, "disable_level"), "L5", 2);
    assert_int_equal(value_get(fallback, "disable_level")->line, 4);
    assert_int_equal(names->count, 2);
    assert_text(&names->items[0], "model.layers.*.mlp.down_proj", 28);
    assert_int_equal(names->items[1].line, 7);
    assert_int_equal(value_get(run, "compat")->type, VALUE_NULL);
    assert_text(value_get(value_get(run, "max_memory"), "0"), "25GiB", 5);
    assert_int_equal(value_get(run, "max_memory")->line, 10);
}

static void test_refused(void **state)
{
    static const struct {
        const char *text;
        int line;
        const char *says;
    } cases[] = {{"a: &x 1\n", 1, "anchors"},
                 {"a: 1\nb: &x [1]\n", 2, "anchors"},
                 {"a: &x {}\n", 1, "anchors"},
                 {"&x a: 1\n", 1, "anchors"},
                 {"a: 1\nb: *x\n", 2, "aliases"},
                 {"a: !!str 1\n", 1, "tags"},
                 {"- 1\n- !x [1]\n", 2, "tags"},
                 {"a: !x {}\n", 1, "tags"},
                 {"!!python/object:os.system a: 1\n", 1, "tags"},
                 {"a: 1\n<<: {b: 2}\n", 2, "merge keys"},
                 {"a: 1\n---\nb: 2\n", 2, "more than one document"},
                 {"---\n---\n", 2, "more than one document"},
                 {"a: 1\nb: 2\na: 3\n", 3, "duplicate key \"a\""},
                 {"{a: 1, \"a\": 2}\n", 1, "duplicate key \"a\""},
                 {"a: 1\n? [b]\n: 2\n", 2, "a key must be a scalar"},
                 {"{[a]: 2}\n", 1, "a key must be a scalar"},
                 {"{{a: 1}: 2}\n", 1, "a key must be a scalar"},
                 {"a: [1,\n", 2, ""},
                 {"a: 1\n b: 2\n", 2, ""},
                 {"a: b: c\n", 1, ""},
                 {"a: 1\n\tb: 2\n", 2, ""},
                 {"a: \"x\n", 2, ""},
                 {"a: \"\\ud800\"\n", 1, ""},
                 {"a: \"\\q\"\n", 1, ""},
                 {"a: 1\nb: \x80\n", 2, ""},
                 {"a: \x01\n", 1, ""},
                 {"a: 1\nb: \xed\xa0\x80\n", 2, ""},
                 {"\xff\xfe\x61", 1, ""},
                 {"]", 1, ""},
                 {"a: @x\n", 1, ""},
                 {"%YAML 3.0\n---\n", 1, ""}};
    fixture *f = *state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        if (parse_yaml(f, cases[i].text, strlen(cases[i].text)) != TARE_E_FORMAT)
            fail_msg("accepted: %s", cases[i].text);
        assert_null(f->root);
        char start[64];
        snprintf(start, sizeof(start), "test.yaml: line %d: ", cases[i].line);
        const char *message = tare_last_error(f->ctx);
        if (strncmp(message, start, strlen(start)) != 0 || !strstr(message, cases[i].says))
            fail_msg("%s: %s", cases[i].text, message);
    }
    assert_int_equal(parse_yaml(f, "a: \0", 4), TARE_E_FORMAT);
}

static void test_limits(void **state)
{
    fixture *f = *state;
    char text[2 * JSON_MAX_DEPTH + 3];
    memset(text, '[', JSON_MAX_DEPTH);
    memset(text + JSON_MAX_DEPTH, ']', JSON_MAX_DEPTH);
    assert_int_equal(parse_yaml(f, text, 2 * JSON_MAX_DEPTH), TARE_OK);
    memset(text, '[', JSON_MAX_DEPTH + 1);
    memset(text + JSON_MAX_DEPTH + 1, ']', JSON_MAX_DEPTH + 1);
    assert_int_equal(parse_yaml(f, text, 2 * JSON_MAX_DEPTH + 2), TARE_E_FORMAT);
    assert_non_null(strstr(tare_last_error(f->ctx), "nested deeper than 64 levels"));

    char *large = malloc(YAML_MAX_SIZE + 1);
    assert_non_null(large);
    memset(large, ' ', YAML_MAX_SIZE + 1);
    assert_int_equal(parse_yaml(f, large, YAML_MAX_SIZE), TARE_OK);
    assert_int_equal(parse_yaml(f, large, YAML_MAX_SIZE + 1), TARE_E_FORMAT);
    assert_non_null(strstr(tare_last_error(f->ctx), "of a YAML file"));
    static const struct {
        const char *again, *message;
    } deep[] = {{"[", "nested deeper than 64 levels"},
                {"- ", "nested deeper than 64 levels"},
                {"{a: ", "nested deeper than 64 levels"},
                {"{", "a key must be a scalar"},
                {"? ", "a key must be a scalar"},
                {"[{", "a key must be a scalar"},
                {"a:\n", "duplicate key"}};
    for (size_t i = 0; i < sizeof(deep) / sizeof(*deep); i++) {
        size_t n = strlen(deep[i].again);
        for (size_t at = 0; at + n <= YAML_MAX_SIZE; at += n)
            memcpy(large + at, deep[i].again, n);
        assert_int_equal(parse_yaml(f, large, YAML_MAX_SIZE / n * n), TARE_E_FORMAT);
        assert_non_null(strstr(tare_last_error(f->ctx), deep[i].message));
    }
    size_t end = 0; /* each map below the one before */
    for (int level = 0; level <= JSON_MAX_DEPTH; level++)
        end += (size_t)sprintf(large + end, "%*sa:\n", level, "");
    assert_int_equal(parse_yaml(f, large, end), TARE_E_FORMAT);
    assert_non_null(strstr(tare_last_error(f->ctx), "nested deeper than 64 levels"));
    free(large);
}

static void test_file(void **state)
{
    fixture *f = *state;
    char path[] = "/tmp/tare_test_yaml_XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, "a: 1\n", 5), 5);
    close(fd);
    assert_int_equal(yaml_parse_file(f->ctx, &f->arena, path, 5, &f->root), TARE_OK);
    assert_int_equal(value_get(f->root, "a")->integer, 1);
    assert_int_not_equal(yaml_parse_file(f->ctx, &f->arena, path, 4, &f->root), TARE_OK);
    assert_null(f->root);
    unlink(path);
    assert_int_equal(yaml_parse_file(f->ctx, &f->arena, path, 5, &f->root), TARE_E_IO);
    assert_null(f->root);
}

static void test_out_of_memory(void **state)
{
    (void)state;
    char text[2048] = "list:\n";
    for (int i = 0; i < 30; i++)
        sprintf(text + strlen(text), "- {a%d: %d, b: text, c: [x]}\n", i, i);
    for (int i = 0; i < 20; i++)
        sprintf(text + strlen(text), "key%d: .5\n", i);
    memory_fault fault = {0};
    tare_context *ctx = fault_context(&fault);
    size_t n = 0;
    do {
        fault.left = n++;
        fault.hit = false;
        arena a;
        arena_init(&a, ctx);
        const value *root;
        tare_status status = yaml_parse(ctx, &a, text, strlen(text), "t", &root);
        assert_int_equal(status, fault.hit ? TARE_E_MEMORY : TARE_OK);
        arena_free(&a);
        assert_int_equal(tare_memory_used(ctx), 0);
    } while (fault.hit);
    assert_true(n > 5);
    tare_context_free(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_empty),
        TEST(test_words),
        TEST(test_integers),
        TEST(test_floats),
        TEST(test_plain_strings),
        TEST(test_quoted),
        TEST(test_recipe),
        TEST(test_refused),
        TEST(test_limits),
        TEST(test_file),
        cmocka_unit_test(test_out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
