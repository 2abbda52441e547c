/* Writing an output: the save types ascendv1, safe_tensor, numpy and compressed-tensors from one
 * stream of tensors (specification: spec/output_formats.md). The life of an output:
 *
 *   output_open       checks the folder (TARE_E_FOLDER)
 *   output_declare_*  once for every tensor that will be written, in model order: the shards are
 *                     planned from this
 *   output_begin      makes <dir>/.tare/stage, plans the shards, checks the free space, reserves
 * the files output_write_*    the data, a thread at a time, linears and FLOAT tensors in any order;
 * with SAVE_NUMPY a FLOAT tensor is written to its end before the next one begins output_finish
 * index, copied files, config.json, tare_run.json, description; verifies the stage (TARE_E_VERIFY);
 * renames, the description last output_free       in any case; without a successful finish (or
 * output_keep) nothing stays in the folder
 *
 * One folder needed (any of: ascendv1; safe_tensor and/or numpy; compressed-tensors): it is `dir`;
 * more: dir/ascendv1, dir/safe_tensor and dir/compressed-tensors. With `overwrite`, an earlier
 * output's files go at the end of output_finish, its description first. */
#ifndef TARE_OUTPUT_OUTPUT_H
#define TARE_OUTPUT_OUTPUT_H

#include "file/archive.h"
#include "file/safetensors.h"
#include "quantize/engines.h"
#include "quantize/fa3.h"
#include "quantize/parts.h"
#include "quantize/save_types.h"
#include "quantize/scheme.h"

typedef struct output_tape output_tape;

typedef struct output_options {
    const char *dir;
    output_tape *tape;       /* instead of dir and save: everything is kept there (tape.h) */
    const char *model_dir;   /* of what is copied beside the weights; NULL: nothing is */
    const char *config_json; /* text of the model's config.json; NULL: that in model_dir */
    unsigned save;           /* SAVE_* bits, at least one */
    int part_file_size;      /* GiB; 0: one file; -1: the save type's default (ascendv1 and
                                compressed-tensors 4, others one file) */
    /* Names that the safe_tensor layout goes by instead of its own (a shard: with its number before
     * the ending); NULL: its own. */
    const char *safetensors_name, *json_name;
    bool npy_torch; /* the npy files hold torch tensors, not numpy arrays */
    numerics num;
    bool untie;       /* the model's own head is not its embedding, whatever config.json says */
    bool no_mtp;      /* the output's config.json says that it has no MTP layers */
    bool dtype_given; /* the recipe names a dtype, or the model's config.json none, or two:
                       * the output's torch_dtype is set to num.dtype */
    /* Of the run. In compat mode it is the model's type, whatever its linears have. */
    linear_scheme scheme;
    /* So many of the declared attention modules will have no FA tensors; which ones is known only
     * at the end. */
    size_t fa_amp;
    bool fa_latent;        /* latent attention (MLA), which engines know by another name */
    serving_target target; /* engine ENGINE_NONE: none */
    bool weight_offsets;   /* weights alone have some */
    bool overwrite, copy_code, verify;
    /* Without a dir: output_begin only looks for what could be found wrong later - files that can't
     * be copied, config.json, the rules of verify that need but names, dtypes and shapes - and
     * nothing is written. */
    bool rehearsal;
    bool rehearsed; /* so the warnings have been given */
    bool journal;   /* keep track of what is written, for output_save */
    /* A file of `rotation_bytes` that holds the model's rotation. In `dir` it must be the
     * ROTATION_FILE of ascendv1's folder, whose description then names it; NULL: there is none. */
    const char *rotation;
    uint64_t rotation_bytes;
    /* Called when the old output is gone and everything is staged: from here on
     * output_publish_rest can finish the work. NULL: not. */
    tare_status (*before_publish)(void *user);
    void *user;
} output_options;

typedef struct output output;

tare_status output_open(tare_context *ctx, const output_options *options, output **out);
/* A FLOAT tensor written as it is stored in the source (name, dtype, shape). */
tare_status output_declare_float(output *o, const tensor_info *tensor);
/* A quantized linear: the tensors of section 4.1 that its scheme has. `bias` NULL: the layer has
 * none; else its tensor, from which the form's has_bias and bias_dtype are taken. One weight scale
 * is stored as [1], in ascendv1 repeated to [n]. `is_head` with tied embeddings makes config.json's
 * tie_word_embeddings false. */
tare_status output_declare_linear(output *o, const char *module, const linear_form *form,
                                  const tensor_info *bias, bool is_head);

/* A linear that stays float, beside the declaration of its tensors (a tied head has none):
 * compressed-tensors names it in config.json. */
tare_status output_declare_float_linear(output *o, const char *module);

/* What outlier suppression does to norms (section 4.2). Ascend's layout has a bias only with
 * NORM_SHIFTED (compat: with both), and then for every norm, as engines give every norm a slot.
 * compressed-tensors has none: with NORM_SHIFTED output_begin fails with TARE_E_USAGE. */
typedef enum norm_kind {
    NORM_PLAIN,   /* none, or m6: the weight alone */
    NORM_WRAPPED, /* m1 to m5 without shift: biases are zero */
    NORM_SHIFTED  /* m4 with shift */
} norm_kind;

/* A norm by its weight, which is named "<norm>.weight" and stored as in the source. */
tare_status output_declare_norm(output *o, const tensor_info *weight, norm_kind kind);
/* The bias that a shift creates on a FLOAT linear whose architecture has none. With ascendv1 and
 * compressed-tensors output_begin then fails with TARE_E_USAGE and names these linears: engines
 * drop such a bias. (A quantized linear has it in its form.) */
tare_status output_declare_new_bias(output *o, const tensor_info *bias);
/* The FA tensors of an attention module, directly before its first linear; heads of q, k and v.
 * With fa_amp > 0 all modules must have the same heads. TARE_E_USAGE with compressed-tensors, which
 * has no such tensors. */
tare_status output_declare_fa(output *o, const char *module, const size_t heads[FA_KINDS]);
/* One of the tensors of a key/value cache (layout.h): a FLOAT tensor of another type, whose numbers
 * output_write_float writes. TARE_E_USAGE with compressed-tensors, where engines read others. */
tare_status output_declare_kv_cache(output *o, const tensor_info *tensor);
tare_status output_begin(output *o);

/* What calibration found (tare_stats.safetensors) lies in a folder of its own below the output's,
 * as engines read every *.safetensors that lies beside the weights. */
#define STATISTICS_FOLDER "tare"
#define STATISTICS_FILE   STATISTICS_FOLDER "/tare_stats.safetensors"
/* Its path in the stage, in the output's arena: what the caller writes there before output_finish
 * is published with the output. After output_begin. */
tare_status output_stage_statistics(output *o, const char **path);
/* Where vLLM-Ascend and msModelSlim keep the rotation of the residual stream, and the name of the
 * tensor: drafts of speculative decoding need it, which read hidden states as they were. */
#define ROTATION_FOLDER "optional"
#define ROTATION_FILE   ROTATION_FOLDER "/quarot.safetensors"
#define ROTATION_TENSOR "global_rotation"
/* As output_stage_statistics, of options.rotation; *path NULL: it does not lie in the output. */
tare_status output_stage_rotation(output *o, const char **path);
/* Bytes [offset, offset+size) of a declared FLOAT tensor, in its own dtype. Ranges come in
 * increasing order. */
tare_status output_write_float(output *o, const char *name, uint64_t offset, const void *data,
                               size_t size);
/* Rows of a declared linear, in increasing order: the parts of its scheme, as parts.h says. */
tare_status output_write_linear(output *o, const char *module, const linear_parts *parts);
/* All tensors of a declared norm: `weight` as it is stored, `bias` [n] FP32 (NULL: zeros). */
tare_status output_write_norm(output *o, const char *weight_name, const void *weight,
                              const float *bias);
/* The FA tensors of a declared module; scales of q, k and v, [heads] each, rounded to num.dtype.
 * With fa_amp > 0 only for the modules that keep them, in the order of declaration. */
tare_status output_write_fa(output *o, const char *module, const float *const scales[FA_KINDS]);
/* ---- Going on in another process (spec/low_memory.md 1.7)
 *
 * output_save puts into an archive what of the declared tensors is on the disk, and with
 * output_keep the stage outlives output_free. Another process checks that with output_check_saved,
 * opens the output, reads the same part of the archive with output_restore, declares
 * the same tensors, and goes on after output_begin with those that are not complete. */

/* Syncs every file; between tensors alone. Legal before output_begin too. */
tare_status output_save(output *o, archive *a);
void output_keep(output *o);
/* TARE_E_DATA unless the files below `stage` hold what the archive says. */
tare_status output_check_saved(tare_context *ctx, archive *a, const char *stage);
/* After output_open, before output_begin. */
tare_status output_restore(output *o, archive *a);
/* A digest of every file below `stage`, its name included. */
tare_status output_digest_stage(tare_context *ctx, const char *stage, uint64_t *digest);
/* After output_open: verifies what an earlier process has staged to its end, and publishes it. */
tare_status output_publish_stage(output *o);
/* Gives what is left in `stage` its final names in `dir`, the description last. */
tare_status output_publish_rest(tare_context *ctx, const char *stage, const char *dir);

/* `run_json` is the text of tare_run.json. *bytes (may be NULL): size of the weight files of one
 * layout. */
tare_status output_finish(output *o, const char *run_json, uint64_t *bytes);
void output_free(output *o);
/* Accounted bytes, at most, for a run with `tensors` tensors in each folder: of the output while it
 * is written; of writing a linear of `n` rows (0: a piece of a FLOAT tensor); of output_finish, the
 * verification of linears of up to `n` rows included, of 4-bit weights `int4`. */
size_t output_state_bytes(size_t tensors, unsigned save);
size_t output_write_bytes(size_t n);
/* And, beside that, of packing `rows` rows of `k` integers. */
size_t output_rows_bytes(linear_scheme scheme, size_t rows, size_t k, unsigned save);
size_t output_finish_bytes(size_t tensors, size_t n, size_t int4);

#endif
