/* Is a sample one that the model answers right? (calibration_sets.md section 7) */
#include <string.h>
#include <utf8proc.h>

#include "calibration/calib.h"
#include "calibration/text.h"

/* answer->text points to a buffer, made beforehand. */
static text_span answer_text(const tare_calib_answer *answer)
{
    const buffer *b = answer->text;
    return b->length ? (text_span){b->data, b->length} : (text_span){"", 0};
}

tare_status tare_calib_answer_text(tare_calib_answer *answer, const char *text, size_t length)
{
    buffer *b = answer->text;
    b->length = 0;
    buffer_append(b, text, length);
    return b->status;
}

static bool same(const value *ans, text_span s)
{
    return ans->type == VALUE_STRING && ans->length == s.length &&
           memcmp(ans->text, s.text, s.length) == 0;
}

/* A tie counts as no. Labels are compared as in Python: 1 and 1.0 are true, "true" is not. */
static bool judge_yes_no(const drawn_sample *s, const tare_calib_answer *answer)
{
    bool predicted = answer->yes > answer->no;
    if (s->ans->type == VALUE_BOOL)
        return s->ans->boolean == predicted;
    return s->ans->type == VALUE_NUMBER && s->ans->number == (predicted ? 1.0 : 0.0);
}

static bool judge_first_letter(const drawn_sample *s, const tare_calib_answer *answer)
{
    text_span text = text_lstrip(answer_text(answer));
    if (text.length)
        text_first(text, &text.length);
    else
        text = (text_span){"-1", 2};
    return same(s->ans, text);
}

static bool is_digit(text_span s, size_t *bytes)
{
    return utf8proc_category((utf8proc_int32_t)text_first(s, bytes)) == UTF8PROC_CATEGORY_ND;
}

/* The last run of decimal digits; empty if there is none. */
static text_span last_number(text_span s)
{
    text_span found = {"", 0};
    bool inside = false;
    for (size_t bytes; s.length; s = (text_span){s.text + bytes, s.length - bytes}) {
        bool digit = is_digit(s, &bytes);
        if (digit && !inside)
            found = (text_span){s.text, 0};
        if (digit)
            found.length += bytes;
        inside = digit;
    }
    return found;
}

/* The text holds the prompt again: as many characters as it has are dropped, whatever they are. */
static bool judge_last_number(const drawn_sample *s, const tare_calib_answer *answer)
{
    text_span text = text_drop(text_strip(answer_text(answer)),
                               text_characters((text_span){s->prompt, s->prompt_length}));
    const char *blank = memmem(text.text, text.length, "\n\n", 2);
    if (blank)
        text.length = (size_t)(blank - text.text);
    return same(s->ans, last_number(text));
}

static const struct {
    tare_calib_task task;
    bool (*judge)(const drawn_sample *s, const tare_calib_answer *answer);
} rules[] = {
    [RULE_YES_NO] = {TARE_CALIB_CHOOSE, judge_yes_no},
    [RULE_FIRST_LETTER] = {TARE_CALIB_CONTINUE, judge_first_letter},
    [RULE_LAST_NUMBER] = {TARE_CALIB_SOLVE, judge_last_number},
};

static void write_questions(const tare_calib *c, calib_rule rule, const drawn_sample *samples,
                            size_t count, tare_calib_question *questions)
{
    for (size_t i = 0; i < count; i++)
        questions[i] = (tare_calib_question){
            .prompt = samples[i].prompt,
            .prompt_length = samples[i].prompt_length,
            .sample = rule == RULE_LAST_NUMBER && c->gsm8k_sampling,
            .seed = {c->gsm8k_seed[0], c->gsm8k_seed[1], (uint32_t)samples[i].record}};
}

tare_calib_task verify_task(calib_rule rule)
{
    return rules[rule].task;
}

tare_status verify_plan(tare_calib *c, calib_rule rule, const drawn_sample *samples, size_t count,
                        tare_generation_plan *plan)
{
    tare_calib_question *questions = mem_alloc_array(c->ctx, count, sizeof *questions);
    if (!questions)
        return TARE_E_MEMORY;
    write_questions(c, rule, samples, count, questions);
    tare_status status = c->verifier.plan(c->verifier.user, rules[rule].task, questions, count,
                                          plan);
    mem_free(c->ctx, questions);
    return status;
}

static tare_status ask(tare_calib *c, calib_rule rule, const drawn_sample *samples, size_t count,
                       tare_calib_question *questions, tare_calib_answer *answers, buffer *texts)
{
    write_questions(c, rule, samples, count, questions);
    for (size_t i = 0; i < count; i++)
        answers[i] = (tare_calib_answer){.text = &texts[i]};
    return c->verifier.answer(c->verifier.user, rules[rule].task, questions, count, answers);
}

tare_status verify_samples(tare_calib *c, calib_rule rule, const drawn_sample *samples,
                           size_t count, bool *positive, size_t *too_long)
{
    tare_status status = TARE_E_MEMORY;
    *too_long = 0;
    tare_calib_question *questions = mem_alloc_array(c->ctx, count, sizeof *questions);
    tare_calib_answer *answers = mem_alloc_array(c->ctx, count, sizeof *answers);
    buffer *texts = mem_alloc_array(c->ctx, count, sizeof *texts);
    for (size_t i = 0; texts && i < count; i++)
        buffer_init(&texts[i], c->ctx);
    if (!questions || !answers || !texts)
        goto done;
    TRY(ask(c, rule, samples, count, questions, answers, texts));
    for (size_t i = 0; i < count; i++) {
        positive[i] = !answers[i].too_long && rules[rule].judge(&samples[i], &answers[i]);
        *too_long += answers[i].too_long;
    }
done:
    for (size_t i = 0; texts && i < count; i++)
        buffer_free(&texts[i]);
    mem_free(c->ctx, texts);
    mem_free(c->ctx, answers);
    mem_free(c->ctx, questions);
    return status;
}
