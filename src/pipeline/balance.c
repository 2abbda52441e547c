/* Balancing queries and keys for FA (specification: spec/rotation.md 5, without phases): of
 * channels that turn together queries take a factor that keys give. What is watched is the float
 * layer's attention; the factors go into the rows of the linears, or into norms behind them. */
#include <math.h>
#include <string.h>

#include "base/parallel.h"
#include "pipeline/smoothing.h"

bool balance_active(const run_plan *plan, const model_block *block)
{
    return plan->env->recipe->fa_balance && plan->attentions[block->index].quantize;
}

tare_status balance_check(const run_plan *plan)
{
    const tare_model *m = plan->env->model;
    attention_source source[2];
    if (plan->env->options->smoothing)
        return TARE_FAIL(plan->env->ctx, TARE_E_USAGE,
                         "fa_quant.balance does not go with a smoothing that is given");
    bool found = graph_attention_source(model_graph(m), 0, &source[0]) &&
                 graph_attention_source(model_graph(m), 1, &source[1]);
    if (found && source[0].norm >= 0 && m->config.arch->norm_base != 0)
        return TARE_FAIL(plan->env->ctx, TARE_E_USAGE,
                         "fa_quant.balance: norms of queries and keys of %s models count from 1, "
                         "where factors are not exact; leave it out",
                         m->config.arch->model_type);
    if (found)
        return TARE_OK;
    return TARE_FAIL(plan->env->ctx, TARE_E_USAGE,
                     "fa_quant.balance: %s models do not make queries and keys of the same "
                     "channels; leave it out",
                     m->config.arch->model_type);
}

int balance_norm(const run_plan *plan, const model_block *block, int operand)
{
    attention_source source;
    return balance_active(plan, block) && graph_attention_source(block->graph, operand, &source)
               ? source.norm
               : -1;
}

/* ---- watching ---- */

static size_t heads_of(const attention_source *s)
{
    return s->columns / s->head;
}

tare_status balance_watch(run *r, const segment_work *s, head_watch *w)
{
    attention_source source[2];
    *w = (head_watch){0};
    if (!balance_active(r->plan, s->block) || !segment_attends(s->block->graph, s->segment))
        return TARE_OK;
    for (int operand = 0; operand < 2; operand++)
        graph_attention_source(s->block->graph, operand, &source[operand]);
    w->graph = s->block->graph;
    w->head = source[1].head;
    w->kv_heads = heads_of(&source[1]);
    w->share = heads_of(&source[0]) / w->kv_heads;
    w->groups = graph_turning_groups(w->graph, w->head);
    w->largest[0] = mem_calloc(r->ctx, 2 * w->kv_heads * w->groups, sizeof(float));
    if (!w->largest[0])
        return TARE_E_MEMORY;
    w->largest[1] = w->largest[0] + w->kv_heads * w->groups;
    return TARE_OK;
}

void balance_unwatch(run *r, head_watch *w)
{
    mem_free(r->ctx, w->largest[0]);
    *w = (head_watch){0};
}

size_t balance_watch_bytes(const run_plan *plan, const segment_work *s)
{
    attention_source keys;
    if (!balance_active(plan, s->block) || !segment_attends(s->block->graph, s->segment))
        return 0;
    graph_attention_source(s->block->graph, 1, &keys);
    return mem_array_bytes(2 * heads_of(&keys) * graph_turning_groups(s->block->graph, keys.head),
                           sizeof(float));
}

typedef struct observe_job {
    const head_watch *w;
    const float *x[2]; /* [rows, heads * head] */
    size_t rows;
} observe_job;

/* Heads of one operand that share a head of keys. */
static void raise_largest(const head_watch *w, const float *x, size_t heads, float *largest)
{
    for (size_t h = 0; h < heads; h++, x += w->head) {
        for (size_t j = 0; j < w->head; j++) {
            float *most = &largest[graph_turning_group(w->graph, j)], a = fabsf(x[j]);
            *most = a > *most ? a : *most;
        }
    }
}

static void observe_head_of_keys(void *user, size_t h, int thread)
{
    const observe_job *job = user;
    const head_watch *w = job->w;
    (void)thread;
    for (int operand = 0; operand < 2; operand++) {
        size_t heads = operand == 0 ? w->share : 1, columns = w->kv_heads * heads * w->head;
        for (size_t row = 0; row < job->rows; row++)
            raise_largest(w, job->x[operand] + row * columns + h * heads * w->head, heads,
                          w->largest[operand] + h * w->groups);
    }
}

void balance_observe(run *r, const head_watch *w, const batch *b, const float *q, const float *k)
{
    observe_job job = {.w = w, .x = {q, k}, .rows = b->rows};
    parallel_for(r->ctx, w->kv_heads, observe_head_of_keys, &job);
}

/* ---- solving ---- */

/* A norm that all heads share has one factor for all of them. */
static void share_largest(const head_watch *w)
{
    for (size_t h = 1; h < w->kv_heads; h++) {
        for (size_t i = 0; i < 2; i++)
            for (size_t g = 0; g < w->groups; g++)
                w->largest[i][g] = fmaxf(w->largest[i][g], w->largest[i][h * w->groups + g]);
    }
    for (size_t h = 1; h < w->kv_heads; h++)
        for (size_t i = 0; i < 2; i++)
            memcpy(w->largest[i] + h * w->groups, w->largest[i], w->groups * sizeof(float));
}

/* By what channel `c` of an operand is divided. */
static float divisor_of(const head_watch *w, int operand, size_t c, bool exact)
{
    size_t h = c / w->head / (operand == 0 ? w->share : 1);
    size_t at = h * w->groups + graph_turning_group(w->graph, c % w->head);
    float factor = smooth_balance_factor(w->largest[0][at], w->largest[1][at], exact);
    return operand == 0 ? 1 / factor : factor;
}

static void divide_rows(const head_watch *w, int operand, const attention_source *source,
                        smooth_weight *rows)
{
    for (size_t c = 0; c < source->columns; c++) {
        float divisor = divisor_of(w, operand, c, false);
        rows->row_scale[source->first + c] *= divisor;
        if (rows->has_bias)
            rows->bias[source->first + c] /= divisor;
    }
    rows->rows_scaled = true;
    rows->round = TARE_F32;
}

static void divide_norm(const head_watch *w, int operand, size_t size, smooth_norm *norm)
{
    for (size_t c = 0; c < size; c++)
        norm->weight[c] /= divisor_of(w, operand, c, true);
}

tare_status balance_solve(run *r, const model_block *block, const head_watch *w)
{
    const block_graph *g = block->graph;
    layer_smoothing *s = &r->smoothing[block->index];
    attention_source source[2];
    bool finite = true;
    if (!w->largest[0])
        return TARE_OK;
    for (int operand = 0; operand < 2; operand++) {
        graph_attention_source(g, operand, &source[operand]);
        for (size_t i = 0; i < w->kv_heads * w->groups; i++)
            finite &= isfinite(w->largest[operand][i]) != 0;
    }
    if (!finite)
        return TARE_FAIL(r->ctx, TARE_E_NUMERIC, "queries or keys are infinite");
    bool by_norms = source[0].norm >= 0 && source[1].norm >= 0;
    if (by_norms && g->norms[source[1].norm].size == w->head)
        share_largest(w);
    for (int operand = 0; operand < 2; operand++) {
        if (by_norms)
            divide_norm(w, operand, g->norms[source[operand].norm].size,
                        &s->norms[source[operand].norm]);
        else
            divide_rows(w, operand, &source[operand], &s->weights[source[operand].linear]);
    }
    return TARE_OK;
}
