/* What the machine, and the limits that this process lives under, leave of memory and CPUs. */
#ifndef TARE_BASE_MACHINE_H
#define TARE_BASE_MACHINE_H

#include "base/context.h"

/* UINT64_MAX where a number is unknown or unlimited. */
typedef struct machine_memory {
    uint64_t physical;  /* MemTotal */
    uint64_t available; /* the least of MemAvailable, what the control groups leave, RLIMIT_AS and
                           RLIMIT_DATA */
} machine_memory;

/* `root` is put before /proc and /sys ("" but in tests). Control groups of version 1 and 2, with
 * their parents; what they hold of the page cache counts as free, since it gives way. */
machine_memory machine_memory_read(const char *root);

/* CPUs that the quotas of the control groups (cpu.max; cpu.cfs_quota_us) fill, rounded up;
 * UINT64_MAX: there is none. `root` as above. */
uint64_t machine_cpu_quota(const char *root);

/* Resident bytes of this process now (VmRSS); 0: unknown. */
size_t machine_resident_bytes(void);

/* What no allocation of ours accounts for: pages of the program and its libraries, the heap's
 * fragments, small vectors; for each thread its stack; where integers are multiplied and oneDNN
 * does that, the code it makes and the buffers it packs into. */
size_t machine_reserve_bytes(const tare_context *ctx, bool multiplies);

#endif
