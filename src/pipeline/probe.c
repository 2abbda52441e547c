/* Measures the kernels that a run will use, with its own shapes, on a slice of its work. Each kind
 * has one function here that does a piece and says how many units that was; nothing is assumed
 * about how a kernel works inside. */
#include <string.h>

#include "base/parallel.h"
#include "pipeline/probe.h"
#include "quantize/smooth.h"
#include "tensor/attention.h"
#include "tensor/kernels.h"

/* ---- products ---- */

typedef struct int8_probe {
    const run_plan *plan;
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
        kernels_get(p->plan->env->ctx)
            ->dequantize_row(acc + i * stride, columns, 128, p->row_sums + column, 0.01f,
                             p->scales + column, columns, NULL, p->y + (row + i) * p->n + column);
}

static tare_status int8_piece(void *user)
{
    int8_probe *p = user;
    return gemm_u8s8_tiles(p->plan->env->ctx, p->x, p->w, p->m, p->n, p->k, dequantize_tile, p);
}

tare_status probe_int8(const run_plan *plan, double *rate)
{
    tare_status status = TARE_E_MEMORY;
    tare_context *ctx = plan->env->ctx;
    const model_linear *l = probe_linear(plan->env->model);
    size_t columns = 1024 * (size_t)ctx->options.threads;
    int8_probe p = {.plan = plan, .k = l->k, .m = size_min(plan->layout.batch_rows, 512)};
    p.m = size_min(p.m, plan->env->samples.tokens);
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

tare_status probe_float(const run_plan *plan, double *rate)
{
    return probe_products(plan->env->model, plan->env->compute, plan->env->samples.tokens, rate);
}

tare_status probe_pack(const run_plan *plan, double *rate)
{
    return probe_packing(plan->env->model, plan->env->compute, rate);
}

/* ---- attention and rows ---- */

typedef struct attention_probe {
    const run_plan *plan;
    attention_shape shape;
    float *q, *k, *out, *scratch;
} attention_probe;

static tare_status attention_piece(void *user)
{
    attention_probe *p = user;
    size_t query = p->shape.num_heads * p->shape.head_dim;
    size_t kv = p->shape.num_kv_heads * p->shape.head_dim;
    attention_forward(p->plan->env->ctx, &p->shape, p->q, query, p->k, kv, p->k, kv, p->out, query,
                      p->scratch);
    return TARE_OK;
}

/* Samples of mean length; short ones are less efficient than long ones. */
tare_status probe_attention(const run_plan *plan, double *rate)
{
    tare_status status = TARE_E_MEMORY;
    tare_context *ctx = plan->env->ctx;
    const model_config *c = &plan->env->model->config;
    size_t group = c->num_heads / c->num_kv_heads, threads = (size_t)ctx->options.threads;
    attention_probe p = {.plan = plan};
    p.shape = (attention_shape){
        .tokens = size_min(plan->env->samples.tokens / plan->env->samples.count, 1024),
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
    const run_plan *plan;
    size_t rows, cols;
    float *x, *y;
} rows_probe;

static void gate_row(void *user, size_t row, int thread)
{
    const rows_probe *p = user;
    (void)thread;
    kernels_get(p->plan->env->ctx)->silu_mul(p->y + row * p->cols, p->x + row * p->cols, p->cols);
}

/* Half of the values pass a norm, half a gate. */
static tare_status rows_piece(void *user)
{
    rows_probe *p = user;
    norm_rows(p->plan->env->model, p->x, p->x, NULL, p->rows, p->cols, TARE_F32, p->y);
    parallel_for(p->plan->env->ctx, p->rows, gate_row, p);
    return TARE_OK;
}

tare_status probe_rows(const run_plan *plan, double *rate)
{
    tare_status status = TARE_E_MEMORY;
    rows_probe p = {.plan = plan, .rows = size_min(plan->env->samples.tokens, 512)};
    p.cols = plan->env->model->config.hidden_size;
    p.x = probe_floats(plan->env->ctx, p.rows * p.cols);
    p.y = mem_alloc_array(plan->env->ctx, p.rows * p.cols, sizeof(float));
    if (p.x && p.y)
        status = probe_repeat(rows_piece, &p, 2.0 * (double)p.rows * (double)p.cols, rate);
    mem_free(plan->env->ctx, p.x);
    mem_free(plan->env->ctx, p.y);
    return status;
}

/* ---- the table ---- */

/* In this order: what weighs most comes first, as the time is limited. Writing and verifying go at
 * the rate of reading. */
static const struct {
    work_kind kind;
    tare_status (*probe)(const run_plan *plan, double *rate);
} probes[] = {
    {WORK_READ, probe_read},           {WORK_INT8, probe_int8},           {WORK_FLOAT, probe_float},
    {WORK_SMOOTHING, probe_smoothing}, {WORK_QUANTIZE, probe_quantize},   {WORK_PACK, probe_pack},
    {WORK_OBSERVE, probe_observe},     {WORK_ATTENTION, probe_attention}, {WORK_FA, probe_fa},
    {WORK_ROWS, probe_rows},           {WORK_SCORE, probe_score},
};

tare_status probe_rates(const run_plan *plan, double seconds, tare_work work[WORK_COUNT])
{
    double end = clock_seconds() + seconds;
    for (size_t i = 0; i < sizeof probes / sizeof *probes && clock_seconds() < end; i++) {
        tare_work *w = &work[probes[i].kind];
        tare_status status = w->amount > 0 ? probes[i].probe(plan, &w->rate) : TARE_OK;
        if (status != TARE_OK)
            return TARE_WRAP(plan->env->ctx, status, "measuring %s", w->name);
    }
    work[WORK_WRITE].rate = work[WORK_VERIFY].rate = work[WORK_READ].rate;
    return TARE_OK;
}
