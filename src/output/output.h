/* Writing an output: the save types ascendv1, safe_tensor and numpy from one stream of tensors
 * (specification: spec/output_formats.md). The life of an output:
 *
 *   output_open       checks the folder (TARE_E_FOLDER), makes <dir>/.tare/stage
 *   output_declare_*  once for every tensor that will be written, in model order: the shards are
 *                     planned from this
 *   output_begin      plans the shards, checks the free space, reserves the files
 *   output_write_*    the data, a thread at a time, linears and FLOAT tensors in any order; with
 *                     SAVE_NUMPY a FLOAT tensor is written to its end before the next one begins
 *   output_finish     index, copied files, config.json, tare_run.json, description; verifies the
 *                     stage (TARE_E_VERIFY); renames, the description last
 *   output_free       in any case; without a successful finish nothing stays in the folder
 *
 * One folder needed (any of: ascendv1; safe_tensor and/or numpy): it is `dir`; more: dir/ascendv1
 * and dir/safe_tensor. With `overwrite`, an earlier output's files go at the end of
 * output_finish, its description first. */
#ifndef TARE_OUTPUT_OUTPUT_H
#define TARE_OUTPUT_OUTPUT_H

#include "file/safetensors.h"
#include "quantize/scheme.h"

enum { SAVE_ASCENDV1 = 1, SAVE_SAFE_TENSOR = 2, SAVE_NUMPY = 4 };

typedef struct output_options {
    const char *dir, *model_dir;
    unsigned save;      /* SAVE_* bits, at least one */
    int part_file_size; /* GiB; 0: one file; -1: the save type's default (ascendv1 4, others one
                           file) */
    numerics num;
    bool dtype_given; /* the recipe names a dtype: config.json's torch_dtype is set to num.dtype */
    const char *quant_type; /* "W8A8" */
    bool overwrite, copy_code, verify;
} output_options;

typedef struct output output;

/* Parses "ascendv1", "ascendV1", "safe_tensor", "numpy"; false if unknown. */
bool output_save_type(const char *name, unsigned *bit);

tare_status output_open(tare_context *ctx, const output_options *options, output **out);
/* A FLOAT tensor written as it is stored in the source (name, dtype, shape). */
tare_status output_declare_float(output *o, const tensor_info *tensor);
/* A W8A8 linear `module` [n,k]: its weight and the tensors of section 4.1. `bias` NULL: the layer
 * has none; else its source tensor. `per_tensor`: one weight scale (stored as [1], in ascendv1
 * repeated to [n]). `act_dtype`: act_params.dtype, which compat needs. `is_head` with tied
 * embeddings makes config.json's tie_word_embeddings false. */
tare_status output_declare_w8a8(output *o, const char *module, size_t n, size_t k, bool per_tensor,
                                tare_dtype act_dtype, const tensor_info *bias, bool is_head);
tare_status output_begin(output *o);
/* Bytes [offset, offset+size) of a declared FLOAT tensor, in its own dtype. Ranges come in
 * increasing order. */
tare_status output_write_float(output *o, const char *name, uint64_t offset, const void *data,
                               size_t size);
/* All tensors of a declared linear. deq_scale [w->num_scales], quant_bias [n]; `bias` its source
 * bytes or NULL. */
tare_status output_write_w8a8(output *o, const char *module, const quantized_weight *w,
                              const act_params *act, const float *deq_scale,
                              const int32_t *quant_bias, const void *bias);
/* `run_json` is the text of tare_run.json. *bytes (may be NULL): size of the weight files of one
 * layout. */
tare_status output_finish(output *o, const char *run_json, uint64_t *bytes);
void output_free(output *o);

#endif
