/* JSON: what is accepted and what is refused (RFC 8259 and Python's dialect), messages, the pull
 * reader. */
#include <math.h>

#include "json_fixture.h"

typedef struct text_case {
    const char *text;
    size_t length;
} text_case;

#define CASE(literal)                                                                              \
    {                                                                                              \
        literal, sizeof(literal) - 1                                                               \
    }

static const text_case accepted[] = {
    CASE("[]"),
    CASE("{}"),
    CASE(" [ ] "),
    CASE("\t{\r\n}\n"),
    CASE("null"),
    CASE("true"),
    CASE("false"),
    CASE("\"\""),
    CASE("0"),
    CASE("-0"),
    CASE("-0.0"),
    CASE("1"),
    CASE("-1"),
    CASE("10"),
    CASE("1.5"),
    CASE("0.5"),
    CASE("1e1"),
    CASE("1E1"),
    CASE("1e+1"),
    CASE("1e-1"),
    CASE("0e1"),
    CASE("0e+1"),
    CASE("1.0e10"),
    CASE("123.456e78"),
    CASE("-123"),
    CASE("9223372036854775807"),
    CASE("-9223372036854775808"),
    CASE("9223372036854775808"),
    CASE("1e-999"),
    CASE("0.000000000000000000000000000000000000000000000000000000001"),
    CASE("[1]"),
    CASE("[1,2]"),
    CASE("[ 1 , 2 ]"),
    CASE("[[]]"),
    CASE("[[],[]]"),
    CASE("[{}]"),
    CASE("[null,1,\"1\",{}]"),
    CASE("[\"a\"]"),
    CASE("[false]"),
    CASE("{\"a\":1}"),
    CASE("{ \"a\" : 1 }"),
    CASE("{\"a\":1,\"b\":2}"),
    CASE("{\"\":0}"),
    CASE("{\"a\":{\"a\":[]}}"),
    CASE("{\"a\\u0000b\":1,\"a\":2}"),
    CASE("\"\\\"\\\\\\/\\b\\f\\n\\r\\t\""),
    CASE("\"\\u0041\\u00e9\\u20AC\""),
    CASE("\"\\uD83D\\uDE00\""),
    CASE("\"\\u0000\""),
    CASE("\"\\uFFFF\""),
    CASE("\"/\""),
    CASE("\"\x7f\""),
    CASE("\"\xc3\xa9\""),
    CASE("\"\xe2\x82\xac\""),
    CASE("\"\xf0\x9f\x98\x80\""),
    CASE("\"\xef\xbf\xbf\""),
    CASE("\"\xf4\x8f\xbf\xbf\""),
    CASE("\"\xe2\x80\xa8\""),
    CASE("\"/* no comment */\""),
    CASE("[\"\\\"\"]"),
    CASE("[\"\\\\\"]"),
};

static const text_case refused[] = {
    /* structure */
    CASE(""),
    CASE(" "),
    CASE("["),
    CASE("]"),
    CASE("{"),
    CASE("}"),
    CASE("[,]"),
    CASE("[1,]"),
    CASE("[,1]"),
    CASE("[1,,2]"),
    CASE("[1 2]"),
    CASE("[1:2]"),
    CASE("[1"),
    CASE("[1,"),
    CASE("[1}"),
    CASE("{1}"),
    CASE("{\"a\"}"),
    CASE("{\"a\":}"),
    CASE("{\"a\":1,}"),
    CASE("{,\"a\":1}"),
    CASE("{\"a\":1,,\"b\":2}"),
    CASE("{\"a\" 1}"),
    CASE("{\"a\"::1}"),
    CASE("{\"a\":1]"),
    CASE("{\"a\":1"),
    CASE("{\"a\":"),
    CASE("{\"a\""),
    CASE("{\"a"),
    CASE("{a:1}"),
    CASE("{'a':1}"),
    CASE("{1:1}"),
    CASE("{null:1}"),
    CASE("{[]:1}"),
    CASE("{\"a\":1 \"b\":2}"),
    CASE("[]]"),
    CASE("{}}"),
    CASE("[] []"),
    CASE("1 2"),
    CASE("[]x"),
    CASE("[]\0"),
    CASE("\0"),
    CASE("[\0]"),
    CASE("[1\0]"),
    CASE("\f[]"),
    CASE("\v[]"),
    CASE("\xc2\xa0[]"),
    CASE("[\xe2\x81\xa0]"),
    CASE("\xef\xbb\xbf[]"),
    CASE("\xff\xfe[\0]\0"),
    CASE("[/**/]"),
    CASE("[]//"),
    CASE("[]#"),
    CASE("*"),
    /* duplicate keys, also when spelled otherwise */
    CASE("{\"a\":1,\"a\":1}"),
    CASE("{\"a\":1,\"b\":2,\"\\u0061\":3}"),
    /* words */
    CASE("nul"),
    CASE("nulll"),
    CASE("Null"),
    CASE("NULL"),
    CASE("tru"),
    CASE("True"),
    CASE("fals"),
    CASE("falsey"),
    CASE("undefined"),
    CASE("a"),
    CASE("[a]"),
    /* numbers */
    CASE("-"),
    CASE("+1"),
    CASE("+"),
    CASE("01"),
    CASE("-01"),
    CASE("00"),
    CASE("1."),
    CASE(".5"),
    CASE("-.5"),
    CASE("1.e1"),
    CASE("1e"),
    CASE("1e+"),
    CASE("1e-"),
    CASE("1ee1"),
    CASE("1e1.5"),
    CASE("1.2.3"),
    CASE("--1"),
    CASE("- 1"),
    CASE("1 000"),
    CASE("1,000"),
    CASE("1_000"),
    CASE("0x10"),
    CASE("0b1"),
    CASE("1a"),
    CASE("1L"),
    CASE("1.5f"),
    CASE("0e"),
    CASE("0.e1"),
    CASE("1e999"),
    CASE("-1e999"),
    CASE("\xef\xbc\x91"),
    CASE("NaN"),
    CASE("nan"),
    CASE("Infinity"),
    CASE("-Infinity"),
    CASE("Inf"),
    CASE("[NaN]"),
    CASE("[-"),
    CASE("[-]"),
    CASE("[-a]"),
    /* strings */
    CASE("\""),
    CASE("'a'"),
    CASE("\"a"),
    CASE("\"\\\""),
    CASE("\"\\"),
    CASE("\"\\u"),
    CASE("\"\\u12"),
    CASE("\"\\u12\""),
    CASE("\"\\u123\""),
    CASE("\"\\u12G4\""),
    CASE("\"\\U0041\""),
    CASE("\"\\x41\""),
    CASE("\"\\a\""),
    CASE("\"\\'\""),
    CASE("\"\\0\""),
    CASE("\"\\ \""),
    CASE("\"\\\t\""),
    CASE("\"\\\xc3\xa9\""),
    CASE("\"\\\n\""),
    CASE("\"\n\""),
    CASE("\"\r\""),
    CASE("\"\t\""),
    CASE("\"\0\""),
    CASE("\"\x01\""),
    CASE("\"\x1f\""),
    CASE("\"a\"b\""),
    CASE("\"\\u 041\""),
    CASE("\"\\u-041\""),
    CASE("\"\\u+041\""),
    /* surrogates */
    CASE("\"\\ud800\""),
    CASE("\"\\udc00\""),
    CASE("\"\\ud800a\""),
    CASE("\"\\ud800\\n\""),
    CASE("\"\\ud800\\u0041\""),
    CASE("\"\\ud800\\ud800\""),
    CASE("\"\\udc00\\ud800\""),
    CASE("\"\\ud800\\u\""),
    CASE("\"\\ud800\\udc0\""),
    /* UTF-8: stray and missing continuations, overlong forms, surrogates, beyond U+10FFFF */
    CASE("\"\x80\""),
    CASE("\"\xff\""),
    CASE("\"\xc3\""),
    CASE("\"\xc3(\""),
    CASE("\"\xe2\x82\""),
    CASE("\"\xe2(\x82\""),
    CASE("\"\xf0\x9f\x98\""),
    CASE("\"\xc0\x80\""),
    CASE("\"\xc1\xbf\""),
    CASE("\"\xe0\x80\xaf\""),
    CASE("\"\xf0\x80\x80\xaf\""),
    CASE("\"\xed\xa0\x80\""),
    CASE("\"\xf4\x90\x80\x80\""),
    CASE("\"\xf8\x88\x80\x80\x80\""),
    CASE("{\"\xc3\":1}"),
};

static void test_accepts(void **state)
{
    for (size_t i = 0; i < sizeof(accepted) / sizeof(*accepted); i++) {
        if (parse_bytes(*state, accepted[i].text, accepted[i].length, JSON_STRICT) != TARE_OK)
            fail_msg("%s refused: %s", accepted[i].text, tare_last_error(((fixture *)*state)->ctx));
    }
}

static void test_refuses(void **state)
{
    for (size_t i = 0; i < sizeof(refused) / sizeof(*refused); i++)
        assert_refused(*state, refused[i].text, refused[i].length, JSON_STRICT);
}

/* No text that breaks off early is whole, whichever byte it ends at. */
static void test_truncated(void **state)
{
    const char text[] =
        "{\"k\\u00e9y\": [1, -2.5e+3, \"\\ud83d\\ude00\xe2\x82\xac\", true, null, {}]}";
    for (size_t n = 0; n < sizeof(text) - 1; n++)
        assert_refused(*state, text, n, JSON_STRICT);
    parse(*state, text);
}

static void test_depth(void **state)
{
    char text[2 * JSON_MAX_DEPTH + 3];
    memset(text, '[', JSON_MAX_DEPTH);
    memset(text + JSON_MAX_DEPTH, ']', JSON_MAX_DEPTH);
    text[2 * JSON_MAX_DEPTH] = 0;
    const value *v = parse(*state, text);
    for (int depth = 1; depth < JSON_MAX_DEPTH; depth++) {
        assert_int_equal(v->count, 1);
        v = v->items;
    }
    assert_int_equal(v->type, VALUE_LIST);
    assert_int_equal(v->count, 0);

    memset(text, '[', JSON_MAX_DEPTH + 1);
    memset(text + JSON_MAX_DEPTH + 1, ']', JSON_MAX_DEPTH + 1);
    assert_refused(*state, text, sizeof(text) - 1, JSON_STRICT);

    const size_t many = 1 << 20;
    char *deep = malloc(many);
    assert_non_null(deep);
    memset(deep, '[', many);
    assert_int_equal(parse_bytes(*state, deep, many, JSON_STRICT), TARE_E_FORMAT);
    free(deep);
}

static void test_python_dialect(void **state)
{
    fixture *f = *state;
    static const struct {
        const char *text;
        const char *string;
    } strings[] = {{"\"\\ud800\"", "\xef\xbf\xbd"},
                   {"\"\\udc00\\ud800\"", "\xef\xbf\xbd\xef\xbf\xbd"},
                   {"\"\\ud800x\"", "\xef\xbf\xbdx"},
                   {"\"\\ud800\\u0041\"", "\xef\xbf\xbd"
                                          "A"},
                   {"\"\\ud83d\\ude00\"", "\xf0\x9f\x98\x80"},
                   {"\"\\ud800\\ud83d\\ude00\"", "\xef\xbf\xbd\xf0\x9f\x98\x80"}};
    for (size_t i = 0; i < sizeof(strings) / sizeof(*strings); i++) {
        assert_int_equal(parse_bytes(f, strings[i].text, strlen(strings[i].text), JSON_PYTHON),
                         TARE_OK);
        assert_text(f->root, strings[i].string, strlen(strings[i].string));
    }
    const char numbers[] = "[NaN, Infinity, -Infinity, -1, 1e999]";
    assert_int_equal(parse_bytes(f, numbers, strlen(numbers), JSON_PYTHON), TARE_OK);
    const value *items = f->root->items;
    assert_int_equal(f->root->count, 5);
    assert_true(isnan(items[0].number) && !items[0].is_integer);
    assert_text(&items[0], "NaN", 3);
    assert_true(items[1].number == INFINITY && items[2].number == -INFINITY);
    assert_text(&items[2], "-Infinity", 9);
    assert_true(items[3].is_integer && items[3].integer == -1);
    assert_true(items[4].number == INFINITY);

    static const char *const still_refused[] = {"nan",
                                                "+Infinity",
                                                "-NaN",
                                                "Inf",
                                                "NaNs",
                                                "Infinit",
                                                "-Infinit",
                                                "\"\\ud8\"",
                                                "{NaN: 1}",
                                                "[1,]",
                                                "\"\x80\"",
                                                "\"\n\"",
                                                "{\"\\ud800\":1,\"\\udfff\":2}"};
    for (size_t i = 0; i < sizeof(still_refused) / sizeof(*still_refused); i++)
        assert_refused(f, still_refused[i], strlen(still_refused[i]), JSON_PYTHON);
}

static void test_error_messages(void **state)
{
    static const struct {
        const char *text, *message;
    } cases[] = {
        {"{\n\"a\": 1\n\"b\": 2}", "test.json: line 3: expected ',' or '}', found '\"'"},
        {"[\n\n", "test.json: line 3: expected a value, but the text ends"},
        {"[1 \x01]", "test.json: line 1: expected ',' or ']', found byte 0x01"},
        {"{\"a\": 1,\n\"a\": 2}", "test.json: line 2: duplicate key \"a\""},
        {"\n\"\\ud800\"", "test.json: line 2: a \\u surrogate without its partner"},
        {"\"\t\"", "test.json: line 1: control character 0x09 in a string"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        assert_refused(*state, cases[i].text, strlen(cases[i].text), JSON_STRICT);
        assert_string_equal(tare_last_error(((fixture *)*state)->ctx), cases[i].message);
    }
}

static void test_reader(void **state)
{
    fixture *f = *state;
    static const char text[] = "{\"a\": [1, {\"b\": [[], \"]\"]}, 2],\n \"c\": null, \"d\": 3}";
    json_reader *r;
    json_token t;
    assert_int_equal(json_reader_create(f->ctx, text, strlen(text), "r", JSON_STRICT, &r), TARE_OK);
    assert_int_equal(json_next(r, &t), TARE_OK);
    assert_int_equal(t.kind, JSON_MAP_BEGIN);
    assert_int_equal(json_next(r, &t), TARE_OK);
    assert_int_equal(t.kind, JSON_KEY);
    assert_string_equal(t.text, "a");
    assert_int_equal(json_next(r, &t), TARE_OK);
    assert_int_equal(t.kind, JSON_LIST_BEGIN);
    assert_int_equal(json_skip(r), TARE_OK);
    assert_int_equal(json_skip(r), TARE_OK);
    assert_int_equal(json_next(r, &t), TARE_OK);
    assert_int_equal(t.kind, JSON_NUMBER);
    assert_int_equal(t.integer, 2);
    assert_int_equal(json_next(r, &t), TARE_OK);
    assert_int_equal(t.kind, JSON_LIST_END);
    assert_int_equal(json_next(r, &t), TARE_OK);
    assert_int_equal(t.kind, JSON_KEY);
    assert_int_equal(t.line, 2);
    assert_int_equal(json_skip(r), TARE_OK);
    assert_int_equal(json_next(r, &t), TARE_OK);
    assert_string_equal(t.text, "d");
    assert_int_equal(json_skip(r), TARE_OK);
    assert_int_equal(json_next(r, &t), TARE_OK);
    assert_int_equal(t.kind, JSON_MAP_END);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(json_next(r, &t), TARE_OK);
        assert_int_equal(t.kind, JSON_END);
    }
    assert_int_equal(json_skip(r), TARE_E_FORMAT);
    assert_int_equal(json_next(r, &t), TARE_E_FORMAT);
    json_reader_free(r);
    json_reader_free(NULL);
}

/* An error stays: the reader does not find its feet again behind it. */
static void test_reader_error_sticks(void **state)
{
    fixture *f = *state;
    json_reader *r;
    json_token t;
    assert_int_equal(json_reader_create(f->ctx, "[x]", 3, "r", JSON_STRICT, &r), TARE_OK);
    assert_int_equal(json_next(r, &t), TARE_OK);
    for (int i = 0; i < 3; i++)
        assert_int_equal(json_next(r, &t), TARE_E_FORMAT);
    json_reader_free(r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_accepts),        TEST(test_refuses),
        TEST(test_truncated),      TEST(test_depth),
        TEST(test_python_dialect), TEST(test_error_messages),
        TEST(test_reader),         TEST(test_reader_error_sticks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
