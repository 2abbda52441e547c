/* The next token from logits: the most probable one, or a draw. Order and formulas as in
 * transformers (generation/logits_process.py): repetition penalty, temperature, top-k (equals of
 * the k-th stay), top-p (tokens by falling probability until top_p is reached). The draw itself is
 * tare's own (spec/calibration_sets.md 7.3): the first token, by falling probability, then rising
 * id, whose cumulative probability exceeds u. */
#ifndef TARE_GENERATE_SAMPLING_H
#define TARE_GENERATE_SAMPLING_H

#include "base/memory.h"
#include "base/rng.h"

typedef struct sampling_settings {
    bool draw;
    double temperature, top_p, repetition_penalty;
    size_t top_k; /* 0: all */
} sampling_settings;

typedef struct candidate {
    float logit;
    uint32_t id;
} candidate;

/* Rooms that the choice needs, for one sequence after the other. */
typedef struct sampler {
    tare_context *ctx;
    sampling_settings settings;
    size_t vocab;
    uint8_t *seen;         /* [vocab]; NULL without repetition penalty */
    candidate *candidates; /* [vocab] with a draw, as the next two */
    candidate **order;
    double *weights;
} sampler;

tare_status sampler_create(tare_context *ctx, const sampling_settings *settings, size_t vocab,
                           sampler *out);
void sampler_free(sampler *s);
/* Accounted bytes, at most. */
size_t sampler_bytes(size_t vocab, bool draw);
/* The generator of one sequence: keyed by [seed low, seed high, record]. */
void sampler_seed(rng *r, uint64_t seed, uint32_t record);
/* Chooses from logits [vocab], which are changed; ids[count] is the text so far. `r` moves on by
 * one draw, and may be NULL without one. */
uint32_t sampler_choose(sampler *s, rng *r, float *logits, const uint32_t *ids, size_t count);
/* out[count] = the log-softmax of these tokens, in FP32 as torch.log_softmax rounds it. */
void log_softmax_of(const float *logits, size_t vocab, const uint32_t *ids, size_t count,
                    float *out);

#endif
