/* The dispatch tables of the instruction sets. */
#include "tensor/kernels_tables.h"

const kernels *kernels_of(tare_cpu cpu)
{
    if (!cpu_has(cpu))
        return NULL;
    switch (cpu) {
    case TARE_CPU_AUTO:
        return kernels_of(cpu_detect());
    case TARE_CPU_SCALAR:
        return &kernels_scalar;
#if defined(__x86_64__)
    case TARE_CPU_AVX2:
        return &kernels_avx2;
    case TARE_CPU_AVX512:
        return cpu_has_avx512_bf16() ? &kernels_avx512bf16 : &kernels_avx512;
    case TARE_CPU_AMX:
        return &kernels_amx;
#else
    default:
        break;
#endif
    }
    return NULL;
}

const kernels *kernels_get(const tare_context *ctx)
{
    return kernels_of(cpu_of(ctx));
}

const char *tare_cpu_name(const tare_context *ctx)
{
    return kernels_get(ctx)->name;
}
