/* The dispatch tables, one an instruction set. Private to the tensor room: others use
 * kernels_get(). */
#ifndef TARE_TENSOR_KERNELS_TABLES_H
#define TARE_TENSOR_KERNELS_TABLES_H

#include "tensor/kernels.h"

extern const kernels kernels_scalar;
#if defined(__x86_64__)
extern const kernels kernels_avx2, kernels_avx512;
#endif

#endif
