/* Items read ahead and written behind: their order, the bounds of both, failure, and the end. */
#include "fixture.h"

#include <unistd.h>

#include "base/read_ahead.h"

enum { ITEMS = 200, NONE = ITEMS };

typedef struct recorder {
    tare_context *ctx;
    read_ahead_work work;
    read_ahead *items;
    size_t slots[READ_AHEAD_SLOTS]; /* what lies there: an item; NONE: nothing */
    atomic_size_t reads, taken, given, writes;
    atomic_size_t running, most_running; /* reads */
    atomic_bool slow_read, slow_write;
    size_t bad_read, bad_write; /* these items fail; NONE: none does */
    size_t order[ITEMS];        /* in which items were written */
    atomic_bool wrong; /* a slot was filled before it was free, or early; or it held another item */
} recorder;

static tare_status read_one(void *user, size_t index, size_t slot)
{
    recorder *r = user;
    size_t running = atomic_fetch_add(&r->running, 1) + 1;
    if (running > atomic_load(&r->most_running))
        atomic_store(&r->most_running, running);
    while (atomic_load(&r->slow_read))
        usleep(100);
    if (index % 16 == 0)
        usleep(200);
    if (index > atomic_load(&r->taken) + r->work.ahead || r->slots[slot] != NONE)
        atomic_store(&r->wrong, true);
    r->slots[slot] = index;
    atomic_fetch_add(&r->reads, 1);
    atomic_fetch_sub(&r->running, 1);
    if (index == r->bad_read)
        return TARE_FAIL(r->ctx, TARE_E_IO, "item %zu cannot be read", index);
    return TARE_OK;
}

static tare_status write_one(void *user, size_t index, size_t slot)
{
    recorder *r = user;
    while (atomic_load(&r->slow_write))
        usleep(100);
    if (index % 32 == 1)
        usleep(300);
    if (r->slots[slot] != index)
        atomic_store(&r->wrong, true);
    r->slots[slot] = NONE;
    r->order[atomic_fetch_add(&r->writes, 1)] = index;
    if (index == r->bad_write)
        return TARE_FAIL(r->ctx, TARE_E_IO, "item %zu cannot be written", index);
    return TARE_OK;
}

static recorder recorder_of(tare_context *ctx, read_ahead_work work)
{
    recorder r = {.ctx = ctx, .work = work, .bad_read = NONE, .bad_write = NONE};
    for (size_t i = 0; i < READ_AHEAD_SLOTS; i++)
        r.slots[i] = NONE;
    r.work.read = read_one;
    return r;
}

static void start(recorder *r)
{
    r->work.user = r;
    assert_ok(r->ctx, read_ahead_start(r->ctx, &r->work, &r->items));
}

static tare_status take_and_give(recorder *r, size_t index)
{
    size_t slot;
    tare_status status = read_ahead_take(r->items, index, &slot);
    if (status != TARE_OK)
        return status;
    assert_int_equal(r->slots[slot], index);
    atomic_store(&r->taken, index + 1);
    if (r->work.write)
        return read_ahead_give(r->items, index);
    r->slots[slot] = NONE;
    return TARE_OK;
}

static tare_status pass(recorder *r, size_t first)
{
    atomic_store(&r->taken, first);
    for (size_t i = first; i < r->work.count; i++) {
        tare_status status = take_and_give(r, i);
        if (status != TARE_OK)
            return status;
    }
    return read_ahead_wait(r->items);
}

static const read_ahead_work WORKS[] = {
    {.count = ITEMS, .readers = 2, .ahead = 3, .behind = 2, .write = write_one},
    {.count = ITEMS, .readers = 1, .ahead = 1, .behind = 1, .write = write_one},
    {.count = ITEMS, .readers = 1, .ahead = 1, .write = write_one},
    {.count = ITEMS, .readers = 2, .ahead = 2},
    {.count = ITEMS, .readers = 1, .ahead = 1},
    {.count = ITEMS, .write = write_one}, /* in turn */
    {.count = ITEMS},
    {.count = 1, .readers = 2, .ahead = 3, .behind = 2, .write = write_one},
    {.count = 0, .readers = 2, .ahead = 3, .behind = 2, .write = write_one},
};
enum { NUM_WORKS = sizeof WORKS / sizeof *WORKS };

/* Twice over: behind the last item it may begin again. */
static void test_order(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    for (size_t i = 0; i < NUM_WORKS; i++) {
        recorder r = recorder_of(ctx, WORKS[i]);
        size_t count = r.work.count;
        start(&r);
        for (size_t times = 1; times <= 2; times++) {
            atomic_store(&r.writes, 0);
            assert_ok(ctx, pass(&r, 0));
            assert_int_equal(atomic_load(&r.reads), times * count);
            assert_int_equal(atomic_load(&r.writes), r.work.write ? count : 0);
            for (size_t j = 0; j < atomic_load(&r.writes); j++)
                assert_int_equal(r.order[j], j);
        }
        assert_false(atomic_load(&r.wrong));
        assert_true(atomic_load(&r.most_running) <= size_max(r.work.readers, 1));
        read_ahead_stop(r.items);
    }
    read_ahead_stop(NULL);
    free_context(ctx);
}

static void test_from_the_middle(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    for (size_t i = 0; i < NUM_WORKS - 2; i++) {
        recorder r = recorder_of(ctx, WORKS[i]);
        start(&r);
        assert_ok(ctx, pass(&r, ITEMS - 7));
        assert_int_equal(atomic_load(&r.reads), 7);
        assert_int_equal(atomic_load(&r.writes), r.work.write ? 7 : 0);
        read_ahead_stop(r.items);
    }
    free_context(ctx);
}

/* Three items are read beside the one that was taken, and no more. */
static void test_reads_ahead(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    recorder r = recorder_of(ctx, WORKS[0]);
    start(&r);
    usleep(2000);
    assert_int_equal(atomic_load(&r.reads), 0);
    assert_ok(ctx, take_and_give(&r, 0));
    while (atomic_load(&r.reads) < 4)
        usleep(100);
    usleep(5000);
    assert_int_equal(atomic_load(&r.reads), 4);
    read_ahead_stop(r.items);
    free_context(ctx);
}

/* Nobody waits for two items that are not written yet; the third one would need their room. */
static void test_writes_behind(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    recorder r = recorder_of(ctx, WORKS[0]);
    atomic_store(&r.slow_write, true);
    start(&r);
    for (size_t i = 0; i < 3; i++)
        assert_ok(ctx, take_and_give(&r, i));
    assert_int_equal(atomic_load(&r.writes), 0);
    atomic_store(&r.slow_write, false);
    assert_ok(ctx, take_and_give(&r, 3));
    assert_true(atomic_load(&r.writes) >= 1);
    assert_ok(ctx, read_ahead_wait(r.items));
    assert_int_equal(atomic_load(&r.writes), 4);
    read_ahead_stop(r.items);
    free_context(ctx);
}

/* What the owner failed with stands, until it asks; items before the bad one come through. */
static void test_a_failed_read(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    for (size_t i = 0; i < NUM_WORKS - 2; i++) {
        recorder r = recorder_of(ctx, WORKS[i]);
        r.bad_read = 5;
        start(&r);
        for (size_t j = 0; j < 5; j++)
            assert_ok(ctx, take_and_give(&r, j));
        usleep(5000); /* it has failed by now */
        TARE_FAIL(ctx, TARE_E_DATA, "the cause");
        assert_string_equal(tare_last_error(ctx), "the cause");
        assert_fails(ctx, take_and_give(&r, 5), TARE_E_IO, "item 5 cannot be read");
        TARE_WRAP(ctx, TARE_E_IO, "layer 3");
        read_ahead_stop(r.items);
        assert_string_equal(tare_last_error(ctx), "layer 3: item 5 cannot be read");
        /* A reader that is slow to fail lets others read on, but never beyond what is ahead. */
        assert_true(atomic_load(&r.reads) <= 5 + size_max(r.work.ahead, 1));
    }
    free_context(ctx);
}

static void test_a_failed_write(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    for (size_t i = 0; i < NUM_WORKS - 2; i++) {
        recorder r = recorder_of(ctx, WORKS[i]);
        if (!r.work.write)
            continue;
        r.bad_write = 5;
        start(&r);
        assert_fails(ctx, pass(&r, 0), TARE_E_IO, "item 5 cannot be written");
        if (r.work.readers > 0)
            assert_fails(ctx, read_ahead_wait(r.items), TARE_E_IO, "item 5 cannot be written");
        read_ahead_stop(r.items);
        assert_int_equal(atomic_load(&r.writes), 6);
    }
    free_context(ctx);
}

static void *end_slowness(void *argument)
{
    recorder *r = argument;
    usleep(3000);
    atomic_store(&r->slow_read, false);
    return NULL;
}

/* Returns once the read at work has ended, and begins no other one. */
static void test_stop_while_reading(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    pthread_t thread;
    recorder r = recorder_of(ctx, WORKS[1]);
    start(&r);
    assert_ok(ctx, take_and_give(&r, 0));
    while (atomic_load(&r.reads) < 2)
        usleep(100);
    atomic_store(&r.slow_read, true);
    assert_ok(ctx, take_and_give(&r, 1));
    while (atomic_load(&r.running) == 0)
        usleep(100);
    assert_int_equal(pthread_create(&thread, NULL, end_slowness, &r), 0);
    read_ahead_stop(r.items);
    assert_int_equal(atomic_load(&r.running), 0);
    assert_int_equal(atomic_load(&r.reads), 3);
    pthread_join(thread, NULL);
    free_context(ctx);
}

static void test_cancelled(void **state)
{
    (void)state;
    for (size_t i = 0; i < NUM_WORKS - 2; i++) {
        tare_context *ctx = new_context(1);
        recorder r = recorder_of(ctx, WORKS[i]);
        start(&r);
        assert_ok(ctx, take_and_give(&r, 0));
        tare_cancel(ctx);
        assert_int_equal(take_and_give(&r, 1), TARE_E_CANCELLED);
        read_ahead_stop(r.items);
        free_context(ctx);
    }
}

static tare_status start_and_stop(tare_context *ctx, void *user)
{
    (void)user;
    read_ahead *r;
    tare_status status = read_ahead_start(ctx, &WORKS[0], &r);
    assert_true(tare_memory_used(ctx) <= read_ahead_bytes());
    read_ahead_stop(r);
    return status;
}

static void test_out_of_memory(void **state)
{
    (void)state;
    each_allocation_fails(start_and_stop, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_order),
                                       cmocka_unit_test(test_from_the_middle),
                                       cmocka_unit_test(test_reads_ahead),
                                       cmocka_unit_test(test_writes_behind),
                                       cmocka_unit_test(test_a_failed_read),
                                       cmocka_unit_test(test_a_failed_write),
                                       cmocka_unit_test(test_stop_while_reading),
                                       cmocka_unit_test(test_cancelled),
                                       cmocka_unit_test(test_out_of_memory)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
