/* Outlier suppression (specification: spec/anti_outlier.md): scales s[C] between a source (a norm,
 * or rows of a linear) and the linears that read its output, so that outliers of the activation
 * move into weights while the function stays the same. One group after another, in the declared
 * order of the architecture:
 *
 *     smooth_stats_create(ctx, &cfg, &group, &stats);      before the layer runs
 *     smooth_stats_update(ctx, stats, x, NULL, rows);      once a sample, in order
 *     smooth_solve(ctx, &cfg, &group, stats, &inputs, &scales);
 *     smooth_apply(ctx, &cfg, &group, &scales);
 *
 * Weights stay as they were read: what a group does to them is kept as a vector a side and applied
 * row by row while a row is used (smooth_weight_row). Results do not depend on the thread count.
 *
 * Native dtype (cfg.num.compat with F16 or BF16, section 2): every elementwise operation is rounded
 * to cfg.num.dtype; inputs must be numbers of that dtype. m2 and m5 compute in FP32 even then, and
 * only their s is rounded. */
#ifndef TARE_QUANTIZE_SMOOTH_H
#define TARE_QUANTIZE_SMOOTH_H

#include "quantize/scheme.h"

typedef enum smooth_method {
    SMOOTH_M1 = 1,
    SMOOTH_M2,
    SMOOTH_M3,
    SMOOTH_M4,
    SMOOTH_M5,
    SMOOTH_M6,
    SMOOTH_BALANCE /* spec/rotation.md 4 */
} smooth_method;

typedef struct smooth_config {
    smooth_method method;
    int w_bit;                 /* m3: 4 or 8 */
    bool w_sym;                /* m3 */
    bool has_alpha, has_beta;  /* m6: without either of them both are searched; balance: 0.5 */
    double alpha, beta;        /* m6; alpha: balance's exponent */
    numerics num;              /* compat also: dead channels are scaled like any other */
    size_t tile_bytes;         /* m6 search: most memory of one tile of weights; 0: 512 MiB */
    bool no_early_stop, naive; /* for tests: m6 evaluates all; m3 in the error form */
} smooth_config;

/* A linear. Value [i,j] is raw[i,j] * col_scale[j] / row_scale[i], in the order in which the groups
 * were applied. Every group that scales columns (rows) needs that vector, ones to begin with. */
typedef struct smooth_weight {
    const char *name;
    coded_rows raw; /* [n,k], borrowed */
    size_t n, k;
    float *row_scale, *col_scale; /* [n], [k]; NULL: 1 */
    float *bias;                  /* [n]; NULL: none, and no room for one */
    bool has_bias;                /* false: `bias` is room for one that a shift may create */
    tare_dtype stored;            /* what it is written in if it stays FLOAT; quantized: F32 */
    /* Set by smooth_apply; zero to begin with. */
    bool rows_scaled, cols_scaled, rows_first;
    tare_dtype round; /* F16, BF16: each of the two products is rounded to it */
} smooth_weight;

/* What smooth_apply rounds to: F32 (not) unless the native-dtype switch is on. */
tare_dtype smooth_native(const smooth_config *cfg);

/* out[k] <- one row as it stands. */
void smooth_weight_row(const tare_context *ctx, const smooth_weight *w, size_t row, float *out);

/* y [count,k] <- rows [first, first+count). Parallel. */
void smooth_weight_rows(const tare_context *ctx, const smooth_weight *w, size_t first, size_t count,
                        float *y);

typedef struct smooth_norm {
    float *weight; /* [C] */
    float *bias;   /* [C]; NULL: none, and no room for one */
    bool has_bias;
    bool offset;       /* the gain is 1 + weight (Gemma) */
    tare_dtype stored; /* narrower than F32: s is changed so that weight/s is exact in it */
} smooth_norm;

/* Which rows of a source linear produce which channels: channel ((h * repeat) + g) * width + d, for
 * each g < repeat, reads row first + h * stride + d. Value -> output: heads = KV heads, width =
 * stride = head_dim, repeat = heads / KV heads, first = where V begins in a fused QKV. Up -> down:
 * heads = repeat = 1, width = C, first = where `up` begins in a fused gate_up. DeepSeek's kv_b ->
 * o: width = v, stride = nope + v, first = nope. */
typedef struct smooth_rows {
    size_t first, heads, stride, width, repeat;
} smooth_rows;

typedef struct smooth_group {
    const char *name;      /* of the source, for messages */
    smooth_norm *norm;     /* the source: either this */
    smooth_weight *source; /* or rows of this */
    smooth_rows rows;      /* of `source` */
    smooth_weight *const *targets;
    size_t num_targets;
    size_t channels; /* C */
    double alpha;    /* m4's exponent: 0.9 or 0.5 */
    bool shift;      /* m4: move the centre too; norm and targets need room for a bias */
} smooth_group;

/* ---- statistics (1.3) of the group's input ---- */

typedef struct smooth_stats smooth_stats;

/* `g` is used for its size and names only; the names must stay. 2 vectors of C (m2: 4). */
tare_status smooth_stats_create(tare_context *ctx, const smooth_config *cfg, const smooth_group *g,
                                smooth_stats **out);
void smooth_stats_free(tare_context *ctx, smooth_stats *stats);
/* One sample, x [rows,C]; 0 rows are skipped. `units` [rows] (balance; else NULL): what a row is
 * measured in, as the length of what its product is added to; 0 leaves the row out. NaN or
 * infinity: TARE_E_NUMERIC, now and from smooth_solve. */
tare_status smooth_stats_update(tare_context *ctx, smooth_stats *stats, const float *x,
                                const float *units, size_t rows);

/* ---- search ---- */

/* What smooth_solve reads again: nothing, the first (non-empty) sample or all samples. */
typedef enum smooth_need { SMOOTH_NO_INPUT, SMOOTH_FIRST_SAMPLE, SMOOTH_ALL_SAMPLES } smooth_need;
smooth_need smooth_needs(const smooth_config *cfg);

/* The rows that smooth_stats_update saw, in the same order. */
typedef struct smooth_inputs {
    void *user;
    /* x [count,C] <- rows [first, first+count). Called by one thread at a time. */
    tare_status (*read)(void *user, size_t first, size_t count, float *x);
} smooth_inputs;

typedef struct smooth_scales {
    float *s;     /* [C] factors of the targets' columns */
    float *r;     /* [heads*width] divisors of the source's rows; NULL: norm */
    float *shift; /* [C]; NULL: none */
    /* What was met, for one warning a layer. */
    size_t dead;         /* channels that are 0 in every sample */
    size_t zero_columns; /* of all targets */
    size_t zero_rows;    /* of any target */
    size_t overflows;    /* channels left alone, because a stored value would not fit its dtype */
    /* What was chosen. */
    int candidate;      /* m2: i; m3: i; -1: no search */
    double alpha, beta; /* m6 */
    double loss;        /* of the choice (m2, m3: mean squares; m6: err) */
    size_t evaluated;   /* candidates looked at */
} smooth_scales;

/* Changes nothing but *out. Memory beside vectors: m2 and m3 twice the first sample (m3 also the
 * outputs of 96 rows a thread, and with more tokens than channels 2 [C,C]; m2 with three targets
 * also its outputs), m6 the tile and 256 rows, native m6 the reference product of all samples.
 * `inputs` may be NULL where smooth_needs says so. TARE_E_NUMERIC for what is not finite,
 * TARE_E_MODEL for shapes that contradict each other; messages name source, first target and C. */
tare_status smooth_solve(tare_context *ctx, const smooth_config *cfg, const smooth_group *g,
                         const smooth_stats *stats, const smooth_inputs *inputs,
                         smooth_scales *out);
void smooth_scales_free(tare_context *ctx, smooth_scales *scales);

/* Queries and keys (spec/rotation.md 5): by what a channel of queries is multiplied, and the same
 * of keys divided, so that their largest values are equal; 1 where either is 0. `exact`: a power of
 * two, of which a narrow dtype loses nothing. */
float smooth_balance_factor(float queries, float keys, bool exact);

/* Accounted bytes, at most: of statistics, their update included; of smooth_solve and smooth_apply
 * together, without what `inputs` holds. Of `g` sizes alone are used; the first sample has
 * `first_rows` rows, all samples have `rows`. */
size_t smooth_stats_bytes(const smooth_config *cfg, size_t channels);
size_t smooth_solve_bytes(const tare_context *ctx, const smooth_config *cfg, const smooth_group *g,
                          size_t first_rows, size_t rows);

/* Section 1.4. Fails (TARE_E_MEMORY) before anything is changed. */
tare_status smooth_apply(tare_context *ctx, const smooth_config *cfg, const smooth_group *g,
                         const smooth_scales *scales);

#endif
