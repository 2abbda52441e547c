/* AVX2, FMA and F16C. Built for that CPU: entered only through its table. */
#include <immintrin.h>

enum { V_LANES = 8, V_TILE_ROWS = 6, V_DOT_ROWS = 2, V_FEW_ROWS = 6 };

static inline __m256 v_fma(__m256 a, __m256 b, __m256 c)
{
    return _mm256_fmadd_ps(a, b, c);
}

static inline __m256 v_max(__m256 a, __m256 b)
{
    return _mm256_max_ps(a, b);
}

static inline __m256 v_min(__m256 a, __m256 b)
{
    return _mm256_min_ps(a, b);
}

static inline __m256 v_from_half(const void *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128(p));
}

static inline void v_to_half(void *p, __m256 v)
{
    _mm_storeu_si128(p, _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

static inline void store_low_bytes(void *p, __m256i v)
{
    const __m256i low = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
                                         -1, -1, -1, -1, -1, 0, 4, 8, 12, -1, -1, -1, -1, -1, -1,
                                         -1, -1);
    __m256i bytes = _mm256_shuffle_epi8(v, low);
    _mm_storel_epi64(
        p, _mm_or_si128(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1)));
}

#define v_store_bytes(p, i) store_low_bytes((p), (__m256i)(i))
#define v_from_bytes(p)     ((v_uint)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)(p))))

/* No conversion from int64 before AVX-512: the integer is added to the bits of 1.5 * 2^52. */
static inline __m256d vd_from_i64(const void *p)
{
    const __m256d magic = _mm256_set1_pd(6755399441055744.0);
    __m256i sum = _mm256_add_epi64(_mm256_loadu_si256(p), _mm256_castpd_si256(magic));
    return _mm256_sub_pd(_mm256_castsi256_pd(sum), magic);
}

static inline __m256i vs_from_u8(const void *p)
{
    return _mm256_cvtepu8_epi16(_mm_loadu_si128(p));
}

static inline __m256i vs_from_s8(const void *p)
{
    return _mm256_cvtepi8_epi16(_mm_loadu_si128(p));
}

#define vs_madd(a, b) (v_int) _mm256_madd_epi16((a), (b))

#include "tensor/kernels_vector.inc.h"

const kernels kernels_avx2 = {V_MEMBERS("avx2")};
