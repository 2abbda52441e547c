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
/* Does it multiply BF16 in AVX-512 registers? */
bool cpu_has_avx512_bf16(void);

/* TARE_E_USAGE, with a sentence in `text`, for a set that is not here. */
tare_status cpu_check(tare_cpu cpu, char *text, size_t size);

#endif
