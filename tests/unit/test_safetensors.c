/* safetensors: bytes of a written file, hostile headers, many tensors, failing allocations. The
 * expected bytes were worked out by hand from the format's description. */
#include "file/safetensors.h"
#include "file_fixture.h"

/* Puts a file with this header text and `data_bytes` zero bytes at f->path. */
static void put_header(fixture *f, const char *header, size_t length, size_t data_bytes)
{
    char *data = calloc(1, 8 + length + data_bytes);
    assert_non_null(data);
    for (int i = 0; i < 8; i++)
        data[i] = (char)((uint64_t)length >> (8 * i));
    memcpy(data + 8, header, length);
    put_file(f, data, 8 + length + data_bytes);
    free(data);
}

static const tensor_info example[] = {
    {.name = "b", .dtype = TARE_I8, .rank = 1, .shape = {3}},
    {.name = "z", .dtype = TARE_F32, .rank = 2, .shape = {1, 2}},
    {.name = "a", .dtype = TARE_I64, .rank = 0},
    {.name = "h", .dtype = TARE_BF16, .rank = 1, .shape = {2}},
    {.name = "e\xc3\xa9\"", .dtype = TARE_F32, .rank = 2, .shape = {0, 5}},
};
enum { EXAMPLES = sizeof example / sizeof *example };

static const char example_header[] =
    "{\"__metadata__\":{\"format\":\"pt\"},"
    "\"a\":{\"dtype\":\"I64\",\"shape\":[],\"data_offsets\":[0,8]},"
    "\"e\\u00e9\\\"\":{\"dtype\":\"F32\",\"shape\":[0,5],\"data_offsets\":[8,8]},"
    "\"z\":{\"dtype\":\"F32\",\"shape\":[1,2],\"data_offsets\":[8,16]},"
    "\"h\":{\"dtype\":\"BF16\",\"shape\":[2],\"data_offsets\":[16,20]},"
    "\"b\":{\"dtype\":\"I8\",\"shape\":[3],\"data_offsets\":[20,23]}}";

static tare_status write_example(tare_context *ctx, fixture *f)
{
    tare_status status = TARE_OK;
    safetensors_writer *w = NULL;
    unlink(f->path);
    TRY(safetensors_create(ctx, f->path, example, EXAMPLES, &w));
    TRY(safetensors_write(w, 3, 2, "\x2c\x2d", 2));
    TRY(safetensors_write(w, 0, 0, "\x01\x02\x03", 3));
    TRY(safetensors_write(w, 1, 0, "\x10\x11\x12\x13\x14\x15\x16\x17", 8));
    TRY(safetensors_write(w, 2, 0, "\x20\x21\x22\x23\x24\x25\x26\x27", 8));
    TRY(safetensors_write(w, 3, 0, "\x2a\x2b", 2));
    safetensors_writer *finished = w;
    w = NULL;
    TRY(safetensors_finish(finished));
done:
    safetensors_abandon(w);
    return status;
}

static void test_written_bytes(void **state)
{
    fixture *f = *state;
    char expected[512];
    uint64_t planned;
    assert_ok(f->ctx, write_example(f->ctx, f));
    size_t text = sizeof example_header - 1, padded = (text + 7) / 8 * 8;
    memset(expected, 0, 8);
    expected[0] = (char)(padded & 255);
    expected[1] = (char)(padded >> 8);
    memset(expected + 8, ' ', padded);
    memcpy(expected + 8, example_header, text);
    memcpy(expected + 8 + padded,
           "\x20\x21\x22\x23\x24\x25\x26\x27\x10\x11\x12\x13\x14\x15\x16\x17"
           "\x2a\x2b\x2c\x2d\x01\x02\x03",
           23);
    assert_file(f, expected, 8 + padded + 23);
    assert_ok(f->ctx, safetensors_planned_size(f->ctx, example, EXAMPLES, &planned));
    assert_int_equal(planned, 8 + padded + 23);
}

static void test_read_back(void **state)
{
    fixture *f = *state;
    safetensors *s;
    unsigned char data[8];
    static const char *const names[] = {"a", "e\xc3\xa9\"", "z", "h", "b"};
    assert_ok(f->ctx, write_example(f->ctx, f));
    assert_ok(f->ctx, safetensors_open(f->ctx, f->path, &s));
    assert_string_equal(safetensors_path(s), f->path);
    assert_int_equal(safetensors_count(s), EXAMPLES);
    for (size_t i = 0; i < EXAMPLES; i++) {
        assert_string_equal(safetensors_at(s, i)->name, names[i]);
        assert_ptr_equal(safetensors_find(s, names[i]), safetensors_at(s, i));
    }
    assert_null(safetensors_find(s, "missing"));
    const tensor_info *z = safetensors_find(s, "z");
    assert_int_equal(z->dtype, TARE_F32);
    assert_int_equal(z->rank, 2);
    assert_int_equal(z->shape[1], 2);
    assert_int_equal(z->bytes, 8);
    assert_int_equal(tensor_elements(z), 2);
    assert_int_equal(tensor_elements(safetensors_at(s, 0)), 1);
    assert_int_equal(tensor_elements(safetensors_at(s, 1)), 0);
    assert_ok(f->ctx, safetensors_read(s, z, 3, data, 5));
    assert_memory_equal(data, "\x13\x14\x15\x16\x17", 5);
    assert_refused(f->ctx, safetensors_read(s, z, 3, data, 6), TARE_E_FORMAT, "'z'");
    assert_refused(f->ctx, safetensors_read(s, z, 9, data, 0), TARE_E_FORMAT, "'z'");
    assert_int_equal(safetensors_file_size(s), z->offset + 8 + 4 + 3);
    assert_int_equal(truncate(f->path, (off_t)z->offset + 2), 0);
    assert_refused(f->ctx, safetensors_read(s, z, 0, data, 8), TARE_E_FORMAT, "truncated");
    safetensors_close(s);
}

static void test_writer_misuse(void **state)
{
    fixture *f = *state;
    safetensors_writer *w;
    uint64_t size;
    tensor_info t[2] = {{.name = "x", .dtype = TARE_I8, .rank = 1, .shape = {4}},
                        {.name = "x", .dtype = TARE_I8, .rank = 1, .shape = {4}}};
    assert_refused(f->ctx, safetensors_create(f->ctx, f->path, t, 2, &w), TARE_E_FORMAT, "twice");
    assert_null(w);
    assert_false(path_exists(f->path));
    assert_ok(f->ctx, safetensors_create(f->ctx, f->path, t, 1, &w));
    assert_refused(f->ctx, safetensors_write(w, 1, 0, "", 0), TARE_E_FORMAT, "no tensor 1");
    assert_refused(f->ctx, safetensors_write(w, 0, 2, "abc", 3), TARE_E_FORMAT, "'x'");
    assert_ok(f->ctx, safetensors_write(w, 0, 1, "bcd", 3));
    assert_refused(f->ctx, safetensors_finish(w), TARE_E_FORMAT, "3 of the 4 bytes");
    assert_false(path_exists(f->path));
    t[0].rank = 9;
    assert_refused(f->ctx, safetensors_planned_size(f->ctx, t, 1, &size), TARE_E_FORMAT,
                   "its shape cannot be stored");
    t[0].rank = 2;
    t[0].shape[0] = t[0].shape[1] = (size_t)1 << 40;
    assert_refused(f->ctx, safetensors_planned_size(f->ctx, t, 1, &size), TARE_E_FORMAT,
                   "its shape cannot be stored");
    t[0].shape[1] = 1;
    t[0].name = "";
    assert_refused(f->ctx, safetensors_planned_size(f->ctx, t, 1, &size), TARE_E_FORMAT,
                   "'' cannot be the name");
    t[0].name = "__metadata__";
    assert_refused(f->ctx, safetensors_planned_size(f->ctx, t, 1, &size), TARE_E_FORMAT,
                   "'__metadata__' cannot be the name");
    t[0].name = "\xff";
    assert_refused(f->ctx, safetensors_planned_size(f->ctx, t, 1, &size), TARE_E_FORMAT,
                   "cannot be the name");
}

typedef struct header_case {
    const char *header;
    size_t length, data_bytes;
    const char *message; /* part of it; NULL: accepted */
} header_case;

#define CASE(header, data_bytes, message)                                                          \
    {                                                                                              \
        header, sizeof header - 1, data_bytes, message                                             \
    }
#define X(dtype, shape, offsets)                                                                   \
    "\"x\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}"

static const header_case cases[] = {
    CASE("{}", 0, NULL),
    CASE("{}  ", 0, NULL),
    CASE("{" X("I8", "[1]", "[0,1]") "}", 1, NULL),
    CASE("{" X("I8", "[]", "[0,1]") "}", 1, NULL),
    CASE("{" X("F32", "[0]", "[0,0]") "}", 0, NULL),
    CASE("{" X("F8_E4M3", "[1,1,1,1,1,1,1,1]", "[0,1]") "}", 1, NULL),
    CASE("{\"__metadata__\":{}," X("I8", "[1]", "[0,1]") "}", 1, NULL),
    CASE("{\"x\":{\"data_offsets\":[0,1],\"more\":[{}],\"shape\":[1],\"dtype\":\"U8\"}}", 1, NULL),
    CASE("{\"y\":{\"dtype\":\"I8\",\"shape\":[2],\"data_offsets\":[1,3]}," X("I8", "[1]",
                                                                             "[0,1]") "}",
         3, NULL),
    CASE("", 0, "does not begin"),
    CASE(" {}", 0, "does not begin"),
    CASE("[]", 0, "does not begin"),
    CASE("{", 0, ""),
    CASE("{}x", 0, ""),
    CASE("{}", 1, "1 bytes of data"),
    CASE("{\"\":{}}", 0, "empty"),
    CASE("{\"a\\u0000b\":{}}", 0, "zero byte"),
    CASE("{\"x\":[]}", 0, "'x': its value must be an object"),
    CASE("{\"x\":{}}", 0, "dtype is missing"),
    CASE("{\"x\":{\"dtype\":\"I8\",\"shape\":[1]}}", 1, "data_offsets is missing"),
    CASE("{\"x\":{\"dtype\":\"I8\",\"dtype\":\"I8\"}}", 1, "dtype stands twice"),
    CASE("{\"x\":{\"dtype\\u0000\":\"I8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "missing"),
    CASE("{" X("I7", "[1]", "[0,1]") "}", 1, "unknown dtype 'I7'"),
    CASE("{\"x\":{\"dtype\":8}}", 1, "dtype must be a string"),
    CASE("{" X("I8", "1", "[0,1]") "}", 1, "shape must be"),
    CASE("{" X("I8", "[-1]", "[0,1]") "}", 1, "shape must be"),
    CASE("{" X("I8", "[1.0]", "[0,1]") "}", 1, "shape must be"),
    CASE("{" X("I8", "[[1]]", "[0,1]") "}", 1, "shape must be"),
    CASE("{" X("I8", "[1,1,1,1,1,1,1,1,1]", "[0,1]") "}", 1, "at most 8"),
    CASE("{" X("I8", "[18446744073709551617]", "[0,1]") "}", 1, "shape must be"),
    CASE("{" X("I8", "[4294967296,4294967296]", "[0,0]") "}", 0, "too large"),
    CASE("{" X("F64", "[2305843009213693952]", "[0,0]") "}", 0, "too large"),
    CASE("{" X("F32", "[1]", "[0,3]") "}", 3, "need 4 bytes"),
    CASE("{" X("I8", "[1]", "[0]") "}", 1, "list of two"),
    CASE("{" X("I8", "[1]", "[0,1,2]") "}", 1, "list of two"),
    CASE("{" X("I8", "[1]", "[1,0]") "}", 1, "outside"),
    CASE("{" X("I8", "[2]", "[0,2]") "}", 1, "outside the 1 bytes"),
    CASE("{" X("I8", "[1]", "[9223372036854775807,9223372036854775808]") "}", 1, "list of two"),
    CASE("{" X("I8", "[1]", "[1,2]") "}", 2, "begins at 1, but the data before it ends at 0"),
    CASE("{" X("I8", "[1]", "[0,1]") "}", 2, "2 bytes of data"),
    CASE("{" X("I8", "[2]",
               "[0,2]") ",\"y\":{\"dtype\":\"I8\",\"shape\":[2],\"data_offsets\":[1,3]}}",
         3, "'y': its data begins at 1"),
    CASE("{" X("I8", "[1]", "[0,1]") "," X("I8", "[1]", "[1,2]") "}", 2, "'x' stands twice"),
    CASE("{\"__metadata__\":{},\"__metadata__\":{}}", 0, "__metadata__ stands twice"),
    CASE("{\"__metadata__\":[]}", 0, "__metadata__ must be"),
    CASE("{\"__metadata__\":{\"a\":1}}", 0, "__metadata__ must be"),
    CASE("{\"__metadata__\":{\"a\":{}}}", 0, "__metadata__ must be"),
    CASE("{\"__metadata__\":null}", 0, NULL), /* the format's own library reads it so */
    CASE("{\"__metadata__\":null,\"__metadata__\":null}", 0, "__metadata__ stands twice"),
};

static void test_headers(void **state)
{
    fixture *f = *state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const header_case *c = &cases[i];
        safetensors *s;
        put_header(f, c->header, c->length, c->data_bytes);
        tare_status status = safetensors_open(f->ctx, f->path, &s);
        if (status != (c->message ? TARE_E_FORMAT : TARE_OK))
            fail_msg("%s: %s", c->header, tare_last_error(f->ctx));
        if (c->message && (!strstr(tare_last_error(f->ctx), c->message) ||
                           !strstr(tare_last_error(f->ctx), f->path)))
            fail_msg("%s: %s", c->header, tare_last_error(f->ctx));
        safetensors_close(s);
    }
}

static void test_header_lengths(void **state)
{
    fixture *f = *state;
    safetensors *s;
    put_file(f, "\x02\0\0\0\0\0\0", 7);
    assert_refused(f->ctx, safetensors_open(f->ctx, f->path, &s), TARE_E_FORMAT, "too short");
    put_file(f, "\x03\0\0\0\0\0\0\0{}", 10);
    assert_refused(f->ctx, safetensors_open(f->ctx, f->path, &s), TARE_E_FORMAT, "truncated");
    put_file(f, "\xff\xff\xff\xff\xff\xff\xff\xff{}", 10);
    assert_refused(f->ctx, safetensors_open(f->ctx, f->path, &s), TARE_E_FORMAT, "truncated");
    /* 100,000,001 bytes that really are there (a hole). */
    put_file(f, "\x01\xe1\xf5\x05\0\0\0\0{}", 10);
    assert_int_equal(truncate(f->path, 8 + 100000001), 0);
    assert_refused(f->ctx, safetensors_open(f->ctx, f->path, &s), TARE_E_FORMAT, "100000001");
    assert_true(tare_memory_peak(f->ctx) < 1024 * 1024);
}

enum { MANY = 90000 };

static void test_many_tensors(void **state)
{
    fixture *f = *state;
    tensor_info *t = calloc(MANY, sizeof *t);
    char(*names)[32] = calloc(MANY, sizeof *names);
    safetensors_writer *w;
    safetensors *s;
    assert_non_null(t);
    assert_non_null(names);
    for (size_t i = 0; i < MANY; i++) {
        snprintf(names[i], sizeof *names, "layers.%zu.weight", MANY - i);
        t[i] = (tensor_info){
            .name = names[i], .dtype = i % 2 ? TARE_I8 : TARE_F16, .rank = 1, .shape = {1}};
    }
    assert_ok(f->ctx, safetensors_create(f->ctx, f->path, t, MANY, &w));
    for (size_t i = 0; i < MANY; i++)
        assert_ok(f->ctx, safetensors_write(w, i, 0, "\1\2", i % 2 ? 1 : 2));
    assert_ok(f->ctx, safetensors_finish(w));
    assert_ok(f->ctx, safetensors_open(f->ctx, f->path, &s));
    assert_int_equal(safetensors_count(s), MANY);
    for (size_t i = 1; i < MANY; i++) {
        const tensor_info *a = safetensors_at(s, i - 1), *b = safetensors_at(s, i);
        assert_int_equal(a->offset + a->bytes, b->offset);
        assert_true(a->bytes >= b->bytes);
        assert_true(a->bytes > b->bytes || strcmp(a->name, b->name) < 0);
    }
    assert_int_equal(safetensors_find(s, "layers.77.weight")->bytes, 1);
    safetensors_close(s);
    free(t);
    free(names);
}

static tare_status read_example(tare_context *ctx, fixture *f)
{
    safetensors *s;
    tare_status status = safetensors_open(ctx, f->path, &s);
    safetensors_close(s);
    return status;
}

static void test_failing_allocations(void **state)
{
    fixture *f = *state;
    fail_each_allocation(f, write_example);
    fail_each_allocation(f, read_example);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_written_bytes),       TEST(test_read_back),
        TEST(test_writer_misuse),       TEST(test_headers),
        TEST(test_header_lengths),      TEST(test_many_tensors),
        TEST(test_failing_allocations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
