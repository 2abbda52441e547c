#include "forward/probe.h"

#include "base/progress.h"
#include "base/sized.h"
#include "tensor/convert.h"

/* Least time that is spent on a kind, unless one piece takes longer. */
#define PIECE_SECONDS 0.06
#define READ_SECONDS  0.3
enum { READ_PIECE = 16 << 20, READ_MOST = 256 << 20 };

/* ---- made-up data: of the usual size and spread ---- */

static uint32_t next_random(uint32_t *state)
{
    return *state = *state * 1664525u + 1013904223u;
}

float *probe_floats(tare_context *ctx, size_t count)
{
    float *x = mem_alloc_array(ctx, count, sizeof *x);
    uint32_t state = 1;
    for (size_t i = 0; x && i < count; i++)
        x[i] = ((float)(next_random(&state) >> 16) + (float)(next_random(&state) >> 16) -
                65536.0f) /
               32768.0f;
    return x;
}

void *probe_weights(tare_context *ctx, tare_dtype dtype, size_t count)
{
    void *w = mem_alloc_array(ctx, count, dtype_size(dtype));
    float *x = w ? probe_floats(ctx, 4096) : NULL;
    if (!x) {
        mem_free(ctx, w);
        return NULL;
    }
    for (size_t i = 0; i < count; i += 4096) {
        size_t n = count - i < 4096 ? count - i : 4096;
        narrow_from_float(ctx, dtype, x, n, (char *)w + i * dtype_size(dtype));
    }
    mem_free(ctx, x);
    return w;
}

/* The linear with most weights, which has most of the work. */
const model_linear *probe_linear(const tare_model *model)
{
    const model_linear *widest = NULL;
    for (size_t i = 0; i < model->blocks[0].graph->num_linears; i++) {
        const model_linear *l = block_linear(model, &model->blocks[0], i);
        if (!widest || l->n * l->k > widest->n * widest->k)
            widest = l;
    }
    return widest;
}

/* Does `piece` until enough time has passed; the mean rate. */
tare_status probe_repeat(tare_status (*piece)(void *user), void *user, double units, double *rate)
{
    tare_status status = TARE_OK;
    double start = clock_seconds(), elapsed = 0;
    size_t times = 0;
    while (status == TARE_OK && elapsed < PIECE_SECONDS) {
        status = piece(user);
        times++;
        elapsed = clock_seconds() - start;
    }
    *rate = (double)times * units / elapsed;
    return status;
}

/* ---- products ---- */

typedef struct float_probe {
    tare_context *ctx;
    gemm_compute compute;
    tare_dtype dtype;
    size_t m, n, k;
    void *w;
    gemm_weight *packed;
    float *x, *y;
} float_probe;

static tare_status float_piece(void *user)
{
    float_probe *p = user;
    return gemm_float(p->ctx, p->packed, p->x, p->m, NULL, p->y);
}

static tare_status pack_piece(void *user)
{
    float_probe *p = user;
    gemm_weight_free(p->ctx, p->packed);
    return gemm_weight_create(p->ctx, p->compute, p->dtype, p->w, p->n, p->k, &p->packed);
}

static tare_status probe_float_gemm(tare_model *model, gemm_compute compute, size_t rows,
                                    bool packing, double *rate)
{
    tare_status status = TARE_E_MEMORY;
    tare_context *ctx = model->ctx;
    const model_linear *l = probe_linear(model);
    float_probe p = {.ctx = ctx,
                     .compute = compute,
                     .k = l->k,
                     .m = rows < 192 ? rows : 192,
                     .dtype = l->weight.dtype};
    size_t threads = (size_t)ctx->options.threads, some = 512 * (threads < 16 ? threads : 16);
    p.n = l->n < some ? l->n : some;
    p.w = probe_weights(ctx, p.dtype, p.n * p.k);
    p.x = probe_floats(ctx, p.m * p.k);
    p.y = mem_alloc_array(ctx, p.m * p.n, sizeof *p.y);
    if (!p.w || !p.x || !p.y)
        goto done;
    TRY(pack_piece(&p));
    if (packing)
        TRY(probe_repeat(pack_piece, &p, (double)p.n * (double)p.k, rate));
    else
        TRY(probe_repeat(float_piece, &p, 2.0 * (double)p.m * (double)p.n * (double)p.k, rate));
done:
    gemm_weight_free(ctx, p.packed);
    mem_free(ctx, p.w);
    mem_free(ctx, p.x);
    mem_free(ctx, p.y);
    return status;
}

tare_status probe_products(tare_model *model, gemm_compute compute, size_t rows, double *rate)
{
    return probe_float_gemm(model, compute, rows, false, rate);
}

tare_status probe_packing(tare_model *model, gemm_compute compute, double *rate)
{
    return probe_float_gemm(model, compute, 1, true, rate);
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
    TRY(probe_packing(model, GEMM_FP32, &made.pack));
    TRY(probe_products(model, GEMM_FP32, rows ? rows : 1, &made.products));
    sized_give(rates, &made, sizeof made);
done:
    return status;
}
