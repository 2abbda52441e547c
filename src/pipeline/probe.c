/* Measures the kernels that a run will use, with its own shapes, on a slice of its work. Each kind
 * has one function here that does a piece and says how many units that was; nothing is assumed
 * about how a kernel works inside. */
#include <string.h>

#include "base/parallel.h"
#include "pipeline/probe.h"
#include "quantize/smooth.h"
#include "tensor/attention.h"
#include "tensor/kernels.h"

/* Least time that is spent on a kind, unless one piece takes longer. */
#define PIECE_SECONDS 0.06

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
const model_linear *probe_linear(const run *r)
{
    const architecture *arch = r->model->config.arch;
    const model_linear *widest = NULL;
    for (size_t i = 0; i < arch->num_linears; i++) {
        const model_linear *l = &r->model->layers[0].linears[arch->linears[i].role];
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

typedef struct int8_probe {
    run *r;
    size_t m, n, k;
    uint8_t *x;
    int8_t *w;
    float *scales, *y;
    int64_t *row_sums;
} int8_probe;

static void dequantize_tile(void *user, size_t row, size_t rows, size_t column, size_t columns,
                            const int32_t *acc, size_t stride)
{
    const int8_probe *p = user;
    for (size_t i = 0; i < rows; i++)
        kernels_get(p->r->ctx)->dequantize_row(acc + i * stride, columns, 128, p->row_sums + column,
                                               0.01f, p->scales + column, columns, NULL,
                                               p->y + (row + i) * p->n + column);
}

static tare_status int8_piece(void *user)
{
    int8_probe *p = user;
    return gemm_u8s8_tiles(p->r->ctx, p->x, p->w, p->m, p->n, p->k, dequantize_tile, p);
}

tare_status probe_int8(run *r, double *rate)
{
    tare_status status = TARE_E_MEMORY;
    tare_context *ctx = r->ctx;
    const model_linear *l = probe_linear(r);
    size_t columns = 1024 * (size_t)ctx->options.threads;
    int8_probe p = {.r = r, .k = l->k, .m = size_min(r->layout.batch_rows, 512)};
    p.m = size_min(p.m, r->samples.tokens);
    p.n = size_min(l->n, columns < 16384 ? columns : 16384);
    p.x = mem_calloc(ctx, p.m, p.k);
    p.w = mem_calloc(ctx, p.n, p.k);
    p.scales = probe_floats(ctx, p.n);
    p.row_sums = mem_calloc(ctx, p.n, sizeof *p.row_sums);
    p.y = mem_alloc_array(ctx, p.m * p.n, sizeof *p.y);
    if (!p.x || !p.w || !p.scales || !p.row_sums || !p.y)
        goto done;
    for (size_t i = 0; i < p.m * p.k; i++)
        p.x[i] = (uint8_t)(i * 31);
    for (size_t i = 0; i < p.n * p.k; i++)
        p.w[i] = (int8_t)(i * 17);
    size_t n = p.n, m = p.m;
    p.m = p.n = 1; /* code is made in the first call */
    TRY(int8_piece(&p));
    p.m = m;
    p.n = n;
    TRY(probe_repeat(int8_piece, &p, 2.0 * (double)m * (double)n * (double)p.k, rate));
done:
    mem_free(ctx, p.x);
    mem_free(ctx, p.w);
    mem_free(ctx, p.scales);
    mem_free(ctx, p.row_sums);
    mem_free(ctx, p.y);
    return status;
}

typedef struct float_probe {
    run *r;
    tare_dtype dtype;
    size_t m, n, k;
    void *w;
    gemm_weight *packed;
    float *x, *y;
} float_probe;

static tare_status float_piece(void *user)
{
    float_probe *p = user;
    return gemm_float(p->r->ctx, p->packed, p->x, &p->m, 1, NULL, p->y);
}

static tare_status pack_piece(void *user)
{
    float_probe *p = user;
    gemm_weight_free(p->r->ctx, p->packed);
    return gemm_weight_create(p->r->ctx, p->r->compute, p->dtype, p->w, p->n, p->k, &p->packed);
}

static tare_status probe_float_gemm(run *r, bool packing, double *rate)
{
    tare_status status = TARE_E_MEMORY;
    tare_context *ctx = r->ctx;
    const model_linear *l = probe_linear(r);
    float_probe p = {.r = r,
                     .k = l->k,
                     .m = size_min(r->samples.tokens, 192),
                     .dtype = linear_raw_dtype(r->model, l)};
    p.n = size_min(l->n, 512 * (size_t)size_min((size_t)ctx->options.threads, 16));
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

tare_status probe_float(run *r, double *rate)
{
    return probe_float_gemm(r, false, rate);
}

tare_status probe_pack(run *r, double *rate)
{
    return probe_float_gemm(r, true, rate);
}

/* ---- attention and rows ---- */

typedef struct attention_probe {
    run *r;
    attention_shape shape;
    float *q, *k, *out, *scratch;
} attention_probe;

static tare_status attention_piece(void *user)
{
    attention_probe *p = user;
    size_t query = p->shape.num_heads * p->shape.head_dim;
    size_t kv = p->shape.num_kv_heads * p->shape.head_dim;
    attention_forward(p->r->ctx, &p->shape, p->q, query, p->k, kv, p->k, kv, p->out, query,
                      p->scratch);
    return TARE_OK;
}

/* Samples of mean length; short ones are less efficient than long ones. */
tare_status probe_attention(run *r, double *rate)
{
    tare_status status = TARE_E_MEMORY;
    tare_context *ctx = r->ctx;
    const model_config *c = &r->model->config;
    size_t group = c->num_heads / c->num_kv_heads, threads = (size_t)ctx->options.threads;
    attention_probe p = {.r = r};
    p.shape = (attention_shape){.tokens = size_min(r->samples.tokens / r->samples.count, 1024),
                                .num_kv_heads = size_min(c->num_kv_heads, 2 * threads),
                                .head_dim = c->head_dim};
    p.shape.num_heads = group * p.shape.num_kv_heads;
    size_t n = p.shape.tokens, query = p.shape.num_heads * c->head_dim;
    p.q = probe_floats(ctx, n * query);
    p.k = probe_floats(ctx, n * p.shape.num_kv_heads * c->head_dim);
    p.out = mem_alloc_array(ctx, n * query, sizeof(float));
    p.scratch = mem_alloc_array(ctx, threads * attention_scratch_size(&p.shape), sizeof(float));
    if (p.q && p.k && p.out && p.scratch)
        status = probe_repeat(attention_piece, &p,
                              2.0 * (double)n * (double)(n + 1) * (double)query, rate);
    mem_free(ctx, p.q);
    mem_free(ctx, p.k);
    mem_free(ctx, p.out);
    mem_free(ctx, p.scratch);
    return status;
}

typedef struct rows_probe {
    run *r;
    size_t rows, cols;
    float *x, *y;
} rows_probe;

static void gate_row(void *user, size_t row, int thread)
{
    const rows_probe *p = user;
    (void)thread;
    kernels_get(p->r->ctx)->silu_mul(p->y + row * p->cols, p->x + row * p->cols, p->cols);
}

/* Half of the values pass a norm, half a gate. */
static tare_status rows_piece(void *user)
{
    rows_probe *p = user;
    norm_rows(p->r->ctx, p->x, p->x, NULL, p->rows, p->cols, 1e-5f, TARE_F32, p->y);
    parallel_for(p->r->ctx, p->rows, gate_row, p);
    return TARE_OK;
}

tare_status probe_rows(run *r, double *rate)
{
    tare_status status = TARE_E_MEMORY;
    rows_probe p = {.r = r, .rows = size_min(r->samples.tokens, 512)};
    p.cols = r->model->config.hidden_size;
    p.x = probe_floats(r->ctx, p.rows * p.cols);
    p.y = mem_alloc_array(r->ctx, p.rows * p.cols, sizeof(float));
    if (p.x && p.y)
        status = probe_repeat(rows_piece, &p, 2.0 * (double)p.rows * (double)p.cols, rate);
    mem_free(r->ctx, p.x);
    mem_free(r->ctx, p.y);
    return status;
}

/* ---- the table ---- */

/* In this order: what weighs most comes first, as the time is limited. Writing and verifying go at
 * the rate of reading. */
static const struct {
    work_kind kind;
    tare_status (*probe)(run *r, double *rate);
} probes[] = {
    {WORK_READ, probe_read},           {WORK_INT8, probe_int8},           {WORK_FLOAT, probe_float},
    {WORK_SMOOTHING, probe_smoothing}, {WORK_QUANTIZE, probe_quantize},   {WORK_PACK, probe_pack},
    {WORK_OBSERVE, probe_observe},     {WORK_ATTENTION, probe_attention}, {WORK_FA, probe_fa},
    {WORK_ROWS, probe_rows},           {WORK_SCORE, probe_score},
};

tare_status probe_rates(run *r, double seconds, tare_work work[WORK_COUNT])
{
    double end = clock_seconds() + seconds;
    for (size_t i = 0; i < sizeof probes / sizeof *probes && clock_seconds() < end; i++) {
        tare_work *w = &work[probes[i].kind];
        tare_status status = w->amount > 0 ? probes[i].probe(r, &w->rate) : TARE_OK;
        if (status != TARE_OK)
            return TARE_WRAP(r->ctx, status, "measuring %s", w->name);
    }
    work[WORK_WRITE].rate = work[WORK_VERIFY].rate = work[WORK_READ].rate;
    return TARE_OK;
}
