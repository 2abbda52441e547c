/* m3 (1.5): 20 candidates, judged by what rounding the scaled weights does to the outputs of the
 * first sample.
 *
 * Rows of weights are the left operand here: made piece by piece while they are multiplied, so that
 * neither a candidate's weights nor its outputs are ever stored, and the small side is packed once
 * for all candidates. Two arrangements give the reference's loss but for the order of FP32 sums
 * (5e-6 relative, specification 1.7):
 * error form: E = W' - W, loss = mean((E X1^T)^2);
 * Gram form:  H = X1^T X1, loss = sum((E H) o E) / (T1*out): less work once T1 > C.
 * The native-dtype switch rounds both outputs, so there the two products are made apart.
 *
 * Where the CPU multiplies BF16, the error form goes through all candidates in BF16 first, which
 * moves a loss by up to 4e-4 of itself (1.7); the candidates within ROUGH_MARGIN of the least loss
 * are evaluated again in FP32, which decides. */
#include <string.h>

#include "base/parallel.h"
#include "quantize/smooth_internal.h"
#include "tensor/gemm.h"

/* AT_ONCE: blocks between two looks at whether the user has had enough. */
enum { CANDIDATES = 20, ROWS = GEMM_ROWS, AT_ONCE = 64 };
#define ROUGH_MARGIN 0.01

/* What one thread works in. */
typedef struct m3_scratch {
    char *gemm;           /* [GEMM_ROWS_SCRATCH] */
    float *y, *reference; /* [ROWS,outputs]; reference: native only */
    float *e;             /* [ROWS,C]; gram: E; native: W' */
    float *row;           /* [C] */
} m3_scratch;

typedef struct m3_search {
    const smooth_task *t;
    const kernels *kernels;
    size_t tokens, threads;
    size_t most_rows; /* of a target */
    bool gram;
    float *x;                             /* [T1,C] */
    gemm_weight *packed;                  /* X1 [T1,C] or H [C,C] */
    gemm_weight *rough;                   /* X1 in BF16; NULL: no need of it */
    const gemm_weight *now;               /* the one in use, */
    size_t count, candidates[CANDIDATES]; /* and for which */
    size_t outputs;                       /* T1 or C */
    float *scales;                        /* [CANDIDATES,C] */
    float *mu;                            /* [C] mean magnitudes, */
    double *magnitudes;                   /* and their sums */
    char *scratch;                        /* [threads, scratch_size] */
    size_t scratch_size;
    const smooth_weight *w; /* the target in work, */
    size_t first_block;     /* from this block on */
    kernel_grid *grids;     /* [rows of w, CANDIDATES]; NULL: native */
    double *sums;           /* [CANDIDATES, blocks of w] */
} m3_search;

static size_t block_count(size_t rows)
{
    return size_divide_up(rows, ROWS);
}

static void lay_out_scratch(carver *c, const m3_search *m, m3_scratch *s)
{
    size_t n = m->t->g->channels;
    bool native = m->t->native != TARE_F32;
    s->gemm = carve(c, GEMM_ROWS_SCRATCH, 1);
    s->y = carve(c, m->outputs, ROWS * sizeof *s->y);
    s->reference = native ? carve(c, m->outputs, ROWS * sizeof *s->reference) : NULL;
    s->e = native || m->gram ? carve(c, n, ROWS * sizeof *s->e) : NULL;
    s->row = carve(c, n, sizeof *s->row);
}

static m3_scratch scratch_of(const m3_search *m, int thread)
{
    m3_scratch s;
    lay_out_scratch(&(carver){.memory = m->scratch + (size_t)thread * m->scratch_size}, m, &s);
    return s;
}

static void lay_out(carver *c, void *component)
{
    m3_search *m = component;
    size_t n = m->t->g->channels;
    carver own = {0};
    lay_out_scratch(&own, m, &(m3_scratch){0});
    c->overflow = c->overflow || own.overflow;
    m->scratch_size = own.used;
    m->x = carve(c, m->tokens, n * sizeof *m->x);
    m->scales = carve(c, n, CANDIDATES * sizeof *m->scales);
    m->mu = carve(c, n, sizeof *m->mu);
    m->magnitudes = carve(c, n, sizeof *m->magnitudes);
    m->scratch = carve(c, m->threads, m->scratch_size);
    m->sums = carve(c, block_count(m->most_rows), CANDIDATES * sizeof *m->sums);
    m->grids = m->t->native == TARE_F32 ? carve(c, m->most_rows, CANDIDATES * sizeof *m->grids)
                                        : NULL;
}

static m3_search search_of(const smooth_task *t, const tare_context *ctx, size_t tokens)
{
    size_t n = t->g->channels;
    m3_search m = {.t = t,
                   .kernels = kernels_get(ctx),
                   .tokens = tokens,
                   .threads = (size_t)parallel_threads(ctx),
                   .gram = t->native == TARE_F32 && !t->cfg->naive && tokens > n};
    m.outputs = m.gram ? n : tokens;
    for (size_t i = 0; i < t->g->num_targets; i++)
        m.most_rows = size_max(m.most_rows, t->g->targets[i]->n);
    return m;
}

/* Some rows of a target under one candidate. */
typedef struct row_block {
    const m3_search *m;
    const m3_scratch *scratch;
    size_t candidate, first, rows;
} row_block;

/* ---- native dtype: W' ---- */

static kernel_grid grid_of(const smooth_task *t, float lo, float hi)
{
    float levels = t->cfg->w_bit == 4 ? 8 : 128;
    kernel_grid q = {.low = -levels, .high = levels - 1};
    lo = fminf(lo, 0);
    hi = fmaxf(hi, 0);
    if (t->cfg->w_sym) {
        q.step = fmaxf(round_native(fmaxf(-lo, hi) / q.high, t->native), ROUND_EPS);
    } else {
        float range = round_native(hi - lo, t->native);
        q.step = fmaxf(round_native(range / (2 * levels - 1), t->native), ROUND_EPS);
        q.zero = round_native(rintf(round_native(-lo / q.step, t->native)) - levels, t->native);
    }
    return q;
}

/* row <- Qw(row * s) / s. */
static void requantize_native(const m3_search *m, const float *s, float *row)
{
    size_t n = m->t->g->channels;
    tare_dtype native = m->t->native;
    float lo = 0, hi = 0;
    for (size_t i = 0; i < n; i++) {
        row[i] = round_native(row[i] * s[i], native);
        lo = fminf(lo, row[i]);
        hi = fmaxf(hi, row[i]);
    }
    kernel_grid q = grid_of(m->t, lo, hi);
    for (size_t i = 0; i < n; i++) {
        float v = rintf(round_native(round_native(row[i] / q.step, native) + q.zero, native));
        v = round_native((v < q.low ? q.low : v > q.high ? q.high : v) - q.zero, native);
        row[i] = round_native(round_native(v * q.step, native) / s[i], native);
    }
}

/* ---- rows for the product ---- */

static void make_weights(void *user, size_t k0, size_t depth, float *x)
{
    const row_block *b = user;
    for (size_t r = 0; r < b->rows; r++)
        smooth_weight_part(b->m->kernels, b->m->w, b->first + r, k0, depth, x + r * GEMM_DEPTH);
}

static void make_requantized(void *user, size_t k0, size_t depth, float *x)
{
    const row_block *b = user;
    for (size_t r = 0; r < b->rows; r++)
        memcpy(x + r * GEMM_DEPTH, b->scratch->e + r * b->m->w->k + k0, depth * sizeof *x);
}

static void make_errors(void *user, size_t k0, size_t depth, float *x)
{
    const row_block *b = user;
    const m3_search *m = b->m;
    size_t at = b->candidate * m->w->k + k0;
    float w[GEMM_DEPTH];
    for (size_t r = 0; r < b->rows; r++) {
        float *e = x + r * GEMM_DEPTH;
        smooth_weight_part(m->kernels, m->w, b->first + r, k0, depth, w);
        m->kernels->grid_error(w, m->scales + at, depth,
                               &m->grids[(b->first + r) * CANDIDATES + b->candidate], e);
        if (m->gram)
            memcpy(b->scratch->e + r * m->w->k + k0, e, depth * sizeof *e);
    }
}

/* The grids of one row under the candidates in work. */
static void row_grids(void *user, size_t row, int thread)
{
    const m3_search *m = user;
    size_t n = m->w->k;
    float lo, hi, *wide = scratch_of(m, thread).row;
    smooth_weight_part(m->kernels, m->w, row, 0, n, wide);
    for (size_t i = 0; i < m->count; i++) {
        size_t c = m->candidates[i];
        m->kernels->product_min_max(wide, m->scales + c * n, n, &lo, &hi);
        m->grids[row * CANDIDATES + c] = grid_of(m->t, lo, hi);
    }
}

/* W' of the native dtype. */
static void requantize_rows(const row_block *b)
{
    const m3_search *m = b->m;
    size_t n = m->w->k;
    for (size_t r = 0; r < b->rows; r++) {
        float *row = b->scratch->e + r * n;
        smooth_weight_part(m->kernels, m->w, b->first + r, 0, n, row);
        requantize_native(m, m->scales + b->candidate * n, row);
    }
}

/* ---- loss ---- */

static double block_error(const row_block *b)
{
    const m3_search *m = b->m;
    tare_dtype native = m->t->native;
    const float *y = b->scratch->y, *e = b->scratch->e, *reference = b->scratch->reference;
    double sum = 0;
    for (size_t r = 0; r < b->rows; r++) {
        double row = 0;
        for (size_t i = r * m->outputs; i < (r + 1) * m->outputs; i++) {
            if (native != TARE_F32) {
                float d = round_native(
                    round_native(reference[i], native) - round_native(y[i], native), native);
                row += d * d;
            } else {
                row += (double)y[i] * (m->gram ? e[i] : y[i]);
            }
        }
        sum += row;
    }
    return sum;
}

/* A block under one candidate after the other: its rows stay in the caches meanwhile. */
static void candidate_block(void *user, size_t index, int thread)
{
    const m3_search *m = user;
    const smooth_task *t = m->t;
    size_t block = m->first_block + index / m->count, left = m->w->n - block * ROWS;
    const m3_scratch own = scratch_of(m, thread), *s = &own;
    row_block b = {.m = m,
                   .scratch = s,
                   .candidate = m->candidates[index % m->count],
                   .first = block * ROWS,
                   .rows = left < ROWS ? left : ROWS};
    bool native = t->native != TARE_F32;
    if (native) {
        requantize_rows(&b);
        gemm_float_rows(t->ctx, m->now, b.rows, make_weights, &b, s->reference, s->gemm);
    }
    gemm_float_rows(t->ctx, m->now, b.rows, native ? make_requantized : make_errors, &b, s->y,
                    s->gemm);
    m->sums[b.candidate * block_count(m->w->n) + block] = block_error(&b);
}

/* Adds the means of the squared error of one target. */
static tare_status target_losses(m3_search *m, const smooth_weight *w, double losses[CANDIDATES])
{
    tare_status status = TARE_OK;
    tare_context *ctx = m->t->ctx;
    size_t blocks = block_count(w->n);
    m->w = w;
    if (m->grids)
        parallel_for(ctx, w->n, row_grids, m);
    for (size_t first = 0; first < blocks; first += AT_ONCE) {
        size_t count = blocks - first < AT_ONCE ? blocks - first : AT_ONCE;
        TRY(context_check_cancelled(ctx));
        m->first_block = first;
        parallel_for(ctx, m->count * count, candidate_block, m);
    }
    for (size_t i = 0; i < m->count; i++) {
        double sum = 0;
        for (size_t b = 0; b < blocks; b++)
            sum += m->sums[m->candidates[i] * blocks + b];
        losses[m->candidates[i]] += sum / ((double)m->tokens * (double)w->n);
    }
done:
    return status;
}

/* ---- candidates ---- */

/* mu_c = mean over tokens of |X1_c|. */
static void mean_magnitude(const m3_search *m)
{
    size_t n = m->t->g->channels;
    memset(m->magnitudes, 0, n * sizeof *m->magnitudes);
    for (size_t t = 0; t < m->tokens; t++) {
        for (size_t c = 0; c < n; c++)
            m->magnitudes[c] += fabsf(m->x[t * n + c]);
    }
    for (size_t c = 0; c < n; c++)
        m->mu[c] = round_native((float)(m->magnitudes[c] / (double)m->tokens), m->t->native);
}

static void candidate_scales(const m3_search *m, int i)
{
    tare_dtype native = m->t->native;
    size_t n = m->t->g->channels;
    float max = 0, min = INFINITY, *s = m->scales + (size_t)i * n;
    for (size_t c = 0; c < n; c++) {
        s[c] = smooth_power(m->mu[c], i / (double)CANDIDATES, native);
        s[c] = round_native(fmaxf(s[c], 1e-4f), native);
        max = fmaxf(max, s[c]);
        min = fminf(min, s[c]);
    }
    float middle = round_native(sqrtf(round_native(max * min, native)), native);
    for (size_t c = 0; c < n; c++) {
        s[c] = round_native(s[c] / middle, native);
    }
}

/* ---- the small side ---- */

typedef struct gram_room {
    size_t tokens, n;
    float *transposed; /* [C,T1] */
    float *gram;       /* [C,C] */
} gram_room;

static void lay_out_gram(carver *c, void *component)
{
    gram_room *room = component;
    room->transposed = carve(c, room->tokens, room->n * sizeof *room->transposed);
    room->gram = carve(c, room->n, room->n * sizeof *room->gram);
}

static tare_status pack_gram(m3_search *m)
{
    tare_status status = TARE_OK;
    tare_context *ctx = m->t->ctx;
    size_t n = m->t->g->channels;
    gemm_weight *packed = NULL;
    gram_room room = {.tokens = m->tokens, .n = n};
    TRY(carver_alloc(ctx, lay_out_gram, &room));
    for (size_t t = 0; t < m->tokens; t++) {
        for (size_t c = 0; c < n; c++)
            room.transposed[c * m->tokens + t] = m->x[t * n + c];
    }
    TRY(gemm_weight_create(ctx, GEMM_FP32, TARE_F32, room.transposed, n, m->tokens, &packed));
    TRY(gemm_float(ctx, packed, room.transposed, n, NULL, room.gram));
    TRY(gemm_weight_create(ctx, GEMM_FP32, TARE_F32, room.gram, n, n, &m->packed));
done:
    gemm_weight_free(ctx, packed);
    mem_free(ctx, room.transposed);
    return status;
}

static bool wants_rough(const m3_search *m)
{
    return m->t->native == TARE_F32 && !m->gram && m->kernels->gemm_bf16;
}

static tare_status prepare(m3_search *m)
{
    tare_status status = TARE_OK;
    tare_context *ctx = m->t->ctx;
    size_t n = m->t->g->channels;
    TRY(carver_alloc(ctx, lay_out, m));
    TRY(m->t->inputs->read(m->t->inputs->user, 0, m->tokens, m->x));
    mean_magnitude(m);
    for (int i = 0; i < CANDIDATES; i++)
        candidate_scales(m, i);
    if (m->gram)
        return pack_gram(m);
    if (wants_rough(m))
        TRY(gemm_weight_create(ctx, GEMM_BF16, TARE_F32, m->x, m->tokens, n, &m->rough));
    TRY(gemm_weight_create(ctx, GEMM_FP32, TARE_F32, m->x, m->tokens, n, &m->packed));
done:
    return status;
}

size_t smooth_m3_bytes(const tare_context *ctx, const smooth_config *cfg, const smooth_group *g,
                       size_t first_rows)
{
    size_t n = g->channels;
    smooth_task task = {.cfg = cfg, .g = g, .native = smooth_native(cfg)};
    m3_search m = search_of(&task, ctx, first_rows);
    gram_room room = {.tokens = first_rows, .n = n};
    size_t bytes = carver_bytes(lay_out, &m) + gemm_weight_bytes(GEMM_FP32, TARE_F32, m.outputs, n);
    if (wants_rough(&m))
        bytes += gemm_weight_bytes(GEMM_BF16, TARE_F32, m.outputs, n);
    if (m.gram)
        bytes += carver_bytes(lay_out_gram, &room) +
                 gemm_weight_bytes(GEMM_FP32, TARE_F32, n, first_rows) + gemm_float_bytes(ctx);
    return bytes;
}

/* Losses of the candidates in m->candidates. */
static tare_status all_losses(m3_search *m, const gemm_weight *packed, double losses[CANDIDATES])
{
    tare_status status = TARE_OK;
    m->now = packed;
    for (size_t i = 0; i < m->count; i++)
        losses[m->candidates[i]] = 0;
    for (size_t k = 0; status == TARE_OK && k < m->t->g->num_targets; k++)
        status = target_losses(m, m->t->g->targets[k], losses);
    return status;
}

/* Leaves the candidates that may be best by the rough losses. One that is not finite stays. */
static void keep_best(m3_search *m, const double losses[CANDIDATES])
{
    double least = INFINITY;
    size_t kept = 0;
    for (size_t i = 0; i < m->count; i++)
        least = losses[m->candidates[i]] < least ? losses[m->candidates[i]] : least;
    for (size_t i = 0; i < m->count; i++) {
        if (!(losses[m->candidates[i]] > least * (1 + ROUGH_MARGIN)))
            m->candidates[kept++] = m->candidates[i];
    }
    m->count = kept;
}

tare_status smooth_solve_m3(const smooth_task *t)
{
    tare_status status = TARE_OK;
    m3_search m = search_of(t, t->ctx, t->stats->first_rows);
    size_t n = t->g->channels;
    double losses[CANDIDATES];
    TRY(prepare(&m));
    for (m.count = 0; m.count < CANDIDATES; m.count++)
        m.candidates[m.count] = m.count;
    if (m.rough) {
        TRY(all_losses(&m, m.rough, losses));
        keep_best(&m, losses);
    }
    TRY(all_losses(&m, m.packed, losses));
    t->out->loss = INFINITY;
    t->out->evaluated = CANDIDATES;
    for (size_t i = 0; i < m.count; i++) {
        if ((float)losses[m.candidates[i]] < (float)t->out->loss) {
            t->out->loss = losses[m.candidates[i]];
            t->out->candidate = (int)m.candidates[i];
        }
    }
    if (t->out->candidate < 0)
        TRY(smooth_fail(t->ctx, TARE_E_NUMERIC, t->g, "no candidate has a finite loss"));
    memcpy(t->out->s, m.scales + (size_t)t->out->candidate * n, n * sizeof *m.scales);
done:
    gemm_weight_free(t->ctx, m.packed);
    gemm_weight_free(t->ctx, m.rough);
    mem_free(t->ctx, m.x);
    return status;
}
