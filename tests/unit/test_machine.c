/* How many threads a context begins with: affinity masks of any size, and CPU quotas of control
 * groups, read from made-up files. (Memory: test_max_memory.c.) */
#include <errno.h>
#include <sched.h>
#include <sys/stat.h>

#include "base/machine.h"
#include "base/parallel.h"
#include "fixture.h"

/* ---- affinity ---- */

static size_t kernel_cpus; /* of a made-up machine; 0: the real one */
static int allowed_cpus;

int __real_sched_getaffinity(pid_t pid, size_t size, cpu_set_t *set);
int __wrap_sched_getaffinity(pid_t pid, size_t size, cpu_set_t *set);
int __wrap_sched_getaffinity(pid_t pid, size_t size, cpu_set_t *set)
{
    if (!kernel_cpus)
        return __real_sched_getaffinity(pid, size, set);
    if (size * 8 < kernel_cpus) { /* sched_getaffinity(2) */
        errno = EINVAL;
        return -1;
    }
    CPU_ZERO_S(size, set);
    for (int i = 0; i < allowed_cpus; i++)
        CPU_SET_S((int)kernel_cpus - 1 - i, size, set);
    return 0;
}

static void test_affinity(void **state)
{
    (void)state;
    if (machine_cpu_quota("") != UINT64_MAX)
        skip(); /* this process has a quota */
    for (kernel_cpus = 64; kernel_cpus <= 8192; kernel_cpus *= 2) {
        allowed_cpus = 40;
        assert_int_equal(parallel_default_threads(), 40);
    }
    kernel_cpus = 1 << 30; /* nothing that can be told */
    assert_int_equal(parallel_default_threads(), 1);
    kernel_cpus = 0;
    assert_true(parallel_default_threads() >= 1);
}

/* ---- quotas ---- */

static const char *root;

static void put(const char *path, const char *text)
{
    char full[512];
    snprintf(full, sizeof full, "%s/%s", root, path);
    for (char *p = full + strlen(root) + 1; (p = strchr(p, '/')); p++) {
        *p = '\0';
        mkdir(full, 0700);
        *p = '/';
    }
    FILE *f = fopen(full, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static void test_version_2(void **state)
{
    (void)state;
    root = temporary_folder();
    assert_true(machine_cpu_quota(root) == UINT64_MAX);
    put("proc/self/cgroup", "0::/user.slice/job\n");
    assert_true(machine_cpu_quota(root) == UINT64_MAX);
    put("sys/fs/cgroup/user.slice/job/cpu.max", "max 100000\n");
    assert_true(machine_cpu_quota(root) == UINT64_MAX);
    put("sys/fs/cgroup/user.slice/job/cpu.max", "200000 100000\n"); /* docker run --cpus 2 */
    assert_int_equal(machine_cpu_quota(root), 2);
    put("sys/fs/cgroup/user.slice/job/cpu.max", "150000 100000\n");
    assert_int_equal(machine_cpu_quota(root), 2);
    put("sys/fs/cgroup/user.slice/job/cpu.max", "5000 50000\n");
    assert_int_equal(machine_cpu_quota(root), 1);
    /* A parent allows less than its child. */
    put("sys/fs/cgroup/user.slice/job/cpu.max", "800000 100000\n");
    put("sys/fs/cgroup/user.slice/cpu.max", "300000 100000\n");
    assert_int_equal(machine_cpu_quota(root), 3);
    /* In a container the group is the root of what it sees. */
    put("proc/self/cgroup", "0::/../../kubepods/pod1\n");
    put("sys/fs/cgroup/cpu.max", "400000 100000\n");
    assert_int_equal(machine_cpu_quota(root), 4);
}

static void test_version_1(void **state)
{
    (void)state;
    root = temporary_folder();
    put("proc/self/cgroup", "9:cpuset:/job\n5:cpu,cpuacct:/job\n3:memory:/job\n");
    put("sys/fs/cgroup/cpuset/job/cpu.cfs_quota_us", "100000\n"); /* of no use there */
    put("sys/fs/cgroup/cpuset/job/cpu.cfs_period_us", "100000\n");
    put("sys/fs/cgroup/cpu/job/cpu.cfs_quota_us", "-1\n");
    put("sys/fs/cgroup/cpu/job/cpu.cfs_period_us", "100000\n");
    assert_true(machine_cpu_quota(root) == UINT64_MAX);
    put("sys/fs/cgroup/cpu/job/cpu.cfs_quota_us", "250000\n");
    assert_int_equal(machine_cpu_quota(root), 3);
    put("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "200000\n"); /* without the usual link */
    put("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n");
    assert_int_equal(machine_cpu_quota(root), 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_affinity),
        cmocka_unit_test(test_version_2),
        cmocka_unit_test(test_version_1),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
