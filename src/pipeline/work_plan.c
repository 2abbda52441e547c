/* The table of kinds of work, and how much of each a run has. */
#include "pipeline/work_plan.h"

#include "pipeline/means.h"
#include "pipeline/smoothing.h"

#define PROBE_SECONDS 2.0

/* A linear of a layer as tokens meet it. */
typedef struct linear_use {
    const model_linear *linear;
    const linear_plan *plan;
    double share;  /* of the tokens that pass it; */
    bool expert;   /* of an expert: those that choose it, all as often */
    bool is_first; /* of those that read the same input */
    bool rounds;   /* by what it reads, */
    bool sums;     /* and is the first of those that see that alike */
} linear_use;

typedef double (*linear_amount)(const run_plan *plan, const linear_use *u);

/* Is there none before linear `i` of the unit whose Hessian rounds this one too? */
static bool sums_first(const run_plan *plan, const model_block *b, size_t i)
{
    const block_graph *g = b->graph;
    const linear_plan *l = &plan->linears[b->first_linear];
    for (size_t j = g->units[g->linears[i].unit].first; j < i; j++) {
        if (plan_rounds(plan, b->first_linear + j) &&
            scheme_of(l[j].scheme)->activations == scheme_of(l[i].scheme)->activations)
            return false;
    }
    return plan_rounds(plan, b->first_linear + i);
}

static linear_use use_of(const run_plan *plan, const model_block *b, size_t i)
{
    const block_graph *g = b->graph;
    return (linear_use){.linear = block_linear(plan->env->model, b, i),
                        .plan = &plan->linears[b->first_linear + i],
                        .share = 1,
                        .is_first = g->units[g->linears[i].unit].first == i,
                        .rounds = plan_rounds(plan, b->first_linear + i),
                        .sums = sums_first(plan, b, i)};
}

static double sum_block(const run_plan *plan, const model_block *b, linear_amount amount)
{
    const route_spec *route = &b->graph->route;
    double sum = 0;
    for (size_t i = 0; i < b->graph->num_linears; i++) {
        linear_use u = use_of(plan, b, i);
        sum += amount(plan, &u);
    }
    for (size_t e = 0; e < block_experts(b); e++) {
        expert_place place;
        const model_block *expert = plan_expert(plan, b, e, &place).block;
        for (size_t i = 0; i < EXPERT_LINEARS; i++) {
            linear_use u = use_of(plan, expert, i);
            u.expert = true;
            u.share = (double)route->chosen / (double)route->experts;
            sum += amount(plan, &u);
        }
    }
    return sum;
}

static double sum_linears(const run_plan *plan, linear_amount amount)
{
    double sum = 0;
    for (size_t i = 0; i < plan->env->model->num_blocks; i++)
        sum += sum_block(plan, &plan->env->model->blocks[i], amount);
    return sum;
}

static double elements(const model_linear *l)
{
    return (double)l->n * (double)l->k;
}

/* ---- amounts ---- */

static bool runs_in_floats(const run_plan *plan, const linear_plan *f)
{
    return plan->calibrates && linear_runs_in_floats(plan, f->scheme);
}

static double int8_operations(const run_plan *plan, const linear_use *u)
{
    if (!plan->calibrates || runs_in_floats(plan, u->plan))
        return 0;
    return 2.0 * u->share * (double)plan->env->samples.tokens * elements(u->linear);
}

/* A Hessian of what passes, its factor, and the weights. */
static double gptq_operations(const run_plan *plan, const linear_use *u)
{
    size_t k = u->linear->k;
    double sum = u->rounds ? (double)u->linear->n * gptq_round_operations(k) : 0;
    if (u->sums)
        sum += u->share * (double)plan->env->samples.tokens * gptq_add_operations(k) +
               gptq_factor_operations(k);
    return sum;
}

/* Are inputs scored once they are smoothed, by running again? Those of experts are not scored. */
static bool scores_again(const run_plan *plan, const linear_use *u)
{
    return plan->smooths && plan->wants_scores && plan->env->num.compat && !u->expert;
}

static double float_operations(const run_plan *plan, const linear_use *u)
{
    double tokens = (double)(plan->float_tokens + plan_of_means(plan).float_tokens);
    if (runs_in_floats(plan, u->plan))
        tokens += (double)plan->env->samples.tokens;
    if (scores_again(plan, u))
        tokens += (double)plan->score_tokens;
    return 2.0 * u->share * tokens * elements(u->linear);
}

/* In front of the MTP layers: their projections, and what a head says of the last tokens. */
static double mtp_operations(const run_plan *plan)
{
    const model_config *c = &plan->env->model->config;
    double h = (double)c->hidden_size, tokens = (double)plan->float_tokens,
           samples = (double)plan->float_samples;
    if (plan->calibrates) {
        tokens += (double)plan->env->samples.tokens;
        samples += (double)plan->env->samples.count;
    }
    return 2.0 * h * (tokens * 2 * h + samples * (double)c->vocab_size) *
           (double)mtp_blocks(plan->env->model);
}

static double smoothed_weights(const run_plan *plan, const linear_use *u)
{
    return smoothing_targets(plan, u->linear) ? elements(u->linear) : 0;
}

static double quantized_weights(const run_plan *plan, const linear_use *u)
{
    (void)plan;
    return plan_is_float(u->plan) ? 0 : elements(u->linear);
}

static size_t batches(const run_plan *plan, size_t samples)
{
    size_t count = 0;
    for (size_t first = 0; first < samples; count++)
        first +=
            batch_next(plan->env->samples.lengths, first, samples, plan->layout.batch_rows).samples;
    return count;
}

/* An expert's rows of all samples are mostly one batch. */
static double packed_weights(const run_plan *plan, const linear_use *u)
{
    double times = runs_in_floats(plan, u->plan) ? 1 : 0;
    size_t again = scores_again(plan, u) ? batches(plan, plan->score_samples) : 0;
    if (plan->float_samples)
        times += plan->layout.whole_layer || u->expert
                     ? 1
                     : (double)(batches(plan, plan->float_samples) + again);
    return times * elements(u->linear);
}

static double observed_inputs(const run_plan *plan, const linear_use *u)
{
    bool observed = plan->calibrates && scheme_of(u->plan->scheme)->activations != ACT_FLOAT &&
                    u->is_first;
    double times = observed + u->sums;
    return times * u->share * (double)plan->env->samples.tokens * (double)u->linear->k;
}

static double scored_inputs(const run_plan *plan, const linear_use *u)
{
    return plan->wants_scores && u->is_first && !u->expert
               ? (double)plan->score_tokens * (double)u->linear->k
               : 0;
}

/* Outputs pass a norm, a sum, a rotation or a gate. */
static double row_values(const run_plan *plan, const linear_use *u)
{
    double calibrated = plan->calibrates ? (double)plan->env->samples.tokens : 0;
    return u->share * (calibrated + (double)plan->float_tokens) * (double)u->linear->n;
}

/* Products of q with the keys that it sees, and of what comes out with the values. */
static double attention_operations(const run_plan *plan, size_t samples)
{
    const model_config *c = &plan->env->model->config;
    double pairs = 0;
    for (size_t layer = 0; layer < plan->env->model->num_blocks; layer++) {
        double window = (double)model_config_window(c, layer);
        for (size_t i = 0; i < samples; i++) {
            double n = (double)plan->env->samples.lengths[i];
            pairs += window > 0 && window < n ? n * window : n * (n + 1) / 2;
        }
    }
    return 2.0 * pairs * (double)(c->num_heads * (c->head_dim + c->value_dim));
}

static double fa_values(const run_plan *plan)
{
    const model_config *c = &plan->env->model->config;
    size_t heads[FA_KINDS], observed = 0;
    attention_heads(plan->env->model, heads);
    for (int kind = 0; kind < FA_KINDS; kind++)
        observed += plan->num_fa * heads[kind] * fa_width(plan->env->model);
    observed += plan->num_kv * 2 * c->num_kv_heads * c->head_dim;
    return (double)plan->env->samples.tokens * (double)observed;
}

/* ---- disk ---- */

static double read_bytes(const run_plan *plan, const linear_use *u)
{
    (void)plan;
    return (double)stored_bytes(&u->linear->weight);
}

static double written_bytes(const run_plan *plan, const model_linear *l, const linear_plan *f)
{
    if (plan_is_float(f))
        return (double)output_weight(plan->env, &l->weight).bytes;
    return elements(l) + 20.0 * (double)l->n; /* scales, offsets and biases of the rows */
}

static double written_linear(const run_plan *plan, const linear_use *u)
{
    return written_bytes(plan, u->linear, u->plan);
}

static void plan_disk(const run_plan *plan, tare_plan *out)
{
    const linear_plan *head = &plan->linears[plan->env->model->num_linears - 1];
    double layers = sum_linears(plan, read_bytes), folders = 0;
    double others = (double)checkpoint_bytes(plan->env->model->checkpoint) - layers;
    double written = sum_linears(plan, written_linear) + others;
    if (!plan_is_float(head)) {
        written += written_bytes(plan, plan->env->model->head, head);
        written -= plan->env->model->head_is_tied
                       ? 0
                       : (double)stored_bytes(&plan->env->model->head->weight);
    }
    for (unsigned i = 0; i < SAVE_TYPES; i++)
        folders += plan->env->save & 1u << i ? 1 : 0;
    double read = layers + others;
    read += (double)(count_passes(plan) - 1) *
            (layers + (double)stored_bytes(&plan->env->model->embedding));
    if (!plan->calibrates && plan->env->recipe->mm_tensor) /* the range first */
        read += layers;
    if (!plan_is_float(head))
        read += (double)stored_bytes(&plan->env->model->head->weight) *
                (plan->env->model->head_is_tied + plan->env->recipe->mm_tensor);
    out->bytes_read = (uint64_t)read;
    out->bytes_written = (uint64_t)(written * folders);
    if (plan->layout.spill) /* two generations a stream */
        out->bytes_scratch = 8 * (uint64_t)plan->env->model->config.hidden_size *
                             (plan->env->samples.tokens +
                              (plan->float_beside ? plan->float_tokens : 0));
}

/* ---- all together ---- */

void work_plan_amounts(const run_plan *plan, tare_plan *out)
{
    const struct {
        const char *name, *unit;
        double amount;
    } kinds[WORK_COUNT] = {
        [WORK_INT8] = {"INT8 products", "operations", sum_linears(plan, int8_operations)},
        [WORK_FLOAT] = {"float products", "operations",
                        sum_linears(plan, float_operations) + mtp_operations(plan)},
        [WORK_SMOOTHING] = {"smoothing search", "weights", sum_linears(plan, smoothed_weights)},
        [WORK_ATTENTION] = {"attention", "operations",
                            (1 + plan->final_scales + plan->gptq) *
                                    attention_operations(
                                        plan, plan->calibrates ? plan->env->samples.count : 0) +
                                attention_operations(plan, plan->float_samples) +
                                attention_operations(plan, plan_of_means(plan).float_samples)},
        [WORK_QUANTIZE] = {"quantizing weights", "weights", sum_linears(plan, quantized_weights)},
        [WORK_GPTQ] = {"rounding by inputs", "operations", sum_linears(plan, gptq_operations)},
        [WORK_PACK] = {"packing weights", "weights", sum_linears(plan, packed_weights)},
        [WORK_OBSERVE] = {"observing inputs", "values", sum_linears(plan, observed_inputs)},
        [WORK_FA] = {"observing q, k and v", "values", fa_values(plan)},
        [WORK_SCORE] = {"scoring inputs", "values", sum_linears(plan, scored_inputs)},
        [WORK_ROWS] = {"norms and gates", "values", sum_linears(plan, row_values)},
        [WORK_READ] = {"reading", "bytes", (double)out->bytes_read},
        [WORK_WRITE] = {"writing", "bytes", (double)out->bytes_written},
        [WORK_VERIFY] = {"verifying", "bytes",
                         plan->env->options->verify ? (double)out->bytes_written : 0},
    };
    for (int i = 0; i < WORK_COUNT; i++)
        out->work[i] = (tare_work){
            .name = kinds[i].name, .unit = kinds[i].unit, .amount = kinds[i].amount};
    out->num_work = WORK_COUNT;
    out->int8_operations = kinds[WORK_INT8].amount;
    out->float_operations = kinds[WORK_FLOAT].amount + kinds[WORK_GPTQ].amount +
                            kinds[WORK_ATTENTION].amount;
}

/* Reading and writing hide behind the computation where they overlap. */
static double estimate(const run_plan *plan, const tare_plan *made)
{
    double compute = 0, disk = 0, after = 0;
    for (size_t i = 0; i < made->num_work; i++) {
        const tare_work *w = &made->work[i];
        double seconds = w->rate > 0 ? w->amount / w->rate : 0;
        *(i == WORK_VERIFY                    ? &after
          : i == WORK_READ || i == WORK_WRITE ? &disk
                                              : &compute) += seconds;
    }
    if (plan->layout.overlap)
        return (compute > disk ? compute : disk) + after;
    return compute + disk + after;
}

_Static_assert((int)WORK_COUNT <= (int)TARE_PLAN_WORK, "the public struct holds all kinds");

tare_status work_plan_make(const run_plan *plan, bool probe, tare_plan *out)
{
    tare_status status = TARE_OK;
    out->layers = plan->env->model->num_blocks;
    out->samples = plan->env->samples.count;
    out->tokens = plan->env->samples.tokens;
    out->passes = count_passes(plan);
    out->seconds = -1;
    plan_disk(plan, out);
    work_plan_amounts(plan, out);
    if (!probe)
        return TARE_OK;
    TRY(probe_rates(plan, PROBE_SECONDS, out->work));
    out->seconds = estimate(plan, out);
done:
    return status;
}
