/* The next token from logits: the most probable one, or a draw. Order and formulas as in
 * transformers (generation/logits_process.py): repetition penalty, temperature, top-k, top-p; the
 * draw is tare's own (spec/calibration_sets.md 7.3). */
#ifndef TARE_MODEL_SAMPLING_H
#define TARE_MODEL_SAMPLING_H

#include "base/memory.h"

typedef struct sampling_settings {
    bool draw;
    double temperature, top_p, repetition_penalty;
    size_t top_k; /* 0: all */
} sampling_settings;

/* Of one sequence: its generator. */
typedef struct sampling_state {
    uint64_t unused;
} sampling_state;

/* Rooms that the choice needs, for one sequence after the other. */
typedef struct sampler {
    tare_context *ctx;
    sampling_settings settings;
    size_t vocab;
    uint8_t *seen; /* [vocab]; NULL without repetition penalty */
} sampler;

tare_status sampler_create(tare_context *ctx, const sampling_settings *settings, size_t vocab,
                           sampler *out);
void sampler_free(sampler *s);
size_t sampler_bytes(size_t vocab, bool draw);
/* Chooses from logits [vocab], which are changed; ids[count] is the text so far. */
uint32_t sampler_choose(sampler *s, sampling_state *state, float *logits, const uint32_t *ids,
                        size_t count);
/* out[count] = the log-softmax of these tokens, in FP32 as torch.log_softmax rounds it. */
void log_softmax_of(const float *logits, size_t vocab, const uint32_t *ids, size_t count,
                    float *out);

#endif
