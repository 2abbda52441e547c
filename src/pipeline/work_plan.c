/* The table of kinds of work, and how much of each a run has. */
#include "pipeline/work_plan.h"

#include "pipeline/run.h"

#define PROBE_SECONDS 2.0

/* Calls `f` for each linear of the layers. */
typedef double (*linear_amount)(const run_plan *plan, const model_linear *l, const linear_plan *f);

static double sum_linears(const run_plan *plan, linear_amount amount)
{
    double sum = 0;
    for (size_t i = 0; i + 1 < plan->env->model->num_linears; i++)
        sum += amount(plan, &plan->env->model->linears[i], &plan->linears[i]);
    return sum;
}

static double elements(const model_linear *l)
{
    return (double)l->n * (double)l->k;
}

/* Is `l` the first of those that read the same input? */
static bool is_first_of_unit(const run_plan *plan, const model_linear *l)
{
    return l == &plan->env->model->linears[plan->env->model->units[l->unit].first];
}

/* ---- amounts ---- */

static double int8_operations(const run_plan *plan, const model_linear *l, const linear_plan *f)
{
    bool integers = plan->calibrates && !linear_runs_in_floats(plan, f->scheme);
    return integers ? 2.0 * (double)plan->env->samples.tokens * elements(l) : 0;
}

static bool runs_in_floats(const run_plan *plan, const linear_plan *f)
{
    return plan->calibrates && linear_runs_in_floats(plan, f->scheme);
}

static double float_operations(const run_plan *plan, const model_linear *l, const linear_plan *f)
{
    double tokens = (double)plan->float_tokens;
    if (runs_in_floats(plan, f))
        tokens += (double)plan->env->samples.tokens;
    if (plan->smooths && plan->wants_scores &&
        plan->env->num.compat) /* smoothed inputs: once more */
        tokens += (double)plan->score_tokens;
    return 2.0 * tokens * elements(l);
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

static double smoothed_weights(const run_plan *plan, const model_linear *l, const linear_plan *f)
{
    (void)f;
    return smoothing_targets(plan, l) ? elements(l) : 0;
}

static double quantized_weights(const run_plan *plan, const model_linear *l, const linear_plan *f)
{
    (void)plan;
    return plan_is_float(f) ? 0 : elements(l);
}

static size_t batches(const run_plan *plan, size_t samples)
{
    size_t count = 0;
    for (size_t first = 0; first < samples; count++)
        first +=
            batch_next(plan->env->samples.lengths, first, samples, plan->layout.batch_rows).samples;
    return count;
}

static double packed_weights(const run_plan *plan, const model_linear *l, const linear_plan *f)
{
    double times = runs_in_floats(plan, f) ? 1 : 0;
    bool twice = plan->smooths && plan->wants_scores && plan->env->num.compat;
    size_t again = twice ? batches(plan, plan->score_samples) : 0;
    if (plan->float_samples)
        times += plan->layout.whole_layer ? 1
                                          : (double)(batches(plan, plan->float_samples) + again);
    return times * elements(l);
}

static double observed_inputs(const run_plan *plan, const model_linear *l, const linear_plan *f)
{
    bool observed = plan->calibrates && scheme_of(f->scheme)->activations != ACT_FLOAT &&
                    is_first_of_unit(plan, l);
    return observed ? (double)plan->env->samples.tokens * (double)l->k : 0;
}

static double scored_inputs(const run_plan *plan, const model_linear *l, const linear_plan *f)
{
    (void)f;
    return plan->wants_scores && is_first_of_unit(plan, l)
               ? (double)plan->score_tokens * (double)l->k
               : 0;
}

/* Outputs pass a norm, a sum, a rotation or a gate. */
static double row_values(const run_plan *plan)
{
    const block_graph *g = model_graph(plan->env->model);
    double calibrated = plan->calibrates ? (double)plan->env->samples.tokens : 0, columns = 0;
    for (size_t i = 0; i < g->num_linears; i++)
        columns += (double)g->linears[i].n;
    return (calibrated + (double)plan->float_tokens) * (double)plan->env->model->num_blocks *
           columns;
}

/* Two products of q with what it sees. */
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
    return 4.0 * pairs * (double)(c->num_heads * c->head_dim);
}

static double fa_values(const run_plan *plan)
{
    const model_config *c = &plan->env->model->config;
    size_t kv_heads = 2 * c->num_kv_heads;
    size_t heads = plan->num_fa * (c->num_heads + kv_heads) + plan->num_kv * kv_heads;
    return (double)plan->env->samples.tokens * (double)(heads * c->head_dim);
}

/* ---- disk ---- */

static double read_bytes(const run_plan *plan, const model_linear *l, const linear_plan *f)
{
    (void)plan, (void)f;
    return (double)stored_bytes(&l->weight);
}

static double written_linear(const run_plan *plan, const model_linear *l, const linear_plan *f)
{
    if (plan_is_float(f))
        return (double)output_weight(plan->env, &l->weight).bytes;
    return elements(l) + 20.0 * (double)l->n; /* scales, offsets and biases of the rows */
}

static void plan_disk(const run_plan *plan, tare_plan *out)
{
    const linear_plan *head = &plan->linears[plan->env->model->num_linears - 1];
    double layers = sum_linears(plan, read_bytes), folders = 0;
    double others = (double)checkpoint_bytes(plan->env->model->checkpoint) - layers;
    double written = sum_linears(plan, written_linear) + others;
    if (!plan_is_float(head)) {
        written += written_linear(plan, plan->env->model->head, head);
        written -= plan->env->model->head_is_tied
                       ? 0
                       : (double)stored_bytes(&plan->env->model->head->weight);
    }
    for (unsigned i = 0; i < SAVE_TYPES; i++)
        folders += plan->env->save & 1u << i ? 1 : 0;
    double read = layers + others;
    if (plan->two_passes)
        read += layers + (double)stored_bytes(&plan->env->model->embedding);
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
                            (plan->final_scales ? 2 : 1) *
                                    attention_operations(
                                        plan, plan->calibrates ? plan->env->samples.count : 0) +
                                attention_operations(plan, plan->float_samples)},
        [WORK_QUANTIZE] = {"quantizing weights", "weights", sum_linears(plan, quantized_weights)},
        [WORK_PACK] = {"packing weights", "weights", sum_linears(plan, packed_weights)},
        [WORK_OBSERVE] = {"observing inputs", "values", sum_linears(plan, observed_inputs)},
        [WORK_FA] = {"observing q, k and v", "values", fa_values(plan)},
        [WORK_SCORE] = {"scoring inputs", "values", sum_linears(plan, scored_inputs)},
        [WORK_ROWS] = {"norms and gates", "values", row_values(plan)},
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
    out->float_operations = kinds[WORK_FLOAT].amount + kinds[WORK_ATTENTION].amount;
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
    out->passes = plan->two_passes ? 2 : 1;
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
