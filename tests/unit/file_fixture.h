/* What the tests of files share: a context, a folder of its own for each test, failing allocations.
 */
#ifndef TARE_TESTS_FILE_FIXTURE_H
#define TARE_TESTS_FILE_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "file/io.h"

typedef struct fixture {
    tare_context *ctx;
    char folder[64];
    char path[128]; /* folder + "/file" */
} fixture;

static inline int setup(void **state)
{
    fixture *f = calloc(1, sizeof(*f));
    assert_non_null(f);
    assert_int_equal(tare_context_create(&f->ctx, NULL), TARE_OK);
    strcpy(f->folder, "/tmp/tare-test-XXXXXX");
    assert_non_null(mkdtemp(f->folder));
    snprintf(f->path, sizeof f->path, "%s/file", f->folder);
    *state = f;
    return 0;
}

static inline int teardown(void **state)
{
    fixture *f = *state;
    assert_int_equal(folder_remove(f->ctx, f->folder), TARE_OK);
    assert_int_equal(tare_memory_used(f->ctx), 0);
    tare_context_free(f->ctx);
    free(f);
    return 0;
}

#define assert_ok(ctx, call)                                                                       \
    do {                                                                                           \
        if ((call) != TARE_OK)                                                                     \
            fail_msg("%s: %s", #call, tare_last_error(ctx));                                       \
    } while (0)

#define assert_refused(ctx, call, expected, part)                                                  \
    do {                                                                                           \
        assert_int_equal((call), (expected));                                                      \
        if (!strstr(tare_last_error(ctx), (part)))                                                 \
            fail_msg("'%s' is not in: %s", (part), tare_last_error(ctx));                          \
    } while (0)

/* Replaces the file at f->path. */
static inline void put_file(fixture *f, const void *data, size_t size)
{
    unlink(f->path);
    assert_ok(f->ctx, file_write_all(f->ctx, f->path, data, size));
}

/* Reads the file at f->path by other means than the library's. */
static inline void assert_file(fixture *f, const void *data, size_t size)
{
    FILE *in = fopen(f->path, "rb");
    assert_non_null(in);
    char *got = malloc(size + 1);
    assert_non_null(got);
    assert_int_equal(fread(got, 1, size + 1, in), size);
    assert_memory_equal(got, data, size);
    free(got);
    fclose(in);
}

typedef struct memory_fault {
    size_t left; /* allocations that still succeed */
    bool hit;
} memory_fault;

static inline bool allow(void *user, size_t bytes)
{
    memory_fault *fault = user;
    (void)bytes;
    if (fault->left == 0)
        fault->hit = true;
    else
        fault->left--;
    return !fault->hit;
}

/* Runs `work` with the first, second, … allocation failing until it succeeds: each failure must be
 * TARE_E_MEMORY and leave nothing behind. */
static inline void fail_each_allocation(fixture *f,
                                        tare_status (*work)(tare_context *ctx, fixture *f))
{
    for (size_t n = 0; n < 10000; n++) {
        memory_fault fault = {.left = n};
        tare_context_options options;
        tare_context_options_init(&options);
        options.allow_allocation = allow;
        options.user = &fault;
        tare_context *ctx;
        assert_int_equal(tare_context_create(&ctx, &options), TARE_OK);
        tare_status status = work(ctx, f);
        assert_int_equal(tare_memory_used(ctx), 0);
        assert_int_equal(status, fault.hit ? TARE_E_MEMORY : TARE_OK);
        tare_context_free(ctx);
        if (!fault.hit)
            return;
    }
    fail_msg("does not end");
}

#define TEST(function) cmocka_unit_test_setup_teardown(function, setup, teardown)

#endif
