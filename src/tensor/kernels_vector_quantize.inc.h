/* Quantization and what undoes it, of kernels_vector.inc.h, which includes it. */

/* Clamps, then rounds half to even: after adding 1.5 * 2^23 the unit is the last bit. */
static inline v_int v_clamp_round(v_float v, float lo, float hi)
{
    const float magic = 12582912.0f;
    v = v_min(v_max(v, v_set1(lo)), v_set1(hi));
    return __builtin_convertvector((v + magic) - magic, v_int);
}

static int64_t v_quantize_symmetric(const float *x, size_t n, float scale, int limit, int8_t *q)
{
    enum { STRETCH = 1 << 20 }; /* a lane's sum stays far below 2^31 */
    v_float s = v_set1(scale);
    int64_t total = 0;
    for (size_t start = 0; start < n; start += STRETCH) {
        size_t end = n - start < STRETCH ? n : start + STRETCH, i = start;
        v_int sum = {0};
        for (; i + V_LANES <= end; i += V_LANES) {
            v_int v = v_clamp_round(v_load(x + i) / s, (float)-limit, (float)limit);
            sum += v;
            v_store_bytes(q + i, v);
        }
        if (i < end) {
            int8_t bytes[V_LANES];
            v_int v = v_clamp_round(v_load_part(x + i, end - i, 0) / s, (float)-limit,
                                    (float)limit);
            v_store_bytes(bytes, v);
            memcpy(q + i, bytes, end - i);
            for (size_t j = 0; j < end - i; j++)
                total += bytes[j];
        }
        for (size_t j = 0; j < V_LANES; j++)
            total += sum[j];
    }
    return total;
}

/* Sums of a row in lanes. */
typedef struct v_fit {
    v_double error[VD_PARTS], product[VD_PARTS];
    v_int squares, sum;
} v_fit;

/* sum += v, element i in lane i % VD_SUM_LANES. */
static inline void vd_add_float(v_double *sum, v_float v)
{
    for (size_t half = 0; half < 2; half++) {
        v_half_float h;
        memcpy(&h, (const char *)&v + half * sizeof h, sizeof h);
        sum[half % VD_PARTS] += __builtin_convertvector(h, v_double);
    }
}

static inline v_int v_fit_int4(v_float x, v_float scale, v_fit *fit)
{
    v_int level = v_clamp_round(x / scale, -8, 7);
    v_float f = __builtin_convertvector(level, v_float), there = f * scale, difference = x - there;
    vd_add_float(fit->error, difference * difference);
    vd_add_float(fit->product, x * f);
    fit->squares += level * level;
    fit->sum += level;
    return level;
}

static void v_quantize_int4(const float *x, size_t n, float scale, int8_t *q, int4_fit *fit)
{
    v_float s = v_set1(scale);
    v_fit lanes = {{{0}}, {{0}}, {0}, {0}};
    size_t i = 0;
    for (; i + V_LANES <= n; i += V_LANES)
        v_store_bytes(q + i, v_fit_int4(v_load(x + i), s, &lanes));
    if (i < n) { /* zeros add nothing */
        int8_t bytes[V_LANES];
        v_store_bytes(bytes, v_fit_int4(v_load_part(x + i, n - i, 0), s, &lanes));
        memcpy(q + i, bytes, n - i);
    }
    *fit = (int4_fit){vd_sum(lanes.error), vd_sum(lanes.product), 0, 0};
    for (size_t j = 0; j < V_LANES; j++) {
        fit->squares += lanes.squares[j];
        fit->sum += lanes.sum[j];
    }
}

static void v_multiply(const float *x, const float *s, size_t n, float *y)
{
    size_t i = 0;
    for (; i + V_LANES <= n; i += V_LANES)
        v_store(y + i, v_load(x + i) * v_load(s + i));
    for (; i < n; i++)
        y[i] = x[i] * s[i];
}

static void v_product_min_max(const float *x, const float *s, size_t n, float *min, float *max)
{
    float first = x[0] * s[0];
    v_float low[2] = {v_set1(first), v_set1(first)}, high[2] = {low[0], low[0]};
    size_t i = 0;
    for (; i + 2 * V_LANES <= n; i += 2 * V_LANES) {
        for (size_t j = 0; j < 2; j++) {
            v_float v = v_load(x + i + j * V_LANES) * v_load(s + i + j * V_LANES);
            low[j] = v_min(low[j], v);
            high[j] = v_max(high[j], v);
        }
    }
    for (; i < n; i += V_LANES) {
        size_t left = n - i < V_LANES ? n - i : V_LANES;
        v_float v = v_load_part(x + i, left, x[0]) * v_load_part(s + i, left, s[0]);
        low[0] = v_min(low[0], v);
        high[0] = v_max(high[0], v);
    }
    *min = 0.0f - v_largest(-v_min(low[0], low[1])); /* -0 becomes 0 */
    *max = v_largest(v_max(high[0], high[1])) + 0.0f;
}

static inline v_float v_grid_error(v_float x, v_float s, const kernel_grid *grid)
{
    v_float t = x * s / grid->step + grid->zero;
    v_float level = __builtin_convertvector(v_clamp_round(t, grid->low, grid->high), v_float);
    return (level - grid->zero) * grid->step / s - x;
}

static void v_grid_error_row(const float *x, const float *s, size_t n, const kernel_grid *grid,
                             float *y)
{
    size_t i = 0;
    for (; i + V_LANES <= n; i += V_LANES)
        v_store(y + i, v_grid_error(v_load(x + i), v_load(s + i), grid));
    if (i < n) {
        v_float v = v_load_part(x + i, n - i, 0);
        v_store_part(y + i, n - i, v_grid_error(v, v_load_part(s + i, n - i, 1), grid));
    }
}

static void v_quantize_asymmetric(const float *x, size_t n, float scale, float offset, uint8_t *q)
{
    v_float s = v_set1(scale), o = v_set1(offset);
    size_t i = 0;
    for (; i + V_LANES <= n; i += V_LANES)
        v_store_bytes(q + i, v_clamp_round(v_load(x + i) / s + o, -128, 127) + 128);
    if (i < n) {
        uint8_t bytes[V_LANES];
        v_store_bytes(bytes, v_clamp_round(v_load_part(x + i, n - i, 0) / s + o, -128, 127) + 128);
        memcpy(q + i, bytes, n - i);
    }
}

/* One vector of doubles of dequantize_row. */
static inline v_half_float v_dequantize(const int32_t *acc, v_double zero, const int64_t *row_sums,
                                        v_double scale, v_double bias)
{
    v_half_int a;
    memcpy(&a, acc, sizeof a);
    v_double difference = __builtin_convertvector(a, v_double) - zero * vd_from_i64(row_sums);
    return __builtin_convertvector(difference * scale + bias, v_half_float);
}

static void v_dequantize_row(const int32_t *acc, size_t n, int64_t zero, const int64_t *row_sums,
                             float scale, const float *w_scales, size_t scales, const float *bias,
                             float *y)
{
    v_double z = vd_set1((double)zero), s = vd_set1(scale), w = vd_set1(w_scales[0]), b = {0};
    size_t i = 0;
    for (; i + V_HALF <= n; i += V_HALF) {
        if (scales > 1)
            w = vd_load(w_scales + i);
        if (bias)
            b = vd_load(bias + i);
        v_half_float v = v_dequantize(acc + i, z, row_sums + i, s * w, b);
        memcpy(y + i, &v, sizeof v);
    }
    for (; i < n; i++) {
        double difference = (double)acc[i] - (double)zero * (double)row_sums[i];
        double product = difference * ((double)scale * w_scales[scales > 1 ? i : 0]);
        y[i] = (float)(product + (bias ? bias[i] : 0));
    }
}
