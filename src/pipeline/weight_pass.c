/* The weight-only path: no prompts, no forward. Every tensor goes through in pieces of rows, in
 * model order; while one piece is computed the next are read and the last ones written, so memory
 * is a few pieces whatever the model, and time is the disk's. */
#include "base/background.h"
#include "base/parallel.h"
#include "pipeline/run.h"

enum {
    PIECE_BYTES = 8 << 20, /* of stored rows; a longer row is a piece of its own */
    AHEAD = 3,             /* pieces that are read while one is computed */
    READERS = 2,           /* threads: a disk is faster with more than one request at a time */
    BEHIND = 2,            /* pieces that are written meanwhile */
    PIECES = AHEAD + 1 + BEHIND
};

typedef enum step_kind {
    STEP_FLOAT,   /* as it is */
    STEP_NORM,    /* the same, in one piece */
    STEP_MEASURE, /* the range of a matrix that has one scale */
    STEP_QUANTIZE
} step_kind;

/* One tensor's way through. */
typedef struct weight_step {
    step_kind kind;
    const stored_weight *weight; /* NULL: `tensor` */
    const tensor_info *tensor;
    const model_linear *linear; /* of MEASURE and QUANTIZE */
    bool ends_layer;
} weight_step;

/* Rows [first, first+count) of a step, and the buffers that they take turns in. */
typedef struct weight_piece {
    struct weight_pass *pass;
    const weight_step *step; /* NULL: no pieces are left */
    size_t first, count;
    bool last; /* of its step: the bias of a quantized linear goes with it */
    char *room, *bias_room;
    float *blocks;   /* scales of what is stored with them */
    coded_rows rows; /* in `room` and `blocks` */
    int8_t *q;
    float *scales, *offsets;
    uint64_t read, written; /* tickets */
} weight_piece;

typedef struct weight_pass {
    const run_plan *plan;
    run *run; /* NULL: only its sizes are asked for */
    weight_step *steps;
    size_t num_steps;
    struct { /* bytes and rows of the largest piece */
        size_t stored, blocks, quantized, scales, bias, columns, packed, converted;
    } most;
    size_t step, row;   /* what is read next */
    weight_range range; /* of the matrix in work */
    background *readers[READERS], *writer;
    weight_piece pieces[PIECES];
} weight_pass;

/* ---- the steps ---- */

static stored_weight source_of(const weight_step *s)
{
    return s->weight ? *s->weight : stored_whole(s->tensor);
}

static size_t rows_of_piece(const weight_step *s, const stored_weight *w)
{
    size_t fit = PIECE_BYTES / stored_row_bytes(w);
    return s->kind == STEP_NORM ? w->n : size_min(w->n, size_max(fit, 1));
}

/* Without room for steps only the largest piece is found. */
static void add_step(weight_pass *w, weight_step s)
{
    stored_weight source = source_of(&s);
    if (source.n == 0 || source.k == 0)
        return;
    if (w->steps)
        w->steps[w->num_steps] = s;
    w->num_steps++;
    size_t rows = rows_of_piece(&s, &source);
    w->most.stored = size_max(w->most.stored, rows * stored_row_bytes(&source));
    w->most.blocks = size_max(w->most.blocks, stored_scales(&source, rows));
    if (!s.linear) {
        w->most.converted = size_max(w->most.converted, converted_bytes(w->plan->env, &source));
        return;
    }
    w->most.quantized = size_max(w->most.quantized, rows * source.k);
    w->most.scales = size_max(w->most.scales, rows);
    w->most.columns = size_max(w->most.columns, source.k);
    w->most.packed = size_max(w->most.packed,
                              output_rows_bytes(rows, source.k, w->plan->env->save));
    if (s.linear->bias) {
        stored_weight bias = stored_tensor(s.linear->bias, 1);
        w->most.bias = size_max(w->most.bias, s.linear->bias->bytes);
        w->most.converted = size_max(w->most.converted, converted_bytes(w->plan->env, &bias));
    }
}

static void add_tensor(weight_pass *w, step_kind kind, const tensor_info *tensor)
{
    add_step(w, (weight_step){.kind = kind, .tensor = tensor});
}

static void add_linear(weight_pass *w, const model_linear *l, const linear_plan *f)
{
    const stored_weight *weight = &l->weight;
    if (!plan_is_float(f) && w->plan->env->recipe->mm_tensor)
        add_step(w, (weight_step){.kind = STEP_MEASURE, .weight = weight, .linear = l});
    if (!plan_is_float(f))
        add_step(w, (weight_step){.kind = STEP_QUANTIZE, .weight = weight, .linear = l});
    else if (!f->is_head || !w->plan->env->model->head_is_tied)
        add_step(w, (weight_step){.kind = STEP_FLOAT, .weight = weight});
    if (plan_is_float(f) && l->bias)
        add_tensor(w, STEP_FLOAT, l->bias);
}

/* In the order of plan_output. */
static void add_steps(weight_pass *w)
{
    const tare_model *m = w->plan->env->model;
    w->num_steps = 0;
    add_step(w, (weight_step){.kind = STEP_FLOAT, .weight = &m->embedding});
    for (size_t layer = 0; layer < m->config.num_layers; layer++) {
        const model_block *b = &m->blocks[layer];
        for (size_t i = b->first_linear; i < b->first_linear + b->graph->num_linears; i++)
            add_linear(w, &m->linears[i], &w->plan->linears[i]);
        for (size_t i = 0; i < b->graph->num_norms; i++)
            add_tensor(w, STEP_NORM, b->norms[graph_norm_in_order(b->graph, i)]);
        if (w->steps)
            w->steps[w->num_steps - 1].ends_layer = true;
    }
    add_tensor(w, STEP_NORM, m->final_norm);
    add_linear(w, m->head, &w->plan->linears[m->num_linears - 1]);
    for (size_t i = 0; i < m->num_extra; i++)
        add_tensor(w, STEP_FLOAT, m->extra[i]);
}

static tare_status list_steps(weight_pass *w)
{
    add_steps(w);
    w->steps = arena_alloc_array(w->plan->env->arena, w->num_steps, sizeof *w->steps);
    if (!w->steps)
        return TARE_E_MEMORY;
    add_steps(w);
    return TARE_OK;
}

size_t weight_pass_steps(const run_plan *plan)
{
    weight_pass w = {.plan = plan};
    add_steps(&w);
    return w.num_steps;
}

size_t weight_pass_bytes(const run_plan *plan)
{
    weight_pass w = {.plan = plan};
    add_steps(&w);
    size_t piece = mem_array_bytes(file_read_room(w.most.stored), 1) +
                   mem_array_bytes(w.most.bias, 1) + mem_array_bytes(w.most.quantized, 1) +
                   mem_array_bytes(w.most.blocks, sizeof(float)) +
                   2 * mem_array_bytes(w.most.scales, sizeof(float));
    /* the list of steps; a widened row a thread; what is converted on its way out */
    size_t others = mem_array_bytes(w.num_steps, sizeof(weight_step)) +
                    mem_array_bytes((size_t)parallel_threads(plan->env->ctx) * w.most.columns,
                                    sizeof(float)) +
                    mem_array_bytes(w.most.scales, sizeof(weight_range)) +
                    mem_array_bytes(w.most.scales, sizeof(int64_t)) + w.most.packed +
                    READERS * mem_array_bytes(w.most.blocks, sizeof(float)) + w.most.converted;
    return PIECES * piece + others;
}

/* ---- the pieces ---- */

/* Buffers that hold the largest piece of any step. */
static tare_status alloc_pieces(weight_pass *w)
{
    tare_context *ctx = w->run->ctx;
    for (size_t i = 0; i < PIECES; i++) {
        weight_piece *p = &w->pieces[i];
        *p = (weight_piece){.pass = w,
                            .room = mem_alloc(ctx, file_read_room(w->most.stored)),
                            .bias_room = mem_alloc(ctx, w->most.bias),
                            .blocks = mem_alloc_array(ctx, w->most.blocks, sizeof *p->blocks),
                            .q = mem_alloc(ctx, w->most.quantized),
                            .scales = mem_alloc_array(ctx, w->most.scales, sizeof *p->scales),
                            .offsets = mem_alloc_array(ctx, w->most.scales, sizeof *p->offsets)};
        if (!p->room || !p->bias_room || !p->blocks || !p->q || !p->scales || !p->offsets)
            return TARE_E_MEMORY;
    }
    return TARE_OK;
}

static void free_pieces(weight_pass *w)
{
    tare_context *ctx = w->run->ctx;
    for (size_t i = 0; i < PIECES; i++) {
        mem_free(ctx, w->pieces[i].room);
        mem_free(ctx, w->pieces[i].bias_room);
        mem_free(ctx, w->pieces[i].blocks);
        mem_free(ctx, w->pieces[i].q);
        mem_free(ctx, w->pieces[i].scales);
        mem_free(ctx, w->pieces[i].offsets);
    }
}

/* ---- reading, on its own thread ---- */

static tare_status read_piece(void *user)
{
    tare_status status = TARE_OK;
    weight_piece *p = user;
    const weight_step *s = p->step;
    checkpoint *c = p->pass->run->model->checkpoint;
    stored_weight source = source_of(s);
    TRY(stored_read_in(c, &source, p->first, p->count, p->room, p->blocks, &p->rows));
    if (p->last && s->kind == STEP_QUANTIZE && s->linear->bias)
        TRY(checkpoint_read(c, s->linear->bias, 0, p->bias_room, s->linear->bias->bytes));
done:
    return status;
}

static background *reader_of(const weight_pass *w, const weight_piece *p)
{
    return w->readers[(size_t)(p - w->pieces) % READERS];
}

/* The next rows into `p`, once what it held is written. */
static tare_status read_ahead(weight_pass *w, weight_piece *p)
{
    tare_status status = background_wait(w->writer, p->written);
    if (status != TARE_OK)
        return status;
    p->step = NULL;
    if (w->step == w->num_steps)
        return TARE_OK;
    p->step = &w->steps[w->step];
    stored_weight source = source_of(p->step);
    size_t rows = source.n, most = rows_of_piece(p->step, &source);
    p->first = w->row;
    p->count = rows - w->row < most ? rows - w->row : most;
    p->last = p->first + p->count == rows;
    w->row = p->last ? 0 : w->row + p->count;
    w->step += p->last;
    return background_submit(reader_of(w, p), read_piece, p, &p->read);
}

/* ---- computing ---- */

static tare_status make_piece(weight_pass *w, weight_piece *p)
{
    const weight_step *s = p->step;
    run *r = w->run;
    tare_status status = TARE_OK;
    bool one_scale = r->env->recipe->mm_tensor;
    if (!s->linear) {
        stored_weight source = source_of(s);
        size_t row_bytes = stored_row_bytes(&source);
        return checkpoint_check_finite(r->model->checkpoint, source.tensor,
                                       (uint64_t)(source.first + p->first) * row_bytes,
                                       p->rows.data, p->count * row_bytes);
    }
    weight_rows rows = {.stored = p->rows,
                        .first = p->first,
                        .count = p->count,
                        .asymmetric = !r->env->recipe->w_sym};
    weight_codes codes = {.q = p->q, .scales = p->scales, .offsets = p->offsets};
    if (s->kind == STEP_MEASURE && p->first == 0)
        w->range = (weight_range){0};
    status = s->kind == STEP_MEASURE ? weight_rows_measure(r->ctx, &r->env->num, &rows, &w->range)
                                     : weight_rows_quantize(r->ctx, &r->env->num, &rows,
                                                            one_scale ? &w->range : NULL, &codes);
    return TARE_WRAP(r->ctx, status, "%s", s->linear->name);
}

/* ---- writing, on its own thread ---- */

/* A vector as it is written: *fresh stays NULL if that is as it is stored. */
static tare_status convert_vector(run *r, const tensor_info *source, const void *stored,
                                  void **fresh)
{
    coded_rows row = coded_plain(source->dtype, stored, tensor_elements(source));
    tensor_info t = output_tensor(r->env, source);
    if (t.dtype == source->dtype)
        return TARE_OK;
    if (!(*fresh = mem_alloc(r->ctx, t.bytes)))
        return TARE_E_MEMORY;
    coded_convert_rows(r->ctx, &row, 0, 1, t.dtype, *fresh);
    return TARE_OK;
}

static tare_status write_piece(void *user)
{
    weight_piece *p = user;
    const weight_step *s = p->step;
    run *r = p->pass->run;
    tare_status status = TARE_OK;
    void *fresh = NULL;
    if (s->kind == STEP_FLOAT) {
        stored_weight source = source_of(s);
        return write_float_rows(r, &source, p->first, p->count, &p->rows);
    }
    const tensor_info *floats = s->kind == STEP_NORM ? s->tensor : s->linear->bias;
    const void *stored = s->kind == STEP_NORM ? p->rows.data : p->bias_room;
    bool has_floats = floats && p->last;
    if (has_floats)
        TRY(convert_vector(r, floats, stored, &fresh));
    if (fresh)
        stored = fresh;
    linear_parts parts = {
        .first = p->first,
        .count = p->count,
        .data = {[TENSOR_WEIGHT] = p->q,
                 [TENSOR_BIAS] = has_floats ? stored : NULL,
                 [TENSOR_WEIGHT_SCALE] = p->scales,
                 [TENSOR_WEIGHT_OFFSET] = r->env->recipe->w_sym ? NULL : p->offsets}};
    TRY(s->kind == STEP_NORM ? output_write_norm(r->out, floats->name, stored, NULL)
                             : output_write_linear(r->out, s->linear->name, &parts));
done:
    mem_free(r->ctx, fresh);
    return status;
}

static tare_status write_behind(weight_pass *w, weight_piece *p)
{
    if (p->step->kind == STEP_MEASURE)
        return TARE_OK;
    return background_submit(w->writer, write_piece, p, &p->written);
}

/* ---- the pass ---- */

static tare_status wait_for_writes(weight_pass *w)
{
    tare_status status = TARE_OK;
    for (size_t i = 0; i < PIECES && status == TARE_OK; i++)
        status = background_wait(w->writer, w->pieces[i].written);
    return status;
}

/* Between two tensors; a measured range is not part of the state. */
static tare_status checkpoint_step(weight_pass *w, const weight_step *done)
{
    run *r = w->run;
    if (done->kind == STEP_MEASURE || !resume_due(r, done->ends_layer))
        return TARE_OK;
    tare_status status = wait_for_writes(w);
    return status == TARE_OK ? resume_save(r, (size_t)(done - w->steps) + 1) : status;
}

static tare_status stream_pieces(weight_pass *w)
{
    tare_status status = TARE_OK;
    run *r = w->run;
    for (size_t i = 0; i < AHEAD; i++)
        TRY(read_ahead(w, &w->pieces[i]));
    for (size_t i = 0; w->pieces[i % PIECES].step; i++) {
        weight_piece *p = &w->pieces[i % PIECES];
        TRY(context_check_cancelled(r->ctx));
        TRY(read_ahead(w, &w->pieces[(i + AHEAD) % PIECES]));
        TRY(background_wait(reader_of(w, p), p->read));
        TRY(make_piece(w, p));
        TRY(write_behind(w, p));
        if (p->last) {
            progress_unit_done(&r->progress);
            TRY(checkpoint_step(w, p->step));
        }
    }
    TRY(wait_for_writes(w));
done:
    return status;
}

tare_status quantize_weights(run *r)
{
    tare_status status = TARE_OK;
    weight_pass w = {.plan = r->plan, .run = r};
    TRY(list_steps(&w));
    TRY(alloc_pieces(&w));
    for (size_t i = 0; i < READERS; i++)
        TRY(background_create(r->ctx, PIECES, &w.readers[i]));
    TRY(background_create(r->ctx, PIECES, &w.writer));
    w.step = r->resume.layer;
    progress_begin(&r->progress, r->ctx, "quantize", "tensor", w.num_steps);
    progress_skip(&r->progress, r->resume.layer);
    TRY(stream_pieces(&w));
done:
    for (size_t i = 0; i < READERS; i++)
        background_free(w.readers[i]);
    background_free(w.writer);
    free_pieces(&w);
    return status;
}
