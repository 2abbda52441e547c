/* Which instruction sets this CPU and its operating system offer, and their dispatch tables. */
#include "tensor/kernels_tables.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <stdatomic.h>

enum { HAS_AVX2 = 1, HAS_AVX512 = 2, HAS_VNNI = 4, HAS_AMX = 8, DETECTED = 16 };

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
        VNNI = 1 << 11,
        AMX_BF16 = 1 << 22,
        AMX_TILE = 1 << 24,
        AMX_INT8 = 1 << 25,
        YMM_STATE = 0x6,
        ZMM_STATE = 0xe6,
        TILE_STATE = 0x60000
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
    if (!has_all(c, VNNI))
        return HAS_AVX2 | HAS_AVX512;
    if (!has_all(enabled, TILE_STATE) || !has_all(d, AMX_TILE | AMX_BF16 | AMX_INT8))
        return HAS_AVX2 | HAS_AVX512 | HAS_VNNI;
    return HAS_AVX2 | HAS_AVX512 | HAS_VNNI | HAS_AMX;
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

const kernels *kernels_of(tare_cpu cpu)
{
    int f = cpu_features();
    switch (cpu) {
    case TARE_CPU_AUTO:
        return kernels_of(cpu_detect());
    case TARE_CPU_SCALAR:
        return &kernels_scalar;
    case TARE_CPU_AVX2:
        return f & HAS_AVX2 ? &kernels_avx2 : NULL;
    case TARE_CPU_AVX512:
        return f & HAS_AVX512 ? &kernels_avx512 : NULL;
    case TARE_CPU_AMX:
        return f & HAS_AMX ? &kernels_avx512 : NULL;
    }
    return NULL;
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

#else

const kernels *kernels_of(tare_cpu cpu)
{
    return cpu == TARE_CPU_SCALAR || cpu == TARE_CPU_AUTO ? &kernels_scalar : NULL;
}

tare_cpu cpu_detect(void)
{
    return TARE_CPU_SCALAR;
}

bool cpu_has_vnni(void)
{
    return false;
}

#endif

tare_cpu cpu_of(const tare_context *ctx)
{
    tare_cpu cpu = ctx->options.cpu;
    return cpu != TARE_CPU_AUTO && kernels_of(cpu) ? cpu : cpu_detect();
}

const kernels *kernels_get(const tare_context *ctx)
{
    return kernels_of(cpu_of(ctx));
}

const char *tare_cpu_name(const tare_context *ctx)
{
    return cpu_of(ctx) == TARE_CPU_AMX ? "amx" : kernels_get(ctx)->name;
}
