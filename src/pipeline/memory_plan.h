/* How much memory a run will hold, before it begins: from headers, shapes and the lengths of the
 * prompts (ledger.h), and how it is laid out: in the first of these ways that fits the budget
 * (spec/low_memory.md 1.3): the next layer read while this one is computed; without that; hidden
 * states in scratch files; float copies of one linear at a time; parts of a layer; smaller batches,
 * down to the longest sample; single units. */
#ifndef TARE_PIPELINE_MEMORY_PLAN_H
#define TARE_PIPELINE_MEMORY_PLAN_H

#include "pipeline/ledger.h"

typedef struct memory_plan {
    uint64_t budget;
    size_t reserve;       /* of the budget, for what is not accounted */
    size_t fixed;         /* that, and what was held when the plan was made */
    run_layout layout;    /* that the whole run fits in: its batches, and where streams lie */
    run_layout last_pass; /* that the last pass has */
    size_t segments;      /* that it cuts a block into */
    bool keeps_scratch;   /* that of the products, between their calls: there is room for it */
    memory_peak peak;     /* of all passes */
    memory_peak smallest; /* of the layout that takes least */
} memory_plan;

/* Chooses a layout for the budget of run.max_memory or the default one. TARE_E_BUDGET: none fits;
 * the message names the smallest budget that works, where it goes, and what would lower it. *out is
 * filled in then too. To be called after sample_set_load, before anything of the output exists. */
tare_status memory_plan_make(const run_plan *plan, memory_plan *out);
/* Before a pass: the best layout for this pass alone, with the batches of the plan and what is
 * known by now of the fallback, into plan->layout; hidden states that exist stay where they are. */
void memory_plan_pass(run_plan *plan, const memory_plan *memory, run_pass pass, bool streams_exist);
/* The peak of one layout; accounted bytes and `fixed`. `only` NULL: of the whole run. */
void memory_plan_peak(const run_plan *plan, const run_layout *chosen, size_t fixed,
                      const run_pass *only, memory_peak *out);

#endif
