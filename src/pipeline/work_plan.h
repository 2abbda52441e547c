/* How much work a run is: bytes, operations, and an estimate of its time from rates that a short
 * probe measures with the run's own kernels and shapes. */
#ifndef TARE_PIPELINE_WORK_PLAN_H
#define TARE_PIPELINE_WORK_PLAN_H

#include "pipeline/run.h"

/* Fills in everything of *out but the memory. With `probe` rates and time too. */
tare_status work_plan_make(const run_plan *plan, bool probe, tare_plan *out);

/* The work of a run, or of a slice of one: without rates. */
void work_plan_amounts(const run_plan *plan, tare_plan *out);

/* ---- probe.c ---- */

/* Rates of all kinds in *work that have an amount. Takes about `seconds` at most; what does not fit
 * stays unknown (0). */
tare_status probe_rates(const run_plan *plan, double seconds, tare_work work[WORK_COUNT]);

#endif
