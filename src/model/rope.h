/* Rotary position embedding: frequencies by rope_type, and tables of cos and sin (spec/models.md,
 * section 1.4). */
#ifndef TARE_MODEL_ROPE_H
#define TARE_MODEL_ROPE_H

#include "base/memory.h"

typedef enum rope_type {
    ROPE_DEFAULT,
    ROPE_LINEAR,
    ROPE_DYNAMIC, /* frequencies depend on the length of the sequence */
    ROPE_LLAMA3,
    ROPE_YARN,
    ROPE_LONGROPE /* two sets of frequencies, for sequences up to a length and for longer ones */
} rope_type;

#define ROPE_TYPE_NAMES                                                                            \
    "default, linear, dynamic, llama3, yarn, longrope" /* in the enum's order                      \
                                                        */

typedef struct rope_config {
    rope_type type;
    double theta;
    double factor;                              /* all but default */
    double max_position;                        /* of config.json: dynamic begins beyond it */
    double low_freq_factor, high_freq_factor;   /* llama3 */
    double original_max_position;               /* llama3, yarn; longrope: long ones are longer */
    double beta_fast, beta_slow;                /* yarn */
    double mscale_all_dim;                      /* yarn; 0: not given */
    bool keep_fractions;                        /* yarn: truncate is false */
    const double *short_factors, *long_factors; /* longrope: what divides each frequency */
    double attention_factor;                    /* cos and sin are multiplied by it */
} rope_config;

/* False if the name is unknown. */
bool rope_type_find(const char *name, rope_type *out);
/* What yarn derives its attention factor from: g(s, m) of the spec. */
double rope_yarn_mscale(double factor, double mscale);
/* f[head_dim/2]: radians a position, in a sequence of so many tokens. */
void rope_frequencies(const rope_config *config, size_t head_dim, size_t tokens, float *f);

/* cos and sin of positions 0..tokens-1, each [tokens, head_dim/2]; freed with rope_table_free.
 * Sequences that the table's frequencies do not fit get theirs in a room of the thread. */
typedef struct rope_table {
    const rope_config *config;
    size_t tokens, half;
    float *cos, *sin, *frequencies;
    size_t threads; /* 0: one table serves all */
    float *rooms;   /* [threads, 3, head_dim/2] */
} rope_table;

/* For sequences of up to `tokens` tokens, on up to `threads` threads; borrows `config`. */
tare_status rope_table_create(tare_context *ctx, const rope_config *config, size_t head_dim,
                              size_t tokens, size_t threads, rope_table *out);
void rope_table_free(tare_context *ctx, rope_table *table);
/* Accounted bytes, at most, creation included. */
size_t rope_table_bytes(const rope_config *config, size_t head_dim, size_t tokens, size_t threads);

/* One sequence of so many tokens, the past included, on one thread. */
typedef struct rope_sequence {
    const rope_table *table;
    float *room; /* [3, half] frequencies, cos, sin; NULL: the table has its positions */
} rope_sequence;

rope_sequence rope_sequence_begin(const rope_table *table, size_t tokens, int thread);
/* cos and sin [half] of a position, valid until the next call. */
void rope_sequence_at(const rope_sequence *s, size_t position, const float **cos,
                      const float **sin);

#endif
