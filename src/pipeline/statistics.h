/* What calibration found, kept beside the output (output.h's STATISTICS_FILE, docs/statistics.md)
 * so that another run needs no samples. */
#ifndef TARE_PIPELINE_STATISTICS_H
#define TARE_PIPELINE_STATISTICS_H

#include "pipeline/run.h"
#include "quantize/channel_range.h"

/* ---- statistics.c: writing them as the run goes on; nothing happens where none are kept ---- */

/* Behind plan_output; goes on with what an earlier process wrote. */
tare_status statistics_open(run *r);
/* TARE_E_IO, TARE_E_FORMAT unless an earlier process left them below `stage`. */
tare_status statistics_check(run *r, const char *stage);
tare_status statistics_sync(run *r);
/* All that the observer of a unit's input says, and the range of its channels, whose memory is used
 * up. */
tare_status statistics_input(run *r, size_t unit, const observer *o, channel_range *range);
tare_status statistics_keys_and_values(run *r, size_t layer, const kv_observer *o);
/* What else is known of a layer when it is done. */
tare_status statistics_layer(run *r, const model_block *block);
tare_status statistics_finish(run *r);
/* In any case. `leave`: the file stays, for a run that goes on. */
void statistics_close(run *r, bool leave);
/* Accounted bytes, at most. */
size_t statistics_bytes(const run_plan *plan);

/* ---- statistics_take.c: a run with options.statistics ---- */

/* Scores, run.inputs, smoothing and what attentions have, as far as the plan needs them; decides
 * disable_level. TARE_E_USAGE, TARE_E_DATA for what cannot be had from there. */
tare_status statistics_take(run *r, run_plan *plan);
/* Copies the statistics to the output. */
tare_status statistics_pass_on(run *r);
/* A digest as a JSON string, and what tare_run.json says: a JSON map. */
void statistics_digest(const run *r, buffer *out);
void statistics_record(const run *r, buffer *out);
void statistics_let_go(run *r);

#endif
