/* Measures what a model's float passes consist of, on the first rows of one of its linears. */
#ifndef TARE_FORWARD_PROBE_H
#define TARE_FORWARD_PROBE_H

#include "forward/linear.h"

/* [rows, cols] where the checkpoint has no data on disk: channels differ by up to 16 times, as they
 * do in trained models. NULL when out of memory. */
float *probe_floats(tare_context *ctx, size_t rows, size_t cols);
/* Leaves a linear its first rows, at most so many, as they are stored: an edit may mix all rows.
 * And its weight, made up where there is no data on disk. */
void probe_cut(model_linear *linear, size_t rows);
tare_status probe_weight(tare_model *model, const model_linear *cut, coded_rows *out);

/* Weights a second to compute format, and operations a second of float products with `rows` tokens
 * (at most 192) at a time. */
tare_status probe_products(tare_model *model, gemm_compute compute, size_t rows, double *packing,
                           double *products);
/* Bytes a second; stays 0 where the checkpoint has no data on disk. */
tare_status probe_reading(tare_model *model, double *rate);

#endif
