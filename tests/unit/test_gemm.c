/* Matrix products: 8-bit ones are exact, with extreme values and the largest K; float ones stay
 * within the bound of FP32 sums against double arithmetic. The bytes are the same for any number of
 * threads and any grouping of samples. Failing allocations leave nothing behind. */
#include "tensor/convert.h"
#include "tensor/gemm.h"
#include "tensor/kernels.h"
#include "tensor_fixture.h"

static void check_int8(tare_context *ctx, size_t m, size_t n, size_t k, int extreme)
{
    random_state r = {m * 31 + n * 7 + k};
    uint8_t *x = malloc(m * k);
    int8_t *w = malloc(n * k);
    int32_t *acc = malloc(m * n * sizeof *acc);
    for (size_t i = 0; i < m * k; i++)
        x[i] = extreme ? 255 : (uint8_t)random_bits(&r);
    for (size_t i = 0; i < n * k; i++)
        w[i] = extreme == 1   ? -128
               : extreme == 2 ? 127
               : extreme == 3 ? (i & 1 ? 127 : -128)
                              : (int8_t)random_bits(&r);
    assert_ok(ctx, gemm_u8s8(ctx, x, w, m, n, k, acc));
    for (size_t i = 0; i < m; i++) {
        for (size_t j = 0; j < n; j++) {
            int64_t sum = 0;
            for (size_t t = 0; t < k; t++)
                sum += x[i * k + t] * w[j * k + t];
            assert_int_equal(acc[i * n + j], sum);
        }
    }
    free(x), free(w), free(acc);
}

static void test_int8_exact(void **state)
{
    tare_cpu cpu = this_cpu(state);
    const size_t shapes[][3] = {{1, 1, 1},   {3, 5, 7},    {17, 33, 65}, {5, 67, 127},
                                {64, 9, 31}, {257, 3, 40}, {2, 513, 33}, {33, 20, 576}};
    tare_context *ctx = new_context_on(cpu, 2);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        for (int extreme = 0; extreme < 4; extreme++)
            check_int8(ctx, shapes[i][0], shapes[i][1], shapes[i][2], extreme);
    }
    for (int extreme = 0; extreme < 4; extreme++)
        check_int8(ctx, 5, 6, GEMM_MAX_K, extreme);
    int32_t acc;
    assert_fails(ctx, gemm_u8s8(ctx, NULL, NULL, 1, 1, GEMM_MAX_K + 1, &acc), TARE_E_MODEL,
                 "65537");
    assert_ok(ctx, gemm_u8s8(ctx, NULL, NULL, 0, 4, 4, &acc));
    free_context(ctx);
}

typedef struct float_case {
    size_t m, n, k;
    float *x, *w, *bias, *y;
    void *stored; /* w in its dtype */
} float_case;

static float_case float_case_new(tare_context *ctx, size_t m, size_t n, size_t k, tare_dtype dtype)
{
    random_state r = {m + n * 1000 + k * 7};
    float_case c = {m,
                    n,
                    k,
                    malloc(m * k * 4),
                    malloc(n * k * 4),
                    malloc(n * 4),
                    malloc(m * n * 4),
                    malloc(n * k * 4)};
    random_fill(&r, c.x, m * k, -1, 1);
    random_fill(&r, c.w, n * k, -1, 1);
    random_fill(&r, c.bias, n, -1, 1);
    narrow_from_float(ctx, dtype, c.w, n * k, c.stored);
    widen_to_float(ctx, dtype, c.stored, n * k, c.w);
    return c;
}

static void float_case_free(float_case *c)
{
    free(c->x), free(c->w), free(c->bias), free(c->y), free(c->stored);
}

/* Products in a sum of k FP32 terms: the error stays below k * 2^-24 * sum |x w|; random signs make
 * it far smaller, so sqrt(k) + 8 is the bound here. */
static void check_float(const float_case *c, gemm_compute compute, bool bias)
{
    for (size_t i = 0; i < c->m; i++) {
        for (size_t j = 0; j < c->n; j++) {
            double sum = bias ? c->bias[j] : 0, size = fabs(sum);
            for (size_t t = 0; t < c->k; t++) {
                double x = c->x[i * c->k + t], w = c->w[j * c->k + t];
                if (compute == GEMM_BF16) {
                    x = round_to_dtype(x, TARE_BF16);
                    w = round_to_dtype(w, TARE_BF16);
                }
                sum += x * w;
                size += fabs(x * w);
            }
            double bound = (sqrt((double)c->k) + 8) * 0x1p-24 * size;
            if (!(fabs(c->y[i * c->n + j] - sum) <= bound))
                fail_msg("[%zu,%zu] of %zux%zux%zu: %g, not %g", i, j, c->m, c->n, c->k,
                         (double)c->y[i * c->n + j], sum);
        }
    }
}

static void test_float_against_double(void **state)
{
    tare_cpu cpu = this_cpu(state);
    const size_t shapes[][3] = {{1, 1, 1},    {1, 32, 256},  {13, 31, 257}, {12, 33, 5},
                                {97, 64, 64}, {65, 513, 40}, {7, 100, 1030}};
    const tare_dtype dtypes[] = {TARE_F32, TARE_F16, TARE_BF16};
    tare_context *ctx = new_context_on(cpu, 2);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes * 6; i++) {
        const size_t *s = shapes[i / 6];
        gemm_compute compute = i % 2 ? GEMM_BF16 : GEMM_FP32;
        tare_dtype dtype = dtypes[i / 2 % 3];
        float_case f = float_case_new(ctx, s[0], s[1], s[2], dtype);
        gemm_weight *w;
        assert_ok(ctx, gemm_weight_create(ctx, compute, dtype, f.stored, s[1], s[2], &w));
        assert_true(tare_memory_used(ctx) <= gemm_weight_bytes(compute, dtype, s[1], s[2]));
        assert_ok(ctx, gemm_float(ctx, w, f.x, s[0], f.bias, f.y));
        check_float(&f, compute, true);
        assert_ok(ctx, gemm_float(ctx, w, f.x, s[0], NULL, f.y));
        check_float(&f, compute, false);
        gemm_weight_free(ctx, w);
        float_case_free(&f);
    }
    free_context(ctx);
}

/* Samples of these lengths, in one call or in several, on one thread or more. */
static void test_float_same_bytes(void **state)
{
    tare_cpu cpu = this_cpu(state);
    enum { SAMPLES = 5, N = 1060, K = 300, ROWS = 1 + 130 + 64 + 13 + 77 };
    const size_t rows[SAMPLES] = {1, 130, 64, 13, 77},
                 groups[][SAMPLES] = {{5}, {1, 1, 1, 1, 1}, {2, 3}, {4, 1}};
    for (int compute = GEMM_FP32; compute <= GEMM_BF16; compute++) {
        tare_context *first = new_context_on(cpu, 1);
        float_case f = float_case_new(first, ROWS, N, K, TARE_BF16);
        float *expected = malloc(ROWS * N * sizeof *expected);
        for (int threads = 1; threads <= 3; threads++) {
            tare_context *ctx = new_context_on(cpu, threads);
            gemm_weight *w;
            assert_ok(
                ctx, gemm_weight_create(ctx, (gemm_compute)compute, TARE_BF16, f.stored, N, K, &w));
            for (size_t g = 0; g < sizeof groups / sizeof *groups; g++) {
                size_t row = 0, sample = 0;
                memset(f.y, 0, ROWS * N * sizeof *f.y);
                for (size_t i = 0; sample < SAMPLES; i++) {
                    size_t from = row;
                    for (size_t end = sample + groups[g][i]; sample < end; sample++)
                        row += rows[sample];
                    assert_ok(ctx, gemm_float(ctx, w, f.x + from * K, row - from, f.bias,
                                              f.y + from * N));
                }
                if (threads == 1 && g == 0)
                    memcpy(expected, f.y, ROWS * N * sizeof *expected);
                assert_memory_equal(f.y, expected, ROWS * N * sizeof *expected);
            }
            gemm_weight_free(ctx, w);
            free_context(ctx);
        }
        free(expected);
        float_case_free(&f);
        free_context(first);
    }
}

/* One to sixteen rows go another way than many: the sums are the same. */
static void test_few_rows(void **state)
{
    tare_cpu cpu = this_cpu(state);
    enum { ROWS = 40, N = 97, K = 600, MOST = 18 };
    const tare_dtype dtypes[] = {TARE_F32, TARE_F16, TARE_BF16};
    for (size_t d = 0; d < 3; d++) {
        tare_context *ctx = new_context_on(cpu, 2);
        float_case f = float_case_new(ctx, ROWS, N, K, dtypes[d]);
        float few[MOST * N];
        const size_t all = ROWS;
        gemm_weight *w;
        assert_ok(ctx, gemm_weight_create(ctx, GEMM_FP32, dtypes[d], f.stored, N, K, &w));
        assert_ok(ctx, gemm_float(ctx, w, f.x, all, f.bias, f.y));
        check_float(&f, GEMM_FP32, true);
        for (size_t rows = 1; rows <= MOST; rows++) {
            size_t first = rows % (ROWS - MOST);
            assert_ok(ctx, gemm_float(ctx, w, f.x + first * K, rows, f.bias, few));
            assert_memory_equal(few, f.y + first * N, rows * N * sizeof *few);
        }
        gemm_weight_free(ctx, w);
        float_case_free(&f);
        free_context(ctx);
    }
}

typedef struct rows_source {
    const float *x;
    size_t rows, k;
} rows_source;

static void make_rows(void *user, size_t k0, size_t depth, float *x)
{
    const rows_source *s = user;
    for (size_t r = 0; r < s->rows; r++)
        memcpy(x + r * GEMM_DEPTH, s->x + r * s->k + k0, depth * sizeof *x);
}

/* Rows that are made while they are multiplied give what stored ones give. */
static void test_made_rows(void **state)
{
    tare_cpu cpu = this_cpu(state);
    const size_t shapes[][3] = {{1, 1, 1}, {GEMM_ROWS, 64, 600}, {37, 70, 256}, {13, 31, 255}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        const size_t *shape = shapes[i];
        tare_context *ctx = new_context_on(cpu, 1);
        float_case f = float_case_new(ctx, shape[0], shape[1], shape[2], TARE_BF16);
        float *y = malloc(shape[0] * shape[1] * sizeof *y);
        void *scratch = mem_alloc(ctx, GEMM_ROWS_SCRATCH);
        rows_source source = {f.x, shape[0], shape[2]};
        gemm_weight *w;
        assert_ok(ctx,
                  gemm_weight_create(ctx, GEMM_FP32, TARE_BF16, f.stored, shape[1], shape[2], &w));
        assert_ok(ctx, gemm_float(ctx, w, f.x, shape[0], NULL, f.y));
        gemm_float_rows(ctx, w, shape[0], make_rows, &source, y, scratch);
        assert_memory_equal(y, f.y, shape[0] * shape[1] * sizeof *y);
        gemm_weight_free(ctx, w);
        mem_free(ctx, scratch);
        free(y);
        float_case_free(&f);
        free_context(ctx);
    }
}

/* AVX2 and AVX-512 sum in the same order with the same fused steps: FP32 gives the same bytes. */
static void test_vector_sets_agree(void **state)
{
    (void)state;
    enum { M = 37, N = 70, K = 530 };
    need_cpu(TARE_CPU_AVX512);
    tare_context *contexts[] = {new_context_on(TARE_CPU_AVX2, 1),
                                new_context_on(TARE_CPU_AVX512, 1)};
    float_case f = float_case_new(contexts[0], M, N, K, TARE_F32);
    float *other = malloc(M * N * sizeof *other), *results[] = {f.y, other};
    size_t rows = M;
    for (int i = 0; i < 2; i++) {
        gemm_weight *w;
        assert_ok(contexts[i],
                  gemm_weight_create(contexts[i], GEMM_FP32, TARE_F32, f.stored, N, K, &w));
        assert_ok(contexts[i], gemm_float(contexts[i], w, f.x, rows, NULL, results[i]));
        gemm_weight_free(contexts[i], w);
    }
    assert_memory_equal(f.y, other, M * N * sizeof *other);
    free(other);
    float_case_free(&f);
    free_context(contexts[0]);
    free_context(contexts[1]);
}

static void test_other_dtypes(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    const uint8_t w[6] = {0};
    for (tare_dtype d = 0; d < TARE_DTYPE_COUNT; d++) {
        gemm_weight *packed;
        if (d == TARE_F32 || d == TARE_F16 || d == TARE_BF16)
            continue;
        assert_fails(ctx, gemm_weight_create(ctx, GEMM_FP32, d, w, 2, 3, &packed), TARE_E_MODEL,
                     dtype_name(d));
        assert_null(packed);
    }
    free_context(ctx);
}

static void test_failing_allocations(void **state)
{
    (void)state;
    for (int compute = GEMM_FP32; compute <= GEMM_BF16; compute++) {
        for (long allowed = 0;; allowed++) {
            fault f = {-1, false};
            tare_context_options options;
            init_options(&options);
            options.threads = 2;
            options.allow_allocation = fault_allow;
            options.user = &f;
            tare_context *ctx;
            assert_int_equal(tare_context_create(&ctx, &options), TARE_OK);
            float x[2 * 9] = {0}, w[600 * 9] = {0}, y[2 * 600];
            size_t rows = 2;
            gemm_weight *weight;
            f.left = allowed;
            tare_status status = gemm_weight_create(ctx, (gemm_compute)compute, TARE_F32, w, 600, 9,
                                                    &weight);
            if (status == TARE_OK)
                status = gemm_float(ctx, weight, x, rows, NULL, y);
            else
                assert_null(weight);
            assert_int_equal(status, f.hit ? TARE_E_MEMORY : TARE_OK);
            gemm_weight_free(ctx, weight);
            free_context(ctx);
            if (!f.hit)
                break;
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        EACH_CPU(test_int8_exact),
        EACH_CPU(test_float_against_double),
        EACH_CPU(test_float_same_bytes),
        EACH_CPU(test_few_rows),
        EACH_CPU(test_made_rows),
        cmocka_unit_test(test_vector_sets_agree),
        cmocka_unit_test(test_other_dtypes),
        cmocka_unit_test(test_failing_allocations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
