/* Multiple-choice sets: subject_mapping.json and the CSV files of its subjects. Bytes: flags (set,
 * skip_bad, compat, no mapping, examples of mmlu), length of the mapping; then the mapping, and
 * what each CSV file of the subject "a" holds. */
#include "fuzz_calib.h"

static char folder[64];
static const char *const files[] = {"subject_mapping.json", "dev/a_dev.csv", "val/a_val.csv",
                                    "test/a_test.csv"};

static const char *path_of(const char *name)
{
    static char path[128];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static void clean(void)
{
    static const char *const folders[] = {"dev", "val", "test"};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++)
        unlink(path_of(files[i]));
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++)
        rmdir(path_of(folders[i]));
    rmdir(folder);
}

int LLVMFuzzerInitialize(int *argc, char ***argv);

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc, (void)argv;
    snprintf(folder, sizeof folder, "/tmp/tare-fuzz-choices-%ld", (long)getpid());
    check(mkdir(folder, 0700) == 0 && mkdir(path_of("dev"), 0700) == 0 &&
          mkdir(path_of("val"), 0700) == 0 && mkdir(path_of("test"), 0700) == 0);
    return atexit(clean);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2)
        return 0;
    uint8_t flags = data[0];
    size_t length = data[1] < size - 2 ? data[1] : size - 2;
    const uint8_t *csv = data + 2 + length;
    unlink(path_of(files[0]));
    if (!(flags & 8))
        put_file(path_of(files[0]), data + 2, length);
    for (size_t i = 1; i < sizeof files / sizeof *files; i++)
        put_file(path_of(files[i]), csv, size - 2 - length);
    run_set(
        flags & 1 ? &set_ceval : &set_mmlu, folder,
        (calib_input){.skip_bad = flags & 2, .compat = flags & 4, .mmlu_shots = flags >> 4 & 3});
    return 0;
}
