/* One quantization run as it goes on: what its stages share and change. What it is given and what
 * was decided before is in plan.h. quantize.c drives: float_pass.c smooths and ranks, layer.c has
 * what a segment of a decoder layer goes through, calibrate.c what samples meet there,
 * live_linear.c what becomes of a linear, overlap.c how layers come and go; pieces.c has what needs
 * no forward. float_goals.c holds the runs that end with the float pass: scores, smoothing. */
#ifndef TARE_PIPELINE_RUN_H
#define TARE_PIPELINE_RUN_H

#include "base/progress.h"
#include "file/journal.h"
#include "forward/linear.h"
#include "model/fingerprint.h"
#include "output/tape.h"
#include "pipeline/ledger.h"
#include "pipeline/plan.h"
#include "pipeline/streams.h"
#include "quantize/gptq.h"
#include "quantize/kv_observer.h"
#include "quantize/layer_selector.h"
#include "quantize/score.h"

/* FA quantization of one layer's attention, once that layer is done. */
typedef struct run_attention {
    bool fallback; /* chosen by fa_amp to go without */
    float *scales[FA_KINDS];
    float scores[FA_KINDS];
    kv_observer *kv; /* of the float stream, until the layer is calibrated; NULL: none */
} run_attention;

/* The weights of the layer in work as they are stored; data NULL: not read yet. */
typedef struct layer_source {
    coded_rows raw[BLOCK_LINEARS];
} layer_source;

/* What smoothing leaves for a layer: vectors for its linears and norms. */
typedef struct layer_smoothing {
    smooth_weight weights[BLOCK_LINEARS];
    smooth_norm norms[BLOCK_NORMS];
    float *input_scale[BLOCK_UNITS],
        *input_shift[BLOCK_UNITS]; /* of the units' inputs; NULL: none */
} layer_smoothing;

/* Samples on their way through the model. */
typedef struct flow {
    size_t samples, tokens;                /* the first ones of the set */
    state_stream *states;                  /* [tokens, hidden_size]: what the next block reads */
    state_stream *carried[SEGMENT_VALUES]; /* between two segments: beside that */
    /* While experts run: what they read and who chose them, of those; what they add up to. */
    state_stream *expert_input, *routing, *sums;
    uint32_t *fills; /* [MTP layers, samples] the tokens behind the samples that the model said;
                        NULL: no MTP layers run */
} flow;

struct latent_queries;
struct stream_means;
typedef struct run_overlap run_overlap;
typedef struct statistics_file statistics_file;
typedef struct earlier_run earlier_run;
typedef struct weight_pieces weight_pieces;

/* Kinds of work, as tare_plan counts them. */
typedef enum work_kind {
    WORK_INT8,      /* products of quantized linears */
    WORK_FLOAT,     /* products of float linears */
    WORK_SMOOTHING, /* searching scales */
    WORK_ATTENTION, /* scores and sums */
    WORK_QUANTIZE,  /* weights, from how they are stored to integers */
    WORK_GPTQ,      /* Hessians, and weights rounded by them */
    WORK_PACK,      /* weights to compute format */
    WORK_OBSERVE,   /* observing and quantizing activations */
    WORK_FA,        /* observing q, k and v, of FA or for the cache */
    WORK_SCORE,     /* scores of inputs */
    WORK_ROWS,      /* norms, sums, gates */
    WORK_READ,      /* the checkpoint */
    WORK_WRITE,     /* the output */
    WORK_VERIFY,    /* reading the output again */
    WORK_COUNT
} work_kind;

/* Where the time of a run goes that is measured (probe.c). */
typedef struct work_clock {
    double at, seconds[WORK_COUNT];
    work_kind last;
} work_clock;

/* Where the run stands in its journal (resume.c). */
typedef struct run_resume {
    journal *journal;    /* NULL before resume_open */
    bool records;        /* checkpoints are made */
    bool finished;       /* there was nothing left to do */
    bool restores;       /* the run goes on from a state: */
    run_pass pass;       /* the pass in work */
    size_t layer;        /* its first layer (weights alone: step of pieces.c) to do */
    size_t expert;       /* of that layer the first to do; 0: it begins at its beginning */
    unsigned generation; /* of that state; afterwards of the next one to write */
    uint64_t digest;
    bool worth_keeping; /* there is a checkpoint */
    bool staged;        /* the output is whole, in the stage, and broke a rule of verify */
    double last;        /* when it was made, seconds */
    size_t layers_since;
} run_resume;

/* Bytes [begin, end) of a text. */
typedef struct text_range {
    size_t begin, end;
} text_range;

/* Where tare_run.json says what an output's save types change. */
typedef struct record_places {
    text_range recipe, fingerprint; /* the second: the recipe's member there */
} record_places;

typedef struct run {
    const run_env *env;
    const run_plan *plan;
    tare_context *ctx; /* the environment's, and its model */
    tare_model *model;
    output *out;
    progress progress;
    linear_score *scores;       /* [model.num_linears] */
    run_attention *attentions;  /* [layers] */
    kv_observer **kv;           /* [layers] as an earlier run left them; NULL: none */
    earlier_run *earlier;       /* statistics_take.c; NULL: samples tell, or nothing needs them */
    layer_smoothing *smoothing; /* [layers]; NULL: no outlier suppression */
    flow calibrated;            /* all samples */
    flow floats; /* the first samples, through the float model; states NULL: it does not run
                    beside */
    workspace work;
    struct expert_batch *expert_batch; /* experts.c, while experts run */
    work_clock *clock;     /* NULL: nobody measures; else the run is a slice, and writes nothing */
    run_overlap *overlap;  /* overlap.c */
    weight_pieces *pieces; /* pieces.c */
    struct stream_means *means;  /* means.c; NULL: the rotation is not aligned */
    statistics_file *statistics; /* statistics.c; NULL: none are kept */
    uint32_t *coverage;          /* [layers, experts] coverage.c; NULL: no sample passes any */
    act_params *inputs;          /* [model.num_units], of units whose samples are gone: the head,
                                    or all where they come from an earlier run's statistics */
    run_resume resume;
    bool overwrite, made_out; /* an earlier output is replaced; the output folder is new */
    size_t num_quantized, saturated_rows;
} run;

/* ---- quantize.c ---- */

/* tare_quantize on checked options; into a recording if that is not NULL. */
tare_status quantize(tare_context *ctx, const tare_quantize_options *options,
                     tare_recording *recording, tare_quantize_result *result);
/* The output, after all checks of its folder; a rehearsal has none (output_options.rehearsal). */
tare_status open_output(run *r, bool rehearsal);
/* The hidden states, empty: of the float stream, or of the calibrating one. */
tare_status create_states(run *r, bool of_floats);
/* Ends what is under way, and frees what lives through all layers. */
void run_stop(run *r);
/* All that a run holds, or one pass of it (`only` NULL: all). */
void run_hold(ledger *l, const run_pass *only);
/* Where hidden states are spilled; NULL: they stay in memory. */
const char *run_spill_folder(const run *r);

/* ---- segments.c ---- */

typedef struct segment_pass {
    segment_work work;
    const block_norms *norms;
    block_ops ops;
    void (*begin)(void *user, const batch *b); /* with ops.user, before each batch; NULL: not */
    bool checks;                               /* that what comes out is finite */
    bool quiet;                                /* no progress */
    bool peeks;    /* nothing goes on; what runs works on a copy of the samples */
    float *copies; /* [rows, hidden_size] for that; an expert has copies of its own */
} segment_pass;

/* TARE_E_NUMERIC: an activation is not. */
tare_status check_finite(run *r, const float *x, size_t n);
/* All samples of a flow through a segment. */
tare_status segment_run(run *r, const segment_pass *p, flow *f);
/* Streams of what a segment is carried, which go with segment_run, or of what the `next` one is,
 * which come with it. */
size_t carried_bytes(const ledger *l, const segment_work *s, bool next, size_t tokens);
void flow_free(run *r, flow *f);

/* ---- experts.c ---- */

/* Calls `each` for every expert of a block, whose segment with the experts `s` is. */
tare_status experts_run(run *r, const segment_work *s,
                        tare_status (*each)(run *r, const segment_work *expert));
/* What lies between two experts of a block, beside the flow's states, in both directions. */
tare_status experts_archive(run *r, const model_block *b, flow *f, archive *a);
/* segment_run for an expert. */
tare_status expert_run(run *r, const segment_pass *p, flow *f);
/* Holds all experts for either flow, of which `each` holds one, with what comes and goes beside it.
 */
void experts_hold(ledger *l, const segment_work *s, bool calibrates, bool floats,
                  void (*each)(ledger *l, const segment_work *expert));

/* ---- mtp.c ---- */

/* How many MTP layers are blocks of the run. */
size_t mtp_blocks(const tare_model *m);
/* Room for what the samples of a flow need on their way through those. */
tare_status mtp_begin_flow(run *r, flow *f);
size_t mtp_flow_bytes(const run_plan *plan, size_t samples);
/* In both directions, in a state between blocks or within one. */
tare_status mtp_archive(run *r, flow *f, archive *a);
/* Before an MTP layer's block: what the layer before it left becomes what it reads, in all flows.
 * Of other blocks nothing. */
tare_status mtp_enter(run *r, const model_block *block);
void mtp_enter_hold(ledger *l, const model_block *block, bool quantizes);

/* ---- coverage.c ---- */

/* run.coverage, if samples pass experts. */
tare_status coverage_begin(run *r);
/* Counts what the router of a block chose, and tells it. */
tare_status coverage_count(run *r, const model_block *b, const flow *f);
tare_status coverage_archive(run *r, archive *a);
/* The member of tare_run.json, or nothing. */
void coverage_write(const run *r, buffer *out);
/* Tells the options' owner. */
void coverage_tell(const run *r);

/* ---- fingerprint.c ---- */

/* What identifies a run: a JSON map of strings that is the same if and only if the output is.
 * *recipe (may be NULL): where in `out` its member of the recipe stands. */
tare_status fingerprint_write(run *r, buffer *out, text_range *recipe);
/* Its member of a recipe. */
tare_status fingerprint_recipe(const tare_recipe *recipe, buffer *out);
/* Is a folder that holds `what` of this run? TARE_E_FOLDER names what changed. `then`: its
 * fingerprint. `times` (may be NULL): when the weight files were changed last, as far as the
 * journal knows. `computed`: nothing will be computed any more, by whatever version or kernels it
 * was. */
tare_status fingerprint_check(run *r, const value *then, const value *times, bool computed,
                              const char *what);

/* ---- resume.c ---- */

/* Looks for what an earlier run left, opens the output, takes its lock, and begins or goes on with
 * the journal. With resume.finished there is nothing left to do. */
tare_status resume_open(run *r);
/* Restores the state that resume_open found, if it did. */
tare_status resume_restore(run *r);
/* A layer of the pass, or something smaller that the run could go on behind, is done: is a
 * checkpoint due? checkpoint_every counts layers alone. */
bool resume_due(run *r, bool layer_done);
/* The same between experts of a layer, of which so many are done. */
bool resume_due_inside(run *r, size_t experts_done);
/* Makes one: the run goes on from layer `next` of the pass (weights alone: from its step), and in
 * that from `expert`. */
tare_status resume_save(run *r, size_t next, size_t expert);
/* output_options.before_publish */
tare_status resume_before_publish(void *user);
/* Ends output and journal: what resume needs stays if the run failed in a way that can be mended.
 */
void resume_close(run *r, tare_status status);

/* ---- recording.c ---- */

/* NULL for NULL. */
output_tape *recording_tape(tare_recording *recording);
/* What the recording's outputs say of the run: its recipe and the text of tare_run.json. */
tare_status recording_note(run *r, const char *run_json, const record_places *places);

/* ---- declare.c ---- */

/* Declares every tensor of the output, in model order. */
tare_status plan_output(run *r);
/* Declares them to an output that is never written, and refuses what would be refused at its end.
 * Linears that disable_level will choose are taken as quantized. */
tare_status rehearse_output(run *r);

/* ---- float_pass.c ---- */

/* Runs the float model's segment over the float stream: solves its smoothing and scores its
 * linears, as the run asks. Loads `source` if it is empty. */
tare_status float_segment_pass(run *r, const segment_work *s, layer_source *source);
/* What that takes beside its source, but for vectors that it leaves (smoothing_layer_bytes). */
void float_segment_hold(ledger *l, const segment_work *s);
/* Scores the head (as the goal says), whose input is the final norm's output. */
tare_status score_head(run *r);
size_t score_head_bytes(const run_plan *plan);
/* All layers: the first of two passes. */
tare_status float_pass(run *r);
void float_pass_hold(ledger *l);

/* ---- layer.c, live_linear.c ---- */

/* Of a segment. */
tare_status layer_source_load(run *r, const segment_work *s, layer_source *source);
void layer_source_free(run *r, layer_source *source);
void layer_source_hold(ledger *l, const segment_work *s);
/* Load weights, (smooth, score,) calibrate, quantize, write: one block over all samples, segment by
 * segment. */
tare_status quantize_block(run *r, const model_block *block);
void quantize_block_hold(ledger *l, const model_block *block);
/* One segment, from a source that it takes, up to what would be written. */
tare_status calibrate_slice(run *r, const segment_work *s, layer_source *source);
/* run.inputs of the head: the final norm's output. Nothing reads what the head puts out. */
tare_status observe_head(run *r);
void observe_head_hold(ledger *l); /* with its score */

/* One linear while its layer is loaded. */
typedef struct live_linear {
    const model_linear *linear;
    linear_scheme scheme;
    act_kind activations; /* while calibrating */
    quantized_weight q;   /* unless it stays float */
    gemm_weight *weight;  /* float linears, and fake-quantized ones that need float arithmetic */
    float *bias;          /* [n] FP32; NULL: none */
    void *bias_raw;       /* as it is written */
    coded_rows raw; /* of a float linear: as it is written, until it is; of one that its inputs
                       round: as it is stored, until they did */
} live_linear;

/* Takes the weight from `raw` (its data is freed; NULL data: reads it) and smooths it; quantizes
 * it, or makes it ready as a float. Without overlap a float one is written at once, so that it need
 * not be kept. */
tare_status live_linear_load(run *r, const model_linear *linear, linear_scheme scheme,
                             coded_rows *raw, live_linear *out);
void live_linear_free(run *r, live_linear *l);
/* Rounds the integers by what the linear reads, which `inputs` knows, and frees the weight. */
tare_status live_linear_round(run *r, live_linear *l, const gptq *inputs);
/* How the inputs of a linear are quantized while calibrating. */
act_kind calibrated_activations(const run_plan *plan, linear_scheme scheme);
/* Are fake-quantized linears computed in floats? */
bool live_linears_need_float(const run_plan *plan);
/* Is a linear of this scheme (or float), while it calibrates? */
bool linear_runs_in_floats(const run_plan *plan, linear_scheme scheme);
/* The bias [n] (NULL: none; mem_free both, in any case), smoothed if its layer is, as it is written
 * and rounded to that: what an engine will add. */
tare_status load_bias(run *r, const model_linear *linear, float **bias, void **raw);
/* Has the linear one, its own or by a shift? And accounted bytes of load_bias, at most. */
bool linear_has_bias(const run_plan *plan, const model_linear *l);
size_t load_bias_bytes(const run_plan *plan, const model_linear *l);
/* Of a float linear, as it is written. */
tare_status write_float_bias(run *r, const model_linear *l, const void *raw);
/* Rows whose quant_bias did not fit, and the worst error (derive_w8a8). */
typedef struct saturation {
    size_t rows;
    double worst;
} saturation;

/* Derives what calibration gives the rows `q` of a linear, and writes them with the parts that
 * *parts has, its range among them. `bias`: of these rows (NULL: none). *s adds up over the linear,
 * from {0}; the last rows tell it. */
tare_status write_calibrated(run *r, const model_linear *l, quantized_weight *q, const float *bias,
                             const act_params *act, saturation *s, linear_parts *parts);
/* Derives and writes the tensors of a quantized linear. */
tare_status live_linear_write(run *r, live_linear *l, const act_params *act);
/* Writes a float linear, if that has not been done. */
tare_status live_linear_write_float(run *r, live_linear *l);

/* Accounted bytes of a live linear, at most. */
typedef struct live_linear_size {
    size_t weights, packed; /* that it keeps: 8-bit, and in compute format */
    size_t loading;         /* while it is loaded, the source and the result included */
    size_t raw;             /* that it keeps until its inputs round it; 0: they do not */
} live_linear_size;
/* Of linear `index` of the model, as what it may come to be. */
live_linear_size live_linear_most(const run_plan *plan, size_t index);
/* While it is written. */
size_t live_linear_write_bytes(const run_plan *plan, size_t index);
/* Of so many rows, what is derived for them included. */
size_t live_linear_rows_bytes(size_t rows);

/* A segment that is calibrated: all that its tensors are made from. */
typedef struct layer_output {
    segment_work work;
    live_linear linears[BLOCK_LINEARS];
    act_params params[BLOCK_UNITS]; /* after the last sample */
    block_norms norms;
    kv_observer *kv; /* of its keys and values; NULL: they have no scales */
} layer_output;

tare_status layer_output_write(run *r, layer_output *o);
void layer_output_free(run *r, layer_output *o);

/* ---- calibrate.c ---- */

/* All samples through a segment whose linears are loaded: what is known of its inputs then, and its
 * norms, are in *out. */
tare_status calibrate_segment(run *r, layer_output *out);
void calibrate_segment_hold(ledger *l, const segment_work *s);

/* ---- overlap.c ---- */

/* Of a pass, with threads if layout.overlap says so; overlap_stop frees what they hold. */
tare_status overlap_start(run *r);
void overlap_stop(run *r);
/* The weights of a segment, and begins to read the next one's. Without overlap *out stays empty:
 * weights are read one by one as they are needed. */
tare_status overlap_read(run *r, const segment_work *s, layer_source *out);
/* Writes that segment, or hands it over; it is empty then. */
tare_status overlap_write(run *r, layer_output *segment);
/* Until everything is written: before anybody else writes. */
tare_status overlap_wait(run *r);
/* What is held while a segment is computed; with threads the weights of the next one, too, and
 * where the pass `quantizes` the result of the last one. */
size_t overlap_bytes(const run_plan *plan, const segment_work *s, bool quantizes);

/* A linear's observer: by act_method, for 3 by its score, for 4 by whether it reads a norm. */
observer_kind observer_kind_of(const run_env *e, const linear_score *s, bool reads_norm);

/* ---- attention.c ---- */

/* How many a layer's attention has of each kind. */
void attention_heads(const tare_model *m, size_t heads[FA_KINDS]);
/* Latent vectors are quantized once, as keys (spec/fa3.md 1.8). */
fa_v_method attention_v_method(const run_plan *plan);
/* Columns of a head of queries, keys and values as FA takes them. */
size_t fa_width(const tare_model *m);
tare_status declare_attention(run *r, size_t layer);
/* *out stays NULL for an attention that goes without. */
tare_status attention_observer_create(run *r, size_t layer, fa_observer **out);
tare_status attention_observe(run *r, fa_observer *o, const batch *b, const float *q,
                              const float *k, const float *v);
/* ---- latent.c: FA of latent attention ---- */

/* *out stays NULL where it is not wanted. */
tare_status latent_create(run *r, const model_block *b, struct latent_queries **out);
void latent_free(run *r, struct latent_queries *l);
/* q of a batch, [rows, heads*head_dim], and the latent vectors, [rows, kv_rank]. */
tare_status latent_observe(run *r, struct latent_queries *l, fa_observer *o, const batch *b,
                           const float *q, const float *latent);
/* Accounted bytes, at most, what observing needs but fa_observe_bytes included. */
size_t latent_bytes(const run_plan *plan, const model_block *b);

/* Derives the tensors of a layer that is calibrated; with fa_amp 0 attention_write writes them. */
tare_status attention_finish(run *r, size_t layer, const fa_observer *o);
tare_status attention_write(run *r, size_t layer);
/* The tensors of the key/value cache that stand before those of `l`, if its attention has any. */
tare_status declare_kv_cache(run *r, size_t layer, const model_linear *l);
/* Are keys and values those of the float stream? */
bool kv_cache_of_floats(const run_plan *plan);
/* There: what the linears of a unit put out, if keys and values are among it. */
tare_status kv_cache_observe_floats(run *r, const model_block *block, graph_unit unit,
                                    const batch *b, float *const *y);
/* Before an attention is calibrated: its observer, empty, or full from the float stream; NULL for
 * one that goes without. */
tare_status kv_cache_begin(run *r, const model_block *block, kv_observer **out);
/* An observer that waits for its layer, written to or read from an archive. */
tare_status kv_cache_archive(run *r, size_t layer, archive *a);
/* NULL: the attention has none. */
tare_status kv_cache_write(run *r, size_t layer, kv_observer *o);
/* Channels of a layer's keys, and of its values, if they have scales or are observed; else 0. */
size_t kv_cache_channels(const run_plan *plan, size_t layer);
size_t kv_observed_channels(const run_plan *plan, size_t layer);
/* Accounted bytes, at most: of what is kept until it is written; of writing it, beside that. */
size_t kv_cache_kept_bytes(const run_plan *plan, size_t layer);
size_t kv_cache_write_bytes(const run_plan *plan, size_t layer);
/* With fa_amp: chooses who goes without, and writes the others. */
tare_status write_late_attentions(run *r);

/* ---- pieces.c ---- */

/* Parts of a model, in order: layer i is PART_LAYERS + i, and what comes behind all of them one
 * more. */
enum { PART_EMBEDDING, PART_LAYERS };

/* The tensors of weights alone, from step `first_step` on, or those behind the layers. To be
 * stopped in any case. */
tare_status pieces_start(run *r, size_t first_step);
/* Reads, quantizes and writes what is left up to the end of a part. */
tare_status pieces_run(run *r, size_t part);
void pieces_stop(run *r);
/* Steps of weights alone (tensors), counted as run_resume.layer does. */
size_t pieces_steps(const run_plan *plan);
/* Accounted bytes, at most. */
size_t pieces_bytes(const run_plan *plan);

/* ---- copy.c ---- */

/* Writes rows [first, first+count) of a declared float tensor; `rows` are they. */
tare_status write_float_rows(run *r, const stored_weight *w, size_t first, size_t count,
                             const coded_rows *rows);
/* Accounted bytes, at most; and of them those of values that are not stored as they are written. */
size_t write_float_rows_bytes(const run_env *e, const stored_weight *w);
size_t converted_bytes(const run_env *e, const stored_weight *w);
/* A norm's weight and bias as they are in use; the final norm and q and k norms have no bias. */
tare_status write_norm(run *r, const tensor_info *source, const float *weight, const float *bias);
/* ---- probe.c ---- */

/* What happened since the last call was this kind of work; what follows on WORK_FA is attention. */
void run_spent(run *r, work_kind kind);

/* ---- rotation_file.c ---- */

/* Can options->save_rotation be written, as far as can be known? TARE_E_USAGE if not. */
tare_status rotation_file_check(const run_env *e);
/* The same of an output that was finished by an earlier run. */
tare_status rotation_file_check_finished(const run *r);
/* Bytes of the file; 0: the model's stream is not rotated. */
uint64_t rotation_file_size(const tare_model *m);
/* Before output_finish: into the stage, or to its place. Nothing if nobody asked. */
tare_status rotation_file_write(run *r);
/* Accounted bytes of that, at most. */
size_t rotation_file_bytes(const run_plan *plan);

/* ---- record.c ---- */

/* Which samples the run sees: a JSON map. */
void calibration_write(const run_env *e, buffer *out);
/* The text of tare_run.json. */
tare_status run_record(run *r, buffer *out, record_places *places);

#endif
