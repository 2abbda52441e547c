/* MMLU, without or with examples before each question (section 5.4). */
#include "calibration/choices.h"

static tare_status load_subject(calib_input *in, choice_set *set, choice_subject *s,
                                const char *folder)
{
    tare_status status = TARE_OK;
    char *dev = choice_set_path(set, folder, "dev", s->name);
    char *test = choice_set_path(set, folder, "test", s->name);
    if (!dev || !test)
        return TARE_E_MEMORY;
    if (set->examples > 0)
        TRY(choice_file_load(in, dev, false, set->examples, &s->dev));
    TRY(choice_file_load(in, test, false, 0, &s->questions));
done:
    return status;
}

static tare_status load(calib_input *in, const char *path, void **data, uint64_t *count)
{
    return choice_set_load(in, path, "mmlu_all_sets", "test",
                           "The following are multiple choice questions (with answers) about ",
                           in->mmlu_shots, load_subject, data, count);
}

const set_kind set_mmlu = {
    .name = "mmlu",
    .folder = true,
    .rule = RULE_FIRST_LETTER,
    .load = load,
    .make = choice_set_make,
    .free = choice_set_free,
};
