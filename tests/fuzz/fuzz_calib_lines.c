/* JSON lines of the sets boolq, gsm8k and jsonl. The first byte chooses the set, and whether bad
 * records are skipped. */
#include "fuzz_calib.h"

static char path[64];

static void clean(void)
{
    unlink(path);
}

int LLVMFuzzerInitialize(int *argc, char ***argv);

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc, (void)argv;
    snprintf(path, sizeof path, "/tmp/tare-fuzz-lines-%ld", (long)getpid());
    return atexit(clean);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const set_kind *const kinds[] = {&set_boolq, &set_gsm8k, &set_jsonl};
    if (!size)
        return 0;
    put_file(path, data + 1, size - 1);
    run_set(kinds[data[0] / 2 % 3], path, (calib_input){.skip_bad = data[0] & 1});
    return 0;
}
