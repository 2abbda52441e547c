/* Means of the norms' outputs of a rotated model: means.c. */
#ifndef TARE_PIPELINE_MEANS_H
#define TARE_PIPELINE_MEANS_H

#include "model/rotate.h"
#include "pipeline/job.h"

typedef struct stream_means stream_means;

/* Is the model's rotation aligned by samples, or by what an earlier run kept of them? Only where
 * its statistics say how. */
bool plan_aligns(const run_plan *plan);
/* Is there a pass for it; and that pass, a float pass that asks for nothing else, of no samples
 * where there is none. */
bool plan_passes_means(const run_plan *plan);
run_plan plan_of_means(const run_plan *plan);
/* Over the weights, with this one. */
size_t count_passes(const run_plan *plan);
/* Runs the pass, if there is one, and aligns the model. run.means stays for the statistics. */
tare_status means_pass(run_job *j);
/* Room for all means, without numbers; as model_align takes them. */
tare_status means_create(run *r, stream_means **out);
void means_free(run *r, stream_means *s);
float *const *means_of(const stream_means *s);
/* Is it their pass that goes on? */
bool means_are_open(const run *r);

/* While it runs: what a unit reads, and the end of a block. */
void means_add(run *r, const model_block *b, graph_unit unit, const float *x, size_t rows);
void means_end_block(run *r, const model_block *b);

/* Accounted bytes of the means, at most; and of the pass. */
size_t means_bytes(const run_plan *plan);
void means_hold(ledger *l);

#endif
