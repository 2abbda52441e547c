/* Checkpoints that are quantized already: by config.json, by files beside it, by their tensors. */
#ifndef TARE_MODEL_QUANTIZED_H
#define TARE_MODEL_QUANTIZED_H

#include "model/model.h"

/* Sets m->fp8_blocks if config.json says that linears are FP8 with a scale for each 128 x 128, and
 * activations dynamic: the one quantized form that is read (tensor/codec.h). */
tare_status quantized_take_form(tare_model *m);
/* Is it the tensor of a linear's scales in that form? */
bool quantized_is_scale(const tare_model *m, const char *name);

/* `status` is what opening `m` as a float model came to, as far as it got. A failure that is the
 * model's fault gets a word in front where it is quantized already: by what, and that the float
 * original is needed. A float model beside whose weights there are a quantizer's, and config.json
 * says so, is refused too; where only config.json says so, that is left over from elsewhere: a
 * warning, unless `quiet`. */
tare_status quantized_check(tare_model *m, tare_status status, bool quiet);

#endif
