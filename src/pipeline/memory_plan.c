/* Budget, layouts, refusal. What each step holds is said beside it (ledger.h). */
#include "pipeline/memory_plan.h"

#include <stdio.h>

#include "base/machine.h"
#include "base/parallel.h"
#include "pipeline/means.h"
#include "tensor/gemm.h"

#define MIB ((uint64_t)1 << 20)

/* Rows of a batch: enough for the matrix products to be efficient, few enough for a 70B model's
 * intermediates to stay small. */
enum { BATCH_ROWS = 2048 };

/* ---- layouts, from the fastest to the smallest ---- */

static size_t most_batch_rows(const run_plan *plan)
{
    size_t rows = plan->env->options->batch_rows ? plan->env->options->batch_rows : BATCH_ROWS;
    return plan->env->samples.longest > rows ? plan->env->samples.longest : rows;
}

static size_t segments_of(const run_plan *plan, graph_cut cut)
{
    segment_list lists[BLOCK_KINDS];
    plan_segments(plan, cut, lists);
    return size_max(lists[BLOCK_PLAIN].count, lists[BLOCK_EXPERTS].count);
}

static bool can_spill(const run_plan *plan)
{
    return plan->env->goal == GOAL_OUTPUT || plan->env->options->scratch_dir;
}

/* False: there is no smaller one. Each is smaller than those before it, so that this ends. */
static bool next_layout(const run_plan *plan, run_layout *l, bool may_spill)
{
    if (l->overlap) {
        l->overlap = false;
    } else if (!l->spill && may_spill) {
        l->spill = true;
    } else if (l->whole_layer) {
        l->whole_layer = false;
    } else if (l->cut == CUT_NONE && segments_of(plan, CUT_PARTS) > segments_of(plan, CUT_NONE)) {
        l->cut = CUT_PARTS;
    } else if (l->batch_rows > plan->env->samples.longest) {
        l->batch_rows = l->batch_rows / 2 > plan->env->samples.longest ? l->batch_rows / 2
                                                                       : plan->env->samples.longest;
    } else if (l->cut != CUT_UNITS && segments_of(plan, CUT_UNITS) > segments_of(plan, l->cut)) {
        l->cut = CUT_UNITS; /* more goes through scratch files: worse than small batches */
        l->batch_rows = most_batch_rows(plan);
    } else {
        return false;
    }
    return true;
}

void memory_plan_peak(const run_plan *plan, const run_layout *chosen, size_t fixed,
                      const run_pass *only, memory_peak *out)
{
    run_plan candidate = *plan;
    ledger l;
    candidate.layout = *chosen;
    plan_segments(plan, chosen->cut, candidate.segments);
    ledger_begin(&l, &candidate, fixed);
    run_hold(&l, only);
    *out = l.peak;
}

/* ---- refusal ---- */

static void describe_terms(const memory_peak *p, buffer *out)
{
    static const char *const NAMES[TERM_COUNT] = {
        [TERM_WEIGHTS] = "weights",         [TERM_PACKED] = "blocked copy",
        [TERM_ACTIVATIONS] = "activations", [TERM_WORKSPACE] = "workspace",
        [TERM_SMOOTHING] = "smoothing",     [TERM_SCRATCH] = "scratch",
        [TERM_OUTPUT] = "output",           [TERM_FIXED] = "fixed"};
    buffer_printf(out, "%s:", p->unit);
    for (int i = 0; i < TERM_COUNT; i++) {
        if (p->terms[i] >= MIB || i == TERM_FIXED)
            buffer_printf(out, " %s %llu%s", NAMES[i],
                          (unsigned long long)((p->terms[i] + MIB - 1) / MIB),
                          i == TERM_FIXED ? " MiB" : ",");
    }
}

/* Only what would help is named. */
static void describe_remedies(const run_plan *plan, const memory_plan *memory, buffer *out)
{
    const memory_peak *p = &memory->smallest;
    size_t half = p->total / 20;
    const char *lead = "; less would do with ";
    if (p->terms[TERM_WORKSPACE] > half) {
        buffer_printf(out, "%sshorter prompts (--max-length; the longest has %zu tokens)", lead,
                      plan->env->samples.longest);
        lead = " or ";
    }
    if (p->terms[TERM_ACTIVATIONS] > half) {
        buffer_printf(out, "%sfewer prompts (--samples; there are %zu, %zu tokens)", lead,
                      plan->env->samples.count, plan->env->samples.tokens);
        lead = " or ";
    }
    if (p->terms[TERM_SMOOTHING] > half) {
        buffer_printf(out, "%sanother anti_method, or none", lead);
        lead = " or ";
    }
    if (plan->gptq && p->terms[TERM_SCRATCH] > half) {
        buffer_printf(out, "%sanother quant.weight_method than gptq", lead);
        lead = " or ";
    }
    if (parallel_threads(plan->env->ctx) > 4 && p->terms[TERM_FIXED] > p->total / 4)
        buffer_printf(out, "%sfewer threads (--threads; %d in use)", lead,
                      parallel_threads(plan->env->ctx));
}

static tare_status refuse(const run_plan *plan, const memory_plan *memory, bool given)
{
    buffer text;
    buffer_init(&text, plan->env->ctx);
    describe_terms(&memory->smallest, &text);
    buffer_puts(&text, ")");
    describe_remedies(plan, memory, &text);
    tare_status status = text.status;
    unsigned long long have = memory->budget / MIB, need = (memory->smallest.total + MIB - 1) / MIB;
    if (status == TARE_OK && given)
        status = TARE_FAIL(plan->env->ctx, TARE_E_BUDGET,
                           "max_memory cpu=%lluMiB is too small: the smallest budget that works "
                           "here is cpu=%lluMiB (%s",
                           have, need, text.data);
    else if (status == TARE_OK)
        status = TARE_FAIL(plan->env->ctx, TARE_E_BUDGET,
                           "there is too little memory: 80 %% of what is free is %lluMiB, the "
                           "smallest budget that works here is cpu=%lluMiB (%s",
                           have, need, text.data);
    buffer_free(&text);
    return status;
}

/* ---- the plan ---- */

/* A model in memory is held by the process already, and measured with it. */
static uint64_t resident_model_bytes(const run_plan *plan)
{
    uint64_t resident = machine_resident_bytes(),
             bytes = checkpoint_bytes(plan->env->model->checkpoint);
    if (checkpoint_file_count(plan->env->model->checkpoint) > 0)
        return 0;
    return bytes < resident ? bytes : resident;
}

static uint64_t budget_of(const run_plan *plan, bool *given)
{
    uint64_t budget = max_memory_of(&plan->env->recipe->max_memory, DEVICE_CPU);
    machine_memory machine = machine_memory_read("");
    *given = budget != 0;
    if (*given && budget > machine.physical)
        TARE_WARN(plan->env->ctx,
                  "max_memory cpu=%lluMiB is more than this machine has (%lluMiB): it will swap or "
                  "be killed before the budget is used",
                  (unsigned long long)(budget / MIB), (unsigned long long)(machine.physical / MIB));
    if (*given)
        return budget;
    if (machine.available == UINT64_MAX)
        return UINT64_MAX;
    return (uint64_t)((double)machine.available * 0.8) + resident_model_bytes(plan);
}

/* A limit that the context's owner set is on accounted bytes alone. */
static uint64_t limit_by_owner(const run_plan *plan, uint64_t budget, size_t reserve)
{
    uint64_t limit = plan->env->ctx->options.memory_limit;
    return limit && limit < UINT64_MAX - reserve && limit + reserve < budget ? limit + reserve
                                                                             : budget;
}

/* With one batch each float copy is used once anyway. */
static bool copies_pay(const run_plan *plan, size_t batch_rows)
{
    size_t first =
        plan->float_samples
            ? batch_next(plan->env->samples.lengths, 0, plan->float_samples, batch_rows).samples
            : 0;
    return first < plan->float_samples;
}

/* mem_keep_scratch: the products take and give back the same scratch all the time. */
static size_t kept_scratch_bytes(const tare_context *ctx)
{
    size_t floats = gemm_float_bytes(ctx), integers = gemm_u8s8_tiles_bytes(ctx);
    return floats > integers ? floats : integers;
}

/* What a unit reads is made again for its final scales, and to round its weights: with units alone
 * nothing else is. */
static graph_cut first_cut(const run_plan *plan)
{
    return plan->final_scales || plan->gptq ? CUT_UNITS : CUT_NONE;
}

static run_layout first_layout(const run_plan *plan)
{
    run_layout l = {.batch_rows = most_batch_rows(plan), .cut = first_cut(plan), .overlap = true};
    l.whole_layer = copies_pay(plan, l.batch_rows);
    for (size_t i = 0;
         i < plan->env->options->skip_layouts && next_layout(plan, &l, can_spill(plan)); i++) {
    }
    return l;
}

/* The best layout for a pass within `most` bytes, with the batches of `safe`, which fits. Streams
 * of hidden states that exist stay where they are. */
static run_layout pass_layout(const run_plan *plan, const run_layout *safe, size_t fixed,
                              uint64_t most, run_pass pass, bool streams_exist)
{
    run_layout l = {.batch_rows = safe->batch_rows, .cut = first_cut(plan), .overlap = true};
    memory_peak peak;
    if (plan->env->options->skip_layouts > 0)
        return *safe;
    l.whole_layer = copies_pay(plan, l.batch_rows);
    l.spill = streams_exist && safe->spill;
    do {
        memory_plan_peak(plan, &l, fixed, &pass, &peak);
        if (peak.total <= most)
            return l;
    } while (next_layout(plan, &l, !streams_exist && can_spill(plan)) &&
             l.batch_rows == safe->batch_rows);
    return *safe;
}

/* Each pass is laid out for itself: the peak is theirs. */
static void plan_passes(const run_plan *plan, memory_plan *m)
{
    run_pass pass = plan->two_passes ? PASS_FLOAT : PASS_QUANTIZE,
             last = plan->env->goal == GOAL_OUTPUT ? PASS_QUANTIZE : PASS_FLOAT;
    m->peak.total = 0;
    if (plan_passes_means(plan)) {
        const run_pass means = PASS_MEANS;
        const run_plan of_means = plan_of_means(plan);
        run_layout l = pass_layout(&of_means, &m->layout, m->fixed, m->budget, means, false);
        memory_plan_peak(&of_means, &l, m->fixed, &means, &m->peak);
    }
    for (; pass <= last; pass++) {
        memory_peak peak;
        m->last_pass = pass_layout(plan, &m->layout, m->fixed, m->budget, pass, false);
        memory_plan_peak(plan, &m->last_pass, m->fixed, &pass, &peak);
        if (peak.total > m->peak.total)
            m->peak = peak;
    }
}

/* What reading the model and the prompts took may be more than all that comes. */
static void plan_loading(const run_plan *plan, memory_plan *m, memory_peak *peak)
{
    size_t loading = tare_memory_peak(plan->env->ctx) + m->reserve;
    if (loading <= peak->total)
        return;
    *peak = (memory_peak){.total = loading, .unit = "tokenizer and prompts"};
    peak->terms[TERM_FIXED] = loading;
}

tare_status memory_plan_make(const run_plan *plan, memory_plan *out)
{
    bool given, found = false;
    tare_context *ctx = plan->env->ctx;
    run_layout candidate = first_layout(plan);
    bool integers = plan->calibrates && !live_linears_need_float(plan);
    *out = (memory_plan){.reserve = machine_reserve_bytes(ctx, integers)};
    out->budget = limit_by_owner(plan, budget_of(plan, &given), out->reserve);
    out->fixed = out->reserve + tare_memory_used(ctx);
    max_memory_warn(ctx, &plan->env->recipe->max_memory);
    do {
        memory_peak peak;
        memory_plan_peak(plan, &candidate, out->fixed, NULL, &peak);
        plan_loading(plan, out, &peak);
        if (!found && peak.total <= out->budget) {
            found = true;
            out->layout = candidate;
        }
        if (out->smallest.total == 0 || peak.total < out->smallest.total)
            out->smallest = peak;
    } while (next_layout(plan, &candidate, can_spill(plan)));
    if (!found)
        return refuse(plan, out, given);
    plan_passes(plan, out);
    plan_loading(plan, out, &out->peak);
    out->segments = segments_of(plan, out->last_pass.cut);
    size_t scratch = kept_scratch_bytes(ctx);
    out->keeps_scratch = plan->calibrates && scratch <= out->budget - out->peak.total;
    if (out->keeps_scratch) {
        out->fixed += scratch;
        out->peak.terms[TERM_FIXED] += scratch;
        out->peak.total += scratch;
    }
    return TARE_OK;
}

/* Never more than was planned: what is known by now of the fallback may make room. */
void memory_plan_pass(run_plan *plan, const memory_plan *m, run_pass pass, bool streams_exist)
{
    plan->layout = pass_layout(plan, &m->layout, m->fixed, m->peak.total, pass, streams_exist);
    plan_segments(plan, plan->layout.cut, plan->segments);
}
