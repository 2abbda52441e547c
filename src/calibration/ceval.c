/* C-Eval with five examples before each question (section 5.3). */
#include "calibration/choices.h"

enum { EXAMPLES = 5 };

/* A subject whose questions have too few columns is passed over; of its examples nothing matters
 * then but that the file can be read. */
static tare_status load_subject(calib_input *in, choice_set *set, choice_subject *s,
                                const char *folder)
{
    tare_status status = TARE_OK;
    char *dev = choice_set_path(set, folder, "dev", s->name);
    char *val = choice_set_path(set, folder, "val", s->name);
    if (!dev || !val)
        return TARE_E_MEMORY;
    TRY(choice_file_read(in, dev, &s->dev));
    TRY(choice_file_read(in, val, &s->questions));
    TRY(choice_file_parse(in, val, &s->questions));
    size_t columns = s->questions.table.rows[0].count - 1; /* without the id */
    if (columns < CHOICE_COLUMNS) {
        TARE_WARN(in->ctx,
                  "val_df has only %zu columns, but requires at least 6 columns. Skipping task %s.",
                  columns, s->name);
        goto done;
    }
    TRY(choice_file_parse(in, dev, &s->dev));
    TRY(choice_file_check(in, dev, true, EXAMPLES, &s->dev));
    TRY(choice_file_check(in, val, true, 0, &s->questions));
done:
    return status;
}

static tare_status load(calib_input *in, const char *path, void **data, uint64_t *count)
{
    return choice_set_load(in, path, NULL, "val",
                           "The following are multiple choice questions about ", EXAMPLES,
                           load_subject, data, count);
}

const set_kind set_ceval = {
    .name = "ceval_5_shot",
    .folder = true,
    .rule = RULE_FIRST_LETTER,
    .load = load,
    .make = choice_set_make,
    .free = choice_set_free,
};
