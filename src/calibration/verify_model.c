/* The verifier that asks a model of this library. Prompts go to tare_generate as they are, without
 * padding, so none can disturb another. */
#include <math.h>
#include <string.h>

#include "base/progress.h"
#include "base/sized.h"
#include "calibration/calib.h"
#include "file/io.h"
#include "generate/generate.h"
#include "model/fingerprint.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/tokenizer_config.h"

enum { CONTINUE_TOKENS = 20, SOLVE_TOKENS = 256, CONFIG_LIMIT = 16 << 20 };

typedef struct model_verifier {
    tare_context *ctx;
    tare_model *model;
    tare_tokenizer *tokenizer;
    size_t max_length;   /* of prompts, in tokens; SIZE_MAX: no limit stated */
    uint32_t choices[2]; /* ids of yes and no */
    uint32_t eos;
    size_t num_eos; /* 0 where the tokenizer has none */
    char *scratch_dir;
    buffer identity;
} model_verifier;

/* The ids of a batch of prompts. */
typedef struct prompt_ids {
    uint32_t **ids;
    size_t *lengths;
    size_t count;
} prompt_ids;

static void prompts_free(tare_context *ctx, prompt_ids *p)
{
    for (size_t i = 0; p->ids && i < p->count; i++)
        mem_free(ctx, p->ids[i]);
    mem_free(ctx, p->ids);
    mem_free(ctx, p->lengths);
}

static tare_status encode_prompts(const model_verifier *m, const tare_calib_question *questions,
                                  size_t count, size_t max_length, prompt_ids *out)
{
    tare_status status = TARE_OK;
    *out = (prompt_ids){.ids = mem_calloc(m->ctx, count, sizeof *out->ids),
                        .lengths = mem_calloc(m->ctx, count, sizeof *out->lengths),
                        .count = count};
    if (!out->ids || !out->lengths)
        return TARE_E_MEMORY;
    for (size_t i = 0; i < count; i++) {
        TRY(TARE_WRAP(m->ctx,
                      tare_tokenizer_encode(m->tokenizer, questions[i].prompt,
                                            questions[i].prompt_length, true, &out->ids[i],
                                            &out->lengths[i]),
                      "the prompt of record %u", questions[i].seed[2]));
        if (out->lengths[i] > max_length)
            out->lengths[i] = max_length;
    }
done:
    return status;
}

/* ---- the three tasks ---- */

static tare_status choose(const model_verifier *m, const prompt_ids *p, tare_calib_answer *answers)
{
    float *logprobs = mem_alloc_array(m->ctx, p->count, 2 * sizeof *logprobs);
    if (!logprobs)
        return TARE_E_MEMORY;
    tare_status status = tare_last_logprobs(m->model, NULL, (const uint32_t *const *)p->ids,
                                            p->lengths, p->count, m->choices, 2, logprobs);
    for (size_t i = 0; status == TARE_OK && i < p->count; i++) {
        answers[i].yes = logprobs[2 * i];
        answers[i].no = logprobs[2 * i + 1];
        answers[i].too_long = isnan(logprobs[2 * i]) && isnan(logprobs[2 * i + 1]);
    }
    mem_free(m->ctx, logprobs);
    return status;
}

/* The text of the new tokens, or with `prompt` of both, without special tokens. */
static tare_status set_text(const model_verifier *m, const uint32_t *prompt, size_t length,
                            const tare_generation *g, tare_calib_answer *answer)
{
    tare_status status = TARE_OK;
    char *text = NULL;
    size_t size;
    uint32_t *ids = mem_alloc_array(m->ctx, length + g->count, sizeof *ids);
    if (!ids)
        return TARE_E_MEMORY;
    if (length)
        memcpy(ids, prompt, length * sizeof *ids);
    if (g->count)
        memcpy(ids + length, g->ids, g->count * sizeof *ids);
    TRY(tare_tokenizer_decode(m->tokenizer, ids, length + g->count, prompt != NULL, &text, &size));
    TRY(tare_calib_answer_text(answer, text, size));
done:
    mem_free(m->ctx, text);
    mem_free(m->ctx, ids);
    return status;
}

/* How a task is done; `records` are set by solve. */
static tare_generate_options options_of(const model_verifier *m, tare_calib_task task,
                                        const tare_calib_question *questions)
{
    tare_generate_options o;
    tare_generate_options_init(&o);
    o.scratch_dir = m->scratch_dir;
    o.max_new_tokens = task == TARE_CALIB_CHOOSE ? 0 : CONTINUE_TOKENS;
    if (task == TARE_CALIB_SOLVE) {
        o.max_new_tokens = SOLVE_TOKENS;
        o.do_sample = questions[0].sample;
        o.seed = (uint64_t)questions[0].seed[1] << 32 | questions[0].seed[0];
        o.eos_ids = &m->eos;
        o.num_eos = m->num_eos;
    }
    return o;
}

/* tare_generate_options.token */
static bool count_token(void *user, size_t prompt, uint32_t id)
{
    (void)prompt, (void)id;
    progress_unit_done(user);
    return true;
}

/* Where each token reads all weights anew, tokens are progress. */
static tare_status generate_all(const model_verifier *m, const tare_generate_options *options,
                                const prompt_ids *p, tare_generation *results)
{
    tare_status status = TARE_OK;
    tare_generate_options o = *options;
    tare_generation_plan made = {.size = sizeof made};
    progress tokens;
    TRY(tare_generate_plan(m->model, &o, p->lengths, p->count, &made));
    if (!made.weights_kept) {
        progress_begin(&tokens, m->ctx, "answer", "token", p->count * o.max_new_tokens);
        o.token = count_token;
        o.user = &tokens;
    }
    TRY(tare_generate(m->model, &o, (const uint32_t *const *)p->ids, p->lengths, p->count,
                      results));
done:
    return status;
}

static tare_status generate(const model_verifier *m, const tare_generate_options *o,
                            const prompt_ids *p, bool whole, tare_calib_answer *answers)
{
    tare_status status = TARE_OK;
    tare_generation *results = mem_calloc(m->ctx, p->count, sizeof *results);
    if (!results)
        return TARE_E_MEMORY;
    TRY(generate_all(m, o, p, results));
    for (size_t i = 0; i < p->count; i++) {
        answers[i].too_long = results[i].finish == TARE_FINISH_TOO_LONG;
        TRY(set_text(m, whole ? p->ids[i] : NULL, whole ? p->lengths[i] : 0, &results[i],
                     &answers[i]));
    }
done:
    tare_generations_free(m->ctx, results, p->count);
    mem_free(m->ctx, results);
    return status;
}

static tare_status solve(const model_verifier *m, const tare_calib_question *questions,
                         const prompt_ids *p, tare_calib_answer *answers)
{
    tare_generate_options o = options_of(m, TARE_CALIB_SOLVE, questions);
    uint32_t *records = mem_alloc_array(m->ctx, p->count, sizeof *records);
    if (!records)
        return TARE_E_MEMORY;
    for (size_t i = 0; i < p->count; i++)
        records[i] = questions[i].seed[2];
    o.records = records;
    tare_status status = generate(m, &o, p, true, answers);
    mem_free(m->ctx, records);
    return status;
}

static size_t longest_prompt(const model_verifier *m, tare_calib_task task)
{
    return task == TARE_CALIB_SOLVE ? SIZE_MAX : m->max_length;
}

static tare_status answer(void *user, tare_calib_task task, const tare_calib_question *questions,
                          size_t count, tare_calib_answer *answers)
{
    tare_status status = TARE_OK;
    const model_verifier *m = user;
    prompt_ids p = {0};
    tare_generate_options o;
    TRY(encode_prompts(m, questions, count, longest_prompt(m, task), &p));
    switch (task) {
    case TARE_CALIB_CHOOSE:
        TRY(choose(m, &p, answers));
        break;
    case TARE_CALIB_CONTINUE:
        o = options_of(m, task, questions);
        TRY(generate(m, &o, &p, false, answers));
        break;
    case TARE_CALIB_SOLVE:
        TRY(solve(m, questions, &p, answers));
        break;
    }
done:
    prompts_free(m->ctx, &p);
    return status;
}

static tare_status plan(void *user, tare_calib_task task, const tare_calib_question *questions,
                        size_t count, tare_generation_plan *out)
{
    tare_status status = TARE_OK;
    const model_verifier *m = user;
    prompt_ids p = {0};
    const tare_generate_options o = options_of(m, task, questions);
    TRY(encode_prompts(m, questions, count, longest_prompt(m, task), &p));
    TRY(tare_generate_plan(m->model, &o, p.lengths, count, out));
done:
    prompts_free(m->ctx, &p);
    return status;
}

/* ---- setting up ---- */

/* Id of the last token of a text; *count: how many it has. */
static tare_status last_token(const model_verifier *m, const char *text, size_t length,
                              uint32_t *id, size_t *count)
{
    uint32_t *ids;
    tare_status status = tare_tokenizer_encode(m->tokenizer, text, length, false, &ids, count);
    if (status == TARE_OK && *count > 0)
        *id = ids[*count - 1];
    mem_free(m->ctx, ids);
    return status;
}

/* What the files of the tokenizer say of the end of a text, and of the longest one. */
static tare_status read_tokenizer_config(model_verifier *m)
{
    tare_status status = TARE_OK;
    tokenizer_config config;
    config_token eos;
    size_t count;
    arena a;
    if (!m->model->folder)
        return TARE_OK;
    arena_init(&a, m->ctx);
    TRY(tokenizer_config_read(m->ctx, &a, m->model->folder, NULL, &config));
    const value *length = tokenizer_config_get(&config, "model_max_length");
    if (length && length->type == VALUE_NUMBER && length->number >= 1 &&
        length->number < (double)(1 << 30)) /* transformers writes 1e30 for "not known" */
        m->max_length = (size_t)length->number;
    TRY(tokenizer_config_special(&config, SPECIAL_EOS, &eos));
    if (eos.text) {
        TRY(last_token(m, eos.text, eos.length, &m->eos, &count));
        m->num_eos = count == 1; /* else it is no token of this tokenizer */
    }
done:
    arena_free(&a);
    return status;
}

/* A digest of a file of the model's folder, if there is one. */
static tare_status identify_file(model_verifier *m, const char *name)
{
    tare_status status = TARE_OK;
    char *data = NULL;
    size_t length;
    char *path = path_join(m->ctx, m->model->folder, name);
    if (!path)
        return TARE_E_MEMORY;
    if (path_exists(path)) {
        TRY(file_read_all(m->ctx, path, CONFIG_LIMIT << 4, &data, &length));
        buffer_printf(&m->identity, ", \"%s\": ", name);
        digest_write(&m->identity, data, length);
    }
done:
    mem_free(m->ctx, data);
    mem_free(m->ctx, path);
    return status;
}

static tare_status identify(model_verifier *m)
{
    static const char *const files[] = {"tokenizer.json", "tokenizer_config.json",
                                        "special_tokens_map.json", "added_tokens.json",
                                        "generation_config.json"};
    tare_status status = TARE_OK;
    buffer *out = &m->identity;
    buffer_puts(out, "{\"model\": {\"config.json\": ");
    digest_write(out, m->model->config_json, m->model->config_length);
    for (size_t i = 0; m->model->folder && i < sizeof files / sizeof *files; i++)
        TRY(identify_file(m, files[i]));
    TRY(fingerprint_files(m->model, out));
    buffer_puts(out, "}, \"times\": ");
    TRY(fingerprint_times(m->model, out));
    buffer_putc(out, '}');
    TRY(out->status);
done:
    return status;
}

/* Does the model have the tokens that it will be asked about? No weight is read. */
static tare_status check_tokens(const model_verifier *m)
{
    static const char text[] = "hello world";
    tare_status status = TARE_OK;
    const tare_calib_question question = {.prompt = text, .prompt_length = sizeof text - 1};
    prompt_ids p = {0};
    const uint32_t *choices = m->choices;
    const size_t two = 2;
    TRY(encode_prompts(m, &question, 1, SIZE_MAX, &p));
    TRY(generation_check_prompts(m->model, (const uint32_t *const *)p.ids, p.lengths, 1));
    TRY(generation_check_prompts(m->model, &choices, &two, 1));
done:
    prompts_free(m->ctx, &p);
    return status;
}

static void free_verifier(model_verifier *m)
{
    if (!m)
        return;
    tare_tokenizer_free(m->tokenizer);
    tare_model_free(m->model);
    buffer_free(&m->identity);
    mem_free(m->ctx, m->scratch_dir);
    mem_free(m->ctx, m);
}

tare_status tare_model_verifier_create(tare_model *model, tare_tokenizer *tokenizer,
                                       tare_calib_verifier *out)
{
    tare_status status = TARE_OK;
    size_t count;
    tare_calib_verifier verifier = {0};
    status = SIZED_CHECK(model->ctx, tare_calib_verifier, out);
    if (status != TARE_OK)
        return status;
    sized_give(out, &verifier, sizeof verifier);
    model_verifier *m = mem_calloc(model->ctx, 1, sizeof *m);
    if (!m)
        return TARE_E_MEMORY;
    *m = (model_verifier){.ctx = model->ctx,
                          .model = model_keep(model),
                          .tokenizer = tokenizer_keep(tokenizer),
                          .max_length = SIZE_MAX};
    buffer_init(&m->identity, m->ctx);
    TRY(last_token(m, TARE_CALIB_YES, strlen(TARE_CALIB_YES), &m->choices[0], &count));
    TRY(last_token(m, TARE_CALIB_NO, strlen(TARE_CALIB_NO), &m->choices[1], &count));
    TRY(read_tokenizer_config(m));
    if (checkpoint_file_count(model->checkpoint) > 0)
        TRY(identify(m));
    status = check_tokens(m);
    if (status == TARE_E_DATA) /* an id that the model does not have, or no ids at all */
        status = TARE_WRAP(m->ctx, TARE_E_USAGE, "Tokenizer must be matched with model.");
    if (status != TARE_OK)
        goto done;
    verifier = (tare_calib_verifier){
        .answer = answer, .user = m, .plan = plan, .identity = m->identity.data};
    sized_give(out, &verifier, sizeof verifier);
    m = NULL;
done:
    free_verifier(m);
    return status;
}

void tare_model_verifier_free(tare_calib_verifier *verifier)
{
    const tare_calib_verifier none = {0};
    free_verifier(verifier->user);
    sized_give(verifier, &none, sizeof none);
}

tare_status tare_model_verifier_set_scratch(tare_calib_verifier *verifier, const char *folder)
{
    model_verifier *m = verifier->user;
    char *copy = folder ? mem_strdup(m->ctx, folder) : NULL;
    if (folder && !copy)
        return TARE_E_MEMORY;
    mem_free(m->ctx, m->scratch_dir);
    m->scratch_dir = copy;
    return TARE_OK;
}
