/* JSON trees: values, reads of members, files, memory. Expected values by hand, from RFC 8259 and
 * RFC 3629. */
#include <math.h>
#include <stdio.h>
#include <unistd.h>

#include "json_fixture.h"

static void test_strings(void **state)
{
    fixture *f = *state;
    /* U+0041, U+00E9, U+20AC, U+1F600 in UTF-8, by the table of RFC 3629. */
    assert_text(parse(f, "\"\\u0041\\u00e9\\u20ac\\ud83d\\ude00\""),
                "A\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80", 10);
    assert_text(parse(f, "\"\\udbff\\udfff\\ud800\\udc00\""), "\xf4\x8f\xbf\xbf\xf0\x90\x80\x80",
                8);
    assert_text(parse(f, "\"\\\"\\\\\\/\\b\\f\\n\\r\\t\""), "\"\\/\b\f\n\r\t", 8);
    assert_text(parse(f, "\"a\\u0000b\""), "a\0b", 3);
    assert_text(parse(f, "\"\\u07ff\\u0800\\uffff\""), "\xdf\xbf\xe0\xa0\x80\xef\xbf\xbf", 8);
    assert_text(parse(f, "\"\""), "", 0);
}

static void test_integers(void **state)
{
    static const struct {
        const char *text;
        int64_t integer;
    } cases[] = {{"0", 0},
                 {"-0", 0},
                 {"7", 7},
                 {"-42", -42},
                 {"4294967296", 4294967296},
                 {"9223372036854775807", INT64_MAX},
                 {"-9223372036854775807", -INT64_MAX},
                 {"-9223372036854775808", INT64_MIN}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        const value *v = parse(*state, cases[i].text);
        assert_int_equal(v->type, VALUE_NUMBER);
        assert_true(v->is_integer);
        assert_true(v->integer == cases[i].integer);
        assert_true(v->number == (double)cases[i].integer);
        assert_text(v, cases[i].text, strlen(cases[i].text));
    }
}

static void test_floats(void **state)
{
    static const struct {
        const char *text;
        double number;
    } cases[] = {{"1.0", 1},
                 {"-0.0", 0},
                 {"1e2", 100},
                 {"2.5E-1", 0.25},
                 {"0.1", 0x1.999999999999ap-4},
                 {"1e-999", 0},
                 {"5e-324", 0x1p-1074},
                 {"1.7976931348623157e308", 0x1.fffffffffffffp+1023},
                 {"9223372036854775808", 0x1p63},
                 {"-9223372036854775809", -0x1p63},
                 {"18446744073709551616", 0x1p64},
                 {"92233720368547758070", 92233720368547758070.0}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        const value *v = parse(*state, cases[i].text);
        assert_int_equal(v->type, VALUE_NUMBER);
        assert_false(v->is_integer);
        assert_true(v->number == cases[i].number);
        assert_text(v, cases[i].text, strlen(cases[i].text));
    }
    assert_true(signbit(parse(*state, "-0.0")->number));
}

static void test_tree(void **state)
{
    const value *root = parse(*state, "{\n \"a\": [1, 2.5,\n  \"x\"],\n \"b\": {},\n \"c\": true, "
                                      "\"d\": null,\n\n \"e\": false\n}\n");
    assert_int_equal(root->type, VALUE_MAP);
    assert_int_equal(root->count, 5);
    assert_int_equal(root->line, 1);
    static const char *const names[] = {"a", "b", "c", "d", "e"};
    static const int lines[] = {2, 4, 5, 5, 7};
    for (size_t i = 0; i < 5; i++) {
        assert_int_equal(root->keys[i].type, VALUE_STRING);
        assert_text(&root->keys[i], names[i], 1);
        assert_int_equal(root->keys[i].line, lines[i]);
        assert_ptr_equal(value_get(root, names[i]), &root->items[i]);
    }
    const value *a = value_get(root, "a");
    assert_int_equal(a->type, VALUE_LIST);
    assert_int_equal(a->count, 3);
    assert_int_equal(a->items[0].integer, 1);
    assert_true(a->items[1].number == 2.5);
    assert_text(&a->items[2], "x", 1);
    assert_int_equal(a->items[2].line, 3);
    assert_int_equal(value_get(root, "b")->type, VALUE_MAP);
    assert_int_equal(value_get(root, "b")->count, 0);
    assert_true(value_get(root, "c")->boolean);
    assert_int_equal(value_get(root, "d")->type, VALUE_NULL);
    assert_int_equal(value_get(root, "e")->type, VALUE_BOOL);
    assert_false(value_get(root, "e")->boolean);
    assert_null(value_get(root, "f"));
    assert_null(value_get(root, ""));
    assert_null(value_get(NULL, "a"));
    assert_null(value_get(a, "a"));
}

/* Keys of more than one hash table's first size, the last of them a duplicate. */
static void test_many_keys(void **state)
{
    fixture *f = *state;
    enum { KEYS = 20000 };
    buffer text;
    buffer_init(&text, f->ctx);
    for (int duplicate = 0; duplicate < 2; duplicate++) {
        text.length = 0;
        buffer_puts(&text, "{");
        for (int i = 0; i < KEYS; i++)
            buffer_printf(&text, "\n\"key%d\":%d,", i, 3 * i);
        buffer_printf(&text, "\n\"key%d\":0}", duplicate ? KEYS / 2 : KEYS);
        assert_int_equal(text.status, TARE_OK);
        if (duplicate) {
            assert_refused(f, text.data, text.length, JSON_STRICT);
            assert_string_equal(tare_last_error(f->ctx),
                                "test.json: line 20002: duplicate key \"key10000\"");
        } else {
            parse(f, text.data);
            assert_int_equal(f->root->count, KEYS + 1);
            assert_int_equal(value_get(f->root, "key12345")->integer, 37035);
        }
    }
    buffer_free(&text);
}

static void test_typed_reads(void **state)
{
    fixture *f = *state;
    const value *map = parse(
        f, "{\"size\": 4096, \"minus\": -1, \"float\": 1.5, \"big\": 1e300, "
           "\"yes\": true, \"name\": \"x\", \"null\": null, \"cut\": \"a\\u0000b\", "
           "\"whole\": 2.0}");
    size_t size = 1;
    double number = 1;
    bool flag = false;
    const char *text = "old";
    assert_int_equal(value_get_size(f->ctx, map, "w", "size", &size), TARE_OK);
    assert_int_equal(size, 4096);
    assert_int_equal(value_get_double(f->ctx, map, "w", "size", &number), TARE_OK);
    assert_true(number == 4096);
    assert_int_equal(value_get_double(f->ctx, map, "w", "float", &number), TARE_OK);
    assert_true(number == 1.5);
    assert_int_equal(value_get_bool(f->ctx, map, "w", "yes", &flag), TARE_OK);
    assert_true(flag);
    assert_int_equal(value_get_string(f->ctx, map, "w", "name", &text), TARE_OK);
    assert_string_equal(text, "x");

    static const char *const unset[] = {"absent", "null"};
    for (int i = 0; i < 2; i++) {
        assert_int_equal(value_get_size(f->ctx, map, "w", unset[i], &size), TARE_OK);
        assert_int_equal(value_get_double(f->ctx, map, "w", unset[i], &number), TARE_OK);
        assert_int_equal(value_get_bool(f->ctx, map, "w", unset[i], &flag), TARE_OK);
        assert_int_equal(value_get_string(f->ctx, map, "w", unset[i], &text), TARE_OK);
    }
    assert_int_equal(size, 4096);
    assert_string_equal(text, "x");

    static const char *const no_size[] = {"minus", "float", "big", "yes", "name", "whole"};
    for (int i = 0; i < 6; i++) {
        char message[64];
        assert_int_equal(value_get_size(f->ctx, map, "w", no_size[i], &size), TARE_E_FORMAT);
        snprintf(message, sizeof message, "w: key \"%s\" must be a whole number, 0 or more",
                 no_size[i]);
        assert_string_equal(tare_last_error(f->ctx), message);
    }
    assert_int_equal(value_get_double(f->ctx, map, "w", "name", &number), TARE_E_FORMAT);
    assert_string_equal(tare_last_error(f->ctx), "w: key \"name\" must be a finite number");
    assert_int_equal(value_get_bool(f->ctx, map, "w", "size", &flag), TARE_E_FORMAT);
    assert_string_equal(tare_last_error(f->ctx), "w: key \"size\" must be true or false");
    assert_int_equal(value_get_string(f->ctx, map, "w", "cut", &text), TARE_E_FORMAT);
    assert_string_equal(tare_last_error(f->ctx), "w: key \"cut\" must be a string");
    assert_int_equal(value_get_string(f->ctx, map, "w", "yes", &text), TARE_E_FORMAT);
    assert_string_equal(tare_last_error(f->ctx), "w: key \"yes\" must be a string");
    assert_int_equal(size, 4096);
}

static void test_file(void **state)
{
    fixture *f = *state;
    char path[] = "/tmp/tare_test_json_XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, "{\"a\": 1}\n", 9), 9);
    close(fd);
    assert_int_equal(json_parse_file(f->ctx, &f->arena, path, 9, &f->root), TARE_OK);
    assert_int_equal(value_get(f->root, "a")->integer, 1);
    assert_int_not_equal(json_parse_file(f->ctx, &f->arena, path, 8, &f->root), TARE_OK);
    assert_null(f->root);
    unlink(path);
    assert_int_equal(json_parse_file(f->ctx, &f->arena, path, 9, &f->root), TARE_E_IO);
    assert_null(f->root);
    assert_non_null(strstr(tare_last_error(f->ctx), path));
}

/* Parses and writes with the n-th allocation failing, for each n until none fails. */
static void test_out_of_memory(void **state)
{
    (void)state;
    char text[4096] = "{\"long\": \"";
    memset(text + strlen(text), 'x', 700);
    for (int i = 0; i < 40; i++)
        sprintf(text + strlen(text), "%s%d\": [%d, \"\\u00e9\", {\"a\": null}]",
                i ? ", \"k" : "\", \"k", i, i);
    strcat(text, "}");
    memory_fault fault = {0};
    tare_context *ctx = fault_context(&fault);
    size_t n = 0;
    do {
        fault.left = n;
        fault.hit = false;
        arena a;
        arena_init(&a, ctx);
        buffer out;
        buffer_init(&out, ctx);
        const value *root;
        tare_status status = json_parse(ctx, &a, text, strlen(text), "t", JSON_STRICT, &root);
        if (status == TARE_OK) {
            json_write_value(&out, root, 1, 0);
            status = out.status;
        } else {
            assert_null(root);
        }
        assert_int_equal(status, fault.hit ? TARE_E_MEMORY : TARE_OK);
        buffer_free(&out);
        arena_free(&a);
        assert_int_equal(tare_memory_used(ctx), 0);
        n++;
    } while (fault.hit);
    assert_true(n > 10);
    tare_context_free(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_strings),   TEST(test_integers),
        TEST(test_floats),    TEST(test_tree),
        TEST(test_many_keys), TEST(test_typed_reads),
        TEST(test_file),      cmocka_unit_test(test_out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
