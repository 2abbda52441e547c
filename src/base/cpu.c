/* Features by CPUID; a set counts only where the operating system keeps its registers. */
#include "base/cpu.h"

#include <stdio.h>

#if defined(__x86_64__)
#include <cpuid.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
    HAS_AVX2 = 1,
    HAS_AVX512 = 2,
    HAS_VNNI = 4,
    HAS_AVX512_BF16 = 8,
    HAS_AMX = 16,
    DETECTED = 32
};

static uint64_t enabled_registers(void)
{
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

static bool has_all(uint64_t value, uint64_t bits)
{
    return (value & bits) == bits;
}

/* Linux keeps the tiles' 8 KiB of state only for a process that asks for them. */
static bool tiles_permitted(void)
{
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

/* What comes with AVX-512; c and d of leaf 7. */
static int detect_avx512(uint64_t enabled, uint32_t c, uint32_t d)
{
    enum {
        VNNI = 1 << 11,
        AVX512_BF16 = 1 << 5,
        AMX_BF16 = 1 << 22,
        AMX_TILE = 1 << 24,
        AMX_INT8 = 1 << 25,
        TILE_STATE = 0x60000
    };
    int features = HAS_AVX512;
    uint32_t a1, b1, c1, d1;
    if (__get_cpuid_count(7, 1, &a1, &b1, &c1, &d1) && has_all(a1, AVX512_BF16))
        features |= HAS_AVX512_BF16;
    if (!has_all(c, VNNI))
        return features;
    features |= HAS_VNNI;
    if (has_all(enabled, TILE_STATE) && has_all(d, AMX_TILE | AMX_BF16 | AMX_INT8) &&
        tiles_permitted())
        features |= HAS_AMX;
    return features;
}

static int detect_features(void)
{
    enum {
        FMA = 1 << 12,
        OSXSAVE = 1 << 27,
        AVX = 1 << 28,
        F16C = 1 << 29,
        AVX2 = 1 << 5,
        AVX512F = 1 << 16,
        AVX512DQ = 1 << 17,
        AVX512BW = 1 << 30,
        YMM_STATE = 0x6,
        ZMM_STATE = 0xe6
    };
    const uint64_t avx512vl = 1u << 31;
    uint32_t a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !has_all(c, FMA | OSXSAVE | AVX | F16C))
        return 0;
    uint64_t enabled = enabled_registers();
    if (!has_all(enabled, YMM_STATE) || !__get_cpuid_count(7, 0, &a, &b, &c, &d) ||
        !has_all(b, AVX2))
        return 0;
    if (!has_all(enabled, ZMM_STATE) || !has_all(b, AVX512F | AVX512DQ | AVX512BW | avx512vl))
        return HAS_AVX2;
    return HAS_AVX2 | detect_avx512(enabled, c, d);
}

/* Asked once a process: CPUID traps in virtual machines and takes microseconds there. Every thread
 * would store the same value. */
static int cpu_features(void)
{
    static atomic_int features;
    int f = atomic_load_explicit(&features, memory_order_relaxed);
    if (!f) {
        f = detect_features() | DETECTED;
        atomic_store_explicit(&features, f, memory_order_relaxed);
    }
    return f;
}

tare_cpu cpu_detect(void)
{
    int f = cpu_features();
    return f & HAS_AMX      ? TARE_CPU_AMX
           : f & HAS_AVX512 ? TARE_CPU_AVX512
           : f & HAS_AVX2   ? TARE_CPU_AVX2
                            : TARE_CPU_SCALAR;
}

bool cpu_has_vnni(void)
{
    return cpu_features() & HAS_VNNI;
}

bool cpu_has_avx512_bf16(void)
{
    return cpu_features() & HAS_AVX512_BF16;
}

#else

tare_cpu cpu_detect(void)
{
    return TARE_CPU_SCALAR;
}

bool cpu_has_vnni(void)
{
    return false;
}

bool cpu_has_avx512_bf16(void)
{
    return false;
}

#endif

/* Each set has what those before it have. */
bool cpu_has(tare_cpu cpu)
{
    return cpu >= TARE_CPU_AUTO && cpu <= cpu_detect();
}

tare_cpu cpu_of(const tare_context *ctx)
{
    return ctx->options.cpu != TARE_CPU_AUTO ? ctx->options.cpu : cpu_detect();
}

bool cpu_uses_onednn(const tare_context *ctx)
{
#ifdef TARE_ONEDNN
    return cpu_of(ctx) == TARE_CPU_AVX512 && cpu_has_vnni();
#else
    (void)ctx;
    return false;
#endif
}

tare_status cpu_check(tare_cpu cpu, char *text, size_t size)
{
    static const char *const names[] = {"auto", "scalar", "avx2", "avx512", "amx"};
    if (cpu_has(cpu))
        return TARE_OK;
    size_t used = (size_t)snprintf(text, size, "cpu: ");
    if (cpu >= TARE_CPU_AUTO && cpu <= TARE_CPU_AMX)
        used += (size_t)snprintf(text + used, size - used, "there are no %s kernels here",
                                 names[cpu]);
    else
        used += (size_t)snprintf(text + used, size - used, "%d is no instruction set", (int)cpu);
    used += (size_t)snprintf(text + used, size - used, "; this CPU has scalar");
    for (int i = TARE_CPU_AVX2; i <= (int)cpu_detect(); i++)
        used += (size_t)snprintf(text + used, size - used, ", %s", names[i]);
    return TARE_E_USAGE;
}
