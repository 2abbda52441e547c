/* A folder that all tests of a group share, below /tmp: group fixtures of cmocka. */
#ifndef TARE_TESTS_FOLDER_FIXTURE_H
#define TARE_TESTS_FOLDER_FIXTURE_H

#include "fixture.h"

static char folder[64];

static int make_folder(void **state)
{
    (void)state;
    snprintf(folder, sizeof folder, "%s", temporary_folder());
    return 0;
}

static int remove_all(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    assert_ok(ctx, folder_remove(ctx, folder));
    free_context(ctx);
    return 0;
}

#endif
