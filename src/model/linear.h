/* Float linears in compute format: what the plain forward pass runs on. */
#ifndef TARE_MODEL_LINEAR_H
#define TARE_MODEL_LINEAR_H

#include "model/decoder.h"
#include "tensor/gemm.h"

/* The weight of a linear as bytes in memory. */
typedef struct raw_weight {
    void *data; /* [n,k] in `dtype`; mem_free */
    tare_dtype dtype;
} raw_weight;

/* Reads the whole weight, in the model's load_dtype if it has one. */
tare_status linear_read(tare_model *model, const model_linear *linear, raw_weight *out);

/* Accounted bytes, at most: of a weight in memory, and while it is read. */
size_t linear_raw_bytes(const tare_model *model, const model_linear *linear);
size_t linear_read_bytes(const tare_model *model, const model_linear *linear);
/* The dtype that linear_read gives. */
tare_dtype linear_raw_dtype(const tare_model *model, const model_linear *linear);

typedef struct float_linear {
    gemm_weight *weight;
    float *bias; /* [n]; NULL: none */
} float_linear;

/* From a weight in memory, or by way of linear_read. */
tare_status float_linear_create(tare_model *model, const model_linear *linear, gemm_compute compute,
                                const raw_weight *raw, float_linear *out);
tare_status float_linear_load(tare_model *model, const model_linear *linear, gemm_compute compute,
                              float_linear *out);
/* Accounted bytes at most of the result for a weight in `dtype`, and what making it needs beside.
 */
size_t float_linear_bytes(const tare_model *model, const model_linear *linear, gemm_compute compute,
                          tare_dtype dtype);
size_t float_linear_making_bytes(const model_linear *linear);
void float_linear_free(tare_context *ctx, float_linear *l);

/* All float linears of one layer, by role; `ops` runs them. */
typedef struct float_layer {
    tare_model *model;
    size_t layer;
    gemm_compute compute;
    const raw_weight
        *raw; /* by role; not NULL: a linear is made when its group runs, and goes then */
    float_linear linears[ROLE_COUNT];
} float_layer;

tare_status float_layer_load(tare_model *model, size_t layer, gemm_compute compute,
                             float_layer *out);
/* From weights in memory, by role. */
tare_status float_layer_create(tare_model *model, size_t layer, gemm_compute compute,
                               const raw_weight raw[ROLE_COUNT], float_layer *out);
/* The same without float copies that stay: `raw` is borrowed, and a batch makes one linear after
 * the other from it. Less memory, the same numbers, more time. */
void float_layer_borrow(tare_model *model, size_t layer, gemm_compute compute,
                        const raw_weight raw[ROLE_COUNT], float_layer *out);
void float_layer_free(float_layer *l);
/* layer_ops.linears with `user` = float_layer. */
tare_status float_layer_linears(void *user, linear_group group, const batch *b, const float *x,
                                float *const *y);

/* Calls `row` with the embedding [hidden] of each of ids[count], in no particular order. The matrix
 * is streamed once, never held; `also` (may be NULL) sees its pieces. TARE_E_DATA for an id beyond
 * the vocabulary. */
typedef tare_status (*embed_row_fn)(void *user, size_t index, const float *x);
tare_status embed_tokens(tare_model *model, const uint32_t *ids, size_t count, embed_row_fn row,
                         model_rows_fn also, void *user);
/* Accounted bytes, at most, without those that `also` needs. */
size_t embed_tokens_bytes(const tare_model *model, size_t count);
/* x [count, hidden] <- the embeddings of a few ids[count]: their rows alone are read. */
tare_status embed_into(tare_model *model, const uint32_t *ids, size_t count, float *x);
size_t embed_into_bytes(const tare_model *model);

/* BF16 operands where the checkpoint is BF16 and the context's kernels are AMX; else FP32. */
gemm_compute compute_default(const tare_model *model);

#endif
