/* An output while it is written: what was declared (units), what that means in each folder (planned
 * tensors in files), and the names that were staged so far. Shared by the files of output/ that
 * write; everything lives in the output's arena unless it says otherwise. */
#ifndef TARE_OUTPUT_OUTPUT_INTERNAL_H
#define TARE_OUTPUT_OUTPUT_INTERNAL_H

#include "file/npy.h"
#include "file/value.h"
#include "output/layout.h"
#include "output/output.h"

/* A FLOAT tensor or a quantized linear, in the order of declaration. */
typedef struct output_unit {
    const char *name; /* tensor, or module of a linear */
    bool is_linear;
    tensor_info tensor; /* FLOAT: as in the source, `bytes` set */
    w8a8_linear linear;
    uint64_t written; /* FLOAT: bytes so far */
    bool complete;
    size_t first[2]; /* its first planned tensor in each folder */
} output_unit;

typedef struct planned_tensor {
    tensor_info info;
    const char *type; /* of the description */
    tensor_role role;
    size_t file, index; /* weight file, and place in it */
} planned_tensor;

typedef struct weight_file {
    char *name;
    tensor_info *tensors;
    size_t count;
    uint64_t bytes, bytes_left;
    safetensors_writer *writer; /* NULL before begin and once complete */
} weight_file;

/* One folder with safetensors (ascendv1 or safe_tensor), npy files, or both. */
typedef struct output_folder {
    layout layout;  /* of the safetensors files: LAYOUT_ASCENDV1 or LAYOUT_SAFE_TENSOR */
    bool has_files; /* false: npy files alone */
    bool has_numpy;
    char *dir, *stage;

    planned_tensor *tensors;
    size_t num_tensors;
    weight_file *files;
    size_t num_files;
    bool sharded;
    char *prefix;
    npy_writer *npy[NPY_FILES];

    const char **staged; /* names in the order in which they are renamed (mem_free) */
    size_t num_staged, staged_capacity, published;
} output_folder;

struct output {
    tare_context *ctx;
    arena arena;
    output_options options;
    char *dir, *stage, *model_dir; /* real paths */
    bool made_dir, staged, begun, head_quantized, numpy_widened;
    size_t num_linears;
    const char *quant_type; /* "FLOAT" if nothing is quantized */

    output_unit *units; /* mem_free */
    size_t num_units, units_capacity;
    strmap floats, linears;
    output_folder folders[2];
    size_t num_folders;
};

/* The folder of `name` in the arena; NULL when out of memory. */
char *output_path(output *o, const char *dir, const char *name);
/* Notes a staged file; the order of calls is the order of the final renames. */
tare_status output_note_staged(output *o, output_folder *f, const char *name);
/* Writes a text file into the folder's stage and notes it. */
tare_status output_stage_text(output *o, output_folder *f, const char *name, const char *text,
                              size_t length);

/* folders.c: which folders, whether they may be written, and the stage. */
tare_status output_prepare_folders(output *o);
void output_remove_stage(output *o);

/* plan.c: the tensors of each folder and the files that they go to. `limit` in bytes, 0: one file.
 */
tare_status output_plan_folder(output *o, output_folder *f, uint64_t limit, bool sharded);
uint64_t output_planned_bytes(const output_folder *f);
/* Splits tensors of the given sizes, in order, into files (section 2.3): file_of[i]; returns the
 * number of files. */
size_t output_plan_shards(const uint64_t *sizes, size_t count, uint64_t limit, size_t *file_of);

/* write.c */
tare_status output_open_files(output *o);
tare_status output_close_files(output *o, output_folder *f);
void output_abandon_files(output_folder *f);

/* numpy.c: the npy files of a folder. */
tare_status output_numpy_check(output *o, const tensor_info *tensor);
tare_status output_numpy_open(output *o, output_folder *f);
tare_status output_numpy_write(output *o, output_folder *f, const tensor_info *tensor,
                               tensor_role role, uint64_t offset, const void *data, size_t size);
tare_status output_numpy_close(output *o, output_folder *f);

/* description.c: index and description. */
tare_status output_stage_index(output *o, output_folder *f);
tare_status output_stage_description(output *o, output_folder *f);

/* config_json.c: the edited config.json (section 1.2). */
tare_status output_stage_config(output *o, output_folder *f);

/* copy_files.c: everything that is copied; one warning lists what is left out. */
tare_status output_copy_files(output *o, output_folder *f);

/* publish.c: from the stage to the final names, and back if that fails. */
tare_status output_publish(output *o);

#endif
