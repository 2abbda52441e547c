/* Measures what a model's passes consist of, with the model's own shapes, on made-up data. */
#ifndef TARE_FORWARD_PROBE_H
#define TARE_FORWARD_PROBE_H

#include "forward/linear.h"

/* Of the usual size and spread; NULL when out of memory. */
float *probe_floats(tare_context *ctx, size_t count);
void *probe_weights(tare_context *ctx, tare_dtype dtype, size_t count);
const model_linear *probe_linear(const tare_model *model);
/* Does `piece` of so many units until enough time has passed; the mean rate. */
tare_status probe_repeat(tare_status (*piece)(void *user), void *user, double units, double *rate);

/* Operations a second of float products with `rows` tokens (at most 192) at a time. */
tare_status probe_products(tare_model *model, gemm_compute compute, size_t rows, double *rate);
/* Weights a second, to compute format. */
tare_status probe_packing(tare_model *model, gemm_compute compute, double *rate);
/* Bytes a second; stays 0 where the checkpoint has no data on disk. */
tare_status probe_reading(tare_model *model, double *rate);

#endif
