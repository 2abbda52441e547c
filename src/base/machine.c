/* Reads /proc and /sys. Nothing here fails: what cannot be read is unknown. */
#include "base/machine.h"

#if defined(__GLIBC__)
#include <malloc.h>
#endif
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/cpu.h"
#include "base/parallel.h"

enum { PATH_SIZE = 4096, LINE = 4096 + 64 };

static uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* The number behind `key` in a file of "key value" or "key: value" lines; behind "" the first
 * number of the file. */
static uint64_t read_number(const char *path, const char *key)
{
    char line[LINE];
    unsigned long long x;
    size_t length = strlen(key);
    uint64_t found = UINT64_MAX;
    FILE *f = fopen(path, "re");
    if (!f)
        return found;
    while (found == UINT64_MAX && fgets(line, sizeof line, f)) {
        if (strncmp(line, key, length) == 0 && sscanf(line + length, "%llu", &x) == 1)
            found = x;
    }
    fclose(f);
    return found;
}

/* ---- control groups ---- */

/* What one group, of version 1 or 2, leaves of a resource. */
typedef uint64_t group_reader(const char *dir, bool v2);

/* Where version 1 mounts a controller's groups below /sys/fs/cgroup. */
typedef struct controller {
    const char *name, *mounts[2];
    group_reader *read;
} controller;

static uint64_t read_file_number(const char *dir, const char *name, const char *key)
{
    char path[PATH_SIZE + 64];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return read_number(path, key);
}

static uint64_t group_memory(const char *dir, bool v2)
{
    uint64_t limit = read_file_number(dir, v2 ? "memory.max" : "memory.limit_in_bytes", "");
    if (limit == UINT64_MAX)
        return limit;
    uint64_t usage = read_file_number(dir, v2 ? "memory.current" : "memory.usage_in_bytes", "");
    uint64_t cache = read_file_number(dir, "memory.stat", v2 ? "file " : "total_cache ");
    usage = usage == UINT64_MAX ? 0 : usage;
    cache = cache == UINT64_MAX ? 0 : cache;
    usage -= least(usage, cache);
    return limit - least(limit, usage);
}

/* Whole CPUs that the quota of a period fills, the last one perhaps in part. */
static uint64_t group_cpus(const char *dir, bool v2)
{
    char path[PATH_SIZE + 64];
    long long quota = 0, period = 0;
    if (v2) {
        snprintf(path, sizeof path, "%s/cpu.max", dir);
        FILE *f = fopen(path, "re");
        bool limited = f && fscanf(f, "%lld %lld", &quota, &period) == 2; /* else "max 100000" */
        if (f)
            fclose(f);
        if (!limited)
            return UINT64_MAX;
    } else {
        quota = (long long)read_file_number(dir, "cpu.cfs_quota_us", ""); /* -1: none */
        period = (long long)read_file_number(dir, "cpu.cfs_period_us", "");
    }
    if (quota <= 0 || period <= 0)
        return UINT64_MAX;
    return (uint64_t)(quota / period + (quota % period != 0));
}

static const controller MEMORY = {"memory", {"/memory", NULL}, group_memory};
static const controller CPU = {"cpu", {"/cpu", "/cpu,cpuacct"}, group_cpus};

/* The least of the group at mount/path and those above it: each may limit. */
static uint64_t least_of_groups(const char *mount, const char *path, bool v2, group_reader *read)
{
    char dir[PATH_SIZE];
    uint64_t room = UINT64_MAX;
    int n = snprintf(dir, sizeof dir, "%s%s", mount, path);
    if (n < 0 || (size_t)n >= sizeof dir)
        return room;
    for (size_t length = strlen(mount); strlen(dir) >= length;) {
        room = least(room, read(dir, v2));
        char *slash = strrchr(dir, '/');
        if (!slash || slash < dir + length)
            break;
        *slash = '\0';
    }
    return room;
}

/* Is `name` one of a comma-separated list? ("cpuset" is not "cpu".) */
static bool is_listed(const char *list, const char *name)
{
    size_t length = strlen(name);
    for (; *list; list += strcspn(list, ","), list += *list == ',')
        if (strncmp(list, name, length) == 0 && (list[length] == ',' || list[length] == '\0'))
            return true;
    return false;
}

static uint64_t control_group_room(const char *root, const controller *c)
{
    char path[PATH_SIZE], line[LINE], mount[PATH_SIZE];
    uint64_t room = UINT64_MAX;
    snprintf(path, sizeof path, "%s/proc/self/cgroup", root);
    FILE *f = fopen(path, "re");
    if (!f)
        return room;
    while (fgets(line, sizeof line, f)) {
        line[strcspn(line, "\n")] = '\0';
        char *controllers = strchr(line, ':'), *group;
        if (!controllers || !(group = strchr(controllers + 1, ':')))
            continue;
        *group++ = '\0';
        controllers++;
        bool v2 = *controllers == '\0';
        if (!v2 && !is_listed(controllers, c->name))
            continue;
        group = strcmp(group, "/") == 0 ? "" : group;
        for (size_t i = 0; i < (v2 ? 1 : 2) && (v2 || c->mounts[i]); i++) {
            snprintf(mount, sizeof mount, "%s/sys/fs/cgroup%s", root, v2 ? "" : c->mounts[i]);
            /* In a container the path may be the host's: then the mount itself is the group. */
            room = least(room, least_of_groups(mount, group, v2, c->read));
            room = least(room, least_of_groups(mount, "", v2, c->read));
        }
    }
    fclose(f);
    return room;
}

/* ---- limits ---- */

static uint64_t resource_limit(int which)
{
    struct rlimit limit;
    if (getrlimit((__rlimit_resource_t)which, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY)
        return UINT64_MAX;
    return limit.rlim_cur;
}

static uint64_t meminfo(const char *root, const char *key)
{
    char path[PATH_SIZE];
    snprintf(path, sizeof path, "%s/proc/meminfo", root);
    uint64_t kib = read_number(path, key);
    return kib > UINT64_MAX / 1024 ? UINT64_MAX : kib * 1024;
}

machine_memory machine_memory_read(const char *root)
{
    machine_memory m = {.physical = meminfo(root, "MemTotal:"),
                        .available = meminfo(root, "MemAvailable:")};
    m.available = least(m.available, control_group_room(root, &MEMORY));
    m.available = least(m.available, resource_limit(RLIMIT_AS));
    m.available = least(m.available, resource_limit(RLIMIT_DATA));
    return m;
}

uint64_t machine_cpu_quota(const char *root)
{
    return control_group_room(root, &CPU);
}

size_t machine_resident_bytes(void)
{
    uint64_t kib = read_number("/proc/self/status", "VmRSS:");
    return kib == UINT64_MAX ? 0 : (size_t)kib * 1024;
}

/* Constants, so that the smallest budget does not waver from run to run; a program that holds more
 * by itself (Python) is measured. Measured with 1 to 8 threads on a layer of 1024 x 4096, beside
 * what is accounted: 9 MiB and 0.5 MiB a thread; where oneDNN multiplies (AVX-512 with VNNI) 7 MiB
 * and 2.5 MiB a thread more, for the code that it makes and the operands that it packs. */
static const size_t PROGRAM_RESERVE = (size_t)12 << 20, THREAD_RESERVE = (size_t)1 << 20;
static const size_t ONEDNN_RESERVE = (size_t)8 << 20, ONEDNN_THREAD_RESERVE = (size_t)3 << 20;
static const size_t MEASURE_STEP = (size_t)16 << 20;

size_t machine_reserve_bytes(const tare_context *ctx, bool multiplies)
{
    bool onednn = multiplies && cpu_uses_onednn(ctx);
    size_t program = PROGRAM_RESERVE + (onednn ? ONEDNN_RESERVE : 0), reserve = program;
    size_t thread = THREAD_RESERVE + (onednn ? ONEDNN_THREAD_RESERVE : 0);
#if defined(__GLIBC__)
    malloc_trim(0); /* what the tokenizer left in the heap */
#endif
    size_t resident = machine_resident_bytes(), accounted = tare_memory_used(ctx);
    size_t others = resident > accounted ? resident - accounted : 0;
    if (others > reserve)
        reserve = (others + MEASURE_STEP - 1) / MEASURE_STEP * MEASURE_STEP + program / 2;
    return reserve + (size_t)parallel_threads(ctx) * thread;
}
