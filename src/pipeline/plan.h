/* What a run is, before it begins: what it is given (run_env) and what was decided from that, from
 * headers, shapes and the lengths of the prompts alone (run_plan). Stages read both and change
 * neither; run.h has what changes while a run goes on. Between two passes job.c and quantize.c
 * change what is known then: the schemes that disable_level takes back, and how the next pass is
 * laid out. */
#ifndef TARE_PIPELINE_PLAN_H
#define TARE_PIPELINE_PLAN_H

#include "calibration/samples.h"
#include "model/model.h"
#include "output/layout.h"
#include "output/output.h"
#include "quantize/fa3.h"
#include "quantize/observer.h"
#include "quantize/recipe.h"
#include "quantize/rules.h"
#include "quantize/smooth.h"
#include "tensor/gemm.h"

/* What a run is for. */
typedef enum run_goal {
    GOAL_OUTPUT,
    GOAL_SMOOTHING, /* run.smoothing of all layers: the float pass, no output */
    GOAL_SCORES /* of all linears, by range_method: the float pass over all samples, no output */
} run_goal;

typedef enum run_pass {
    PASS_FLOAT,
    PASS_QUANTIZE, /* or weights alone */
    PASS_MEANS     /* before either */
} run_pass;

/* What is given and opened. */
typedef struct run_env {
    tare_context *ctx;
    run_goal goal;
    tare_range_method range_method;
    const tare_quantize_options *options;
    const tare_recipe *recipe; /* as it holds */
    tare_model *model;
    sample_set samples;
    numerics num;
    gemm_compute compute;
    unsigned save;             /* SAVE_* bits */
    tare_recording *recording; /* NULL: the output is written as it is made; else it is kept in */
    output_tape *tape;         /* the recording's tape */
    arena *arena;              /* of what lives as long as the run */
} run_env;

/* The attention of one layer. */
typedef struct attention_plan {
    const char *name;
    bool quantize; /* to FA3 */
    bool kv_cache; /* its keys and values, to C8 */
} attention_plan;

/* How a run is laid out in memory. The output never depends on it. */
typedef struct run_layout {
    size_t
        batch_rows; /* most rows (tokens) of one batch, but for a longer sample, which goes alone */
    bool whole_layer; /* float copies of all linears of a segment at once; else one at a time */
    graph_cut cut;    /* what of a block is resident at once */
    bool spill;       /* hidden states lie in scratch files */
    bool overlap;     /* the next layer is read while this one is computed */
} run_layout;

typedef struct segment_list {
    block_segment items[BLOCK_SEGMENTS];
    size_t count;
} segment_list;

/* A segment of a block of the run. */
typedef struct segment_work {
    const model_block *block;
    const block_segment *segment, *next; /* next NULL: the block ends with it */
    bool is_expert; /* the block is an expert, and sees the rows that chose it: */
    size_t expert;
} segment_work;

/* The linears of the model that run in it: [first, end). */
size_t segment_first(const segment_work *s);
size_t segment_end(const segment_work *s);

typedef struct run_plan {
    const run_env *env;
    bool weights_alone;            /* nothing depends on what passes the model */
    bool calibrates;               /* samples pass it; else tensors are made in pieces */
    bool final_scales;             /* what a static unit reads is observed over all samples before
                                      they go through it */
    bool gptq;                     /* weights are rounded by what samples show of their inputs */
    bool keeps_statistics;         /* of what passes, beside the output */
    linear_plan *linears;          /* [model.num_linears], as in the model: the head is the last */
    attention_plan *attentions;    /* [layers] */
    size_t num_fa, num_kv;         /* of those that are quantized, by either */
    smooth_config smooth;          /* outlier suppression, if `smooths` */
    bool smooths, smoothing_given; /* by the caller, who owns its vectors: none is solved */
    bool wants_scores;
    bool two_passes;   /* all layers pass as floats before the first is quantized */
    bool float_beside; /* or the float stream runs beside, layer by layer */
    bool levels_known; /* disable_level has been decided */
    size_t score_samples, score_tokens; /* the first samples, which the score looks at */
    size_t float_samples, float_tokens; /* and those that pass the float model */
    run_layout layout;                  /* of the pass in work; before that, of the run */
    segment_list segments[BLOCK_KINDS]; /* of each block, by that */
} run_plan;

#define KEY_LINEAR ".self_attn.k_proj" /* where keys have a linear of their own */

/* Which scheme each linear and attention gets, what is smoothed, and how samples will pass. */
tare_status plan_linears(run_plan *plan);
/* Once the samples are there (or none are needed): how they pass. */
void plan_streams(run_plan *plan);
/* Does any linear need a range of its inputs? */
bool plan_uses_static(const run_plan *plan);
/* Is linear `index` of the model, if it is quantized, rounded by its inputs? Not where they are too
 * wide, nor the head, whose rows come in pieces. */
bool plan_rounds(const run_plan *plan, size_t index);
/* Rows of one batch, at most: a sample that is longer than a batch goes alone. */
size_t plan_most_rows(const run_plan *plan);
/* The same where there are so many. */
size_t plan_batch_rows(const run_plan *plan);
/* May a linear that is not float yet become so, as disable_level has not been decided? */
bool plan_may_fall_back(const run_plan *plan);
/* One of the segments that the plan cuts a block into, and how many those are. */
segment_work plan_segment(const run_plan *plan, const model_block *block, size_t index);
size_t plan_segment_count(const run_plan *plan, const model_block *block);
/* An expert as a block of its own, which work on it points to. */
typedef struct expert_place {
    model_block block;
    char name[EXPERT_NAME];
} expert_place;

/* One of a block's experts, whole; `place` is for it alone. */
segment_work plan_expert(const run_plan *plan, const model_block *block, size_t expert,
                         expert_place *place);
/* What runs of the model, in order: segments, each expert by itself. `place` gets an expert. */
segment_work plan_segment_of_model(const run_plan *plan, size_t index, expert_place *place);
size_t plan_segments_of_model(const run_plan *plan);
size_t plan_segment_index(const run_plan *plan, const segment_work *s);
/* The segments of the blocks that a cut makes in this run. */
void plan_segments(const run_plan *plan, graph_cut cut, segment_list out[BLOCK_KINDS]);

/* What a FLOAT tensor is written as: the source's dtype; in compat the serving dtype. */
tensor_info output_tensor(const run_env *e, const tensor_info *source);
tensor_info output_weight(const run_env *e, const stored_weight *w);
/* Accounted bytes of a weight in memory as it is written. */
size_t output_weight_bytes(const run_env *e, const stored_weight *w);
/* Tensors of one folder of the output, at most. */
size_t plan_tensors(const run_plan *plan);

#endif
