#include "model/sampling.h"

#include <math.h>
#include <string.h>

tare_status sampler_create(tare_context *ctx, const sampling_settings *settings, size_t vocab,
                           sampler *out)
{
    *out = (sampler){.ctx = ctx, .settings = *settings, .vocab = vocab};
    if (settings->repetition_penalty != 1) {
        out->seen = mem_calloc(ctx, vocab, 1);
        if (!out->seen)
            return TARE_E_MEMORY;
    }
    return TARE_OK;
}

void sampler_free(sampler *s)
{
    if (!s->ctx)
        return;
    mem_free(s->ctx, s->seen);
    *s = (sampler){0};
}

size_t sampler_bytes(size_t vocab, bool draw)
{
    (void)draw;
    return mem_block_bytes(vocab);
}

/* Each token of the text counts once. */
static void penalize(sampler *s, float *logits, const uint32_t *ids, size_t count)
{
    float penalty = (float)s->settings.repetition_penalty;
    for (size_t i = 0; i < count; i++) {
        float *x = &logits[ids[i]];
        if (!s->seen[ids[i]])
            *x = *x < 0 ? *x * penalty : *x / penalty;
        s->seen[ids[i]] = 1;
    }
    for (size_t i = 0; i < count; i++)
        s->seen[ids[i]] = 0;
}

static uint32_t most_probable(const float *logits, size_t vocab)
{
    size_t best = 0;
    for (size_t i = 1; i < vocab; i++) {
        if (logits[i] > logits[best])
            best = i;
    }
    return (uint32_t)best;
}

uint32_t sampler_choose(sampler *s, sampling_state *state, float *logits, const uint32_t *ids,
                        size_t count)
{
    (void)state;
    if (s->seen)
        penalize(s, logits, ids, count);
    return most_probable(logits, s->vocab);
}

void log_softmax_of(const float *logits, size_t vocab, const uint32_t *ids, size_t count,
                    float *out)
{
    float max = logits[most_probable(logits, vocab)];
    double sum = 0;
    for (size_t i = 0; i < vocab; i++)
        sum += exp((double)(logits[i] - max));
    for (size_t i = 0; i < count; i++)
        out[i] = logits[ids[i]] - max - (float)log(sum);
}
