/* Vector kernels of every instruction set that this CPU has: the exact ones bit for bit as the
 * scalar ones, which are checked by hand-made cases; the others against double arithmetic within
 * the bounds stated here. Lengths around vector tails, and pointers off the vector grid. */
#include "tensor/convert.h"
#include "tensor_fixture.h"

enum { LONGEST = 67, GUARD = 0x5a };

/* Runs `test` for each length 1..67, then for a long row. */
static void for_lengths(tare_cpu cpu, void (*test)(const kernels *k, size_t n, random_state *r))
{
    const kernels *k = kernels_of(cpu);
    random_state r = {99};
    for (size_t n = 1; n <= LONGEST; n++)
        test(k, n, &r);
    test(k, 5003, &r);
}

static const uint32_t special_bits[] = {
    0x00000000, 0x80000000, 0x00000001, 0x80000001, 0x007fffff, 0x00800000, 0x7f7fffff, 0xff7fffff,
    0x7f800000, 0xff800000, 0x7fc00000, 0xffc12345, 0x7f800001, 0x3f808000, 0x3f818000, 0x477fefff,
    0x477ff000, 0x38800000, 0x387fffff, 0x33000000, 0x33000001, 0x33800000, 0x7f7f8000, 0x7f7f7fff};
enum { SPECIALS = sizeof special_bits / sizeof *special_bits };

static void check_conversions(const kernels *k, size_t n, random_state *r)
{
    const kernels *s = kernels_of(TARE_CPU_SCALAR);
    float *x = malloc((n + 1) * 4), *y = malloc(n * 4), *z = malloc(n * 4);
    uint16_t *a = malloc(2 * n), *b = malloc(2 * n);
    x++;
    for (size_t i = 0; i < n; i++)
        x[i] = float_of_bits(random_bits(r) % 3 ? random_bits(r)
                                                : special_bits[random_bits(r) % SPECIALS]);
    k->float_to_bf16(x, n, a);
    s->float_to_bf16(x, n, b);
    assert_memory_equal(a, b, 2 * n);
    k->float_to_fp16(x, n, a);
    s->float_to_fp16(x, n, b);
    assert_memory_equal(a, b, 2 * n);
    for (size_t i = 0; i < n; i++)
        a[i] = (uint16_t)random_bits(r);
    k->bf16_to_float(a, n, y);
    s->bf16_to_float(a, n, z);
    assert_memory_equal(y, z, 4 * n);
    k->fp16_to_float(a, n, y);
    s->fp16_to_float(a, n, z);
    assert_memory_equal(y, z, 4 * n);
    for (int i = 0; i < 4; i++) { /* scales down to where numbers are subnormal */
        float scale = (float[]){1, 0.00071f, -3.3e38f / 448, 1e-37f}[i];
        k->fp8_to_float((uint8_t *)a + 1, n, scale, y);
        s->fp8_to_float((uint8_t *)a + 1, n, scale, z);
        assert_memory_equal(y, z, 4 * n);
    }
    free(x - 1), free(y), free(z), free(a), free(b);
}

static void test_conversions(void **state)
{
    tare_cpu cpu = this_cpu(state);
    for_lengths(cpu, check_conversions);
}

static void check_extremes(const kernels *k, size_t n, random_state *r)
{
    float *x = malloc(n * 4), min, max, abs;
    for (int sign = -1; sign <= 1; sign++) {
        bool finite = true;
        random_fill(r, x, n, sign < 0 ? -5 : sign ? 1 : -5, sign < 0 ? -1 : 5);
        double low = x[0], high = x[0];
        for (size_t i = 0; i < n; i++) {
            low = fmin(low, x[i]);
            high = fmax(high, x[i]);
        }
        k->min_max(x, n, &min, &max, &finite);
        assert_true(min == low && max == high && finite);
        k->abs_max(x, n, &abs, &finite);
        assert_true(abs == fmax(-low, high) && finite);
    }
    const float bad[] = {NAN, INFINITY, -INFINITY, float_of_bits(0xff800001)};
    for (size_t at = 0; at < n; at += 1 + n / 50) {
        float old = x[at];
        x[at] = bad[random_bits(r) % 4];
        bool finite = true;
        k->min_max(x, n, &min, &max, &finite);
        assert_false(finite);
        finite = true;
        k->abs_max(x, n, &abs, &finite);
        assert_false(finite);
        x[at] = old;
    }
    bool left_alone = false;
    k->min_max(x, n, &min, &max, &left_alone);
    k->abs_max(x, n, &abs, &left_alone);
    assert_false(left_alone);
    for (size_t i = 0; i < n; i++) /* denormals count, the sign of zero does not */
        x[i] = i == n / 2 ? -0x1p-149f : -0.0f;
    k->min_max(x, n, &min, &max, &left_alone);
    assert_true(min == -0x1p-149f && bits_of_float(max) == (n == 1 ? 0x80000001 : 0));
    free(x);
}

static void test_extremes(void **state)
{
    tare_cpu cpu = this_cpu(state);
    for_lengths(cpu, check_extremes);
}

/* Half to even in double, which is exact on an FP32 quotient. */
static int clamp_round(double v, int low, int high)
{
    v = v < low ? low : v > high ? high : v;
    return (int)nearbyint(v);
}

static void check_quantization(const kernels *k, size_t n, random_state *r)
{
    float *x = malloc(n * 4);
    int8_t *q = malloc(n + 1);
    const float scales[] = {0.5f, 0.013f, 0x1p-149f, 3e38f, 1}, offsets[] = {0, -45, 127, -128};
    for (int round = 0; round < 20; round++) {
        float scale = scales[round % 5], offset = offsets[round % 4];
        int limit = round % 3 ? 127 : 7;
        int64_t sum = 0;
        for (size_t i = 0; i < n; i++) {
            float tie = (float)((int)(random_bits(r) % 300) - 150) + 0.5f;
            x[i] = random_bits(r) % 4 == 0   ? float_of_bits(random_bits(r) % 0x7f800000)
                   : random_bits(r) % 2 == 0 ? tie * scale
                                             : random_float(r, -2, 2);
        }
        q[n] = GUARD;
        int64_t returned = k->quantize_symmetric(x, n, scale, limit, q);
        for (size_t i = 0; i < n; i++) {
            assert_int_equal(q[i], clamp_round(x[i] / scale, -limit, limit));
            sum += q[i];
        }
        assert_int_equal(returned, sum);
        k->quantize_asymmetric(x, n, scale, offset, (uint8_t *)q);
        for (size_t i = 0; i < n; i++) {
            float shifted = x[i] / scale + offset;
            assert_int_equal((uint8_t)q[i], clamp_round(shifted, -128, 127) + 128);
        }
        assert_int_equal(q[n], GUARD);
    }
    free(x), free(q);
}

/* Integers as above; how they fit, from them and the formulas of the header, in double: sums of so
 * few FP32 numbers are exact to some 2^-40. Every set has the same. */
static void check_int4(const kernels *k, size_t n, random_state *r)
{
    float *x = malloc(n * 4);
    int8_t *q = malloc(n + 1), *same = malloc(n);
    int4_fit fit, other;
    for (int round = 0; round < 4; round++) {
        float scale = round % 2 ? 0.13f : 0.5f;
        double error = 0, product = 0, most = 0;
        int64_t squares = 0, sum = 0;
        for (size_t i = 0; i < n; i++)
            x[i] = random_bits(r) % 2 ? ((float)(random_bits(r) % 20) - 9.5f) * scale
                                      : random_float(r, -6, 6);
        q[n] = GUARD;
        k->quantize_int4(x, n, scale, q, &fit);
        for (size_t i = 0; i < n; i++) {
            assert_int_equal(q[i], clamp_round(x[i] / scale, -8, 7));
            float there = (float)q[i] * scale, difference = x[i] - there;
            float square = difference * difference, p = x[i] * (float)q[i];
            error += square;
            product += p;
            most += fabs(p) + square;
            squares += q[i] * q[i];
            sum += q[i];
        }
        assert_int_equal(q[n], GUARD);
        assert_int_equal(fit.squares, squares);
        assert_int_equal(fit.sum, sum);
        assert_true(fabs(fit.error - error) <= 1e-12 * most);
        assert_true(fabs(fit.product - product) <= 1e-12 * most);
        kernels_of(TARE_CPU_SCALAR)->quantize_int4(x, n, scale, same, &other);
        assert_memory_equal(same, q, n);
        assert_memory_equal(&other, &fit, sizeof fit);
    }
    free(x), free(q), free(same);
}

/* Against the formula of the header, operation by operation: the same bits. */
static void check_scaled(const kernels *k, size_t n, random_state *r)
{
    float *x = calloc(n, 4), *s = calloc(n, 4);
    float *y = malloc((n + 1) * 4);
    const kernel_grid grids[] = {
        {0.0173f, 0, -128, 127}, {0.09f, -3, -8, 7}, {1e-3f, 5, -128, 127}};
    random_fill(r, x, n, -1, 1);
    random_fill(r, s, n, 0.2, 3);
    y[n] = 77;
    k->multiply(x, s, n, y);
    float lo = INFINITY, hi = -INFINITY, min, max;
    for (size_t i = 0; i < n; i++) {
        assert_true(y[i] == x[i] * s[i]);
        lo = fminf(lo, y[i]);
        hi = fmaxf(hi, y[i]);
    }
    k->product_min_max(x, s, n, &min, &max);
    assert_true(min == lo && max == hi);
    for (size_t g = 0; g < sizeof grids / sizeof *grids; g++) {
        const kernel_grid *q = &grids[g];
        k->grid_error(x, s, n, q, y);
        for (size_t i = 0; i < n; i++) {
            float level = (float)clamp_round(x[i] * s[i] / q->step + q->zero, (int)q->low,
                                             (int)q->high);
            assert_true(y[i] == (level - q->zero) * q->step / s[i] - x[i]);
        }
    }
    assert_true(y[n] == 77);
    free(x), free(s), free(y);
}

/* Ties by hand, and the row sum of a row too long for one 32-bit lane. */
static void test_quantization(void **state)
{
    tare_cpu cpu = this_cpu(state);
    const kernels *k = kernels_of(cpu);
    for_lengths(cpu, check_quantization);
    for_lengths(cpu, check_int4);
    for_lengths(cpu, check_scaled);
    enum { LONG = (1 << 20) + 5 };
    float *x = malloc(LONG * 4);
    int8_t *q = malloc(LONG);
    const float ties[] = {0.5f, 1.5f, 2.5f, -0.5f, -1.5f, 127.5f, -127.5f, INFINITY, -INFINITY};
    const int8_t expected[] = {0, 2, 2, 0, -2, 127, -127, 127, -127};
    assert_int_equal(k->quantize_symmetric(ties, 9, 1, 127, q), 2);
    assert_memory_equal(q, expected, 9);
    const uint8_t shifted[] = {128, 130, 130, 128, 126, 255, 0, 255, 0};
    k->quantize_asymmetric(ties, 9, 1, 0, (uint8_t *)q);
    assert_memory_equal(q, shifted, 9);
    for (size_t i = 0; i < LONG; i++)
        x[i] = i % 1000 == 0 ? -1 : 2;
    assert_int_equal(k->quantize_symmetric(x, LONG, 1, 127, q), 2 * LONG - 3 * 1049);
    free(x), free(q);
}

static void check_dequantize(const kernels *k, size_t n, random_state *r)
{
    int32_t *acc = malloc(n * 4);
    int64_t *sums = malloc(n * 8);
    float *scales = malloc(n * 4), *bias = malloc(n * 4), *y = malloc(n * 4);
    random_fill(r, scales, n, 1e-5, 1);
    random_fill(r, bias, n, -3, 3);
    for (size_t i = 0; i < n; i++) {
        acc[i] = i % 7 == 0 ? INT32_MAX : i % 7 == 1 ? INT32_MIN : (int32_t)random_bits(r);
        sums[i] = (int64_t)(random_bits(r) % (1 << 24)) - (1 << 23);
    }
    for (int round = 0; round < 8; round++) {
        int64_t zero = round & 1 ? 255 : -83;
        size_t count = round & 2 ? n : 1;
        const float *b = round & 4 ? bias : NULL;
        k->dequantize_row(acc, n, zero, sums, 0.037f, scales, count, b, y);
        for (size_t i = 0; i < n; i++) {
            double scale = (double)0.037f * scales[count > 1 ? i : 0];
            double product = (double)(acc[i] - zero * sums[i]) * scale;
            assert_true(y[i] == (float)(b ? product + b[i] : product));
        }
    }
    free(acc), free(sums), free(scales), free(bias), free(y);
}

static void test_dequantize(void **state)
{
    tare_cpu cpu = this_cpu(state);
    for_lengths(cpu, check_dequantize);
}

/* 1e-6 relative, also where squares overflow or vanish in FP32. */
static void check_rms_norm(const kernels *k, size_t n, random_state *r)
{
    float *x = malloc(n * 4), *w = malloc(n * 4), *y = malloc(n * 4);
    const double sizes[] = {1, 1e25, 1e-25, 300};
    for (int round = 0; round < 4; round++) {
        double sum = 0, eps = round == 2 ? 0 : (double)1e-6f;
        random_fill(r, x, n, -sizes[round], sizes[round]);
        random_fill(r, w, n, -2, 2);
        for (size_t i = 0; i < n; i++)
            sum += (double)x[i] * x[i];
        k->rms_norm(x, w, n, (float)eps, (float)(round % 2), y);
        for (size_t i = 0; i < n; i++) {
            double gain = (double)(w[i] + (float)(round % 2));
            double expected = gain * (x[i] / sqrt(sum / (double)n + eps));
            assert_true(fabs(y[i] - expected) <= 1e-6 * fabs(expected));
        }
    }
    k->rms_norm(x, w, n, 1e-6f, 0, x); /* in place */
    free(x), free(w), free(y);
}

static void test_rms_norm(void **state)
{
    tare_cpu cpu = this_cpu(state);
    for_lengths(cpu, check_rms_norm);
}

static void check_rope(const kernels *k, size_t half, random_state *r)
{
    float *x = malloc(half * 8), *y = malloc(half * 8), *c = malloc(half * 4),
          *s = malloc(half * 4);
    random_fill(r, x, 2 * half, -3, 3);
    for (size_t j = 0; j < half; j++) {
        double angle = random_float(r, 0, 7);
        c[j] = (float)cos(angle);
        s[j] = (float)sin(angle);
    }
    memcpy(y, x, half * 8);
    k->rope(y, c, s, 2 * half);
    for (size_t j = 0; j < half; j++) {
        double a = x[j], b = x[j + half];
        assert_true(fabs(y[j] - (a * c[j] - b * s[j])) <= 6e-7);
        assert_true(fabs(y[j + half] - (b * c[j] + a * s[j])) <= 6e-7);
    }
    kernels_of(TARE_CPU_SCALAR)->rope(x, c, s, 2 * half);
    assert_memory_equal(x, y, half * 8);
    free(x), free(y), free(c), free(s);
}

static void test_rope(void **state)
{
    tare_cpu cpu = this_cpu(state);
    for_lengths(cpu, check_rope);
}

/* silu to 4 ulp; where the result is below 1e-36 it may be flushed. */
static void check_silu(const kernels *k, size_t n, random_state *r)
{
    const float special[] = {0, -0.0f, 1e-40f, 88, -88, -87, 104, -104, -1e30f, 1e30f, 0.5f};
    float *gate = malloc(n * 4), *up = calloc(n, 4), *y = malloc(n * 4);
    for (size_t i = 0; i < n; i++) {
        gate[i] = i % 5 ? random_float(r, -30, 30) : special[random_bits(r) % 11];
        up[i] = 1;
    }
    memcpy(y, gate, n * 4);
    k->silu_mul(y, up, n);
    for (size_t i = 0; i < n; i++) {
        double expected = gate[i] / (1 + exp(-(double)gate[i]));
        if (!(ulps(y[i], expected) <= 4 || fabs(y[i] - expected) < 1e-36))
            fail_msg("silu(%a) = %a, not %a", (double)gate[i], (double)y[i], expected);
    }
    random_fill(r, up, n, -2, 2);
    float *z = malloc(n * 4);
    memcpy(z, gate, n * 4);
    k->silu_mul(z, up, n);
    for (size_t i = 0; i < n; i++)
        assert_true(z[i] == y[i] * up[i]);
    gate[n / 2] = NAN;
    k->silu_mul(gate, up, n);
    assert_true(isnan(gate[n / 2]));
    free(gate), free(up), free(y), free(z);
}

static void test_silu(void **state)
{
    tare_cpu cpu = this_cpu(state);
    for_lengths(cpu, check_silu);
}

/* The form with tanh, by its definition; the exponent's error counts where the result is tiny. */
static void check_gelu(const kernels *k, size_t n, random_state *r)
{
    const float special[] = {0, -0.0f, 1e-40f, 9, -9, 1e13f, -1e13f, 1e30f, -1e30f, 0.5f, -0.75f};
    float *gate = malloc(n * 4), *up = malloc(n * 4), *y = malloc(n * 4);
    random_fill(r, up, n, -2, 2);
    for (size_t i = 0; i < n; i++)
        gate[i] = i % 5 ? random_float(r, -8, 8) : special[random_bits(r) % 11];
    memcpy(y, gate, n * 4);
    k->gelu_mul(y, up, n);
    for (size_t i = 0; i < n; i++) {
        double x = gate[i], u = sqrt(2 / M_PI) * (x + 0.044715 * x * x * x);
        double expected = 0.5 * x * (1 + tanh(u)) * up[i];
        if (!(fabs(y[i] - expected) <= 4e-7 * fabs(x * up[i]) + 0x1p-148))
            fail_msg("gelu(%a) = %a, not %a", x, (double)y[i], expected);
    }
    gate[n / 2] = NAN;
    k->gelu_mul(gate, up, n);
    assert_true(isnan(gate[n / 2]));
    free(gate), free(up), free(y);
}

static void test_gelu(void **state)
{
    tare_cpu cpu = this_cpu(state);
    for_lengths(cpu, check_gelu);
}

static void check_softcap(const kernels *k, size_t n, random_state *r)
{
    float *x = malloc(n * 4), *y = malloc(n * 4);
    const double widths[] = {1e-3, 1, 60, 1e30};
    for (int round = 0; round < 4; round++) {
        random_fill(r, x, n, -widths[round], widths[round]);
        memcpy(y, x, n * 4);
        k->softcap(y, n, 50);
        for (size_t i = 0; i < n; i++)
            assert_true(fabs(y[i] - 50 * tanh((double)x[i] / 50)) <= 50 * 0x1p-22);
    }
    x[n / 2] = NAN;
    k->softcap(x, n, 50);
    assert_true(isnan(x[n / 2]));
    free(x), free(y);
}

static void test_softcap(void **state)
{
    tare_cpu cpu = this_cpu(state);
    for_lengths(cpu, check_softcap);
}

/* Each probability to 6 ulp of double softmax; results below 2^-126 to one denormal unit more. */
static void check_softmax(const kernels *k, size_t n, random_state *r)
{
    float *x = malloc(n * 4), *y = malloc(n * 4);
    const double widths[] = {1, 20, 110, 1e4};
    for (int round = 0; round < 4; round++) {
        random_fill(r, x, n, -widths[round], widths[round]);
        if (round == 3 && n > 1)
            x[random_bits(r) % n] = -INFINITY; /* masked */
        double max = -INFINITY, sum = 0;
        for (size_t i = 0; i < n; i++)
            max = fmax(max, x[i]);
        for (size_t i = 0; i < n; i++)
            sum += exp(x[i] - max);
        memcpy(y, x, n * 4);
        k->softmax(y, n);
        for (size_t i = 0; i < n; i++) {
            /* The difference is rounded to FP32 before exp: half an ulp of it. */
            double distance = x[i] - max, expected = exp(distance) / sum;
            double slack = isinf(distance) ? 0 : fabs(distance) * 0x1p-24;
            if (!(fabs(y[i] - expected) <= expected * (slack + 3 * 0x1p-23) + 0x1p-148))
                fail_msg("softmax of distance %g: %a, not %a", distance, (double)y[i], expected);
        }
    }
    x[n / 2] = NAN;
    k->softmax(x, n);
    for (size_t i = 0; i < n; i++)
        assert_true(isnan(x[i]));
    free(x), free(y);
}

static void test_softmax(void **state)
{
    tare_cpu cpu = this_cpu(state);
    for_lengths(cpu, check_softmax);
}

/* exp alone: with one element at 0 far above the rest, the sum is 1 + something below FP32, and the
 * probability is exp itself. A sweep of [-103, -17] in steps that visit all exponents. */
static void test_exp(void **state)
{
    const kernels *k = kernels_of(this_cpu(state));
    double worst = 0;
    for (float x = -103; x < -18; x += 0.0007f) {
        float pair[2] = {0, x};
        k->softmax(pair, 2);
        worst = fmax(worst, ulps(pair[1], exp((double)x)));
    }
    if (worst > 2)
        fail_msg("exp is off by %g ulp", worst);
}

static void check_sums(const kernels *k, size_t n, random_state *r)
{
    float *x = malloc(n * 4), *y = malloc(n * 4), *z = malloc(n * 4);
    random_fill(r, x, n, -1, 1);
    random_fill(r, y, n, -1, 1);
    double sum = 0, size = 0;
    for (size_t i = 0; i < n; i++) {
        sum += (double)x[i] * y[i];
        size += fabs((double)x[i] * y[i]);
    }
    assert_true(fabs(k->dot(x, y, n) - sum) <= 1e-6 * size);
    memcpy(z, y, n * 4);
    k->add(z, x, n);
    for (size_t i = 0; i < n; i++)
        assert_true(z[i] == x[i] + y[i]);
    memcpy(z, y, n * 4);
    k->axpy(0.37f, x, n, z);
    for (size_t i = 0; i < n; i++)
        assert_true(fabs(z[i] - ((double)0.37f * x[i] + y[i])) <= 1.2e-7);
    free(x), free(y), free(z);
}

static void test_sums(void **state)
{
    tare_cpu cpu = this_cpu(state);
    for_lengths(cpu, check_sums);
}

/* Sums run in the same lanes whatever the width of a vector: the same bytes. */
static void test_vector_sets_agree(void **state)
{
    (void)state;
    need_cpu(TARE_CPU_AVX512);
    enum { MOST = 300 };
    const kernels *sets[] = {kernels_of(TARE_CPU_AVX2), kernels_of(TARE_CPU_AVX512)};
    random_state r = {7};
    float x[MOST], y[MOST], out[2][5][MOST];
    int8_t q[2][MOST];
    int4_fit fits[2];
    for (size_t n = 1; n <= MOST; n++) {
        random_fill(&r, x, n, -4, 4);
        random_fill(&r, y, n, -4, 4);
        for (size_t i = 0; i < 2; i++) {
            out[i][0][0] = sets[i]->dot(x, y, n);
            sets[i]->rms_norm(x, y, n, 1e-5f, 1, out[i][1]);
            memcpy(out[i][2], x, n * sizeof *x);
            sets[i]->softmax(out[i][2], n);
            memcpy(out[i][3], x, n * sizeof *x);
            sets[i]->gelu_mul(out[i][3], y, n);
            memcpy(out[i][4], x, n * sizeof *x);
            sets[i]->softcap(out[i][4], n, 3);
            sets[i]->quantize_int4(x, n, 0.6f, q[i], &fits[i]);
        }
        assert_memory_equal(q[0], q[1], n);
        assert_memory_equal(&fits[0], &fits[1], sizeof *fits);
        assert_int_equal(bits_of_float(out[0][0][0]), bits_of_float(out[1][0][0]));
        for (size_t kernel = 1; kernel < 5; kernel++)
            assert_memory_equal(out[0][kernel], out[1][kernel], n * sizeof *x);
    }
}

static void test_dispatch(void **state)
{
    tare_cpu cpu = this_cpu(state);
    tare_context *ctx = new_context_on(cpu, 1);
    const char *const names[] = {"auto", "scalar", "avx2", "avx512", "amx"};
    assert_ptr_equal(kernels_get(ctx), kernels_of(cpu));
    assert_string_equal(tare_cpu_name(ctx), names[cpu]);
    assert_true(cpu_detect() >= cpu);
    free_context(ctx);
}

static void test_best(void **state)
{
    (void)state;
    assert_non_null(kernels_of(cpu_detect()));
    assert_ptr_equal(kernels_of(TARE_CPU_AUTO), kernels_of(cpu_detect()));
}

typedef struct refusal {
    int count;
    tare_log_level level;
    char text[256];
} refusal;

static void keep_refusal(void *user, tare_log_level level, const char *message)
{
    refusal *r = user;
    r->count++;
    r->level = level;
    snprintf(r->text, sizeof r->text, "%s", message);
}

/* A set that is not here is refused, never replaced: what was asked for would not be what runs. */
static void test_missing_sets_are_refused(void **state)
{
    (void)state;
    size_t missing = 0;
    for (int cpu = TARE_CPU_AUTO; cpu <= TARE_CPU_AMX + 1; cpu++) {
        refusal r = {0};
        tare_context *ctx = (tare_context *)&r;
        tare_context_options options;
        tare_context_options_init(&options);
        options.cpu = (tare_cpu)cpu;
        options.log = keep_refusal;
        options.user = &r;
        tare_status status = tare_context_create(&ctx, &options);
        if (cpu <= TARE_CPU_AMX && kernels_of((tare_cpu)cpu)) {
            assert_int_equal(status, TARE_OK);
            assert_int_equal(r.count, 0);
            free_context(ctx);
            continue;
        }
        missing++;
        assert_int_equal(status, TARE_E_USAGE);
        assert_null(ctx);
        assert_int_equal(r.count, 1);
        assert_int_equal(r.level, TARE_LOG_ERROR);
        assert_non_null(strstr(r.text, "this CPU has scalar"));
        if (cpu == TARE_CPU_AMX)
            assert_non_null(strstr(r.text, "amx"));
    }
    assert_true(missing >= 1); /* the one behind the last */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        EACH_CPU(test_conversions),  EACH_CPU(test_extremes),
        EACH_CPU(test_quantization), EACH_CPU(test_dequantize),
        EACH_CPU(test_rms_norm),     EACH_CPU(test_rope),
        EACH_CPU(test_silu),         EACH_CPU(test_gelu),
        EACH_CPU(test_softcap),      EACH_CPU(test_softmax),
        EACH_CPU(test_exp),          EACH_CPU(test_sums),
        EACH_CPU(test_dispatch),     cmocka_unit_test(test_vector_sets_agree),
        cmocka_unit_test(test_best), cmocka_unit_test(test_missing_sets_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
