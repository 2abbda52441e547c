/* Attention on the tiles of the float GEMM. A piece of work is a block of queries of all heads that
 * share one key/value head, BLOCK_ROWS rows or so: scores of these rows for every key they see,
 * softmax, times v. Keys and values are packed panel by panel; all rows of the block use a panel
 * while it lies in the L1 cache. */
#include "tensor/attention.h"

#include <string.h>

#include "base/parallel.h"
#include "base/sizes.h"
#include "tensor/kernels.h"
#include "tensor/rounded.h"

enum { BLOCK_ROWS = 96 };

typedef struct attention_job {
    const kernels *kernels;
    attention_shape shape;
    const float *q, *k, *v;
    size_t q_stride, k_stride, v_stride, out_stride;
    float *out, *scratch;
} attention_job;

/* Row r of a block is query `first_query + r / group` of head `kv * group + r % group`. */
typedef struct block {
    size_t group, kv, rows;
    size_t first_query, queries;
    size_t first_key, keys; /* what any of the rows sees */
    size_t score_stride, sum_stride;
    float *left;   /* [rows, GEMM_DEPTH] q or probabilities */
    float *panel;  /* [GEMM_DEPTH, GEMM_PANEL] k transposed, or v */
    float *scores; /* [rows, score_stride] */
    float *sums;   /* [rows, sum_stride] of the output */
} block;

static size_t round_to_panel(size_t n)
{
    return (n + GEMM_PANEL - 1) / GEMM_PANEL * GEMM_PANEL;
}

static size_t group_of(const attention_shape *s)
{
    return s->num_heads / s->num_kv_heads;
}

static size_t queries_of(const attention_shape *s)
{
    size_t group = group_of(s);
    return group < BLOCK_ROWS ? BLOCK_ROWS / group : 1;
}

static size_t most_rows(const attention_shape *s)
{
    return group_of(s) * queries_of(s) + GEMM_TILE_ROWS_MAX;
}

static size_t first_key_of(const attention_shape *s, size_t query)
{
    return s->window && query + 1 > s->window ? query + 1 - s->window : 0;
}

/* Behind a window that holds padding alone there is no key to see: the first one stands for none.
 */
static size_t last_key_of(const attention_shape *s, size_t query, size_t first)
{
    return s->kept && query >= s->kept ? size_max(first, s->kept - 1) : query;
}

static block block_of(const attention_job *job, size_t index, int thread)
{
    const attention_shape *s = &job->shape;
    size_t queries = queries_of(s), rows = most_rows(s);
    block b = {.group = group_of(s), .kv = index % s->num_kv_heads};
    b.first_query = index / s->num_kv_heads * queries;
    b.queries = size_min(s->tokens - b.first_query, queries);
    b.rows = b.queries * b.group;
    b.first_key = first_key_of(s, b.first_query);
    b.keys = b.first_query + b.queries - b.first_key;
    b.score_stride = round_to_panel(b.keys);
    b.sum_stride = round_to_panel(attention_value_dim(s));
    b.panel = job->scratch + (size_t)thread * attention_scratch_size(s);
    b.left = b.panel + GEMM_DEPTH * GEMM_PANEL;
    b.sums = b.left + rows * GEMM_DEPTH;
    b.scores = b.sums + rows * b.sum_stride;
    return b;
}

static size_t query_of(const block *b, size_t row)
{
    return b->first_query + row / b->group;
}

static size_t head_of(const block *b, size_t row)
{
    return b->kv * b->group + row % b->group;
}

/* c[rows, GEMM_PANEL] += left[rows, depth] panel. */
static void multiply(const attention_job *job, const block *b, size_t depth, float *c, size_t ldc)
{
    size_t step = job->kernels->tile_rows;
    for (size_t r = 0; r < b->rows; r += step)
        job->kernels->gemm_tile(b->left + r * GEMM_DEPTH, b->panel, depth,
                                size_min(b->rows - r, step), c + r * ldc, ldc);
}

/* panel[i][j] = k[key + j][from + i]; missing keys are zero. */
static void pack_keys(const attention_job *job, const block *b, size_t key, size_t from,
                      size_t depth)
{
    size_t d = job->shape.head_dim, count = size_min(b->first_key + b->keys - key, GEMM_PANEL);
    const float *k = job->k + key * job->k_stride + b->kv * d + from;
    if (count < GEMM_PANEL)
        memset(b->panel, 0, depth * GEMM_PANEL * sizeof *b->panel);
    for (size_t i = 0; i < depth; i++) {
        for (size_t j = 0; j < count; j++)
            b->panel[i * GEMM_PANEL + j] = k[j * job->k_stride + i];
    }
}

static void pack_values(const attention_job *job, const block *b, size_t key, size_t depth,
                        size_t from)
{
    size_t d = attention_value_dim(&job->shape), count = size_min(d - from, GEMM_PANEL);
    const float *v = job->v + key * job->v_stride + b->kv * d + from;
    for (size_t i = 0; i < depth; i++) {
        float *to = b->panel + i * GEMM_PANEL;
        memcpy(to, v + i * job->v_stride, count * sizeof *to);
        memset(to + count, 0, (GEMM_PANEL - count) * sizeof *to);
    }
}

/* scores = q k^T * scale; q is scaled, which rounds as the quotient would when head_dim is a power
 * of four. Where products are rounded first, normalize_scores scales them. */
static void compute_scores(const attention_job *job, const block *b)
{
    size_t d = job->shape.head_dim;
    float scale = job->shape.round == TARE_F32 ? attention_scale(&job->shape) : 1;
    memset(b->scores, 0, b->rows * b->score_stride * sizeof *b->scores);
    for (size_t from = 0; from < d; from += GEMM_DEPTH) {
        size_t depth = size_min(d - from, GEMM_DEPTH);
        for (size_t r = 0; r < b->rows; r++) {
            const float *q = job->q + query_of(b, r) * job->q_stride + head_of(b, r) * d + from;
            for (size_t i = 0; i < depth; i++)
                b->left[r * GEMM_DEPTH + i] = q[i] * scale;
        }
        for (size_t j = 0; j < b->keys; j += GEMM_PANEL) {
            pack_keys(job, b, b->first_key + j, from, depth);
            multiply(job, b, depth, b->scores + j, b->score_stride);
        }
    }
}

/* Softmax over the keys that each row sees; the others get probability 0. */
static void normalize_scores(const attention_job *job, const block *b)
{
    for (size_t r = 0; r < b->rows; r++) {
        float *p = b->scores + r * b->score_stride;
        size_t query = query_of(b, r);
        size_t start = first_key_of(&job->shape, query) - b->first_key;
        size_t end = last_key_of(&job->shape, query, start + b->first_key) + 1 - b->first_key;
        memset(p, 0, start * sizeof *p);
        if (job->shape.round != TARE_F32) {
            rounded_softmax(p + start, end - start, attention_scale(&job->shape),
                            job->shape.softcap, job->shape.round);
        } else {
            if (job->shape.softcap != 0)
                job->kernels->softcap(p + start, end - start, job->shape.softcap);
            job->kernels->softmax(p + start, end - start);
        }
        memset(p + end, 0, (b->keys - end) * sizeof *p);
    }
}

static void weigh_values(const attention_job *job, const block *b)
{
    size_t d = attention_value_dim(&job->shape);
    memset(b->sums, 0, b->rows * b->sum_stride * sizeof *b->sums);
    for (size_t j = 0; j < b->keys; j += GEMM_DEPTH) {
        size_t depth = size_min(b->keys - j, GEMM_DEPTH);
        for (size_t r = 0; r < b->rows; r++)
            memcpy(b->left + r * GEMM_DEPTH, b->scores + r * b->score_stride + j,
                   depth * sizeof *b->left);
        for (size_t from = 0; from < d; from += GEMM_PANEL) {
            pack_values(job, b, b->first_key + j, depth, from);
            multiply(job, b, depth, b->sums + from, b->sum_stride);
        }
    }
    for (size_t r = 0; r < b->rows; r++) {
        float *out = job->out + query_of(b, r) * job->out_stride + head_of(b, r) * d;
        memcpy(out, b->sums + r * b->sum_stride, d * sizeof *b->sums);
        round_values(out, d, job->shape.round);
    }
}

static void attention_block(void *user, size_t index, int thread)
{
    const attention_job *job = user;
    block b = block_of(job, index, thread);
    /* What the last tile reads beyond the rows: never used, but defined. */
    memset(b.left + b.rows * GEMM_DEPTH, 0, GEMM_TILE_ROWS_MAX * GEMM_DEPTH * sizeof *b.left);
    compute_scores(job, &b);
    normalize_scores(job, &b);
    weigh_values(job, &b);
}

void attention_forward(const tare_context *ctx, const attention_shape *shape, const float *q,
                       size_t q_stride, const float *k, size_t k_stride, const float *v,
                       size_t v_stride, float *out, size_t out_stride, float *scratch)
{
    attention_job job = {.kernels = kernels_get(ctx),
                         .shape = *shape,
                         .q = q,
                         .k = k,
                         .v = v,
                         .q_stride = q_stride,
                         .k_stride = k_stride,
                         .v_stride = v_stride,
                         .out_stride = out_stride,
                         .out = out,
                         .scratch = scratch};
    size_t queries = queries_of(shape);
    parallel_for(ctx, (shape->tokens + queries - 1) / queries * shape->num_kv_heads,
                 attention_block, &job);
}

/* A multiple of 16 floats, so that every thread's part stays aligned. */
size_t attention_scratch_size(const attention_shape *shape)
{
    return GEMM_DEPTH * GEMM_PANEL +
           most_rows(shape) * (GEMM_DEPTH + round_to_panel(attention_value_dim(shape)) +
                               round_to_panel(shape->tokens));
}
