/* Rotations: Paley's orders by hand, orthogonality of whole matrices, edits against dense products
 * in double. */
#include "tensor/rotation.h"

#include "model/edit.h"
#include "tensor_fixture.h"

/* Orders of spec/rotation.md 2: 36 - 1 and others are no primes = 3 mod 4, but 36 / 2 - 1 = 17 is
 * one = 1 mod 4; 28 = 2 (13 + 1); 12 = 11 + 1; 20 = 19 + 1. 45 has no multiple of 4 in 90. */
static void test_orders(void **state)
{
    (void)state;
    static const size_t orders[][3] = {
        {576, 36, 1},  {896, 28, 1},  {2048, 1, 1}, {3072, 12, 1}, {3584, 28, 1}, {4096, 1, 1},
        {5120, 20, 1}, {7168, 28, 1}, {8192, 1, 1}, {64, 1, 1},    {80, 20, 1},   {96, 12, 1},
        {128, 1, 1},   {1, 1, 1},     {2, 1, 1},    {90, 45, 0},   {6, 3, 0},     {12, 12, 1}};
    for (size_t i = 0; i < sizeof orders / sizeof *orders; i++) {
        bool paley;
        assert_int_equal(rotation_order(orders[i][0], &paley), orders[i][1]);
        assert_int_equal(paley, orders[i][2]);
    }
}

/* Columns of the unit vectors from `first` on: rows of R. */
static float *rows_of(tare_context *ctx, const rotation *r, size_t first, size_t count)
{
    float *x = calloc(r->n * count, sizeof *x), *room = malloc(r->n * count * sizeof *x);
    for (size_t j = 0; j < count; j++)
        x[(first + j) * count + j] = 1;
    rotation_apply(ctx, r, x, count, room);
    free(room);
    return x;
}

/* Unit vectors stay orthogonal and of length 1. By Paley all elements are as large. */
static void check_orthogonal(tare_context *ctx, size_t n)
{
    enum { MOST = 96 };
    bool paley;
    rotation r;
    size_t count = n < MOST ? n : MOST, first = n - count;
    assert_ok(ctx, rotation_create(ctx, n, 11, 3, &r));
    rotation_order(n, &paley);
    float *x = rows_of(ctx, &r, first, count);
    for (size_t a = 0; a < count; a++) {
        for (size_t b = 0; b <= a; b++) {
            double dot = 0;
            for (size_t i = 0; i < n; i++)
                dot += (double)x[i * count + a] * x[i * count + b];
            assert_true(fabs(dot - (a == b)) < 2e-6);
        }
    }
    for (size_t i = 0; paley && i < n * count; i++)
        assert_true(fabs(fabs((double)x[i]) * sqrt((double)n) - 1) < 1e-6);
    free(x);
    rotation_free(ctx, &r);
}

static void test_orthogonal(void **state)
{
    (void)state;
    static const size_t sizes[] = {1,  2,  12,  20,  24,  28,  36,   64,   72,   80,  90,
                                   96, 90, 128, 576, 896, 100, 3072, 5120, 7168, 8192};
    tare_context *ctx = new_context(1);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        check_orthogonal(ctx, sizes[i]);
    free_context(ctx);
}

/* Seed and part determine it, and every set computes the same. */
static void test_determined(void **state)
{
    tare_cpu cpu = this_cpu(state);
    tare_context *ctx = new_context_on(cpu, 1), *scalar = new_context_on(TARE_CPU_SCALAR, 1);
    static const size_t sizes[] = {576, 90, 92, 65}; /* 90 = 2 * 45 and 65 by no Paley */
    const uint64_t seeds[] = {5, 5, 6, 5}, parts[] = {2, 2, 2, 3};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        size_t bytes = sizes[s] * 33 * sizeof(float);
        rotation r[4];
        float *x[4];
        for (size_t i = 0; i < 4; i++) {
            assert_ok(ctx, rotation_create(ctx, sizes[s], seeds[i], (uint32_t)parts[i], &r[i]));
            x[i] = rows_of(i == 1 ? scalar : ctx, &r[i], 0, 33);
        }
        assert_memory_equal(x[0], x[1], bytes);
        assert_memory_not_equal(x[0], x[2], bytes);
        assert_memory_not_equal(x[0], x[3], bytes);
        for (size_t i = 0; i < 4; i++) {
            free(x[i]);
            rotation_free(ctx, &r[i]);
        }
    }
    free_context(ctx);
    free_context(scalar);
}

/* ---- edits ---- */

enum { N = 44, K = 48 }; /* 4 rows, then two blocks of 16 with 4 between and behind them; 3 of 16 */

/* Element of block-diagonal rotations: `r` [blocks], each for `share` blocks. */
static double element(float *const *rows, size_t width, size_t blocks, size_t share, size_t i,
                      size_t j)
{
    if (i / width != j / width)
        return 0;
    return rows[i / width / share % blocks][(j % width) * width + i % width];
}

static void check_edit(tare_context *ctx, const weight_edit *e, float *const *right,
                       float *const *left)
{
    random_state s = {3};
    float w[N][K], got[N][K];
    random_fill(&s, w[0], N * K, -1, 1);
    coded_rows in = coded_plain(TARE_F32, w, K);
    assert_ok(ctx, edit_rows(ctx, e, N, 0, N, &in, TARE_F32, got));
    for (size_t i = 0; i < N; i++) {
        for (size_t j = 0; j < K; j++) {
            double want = 0;
            for (size_t a = 0; a < N; a++) {
                const block_rows *b = &e->left_blocks;
                size_t block = b->stride ? (i - b->first) / b->stride : 0;
                bool mixed = b->count && i >= b->first && block < b->count &&
                             (i - b->first) % b->stride < b->width;
                size_t start = mixed ? b->first + block * b->stride : 0;
                double l = !e->left || (b->count && !mixed) ? a == i
                           : !b->count                      ? left[0][i * N + a]
                           : a >= start && a < start + b->width
                               ? left[block][(i - start) * b->width + (a - start)]
                               : 0;
                for (size_t c = 0; c < K && l != 0; c++) {
                    double r = !e->right ? c == j
                                         : element(right, e->right->n, e->right_blocks,
                                                   e->right_share, c, j);
                    want += l * (e->columns ? e->columns[c] : 1) * w[a][c] * r;
                }
            }
            assert_true(fabs(got[i][j] - want) < 1e-5);
        }
    }
    /* The same where they stand, and in pieces where rows do not mix. */
    assert_ok(ctx, edit_rows(ctx, e, N, 0, N, &in, TARE_F32, w));
    assert_memory_equal(w, got, sizeof w);
}

static void test_edits(void **state)
{
    (void)state;
    tare_context *ctx = new_context(2);
    rotation whole_k, whole_n, thirds[3], pairs[2];
    float columns[K], *right[3], *left[2], *all_k, *all_n;
    assert_ok(ctx, rotation_create(ctx, K, 1, 0, &whole_k));
    assert_ok(ctx, rotation_create(ctx, N, 1, 1, &whole_n));
    all_k = rows_of(ctx, &whole_k, 0, K);
    all_n = rows_of(ctx, &whole_n, 0, N);
    for (uint32_t i = 0; i < 3; i++) {
        assert_ok(ctx, rotation_create(ctx, 16, 2, i, &thirds[i]));
        right[i] = rows_of(ctx, &thirds[i], 0, 16);
    }
    for (uint32_t i = 0; i < 2; i++) {
        assert_ok(ctx, rotation_create(ctx, 16, 3, i, &pairs[i]));
        left[i] = rows_of(ctx, &pairs[i], 0, 16);
    }
    for (size_t i = 0; i < K; i++)
        columns[i] = 0.5f + (float)i / 16;
    const block_rows blocks = {4, 20, 16, 2};
    const weight_edit edits[] = {
        {.columns = columns},
        {.columns = columns, .right = &whole_k, .right_blocks = 1, .right_share = 1},
        {.right = thirds, .right_blocks = 3, .right_share = 1},
        {.right = thirds, .right_blocks = 2, .right_share = 2},
        {.left = &whole_n},
        {.left = &whole_n, .right = thirds, .right_blocks = 3, .right_share = 1},
        {.left = pairs, .left_blocks = blocks},
        {.columns = columns,
         .right = &whole_k,
         .right_blocks = 1,
         .right_share = 1,
         .left = pairs,
         .left_blocks = blocks},
    };
    for (size_t i = 0; i < sizeof edits / sizeof *edits; i++) {
        bool full = edits[i].right == &whole_k;
        check_edit(ctx, &edits[i], full ? &all_k : right,
                   edits[i].left == &whole_n ? &all_n : left);
    }
    for (size_t i = 0; i < 3; i++)
        rotation_free(ctx, &thirds[i]), free(right[i]);
    for (size_t i = 0; i < 2; i++)
        rotation_free(ctx, &pairs[i]), free(left[i]);
    rotation_free(ctx, &whole_k), free(all_k);
    rotation_free(ctx, &whole_n), free(all_n);
    free_context(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_orders),
        cmocka_unit_test(test_orthogonal),
        EACH_CPU(test_determined),
        cmocka_unit_test(test_edits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
