/* quantize/max_memory, base/machine: sizes and devices as spec/low_memory.md 1.1 and 4 say, and
 * what /proc and /sys of a made-up machine leave. */
#include "fixture.h"

#include "base/machine.h"
#include "quantize/recipe.h"

#include <sys/resource.h>
#include <sys/stat.h>

static void test_sizes(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    static const struct {
        const char *text;
        uint64_t bytes; /* 0: refused */
        const char *message;
    } sizes[] = {
        {"25GiB", 26843545600u, NULL},
        {"25gib", 26843545600u, NULL},
        {"25 GiB", 26843545600u, NULL},
        {"1.5MiB", 1572864, NULL},
        {"25GB", 25000000000u, NULL},
        {"25gB", 25000000000u, NULL},
        {"3kib", 3072, NULL},
        {"3KB", 3000, NULL},
        {"0.0015KB", 1, NULL}, /* truncated */
        {"8589934591GiB", 9223372035781033984u, NULL},
        {"25gb", 0, "ambiguous"},
        {"25Gb", 0, "ambiguous"},
        {"25", 0, "no unit"},
        {"25 ", 0, "no unit"},
        {"25G", 0, "\"25G\" is not a size"},
        {"25TB", 0, "\"25TB\" is not a size"},
        {"25  GiB", 0, "is not a size"},
        {"-1GB", 0, "is not a size"},
        {"+1GB", 0, "is not a size"},
        {"0GB", 0, "less than a byte"},
        {"0.0001KiB", 0, "less than a byte"},
        {"1e1GB", 0, "is not a size"},
        {"0x10GB", 0, "is not a size"},
        {"1.GB", 0, "is not a size"},
        {".5GB", 0, "is not a size"},
        {"nanGB", 0, "is not a size"},
        {"infGB", 0, "is not a size"},
        {"true", 0, "is not a size"},
        {"", 0, "25GiB"},
        {" 25GB", 0, "is not a size"},
        {"25GB ", 0, "is not a size"},
        {"99999999999GiB", 0, "more than any machine"},
    };
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        uint64_t bytes = 0;
        tare_status status = memory_size_parse(ctx, sizes[i].text, &bytes);
        if (!sizes[i].message)
            assert_ok(ctx, status);
        else
            assert_fails(ctx, status, TARE_E_USAGE, sizes[i].message);
        assert_int_equal(bytes, sizes[i].bytes);
    }
    free_context(ctx);
}

static void test_devices(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    tare_recipe *r;
    static const struct {
        const char *text, *message;
    } refused[] = {
        {"gpu=1GiB", "device 'gpu' is not recognized: use an integer id or 'cpu'"},
        {"-1=1GiB", "device '-1' is not recognized"},
        {"=1GiB", "device '' is not recognized"},
        {"CPU=1GiB", "device 'CPU' is not recognized"},
        {"1.0=1GiB", "device '1.0' is not recognized"},
        {"cpu=1GiB,cpu=2GiB", "device 'cpu' is not recognized"},
        {"0=1GiB,cpu=2GiB,0=1GiB", "device '0' is not recognized"},
        {"cpu", "has no '='"},
        {"", "has no '='"},
        {"cpu=1GiB,", "has no '='"},
        {"cpu=", "is not a size"},
        {"cpu=8", "run.max_memory: \"8\" has no unit"},
    };
    assert_ok(ctx, tare_recipe_create(ctx, &r));
    assert_int_equal(max_memory_of(&r->max_memory, DEVICE_CPU), 0);
    assert_ok(ctx, tare_recipe_set(r, "run.max_memory", "cpu=8GiB,0=25GiB"));
    assert_int_equal(max_memory_of(&r->max_memory, DEVICE_CPU), (uint64_t)8 << 30);
    assert_int_equal(max_memory_of(&r->max_memory, 0), (uint64_t)25 << 30);
    assert_int_equal(max_memory_of(&r->max_memory, 1), 0);
    assert_ok(ctx, tare_recipe_append(r, "run.max_memory", "1=1 MiB"));
    assert_int_equal(max_memory_of(&r->max_memory, 1), 1 << 20);
    assert_ok(ctx, tare_recipe_set(r, "run.max_memory", "cpu=4GiB"));
    assert_int_equal(r->max_memory.count, 1);
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
        assert_fails(ctx, tare_recipe_set(r, "run.max_memory", refused[i].text), TARE_E_USAGE,
                     refused[i].message);
    tare_recipe_free(r);
    free_context(ctx);
}

static void test_yaml(void **state)
{
    (void)state;
    const char *folder = temporary_folder();
    char path[128];
    snprintf(path, sizeof path, "%s/r.yaml", folder);
    tare_context *ctx = new_context(1);
    tare_recipe *r;
    static const struct {
        const char *yaml;
        uint64_t cpu; /* 0: refused */
        const char *message;
    } recipes[] = {
        {"run: {max_memory: {0: 25GiB, cpu: \"500GiB\"}}", (uint64_t)500 << 30, NULL},
        {"run: {max_memory: {cpu: 26843545600}}", 26843545600u, NULL},
        {"run: {max_memory: cpu=3MiB}", 3 << 20, NULL},
        {"run: {max_memory: {cpu: 0}}", 0, "line 1: run.max_memory: 0 is no number of bytes"},
        {"run: {max_memory: {cpu: -5}}", 0, "-5 is no number of bytes"},
        {"run: {max_memory: {cpu: 1.5}}", 0, "\"1.5\" has no unit"},
        {"run: {max_memory: {cpu: \"25\"}}", 0, "\"25\" has no unit"},
        {"run: {max_memory: {cpu: true}}", 0, "neither a string nor an integer"},
        {"run: {max_memory: {cpu: null}}", 0, "neither a string nor an integer"},
        {"run: {max_memory: {gpu: 1GiB}}", 0, "device 'gpu'"},
        {"run: {max_memory: {cpu: 1GiB, cpu: 2GiB}}", 0, "cpu"},
        {"run: {max_memory: [cpu]}", 0, "single value"},
        {"run: {max_memory: 8GiB}", 0, "has no '='"},
    };
    for (size_t i = 0; i < sizeof recipes / sizeof *recipes; i++) {
        write_text(folder, "r.yaml", recipes[i].yaml);
        assert_ok(ctx, tare_recipe_create(ctx, &r));
        tare_status status = tare_recipe_load(r, path);
        if (!recipes[i].message) {
            assert_ok(ctx, status);
            assert_int_equal(max_memory_of(&r->max_memory, DEVICE_CPU), recipes[i].cpu);
        } else {
            assert_fails(ctx, status, TARE_E_USAGE, recipes[i].message);
        }
        tare_recipe_free(r);
    }
    assert_ok(ctx, folder_remove(ctx, folder));
    free_context(ctx);
}

/* No output depends on the budget, so the record of a run must not name it. */
static void test_not_recorded(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    tare_recipe *a, *b;
    buffer x, y;
    buffer_init(&x, ctx);
    buffer_init(&y, ctx);
    assert_ok(ctx, tare_recipe_create(ctx, &a));
    assert_ok(ctx, tare_recipe_create(ctx, &b));
    assert_ok(ctx, tare_recipe_set(b, "run.max_memory", "cpu=8GiB"));
    recipe_write(a, &x, 0);
    recipe_write(b, &y, 0);
    assert_string_equal(x.data, y.data);
    assert_null(strstr(x.data, "max_memory"));
    buffer_free(&x);
    buffer_free(&y);
    tare_recipe_free(a);
    tare_recipe_free(b);
    free_context(ctx);
}

/* ---- machine ---- */

static void make_folders(const char *root, const char *path)
{
    char full[512];
    snprintf(full, sizeof full, "%s/%s", root, path);
    for (char *p = full + strlen(root) + 1; *p; p++) {
        if (*p != '/')
            continue;
        *p = '\0';
        mkdir(full, 0700);
        *p = '/';
    }
    mkdir(full, 0700);
}

static const char *made_up_machine(void)
{
    const char *root = temporary_folder();
    make_folders(root, "proc/self");
    make_folders(root, "sys/fs/cgroup/memory/job");
    make_folders(root, "sys/fs/cgroup/user/job");
    write_text(root, "proc/meminfo", "MemTotal:  1000000 kB\nMemAvailable:  900000 kB\n");
    return root;
}

static void test_machine(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    const char *root = made_up_machine();
    machine_memory m = machine_memory_read(root);
    assert_int_equal(m.physical, 1024000000u);
    assert_int_equal(m.available, 921600000u);

    /* Version 2: the parent's limit counts too; page cache gives way. */
    write_text(root, "proc/self/cgroup", "0::/user/job\n");
    write_text(root, "sys/fs/cgroup/user/job/memory.max", "max\n");
    write_text(root, "sys/fs/cgroup/user/memory.max", "500000000\n");
    write_text(root, "sys/fs/cgroup/user/memory.current", "200000000\n");
    assert_int_equal(machine_memory_read(root).available, 300000000u);
    write_text(root, "sys/fs/cgroup/user/memory.stat", "anon 50000000\nfile 150000000\n");
    assert_int_equal(machine_memory_read(root).available, 450000000u);
    write_text(root, "sys/fs/cgroup/user/memory.current", "900000000\n");
    assert_int_equal(machine_memory_read(root).available, 0);

    write_text(root, "proc/self/cgroup", "5:cpu:/x\n3:hugetlb,memory:/job\n");
    write_text(root, "sys/fs/cgroup/memory/job/memory.limit_in_bytes", "400000000\n");
    write_text(root, "sys/fs/cgroup/memory/job/memory.usage_in_bytes", "100000000\n");
    assert_int_equal(machine_memory_read(root).available, 300000000u);

    struct rlimit old, low = {200000000, RLIM_INFINITY};
    assert_int_equal(getrlimit(RLIMIT_DATA, &old), 0);
    low.rlim_max = old.rlim_max;
    assert_int_equal(setrlimit(RLIMIT_DATA, &low), 0);
    struct rlimit set; /* qemu's user emulation accepts a limit and sets none */
    assert_int_equal(getrlimit(RLIMIT_DATA, &set), 0);
    assert_int_equal(machine_memory_read(root).available,
                     set.rlim_cur == low.rlim_cur ? 200000000u : 300000000u);
    assert_int_equal(setrlimit(RLIMIT_DATA, &old), 0);
    assert_ok(ctx, folder_remove(ctx, root));
    free_context(ctx);

    assert_true(machine_resident_bytes() > 100000);
    assert_true(machine_memory_read("/nowhere").physical == UINT64_MAX);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sizes),   cmocka_unit_test(test_devices),
        cmocka_unit_test(test_yaml),    cmocka_unit_test(test_not_recorded),
        cmocka_unit_test(test_machine),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
