/* Float logits of one sequence, streamed: one layer's weights at a time, the head in panels of
 * rows. */
#include "model/linear.h"
#include "tensor/convert.h"

enum { HEAD_PANEL = 4096 };

typedef struct head_panel {
    tare_model *model;
    const float *x; /* [count, hidden] */
    size_t count;
    float *y;      /* [count, HEAD_PANEL] */
    float *logits; /* [count, vocab] */
} head_panel;

/* model_stream_rows gives pieces by bytes; a piece is cut into panels so that y stays small. */
static tare_status head_rows(void *user, size_t first, size_t count, const void *rows)
{
    head_panel *p = user;
    const tensor_info *t = p->model->head.weight;
    size_t h = t->shape[1], row_bytes = h * dtype_size(t->dtype), vocab = t->shape[0];
    for (size_t at = 0; at < count; at += HEAD_PANEL) {
        size_t n = count - at < HEAD_PANEL ? count - at : HEAD_PANEL;
        gemm_weight *w = NULL;
        tare_status status = gemm_weight_create(p->model->ctx, GEMM_FP32, t->dtype,
                                                (const char *)rows + at * row_bytes, n, h, &w);
        if (status == TARE_OK)
            status = gemm_float(p->model->ctx, w, p->x, &p->count, 1, NULL, p->y);
        gemm_weight_free(p->model->ctx, w);
        if (status != TARE_OK)
            return status;
        for (size_t r = 0; r < p->count; r++) {
            for (size_t j = 0; j < n; j++)
                p->logits[r * vocab + first + at + j] = p->y[r * n + j];
        }
    }
    return TARE_OK;
}

static tare_status run_layer(tare_model *model, size_t layer, const batch *b, decoder_workspace *w,
                             float *x)
{
    tare_status status = TARE_OK;
    float_layer linears = {.model = model};
    layer_norms norms = {0};
    TRY(context_check_cancelled(model->ctx));
    TRY(layer_norms_load(model, layer, &norms));
    TRY(float_layer_load(model, layer, GEMM_FP32, &linears));
    layer_ops ops = {.user = &linears, .linears = float_layer_linears};
    TRY(decoder_layer_forward(model, layer, &norms, &ops, b, w, x));
done:
    float_layer_free(&linears);
    layer_norms_free(model->ctx, &norms);
    return status;
}

tare_status tare_model_logits(tare_model *model, const uint32_t *ids, size_t count, float *logits)
{
    tare_status status = TARE_OK;
    tare_context *ctx = model->ctx;
    size_t h = model->config.hidden_size, elements;
    float *x = NULL, *panel = NULL, *norm = NULL;
    decoder_workspace w = {0};
    batch b = {.samples = 1, .lengths = &count, .rows = count};
    if (count == 0)
        return TARE_FAIL(ctx, TARE_E_DATA, "a sequence of no tokens has no logits");
    if (!size_mul(count, h > HEAD_PANEL ? h : HEAD_PANEL, &elements) ||
        !(x = mem_alloc_array(ctx, elements, 4)) || !(panel = mem_alloc_array(ctx, elements, 4))) {
        status = TARE_E_MEMORY;
        goto done;
    }
    TRY(embed_into(model, ids, count, x));
    TRY(decoder_workspace_create(model, count, count, TARE_F32, &w));
    for (size_t i = 0; i < model->config.num_layers; i++)
        TRY(TARE_WRAP(ctx, run_layer(model, i, &b, &w, x), "layer %zu", i));
    TRY(model_read_vector(model, model->final_norm, &norm));
    norm_rows(ctx, x, norm, NULL, count, h, model->config.rms_norm_eps, TARE_F32, x);
    head_panel p = {.model = model, .x = x, .count = count, .y = panel, .logits = logits};
    TRY(model_stream_rows(model, model->head.weight, head_rows, &p));
done:
    decoder_workspace_free(&w);
    mem_free(ctx, norm);
    mem_free(ctx, panel);
    mem_free(ctx, x);
    return status;
}
