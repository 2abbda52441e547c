#include "generate/sampling.h"

#include <math.h>
#include <string.h>

#include "base/carver.h"
#include "base/sort.h"

static void lay_out(carver *c, void *component)
{
    sampler *s = component;
    size_t drawn = s->settings.draw ? s->vocab : 0;
    s->candidates = carve(c, drawn, sizeof *s->candidates);
    s->order = carve(c, drawn, sizeof *s->order);
    s->weights = carve(c, drawn, sizeof *s->weights);
    s->seen = s->settings.repetition_penalty != 1 ? carve(c, s->vocab, 1) : NULL;
}

tare_status sampler_create(tare_context *ctx, const sampling_settings *settings, size_t vocab,
                           sampler *out)
{
    *out = (sampler){.ctx = ctx, .settings = *settings, .vocab = vocab};
    tare_status status = carver_alloc(ctx, lay_out, out);
    if (out->seen)
        memset(out->seen, 0, vocab);
    return status;
}

void sampler_free(sampler *s)
{
    if (!s->ctx)
        return;
    mem_free(s->ctx, s->candidates);
    *s = (sampler){0};
}

size_t sampler_bytes(size_t vocab, bool draw)
{
    sampler s = {.settings = {.draw = draw, .repetition_penalty = 2}, .vocab = vocab};
    return carver_bytes(lay_out, &s);
}

void sampler_seed(rng *r, uint64_t seed, uint32_t record)
{
    const uint32_t key[] = {(uint32_t)seed, (uint32_t)(seed >> 32), record};
    rng_seed(r, key, 3);
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

/* ---- the draw ---- */

static int by_falling_logit(const void *a, const void *b)
{
    const candidate *p = a, *q = b;
    if (p->logit != q->logit)
        return p->logit > q->logit ? -1 : 1;
    return p->id < q->id ? -1 : p->id > q->id;
}

/* The k-th largest of logits [vocab], 0 < k <= vocab: what remains at the root of a heap of the k
 * largest, smallest on top. */
static float kth_largest(const float *logits, size_t vocab, size_t k, candidate *heap)
{
    for (size_t i = 0; i < vocab; i++) {
        size_t at = i;
        if (i < k) {
            for (; at > 0 && heap[(at - 1) / 2].logit > logits[i]; at = (at - 1) / 2)
                heap[at] = heap[(at - 1) / 2];
            heap[at].logit = logits[i];
        } else if (logits[i] > heap[0].logit) {
            size_t child;
            for (at = 0; (child = 2 * at + 1) < k; at = child) {
                if (child + 1 < k && heap[child + 1].logit < heap[child].logit)
                    child++;
                if (heap[child].logit >= logits[i])
                    break;
                heap[at] = heap[child];
            }
            heap[at].logit = logits[i];
        }
    }
    return heap[0].logit;
}

/* s->order <- the candidates that top-k leaves, by falling logit; their number. */
static size_t best_candidates(sampler *s, const float *logits)
{
    float least = -INFINITY;
    size_t count = 0;
    if (s->settings.top_k > 0 && s->settings.top_k < s->vocab)
        least = kth_largest(logits, s->vocab, s->settings.top_k, s->candidates);
    for (size_t i = 0; i < s->vocab; i++) {
        if (logits[i] < least)
            continue;
        s->candidates[count] = (candidate){logits[i], (uint32_t)i};
        s->order[count] = &s->candidates[count];
        count++;
    }
    sort_pointers((void **)s->order, count, by_falling_logit);
    return count;
}

/* s->weights <- exp(logit - max) of the first `count`; their sum. */
static double weigh(sampler *s, size_t count)
{
    double sum = 0;
    for (size_t i = 0; i < count; i++) {
        s->weights[i] = exp((double)s->order[i]->logit - (double)s->order[0]->logit);
        sum += s->weights[i];
    }
    return sum;
}

static uint32_t draw(sampler *s, rng *r, float *logits)
{
    float temperature = (float)s->settings.temperature;
    uint32_t best = most_probable(logits, s->vocab);
    for (size_t i = 0; i < s->vocab; i++)
        logits[i] /= temperature;
    if (!isfinite(logits[best])) /* so cold that the quotients leave the range of float */
        return best;
    size_t count = best_candidates(s, logits);
    double sum = weigh(s, count), limit = s->settings.top_p * sum, reached = 0;
    if (s->settings.top_p < 1) {
        size_t kept = 0;
        while (kept < count && (kept == 0 || reached < limit))
            reached += s->weights[kept++];
        count = kept;
        sum = reached;
    }
    double u = rng_double(r) * sum, cumulative = 0;
    for (size_t i = 0; i < count; i++) {
        cumulative += s->weights[i];
        if (cumulative > u)
            return s->order[i]->id;
    }
    return s->order[count - 1]->id; /* u * sum was rounded up to the sum */
}

uint32_t sampler_choose(sampler *s, rng *r, float *logits, const uint32_t *ids, size_t count)
{
    if (s->seen)
        penalize(s, logits, ids, count);
    return s->settings.draw ? draw(s, r, logits) : most_probable(logits, s->vocab);
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
