/* `tare verify` inside: the rules, which look at an opened layout (reader.h), and how a rule
 * reports. A rule is a row in the table of verify.c. Rules read; whatever the files hold, they
 * report findings, and return a status other than TARE_OK only when they cannot go on (memory, I/O,
 * cancellation). */
#ifndef TARE_OUTPUT_VERIFY_INTERNAL_H
#define TARE_OUTPUT_VERIFY_INTERNAL_H

#include "file/safetensors.h"
#include "file/value.h"
#include "model/model.h"
#include "output/reader.h"
#include "quantize/engines.h"

/* Rule 15, in scales. */
typedef struct base_error {
    double max, sum;
    size_t count;
} base_error;

typedef struct verify {
    tare_context *ctx;
    const tare_verify_options *options;
    tare_verify_result *result;
    checkpoint *base; /* NULL: no --base */
    const char *base_dir;
    const value *record;             /* of the output's run, tare_run.json; NULL: none */
    safetensors *statistics;         /* that it left; NULL: none */
    tare_model *rotated;             /* the base as the output's run turned it; NULL: it did not */
    const model_config *base_config; /* NULL: not known */
    block_graph base_graphs[BLOCK_KINDS]; /* of its blocks */
    reader output;
    base_error errors[SCHEMES];
    serving_target target;
} verify;

/* What config.json says of attention; 0: nothing. */
typedef struct attention_config {
    size_t heads, kv_heads, head_dim;
    bool latent;
} attention_config;

/* Reports a broken rule. `expected` is borrowed; what was found is formatted. */
void verify_fail(verify *v, int rule, const char *tensor, const char *expected, const char *found,
                 ...) __attribute__((format(printf, 5, 6)));
void verify_warn(verify *v, int rule, const char *tensor, const char *expected, const char *found,
                 ...) __attribute__((format(printf, 5, 6)));

/* The rules that need no data, on what a layout will hold. TARE_E_VERIFY if one would be broken. */
tare_status verify_planned(tare_context *ctx, const tare_verify_options *options,
                           const reader_plan *plan, tare_verify_result *result);
/* What options->target will do with that layout: TARE_E_USAGE if it refuses a layer; warns of those
 * that it runs unquantized or that nothing is known of. */
tare_status verify_planned_target(tare_context *ctx, const tare_verify_options *options,
                                  const reader_plan *plan);

/* verify_run.c: what the output's run left beside it, its statistics only if there is a base. */
tare_status verify_open_run(verify *v, arena *a);
/* Did that run round weights by what their linears read (gptq)? */
bool verify_rounds_by_inputs(const verify *v);
/* verify_rotation.c: v->rotated, if that run says so. */
tare_status verify_rotate_base(verify *v, arena *a);

/* A tensor of the base, as the output's run turned it. */
typedef struct base_tensor {
    checkpoint *from;
    stored_weight w;
    bool has_numbers;
    coded_rows whole; /* where rows come one from another */
} base_tensor;

/* verify_base.c: what makes the tensor `name` of the output; and rows of it. */
tare_status base_open(const verify *v, const char *name, const tensor_info *source,
                      base_tensor *out);
tare_status base_read(const verify *v, const base_tensor *t, size_t first, size_t count,
                      tare_dtype dtype, void *out);
void base_close(const verify *v, base_tensor *t);

/* verify_smoothing.c: what outlier suppression did to a tensor of the base: value [i,j] is that of
 * the base times columns[j] by rows[i]. */
typedef struct base_smoothing {
    bool found;             /* its layer is smoothed */
    bool recorded;          /* all that was done to this tensor is known */
    double *columns, *rows; /* [k], [n]; NULL: 1, or not known */
} base_smoothing;
tare_status verify_find_smoothing(verify *v, reader_layout *f, const tensor_info *t,
                                  base_smoothing *out);
void verify_smoothing_free(const verify *v, base_smoothing *s);

/* verify_target.c: what v->target does with each layer. Findings, then the layers one by one; or
 * TARE_E_USAGE and warnings, for a plan. */
tare_status verify_layers(verify *v, reader_layout *f);
tare_status verify_layers_of_plan(verify *v, reader_layout *f);

/* verify_attention.c; a tensor <module><end>; and is this one the first of its module's `which`
 * tensors that is there? */
attention_config verify_attention(const reader_layout *f);
const reader_tensor *verify_part(const reader_layout *f, const char *module, size_t length,
                                 const char *end);
bool verify_is_first(const reader_layout *f, const char *name, size_t length, int which,
                     const char *(*suffix)(int));
/* verify_numbers.c: an integer of INT8 */
bool verify_is_offset(float o);
/* verify_types.c: the names of the architecture's linears and which of them have a bias; false: it
 * is not known. */
bool verify_bias_graph(const reader_layout *f, block_graph *graph);
/* The quantized linear whose name begins the last part of this FLOAT module's name; NULL: none. */
const reader_linear *verify_quantized_prefix(const reader_layout *f, const char *module,
                                             size_t length);
/* verify_experts.c: is this name, of a tensor or a linear, one of a routed expert's? The length of
 * its block's name. */
bool verify_expert_of(const char *name, size_t *block);

/* verify_mtp.c: has the output any tensor of an MTP layer? */
bool verify_has_mtp(const reader_layout *f);

/* verify_files.c: is this description key about the model, not about a tensor? */
bool verify_is_global_key(const char *key);

/* fused.c: Does `module` belong to a group that engines fuse? The group's key ("<layer>|qkv") in
 * `key`. */
bool fused_group_of(const block_graph *graph, const char *module, buffer *key);

/* The rules (docs/verify.md). */
tare_status rule_containers(verify *v, reader_layout *f);    /* 1 */
tare_status rule_shards(verify *v, reader_layout *f);        /* 2 */
tare_status rule_description(verify *v, reader_layout *f);   /* 3 */
tare_status rule_rotation_file(verify *v, reader_layout *f); /* 3, and with a base 14 */
tare_status rule_keys(verify *v, reader_layout *f);          /* 4 */
tare_status rule_types(verify *v, reader_layout *f);         /* 5 */
tare_status rule_linear_tensors(verify *v,
                                reader_layout *f);       /* 6; settles which linears are complete */
tare_status rule_deq_dtype(verify *v, reader_layout *f); /* 7 */
tare_status rule_fused(verify *v, reader_layout *f);     /* 13 */
tare_status rule_base_tensors(verify *v, reader_layout *f);      /* 14 */
tare_status rule_norms_ascend(verify *v, reader_layout *f);      /* 16 */
tare_status rule_norms_module(verify *v, reader_layout *f);      /* 17 */
tare_status rule_kv(verify *v, reader_layout *f);                /* 18 */
tare_status rule_fa(verify *v, reader_layout *f);                /* 19 */
tare_status rule_kv_or_fa(verify *v, reader_layout *f);          /* 20 */
tare_status rule_config_ascend(verify *v, reader_layout *f);     /* 21 */
tare_status rule_config_quantize(verify *v, reader_layout *f);   /* 22 */
tare_status rule_compressed_config(verify *v, reader_layout *f); /* 23, without tensors */
tare_status rule_compressed_linears(verify *v,
                                    reader_layout *f); /* 23; settles which linears are complete */
tare_status rule_experts(verify *v, reader_layout *f); /* 24 */
tare_status rule_base_files(verify *v, reader_layout *f);    /* 25 */
tare_status rule_npy_keys(verify *v, reader_layout *f);      /* 26 */
tare_status rule_layouts_agree(verify *v, reader_layout *f); /* 27 */
tare_status rule_new_biases(verify *v, reader_layout *f);    /* 28 */
tare_status rule_prefixes(verify *v, reader_layout *f);      /* 29 */
tare_status rule_mtp(verify *v, reader_layout *f);           /* 31 */

/* Rules on one complete linear. */
tare_status rule_deq_bits(verify *v, reader_layout *f, const reader_linear *l,
                          const reader_numbers *n); /* 7 */
tare_status rule_scales(verify *v, reader_layout *f, const reader_linear *l,
                        const reader_numbers *n); /* 8 */
tare_status rule_offsets(verify *v, reader_layout *f, const reader_linear *l,
                         const reader_numbers *n); /* 9 */
tare_status rule_deq_product(verify *v, reader_layout *f, const reader_linear *l,
                             const reader_numbers *n); /* 10 */
tare_status rule_scale_bias(verify *v, reader_layout *f, const reader_linear *l,
                            const reader_numbers *n);
tare_status rule_quant_bias(verify *v, reader_layout *f, const reader_linear *l,
                            const reader_numbers *n); /* 11 */
tare_status rule_integer_range(verify *v, reader_layout *f, const reader_linear *l,
                               const reader_numbers *n); /* 12 */
tare_status rule_base_distance(verify *v, reader_layout *f, const reader_linear *l,
                               const reader_numbers *n); /* 15 */

#endif
