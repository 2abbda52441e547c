/* Log-probabilities of a few tokens behind prompts: one pass a prompt, nothing is kept of it. */
#include <math.h>
#include <string.h>

#include "model/generate.h"

typedef struct logprobs_run {
    tare_model *model;
    const uint32_t *const *prompts;
    const size_t *lengths;
    size_t n;
    const uint32_t *ids;
    size_t num_ids;
    float *logprobs;
    forward forward;
    sequence *places; /* [batch] */
} logprobs_run;

static bool fits(const logprobs_run *r, size_t prompt)
{
    return generation_most(&r->model->config, r->lengths[prompt], 0) > 0;
}

/* The next prompts that fit into a pass; *next is the first that is left. */
static void take_prompts(logprobs_run *r, size_t *next)
{
    forward *f = &r->forward;
    size_t rows = 0;
    f->num_sequences = 0;
    for (; *next < r->n && f->num_sequences < f->layout.batch; ++*next) {
        size_t length = r->lengths[*next];
        if (!fits(r, *next))
            continue;
        if (rows + length > f->layout.pass_rows)
            break;
        rows += length;
        /* A pass only reads the ids. */
        r->places[f->num_sequences] = (sequence){.prompt = *next,
                                                 .ids = (uint32_t *)(uintptr_t)r->prompts[*next],
                                                 .length = length,
                                                 .count = length,
                                                 .most = length};
        f->sequences[f->num_sequences] = &r->places[f->num_sequences];
        f->num_sequences++;
    }
}

static tare_status run_prompts(logprobs_run *r, const generation_layout *layout, size_t longest,
                               const kept_weights *kept)
{
    tare_status status = TARE_OK;
    size_t vocab = r->model->config.vocab_size, next = 0;
    TRY(forward_create(r->model, layout, longest, kept, &r->forward));
    r->places = mem_alloc_array(r->model->ctx, layout->batch, sizeof *r->places);
    TRY(r->places ? TARE_OK : TARE_E_MEMORY);
    for (;;) {
        take_prompts(r, &next);
        if (r->forward.num_sequences == 0)
            break;
        TRY(forward_pass(&r->forward));
        for (size_t i = 0; i < r->forward.num_sequences; i++) {
            const float *logits = r->forward.logits + i * vocab;
            log_softmax_of(logits, vocab, r->ids, r->num_ids,
                           r->logprobs + r->places[i].prompt * r->num_ids);
        }
    }
done:
    mem_free(r->model->ctx, r->places);
    forward_free(&r->forward);
    return status;
}

static tare_status check_ids(const logprobs_run *r)
{
    for (size_t i = 0; i < r->num_ids; i++) {
        if (r->ids[i] >= r->model->config.vocab_size)
            return TARE_FAIL(r->model->ctx, TARE_E_DATA,
                             "token id %u is out of range: the vocabulary has %zu", r->ids[i],
                             r->model->config.vocab_size);
    }
    return TARE_OK;
}

tare_status tare_last_logprobs(tare_model *model, const tare_generate_options *options,
                               const uint32_t *const *prompts, const size_t *lengths, size_t n,
                               const uint32_t *ids, size_t num_ids, float *logprobs)
{
    tare_status status = TARE_OK;
    generation *g;
    generation_layout layout;
    tare_generation_plan plan;
    tare_generate_options o;
    logprobs_run r = {.model = model,
                      .prompts = prompts,
                      .lengths = lengths,
                      .n = n,
                      .ids = ids,
                      .num_ids = num_ids,
                      .logprobs = logprobs};
    size_t longest = 0;
    TRY(generation_take_options(model, options, &o));
    generation_work work = {.lengths = lengths, .n = n, .max_batch = o.batch};
    TRY(generation_check_prompts(model, prompts, lengths, n));
    TRY(check_ids(&r));
    for (size_t i = 0; i < n * num_ids; i++)
        logprobs[i] = NAN;
    for (size_t i = 0; i < n; i++)
        longest = fits(&r, i) && lengths[i] > longest ? lengths[i] : longest;
    if (longest == 0)
        return TARE_OK;
    TRY(generation_get(model, &g));
    TRY(generation_layout_make(model, &work, &layout, &plan));
    TRY(generation_settle(model, g, layout.mode));
    TRY(run_prompts(&r, &layout, longest, g->weights));
done:
    return status;
}
