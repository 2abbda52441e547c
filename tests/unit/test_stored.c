/* Codecs and stored weights: FP8 numbers by the format's definition, scales of blocks, slices of
 * fused tensors, the dtype that numbers are rounded to. */
#include "fixture.h"

#include <math.h>

#include "model/stored.h"
#include "tensor/convert.h"
#include "tensor/kernels.h"

/* E4M3: (-1)^s * 2^(e-7) * (1 + m/8), or 2^-6 * m/8 with e = 0; NaN with e = 15 and m = 7. */
static double fp8(unsigned code)
{
    int e = (int)(code >> 3 & 15), m = (int)(code & 7);
    double x = e == 0 ? ldexp(m, -9) : ldexp(8 + m, e - 10);
    return e == 15 && m == 7 ? NAN : code & 0x80 ? -x : x;
}

static void test_fp8_numbers(void **state)
{
    (void)state;
    assert_true(fp8(0x7e) == 448 && fp8(0x01) == 0.001953125 && fp8(0xb8) == -1);
    for (unsigned code = 0; code < 256; code++) {
        float x = fp8_to_float((uint8_t)code);
        assert_true(isnan(fp8(code)) ? isnan(x) : (double)x == fp8(code));
        assert_int_equal(!!signbit(x), code >> 7);
    }
}

/* ---- weights in memory ---- */

enum { E = 3, N = 150, K = 200, GRID_N = 2, GRID_K = 2 };

typedef struct tensors {
    tare_context *ctx;
    checkpoint *c;
    uint8_t codes[E * N][K];
    float scales[E][GRID_N][GRID_K], floats[E * N][K];
    uint16_t bf16[E * N][K], narrow_scales[E][GRID_N][GRID_K];
} tensors;

static void setup(tensors *t)
{
    t->ctx = new_context(2);
    for (size_t i = 0; i < E * N; i++) {
        for (size_t j = 0; j < K; j++) {
            t->codes[i][j] = (uint8_t)((i * 31 + j * 7) % 127 + (i + j) % 2 * 128);
            t->floats[i][j] = (float)((double)i * 0.37 - (double)j * 0.011);
            t->bf16[i][j] = float_to_bf16(t->floats[i][j]);
        }
    }
    for (size_t i = 0; i < E * GRID_N * GRID_K; i++) {
        (&t->scales[0][0][0])[i] = 0.001f * (float)(i + 1);
        (&t->narrow_scales[0][0][0])[i] = float_to_bf16(0.001f * (float)(i + 1));
    }
    static const size_t fused[] = {E, N, K}, grids[] = {E, GRID_N, GRID_K}, matrix[] = {N, K},
                        grid[] = {GRID_N, GRID_K};
    tare_tensor list[] = {
        {.name = "fp8", .dtype = "F8_E4M3", .rank = 3, .shape = fused, .data = t->codes},
        {.name = "fp8.scales", .dtype = "F32", .rank = 3, .shape = grids, .data = t->scales},
        {.name = "one", .dtype = "F8_E4M3", .rank = 2, .shape = matrix, .data = t->codes},
        {.name = "one.scales", .dtype = "BF16", .rank = 2, .shape = grid, .data = t->narrow_scales},
        {.name = "bf16", .dtype = "BF16", .rank = 3, .shape = fused, .data = t->bf16},
        {.name = "f32", .dtype = "F32", .rank = 3, .shape = fused, .data = t->floats},
        {.name = "i64", .dtype = "I64", .rank = 1, .shape = &grid[0], .data = t->floats}};
    list[0].bytes = sizeof t->codes;
    list[1].bytes = sizeof t->scales;
    list[2].bytes = N * K;
    list[3].bytes = sizeof t->narrow_scales[0];
    list[4].bytes = sizeof t->bf16;
    list[5].bytes = sizeof t->floats;
    list[6].bytes = 2 * sizeof(int64_t);
    assert_ok(t->ctx, checkpoint_from_tensors(t->ctx, "memory", list, 7, &t->c));
}

static void teardown(tensors *t)
{
    checkpoint_close(t->c);
    free_context(t->ctx);
}

static stored_weight slice(const tensors *t, const char *name, const char *scales, size_t first,
                           size_t n)
{
    return stored_matrix("slice", checkpoint_find(t->c, name),
                         scales ? checkpoint_find(t->c, scales) : NULL, first, n);
}

/* The number at a row of the fused tensor: expert row / N, in its own blocks. */
static float wanted(const tensors *t, bool narrow, size_t row, size_t column)
{
    size_t e = row / N, i = row % N / 128, j = column / 128;
    float scale = narrow ? bf16_to_float(t->narrow_scales[e][i][j]) : t->scales[e][i][j];
    float product = (float)fp8(t->codes[row][column]) * scale;
    return bf16_to_float(float_to_bf16(product));
}

static void check_rows(const tensors *t, const stored_weight *w, bool narrow, size_t first,
                       size_t count)
{
    static float wide[N][K];
    static uint16_t half[N][K];
    assert_ok(t->ctx, stored_read_rows(t->c, w, first, count, TARE_F32, wide));
    assert_ok(t->ctx, stored_read_rows(t->c, w, first, count, TARE_F16, half));
    for (size_t i = 0; i < count; i++) {
        for (size_t j = 0; j < K; j++) {
            float x = wanted(t, narrow, w->first + first + i, j);
            assert_true(wide[i][j] == x && half[i][j] == float_to_fp16(x));
        }
    }
}

/* All of a matrix, an expert, and rows of either that begin and end within a block. */
static void test_fp8_slices(void **state)
{
    (void)state;
    static tensors t;
    setup(&t);
    stored_weight one = slice(&t, "one", "one.scales", 0, N), part = one, expert;
    check_rows(&t, &one, true, 0, N);
    check_rows(&t, &one, true, 100, 50);
    check_rows(&t, &one, true, 128, 1);
    part = slice(&t, "one", "one.scales", 20, 120);
    check_rows(&t, &part, true, 0, 120);
    check_rows(&t, &part, true, 107, 3);
    for (size_t e = 0; e < E; e++) {
        expert = slice(&t, "fp8", "fp8.scales", e * N, N);
        assert_true(expert.n == N && expert.k == K && expert.dtype == TARE_BF16);
        check_rows(&t, &expert, false, 0, N);
        check_rows(&t, &expert, false, 127, 2);
    }
    part = slice(&t, "fp8", "fp8.scales", 2 * N + 100, 40);
    check_rows(&t, &part, false, 0, 40);
    teardown(&t);
}

/* Loaded, cut anew, and a part of a row; in a stream; from a reader's room. */
static void test_fp8_in_memory(void **state)
{
    (void)state;
    static tensors t;
    float x[K], scales[64];
    setup(&t);
    const kernels *ops = kernels_get(t.ctx);
    stored_weight w = slice(&t, "fp8", "fp8.scales", N + 5, 140);
    coded_rows rows, from;
    size_t used = tare_memory_used(t.ctx);
    assert_ok(t.ctx, stored_load(t.c, &w, &rows));
    used = tare_memory_used(t.ctx) - used;
    assert_true(used > 140 * K && used <= stored_room_bytes(&w, w.n)); /* FP8 stays FP8 */
    assert_null(coded_in_place(&rows, TARE_BF16, 0, 0));
    from = coded_from(&rows, 121);
    for (size_t row = 0; row < 19; row++) {
        coded_decode(ops, &from, row, 77, 100, x);
        for (size_t j = 0; j < 100; j++)
            assert_true(x[j] == wanted(&t, false, N + 5 + 121 + row, 77 + j));
    }
    coded_free(t.ctx, &rows);
    void *room = mem_alloc(t.ctx, file_read_room(2 * K));
    assert_true(stored_scales(&w, 2) <= 64);
    assert_ok(t.ctx, stored_read_in(t.c, &w, 122, 2, room, scales, &rows));
    for (size_t row = 0; row < 2; row++) {
        coded_decode(ops, &rows, row, 0, K, x);
        for (size_t j = 0; j < K; j++)
            assert_true(x[j] == wanted(&t, false, N + 5 + 122 + row, j));
    }
    mem_free(t.ctx, room);
    teardown(&t);
}

/* Floats in a fused tensor; rounded to another dtype they are no longer used where they are. */
static void test_float_slices(void **state)
{
    (void)state;
    static tensors t;
    static float x[N][K];
    uint16_t half[2][K];
    setup(&t);
    stored_weight w = slice(&t, "bf16", NULL, N + 3, 50);
    coded_rows rows;
    assert_ok(t.ctx, stored_load(t.c, &w, &rows));
    assert_memory_equal(coded_in_place(&rows, TARE_BF16, 7, 5), &t.bf16[N + 10][5], 20);
    coded_free(t.ctx, &rows);
    w = slice(&t, "f32", NULL, 2 * N, N);
    assert_ok(t.ctx, stored_read_rows(t.c, &w, 0, N, TARE_F32, x));
    assert_memory_equal(x, t.floats[2 * N], sizeof x);
    w.dtype = TARE_BF16;
    assert_ok(t.ctx, stored_read_rows(t.c, &w, 4, 2, TARE_BF16, half));
    assert_memory_equal(half, t.bf16[2 * N + 4], sizeof half);
    assert_ok(t.ctx, stored_read_rows(t.c, &w, 4, 2, TARE_F32, x));
    for (size_t j = 0; j < K; j++)
        assert_true(x[1][j] == bf16_to_float(t.bf16[2 * N + 5][j]));
    w.dtype = TARE_F16;
    assert_ok(t.ctx, stored_read_rows(t.c, &w, 4, 1, TARE_F16, half));
    assert_int_equal(half[0][9], float_to_fp16(t.floats[2 * N + 4][9]));
    tensor_info one = *checkpoint_find(t.c, "one"), values;
    one.rank = 3, one.shape[0] = 1, one.shape[1] = N, one.shape[2] = K; /* the only expert */
    stored_weight only = stored_matrix("only", &one, NULL, 0, N);
    values = stored_values(&only);
    assert_true(values.rank == 2 && values.shape[0] == N && values.dtype == TARE_BF16);
    values = stored_values(&w);
    assert_true(values.rank == 2 && values.shape[0] == N && values.shape[1] == K);
    assert_true(values.dtype == TARE_F16 && values.bytes == 2 * N * K);
    assert_string_equal(values.name, "slice");
    w = stored_whole(checkpoint_find(t.c, "i64"));
    assert_true(!w.codec && w.n == 2 && w.k == 1);
    assert_ok(t.ctx, stored_read_rows(t.c, &w, 0, 2, TARE_I64, x));
    assert_memory_equal(x, t.floats, 2 * sizeof(int64_t));
    teardown(&t);
}

static void test_not_finite(void **state)
{
    (void)state;
    static tensors t;
    static float x[N][K];
    setup(&t);
    stored_weight w = slice(&t, "fp8", "fp8.scales", N, N);
    t.codes[N + 1][2] = 0xff;
    assert_fails(t.ctx, stored_read_rows(t.c, &w, 0, N, TARE_F32, x), TARE_E_NUMERIC,
                 "fp8: element 30202 is NaN");
    t.codes[N + 1][2] = 0x7e;
    t.scales[1][1][1] = 0x1p119f; /* 448 * 2^119 = 1.75 * 2^127 */
    assert_ok(t.ctx, stored_read_rows(t.c, &w, 0, N, TARE_F32, x));
    t.scales[1][1][1] = 0x1.000002p119f;
    assert_fails(t.ctx, stored_read_rows(t.c, &w, 0, N, TARE_F32, x), TARE_E_NUMERIC,
                 "fp8.scales: a scale of");
    assert_ok(t.ctx, stored_read_rows(t.c, &w, 0, 128, TARE_F32, x)); /* another block's */
    teardown(&t);
}

static tare_status read_all(tare_context *ctx, void *user)
{
    static float x[N][K];
    tensors *t = user;
    stored_weight w = slice(t, "one", "one.scales", 20, 120);
    coded_rows rows = {0};
    checkpoint *c;
    tare_status status = checkpoint_reopen(ctx, t->c, &c);
    if (status != TARE_OK)
        return status;
    status = stored_read_rows(c, &w, 0, w.n, TARE_BF16, x);
    if (status == TARE_OK)
        status = stored_load(c, &w, &rows);
    coded_free(ctx, &rows);
    checkpoint_close(c);
    return status;
}

static void test_out_of_memory(void **state)
{
    (void)state;
    static tensors t;
    setup(&t);
    each_allocation_fails(read_all, &t);
    teardown(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fp8_numbers),   cmocka_unit_test(test_fp8_slices),
        cmocka_unit_test(test_fp8_in_memory), cmocka_unit_test(test_float_slices),
        cmocka_unit_test(test_not_finite),    cmocka_unit_test(test_out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
