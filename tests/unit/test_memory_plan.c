/* The choice of a layout before a pass, with estimates that the test makes up. */
#include "fixture.h"
#include "pipeline/memory_plan.h"

static size_t asked, fits_from;
static run_layout seen[16];

/* In place of the library's own. */
void __wrap_run_hold(ledger *l, const run_pass *only);
void __wrap_run_hold(ledger *l, const run_pass *only)
{
    (void)only;
    assert_true(asked < sizeof seen / sizeof *seen);
    seen[asked++] = l->plan->layout;
    l->peak = (memory_peak){.total = asked >= fits_from ? 1 : 1000};
}

static run_layout choose(bool exist, run_layout planned, size_t fits)
{
    tare_context *ctx = new_context(1);
    tare_quantize_options options;
    tare_model model = {0}; /* of blocks that cannot be cut */
    tare_quantize_options_init(&options);
    run_env env = {.ctx = ctx, .goal = GOAL_OUTPUT, .options = &options, .model = &model};
    run_plan plan = {.env = &env};
    const memory_plan memory = {.layout = planned, .peak.total = 100};
    env.samples.longest = 10;
    asked = 0;
    fits_from = fits;
    memory_plan_pass(&plan, &memory, PASS_QUANTIZE, exist);
    free_context(ctx);
    return plan.layout;
}

/* The plan found a layout that fits; if by the estimate of the pass none does, that one stays. */
static void test_estimates_that_differ(void **state)
{
    (void)state;
    for (int exist = 0; exist < 2; exist++) {
        for (int spill = 0; spill < 2; spill++) {
            run_layout planned = {.batch_rows = 10, .spill = spill};
            run_layout l = choose(exist, planned, 100);
            assert_int_equal(l.spill, spill);
            assert_false(l.overlap);
            /* with overlap, without; spilled too where nothing exists yet */
            assert_int_equal(asked, exist ? 2 : 3);
            for (size_t i = 0; exist && i < asked; i++)
                assert_int_equal(seen[i].spill, spill);
        }
    }
}

static void test_the_first_that_fits(void **state)
{
    (void)state;
    run_layout l = choose(true, (run_layout){.batch_rows = 10, .spill = true}, 2);
    assert_true(l.spill && !l.overlap && l.batch_rows == 10);
    l = choose(false, (run_layout){.batch_rows = 10}, 1);
    assert_true(!l.spill && l.overlap);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_estimates_that_differ),
        cmocka_unit_test(test_the_first_that_fits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
