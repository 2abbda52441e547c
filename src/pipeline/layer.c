/* One decoder layer: load, (smooth, score,) calibrate, quantize, write. For each sample in order
 * every linear first updates its observer, then takes its input with the scale that knows this
 * sample and those before it (spec/w8a8.md, section 5.4). Because an exact integer product needs
 * nothing but the row's own scale, samples may be processed in groups of any size. */
#include <stdatomic.h>
#include <string.h>

#include "base/parallel.h"
#include "pipeline/run.h"
#include "tensor/kernels.h"

typedef struct calibrated_layer {
    run *run;
    layer_output out;                 /* linears, norms, and what is known of the inputs so far */
    layer_source source;              /* weights that have been read already */
    observer *observers[BLOCK_UNITS]; /* NULL: no member is quantized */
    fa_observer *fa;                  /* NULL: this attention goes without */
    /* Of the batch in work: */
    act_params *sample_params; /* [samples of the batch] */
    uint32_t *sample_of_row;   /* [rows] */
    act_params *token_params;  /* [rows]; NULL: no linear quantizes its input per token */
    uint8_t *quantized;        /* [rows, k] */
    float *mixed;              /* [rows, k] fake-quantized input where float arithmetic is needed */
} calibrated_layer;

/* ---- input of a group ---- */

static tare_status observe(calibrated_layer *c, graph_unit unit, const batch *b, const float *x,
                           size_t k)
{
    tare_status status = TARE_OK;
    run *r = c->run;
    for (size_t i = 0, row = 0; i < b->samples; row += b->lengths[i++]) {
        status = observer_update(r->ctx, c->observers[unit], x + row * k, b->lengths[i] * k);
        if (status == TARE_OK)
            status = observer_params(r->ctx, c->observers[unit], &c->sample_params[i]);
        if (status != TARE_OK)
            return TARE_WRAP(r->ctx, status, "input of group %s, sample %zu",
                             c->out.work.block->graph->units[unit].kind, b->first + i);
    }
    c->out.params[unit] = c->sample_params[b->samples - 1];
    return TARE_OK;
}

/* The scale and offset of a row: those of its sample or its own. */
static const act_params *row_params(const calibrated_layer *c, act_kind kind, size_t row)
{
    return kind == ACT_PER_TOKEN ? &c->token_params[row] : &c->sample_params[c->sample_of_row[row]];
}

typedef struct input_work {
    const calibrated_layer *c;
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

static tare_status measure_tokens(calibrated_layer *c, graph_unit unit, const batch *b,
                                  const float *x, size_t k)
{
    input_work w = {.c = c, .kernels = kernels_get(c->run->ctx), .b = b, .x = x, .k = k};
    atomic_init(&w.finite, true);
    parallel_for(c->run->ctx, b->rows, measure_token, &w);
    if (atomic_load(&w.finite))
        return TARE_OK;
    return TARE_FAIL(c->run->ctx, TARE_E_NUMERIC,
                     "input of group %s, samples from %zu on: NaN or infinity",
                     c->out.work.block->graph->units[unit].kind, b->first);
}

static void quantize_row(void *user, size_t row, int thread)
{
    const input_work *w = user;
    const act_params *p = row_params(w->c, w->activations, row);
    (void)thread;
    w->kernels->quantize_asymmetric(w->x + row * w->k, w->k, p->scale, p->offset,
                                    w->c->quantized + row * w->k);
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
    const calibrated_layer *c;
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

static tare_status integer_linear(calibrated_layer *c, const live_linear *l, const batch *b,
                                  float *y)
{
    output_work w = {.c = c, .kernels = kernels_get(c->run->ctx), .l = l, .y = y};
    return gemm_u8s8_tiles(c->run->ctx, c->quantized, l->q.q, b->rows, l->q.n, l->q.k,
                           dequantize_tile, &w);
}

static tare_status float_linear_run(calibrated_layer *c, const live_linear *l, const batch *b,
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
    }
    return gemm_float(r->ctx, l->weight, x, b->rows, l->bias, y);
}

static tare_status calibrated_linears(void *user, graph_unit unit, const batch *b, const float *x,
                                      float *const *y)
{
    tare_status status = TARE_OK;
    calibrated_layer *c = user;
    run *r = c->run;
    const unit_spec *u = &c->out.work.block->graph->units[unit];
    bool measured = false, quantized_ready = false;
    if (c->observers[unit])
        TRY(observe(c, unit, b, x, u->k));
    for (size_t i = u->first; i < u->first + u->count; i++) {
        const live_linear *l = &c->out.linears[i];
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
        TRY(l->weight ? float_linear_run(c, l, b, x, y[i - u->first])
                      : integer_linear(c, l, b, y[i - u->first]));
    }
done:
    return status;
}

/* ---- the layer ---- */

static tare_status calibrated_attention(void *user, const batch *b, const float *q, const float *k,
                                        const float *v)
{
    calibrated_layer *c = user;
    return attention_observe(c->run, c->fa, b, q, k, v);
}

tare_status layer_source_load(run *r, const segment_work *s, layer_source *source)
{
    for (size_t i = s->segment->first_linear; i < s->segment->end_linear; i++) {
        tare_status status = source->raw[i].data
                                 ? TARE_OK
                                 : linear_read(r->model, block_linear(r->model, s->block, i),
                                               &source->raw[i]);
        if (status != TARE_OK)
            return status;
    }
    return TARE_OK;
}

void layer_source_free(run *r, layer_source *source)
{
    for (size_t i = 0; i < BLOCK_LINEARS; i++)
        mem_free(r->ctx, source->raw[i].data);
    *source = (layer_source){0};
}

static void unload(calibrated_layer *c)
{
    tare_context *ctx = c->run->ctx;
    layer_source_free(c->run, &c->source);
    layer_output_free(c->run, &c->out);
    for (size_t u = 0; u < BLOCK_UNITS; u++)
        observer_free(ctx, c->observers[u]);
    fa_observer_free(c->fa);
    mem_free(ctx, c->sample_params);
    mem_free(ctx, c->token_params);
    mem_free(ctx, c->quantized);
    mem_free(ctx, c->sample_of_row);
    mem_free(ctx, c->mixed);
}

static tare_status load_linears(calibrated_layer *c)
{
    tare_status status = TARE_OK;
    run *r = c->run;
    const model_block *block = c->out.work.block;
    const block_segment *segment = c->out.work.segment;
    for (size_t i = segment->first_linear; i < segment->end_linear; i++) {
        graph_unit unit = block->graph->linears[i].unit;
        const linear_plan *f = &r->plan->linears[block->first_linear + i];
        TRY(context_check_cancelled(r->ctx));
        TRY(live_linear_load(r, block_linear(r->model, block, i), f->scheme, &c->source.raw[i],
                             &c->out.linears[i]));
        if (c->out.linears[i].activations == ACT_STATIC && !c->observers[unit])
            TRY(observer_create(r->ctx, observer_kind_of(r->env, &r->scores[f - r->plan->linears]),
                                &r->env->num, &c->observers[unit]));
    }
done:
    return status;
}

size_t calibrated_segment_bytes(const run_plan *plan, const segment_work *s, size_t rows)
{
    const model_config *c = &plan->env->model->config;
    size_t k = 0, samples = plan->env->samples.count;
    bool tokens = false;
    for (size_t i = segment_first(s); i < segment_end(s); i++) {
        const linear_plan *l = &plan->linears[i];
        if (!plan_is_float(l))
            k = size_max(k, plan->env->model->linears[i].k);
        tokens |= calibrated_activations(plan, l->scheme) == ACT_PER_TOKEN;
    }
    size_t bytes = mem_array_bytes(samples, sizeof(act_params)) +
                   mem_array_bytes(rows, sizeof(uint32_t)) +
                   (s->segment->end_unit - s->segment->first_unit) * observer_bytes(samples);
    if (tokens)
        bytes += mem_array_bytes(rows, sizeof(act_params));
    if (segment_attends(s->block->graph, s->segment) && plan->attentions[s->block->index].quantize)
        bytes += fa_observer_bytes((size_t[]){c->num_heads, c->num_kv_heads, c->num_kv_heads});
    return bytes + mem_array_bytes(rows * k, live_linears_need_float(plan) ? sizeof(float) : 1);
}

/* Buffers for the widest input of the layer's quantized linears. */
static tare_status alloc_buffers(calibrated_layer *c)
{
    tare_context *ctx = c->run->ctx;
    size_t k = 0, rows = c->run->work.rows, cells;
    bool any_float = false, any_integer = false, any_token = false;
    for (size_t i = 0; i < BLOCK_LINEARS; i++) {
        const live_linear *l = &c->out.linears[i];
        if (l->activations == ACT_FLOAT)
            continue;
        k = l->q.k > k ? l->q.k : k;
        any_float |= l->weight != NULL;
        any_integer |= l->weight == NULL;
        any_token |= l->activations == ACT_PER_TOKEN;
    }
    if (!size_mul(rows, k, &cells))
        return TARE_FAIL(ctx, TARE_E_MEMORY, "out of memory: %zu rows of %zu", rows, k);
    c->sample_params = mem_alloc_array(ctx, c->run->env->samples.count, sizeof *c->sample_params);
    c->sample_of_row = mem_alloc_array(ctx, rows, sizeof *c->sample_of_row);
    if (!c->sample_params || !c->sample_of_row)
        return TARE_E_MEMORY;
    if (any_token && !(c->token_params = mem_alloc_array(ctx, rows, sizeof *c->token_params)))
        return TARE_E_MEMORY;
    if (any_integer && !(c->quantized = mem_alloc(ctx, cells)))
        return TARE_E_MEMORY;
    if (any_float && !(c->mixed = mem_alloc_array(ctx, cells, sizeof *c->mixed)))
        return TARE_E_MEMORY;
    return TARE_OK;
}

static void find_samples(void *user, const batch *b)
{
    calibrated_layer *c = user;
    for (size_t i = 0, at = 0; i < b->samples; i++) {
        for (size_t end = at + b->lengths[i]; at < end; at++)
            c->sample_of_row[at] = (uint32_t)i;
    }
}

static tare_status calibrate(calibrated_layer *c)
{
    tare_status status = TARE_OK;
    run *r = c->run;
    segment_pass pass = {.work = c->out.work,
                         .norms = &c->out.norms,
                         .ops = {.user = c, .linears = calibrated_linears},
                         .begin = find_samples,
                         .checks = true};
    pass.ops.attention = c->fa ? calibrated_attention : NULL;
    TRY(block_norms_load(r->model, c->out.work.block, c->out.work.segment, &c->out.norms));
    TRY(smoothing_norms(r, &c->out.work, &c->out.norms));
    TRY(segment_run(r, &pass, &r->calibrated));
done:
    return status;
}

/* The block's own, or those inside of its modules. */
static tare_status write_norms(run *r, const layer_output *o, bool inside)
{
    tare_status status = TARE_OK;
    const block_graph *g = o->work.block->graph;
    for (size_t i = 0; i < g->num_norms; i++) {
        if (o->norms.weights[i] && graph_norm_is_inside(g, i) == inside)
            TRY(write_norm(r, o->work.block->norms[i], o->norms.weights[i], o->norms.biases[i]));
    }
done:
    return status;
}

/* The order of the tensors in files that are streams: floats, which need not wait for calibration,
 * attention, linears, norms. */
tare_status layer_output_write(run *r, layer_output *o)
{
    tare_status status = TARE_OK;
    const model_block *b = o->work.block;
    const block_segment *s = o->work.segment;
    const block_graph *g = b->graph;
    for (size_t i = s->first_linear; i < s->end_linear; i++)
        TRY(live_linear_write_float(r, &o->linears[i]));
    if (segment_attends(g, s))
        TRY(attention_write(r, b->index));
    for (size_t i = s->first_linear; i < s->end_linear; i++) {
        if (o->linears[i].scheme != SCHEME_FLOAT)
            TRY(live_linear_write(r, &o->linears[i], &o->params[g->linears[i].unit]));
    }
    TRY(write_norms(r, o, false));
    TRY(write_norms(r, o, true));
done:
    return TARE_WRAP(r->ctx, status, "%s", b->name);
}

void layer_output_free(run *r, layer_output *o)
{
    block_norms_free(r->ctx, &o->norms);
    for (size_t i = 0; i < BLOCK_LINEARS; i++)
        live_linear_free(r, &o->linears[i]);
}

static tare_status calibrate_segment(calibrated_layer *c)
{
    tare_status status = TARE_OK;
    run *r = c->run;
    const segment_work *s = &c->out.work;
    bool attends = segment_attends(s->block->graph, s->segment);
    TRY(overlap_read(r, s, &c->source));
    if (r->floats.states)
        TRY(float_segment_pass(r, s, &c->source));
    TRY(load_linears(c));
    TRY(alloc_buffers(c));
    if (attends)
        TRY(attention_observer_create(r, s->block->index, &c->fa));
    TRY(calibrate(c));
    if (c->fa)
        TRY(attention_finish(r, s->block->index, c->fa));
done:
    return TARE_WRAP(r->ctx, status, "%s", s->block->name);
}

static tare_status quantize_segment(run *r, const segment_work *s)
{
    tare_status status = TARE_OK;
    calibrated_layer c = {.run = r, .out = {.work = *s}};
    TRY(calibrate_segment(&c));
    for (size_t i = 0; i < BLOCK_LINEARS; i++) { /* only the integers are needed any more */
        gemm_weight_free(r->ctx, c.out.linears[i].weight);
        c.out.linears[i].weight = NULL;
    }
    TRY(overlap_write(r, &c.out));
done:
    unload(&c);
    return status;
}

tare_status quantize_block(run *r, const model_block *block)
{
    tare_status status = TARE_OK;
    for (size_t i = 0; i < r->plan->segments.count; i++) {
        segment_work s = run_segment(r, block, i);
        TRY(quantize_segment(r, &s));
    }
done:
    smoothing_free_layer(r, block->index);
    return status;
}

/* ---- the head ---- */

tare_status observe_head(run *r)
{
    tare_status status = TARE_OK;
    size_t h = r->model->config.hidden_size;
    observer *o = NULL;
    float *norm = NULL, *x;
    TRY(model_read_vector(r->model, r->model->final_norm, &norm));
    TRY(observer_create(r->ctx, observer_kind_of(r->env, &r->scores[r->model->num_linears - 1]),
                        &r->env->num, &o));
    for (size_t i = 0, row = 0; i < r->env->samples.count; row += r->env->samples.lengths[i++]) {
        size_t rows = r->env->samples.lengths[i];
        TRY(stream_get(r->calibrated.states, row, rows, &x));
        norm_rows(r->model, x, norm, NULL, rows, h, r->work.round, x);
        TRY(observer_update(r->ctx, o, x, rows * h));
    }
    TRY(observer_params(r->ctx, o, &r->head_input));
done:
    observer_free(r->ctx, o);
    mem_free(r->ctx, norm);
    return TARE_WRAP(r->ctx, status, "%s", r->model->head->name);
}
