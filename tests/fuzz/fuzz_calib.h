/* What the fuzz targets of calibration sets share: a folder for the files that a set reads, and the
 * check of a set. */
#ifndef TARE_TESTS_FUZZ_CALIB_H
#define TARE_TESTS_FUZZ_CALIB_H

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "calibration/set.h"
#include "file/json.h"

static inline void check(bool ok)
{
    if (!ok)
        abort();
}

static inline void put_file(const char *path, const uint8_t *data, size_t size)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    check(fd >= 0 && write(fd, data, size) == (ssize_t)size && close(fd) == 0);
}

/* Every record that was counted becomes a sample, whose text is JSON. */
static inline void make_samples(tare_context *ctx, const set_kind *kind, const void *data,
                                uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        const value *ans, *again;
        buffer prompt, out;
        arena a;
        arena_init(&a, ctx);
        buffer_init(&prompt, ctx);
        buffer_init(&out, ctx);
        check(kind->make(ctx, data, i, &a, &prompt, &ans) == TARE_OK);
        json_write_data(&out, ans, 0, 0);
        check(json_parse(ctx, &a, out.data, out.length, "fuzz", JSON_DATA, &again) == TARE_OK);
        buffer_free(&out);
        buffer_free(&prompt);
        arena_free(&a);
    }
}

/* Loads the set as it would be in a mix: a data error, or every good record makes a sample. */
static inline void run_set(const set_kind *kind, const char *path, calib_input in)
{
    void *data = NULL;
    uint64_t count = 0;
    tare_context_options options;
    tare_context_options_init(&options);
    options.threads = 1; /* none is started */
    check(tare_context_create(&in.ctx, &options) == TARE_OK);
    tare_status status = kind->load(&in, path, &data, &count);
    check(status == TARE_OK || status == TARE_E_DATA || status == TARE_E_IO);
    check(status == TARE_OK || tare_last_error(in.ctx)[0]);
    if (status == TARE_OK) {
        make_samples(in.ctx, kind, data, count);
        kind->free(in.ctx, data);
    }
    input_free(&in);
    check(tare_memory_used(in.ctx) == 0);
    tare_context_free(in.ctx);
}

#endif
