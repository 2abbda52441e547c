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
    size_t tokens, threads;
    float tau;
    bool attention;      /* the loss of q, k, v */
    float *x, *trial;    /* [T1,C] */
    float *full;         /* [C] s of a channel that is scaled */
    float *s, *b;        /* [C] of the candidate; the centres */
    float *ranges;       /* [2,T1] minima and maxima of rows */
    float *w, *y;        /* [SMOOTH_BLOCK,C], [SMOOTH_BLOCK,T1] */
    float *projected[3]; /* [T1,n] of q, k, v */
    float *reference;    /* [T1,out] */
    float *scores;       /* [threads,T1] */
    float *out;          /* [T1,out] */
    double *sums;        /* [max(T1,SMOOTH_BLOCK)] */
} m2_search;

/* Outputs of the attention loss, a token. */
static size_t attention_outputs(const smooth_group *g)
{
    smooth_weight *const *w = g->targets;
    return w[0]->n / w[1]->n * w[2]->n;
}

static void lay_out(carver *c, void *component)
{
    m2_search *m = component;
    size_t n = m->t->g->channels, tokens = m->tokens;
    m->x = carve(c, tokens, n * sizeof *m->x);
    m->trial = carve(c, tokens, n * sizeof *m->trial);
    m->full = carve(c, n, sizeof *m->full);
    m->s = carve(c, n, sizeof *m->s);
    m->b = carve(c, n, sizeof *m->b);
    m->ranges = carve(c, 2 * tokens, sizeof *m->ranges);
    m->w = carve(c, n, SMOOTH_BLOCK * sizeof *m->w);
    m->y = carve(c, tokens, SMOOTH_BLOCK * sizeof *m->y);
    m->sums = carve(c, size_max(tokens, SMOOTH_BLOCK), sizeof *m->sums);
    if (!m->attention)
        return;
    for (size_t i = 0; i < 3; i++)
        m->projected[i] = carve(c, tokens, m->t->g->targets[i]->n * sizeof(float));
    m->scores = carve(c, m->threads, tokens * sizeof *m->scores);
    m->reference = carve(c, tokens, attention_outputs(m->t->g) * sizeof *m->reference);
    m->out = carve(c, tokens, attention_outputs(m->t->g) * sizeof *m->out);
}

static m2_search search_of(const smooth_task *t, const tare_context *ctx, size_t tokens)
{
    smooth_weight *const *w = t->g->targets;
    return (m2_search){.t = t,
                       .tokens = tokens,
                       .threads = (size_t)parallel_threads(ctx),
                       .tau = -INFINITY,
                       .attention = t->g->num_targets == 3 && w[0]->n % w[1]->n == 0};
}

/* ---- the trial's input ---- */

static float threshold(const m2_search *m, int i)
{
    return (m->tau - m->t->stats->sigma) * (float)i / 99.0f + m->t->stats->sigma;
}

static void set_scales(const m2_search *m, int i)
{
    float limit = threshold(m, i);
    for (size_t c = 0; c < m->t->g->channels; c++)
        m->s[c] = m->t->stats->theta[c] > limit ? m->full[c] : 1;
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
    float d, z;
} trial_job;

static void centred_row(void *user, size_t row, int thread)
{
    (void)thread;
    const m2_search *m = user;
    size_t n = m->t->g->channels;
    const float *x = m->x + row * n;
    float *to = m->trial + row * n, lo = 0, hi = 0;
    for (size_t c = 0; c < n; c++) {
        to[c] = (x[c] - m->b[c]) / m->s[c];
        lo = to[c] < lo ? to[c] : lo;
        hi = to[c] > hi ? to[c] : hi;
    }
    m->ranges[2 * row] = lo;
    m->ranges[2 * row + 1] = hi;
}

static void quantized_row(void *user, size_t row, int thread)
{
    (void)thread;
    const trial_job *job = user;
    const m2_search *m = job->m;
    size_t n = m->t->g->channels;
    const float *x = m->x + row * n;
    float *to = m->trial + row * n;
    for (size_t c = 0; c < n; c++) {
        float q = round_even_small(to[c] / job->d + job->z);
        q = q < -128 ? -128 : q > 127 ? 127 : q;
        to[c] = (q - job->z) * job->d * m->s[c] + m->b[c];
        to[c] -= m->attention ? 0 : x[c];
    }
}

/* trial <- Xq*s + b, without the attention loss less X1. */
static void make_trial(m2_search *m)
{
    float lo = 0, hi = 0;
    trial_job job = {.m = m};
    parallel_for(m->t->ctx, m->tokens, centred_row, m);
    for (size_t t = 0; t < m->tokens; t++) {
        lo = fminf(lo, m->ranges[2 * t]);
        hi = fmaxf(hi, m->ranges[2 * t + 1]);
    }
    job.d = fmaxf((hi - lo) / 255, ROUND_EPS);
    job.z = rintf(-lo / job.d) - 128;
    parallel_for(m->t->ctx, m->tokens, quantized_row, &job);
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

static tare_status candidate_loss(m2_search *m, double *loss)
{
    tare_status status = TARE_OK;
    tare_context *ctx = m->t->ctx;
    gemm_weight *packed = NULL;
    make_trial(m);
    if (m->attention) {
        size_t n = attention_outputs(m->t->g);
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

static tare_status prepare(m2_search *m)
{
    tare_status status = TARE_OK;
    const smooth_task *t = m->t;
    TRY(carver_alloc(t->ctx, lay_out, m));
    TRY(t->inputs->read(t->inputs->user, 0, m->tokens, m->x));
    for (size_t c = 0; c < t->g->channels; c++) {
        m->b[c] = smooth_centre(t->stats, c, TARE_F32);
        /* A channel above the threshold has theta > sigma >= 0. */
        m->full[c] = smooth_ratio(fmaxf(t->stats->theta[c], 0), t->scan->columns[c], 0.5, 0.5,
                                  TARE_F32);
    }
    if (m->attention)
        TRY(attention_output(m, m->x, m->reference));
done:
    return status;
}

size_t smooth_m2_bytes(const tare_context *ctx, const smooth_group *g, size_t first_rows)
{
    m2_search m = search_of(&(smooth_task){.g = g}, ctx, first_rows);
    return carver_bytes(lay_out, &m) +
           gemm_weight_bytes(GEMM_FP32, TARE_F32, first_rows, g->channels) + gemm_float_bytes(ctx);
}

static tare_status try_sets(m2_search *m)
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
        set_scales(m, i);
        TRY(candidate_loss(m, &loss));
        out->evaluated++;
        if ((float)loss < (float)out->loss) {
            out->loss = loss;
            out->candidate = i;
            for (size_t c = 0; c < m->t->g->channels; c++)
                out->s[c] = round_native(m->s[c], m->t->native);
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
    m2_search m = search_of(t, t->ctx, t->stats->first_rows);
    for (size_t c = 0; c < t->g->channels; c++)
        m.tau = fmaxf(m.tau, t->stats->theta[c]);
    if (3 * t->stats->sigma >= m.tau)
        return smooth_solve_ratio(t, 0.5, 0.5);
    TRY(prepare(&m));
    TRY(try_sets(&m));
done:
    mem_free(t->ctx, m.x);
    return status;
}
