#include "forward/mtp.h"

#include <string.h>

#include "base/carver.h"
#include "forward/head.h"
#include "tensor/rounded.h"

enum { ROWS = 256 }; /* that are in work at a time */

static void lay_out(carver *c, void *component)
{
    mtp_input *m = component;
    m->self = carve(c, 1, sizeof *m);
    m->token = carve(c, ROWS, m->hidden * sizeof(float));
    m->both = carve(c, ROWS, 2 * m->hidden * sizeof(float));
}

static tare_status load(mtp_input *m, gemm_compute compute)
{
    tare_status status = TARE_OK;
    TRY(model_read_vector(m->model, m->layer->enorm, &m->enorm));
    TRY(model_read_vector(m->model, m->layer->hnorm, &m->hnorm));
    TRY(float_linear_load(m->model, &m->layer->projection, compute, &m->projection));
done:
    return status;
}

tare_status mtp_input_open(tare_model *model, const mtp_layer *layer, gemm_compute compute,
                           tare_dtype round, mtp_input **out)
{
    mtp_input m = {
        .model = model, .layer = layer, .hidden = model->config.hidden_size, .round = round};
    *out = NULL;
    tare_status status = carver_alloc(model->ctx, lay_out, &m);
    if (status != TARE_OK)
        return status;
    *m.self = m;
    status = load(m.self, compute);
    if (status == TARE_OK)
        *out = m.self;
    else
        mtp_input_close(m.self);
    return TARE_WRAP(model->ctx, status, "%s", layer->projection.name);
}

void mtp_input_close(mtp_input *m)
{
    if (!m)
        return;
    tare_context *ctx = m->model->ctx;
    mem_free(ctx, m->enorm);
    mem_free(ctx, m->hnorm);
    float_linear_free(ctx, &m->projection);
    mem_free(ctx, m->self);
}

size_t mtp_input_bytes(const tare_model *model, const mtp_layer *layer, gemm_compute compute)
{
    mtp_input m = {.hidden = model->config.hidden_size};
    size_t loading = linear_read_bytes(&layer->projection) +
                     float_linear_making_bytes(&layer->projection);
    return carver_bytes(lay_out, &m) + model_read_vector_bytes(layer->enorm) +
           model_read_vector_bytes(layer->hnorm) + float_linear_bytes(&layer->projection, compute) +
           size_max(size_max(loading, gemm_float_bytes(model->ctx)),
                    stored_room_bytes(&layer->embedding, 1) +
                        stored_reading_bytes(&layer->embedding, 1));
}

/* Columns [first, first+h) of the rows of `both`. */
static void place(const mtp_input *m, const float *from, size_t rows, size_t first)
{
    size_t h = m->hidden;
    for (size_t i = 0; i < rows; i++)
        memcpy(m->both + i * 2 * h + first, from + i * h, h * sizeof *from);
}

static tare_status run_rows(mtp_input *m, const uint32_t *ids, size_t rows, float *x)
{
    tare_status status = TARE_OK;
    size_t h = m->hidden;
    for (size_t i = 0; i < rows; i++)
        TRY(stored_read_rows(m->model->checkpoint, &m->layer->embedding, ids[i], 1, TARE_F32,
                             m->token + i * h));
    norm_rows(m->model, m->token, m->enorm, NULL, rows, h, m->round, m->token);
    place(m, m->token, rows, 0);
    norm_rows(m->model, x, m->hnorm, NULL, rows, h, m->round, x);
    place(m, x, rows, h);
    TRY(gemm_float(m->model->ctx, m->projection.weight, m->both, rows, NULL, x));
    round_values(x, rows * h, m->round);
done:
    return status;
}

tare_status mtp_input_run(mtp_input *m, const uint32_t *ids, size_t count, float *x)
{
    tare_status status = TARE_OK;
    for (size_t first = 0; first < count; first += ROWS)
        TRY(run_rows(m, ids + first, size_min(count - first, ROWS), x + first * m->hidden));
done:
    return TARE_WRAP(m->model->ctx, status, "%s", m->layer->projection.name);
}

/* ---- next tokens ---- */

static const tensor_info *norm_before(const tare_model *m, size_t layer)
{
    return layer == 0 ? m->final_norm : m->mtp_layers[layer - 1].head_norm;
}

static const stored_weight *head_before(const tare_model *m, size_t layer)
{
    return layer == 0 ? &m->head->weight : &m->mtp_layers[layer - 1].head;
}

tare_status mtp_next_tokens(tare_model *model, size_t layer, float *x, size_t count,
                            tare_dtype round, uint32_t *out)
{
    float *norm;
    size_t h = model->config.hidden_size;
    tare_status status = model_read_vector(model, norm_before(model, layer), &norm);
    if (status != TARE_OK)
        return status;
    norm_rows(model, x, norm, NULL, count, h, round, x);
    mem_free(model->ctx, norm);
    return head_best(model, head_before(model, layer), x, count, round, out);
}

size_t mtp_next_tokens_bytes(const tare_model *model, size_t layer, size_t count)
{
    return size_max(model_read_vector_bytes(norm_before(model, layer)),
                    head_best_bytes(model, head_before(model, layer), count));
}
