/* A whole run on a tiny model with something going wrong at the n-th allocation, at the n-th call
 * to the operating system, or with a kill there: every fault is a clear error without a leak and
 * without a file under a final name, and a killed run goes on to the same bytes.
 *
 * The linker's --wrap hands the calls to the functions below (CMakeLists.txt). Which points are
 * tried: about TARE_FAULT_POINTS of each kind (environment; default 24; 0: all of them). */
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/wait.h>

#include "fixture.h"

#define GOLDEN TARE_TEST_DATA "/golden/"
enum { LAYERS = 4 }; /* of the model that most runs are about */

/* ---- the calls ---- */

typedef enum call_kind {
    CALL_READ,
    CALL_WRITE,
    CALL_SYNC,
    CALL_RESERVE,
    CALL_RENAME,
    CALLS
} call_kind;

typedef enum fault_action { COUNT, FAIL, SHORT, KILL } fault_action;

static struct {
    fault_action action;
    bool of[CALLS]; /* which calls count */
    int error;
    long count, at; /* calls so far; the one that is hit */
} faults;

/* Is this the call? With KILL there is no return. */
static bool hit(call_kind kind)
{
    if (!faults.of[kind] || __atomic_add_fetch(&faults.count, 1, __ATOMIC_SEQ_CST) != faults.at)
        return false;
    if (faults.action == KILL)
        raise(SIGKILL);
    errno = faults.error;
    return faults.action != COUNT;
}

ssize_t __real_pread64(int fd, void *data, size_t size, off_t offset);
ssize_t __wrap_pread64(int fd, void *data, size_t size, off_t offset);
ssize_t __wrap_pread64(int fd, void *data, size_t size, off_t offset)
{
    if (!hit(CALL_READ))
        return __real_pread64(fd, data, size, offset);
    return faults.action == SHORT ? __real_pread64(fd, data, (size + 1) / 2, offset) : -1;
}

ssize_t __real_pwrite64(int fd, const void *data, size_t size, off_t offset);
ssize_t __wrap_pwrite64(int fd, const void *data, size_t size, off_t offset);
ssize_t __wrap_pwrite64(int fd, const void *data, size_t size, off_t offset)
{
    if (!hit(CALL_WRITE))
        return __real_pwrite64(fd, data, size, offset);
    return faults.action == SHORT ? __real_pwrite64(fd, data, (size + 1) / 2, offset) : -1;
}

int __real_fsync(int fd);
int __wrap_fsync(int fd);
int __wrap_fsync(int fd)
{
    return hit(CALL_SYNC) ? -1 : __real_fsync(fd);
}

int __real_fallocate64(int fd, int mode, off_t offset, off_t size);
int __wrap_fallocate64(int fd, int mode, off_t offset, off_t size);
int __wrap_fallocate64(int fd, int mode, off_t offset, off_t size)
{
    return hit(CALL_RESERVE) ? -1 : __real_fallocate64(fd, mode, offset, size);
}

int __real_rename(const char *from, const char *to);
int __wrap_rename(const char *from, const char *to);
int __wrap_rename(const char *from, const char *to)
{
    return hit(CALL_RENAME) ? -1 : __real_rename(from, to);
}

/* ---- the run ---- */

typedef struct job {
    const char *out;
    bool resume;
    fault *allocations;     /* NULL: none fails */
    bool no_resume, trusts; /* no checkpoints; no verification */
} job;

static char folder[64], reference[96], out[96];

/* Set by the group's set-up. */
#define LLAMA   GOLDEN "llama/model"
#define PROMPTS GOLDEN "calib_ids.json"
static const char *model = LLAMA, *calib = PROMPTS;
static bool weights_alone, recorded;

typedef const char *setting[2];

/* Everything at once: two passes, smoothing, FA that is written late, two save types; weights
 * alone, whose pieces are read and written by threads, as compressed-tensors beside ascendv1; or
 * static, dynamic and weight-only linears in each layer; or scales of keys and values. */
static const setting whole[] = {
    {"quant.act_method", "3"}, {"anti_outlier.anti_method", "m4"}, {"fa_quant", "true"},
    {"fa_quant.fa_amp", "1"},  {"fallback.disable_level", "L1"},   {"calibration.samples", "3"},
    {"run.dtype", "bfloat16"}, {"save.types", "ascendv1,numpy"},   {NULL}};
static const setting alone[] = {{"quant.a_bit", "16"},
                                {"mix", "*.mlp.*=w8a8_dynamic"},
                                {"save.types", "ascendv1,compressed-tensors"},
                                {NULL}};
static const setting several[] = {{"quant.scheme", "w8a8_dynamic"},
                                  {"quant.weight_method", "gptq"},
                                  {"mix", "*.o_proj=w8a16,*.self_attn.*=w8a8"},
                                  {"calibration.samples", "2"},
                                  {"save.types", "safe_tensor,compressed-tensors"},
                                  {NULL}};
static const setting cached[] = {{"quant.kv_cache", "c8"},
                                 {"calibration.samples", "2"},
                                 {"save.types", "safe_tensor,numpy"},
                                 {NULL}};
/* Two passes, between which scales wait. */
static const setting cached_before[] = {{"quant.kv_cache", "c8"},
                                        {"quant.kv_sym", "false"},
                                        {"run.compat", "msmodelslim"},
                                        {"fallback.disable_level", "L1"},
                                        {"calibration.samples", "2"},
                                        {"save.types", "safe_tensor"},
                                        {NULL}};
/* An MTP layer behind the others, by which the head is seen in between. */
static const setting with_mtp[] = {{"quant.mtp", "mix"},
                                   {"quant.act_method", "3"},
                                   {"anti_outlier.anti_method", "m6"},
                                   {"fallback.disable_last_linear", "false"},
                                   {"calibration.samples", "2"},
                                   {"save.types", "safe_tensor,numpy"},
                                   {NULL}};
/* Experts, of which each ends with a checkpoint, while the float stream runs beside; or in a pass
 * of its own. */
static const setting experts[] = {
    {"quant.act_method", "3"}, {"anti_outlier.anti_method", "m4"},  {"fa_quant", "true"},
    {"fa_quant.fa_amp", "1"},  {"save.types", "safe_tensor,numpy"}, {NULL}};
static const setting experts_after[] = {{"anti_outlier.anti_method", "m4"},
                                        {"fallback.disable_level", "L1"},
                                        {"save.types", "safe_tensor"},
                                        {NULL}};
static const setting *settings = whole; /* set by the group's set-up, too */

static tare_status set_recipe(tare_recipe *recipe)
{
    tare_status status = TARE_OK;
    for (const setting *s = settings; (*s)[0] && status == TARE_OK; s++)
        status = tare_recipe_set(recipe, (*s)[0], (*s)[1]);
    return status;
}

/* The same output by way of a recording. Saving has nothing to go on from: it writes anew. */
static tare_status record_and_save(tare_context *ctx, tare_quantize_options *o, const job *j)
{
    static const char *const types[] = {"ascendv1", "numpy"};
    tare_recording *recording;
    tare_save_options s;
    tare_save_options_init(&s);
    s.out = j->out;
    s.types = types;
    s.num_types = 2;
    s.overwrite = j->resume;
    o->out = NULL;
    o->scratch_dir = folder;
    tare_status status = tare_record(ctx, o, &recording, NULL);
    if (status == TARE_OK)
        status = tare_save(recording, &s, NULL);
    tare_recording_free(recording);
    return status;
}

static tare_status quantize(tare_context *ctx, const job *j)
{
    tare_recipe *recipe = NULL;
    tare_quantize_options o;
    tare_quantize_options_init(&o);
    o.model = model;
    o.calib = weights_alone ? NULL : calib;
    o.out = j->out;
    o.resume = j->resume;
    o.no_resume = j->no_resume;
    o.verify = !j->trusts;
    o.checkpoint_every = o.checkpoint_experts = 1;
    tare_status status = tare_recipe_create(ctx, &recipe);
    if (status == TARE_OK)
        status = set_recipe(recipe);
    o.recipe = recipe;
    if (status == TARE_OK)
        status = recorded ? record_and_save(ctx, &o, j) : tare_quantize(ctx, &o, NULL);
    tare_recipe_free(recipe);
    return status;
}

static size_t open_files(void)
{
    size_t n = 0;
    DIR *d = opendir("/proc/self/fd");
    assert_non_null(d);
    while (readdir(d))
        n++;
    closedir(d);
    return n;
}

static char said[4096]; /* by the last run */

static void keep_log(void *user, tare_log_level level, const char *message)
{
    size_t used = strlen(said);
    (void)user, (void)level;
    snprintf(said + used, sizeof said - used, "%s\n", message);
}

/* The run, with a message; every block and every descriptor must be back. */
static tare_status run(const job *j, char message[512])
{
    size_t before = open_files();
    tare_context *ctx;
    tare_context_options options;
    init_options(&options);
    options.threads = 1;
    options.log = keep_log;
    said[0] = '\0';
    if (j->allocations) {
        options.allow_allocation = fault_allow;
        options.user = j->allocations;
    }
    assert_int_equal(tare_context_create(&ctx, &options), TARE_OK);
    tare_status status = quantize(ctx, j);
    snprintf(message, 512, "%s", tare_last_error(ctx));
    free_context(ctx);
    assert_int_equal(open_files(), before);
    return status;
}

/* ---- folders ---- */

static void remove_tree(const char *path)
{
    tare_context *ctx = new_context(1);
    assert_ok(ctx, folder_remove(ctx, path));
    free_context(ctx);
}

static void make_reference(void)
{
    char message[512];
    faults.action = COUNT;
    faults.at = 0;
    if (run(&(job){.out = reference}, message) != TARE_OK)
        fail_msg("the run without a fault: %s", message);
}

static int set_up(void **state)
{
    (void)state;
    /* In memory where that works: the run syncs hundreds of times. */
    snprintf(folder, sizeof folder, "/dev/shm/tare-test-XXXXXX");
    if (!mkdtemp(folder))
        snprintf(folder, sizeof folder, "%s", temporary_folder());
    snprintf(reference, sizeof reference, "%s/reference", folder);
    snprintf(out, sizeof out, "%s/out", folder);
    make_reference();
    return 0;
}

static int set_up_recorded(void **state)
{
    int status = set_up(state); /* the reference is written directly */
    recorded = true;
    return status;
}

static int set_up_mixed(void **state)
{
    recorded = false;
    settings = several;
    return set_up(state);
}

static int set_up_cached(void **state)
{
    settings = cached;
    return set_up(state);
}

static int set_up_cached_before(void **state)
{
    settings = cached_before;
    return set_up(state);
}

static int set_up_mtp(void **state)
{
    model = GOLDEN "deepseek_v3_mtp/model";
    calib = GOLDEN "deepseek_v3_mtp/calib_ids.json";
    settings = with_mtp;
    return set_up(state);
}

static int set_up_experts(void **state)
{
    settings = experts;
    model = GOLDEN "deepseek_v3_noq/model";
    calib = GOLDEN "deepseek_v3_noq/calib_ids.json";
    return set_up(state);
}

static int set_up_experts_after(void **state)
{
    settings = experts_after;
    model = GOLDEN "qwen3_moe/model";
    calib = GOLDEN "qwen3_moe/calib_ids.json";
    return set_up(state);
}

static int set_up_weights_alone(void **state)
{
    recorded = false;
    model = LLAMA;
    calib = PROMPTS;
    weights_alone = true;
    settings = alone;
    return set_up(state);
}

static int tear_down(void **state)
{
    (void)state;
    remove_tree(folder);
    return 0;
}

/* Files below `path` whose names are final: all but what lies in .tare. */
static size_t final_files(const char *path)
{
    size_t n = 0;
    DIR *d = opendir(path);
    if (!d)
        return 0;
    for (struct dirent *e; (e = readdir(d));) {
        char below[600];
        snprintf(below, sizeof below, "%s/%s", path, e->d_name);
        if (e->d_name[0] == '.')
            continue;
        n += e->d_type == DT_DIR ? final_files(below) : 1;
    }
    closedir(d);
    return n;
}

static size_t staged_files(void)
{
    char stage[300];
    snprintf(stage, sizeof stage, "%s/.tare/stage", out);
    return final_files(stage);
}

static void assert_same_bytes(void)
{
    char command[400];
    /* A recording has no statistics. */
    snprintf(command, sizeof command, "diff -r -x .tare %s '%s' '%s'", recorded ? "-x tare" : "",
             reference, out);
    FILE *p = popen(command, "r");
    assert_non_null(p);
    char difference[400] = "";
    size_t n = fread(difference, 1, sizeof difference - 1, p);
    if (pclose(p) != 0)
        fail_msg("%.*s", (int)n, difference);
}

/* ---- another tare ---- */

static bool output_is_bad; /* by the rules of verify */
static const char *other_version;

tare_status __real_tare_verify(tare_context *ctx, const tare_verify_options *options,
                               tare_verify_result *result);
tare_status __wrap_tare_verify(tare_context *ctx, const tare_verify_options *options,
                               tare_verify_result *result);
tare_status __wrap_tare_verify(tare_context *ctx, const tare_verify_options *options,
                               tare_verify_result *result)
{
    const tare_finding broken = {8, TARE_FINDING_FAILURE, "lm_head", "this", "that"};
    if (!output_is_bad)
        return __real_tare_verify(ctx, options, result);
    result->failures = 1;
    options->finding(options->user, &broken);
    return TARE_FAIL(ctx, TARE_E_VERIFY, "a rule is broken");
}

const char *__real_tare_version(void);
const char *__wrap_tare_version(void);
const char *__wrap_tare_version(void)
{
    return other_version ? other_version : __real_tare_version();
}

/* ---- the points ---- */

static long stride_of(long total)
{
    const char *text = getenv("TARE_FAULT_POINTS");
    long points = text ? atol(text) : 24;
    return points > 0 && total > points ? total / points : 1;
}

static void count_calls(const bool of[CALLS])
{
    char message[512];
    faults.action = COUNT;
    faults.count = faults.at = 0;
    memcpy(faults.of, of, sizeof faults.of);
    remove_tree(out);
    assert_int_equal(run(&(job){.out = out}, message), TARE_OK);
}

static void goes_on(const char *what, long n)
{
    char message[512];
    faults.action = COUNT;
    faults.at = 0;
    if (run(&(job){.out = out, .resume = true}, message) != TARE_OK)
        fail_msg("resumed after %s %ld: %s", what, n, message);
    assert_same_bytes();
    /* The place is one of those that there are. */
    const char *place = strstr(said, "going on behind ");
    if (!place)
        return;
    char unit[16];
    size_t at, of;
    assert_int_equal(sscanf(place, "going on behind %15s %zu of %zu", unit, &at, &of), 3);
    assert_string_equal(unit, weights_alone ? "tensor" : "layer");
    assert_true(at <= of);
}

/* ---- tests ---- */

static void every_allocation_may_fail(void **state)
{
    (void)state;
    fault counter = {.left = 1L << 60};
    char message[512];
    remove_tree(out);
    assert_int_equal(run(&(job){.out = out, .allocations = &counter}, message), TARE_OK);
    long total = (1L << 60) - counter.left;
    for (long n = 0; n < total; n += stride_of(total)) {
        fault f = {.left = n};
        remove_tree(out);
        tare_status status = run(&(job){.out = out, .allocations = &f}, message);
        if (status == TARE_OK) { /* it was needed for tidying up alone */
            assert_same_bytes();
            continue;
        }
        if (status != TARE_E_MEMORY)
            fail_msg("allocation %ld of %ld: status %d: %s", n, total, (int)status, message);
        if (final_files(out) != 0)
            fail_msg("allocation %ld of %ld: a file stands under a final name", n, total);
    }
}

/* A failed call is TARE_E_IO (TARE_E_FOLDER: of the output folder; TARE_E_VERIFY: a file that the
 * last check cannot read is a finding) with a sentence, or does not matter; then the output is
 * whole. */
static void each_call_fails(const bool of[CALLS], int error, const char *what)
{
    count_calls(of);
    long total = faults.count;
    assert_true(total > 3);
    for (long n = 1; n <= total; n += stride_of(total)) {
        char message[512];
        remove_tree(out);
        faults.action = FAIL;
        faults.error = error;
        faults.count = 0;
        faults.at = n;
        tare_status status = run(&(job){.out = out}, message);
        if (status == TARE_OK) {
            assert_same_bytes();
            continue;
        }
        bool expected = status == TARE_E_IO || status == TARE_E_FOLDER ||
                        (status == TARE_E_VERIFY && of[CALL_READ]);
        if (!expected || strlen(message) < 10)
            fail_msg("%s %ld of %ld: status %d: %s", what, n, total, (int)status, message);
        if (final_files(out) != 0)
            fail_msg("%s %ld of %ld: a file stands under a final name", what, n, total);
        goes_on(what, n);
    }
}

static void every_read_may_fail(void **state)
{
    (void)state;
    each_call_fails((bool[CALLS]){[CALL_READ] = true}, EIO, "read");
}

static void every_write_may_fail(void **state)
{
    (void)state;
    each_call_fails((bool[CALLS]){[CALL_WRITE] = true}, EIO, "write");
}

static void the_disk_may_be_full(void **state)
{
    (void)state;
    each_call_fails((bool[CALLS]){[CALL_WRITE] = true, [CALL_RESERVE] = true}, ENOSPC,
                    "write to a full disk");
}

static void every_sync_and_rename_may_fail(void **state)
{
    (void)state;
    each_call_fails((bool[CALLS]){[CALL_SYNC] = true, [CALL_RENAME] = true}, EIO, "sync or rename");
}

static void short_reads_and_writes_change_nothing(void **state)
{
    (void)state;
    const bool of[CALLS] = {[CALL_READ] = true, [CALL_WRITE] = true};
    count_calls(of);
    for (long total = faults.count, n = 1; n <= total; n += stride_of(total)) {
        char message[512];
        remove_tree(out);
        faults.action = SHORT;
        faults.count = 0;
        faults.at = n;
        if (run(&(job){.out = out}, message) != TARE_OK)
            fail_msg("short call %ld: %s", n, message);
        assert_same_bytes();
    }
}

/* checkpoint_every counts layers, whatever a run goes through by. */
static void a_checkpoint_a_layer(void **state)
{
    (void)state;
    char path[300], text[65536];
    size_t records = 0;
    remove_tree(out);
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        char message[512];
        faults = (typeof(faults)){.action = KILL, .of = {[CALL_RENAME] = true}, .at = 1};
        run(&(job){.out = out}, message);
        _exit(0);
    }
    int how;
    assert_int_equal(waitpid(child, &how, 0), child);
    assert_true(WIFSIGNALED(how));
    snprintf(path, sizeof path, "%s/.tare/journal", out);
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    size_t length = fread(text, 1, sizeof text - 1, f);
    fclose(f);
    text[length] = '\0';
    for (const char *at = text; (at = strstr(at, "{\"pass\"")); at++)
        records++;
    assert_int_equal(records, weights_alone ? LAYERS : 2 * LAYERS); /* W8A8: two passes */
}

/* The first sync, write or rename that is not reached any more: the process is gone there. */
static void killed_anywhere(void **state)
{
    (void)state;
    const bool of[CALLS] = {[CALL_WRITE] = true, [CALL_SYNC] = true, [CALL_RENAME] = true};
    count_calls(of);
    for (long total = faults.count, n = 1; n <= total; n += stride_of(total)) {
        remove_tree(out);
        fflush(NULL);
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0) {
            char message[512];
            faults.action = KILL;
            faults.count = 0;
            faults.at = n;
            run(&(job){.out = out}, message);
            _exit(0);
        }
        int how;
        assert_int_equal(waitpid(child, &how, 0), child);
        assert_true(WIFSIGNALED(how) && WTERMSIG(how) == SIGKILL);
        goes_on("kill at call", n);
    }
}

/* An output that breaks a rule stays in the stage; another version, which knows better, publishes
 * it as it is, and so does who asks for no verification. */
static void a_failed_verification_keeps_the_output(void **state)
{
    char message[512];
    (void)state;
    for (int mend = 0; mend < 2; mend++) {
        remove_tree(out);
        faults.action = COUNT;
        output_is_bad = true;
        for (int again = 0; again < 2; again++) {
            assert_int_equal(run(&(job){.out = out, .resume = again}, message), TARE_E_VERIFY);
            assert_non_null(strstr(message, "rule 8: lm_head: found this, expected that"));
            assert_non_null(strstr(message, "/out/.tare/stage: --resume verifies it again"));
            assert_int_equal(final_files(out), 0);
            assert_true(staged_files() > 3);
        }
        output_is_bad = mend == 0;
        other_version = mend == 0 ? NULL : "9.9.9";
        assert_int_equal(run(&(job){.out = out, .resume = true, .trusts = mend == 0}, message),
                         TARE_OK);
        output_is_bad = false;
        other_version = NULL;
        assert_same_bytes();
        assert_int_equal(staged_files(), 0);
    }
}

/* What somebody did to the stage meanwhile is not published: the run steps back. */
static void a_stage_that_was_changed(void **state)
{
    char message[512], command[400];
    (void)state;
    remove_tree(out);
    faults.action = COUNT;
    output_is_bad = true;
    assert_int_equal(run(&(job){.out = out}, message), TARE_E_VERIFY);
    output_is_bad = false;
    snprintf(command, sizeof command,
             "for f in $(find '%s/.tare/stage' -name tokenizer_config.json -o -name config.json); "
             "do echo >> $f; done",
             out);
    assert_int_equal(system(command), 0);
    assert_int_equal(run(&(job){.out = out, .resume = true}, message), TARE_OK);
    assert_non_null(strstr(said, "is not what was written: stepping back"));
    assert_non_null(strstr(said, "going on behind"));
    assert_same_bytes();
}

/* Without checkpoints there is nothing to go on from, but still something to look at. */
static void a_failed_verification_without_checkpoints(void **state)
{
    char message[512];
    (void)state;
    remove_tree(out);
    faults.action = COUNT;
    output_is_bad = true;
    assert_int_equal(run(&(job){.out = out, .no_resume = true}, message), TARE_E_VERIFY);
    output_is_bad = false;
    assert_non_null(strstr(message, "/out/.tare/stage until the next run"));
    assert_int_equal(final_files(out), 0);
    assert_true(staged_files() > 3);
    assert_int_equal(run(&(job){.out = out}, message), TARE_OK);
    assert_same_bytes();
    assert_int_equal(staged_files(), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_allocation_may_fail),
        cmocka_unit_test(every_read_may_fail),
        cmocka_unit_test(every_write_may_fail),
        cmocka_unit_test(the_disk_may_be_full),
        cmocka_unit_test(every_sync_and_rename_may_fail),
        cmocka_unit_test(short_reads_and_writes_change_nothing),
        cmocka_unit_test(killed_anywhere),
    };
    const struct CMUnitTest of_direct_runs[] = {
        cmocka_unit_test(a_checkpoint_a_layer),
        cmocka_unit_test(a_failed_verification_keeps_the_output),
        cmocka_unit_test(a_stage_that_was_changed),
        cmocka_unit_test(a_failed_verification_without_checkpoints),
    };
    const struct CMUnitTest of_cached[] = {
        cmocka_unit_test(every_allocation_may_fail),
        cmocka_unit_test(every_write_may_fail),
        cmocka_unit_test(killed_anywhere),
    };
    int failed = cmocka_run_group_tests_name("W8A8", tests, set_up, tear_down);
    failed += cmocka_run_group_tests_name("verification", of_direct_runs, set_up, tear_down);
    failed += cmocka_run_group_tests_name("recorded", tests, set_up_recorded, tear_down);
    failed += cmocka_run_group_tests_name("mixed", tests, set_up_mixed, tear_down);
    failed += cmocka_run_group_tests_name("key/value cache", of_cached, set_up_cached, tear_down);
    failed += cmocka_run_group_tests_name("key/value cache of the float model", of_cached,
                                          set_up_cached_before, tear_down);
    failed += cmocka_run_group_tests_name("MTP", of_cached, set_up_mtp, tear_down);
    failed += cmocka_run_group_tests_name("experts", tests, set_up_experts, tear_down);
    failed += cmocka_run_group_tests_name("experts of two passes", tests, set_up_experts_after,
                                          tear_down);
    failed += cmocka_run_group_tests_name("weights alone", tests, set_up_weights_alone, tear_down);
    return failed + cmocka_run_group_tests_name("weights alone, verification", of_direct_runs,
                                                set_up_weights_alone, tear_down);
}
