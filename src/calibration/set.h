/* One set of a mix: where its records come from and how one becomes a sample. A kind of set is a
 * table of functions; adding one is a file with its table, and a line in config.c. */
#ifndef TARE_CALIBRATION_SET_H
#define TARE_CALIBRATION_SET_H

#include "base/strings.h"
#include "calibration/input.h"
#include "file/value.h"

/* How a model's answer to a sample is judged (section 7). */
typedef enum calib_rule {
    RULE_NONE,         /* no rule: passes unverified */
    RULE_YES_NO,       /* boolq: more likely "yes" than "no"? */
    RULE_FIRST_LETTER, /* multiple choice: the first character of the continuation */
    RULE_LAST_NUMBER   /* gsm8k: the last digits of the solution */
} calib_rule;

typedef struct set_kind {
    const char *name;
    bool folder; /* takes a folder, not a file */
    calib_rule rule;
    /* Reads and checks every record; *data is freed with `free`, *count its good records. */
    tare_status (*load)(calib_input *in, const char *path, void **data, uint64_t *count);
    /* Appends the prompt of a record; *ans lives in `a`, or in the data. */
    tare_status (*make)(tare_context *ctx, const void *data, uint64_t record, arena *a,
                        buffer *prompt, const value **ans);
    void (*free)(tare_context *ctx, void *data);
} set_kind;

extern const set_kind set_boolq, set_ceval, set_gsm8k, set_mmlu, set_jsonl;

#endif
