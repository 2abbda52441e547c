/* base/rng: what CPython's `random` gives (vectors of Python 3.11, also in the specification). */
#include "fixture.h"

#include "base/rng.h"

/* |seed| in words: 0, 1, 2^32, 2^40 + 5, 2^64 - 1. */
static const struct {
    uint32_t words[2];
    size_t count;
    uint32_t first[4];  /* getrandbits(32) */
    uint32_t order[10]; /* shuffle(list(range(10))) */
} seeds[] = {
    {{0, 0}, 0, {3626764237, 1654615998, 3255389356, 3823568514}, {7, 8, 1, 5, 3, 4, 2, 0, 9, 6}},
    {{1, 0}, 1, {577090037, 2444712010, 3639700191, 3445702192}, {6, 8, 9, 7, 5, 3, 0, 4, 1, 2}},
    {{0, 1}, 2, {485306839, 1508871100, 1794561286, 4014597330}, {8, 9, 3, 2, 4, 7, 0, 6, 5, 1}},
    {{5, 256}, 2, {2166296868, 2220160828, 1153647273, 2850991874}, {1, 2, 3, 6, 7, 0, 5, 4, 9, 8}},
    {{0xffffffff, 0xffffffff},
     2,
     {93740670, 1068495656, 1452108352, 2657516307},
     {2, 6, 7, 9, 8, 1, 4, 5, 3, 0}},
};

static void test_words(void **state)
{
    (void)state;
    rng r;
    for (size_t s = 0; s < sizeof seeds / sizeof *seeds; s++) {
        rng_seed(&r, seeds[s].words, seeds[s].count);
        for (size_t i = 0; i < 4; i++)
            assert_int_equal(rng_u32(&r), seeds[s].first[i]);
    }
    static const uint32_t zero = 0;
    rng_seed(&r, &zero, 1); /* the same as no words */
    for (int i = 1; i <= 2000; i++) {
        uint32_t word = rng_u32(&r);
        if (i == 1)
            assert_int_equal(word, 3626764237);
        if (i == 624)
            assert_int_equal(word, 2390040247);
        if (i == 625)
            assert_int_equal(word, 2229104038);
        if (i == 2000)
            assert_int_equal(word, 3908016617);
    }
}

/* A key longer than the state. */
static void test_long_seed(void **state)
{
    (void)state;
    static uint32_t words[700];
    rng r;
    for (uint32_t i = 0; i < 700; i++)
        words[i] = i * 2654435761u + 1;
    rng_seed(&r, words, 700);
    /* Python: random.Random(sum((i * 2654435761 + 1) % 2**32 << 32 * i for i in range(700))) */
    assert_int_equal(rng_u32(&r), 285450211);
    assert_int_equal(rng_u32(&r), 2611730637);
}

static void test_below(void **state)
{
    (void)state;
    static const uint32_t ten[] = {6, 6, 0, 4, 8, 7, 6, 4, 7, 5, 9, 3};
    static const uint32_t eight[] = {6, 6, 0, 4, 7, 6, 4, 7, 5, 3, 2, 4};
    rng r;
    rng_seed(&r, NULL, 0);
    for (size_t i = 0; i < 12; i++)
        assert_int_equal(rng_below(&r, 10), ten[i]);
    rng_seed(&r, NULL, 0);
    for (size_t i = 0; i < 12; i++)
        assert_int_equal(rng_below(&r, 8), eight[i]);
    for (size_t i = 0; i < 12; i++)
        assert_int_equal(rng_below(&r, 1), 0);
}

/* Python: random.seed(0); random.random() */
static void test_double(void **state)
{
    (void)state;
    rng r;
    rng_seed(&r, NULL, 0);
    assert_true(rng_double(&r) == 0.8444218515250481);
    assert_true(rng_double(&r) == 0.7579544029403025);
}

static void assert_shuffled(const uint32_t *words, size_t num_words, uint32_t n,
                            const uint32_t *expected, size_t shown)
{
    static uint32_t items[14042];
    rng r;
    for (uint32_t i = 0; i < n; i++)
        items[i] = i;
    rng_seed(&r, words, num_words);
    rng_shuffle(&r, items, n);
    for (size_t i = 0; i < shown; i++)
        assert_int_equal(items[i], expected[i]);
}

static void test_shuffle(void **state)
{
    (void)state;
    static const uint32_t answer = 42;
    for (size_t s = 0; s < sizeof seeds / sizeof *seeds; s++)
        assert_shuffled(seeds[s].words, seeds[s].count, 10, seeds[s].order, 10);
    assert_shuffled(&answer, 1, 10, (uint32_t[]){7, 3, 2, 8, 5, 6, 9, 4, 0, 1}, 10);
    assert_shuffled(NULL, 0, 0, NULL, 0);
    assert_shuffled(NULL, 0, 1, (uint32_t[]){0}, 1);
    assert_shuffled(NULL, 0, 2, (uint32_t[]){0, 1}, 2);
    assert_shuffled(NULL, 0, 3, (uint32_t[]){0, 2, 1}, 3);
    assert_shuffled(NULL, 0, 4, (uint32_t[]){2, 0, 1, 3}, 4);
    assert_shuffled(NULL, 0, 5, (uint32_t[]){2, 1, 0, 4, 3}, 5);
    assert_shuffled(NULL, 0, 3270, (uint32_t[]){77, 549, 1435, 660, 1883, 438}, 6);
    assert_shuffled(NULL, 0, 1319, (uint32_t[]){1101, 120, 474, 991, 192, 1020}, 6);
    assert_shuffled(NULL, 0, 1346, (uint32_t[]){1257, 1035, 70, 620, 900, 450}, 6);
    assert_shuffled(NULL, 0, 14042, (uint32_t[]){334, 54, 5845, 13820, 7753, 3221}, 6);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_words),   cmocka_unit_test(test_long_seed),
        cmocka_unit_test(test_below),   cmocka_unit_test(test_double),
        cmocka_unit_test(test_shuffle),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
