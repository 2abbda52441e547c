/* Outlier suppression as a part of a run: smoothing_plan.c chooses, smoothing.c watches and solves,
 * balance.c does it for queries and keys, smoothing_apply.c hands on what became of norms and float
 * weights, and smoothing_handle.c keeps the result beyond its run. */
#ifndef TARE_PIPELINE_SMOOTHING_H
#define TARE_PIPELINE_SMOOTHING_H

#include "pipeline/run.h"

/* What is watched of a pair while the float layer runs. */
typedef struct pair_watch {
    smooth_stats *stats; /* NULL: the pair is not smoothed */
    size_t channels, rows, seen;
    float *inputs; /* [rows, channels], the first of the pair's inputs; NULL: none are needed */
    float *units;  /* [rows of a batch] lengths of the residual stream's; NULL: none are needed */
} pair_watch;

/* What is watched of the queries and keys of attention (balance.c). */
typedef struct head_watch {
    float *largest[2]; /* [kv_heads, groups] magnitudes of queries and of keys; NULL: nobody asks */
    const block_graph *graph;
    size_t kv_heads, share, head, groups; /* share: heads of queries for one of keys */
} head_watch;

/* The configuration. Checks disable_anti_names, or whether a given smoothing fits. */
tare_status smoothing_plan(run_plan *plan);
/* run.smoothing, for what will be solved or what was given. */
tare_status smoothing_begin(run *r);
/* Is it this run that solves it? */
bool smoothing_solves(const run_plan *plan);
bool smoothing_shifts(const run_plan *plan);
/* Does it divide rows of a linear, which has to wait for what comes of them? */
bool smoothing_moves_rows(const run_plan *plan);
norm_kind smoothing_norm_kind(const run_plan *plan);
/* What smoothing does to the weight of `l`; NULL: nothing. */
smooth_weight *smoothing_of(const run *r, const model_linear *l);
/* Does a shift give `l` a bias that its architecture lacks? */
bool smoothing_creates_bias(const run_plan *plan, const model_linear *l);
tare_status smoothing_watch(run *r, const segment_work *s, pair_watch watch[BLOCK_PAIRS]);
void smoothing_unwatch(run *r, pair_watch watch[BLOCK_PAIRS]);
tare_status pair_watch_inputs(run *r, pair_watch *w, const batch *b, const float *x, size_t k);
/* Scales of all watched pairs, applied in the architecture's order to vectors that stay until
 * smoothing_free_layer. */
tare_status smoothing_solve(run *r, const segment_work *s, const layer_source *source,
                            pair_watch watch[BLOCK_PAIRS], const head_watch *heads);
/* Replaces the norms' weights by the smoothed ones, as stored, and gives them their biases. */
tare_status smoothing_norms(run *r, const segment_work *s, block_norms *norms);
/* to [n,k] <- the rows of `w` as they are written. */
tare_status smoothing_store_rows(run *r, const smooth_weight *w, tare_dtype dtype, void *to);
/* Replaces a weight that stays float by the smoothed one, as it is written. */
tare_status smoothing_store(run *r, const model_linear *l, coded_rows *raw);
void smoothing_free_layer(run *r, size_t layer);
/* Frees what layer_smoothing owns. */
void layer_smoothing_free(tare_context *ctx, layer_smoothing *s);
/* The vectors of a layer (none: nothing is there), written to or read from an archive. */
tare_status smoothing_archive(run *r, const model_block *block, archive *a);
/* Is a pair of the model's graph smoothed in this block? */
bool smoothing_pair_active(const run_plan *plan, const model_block *block, const pair_spec *pair);
/* Does the pair stand between up_proj and down_proj? */
bool is_down_pair(const block_graph *g, const pair_spec *pair);
/* So many of the first samples pass the float model for it. */
size_t smoothing_samples(const run_plan *plan);
/* Is `l` a target of a pair that this run smooths? */
bool smoothing_targets(const run_plan *plan, const model_linear *l);
/* Rows of a pair's inputs that its method reads again. */
size_t smoothing_watched_rows(const run_plan *plan);
/* Accounted bytes, at most: of what stays of a layer; of its pairs while they are watched; of
 * smoothing_solve beside that; of smoothing_store with both its weights. */
size_t smoothing_layer_bytes(const run_plan *plan, const model_block *block);
size_t smoothing_watch_bytes(const run_plan *plan, const segment_work *s);
size_t smoothing_solve_bytes(const run_plan *plan, const segment_work *s);
size_t smoothing_store_bytes(const run_plan *plan, const model_linear *l);

/* ---- balance.c ---- */

/* TARE_E_USAGE: the recipe asks for it, and the model has no place for it. */
tare_status balance_check(const run_plan *plan);
/* Are queries and keys of this block balanced? */
bool balance_active(const run_plan *plan, const model_block *block);
/* The norm that the factors of an operand (0: queries, 1: keys) go into; -1: none. */
int balance_norm(const run_plan *plan, const model_block *block, int operand);
/* Of a segment: nothing is watched where it does not attend. */
tare_status balance_watch(run *r, const segment_work *s, head_watch *w);
void balance_unwatch(run *r, head_watch *w);
void balance_observe(run *r, const head_watch *w, const batch *b, const float *q, const float *k);
/* Into the vectors of the block's smoothing. */
tare_status balance_solve(run *r, const model_block *block, const head_watch *w);
/* Accounted bytes of a watch, at most. */
size_t balance_watch_bytes(const run_plan *plan, const segment_work *s);

/* ---- smoothing_handle.c ---- */

/* The recipe with the smoothing's section anti_outlier. */
void smoothing_recipe(const tare_smoothing *s, const tare_recipe *recipe, tare_recipe *out);
/* Its configuration into the plan. TARE_E_USAGE unless it fits the model. */
tare_status smoothing_take(run_plan *plan, const tare_smoothing *s);
/* Its vectors, which stay the smoothing's, into run.smoothing. */
void smoothing_borrow(run *r, const tare_smoothing *s);
/* A digest of all vectors, as a JSON string. */
tare_status smoothing_digest(run *r, const tare_smoothing *s, buffer *out);
/* What tare_run.json says of it: a JSON map. */
tare_status smoothing_record(run *r, const tare_smoothing *s, buffer *out);
/* The result of a run with GOAL_SMOOTHING, which gives its vectors away. */
tare_status smoothing_keep(run *r, tare_smoothing **out);
/* Accounted bytes of that, at most, beside the vectors. */
size_t smoothing_keep_bytes(const run_plan *plan);

#endif
