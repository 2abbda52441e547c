/* Every allocation and every call to the operating system of a whole mix fails in turn: a clear
 * error, no leak, the old file whole, nothing beside it. The linker's --wrap hands the calls to the
 * functions below (CMakeLists.txt). */
#include <errno.h>
#include <sys/stat.h>
#include <sys/types.h>

#include "calib_fixture.h"

static struct {
    long count, at; /* calls so far; the one that fails (0: none) */
} faults;

static bool hit(void)
{
    errno = ENOSPC;
    return ++faults.count == faults.at;
}

ssize_t __real_pread64(int fd, void *data, size_t size, off_t offset);
ssize_t __wrap_pread64(int fd, void *data, size_t size, off_t offset);
ssize_t __wrap_pread64(int fd, void *data, size_t size, off_t offset)
{
    return hit() ? -1 : __real_pread64(fd, data, size, offset);
}

ssize_t __real_pwrite64(int fd, const void *data, size_t size, off_t offset);
ssize_t __wrap_pwrite64(int fd, const void *data, size_t size, off_t offset);
ssize_t __wrap_pwrite64(int fd, const void *data, size_t size, off_t offset)
{
    return hit() ? -1 : __real_pwrite64(fd, data, size, offset);
}

int __real_fsync(int fd);
int __wrap_fsync(int fd);
int __wrap_fsync(int fd)
{
    return hit() ? -1 : __real_fsync(fd);
}

int __real_fchmod(int fd, mode_t mode);
int __wrap_fchmod(int fd, mode_t mode);
int __wrap_fchmod(int fd, mode_t mode)
{
    return hit() ? -1 : __real_fchmod(fd, mode);
}

int __real_fallocate64(int fd, int mode, off_t offset, off_t size);
int __wrap_fallocate64(int fd, int mode, off_t offset, off_t size);
int __wrap_fallocate64(int fd, int mode, off_t offset, off_t size)
{
    return hit() ? -1 : __real_fallocate64(fd, mode, offset, size);
}

int __real_rename(const char *from, const char *to);
int __wrap_rename(const char *from, const char *to);
int __wrap_rename(const char *from, const char *to)
{
    return hit() ? -1 : __real_rename(from, to);
}

/* ---- the mix ---- */

static char folder[64], save[128];

static tare_status answer(void *user, tare_calib_task task, const tare_calib_question *questions,
                          size_t count, tare_calib_answer *answers)
{
    (void)user, (void)questions;
    tare_status status = TARE_OK;
    for (size_t i = 0; i < count && status == TARE_OK; i++) {
        if (task != TARE_CALIB_CHOOSE)
            status = tare_calib_answer_text(&answers[i], "B", 1);
    }
    return status;
}

/* All built-in sets, examples, compat's types, bad records that are skipped, a set of the caller's,
 * a verifier; with `user` a journal of what is finished. */
static tare_status mix(tare_context *ctx, void *user)
{
    static const char *const names[] = {"boolq", "ceval_5_shot", "gsm8k", "mmlu", "notes", "mine"};
    static const int64_t sizes[] = {3, 3, 0, 3, 2, 3};
    static const uint32_t seed[] = {5, 6};
    static const tare_calib_verifier verifier = {
        .size = sizeof verifier, .answer = answer, .identity = "{\"model\": {\"a\": \"1\"}}"};
    numbers mine = {.prefix = "n", .count = 6, .every = 2, .extra = "{\"k\": [1]}"};
    tare_status status = TARE_OK;
    tare_calib *calib = NULL;
    tare_calib_result *result = NULL;
    tare_calib_options o;
    tare_calib_options_init(&o);
    o.skip_bad = 1;
    o.mmlu_shots = 2;
    o.compat = "msmodelslim";
    o.sample_seed = seed;
    o.sample_seed_words = 2;
    o.overwrite = true;
    o.keep = user != NULL;
    TRY(tare_calib_open(ctx, "faults_config.json", save, &o, &calib));
    TRY(add_numbers(calib, "mine", &mine));
    TRY(tare_calib_set_sizes(calib, names, sizes, 6));
    TRY(tare_calib_set_shuffle_seed(calib, seed, 2));
    TRY(tare_calib_set_verifier(calib, &verifier));
    TRY(tare_calib_process(calib, &result));
done:
    tare_calib_result_free(result);
    tare_calib_free(calib);
    return status;
}

/* The folder holds what it should: the inputs, and the old file or the new one. */
static void assert_folder(tare_context *ctx, bool old)
{
    char **names, *text;
    size_t count, length, found = 0;
    assert_ok(ctx, folder_list(ctx, folder, &names, &count));
    for (size_t i = 0; i < count; i++) {
        found += strcmp(names[i], "mix.json") == 0;
        if (strstr(names[i], ".tmp"))
            fail_msg("%s was left", names[i]);
    }
    folder_list_free(ctx, names, count);
    assert_int_equal(found, 1);
    assert_ok(ctx, file_read_all(ctx, save, 1 << 20, &text, &length));
    assert_int_equal(strcmp(text, "old") == 0, old);
    mem_free(ctx, text);
}

static tare_status mix_or_nothing(tare_context *ctx, void *user)
{
    unlink(save);
    write_text(folder, "mix.json", "old");
    tare_status status = mix(ctx, user);
    tare_context *other = new_context(1);
    assert_folder(other, status != TARE_OK);
    free_context(other);
    return status;
}

static void test_allocations(void **state)
{
    (void)state;
    each_allocation_fails(mix_or_nothing, NULL);
}

/* The same with a journal, whose removal may fail when all is done. */
static void test_allocations_with_a_journal(void **state)
{
    (void)state;
    for (fault f = {.hit = true}, next = {.left = 0}; f.hit; next.left++) {
        tare_context_options options;
        init_options(&options);
        f = next;
        options.threads = 1;
        options.allow_allocation = fault_allow;
        options.user = &f;
        tare_context *ctx;
        assert_int_equal(tare_context_create(&ctx, &options), TARE_OK);
        tare_status status = mix_or_nothing(ctx, folder);
        if (status != TARE_OK && (!f.hit || status != TARE_E_MEMORY))
            fail_msg("allocation %ld failed: status %d: %s", next.left, (int)status,
                     tare_last_error(ctx));
        free_context(ctx);
    }
}

static void test_calls(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    faults.count = faults.at = 0;
    assert_ok(ctx, mix(ctx, folder));
    long calls = faults.count;
    assert_true(calls > 10);
    for (long at = 1; at <= calls; at++) {
        unlink(save);
        write_text(folder, "mix.json", "old");
        faults.count = 0;
        faults.at = at;
        tare_status status = mix(ctx, folder);
        faults.at = 0;
        if (status != TARE_E_IO && status != TARE_E_USAGE) /* the latter: of the config */
            fail_msg("call %ld failed: status %d: %s", at, (int)status, tare_last_error(ctx));
        assert_int_equal(tare_last_errno(ctx), ENOSPC);
        assert_folder(ctx, true);
    }
    free_context(ctx);
}

/* The data sets of the fixtures, beside a file of lines of which one is bad. */
static int prepare(void **state)
{
    (void)state;
    snprintf(folder, sizeof folder, "%s", temporary_folder());
    snprintf(save, sizeof save, "%s/mix.json", folder);
    write_text(folder, "notes.jsonl",
               "{\"prompt\": \"a\", \"ans\": 1, \"ans\": 2}\nbad\n{\"prompt\": \"b\", \"ans\": 1}");
    write_text(folder, "faults_config.json",
               "{\"configurations\": ["
               "{\"dataset_name\": \"boolq\", \"dataset_path\": \"data/boolq/dev.jsonl\"},"
               "{\"dataset_name\": \"ceval_5_shot\", \"dataset_path\": \"data/ceval_5_shot\"},"
               "{\"dataset_name\": \"gsm8k\", \"dataset_path\": \"data/gsm8k/GSM8K.jsonl\"},"
               "{\"dataset_name\": \"mmlu\", \"dataset_path\": \"data/cells/mmlu\"},"
               "{\"dataset_name\": \"other\", \"dataset_path\": \"\"},"
               "{\"dataset_name\": \"notes\", \"dataset_path\": \"notes.jsonl\","
               " \"type\": \"jsonl\"}]}");
    assert_int_equal(chdir(folder), 0);
    return symlink(TARE_TEST_DATA "/calibration", "data");
}

static int remove_all(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    assert_int_equal(chdir("/"), 0);
    assert_ok(ctx, folder_remove(ctx, folder));
    free_context(ctx);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_allocations),
                                       cmocka_unit_test(test_allocations_with_a_journal),
                                       cmocka_unit_test(test_calls)};
    return cmocka_run_group_tests(tests, prepare, remove_all);
}
