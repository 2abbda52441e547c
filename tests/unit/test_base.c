/* base/: accounted memory, arenas, buffers, maps, patterns, nearness, UTF-8, errors, threads. */
#include "fixture.h"

#include <stdint.h>

#include "base/parallel.h"
#include "base/strings.h"

static void test_memory_is_accounted(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    void *small = mem_alloc(ctx, 100), *large = mem_alloc(ctx, 1 << 20);
    assert_int_equal((uintptr_t)small % 64, 0);
    assert_int_equal((uintptr_t)large % 64, 0);
    /* 100 + a head of 64 in units of 64; 1 MiB + 64. */
    assert_int_equal(tare_memory_used(ctx), 192 + (1 << 20) + 64);
    mem_free(ctx, large);
    assert_int_equal(tare_memory_used(ctx), 192);
    assert_int_equal(tare_memory_peak(ctx), 192 + (1 << 20) + 64);
    memset(small, 7, 100);
    small = mem_realloc(ctx, small, 1 << 20);
    for (size_t i = 0; i < 100; i++)
        assert_int_equal(((char *)small)[i], 7);
    mem_free(ctx, small);
    mem_free(ctx, NULL);
    mem_free(ctx, mem_alloc(ctx, 0));
    free_context(ctx);
}

static void test_memory_refuses(void **state)
{
    (void)state;
    tare_context *ctx;
    tare_context_options o;
    init_options(&o);
    o.memory_limit = 1 << 20;
    assert_int_equal(tare_context_create(&ctx, &o), TARE_OK);
    assert_null(mem_alloc(ctx, 1 << 20));
    assert_non_null(strstr(tare_last_error(ctx), "budget of 1 MiB"));
    assert_null(mem_alloc(ctx, SIZE_MAX - 1));
    assert_null(mem_alloc_array(ctx, SIZE_MAX / 2, 3));
    assert_null(mem_calloc(ctx, SIZE_MAX / 2, 3));
    assert_int_equal(tare_memory_used(ctx), 0);
    void *p = mem_calloc(ctx, 3, 5);
    for (int i = 0; i < 15; i++)
        assert_int_equal(((char *)p)[i], 0);
    mem_free(ctx, p);
    free_context(ctx);
}

/* Freed blocks wait, counted, for their size; beyond the limit all go. */
static void test_blocks_wait(void **state)
{
    enum { SIZE = 2 << 20 };
    tare_context *ctx = new_context(1);
    size_t before = tare_memory_used(ctx), one;
    (void)state;
    mem_keep_blocks(ctx, before + 3 * SIZE);
    uint8_t *p = mem_alloc(ctx, SIZE);
    one = tare_memory_used(ctx) - before;
    memset(p, 7, SIZE);
    mem_free(ctx, p);
    assert_int_equal(tare_memory_used(ctx), before + one);
    uint8_t *again = mem_calloc(ctx, 1, SIZE);
    assert_ptr_equal(again, p);
    assert_int_equal(again[0] | again[SIZE - 1], 0);
    mem_free(ctx, again);
    void *other = mem_alloc(ctx, SIZE / 2 * 3); /* another size: beside it, there is room */
    assert_true(tare_memory_used(ctx) > before + SIZE / 2 * 5);
    mem_free(ctx, mem_alloc(ctx, SIZE));           /* the waiting one */
    void *third = mem_alloc(ctx, SIZE + 4096 * 8); /* too much with it */
    assert_in_range(tare_memory_used(ctx), before + SIZE / 2 * 5, before + 3 * SIZE);
    mem_free(ctx, other);
    mem_free(ctx, third);
    mem_keep_blocks(ctx, 0);
    assert_int_equal(tare_memory_used(ctx), before);
    for (int i = 0; i < 40; i++) { /* more sizes than places */
        mem_keep_blocks(ctx, SIZE_MAX);
        mem_free(ctx, mem_alloc(ctx, SIZE + (size_t)i * 4096));
    }
    mem_keep_blocks(ctx, 0);
    assert_int_equal(tare_memory_used(ctx), before);
    free_context(ctx);
}

static void test_arena(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    arena a;
    arena_init(&a, ctx);
    for (size_t i = 1; i < 2000; i++) {
        char *p = arena_alloc(&a, i * 7 % 40000);
        assert_int_equal((uintptr_t)p % 64, 0);
        memset(p, (int)i, i * 7 % 40000);
    }
    assert_string_equal(arena_printf(&a, "%s.%d", "layer", 12), "layer.12");
    assert_string_equal(arena_strndup(&a, "abcdef", 3), "abc");
    assert_null(arena_alloc_array(&a, SIZE_MAX, 2));
    arena_free(&a);
    free_context(ctx);
}

static void test_buffer(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    buffer b;
    buffer_init(&b, ctx);
    buffer_puts(&b, "ab");
    buffer_putc(&b, 'c');
    buffer_printf(&b, "%d-%s", 5, "x");
    buffer_append(&b, "\0y", 2);
    assert_int_equal(b.status, TARE_OK);
    assert_int_equal(b.length, 8);
    assert_memory_equal(b.data, "abc5-x\0y", 9);
    buffer_free(&b);
    free_context(ctx);
}

static void test_strmap(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    static char keys[5000][8];
    strmap m;
    bool existed;
    uint32_t value;
    strmap_init(&m, ctx);
    assert_false(strmap_get(&m, "x", 1, &value));
    for (uint32_t i = 0; i < 5000; i++) {
        snprintf(keys[i], sizeof keys[i], "k%u", i);
        assert_int_equal(strmap_put(&m, keys[i], strlen(keys[i]), i, &existed), TARE_OK);
        assert_false(existed);
    }
    assert_int_equal(strmap_put(&m, "k17", 3, 99, &existed), TARE_OK);
    assert_true(existed);
    for (uint32_t i = 0; i < 5000; i++) {
        assert_true(strmap_get(&m, keys[i], strlen(keys[i]), &value));
        assert_int_equal(value, i);
    }
    assert_false(strmap_get(&m, "k5000", 5, &value));
    assert_false(strmap_get(&m, "k17", 2, NULL) && !strmap_get(&m, "k1", 2, NULL));
    assert_int_equal(m.count, 5000);
    strmap_free(&m);
    free_context(ctx);
}

/* Expected results: Python's fnmatch.fnmatchcase. */
static void test_patterns(void **state)
{
    (void)state;
    static const struct {
        const char *pattern, *text;
        bool match;
    } cases[] = {
        {"*", "", true},
        {"", "", true},
        {"", "a", false},
        {"a*b*c", "aXbYbZc", true},
        {"a*b*c", "aXbYbZ", false},
        {"?", "", false},
        {"?b", "ab", true},
        {"[abc]", "b", true},
        {"[!abc]", "b", false},
        {"[!abc]", "d", true},
        {"[a-c]x", "bx", true},
        {"[a-c]x", "dx", false},
        {"[]]", "]", true},
        {"[!]]", "]", false},
        {"[", "[", true},
        {"a[", "a[", true},
        {"[a-", "[a-", true},
        {"[-a]", "-", true},
        {"**", "abc", true},
        {"a", "A", false},
        {"*.down_proj", "model.layers.3.mlp.down_proj", true},
        {"model.layers.[0-3].*", "model.layers.2.mlp.up_proj", true},
        {"model.layers.[0-3].*", "model.layers.21.mlp.up_proj", false},
        {"*a*a*a*a*a*a*a*b", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (pattern_match(cases[i].pattern, cases[i].text) != cases[i].match)
            fail_msg("%s against %s: expected %d", cases[i].pattern, cases[i].text, cases[i].match);
    }
    assert_true(pattern_has_wildcard("a?"));
    assert_false(pattern_has_wildcard("a.b"));
}

static void test_nearest_names(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    static const char *const names[] = {"up_proj", "down_proj", "q_proj", "k_proj"};
    assert_int_equal(edit_distance("kitten", "sitting"), 3);
    assert_int_equal(edit_distance("", "abc"), 3);
    buffer b;
    buffer_init(&b, ctx);
    nearest_names(&b, "qq_proj", names, 4, 2);
    assert_string_equal(b.data, "q_proj, up_proj");
    buffer_free(&b);
    free_context(ctx);
}

static void test_utf8(void **state)
{
    (void)state;
    static const char *const good[] = {"",
                                       "abc",
                                       "\xc2\x80",
                                       "\xe0\xa0\x80",
                                       "\xed\x9f\xbf",
                                       "\xf0\x90\x80\x80",
                                       "\xf4\x8f\xbf\xbf"};
    static const char *const bad[] = {"\x80",         "\xc1\x80",         "\xe0\x9f\x80",
                                      "\xed\xa0\x80", "\xf0\x8f\x80\x80", "\xf4\x90\x80\x80",
                                      "\xc2",         "\xe2\x82",         "\xf5\x80\x80\x80",
                                      "\xff"};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        assert_true(utf8_valid(good[i], strlen(good[i])));
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_false(utf8_valid(bad[i], strlen(bad[i])));
    assert_true(utf8_valid("a\0b", 3));
}

static void test_errors_gain_context(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    assert_string_equal(tare_last_error(ctx), "");
    tare_status status = TARE_FAIL(ctx, TARE_E_FORMAT, "byte %d is odd\n", 7);
    status = TARE_WRAP(ctx, status, "file %s", "x");
    assert_int_equal(status, TARE_E_FORMAT);
    assert_string_equal(tare_last_error(ctx), "file x: byte 7 is odd?");
    assert_int_equal(TARE_WRAP(ctx, TARE_OK, "nothing"), TARE_OK);
    assert_int_equal(context_check_cancelled(ctx), TARE_OK);
    tare_cancel(ctx);
    assert_int_equal(context_check_cancelled(ctx), TARE_E_CANCELLED);
    free_context(ctx);
}

static void count_once(void *user, size_t index, int thread)
{
    assert_true(thread >= 0 && thread < 3);
    ((int *)user)[index]++;
}

static void test_parallel_for(void **state)
{
    (void)state;
    tare_context *ctx = new_context(3);
    int counts[100] = {0};
    parallel_for(ctx, 100, count_once, counts);
    parallel_for(ctx, 0, count_once, counts);
    for (int i = 0; i < 100; i++)
        assert_int_equal(counts[i], 1);
    free_context(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_memory_is_accounted),
                                       cmocka_unit_test(test_memory_refuses),
                                       cmocka_unit_test(test_blocks_wait),
                                       cmocka_unit_test(test_arena),
                                       cmocka_unit_test(test_buffer),
                                       cmocka_unit_test(test_strmap),
                                       cmocka_unit_test(test_patterns),
                                       cmocka_unit_test(test_nearest_names),
                                       cmocka_unit_test(test_utf8),
                                       cmocka_unit_test(test_errors_gain_context),
                                       cmocka_unit_test(test_parallel_for)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
