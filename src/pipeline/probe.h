/* The probe's pieces: each measures one kind of work with the kernels and shapes of the run, in
 * units of its tare_work a second. Private to probe.c and probe_quantize.c. */
#ifndef TARE_PIPELINE_PROBE_H
#define TARE_PIPELINE_PROBE_H

#include "forward/probe.h"
#include "pipeline/work_plan.h"
#include "tensor/convert.h"

tare_status probe_int8(run *r, double *rate);
tare_status probe_float(run *r, double *rate);
tare_status probe_pack(run *r, double *rate);
tare_status probe_attention(run *r, double *rate);
tare_status probe_rows(run *r, double *rate);
tare_status probe_smoothing(run *r, double *rate);
tare_status probe_quantize(run *r, double *rate);
tare_status probe_observe(run *r, double *rate);
tare_status probe_fa(run *r, double *rate);
tare_status probe_score(run *r, double *rate);
/* Stays 0 where the checkpoint has no data on disk. */
tare_status probe_read(run *r, double *rate);

#endif
