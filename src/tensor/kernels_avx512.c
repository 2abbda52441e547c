/* AVX-512 (F, BW, DQ, VL) and FMA. Built for that CPU: entered only through its table. */
#include <immintrin.h>

enum { V_LANES = 16, V_TILE_ROWS = 12, V_DOT_ROWS = 4, V_FEW_ROWS = 8 };

static inline __m512 v_fma(__m512 a, __m512 b, __m512 c)
{
    return _mm512_fmadd_ps(a, b, c);
}

static inline __m512 v_max(__m512 a, __m512 b)
{
    return _mm512_max_ps(a, b);
}

static inline __m512 v_min(__m512 a, __m512 b)
{
    return _mm512_min_ps(a, b);
}

static inline __m512 v_from_half(const void *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256(p));
}

static inline void v_to_half(void *p, __m512 v)
{
    _mm256_storeu_si256(p, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

#define v_store_bytes(p, i) _mm_storeu_si128((void *)(p), _mm512_cvtepi32_epi8((__m512i)(i)))
#define v_from_bytes(p)     ((v_uint)_mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)(p))))

static inline __m512d vd_from_i64(const void *p)
{
    return _mm512_cvtepi64_pd(_mm512_loadu_si512(p));
}

static inline __m512i vs_from_u8(const void *p)
{
    return _mm512_cvtepu8_epi16(_mm256_loadu_si256(p));
}

static inline __m512i vs_from_s8(const void *p)
{
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256(p));
}

#define vs_madd(a, b) (v_int) _mm512_madd_epi16((a), (b))

#include "tensor/kernels_vector.inc.h"

const kernels kernels_avx512 = {V_MEMBERS("avx512")};
const kernels kernels_avx512bf16 = {V_MEMBERS("avx512"), .gemm_bf16 = avx512_gemm_bf16};
const kernels kernels_amx = {V_MEMBERS("amx"), .gemm_bf16 = amx_gemm_bf16,
                             .block_u8s8 = amx_block_u8s8, .pack_u8s8 = amx_pack_u8s8};
