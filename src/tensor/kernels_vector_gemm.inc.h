/* The matrix products of kernels_vector.inc.h, which includes it. */

/* ---- GEMM tiles ---- */

static void v_gemm_tile(const float *a, const float *b, size_t k, size_t rows, float *c, size_t ldc)
{
    for (size_t column = 0; column < GEMM_PANEL; column += 2 * V_LANES) {
        v_float acc[V_TILE_ROWS][2];
        for (size_t r = 0; r < V_TILE_ROWS; r++)
            acc[r][0] = acc[r][1] = (v_float){0};
        const float *bp = b + column;
        for (size_t i = 0; i < k; i++, bp += GEMM_PANEL) {
            v_float b0 = v_load(bp), b1 = v_load(bp + V_LANES);
            for (size_t r = 0; r < V_TILE_ROWS; r++) {
                v_float x = v_set1(a[r * GEMM_DEPTH + i]);
                acc[r][0] = v_fma(x, b0, acc[r][0]);
                acc[r][1] = v_fma(x, b1, acc[r][1]);
            }
        }
        for (size_t r = 0; r < V_TILE_ROWS; r++) {
            if (r >= rows)
                break;
            float *y = c + r * ldc + column;
            v_store(y, v_load(y) + acc[r][0]);
            v_store(y + V_LANES, v_load(y + V_LANES) + acc[r][1]);
        }
    }
}

/* ---- a few rows ---- */

static inline v_float v_widen_f32(const float *p)
{
    return v_load(p);
}

static inline v_float v_widen_bf16(const uint16_t *p)
{
    v_half h;
    memcpy(&h, p, sizeof h);
    return (v_float)(__builtin_convertvector(h, v_uint) << 16);
}

static inline v_float v_widen_fp16(const uint16_t *p)
{
    return v_from_half(p);
}

/* `rows` and `vectors` are constants where this is used: the sums live in registers. */
#define V_GEMM_FEW(suffix, type)                                                                   \
    static inline __attribute__((always_inline)) void v_few_rows_##suffix(                         \
        const float *x, size_t ldx, const type *b, size_t k, const size_t rows,                    \
        const size_t vectors, float *c, size_t ldc)                                                \
    {                                                                                              \
        for (size_t column = 0; column < GEMM_PANEL; column += vectors * V_LANES) {                \
            v_float acc[GEMM_FEW_ROWS][GEMM_PANEL / V_LANES];                                      \
            for (size_t r = 0; r < rows; r++) {                                                    \
                for (size_t j = 0; j < vectors; j++)                                               \
                    acc[r][j] = (v_float){0};                                                      \
            }                                                                                      \
            for (size_t i = 0; i < k; i++) {                                                       \
                v_float w[GEMM_PANEL / V_LANES];                                                   \
                for (size_t j = 0; j < vectors; j++)                                               \
                    w[j] = v_widen_##suffix(b + i * GEMM_PANEL + column + j * V_LANES);            \
                for (size_t r = 0; r < rows; r++) {                                                \
                    v_float factor = v_set1(x[r * ldx + i]);                                       \
                    for (size_t j = 0; j < vectors; j++)                                           \
                        acc[r][j] = v_fma(factor, w[j], acc[r][j]);                                \
                }                                                                                  \
            }                                                                                      \
            for (size_t r = 0; r < rows; r++) {                                                    \
                for (size_t j = 0; j < vectors; j++) {                                             \
                    float *y = c + r * ldc + column + j * V_LANES;                                 \
                    v_store(y, v_load(y) + acc[r][j]);                                             \
                }                                                                                  \
            }                                                                                      \
        }                                                                                          \
    }                                                                                              \
                                                                                                   \
    static void v_gemm_few_##suffix(const float *x, size_t ldx, const type *b, size_t k,           \
                                    size_t rows, float *c, size_t ldc)                             \
    {                                                                                              \
        const size_t all = GEMM_PANEL / V_LANES;                                                   \
        for (size_t n; rows > 0; rows -= n, x += n * ldx, c += n * ldc) {                          \
            n = rows < V_FEW_ROWS ? rows : V_FEW_ROWS;                                             \
            if (n == 1)                                                                            \
                v_few_rows_##suffix(x, ldx, b, k, 1, all, c, ldc);                                 \
            else if (n == 2)                                                                       \
                v_few_rows_##suffix(x, ldx, b, k, 2, all, c, ldc);                                 \
            else if (n == 3)                                                                       \
                v_few_rows_##suffix(x, ldx, b, k, 3, 2, c, ldc);                                   \
            else if (n == 4)                                                                       \
                v_few_rows_##suffix(x, ldx, b, k, 4, 2, c, ldc);                                   \
            else if (n == 5)                                                                       \
                v_few_rows_##suffix(x, ldx, b, k, 5, 2, c, ldc);                                   \
            else if (n == 6)                                                                       \
                v_few_rows_##suffix(x, ldx, b, k, 6, 2, c, ldc);                                   \
            else if (n == 7)                                                                       \
                v_few_rows_##suffix(x, ldx, b, k, 7, 2, c, ldc);                                   \
            else                                                                                   \
                v_few_rows_##suffix(x, ldx, b, k, 8, 2, c, ldc);                                   \
        }                                                                                          \
    }

V_GEMM_FEW(f32, float)
V_GEMM_FEW(bf16, uint16_t)
V_GEMM_FEW(fp16, uint16_t)

/* acc[r][j] = x_r . w_j for V_DOT_ROWS rows and 4 columns; `rows` and `columns` of them exist, the
 * others repeat the last one. */
static void v_dot_tile(const uint8_t *x, size_t rows, const int8_t *w, size_t columns, size_t k,
                       int32_t *acc, size_t ldacc)
{
    enum { STEP = 2 * V_LANES };
    const uint8_t *xs[V_DOT_ROWS];
    const int8_t *ws[4];
    v_int sums[V_DOT_ROWS][4];
    for (size_t r = 0; r < V_DOT_ROWS; r++) {
        xs[r] = x + (r < rows ? r : rows - 1) * k;
        for (size_t j = 0; j < 4; j++)
            sums[r][j] = (v_int){0};
    }
    for (size_t j = 0; j < 4; j++)
        ws[j] = w + (j < columns ? j : columns - 1) * k;
    size_t i = 0;
    for (; i + STEP <= k; i += STEP) {
        for (size_t r = 0; r < V_DOT_ROWS; r++) {
            for (size_t j = 0; j < 4; j++)
                sums[r][j] += vs_madd(vs_from_u8(xs[r] + i), vs_from_s8(ws[j] + i));
        }
    }
    for (size_t r = 0; r < rows; r++) {
        for (size_t j = 0; j < columns; j++) {
            int32_t sum = 0;
            for (size_t lane = 0; lane < V_LANES; lane++)
                sum += sums[r][j][lane];
            for (size_t t = i; t < k; t++)
                sum += xs[r][t] * ws[j][t];
            acc[r * ldacc + j] = sum;
        }
    }
}

static void v_gemm_u8s8(const uint8_t *x, size_t m, const int8_t *w, size_t n, size_t k,
                        int32_t *acc, size_t ldacc)
{
    for (size_t r = 0; r < m; r += V_DOT_ROWS) {
        for (size_t j = 0; j < n; j += 4) {
            size_t rows = m - r < V_DOT_ROWS ? m - r : V_DOT_ROWS, columns = n - j < 4 ? n - j : 4;
            v_dot_tile(x + r * k, rows, w + j * k, columns, k, acc + r * ldacc + j, ldacc);
        }
    }
}
