/* Drawing samples: each set in its own order, until enough are there; then all shuffled together
 * (calibration_sets.md sections 6, 7 and 11.1). */
#include <string.h>

#include "base/machine.h"
#include "base/progress.h"
#include "base/rng.h"
#include "base/sized.h"
#include "calibration/result.h"
#include "file/io.h"
#include "file/json.h"

/* A batch of one set in work. */
typedef struct batch {
    tare_calib *calib;
    const calib_set *set;
    arena arena; /* of the samples */
    drawn_sample *samples;
    size_t count, capacity;
    tare_calib_result *result;
    const char *name; /* of the set, in the result's arena */
    size_t first;     /* entry of the set in the result */
    size_t step;      /* records of a batch; several may be asked about at once */
    size_t too_long;
} batch;

static tare_status add_sample(batch *b, const drawn_sample *s)
{
    tare_status status = mem_grow(b->calib->ctx, (void **)&b->samples, &b->capacity, b->count + 1,
                                  sizeof *b->samples);
    if (status == TARE_OK)
        b->samples[b->count++] = *s;
    return status;
}

static void clear(batch *b)
{
    arena_free(&b->arena);
    b->count = 0;
}

/* ---- sets that are read from files ---- */

static tare_status make_sample(batch *b, uint32_t record)
{
    tare_status status = TARE_OK;
    tare_context *ctx = b->calib->ctx;
    drawn_sample s = {.record = record};
    buffer prompt;
    buffer_init(&prompt, ctx);
    TRY(b->set->kind->make(ctx, b->set->data, record, &b->arena, &prompt, &s.ans));
    TRY(prompt.status);
    s.prompt_length = prompt.length;
    if (!(s.prompt = arena_strndup(&b->arena, prompt.length ? prompt.data : "", prompt.length))) {
        status = TARE_E_MEMORY;
        goto done;
    }
    TRY(add_sample(b, &s));
done:
    buffer_free(&prompt);
    return status;
}

static bool has_enough(const batch *b)
{
    return b->result->count - b->first >= b->set->requested;
}

/* *taken: samples of the batches that were needed. */
static tare_status keep_positive(batch *b, size_t *taken)
{
    tare_status status = TARE_OK;
    size_t too_long = 0;
    bool *positive = mem_calloc(b->calib->ctx, b->count, sizeof *positive);
    if (!positive)
        return TARE_E_MEMORY;
    TRY(verify_samples(b->calib, b->set->kind->rule, b->samples, b->count, positive, &too_long));
    b->too_long += too_long;
    for (*taken = 0; *taken < b->count; ++*taken) {
        if (*taken % b->step == 0 && has_enough(b))
            break;
        if (positive[*taken])
            TRY(result_add(b->result, &b->samples[*taken], b->name));
    }
done:
    mem_free(b->calib->ctx, positive);
    return status;
}

static bool is_verified(const batch *b)
{
    return b->calib->has_verifier && b->set->kind && b->set->kind->rule != RULE_NONE;
}

static tare_status draw_from_kind(batch *b, const uint32_t *records, size_t count, size_t *taken)
{
    tare_status status = TARE_OK;
    *taken = count;
    for (size_t i = 0; i < count; i++)
        TRY(make_sample(b, records[i]));
    if (is_verified(b)) {
        TRY(keep_positive(b, taken));
    } else {
        for (size_t i = 0; i < b->count; i++)
            TRY(result_add(b->result, &b->samples[i], b->name));
    }
done:
    return status;
}

/* ---- sets of the caller's ---- */

static tare_status refuse_sample(batch *b, tare_status status, const char *what)
{
    if (status == TARE_E_FORMAT)
        status = TARE_E_USAGE;
    return TARE_WRAP(b->calib->ctx, status, "Dataset %s: %s", b->set->name, what);
}

static tare_status take_extra(batch *b, const tare_calib_sample *sample, drawn_sample *s)
{
    const value *extra;
    tare_status status = json_parse(b->calib->ctx, &b->arena, sample->extra, sample->extra_length,
                                    NULL, JSON_DATA, &extra);
    if (status == TARE_OK && extra->type != VALUE_MAP)
        status = TARE_FAIL(b->calib->ctx, TARE_E_USAGE, "not an object");
    if (status == TARE_OK && (value_get(extra, "prompt") || value_get(extra, "ans")))
        status = TARE_FAIL(b->calib->ctx, TARE_E_USAGE, "holds \"prompt\" or \"ans\" again");
    if (status != TARE_OK)
        return refuse_sample(b, status, "the further keys of a sample");
    s->extra = arena_strndup(&b->arena, sample->extra, sample->extra_length);
    s->extra_length = sample->extra_length;
    return s->extra ? TARE_OK : TARE_E_MEMORY;
}

/* The sink of a source: copies the sample into the batch. */
static tare_status take_sample(void *sink, const tare_calib_sample *sample)
{
    batch *b = sink;
    drawn_sample s = {.prompt_length = sample->prompt_length, .record = sample->record};
    tare_status status = json_parse(b->calib->ctx, &b->arena, sample->ans, sample->ans_length, NULL,
                                    JSON_DATA, &s.ans);
    if (status != TARE_OK)
        return refuse_sample(b, status, "the answer of a sample");
    if (!(s.prompt = arena_strndup(&b->arena, sample->prompt, sample->prompt_length)))
        return TARE_E_MEMORY;
    if (sample->extra && (status = take_extra(b, sample, &s)) != TARE_OK)
        return status;
    return add_sample(b, &s);
}

/* The samples of `from` are verified into `to`. */
static tare_status verify_source(batch *from, batch *to)
{
    tare_status status = TARE_OK;
    tare_context *ctx = from->calib->ctx;
    const tare_calib_source *source = &from->set->source;
    tare_calib_sample *samples = mem_calloc(ctx, from->count, sizeof *samples);
    if (!samples)
        return TARE_E_MEMORY;
    for (size_t i = 0; i < from->count; i++) {
        const drawn_sample *s = &from->samples[i];
        buffer ans;
        buffer_init(&ans, ctx);
        json_write_data(&ans, s->ans, 0, 0);
        samples[i] = (tare_calib_sample){.prompt = s->prompt,
                                         .prompt_length = s->prompt_length,
                                         .ans_length = ans.length,
                                         .extra = s->extra,
                                         .extra_length = s->extra_length,
                                         .record = s->record};
        if (ans.status == TARE_OK)
            samples[i].ans = arena_strndup(&from->arena, ans.data, ans.length);
        buffer_free(&ans);
        if (!samples[i].ans) {
            status = TARE_E_MEMORY;
            goto done;
        }
    }
    TRY(source->verify(source->user, samples, from->count, take_sample, to));
done:
    mem_free(ctx, samples);
    return status;
}

static tare_status draw_from_source(batch *b, const uint32_t *records, size_t count)
{
    tare_status status = TARE_OK;
    tare_context *ctx = b->calib->ctx;
    const tare_calib_source *source = &b->set->source;
    batch verified = {.calib = b->calib, .set = b->set, .arena = {.ctx = ctx}};
    const batch *from = b;
    uint64_t *wide = mem_alloc_array(ctx, count, sizeof *wide);
    if (!wide)
        return TARE_E_MEMORY;
    for (size_t i = 0; i < count; i++)
        wide[i] = records[i];
    TRY(source->process(source->user, wide, count, take_sample, b));
    if (b->calib->has_verifier && source->verify) {
        TRY(verify_source(b, &verified));
        from = &verified;
    }
    for (size_t i = 0; i < from->count; i++)
        TRY(result_add(b->result, &from->samples[i], b->name));
done:
    mem_free(ctx, wide);
    mem_free(ctx, verified.samples);
    arena_free(&verified.arena);
    return status;
}

/* ---- one set ---- */

static tare_status shuffled_records(const tare_calib *c, const calib_set *s, uint32_t count,
                                    uint32_t **out)
{
    static const calib_seed zero = {0};
    const calib_seed *seed = c->has_sample_seed ? &c->sample_seed : s->kind ? &zero : &s->seed;
    rng *g = mem_alloc(c->ctx, sizeof *g);
    *out = mem_alloc_array(c->ctx, count, sizeof **out);
    if (!g || !*out) {
        mem_free(c->ctx, g);
        return TARE_E_MEMORY;
    }
    for (uint32_t i = 0; i < count; i++)
        (*out)[i] = i;
    rng_seed(g, seed->words, seed->count);
    rng_shuffle(g, *out, count);
    mem_free(c->ctx, g);
    return TARE_OK;
}

/* The first `count` records, as the verifier would be asked about them. */
static tare_status plan_round(batch *b, const uint32_t *records, size_t count,
                              tare_generation_plan *plan)
{
    tare_status status = TARE_OK;
    for (size_t i = 0; i < count; i++)
        TRY(make_sample(b, records[i]));
    TRY(verify_plan(b->calib, b->set->kind->rule, b->samples, b->count, plan));
done:
    clear(b);
    return status;
}

enum { LEAST_ROUND = 16 };

/* How many records are in work at once. Where every pass reads all weights, twice as many as are
 * wanted: the fewer rounds the better, and what is asked in vain costs little more. */
static tare_status choose_round(batch *b, const uint32_t *records, uint64_t count, size_t *round,
                                tare_generation_plan *plan)
{
    tare_status status = TARE_OK;
    const tare_calib *c = b->calib;
    uint64_t wanted = b->set->requested < UINT32_MAX ? 2 * b->set->requested : UINT32_MAX;
    *plan = (tare_generation_plan){.size = sizeof *plan};
    *round = b->step;
    if (!is_verified(b) || !c->verifier.plan)
        return TARE_OK;
    wanted = wanted < LEAST_ROUND ? LEAST_ROUND : wanted;
    size_t together = (size_t)(count < wanted ? count : wanted);
    if (c->batch_size_given)
        together = count < b->step ? (size_t)count : b->step;
    if (together == 0)
        return TARE_OK;
    TRY(plan_round(b, records, together, plan));
    if (plan->weights_kept && !c->batch_size_given && together > b->step)
        TRY(plan_round(b, records, b->step, plan));
    if (!plan->weights_kept && !c->batch_size_given)
        *round = together;
done:
    return status;
}

/* Whole batches until enough samples are there. What is beyond is cut off, but where the reference
 * does not: when no further batch came to see that there are enough. */
static tare_status draw_batches(batch *b, const uint32_t *records, uint64_t count, size_t round)
{
    tare_status status = TARE_OK;
    const tare_calib *c = b->calib;
    uint64_t at = 0;
    progress p = {0};
    if (c->has_verifier)
        progress_begin(&p, c->ctx, b->set->name, "sample", (size_t)b->set->requested);
    while (at < count && !has_enough(b)) {
        size_t n = (size_t)(count - at < round ? count - at : round), taken = n;
        TRY(context_check_cancelled(c->ctx));
        TRY(b->set->kind ? draw_from_kind(b, records + at, n, &taken)
                         : draw_from_source(b, records + at, n));
        clear(b);
        at += taken;
        while (c->has_verifier && p.done < p.total && p.done < b->result->count - b->first)
            progress_unit_done(&p);
    }
    if ((!c->input.compat || at < count) && b->result->count - b->first > b->set->requested)
        result_cut(b->result, b->first + (size_t)b->set->requested);
done:
    return status;
}

/* The samples that an earlier run chose; *found false: none did. */
static tare_status draw_again(batch *b, bool *found)
{
    tare_status status = TARE_OK;
    const value *records;
    resume_find(b->calib, b->set, &records, &b->too_long);
    *found = records != NULL;
    for (size_t i = 0; records && i < records->count; i++) {
        TRY(make_sample(b, (uint32_t)records->items[i].integer));
        TRY(result_add(b->result, &b->samples[0], b->name));
        clear(b);
    }
done:
    return status;
}

/* The kinds' sets are kept: the caller's may be another tomorrow. */
static tare_status draw_anew(batch *b, uint64_t count)
{
    tare_status status = TARE_OK;
    const tare_calib *c = b->calib;
    uint32_t *records = NULL;
    tare_generation_plan plan;
    size_t round;
    TRY(shuffled_records(c, b->set, (uint32_t)count, &records));
    status = choose_round(b, records, count, &round, &plan);
    if (status == TARE_E_BUDGET) /* fewer prompts may have no long one among them */
        status = TARE_OK;
    TRY(status);
    if (round != b->step)
        TARE_INFO(
            c->ctx,
            "%s: the weights do not fit in memory: %zu prompts are asked together, in at most "
            "%zu passes over the weights",
            b->set->name, round, plan.passes);
    TRY(draw_batches(b, records, count, round));
    if (b->set->kind)
        TRY(resume_add(b->calib, b->set, b->result->entries + b->first, b->result->count - b->first,
                       b->too_long));
done:
    mem_free(c->ctx, records);
    return status;
}

static void warn_about(const batch *b, uint64_t delivered)
{
    tare_context *ctx = b->calib->ctx;
    const calib_set *s = b->set;
    bool rule = s->kind ? s->kind->rule != RULE_NONE : s->source.verify != NULL;
    if (b->calib->has_verifier && !rule)
        TARE_WARN(ctx, "Dataset %s : its samples pass unverified, there is no rule for them",
                  s->name);
    if (b->too_long)
        TARE_WARN(ctx, "Dataset %s : %zu prompts exceed the model's context and were passed over",
                  s->name, b->too_long);
    if (delivered < s->requested)
        TARE_WARN(ctx, "Dataset %s : available samples is less than the number of samples.",
                  s->name);
}

/* Records of a set; each is named by 32 bits. */
static tare_status count_records(const tare_calib *c, const calib_set *s, uint64_t *count)
{
    tare_status status = TARE_OK;
    *count = s->count;
    if (!s->kind)
        status = s->source.count(s->source.user, count);
    if (status == TARE_OK && *count > UINT32_MAX)
        status = TARE_FAIL(c->ctx, TARE_E_DATA, "more than %u records", UINT32_MAX);
    return status;
}

static batch batch_begin(tare_calib *c, const calib_set *s, tare_calib_result *result)
{
    uint64_t step = c->input.compat ? s->compat_batch : c->batch_size;
    return (batch){.calib = c,
                   .set = s,
                   .arena = {.ctx = c->ctx},
                   .result = result,
                   .step = step < SIZE_MAX ? (size_t)step : SIZE_MAX};
}

static tare_status draw_set(tare_calib *c, const calib_set *s, tare_calib_result *result,
                            uint64_t *delivered)
{
    tare_status status = TARE_OK;
    uint64_t count;
    bool found = false;
    batch b = batch_begin(c, s, result);
    *delivered = 0;
    if (s->requested == 0)
        return TARE_OK;
    TRY(count_records(c, s, &count));
    if (!(b.name = arena_strndup(&result->arena, s->name, strlen(s->name)))) {
        status = TARE_E_MEMORY;
        goto done;
    }
    b.first = result->count;
    if (s->kind)
        TRY(draw_again(&b, &found));
    if (!found)
        TRY(draw_anew(&b, count));
    *delivered = result->count - b.first;
    warn_about(&b, *delivered);
done:
    clear(&b);
    mem_free(c->ctx, b.samples);
    return status;
}

tare_status set_plan(tare_calib *c, const calib_set *s, tare_calib_plan *plan)
{
    tare_status status = TARE_OK;
    uint32_t *records = NULL;
    size_t round;
    tare_generation_plan generation = {0};
    batch b = batch_begin(c, s, NULL);
    if (s->requested == 0 || s->count == 0 || !is_verified(&b))
        goto done;
    if (!c->verifier.plan)
        TRY(TARE_FAIL(c->ctx, TARE_E_USAGE, "Dataset %s: the verifier has no plan", s->name));
    TRY(count_records(c, s, &plan->records));
    TRY(shuffled_records(c, s, (uint32_t)plan->records, &records));
    status = choose_round(&b, records, plan->records, &round, &generation);
    plan->verified = true;
    plan->process = c->ctx->memory_reserve ? c->ctx->memory_reserve
                                           : machine_reserve_bytes(c->ctx, true);
    plan->task = verify_task(s->kind->rule);
    plan->together = plan->records < round ? (size_t)plan->records : round;
    plan->rounds = plan->records / plan->together + (plan->records % plan->together != 0);
done:
    sized_give(plan->generation, &generation, sizeof generation);
    mem_free(c->ctx, records);
    mem_free(c->ctx, b.samples);
    return status;
}

/* ---- all sets ---- */

static tare_status save(const tare_calib *c, const tare_calib_result *result)
{
    char *text;
    size_t length;
    if (!c->save_path)
        return TARE_OK;
    tare_status status = tare_calib_result_json(result, &text, &length);
    if (status == TARE_OK)
        status = file_replace(c->ctx, c->save_path, text, length);
    mem_free(c->ctx, text);
    return status;
}

tare_status tare_calib_process(tare_calib *c, tare_calib_result **out)
{
    tare_status status = TARE_OK;
    tare_calib_result *result = NULL;
    if (out)
        *out = NULL;
    uint64_t *delivered = mem_calloc(c->ctx, c->num_sets, sizeof *delivered);
    if (!delivered)
        return TARE_E_MEMORY;
    TRY(result_create(c->ctx, &result));
    TRY(resume_begin(c));
    for (size_t i = 0; i < c->num_sets; i++)
        TRY(draw_set(c, &c->sets[i], result, &delivered[i]));
    TRY(result_shuffle(result, &c->shuffle_seed));
    TRY(save(c, result));
    for (size_t i = 0; i < c->num_sets; i++)
        c->sets[i].delivered = delivered[i];
    if (out) {
        *out = result;
        result = NULL;
    }
done:
    resume_end(c, status);
    tare_calib_result_free(result);
    mem_free(c->ctx, delivered);
    return status;
}
