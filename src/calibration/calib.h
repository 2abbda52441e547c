/* A mix of sets, inside: what tare_calib_open makes of a config, how samples are drawn. */
#ifndef TARE_CALIBRATION_CALIB_H
#define TARE_CALIBRATION_CALIB_H

#include "calibration/set.h"
#include "file/journal.h"

/* 32-bit words of |seed|, lowest first; no words: 0. */
typedef struct calib_seed {
    uint32_t *words;
    size_t count;
} calib_seed;

tare_status seed_set(tare_context *ctx, calib_seed *seed, const uint32_t *words, size_t count);

typedef struct calib_set {
    char *name;
    const set_kind *kind; /* NULL: a set of the caller's */
    void *data;           /* of the kind */
    uint64_t count;       /* good records, of the kind */
    tare_calib_source source;
    calib_seed seed; /* of its sampling, unless there is one for all; for the caller's sets */
    uint64_t compat_batch;
    uint64_t digest; /* of the files, of the kind */
    uint64_t skipped, requested, delivered;
} calib_set;

enum { CALIB_COMPAT_BATCH = 4, CALIB_MAX_SHOTS = 5 };

struct tare_calib {
    tare_context *ctx;
    calib_input input;
    calib_set *sets;
    size_t num_sets, sets_capacity;
    char *save_path; /* real path, or NULL */
    uint64_t config_digest;
    char *work_folder; /* NULL where save_path is */
    bool keep, resume, overwrite;
    journal *journal; /* while tare_calib_process runs; NULL: nothing is kept */
    size_t finished;  /* records in it: what the mix is made of, then the sets */
    uint64_t batch_size;
    bool batch_size_given;
    calib_seed shuffle_seed, sample_seed;
    bool has_sample_seed;
    bool gsm8k_sampling;
    uint32_t gsm8k_seed[2];
    bool has_verifier;
    tare_calib_verifier verifier;
};

/* ---- config.c */

/* One set that a config names. */
typedef struct config_entry {
    const char *name, *path;
    const set_kind *kind;
} config_entry;

typedef struct calib_config {
    arena arena; /* of all below */
    config_entry *entries;
    size_t count;
    bool compat, skip_bad, gsm8k_sampling, has_sample_seed;
    uint32_t mmlu_shots;
    calib_seed sample_seed, gsm8k_seed;
} calib_config;

/* Every fault is TARE_E_USAGE. Free with config_free in any case. */
tare_status config_read(calib_input *in, const char *path, calib_config *out);
void config_free(calib_config *config);

/* ---- mix.c */

/* tare_calib_get_plan of a set; *plan is empty but for `generation`, which was checked. */
tare_status set_plan(tare_calib *calib, const calib_set *set, tare_calib_plan *plan);

/* A record that was drawn, while its batch is in work. */
typedef struct drawn_sample {
    const char *prompt;
    size_t prompt_length;
    const value *ans;
    const char *extra; /* JSON text, or NULL */
    size_t extra_length;
    uint64_t record;
} drawn_sample;

/* ---- verify.c */

/* Tells which of `count` samples of a set the verifier answers right; *too_long gets the number
 * of those that it could not take. */
tare_status verify_samples(tare_calib *calib, calib_rule rule, const drawn_sample *samples,
                           size_t count, bool *positive, size_t *too_long);
/* What the verifier, which has a plan, would do with them. */
tare_status verify_plan(tare_calib *calib, calib_rule rule, const drawn_sample *samples,
                        size_t count, tare_generation_plan *plan);
tare_calib_task verify_task(calib_rule rule);

/* ---- resume.c: sets that an earlier run finished */

/* Opens the journal and checks that what it holds is of this mix; nothing if none is kept. */
tare_status resume_begin(tare_calib *calib);
/* What is left of a set that was finished: record numbers of its samples, in order (in the
 * journal), and how many prompts were too long; *records NULL: it was not finished. */
void resume_find(const tare_calib *calib, const calib_set *set, const value **records,
                 size_t *too_long);
tare_status resume_add(tare_calib *calib, const calib_set *set, const tare_calib_entry *entries,
                       size_t count, size_t too_long);
/* Removes the journal where `status`, that of the mix, is TARE_OK or it holds no set; closes it. */
void resume_end(tare_calib *calib, tare_status status);

#endif
