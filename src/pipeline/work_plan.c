/* The table of kinds of work, and how much of each a run has. */
#include "pipeline/work_plan.h"

#define PROBE_SECONDS 2.0

/* Calls `f` for each linear of the layers. */
typedef double (*linear_amount)(const run *r, const model_linear *l, const linear_plan *f);

static double sum_linears(const run *r, linear_amount amount)
{
    double sum = 0;
    for (size_t i = 0; i + 1 < r->model->num_linears; i++)
        sum += amount(r, &r->model->linears[i], &r->linears[i]);
    return sum;
}

static double elements(const model_linear *l)
{
    return (double)l->n * (double)l->k;
}

/* Is `l` the first of those that read the same input? */
static bool is_first_of_unit(const run *r, const model_linear *l)
{
    return l == &r->model->linears[r->model->units[l->unit].first];
}

/* ---- amounts ---- */

static double int8_operations(const run *r, const model_linear *l, const linear_plan *f)
{
    bool integers = r->calibrates && scheme_of(f->scheme)->activations != ACT_FLOAT &&
                    !live_linears_need_float(r);
    return integers ? 2.0 * (double)r->samples.tokens * elements(l) : 0;
}

static bool runs_in_floats(const run *r, const linear_plan *f)
{
    return r->calibrates &&
           (scheme_of(f->scheme)->activations == ACT_FLOAT || live_linears_need_float(r));
}

static double float_operations(const run *r, const model_linear *l, const linear_plan *f)
{
    double tokens = (double)r->floats.tokens;
    if (runs_in_floats(r, f))
        tokens += (double)r->samples.tokens;
    if (r->smoothing && r->wants_scores && r->num.compat) /* smoothed inputs: once more */
        tokens += (double)r->score_tokens;
    return 2.0 * tokens * elements(l);
}

static double smoothed_weights(const run *r, const model_linear *l, const linear_plan *f)
{
    (void)f;
    return smoothing_targets(r, l) ? elements(l) : 0;
}

static double quantized_weights(const run *r, const model_linear *l, const linear_plan *f)
{
    (void)r;
    return plan_is_float(f) ? 0 : elements(l);
}

static size_t batches(const run *r, size_t samples)
{
    size_t count = 0;
    for (size_t first = 0; first < samples; count++)
        first += batch_next(r->samples.lengths, first, samples, r->layout.batch_rows).samples;
    return count;
}

static double packed_weights(const run *r, const model_linear *l, const linear_plan *f)
{
    double times = runs_in_floats(r, f) ? 1 : 0;
    bool twice = r->smoothing && r->wants_scores && r->num.compat;
    size_t again = twice ? batches(r, r->score_samples) : 0;
    if (r->floats.samples)
        times += r->layout.whole_layer ? 1 : (double)(batches(r, r->floats.samples) + again);
    return times * elements(l);
}

static double observed_inputs(const run *r, const model_linear *l, const linear_plan *f)
{
    bool observed = r->calibrates && scheme_of(f->scheme)->activations != ACT_FLOAT &&
                    is_first_of_unit(r, l);
    return observed ? (double)r->samples.tokens * (double)l->k : 0;
}

static double scored_inputs(const run *r, const model_linear *l, const linear_plan *f)
{
    (void)f;
    return r->wants_scores && is_first_of_unit(r, l) ? (double)r->score_tokens * (double)l->k : 0;
}

/* Outputs pass a norm, a sum, a rotation or a gate. */
static double row_values(const run *r, const model_linear *l, const linear_plan *f)
{
    (void)f;
    double calibrated = r->calibrates ? (double)r->samples.tokens : 0;
    return (calibrated + (double)r->floats.tokens) * (double)l->n;
}

/* Two products of q with what it sees. */
static double attention_operations(const run *r, size_t samples)
{
    const model_config *c = &r->model->config;
    double pairs = 0;
    for (size_t layer = 0; layer < c->num_layers; layer++) {
        double window = (double)model_config_window(c, layer);
        for (size_t i = 0; i < samples; i++) {
            double n = (double)r->samples.lengths[i];
            pairs += window > 0 && window < n ? n * window : n * (n + 1) / 2;
        }
    }
    return 4.0 * pairs * (double)(c->num_heads * c->head_dim);
}

static double fa_values(const run *r)
{
    const model_config *c = &r->model->config;
    return (double)r->num_fa * (double)r->samples.tokens *
           (double)((c->num_heads + 2 * c->num_kv_heads) * c->head_dim);
}

/* ---- disk ---- */

static double read_bytes(const run *r, const model_linear *l, const linear_plan *f)
{
    (void)r, (void)f;
    return (double)stored_bytes(&l->weight);
}

static double written_linear(const run *r, const model_linear *l, const linear_plan *f)
{
    if (plan_is_float(f))
        return (double)output_weight(r, &l->weight).bytes;
    return elements(l) + 20.0 * (double)l->n; /* scales, offsets and biases of the rows */
}

static void plan_disk(const run *r, tare_plan *out)
{
    const linear_plan *head = &r->linears[r->model->num_linears - 1];
    double layers = sum_linears(r, read_bytes), folders = 0;
    double others = (double)checkpoint_bytes(r->model->checkpoint) - layers;
    double written = sum_linears(r, written_linear) + others;
    if (!plan_is_float(head)) {
        written += written_linear(r, r->model->head, head);
        written -= r->model->head_is_tied ? 0 : (double)stored_bytes(&r->model->head->weight);
    }
    for (unsigned i = 0; i < SAVE_TYPES; i++)
        folders += r->save & 1u << i ? 1 : 0;
    double read = layers + others;
    if (r->two_passes)
        read += layers + (double)stored_bytes(&r->model->embedding);
    if (!r->calibrates && r->recipe->mm_tensor) /* the range first */
        read += layers;
    if (!plan_is_float(head) && r->model->head_is_tied)
        read += (double)stored_bytes(&r->model->head->weight);
    out->bytes_read = (uint64_t)read;
    out->bytes_written = (uint64_t)(written * folders);
    if (r->layout.spill) /* two generations a stream */
        out->bytes_scratch = 8 * (uint64_t)r->model->config.hidden_size *
                             (r->samples.tokens + (r->float_beside ? r->floats.tokens : 0));
}

/* ---- all together ---- */

static void plan_amounts(const run *r, tare_plan *out)
{
    const struct {
        const char *name, *unit;
        double amount;
    } kinds[WORK_COUNT] = {
        [WORK_INT8] = {"INT8 products", "operations", sum_linears(r, int8_operations)},
        [WORK_FLOAT] = {"float products", "operations", sum_linears(r, float_operations)},
        [WORK_SMOOTHING] = {"smoothing search", "weights", sum_linears(r, smoothed_weights)},
        [WORK_ATTENTION] = {"attention", "operations",
                            attention_operations(r, r->calibrates ? r->samples.count : 0) +
                                attention_operations(r, r->floats.samples)},
        [WORK_QUANTIZE] = {"quantizing weights", "weights", sum_linears(r, quantized_weights)},
        [WORK_PACK] = {"packing weights", "weights", sum_linears(r, packed_weights)},
        [WORK_OBSERVE] = {"observing inputs", "values", sum_linears(r, observed_inputs)},
        [WORK_FA] = {"observing q, k and v", "values", fa_values(r)},
        [WORK_SCORE] = {"scoring inputs", "values", sum_linears(r, scored_inputs)},
        [WORK_ROWS] = {"norms and gates", "values", sum_linears(r, row_values)},
        [WORK_READ] = {"reading", "bytes", (double)out->bytes_read},
        [WORK_WRITE] = {"writing", "bytes", (double)out->bytes_written},
        [WORK_VERIFY] = {"verifying", "bytes", r->options->verify ? (double)out->bytes_written : 0},
    };
    for (int i = 0; i < WORK_COUNT; i++)
        out->work[i] = (tare_work){
            .name = kinds[i].name, .unit = kinds[i].unit, .amount = kinds[i].amount};
    out->num_work = WORK_COUNT;
    out->int8_operations = kinds[WORK_INT8].amount;
    out->float_operations = kinds[WORK_FLOAT].amount + kinds[WORK_ATTENTION].amount;
}

/* Reading and writing hide behind the computation where they overlap. */
static double estimate(const run *r, const tare_plan *plan)
{
    double compute = 0, disk = 0, after = 0;
    for (size_t i = 0; i < plan->num_work; i++) {
        const tare_work *w = &plan->work[i];
        double seconds = w->rate > 0 ? w->amount / w->rate : 0;
        *(i == WORK_VERIFY                    ? &after
          : i == WORK_READ || i == WORK_WRITE ? &disk
                                              : &compute) += seconds;
    }
    if (r->layout.overlap || !r->calibrates)
        return (compute > disk ? compute : disk) + after;
    return compute + disk + after;
}

_Static_assert((int)WORK_COUNT <= (int)TARE_PLAN_WORK, "the public struct holds all kinds");

tare_status work_plan_make(run *r, bool probe, tare_plan *out)
{
    const model_config *c = &r->model->config;
    tare_status status = TARE_OK;
    out->layers = c->num_layers;
    out->samples = r->samples.count;
    out->tokens = r->samples.tokens;
    out->passes = r->two_passes ? 2 : 1;
    out->seconds = -1;
    plan_disk(r, out);
    plan_amounts(r, out);
    if (!probe)
        return TARE_OK;
    TRY(probe_rates(r, PROBE_SECONDS, out->work));
    out->seconds = estimate(r, out);
done:
    return status;
}
