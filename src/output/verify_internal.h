/* `tare verify` inside: one opened layout (vfolder) and the linears found in it, the rules that
 * look at them, and how a rule reports. A rule is a row in the table of verify.c. Rules read;
 * whatever the files hold, they report findings, and return a status other than TARE_OK only when
 * they cannot go on (memory, I/O, cancellation). */
#ifndef TARE_OUTPUT_VERIFY_INTERNAL_H
#define TARE_OUTPUT_VERIFY_INTERNAL_H

#include "file/npy.h"
#include "file/value.h"
#include "model/checkpoint.h"
#include "model/config.h"
#include "output/layout.h"

enum { VERIFY_MAX_FOLDERS = 4 };

/* A stored tensor under its safetensors name: in the numpy layout the name is put together from
 * file and key. */
typedef struct vtensor {
    tensor_info info;
    const char *type; /* in the description; NULL: none, or no description in this layout */
    size_t source;    /* safetensors file or npy_file */
    const npy_entry *entry;
} vtensor;

/* A module that is quantized, or that has a tensor which only quantized linears have. */
typedef struct vlinear {
    const char *module;
    const vtensor *parts[TENSOR_COUNT]; /* NULL: absent */
    linear_form shape;                  /* from the stored tensors */
    bool complete;                      /* rule 6 holds: numbers can be read */
} vlinear;

/* The numbers of one complete linear; of activations (input_*, quant_bias, deq_*) only if its
 * scheme has them. compressed-tensors has neither quant_bias nor deq_*, its weight offsets are
 * zeros, and the integers are not looked at. */
typedef struct vnumbers {
    size_t n, k, num_scales, num_deq;
    bool activations;                           /* input_scale and input_offset are there */
    float *weight_scale, *weight_offset, *bias; /* bias NULL: none */
    float input_scale, input_offset;
    int32_t *quant_bias;
    float *deq_scale;  /* decoded */
    int64_t *deq_bits; /* as stored in I64; NULL: F32 */
    int64_t *row_sums; /* of the integers of a row; NULL: not looked at */
    int8_t *row_min, *row_max;
} vnumbers;

typedef struct verify verify;

/* One layout of one folder. */
typedef struct vfolder {
    verify *v;
    layout layout;
    const char *dir;
    arena arena;
    char **names; /* of the folder's files */
    size_t num_names;

    const char *description_name; /* NULL: none found */
    const value *description;     /* NULL: absent or no JSON object */
    strmap types;                 /* description key -> index */
    const value *config;          /* NULL: absent or no JSON object */
    const char *quant_type;       /* model_quant_type; in the numpy layout by its files */
    numerics num;
    bool dtype_known;
    block_graph graph; /* of the architecture: the names of its linears, for fused groups */

    const char *prefix; /* of weight files */
    size_t shards;      /* M of -i-of-M; 0: one file */
    const char **file_names;
    safetensors **files;
    size_t num_files;
    npy_dict *npy[NPY_FILES];
    bool broken; /* a container does not parse: what depends on tensors is skipped */

    vtensor *tensors;
    size_t num_tensors;
    strmap by_name;
    vlinear *linears;
    size_t num_linears, linears_capacity;
    strmap by_module;
} vfolder;

struct verify {
    tare_context *ctx;
    const tare_verify_options *options;
    tare_verify_result *result;
    bool compat;
    checkpoint *base; /* NULL: no --base */
    const char *base_dir;
    vfolder folders[VERIFY_MAX_FOLDERS];
    size_t num_folders;
    double error_max, error_sum; /* rule 15 */
    const char *error_type;      /* of the linears measured */
    size_t error_count;
};

/* Reports a broken rule. `expected` is borrowed; what was found is formatted. */
void verify_fail(verify *v, int rule, const char *tensor, const char *expected, const char *found,
                 ...) __attribute__((format(printf, 5, 6)));
void verify_warn(verify *v, int rule, const char *tensor, const char *expected, const char *found,
                 ...) __attribute__((format(printf, 5, 6)));

/* verify.c: opens options->dir's own layouts, or those of the sub-folders that several save types
 * make. *found: bits of save types. */
tare_status verify_open_folders(verify *v, arena *a, unsigned *found);

/* verify_folder.c: opening. Faults of containers and JSON files are findings of rules 1 and 3. */
tare_status verify_folder_open(verify *v, layout which, const char *dir, vfolder *out);
void verify_folder_close(vfolder *f);
const vtensor *verify_find(const vfolder *f, const char *name);
const vlinear *verify_find_linear(const vfolder *f, const char *module, size_t length);
/* What a tensor of `dtype` is stored as where `t` is (NULL: in this layout): numpy arrays have no
 * BF16. */
tare_dtype verify_stored_dtype(const vfolder *f, const vtensor *t, tare_dtype dtype);
tare_status verify_read(const vfolder *f, const vtensor *t, uint64_t offset, void *data,
                        size_t size);
/* Elements [first, first+count) of a F32, F16 or BF16 tensor, widened, of a zero point in I8, or of
 * a deq_scale in I64, decoded. */
tare_status verify_read_elements(const vfolder *f, const vtensor *t, size_t first, size_t count,
                                 float *out);
/* All elements; freed with mem_free. */
tare_status verify_read_floats(const vfolder *f, const vtensor *t, float **out);
/* Integers [first, first+count) of a complete linear's matrix [N,K], unpacked if they are stored in
 * words. */
tare_status verify_read_codes(const vfolder *f, const vlinear *l, size_t first, size_t count,
                              int8_t *out);
/* "F32 [4,1]" in `out`. */
void verify_shape_text(const tensor_info *t, char *out, size_t size);

/* The stored weight of a linear, packed or not; NULL: none. */
const vtensor *verify_weight(const vlinear *l);

/* verify_read.c: the small tensors of a complete linear, and one streamed pass over its weight.
 */
tare_status verify_numbers_load(const vfolder *f, const vlinear *l, vnumbers *out);
void verify_numbers_free(tare_context *ctx, vnumbers *n);

/* verify_files.c: is this description key about the model, not about a tensor? */
bool verify_is_global_key(const char *key);

/* verify_types.c: is this a type string that engines know? */
bool verify_is_known_type(const char *type);

/* fused.c: Does `module` belong to a group that engines fuse? The group's key ("<layer>|qkv") in
 * `key`. */
bool fused_group_of(const block_graph *graph, const char *module, buffer *key);

/* The rules (docs/verify.md). */
tare_status rule_containers(vfolder *f);         /* 1 */
tare_status rule_shards(vfolder *f);             /* 2 */
tare_status rule_description(vfolder *f);        /* 3 */
tare_status rule_keys(vfolder *f);               /* 4 */
tare_status rule_types(vfolder *f);              /* 5 */
tare_status rule_linear_tensors(vfolder *f);     /* 6; settles which linears are complete */
tare_status rule_deq_dtype(vfolder *f);          /* 7 */
tare_status rule_fused(vfolder *f);              /* 13 */
tare_status rule_base_tensors(vfolder *f);       /* 14 */
tare_status rule_norms_ascend(vfolder *f);       /* 16 */
tare_status rule_norms_module(vfolder *f);       /* 17 */
tare_status rule_kv(vfolder *f);                 /* 18 */
tare_status rule_fa(vfolder *f);                 /* 19 */
tare_status rule_kv_or_fa(vfolder *f);           /* 20 */
tare_status rule_config_ascend(vfolder *f);      /* 21 */
tare_status rule_config_quantize(vfolder *f);    /* 22 */
tare_status rule_compressed_config(vfolder *f);  /* 23, without tensors */
tare_status rule_compressed_linears(vfolder *f); /* 23; settles which linears are complete */
tare_status rule_experts(vfolder *f);            /* 24 */
tare_status rule_base_files(vfolder *f);         /* 25 */
tare_status rule_npy_keys(vfolder *f);           /* 26 */
tare_status rule_layouts_agree(vfolder *f);      /* 27 */
tare_status rule_new_biases(vfolder *f);         /* 28 */
tare_status rule_prefixes(vfolder *f);           /* 29 */

/* Rules on one complete linear. */
tare_status rule_deq_bits(vfolder *f, const vlinear *l, const vnumbers *n);      /* 7 */
tare_status rule_scales(vfolder *f, const vlinear *l, const vnumbers *n);        /* 8 */
tare_status rule_offsets(vfolder *f, const vlinear *l, const vnumbers *n);       /* 9 */
tare_status rule_deq_product(vfolder *f, const vlinear *l, const vnumbers *n);   /* 10 */
tare_status rule_quant_bias(vfolder *f, const vlinear *l, const vnumbers *n);    /* 11 */
tare_status rule_integer_range(vfolder *f, const vlinear *l, const vnumbers *n); /* 12 */
tare_status rule_base_distance(vfolder *f, const vlinear *l, const vnumbers *n); /* 15 */

#endif
