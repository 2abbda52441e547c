/* Matrix products in AMX tiles. Built for that CPU: entered only through its table.
 *
 * Four accumulators of 16 x 16 make a block of 32 rows and 32 columns; each step of K loads two
 * tiles of either side for four products, so that loading hides behind multiplying. */
#include <immintrin.h>
#include <string.h>

#include "tensor/kernels_tables.h"

enum { SIDE = 32, HALF = 16, TILE_BYTES = 64 };

/* Operand of LDTILECFG: all eight tiles have 16 rows of 64 bytes. */
typedef struct tile_config {
    uint8_t palette, start, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_config;

static void configure(void)
{
    tile_config c = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        c.row_bytes[i] = TILE_BYTES;
        c.rows[i] = HALF;
    }
    _tile_loadconfig(&c);
}

#define LOAD_ACCUMULATORS(c, stride)                                                               \
    _tile_loadd(0, (c), (stride));                                                                 \
    _tile_loadd(1, (c) + HALF, (stride));                                                          \
    _tile_loadd(2, (const char *)(c) + HALF * (stride), (stride));                                 \
    _tile_loadd(3, (const char *)((c) + HALF) + HALF * (stride), (stride))

#define STORE_ACCUMULATORS(c, stride)                                                              \
    _tile_stored(0, (c), (stride));                                                                \
    _tile_stored(1, (c) + HALF, (stride));                                                         \
    _tile_stored(2, (char *)(c) + HALF * (stride), (stride));                                      \
    _tile_stored(3, (char *)((c) + HALF) + HALF * (stride), (stride))

/* A step of K takes 64 bytes of each row of a, and 16 rows of b, which hold 32 columns each. */
#define MULTIPLY_STEP(product, a, lda, b)                                                          \
    _tile_loadd(4, (a), (lda));                                                                    \
    _tile_loadd(6, (b), 2 * TILE_BYTES);                                                           \
    _tile_loadd(7, (b) + TILE_BYTES, 2 * TILE_BYTES);                                              \
    _tile_loadd(5, (a) + HALF * (lda), (lda));                                                     \
    product(0, 4, 6);                                                                              \
    product(1, 4, 7);                                                                              \
    product(2, 5, 6);                                                                              \
    product(3, 5, 7)

enum { STEP_ROWS_BYTES = HALF * 2 * TILE_BYTES }; /* of b, a step */

void amx_gemm_bf16(const uint16_t *a, const uint16_t *b, size_t k, size_t rows, float *c,
                   const uint16_t *next)
{
    const size_t lda = GEMM_DEPTH * sizeof *a, ldc = GEMM_PANEL * sizeof *c;
    const char *ahead = (const char *)next;
    configure();
    for (size_t r = 0; r < rows; r += SIDE, c += SIDE * GEMM_PANEL) {
        LOAD_ACCUMULATORS(c, ldc);
        const char *x = (const char *)(a + r * GEMM_DEPTH), *w = (const char *)b;
        for (size_t i = 0; i < k * sizeof *a; i += TILE_BYTES, w += STEP_ROWS_BYTES) {
            MULTIPLY_STEP(_tile_dpbf16ps, x + i, lda, w);
            for (int line = 0; line < 6; line++, ahead += 64)
                _mm_prefetch(ahead, _MM_HINT_T1);
        }
        STORE_ACCUMULATORS(c, ldc);
    }
    _tile_release();
}

void amx_block_u8s8(const uint8_t *a, size_t lda, const int8_t *b, size_t k, size_t rows,
                    int32_t *c, size_t ldc)
{
    configure();
    for (size_t r = 0; r < rows; r += SIDE) {
        const char *x = (const char *)a + r * lda, *w = (const char *)b;
        LOAD_ACCUMULATORS(c + r * ldc, ldc * sizeof *c);
        for (size_t i = 0; i < k; i += TILE_BYTES, w += STEP_ROWS_BYTES) {
            MULTIPLY_STEP(_tile_dpbusd, x + i, lda, w);
        }
        STORE_ACCUMULATORS(c + r * ldc, ldc * sizeof *c);
    }
    _tile_release();
}

/* Transposes 16 rows of 16 words, `ldw` bytes apart; the rows of the result are 128 bytes apart. */
static void transpose_words(const int8_t *w, size_t ldw, int8_t *out)
{
    __m512i a[HALF], b[HALF];
    for (size_t i = 0; i < HALF; i++)
        a[i] = _mm512_loadu_si512(w + i * ldw);
    for (size_t i = 0; i < HALF; i += 2) { /* pairs of rows, word by word */
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
    for (size_t i = 0; i < HALF; i += 4) { /* fours: word q of each lane of 4 words */
        a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
        a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
        a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
        a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
    }
    for (size_t q = 0; q < 4; q++) { /* lane l of all fours is word 4 l + q of the 16 rows */
        __m512i even_low = _mm512_shuffle_i32x4(a[q], a[4 + q], 0x88);
        __m512i odd_low = _mm512_shuffle_i32x4(a[q], a[4 + q], 0xdd);
        __m512i even_high = _mm512_shuffle_i32x4(a[8 + q], a[12 + q], 0x88);
        __m512i odd_high = _mm512_shuffle_i32x4(a[8 + q], a[12 + q], 0xdd);
        int8_t *to = out + q * 2 * TILE_BYTES;
        const size_t four = (size_t)4 * 2 * TILE_BYTES;
        _mm512_storeu_si512(to, _mm512_shuffle_i32x4(even_low, even_high, 0x88));
        _mm512_storeu_si512(to + four, _mm512_shuffle_i32x4(odd_low, odd_high, 0x88));
        _mm512_storeu_si512(to + 2 * four, _mm512_shuffle_i32x4(even_low, even_high, 0xdd));
        _mm512_storeu_si512(to + 3 * four, _mm512_shuffle_i32x4(odd_low, odd_high, 0xdd));
    }
}

void amx_pack_u8s8(const int8_t *w, size_t ldw, size_t columns, size_t k, int8_t *b)
{
    for (size_t i = 0; i < k; i += TILE_BYTES, b += STEP_ROWS_BYTES) {
        size_t depth = k - i < TILE_BYTES ? k - i : TILE_BYTES;
        for (size_t half = 0; half < 2; half++) {
            const int8_t *from = w + half * HALF * ldw + i;
            size_t rows = columns > half * HALF ? columns - half * HALF : 0;
            if (rows >= HALF && depth == TILE_BYTES) {
                transpose_words(from, ldw, b + half * TILE_BYTES);
                continue;
            }
            int8_t edge[HALF * TILE_BYTES] = {0};
            for (size_t r = 0; r < rows && r < HALF; r++)
                memcpy(edge + r * TILE_BYTES, from + r * ldw, depth);
            transpose_words(edge, TILE_BYTES, b + half * TILE_BYTES);
        }
    }
}
