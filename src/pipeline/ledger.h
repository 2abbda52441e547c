/* What a run holds, reckoned before it begins. A stage has beside what it does a function that
 * enters what that takes; both follow one table of steps, so that the plan walks the way of the run
 * without memory. */
#ifndef TARE_PIPELINE_LEDGER_H
#define TARE_PIPELINE_LEDGER_H

#include "pipeline/plan.h"

/* What a moment's bytes are for. */
typedef enum memory_term {
    TERM_WEIGHTS,     /* as they are stored, and the 8-bit results */
    TERM_PACKED,      /* weights in compute format */
    TERM_ACTIVATIONS, /* hidden states at a layer boundary, inputs kept for a search */
    TERM_WORKSPACE,   /* activations of the batch in work */
    TERM_SMOOTHING,   /* vectors and searches of outlier suppression */
    TERM_SCRATCH,     /* what lives for one operation */
    TERM_OUTPUT,      /* the files being written */
    TERM_FIXED,       /* program, stacks, libraries' heaps, the model's index */
    TERM_COUNT
} memory_term;

typedef struct memory_peak {
    char unit[128]; /* "model.layers.0.mlp.down_proj" */
    size_t terms[TERM_COUNT];
    size_t total;
} memory_peak;

/* now[] is what is held at the moment; a stage puts it back when it frees what it took. */
typedef struct ledger {
    const run_plan *plan; /* with the layout that is asked about */
    size_t rows, samples; /* of a batch, at most */
    size_t now[TERM_COUNT];
    memory_peak peak;
} ledger;

/* `plan` must stay. `fixed`: held whatever the run does. */
void ledger_begin(ledger *l, const run_plan *plan, size_t fixed);
/* What is held now, with `scratch` bytes more for a moment. */
void ledger_moment(ledger *l, const char *unit, size_t scratch);
/* A stream [tokens, columns] in memory, or what is in memory of one that is spilled. */
size_t ledger_stream_bytes(const ledger *l, size_t tokens, size_t columns);

#endif
