/* JSON of data sets: nothing that Python keeps is lost. Expected texts are those of Python 3.11:
 * json.dumps(json.loads(source)), and with indent=2. */
#include <math.h>
#include <stdio.h>

#include "json_fixture.h"

static void assert_dumped(fixture *f, const char *source, size_t length, const char *expected)
{
    buffer out;
    if (parse_bytes(f, source, length, JSON_DATA) != TARE_OK)
        fail_msg("%s refused: %s", source, tare_last_error(f->ctx));
    buffer_init(&out, f->ctx);
    json_write_data(&out, f->root, 0, 0);
    assert_int_equal(out.status, TARE_OK);
    assert_string_equal(out.data, expected);
    buffer_free(&out);
}

static void test_round_trip(void **state)
{
    static const char *const cases[][2] = {
        {"[NaN, Infinity, -Infinity, 1e400, -1e400]",
         "[NaN, Infinity, -Infinity, Infinity, -Infinity]"},
        {"[0, -0, 12345678901234567890123456789, -7]", "[0, 0, 12345678901234567890123456789, -7]"},
        {"[1.0, -0.0, 1E5, 1e16, 1e15, 0.0001, 0.00001, 1.50, 15e299, 5E-324, 1e22]",
         "[1.0, -0.0, 100000.0, 1e+16, 1000000000000000.0, 0.0001, 1e-05, 1.5, 1.5e+300, 5e-324, "
         "1e+22]"},
        {"[\"\\ud800\", \"\\udfff\\ud800x\", \"\\ud83d\\ude00\", \"\\uDEAD\"]",
         "[\"\\ud800\", \"\\udfff\\ud800x\", \"\\ud83d\\ude00\", \"\\udead\"]"},
        {"{\"a\": 1, \"b\": 2, \"a\": {\"x\": 1, \"x\": []}, \"c\": 3, \"b\": 4}",
         "{\"a\": {\"x\": []}, \"b\": 4, \"c\": 3}"},
        {"{\"\\ud800\": \"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u0000\\u001f\x7f\xc3\xa9\"}",
         "{\"\\ud800\": \"\\\"\\\\/\\b\\f\\n\\r\\t\\u0000\\u001f\\u007f\\u00e9\"}"},
        {" [ ] ", "[]"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_dumped(*state, cases[i][0], strlen(cases[i][0]), cases[i][1]);
}

/* Many keys go through another path than few. */
static void test_many_duplicates(void **state)
{
    fixture *f = *state;
    char source[4096] = "{", *p = source + 1;
    for (int i = 0; i < 200; i++)
        p += sprintf(p, "%s\"k%d\": %d", i ? ", " : "", i % 60, i);
    strcpy(p, "}");
    assert_int_equal(parse_bytes(f, source, strlen(source), JSON_DATA), TARE_OK);
    assert_int_equal(f->root->count, 60);
    for (int i = 0; i < 60; i++) {
        char key[16];
        snprintf(key, sizeof key, "k%d", i);
        assert_text(&f->root->keys[i], key, strlen(key));
        assert_int_equal(f->root->items[i].integer, i < 20 ? 180 + i : 120 + i);
    }
}

static void test_indented(void **state)
{
    fixture *f = *state;
    buffer out;
    const char *source = "[{\"a\": [], \"b\": [1.0, {}]}]";
    assert_int_equal(parse_bytes(f, source, strlen(source), JSON_DATA), TARE_OK);
    buffer_init(&out, f->ctx);
    json_write_data(&out, f->root, 2, 0);
    assert_string_equal(out.data, "[\n  {\n    \"a\": [],\n    \"b\": [\n      1.0,\n      {}\n"
                                  "    ]\n  }\n]");
    buffer_free(&out);
}

static void test_depth(void **state)
{
    char text[2 * JSON_DATA_MAX_DEPTH + 3];
    memset(text, '[', JSON_DATA_MAX_DEPTH);
    memset(text + JSON_DATA_MAX_DEPTH, ']', JSON_DATA_MAX_DEPTH);
    assert_int_equal(parse_bytes(*state, text, 2 * JSON_DATA_MAX_DEPTH, JSON_DATA), TARE_OK);
    memset(text, '[', JSON_DATA_MAX_DEPTH + 1);
    memset(text + JSON_DATA_MAX_DEPTH + 1, ']', JSON_DATA_MAX_DEPTH + 1);
    assert_refused(*state, text, 2 * JSON_DATA_MAX_DEPTH + 2, JSON_DATA);
}

/* Without a name the message is the bare reason. */
static void test_bare_message(void **state)
{
    fixture *f = *state;
    const value *root;
    assert_int_equal(json_parse(f->ctx, &f->arena, "[1,", 3, NULL, JSON_DATA, &root),
                     TARE_E_FORMAT);
    assert_string_equal(tare_last_error(f->ctx), "expected a value, but the text ends");
}

/* Python's repr. The powers of two are where the shortest decimal is not the nearest one. */
static void test_repr(void **state)
{
    static const struct {
        double number;
        const char *text;
    } cases[] = {{0, "0.0"},
                 {-0.0, "-0.0"},
                 {1, "1.0"},
                 {-2.5, "-2.5"},
                 {0.1, "0.1"},
                 {123456789012345680.0, "1.2345678901234568e+17"},
                 {9007199254740993.0, "9007199254740992.0"},
                 {0.00012345, "0.00012345"},
                 {-0.000012345, "-1.2345e-05"},
                 {1.5e-7, "1.5e-07"},
                 {1e100, "1e+100"},
                 {0x1p-1074, "5e-324"},
                 {0x1p-1017, "7.120236347223045e-307"},
                 {0x1p-44, "5.684341886080802e-14"},
                 {0x1p-24, "5.960464477539063e-08"},
                 {0x1p89, "6.189700196426902e+26"},
                 {0x1p976, "6.386688990511104e+293"},
                 {1.7976931348623157e308, "1.7976931348623157e+308"},
                 {NAN, "nan"},
                 {INFINITY, "inf"},
                 {-INFINITY, "-inf"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        buffer out;
        buffer_init(&out, ((fixture *)*state)->ctx);
        json_write_repr(&out, cases[i].number);
        assert_string_equal(out.data, cases[i].text);
        buffer_free(&out);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_round_trip), TEST(test_many_duplicates), TEST(test_indented),
        TEST(test_depth),      TEST(test_bare_message),    TEST(test_repr),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
