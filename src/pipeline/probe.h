/* The probe's pieces: each measures one kind of work with the kernels and shapes of the run, in
 * units of its tare_work a second. Private to probe.c and probe_quantize.c. */
#ifndef TARE_PIPELINE_PROBE_H
#define TARE_PIPELINE_PROBE_H

#include "base/progress.h"
#include "forward/probe.h"
#include "pipeline/work_plan.h"
#include "quantize/score.h"
#include "tensor/convert.h"

tare_status probe_int8(const run_plan *plan, double *rate);
tare_status probe_float(const run_plan *plan, double *rate);
tare_status probe_pack(const run_plan *plan, double *rate);
tare_status probe_attention(const run_plan *plan, double *rate);
tare_status probe_rows(const run_plan *plan, double *rate);
tare_status probe_smoothing(const run_plan *plan, double *rate);
tare_status probe_quantize(const run_plan *plan, double *rate);
tare_status probe_observe(const run_plan *plan, double *rate);
tare_status probe_fa(const run_plan *plan, double *rate);
tare_status probe_score(const run_plan *plan, double *rate);
/* Stays 0 where the checkpoint has no data on disk. */
tare_status probe_read(const run_plan *plan, double *rate);

#endif
