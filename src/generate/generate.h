/* Generation inside: settings, the plan, and passes of sequences through the model. The public side
 * is in tare.h. */
#ifndef TARE_GENERATE_GENERATE_H
#define TARE_GENERATE_GENERATE_H

#include "forward/kv_cache.h"
#include "forward/weights.h"
#include "generate/sampling.h"

/* What stays in the model between calls. */
typedef struct generation {
    arena arena;
    struct generation_config *config;
    kept_weights *weights; /* NULL: not loaded */
    size_t weight_bytes;   /* accounted, of these */
} generation;

/* generation_config.json, and what config.json says where that is silent. */
typedef struct generation_config {
    const uint32_t *eos_ids; /* in the arena */
    size_t num_eos;
    double temperature, top_p, repetition_penalty;
    int64_t top_k;
    buffer greedy_ignored, sampling_ignored; /* names of set fields that tare does not follow */
} generation_config;

/* Reads the model's once. *out lives until tare_model_unload. */
tare_status generation_get(tare_model *model, generation **out);
tare_status generation_config_read(tare_model *model, generation *g);

/* One text in the making. */
typedef struct sequence {
    size_t prompt;        /* its index */
    uint32_t *ids;        /* [most]: the prompt, then what was generated */
    size_t length, count; /* of the prompt; of all so far */
    size_t past;          /* that went through the model */
    size_t most;          /* that there can be in the end */
    kv_cache cache;       /* ctx NULL: nothing is kept, for a single pass */
    bool drawn;
    rng *generator; /* NULL unless drawn */
} sequence;

/* Accounted bytes, at most, keys and values left out. */
size_t sequence_bytes(size_t most, bool drawn);

/* How a call works, and what it takes. */
typedef struct generation_layout {
    weight_mode mode;
    size_t batch;      /* sequences at a time */
    bool spill;        /* keys and values in scratch files */
    size_t pass_rows;  /* most rows of a pass: a prompt waits until it fits */
    size_t batch_rows; /* of these go through a layer together */
} generation_layout;

/* What a call is asked for. */
typedef struct generation_work {
    const size_t *lengths; /* [n] of the prompts; longer than the model's maximum: left out */
    size_t n;
    size_t max_new;   /* tokens; 0: one pass, nothing is kept */
    bool sampled;     /* sorts the vocabulary */
    size_t max_batch; /* 0: chosen */
    bool may_spill;
} generation_work;

/* The first layout that fits. TARE_E_BUDGET as tare_generate_plan; *plan is filled in then too. */
tare_status generation_layout_make(tare_model *model, const generation_work *work,
                                   generation_layout *out, tare_generation_plan *plan);
/* Loads the weights that the layout keeps, or lets go of them. */
tare_status generation_settle(tare_model *model, generation *g, weight_mode mode);
/* TARE_E_DATA: a prompt without tokens, an id beyond the vocabulary. */
tare_status generation_check_prompts(const tare_model *model, const uint32_t *const *prompts,
                                     const size_t *lengths, size_t n);
/* Tokens that a prompt of `length` may grow to; 0: it is too long. */
size_t generation_most(const model_config *config, size_t length, size_t max_new);

/* The options of a call, whole. */
tare_status generation_take_options(tare_model *model, const tare_generate_options *given,
                                    tare_generate_options *out);

/* tare_generate with a layout; prompts are checked, results empty. */
tare_status generation_run(tare_model *model, const tare_generate_options *options,
                           const generation_layout *layout, const uint32_t *const *prompts,
                           const size_t *lengths, size_t n, tare_generation *results);

/* The rooms that passes work in. */
typedef struct forward {
    tare_model *model;
    generation_layout layout;
    weight_source weights;
    workspace work;
    float *x;               /* [pass_rows, hidden] */
    float *last;            /* [batch, hidden] */
    float *logits;          /* [batch, vocab] */
    float *room;            /* spilled keys and values of one sequence and layer */
    size_t *lengths, *past; /* [batch] */
    sequence **sequences;   /* [batch] of the pass */
    size_t num_sequences;
    attention_step *steps; /* [batch] */
    size_t layer, longest;
} forward;

/* `longest`: tokens that a sequence grows to at most. */
tare_status forward_create(tare_model *model, const generation_layout *layout, size_t longest,
                           const kept_weights *kept, forward *out);
void forward_free(forward *f);
/* Accounted bytes, at most, kept weights and keys and values in memory left out. */
size_t forward_bytes(tare_model *model, const generation_layout *layout, size_t longest);
/* Sends the tokens of f->sequences [num_sequences] that have not been through yet through the
 * model; f->logits [num_sequences, vocab] are those behind each one's last token. */
tare_status forward_pass(forward *f);

#endif
