/* Rotary position embedding: frequencies by rope_type, and tables of cos and sin (spec/models.md,
 * section 1.4). */
#ifndef TARE_MODEL_ROPE_H
#define TARE_MODEL_ROPE_H

#include "base/memory.h"

typedef enum rope_type { ROPE_DEFAULT, ROPE_LLAMA3 } rope_type;

typedef struct rope_config {
    rope_type type;
    double theta;
    double factor, low_freq_factor, high_freq_factor, original_max_position; /* llama3 */
} rope_config;

/* False if the name is unknown. */
bool rope_type_find(const char *name, rope_type *out);
/* f[head_dim/2]: radians a position. */
void rope_frequencies(const rope_config *config, size_t head_dim, float *f);

/* cos and sin of positions 0..tokens-1, each [tokens, head_dim/2]; freed with rope_table_free. */
typedef struct rope_table {
    size_t tokens, half;
    float *cos, *sin;
} rope_table;

tare_status rope_table_create(tare_context *ctx, const rope_config *config, size_t head_dim,
                              size_t tokens, rope_table *out);
void rope_table_free(tare_context *ctx, rope_table *table);

#endif
