/* Which instruction sets this CPU and its operating system offer. */
#ifndef TARE_BASE_CPU_H
#define TARE_BASE_CPU_H

#include "base/context.h"

/* The best set of this CPU, by its features alone. */
tare_cpu cpu_detect(void);
/* Does it have this one? AUTO: always. */
bool cpu_has(tare_cpu cpu);
/* Are 8-bit dot products exact in hardware here (VNNI), so that oneDNN's u8 x s8 GEMM does not
 * saturate? */
bool cpu_has_vnni(void);
/* The set that `ctx` computes with: the forced one, else the best. */
tare_cpu cpu_of(const tare_context *ctx);
/* Does oneDNN make the 8-bit products of `ctx`? Where it was built in and is the fastest way: on
 * CPUs with VNNI and no AMX. */
bool cpu_uses_onednn(const tare_context *ctx);
/* Does it multiply BF16 in AVX-512 registers? */
bool cpu_has_avx512_bf16(void);

/* TARE_E_USAGE, with a sentence in `text`, for a set that is not here. */
tare_status cpu_check(tare_cpu cpu, char *text, size_t size);

#endif
