/* Solving a group: checks, the method, dead channels, and what rounding and range of stored values
 * ask of s. */
#include "quantize/smooth_internal.h"

tare_dtype smooth_native(const smooth_config *cfg)
{
    return cfg->num.compat ? cfg->num.dtype : TARE_F32;
}

tare_status smooth_fail(tare_context *ctx, tare_status status, const smooth_group *g,
                        const char *what)
{
    if (what)
        TARE_FAIL(ctx, status, "%s", what);
    return TARE_WRAP(ctx, status, "smoothing %s -> %s (%zu channels)", g->name,
                     g->num_targets ? g->targets[0]->name : "nothing", g->channels);
}

/* ---- checks ---- */

static bool searches(const smooth_config *cfg)
{
    return cfg->method == SMOOTH_M6 && !(cfg->has_alpha && cfg->has_beta);
}

smooth_need smooth_needs(const smooth_config *cfg)
{
    if (cfg->method == SMOOTH_M2 || cfg->method == SMOOTH_M3)
        return SMOOTH_FIRST_SAMPLE;
    return searches(cfg) ? SMOOTH_ALL_SAMPLES : SMOOTH_NO_INPUT;
}

static bool shifts(const smooth_config *cfg, const smooth_group *g)
{
    return cfg->method == SMOOTH_M4 && g->shift && g->norm;
}

/* NULL, or what contradicts. */
static const char *wrong_shape(const smooth_config *cfg, const smooth_group *g)
{
    const smooth_rows *r = &g->rows;
    bool norms_only = cfg->method != SMOOTH_M4 && cfg->method != SMOOTH_M6 &&
                      cfg->method != SMOOTH_BALANCE;
    if (g->channels == 0 || g->num_targets == 0)
        return "there is nothing to smooth";
    if (!g->norm == !g->source)
        return "the source must be either a norm or a linear";
    if (norms_only && g->source)
        return "this method smooths behind norms only";
    for (size_t i = 0; i < g->num_targets; i++) {
        const smooth_weight *w = g->targets[i];
        if (w->k != g->channels || w->n == 0)
            return "a target does not read as many channels as the source has";
        if (!w->col_scale || (shifts(cfg, g) && !w->bias))
            return "a target has no room for scales or biases";
    }
    if (g->norm)
        return shifts(cfg, g) && !g->norm->bias ? "the norm has no room for a bias" : NULL;
    if (!g->source->row_scale)
        return "the source has no room for scales";
    if (r->heads == 0 || r->width == 0 || r->repeat == 0 || r->stride < r->width ||
        r->first > g->source->n || g->source->n - r->first < r->width ||
        (r->heads > 1 && (g->source->n - r->first - r->width) / r->stride < r->heads - 1))
        return "the source has fewer rows than its heads need";
    if (g->channels / r->width / r->repeat != r->heads ||
        r->heads * r->width * r->repeat != g->channels)
        return "the heads of the source do not make up the channels";
    return NULL;
}

static tare_status check(tare_context *ctx, const smooth_config *cfg, const smooth_group *g,
                         const smooth_stats *stats)
{
    const char *wrong = wrong_shape(cfg, g);
    if (wrong)
        return smooth_fail(ctx, TARE_E_MODEL, g, wrong);
    for (size_t c = 0; g->norm && c < g->channels; c++) {
        if (!isfinite(g->norm->weight[c]))
            return smooth_fail(ctx, TARE_E_NUMERIC, g, "the norm's weight has NaN or infinity");
    }
    if (stats->bad_sample) {
        TARE_FAIL(ctx, TARE_E_NUMERIC, "the input has NaN or infinity in sample %zu",
                  stats->bad_sample - 1);
        return smooth_fail(ctx, TARE_E_NUMERIC, g, NULL);
    }
    if (stats->samples == 0)
        return smooth_fail(ctx, TARE_E_NUMERIC, g, "no sample reached the group");
    return TARE_OK;
}

/* ---- what is stored ---- */

static bool overflows(float x, tare_dtype dtype)
{
    return !(fabsf(round_native(x, dtype)) <= dtype_largest(dtype));
}

/* s := gain / (gain as it will be stored), so that norm and linears stay exact inverses; 1 where
 * the stored value or the bias would not fit. */
static void settle_norm(const smooth_task *t)
{
    const smooth_norm *norm = t->g->norm;
    smooth_scales *out = t->out;
    tare_dtype stored = t->native != TARE_F32 ? t->native : norm->stored;
    for (size_t c = 0; c < t->g->channels; c++) {
        float w = norm->weight[c], gain = norm->offset ? 1 + w : w;
        float fresh = round_native(norm->offset ? gain / out->s[c] - 1 : w / out->s[c], stored);
        float bias = norm->has_bias ? norm->bias[c] : 0;
        bias = (out->shift ? bias - out->shift[c] : bias) / out->s[c];
        bool fits = !overflows(fresh, stored) && isfinite(bias);
        if (fits && t->native == TARE_F32 && stored != TARE_F32 && gain != 0 && out->s[c] != 1) {
            float s = gain / (norm->offset ? 1 + fresh : fresh);
            fits = isfinite(s) && s > 0;
            out->s[c] = fits ? s : out->s[c];
        }
        out->overflows += !fits;
        out->s[c] = fits ? out->s[c] : 1;
    }
}

static tare_status settle_source(const smooth_task *t)
{
    const smooth_weight *w = t->g->source;
    const smooth_rows *rows = &t->g->rows;
    bool stays = w->stored == TARE_F16 || w->stored == TARE_BF16;
    float *row = t->row;
    for (size_t i = 0; i < rows->heads * rows->width; i++) {
        size_t at = rows->first + i / rows->width * rows->stride + i % rows->width;
        tare_dtype dtype = stays ? w->stored : TARE_F32;
        float max = 0;
        smooth_weight_row(t->ctx, w, at, row);
        for (size_t j = 0; j < w->k; j++) {
            if (!isfinite(row[j]))
                return smooth_fail(t->ctx, TARE_E_NUMERIC, t->g,
                                   "the source's weight has NaN or infinity");
            max = fmaxf(max, fabsf(row[j]));
        }
        max = w->has_bias ? fmaxf(max, fabsf(w->bias[at])) : max;
        if (!overflows(max / t->out->r[i], dtype))
            continue;
        t->out->r[i] = 1;
        for (size_t q = 0; q < rows->repeat; q++) {
            size_t head = i / rows->width * rows->repeat + q;
            t->out->s[head * rows->width + i % rows->width] = 1;
            t->out->overflows++;
        }
    }
    return TARE_OK;
}

/* A channel of a linear source goes with all that share its row. */
static void leave_channel(const smooth_task *t, size_t c)
{
    const smooth_rows *rows = &t->g->rows;
    if (!t->out->r) {
        t->out->s[c] = 1;
        t->out->overflows++;
        return;
    }
    size_t head = c / (rows->repeat * rows->width), d = c % rows->width;
    t->out->r[head * rows->width + d] = 1;
    for (size_t q = 0; q < rows->repeat; q++)
        t->out->s[(head * rows->repeat + q) * rows->width + d] = 1;
    t->out->overflows += rows->repeat;
}

static void settle_targets(const smooth_task *t)
{
    const smooth_scan *scan = t->scan;
    for (size_t c = 0; c < t->g->channels; c++) {
        float s = t->out->s[c];
        if (s != 1 && (overflows(scan->columns[c] * s, TARE_F32) ||
                       (scan->stored && overflows(scan->stored[c] * s, scan->stored_dtype))))
            leave_channel(t, c);
    }
}

static tare_status settle(const smooth_task *t)
{
    for (size_t c = 0; c < t->g->channels; c++) {
        if (!isfinite(t->out->s[c]) || t->out->s[c] <= 0) {
            TARE_FAIL(t->ctx, TARE_E_NUMERIC, "the scale of channel %zu is %g", c,
                      (double)t->out->s[c]);
            return smooth_fail(t->ctx, TARE_E_NUMERIC, t->g, NULL);
        }
    }
    tare_status status = TARE_OK;
    if (t->g->norm)
        settle_norm(t);
    else
        status = settle_source(t);
    settle_targets(t);
    return status;
}

/* ---- solving ---- */

static void lay_out(carver *c, void *component)
{
    smooth_task *t = component;
    const smooth_group *g = t->g;
    smooth_scales *out = t->out;
    out->s = carve(c, g->channels, sizeof *out->s);
    out->r = g->source ? carve(c, g->rows.heads, g->rows.width * sizeof *out->r) : NULL;
    out->shift = shifts(t->cfg, g) ? carve(c, g->channels, sizeof *out->shift) : NULL;
    t->row = g->source ? carve(c, g->source->k, sizeof *t->row) : NULL;
}

static tare_status alloc_scales(smooth_task *t)
{
    smooth_scales *out = t->out;
    const smooth_group *g = t->g;
    out->candidate = -1;
    tare_status status = carver_alloc(t->ctx, lay_out, t);
    if (status != TARE_OK)
        return status;
    for (size_t c = 0; c < g->channels; c++) {
        out->dead += smooth_largest(t->stats, c) == 0;
        if (out->shift)
            out->shift[c] = smooth_centre(t->stats, c, t->native);
    }
    out->zero_columns = t->scan->zero_columns;
    out->zero_rows = t->scan->zero_rows;
    return TARE_OK;
}

static tare_status solve_m6(const smooth_task *t)
{
    t->out->alpha = t->cfg->alpha;
    t->out->beta = t->cfg->beta;
    if (searches(t->cfg)) {
        tare_status status = smooth_search_m6(t);
        if (status != TARE_OK)
            return status;
    }
    return smooth_solve_ratio(t, t->out->alpha, t->out->beta);
}

static tare_status solve_method(const smooth_task *t)
{
    switch (t->cfg->method) {
    case SMOOTH_M1:
        return smooth_solve_ratio(t, 0.5, 0.5);
    case SMOOTH_M2:
        return smooth_solve_m2(t);
    case SMOOTH_M3:
        return smooth_solve_m3(t);
    case SMOOTH_M4:
        return smooth_solve_ratio(t, t->g->alpha, 1 - t->g->alpha);
    case SMOOTH_M5:
        return smooth_solve_m5(t);
    case SMOOTH_M6:
        return solve_m6(t);
    case SMOOTH_BALANCE:
        return smooth_solve_balance(t);
    }
    return TARE_FAIL(t->ctx, TARE_E_USAGE,
                     "anti-outlier method %d: there are m1 to m6, and balance",
                     (int)t->cfg->method);
}

static size_t method_bytes(const tare_context *ctx, const smooth_config *cfg, const smooth_group *g,
                           size_t first_rows, size_t rows)
{
    switch (cfg->method) {
    case SMOOTH_M2:
        return smooth_m2_bytes(ctx, g, first_rows);
    case SMOOTH_M3:
        return smooth_m3_bytes(ctx, cfg, g, first_rows);
    case SMOOTH_M6:
        return searches(cfg) ? smooth_m6_bytes(ctx, cfg, g, rows) : 0;
    case SMOOTH_M5:
        return smooth_m5_bytes(ctx, g);
    default:
        return 0;
    }
}

size_t smooth_solve_bytes(const tare_context *ctx, const smooth_config *cfg, const smooth_group *g,
                          size_t first_rows, size_t rows)
{
    smooth_scales scales;
    smooth_norm norm;
    smooth_group most = *g; /* with all that such sizes may have beside them */
    smooth_task task = {.cfg = cfg, .g = &most, .out = &scales};
    most.norm = g->source ? NULL : &norm;
    most.shift = true;
    most.rows.heads = 1;
    most.rows.width = g->channels;
    size_t solving = smooth_scan_bytes(ctx, g->channels) +
                     method_bytes(ctx, cfg, g, first_rows, rows);
    return carver_bytes(lay_out, &task) +
           size_max(solving, shifts(cfg, &most) ? smooth_apply_bytes(ctx, g) : 0);
}

tare_status smooth_solve(tare_context *ctx, const smooth_config *cfg, const smooth_group *g,
                         const smooth_stats *stats, const smooth_inputs *inputs, smooth_scales *out)
{
    tare_status status = TARE_OK;
    smooth_scan scan = {0};
    smooth_task task = {ctx, cfg, g, stats, inputs, &scan, smooth_native(cfg), out, NULL};
    *out = (smooth_scales){0};
    TRY(check(ctx, cfg, g, stats));
    TRY(smooth_scan_targets(ctx, g, &scan));
    TRY(alloc_scales(&task));
    TRY(solve_method(&task));
    TRY(settle(&task));
done:
    smooth_scan_free(ctx, &scan);
    if (status != TARE_OK)
        smooth_scales_free(ctx, out);
    return status;
}

void smooth_scales_free(tare_context *ctx, smooth_scales *scales)
{
    mem_free(ctx, scales->s);
    *scales = (smooth_scales){0};
}
