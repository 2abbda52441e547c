#include "forward/probe.h"

#include "base/progress.h"
#include "base/sized.h"
#include "base/sizes.h"
#include "tensor/convert.h"

/* Least time that is spent on a kind, unless one piece takes longer. */
#define PIECE_SECONDS 0.06
#define READ_SECONDS  0.3
enum { READ_PIECE = 16 << 20, READ_MOST = 256 << 20 };

/* ---- a slice of the model ---- */

float *probe_floats(tare_context *ctx, size_t rows, size_t cols)
{
    float *x = mem_alloc_array(ctx, rows * cols, sizeof *x);
    uint32_t state = 1;
    for (size_t i = 0; x && i < rows * cols; i++) {
        state = state * 1664525u + 1013904223u;
        x[i] = ((float)(state >> 16) / 32768 - 1) * (float)(1u << (i % cols % 5)) / 4;
    }
    return x;
}

void probe_cut(model_linear *linear, size_t rows)
{
    linear->n = linear->weight.n = size_min(linear->n, rows);
    linear->weight.edit = NULL;
}

tare_status probe_weight(tare_model *model, const model_linear *cut, coded_rows *out)
{
    tare_context *ctx = model->ctx;
    const stored_weight *w = &cut->weight;
    if (checkpoint_has_data(model->checkpoint, w->tensor, 0, w->n * stored_row_bytes(w)))
        return stored_load(model->checkpoint, w, out);
    float *x = probe_floats(ctx, 1, w->k);
    char *made = mem_alloc_array(ctx, w->n, w->k * dtype_size(w->dtype));
    for (size_t i = 0; x && made && i < w->n; i++)
        narrow_from_float(ctx, w->dtype, x, w->k, made + i * w->k * dtype_size(w->dtype));
    *out = coded_plain(w->dtype, made, w->k);
    mem_free(ctx, x);
    if (x && made)
        return TARE_OK;
    coded_free(ctx, out);
    return TARE_E_MEMORY;
}

/* The linear with most weights, which has most of the work. */
static const model_linear *widest_linear(const tare_model *model)
{
    const model_linear *widest = NULL;
    for (size_t i = 0; i < model->blocks[0].graph->num_linears; i++) {
        const model_linear *l = block_linear(model, &model->blocks[0], i);
        if (!widest || l->n * l->k > widest->n * widest->k)
            widest = l;
    }
    return widest;
}

/* ---- products ---- */

tare_status probe_products(tare_model *model, gemm_compute compute, size_t rows, double *packing,
                           double *products)
{
    tare_status status = TARE_OK;
    tare_context *ctx = model->ctx;
    model_linear cut = *widest_linear(model);
    size_t threads = (size_t)ctx->options.threads, m = rows < 192 ? rows : 192, times;
    probe_cut(&cut, 512 * size_min(threads, 16));
    double begun, seconds, weights = (double)cut.n * (double)cut.k;
    coded_rows raw = {0};
    float_linear l = {0};
    float *x = probe_floats(ctx, m, cut.k), *y = mem_alloc_array(ctx, m * cut.n, sizeof *y);
    TRY(x && y ? TARE_OK : TARE_E_MEMORY);
    TRY(probe_weight(model, &cut, &raw));
    begun = clock_seconds();
    for (times = 0, seconds = 0; seconds < PIECE_SECONDS; seconds = clock_seconds() - begun) {
        float_linear_free(ctx, &l);
        TRY(float_linear_create(model, &cut, compute, &raw, &l));
        times++;
    }
    *packing = (double)times * weights / seconds;
    begun = clock_seconds();
    for (times = 0, seconds = 0; seconds < PIECE_SECONDS; seconds = clock_seconds() - begun) {
        TRY(gemm_float(ctx, l.weight, x, m, l.bias, y));
        times++;
    }
    *products = 2 * (double)times * (double)m * weights / seconds;
done:
    float_linear_free(ctx, &l);
    coded_free(ctx, &raw);
    mem_free(ctx, x);
    mem_free(ctx, y);
    return status;
}

/* ---- disk ---- */

/* Weights of layers in order, as a run reads them. */
tare_status probe_reading(tare_model *model, double *rate)
{
    tare_status status = TARE_OK;
    size_t total = 0;
    double start = clock_seconds(), seconds = 0;
    char *piece = mem_alloc(model->ctx, READ_PIECE);
    TRY(piece ? TARE_OK : TARE_E_MEMORY);
    for (size_t i = 0; i + 1 < model->num_linears; i++) {
        const tensor_info *t = model->linears[i].weight.tensor;
        for (uint64_t at = 0; at < t->bytes; at += READ_PIECE) {
            size_t size = t->bytes - at < READ_PIECE ? (size_t)(t->bytes - at) : READ_PIECE;
            if (total >= READ_MOST || seconds >= READ_SECONDS ||
                !checkpoint_has_data(model->checkpoint, t, at, size))
                goto done;
            TRY(checkpoint_read(model->checkpoint, t, at, piece, size));
            total += size;
            seconds = clock_seconds() - start;
            *rate = (double)total / seconds;
        }
    }
done:
    mem_free(model->ctx, piece);
    return status;
}

tare_status tare_model_probe(tare_model *model, size_t rows, tare_model_rates *rates)
{
    tare_status status = TARE_OK;
    tare_model_rates made = {0};
    TRY(SIZED_CHECK(model->ctx, tare_model_rates, rates));
    TRY(probe_reading(model, &made.read));
    TRY(probe_products(model, GEMM_FP32, rows ? rows : 1, &made.pack, &made.products));
    sized_give(rates, &made, sizeof made);
done:
    return status;
}
