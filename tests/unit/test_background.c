/* Jobs of a background thread: their order, the bound of the queue, failure, and the end. */
#include "fixture.h"

#include <unistd.h>

#include "base/background.h"

enum { JOBS = 200, DEPTH = 3 };

typedef struct recorder {
    tare_context *ctx;
    atomic_int running, most_running;
    int order[JOBS];
    atomic_size_t done;
    int fail_at; /* this job fails; -1: none */
} recorder;

typedef struct job {
    recorder *r;
    int number;
} job;

static tare_status record(void *user)
{
    job *j = user;
    recorder *r = j->r;
    int running = atomic_fetch_add(&r->running, 1) + 1;
    if (running > atomic_load(&r->most_running))
        atomic_store(&r->most_running, running);
    if (j->number % 16 == 0)
        usleep(200);
    r->order[atomic_load(&r->done)] = j->number;
    atomic_fetch_add(&r->done, 1);
    atomic_fetch_sub(&r->running, 1);
    if (j->number == r->fail_at)
        return TARE_FAIL(r->ctx, TARE_E_IO, "job %d failed", j->number);
    return TARE_OK;
}

/* What the owner failed with stands, until it asks the thread. */
static void test_errors_wait_until_asked(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    recorder r = {.ctx = ctx, .fail_at = 0};
    job one = {&r, 0};
    uint64_t ticket;
    background *b;
    assert_ok(ctx, background_create(ctx, DEPTH, &b));
    TARE_FAIL(ctx, TARE_E_DATA, "the cause");
    assert_ok(ctx, background_submit(b, record, &one, &ticket));
    while (atomic_load(&r.done) == 0)
        usleep(100);
    usleep(20000); /* and it has failed */
    assert_string_equal(tare_last_error(ctx), "the cause");
    assert_int_equal(background_wait(b, ticket), TARE_E_IO);
    assert_string_equal(tare_last_error(ctx), "job 0 failed");
    TARE_WRAP(ctx, TARE_E_IO, "layer 3");
    background_free(b);
    assert_string_equal(tare_last_error(ctx), "layer 3: job 0 failed");
    free_context(ctx);
}

static void test_order_and_tickets(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    recorder r = {.ctx = ctx, .fail_at = -1};
    job jobs[JOBS];
    uint64_t tickets[JOBS];
    background *b;
    assert_ok(ctx, background_create(ctx, DEPTH, &b));
    assert_ok(ctx, background_wait(b, 0));
    for (int i = 0; i < JOBS; i++) {
        jobs[i] = (job){&r, i};
        assert_ok(ctx, background_submit(b, record, &jobs[i], &tickets[i]));
        /* the one at work, and those that wait */
        assert_true(atomic_load(&r.done) + DEPTH + 1 >= (size_t)i);
    }
    assert_ok(ctx, background_wait(b, tickets[JOBS / 2]));
    assert_true(atomic_load(&r.done) > JOBS / 2);
    assert_ok(ctx, background_wait(b, tickets[JOBS - 1]));
    assert_int_equal(atomic_load(&r.done), JOBS);
    assert_int_equal(atomic_load(&r.most_running), 1);
    for (int i = 0; i < JOBS; i++)
        assert_int_equal(r.order[i], i);
    background_free(b);
    free_context(ctx);
}

static void test_failure_stops_the_rest(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    recorder r = {.ctx = ctx, .fail_at = 5};
    job jobs[JOBS];
    background *b;
    tare_status status = TARE_OK;
    uint64_t last = 0;
    assert_ok(ctx, background_create(ctx, DEPTH, &b));
    for (int i = 0; i < JOBS && status == TARE_OK; i++) {
        jobs[i] = (job){&r, i};
        status = background_submit(b, record, &jobs[i], &last);
    }
    assert_fails(ctx, background_wait(b, last), TARE_E_IO, "job 5 failed");
    assert_int_equal(background_submit(b, record, &jobs[0], NULL), TARE_E_IO);
    background_free(b);
    assert_int_equal(atomic_load(&r.done), 6);
    free_context(ctx);
}

static void test_free_drops_what_waits(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    recorder r = {.ctx = ctx, .fail_at = -1};
    job jobs[DEPTH];
    background *b;
    assert_ok(ctx, background_create(ctx, DEPTH, &b));
    for (int i = 0; i < DEPTH; i++) {
        jobs[i] = (job){&r, i * 16};
        assert_ok(ctx, background_submit(b, record, &jobs[i], NULL));
    }
    background_free(b);
    assert_int_equal(atomic_load(&r.running), 0);
    background_free(NULL);
    free_context(ctx);
}

static tare_status create(tare_context *ctx, void *user)
{
    (void)user;
    background *b;
    tare_status status = background_create(ctx, DEPTH, &b);
    background_free(b);
    return status;
}

static void test_out_of_memory(void **state)
{
    (void)state;
    each_allocation_fails(create, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_errors_wait_until_asked), cmocka_unit_test(test_order_and_tickets),
        cmocka_unit_test(test_failure_stops_the_rest), cmocka_unit_test(test_free_drops_what_waits),
        cmocka_unit_test(test_out_of_memory)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
