/* base/carver: what is added up is what is handed out; alignment; products and sums that overflow.
 */
#include "fixture.h"

#include "base/carver.h"

typedef struct parts {
    size_t n, extra;
    char *bytes;
    double *numbers;
    uint16_t *halves;
} parts;

static void lay_out(carver *c, void *component)
{
    parts *p = component;
    p->bytes = carve(c, p->n, 1);
    p->numbers = carve(c, p->n, sizeof *p->numbers);
    p->halves = p->extra ? carve(c, p->extra, sizeof *p->halves) : NULL;
}

/* 3 bytes, 3 doubles and 40 halves: 64, 64 and 128 bytes, and 64 of the block's head. */
static void test_adds_up_what_it_hands_out(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    parts p = {.n = 3, .extra = 40};
    assert_int_equal(carver_bytes(lay_out, &p), 64 + 64 + 64 + 128);
    assert_null(p.bytes);
    assert_null(p.halves);
    assert_ok(ctx, carver_alloc(ctx, lay_out, &p));
    assert_int_equal(tare_memory_used(ctx), 64 + 64 + 64 + 128);
    assert_ptr_equal(p.numbers, p.bytes + 64);
    assert_ptr_equal(p.halves, p.bytes + 128);
    assert_int_equal((uintptr_t)p.bytes % 64, 0);
    memset(p.bytes, 1, 3);
    memset(p.numbers, 2, 3 * sizeof *p.numbers);
    memset(p.halves, 3, 40 * sizeof *p.halves);
    assert_true(p.bytes[2] == 1 && ((char *)p.numbers)[23] == 2);
    mem_free(ctx, p.bytes);
    /* Of whole units there is none to fill up; without `extra` nothing is taken for it. */
    p = (parts){.n = 64};
    assert_int_equal(carver_bytes(lay_out, &p), 64 + 64 + 512);
    p = (parts){0};
    assert_int_equal(carver_bytes(lay_out, &p), 64);
    assert_ok(ctx, carver_alloc(ctx, lay_out, &p));
    assert_non_null(p.bytes);
    mem_free(ctx, p.bytes);
    free_context(ctx);
}

static void test_overflow(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    /* A product; a filling up; a sum of arrays each of which fits. */
    const parts wrong[] = {{.n = SIZE_MAX / 4},
                           {.n = 1, .extra = SIZE_MAX / 2},
                           {.n = SIZE_MAX / 16 + 1, .extra = SIZE_MAX / 4}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        parts p = wrong[i];
        p.numbers = (void *)&p;
        assert_int_equal(carver_bytes(lay_out, &p), MEM_ABSURD);
        assert_fails(ctx, carver_alloc(ctx, lay_out, &p), TARE_E_MEMORY, "out of memory");
        assert_null(p.numbers);
    }
    assert_int_equal(tare_memory_used(ctx), 0);
    free_context(ctx);
}

static bool refuse(void *user, size_t bytes)
{
    (void)user;
    (void)bytes;
    return false;
}

static void test_refused(void **state)
{
    (void)state;
    tare_context *ctx;
    tare_context_options o;
    init_options(&o);
    o.allow_allocation = refuse;
    assert_int_equal(tare_context_create(&ctx, &o), TARE_OK);
    parts p = {.n = 3, .bytes = (char *)&p};
    assert_fails(ctx, carver_alloc(ctx, lay_out, &p), TARE_E_MEMORY, "refused");
    assert_null(p.bytes);
    free_context(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_adds_up_what_it_hands_out),
        cmocka_unit_test(test_overflow),
        cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
