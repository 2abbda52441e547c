/* m2 (1.5): channels whose centred maximum exceeds a threshold are scaled; the threshold is chosen
 * by the error that an 8-bit input makes.
 *
 * What must equal the reference is the choice. s depends on the candidate only through the set of
 * channels above the threshold, and of equal losses the first wins: so each set is tried once. The
 * trial's y_k = Xq (W_k*s)^T + bias_k + W_k b is made as (Xq*s + b) W_k^T + bias_k: the weights
 * stay as they are and stream by as the left operand. With one or two targets only the first
 * counts, and both products become one of the difference of their inputs, D = Xq*s + b - X1. */
#include <string.h>

#include "base/parallel.h"
#include "quantize/smooth_internal.h"
#include "tensor/gemm.h"
#include "tensor/kernels.h"

enum { CANDIDATES = 100 };

typedef struct m2_search {
    const smooth_task *t;
    const float *x; /* [T1,C] */
    size_t tokens;
    float tau;
    bool attention;      /* the loss of q, k, v */
    float *trial;        /* [T1,C] */
    float *full;         /* [C] s of a channel that is scaled */
    float *w, *y;        /* [SMOOTH_BLOCK,C], [SMOOTH_BLOCK,T1] */
    float *projected[3]; /* [T1,n] of q, k, v */
    float *reference;    /* [T1,out] */
    float *scores;       /* [threads,T1] */
    float *out;          /* [T1,out] */
    double *sums;        /* [max(T1,SMOOTH_BLOCK)] */
} m2_search;

/* ---- the trial's input ---- */

static float threshold(const m2_search *m, int i)
{
    return (m->tau - m->t->stats->sigma) * (float)i / 99.0f + m->t->stats->sigma;
}

static void set_scales(const m2_search *m, int i, float *s)
{
    float limit = threshold(m, i);
    for (size_t c = 0; c < m->t->g->channels; c++)
        s[c] = m->t->stats->theta[c] > limit ? m->full[c] : 1;
}

static size_t set_size(const m2_search *m, int i)
{
    size_t count = 0;
    for (size_t c = 0; c < m->t->g->channels; c++)
        count += m->t->stats->theta[c] > threshold(m, i);
    return count;
}

typedef struct trial_job {
    const m2_search *m;
    const float *s, *b;
    float *trial, *minima, *maxima; /* minima, maxima: [T1] */
    float d, z;
} trial_job;

static void centred_row(void *user, size_t row, int thread)
{
    (void)thread;
    const trial_job *job = user;
    size_t n = job->m->t->g->channels;
    const float *x = job->m->x + row * n;
    float *to = job->trial + row * n, lo = 0, hi = 0;
    for (size_t c = 0; c < n; c++) {
        to[c] = (x[c] - job->b[c]) / job->s[c];
        lo = to[c] < lo ? to[c] : lo;
        hi = to[c] > hi ? to[c] : hi;
    }
    job->minima[row] = lo;
    job->maxima[row] = hi;
}

static void quantized_row(void *user, size_t row, int thread)
{
    (void)thread;
    const trial_job *job = user;
    size_t n = job->m->t->g->channels;
    const float *x = job->m->x + row * n;
    float *to = job->trial + row * n;
    for (size_t c = 0; c < n; c++) {
        float q = round_even_small(to[c] / job->d + job->z);
        q = q < -128 ? -128 : q > 127 ? 127 : q;
        to[c] = (q - job->z) * job->d * job->s[c] + job->b[c];
        to[c] -= job->m->attention ? 0 : x[c];
    }
}

/* trial <- Xq*s + b, without the attention loss less X1. */
static tare_status make_trial(m2_search *m, const float *s)
{
    tare_context *ctx = m->t->ctx;
    size_t n = m->t->g->channels;
    float lo = 0, hi = 0;
    float *b = mem_alloc_array(ctx, n, sizeof *b);
    float *ranges = mem_alloc_array(ctx, 2 * m->tokens, sizeof *ranges);
    if (b && ranges) {
        trial_job job = {m, s, b, m->trial, ranges, ranges + m->tokens, 0, 0};
        for (size_t c = 0; c < n; c++)
            b[c] = smooth_centre(m->t->stats, c, TARE_F32);
        parallel_for(ctx, m->tokens, centred_row, &job);
        for (size_t t = 0; t < m->tokens; t++) {
            lo = fminf(lo, job.minima[t]);
            hi = fmaxf(hi, job.maxima[t]);
        }
        job.d = fmaxf((hi - lo) / 255, ROUND_EPS);
        job.z = rintf(-lo / job.d) - 128;
        parallel_for(ctx, m->tokens, quantized_row, &job);
    }
    tare_status status = b && ranges ? TARE_OK : TARE_E_MEMORY;
    mem_free(ctx, b);
    mem_free(ctx, ranges);
    return status;
}

/* ---- one or two targets ---- */

typedef struct squares_job {
    const float *a, *b; /* b NULL: zeros */
    size_t n;
    double *sums;
} squares_job;

static void squares_of_row(void *user, size_t row, int thread)
{
    (void)thread;
    const squares_job *job = user;
    double sum = 0;
    for (size_t i = 0; i < job->n; i++) {
        double d = job->a[row * job->n + i] - (job->b ? job->b[row * job->n + i] : 0);
        sum += d * d;
    }
    job->sums[row] = sum;
}

static double sum_squares(const m2_search *m, const float *a, const float *b, size_t rows, size_t n)
{
    double sum = 0;
    squares_job job = {a, b, n, m->sums};
    parallel_for(m->t->ctx, rows, squares_of_row, &job);
    for (size_t i = 0; i < rows; i++)
        sum += m->sums[i];
    return sum;
}

static tare_status first_target_loss(m2_search *m, const gemm_weight *packed, double *loss)
{
    tare_context *ctx = m->t->ctx;
    const smooth_weight *w = m->t->g->targets[0];
    double sum = 0;
    for (size_t first = 0; first < w->n; first += SMOOTH_BLOCK) {
        size_t count = w->n - first < SMOOTH_BLOCK ? w->n - first : SMOOTH_BLOCK;
        smooth_weight_rows(ctx, w, first, count, m->w);
        tare_status status = gemm_float(ctx, packed, m->w, count, NULL, m->y);
        if (status != TARE_OK)
            return status;
        sum += sum_squares(m, m->y, NULL, count, m->tokens);
    }
    *loss = sum / ((double)m->tokens * (double)w->n);
    return TARE_OK;
}

/* ---- q, k, v ---- */

static tare_status project(m2_search *m, const gemm_weight *packed, const smooth_weight *w,
                           float *y)
{
    tare_context *ctx = m->t->ctx;
    for (size_t first = 0; first < w->n; first += SMOOTH_BLOCK) {
        size_t count = w->n - first < SMOOTH_BLOCK ? w->n - first : SMOOTH_BLOCK;
        smooth_weight_rows(ctx, w, first, count, m->w);
        tare_status status = gemm_float(ctx, packed, m->w, count, NULL, m->y);
        if (status != TARE_OK)
            return status;
        for (size_t t = 0; t < m->tokens; t++) {
            for (size_t i = 0; i < count; i++)
                y[t * w->n + first + i] = m->y[i * m->tokens + t] +
                                          (w->has_bias ? w->bias[first + i] : 0);
        }
    }
    return TARE_OK;
}

typedef struct attention_job {
    const m2_search *m;
    float *out;
} attention_job;

/* Chunks of q, each as wide as k, attend to all tokens: no heads, mask or positions. */
static void attend(void *user, size_t row, int thread)
{
    const attention_job *job = user;
    const m2_search *m = job->m;
    const kernels *kern = kernels_get(m->t->ctx);
    smooth_weight *const *w = m->t->g->targets;
    size_t nq = w[0]->n, depth = w[1]->n, nv = w[2]->n, chunks = nq / depth;
    float *p = m->scores + (size_t)thread * m->tokens;
    for (size_t c = 0; c < chunks; c++) {
        const float *q = m->projected[0] + row * nq + c * depth;
        float *y = job->out + (row * chunks + c) * nv;
        for (size_t t = 0; t < m->tokens; t++)
            p[t] = kern->dot(q, m->projected[1] + t * depth, depth) / sqrtf((float)depth);
        kern->softmax(p, m->tokens);
        memset(y, 0, nv * sizeof *y);
        for (size_t t = 0; t < m->tokens; t++)
            kern->axpy(p[t], m->projected[2] + t * nv, nv, y);
    }
}

static tare_status attention_output(m2_search *m, const float *x, float *out)
{
    tare_status status = TARE_OK;
    tare_context *ctx = m->t->ctx;
    gemm_weight *packed = NULL;
    attention_job job = {m, out};
    TRY(gemm_weight_create(ctx, GEMM_FP32, TARE_F32, x, m->tokens, m->t->g->channels, &packed));
    for (size_t i = 0; i < 3; i++)
        TRY(project(m, packed, m->t->g->targets[i], m->projected[i]));
    parallel_for(ctx, m->tokens, attend, &job);
done:
    gemm_weight_free(ctx, packed);
    return status;
}

/* ---- the search ---- */

static tare_status candidate_loss(m2_search *m, const float *s, double *loss)
{
    tare_status status = TARE_OK;
    tare_context *ctx = m->t->ctx;
    gemm_weight *packed = NULL;
    TRY(make_trial(m, s));
    if (m->attention) {
        size_t n = m->t->g->targets[0]->n / m->t->g->targets[1]->n * m->t->g->targets[2]->n;
        TRY(attention_output(m, m->trial, m->out));
        *loss = sum_squares(m, m->out, m->reference, m->tokens, n) /
                ((double)m->tokens * (double)n);
    } else {
        TRY(gemm_weight_create(ctx, GEMM_FP32, TARE_F32, m->trial, m->tokens, m->t->g->channels,
                               &packed));
        TRY(first_target_loss(m, packed, loss));
    }
done:
    gemm_weight_free(ctx, packed);
    return status;
}

static tare_status alloc_attention(m2_search *m)
{
    tare_context *ctx = m->t->ctx;
    smooth_weight *const *w = m->t->g->targets;
    size_t out = w[0]->n / w[1]->n * w[2]->n, threads = (size_t)parallel_threads(ctx);
    for (size_t i = 0; i < 3; i++) {
        m->projected[i] = mem_alloc_array(ctx, m->tokens * w[i]->n, sizeof(float));
        if (!m->projected[i])
            return TARE_E_MEMORY;
    }
    m->scores = mem_alloc_array(ctx, threads * m->tokens, sizeof *m->scores);
    m->reference = mem_alloc_array(ctx, m->tokens * out, sizeof *m->reference);
    m->out = mem_alloc_array(ctx, m->tokens * out, sizeof *m->out);
    if (!m->scores || !m->reference || !m->out)
        return TARE_E_MEMORY;
    return attention_output(m, m->x, m->reference);
}

static tare_status prepare(m2_search *m)
{
    const smooth_task *t = m->t;
    tare_context *ctx = t->ctx;
    size_t n = t->g->channels, rows = m->tokens > SMOOTH_BLOCK ? m->tokens : SMOOTH_BLOCK;
    smooth_weight *const *w = t->g->targets;
    m->attention = t->g->num_targets == 3 && w[0]->n % w[1]->n == 0;
    m->trial = mem_alloc_array(ctx, m->tokens * n, sizeof *m->trial);
    m->full = mem_alloc_array(ctx, n, sizeof *m->full);
    m->w = mem_alloc_array(ctx, SMOOTH_BLOCK * n, sizeof *m->w);
    m->y = mem_alloc_array(ctx, SMOOTH_BLOCK * m->tokens, sizeof *m->y);
    m->sums = mem_alloc_array(ctx, rows, sizeof *m->sums);
    if (!m->trial || !m->full || !m->w || !m->y || !m->sums)
        return TARE_E_MEMORY;
    /* A channel above the threshold has theta > sigma >= 0. */
    for (size_t c = 0; c < n; c++)
        m->full[c] = smooth_ratio(fmaxf(t->stats->theta[c], 0), t->scan->columns[c], 0.5, 0.5,
                                  TARE_F32);
    return m->attention ? alloc_attention(m) : TARE_OK;
}

static size_t attention_bytes(const tare_context *ctx, const smooth_group *g, size_t tokens)
{
    smooth_weight *const *w = g->targets;
    size_t bytes = mem_array_bytes((size_t)parallel_threads(ctx) * tokens, sizeof(float));
    if (g->num_targets != 3 || w[0]->n % w[1]->n != 0)
        return 0;
    for (size_t i = 0; i < 3; i++)
        bytes += mem_array_bytes(tokens * w[i]->n, sizeof(float));
    return bytes + 2 * mem_array_bytes(tokens * (w[0]->n / w[1]->n * w[2]->n), sizeof(float));
}

size_t smooth_m2_bytes(const tare_context *ctx, const smooth_group *g, size_t first_rows)
{
    size_t n = g->channels, rows = first_rows > SMOOTH_BLOCK ? first_rows : SMOOTH_BLOCK;
    return 2 * mem_array_bytes(first_rows * n, sizeof(float)) +        /* x, trial */
           3 * mem_array_bytes(n, sizeof(float)) +                     /* full, s, b */
           mem_array_bytes(2 * first_rows, sizeof(float)) +            /* ranges */
           mem_array_bytes(SMOOTH_BLOCK * n, sizeof(float)) +          /* w */
           mem_array_bytes(SMOOTH_BLOCK * first_rows, sizeof(float)) + /* y */
           mem_array_bytes(rows, sizeof(double)) +                     /* sums */
           mem_block_bytes(gemm_weight_bytes(GEMM_FP32, TARE_F32, first_rows, n)) +
           gemm_float_bytes(ctx) + attention_bytes(ctx, g, first_rows);
}

static void search_free(m2_search *m, float *x)
{
    tare_context *ctx = m->t->ctx;
    mem_free(ctx, x);
    mem_free(ctx, m->trial);
    mem_free(ctx, m->full);
    mem_free(ctx, m->w);
    mem_free(ctx, m->y);
    mem_free(ctx, m->sums);
    for (size_t i = 0; i < 3; i++)
        mem_free(ctx, m->projected[i]);
    mem_free(ctx, m->scores);
    mem_free(ctx, m->reference);
    mem_free(ctx, m->out);
}

static tare_status try_sets(m2_search *m, float *s)
{
    tare_status status = TARE_OK;
    smooth_scales *out = m->t->out;
    size_t last = SIZE_MAX;
    out->loss = INFINITY;
    for (int i = 0; i < CANDIDATES; i++) {
        double loss;
        /* The threshold rises with i: sets of one size are one set. */
        size_t size = set_size(m, i);
        if (size == last)
            continue;
        last = size;
        TRY(context_check_cancelled(m->t->ctx));
        set_scales(m, i, s);
        TRY(candidate_loss(m, s, &loss));
        out->evaluated++;
        if ((float)loss < (float)out->loss) {
            out->loss = loss;
            out->candidate = i;
            for (size_t c = 0; c < m->t->g->channels; c++)
                out->s[c] = round_native(s[c], m->t->native);
        }
    }
    if (out->candidate < 0)
        status = smooth_fail(m->t->ctx, TARE_E_NUMERIC, m->t->g, "no candidate has a finite loss");
done:
    return status;
}

tare_status smooth_solve_m2(const smooth_task *t)
{
    tare_status status = TARE_OK;
    m2_search m = {.t = t, .tokens = t->stats->first_rows, .tau = -INFINITY};
    float *x = NULL, *s = NULL;
    for (size_t c = 0; c < t->g->channels; c++)
        m.tau = fmaxf(m.tau, t->stats->theta[c]);
    if (3 * t->stats->sigma >= m.tau)
        return smooth_solve_ratio(t, 0.5, 0.5);
    s = mem_alloc_array(t->ctx, t->g->channels, sizeof *s);
    if (!s)
        return TARE_E_MEMORY;
    TRY(smooth_first_sample(t, &x));
    m.x = x;
    TRY(prepare(&m));
    TRY(try_sets(&m, s));
done:
    search_free(&m, x);
    mem_free(t->ctx, s);
    return status;
}
