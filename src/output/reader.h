/* Reading an output, of whatever save types, tare's or another tool's: its layouts, the tensors of
 * each under their safetensors names, the quantized linears among them and their numbers. `tare
 * verify` and `tare inspect` go by it.
 *
 *     reader_open(ctx, dir, &options, &r);
 *     for each of r.layouts: for each of its linears that is complete: reader_numbers_load(…)
 *     reader_close(&r); */
#ifndef TARE_OUTPUT_READER_H
#define TARE_OUTPUT_READER_H

#include "file/npy.h"
#include "file/value.h"
#include "model/config.h"
#include "output/layout.h"

enum { READER_LAYOUTS = 4 };

/* A stored tensor. In the numpy layout the name is put together from file and key. */
typedef struct reader_tensor {
    tensor_info info;
    const char *type; /* in the description; NULL: none, or no description in this layout */
    size_t source;    /* safetensors file or npy_file */
    const npy_entry *entry;
} reader_tensor;

/* A module that is quantized, or that has a tensor which only quantized linears have. */
typedef struct reader_linear {
    const char *module;
    const reader_tensor *parts[TENSOR_COUNT]; /* NULL: absent */
    bool targeted;    /* compressed-tensors: config.json says how it is quantized */
    linear_form form; /* as its tensors tell; n or k 0: they do not */
    bool staged;      /* W4A8_DYNAMIC with groups: further tensors, which are not read here */
    bool packed;      /* a row of bytes holds two of 4-bit weights */
    bool complete;    /* its tensors are those of its form: numbers can be read */
} reader_linear;

/* The numbers of one complete linear; of activations (input_*, quant_bias, deq_*) only if its
 * scheme has them. compressed-tensors has neither quant_bias nor deq_*, its weight offsets are
 * zeros, and the integers are not looked at. */
typedef struct reader_numbers {
    size_t n, k, num_scales, num_deq;
    bool activations;                           /* input_scale and input_offset are there */
    float *weight_scale, *weight_offset, *bias; /* bias NULL: none */
    float input_scale, input_offset;
    int32_t *quant_bias;
    float *deq_scale;  /* decoded */
    int64_t *deq_bits; /* as stored in I64; NULL: F32 */
    int64_t *row_sums; /* of the integers of a row; NULL: not looked at */
    int64_t *sums;     /* [n,slices] of 4-bit weights, slice by slice, instead of the rows' */
    float *scale_bias; /* [n,slices] of those */
    int8_t *row_min, *row_max;
} reader_numbers;

/* What cannot be read or understood; what depends on it is absent then. */
typedef enum reader_fault {
    FAULT_WEIGHTS, /* a safetensors file */
    FAULT_NPY,
    FAULT_TWICE, /* a tensor that is stored twice */
    FAULT_DESCRIPTION,
    FAULT_CONFIG
} reader_fault;

typedef struct reader_options {
    const char *safetensors_name, *json_name; /* of the safe_tensor layout, instead of its own */
    bool compat;
    /* NULL: faults are counted alone. */
    void (*fault)(void *user, reader_fault fault, layout which, const char *name,
                  const char *expected, const char *found);
    void *user;
} reader_options;

/* What a layout of an output will hold, before there is a folder: texts instead of files, and
 * tensors without their data. */
typedef struct reader_plan {
    layout layout;
    const char *config; /* config.json */
    /* NULL: the layout has none. The description's text lacks the keys that are tensors, whose
     * types are told with them: there are hundreds of thousands. */
    const char *description, *description_name;
    /* One of num_tensors, and its type in the description (NULL: it is not there); NULL: none is
     * in this place. */
    const tensor_info *(*tensor)(const void *user, size_t index, const char **type);
    const void *user;
    size_t num_tensors;
    bool weight_offsets; /* those of W8A16 will not be 0 */
} reader_plan;

typedef struct reader reader;

/* One layout in one folder. */
typedef struct reader_layout {
    reader *r;
    tare_context *ctx;
    const reader_plan *plan; /* NULL: the output is there */
    layout layout;
    const char *dir;
    arena arena;
    char **names; /* of the folder's files, sorted */
    size_t num_names;

    const char *description_name; /* NULL: none found */
    const value *description;     /* NULL: absent or no JSON object */
    strmap types;                 /* description key -> index */
    const value *config;          /* NULL: absent or no JSON object */
    const char *quant_type;       /* model_quant_type; without a description as its linears tell */
    numerics num;
    bool dtype_known;
    const architecture *arch; /* NULL: not known */
    block_graph graph;        /* of it, or as of nearly all: the names of its linears */

    const char *prefix; /* of weight files */
    size_t shards;      /* M of -i-of-M; 0: one file */
    const char **file_names;
    safetensors **files;
    size_t num_files;
    npy_dict *npy[NPY_FILES];
    bool broken; /* a container does not parse: tensors may be missing */

    reader_tensor *tensors;
    size_t num_tensors;
    strmap by_name;
    reader_linear *linears;
    size_t num_linears, linears_capacity;
    strmap by_module;
} reader_layout;

struct reader {
    tare_context *ctx;
    reader_options options;
    arena arena;
    unsigned found; /* bits of save types */
    size_t faults;
    reader_layout layouts[READER_LAYOUTS];
    size_t num_layouts;
};

/* The layouts of `dir`, or those of the sub-folders that several save types make; none is no error.
 * Only what says nothing about the files fails (memory, cancellation, the folder). The reader must
 * stay where it is until reader_close, which is due in any case. */
tare_status reader_open(tare_context *ctx, const char *dir, const reader_options *options,
                        reader *r);
/* The one layout of a plan, which must stay; no data can be read from it. */
tare_status reader_open_plan(tare_context *ctx, const reader_plan *plan,
                             const reader_options *options, reader *r);
void reader_close(reader *r);

/* Does config.json say that latent attention has one matrix for queries (q_lora_rank null)? */
bool reader_has_one_query(const reader_layout *f);

const reader_tensor *reader_find(const reader_layout *f, const char *name);
const reader_linear *reader_find_linear(const reader_layout *f, const char *module, size_t length);
/* What a tensor of `dtype` is stored as where `t` is (NULL: in this layout): numpy arrays have no
 * BF16. */
tare_dtype reader_stored_dtype(const reader_layout *f, const reader_tensor *t, tare_dtype dtype);
tare_status reader_read(const reader_layout *f, const reader_tensor *t, uint64_t offset, void *data,
                        size_t size);
/* Are they the same bytes? */
tare_status reader_same_bytes(const reader_layout *f, const reader_tensor *a,
                              const reader_layout *g, const reader_tensor *b, bool *same);
/* One element of a F32, F16 or BF16 tensor, of a zero point in I8, or of a deq_scale in I64. */
float reader_element(tare_dtype dtype, const char *raw);
/* Elements [first, first+count) of such a tensor. */
tare_status reader_elements(const reader_layout *f, const reader_tensor *t, size_t first,
                            size_t count, float *out);
/* All elements; freed with mem_free. */
tare_status reader_floats(const reader_layout *f, const reader_tensor *t, float **out);
/* "F32 [4,1]" in `out`. */
void tensor_shape_text(const tensor_info *t, char *out, size_t size);

/* ---- linears */

/* The stored weight of a linear, packed or not; NULL: none. */
const reader_tensor *reader_weight(const reader_linear *l);
/* What its form wants of one of its tensors; false: it has no such tensor. */
bool reader_expects(const reader_layout *f, const reader_linear *l, tensor_role role,
                    tensor_info *out);
bool tensor_same_shape(const tensor_info *a, const tensor_info *b);
/* Integers [first, first+count) of a complete linear's matrix [N,K], unpacked if they are stored in
 * words. */
tare_status reader_codes(const reader_layout *f, const reader_linear *l, size_t first, size_t count,
                         int8_t *out);
/* [N,K] of a packed weight, as it says itself; {0, 0}: it does not. */
tare_status reader_packed_shape(const reader_layout *f, const reader_linear *l, int64_t shape[2]);
/* The scheme that a member of compressed-tensors' config_groups means. */
linear_scheme reader_group_scheme(const value *config, const value *group);
/* Are its static activations without a zero point? */
bool reader_group_symmetric(const value *group);
/* Is this a type string that engines know? */
bool reader_is_known_type(const char *type);

/* The small tensors of a complete linear, and one streamed pass over its weight. */
tare_status reader_numbers_load(const reader_layout *f, const reader_linear *l,
                                reader_numbers *out);
void reader_numbers_free(tare_context *ctx, reader_numbers *n);
/* Accounted bytes, at most, of the numbers of linears with up to `n` rows, of 4-bit weights `int4`.
 */
size_t reader_numbers_bytes(size_t n, size_t int4);

#endif
