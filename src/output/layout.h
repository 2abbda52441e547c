/* The layouts that tare writes and `tare verify` checks: names of files, dtypes and shapes of
 * tensors (specification: spec/output_formats.md, sections 1, 4, 5.1, 6 and 10). Tables alone; no
 * file is touched here. */
#ifndef TARE_OUTPUT_LAYOUT_H
#define TARE_OUTPUT_LAYOUT_H

#include "file/safetensors.h"
#include "quantize/parts.h"
#include "quantize/save_types.h"
#include "quantize/scheme.h"

/* ".weight", ".bias", ".weight_scale", … */
const char *role_suffix(tensor_role role);
/* The role that the end of a tensor's name says, and the length of the module before it;
 * TENSOR_FLOAT if none. */
tensor_role role_of_name(const char *name, size_t *module_length);

/* dtype and shape of one tensor of a quantized linear (sections 4.1 and 7; in numpy's layout an
 * array has numpy_dtype() of it); name, offset and bytes stay as they are. False: this linear has
 * no such tensor. */
bool linear_tensor(layout which, const numerics *num, const linear_form *linear, tensor_role role,
                   tensor_info *out);
/* The format of compressed-tensors that holds linears of these schemes (bits): it packs weights
 * whose activations are left alone. */
const char *compressed_format(unsigned schemes);
/* 32-bit words of a row of `k` 8-bit integers in TENSOR_WEIGHT_PACKED: value + 128 in a byte each,
 * the first one lowest, what is left of the last word 0. */
size_t packed_words(size_t k);
/* dtype of scales: that of S; in ascendv1 FP32 (but for compat). */
tare_dtype layout_scale_dtype(layout which, const numerics *num);

/* The six FA tensors of an attention module, in the order of the description: the scales of q, k
 * and v, then their offsets (spec/fa3.md 1.7). */
enum { FA_TENSORS = 6 };
/* ".fa_q.scale", … */
const char *fa_suffix(int which);
/* Which of the six the end of a tensor's name says, and the length of the module before it; -1:
 * none. */
int fa_tensor_of_name(const char *name, size_t *module_length);
/* dtype and shape [heads,1], as linear_tensor; name, offset and bytes stay as they are. */
void fa_tensor(layout l, const numerics *num, int which, size_t heads, tensor_info *out);

/* The four tensors of an attention's key/value cache, [kv_heads*head_dim] of S, in the order of the
 * description: scale and offset of the keys, then of the values (section 4.3). */
enum { KV_TENSORS = 4 };
/* ".k_proj.kv_cache_scale", … */
const char *kv_suffix(int which);
/* As fa_tensor_of_name. */
int kv_tensor_of_name(const char *name, size_t *module_length);

/* Section 5.1: F32 if the serving dtype is BF16, else I64. */
tare_dtype deq_scale_dtype(tare_dtype serving);
/* numpy has no bfloat16. */
tare_dtype numpy_dtype(tare_dtype dtype);

/* "w8a8" of "W8A8"; NULL when out of memory. */
char *layout_lower_case(arena *a, const char *text);
/* Names of files; in `arena`, NULL when out of memory. `quant_type` as in the description ("W8A8").
 */
char *layout_weight_prefix(arena *a, layout which, bool compat, const char *quant_type);
char *layout_description_name(arena *a, layout which, const char *quant_type);
/* "<prefix>.safetensors", or with `of` > 0 "<prefix>-00001-of-00002.safetensors" (`number` from 1).
 */
char *layout_shard_name(arena *a, const char *prefix, size_t number, size_t of);
/* "model.safetensors", its shards and their index: the names of any checkpoint. */
bool layout_is_model_file(const char *name);
/* Is this file a weight file, index, description, npy file or run record that tare may have
 * written? `by_tare`: something else in its folder says that tare wrote there, without which
 * model.safetensors and config.json are somebody's checkpoint. */
bool layout_owns_file(const char *name, bool by_tare);

typedef enum npy_file {
    NPY_QUANT_WEIGHT,
    NPY_QUANT_BIAS,
    NPY_DEQ_SCALE,
    NPY_INPUT_SCALE,
    NPY_INPUT_OFFSET,
    NPY_WEIGHT_SCALE,
    NPY_WEIGHT_OFFSET,
    NPY_ANTI_FP_NORM,
    NPY_FA_QUANT_SCALE,
    NPY_FA_QUANT_OFFSET,
    NPY_KV_CACHE_SCALE,
    NPY_KV_CACHE_OFFSET,
    NPY_FILES
} npy_file;

/* "quant_weight.npy", … */
const char *npy_file_name(npy_file which);
/* Where a tensor goes in the numpy layout: the file, and the length of the part of `name` that is
 * its key. */
npy_file npy_place(const char *name, tensor_role role, size_t *key_length);
/* Backwards: the role of what such a file holds; TENSOR_FLOAT: no part of a linear. */
tensor_role npy_role(npy_file which);

#endif
