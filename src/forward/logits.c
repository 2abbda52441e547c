/* Float logits of one sequence, streamed: one layer's weights at a time, the head in panels. */
#include "forward/weights.h"

static tare_status run_layer(weight_source *w, size_t layer, const batch *b, workspace *room,
                             float *x)
{
    tare_status status = TARE_OK;
    const block_norms *norms;
    block_ops ops = {.user = w, .linears = weight_source_linears, .expert = weight_source_expert};
    TRY(weight_source_layer(w, layer, &norms));
    TRY(block_forward(w->model, &w->model->blocks[layer], NULL, norms, &ops, b, room, x));
done:
    return status;
}

tare_status tare_model_logits(tare_model *model, const uint32_t *ids, size_t count, float *logits)
{
    tare_status status = TARE_OK;
    tare_context *ctx = model->ctx;
    size_t elements;
    float *x = NULL;
    weight_source weights = {0};
    workspace w = {0};
    batch b = {.samples = 1, .lengths = &count, .rows = count};
    if (count == 0)
        return TARE_FAIL(ctx, TARE_E_DATA, "a sequence of no tokens has no logits");
    if (!size_mul(count, model->config.hidden_size, &elements) ||
        !(x = mem_alloc_array(ctx, elements, sizeof *x))) {
        status = TARE_E_MEMORY;
        goto done;
    }
    TRY(embed_into(model, ids, count, x));
    TRY(workspace_create(model, count, count, TARE_F32, true, &w));
    TRY(weight_source_open(model, WEIGHTS_LAYER, NULL, &weights));
    for (size_t i = 0; i < model->config.num_layers; i++)
        TRY(TARE_WRAP(ctx, run_layer(&weights, i, &b, &w, x), "layer %zu", i));
    TRY(weight_source_logits(&weights, x, count, logits));
done:
    weight_source_close(&weights);
    workspace_free(&w);
    mem_free(ctx, x);
    return status;
}
