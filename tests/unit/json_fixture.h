/* What the JSON and YAML tests share: a context with an arena, parsing into it, failing
 * allocations. */
#ifndef TARE_TESTS_JSON_FIXTURE_H
#define TARE_TESTS_JSON_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "file/json.h"

typedef struct fixture {
    tare_context *ctx;
    arena arena;
    const value *root;
} fixture;

static inline int setup(void **state)
{
    fixture *f = calloc(1, sizeof(*f));
    assert_non_null(f);
    assert_int_equal(tare_context_create(&f->ctx, NULL), TARE_OK);
    arena_init(&f->arena, f->ctx);
    *state = f;
    return 0;
}

static inline int teardown(void **state)
{
    fixture *f = *state;
    arena_free(&f->arena);
    assert_int_equal(tare_memory_used(f->ctx), 0);
    tare_context_free(f->ctx);
    free(f);
    return 0;
}

/* Parses from a heap block of exactly `length` bytes, so that sanitizers see any read past it. */
static inline tare_status parse_bytes(fixture *f, const char *text, size_t length,
                                      json_dialect dialect)
{
    char *copy = malloc(length ? length : 1);
    assert_non_null(copy);
    memcpy(copy, text, length);
    tare_status status = json_parse(f->ctx, &f->arena, copy, length, "test.json", dialect,
                                    &f->root);
    free(copy);
    return status;
}

static inline const value *parse(fixture *f, const char *text)
{
    if (parse_bytes(f, text, strlen(text), JSON_STRICT) != TARE_OK)
        fail_msg("%s refused: %s", text, tare_last_error(f->ctx));
    return f->root;
}

static inline void assert_refused(fixture *f, const char *text, size_t length, json_dialect dialect)
{
    if (parse_bytes(f, text, length, dialect) != TARE_E_FORMAT)
        fail_msg("accepted: %s", text);
    assert_null(f->root);
}

static inline void assert_text(const value *v, const char *text, size_t length)
{
    assert_non_null(v);
    assert_int_equal(v->length, length);
    assert_memory_equal(v->text, text, length + 1);
}

typedef struct memory_fault {
    size_t left; /* allocations that still succeed */
    bool hit;
} memory_fault;

static inline bool allow(void *user, size_t bytes)
{
    memory_fault *f = user;
    (void)bytes;
    if (f->left == 0)
        f->hit = true;
    else
        f->left--;
    return !f->hit;
}

/* A context that asks `fault` before each allocation. */
static inline tare_context *fault_context(memory_fault *fault)
{
    tare_context_options options;
    tare_context_options_init(&options);
    options.allow_allocation = allow;
    options.user = fault;
    tare_context *ctx;
    assert_int_equal(tare_context_create(&ctx, &options), TARE_OK);
    return ctx;
}

#define TEST(function) cmocka_unit_test_setup_teardown(function, setup, teardown)

#endif
