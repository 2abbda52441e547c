/* Tensors that need no forward: all of them where weights alone are quantized or what samples told
 * is known from an earlier run, else those behind the layers. They go through in pieces of rows, in
 * model order; while one piece is computed the next are read and the last ones written
 * (layout.overlap), so memory is a few pieces whatever the model, and time is the disk's. */
#include "base/carver.h"
#include "base/read_ahead.h"
#include "pipeline/smoothing.h"

enum {
    PIECE_BYTES = 8 << 20, /* of stored rows; a longer row is a piece of its own */
    SLOTS = 6              /* most that are on their way */
};

typedef enum step_kind {
    STEP_FLOAT,   /* as it is, or smoothed */
    STEP_NORM,    /* the same, in one piece */
    STEP_MEASURE, /* the range of a matrix that has one scale */
    STEP_QUANTIZE,
    STEP_BIAS,     /* of a float linear; from here on nothing is read ahead */
    STEP_ATTENTION /* what an attention has of its own */
} step_kind;

/* One tensor's way through. */
typedef struct weight_step {
    step_kind kind;
    stored_weight source;
    const model_linear *linear; /* NULL: none */
    linear_scheme scheme;
    size_t norm;        /* of the block's */
    size_t part;        /* of the model, as pieces_run counts them */
    size_t first_piece; /* of all */
} weight_step;

/* Rows [first, first+count) of a step. */
typedef struct weight_piece {
    const weight_step *step;
    size_t first, count;
    bool last; /* of its step: the bias of a quantized linear goes with it */
} weight_piece;

/* Buffers that pieces take turns in. */
typedef struct piece_slot {
    char *room;
    float *blocks;   /* scales of what is stored with them */
    coded_rows rows; /* in `room` and `blocks` */
    int8_t *q;
    float *scales, *offsets;
    int64_t *row_sums;
    bool *zero_rows;
    void *smoothed; /* floats as they are written */
} piece_slot;

struct weight_pieces {
    const run_plan *plan;
    run *run; /* NULL: only its sizes are asked for */
    weight_step *steps;
    size_t num_steps, num_pieces, part; /* so far, while they are listed */
    struct {                            /* bytes and rows of the largest piece */
        size_t stored, blocks, edited, quantized, rows, bias, columns, packed, converted, smoothed;
    } most;
    size_t next;           /* piece */
    weight_range range;    /* of the matrix in work */
    saturation saturation; /* of the linear that is written */
    float *bias;           /* its own; NULL: none */
    void *bias_raw;
    read_ahead *pieces;
    piece_slot slots[SLOTS];
};

/* ---- the steps ---- */

static bool reads_ahead(step_kind kind)
{
    return kind < STEP_BIAS;
}

static size_t rows_of_piece(const weight_step *s)
{
    if (!reads_ahead(s->kind))
        return 1;
    size_t rows = s->source.n, fit = PIECE_BYTES / stored_row_bytes(&s->source);
    size_t least = scheme_of(s->scheme)->weight_bits == 4 ? 2 : 1; /* which are packed together */
    return s->kind == STEP_NORM || stored_is_whole(&s->source)
               ? rows
               : size_max(size_min(fit, rows) / least * least, least);
}

/* Where anything depends on samples, all weights are symmetric. */
static bool is_asymmetric(const run_plan *plan)
{
    return !plan->env->recipe->w_sym && plan->weights_alone;
}

/* What a piece of it takes, at most. */
static void measure_step(weight_pieces *w, const weight_step *s, size_t rows)
{
    const stored_weight *source = &s->source;
    const model_linear *l = s->linear;
    bool quantizes = s->kind == STEP_MEASURE || s->kind == STEP_QUANTIZE;
    w->most.stored = size_max(w->most.stored, rows * stored_row_bytes(source));
    w->most.blocks = size_max(w->most.blocks, stored_scales(source, rows));
    if (source->edit)
        w->most.edited = size_max(w->most.edited, stored_reading_bytes(source, rows));
    if (!quantizes)
        w->most.converted = size_max(w->most.converted, converted_bytes(w->plan->env, source));
    if (!quantizes && w->plan->smooths && l) {
        size_t size = dtype_size(output_weight(w->plan->env, source).dtype);
        w->most.smoothed = size_max(w->most.smoothed, rows * source->k * size);
        w->most.columns = size_max(w->most.columns, source->k);
    }
    if (!quantizes)
        return;
    w->most.quantized = size_max(w->most.quantized, rows * source->k);
    w->most.rows = size_max(w->most.rows, rows);
    w->most.columns = size_max(w->most.columns, source->k);
    w->most.packed = size_max(w->most.packed,
                              output_rows_bytes(s->scheme, rows, source->k, w->plan->env->save));
    w->most.bias = size_max(w->most.bias, load_bias_bytes(w->plan, l));
}

/* Of w->part. Without room for steps only the largest piece is found. */
static void add_step(weight_pieces *w, const weight_step *step)
{
    weight_step s = *step;
    s.part = w->part;
    s.first_piece = w->num_pieces;
    if (reads_ahead(s.kind) && (s.source.n == 0 || s.source.k == 0))
        return;
    if (!reads_ahead(s.kind))
        s.source.n = 1;
    if (w->steps)
        w->steps[w->num_steps] = s;
    w->num_steps++;
    size_t rows = rows_of_piece(&s);
    w->num_pieces += size_divide_up(s.source.n, rows);
    if (reads_ahead(s.kind))
        measure_step(w, &s, rows);
    else
        w->most.bias = size_max(w->most.bias,
                                s.kind == STEP_BIAS
                                    ? load_bias_bytes(w->plan, s.linear)
                                    : kv_cache_write_bytes(w->plan, s.part - PART_LAYERS));
}

static void add_tensor(weight_pieces *w, const stored_weight *source)
{
    add_step(w, &(weight_step){.kind = STEP_FLOAT, .source = *source, .scheme = SCHEME_FLOAT});
}

static void add_norm(weight_pieces *w, const tensor_info *tensor, size_t norm)
{
    stored_weight source = stored_whole(tensor);
    source.edit = model_vector_edit(w->plan->env->model, tensor);
    add_step(w, &(weight_step){.kind = STEP_NORM, .source = source, .norm = norm});
}

static void add_linear(weight_pieces *w, const model_linear *l, const linear_plan *f)
{
    weight_step s = {.source = l->weight, .linear = l, .scheme = f->scheme};
    if (!plan_is_float(f) && w->plan->env->recipe->mm_tensor) {
        s.kind = STEP_MEASURE;
        add_step(w, &s);
    }
    s.kind = plan_is_float(f) ? STEP_FLOAT : STEP_QUANTIZE;
    if (s.kind == STEP_QUANTIZE || !f->is_head || !w->plan->env->model->head_is_tied)
        add_step(w, &s);
    s.kind = STEP_BIAS;
    if (plan_is_float(f) && linear_has_bias(w->plan, l))
        add_step(w, &s);
}

/* What steers the choice of experts. */
static void add_correction(weight_pieces *w, const model_block *b)
{
    if (!b->correction)
        return;
    stored_weight correction = stored_whole(b->correction);
    add_tensor(w, &correction);
}

/* The linears of a segment that are float or not. */
static void add_linears(weight_pieces *w, const segment_work *s, bool floats)
{
    for (size_t i = segment_first(s); i < segment_end(s); i++) {
        if (plan_is_float(&w->plan->linears[i]) == floats)
            add_linear(w, &w->plan->env->model->linears[i], &w->plan->linears[i]);
    }
}

/* Those inside of the block's modules, or its own. */
static void add_norms(weight_pieces *w, const segment_work *s, bool inside)
{
    const model_block *b = s->block;
    for (size_t i = 0; i < b->graph->num_norms; i++) {
        if (segment_has_norm(b->graph, s->segment, i) &&
            graph_norm_is_inside(b->graph, i) == inside)
            add_norm(w, b->norms[i], i);
    }
}

/* Files that are streams have the order of layer_output_write. */
static void add_observed_segment(weight_pieces *w, const segment_work *s)
{
    const model_block *b = s->block;
    const attention_plan *a = &w->plan->attentions[b->index];
    add_linears(w, s, true);
    if (segment_attends(b->graph, s->segment) && (a->quantize || a->kv_cache))
        add_step(w, &(weight_step){.kind = STEP_ATTENTION});
    add_linears(w, s, false);
    add_norms(w, s, false);
    add_norms(w, s, true);
}

static void add_experts(weight_pieces *w, const model_block *b)
{
    add_correction(w, b);
    for (size_t e = 0; e < block_experts(b); e++) {
        expert_place place;
        segment_work s = plan_expert(w->plan, b, e, &place);
        add_linears(w, &s, true);
        add_linears(w, &s, false);
    }
}

static void add_observed_layer(weight_pieces *w, const model_block *b)
{
    block_segment segments[BLOCK_SEGMENTS];
    size_t count = graph_segments(b->graph, CUT_NONE, false, segments);
    for (size_t i = 0; i < count; i++) {
        segment_work s = {.block = b, .segment = &segments[i]};
        if (segments[i].experts)
            add_experts(w, b);
        else
            add_observed_segment(w, &s);
    }
}

static void add_layer(weight_pieces *w, const model_block *b)
{
    add_correction(w, b);
    for (size_t i = b->first_linear; i < b->end_linear; i++)
        add_linear(w, &w->plan->env->model->linears[i], &w->plan->linears[i]);
    for (size_t i = 0; i < b->graph->num_norms; i++) {
        size_t norm = graph_norm_in_order(b->graph, i);
        add_norm(w, b->norms[norm], norm);
    }
}

static void add_layers(weight_pieces *w)
{
    const tare_model *m = w->plan->env->model;
    w->part = PART_EMBEDDING;
    add_tensor(w, &m->embedding);
    for (size_t layer = 0; layer < m->num_blocks; layer++) {
        w->part = PART_LAYERS + layer;
        (w->plan->weights_alone ? add_layer : add_observed_layer)(w, &m->blocks[layer]);
    }
}

static void add_steps(weight_pieces *w)
{
    const tare_model *m = w->plan->env->model;
    w->num_steps = w->num_pieces = 0;
    if (!w->plan->calibrates)
        add_layers(w);
    w->part = PART_LAYERS + m->num_blocks;
    add_norm(w, m->final_norm, 0);
    add_linear(w, m->head, &w->plan->linears[m->num_linears - 1]);
    for (size_t i = 0; i < m->num_extra; i++)
        add_tensor(w, &m->extra[i]);
}

size_t pieces_steps(const run_plan *plan)
{
    weight_pieces w = {.plan = plan};
    add_steps(&w);
    return w.num_steps;
}

/* A disk is faster with more than one request at a time, but where samples wait, behind all layers
 * but few pieces are left, and memory is theirs. */
static read_ahead_work work_of(const run_plan *plan)
{
    if (!plan->layout.overlap)
        return (read_ahead_work){0};
    return plan->calibrates ? (read_ahead_work){.readers = 1, .ahead = 1, .behind = 1}
                            : (read_ahead_work){.readers = 2, .ahead = 3, .behind = 2};
}

/* Buffers that hold the largest piece of any step. */
static void lay_out_slots(carver *c, void *component)
{
    weight_pieces *w = component;
    read_ahead_work work = work_of(w->plan);
    for (size_t i = 0; i < read_ahead_slots(&work); i++) {
        piece_slot *s = &w->slots[i];
        s->room = carve(c, file_read_room(w->most.stored), 1);
        s->blocks = carve(c, w->most.blocks, sizeof *s->blocks);
        s->q = carve(c, w->most.quantized, 1);
        s->scales = carve(c, w->most.rows, sizeof *s->scales);
        s->offsets = carve(c, w->most.rows, sizeof *s->offsets);
        s->row_sums = carve(c, w->most.rows, sizeof *s->row_sums);
        s->zero_rows = carve(c, w->most.rows, sizeof *s->zero_rows);
        s->smoothed = carve(c, w->most.smoothed, 1);
    }
}

/* Slots; the list of steps; what reading takes of block scales; a widened row a thread; what is
 * made of a piece on its way out. */
size_t pieces_bytes(const run_plan *plan)
{
    weight_pieces w = {.plan = plan};
    add_steps(&w);
    return carver_bytes(lay_out_slots, &w) + mem_block_bytes(sizeof w) + read_ahead_bytes() +
           mem_array_bytes(w.num_steps, sizeof(weight_step)) +
           2 * (mem_array_bytes(w.most.blocks, sizeof(float)) + w.most.edited) +
           weight_quantize_bytes(plan->env->ctx, w.most.rows, w.most.columns) +
           live_linear_rows_bytes(w.most.rows) + w.most.packed + w.most.bias + w.most.converted;
}

/* ---- reading ---- */

static weight_piece piece_at(const weight_pieces *w, size_t index)
{
    size_t low = 0, high = w->num_steps; /* the last step that does not begin behind it */
    while (high - low > 1) {
        size_t middle = low + (high - low) / 2;
        *(w->steps[middle].first_piece <= index ? &low : &high) = middle;
    }
    const weight_step *s = &w->steps[low];
    size_t step = rows_of_piece(s), first = (index - s->first_piece) * step,
           left = s->source.n - first;
    return (weight_piece){s, first, size_min(left, step), left <= step};
}

static tare_status read_piece(void *user, size_t index, size_t slot)
{
    weight_pieces *w = user;
    piece_slot *at = &w->slots[slot];
    weight_piece p = piece_at(w, index);
    if (!reads_ahead(p.step->kind))
        return TARE_OK;
    return stored_read_in(w->run->model->checkpoint, &p.step->source, p.first, p.count, at->room,
                          at->blocks, &at->rows);
}

/* ---- computing ---- */

/* The rows of a piece as smoothing sees them; false: it leaves them alone. */
static bool smoothed_rows(const weight_pieces *w, const weight_piece *p, const piece_slot *at,
                          smooth_weight *out)
{
    const smooth_weight *whole = p->step->linear ? smoothing_of(w->run, p->step->linear) : NULL;
    if (!whole || !(whole->rows_scaled || whole->cols_scaled))
        return false;
    *out = *whole;
    out->raw = at->rows;
    out->n = p->count;
    if (whole->row_scale)
        out->row_scale += p->first;
    return true;
}

static tare_status make_float(weight_pieces *w, const weight_piece *p, piece_slot *at)
{
    run *r = w->run;
    smooth_weight rows;
    const stored_weight *source = &p->step->source;
    size_t row_bytes = stored_row_bytes(source);
    tare_status status = TARE_OK;
    if (!source->edit) /* else it was read to its end, which looks at this */
        status = checkpoint_check_finite(r->model->checkpoint, source->tensor,
                                         (uint64_t)(source->first + p->first) * row_bytes,
                                         at->rows.data, p->count * row_bytes);
    if (status == TARE_OK && smoothed_rows(w, p, at, &rows)) {
        tare_dtype dtype = output_weight(r->env, source).dtype;
        status = smoothing_store_rows(r, &rows, dtype, at->smoothed);
        at->rows = coded_plain(dtype, at->smoothed, source->k);
    }
    return status;
}

static tare_status make_piece(weight_pieces *w, const weight_piece *p, piece_slot *at)
{
    const weight_step *s = p->step;
    run *r = w->run;
    tare_status status = TARE_OK;
    smooth_weight smooth;
    if (!reads_ahead(s->kind))
        return TARE_OK;
    if (s->kind != STEP_MEASURE && s->kind != STEP_QUANTIZE)
        return make_float(w, p, at);
    bool one_scale = r->env->recipe->mm_tensor;
    weight_rows rows = {.stored = at->rows,
                        .smooth = smoothed_rows(w, p, at, &smooth) ? &smooth : NULL,
                        .first = p->first,
                        .count = p->count,
                        .asymmetric = is_asymmetric(w->plan),
                        .method = recipe_weight_method(r->env->recipe, s->scheme)};
    weight_codes codes = {at->q, at->scales, at->offsets, at->row_sums, at->zero_rows};
    if (s->kind == STEP_MEASURE && p->first == 0)
        w->range = (weight_range){0};
    status = s->kind == STEP_MEASURE ? weight_rows_measure(r->ctx, &r->env->num, &rows, &w->range)
                                     : weight_rows_quantize(r->ctx, &r->env->num, &rows,
                                                            one_scale ? &w->range : NULL, &codes);
    return TARE_WRAP(r->ctx, status, "%s", s->linear->name);
}

/* ---- writing ---- */

static void free_bias(weight_pieces *w)
{
    mem_free(w->plan->env->ctx, w->bias);
    mem_free(w->plan->env->ctx, w->bias_raw);
    w->bias = NULL;
    w->bias_raw = NULL;
}

static tare_status write_quantized(weight_pieces *w, const weight_piece *p, const piece_slot *at)
{
    tare_status status = TARE_OK;
    run *r = w->run;
    const model_linear *l = p->step->linear;
    if (p->first == 0) {
        w->saturation = (saturation){0};
        TRY(load_bias(r, l, &w->bias, &w->bias_raw));
    }
    linear_parts parts = {
        .first = p->first,
        .count = p->count,
        .data = {[TENSOR_WEIGHT] = at->q,
                 [TENSOR_BIAS] = p->last ? w->bias_raw : NULL,
                 [TENSOR_WEIGHT_SCALE] = at->scales,
                 [TENSOR_WEIGHT_OFFSET] = is_asymmetric(w->plan) ? at->offsets : NULL}};
    quantized_weight q = {.n = p->count,
                          .k = l->k,
                          .q = at->q,
                          .scales = at->scales,
                          .num_scales = r->env->recipe->mm_tensor ? 1 : p->count,
                          .row_sums = at->row_sums,
                          .zero_rows = at->zero_rows};
    TRY(scheme_of(p->step->scheme)->activations == ACT_STATIC
            ? write_calibrated(r, l, &q, w->bias ? w->bias + p->first : NULL, &r->inputs[l->unit],
                               &w->saturation, &parts)
            : output_write_linear(r->out, l->name, &parts));
done:
    if (p->last)
        free_bias(w);
    return status;
}

static tare_status write_vector(run *r, const weight_step *s, const coded_rows *rows)
{
    tensor_info t = output_weight(r->env, &s->source);
    size_t layer = s->part - PART_LAYERS;
    const smooth_norm *smoothed = r->smoothing && layer < r->model->num_blocks
                                      ? &r->smoothing[layer].norms[s->norm]
                                      : NULL;
    if (smoothed && smoothed->weight)
        return write_norm(r, s->source.tensor, smoothed->weight, smoothed->bias);
    const void *there = coded_in_place(rows, t.dtype, 0, 0);
    if (there)
        return output_write_norm(r->out, t.name, there, NULL);
    tare_status status = TARE_E_MEMORY;
    void *values = mem_alloc(r->ctx, t.bytes);
    if (values) {
        coded_convert_rows(r->ctx, rows, 0, s->source.n, t.dtype, values);
        status = output_write_norm(r->out, t.name, values, NULL);
    }
    mem_free(r->ctx, values);
    return status;
}

static tare_status write_bias(run *r, const model_linear *l)
{
    float *bias;
    void *raw;
    tare_status status = load_bias(r, l, &bias, &raw);
    if (status == TARE_OK)
        status = write_float_bias(r, l, raw);
    mem_free(r->ctx, bias);
    mem_free(r->ctx, raw);
    return status;
}

static tare_status write_attention(run *r, size_t layer)
{
    tare_status status = attention_write(r, layer);
    return status == TARE_OK && r->kv ? kv_cache_write(r, layer, r->kv[layer]) : status;
}

static tare_status write_piece(void *user, size_t index, size_t slot)
{
    weight_pieces *w = user;
    const piece_slot *at = &w->slots[slot];
    weight_piece p = piece_at(w, index);
    switch (p.step->kind) {
    case STEP_FLOAT:
        return write_float_rows(w->run, &p.step->source, p.first, p.count, &at->rows);
    case STEP_NORM:
        return write_vector(w->run, p.step, &at->rows);
    case STEP_QUANTIZE:
        return write_quantized(w, &p, at);
    case STEP_BIAS:
        return write_bias(w->run, p.step->linear);
    case STEP_ATTENTION:
        return write_attention(w->run, p.step->part - PART_LAYERS);
    case STEP_MEASURE:
        break;
    }
    return TARE_OK;
}

/* ---- the pieces ---- */

tare_status pieces_start(run *r, size_t first_step)
{
    tare_status status = TARE_OK;
    weight_pieces *w = r->pieces = mem_calloc(r->ctx, 1, sizeof *w);
    read_ahead_work work = work_of(r->plan);
    if (!w)
        return TARE_E_MEMORY;
    w->plan = r->plan;
    w->run = r;
    add_steps(w);
    w->steps = mem_alloc_array(r->ctx, w->num_steps, sizeof *w->steps);
    TRY(w->steps ? TARE_OK : TARE_E_MEMORY);
    add_steps(w);
    w->next = first_step < w->num_steps ? w->steps[first_step].first_piece : w->num_pieces;
    work.user = w;
    work.read = read_piece;
    work.write = write_piece;
    work.count = w->num_pieces;
    TRY(carver_alloc(r->ctx, lay_out_slots, w));
    TRY(read_ahead_start(r->ctx, &work, &w->pieces));
done:
    return status;
}

void pieces_stop(run *r)
{
    weight_pieces *w = r->pieces;
    if (!w)
        return;
    read_ahead_stop(w->pieces);
    free_bias(w);
    mem_free(r->ctx, w->slots[0].room); /* and all that was laid out with it */
    mem_free(r->ctx, w->steps);
    mem_free(r->ctx, w);
    r->pieces = NULL;
}

/* Weights alone: between two tensors; a measured range is not part of the state. */
static tare_status finish_step(weight_pieces *w, const weight_step *s)
{
    run *r = w->run;
    size_t next = (size_t)(s - w->steps) + 1;
    bool ends_layer = s->part >= PART_LAYERS && next < w->num_steps &&
                      w->steps[next].part != s->part;
    if (r->plan->calibrates)
        return TARE_OK;
    progress_unit_done(&r->progress);
    if (s->kind == STEP_MEASURE || !resume_due(r, ends_layer))
        return TARE_OK;
    tare_status status = read_ahead_wait(w->pieces);
    return status == TARE_OK ? resume_save(r, next, 0) : status;
}

tare_status pieces_run(run *r, size_t part)
{
    tare_status status = TARE_OK;
    weight_pieces *w = r->pieces;
    for (; w->next < w->num_pieces; w->next++) {
        weight_piece p = piece_at(w, w->next);
        size_t slot;
        if (p.step->part > part)
            break;
        TRY(read_ahead_take(w->pieces, w->next, &slot));
        TRY(make_piece(w, &p, &w->slots[slot]));
        TRY(read_ahead_give(w->pieces, w->next));
        if (p.last)
            TRY(finish_step(w, p.step));
    }
    if (w->next == w->num_pieces)
        TRY(read_ahead_wait(w->pieces));
done:
    return status;
}
