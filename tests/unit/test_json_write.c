/* JSON writing. Expected texts are what Python's json.dumps gives, or by hand. */
#include <math.h>

#include "json_fixture.h"

static void assert_written(buffer *out, const char *expected)
{
    assert_int_equal(out->status, TARE_OK);
    assert_string_equal(out->data, expected);
    buffer_free(out);
}

/* Python: json.dumps(chr(34)+"\\/\b\f\n\r\t\x00\x1f\x7f é€😀") */
static void test_write_string(void **state)
{
    buffer out;
    buffer_init(&out, ((fixture *)*state)->ctx);
    static const char text[] = "\"\\/\b\f\n\r\t\0\x1f\x7f \xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80";
    json_write_string(&out, text, sizeof(text) - 1);
    assert_written(&out, "\"\\\"\\\\/\\b\\f\\n\\r\\t\\u0000\\u001f\\u007f "
                         "\\u00e9\\u20ac\\ud83d\\ude00\"");
    json_write_string(&out, "a\x80z\xf0\x9f\x98", 6);
    assert_written(&out, "\"a\\ufffdz\\ufffd\\ufffd\\ufffd\"");
}

static void test_write_value(void **state)
{
    fixture *f = *state;
    static const char source[] =
        "{\"b\":[1,-0.50,{}],\"a\":{\"x\":[],\"y\":null},\"s\":\"\\u00e9\",\"t\":true,\"f\":false}";
    buffer out;
    buffer_init(&out, f->ctx);
    /* Python: json.dumps(json.loads(source)), but for -0.50, which is kept as written. */
    json_write_value(&out, parse(f, source), 0, 0);
    assert_written(&out, "{\"b\": [1, -0.50, {}], \"a\": {\"x\": [], \"y\": null}, "
                         "\"s\": \"\\u00e9\", \"t\": true, \"f\": false}");
    /* Python: json.dumps(…, indent=2) */
    json_write_value(&out, f->root, 2, 0);
    assert_written(&out,
                   "{\n  \"b\": [\n    1,\n    -0.50,\n    {}\n  ],\n  \"a\": {\n    \"x\": [],\n"
                   "    \"y\": null\n  },\n  \"s\": \"\\u00e9\",\n  \"t\": true,\n"
                   "  \"f\": false\n}");
    json_write_value(&out, value_get(f->root, "a"), 2, 1);
    assert_written(&out, "{\n    \"x\": [],\n    \"y\": null\n  }");
}

static void test_write_double(void **state)
{
    /* The shortest decimals, as Python's repr gives their digits. */
    static const struct {
        double number;
        const char *text;
    } cases[] = {{0, "0"},
                 {-0.0, "-0"},
                 {1, "1"},
                 {-2.5, "-2.5"},
                 {0.1, "0.1"},
                 {0.30000000000000004, "0.30000000000000004"},
                 {1.0 / 3, "0.3333333333333333"},
                 {123456789012345680.0, "1.2345678901234568e+17"},
                 {1e22, "1e+22"},
                 {5e-324, "5e-324"},
                 {2.2250738585072014e-308, "2.2250738585072014e-308"},
                 {1.7976931348623157e308, "1.7976931348623157e+308"},
                 {0.00390625, "0.00390625"},
                 {NAN, "NaN"},
                 {INFINITY, "Infinity"},
                 {-INFINITY, "-Infinity"}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        buffer out;
        buffer_init(&out, ((fixture *)*state)->ctx);
        json_write_double(&out, cases[i].number);
        assert_written(&out, cases[i].text);
    }
}

/* What is written reads back as the same double, to the bit; over numbers of a fixed sequence. */
static void test_double_round_trip(void **state)
{
    fixture *f = *state;
    uint64_t bits = 0x9e3779b97f4a7c15;
    for (int i = 0; i < 20000; i++) {
        double number;
        bits = bits * 6364136223846793005 + 1442695040888963407;
        memcpy(&number, &bits, sizeof(number));
        if (!isfinite(number))
            continue;
        buffer out;
        buffer_init(&out, f->ctx);
        json_write_double(&out, number);
        json_token token = {.text = out.data, .length = out.length};
        assert_int_equal(json_number_length(out.data, out.length), out.length);
        json_number_convert(&token);
        assert_memory_equal(&token.number, &number, sizeof(number));
        buffer_free(&out);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_write_string),
        TEST(test_write_value),
        TEST(test_write_double),
        TEST(test_double_round_trip),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
