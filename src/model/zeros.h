/* A file that was preallocated and never written to the end holds zeros: linears and norms that are
 * zero throughout. Warns, and names them. Of each tensor as much is read as leads to a value other
 * than zero, usually a few KiB; holes in files are not read. */
#ifndef TARE_MODEL_ZEROS_H
#define TARE_MODEL_ZEROS_H

#include "model/model.h"

tare_status model_warn_of_zeros(tare_model *model);

#endif
