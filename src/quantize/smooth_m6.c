/* m6's search for alpha and beta (1.5): phases, order and ties, and the reference product.
 *
 * The reference takes candidates in rising order with "err <= best", so of equal errors the last
 * wins: here ties go to the larger index, and the order is free. Good candidates come first, and a
 * candidate whose partial sum exceeds the best total is dropped. Sums are made a panel at a time
 * and panels added in order, so neither threads nor the size of a tile change a total; partial sums
 * never exceed it, because addition of positive numbers is monotonous after rounding too. */
#include "quantize/smooth_m6.h"

#include "base/parallel.h"
#include "tensor/gemm.h"

static const size_t DEFAULT_TILE_BYTES = (size_t)512 << 20;
enum { START_ALPHA = 15 }; /* 0.75: near most optima */

bool m6_factors(const m6_search *m, const m6_candidate *c)
{
    const smooth_task *t = m->t;
    tare_dtype native = t->native;
    bool good = true;
    for (size_t i = 0; i < t->g->channels; i++) {
        float a = smooth_largest(t->stats, i), w = t->scan->columns[i];
        if ((a == 0 || w == 0) && !t->cfg->num.compat) {
            m->p[i] = 1;
            continue;
        }
        float up = smooth_power(a, c->alpha / 20.0, native);
        float down = smooth_power(w, -(c->beta / 20.0), native);
        m->p[i] = round_native(up * down, native);
        good = good && m->p[i] > 0 && isfinite(m->p[i]);
    }
    return good;
}

m6_range m6_input_range(const m6_search *m)
{
    const smooth_stats *stats = m->t->stats;
    tare_dtype native = m->t->native;
    float lo = INFINITY, hi = -INFINITY;
    m6_range r = {0};
    for (size_t c = 0; c < stats->channels; c++) {
        lo = fminf(lo, round_native(stats->min[c] / m->p[c], native));
        hi = fmaxf(hi, round_native(stats->max[c] / m->p[c], native));
    }
    r.d = fmaxf(round_native(round_native(hi - lo, native) / 255, native), ROUND_EPS);
    r.z = round_native(rintf(round_native(-lo / r.d, native)) - 128, native);
    r.wide = rintf(hi / r.d + r.z) > 127 || rintf(lo / r.d + r.z) < -128;
    return r;
}

/* ---- the reference product ---- */

typedef struct square_job {
    const float *y;
    size_t n;
    tare_dtype native;
    double *sums;
} square_job;

static void square_row(void *user, size_t row, int thread)
{
    (void)thread;
    const square_job *job = user;
    double sum = 0;
    for (size_t i = 0; i < job->n; i++) {
        double y = round_native(job->y[row * job->n + i], job->native);
        sum += job->native == TARE_F32 ? y * y : round_native((float)(y * y), job->native);
    }
    job->sums[row] = sum;
}

static tare_status reference_panel(m6_search *m, size_t panel, size_t slot)
{
    tare_status status = TARE_OK;
    const smooth_task *t = m->t;
    const m6_panel *p = &m->panels[panel];
    gemm_weight *packed = NULL;
    double sums[SMOOTH_BLOCK];
    smooth_weight_rows(t->ctx, p->w, p->first, p->count, m->w);
    TRY(gemm_weight_create(t->ctx, GEMM_FP32, TARE_F32, m->w, p->count, t->g->channels, &packed));
    m->reference_squares[panel] = 0;
    for (size_t first = 0; first < t->stats->rows; first += SMOOTH_BLOCK) {
        size_t count = t->stats->rows - first;
        count = count < SMOOTH_BLOCK ? count : SMOOTH_BLOCK;
        float *y = m->reference + slot * t->stats->rows * SMOOTH_BLOCK + first * p->count;
        square_job job = {y, p->count, t->native, sums};
        TRY(t->inputs->read(t->inputs->user, first, count, m->x));
        TRY(gemm_float(t->ctx, packed, m->x, count, NULL, y));
        parallel_for(t->ctx, count, square_row, &job);
        for (size_t i = 0; i < count; i++)
            m->reference_squares[panel] += sums[i];
    }
done:
    gemm_weight_free(t->ctx, packed);
    return status;
}

/* ---- candidates ---- */

static double sum_of(const double *x, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += x[i];
    return sum;
}

/* Native: means are summed wide and rounded once, as are their roots and their quotient. */
static double native_error(const m6_search *m, double squares)
{
    const smooth_task *t = m->t;
    double outputs = 0;
    for (size_t i = 0; i < m->num_panels; i++)
        outputs += (double)m->panels[i].count;
    double n = outputs * (double)t->stats->rows;
    double reference = sum_of(m->reference_squares, m->num_panels);
    float above = round_native(sqrtf(round_native((float)(squares / n), t->native)), t->native);
    float below = round_native(sqrtf(round_native((float)(reference / n), t->native)), t->native);
    return round_native(above / below, t->native);
}

static double candidate_error(const m6_search *m, const m6_candidate *c)
{
    double squares = sum_of(c->squares, m->num_panels);
    if (m->t->native != TARE_F32)
        return native_error(m, squares);
    double reference = sum_of(m->reference_squares, m->num_panels);
    return reference > 0 ? sqrt(squares / reference) : 0;
}

typedef struct m6_best {
    int index; /* -1: none */
    double err;
} m6_best;

static void compare(m6_search *m, m6_candidate *c, int index, m6_best *best)
{
    c->err = candidate_error(m, c);
    if (!isfinite(c->err))
        return;
    if (best->index >= 0 && (c->err > best->err || (c->err == best->err && index < best->index)))
        return;
    best->index = index;
    best->err = c->err;
    if (m->t->native == TARE_F32 && !m->t->cfg->no_early_stop)
        m->best_squares = sum_of(c->squares, m->num_panels);
}

/* Tries candidates in `order`. With several tiles all candidates pass each tile before the next, so
 * that its reference product is made once. */
static tare_status run_phase(m6_search *m, m6_candidate *candidates, const int *order, size_t count,
                             m6_best *best)
{
    tare_status status = TARE_OK;
    const smooth_task *t = m->t;
    for (size_t first = 0; first < m->num_panels; first += m->tile) {
        size_t end = m->num_panels - first < m->tile ? m->num_panels : first + m->tile;
        /* The only tile is still there from phase 1. */
        bool held = m->num_panels <= m->tile && best->index >= 0;
        for (size_t i = first; i < end && !held; i++)
            TRY(reference_panel(m, i, i - first));
        for (size_t i = 0; i < count; i++) {
            m6_candidate *c = &candidates[order[i]];
            TRY(context_check_cancelled(t->ctx));
            if (first == 0) {
                t->out->evaluated++;
                c->stopped = !m6_factors(m, c);
            }
            if (c->stopped)
                continue;
            m6_factors(m, c);
            TRY(t->native == TARE_F32 ? m6_evaluate_integer(m, first, end, c)
                                      : m6_evaluate_native(m, first, end, c));
            if (end == m->num_panels && !c->stopped)
                compare(m, c, order[i], best);
        }
    }
done:
    return status;
}

/* From `centre` outwards; `skip` is left out. Returns how many. */
static size_t outwards(int centre, int skip, int order[M6_STEPS])
{
    size_t count = 0;
    for (int distance = 0; distance < M6_STEPS; distance++) {
        for (int sign = 1; sign >= (distance ? -1 : 1); sign -= 2) {
            int index = centre + sign * distance;
            if (index >= 0 && index < M6_STEPS && index != skip)
                order[count++] = index;
        }
    }
    return count;
}

static tare_status both_phases(m6_search *m, m6_candidate candidates[M6_STEPS])
{
    tare_status status = TARE_OK;
    const smooth_task *t = m->t;
    int order[M6_STEPS];
    m6_best best = {.index = -1};
    m->best_squares = INFINITY;
    for (int i = 0; i < M6_STEPS; i++) {
        candidates[i].alpha = i;
        candidates[i].beta = M6_STEPS - 1 - i;
    }
    size_t count = outwards(START_ALPHA, -1, order);
    TRY(run_phase(m, candidates, order, count, &best));
    if (best.index < 0) {
        status = smooth_fail(t->ctx, TARE_E_NUMERIC, t->g, "no candidate has a finite error");
        goto done;
    }
    int alpha = best.index;
    /* The point that phase 1 chose keeps its error; phase 2 would come to it again. */
    best.index = M6_STEPS - 1 - alpha;
    for (int i = 0; i < M6_STEPS; i++) {
        memset(candidates[i].squares, 0, m->num_panels * sizeof(double));
        candidates[i].alpha = alpha;
        candidates[i].beta = i;
    }
    count = outwards(best.index, best.index, order);
    TRY(run_phase(m, candidates, order, count, &best));
    t->out->alpha = alpha / 20.0;
    t->out->beta = best.index / 20.0;
    t->out->loss = best.err;
    t->out->candidate = alpha * M6_STEPS + best.index;
done:
    return status;
}

/* ---- memory ---- */

static void list_panels(m6_search *m)
{
    const smooth_group *g = m->t->g;
    m6_panel *next = m->panels;
    for (size_t i = 0; i < g->num_targets; i++) {
        const smooth_weight *w = g->targets[i];
        for (size_t first = 0; first < w->n; first += SMOOTH_BLOCK)
            *next++ = (m6_panel){w, first, size_min(w->n - first, SMOOTH_BLOCK)};
    }
}

/* Panels held at a time: a row of weights costs its products with all tokens, its codes and its
 * accumulators. */
static size_t tile_panels(const smooth_config *cfg, size_t channels, size_t rows, size_t panels)
{
    size_t bytes = cfg->tile_bytes ? cfg->tile_bytes : DEFAULT_TILE_BYTES;
    size_t tile = bytes / (rows * sizeof(float) + channels + SMOOTH_BLOCK * sizeof(int32_t)) /
                  SMOOTH_BLOCK;
    return tile < 1 ? 1 : tile > panels ? panels : tile;
}

static void lay_out(carver *c, void *component)
{
    m6_search *m = component;
    size_t n = m->t->g->channels, rows = m->tile * SMOOTH_BLOCK;
    m->panels = carve(c, m->num_panels, sizeof *m->panels);
    m->squares = carve(c, m->num_panels, M6_STEPS * sizeof *m->squares);
    m->reference_squares = carve(c, m->num_panels, sizeof *m->reference_squares);
    m->p = carve(c, n, sizeof *m->p);
    m->x = carve(c, n, SMOOTH_BLOCK * sizeof *m->x);
    m->w = carve(c, n, SMOOTH_BLOCK * sizeof *m->w);
    m->reference = carve(c, m->t->stats->rows, rows * sizeof *m->reference);
    m->cells = carve(c, m->tile, M6_CELLS * sizeof *m->cells);
    if (m->t->native != TARE_F32) {
        m->product = carve(c, SMOOTH_BLOCK, SMOOTH_BLOCK * sizeof *m->product);
        return;
    }
    m->scaled = carve(c, m->threads, n * sizeof *m->scaled);
    m->steps = carve(c, rows, sizeof *m->steps);
    m->row_sums = carve(c, rows, sizeof *m->row_sums);
    m->q = carve(c, rows, n);
    m->u = carve(c, SMOOTH_BLOCK, n);
    m->acc = carve(c, rows, SMOOTH_BLOCK * sizeof *m->acc);
}

static m6_search search_of(const smooth_task *t, const tare_context *ctx)
{
    const smooth_group *g = t->g;
    m6_search m = {.t = t, .threads = (size_t)parallel_threads(ctx)};
    for (size_t i = 0; i < g->num_targets; i++)
        m.num_panels += size_divide_up(g->targets[i]->n, SMOOTH_BLOCK);
    m.tile = tile_panels(t->cfg, g->channels, t->stats->rows, m.num_panels);
    return m;
}

size_t smooth_m6_bytes(const tare_context *ctx, const smooth_config *cfg, const smooth_group *g,
                       size_t rows)
{
    smooth_stats stats = {.rows = rows};
    smooth_task task = {.cfg = cfg, .g = g, .stats = &stats, .native = smooth_native(cfg)};
    m6_search m = search_of(&task, ctx);
    size_t floats = gemm_weight_bytes(GEMM_FP32, TARE_F32, SMOOTH_BLOCK, g->channels) +
                    gemm_float_bytes(ctx);
    size_t integers = gemm_u8s8_bytes(ctx, m.tile * SMOOTH_BLOCK, SMOOTH_BLOCK);
    return carver_bytes(lay_out, &m) + size_max(floats, integers);
}

tare_status smooth_search_m6(const smooth_task *t)
{
    m6_search m = search_of(t, t->ctx);
    m6_candidate candidates[M6_STEPS] = {{0}};
    tare_status status = carver_alloc(t->ctx, lay_out, &m);
    if (status != TARE_OK)
        return status;
    list_panels(&m);
    memset(m.reference_squares, 0, m.num_panels * sizeof *m.reference_squares);
    memset(m.squares, 0, M6_STEPS * m.num_panels * sizeof *m.squares);
    for (size_t i = 0; i < M6_STEPS; i++)
        candidates[i].squares = m.squares + i * m.num_panels;
    status = both_phases(&m, candidates);
    mem_free(t->ctx, m.panels);
    return status;
}
