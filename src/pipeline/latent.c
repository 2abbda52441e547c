/* FA of latent attention (spec/fa3.md 1.2): what an engine quantizes there is the absorbed form, in
 * which each head's keys are folded into its queries,
 *
 *     (q_nope Wk) . c,   Wk the rows of kv_b_proj that make the head's keys, c the latent vector
 *
 * so q is [heads, tokens, kv_rank], and k and v are both c, one head for all. The rotated parts
 * stay as they are. */
#include <string.h>

#include "base/carver.h"
#include "pipeline/smoothing.h"

#define LATENT_LINEAR ".self_attn.kv_b_proj"

struct latent_queries {
    struct latent_queries *self;
    size_t heads, nope, rank, head; /* columns of a query head: nope and the rotated ones */
    size_t tokens;                  /* of a sample, at most */
    gemm_weight **keys;             /* [heads]: Wk of a head transposed, [rank,nope] */
    float *x, *y;                   /* [tokens,nope], [tokens,rank] of a head */
    float *absorbed;                /* [tokens,heads*rank] */
};

static void lay_out(carver *c, void *component)
{
    struct latent_queries *l = component;
    l->self = carve(c, 1, sizeof *l);
    l->keys = carve(c, l->heads, sizeof *l->keys);
    l->x = carve(c, l->tokens, l->nope * sizeof *l->x);
    l->y = carve(c, l->tokens, l->rank * sizeof *l->y);
    l->absorbed = carve(c, l->tokens, l->heads * l->rank * sizeof *l->absorbed);
}

static struct latent_queries queries_of(const run_plan *plan)
{
    const model_config *c = &plan->env->model->config;
    return (struct latent_queries){.heads = c->num_heads,
                                   .nope = c->head_dim - c->rope_dim,
                                   .rank = c->kv_rank,
                                   .head = c->head_dim,
                                   .tokens = plan->env->samples.longest};
}

static const model_linear *latent_linear(const tare_model *m, const model_block *b)
{
    const linear_spec *l = graph_linear_of(b->graph, LATENT_LINEAR, strlen(LATENT_LINEAR));
    return block_linear(m, b, (size_t)(l - b->graph->linears));
}

/* From the rows of each head that make its keys, smoothed if they are. */
static tare_status load_keys(run *r, const model_block *b, struct latent_queries *l)
{
    tare_status status = TARE_OK;
    const model_linear *linear = latent_linear(r->model, b);
    const smooth_weight *smoothed = smoothing_of(r, linear);
    smooth_weight weight = smoothed ? *smoothed : (smooth_weight){.k = l->rank};
    coded_rows raw = {0};
    float *row = mem_alloc_array(r->ctx, l->rank, sizeof *row);
    float *transposed = mem_alloc_array(r->ctx, l->rank * l->nope, sizeof *transposed);
    TRY(row && transposed ? TARE_OK : TARE_E_MEMORY);
    TRY(stored_load(r->model->checkpoint, &linear->weight, &raw));
    weight.raw = raw;
    for (size_t h = 0; h < l->heads; h++) {
        for (size_t i = 0; i < l->nope; i++) {
            /* of a probe's linear the rows that it has stand for all */
            smooth_weight_row(r->ctx, &weight, (h * (linear->n / l->heads) + i) % linear->n, row);
            for (size_t j = 0; j < l->rank; j++)
                transposed[j * l->nope + i] = row[j];
        }
        TRY(gemm_weight_create(r->ctx, GEMM_FP32, TARE_F32, transposed, l->rank, l->nope,
                               &l->keys[h]));
    }
done:
    coded_free(r->ctx, &raw);
    mem_free(r->ctx, transposed);
    mem_free(r->ctx, row);
    return status;
}

tare_status latent_create(run *r, const model_block *b, struct latent_queries **out)
{
    tare_status status = TARE_OK;
    struct latent_queries l = queries_of(r->plan);
    *out = NULL;
    if (!r->plan->attentions[b->index].quantize || !r->model->config.arch->latent_attention)
        return TARE_OK;
    TRY(carver_alloc(r->ctx, lay_out, &l));
    *(*out = l.self) = l;
    memset(l.keys, 0, l.heads * sizeof *l.keys);
    TRY(load_keys(r, b, *out));
done:
    return status;
}

void latent_free(run *r, struct latent_queries *l)
{
    for (size_t h = 0; l && h < l->heads; h++)
        gemm_weight_free(r->ctx, l->keys[h]);
    mem_free(r->ctx, l);
}

/* Of one sample, q [tokens, heads*head]. */
static tare_status absorb(run *r, struct latent_queries *l, const float *q, size_t tokens)
{
    tare_status status = TARE_OK;
    for (size_t h = 0; h < l->heads; h++) {
        for (size_t t = 0; t < tokens; t++)
            memcpy(l->x + t * l->nope, q + (t * l->heads + h) * l->head, l->nope * sizeof *q);
        TRY(gemm_float(r->ctx, l->keys[h], l->x, tokens, NULL, l->y));
        for (size_t t = 0; t < tokens; t++)
            memcpy(l->absorbed + (t * l->heads + h) * l->rank, l->y + t * l->rank,
                   l->rank * sizeof *q);
    }
done:
    return status;
}

tare_status latent_observe(run *r, struct latent_queries *l, fa_observer *o, const batch *b,
                           const float *q, const float *latent)
{
    tare_status status = TARE_OK;
    for (size_t i = 0; i < b->samples; i++) {
        size_t tokens = b->lengths[i];
        TRY(absorb(r, l, q, tokens));
        fa_input in[FA_KINDS] = {{l->absorbed, l->heads * l->rank, l->rank},
                                 {latent, l->rank, l->rank},
                                 {latent, l->rank, l->rank}};
        TRY(fa_observe(o, b->first + i, &b->lengths[i], 1, in));
        q += tokens * l->heads * l->head;
        latent += tokens * l->rank;
    }
done:
    return status;
}

size_t latent_bytes(const run_plan *plan, const model_block *b)
{
    struct latent_queries l = queries_of(plan);
    const model_linear *linear = latent_linear(plan->env->model, b);
    size_t loading = linear_read_bytes(linear) + mem_array_bytes(l.rank, sizeof(float)) +
                     mem_array_bytes(l.rank * l.nope, sizeof(float));
    return carver_bytes(lay_out, &l) +
           l.heads * gemm_weight_bytes(GEMM_FP32, TARE_F32, l.rank, l.nope) +
           size_max(loading, gemm_float_bytes(plan->env->ctx));
}
