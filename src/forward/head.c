#include "forward/head.h"

#include <string.h>

#include "tensor/rounded.h"

enum { HEAD_PANEL = 4096 };

static size_t panel_rows(const tare_model *model, size_t first)
{
    size_t left = model->head->n - first;
    return left < HEAD_PANEL ? left : HEAD_PANEL;
}

/* y [count, n] to columns [first, first+n) of the logits. */
static void place(const tare_model *model, const float *y, size_t count, size_t first, size_t n,
                  float *logits)
{
    for (size_t r = 0; r < count; r++)
        memcpy(logits + r * model->head->n + first, y + r * n, n * sizeof *y);
}

/* ---- streamed ---- */

typedef struct head_stream {
    tare_model *model;
    const float *x; /* [count, hidden] */
    size_t count;
    float *y; /* [count, HEAD_PANEL] */
    /* Columns [first, first+n) of the logits, as they are in y. */
    void (*panel)(const struct head_stream *s, size_t first, size_t n);
    float *logits;
    tare_dtype round;
    float *most;
    uint32_t *best;
} head_stream;

/* stored_stream gives pieces by bytes; a piece is cut into panels so that y stays small. */
static tare_status stream_rows(void *user, size_t first, size_t count, const coded_rows *rows)
{
    head_stream *s = user;
    for (size_t at = 0, n; at < count; at += n) {
        n = count - at < HEAD_PANEL ? count - at : HEAD_PANEL;
        gemm_weight *w = NULL;
        coded_rows panel = coded_from(rows, at);
        tare_status status = gemm_weight_pack(s->model->ctx, GEMM_FP32, &panel, n, &w);
        if (status == TARE_OK)
            status = gemm_float(s->model->ctx, w, s->x, s->count, NULL, s->y);
        gemm_weight_free(s->model->ctx, w);
        if (status != TARE_OK)
            return status;
        s->panel(s, first + at, n);
    }
    return TARE_OK;
}

static float *panel_results(tare_model *model, size_t count)
{
    size_t cells = SIZE_MAX;
    if (!size_mul(count, HEAD_PANEL, &cells))
        cells = SIZE_MAX;
    return mem_alloc_array(model->ctx, cells, sizeof(float));
}

static tare_status stream_head(head_stream *s, const stored_weight *head)
{
    if (!(s->y = panel_results(s->model, s->count)))
        return TARE_E_MEMORY;
    tare_status status = stored_stream(s->model->checkpoint, head, stream_rows, s);
    mem_free(s->model->ctx, s->y);
    return status;
}

static void place_panel(const head_stream *s, size_t first, size_t n)
{
    place(s->model, s->y, s->count, first, n, s->logits);
}

tare_status head_logits(tare_model *model, const float *x, size_t count, float *logits)
{
    head_stream s = {
        .model = model, .x = x, .count = count, .panel = place_panel, .logits = logits};
    return stream_head(&s, &model->head->weight);
}

static void keep_best(const head_stream *s, size_t first, size_t n)
{
    round_values(s->y, s->count * n, s->round);
    for (size_t row = 0; row < s->count; row++) {
        for (size_t i = 0; i < n; i++) {
            float logit = s->y[row * n + i];
            if (first + i > 0 && !(logit > s->most[row]))
                continue;
            s->most[row] = logit;
            s->best[row] = (uint32_t)(first + i);
        }
    }
}

tare_status head_best(tare_model *model, const stored_weight *head, const float *x, size_t count,
                      tare_dtype round, uint32_t *best)
{
    head_stream s = {
        .model = model, .x = x, .count = count, .panel = keep_best, .round = round, .best = best};
    if (!(s.most = mem_alloc_array(model->ctx, count, sizeof *s.most)))
        return TARE_E_MEMORY;
    tare_status status = stream_head(&s, head);
    mem_free(model->ctx, s.most);
    return status;
}

/* ---- kept ---- */

tare_status head_weights_load(tare_model *model, head_weights *out)
{
    tare_status status = TARE_OK;
    const stored_weight *w = &model->head->weight;
    coded_rows raw = {0};
    *out = (head_weights){.count = size_divide_up(model->head->n, HEAD_PANEL)};
    out->panels = mem_calloc(model->ctx, out->count, sizeof(gemm_weight *));
    TRY(out->panels ? stored_room(model->checkpoint, w, panel_rows(model, 0), &raw)
                    : TARE_E_MEMORY);
    for (size_t i = 0; i < out->count; i++) {
        size_t first = i * HEAD_PANEL, n = panel_rows(model, first);
        TRY(context_check_cancelled(model->ctx));
        TRY(stored_read(model->checkpoint, w, first, n, &raw));
        TRY(gemm_weight_pack(model->ctx, GEMM_FP32, &raw, n, &out->panels[i]));
    }
done:
    coded_free(model->ctx, &raw);
    if (status != TARE_OK)
        head_weights_free(model->ctx, out);
    return status;
}

void head_weights_free(tare_context *ctx, head_weights *h)
{
    for (size_t i = 0; i < h->count && h->panels; i++)
        gemm_weight_free(ctx, h->panels[i]);
    mem_free(ctx, h->panels);
    *h = (head_weights){0};
}

tare_status head_logits_kept(tare_model *model, const head_weights *h, const float *x, size_t count,
                             float *logits)
{
    tare_status status = TARE_OK;
    float *y = panel_results(model, count);
    if (!y)
        return TARE_E_MEMORY;
    for (size_t i = 0; i < h->count; i++) {
        size_t first = i * HEAD_PANEL;
        TRY(gemm_float(model->ctx, h->panels[i], x, count, NULL, y));
        place(model, y, count, first, panel_rows(model, first), logits);
    }
done:
    mem_free(model->ctx, y);
    return status;
}

/* ---- sizes ---- */

static size_t panel_bytes(const tare_model *model)
{
    const stored_weight *w = &model->head->weight;
    return gemm_weight_bytes(GEMM_FP32, w->dtype, HEAD_PANEL, w->k);
}

size_t head_weights_bytes(const tare_model *model)
{
    size_t count = size_divide_up(model->head->n, HEAD_PANEL);
    return count * panel_bytes(model) + mem_array_bytes(count, sizeof(gemm_weight *));
}

size_t head_weights_loading_bytes(const tare_model *model)
{
    const stored_weight *w = &model->head->weight;
    return stored_room_bytes(w, HEAD_PANEL) + stored_reading_bytes(w, HEAD_PANEL);
}

size_t head_kept_bytes(const tare_model *model, size_t count)
{
    return mem_array_bytes(count, HEAD_PANEL * sizeof(float)) + gemm_float_bytes(model->ctx);
}

size_t head_best_bytes(const tare_model *model, const stored_weight *head, size_t count)
{
    return head_kept_bytes(model, count) + mem_array_bytes(count, sizeof(float)) +
           gemm_weight_bytes(GEMM_FP32, head->dtype, HEAD_PANEL, head->k) +
           stored_stream_bytes(head);
}

size_t head_logits_bytes(const tare_model *model, size_t count)
{
    return head_kept_bytes(model, count) + panel_bytes(model) +
           stored_stream_bytes(&model->head->weight);
}
