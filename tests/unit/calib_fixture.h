/* Sets of a caller's for the tests of mixed calibration sets, and mixes without a config. */
#ifndef TARE_TESTS_CALIB_FIXTURE_H
#define TARE_TESTS_CALIB_FIXTURE_H

#include "fixture.h"

/* A set of `count` records: the sample of record i is {"prompt": "<prefix>i", "ans": i}. With
 * `every` > 0 its verifier takes the first of each `every` samples that it ever saw. */
typedef struct numbers {
    const char *prefix;
    uint64_t count;
    size_t every, seen, processed, verified, released;
    const char *ans, *extra; /* instead of the number; members that follow */
    tare_status status;      /* what process returns */
} numbers;

static inline tare_status numbers_size(void *user, uint64_t *size)
{
    *size = ((numbers *)user)->count;
    return TARE_OK;
}

static inline tare_status numbers_process(void *user, const uint64_t *records, size_t count,
                                          tare_calib_sink emit, void *sink)
{
    numbers *n = user;
    n->processed += count;
    for (size_t i = 0; i < count; i++) {
        char prompt[64], ans[32];
        assert_true(records[i] < n->count);
        snprintf(prompt, sizeof prompt, "%s%llu", n->prefix, (unsigned long long)records[i]);
        snprintf(ans, sizeof ans, "%llu", (unsigned long long)records[i]);
        tare_calib_sample s = {.prompt = prompt,
                               .prompt_length = strlen(prompt),
                               .ans = n->ans ? n->ans : ans,
                               .extra = n->extra,
                               .extra_length = n->extra ? strlen(n->extra) : 0,
                               .record = records[i]};
        s.ans_length = strlen(s.ans);
        tare_status status = emit(sink, &s);
        if (status != TARE_OK)
            return status;
    }
    return n->status;
}

static inline tare_status numbers_verify(void *user, const tare_calib_sample *samples, size_t count,
                                         tare_calib_sink emit, void *sink)
{
    numbers *n = user;
    tare_status status = TARE_OK;
    n->verified += count;
    for (size_t i = 0; i < count && status == TARE_OK; i++) {
        if (n->seen++ % n->every == 0)
            status = emit(sink, &samples[i]);
    }
    return status;
}

static inline void numbers_release(void *user)
{
    ((numbers *)user)->released++;
}

static inline tare_status add_numbers(tare_calib *calib, const char *name, numbers *n)
{
    const tare_calib_source source = {.size = sizeof source,
                                      .count = numbers_size,
                                      .process = numbers_process,
                                      .verify = n->every ? numbers_verify : NULL,
                                      .release = numbers_release,
                                      .user = n};
    return tare_calib_add_set(calib, name, &source);
}

/* A mix whose config names no set. `options` may be NULL. */
static inline tare_calib *empty_mix(tare_context *ctx, const char *folder, const char *save,
                                    const tare_calib_options *options)
{
    char config[128];
    tare_calib *calib;
    snprintf(config, sizeof config, "%s/empty.json", folder);
    write_text(folder, "empty.json", "{\"configurations\": []}");
    assert_ok(ctx, tare_calib_open(ctx, config, save, options, &calib));
    return calib;
}

static inline tare_status set_size(tare_calib *calib, const char *name, int64_t size)
{
    return tare_calib_set_sizes(calib, &name, &size, 1);
}

/* The prompts of the result, each with a space behind it. */
static inline const char *prompts_of(const tare_calib_result *result)
{
    static char text[8192];
    size_t n = 0;
    text[0] = 0;
    for (size_t i = 0; i < tare_calib_result_count(result); i++) {
        tare_calib_entry e;
        tare_calib_result_entry(result, i, &e);
        n += (size_t)snprintf(text + n, sizeof text - n, "%s ", e.sample.prompt);
    }
    return text;
}

#endif
