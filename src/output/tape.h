/* An output that is not written yet: everything that a run declares and writes (output.h), kept in
 * a scratch file without a name, so that outputs of any save type can be made from it later, by the
 * same calls and so to the same bytes. It takes about as much disk as one output; in memory there
 * is only what describes the tensors.
 *
 *     output_tape_create(ctx, folder, &tape);
 *     output_open(ctx, &(output_options){.tape = tape, …}, &o);   … output_finish(o, "", NULL);
 *     output_tape_play(tape, &(output_options){.dir = …, .save = …}, run_json, &bytes);  any often
 */
#ifndef TARE_OUTPUT_TAPE_H
#define TARE_OUTPUT_TAPE_H

#include "output/output.h"

/* The file is made in `folder` once its size is known. */
tare_status output_tape_create(tare_context *ctx, const char *folder, output_tape **out);
/* NULL is allowed. The file goes too. */
void output_tape_free(output_tape *t);
/* Bytes of the scratch file. */
uint64_t output_tape_bytes(const output_tape *t);
/* Was the output that it holds finished? */
bool output_tape_complete(const output_tape *t);
/* Writes an output. Of `how` dir, save, part_file_size, safetensors_name, json_name, overwrite and
 * verify count; the rest is as it was recorded. `run_json` and *bytes as in output_finish. */
tare_status output_tape_play(const output_tape *t, const output_options *how, const char *run_json,
                             uint64_t *bytes);

#endif
