/* Calibration samples as token ids, from memory or from a file:
 *   .txt, a sample a line; any other name is JSON:
 *   JSONL, an object a line with "inputs_pretokenized", "prompt" or "text" (the first that is there
 * and not empty); a JSON list of strings; a JSON list of objects with "prompt" (what `tare calib`
 * writes); a JSON list of lists of token ids.
 * The name "builtin" is no file but the prompts that ship with tare. */
#ifndef TARE_CALIBRATION_SAMPLES_H
#define TARE_CALIBRATION_SAMPLES_H

#include "base/memory.h"

typedef struct sample_set {
    size_t count;
    size_t *lengths; /* [count] tokens of each sample, > 0 */
    uint32_t *ids;   /* all samples, one after the other */
    size_t tokens;   /* sum of the lengths */
    size_t longest;
    size_t truncated;               /* samples that were cut to max_length */
    const size_t *sequences, *kept; /* see sample_options, whose they are */
} sample_set;

#define SAMPLES_BUILTIN "builtin"

/* JSONL: src/calibration/builtin.jsonl, a zero behind it. */
extern const unsigned char builtin_prompts[];
extern const size_t builtin_prompts_size; /* without the zero */

typedef struct sample_options {
    const char *file; /* or SAMPLES_BUILTIN */
    /* `file` NULL: samples one after the other, and the tokens of each. */
    const uint32_t *ids;
    const size_t *lengths; /* [count] */
    size_t count;
    /* [count] sequences of equal length that each sample is made of, which do not see each other;
     * NULL: one. `kept`: tokens of each sequence, sample after sample, before those that only pad
     * it; NULL: all. */
    const size_t *sequences, *kept;
    const char *model; /* folder of the tokenizer, read only if the file holds text; NULL: none */
    size_t samples;    /* take the first; 0: all */
    size_t max_length; /* cut longer samples; 0: none is cut */
    size_t model_max;  /* tokens of the longest; a longer one is TARE_E_DATA; 0: no limit */
    size_t vocab_size; /* an id beyond is TARE_E_DATA; 0: unchecked */
    bool keep_empty;   /* blank lines and samples without tokens are kept (length 0), not skipped or
                          refused */
} sample_options;

/* TARE_E_DATA for a source without samples, a sample without tokens or one that is too long (names
 * the row). */
tare_status sample_set_load(tare_context *ctx, const sample_options *options, sample_set *out);
void sample_set_free(tare_context *ctx, sample_set *set);

#endif
