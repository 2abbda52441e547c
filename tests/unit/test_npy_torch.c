/* npy dicts of torch tensors: every byte of a small file, put together by hand from the opcodes in
 * Python's pickletools and what torch's own pickler writes; files that numpy and torch wrote
 * (tests/data/make_npy_torch.py); refused ones; failing allocations.
 * tests/oracle/test_npy_in_torch.py has torch read what is written here. */
#include <fcntl.h>

#include "file/npy.h"
#include "file_fixture.h"

#define STR(n, s) "\x8c" n s
#define MINUS_ONE "J\xff\xff\xff\xff"
/* The array of objects around the dict, as in test_npy.c. */
#define HEADER                                                                                     \
    "\x93NUMPY\x01\0\x76\0{'descr': '|O', 'fortran_order': False, 'shape': (), }"                  \
    "                                                               \n"
#define ROOT_BEGIN                                                                                 \
    "\x80\x04" STR("\x15", "numpy.core.multiarray")                                                \
        STR("\x0c", "_reconstruct") "\x93" STR("\x05", "numpy")                                    \
            STR("\x07",                                                                            \
                "ndarray") "\x93"                                                                  \
                           "K\0\x85"                                                               \
                           "B\x01\0\0\0b\x87R(K\x01)" STR("\x05", "numpy")                         \
                               STR("\x05", "dtype") "\x93" STR(                                    \
                                   "\x02",                                                         \
                                   "O8") "\x89\x88\x87R(K\x03" STR("\x01",                         \
                                                                   "|") "NNN" MINUS_ONE MINUS_ONE  \
                                                                        "K?tb\x89]}"
#define ROOT_END "atb."

/* torch.save's older form of a storage: three pickles of 137 bytes, and the persistent id up to its
 * class. */
#define STORAGE_HEAD                                                                               \
    "\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."                                    \
    "\x80\x02M\xe9\x03."                                                                           \
    "\x80\x02}q\0(X\x10\0\0\0protocol_versionq\x01M\xe9\x03X\x0d\0\0\0little_endianq\x02\x88"      \
    "X\x0a\0\0\0type_sizesq\x03}q\x04(X\x05\0\0\0shortq\x05K\x02X\x03\0\0\0intq\x06K\x04"          \
    "X\x04\0\0\0longq\x07K\x04uu."                                                                 \
    "\x80\x02(X\x07\0\0\0storageq\0"                                                               \
    "ctorch\n"
#define STORAGE(class, count, u64)                                                                 \
    STORAGE_HEAD class "\nq\x01X\x01\0\0\0"                                                        \
                       "0q\x02X\x03\0\0\0cpuq\x03" count "Ntq\x04Q.\x80\x02]q\0X\x01\0\0\0"        \
                       "0q\x01"                                                                    \
                       "a." u64
/* `size`: of the storage with its data, 4 bytes. */
#define TENSOR_BEGIN(size)                                                                         \
    STR("\x0c", "torch._utils")                                                                    \
    STR("\x12", "_rebuild_tensor_v2")                                                              \
    "\x93(" STR("\x0d", "torch.storage") STR("\x10", "_load_from_bytes") "\x93"                    \
                                                                         "B" size
#define TENSOR_END(first, shape, strides)                                                          \
    "\x85R" first shape strides "\x89" STR("\x0b", "collections")                                  \
        STR("\x0b", "OrderedDict") "\x93)RtR"

/* 159 + 67 bytes of the storage's head with CharStorage and a count of two bytes; see test_sizes.
 */
#define ENTRY_A                                                                                    \
    STR("\x01", "a")                                                                               \
    TENSOR_BEGIN("\xe3\0\0\0")                                                                     \
    STORAGE("CharStorage", "K\x03", "\x03\0\0\0\0\0\0\0")                                          \
    "\x01\x02\xff" TENSOR_END("K\0", "K\x01K\x03\x86", "K\x03K\x01\x86")
#define ENTRY_B                                                                                    \
    STR("\x01", "b")                                                                               \
    TENSOR_BEGIN("\xe8\0\0\0")                                                                     \
    STORAGE("BFloat16Storage", "K\x02", "\x02\0\0\0\0\0\0\0")                                      \
    "\x80\x3f\0\x40" TENSOR_END("K\0", "K\x02K\x01\x86", "K\x01K\x01\x86")
#define ENTRY_F                                                                                    \
    STR("\x02", "f2")                                                                              \
    TENSOR_BEGIN("\xe0\0\0\0")                                                                     \
    STORAGE("HalfStorage", "K\0", "\0\0\0\0\0\0\0\0")                                              \
    TENSOR_END("K\0", "M\0\x01K\0\x86", "K\x01K\x01\x86")
#define ENTRY_S                                                                                    \
    STR("\x01", "s")                                                                               \
    TENSOR_BEGIN("\xe8\0\0\0")                                                                     \
    STORAGE("LongStorage", "K\x01", "\x01\0\0\0\0\0\0\0")                                          \
    "\x07\0\0\0\0\0\0\0" TENSOR_END("K\0", ")", ")")

static const char golden[] = HEADER ROOT_BEGIN ENTRY_A "s" ENTRY_B "s" ENTRY_F "s" ENTRY_S
                                                       "s" ROOT_END;

static tare_status write_golden(tare_context *ctx, fixture *f)
{
    tare_status status = TARE_OK;
    npy_writer *w = NULL;
    unlink(f->path);
    TRY(npy_create(ctx, f->path, NPY_TENSORS, &w));
    TRY(npy_begin(w, "a", TARE_I8, 2, (size_t[]){1, 3}));
    TRY(npy_append(w, "\x01\x02", 2));
    TRY(npy_append(w, "\xff", 1));
    TRY(npy_begin(w, "b", TARE_BF16, 2, (size_t[]){2, 1}));
    TRY(npy_append(w, "\x80\x3f\0\x40", 4));
    TRY(npy_begin(w, "f2", TARE_F16, 2, (size_t[]){256, 0}));
    TRY(npy_begin(w, "s", TARE_I64, 0, NULL));
    TRY(npy_append(w, "\x07\0\0\0\0\0\0\0", 8));
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
    assert_int_equal(sizeof STORAGE_HEAD - 1, 137 + 24);
    assert_int_equal(sizeof STORAGE("CharStorage", "K\x03", "12345678") - 1 + 3, 0xe3);
    assert_ok(f->ctx, write_golden(f->ctx, f));
    assert_file(f, golden, sizeof golden - 1);
}

/* Another process goes on between two entries. */
static void test_reopened(void **state)
{
    fixture *f = *state;
    npy_writer *w;
    uint64_t end, digest;
    assert_ok(f->ctx, npy_create(f->ctx, f->path, NPY_TENSORS, &w));
    assert_ok(f->ctx, npy_begin(w, "a", TARE_I8, 2, (size_t[]){1, 3}));
    assert_ok(f->ctx, npy_append(w, "\x01\x02\xff", 3));
    assert_ok(f->ctx, npy_sync(w, &end, &digest));
    npy_leave(w);
    assert_int_equal(end, sizeof HEADER ROOT_BEGIN ENTRY_A "s" - 1);
    assert_ok(f->ctx, npy_reopen(f->ctx, f->path, NPY_TENSORS, end, &w));
    assert_ok(f->ctx, npy_begin(w, "b", TARE_BF16, 2, (size_t[]){2, 1}));
    assert_ok(f->ctx, npy_append(w, "\x80\x3f\0\x40", 4));
    assert_ok(f->ctx, npy_finish(w));
    static const char whole[] = HEADER ROOT_BEGIN ENTRY_A "s" ENTRY_B "s" ROOT_END;
    assert_file(f, whole, sizeof whole - 1);
}

static void assert_entry(npy_dict *d, const char *key, tare_dtype dtype, int rank, size_t last,
                         const char *data, size_t bytes)
{
    const npy_entry *e = npy_find(d, key);
    char found[8];
    assert_non_null(e);
    assert_int_equal(e->dtype, dtype);
    assert_int_equal(e->rank, rank);
    if (rank)
        assert_int_equal(e->shape[rank - 1], last);
    assert_int_equal(e->bytes, bytes);
    assert_int_equal(npy_read(d, e, 0, found, bytes), TARE_OK);
    assert_memory_equal(found, data, bytes);
}

static void test_read(void **state)
{
    fixture *f = *state;
    npy_dict *d;
    put_file(f, golden, sizeof golden - 1);
    assert_ok(f->ctx, npy_open(f->ctx, f->path, &d));
    assert_int_equal(npy_count(d), 4);
    assert_entry(d, "a", TARE_I8, 2, 3, "\x01\x02\xff", 3);
    assert_entry(d, "b", TARE_BF16, 2, 1, "\x80\x3f\0\x40", 4);
    assert_entry(d, "f2", TARE_F16, 2, 0, "", 0);
    assert_entry(d, "s", TARE_I64, 0, 0, "\x07\0\0\0\0\0\0\0", 8);
    assert_true(npy_find(d, "a")->torch);
    npy_close(d);
}

/* What torch's own pickler wrote: memo, a part of a storage, an array among tensors. */
static void test_read_torch(void **state)
{
    fixture *f = *state;
    npy_dict *d;
    char path[512];
    for (int protocol = 3; protocol <= 4; protocol++) {
        snprintf(path, sizeof path, "%s/npy/torch-protocol%d.npy", TARE_TEST_DATA, protocol);
        assert_ok(f->ctx, npy_open(f->ctx, path, &d));
        assert_int_equal(npy_count(d), 3);
        assert_entry(d, "w", TARE_BF16, 2, 2, "\x80\x3f\0\x40", 4);
        assert_entry(d, "v", TARE_I8, 1, 2, "\x07\xfe", 2);
        assert_entry(d, "n", TARE_F32, 1, 1, "\0\0\0\x3f", 4);
        assert_true(npy_find(d, "v")->torch && !npy_find(d, "n")->torch);
        npy_close(d);
    }
}

static void assert_refused_file(fixture *f, const char *data, size_t size, const char *message)
{
    npy_dict *d;
    put_file(f, data, size);
    assert_refused(f->ctx, npy_open(f->ctx, f->path, &d), TARE_E_FORMAT, message);
    assert_null(d);
}

/* `golden` with the first `from` replaced by `to`, of equal length. */
static void assert_refused_patch(fixture *f, const char *from, const char *to, size_t length,
                                 const char *message)
{
    char changed[sizeof golden - 1];
    memcpy(changed, golden, sizeof changed);
    char *at = memmem(changed, sizeof changed, from, length);
    assert_non_null(at);
    memcpy(at, to, length);
    assert_refused_file(f, changed, sizeof changed, message);
}
#define PATCHED(f, from, to, message)                                                              \
    (assert_int_equal(sizeof from, sizeof to),                                                     \
     assert_refused_patch(f, from, to, sizeof from - 1, message))

static void test_refused_storages(void **state)
{
    fixture *f = *state;
    PATCHED(f, "\x8a\nl\xfc", "\x8a\nl\xfd", "unknown layout");
    PATCHED(f, "endianq\x02\x88", "endianq\x02\x89", "unknown layout");
    PATCHED(f, "shortq\x05K\x02", "shortq\x05K\x04", "unknown layout");
    PATCHED(f, "ctorch\nChar", "cposix\nChar", "unknown layout");
    PATCHED(f, "CharStorage", "ByteStorage", "ByteStorage is not supported");
    PATCHED(f, "CharStorage\n", "CharStorage\0", "unknown layout");
    PATCHED(f,
            "X\x01\0\0\0"
            "0q\x02",
            "X\xff\0\0\0"
            "0q\x02",
            "unknown layout");
    PATCHED(f, "0q\x02", "1q\x02", "contradicts itself");
    PATCHED(f, "q\x03K\x03Nt", "q\x03K\x02Nt", "contradicts itself");
    PATCHED(f, "q\x03K\x03Nt", "q\x03I\x03Nt", "unknown layout");
    PATCHED(f, "a.\x03\0\0\0\0", "a.\x04\0\0\0\0", "contradicts itself");
    PATCHED(f, "Q.\x80\x02]", "R.\x80\x02]", "unknown layout");
    PATCHED(f,
            "q\x03K\x03Ntq\x04Q.\x80\x02]q\0X\x01\0\0\0"
            "0q\x01"
            "a.\x03",
            "q\x03K\x02Ntq\x04Q.\x80\x02]q\0X\x01\0\0\0"
            "0q\x01"
            "a.\x02",
            "contradicts itself");
    PATCHED(f, "B\xe3\0\0\0", "B\xe2\0\0\0", "opcode 0xff");
}

static void test_refused_tensors(void **state)
{
    fixture *f = *state;
    PATCHED(f, "_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_tensor_v3, which is refused");
    PATCHED(f, "_load_from_bytes", "_load_from_bytez", "_load_from_bytez, which is refused");
    PATCHED(f, "collections", "subprocess\x31", "subprocess1.OrderedDict, which is refused");
    PATCHED(f, "\x85RK\0", "\x85RK\x01", "beyond its storage");
    PATCHED(f, "\x85RK\0", "\x85RK\x04", "beyond its storage");
    PATCHED(f, "K\x01K\x03\x86K\x03K\x01", "K\x01K\x04\x86K\x03K\x01", "beyond its storage");
    PATCHED(f, "K\x01K\x03\x86K\x03K\x01", "K\x01K\x03\x86K\x03K\x02", "row by row");
    PATCHED(f, "K\x02K\x01\x86K\x01K\x01", "K\x02K\x01\x86K\x02K\x01", "row by row");
    PATCHED(f, "K\x03K\x01\x86\x89", "K\x03K\x01\x86N", "wrong arguments");
    PATCHED(f, "K\x03K\x01\x86\x89", "K\x03N)\x86\x89", "wrong arguments");
    PATCHED(f, "\x93)RtR", "\x93NRtR", "unknown");
    PATCHED(f, "\x93)RtR", "\x93)RNR", "unknown");
}

static void test_truncated_everywhere(void **state)
{
    fixture *f = *state;
    npy_dict *d;
    put_file(f, golden, sizeof golden - 1);
    for (size_t n = sizeof golden - 1; n-- > 0;) {
        assert_int_equal(truncate(f->path, (off_t)n), 0);
        assert_int_equal(npy_open(f->ctx, f->path, &d), TARE_E_FORMAT);
    }
}

/* Every byte of the pickle replaced: refused, or each entry still lies inside the file. */
static void test_every_byte_changed(void **state)
{
    fixture *f = *state;
    npy_dict *d;
    char data[8];
    put_file(f, golden, sizeof golden - 1);
    int fd = open(f->path, O_WRONLY);
    assert_true(fd >= 0);
    for (size_t n = sizeof HEADER - 1; n < sizeof golden - 1; n++) {
        char changed = (char)(golden[n] ^ 0x55);
        assert_int_equal(pwrite(fd, &changed, 1, (off_t)n), 1);
        tare_status status = npy_open(f->ctx, f->path, &d);
        assert_true(status == TARE_OK || status == TARE_E_FORMAT);
        for (size_t i = 0; status == TARE_OK && i < npy_count(d); i++)
            assert_int_equal(npy_read(d, npy_at(d, i), 0, data, (size_t)npy_at(d, i)->bytes),
                             TARE_OK);
        npy_close(d);
        assert_int_equal(pwrite(fd, &golden[n], 1, (off_t)n), 1);
    }
    close(fd);
}

/* Our own files need no memo, so their structure takes little more than their entries. */
static void test_many_entries(void **state)
{
    enum { MANY = 5000 };
    fixture *f = *state;
    npy_writer *w;
    npy_dict *d;
    char key[64];
    int value;
    assert_ok(f->ctx, npy_create(f->ctx, f->path, NPY_TENSORS, &w));
    for (int i = 0; i < MANY; i++) {
        snprintf(key, sizeof key, "model.layers.%d.mlp.down_proj", i);
        assert_ok(f->ctx, npy_begin(w, key, TARE_I32, 1, (size_t[]){1}));
        assert_ok(f->ctx, npy_append(w, &i, sizeof i));
    }
    assert_ok(f->ctx, npy_finish(w));
    assert_ok(f->ctx, npy_open(f->ctx, f->path, &d));
    assert_int_equal(npy_count(d), MANY);
    assert_true(tare_memory_peak(f->ctx) < (size_t)MANY * 512);
    assert_ok(f->ctx, npy_read(d, npy_find(d, "model.layers.1234.mlp.down_proj"), 0, &value, 4));
    assert_int_equal(value, 1234);
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
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_written_bytes),        TEST(test_reopened),           TEST(test_read),
        TEST(test_read_torch),           TEST(test_refused_storages),   TEST(test_refused_tensors),
        TEST(test_truncated_everywhere), TEST(test_every_byte_changed), TEST(test_many_entries),
        TEST(test_failing_allocations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
