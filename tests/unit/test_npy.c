/* npy dicts: every byte of a small file, put together by hand from the opcodes in Python's
 * pickletools and the layout that numpy's ndarray and dtype give to pickle; what numpy itself
 * writes; refused pickles; failing allocations. */
#include "file/npy.h"
#include "file_fixture.h"

#define STR(n, s) "\x8c" n s
#define MINUS_ONE "J\xff\xff\xff\xff"

/* GLOBAL(numpy.core.multiarray, _reconstruct), (GLOBAL(numpy, ndarray), (0,), b'b'), REDUCE, the
 * mark of the state, its version. */
#define ARRAY_BEGIN                                                                                \
    STR("\x15", "numpy.core.multiarray")                                                           \
    STR("\x0c", "_reconstruct")                                                                    \
    "\x93" STR("\x05", "numpy") STR("\x07", "ndarray") "\x93"                                      \
                                                       "K\0\x85"                                   \
                                                       "B\x01\0\0\0b\x87R(K\x01"
#define ARRAY_END "tb"
#define DTYPE(code, order, flags)                                                                  \
    STR("\x05", "numpy")                                                                           \
    STR("\x05", "dtype")                                                                           \
    "\x93" STR("\x02", code) "\x89\x88\x87R(K\x03" STR("\x01", order) "NNN" MINUS_ONE MINUS_ONE    \
                                                                      "K" flags "tb"
#define ROOT_BEGIN "\x80\x04" ARRAY_BEGIN ")" DTYPE("O8", "|", "?") "\x89]}"
#define ROOT_END   "a" ARRAY_END "."

/* 6 + 2 + 2 bytes, 54 of text, 63 spaces and a newline: 128. */
#define HEADER                                                                                     \
    "\x93NUMPY\x01\0\x76\0{'descr': '|O', 'fortran_order': False, 'shape': (), }"                  \
    "                                                               \n"

#define ENTRY_A                                                                                    \
    STR("\x01", "a")                                                                               \
    ARRAY_BEGIN "K\x01K\x03\x86" DTYPE("i1", "|", "\0") "\x89"                                     \
                                                        "B\x03\0\0\0"                              \
                                                        "\x01\x02\xff" ARRAY_END
#define ENTRY_F                                                                                    \
    STR("\x02", "f2")                                                                              \
    ARRAY_BEGIN "M\x00\x01K\x00\x86" DTYPE("f2", "<", "\0") "\x89"                                 \
                                                            "B\0\0\0\0" ARRAY_END
#define ENTRY_S                                                                                    \
    STR("\x01", "s")                                                                               \
    ARRAY_BEGIN ")" DTYPE("i8", "<", "\0") "\x89"                                                  \
                                           "B\x08\0\0\0"                                           \
                                           "\x07\0\0\0\0\0\0\0" ARRAY_END
#define ENTRY_4                                                                                    \
    STR("\x01", "4")                                                                               \
    ARRAY_BEGIN "(K\x01K\x01K\x02K\x01t" DTYPE("i4", "<", "\0") "\x89"                             \
                                                                "B\x08\0\0\0"                      \
                                                                "\x01\0\0\0"                       \
                                                                "\x02\0\0"                         \
                                                                "\0" ARRAY_END

static const char golden[] = HEADER ROOT_BEGIN ENTRY_A "s" ENTRY_F "s" ENTRY_S "s" ENTRY_4
                                                       "s" ROOT_END;

static tare_status write_golden(tare_context *ctx, fixture *f)
{
    tare_status status = TARE_OK;
    npy_writer *w = NULL;
    unlink(f->path);
    TRY(npy_create(ctx, f->path, NPY_ARRAYS, &w));
    TRY(npy_begin(w, "a", TARE_I8, 2, (size_t[]){1, 3}));
    TRY(npy_append(w, "\x01\x02", 2));
    TRY(npy_append(w, "\xff", 1));
    TRY(npy_begin(w, "f2", TARE_F16, 2, (size_t[]){256, 0}));
    TRY(npy_begin(w, "s", TARE_I64, 0, NULL));
    TRY(npy_append(w, "\x07\0\0\0\0\0\0\0", 8));
    TRY(npy_begin(w, "4", TARE_I32, 4, (size_t[]){1, 1, 2, 1}));
    TRY(npy_append(w, "\x01\0\0\0\x02\0\0\0", 8));
    npy_writer *finished = w;
    w = NULL;
    TRY(npy_finish(finished));
done:
    npy_abandon(w);
    return status;
}

static void test_written_bytes(void **state)
{
    fixture *f = *state;
    assert_int_equal(sizeof HEADER - 1, 128);
    assert_ok(f->ctx, write_golden(f->ctx, f));
    assert_file(f, golden, sizeof golden - 1);
}

static void assert_entry(const npy_entry *e, const char *key, tare_dtype dtype, int rank,
                         size_t last, uint64_t bytes)
{
    assert_non_null(e);
    assert_string_equal(e->key, key);
    assert_int_equal(e->dtype, dtype);
    assert_int_equal(e->rank, rank);
    if (rank)
        assert_int_equal(e->shape[rank - 1], last);
    assert_int_equal(e->bytes, bytes);
}

static void test_read(void **state)
{
    fixture *f = *state;
    npy_dict *d;
    unsigned char data[8];
    put_file(f, golden, sizeof golden - 1);
    assert_ok(f->ctx, npy_open(f->ctx, f->path, &d));
    assert_int_equal(npy_count(d), 4);
    assert_entry(npy_at(d, 0), "a", TARE_I8, 2, 3, 3);
    assert_entry(npy_at(d, 1), "f2", TARE_F16, 2, 0, 0);
    assert_entry(npy_find(d, "s"), "s", TARE_I64, 0, 0, 8);
    assert_entry(npy_find(d, "4"), "4", TARE_I32, 4, 1, 8);
    assert_int_equal(npy_find(d, "4")->shape[2], 2);
    assert_null(npy_find(d, "x"));
    assert_ok(f->ctx, npy_read(d, npy_at(d, 0), 1, data, 2));
    assert_memory_equal(data, "\x02\xff", 2);
    assert_ok(f->ctx, npy_read(d, npy_find(d, "4"), 0, data, 8));
    assert_memory_equal(data, "\x01\0\0\0\x02\0\0\0", 8);
    assert_refused(f->ctx, npy_read(d, npy_at(d, 0), 1, data, 3), TARE_E_FORMAT, "'a'");
    npy_close(d);
}

/* np.save of {"a": int8 [1, 2, 3], "b": float32 [[1, 2]], "c": int64 7} by numpy 2.4.6: protocol 4
 * with a frame, memo and SETITEMS. */
static const char numpy_file[] = HEADER
    "\x80\x04\x95j\x01\x00\x00\x00\x00\x00\x00\x8c\x16numpy._core.multiarray\x94\x8c\x0c_reconstr"
    "uct\x94\x93\x94\x8c\x05numpy\x94\x8c\x07ndarray\x94\x93\x94K\x00\x85\x94\x43\x01\x62\x94\x87"
    "\x94R\x94(K\x01)h\x03\x8c\x05\x64type\x94\x93\x94\x8c\x02O8\x94\x89\x88\x87\x94R\x94(K\x03"
    "\x8c\x01|\x94NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x3ft\x94\x62\x89]\x94}\x94(\x8c\x01\x61"
    "\x94h\x02h\x05K\x00\x85\x94h\x07\x87\x94R\x94(K\x01K\x03\x85\x94h\x0b\x8c\x02i1\x94\x89\x88"
    "\x87\x94R\x94(K\x03h\x0fNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t\x94\x62\x89\x43\x03\x01"
    "\x02\x03\x94t\x94\x62\x8c\x01\x62\x94h\x02h\x05K\x00\x85\x94h\x07\x87\x94R\x94(K\x01K\x01K"
    "\x02\x86\x94h\x0b\x8c\x02\x66\x34\x94\x89\x88\x87\x94R\x94(K\x03\x8c\x01<\x94NNNJ\xff\xff"
    "\xff\xffJ\xff\xff\xff\xffK\x00t\x94\x62\x89\x43\x08\x00\x00\x80\x3f\x00\x00\x00@\x94t\x94"
    "\x62\x8c\x01\x63\x94h\x02h\x05K\x00\x85\x94h\x07\x87\x94R\x94(K\x01)h\x0b\x8c\x02i8\x94\x89"
    "\x88\x87\x94R\x94(K\x03h&NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t\x94\x62\x89\x43\x08\x07"
    "\x00\x00\x00\x00\x00\x00\x00\x94t\x94\x62uat\x94\x62.";

/* The same dict pickled with protocol 3 under numpy 1's module name, as numpy before 2.0 does. */
static const char numpy_1_file[] = HEADER
    "\x80\x03\x63numpy.core.multiarray\x0a_reconstruct\x0aq\x00\x63numpy\x0andarray\x0aq\x01K\x00"
    "\x85q\x02\x43\x01\x62q\x03\x87q\x04Rq\x05(K\x01)cnumpy\x0a\x64type\x0aq\x06X\x02\x00\x00\x00"
    "O8q\x07\x89\x88\x87q\x08Rq\x09(K\x03X\x01\x00\x00\x00|q\x0aNNNJ\xff\xff\xff\xffJ\xff\xff\xff"
    "\xffK\x3ftq\x0b\x62\x89]q\x0c}q\x0d(X\x01\x00\x00\x00\x61q\x0eh\x00h\x01K\x00\x85q\x0fh\x03"
    "\x87q\x10Rq\x11(K\x01K\x03\x85q\x12h\x06X\x02\x00\x00\x00i1q\x13\x89\x88\x87q\x14Rq\x15(K"
    "\x03h\x0aNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x16\x62\x89\x43\x03\x01\x02\x03q\x17tq"
    "\x18\x62X\x01\x00\x00\x00\x62q\x19h\x00h\x01K\x00\x85q\x1ah\x03\x87q\x1bRq\x1c(K\x01K\x01K"
    "\x02\x86q\x1dh\x06X\x02\x00\x00\x00\x66\x34q\x1e\x89\x88\x87q\x1fRq (K\x03X\x01\x00\x00\x00<"
    "q!NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x22\x62\x89\x43\x08\x00\x00\x80\x3f\x00\x00"
    "\x00@q#tq$bX\x01\x00\x00\x00\x63q%h\x00h\x01K\x00\x85q&h\x03\x87q'Rq((K\x01)h\x06X\x02\x00"
    "\x00\x00i8q)\x89\x88\x87q*Rq+(K\x03h!NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq,b\x89\x43"
    "\x08\x07\x00\x00\x00\x00\x00\x00\x00q-tq.buatq/b.";

static void check_numpy(fixture *f, const char *bytes, size_t size)
{
    npy_dict *d;
    unsigned char data[8];
    put_file(f, bytes, size);
    assert_ok(f->ctx, npy_open(f->ctx, f->path, &d));
    assert_int_equal(npy_count(d), 3);
    assert_entry(npy_at(d, 0), "a", TARE_I8, 1, 3, 3);
    assert_entry(npy_at(d, 1), "b", TARE_F32, 2, 2, 8);
    assert_entry(npy_at(d, 2), "c", TARE_I64, 0, 0, 8);
    assert_ok(f->ctx, npy_read(d, npy_at(d, 0), 0, data, 3));
    assert_memory_equal(data, "\x01\x02\x03", 3);
    assert_ok(f->ctx, npy_read(d, npy_at(d, 1), 0, data, 8));
    assert_memory_equal(data, "\0\0\x80\x3f\0\0\0\x40", 8);
    npy_close(d);
}

static void test_read_numpy(void **state)
{
    check_numpy(*state, numpy_file, sizeof numpy_file - 1);
    check_numpy(*state, numpy_1_file, sizeof numpy_1_file - 1);
}

static void assert_refused_file(fixture *f, const char *data, size_t size, const char *message)
{
    npy_dict *d;
    put_file(f, data, size);
    assert_refused(f->ctx, npy_open(f->ctx, f->path, &d), TARE_E_FORMAT, message);
    assert_null(d);
    assert_non_null(strstr(tare_last_error(f->ctx), f->path));
}

#define REFUSED(f, text, message) assert_refused_file(f, text, sizeof text - 1, message)
#define DICT(entries)             HEADER ROOT_BEGIN entries ROOT_END

static void test_refused(void **state)
{
    fixture *f = *state;
    REFUSED(f, "", "this is empty");
    REFUSED(f, "\x93NUMPY\x02\0\x76\0\0\0", "version 1.0");
    REFUSED(f, "\x93NUMPY\x01\0\xff\xff{}\n", "truncated");
    REFUSED(f, "\x93NUMPY\x01\0\x03\0{}\n", "header differs");
    REFUSED(f, HEADER, "truncated");
    REFUSED(f, HEADER "\x80\x05.", "protocol");
    REFUSED(f, HEADER "\x80\x04.", "ends early");
    REFUSED(f, HEADER "\x80\x04N.", "ends early");
    REFUSED(f, HEADER "\x80\x04" STR("\x05", "posix") STR("\x06", "system") "\x93", "posix.system");
    REFUSED(f,
            HEADER "\x80\x02"
                   "cos\nsystem\n",
            "os.system");
    REFUSED(f, HEADER "\x80\x04" STR("\x05", "numpy") STR("\x04", "load") "\x93", "numpy.load");
    REFUSED(f, HEADER "\x80\x04Q", "opcode 0x51");
    REFUSED(f, HEADER "\x80\x04X\xff\xff\xff\x7f", "too long");
    REFUSED(f, HEADER "\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\xff", "truncated");
    REFUSED(f, HEADER "\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\xff", "truncated");
    REFUSED(f, HEADER "\x80\x04\x8a\x09\0\0\0\0\0\0\0\0\0", "too large");
    REFUSED(f, HEADER "\x80\x04" STR("\x01", "\xff"), "UTF-8");
    REFUSED(f, HEADER "\x80\x04" STR("\x01", "\0"), "UTF-8");
    REFUSED(f, HEADER "\x80\x04h\0", "missing");
    REFUSED(f, HEADER "\x80\x04Nr\xff\xff\0\0", "out of order");
    REFUSED(f, HEADER "\x80\x04\x94", "out of order");
    REFUSED(f, HEADER "\x80\x04]]", "more than one");
    REFUSED(f, HEADER "\x80\x04NNt", "too long");
    REFUSED(f, HEADER "\x80\x04(NNNNNNNNNt", "too long");
    REFUSED(f, HEADER "\x80\x04N(N\x86", "over a mark");
    REFUSED(f, HEADER "\x80\x04)R", "unknown");
    REFUSED(f, HEADER "\x80\x04)b", "unknown");
    REFUSED(f, HEADER "\x80\x04}(Nu", "entries of no dict");
    REFUSED(f, HEADER "\x80\x04}(NNu", "not a named array");
    REFUSED(f, HEADER "\x80\x04NNs", "no dict");
    REFUSED(f, HEADER "\x80\x04]Na", "one dict");
    REFUSED(f, DICT(ENTRY_A "s" ENTRY_A "s"), "'a' stands twice");
    REFUSED(f, DICT(ENTRY_A "s") "x", "bytes follow");
}

/* An entry "a" of one int8 array whose state is given in full. */
#define STATE(shape, dtype, fortran, payload)                                                      \
    DICT(STR("\x01", "a") ARRAY_BEGIN shape dtype fortran payload ARRAY_END "s")
#define I1     DTYPE("i1", "|", "\0")
#define BYTES3 "B\x03\0\0\0abc"

static void test_refused_arrays(void **state)
{
    fixture *f = *state;
    npy_dict *d;
    static const char right[] = STATE("K\x03\x85", I1, "\x89", BYTES3);
    put_file(f, right, sizeof right - 1);
    assert_ok(f->ctx, npy_open(f->ctx, f->path, &d));
    npy_close(d);
    REFUSED(f, STATE("K\x02\x85", I1, "\x89", BYTES3), "array of 2 bytes has 3");
    REFUSED(f, STATE("K\x03\x85", I1, "\x88", BYTES3), "Fortran");
    REFUSED(f, STATE("K\x03\x85", I1, "\x89", "N"), "no data");
    REFUSED(f, STATE("J\xfd\xff\xff\xff\x85", I1, "\x89", BYTES3), "tuple of sizes");
    REFUSED(f, STATE("N\x85", I1, "\x89", BYTES3), "tuple of sizes");
    REFUSED(f, STATE("N", I1, "\x89", BYTES3), "wrong state");
    REFUSED(f, STATE("\x8a\x05\0\0\0\0\x01\x8a\x05\0\0\0\0\x01\x86", I1, "\x89", BYTES3),
            "too large");
    REFUSED(f, STATE("K\x03\x85", DTYPE("f8", "<", "\0"), "\x89", BYTES3), "'f8'");
    REFUSED(f, STATE("K\x03\x85", DTYPE("f4", ">", "\0"), "\x89", BYTES3), "byte order");
    REFUSED(f, STATE(")", DTYPE("O8", "|", "?"), "\x89", BYTES3), "not the dict");
}

static void test_truncated_everywhere(void **state)
{
    fixture *f = *state;
    npy_dict *d;
    for (size_t n = 0; n < sizeof golden - 1; n++) {
        put_file(f, golden, n);
        assert_int_equal(npy_open(f->ctx, f->path, &d), TARE_E_FORMAT);
    }
}

static void test_writer_misuse(void **state)
{
    fixture *f = *state;
    npy_writer *w;
    size_t big[2] = {(size_t)1 << 40, (size_t)1 << 40};
    assert_ok(f->ctx, npy_create(f->ctx, f->path, NPY_ARRAYS, &w));
    assert_refused(f->ctx, npy_begin(w, "b", TARE_BF16, 1, big), TARE_E_FORMAT, "BF16");
    assert_refused(f->ctx, npy_begin(w, "b", TARE_I8, 9, big), TARE_E_FORMAT,
                   "has no array of this shape");
    assert_refused(f->ctx, npy_begin(w, "b", TARE_I8, 2, big), TARE_E_FORMAT,
                   "has no array of this shape");
    assert_refused(f->ctx, npy_begin(w, "\xff", TARE_I8, 0, NULL), TARE_E_FORMAT, "is not UTF-8");
    assert_ok(f->ctx, npy_begin(w, "b", TARE_I32, 0, NULL));
    assert_refused(f->ctx, npy_append(w, "12345", 5), TARE_E_FORMAT, "1 bytes too many");
    assert_ok(f->ctx, npy_append(w, "1", 1));
    assert_refused(f->ctx, npy_begin(w, "c", TARE_I8, 0, NULL), TARE_E_FORMAT, "lacks 3 bytes");
    assert_refused(f->ctx, npy_finish(w), TARE_E_FORMAT, "lacks 3 bytes");
    assert_false(path_exists(f->path));
}

/* Our own files need no memo, so their structure takes little more than their entries. */
static void test_many_entries(void **state)
{
    enum { MANY = 20000 };
    fixture *f = *state;
    npy_writer *w;
    npy_dict *d;
    char key[64];
    assert_ok(f->ctx, npy_create(f->ctx, f->path, NPY_ARRAYS, &w));
    for (int i = 0; i < MANY; i++) {
        snprintf(key, sizeof key, "model.layers.%d.mlp.down_proj", i);
        assert_ok(f->ctx, npy_begin(w, key, TARE_I32, 1, (size_t[]){1}));
        assert_ok(f->ctx, npy_append(w, &i, sizeof i));
    }
    assert_ok(f->ctx, npy_finish(w));
    assert_ok(f->ctx, npy_open(f->ctx, f->path, &d));
    assert_int_equal(npy_count(d), MANY);
    assert_true(tare_memory_peak(f->ctx) < (size_t)MANY * 512);
    int value;
    assert_ok(f->ctx, npy_read(d, npy_find(d, "model.layers.12345.mlp.down_proj"), 0, &value, 4));
    assert_int_equal(value, 12345);
    npy_close(d);
}

static tare_status read_file(tare_context *ctx, fixture *f)
{
    npy_dict *d;
    tare_status status = npy_open(ctx, f->path, &d);
    npy_close(d);
    return status;
}

static void test_failing_allocations(void **state)
{
    fixture *f = *state;
    fail_each_allocation(f, write_golden);
    fail_each_allocation(f, read_file);
    put_file(f, numpy_file, sizeof numpy_file - 1);
    fail_each_allocation(f, read_file);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_written_bytes), TEST(test_read),           TEST(test_read_numpy),
        TEST(test_refused),       TEST(test_refused_arrays), TEST(test_truncated_everywhere),
        TEST(test_writer_misuse), TEST(test_many_entries),   TEST(test_failing_allocations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
