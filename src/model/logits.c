/* Float logits of one sequence, streamed: one layer's weights at a time, the head in panels. */
#include "model/head.h"

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
    float *x = NULL, *norm = NULL;
    decoder_workspace w = {0};
    batch b = {.samples = 1, .lengths = &count, .rows = count};
    if (count == 0)
        return TARE_FAIL(ctx, TARE_E_DATA, "a sequence of no tokens has no logits");
    if (!size_mul(count, h, &elements) || !(x = mem_alloc_array(ctx, elements, 4))) {
        status = TARE_E_MEMORY;
        goto done;
    }
    TRY(embed_into(model, ids, count, x));
    TRY(decoder_workspace_create(model, count, count, TARE_F32, &w));
    for (size_t i = 0; i < model->config.num_layers; i++)
        TRY(TARE_WRAP(ctx, run_layer(model, i, &b, &w, x), "layer %zu", i));
    TRY(model_read_vector(model, model->final_norm, &norm));
    norm_rows(ctx, x, norm, NULL, count, h, model->config.rms_norm_eps, TARE_F32, x);
    TRY(head_logits(model, x, count, logits));
done:
    decoder_workspace_free(&w);
    mem_free(ctx, norm);
    mem_free(ctx, x);
    return status;
}
