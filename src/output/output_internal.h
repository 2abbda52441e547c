/* An output while it is written: what was declared (units), what that means in each folder (planned
 * tensors in files), and the names that were staged so far. Shared by the files of output/ that
 * write; everything lives in the output's arena unless it says otherwise. */
#ifndef TARE_OUTPUT_OUTPUT_INTERNAL_H
#define TARE_OUTPUT_OUTPUT_INTERNAL_H

#include "file/npy.h"
#include "file/value.h"
#include "output/copy_files.h"
#include "output/layout.h"
#include "output/output.h"

/* ascendv1; safe_tensor and numpy; compressed-tensors */
enum { OUTPUT_FOLDERS = 3 };

typedef enum unit_kind { UNIT_FLOAT, UNIT_LINEAR, UNIT_NORM, UNIT_FA } unit_kind;

/* What is declared at a time, in the order of declaration. */
typedef struct output_unit {
    const char *name; /* tensor (of a norm its weight), or module of a linear or an attention */
    unit_kind kind;
    tensor_info tensor; /* FLOAT, norm weight: as in the source, `bytes` set */
    linear_form linear;
    norm_kind norm;
    size_t heads[FA_KINDS];
    bool is_head;     /* a linear: lm_head */
    bool new_bias;    /* FLOAT: declared as such */
    bool kv_cache;    /* FLOAT: so, too */
    uint64_t written; /* FLOAT: bytes so far; linear: rows */
    bool complete;
    size_t first[OUTPUT_FOLDERS]; /* its first planned tensor in each folder */
} output_unit;

typedef struct planned_tensor {
    tensor_info info;
    const char *type; /* of the description */
    tensor_role role;
    size_t file, index; /* weight file, and place in it */
    bool not_numpy;     /* copies of norms */
    bool absent;        /* FA with fa_amp > 0, until it is written: has no place yet */
} planned_tensor;

/* A place for an FA tensor whose module is not known before the end. */
typedef struct fa_slot {
    tensor_info info; /* with a name that only reserves room */
    size_t file, index;
} fa_slot;

typedef struct weight_file {
    char *name;
    tensor_info *tensors;
    size_t count;
    uint64_t bytes, bytes_left;
    bool has_slots;             /* names change before it is finished */
    safetensors_writer *writer; /* NULL before begin and once complete */
} weight_file;

/* One folder with safetensors files, npy files, or both. */
typedef struct output_folder {
    layout layout;  /* of the safetensors files; never LAYOUT_NUMPY */
    bool has_files; /* false: npy files alone */
    bool has_numpy;
    bool ours;     /* what it holds was written by tare */
    bool rotation; /* it gets a ROTATION_FILE */
    char *dir, *stage;

    planned_tensor *tensors;
    size_t num_tensors;
    fa_slot *slots; /* [fa_kept*FA_TENSORS] with fa_amp > 0 */
    size_t num_slots;
    weight_file *files;
    size_t num_files;
    bool sharded;
    char *prefix;
    npy_writer *npy[NPY_FILES];

    const char **staged; /* names in the order in which they are renamed (mem_free) */
    size_t num_staged, staged_capacity, published;
} output_folder;

/* A piece of a planned tensor that is on the disk; tensor WHOLE_FILE: the first bytes of an npy
 * file. */
typedef struct saved_range {
    uint32_t folder, file, tensor; /* file: weight file, or npy_file */
    uint32_t unused;               /* no padding: the bytes go to a file */
    uint64_t place;                /* in the file */
    uint64_t length, hash;         /* XXH3-64 */
} saved_range;
enum { WHOLE_FILE = UINT32_MAX };

/* What output_save writes. */
typedef struct saved_stage {
    bool begun;
    uint64_t num_units, num_ranges;
    bool *complete;      /* [num_units]; mem_free */
    saved_range *ranges; /* mem_free */
} saved_stage;

struct output {
    tare_context *ctx;
    arena arena;
    output_options options;
    char target[TARGET_TEXT];      /* options.target */
    char *dir, *stage, *model_dir; /* real paths; model_dir NULL: there is none */
    bool made_dir, staged, begun, head_quantized, numpy_widened;
    unsigned schemes;                   /* 1 << linear_scheme, of the linears */
    size_t num_fa, fa_kept, fa_written; /* modules declared, that will have tensors, written */
    bool kv_cache;                      /* a cache has tensors */
    bool statistics;                    /* STATISTICS_FILE is staged */
    size_t statistics_published;        /* 1: it has its final name */
    buffer new_biases;                  /* names of the linears, for a refusal */
    bool shifts_norms;                  /* a norm has a bias */
    const char **float_linears;         /* names; mem_free */
    size_t num_float_linears, float_linears_capacity;
    linear_scheme named_by; /* the model; from output_begin */

    output_unit *units; /* mem_free */
    size_t num_units, units_capacity;
    strmap floats, linears;
    output_folder folders[OUTPUT_FOLDERS];
    size_t num_folders;

    bool keep;           /* the stage outlives this handle */
    saved_range *ranges; /* with options.journal: what was written; mem_free */
    size_t num_ranges, ranges_capacity;
    saved_stage saved; /* of the earlier process, from output_restore to output_begin */
};

/* The folder of `name` in the arena; NULL when out of memory. */
char *output_path(output *o, const char *dir, const char *name);
/* Notes a staged file; the order of calls is the order of the final renames. */
tare_status output_note_staged(output *o, output_folder *f, const char *name);
/* Writes a text file into the folder's stage and notes it. */
tare_status output_stage_text(output *o, output_folder *f, const char *name, const char *text,
                              size_t length);

/* The next unit, of `kind`, with `name` copied and mapped; `map` is one of the output's. */
tare_status output_add_unit(output *o, strmap *map, const char *name, unit_kind kind,
                            output_unit **out);
/* A unit that was declared; NULL if not, or if the output has not begun. */
output_unit *output_find_unit(output *o, const strmap *map, const char *name, unit_kind kind);

/* folders.c: which folders, whether they may be written; and the stage, empty unless an earlier
 * process left it. */
tare_status output_prepare_folders(output *o);
tare_status output_prepare_stage(output *o);
void output_remove_stage(output *o);

/* plan.c: the tensors of each folder and the files that they go to. `limit` in bytes, 0: one file.
 */
tare_status output_plan_folder(output *o, output_folder *f, uint64_t limit, bool sharded);
uint64_t output_planned_bytes(const output_folder *f);
/* Splits tensors of the given sizes, in order, into files (section 2.3): file_of[i]; returns the
 * number of files. */
size_t output_plan_shards(const uint64_t *sizes, size_t count, uint64_t limit, size_t *file_of);

/* norms.c, fa.c: tensors of one unit of that kind, appended behind tensors[0]; returns how many.
 * `tensors` NULL: only counts. Names and bytes are left to the caller. */
size_t output_expand_norm(const output *o, const output_folder *f, const output_unit *u,
                          planned_tensor *tensors);
size_t output_expand_fa(const output *o, const output_folder *f, const output_unit *u,
                        planned_tensor *tensors);
/* fa.c: how many modules keep their tensors, and what to say about that. */
tare_status output_settle_fa(output *o);
/* The places of tensors that are known late; names reserve room for the longest module. */
tare_status output_make_slots(output *o, output_folder *f);
/* "FAQuant", …: the global key's value; NULL: no such key. */
const char *output_fa_quant_type(const output *o, const output_folder *f);

/* write.c */
/* Data of one tensor into the folder's safetensors and npy files. */
tare_status output_write_tensor(output *o, output_folder *f, const planned_tensor *t,
                                uint64_t offset, const void *data, size_t size);
tare_status output_open_files(output *o);
tare_status output_close_files(output *o, output_folder *f);
void output_abandon_files(output_folder *f);

/* numpy.c: the npy files of a folder. */
npy_values output_npy_values(const output *o);
tare_status output_numpy_check(output *o, const tensor_info *tensor);
tare_status output_numpy_open(output *o, output_folder *f);
tare_status output_numpy_write(output *o, output_folder *f, const tensor_info *tensor,
                               tensor_role role, uint64_t offset, const void *data, size_t size);
tare_status output_numpy_close(output *o, output_folder *f);

/* description.c: index and description. */
tare_status output_stage_index(output *o, output_folder *f);
/* The description's text; empty for a folder without one. */
tare_status output_description_globals(output *o, output_folder *f, buffer *out);
tare_status output_stage_description(output *o, output_folder *f);

/* config_json.c: the edited config.json (section 1.2). */
tare_status output_config_text(output *o, output_folder *f, buffer *out);
tare_status output_stage_config(output *o, output_folder *f);
/* compressed_config.c: the quantization_config of section 7, in `a`. */
tare_status output_quantization_config(output *o, arena *a, const value **out);

/* copy_files.c: everything that is copied, in `a`; one warning lists what is left out. TARE_E_IO
 * for what readers of the output would miss. */
tare_status output_find_copies(output *o, arena *a, copy_list *out);
tare_status output_copy_files(output *o, output_folder *f, const copy_list *files);

/* tape.c: keeps the calls of an output with options.tape. */
tare_status output_tape_begin(output *o);
tare_status output_tape_float(output *o, const output_unit *u, uint64_t offset, const void *data,
                              size_t size);
tare_status output_tape_norm(output *o, const output_unit *u, const void *weight,
                             const float *bias);
tare_status output_tape_linear(output *o, const output_unit *u, const linear_parts *parts);
tare_status output_tape_fa(output *o, const output_unit *u, const float *const scales[FA_KINDS]);
tare_status output_tape_finish(output *o);

/* layout.c's names, or those that the options give the safe_tensor layout. In the arena. */
/* A scheme in descriptions; compat: in ascendv1 alone the reference says W8A8_MIX (section 10.4).
 */
const char *output_type(const output *o, layout which, linear_scheme scheme);
char *output_weight_prefix(output *o, layout which);
char *output_description_name(output *o, layout which);
/* layout_owns_file, with those names. */
bool output_owns_file(const output *o, const char *name, bool by_tare);
bool output_is_description(const output *o, const char *name);
/* Makes the folder of `name` in `dir`, if it has one. */
tare_status output_make_parent(output *o, const char *dir, const char *name);

/* reader_read.c: accounted bytes, at most, of the numbers of a linear with `n` rows. */
size_t reader_numbers_bytes(size_t n, size_t int4);
/* resume.c */
/* Notes a written piece of a safetensors file. */
tare_status output_note_range(output *o, output_folder *f, const planned_tensor *t, uint64_t offset,
                              const void *data, size_t size);
/* Opens the files that the earlier process left, and marks what they hold. */
tare_status output_reopen_files(output *o);
void output_leave_files(output_folder *f);

/* check.c: the rules of verify on what is staged; and all that can be found wrong with an output
 * that is planned and not yet written. */
tare_status output_verify_stage(output *o);
tare_status output_rehearse(output *o);

/* publish.c: from the stage to the final names, and back if that fails. */
tare_status output_publish(output *o);

#endif
