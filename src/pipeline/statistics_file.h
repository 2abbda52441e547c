/* What calibration found, in a file beside the output (STATISTICS_FILE), so that another scheme
 * needs no samples: a safetensors file of tensors that are named by modules (docs/statistics.md).
 * All of them are known before the first layer, and each is written with its layer, so that none is
 * held. One list serves to declare, to write and to read: statistics_list.c; statistics.c writes,
 * statistics_take.c reads. */
#ifndef TARE_PIPELINE_STATISTICS_FILE_H
#define TARE_PIPELINE_STATISTICS_FILE_H

#include "base/strings.h"
#include "pipeline/run.h"

/* What is known of the input of a unit. */
typedef struct unit_statistics {
    double range[INPUT_RANGES][2]; /* low and high: of all, by act_method 1, 2, and 4 of a norm's
                                      output */
    bool mse;                      /* the last is there, or wanted */
    float scale[2], offset[2];     /* by act_method 1 and 2 */
    uint16_t *max;                 /* [k] BF16, the largest magnitude of each channel */
    bool scored;
    double score;
} unit_statistics;

typedef enum statistics_mode {
    STATISTICS_DECLARE, /* the tensors are listed; no data is looked at */
    STATISTICS_WRITE,
    STATISTICS_READ /* vectors are made in `home`; what is not wanted (NULL) is left out */
} statistics_mode;

/* Tensors of a layer are written at two moments: what its experts wait for, and the rest. */
static inline size_t statistics_moment(size_t layer, bool behind_experts)
{
    return 2 * layer + behind_experts;
}

typedef struct statistics_file {
    tare_context *ctx;
    statistics_mode mode;
    arena arena;          /* names */
    tensor_info *tensors; /* [count], declared; mem_free */
    size_t *moment_of;    /* [count] when each is written; mem_free */
    size_t count, capacity, moments_capacity, moment;
    strmap index; /* of names */
    buffer name;  /* of the tensor in work */
    safetensors_writer *writer;
    safetensors *file; /* that is read */
    const char *path;  /* of it, for messages */
    arena *home;
} statistics_file;

/* One tensor of `count` elements (rows > 0: [rows,count]), named <module><part>. */
tare_status statistics_item(statistics_file *f, tare_dtype dtype, size_t rows, size_t count,
                            void *data, const char *module, const char *part);
/* The head's too, the last of the model's. */
tare_status statistics_unit(statistics_file *f, const run_plan *plan, size_t unit,
                            unit_statistics *u);
/* Its score alone, when it is read; *known: there is one. */
tare_status statistics_score(statistics_file *f, const tare_model *model, size_t unit,
                             double *score, bool *known);
/* The range of keys or values by channel: [2,kv_heads*head_dim], low and high. */
tare_status statistics_kv(statistics_file *f, const run_plan *plan, size_t layer, kv_kind kind,
                          float *range);
/* Scales and scores of an attention that is quantized. */
tare_status statistics_fa(statistics_file *f, const run_plan *plan, size_t layer, run_attention *a);
/* Vectors of a layer. */
tare_status statistics_smoothing(statistics_file *f, const run_plan *plan, const model_block *block,
                                 layer_smoothing *s);
/* Means of the norms of a rotated model, which its rotation was aligned by: [num_blocks *
 * BLOCK_NORMS], NULL for others. */
tare_status statistics_means(statistics_file *f, const tare_model *model, float *const *means);
/* The text of this tensor says what the run was: JSON. */
#define STATISTICS_RUN "tare_run"
enum { RECORD_LIMIT = 256 << 20 };
/* All tensors of a run; means NULL: it has none. */
tare_status statistics_declare(statistics_file *f, const run_plan *plan, float *const *means,
                               size_t run_bytes);
void statistics_file_init(statistics_file *f, tare_context *ctx);
void statistics_file_free(statistics_file *f);

/* What identifies the model: a JSON map of digests. */
tare_status statistics_model(const tare_model *model, buffer *out);

#endif
