/* Float linears in compute format: what the plain forward pass runs on. */
#ifndef TARE_FORWARD_LINEAR_H
#define TARE_FORWARD_LINEAR_H

#include "forward/executor.h"
#include "tensor/gemm.h"

/* Accounted bytes, at most: of a weight in memory (stored_load), and while it is read. */
static inline size_t linear_raw_bytes(const model_linear *linear)
{
    return stored_room_bytes(&linear->weight, linear->n);
}

static inline size_t linear_read_bytes(const model_linear *linear)
{
    return linear_raw_bytes(linear) + stored_reading_bytes(&linear->weight, linear->n);
}

typedef struct float_linear {
    gemm_weight *weight;
    float *bias; /* [n]; NULL: none */
} float_linear;

/* From a weight in memory, or by way of stored_load. */
tare_status float_linear_create(tare_model *model, const model_linear *linear, gemm_compute compute,
                                const coded_rows *raw, float_linear *out);
tare_status float_linear_load(tare_model *model, const model_linear *linear, gemm_compute compute,
                              float_linear *out);
/* Accounted bytes, at most, of the result, and what making it needs beside. */
size_t float_linear_bytes(const model_linear *linear, gemm_compute compute);
size_t float_linear_making_bytes(const model_linear *linear);
void float_linear_free(tare_context *ctx, float_linear *l);

/* All float linears of one block, in its order; `ops` runs them. */
typedef struct float_block {
    tare_model *model;
    const model_block *block;
    gemm_compute compute;
    const coded_rows *raw; /* [linears] of the block; not NULL: a linear is made when its unit runs,
                              and goes then */
    float_linear linears[BLOCK_LINEARS];
} float_block;

tare_status float_block_load(tare_model *model, const model_block *block, gemm_compute compute,
                             float_block *out);
/* Of a segment (NULL: all), from weights in memory, in the block's order. */
tare_status float_block_create(tare_model *model, const model_block *block,
                               const block_segment *segment, gemm_compute compute,
                               const coded_rows *raw, float_block *out);
/* The same without float copies that stay: `raw` is borrowed, and a batch makes one linear after
 * the other from it. Less memory, the same numbers, more time. */
void float_block_borrow(tare_model *model, const model_block *block, gemm_compute compute,
                        const coded_rows *raw, float_block *out);
void float_block_free(float_block *l);
/* block_ops.linears with `user` = float_block. */
tare_status float_block_linears(void *user, graph_unit unit, const batch *b, const float *x,
                                float *const *y);

/* Calls `row` with the embedding [hidden] of each of ids[count], in no particular order. The matrix
 * is streamed once, never held; `also` (may be NULL) sees its pieces. TARE_E_DATA for an id beyond
 * the vocabulary. */
typedef tare_status (*embed_row_fn)(void *user, size_t index, const float *x);
tare_status embed_tokens(tare_model *model, const uint32_t *ids, size_t count, embed_row_fn row,
                         stored_rows_fn also, void *user);
/* Accounted bytes, at most, without those that `also` needs. */
size_t embed_tokens_bytes(const tare_model *model, size_t count);
/* x [count, hidden] <- the embeddings of a few ids[count]: their rows alone are read. */
tare_status embed_into(tare_model *model, const uint32_t *ids, size_t count, float *x);
size_t embed_into_bytes(const tare_model *model);

/* BF16 operands where the checkpoint is BF16 and the context's kernels are AMX; else FP32. */
gemm_compute compute_default(const tare_model *model);

#endif
