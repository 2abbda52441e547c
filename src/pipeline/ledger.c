#include "pipeline/ledger.h"

#include <stdio.h>
#include <string.h>

#include "forward/executor.h"
#include "model/rotate.h"
#include "pipeline/streams.h"

/* Batches hold whole samples, as batch_next cuts them. */
void ledger_begin(ledger *l, const run_plan *plan, size_t fixed)
{
    const sample_set *s = &plan->env->samples;
    *l = (ledger){.plan = plan};
    /* In the thread that reads ahead too. */
    l->now[TERM_FIXED] = fixed + 2 * model_edit_bytes(plan->env->model);
    for (size_t first = 0; first < s->count;) {
        batch b = batch_next(s->lengths, first, s->count, plan->layout.batch_rows);
        l->samples = size_max(l->samples, b.samples);
        first += b.samples;
    }
    l->rows = plan_batch_rows(plan);
}

void ledger_moment(ledger *l, const char *unit, size_t scratch)
{
    size_t total = scratch;
    for (int i = 0; i < TERM_COUNT; i++)
        total += l->now[i];
    if (total <= l->peak.total)
        return;
    snprintf(l->peak.unit, sizeof l->peak.unit, "%s", unit);
    memcpy(l->peak.terms, l->now, sizeof l->now);
    l->peak.terms[TERM_SCRATCH] += scratch;
    l->peak.total = total;
}

size_t ledger_stream_bytes(const ledger *l, size_t tokens, size_t columns)
{
    return stream_bytes(tokens, columns, l->rows, l->plan->layout.spill);
}
