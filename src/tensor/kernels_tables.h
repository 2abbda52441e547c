/* The dispatch tables, one an instruction set. Private to the tensor room: others use
 * kernels_get(). */
#ifndef TARE_TENSOR_KERNELS_TABLES_H
#define TARE_TENSOR_KERNELS_TABLES_H

#include "tensor/kernels.h"

extern const kernels kernels_scalar;
#if defined(__x86_64__)
extern const kernels kernels_avx2, kernels_avx512, kernels_avx512bf16, kernels_amx;
/* Members of the last two. */
void avx512_gemm_bf16(const uint16_t *a, const uint16_t *b, size_t k, size_t rows, float *c,
                      const uint16_t *next);
void amx_gemm_bf16(const uint16_t *a, const uint16_t *b, size_t k, size_t rows, float *c,
                   const uint16_t *next);
void amx_block_u8s8(const uint8_t *a, size_t lda, const int8_t *b, size_t k, size_t rows,
                    int32_t *c, size_t ldc);
void amx_pack_u8s8(const int8_t *w, size_t ldw, size_t columns, size_t k, int8_t *b);
#endif

#endif
