/* How much work a run is: bytes, operations, and an estimate of its time from rates that a short
 * probe measures with the run's own kernels and shapes. */
#ifndef TARE_PIPELINE_WORK_PLAN_H
#define TARE_PIPELINE_WORK_PLAN_H

#include "pipeline/memory_plan.h"

typedef enum work_kind {
    WORK_INT8,      /* products of quantized linears */
    WORK_FLOAT,     /* products of float linears */
    WORK_SMOOTHING, /* searching scales */
    WORK_ATTENTION, /* scores and sums */
    WORK_QUANTIZE,  /* weights, from how they are stored to integers */
    WORK_PACK,      /* weights to compute format */
    WORK_OBSERVE,   /* observing and quantizing activations */
    WORK_FA,        /* observing q, k and v */
    WORK_SCORE,     /* scores of inputs */
    WORK_ROWS,      /* norms, sums, gates */
    WORK_READ,      /* the checkpoint */
    WORK_WRITE,     /* the output */
    WORK_VERIFY,    /* reading the output again */
    WORK_COUNT
} work_kind;

/* Fills in everything of *out but the memory. With `probe` rates and time too. */
tare_status work_plan_make(const run_plan *plan, bool probe, tare_plan *out);

/* ---- probe.c ---- */

/* Rates of all kinds in *work that have an amount. Takes about `seconds` at most; what does not fit
 * stays unknown (0). */
tare_status probe_rates(const run_plan *plan, double seconds, tare_work work[WORK_COUNT]);

#endif
