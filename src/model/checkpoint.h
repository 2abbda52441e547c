/* The tensors of a checkpoint: in the weight files of a folder (model.safetensors, or the shards
 * that model.safetensors.index.json names), or in a caller's memory. Headers are read and checked
 * on opening; tensor data only through checkpoint_read. No pickle, no code, no path outside the
 * folder. The index is a list of files: what is in them, their headers say. A checkpoint of the
 * bare decoder ("layers.0…", "embed_tokens…", "norm…") has the whole model's names here
 * ("model.layers.0…"). */
#ifndef TARE_MODEL_CHECKPOINT_H
#define TARE_MODEL_CHECKPOINT_H

#include "file/safetensors.h"

typedef struct checkpoint checkpoint;

tare_status checkpoint_open(tare_context *ctx, const char *dir, checkpoint **out);
/* `what` stands for the folder in messages. The data stays where it is and must outlive `out`.
 * TARE_E_MODEL for a tensor that is not what it says. */
tare_status checkpoint_from_tensors(tare_context *ctx, const char *what, const tare_tensor *tensors,
                                    size_t count, checkpoint **out);
/* The same tensors once more; of a folder, its files are opened again. `source` must outlive it. */
tare_status checkpoint_reopen(tare_context *ctx, const checkpoint *source, checkpoint **out);
void checkpoint_close(checkpoint *c);
tare_context *checkpoint_context(const checkpoint *c);

/* Tensors in file order, then header order. */
size_t checkpoint_count(const checkpoint *c);
const tensor_info *checkpoint_at(const checkpoint *c, size_t index);
/* NULL if absent. */
const tensor_info *checkpoint_find(const checkpoint *c, const char *name);
/* Bytes [offset, offset+size) of a tensor of this checkpoint. A float tensor's NaN or infinity is
 * TARE_E_NUMERIC and names it. */
tare_status checkpoint_read(checkpoint *c, const tensor_info *tensor, uint64_t offset, void *data,
                            size_t size);

/* The same by file_read_in (`room` has file_read_room(size) bytes), without the look for NaN and
 * infinity: that is checkpoint_check_finite, on whatever thread has the time. */
tare_status checkpoint_read_in(checkpoint *c, const tensor_info *tensor, uint64_t offset,
                               size_t size, void *room, void **data);
tare_status checkpoint_check_finite(checkpoint *c, const tensor_info *tensor, uint64_t offset,
                                    const void *data, size_t size);

/* Do two tensors share their data? (In memory alone; safetensors files cannot.) */
bool checkpoint_same_data(const checkpoint *c, const tensor_info *a, const tensor_info *b);
/* Do two tensors hold other bytes? Reads both, in pieces, up to the first difference. */
tare_status checkpoint_differs(checkpoint *c, const tensor_info *a, const tensor_info *b,
                               bool *differs);
/* Do these bytes of the tensor lie on disk (or in memory)? */
bool checkpoint_has_data(const checkpoint *c, const tensor_info *tensor, uint64_t offset,
                         size_t size);
/* Is the tensor from `offset` on a hole of a sparse file, which reads as zeros? */
bool checkpoint_is_hole(const checkpoint *c, const tensor_info *tensor, uint64_t offset);
/* Where the data of a tensor in memory lies; NULL: in a file. */
const void *checkpoint_data(const checkpoint *c, const tensor_info *tensor);
/* 0: the tensors are in memory. */
size_t checkpoint_file_count(const checkpoint *c);
const safetensors *checkpoint_file(const checkpoint *c, size_t index);
/* The index of a tensor's file, and of the first file by name; 0 in memory. */
size_t checkpoint_file_of(const checkpoint *c, const tensor_info *tensor);
size_t checkpoint_first_file(const checkpoint *c);
/* TARE_E_DATA if a weight file was written to since the checkpoint was opened. */
tare_status checkpoint_check_unchanged(const checkpoint *c);
/* Sum of the sizes of the weight files, or of the tensors in memory. */
uint64_t checkpoint_bytes(const checkpoint *c);

#endif
