/* What all unit tests share: contexts that must end without a leak, statuses with their messages,
 * failing allocations, small files in a temporary folder. */
#ifndef TARE_TESTS_FIXTURE_H
#define TARE_TESTS_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "file/io.h"

/* Allocations that still succeed; below zero: all do. Asked by any thread. */
typedef struct fault {
    atomic_long left;
    atomic_bool hit;
} fault;

static inline bool fault_allow(void *user, size_t bytes)
{
    fault *f = user;
    (void)bytes;
    if (atomic_load(&f->left) < 0)
        return true;
    if (atomic_fetch_sub(&f->left, 1) > 0)
        return true;
    atomic_store(&f->left, 0); /* from here on every one fails */
    atomic_store(&f->hit, true);
    return false;
}

/* The kernels that this run of the tests is about (tests/instruction_sets.py): TARE_TEST_CPU names
 * them; AUTO without it. The library itself never looks at the environment. */
static inline tare_cpu tested_cpu(void)
{
    static const char *const names[] = {"auto", "scalar", "avx2", "avx512", "amx"};
    const char *wanted = getenv("TARE_TEST_CPU");
    for (int i = 0; wanted && i < 5; i++)
        if (strcmp(wanted, names[i]) == 0)
            return (tare_cpu)i;
    if (wanted)
        fail_msg("TARE_TEST_CPU=%s is none of auto, scalar, avx2, avx512, amx", wanted);
    return TARE_CPU_AUTO;
}

/* The defaults of a context under test. */
static inline void init_options(tare_context_options *options)
{
    tare_context_options_init(options);
    options->cpu = tested_cpu();
}

static inline tare_context *new_context(int threads)
{
    tare_context *ctx;
    tare_context_options options;
    init_options(&options);
    options.threads = threads;
    assert_int_equal(tare_context_create(&ctx, &options), TARE_OK);
    return ctx;
}

/* Every block must be back. */
static inline void free_context(tare_context *ctx)
{
    assert_int_equal(tare_memory_used(ctx), 0);
    tare_context_free(ctx);
}

static inline void assert_ok(const tare_context *ctx, tare_status status)
{
    if (status != TARE_OK)
        fail_msg("status %d: %s", (int)status, tare_last_error(ctx));
}

/* `status` is as expected, and its message holds `part`. */
static inline void assert_fails(const tare_context *ctx, tare_status status, tare_status expected,
                                const char *part)
{
    if (status != expected || !strstr(tare_last_error(ctx), part))
        fail_msg("status %d, message \"%s\": expected %d and \"%s\"", (int)status,
                 tare_last_error(ctx), (int)expected, part);
}

/* Runs `work` with the first, second, third … allocation failing until it succeeds: each time it
 * must fail with TARE_E_MEMORY and leave nothing allocated. */
static inline void each_allocation_fails(tare_status (*work)(tare_context *ctx, void *user),
                                         void *user)
{
    for (long n = 0;; n++) {
        fault f = {.left = n};
        tare_context_options options;
        init_options(&options);
        options.threads = 1;
        options.allow_allocation = fault_allow;
        options.user = &f;
        tare_context *ctx;
        assert_int_equal(tare_context_create(&ctx, &options), TARE_OK);
        tare_status status = work(ctx, user);
        if (f.hit && status != TARE_E_MEMORY)
            fail_msg("allocation %ld failed: status %d: %s", n, (int)status, tare_last_error(ctx));
        if (!f.hit)
            assert_ok(ctx, status);
        free_context(ctx);
        if (!f.hit)
            return;
        assert_true(n < 1000000);
    }
}

/* A new folder below /tmp, removed by remove_folder. */
static inline const char *temporary_folder(void)
{
    static char path[64];
    snprintf(path, sizeof path, "/tmp/tare-test-XXXXXX");
    assert_non_null(mkdtemp(path));
    return path;
}

static inline void write_file(const char *folder, const char *name, const void *data, size_t size)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, size, f), size);
    assert_int_equal(fclose(f), 0);
}

static inline void write_text(const char *folder, const char *name, const char *text)
{
    write_file(folder, name, text, strlen(text));
}

#endif
