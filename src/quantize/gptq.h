/* Integer weights rounded by what their linears read (GPTQ, Frantar et al. 2022; spec/rotation.md
 * 6): columns from left to right, each with what the errors before it left over. Of the quantized
 * inputs x' [rows,k] of a unit, as an engine will see them, a Hessian H = x'^T x' is summed, damped
 * by 0.01 of its mean diagonal; columns keep their order.
 *
 *     gptq_create(ctx, k, &g);
 *     gptq_add(ctx, g, x, rows, quantize, user);      of all samples, in order
 *     gptq_factor(ctx, g);
 *     gptq_round(ctx, g, &rows, &q);                  of each linear of the unit
 *
 * What GPTQ's upper factor of H^-1 says stands in the factor H = R R^T, R upper triangular, which
 * is its inverse: with errors e_m = w_m - q_m s of the columns before, column i is rounded as w_i +
 * sum_m e_m R_mi / R_ii (LDLQ: Chee et al. 2023, theorem 6). So nothing is inverted.
 *
 * The result depends on the rows and their order alone: sums go by chunks of 256 rows of all
 * samples, whatever the calls, and no sum depends on threads. */
#ifndef TARE_QUANTIZE_GPTQ_H
#define TARE_QUANTIZE_GPTQ_H

#include "quantize/scheme.h"

/* Units that read more keep plainly rounded weights: H would take more than 2 GiB. */
enum { GPTQ_MOST_CHANNELS = 32768 };

typedef struct gptq gptq;

/* H = 0. Owned by the caller. */
tare_status gptq_create(tare_context *ctx, size_t k, gptq **out);
/* NULL is allowed. */
void gptq_free(tare_context *ctx, gptq *g);

/* x[n] <- what an engine makes of some values of a row (of those given). Called from any thread. */
typedef void gptq_input(void *user, size_t row, float *x, size_t n);
/* Rows x [rows,k], not changed; `quantize` NULL: they are seen as they are. */
void gptq_add(const tare_context *ctx, gptq *g, const float *x, size_t rows, gptq_input *quantize,
              void *user);
/* No rows can be added any more. TARE_E_NUMERIC: H is not finite. */
tare_status gptq_factor(tare_context *ctx, gptq *g);
/* Rounds the integers of *q anew, which weight_quantize_rows made of the same rows: its scales and
 * zero rows stay, q and row_sums change. Without any input that is not 0 nothing does. */
tare_status gptq_round(tare_context *ctx, const gptq *g, const weight_rows *rows,
                       quantized_weight *q);

/* Accounted bytes, at most: of *g; of gptq_round beside it. */
size_t gptq_bytes(size_t k);
size_t gptq_round_bytes(const tare_context *ctx, size_t n, size_t k);
/* Operations of gptq_add for each row, of gptq_factor, and of gptq_round for each row. */
double gptq_add_operations(size_t k);
double gptq_factor_operations(size_t k);
double gptq_round_operations(size_t k);

#endif
