/* All samples through a segment whose linears are quantized. For each sample in order every linear
 * first updates its observer, then takes its input with the scale that knows this sample and those
 * before it (spec/w8a8.md, section 5.4). With final scales (spec/rotation.md, section 6) samples
 * first run up to each static unit, one unit after the other, to show what it reads; only then they
 * go through, each with the scales that all of them made. With gptq they run up to each unit once
 * more, to show what its linears will multiply: these are rounded by it before the next unit's turn
 * comes. Because an exact integer product needs
 * nothing but the row's own scale, samples may be processed in groups of any size. */
#include <stdatomic.h>
#include <string.h>

#include "base/carver.h"
#include "base/parallel.h"
#include "pipeline/smoothing.h"
#include "pipeline/statistics.h"
#include "tensor/kernels.h"

enum { NO_UNIT = BLOCK_UNITS };

/* block_ops.linears and .attention with this as `user`. */
typedef struct calibration {
    run *run;
    const run_plan *plan;
    const segment_work *work;
    size_t rows;                       /* of a batch, at most */
    layer_output *out;                 /* linears, norms, and what is known of the inputs so far */
    observer *observers[BLOCK_UNITS];  /* NULL: not of interest */
    bool is_static[BLOCK_UNITS];       /* a member needs the range of its input */
    channel_range ranges[BLOCK_UNITS]; /* [k] for the statistics; low NULL: none are kept */
    fa_observer *fa;                   /* NULL: this attention goes without */
    struct latent_queries *latent;     /* of an attention whose keys are made from latent vectors */
    graph_unit peeked;                 /* samples run up to this unit; NO_UNIT: through all */
    gptq *inputs;                      /* that sums what the unit's linears multiply, */
    act_kind summed;                   /* those of this kind; NULL: the unit is observed */
    bool concluded[BLOCK_UNITS];       /* out->params knows all samples already */
    float *copies;                     /* [rows, hidden_size] of the samples, to run up to a unit */
    /* Of the batch in work: */
    act_params *sample_params; /* [samples of the batch] */
    uint32_t *sample_of_row;   /* [rows] */
    act_params *token_params;  /* [rows]; NULL: no linear quantizes its input per token */
    uint8_t *quantized;        /* [rows, k] */
    float *mixed;              /* [rows, k] fake-quantized input where float arithmetic is needed */
} calibration;

/* Experts are never static, so that nobody would ask for theirs. */
static bool keeps_statistics(const calibration *c)
{
    return c->plan->keeps_statistics && !c->work->is_expert;
}

/* ---- input of a group ---- */

static tare_status observe(calibration *c, graph_unit unit, const batch *b, const float *x,
                           size_t k)
{
    tare_status status = TARE_OK;
    run *r = c->run;
    for (size_t i = 0, row = 0; i < b->samples; row += b->lengths[i++]) {
        if (b->lengths[i] == 0) /* of an expert that none of its tokens chose */
            continue;
        status = observer_update(r->ctx, c->observers[unit], x + row * k, b->lengths[i] * k);
        if (status == TARE_OK && c->is_static[unit] && !c->plan->final_scales) {
            status = observer_params(r->ctx, c->observers[unit], &c->sample_params[i]);
            c->out->params[unit] = c->sample_params[i];
        }
        if (status != TARE_OK)
            return TARE_WRAP(r->ctx, status, "input of group %s, sample %zu",
                             c->out->work.block->graph->units[unit].kind, b->first + i);
    }
    if (c->ranges[unit].low)
        channel_range_update(r->ctx, &c->ranges[unit], x, b->rows, k);
    return TARE_OK;
}

/* What this batch and all others take. */
static void use_concluded(const calibration *c, graph_unit unit, const batch *b)
{
    for (size_t i = 0; i < b->samples; i++)
        c->sample_params[i] = c->out->params[unit];
}

/* The scale and offset of a row: those of its sample or its own. */
static const act_params *row_params(const calibration *c, act_kind kind, size_t row)
{
    return kind == ACT_PER_TOKEN ? &c->token_params[row] : &c->sample_params[c->sample_of_row[row]];
}

typedef struct input_work {
    const calibration *c;
    const kernels *kernels;
    const batch *b;
    act_kind activations;
    const float *x;
    size_t k, linear_index;
    atomic_bool finite;
} input_work;

/* A row of zeros stays zeros whatever its scale. */
static void measure_token(void *user, size_t row, int thread)
{
    input_work *w = user;
    float max;
    bool finite = true;
    (void)thread;
    w->kernels->abs_max(w->x + row * w->k, w->k, &max, &finite);
    if (!finite)
        atomic_store(&w->finite, false);
    w->c->token_params[row] = (act_params){.scale = max > 0 ? max / 127 : 1, .dtype = TARE_F32};
}

static tare_status measure_tokens(calibration *c, graph_unit unit, const batch *b, const float *x,
                                  size_t k)
{
    input_work w = {.c = c, .kernels = kernels_get(c->run->ctx), .b = b, .x = x, .k = k};
    atomic_init(&w.finite, true);
    parallel_for(c->run->ctx, b->rows, measure_token, &w);
    if (atomic_load(&w.finite))
        return TARE_OK;
    return TARE_FAIL(c->run->ctx, TARE_E_NUMERIC,
                     "input of group %s, samples from %zu on: NaN or infinity",
                     c->out->work.block->graph->units[unit].kind, b->first);
}

static void quantize_row(void *user, size_t row, int thread)
{
    const input_work *w = user;
    const act_params *p = row_params(w->c, w->activations, row);
    (void)thread;
    w->kernels->quantize_asymmetric(w->x + row * w->k, w->k, p->scale, p->offset,
                                    w->c->quantized + row * w->k);
}

/* gptq_input */
static void see_quantized(void *user, size_t row, float *x, size_t n)
{
    const input_work *w = user;
    act_fake_quantize(&w->c->run->env->num, row_params(w->c, w->activations, row), x, n);
}

static tare_status sum_inputs(calibration *c, graph_unit unit, const batch *b, const float *x,
                              size_t k)
{
    tare_status status = TARE_OK;
    input_work w = {.c = c, .activations = c->summed};
    if (c->summed == ACT_STATIC)
        use_concluded(c, unit, b);
    if (c->summed == ACT_PER_TOKEN)
        TRY(measure_tokens(c, unit, b, x, k));
    run_spent(c->run, WORK_OBSERVE);
    gptq_add(c->run->ctx, c->inputs, x, b->rows, c->summed == ACT_FLOAT ? NULL : see_quantized, &w);
    run_spent(c->run, WORK_GPTQ);
done:
    return status;
}

/* SplitMix64 (spec/w8a8.md, section 4.6). */
static uint64_t mix(uint64_t z)
{
    z += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

/* x' with probability pr, else x: by a generator that knows only seed, linear, sample and element.
 */
static void mix_sample(void *user, size_t i, int thread)
{
    const input_work *w = user;
    const run *r = w->c->run;
    size_t row = 0, n = w->b->lengths[i] * w->k;
    (void)thread;
    for (size_t s = 0; s < i; s++)
        row += w->b->lengths[s];
    const float *x = w->x + row * w->k;
    float *y = w->c->mixed + row * w->k;
    memcpy(y, x, n * sizeof *y);
    for (size_t e = 0; e < n; e += w->k, row++)
        act_fake_quantize(&r->env->num, row_params(w->c, w->activations, row), y + e, w->k);
    if (r->env->recipe->pr >= 1)
        return;
    uint64_t key = mix((uint64_t)r->env->recipe->seed ^ mix(w->linear_index));
    uint64_t sample = (uint64_t)(w->b->first + i) << 40;
    for (size_t e = 0; e < n; e++) {
        double u = (double)(mix(key + sample + e) >> 40) * 0x1p-24;
        if (!(u < r->env->recipe->pr))
            y[e] = x[e];
    }
}

/* ---- output of a linear ---- */

typedef struct output_work {
    const calibration *c;
    const kernels *kernels;
    const live_linear *l;
    float *y; /* [rows, n] */
} output_work;

/* Each row by the scale of its own sample. */
static void dequantize_tile(void *user, size_t row, size_t rows, size_t column, size_t columns,
                            const int32_t *acc, size_t stride)
{
    const output_work *w = user;
    const quantized_weight *q = &w->l->q;
    bool per_row = q->num_scales > 1;
    for (size_t i = 0; i < rows; i++) {
        const act_params *p = row_params(w->c, w->l->activations, row + i);
        w->kernels->dequantize_row(
            acc + i * stride, columns, 128 + (int64_t)p->offset, q->row_sums + column, p->scale,
            q->scales + (per_row ? column : 0), per_row ? columns : 1,
            w->l->bias ? w->l->bias + column : NULL, w->y + (row + i) * q->n + column);
    }
}

static tare_status integer_linear(calibration *c, const live_linear *l, const batch *b, float *y)
{
    output_work w = {.c = c, .kernels = kernels_get(c->run->ctx), .l = l, .y = y};
    tare_status status = gemm_u8s8_tiles(c->run->ctx, c->quantized, l->q.q, b->rows, l->q.n, l->q.k,
                                         dequantize_tile, &w);
    run_spent(c->run, WORK_INT8);
    return status;
}

static tare_status float_linear_run(calibration *c, const live_linear *l, const batch *b,
                                    const float *x, float *y)
{
    run *r = c->run;
    if (l->activations != ACT_FLOAT) {
        input_work w = {.c = c,
                        .b = b,
                        .activations = l->activations,
                        .x = x,
                        .k = l->linear->k,
                        .linear_index = (size_t)(l->linear - r->model->linears)};
        parallel_for(r->ctx, b->samples, mix_sample, &w);
        x = c->mixed;
        run_spent(r, WORK_OBSERVE);
    }
    tare_status status = gemm_float(r->ctx, l->weight, x, b->rows, l->bias, y);
    run_spent(r, WORK_FLOAT);
    return status;
}

static tare_status calibrated_linears(void *user, graph_unit unit, const batch *b, const float *x,
                                      float *const *y)
{
    tare_status status = TARE_OK;
    calibration *c = user;
    run *r = c->run;
    const unit_spec *u = &c->out->work.block->graph->units[unit];
    bool measured = false, quantized_ready = false;
    run_spent(r, WORK_ROWS);
    if (c->peeked == unit)
        return c->inputs ? sum_inputs(c, unit, b, x, u->k) : observe(c, unit, b, x, u->k);
    if (c->concluded[unit])
        use_concluded(c, unit, b);
    else if (c->observers[unit] && c->peeked == NO_UNIT)
        TRY(observe(c, unit, b, x, u->k));
    for (size_t i = u->first; i < u->first + u->count; i++) {
        const live_linear *l = &c->out->linears[i];
        if (l->activations == ACT_PER_TOKEN && !measured)
            TRY(measure_tokens(c, unit, b, x, u->k));
        measured |= l->activations == ACT_PER_TOKEN;
        if (l->activations != ACT_FLOAT && !l->weight && !quantized_ready) {
            input_work w = {.c = c,
                            .kernels = kernels_get(r->ctx),
                            .b = b,
                            .activations = l->activations,
                            .x = x,
                            .k = u->k};
            parallel_for(r->ctx, b->rows, quantize_row, &w);
            quantized_ready = true;
        }
        run_spent(r, WORK_OBSERVE);
        TRY(l->weight ? float_linear_run(c, l, b, x, y[i - u->first])
                      : integer_linear(c, l, b, y[i - u->first]));
    }
done:
    return status;
}

static tare_status calibrated_attention(void *user, const batch *b, const float *q, const float *k,
                                        const float *v, const float *latent)
{
    calibration *c = user;
    run_spent(c->run, WORK_ROWS);
    tare_status status = TARE_OK;
    if (c->peeked != NO_UNIT)
        return TARE_OK;
    if (c->latent)
        status = latent_observe(c->run, c->latent, c->fa, b, q, latent);
    else if (c->fa)
        status = attention_observe(c->run, c->fa, b, q, k, v);
    if (status == TARE_OK && c->out->kv && !kv_cache_of_floats(c->plan))
        status = kv_observe(c->out->kv, b->first, b->lengths, b->samples, (const float *[]){k, v});
    run_spent(c->run, WORK_FA);
    return status;
}

/* ---- the segment ---- */

/* For the widest quantized input of the segment. */
static void lay_out_buffers(carver *c, void *component)
{
    calibration *b = component;
    const run_plan *plan = b->plan;
    size_t k = 0;
    bool tokens = false;
    for (size_t i = segment_first(b->work); i < segment_end(b->work); i++) {
        act_kind kind = calibrated_activations(plan, plan->linears[i].scheme);
        if (kind != ACT_FLOAT)
            k = size_max(k, plan->env->model->linears[i].k);
        tokens |= kind == ACT_PER_TOKEN;
    }
    b->sample_params = carve(c, plan->env->samples.count, sizeof *b->sample_params);
    b->sample_of_row = carve(c, b->rows, sizeof *b->sample_of_row);
    if (tokens)
        b->token_params = carve(c, b->rows, sizeof *b->token_params);
    if (live_linears_need_float(plan))
        b->mixed = carve(c, b->rows, k * sizeof *b->mixed);
    else
        b->quantized = carve(c, b->rows, k);
    if ((plan->final_scales || plan->gptq) && !b->work->is_expert)
        b->copies = carve(c, b->rows, plan->env->model->config.hidden_size * sizeof *b->copies);
    for (size_t u = b->work->segment->first_unit;
         keeps_statistics(b) && u < b->work->segment->end_unit; u++) {
        size_t channels = b->work->block->graph->units[u].k;
        b->ranges[u].low = carve(c, channels, sizeof(int32_t));
        b->ranges[u].high = carve(c, channels, sizeof(int32_t));
    }
}

static void find_samples(void *user, const batch *b)
{
    calibration *c = user;
    for (size_t i = 0, at = 0; i < b->samples; i++) {
        for (size_t end = at + b->lengths[i]; at < end; at++)
            c->sample_of_row[at] = (uint32_t)i;
    }
}

/* Of the segment's units, and of its attention. */
static tare_status create_observers(calibration *c)
{
    tare_status status = TARE_OK;
    run *r = c->run;
    const segment_work *s = &c->out->work;
    for (size_t i = s->segment->first_linear; i < s->segment->end_linear; i++) {
        graph_unit unit = s->block->graph->linears[i].unit;
        const linear_score *score = &r->scores[s->block->first_linear + i];
        c->is_static[unit] |= c->out->linears[i].activations == ACT_STATIC;
        if ((c->is_static[unit] || keeps_statistics(c)) && !c->observers[unit])
            TRY(observer_create(
                r->ctx,
                observer_kind_of(r->env, score,
                                 !s->is_expert && unit_reads_norm(s->block->graph, unit)),
                &r->env->num, &c->observers[unit]));
    }
    if (!segment_attends(s->block->graph, s->segment))
        return TARE_OK;
    TRY(attention_observer_create(r, s->block->index, &c->fa));
    TRY(latent_create(r, s->block, &c->latent));
    TRY(kv_cache_begin(r, s->block, &c->out->kv));
done:
    return status;
}

static void calibration_free(calibration *c)
{
    tare_context *ctx = c->run->ctx;
    for (size_t u = 0; u < BLOCK_UNITS; u++)
        observer_free(ctx, c->observers[u]);
    latent_free(c->run, c->latent);
    fa_observer_free(c->fa);
    mem_free(ctx, c->sample_params); /* and all that was laid out with it */
}

static void clear_ranges(calibration *c)
{
    const block_graph *g = c->work->block->graph;
    for (size_t u = 0; u < g->num_units; u++) {
        if (c->ranges[u].low)
            channel_range_clear(&c->ranges[u], g->units[u].k);
    }
}

static tare_status keep_statistics(calibration *c)
{
    tare_status status = TARE_OK;
    const segment_work *s = c->work;
    for (size_t u = s->segment->first_unit; u < s->segment->end_unit; u++)
        TRY(statistics_input(c->run, s->block->first_unit + u, c->observers[u], &c->ranges[u]));
    if (segment_attends(s->block->graph, s->segment))
        TRY(statistics_keys_and_values(c->run, s->block->index, c->out->kv));
done:
    return status;
}

/* All samples up to a unit. */
static tare_status peek(calibration *c, const segment_pass *pass, graph_unit unit)
{
    block_segment front = *c->work->segment;
    segment_pass p = *pass;
    front.end_node = node_of_unit(c->work->block->graph, unit) + 1;
    p.work.segment = &front;
    p.peeks = true;
    p.copies = c->copies;
    p.quiet = true;
    c->peeked = unit;
    tare_status status = segment_run(c->run, &p, &c->run->calibrated);
    c->peeked = NO_UNIT;
    return status;
}

static tare_status conclude(calibration *c, const segment_pass *pass, graph_unit unit)
{
    tare_status status = TARE_OK;
    run *r = c->run;
    TRY(peek(c, pass, unit));
    TRY(TARE_WRAP(r->ctx, observer_params(r->ctx, c->observers[unit], &c->out->params[unit]),
                  "input of group %s", c->work->block->graph->units[unit].kind));
    c->concluded[unit] = true;
done:
    return status;
}

/* Does a linear of the model wait for its inputs of this kind? */
static bool waits_for(const run_plan *plan, size_t index, act_kind kind)
{
    return plan_rounds(plan, index) &&
           calibrated_activations(plan, plan->linears[index].scheme) == kind;
}

/* The linears of a unit that see its input quantized in one way. */
static tare_status round_linears(calibration *c, const segment_pass *pass, graph_unit unit,
                                 act_kind kind)
{
    tare_status status = TARE_OK;
    run *r = c->run;
    const unit_spec *u = &c->work->block->graph->units[unit];
    size_t first = c->work->block->first_linear, waiting = 0;
    for (size_t i = u->first; i < u->first + u->count; i++)
        waiting += waits_for(c->plan, first + i, kind);
    if (waiting == 0)
        return TARE_OK;
    TRY(gptq_create(r->ctx, u->k, &c->inputs));
    c->summed = kind;
    TRY(peek(c, pass, unit));
    TRY(TARE_WRAP(r->ctx, gptq_factor(r->ctx, c->inputs), "input of group %s", u->kind));
    for (size_t i = u->first; i < u->first + u->count; i++) {
        if (waits_for(c->plan, first + i, kind))
            TRY(live_linear_round(r, &c->out->linears[i], c->inputs));
    }
done:
    gptq_free(r->ctx, c->inputs);
    c->inputs = NULL;
    return status;
}

/* In order, as each reads what the scales and weights of those before it make. */
static tare_status conclude_units(calibration *c, const segment_pass *pass)
{
    tare_status status = TARE_OK;
    const block_segment *s = c->work->segment;
    for (size_t u = s->first_unit; u < s->end_unit; u++) {
        if (c->plan->final_scales && c->is_static[u])
            TRY(conclude(c, pass, u));
        for (act_kind kind = ACT_FLOAT; c->plan->gptq && kind <= ACT_PER_TOKEN; kind++)
            TRY(round_linears(c, pass, u, kind));
    }
done:
    return status;
}

tare_status calibrate_segment(run *r, layer_output *out)
{
    tare_status status = TARE_OK;
    const segment_work *s = &out->work;
    calibration c = {.run = r,
                     .plan = r->plan,
                     .work = s,
                     .rows = plan_batch_rows(r->plan),
                     .out = out,
                     .peeked = NO_UNIT};
    segment_pass pass = {
        .work = *s,
        .norms = &out->norms,
        .ops = {.user = &c, .linears = calibrated_linears, .attention = calibrated_attention},
        .begin = find_samples,
        .checks = true};
    TRY(create_observers(&c));
    TRY(carver_alloc(r->ctx, lay_out_buffers, &c));
    clear_ranges(&c);
    TRY(block_norms_load(r->model, s->block, s->segment, &out->norms));
    TRY(smoothing_norms(r, s, &out->norms));
    TRY(conclude_units(&c, &pass));
    TRY(segment_run(r, &pass, &r->calibrated));
    run_spent(r, WORK_ROWS);
    if (c.fa)
        TRY(attention_finish(r, s->block->index, c.fa));
    if (r->statistics && keeps_statistics(&c))
        TRY(keep_statistics(&c));
done:
    calibration_free(&c);
    return status;
}

/* ---- memory ---- */

/* Of one operation. */
static size_t operation_bytes(const ledger *l, const segment_work *s)
{
    const run_plan *plan = l->plan;
    const tare_model *m = plan->env->model;
    size_t heads[FA_KINDS];
    attention_heads(m, heads);
    size_t most = size_max(gemm_u8s8_tiles_bytes(plan->env->ctx),
                           observer_update_bytes(plan->env->ctx));
    most = size_max(most, gemm_float_bytes(plan->env->ctx));
    if (segment_attends(s->block->graph, s->segment) && plan->attentions[s->block->index].quantize)
        most = size_max(most, fa_observe_bytes(plan->env->ctx, heads, fa_width(m), l->samples,
                                               plan->env->samples.longest));
    if (plan->keeps_statistics && segment_attends(s->block->graph, s->segment))
        most = size_max(
            most, mem_array_bytes(2 * kv_observed_channels(plan, s->block->index), sizeof(float)));
    return most;
}

static size_t observers_bytes(const run_plan *plan, const segment_work *s)
{
    size_t heads[FA_KINDS];
    size_t units = s->segment->end_unit - s->segment->first_unit;
    size_t bytes = units * observer_bytes(plan->env->samples.count);
    if (!segment_attends(s->block->graph, s->segment))
        return bytes;
    attention_heads(plan->env->model, heads);
    bytes += kv_cache_kept_bytes(plan, s->block->index);
    if (plan->attentions[s->block->index].quantize)
        bytes += fa_observer_bytes(heads, attention_v_method(plan));
    if (plan->attentions[s->block->index].quantize &&
        plan->env->model->config.arch->latent_attention)
        bytes += latent_bytes(plan, s->block);
    return bytes;
}

/* Of the widest Hessian of a unit, with what runs beside it; then its linears' weights go. */
static void rounding_hold(ledger *l, const segment_work *s)
{
    const run_plan *plan = l->plan;
    const block_graph *g = s->block->graph;
    for (size_t u = s->segment->first_unit; u < s->segment->end_unit; u++) {
        const unit_spec *unit = &g->units[u];
        size_t most = 0, raw = 0;
        for (size_t i = unit->first; i < unit->first + unit->count; i++) {
            const model_linear *m = block_linear(plan->env->model, s->block, i);
            size_t kept = live_linear_most(plan, s->block->first_linear + i).raw;
            if (kept > 0)
                most = size_max(most, gptq_round_bytes(plan->env->ctx, m->n, m->k));
            raw += kept;
        }
        if (raw == 0)
            continue;
        ledger_moment(l, s->block->name,
                      gptq_bytes(unit->k) + size_max(most, operation_bytes(l, s)));
        l->now[TERM_WEIGHTS] -= raw;
    }
}

void calibrate_segment_hold(ledger *l, const segment_work *s)
{
    calibration c = {.plan = l->plan, .work = s, .rows = l->rows};
    l->now[TERM_WORKSPACE] += carver_bytes(lay_out_buffers, &c) + observers_bytes(l->plan, s);
    l->now[TERM_SCRATCH] += block_norms_bytes(s->block);
    rounding_hold(l, s);
    l->now[TERM_ACTIVATIONS] += carried_bytes(l, s, true, l->plan->env->samples.tokens);
    ledger_moment(l, s->block->name, operation_bytes(l, s));
}
