/* A matrix product of BF16 operands with AVX512-BF16. Built for that CPU: entered only through its
 * table. */
#include <immintrin.h>
#include <string.h>

#include "tensor/kernels_tables.h"

enum { ROWS = 12, LANES = 16 };

void avx512_gemm_bf16(const uint16_t *a, const uint16_t *b, size_t k, size_t rows, float *c,
                      const uint16_t *next)
{
    (void)next;
    for (size_t first = 0; first < rows; first += ROWS) {
        __m512 sums[ROWS][2];
        const uint16_t *x[ROWS];
        for (size_t r = 0; r < ROWS; r++) {
            sums[r][0] = sums[r][1] = _mm512_setzero_ps();
            /* Beyond the last row: that row again. */
            x[r] = a + (first + r < rows ? first + r : rows - 1) * GEMM_DEPTH;
        }
        const uint16_t *w = b;
        for (size_t i = 0; i < k; i += 2, w += 2 * GEMM_PANEL) {
            __m512bh w0 = (__m512bh)_mm512_loadu_si512(w);
            __m512bh w1 = (__m512bh)_mm512_loadu_si512(w + 2 * LANES);
            for (size_t r = 0; r < ROWS; r++) {
                int32_t pair;
                memcpy(&pair, x[r] + i, sizeof pair);
                __m512bh v = (__m512bh)_mm512_set1_epi32(pair);
                sums[r][0] = _mm512_dpbf16_ps(sums[r][0], v, w0);
                sums[r][1] = _mm512_dpbf16_ps(sums[r][1], v, w1);
            }
        }
        for (size_t r = 0; r < ROWS && first + r < rows; r++) {
            float *y = c + (first + r) * GEMM_PANEL;
            _mm512_storeu_ps(y, _mm512_add_ps(_mm512_loadu_ps(y), sums[r][0]));
            y += LANES;
            _mm512_storeu_ps(y, _mm512_add_ps(_mm512_loadu_ps(y), sums[r][1]));
        }
    }
}
