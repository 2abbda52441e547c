/* Files and folders: reads of every alignment, faults of the system (injected by this program's own
 * pread, pwrite and fsync, which the library then calls), writers, paths, folders. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "file_fixture.h"

/* What the next calls do: `interrupts` times EINTR, pieces of at most `most` bytes, or an
 * error. */
static struct {
    int interrupts;
    size_t most;
    int direct_error, read_error, write_error, direct_write_error, sync_error;
    size_t direct_reads, direct_writes;
} fault;

ssize_t pread(int fd, void *data, size_t size, off_t offset)
{
    bool direct = fcntl(fd, F_GETFL) & O_DIRECT;
    if (fault.interrupts > 0) {
        fault.interrupts--;
        errno = EINTR;
        return -1;
    }
    if (direct ? fault.direct_error : fault.read_error) {
        errno = direct ? fault.direct_error : fault.read_error;
        return -1;
    }
    __atomic_fetch_add(&fault.direct_reads, direct, __ATOMIC_RELAXED);
    if (fault.most && size > fault.most)
        size = fault.most;
    return syscall(SYS_pread64, fd, data, size, offset);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t offset)
{
    if (fault.interrupts > 0) {
        fault.interrupts--;
        errno = EINTR;
        return -1;
    }
    bool direct = fcntl(fd, F_GETFL) & O_DIRECT;
    int error = direct ? fault.direct_write_error : fault.write_error;
    if ((errno = error))
        return -1;
    fault.direct_writes += direct;
    return syscall(SYS_pwrite64, fd, data, fault.most && size > fault.most ? fault.most : size,
                   offset);
}

int fsync(int fd)
{
    if (fault.sync_error) {
        errno = fault.sync_error;
        return -1;
    }
    return (int)syscall(SYS_fsync, fd);
}

static int reset(void **state)
{
    memset(&fault, 0, sizeof fault);
    return teardown(state);
}

enum { LARGE = 9 * 1024 * 1024 + 1234 };

static unsigned char pattern(size_t i)
{
    return (unsigned char)((i * 2654435761u) >> 13);
}

static void put_large(fixture *f)
{
    unsigned char *data = malloc(LARGE);
    assert_non_null(data);
    for (size_t i = 0; i < LARGE; i++)
        data[i] = pattern(i);
    put_file(f, data, LARGE);
    free(data);
}

/* Reads [offset, offset+size) to an address that is `shift` past a page and checks every byte and
 * its two neighbours. */
static void check_range(fixture *f, file *in, size_t offset, size_t size, size_t shift)
{
    void *block = NULL;
    assert_int_equal(posix_memalign(&block, 4096, size + shift + 2), 0);
    unsigned char *data = (unsigned char *)block + shift;
    data[size] = 0xaa;
    if (shift)
        data[-1] = 0xbb;
    assert_ok(f->ctx, file_read_at(in, offset, data, size));
    size_t i = 0;
    while (i < size && data[i] == pattern(offset + i))
        i++;
    assert_int_equal(i, size);
    assert_int_equal(data[size], 0xaa);
    if (shift)
        assert_int_equal(data[-1], 0xbb);
    free(block);
}

static void check_ranges(fixture *f)
{
    static const size_t offsets[] = {0, 1, 4095, 4096, 4097, 1048576, 4194304, 4194305};
    static const size_t sizes[] = {0, 1, 4096, 131071, 131072, 200000, 4194304, 4194305, 4198400};
    file *in;
    assert_ok(f->ctx, file_open(f->ctx, f->path, &in));
    assert_int_equal(file_size(in), LARGE);
    assert_string_equal(file_path(in), f->path);
    for (size_t i = 0; i < sizeof offsets / sizeof *offsets; i++)
        for (size_t j = 0; j < sizeof sizes / sizeof *sizes; j++)
            check_range(f, in, offsets[i], sizes[j], j % 2 ? 1 : 0);
    check_range(f, in, 0, LARGE, 0);
    check_range(f, in, 0, LARGE, 64);
    check_range(f, in, LARGE - 200000, 200000, 0);
    check_range(f, in, LARGE, 0, 0);
    file_close(in);
}

/* The same by file_read_in, to memory that begins anywhere. */
static void check_read_in(fixture *f, file *in, size_t offset, size_t size, size_t shift)
{
    size_t room = file_read_room(size);
    char *block = malloc(room + shift + 1);
    void *data;
    block[room + shift] = 0x5a;
    assert_ok(f->ctx, file_read_in(in, offset, size, block + shift, &data));
    assert_true((char *)data >= block + shift && (char *)data + size <= block + shift + room);
    assert_int_equal((uintptr_t)data % 8, 0);
    size_t i = 0;
    while (i < size && ((unsigned char *)data)[i] == pattern(offset + i))
        i++;
    assert_int_equal(i, size);
    assert_int_equal(block[room + shift], 0x5a);
    free(block);
}

static void check_reads_in(fixture *f)
{
    static const size_t offsets[] = {0, 8, 4095, 4096, 4104, 1048577};
    static const size_t sizes[] = {0, 1, 4096, 131072, 200001, 4194304};
    file *in;
    assert_ok(f->ctx, file_open(f->ctx, f->path, &in));
    for (size_t i = 0; i < sizeof offsets / sizeof *offsets; i++)
        for (size_t j = 0; j < sizeof sizes / sizeof *sizes; j++)
            check_read_in(f, in, offsets[i], sizes[j], j * 8 + 1);
    check_read_in(f, in, 0, LARGE, 0);
    check_read_in(f, in, LARGE - 200000, 200000, 4096);
    void *data;
    char small[3 * 4096 + 2];
    assert_refused(f->ctx, file_read_in(in, LARGE, 1, small, &data), TARE_E_FORMAT, "truncated");
    file_close(in);
}

static void test_reads_in_place(void **state)
{
    put_large(*state);
    check_reads_in(*state);
    assert_true(fault.direct_reads > 0);
    fault.interrupts = 5;
    fault.most = 100000;
    check_reads_in(*state);
    fault.most = 0;
    fault.direct_error = EINVAL;
    check_reads_in(*state);
}

static void test_reads_of_every_alignment(void **state)
{
    put_large(*state);
    check_ranges(*state);
}

static void test_interrupted_and_short_reads(void **state)
{
    put_large(*state);
    fault.interrupts = 5;
    fault.most = 100000; /* no multiple of a block: direct reading must give way */
    check_ranges(*state);
    fault.most = 8192;
    check_ranges(*state);
}

static void test_direct_reads_are_optional(void **state)
{
    put_large(*state);
    fault.direct_error = EINVAL;
    check_ranges(*state);
    assert_int_equal(fault.direct_reads, 0);
}

static void test_small_files_are_buffered(void **state)
{
    fixture *f = *state;
    char *data = calloc(1, 1024 * 1024 - 1);
    put_file(f, data, 1024 * 1024 - 1);
    file *in;
    assert_ok(f->ctx, file_open(f->ctx, f->path, &in));
    assert_ok(f->ctx, file_read_at(in, 0, data, 1024 * 1024 - 1));
    assert_int_equal(fault.direct_reads, 0);
    file_close(in);
    free(data);
}

static void test_read_errors(void **state)
{
    fixture *f = *state;
    put_large(f);
    char *data = malloc(LARGE);
    file *in;
    assert_ok(f->ctx, file_open(f->ctx, f->path, &in));
    assert_refused(f->ctx, file_read_at(in, LARGE, data, 1), TARE_E_FORMAT, "truncated");
    assert_refused(f->ctx, file_read_at(in, 1, data, LARGE), TARE_E_FORMAT, f->path);
    assert_refused(f->ctx, file_read_at(in, UINT64_MAX, data, 2), TARE_E_FORMAT, "truncated");
    fault.read_error = fault.direct_error = EIO;
    assert_refused(f->ctx, file_read_at(in, 0, data, 10), TARE_E_IO, "Input/output error");
    assert_refused(f->ctx, file_read_at(in, 0, data, LARGE), TARE_E_IO, f->path);
    fault.read_error = fault.direct_error = 0;
    /* The file shrinks while it is open. */
    assert_int_equal(truncate(f->path, 5 * 1024 * 1024 + 5), 0);
    assert_refused(f->ctx, file_read_at(in, 0, data, LARGE), TARE_E_FORMAT, "truncated");
    assert_refused(f->ctx, file_read_at(in, LARGE - 10, data, 10), TARE_E_FORMAT, "truncated");
    assert_ok(f->ctx, file_read_at(in, 0, data, 5 * 1024 * 1024 + 5));
    file_close(in);
    free(data);
}

static void test_only_regular_files_open(void **state)
{
    fixture *f = *state;
    file *in;
    char link[160], fifo[160];
    snprintf(link, sizeof link, "%s/link", f->folder);
    snprintf(fifo, sizeof fifo, "%s/fifo", f->folder);
    assert_int_equal(mkfifo(fifo, 0600), 0);
    assert_refused(f->ctx, file_open(f->ctx, fifo, &in), TARE_E_IO, "not a regular file");
    assert_null(in);
    assert_refused(f->ctx, file_open(f->ctx, f->folder, &in), TARE_E_IO, "a folder");
    assert_refused(f->ctx, file_open(f->ctx, "/dev/zero", &in), TARE_E_IO, "/dev/zero");
    assert_refused(f->ctx, file_open(f->ctx, f->path, &in), TARE_E_IO, "No such file");
    put_file(f, "x", 1);
    assert_int_equal(symlink(f->path, link), 0);
    assert_ok(f->ctx, file_open(f->ctx, link, &in));
    file_close(in);
}

typedef struct reader {
    fixture *f;
    file *in;
    size_t begin;
    bool right;
} reader;

static void *read_slices(void *user)
{
    reader *r = user;
    enum { SLICE = 300001 };
    unsigned char *data = malloc(SLICE);
    r->right = data != NULL;
    for (size_t at = r->begin; r->right && at + SLICE < LARGE; at += 4 * SLICE) {
        r->right = file_read_at(r->in, at, data, SLICE) == TARE_OK;
        for (size_t i = 0; r->right && i < SLICE; i++)
            r->right = data[i] == pattern(at + i);
    }
    free(data);
    return NULL;
}

static void test_threads_share_a_file(void **state)
{
    fixture *f = *state;
    pthread_t threads[4];
    reader readers[4];
    file *in;
    put_large(f);
    assert_ok(f->ctx, file_open(f->ctx, f->path, &in));
    for (size_t i = 0; i < 4; i++) {
        readers[i] = (reader){.f = f, .in = in, .begin = i * 300001};
        assert_int_equal(pthread_create(&threads[i], NULL, read_slices, &readers[i]), 0);
    }
    for (size_t i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
        assert_true(readers[i].right);
    }
    file_close(in);
}

static void test_read_all(void **state)
{
    fixture *f = *state;
    char *data;
    size_t length;
    put_file(f, "abc", 3);
    assert_ok(f->ctx, file_read_all(f->ctx, f->path, 3, &data, &length));
    assert_int_equal(length, 3);
    assert_string_equal(data, "abc");
    mem_free(f->ctx, data);
    assert_refused(f->ctx, file_read_all(f->ctx, f->path, 2, &data, &length), TARE_E_FORMAT,
                   "at most 2");
    assert_null(data);
    put_file(f, "", 0);
    assert_ok(f->ctx, file_read_all(f->ctx, f->path, 0, &data, &length));
    assert_string_equal(data, "");
    mem_free(f->ctx, data);
}

static void test_writer(void **state)
{
    fixture *f = *state;
    struct stat st;
    file_writer *w;
    umask(0);
    fault.interrupts = 2;
    fault.most = 3;
    assert_ok(f->ctx, file_create(f->ctx, f->path, 10, &w));
    assert_int_equal(stat(f->path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0666);
    assert_int_equal(st.st_size, 10);
    assert_ok(f->ctx, file_append(w, "0123", 4));
    assert_ok(f->ctx, file_write_at(w, 6, "6789", 4));
    assert_ok(f->ctx, file_append(w, "45", 2));
    assert_refused(f->ctx, file_write_at(w, UINT64_MAX, "x", 1), TARE_E_IO, "File too large");
    assert_ok(f->ctx, file_finish(w));
    assert_file(f, "0123456789", 10);
    assert_refused(f->ctx, file_create(f->ctx, f->path, 0, &w), TARE_E_IO, "File exists");
    assert_null(w);
    assert_file(f, "0123456789", 10);
}

/* A file in parts that begin and end anywhere in a block, the last one first. */
static void write_in_parts(fixture *f)
{
    static const size_t ends[] = {0, 5, 4096, 300000, 300001, 4194304, 9000000, LARGE};
    unsigned char *data = malloc(LARGE);
    file_writer *w;
    for (size_t i = 0; i < LARGE; i++)
        data[i] = pattern(i);
    assert_ok(f->ctx, file_create(f->ctx, f->path, LARGE, &w));
    for (size_t i = sizeof ends / sizeof *ends - 1; i > 0; i--)
        assert_ok(f->ctx, file_write_at(w, ends[i - 1], data + ends[i - 1], ends[i] - ends[i - 1]));
    assert_ok(f->ctx, file_finish(w));
    assert_file(f, data, LARGE);
    assert_int_equal(unlink(f->path), 0);
    assert_ok(f->ctx, file_write_all(f->ctx, f->path, data, LARGE)); /* as it grows */
    assert_file(f, data, LARGE);
    assert_int_equal(unlink(f->path), 0);
    free(data);
}

static void test_large_writes_are_direct(void **state)
{
    fixture *f = *state;
    write_in_parts(f);
    assert_true(fault.direct_writes >= LARGE / (1 << 20));
    fault.interrupts = 5;
    fault.most = 100000; /* no multiple of a block: direct writing must give way */
    write_in_parts(f);
    fault.most = 8192;
    write_in_parts(f);
    fault.most = 0;
    fault.direct_writes = 0;
    fault.direct_write_error = EINVAL;
    write_in_parts(f);
    assert_int_equal(fault.direct_writes, 0);
    fault.direct_write_error = ENOSPC;
    static char data[1 << 20];
    assert_refused(f->ctx, file_write_all(f->ctx, f->path, data, sizeof data), TARE_E_IO,
                   "No space left on device");
    assert_false(path_exists(f->path));
}

static void test_writer_follows_no_link(void **state)
{
    fixture *f = *state;
    char link[160];
    file_writer *w;
    snprintf(link, sizeof link, "%s/link", f->folder);
    assert_int_equal(symlink(f->path, link), 0);
    assert_refused(f->ctx, file_create(f->ctx, link, 0, &w), TARE_E_IO, link);
    assert_false(path_exists(f->path));
}

static void test_failed_writes_leave_no_file(void **state)
{
    fixture *f = *state;
    file_writer *w;
    fault.write_error = ENOSPC;
    assert_refused(f->ctx, file_write_all(f->ctx, f->path, "abc", 3), TARE_E_IO,
                   "No space left on device");
    assert_refused(f->ctx, file_write_all(f->ctx, f->path, "abc", 3), TARE_E_IO, "free some space");
    assert_false(path_exists(f->path));
    fault.write_error = 0;
    fault.sync_error = EIO;
    assert_refused(f->ctx, file_write_all(f->ctx, f->path, "abc", 3), TARE_E_IO, "sync");
    assert_false(path_exists(f->path));
    fault.sync_error = 0;
    assert_ok(f->ctx, file_create(f->ctx, f->path, 0, &w));
    file_abandon(w);
    assert_false(path_exists(f->path));
    /* More than any file system holds: seen at once. */
    assert_int_equal(file_create(f->ctx, f->path, UINT64_C(1) << 62, &w), TARE_E_IO);
    assert_int_equal(file_create(f->ctx, f->path, UINT64_MAX, &w), TARE_E_IO);
    assert_false(path_exists(f->path));
}

static void test_copy(void **state)
{
    fixture *f = *state;
    char copy[160];
    char *a, *b;
    size_t m, n;
    put_large(f);
    snprintf(copy, sizeof copy, "%s/copy", f->folder);
    assert_refused(f->ctx, file_copy(f->ctx, f->path, copy, LARGE - 1), TARE_E_FORMAT, "at most");
    assert_false(path_exists(copy));
    assert_ok(f->ctx, file_copy(f->ctx, f->path, copy, LARGE));
    assert_ok(f->ctx, file_read_all(f->ctx, f->path, LARGE, &a, &m));
    assert_ok(f->ctx, file_read_all(f->ctx, copy, LARGE, &b, &n));
    assert_int_equal(m, n);
    assert_memory_equal(a, b, m);
    mem_free(f->ctx, a);
    mem_free(f->ctx, b);
    assert_refused(f->ctx, file_copy(f->ctx, f->path, copy, LARGE), TARE_E_IO, "File exists");
}

static void assert_real(fixture *f, const char *path, const char *expected)
{
    char *real;
    assert_ok(f->ctx, path_real(f->ctx, path, &real));
    assert_string_equal(real, expected);
    mem_free(f->ctx, real);
}

static void test_path_real(void **state)
{
    fixture *f = *state;
    char home[PATH_MAX], path[PATH_MAX + 64], expected[PATH_MAX + 64];
    char *real;
    assert_non_null(realpath(f->folder, home));
    assert_real(f, f->folder, home);
    assert_real(f, "/", "/");
    assert_real(f, "/no-such-folder-of-tare//a/./b/../c/", "/no-such-folder-of-tare/a/c");
    assert_real(f, "/no-such-folder-of-tare/../../..", "/");
    snprintf(path, sizeof path, "%s/x/../y", f->folder);
    snprintf(expected, sizeof expected, "%s/y", home);
    assert_real(f, path, expected);
    snprintf(path, sizeof path, "%s/link", f->folder);
    assert_int_equal(symlink("/no-such-folder-of-tare", path), 0);
    assert_refused(f->ctx, path_real(f->ctx, path, &real), TARE_E_IO, "link");
    assert_int_equal(unlink(path), 0);
    assert_int_equal(symlink(home, path), 0);
    snprintf(path, sizeof path, "%s/link/new", f->folder);
    snprintf(expected, sizeof expected, "%s/new", home);
    assert_real(f, path, expected);
    assert_refused(f->ctx, path_real(f->ctx, "", &real), TARE_E_IO, "resolve");
    put_file(f, "x", 1);
    snprintf(path, sizeof path, "%s/file/below", f->folder);
    assert_refused(f->ctx, path_real(f->ctx, path, &real), TARE_E_IO, "Not a directory");
    assert_non_null(getcwd(home, sizeof home));
    snprintf(expected, sizeof expected, "%s/no-such-name-of-tare", home);
    assert_real(f, "no-such-name-of-tare", expected);
}

static void test_path_contains(void **state)
{
    (void)state;
    assert_true(path_contains("/a", "/a"));
    assert_true(path_contains("/a", "/a/b"));
    assert_true(path_contains("/", "/a"));
    assert_false(path_contains("/a", "/ab"));
    assert_false(path_contains("/a/b", "/a"));
}

static void test_folders(void **state)
{
    fixture *f = *state;
    char path[160], outside[160];
    char **names;
    size_t count;
    struct stat st;
    umask(0);
    snprintf(path, sizeof path, "%s/a//b/c/", f->folder);
    assert_ok(f->ctx, folder_create(f->ctx, path));
    assert_ok(f->ctx, folder_create(f->ctx, path));
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0777);
    umask(022);
    snprintf(path, sizeof path, "%s/p/q//", f->folder);
    assert_ok(f->ctx, folder_create_private(f->ctx, path));
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0700);
    snprintf(path, sizeof path, "%s/p", f->folder);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0755);
    assert_ok(f->ctx, folder_remove(f->ctx, path));
    snprintf(path, sizeof path, "%s/a//b/c/", f->folder);
    assert_true(path_is_folder(path));
    assert_ok(f->ctx, folder_sync(f->ctx, path));
    put_file(f, "x", 1);
    assert_false(path_is_folder(f->path));
    assert_refused(f->ctx, folder_create(f->ctx, f->path), TARE_E_FOLDER, f->path);
    snprintf(path, sizeof path, "%s/file/b", f->folder);
    assert_refused(f->ctx, folder_create(f->ctx, path), TARE_E_FOLDER, f->path);
    snprintf(path, sizeof path, "%s/B", f->folder);
    assert_ok(f->ctx, file_rename(f->ctx, f->path, path));
    assert_refused(f->ctx, file_rename(f->ctx, f->path, path), TARE_E_IO, "No such file");
    assert_ok(f->ctx, folder_list(f->ctx, f->folder, &names, &count));
    assert_int_equal(count, 2);
    assert_string_equal(names[0], "B");
    assert_string_equal(names[1], "a");
    folder_list_free(f->ctx, names, count);
    /* What a link leads to stays. */
    snprintf(outside, sizeof outside, "%s/a/b/link", f->folder);
    assert_int_equal(symlink(path, outside), 0);
    snprintf(outside, sizeof outside, "%s/a", f->folder);
    assert_ok(f->ctx, folder_remove(f->ctx, outside));
    assert_false(path_exists(outside));
    assert_true(path_exists(path));
    assert_ok(f->ctx, folder_remove(f->ctx, outside));
    assert_int_equal(folder_list(f->ctx, outside, &names, &count), TARE_E_IO);
}

static void test_folder_list_is_sorted(void **state)
{
    fixture *f = *state;
    char **names;
    size_t count;
    for (int i = 0; i < 300; i++) {
        char path[160];
        snprintf(path, sizeof path, "%s/%d", f->folder, i * 7919 % 1000);
        fclose(fopen(path, "w"));
    }
    assert_ok(f->ctx, folder_list(f->ctx, f->folder, &names, &count));
    assert_int_equal(count, 300);
    for (size_t i = 1; i < count; i++)
        assert_true(strcmp(names[i - 1], names[i]) < 0);
    folder_list_free(f->ctx, names, count);
}

static void test_free_space(void **state)
{
    fixture *f = *state;
    uint64_t bytes;
    assert_ok(f->ctx, folder_free_space(f->ctx, f->folder, &bytes));
    assert_true(bytes > 0);
    assert_int_equal(folder_free_space(f->ctx, "/no-such-folder-of-tare", &bytes), TARE_E_IO);
}

static tare_status use_everything(tare_context *ctx, fixture *f)
{
    tare_status status = TARE_OK;
    char copy[160], *data = NULL, **names = NULL;
    size_t length, count = 0;
    snprintf(copy, sizeof copy, "%s/copy", f->folder);
    unlink(copy);
    TRY(file_copy(ctx, f->path, copy, LARGE));
    TRY(file_read_all(ctx, copy, LARGE, &data, &length));
    mem_free(ctx, data);
    data = NULL;
    TRY(folder_list(ctx, f->folder, &names, &count));
    folder_list_free(ctx, names, count);
    TRY(path_real(ctx, copy, &data));
    TRY(folder_create(ctx, f->folder));
done:
    mem_free(ctx, data);
    return status;
}

static void test_failing_allocations(void **state)
{
    put_large(*state);
    fail_each_allocation(*state, use_everything);
}

#undef TEST
#define TEST(function) cmocka_unit_test_setup_teardown(function, setup, reset)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_reads_of_every_alignment),
        TEST(test_reads_in_place),
        TEST(test_interrupted_and_short_reads),
        TEST(test_direct_reads_are_optional),
        TEST(test_small_files_are_buffered),
        TEST(test_read_errors),
        TEST(test_only_regular_files_open),
        TEST(test_threads_share_a_file),
        TEST(test_read_all),
        TEST(test_writer),
        TEST(test_large_writes_are_direct),
        TEST(test_writer_follows_no_link),
        TEST(test_failed_writes_leave_no_file),
        TEST(test_copy),
        TEST(test_path_real),
        TEST(test_path_contains),
        TEST(test_folders),
        TEST(test_folder_list_is_sorted),
        TEST(test_free_space),
        TEST(test_failing_allocations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
