/* Orthogonal matrices that are quick to multiply with (specification: spec/rotation.md 2): random
 * signs times a Hadamard matrix, the Kronecker product of Sylvester's 2^a and of a small dense one,
 * by Paley's constructions; where no such order divides n, of a seeded orthogonal matrix of n's odd
 * part. */
#ifndef TARE_TENSOR_ROTATION_H
#define TARE_TENSOR_ROTATION_H

#include "base/memory.h"

/* R = diag(signs) * (Sylvester (x) dense), [n,n], R R^T = 1; and, mirrored, R - 2 (R v) v^T. */
typedef struct rotation {
    size_t n, order; /* n = 2^a * order */
    float *signs;    /* [n] +-1, divided by what makes the other two orthogonal */
    float *dense;    /* [order,order]: orthogonal, or, where `paley`, +-1 */
    bool paley;
    float *mirror; /* [n] v, of length 1; NULL: none */
} rotation;

/* What a seed and `part` (which of a model's rotations) determine. */
tare_status rotation_create(tare_context *ctx, size_t n, uint64_t seed, uint32_t part,
                            rotation *out);
/* R becomes R - 2 (R v) v^T: what it made of a vector is mirrored. v [n] of length 1 is copied. */
tare_status rotation_mirror(tare_context *ctx, rotation *r, const float *v);
void rotation_free(tare_context *ctx, rotation *r);
/* The order of the dense matrix of rotation_create, 1 for powers of two; *paley false: it is no
 * Hadamard matrix. */
size_t rotation_order(size_t n, bool *paley);

/* x [n,columns] <- R^T x, in FP32, on every CPU the same; `room` of as many floats is overwritten.
 * Of a row vector in a column this is x R. */
void rotation_apply(const tare_context *ctx, const rotation *r, float *x, size_t columns,
                    float *room);
/* rows [count,n] <- rows [first, first+count) of R; `room` of as many floats is overwritten. */
void rotation_rows(const tare_context *ctx, const rotation *r, size_t first, size_t count,
                   float *rows, float *room);

#endif
