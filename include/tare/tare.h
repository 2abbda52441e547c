/* tare: post-training quantization of large language models.
 *
 * The one public header of libtare. A context carries threads, memory budget, callbacks and the
 * last error; everything else hangs off it. A program that quantizes:
 *
 *     tare_context *ctx;
 *     tare_recipe *recipe;
 *     tare_context_create(&ctx, NULL);
 *     tare_recipe_create(ctx, &recipe);
 *     tare_recipe_set(recipe, "quant.act_method", "2");
 *     tare_quantize_options o;
 *     tare_quantize_options_init(&o);
 *     o.model = "SmolLM2"; o.out = "SmolLM2-W8A8"; o.calib = "prompts.jsonl"; o.recipe = recipe;
 *     if (tare_quantize(ctx, &o, NULL) != TARE_OK) fprintf(stderr, "%s\n", tare_last_error(ctx));
 *     tare_recipe_free(recipe);
 *     tare_context_free(ctx);
 *
 * Ownership: what a `_create`, `_open` or `tare_..._free`-paired call gives is the caller's to
 * free; `const char *` results belong to the handle they came from and live as long as it does;
 * arguments are borrowed for the call. Frees may come in any order and from any thread: what a
 * handle was made of (its context; the model and tokenizer of a verifier) stays until the handle is
 * freed too, though the caller has let go of it. The library never prints, exits or reads the
 * environment, and what it reads, writes and says is the same under every locale of its host.
 *
 * Versions: a struct that is handed over on its own begins with `size`, the bytes that it had when
 * the caller was compiled. No byte beyond is read or written, members that an older caller lacks
 * have their defaults, and new ones come at the end. tare_..._options_init() sets `size` and the
 * defaults; the others are begun by hand, as `tare_plan plan = {.size = sizeof plan};`. A struct
 * without its size, or with a setting that this library is too old to know, is TARE_E_USAGE.
 * Elements of arrays (tare_tensor, tare_generation, tare_calib_sample, …) never grow; what
 * callbacks are handed (tare_progress, tare_finding) may, at its end. Bindings that cannot use the
 * macro call tare_..._options_init_sized() with the size of their struct.
 *
 * One context serves one thread at a time; tare_cancel() alone may be called from another thread or
 * a signal handler. In a child process (fork) a context that no call was using works as before. */
#ifndef TARE_TARE_H
#define TARE_TARE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define TARE_API __attribute__((visibility("default")))

typedef enum tare_status {
    TARE_OK = 0,
    TARE_E_USAGE,    /* wrong option, recipe or setting */
    TARE_E_FOLDER,   /* a refused output folder: not empty, not writable, overlaps the model */
    TARE_E_BUDGET,   /* the memory budget is too small */
    TARE_E_MODEL,    /* a checkpoint that is incomplete, inconsistent or of an unknown kind */
    TARE_E_FORMAT,   /* a malformed file */
    TARE_E_DATA,     /* calibration data that cannot be used */
    TARE_E_NUMERIC,  /* NaN or infinity in a weight or an activation */
    TARE_E_IO,       /* the operating system refused a read, write or rename */
    TARE_E_MEMORY,   /* out of memory inside the budget */
    TARE_E_VERIFY,   /* an output that breaks a rule of its consumers */
    TARE_E_CANCELLED /* tare_cancel() was called */
} tare_status;

typedef struct tare_context tare_context;
typedef struct tare_recipe tare_recipe;
typedef struct tare_model tare_model;
typedef struct tare_smoothing tare_smoothing;
typedef struct tare_recording tare_recording;
typedef struct tare_tokenizer tare_tokenizer;
typedef struct tare_generation_plan tare_generation_plan;

/* ---- context
 * ----------------------------------------------------------------------------------------------------
 */

typedef enum tare_log_level {
    TARE_LOG_ERROR,
    TARE_LOG_WARNING,
    TARE_LOG_INFO,
    TARE_LOG_DEBUG
} tare_log_level;

/* Instruction sets of the compute kernels, least to most. AUTO takes the best that the CPU has. */
typedef enum tare_cpu {
    TARE_CPU_AUTO,
    TARE_CPU_SCALAR,
    TARE_CPU_AVX2,
    TARE_CPU_AVX512,
    TARE_CPU_AMX
} tare_cpu;

typedef struct tare_progress {
    const char *stage;  /* "score", "calibrate", "quantize", "verify", … */
    const char *unit;   /* what is counted: "layer", "linear", … */
    size_t done, total; /* units */
    size_t sample, samples;
    double eta_seconds; /* < 0: unknown */
} tare_progress;

typedef struct tare_context_options {
    size_t size;
    int threads;         /* 0: one a core that affinity and CPU quota leave */
    size_t memory_limit; /* bytes; 0: no limit */
    tare_cpu cpu;        /* for tests; AUTO otherwise. One that is not here is refused */
    /* Log and progress may come from any thread of the library, but one call at a time. */
    void (*log)(void *user, tare_log_level level, const char *message); /* NULL: silent */
    void (*progress)(void *user, const tare_progress *progress);        /* NULL: none */
    /* NULL: no question. Asked before each allocation of `bytes`; false makes that allocation fail
     * (fault injection). */
    bool (*allow_allocation)(void *user, size_t bytes);
    void *user;
} tare_context_options;

TARE_API void tare_context_options_init_sized(tare_context_options *options, size_t size);
#define tare_context_options_init(options)                                                         \
    tare_context_options_init_sized((options), sizeof *(options))
/* `options` NULL: the defaults. On failure *out is NULL; TARE_E_USAGE: this CPU lacks the set that
 * `cpu` asks for (the sentence goes to `log`). */
TARE_API tare_status tare_context_create(tare_context **out, const tare_context_options *options);
/* None of the callbacks is called any more; threads and memory go with the last handle and text of
 * the context. */
TARE_API void tare_context_free(tare_context *ctx);
/* One sentence on the last failed call; "" if none failed. */
TARE_API const char *tare_last_error(const tare_context *ctx);
/* The errno behind that failure (EISDIR, EINVAL: no regular file); 0: not of the system. */
TARE_API int tare_last_errno(const tare_context *ctx);
/* Makes the running call return TARE_E_CANCELLED soon. Safe in a signal handler. */
TARE_API void tare_cancel(tare_context *ctx);
/* Takes a cancellation back: calls work again. */
TARE_API void tare_cancel_clear(tare_context *ctx);
/* Bytes that the accounted allocator holds now, and the most it ever held (while a call of
 * tare_quantize or tare_quantize_plan runs: since the call began). */
TARE_API size_t tare_memory_used(const tare_context *ctx);
TARE_API size_t tare_memory_peak(const tare_context *ctx);
/* Sets the context's memory_limit from a budget of the whole process, "cpu=8GiB" (the setting
 * run.max_memory): what the program itself takes is set aside. TARE_E_BUDGET: nothing would be
 * left. */
TARE_API tare_status tare_context_set_max_memory(tare_context *ctx, const char *max_memory);
/* "scalar", "avx2", "avx512" or "amx": the kernels in use. */
TARE_API const char *tare_cpu_name(const tare_context *ctx);
TARE_API const char *tare_version(void);

/* ---- recipe
 * -----------------------------------------------------------------------------------------------------
 */

/* A recipe with every setting at its default. Settings are named "section.key" as in a recipe file:
 * quant.w_bit, quant.act_method, fallback.disable_names, … (docs/recipe.md lists them). */
TARE_API tare_status tare_recipe_create(tare_context *ctx, tare_recipe **out);
TARE_API void tare_recipe_free(tare_recipe *recipe);
/* Reads a YAML recipe: a file, or, where no such file exists, a recipe that ships with the library,
 * by name ("default", "llama3.1-70b", "qwen2.5-72b"); or what was in force when tare wrote the
 * output in that folder (its tare_run.json). What it names replaces what stands in
 * `recipe`. TARE_E_USAGE names the line, or lists the recipes that ship. Here and below the recipe
 * stays as it was on failure. */
TARE_API tare_status tare_recipe_load(tare_recipe *recipe, const char *path);
/* Sets one setting from text ("2", "true", "L5"); a list takes comma-separated elements and
 * replaces the list. */
TARE_API tare_status tare_recipe_set(tare_recipe *recipe, const char *name, const char *value);
/* Appends to a list setting (fallback.disable_names, save.types). */
TARE_API tare_status tare_recipe_append(tare_recipe *recipe, const char *name, const char *value);
/* Bytes that run.max_memory grants the host; 0: no limit is set. */
TARE_API uint64_t tare_recipe_memory_limit(const tare_recipe *recipe);

/* ---- quantize
 * ---------------------------------------------------------------------------------------------------
 */

typedef struct tare_quantize_options {
    size_t size;
    const char *model; /* Hugging Face checkpoint folder */
    /* Or, with `model` NULL, an open model; its tensors are read from where it has them. What a
     * model in memory takes is the process's, and counts towards run.max_memory. */
    const tare_model *source;
    const char *out; /* output folder; made if absent */
    /* Calibration file (docs/calibration.md), or "builtin"; NULL only for schemes that need none.
     */
    const char *calib;
    /* Or, with `calib` NULL, samples in memory: token ids one sample after the other, and the
     * number of tokens of each. */
    const uint32_t *calib_ids;
    const size_t *calib_lengths; /* [calib_count] */
    size_t calib_count;
    const tare_recipe *recipe; /* NULL: the defaults */
    /* What tare_smooth found: it is applied, and none is computed. Its own settings stand in for
     * the recipe's section anti_outlier. NULL: as the recipe says. */
    const tare_smoothing *smoothing;
    bool overwrite; /* replace an earlier output in `out` */
    bool resume;    /* go on with an unfinished run in `out`; a finished one is left as it is */
    bool no_resume; /* make no checkpoints: nothing is left to go on from */
    size_t checkpoint_every; /* layers between two checkpoints; 0: 20 seconds */
    const char *scratch_dir; /* for hidden states that do not fit; NULL: inside `out` */
    bool verify;             /* check the staged output before it appears; on by default */
    bool probe;              /* tare_quantize_plan measures this machine; on by default */
    bool copy_code;          /* also copy the checkpoint's *.py files (never run) */
    /* For tests: most tokens of the samples that go through a layer together; 0: chosen. The output
     * does not depend on it. */
    size_t batch_rows;
    /* For tests: so many of the ways to lay a run out in memory, from the fastest on, are not
     * taken. The output does not depend on it. */
    size_t skip_layouts;
    /* The folder of an earlier output of the same model: what its samples told (its
     * tare/tare_stats.safetensors) stands in for samples, which must not be given then, and no
     * forward runs. recipe: what is to be other than in that run; its sections anti_outlier,
     * run.dtype and run.compat must be that run's, unless weights alone are quantized. Where layers
     * in front of a static linear have other schemes than in that run, tare_quantize would find
     * other ranges; a warning and tare_run.json say so. NULL: none. */
    const char *statistics;
    /* For tests: experts of a layer between two checkpoints inside of it; 0: 20 seconds, unless
     * checkpoint_every is given. */
    size_t checkpoint_experts;
    /* Called for each layer with experts once all is written: how many tokens of the samples chose
     * each of them. Not of a run that samples do not pass. NULL: nobody asks. */
    void (*coverage)(void *user, const char *layer, const uint32_t *tokens, size_t experts);
    void *coverage_user;
    /* [calib_count] sequences of equal length that each sample in memory is made of: they do not
     * see each other, but are one observation, as a batch of prompts is in msModelSlim. NULL: one.
     */
    const size_t *calib_sequences;
    /* Of each sequence, sample after sample, the tokens in front of those that only pad it. No
     * other token sees padding; its own rows are observed like all. NULL: all tokens. */
    const size_t *calib_kept;
    /* A file for the rotation of the residual stream (the recipe's `rotation`, with r1), replaced
     * only with `overwrite`: x R1 is what the output has where the model has a row x; the tensor
     * "global_rotation" is R1, F32 [hidden_size, hidden_size]. As optional/quarot.safetensors in
     * the folder of save type ascendv1 it is part of the output, and named by its description, by
     * which engines find it. NULL: none. Not for tare_record. */
    const char *save_rotation;
} tare_quantize_options;

/* What came out, for a summary. Counts are of tensors and bytes in the model's own part of the
 * output. */
typedef struct tare_quantize_result {
    size_t size;
    size_t linears, linears_quantized; /* linear layers in the model, and those written in 8 bits */
    size_t samples, tokens;            /* of calibration */
    size_t truncated;                  /* samples that calibration.max_length cut */
    size_t saturated_rows;             /* rows whose quant_bias did not fit int32 */
    uint64_t bytes_in, bytes_out;      /* weight files read, weight files written */
    double seconds;
    size_t peak_memory; /* accounted bytes */
    bool was_finished;  /* `resume` found a finished output: nothing was done */
} tare_quantize_result;

TARE_API void tare_quantize_options_init_sized(tare_quantize_options *options, size_t size);
#define tare_quantize_options_init(options)                                                        \
    tare_quantize_options_init_sized((options), sizeof *(options))
/* Quantizes; `result` may be NULL. On failure nothing stands under a final name in `out`. */
TARE_API tare_status tare_quantize(tare_context *ctx, const tare_quantize_options *options,
                                   tare_quantize_result *result);

/* Quantizes without an output yet: everything that it will be made of is kept in one file without a
 * name in options->scratch_dir (which must be given), about as large as one output; it goes with
 * the recording or the process. What only an output has (out, overwrite, resume, checkpoint_every,
 * verify, the recipe's section save) does not count: quant.a_sym is false unless it is given,
 * whatever will be saved. Memory is that of tare_quantize. */
TARE_API tare_status tare_record(tare_context *ctx, const tare_quantize_options *options,
                                 tare_recording **out, tare_quantize_result *result);
TARE_API void tare_recording_free(tare_recording *recording);

typedef struct tare_save_options {
    size_t size;
    const char *out;          /* output folder; made if absent */
    const char *const *types; /* [num_types] as in save.types of a recipe */
    size_t num_types;
    int part_file_size; /* as save.part_file_size: GiB; 0: one file; -1: the save type's default */
    /* File names of save type safe_tensor, and safetensors_name of ascendv1 too; NULL: its own. The
     * others are fixed. */
    const char *safetensors_name, *json_name;
    bool overwrite; /* replace an earlier output in `out` */
    bool verify;    /* on by default */
} tare_save_options;

TARE_API void tare_save_options_init_sized(tare_save_options *options, size_t size);
#define tare_save_options_init(options) tare_save_options_init_sized((options), sizeof *(options))
/* Writes an output from a recording, as often as one likes; to the same bytes as tare_quantize with
 * these save types (but for a rotation, which is fitted to no samples). *bytes (may be NULL): of
 * the weight files of one layout. The model is not read again, but for the other files of its
 * folder, which are copied. It has the recording's context.
 */
TARE_API tare_status tare_save(const tare_recording *recording, const tare_save_options *options,
                               uint64_t *bytes);

/* A kind of work: how much of it a run has, and how fast this machine does it. */
typedef struct tare_work {
    const char *name, *unit; /* "INT8 products", "operations"; static strings */
    double amount;           /* units */
    double rate;             /* units a second; 0: not known */
} tare_work;

enum { TARE_PLAN_WORK = 16 };

/* What a run will take, known before it begins: from headers, shapes and the lengths of the
 * prompts. Bytes. */
typedef struct tare_plan {
    size_t size;
    /* Memory: resident bytes of the process, which stay below `peak` <= `budget`. */
    uint64_t budget;                 /* in force; UINT64_MAX: none */
    uint64_t smallest;               /* the smallest budget that works */
    uint64_t peak;                   /* the sum of what is held at `peak_unit`: */
    uint64_t weights;                /* as they are stored, and the 8-bit results */
    uint64_t packed;                 /* weights in compute format */
    uint64_t activations, workspace; /* at the layer boundary; of the batch in work */
    uint64_t smoothing, scratch, output, fixed;
    char peak_unit[128];
    size_t batch_tokens; /* most tokens of a batch */
    bool whole_layer;    /* float copies of a layer at once; else of one linear */
    bool spill, overlap; /* hidden states on disk; the next layer read ahead */
    size_t layer_parts;  /* that the weights of a layer are in memory in, one after the other */
    /* The run */
    size_t layers, samples, tokens, passes; /* passes: over the weights of the layers */
    uint64_t bytes_read;                    /* of the checkpoint */
    uint64_t bytes_written, bytes_scratch;  /* on disk; written: about */
    double int8_operations, float_operations;
    size_t num_work;
    tare_work work[TARE_PLAN_WORK];
    double seconds; /* estimate from the rates that are known; < 0: no probe */
} tare_plan;

/* Plans a run and stops: reads no tensor data (but for the probe) and touches no output folder;
 * `options->out` may be NULL. The probe takes about two seconds. TARE_E_BUDGET when no plan
 * fits; the memory part of *plan is filled in then too. tare_quantize plans in the same way. */
TARE_API tare_status tare_quantize_plan(tare_context *ctx, const tare_quantize_options *options,
                                        tare_plan *plan);

/* ---- smoothing
 * ---------------------------------------------------------------------------------------------------
 */

/* Outlier suppression as a step of its own, with data of its own: scales (and shifts) that move
 * outliers of activations into weights, for tare_quantize_options.smoothing. Of `options` model or
 * source, the calibration data, scratch_dir (NULL: hidden states stay in memory) and of the recipe
 * the sections anti_outlier (with an anti_method), calibration, run and the names in fallback
 * count; no output folder is touched. The model is not changed. With the same model, data and
 * recipe tare_quantize then writes the bytes that it writes alone, but for tare_run.json, which
 * tells of the smoothing's own data. TARE_E_USAGE from tare_quantize if the smoothing's dtype,
 * compat or model's shapes are others. */
TARE_API tare_status tare_smooth(tare_context *ctx, const tare_quantize_options *options,
                                 tare_smoothing **out);
TARE_API void tare_smoothing_free(tare_smoothing *smoothing);

/* What smoothing makes of a linear "L" or a norm "N", FP32:
 *   "L.weight.columns" [in]   each column of L's weight is multiplied by it,
 *   "L.weight.rows"    [out]  each row is divided by it,
 *   "L.bias"           [out]  replaces the bias, or is a new one,
 *   "N.weight", "N.bias" [C]  replace the norm's; a bias is there only if it is shifted.
 * A vector that would change nothing is left out. */
typedef struct tare_smoothing_vector {
    const char *name;
    const float *values; /* [length] */
    size_t length;
} tare_smoothing_vector;

TARE_API size_t tare_smoothing_count(const tare_smoothing *smoothing);
/* In model order; NULL behind the last. */
TARE_API const tare_smoothing_vector *tare_smoothing_at(const tare_smoothing *smoothing,
                                                        size_t index);

/* ---- scores of layers
 * -----------------------------------------------------------------------------------------------
 */

/* How hard the input of a linear is to quantize; x: all its elements in all samples, FP32.
 * QUANTILE: (2 max|x| / 254) / (third quartile - first quartile), of every 100th value of each
 * sample's sorted elements. STD: max|x| / the largest of the samples' std(x - (column max + column
 * min)). */
typedef enum tare_range_method { TARE_RANGE_QUANTILE, TARE_RANGE_STD } tare_range_method;

/* Runs the float model over the calibration data, layer by layer, and calls `score` once for each
 * linear, in module order, lm_head last. Linears that read the same input have equal scores. Of
 * `options` model or source, the calibration data, scratch_dir (NULL: hidden states stay in memory)
 * and of the recipe the sections calibration and run count; no output folder is touched. A `score`
 * that fails ends the call with its status. */
TARE_API tare_status
tare_score_layers(tare_context *ctx, const tare_quantize_options *options, tare_range_method method,
                  tare_status (*score)(void *user, const char *name, double value), void *user);

/* ---- FA scales of the caller's own attention
 * -------------------------------------------------------------------------------
 *
 * tare_quantize observes q, k and v itself. For a model that only its owner's program can run,
 * these are the statistics behind the INT8 scales, one observer a tensor kind and attention module.
 */

/* q, k or v: element (b, head, token, channel) wherever it lies. */
typedef struct tare_fa_tensor {
    const char *dtype; /* "F32", "F16", "BF16" or "F64" */
    const void *data;
    size_t shape[4];      /* batch, heads, tokens, channels */
    ptrdiff_t strides[4]; /* in elements */
} tare_fa_tensor;

typedef struct tare_fa_observer tare_fa_observer;

/* `module` names the attention in messages; `kind` is 'q', 'k' or 'v'. */
TARE_API tare_status tare_fa_observer_create(tare_context *ctx, const char *module, char kind,
                                             tare_fa_observer **out);
TARE_API void tare_fa_observer_free(tare_fa_observer *o);
/* One calibration sample. TARE_E_DATA: no elements, or another number of heads than before;
 * TARE_E_NUMERIC: NaN or infinity. Nothing changes on failure. */
TARE_API tare_status tare_fa_observer_add(tare_fa_observer *o, const tare_fa_tensor *tensor);
/* 0 before the first sample. */
TARE_API size_t tare_fa_observer_heads(const tare_fa_observer *o);
/* scales [heads], rounded to `dtype` ("F32", "F16", "BF16"); all offsets are 0. */
TARE_API tare_status tare_fa_observer_scales(const tare_fa_observer *o, const char *dtype,
                                             float *scales);
/* How hard the first sample is to quantize; 0 before it. */
TARE_API float tare_fa_observer_score(const tare_fa_observer *o);
/* fallback [count] <- whether a module is one of the `fa_amp` hardest, by scores [count,3] of its
 * q, k and v. */
TARE_API tare_status tare_fa_fall_back(tare_context *ctx, const char *const *modules, size_t count,
                                       const float *scores, size_t fa_amp, bool *fallback);

/* ---- verify, inspect
 * -------------------------------------------------------------------------------------------- */

typedef enum tare_severity { TARE_FINDING_WARNING, TARE_FINDING_FAILURE } tare_severity;

/* One broken rule of docs/verify.md. `rule` 0: the folder could not be recognised or read,
 * or has no layout that the target reads. */
typedef struct tare_finding {
    int rule;
    tare_severity severity;
    const char *tensor; /* tensor, key or file */
    const char *found, *expected;
} tare_finding;

/* What the engine of a target does with a layer (docs/targets.md), from the best to the worst. */
typedef enum tare_verdict {
    TARE_VERDICT_LOADS,
    TARE_VERDICT_UNKNOWN,     /* no source says */
    TARE_VERDICT_UNQUANTIZED, /* it runs in floats, without an error */
    TARE_VERDICT_REFUSED      /* the engine stops, or computes other numbers than the files mean */
} tare_verdict;
enum { TARE_VERDICTS = 4 };

/* A linear, or an attention with scales of its key/value cache or of FA. */
typedef struct tare_layer_verdict {
    const char *name;
    tare_verdict verdict;
    const char *why; /* half a sentence; "": there is nothing to say */
} tare_layer_verdict;

typedef struct tare_verify_options {
    size_t size;
    const char *dir;
    const char *base; /* source checkpoint, for the rules that compare with it; NULL: left out */
    /* "vllm-ascend@0.23", "sglang", "mindie", "vllm", …: without a version the newest that is
     * known. NULL: none */
    const char *target;
    const char *compat; /* "msmodelslim" or NULL */
    /* File names that were given in tare_save_options; NULL: those of the layout. */
    const char *safetensors_name, *json_name;
    void (*finding)(void *user, const tare_finding *finding);
    void *user;
    /* With a target: each layer, in the files' order. May be NULL */
    void (*layer)(void *user, const tare_layer_verdict *layer);
} tare_verify_options;

typedef struct tare_verify_result {
    size_t size;
    const char
        *layout; /* "ascendv1", "safe_tensor, numpy", "compressed-tensors", … (static strings) */
    size_t tensors, failures, warnings;
    const char *engine;           /* of the target (static string); NULL: none */
    char version[24];             /* "0.23", "main" */
    size_t layers[TARE_VERDICTS]; /* by verdict, of the layout that the engine would be given */
} tare_verify_result;

TARE_API void tare_verify_options_init_sized(tare_verify_options *options, size_t size);
#define tare_verify_options_init(options)                                                          \
    tare_verify_options_init_sized((options), sizeof *(options))
/* TARE_E_VERIFY when a rule is broken (each was handed to `finding`). A refused layer breaks one,
 * of the others that do not load each kind is a warning. */
TARE_API tare_status tare_verify(tare_context *ctx, const tare_verify_options *options,
                                 tare_verify_result *result);

/* Describes a checkpoint, an output folder or a safetensors file: calls `line` with each line of a
 * report, or, with `json`, once with one JSON object. */
TARE_API tare_status tare_inspect(tare_context *ctx, const char *path, bool json,
                                  void (*line)(void *user, const char *text), void *user);

/* ---- tokenizer
 * --------------------------------------------------------------------------------------------------
 */

/* Opens a tokenizer.json. Given as a model's folder, ids are those of transformers' AutoTokenizer:
 * tokenizer_config.json counts, special_tokens_map.json and added_tokens.json where that one has no
 * added_tokens_decoder, and config.json where it names no class. Given as the file, nothing beside
 * it counts. */
TARE_API tare_status tare_tokenizer_open(tare_context *ctx, const char *path, tare_tokenizer **out);
/* The same for a folder with settings that win over those of its files, as keyword arguments of
 * from_pretrained do: a JSON object such as {"add_eos_token": true}; NULL: none. */
TARE_API tare_status tare_tokenizer_open_with(tare_context *ctx, const char *path,
                                              const char *settings, tare_tokenizer **out);
/* The text of "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token" or
 * "mask_token"; NULL if there is none. It lives as long as the tokenizer. */
TARE_API const char *tare_tokenizer_special_token(const tare_tokenizer *tokenizer,
                                                  const char *name);
TARE_API void tare_tokenizer_free(tare_tokenizer *tokenizer);
/* Ids of `text` (UTF-8, `length` bytes; TARE_E_DATA if it is not UTF-8). *ids is freed with
 * tare_free(). */
TARE_API tare_status tare_tokenizer_encode(tare_tokenizer *tokenizer, const char *text,
                                           size_t length, bool add_special_tokens, uint32_t **ids,
                                           size_t *count);
/* Text of `ids`, zero-terminated, freed with tare_free(). TARE_E_DATA for an id that is out of
 * range. */
TARE_API tare_status tare_tokenizer_decode(tare_tokenizer *tokenizer, const uint32_t *ids,
                                           size_t count, bool skip_special_tokens, char **text,
                                           size_t *length);
TARE_API size_t tare_tokenizer_vocab_size(const tare_tokenizer *tokenizer);
TARE_API void tare_free(tare_context *ctx, void *pointer);

typedef struct tare_chat_message {
    const char *role; /* "system", "user" or "assistant" */
    const char *content;
} tare_chat_message;

/* The prompt that the chat model in the folder `model` expects behind these messages, for
 * tare_tokenizer_encode without special tokens; freed with tare_free(). A chat template is code and
 * is never run: the exact texts of published ones are known (docs/generate.md), another is
 * TARE_E_MODEL. */
TARE_API tare_status tare_chat_prompt(tare_context *ctx, const char *model,
                                      const tare_chat_message *messages, size_t n, char **prompt);

/* Calls `row` with the token ids of each sample of a calibration file, in order. */
TARE_API tare_status tare_tokenize_file(tare_context *ctx, const char *model, const char *file,
                                        tare_status (*row)(void *user, const uint32_t *ids,
                                                           size_t count),
                                        void *user);

/* ---- calibration sets
 * -------------------------------------------------------------------------------------------- */

/* A mix of question sets (docs/calibration.md): samples {"prompt", "ans"} drawn from each set of a
 * config file, shuffled together. Strings are UTF-8 with a length and may hold \0; lone surrogates,
 * which JSON lines may hold as escapes, stand as their three bytes (ED A0 80 …).
 *
 *     tare_calib *calib;
 *     tare_calib_open(ctx, "mix_config.json", "mix_dataset.json", NULL, &calib);
 *     tare_calib_set_sizes(calib, (const char *[]){"boolq", "gsm8k"}, (int64_t[]){4, 3}, 2);
 *     tare_calib_process(calib, NULL);
 *     tare_calib_free(calib);
 *
 * TARE_E_USAGE: a wrong value, config or set name; TARE_E_DATA: bad content of a data file;
 * TARE_E_IO. After an error the handle is as before and may be used again. */
typedef struct tare_calib tare_calib;
typedef struct tare_calib_result tare_calib_result;

#define TARE_CALIB_UNSET INT32_MIN /* of a switch or number: as the config file says */

typedef struct tare_calib_options {
    size_t size;
    const char *compat; /* "msmodelslim"; "": none; NULL: as the config file says */
    int32_t skip_bad;   /* 0, 1 or TARE_CALIB_UNSET */
    int32_t mmlu_shots; /* 0 to 5 or TARE_CALIB_UNSET */
    int32_t gsm8k_sampling;
    /* Seeds are the 32-bit words of their absolute value, lowest first; NULL: as the config says */
    const uint32_t *sample_seed;
    size_t sample_seed_words;
    const uint32_t *gsm8k_seed; /* two words count */
    size_t gsm8k_seed_words;
    bool overwrite; /* an existing save file is replaced, with a warning, instead of refused */
    /* A verified mix keeps what it finished, set by set, in the folder "<save file>.tare" until it
     * is saved, so that a killed run can go on: with `resume` tare_calib_process goes on with what
     * such a run left (TARE_E_FOLDER names what has changed since), else, with `overwrite`, it
     * begins anew, else it refuses (TARE_E_FOLDER). Sets of the caller's are always drawn anew. */
    bool keep, resume;
} tare_calib_options;

TARE_API void tare_calib_options_init_sized(tare_calib_options *options, size_t size);
#define tare_calib_options_init(options) tare_calib_options_init_sized((options), sizeof *(options))
/* Reads the config and checks every record of every set. `save_path` (NULL or "": nothing is saved)
 * gets the result of tare_calib_process; `options` NULL: as the config says. */
TARE_API tare_status tare_calib_open(tare_context *ctx, const char *config_path,
                                     const char *save_path, const tare_calib_options *options,
                                     tare_calib **out);
TARE_API void tare_calib_free(tare_calib *calib);

typedef struct tare_calib_sample {
    const char *prompt;
    size_t prompt_length;
    const char *ans; /* JSON text of any value */
    size_t ans_length;
    const char *extra; /* JSON text of an object whose members follow in the output; NULL: none */
    size_t extra_length;
    uint64_t record; /* index within the set; a set of the caller's may put there what it likes */
} tare_calib_sample;

/* Hands one sample over; it is copied. A failure is to be returned by who calls. */
typedef tare_status (*tare_calib_sink)(void *sink, const tare_calib_sample *sample);

/* A set of the caller's. What a callback returns other than TARE_OK ends the call with it. */
typedef struct tare_calib_source {
    size_t size;
    tare_status (*count)(void *user, uint64_t *count); /* how many records there are */
    /* Gives the samples of these records to `emit`, in order. */
    tare_status (*process)(void *user, const uint64_t *records, size_t count, tare_calib_sink emit,
                           void *sink);
    /* Gives those of the samples to `emit` that the set's own model answers right. Asked if and
     * only if the mix has a model or verifier. */
    tare_status (*verify)(void *user, const tare_calib_sample *samples, size_t count,
                          tare_calib_sink emit, void *sink);
    void (*release)(void *user); /* NULL: none. Called when the set is replaced or freed */
    void *user;
} tare_calib_source;

/* Adds a set, or replaces the one of this name at its place; its size is 0. On failure `release` is
 * not called. */
TARE_API tare_status tare_calib_add_set(tare_calib *calib, const char *name,
                                        const tare_calib_source *source);
/* How many samples of which set, 0 or more; sets not named keep theirs (0 at first). All or
 * nothing. */
TARE_API tare_status tare_calib_set_sizes(tare_calib *calib, const char *const *names,
                                          const int64_t *sizes, size_t count);
/* Most prompts handled together (default 4); without influence on the result. */
TARE_API tare_status tare_calib_set_batch_size(tare_calib *calib, int64_t size);
/* 32-bit words of the absolute value, lowest first (default: 0). */
TARE_API tare_status tare_calib_set_shuffle_seed(tare_calib *calib, const uint32_t *words,
                                                 size_t count);

/* What a model is asked about a prompt, each as if it were alone; ids are those of the raw text
 * with the special tokens that the tokenizer adds. */
typedef enum tare_calib_task {
    /* The float32 log-probabilities, behind the last token of the prompt, of the last token of
     * TARE_CALIB_YES and of TARE_CALIB_NO (encoded without special tokens). The ids are cut to the
     * tokenizer's model_max_length. */
    TARE_CALIB_CHOOSE,
    /* At most 20 greedy tokens, decoded alone, special tokens kept; ids cut as above. */
    TARE_CALIB_CONTINUE,
    /* At most 256 tokens, uncut, ended by the tokenizer's eos alone; prompt and new tokens decoded
     * together without special tokens. Sampled where the question says so. */
    TARE_CALIB_SOLVE
} tare_calib_task;

#define TARE_CALIB_YES "How can we learning machine learning: yes"
#define TARE_CALIB_NO  "How can we learning machine learning: no"

typedef struct tare_calib_question {
    const char *prompt;
    size_t prompt_length;
    bool sample;      /* SOLVE: draw by a generator whose seed has the words `seed` */
    uint32_t seed[3]; /* gsm8k_seed, low and high word; the record's index */
} tare_calib_question;

typedef struct tare_calib_answer {
    float yes, no; /* CHOOSE: log-probabilities */
    bool too_long; /* beyond the engine's context limit: not positive, and counted in a warning */
    void *text;    /* set by tare_calib_answer_text */
} tare_calib_answer;

/* Answers `count` questions of one kind into answers[count], which come without text, log-
 * probabilities of 0 and fitting the context. */
typedef struct tare_calib_verifier {
    size_t size;
    tare_status (*answer)(void *user, tare_calib_task task, const tare_calib_question *questions,
                          size_t count, tare_calib_answer *answers);
    void *user; /* must live as long as the mix is used, or until another verifier is set */
    /* May be NULL: tells in *plan (with its size) what `answer` would do with these questions.
     * Where weights do not stay in memory, many questions are asked at once, unless
     * tare_calib_set_batch_size was called. */
    tare_status (*plan)(void *user, tare_calib_task task, const tare_calib_question *questions,
                        size_t count, tare_generation_plan *plan);
    /* Who answers, as a JSON map of maps of strings: another one does not go on where this one was
     * killed. NULL: nothing is kept for that. */
    const char *identity;
} tare_calib_verifier;

/* *out (with its size) <- a verifier that asks a model of this library, whose folder may hold a
 * tokenizer_config.json (model_max_length, eos_token). TARE_E_USAGE if the tokenizer does not fit
 * the model: it gives ids that the model does not have, or none. No weight is read yet. Both are of
 * one context; the verifier is one more owner of them. */
TARE_API tare_status tare_model_verifier_create(tare_model *model, tare_tokenizer *tokenizer,
                                                tare_calib_verifier *out);
TARE_API void tare_model_verifier_free(tare_calib_verifier *verifier);
/* Keys and values that do not fit in memory go to scratch files in `folder`, copied; it must exist
 * when questions are asked. NULL: they must fit. */
TARE_API tare_status tare_model_verifier_set_scratch(tare_calib_verifier *verifier,
                                                     const char *folder);

/* Only samples that the verifier answers right are taken from now on; NULL: all are. */
TARE_API tare_status tare_calib_set_verifier(tare_calib *calib,
                                             const tare_calib_verifier *verifier);
/* Sets the text of an answer (CONTINUE, SOLVE), copied. */
TARE_API tare_status tare_calib_answer_text(tare_calib_answer *answer, const char *text,
                                            size_t length);

/* The folder of tare_calib_options.keep; NULL where nothing is saved. */
TARE_API const char *tare_calib_work_folder(const tare_calib *calib);

/* Draws, joins and shuffles; saves if a path was given. `out` may be NULL. The same again gives the
 * same. The result is independent of `calib`, not of its context. */
TARE_API tare_status tare_calib_process(tare_calib *calib, tare_calib_result **out);
TARE_API void tare_calib_result_free(tare_calib_result *result);
TARE_API size_t tare_calib_result_count(const tare_calib_result *result);

typedef struct tare_calib_entry {
    tare_calib_sample sample;
    const char *set; /* its name */
} tare_calib_entry;

TARE_API void tare_calib_result_entry(const tare_calib_result *result, size_t index,
                                      tare_calib_entry *entry);
/* The bytes that are saved, zero-terminated, freed with tare_free(). */
TARE_API tare_status tare_calib_result_json(const tare_calib_result *result, char **text,
                                            size_t *length);
/* Token ids of an entry's prompt with special tokens, whole; freed with tare_free(). */
TARE_API tare_status tare_calib_token_ids(const tare_calib_result *result, size_t index,
                                          tare_tokenizer *tokenizer, uint32_t **ids, size_t *count);

typedef struct tare_calib_stats {
    size_t size;
    uint64_t available; /* good records */
    uint64_t skipped;   /* bad ones, with skip_bad */
    uint64_t requested; /* the size that was set */
    uint64_t delivered; /* by the last tare_calib_process */
} tare_calib_stats;

TARE_API size_t tare_calib_num_sets(const tare_calib *calib);
/* In the order of the mix. */
TARE_API const char *tare_calib_set_name(const tare_calib *calib, size_t index);
TARE_API tare_status tare_calib_get_stats(tare_calib *calib, const char *name,
                                          tare_calib_stats *stats);

/* ---- model
 * ------------------------------------------------------------------------------------------------------
 */

/* Opens a checkpoint folder: reads config.json and the headers of the weight files, checks every
 * tensor's presence, shape and dtype. No weight is read yet, but where config.json ties the head
 * and there is an lm_head.weight, which is compared with the embedding. */
TARE_API tare_status tare_model_open(tare_context *ctx, const char *path, tare_model **out);

/* A tensor in the caller's memory. */
typedef struct tare_tensor {
    const char *name;  /* as in a checkpoint: "model.layers.0.self_attn.q_proj.weight" */
    const char *dtype; /* as in a safetensors header: "BF16", "F16", "F32", … */
    size_t rank;
    const size_t *shape; /* [rank] */
    /* [rank] in elements; NULL: contiguous. Anything but contiguous rows is TARE_E_MODEL. */
    const ptrdiff_t *strides;
    const void *data;
    size_t bytes;
} tare_tensor;

/* A model of tensors in memory. They are used in place, a layer at a time, and must stay as they
 * are until the model, and every call that it is the `source` of, is done; the table itself, its
 * names and shapes are copied. `config_json` is the text of a config.json; NULL: it is read from
 * `folder`. `folder` (may be NULL) also has the tokenizer, and what tare_quantize copies into its
 * output beside the weights. Tensors are checked as those of a folder are; a tied head may be
 * given too: where the embedding lies, or elsewhere, and if it differs then it is used as it is.
 * Outputs are byte-identical to those from a folder
 * that holds the same tensors in the same order, but for what comes from the folder's other files
 * and what tare_run.json says of the weight files. */
TARE_API tare_status tare_model_from_tensors(tare_context *ctx, const char *config_json,
                                             const char *folder, const tare_tensor *tensors,
                                             size_t count, tare_model **out);
TARE_API void tare_model_free(tare_model *model);
TARE_API size_t tare_model_vocab_size(const tare_model *model);
/* Float logits [count, vocab_size] of one sequence, streamed layer by layer, in FP32. */
TARE_API tare_status tare_model_logits(tare_model *model, const uint32_t *ids, size_t count,
                                       float *logits);

/* Lets go of the weights that tare_generate and tare_last_logprobs keep in the model between calls;
 * tare_model_free does it too. */
TARE_API void tare_model_unload(tare_model *model);

/* ---- generate
 * ---------------------------------------------------------------------------------------------------
 *
 * Tokens that a model adds to prompts. FP32 arithmetic on the weights as they are stored. What
 * comes out for a prompt depends on that prompt, its record number and the options alone: not on
 * the other prompts, on `batch`, on threads or on the memory limit. The first call keeps the
 * weights in the model, if they fit the context's memory_limit (0: 80 % of what the machine has
 * free); else all prompts of a batch go through the model layer by layer, for each token anew. */

typedef struct tare_generate_options {
    size_t size;
    size_t max_new_tokens; /* 20 */
    bool do_sample;        /* false: always the most probable token, of equal ones the lowest id */
    /* Below 0: as in the checkpoint's generation_config.json, else 1, 50, 1 and 1. */
    double temperature; /* of do_sample */
    int64_t top_k;      /* of do_sample; 0: all */
    double top_p;       /* of do_sample */
    double repetition_penalty;
    /* The draws of do_sample: Mersenne Twister keyed by seed's low word, its high word and the
     * record number (docs/generate.md). */
    uint64_t seed;
    const uint32_t *records; /* [n] record numbers; NULL: the prompts' indices */
    /* Tokens that end a text. NULL: eos_token_id of generation_config.json, else of config.json;
     * not NULL with num_eos 0: none. */
    const uint32_t *eos_ids;
    size_t num_eos;
    size_t batch;            /* most prompts that are worked on together; 0: chosen */
    const char *scratch_dir; /* for keys and values that do not fit in memory; NULL: they must */
    /* Called with each new token at once; false: this prompt's text is complete. NULL: nobody
     * looks. */
    bool (*token)(void *user, size_t prompt, uint32_t id);
    void *user;
} tare_generate_options;

typedef enum tare_finish {
    TARE_FINISH_LENGTH,  /* max_new_tokens */
    TARE_FINISH_EOS,     /* the last id is one of the end tokens */
    TARE_FINISH_STOPPED, /* `token` returned false */
    TARE_FINISH_CONTEXT, /* prompt and text fill max_position_embeddings */
    TARE_FINISH_TOO_LONG /* the prompt alone is longer than that: nothing was generated */
} tare_finish;

/* The new tokens of one prompt, the end token included. */
typedef struct tare_generation {
    uint32_t *ids;
    size_t count;
    tare_finish finish;
} tare_generation;

/* What tare_generate would do. Bytes; memory is what the accounted allocator holds. */
struct tare_generation_plan {
    size_t size;
    uint64_t budget;          /* UINT64_MAX: none */
    uint64_t smallest, peak;  /* the least that works; the most that is held, `peak` <= `budget` */
    uint64_t smallest_kept;   /* the least with which weights stay in memory */
    uint64_t weights;         /* of these: weights in memory */
    uint64_t key_values;      /* keys and values of a batch, in memory or in scratch files */
    uint64_t bytes_read_once; /* of the checkpoint, when the weights are kept */
    uint64_t bytes_read_pass; /* for each pass */
    uint64_t scratch_read;    /* keys and values from scratch files, in all, at most */
    uint64_t scratch_written; /* and into them */
    uint64_t tokens;          /* that go through the layers, at most: of prompts and texts */
    uint64_t parameters;      /* of layers and head: a token multiplies with each */
    size_t passes;            /* through the layers, at most: each gives a token to each prompt */
    size_t batch;             /* prompts worked on together */
    bool weights_kept, read_ahead, spill;
};

TARE_API void tare_generate_options_init_sized(tare_generate_options *options, size_t size);
#define tare_generate_options_init(options)                                                        \
    tare_generate_options_init_sized((options), sizeof *(options))
/* results[n], freed by tare_generations_free; after a failure (TARE_E_CANCELLED too) they are
 * empty. `options` NULL: the defaults. TARE_E_DATA: an empty prompt, an id beyond the vocabulary.
 * TARE_E_BUDGET: the memory limit is too small; the message names the smallest that works. */
TARE_API tare_status tare_generate(tare_model *model, const tare_generate_options *options,
                                   const uint32_t *const *prompts, const size_t *lengths, size_t n,
                                   tare_generation *results);
TARE_API void tare_generations_free(tare_context *ctx, tare_generation *results, size_t n);
/* logprobs [n, num_ids] <- the log-softmax (FP32) of the tokens ids[num_ids] behind each prompt. Of
 * `options` (NULL: the defaults) only batch and scratch_dir count. NaN for a prompt that is
 * longer than max_position_embeddings. */
TARE_API tare_status tare_last_logprobs(tare_model *model, const tare_generate_options *options,
                                        const uint32_t *const *prompts, const size_t *lengths,
                                        size_t n, const uint32_t *ids, size_t num_ids,
                                        float *logprobs);
/* Reads no weight. TARE_E_BUDGET as tare_generate, with *plan filled in. */
TARE_API tare_status tare_generate_plan(tare_model *model, const tare_generate_options *options,
                                        const size_t *lengths, size_t n,
                                        tare_generation_plan *plan);

/* How fast this machine does what generation with weights from the disk consists of. */
typedef struct tare_model_rates {
    size_t size;
    double read;     /* bytes of weights a second; 0: not known, as there is no data on the disk */
    double pack;     /* weights a second to compute format */
    double products; /* operations a second */
} tare_model_rates;

/* Measures with the model's own shapes and `rows` tokens at a time, for about half a second. */
TARE_API tare_status tare_model_probe(tare_model *model, size_t rows, tare_model_rates *rates);

/* What verifying a set will take, known before it begins. */
typedef struct tare_calib_plan {
    size_t size;
    bool verified; /* false: nobody is asked, and all else is 0 */
    tare_calib_task task;
    uint64_t records; /* that can be asked */
    size_t together;  /* asked at once; more only if too few of them are answered right */
    uint64_t rounds;  /* of asking, at most: when all records are asked */
    /* Of the first round, if no text ends early: what this points at, begun with its own size, is
     * filled in; NULL: not asked for. A process takes `process` bytes beside. */
    tare_generation_plan *generation;
    uint64_t process;
} tare_calib_plan;

/* TARE_E_USAGE: no such set, or a verifier without a plan; TARE_E_BUDGET, with *plan filled in. */
TARE_API tare_status tare_calib_get_plan(tare_calib *calib, const char *name,
                                         tare_calib_plan *plan);

#ifdef __cplusplus
}
#endif
#endif
