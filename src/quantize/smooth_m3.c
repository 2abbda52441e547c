/* m3 (1.5): 20 candidates, judged by what rounding the scaled weights does to the outputs of the
 * first sample.
 *
 * Rows of weights are the left operand here, so that they stream through one block at a time while
 * the small side is packed once for all candidates. Two arrangements give the reference's loss but
 * for the order of FP32 sums (5e-6 relative, specification 1.7):
 * error form: E = W' - W, loss = mean((E X1^T)^2);
 * Gram form:  H = X1^T X1, loss = sum((E H) o E) / (T1*out): less work once T1 > C.
 * The native-dtype switch rounds both outputs, so there the two products are made apart. */
#include <string.h>

#include "base/parallel.h"
#include "quantize/smooth_internal.h"
#include "tensor/gemm.h"

enum { CANDIDATES = 20 };

typedef struct m3_search {
    const smooth_task *t;
    const float *x; /* [T1,C] */
    size_t tokens;
    bool gram;
    gemm_weight *packed;  /* X1 [T1,C] or H [C,C] */
    size_t outputs;       /* T1 or C */
    float *scales;        /* [C] of the candidate */
    float *w, *e;         /* [SMOOTH_BLOCK,C] W, and E; native: W' */
    float *y, *reference; /* [SMOOTH_BLOCK,outputs]; reference: native only */
    double *sums;         /* [SMOOTH_BLOCK] */
} m3_search;

typedef struct row_quantizer {
    float d, z, low, high;
} row_quantizer;

static row_quantizer quantizer_of(const smooth_task *t, const float *row, size_t n)
{
    float lo = 0, hi = 0, levels = t->cfg->w_bit == 4 ? 8 : 128;
    for (size_t i = 0; i < n; i++) {
        lo = row[i] < lo ? row[i] : lo;
        hi = row[i] > hi ? row[i] : hi;
    }
    row_quantizer q = {.low = -levels, .high = levels - 1};
    if (t->cfg->w_sym) {
        q.d = fmaxf(round_native(fmaxf(-lo, hi) / q.high, t->native), ROUND_EPS);
    } else {
        float range = round_native(hi - lo, t->native);
        q.d = fmaxf(round_native(range / (2 * levels - 1), t->native), ROUND_EPS);
        q.z = round_native(rintf(round_native(-lo / q.d, t->native)) - levels, t->native);
    }
    return q;
}

/* row <- Qw(row * s) / s. */
static void requantize_row(const m3_search *m, float *row)
{
    size_t n = m->t->g->channels;
    tare_dtype native = m->t->native;
    const float *s = m->scales;
    for (size_t i = 0; i < n; i++)
        row[i] *= s[i];
    for (size_t i = 0; native != TARE_F32 && i < n; i++)
        row[i] = round_native(row[i], native);
    row_quantizer q = quantizer_of(m->t, row, n);
    if (native == TARE_F32) {
        for (size_t i = 0; i < n; i++) {
            float v = round_even_small(row[i] / q.d + q.z);
            v = v < q.low ? q.low : v > q.high ? q.high : v;
            row[i] = (v - q.z) * q.d / s[i];
        }
        return;
    }
    for (size_t i = 0; i < n; i++) {
        float v = rintf(round_native(round_native(row[i] / q.d, native) + q.z, native));
        v = round_native((v < q.low ? q.low : v > q.high ? q.high : v) - q.z, native);
        row[i] = round_native(round_native(v * q.d, native) / s[i], native);
    }
}

static void candidate_row(void *user, size_t index, int thread)
{
    (void)thread;
    const m3_search *m = user;
    size_t n = m->t->g->channels;
    float *w = m->w + index * n, *e = m->e + index * n;
    memcpy(e, w, n * sizeof *e);
    requantize_row(m, e);
    for (size_t i = 0; m->t->native == TARE_F32 && i < n; i++)
        e[i] -= w[i];
}

static void error_of_row(void *user, size_t index, int thread)
{
    (void)thread;
    const m3_search *m = user;
    const float *y = m->y + index * m->outputs, *e = m->e + index * m->t->g->channels;
    tare_dtype native = m->t->native;
    double sum = 0;
    if (native != TARE_F32) {
        const float *reference = m->reference + index * m->outputs;
        for (size_t i = 0; i < m->outputs; i++) {
            float d = round_native(round_native(reference[i], native) - round_native(y[i], native),
                                   native);
            sum += d * d;
        }
    } else if (m->gram) {
        for (size_t i = 0; i < m->outputs; i++)
            sum += (double)y[i] * e[i];
    } else {
        for (size_t i = 0; i < m->outputs; i++)
            sum += (double)y[i] * y[i];
    }
    m->sums[index] = sum;
}

/* Mean of the squared error of one target. */
static tare_status target_loss(m3_search *m, const smooth_weight *w, double *loss)
{
    tare_context *ctx = m->t->ctx;
    double sum = 0;
    for (size_t first = 0; first < w->n; first += SMOOTH_BLOCK) {
        tare_status status;
        size_t count = w->n - first < SMOOTH_BLOCK ? w->n - first : SMOOTH_BLOCK;
        smooth_weight_rows(ctx, w, first, count, m->w);
        parallel_for(ctx, count, candidate_row, m);
        status = gemm_float(ctx, m->packed, m->e, &count, 1, NULL, m->y);
        if (status == TARE_OK && m->reference)
            status = gemm_float(ctx, m->packed, m->w, &count, 1, NULL, m->reference);
        if (status != TARE_OK)
            return status;
        parallel_for(ctx, count, error_of_row, m);
        for (size_t i = 0; i < count; i++)
            sum += m->sums[i];
    }
    *loss += sum / ((double)m->tokens * (double)w->n);
    return TARE_OK;
}

/* mu_c = mean over tokens of |X1_c|. */
static void mean_magnitude(const m3_search *m, float *mu)
{
    size_t n = m->t->g->channels;
    for (size_t c = 0; c < n; c++) {
        double sum = 0;
        for (size_t t = 0; t < m->tokens; t++)
            sum += fabsf(m->x[t * n + c]);
        mu[c] = round_native((float)(sum / (double)m->tokens), m->t->native);
    }
}

static void candidate_scales(const m3_search *m, const float *mu, int i)
{
    tare_dtype native = m->t->native;
    float max = 0, min = INFINITY, *s = m->scales;
    for (size_t c = 0; c < m->t->g->channels; c++) {
        s[c] = smooth_power(mu[c], i / (double)CANDIDATES, native);
        s[c] = round_native(fmaxf(s[c], 1e-4f), native);
        max = fmaxf(max, s[c]);
        min = fminf(min, s[c]);
    }
    float middle = round_native(sqrtf(round_native(max * min, native)), native);
    for (size_t c = 0; c < m->t->g->channels; c++)
        s[c] = round_native(s[c] / middle, native);
}

/* ---- the small side ---- */

static tare_status pack_gram(m3_search *m)
{
    tare_status status = TARE_OK;
    tare_context *ctx = m->t->ctx;
    size_t n = m->t->g->channels;
    gemm_weight *packed = NULL;
    float *transposed = mem_alloc_array(ctx, m->tokens * n, sizeof *transposed);
    float *gram = mem_alloc_array(ctx, n * n, sizeof *gram);
    if (!transposed || !gram) {
        status = TARE_E_MEMORY;
        goto done;
    }
    for (size_t t = 0; t < m->tokens; t++) {
        for (size_t c = 0; c < n; c++)
            transposed[c * m->tokens + t] = m->x[t * n + c];
    }
    TRY(gemm_weight_create(ctx, GEMM_FP32, TARE_F32, transposed, n, m->tokens, &packed));
    TRY(gemm_float(ctx, packed, transposed, &n, 1, NULL, gram));
    TRY(gemm_weight_create(ctx, GEMM_FP32, TARE_F32, gram, n, n, &m->packed));
done:
    gemm_weight_free(ctx, packed);
    mem_free(ctx, transposed);
    mem_free(ctx, gram);
    return status;
}

static tare_status prepare(m3_search *m)
{
    tare_context *ctx = m->t->ctx;
    size_t n = m->t->g->channels;
    bool native = m->t->native != TARE_F32;
    m->gram = !native && !m->t->cfg->naive && m->tokens > n;
    m->outputs = m->gram ? n : m->tokens;
    m->scales = mem_alloc_array(ctx, n, sizeof *m->scales);
    m->w = mem_alloc_array(ctx, SMOOTH_BLOCK * n, sizeof *m->w);
    m->e = mem_alloc_array(ctx, SMOOTH_BLOCK * n, sizeof *m->e);
    m->y = mem_alloc_array(ctx, SMOOTH_BLOCK * m->outputs, sizeof *m->y);
    m->sums = mem_alloc_array(ctx, SMOOTH_BLOCK, sizeof *m->sums);
    if (native)
        m->reference = mem_alloc_array(ctx, SMOOTH_BLOCK * m->outputs, sizeof *m->reference);
    if (!m->scales || !m->w || !m->e || !m->y || !m->sums || (native && !m->reference))
        return TARE_E_MEMORY;
    if (m->gram)
        return pack_gram(m);
    return gemm_weight_create(ctx, GEMM_FP32, TARE_F32, m->x, m->tokens, n, &m->packed);
}

size_t smooth_m3_bytes(const tare_context *ctx, const smooth_config *cfg, const smooth_group *g,
                       size_t first_rows)
{
    size_t n = g->channels;
    bool native = smooth_native(cfg) != TARE_F32;
    bool gram = !native && !cfg->naive && first_rows > n;
    size_t outputs = gram ? n : first_rows, x = mem_array_bytes(first_rows * n, sizeof(float));
    size_t y = mem_array_bytes(SMOOTH_BLOCK * outputs, sizeof(float)), packing = 0;
    if (gram) /* transposed, packed, H */
        packing = x + mem_block_bytes(gemm_weight_bytes(GEMM_FP32, TARE_F32, n, first_rows)) +
                  mem_array_bytes(n * n, sizeof(float));
    return 2 * mem_array_bytes(n, sizeof(float)) + x +            /* mu, scales */
           2 * mem_array_bytes(SMOOTH_BLOCK * n, sizeof(float)) + /* w, e */
           (native ? 2 : 1) * y + mem_array_bytes(SMOOTH_BLOCK, sizeof(double)) +
           mem_block_bytes(gemm_weight_bytes(GEMM_FP32, TARE_F32, outputs, n)) + packing +
           gemm_float_bytes(ctx, GEMM_FP32, gram && first_rows > n ? first_rows : n,
                            gram ? n : SMOOTH_BLOCK, 1);
}

static void search_free(m3_search *m, float *x)
{
    tare_context *ctx = m->t->ctx;
    gemm_weight_free(ctx, m->packed);
    mem_free(ctx, x);
    mem_free(ctx, m->scales);
    mem_free(ctx, m->w);
    mem_free(ctx, m->e);
    mem_free(ctx, m->y);
    mem_free(ctx, m->reference);
    mem_free(ctx, m->sums);
}

tare_status smooth_solve_m3(const smooth_task *t)
{
    tare_status status = TARE_OK;
    m3_search m = {.t = t, .tokens = t->stats->first_rows};
    float *x = NULL, *mu = mem_alloc_array(t->ctx, t->g->channels, sizeof *mu);
    if (!mu)
        return TARE_E_MEMORY;
    TRY(smooth_first_sample(t, &x));
    m.x = x;
    TRY(prepare(&m));
    mean_magnitude(&m, mu);
    t->out->loss = INFINITY;
    for (int i = 0; i < CANDIDATES; i++) {
        double loss = 0;
        TRY(context_check_cancelled(t->ctx));
        candidate_scales(&m, mu, i);
        for (size_t k = 0; k < t->g->num_targets; k++)
            TRY(target_loss(&m, t->g->targets[k], &loss));
        t->out->evaluated++;
        if ((float)loss < (float)t->out->loss) {
            t->out->loss = loss;
            t->out->candidate = i;
            memcpy(t->out->s, m.scales, t->g->channels * sizeof *m.scales);
        }
    }
    if (t->out->candidate < 0)
        status = smooth_fail(t->ctx, TARE_E_NUMERIC, t->g, "no candidate has a finite loss");
done:
    search_free(&m, x);
    mem_free(t->ctx, mu);
    return status;
}
