/* The row kernels of a model that computes in F16 or BF16, as PyTorch's eager operators do on a
 * CPU: every operator widens its operands to FP32 and rounds its result once, so a formula of
 * several operators rounds between them. Inputs are numbers of `dtype`, and so are the results.
 * Same arguments as the kernels of these names (tensor/kernels.h); one scalar form, since only
 * compat runs them. */
#ifndef TARE_TENSOR_ROUNDED_H
#define TARE_TENSOR_ROUNDED_H

#include "tensor/round.h"

/* x[n] <- rounded; F32 leaves it. */
void round_values(float *x, size_t n, tare_dtype dtype);

/* FP32 up to the normalized row, which is rounded before the weight multiplies it, unless the
 * weight counts from another base than 0: then at the end alone. Each step of the
 * root is rounded to FP32: one value of 1536 that came out one FP16 unit off changed 130 values,
 * and with them a candidate of m3, half a layer later. */
void rounded_rms_norm(const float *x, const float *w, size_t n, float eps, float base,
                      tare_dtype dtype, float *y);
/* cos and sin are rounded too. */
void rounded_rope(float *x, const float *cos, const float *sin, size_t d, tare_dtype dtype);
/* Of neighbours (0, 1), (2, 3), …; in F32 too, without rounding. */
void rounded_rope_neighbours(float *x, const float *cos, const float *sin, size_t d,
                             tare_dtype dtype);
void rounded_silu_mul(float *gate, const float *up, size_t n, tare_dtype dtype);
void rounded_gelu_mul(float *gate, const float *up, size_t n, tare_dtype dtype);
/* x <- softmax(softcap(scale * x)) of dot products, whose FP32 sums are rounded first. */
void rounded_softmax(float *x, size_t n, float scale, float softcap, tare_dtype dtype);

#endif
