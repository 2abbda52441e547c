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

/* What one control group leaves. */
static uint64_t group_room(const char *dir, const char *limit_name, const char *usage_name,
                           const char *cache_key)
{
    char path[PATH_SIZE + 64];
    snprintf(path, sizeof path, "%s/%s", dir, limit_name);
    uint64_t limit = read_number(path, "");
    if (limit == UINT64_MAX)
        return limit;
    snprintf(path, sizeof path, "%s/%s", dir, usage_name);
    uint64_t usage = read_number(path, "");
    snprintf(path, sizeof path, "%s/memory.stat", dir);
    uint64_t cache = read_number(path, cache_key);
    usage = usage == UINT64_MAX ? 0 : usage;
    cache = cache == UINT64_MAX ? 0 : cache;
    usage -= least(usage, cache);
    return limit - least(limit, usage);
}

/* The group at mount/path and those above it: each may limit. */
static uint64_t groups_room(const char *mount, const char *path, bool v2)
{
    char dir[PATH_SIZE];
    uint64_t room = UINT64_MAX;
    int n = snprintf(dir, sizeof dir, "%s%s", mount, path);
    if (n < 0 || (size_t)n >= sizeof dir)
        return room;
    for (size_t length = strlen(mount); strlen(dir) >= length;) {
        room = least(room, v2 ? group_room(dir, "memory.max", "memory.current", "file ")
                              : group_room(dir, "memory.limit_in_bytes", "memory.usage_in_bytes",
                                           "total_cache "));
        char *slash = strrchr(dir, '/');
        if (!slash || slash < dir + length)
            break;
        *slash = '\0';
    }
    return room;
}

static uint64_t control_group_room(const char *root)
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
        if (!v2 && !strstr(controllers, "memory"))
            continue;
        snprintf(mount, sizeof mount, "%s/sys/fs/cgroup%s", root, v2 ? "" : "/memory");
        /* In a container the path may be the host's: then the mount itself is the group. */
        room = least(room, groups_room(mount, strcmp(group, "/") == 0 ? "" : group, v2));
        room = least(room, groups_room(mount, "", v2));
    }
    fclose(f);
    return room;
}

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
    m.available = least(m.available, control_group_room(root));
    m.available = least(m.available, resource_limit(RLIMIT_AS));
    m.available = least(m.available, resource_limit(RLIMIT_DATA));
    return m;
}

size_t machine_resident_bytes(void)
{
    uint64_t kib = read_number("/proc/self/status", "VmRSS:");
    return kib == UINT64_MAX ? 0 : (size_t)kib * 1024;
}

/* Constants, so that the smallest budget does not waver from run to run; a program that holds more
 * by itself (Python) is measured. Measured with 1 to 8 threads on a layer of 1024 x 4096, beside what
 * is accounted: 9 MiB and 0.5 MiB a thread; where oneDNN multiplies (AVX-512 with VNNI) 7 MiB and
 * 2.5 MiB a thread more, for the code that it makes and the operands that it packs. */
static const size_t PROGRAM_RESERVE = (size_t)16 << 20, THREAD_RESERVE = (size_t)2 << 20;
static const size_t ONEDNN_RESERVE = (size_t)8 << 20, ONEDNN_THREAD_RESERVE = (size_t)4 << 20;
static const size_t MEASURE_STEP = (size_t)16 << 20;

size_t machine_reserve_bytes(const tare_context *ctx)
{
    bool onednn = cpu_uses_onednn(ctx);
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
