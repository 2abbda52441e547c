/* The tokenizer on small descriptions: ids worked out by hand. Equality with the `tokenizers`
 * library is tested in tests/python/test_tokenizer.py. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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
    "\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"c\":2,\"\u0120\":3,\"ab\":4,"        \
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
    if (tokenizer_parse(f->ctx, json, strlen(json), "test.json", NULL, &f->tokenizer) != TARE_OK)
        fail_msg("%s refused: %s", json, tare_last_error(f->ctx));
}

static void check_refused(fixture *f, const char *json, tare_status status, const char *message)
{
    tare_tokenizer *t;
    assert_int_equal(tokenizer_parse(f->ctx, json, strlen(json), "test.json", NULL, &t), status);
    assert_null(t);
    if (!strstr(tare_last_error(f->ctx), message))
        fail_msg("\"%s\" does not say \"%s\"", tare_last_error(f->ctx), message);
}

static void check_ids(fixture *f, const char *text, bool special, const uint32_t *expected,
                      size_t expected_count)
{
    uint32_t *ids;
    size_t count;
    assert_int_equal(tare_tokenizer_encode(f->tokenizer, text, strlen(text), special, &ids, &count),
                     TARE_OK);
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
    IDS(f, "a abc", 0, 3, 5); /* (a,b) has rank 0 and comes before (Ġ,a) */
    IDS(f, "a a bc", 0, 7, 3, 6);
    IDS(f, "axb", 4); /* x is unknown and there is no unknown token: a, b are neighbours */
    check_ids(f, "", true, NULL, 0);
    assert_int_equal(tare_tokenizer_vocab_size(f->tokenizer), 8);
}

/* (abcb)^n becomes (abc b)^n, by a scan for the best pair in short words, with a heap in long ones.
 */
static void test_long_words(void **state)
{
    enum { REPEATS = 250000 };
    fixture *f = *state;
    char *text = malloc(4 * REPEATS + 1);
    uint32_t *expected = malloc(2 * REPEATS * sizeof *expected);
    assert_non_null(text);
    assert_non_null(expected);
    open_json(f, "{" BYTE_LEVEL "," MODEL "}");
    for (size_t i = 0; i < REPEATS; i++) {
        memcpy(text + 4 * i, "abcb", 5);
        expected[2 * i] = 5;
        expected[2 * i + 1] = 1;
        if (i < 100 || i == REPEATS - 1)
            check_ids(f, text, true, expected, 2 * i + 2);
    }
    free(text);
    free(expected);
}

static void test_unknown_token(void **state)
{
    fixture *f = *state;
    const char *model = "\"vocab\":{\"a\":0,\"b\":1,\"?\":2},\"merges\":[],\"unk_token\":\"?\"";
    char json[300];
    snprintf(json, sizeof json, "{\"model\":{%s}}", model);
    open_json(f, json);
    IDS(f, "axyb", 0, 2, 2, 1);
    snprintf(json, sizeof json, "{\"model\":{%s,\"fuse_unk\":true}}", model);
    open_json(f, json);
    IDS(f, "axyb", 0, 2, 1);
    IDS(f, "xaxx", 2, 0, 2);
    open_json(f, "{\"model\":{\"vocab\":{\"a\":0},\"merges\":[],\"unk_token\":\"?\"}}");
    uint32_t *ids;
    size_t count;
    assert_int_equal(tare_tokenizer_encode(f->tokenizer, "ax", 2, true, &ids, &count),
                     TARE_E_MODEL);
    assert_null(ids);
    assert_non_null(strstr(tare_last_error(f->ctx), "\"?\""));
}

static void test_ignore_merges(void **state)
{
    fixture *f = *state;
    const char *format = "{\"model\":{\"vocab\":{\"a\":0,\"b\":1,\"ab\":2,\"aba\":3},"
                         "\"merges\":[\"a b\"],\"ignore_merges\":%s}}";
    char json[200];
    snprintf(json, sizeof json, format, "false");
    open_json(f, json);
    IDS(f, "aba", 2, 0);
    snprintf(json, sizeof json, format, "true");
    open_json(f, json);
    IDS(f, "aba", 3);
    IDS(f, "abab", 2, 2);
}

static void test_template(void **state)
{
    fixture *f = *state;
    open_json(f, "{\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":["
                 "{\"SpecialToken\":{\"id\":\"B\",\"type_id\":0}},{\"Sequence\":{\"id\":\"A\"}},"
                 "{\"SpecialToken\":{\"id\":\"E\",\"type_id\":0}}],\"pair\":[],\"special_tokens\":"
                 "{\"B\":{\"id\":\"B\",\"ids\":[9],\"tokens\":[\"B\"]},"
                 "\"E\":{\"id\":\"E\",\"ids\":[7,8],\"tokens\":[\"E\",\"E\"]}}}," MODEL "}");
    IDS(f, "ab", 9, 4, 7, 8);
    IDS(f, "", 9, 7, 8);
    check_ids(f, "ab", false, (uint32_t[]){4}, 1);
}

static void test_added_tokens(void **state)
{
    fixture *f = *state;
    open_json(f,
              "{" BYTE_LEVEL ",\"added_tokens\":["
              "{\"id\":8,\"content\":\"<s>\"," FLAGS(
                  false, false,
                  false) "},"
                         "{\"id\":9,\"content\":\"<s>b\"," FLAGS(
                             false, false,
                             false) "},"
                                    "{\"id\":10,\"content\":\"<l>\"," FLAGS(
                                        true, false,
                                        false) "},"
                                               "{\"id\":11,\"content\":\"<r>\"," FLAGS(
                                                   false, true,
                                                   false) "},"
                                                          "{\"id\":12,\"content\":\"cab\"," FLAGS(
                                                              false, false, true) "}]," MODEL "}");
    assert_string_equal(f->warning, "");
    IDS(f, "a<s>a", 0, 8, 0);
    IDS(f, "a<s>bc", 0, 9, 2);        /* the longest of those that begin here */
    IDS(f, "a  <l> a", 0, 10, 7);     /* takes the spaces on its left, */
    IDS(f, "a <r>\n a", 0, 3, 11, 0); /* on its right */
    IDS(f, "<r> <l>", 11, 10);
    IDS(f, "acabc cab", 0, 2, 5, 3, 12); /* single_word: only where no word goes on */
    assert_int_equal(tare_tokenizer_vocab_size(f->tokenizer), 13);
    check_text(f, (uint32_t[]){8, 0, 7, 12}, 4, false, "<s>a acab");
    check_text(f, (uint32_t[]){8, 0, 7, 12}, 4, true, "a a");
    uint32_t id = 13;
    char *text;
    size_t length;
    assert_int_equal(tare_tokenizer_decode(f->tokenizer, &id, 1, false, &text, &length),
                     TARE_E_DATA);
    /* The id of the file is not what counts. */
    open_json(f, "{\"added_tokens\":[{\"id\":99,\"content\":\"<s>\"," FLAGS(false, false,
                                                                            false) "}]," MODEL "}");
    IDS(f, "<s>", 8);
    assert_non_null(strstr(f->warning, "\"<s>\" gets the id 8, not 99"));
}

static void test_decoding(void **state)
{
    fixture *f = *state;
    open_json(f, "{" BYTE_LEVEL "," MODEL "}");
    check_text(f, (uint32_t[]){0, 7, 5}, 3, false, "a aabc");
    check_text(f, NULL, 0, false, "");
    open_json(f, "{" MODEL "}");
    check_text(f, (uint32_t[]){0, 1, 5}, 3, false, "a b abc"); /* no decoder */
}

/* As Llama 2: the underline stands for a space and begins the text; a newline and the two bytes of
 * U+00E9 have byte tokens, other characters have none. */
static void test_byte_fallback(void **state)
{
    fixture *f = *state;
    open_json(f, "{\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\","
                 "\"prepend\":\"_\"},{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},"
                 "\"content\":\"_\"}]},\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":"
                 "\"Replace\",\"pattern\":{\"String\":\"_\"},\"content\":\" \"},{\"type\":"
                 "\"ByteFallback\"},{\"type\":\"Fuse\"},{\"type\":\"Strip\",\"content\":\" \","
                 "\"start\":1,\"stop\":0}]},\"model\":{\"type\":\"BPE\",\"byte_fallback\":true,"
                 "\"fuse_unk\":true,\"unk_token\":\"<unk>\",\"vocab\":{\"<unk>\":0,\"<0x0A>\":1,"
                 "\"_\":2,\"a\":3,\"_a\":4,\"<0xC3>\":5,\"<0xA9>\":6},\"merges\":[\"_ a\"]}}");
    IDS(f, "a", 4);
    IDS(f, "a a\n\u00e9", 4, 4, 1, 5, 6);
    IDS(f, " aa", 2, 4, 3);
    IDS(f, "xyz", 2, 0);
    IDS(f, "x\na", 2, 1, 0, 3); /* the byte token overtakes the unknown one, as in `tokenizers` */
    check_text(f, (uint32_t[]){4, 4, 1, 5, 6}, 5, false, "a a\n\u00e9");
    check_text(f, (uint32_t[]){2, 4, 3}, 3, false, " aa");
    check_text(f, (uint32_t[]){5, 3, 5, 6}, 4, false, "\ufffda\u00e9");
    check_text(f, (uint32_t[]){6, 5}, 2, false, "\ufffd\ufffd");
}

static void test_refused(void **state)
{
    fixture *f = *state;
    check_refused(f, "{", TARE_E_FORMAT, "test.json");
    check_refused(f, "[]", TARE_E_MODEL, "test.json");
    check_refused(f, "{}", TARE_E_MODEL, "no \"model\"");
    check_refused(f, "{\"model\":{\"vocab\":{\"a\":0,\"a\":1},\"merges\":[]}}", TARE_E_FORMAT,
                  "test.json");
    check_refused(f, "{\"model\":{\"vocab\":{\"a\":1,\"b\":1},\"merges\":[]}}", TARE_E_MODEL,
                  "\"a\" and \"b\" have the same id 1");
    check_refused(f, "{\"model\":{\"vocab\":{\"a\":2147483648},\"merges\":[]}}", TARE_E_MODEL,
                  "2^31-1");
    check_refused(f, "{\"model\":{\"vocab\":{\"a\":0},\"merges\":[\"a a\"]}}", TARE_E_MODEL,
                  "\"aa\", which is not in the vocabulary");
    check_refused(f, "{\"normalizer\":{\"type\":\"Lowercase\"}," MODEL "}", TARE_E_MODEL,
                  "normalizer of type \"Lowercase\" is not supported");
    check_refused(f,
                  "{\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":"
                  "\"ByteLevel\",\"add_prefix_space\":true},{\"type\":\"Metaspace\","
                  "\"replacement\":\"_\",\"prepend_scheme\":\"first\"}]}," MODEL "}",
                  TARE_E_MODEL, "\"first\" behind a stage that puts a space in front");
    check_refused(f,
                  "{\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"[\"},"
                  "\"behavior\":\"Isolated\",\"invert\":false}," MODEL "}",
                  TARE_E_MODEL, "pattern of a Split: regular expression");
}

static void test_bad_utf8(void **state)
{
    fixture *f = *state;
    uint32_t *ids;
    size_t count;
    open_json(f, "{" BYTE_LEVEL "," MODEL "}");
    assert_int_equal(tare_tokenizer_encode(f->tokenizer, "a\xc3", 2, true, &ids, &count),
                     TARE_E_DATA);
    assert_int_equal(tare_tokenizer_encode(f->tokenizer, "\xed\xa0\x80", 3, true, &ids, &count),
                     TARE_E_DATA);
}

/* ---- parts ---- */

/* The pieces that `expression` cuts `text` into, separated by '|'. */
static void check_split(fixture *f, const char *expression, bool force_regex, const char *text,
                        const char *expected)
{
    match_list list = {.ctx = f->ctx};
    pattern p;
    buffer joined;
    buffer_init(&joined, f->ctx);
    assert_int_equal(pattern_from_regex(f->ctx, expression, strlen(expression), force_regex, &p),
                     TARE_OK);
    assert_int_equal(p.kind, force_regex ? PATTERN_REGEX : PATTERN_SCANNER);
    assert_int_equal(pattern_find(&p, text, strlen(text), &list), TARE_OK);
    for (size_t i = 0; i < list.count; i++) {
        assert_true(list.items[i].is_match);
        buffer_puts(&joined, i ? "|" : "");
        buffer_append(&joined, text + list.items[i].start, list.items[i].end - list.items[i].start);
    }
    assert_string_equal(joined.data, expected);
    buffer_free(&joined);
    pattern_free(f->ctx, &p);
    mem_free(f->ctx, list.items);
}

static void test_patterns(void **state)
{
    fixture *f = *state;
    for (int force = 0; force < 2; force++) {
        check_split(f, GPT2, force, "it's  2 ok!", "it|'s| | 2| ok|!");
        check_split(f, GPT2, force, "IT'S 12a\n\n x  ", "IT|'|S| 12|a|\n\n| x|  ");
        check_split(f, GPT2, force, "they'll'dve  ", "they|'ll|'d|ve|  ");
        check_split(f, LLAMA3, force, "IT'S 12345\n\n x", "IT|'S| |123|45|\n\n| x");
        check_split(f, LLAMA3, force, "a.b ..\r\n c\t\td", "a|.b| ..\r\n| c|\t|\td");
        check_split(f, LLAMA3, force, "  \n  \n   x", "  \n  \n|  | x");
        check_split(f, LLAMA3, force, "x'\u017f'RE'Ll", "x|'\u017f|'RE|'Ll");
        check_split(f, LLAMA3, force, "\u3000\u00e9\u0663", "\u3000\u00e9|\u0663");
    }
}

static void test_regex_limits(void **state)
{
    fixture *f = *state;
    match_list list = {.ctx = f->ctx};
    char text[64];
    pattern p;
    memset(text, 'a', sizeof text);
    text[sizeof text - 1] = 'b';
    assert_int_equal(pattern_from_regex(f->ctx, "(a+)+$", 6, false, &p), TARE_OK);
    assert_int_equal(pattern_find(&p, text, sizeof text, &list), TARE_E_MODEL);
    pattern_free(f->ctx, &p);
    /* A match whose start lies before the end of the last one must not hold the search up. */
    list.count = 0;
    assert_int_equal(pattern_from_regex(f->ctx, "(?<=\\Ka)", 8, false, &p), TARE_OK);
    assert_int_equal(pattern_find(&p, "aab", 3, &list), TARE_OK);
    assert_true(list.count <= 4);
    pattern_free(f->ctx, &p);
    mem_free(f->ctx, list.items);
    memset(text, '(', sizeof text);
    assert_int_equal(pattern_from_regex(f->ctx, text, sizeof text, false, &p), TARE_E_MODEL);
}

/* Bytes that are not UTF-8, and the U+FFFD they become: one for each longest prefix of a character
 * (Unicode 15, 3.9, table 3-8 and what stands around it). */
static void test_broken_bytes(void **state)
{
    static const struct {
        const char *bytes, *text;
    } cases[] = {
        {"a\xc3", "a\ufffd"},
        {"\xc3(", "\ufffd("},
        {"\xe2\x82"
         "A",
         "\ufffdA"},
        {"\xf0\x90\x80", "\ufffd"},
        {"\xf0\x90\x80\xc3\xa9", "\ufffd\u00e9"},
        {"\xc0\xaf", "\ufffd\ufffd"},
        {"\xed\xa0\x80", "\ufffd\ufffd\ufffd"},
        {"\xe0\x80\x80", "\ufffd\ufffd\ufffd"},
        {"\xf4\x91\x92\x93\xff"
         "A\x80\xbf"
         "B",
         "\ufffd\ufffd\ufffd\ufffd\ufffdA\ufffd\ufffdB"},
        {"\xe1\x80\xe2\xf0\x91\x92\xf1\xbf"
         "A",
         "\ufffd\ufffd\ufffd\ufffdA"},
    };
    fixture *f = *state;
    decoder_step step = {.op = DECODE_BYTE_LEVEL};
    decoder d;
    decoder_init(&d, f->ctx);
    d.present = true;
    d.steps = &step;
    d.count = 1;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        pieces tokens, spare;
        buffer token, out;
        pieces_init(&tokens, f->ctx);
        pieces_init(&spare, f->ctx);
        buffer_init(&token, f->ctx);
        buffer_init(&out, f->ctx);
        byte_alphabet_encode(&d.alphabet, cases[i].bytes, strlen(cases[i].bytes), &token);
        assert_int_equal(pieces_set(&tokens, token.data, token.length), TARE_OK);
        assert_int_equal(decoder_run(&d, &tokens, &spare, &out), TARE_OK);
        assert_string_equal(out.data, cases[i].text);
        pieces_free(&tokens);
        pieces_free(&spare);
        buffer_free(&token);
        buffer_free(&out);
    }
}

static void test_token_finder(void **state)
{
    enum { LENGTH = 1000000 };
    fixture *f = *state;
    token_finder finder;
    finder_matches found = {.ctx = f->ctx};
    const char *tokens[] = {"a", "ab", "abcd", "bc", "a"};
    token_finder_init(&finder, f->ctx);
    for (uint32_t i = 0; i < 5; i++)
        assert_int_equal(token_finder_add(&finder, tokens[i], strlen(tokens[i]), i), TARE_OK);
    assert_int_equal(token_finder_build(&finder), TARE_OK);
    assert_int_equal(token_finder_run(&finder, "xabcabcdbca", 11, &found), TARE_OK);
    const finder_match expected[] = {{1, 2, 1}, {4, 4, 2}, {8, 2, 3}, {10, 1, 0}};
    assert_int_equal(found.count, 4);
    assert_memory_equal(found.items, expected, sizeof expected);
    token_finder_free(&finder);

    /* A walk from each place would take 10^10 steps here. */
    char *text = malloc(LENGTH);
    assert_non_null(text);
    memset(text, 'a', LENGTH);
    text[9999] = 'b';
    assert_int_equal(token_finder_add(&finder, text, 10000, 1), TARE_OK);
    assert_int_equal(token_finder_add(&finder, "a", 1, 2), TARE_OK);
    assert_int_equal(token_finder_build(&finder), TARE_OK);
    text[9999] = 'a';
    assert_int_equal(token_finder_run(&finder, text, LENGTH, &found), TARE_OK);
    assert_int_equal(found.count, LENGTH);
    free(text);
    token_finder_free(&finder);
    mem_free(f->ctx, found.items);
}

/* ---- allocations that fail ---- */

typedef struct countdown {
    long left;
} countdown;

static bool allow(void *user, size_t bytes)
{
    countdown *c = user;
    (void)bytes;
    return c->left-- > 0;
}

static tare_status use_tokenizer(tare_context *ctx, const char *json, const char *text)
{
    tare_tokenizer *t = NULL;
    uint32_t *ids = NULL;
    char *back = NULL;
    size_t count, length;
    tare_status status = tokenizer_parse(ctx, json, strlen(json), "test.json", NULL, &t);
    if (status == TARE_OK)
        status = tare_tokenizer_encode(t, text, strlen(text), true, &ids, &count);
    if (status == TARE_OK)
        status = tare_tokenizer_decode(t, ids, count, true, &back, &length);
    tare_free(ctx, ids);
    tare_free(ctx, back);
    tare_tokenizer_free(t);
    return status;
}

static void test_failing_allocations(void **state)
{
    const char *json =
        "{\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFD\"},"
        "{\"type\":\"NFC\"},{\"type\":\"Replace\",\"pattern\":{\"String\":\"zz\"},\"content\":"
        "\"y\"}"
        "]},\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":["
        "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"x*\"},\"behavior\":\"MergedWithNext\","
        "\"invert\":false},{\"type\":\"Split\",\"pattern\":{\"String\":\"q\"},\"behavior\":"
        "\"Removed\",\"invert\":false},{\"type\":\"ByteLevel\",\"add_prefix_space\":true,"
        "\"use_regex\":true}]},\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":"
        "\"ByteFallback\"},{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"zz\"},\"content\":\"y\"},"
        "{\"type\":\"ByteLevel\"},{\"type\":\"Fuse\"},{\"type\":\"Strip\",\"content\":\"z\","
        "\"start\":1,\"stop\":1}]},\"added_tokens\":["
        "{\"id\":8,\"content\":\"<s>\"," FLAGS(
            true, true,
            false) "},"
                   "{\"id\":9,\"content\":\"\u00e9\",\"special\":false,\"normalized\":true,"
                   "\"lstrip\":false,"
                   "\"rstrip\":false,\"single_word\":false}],\"post_processor\":{\"type\":"
                   "\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"B\"}},"
                   "{\"Sequence\":{\"id\":\"A\"}}],\"special_tokens\":{\"B\":{\"ids\":[0]}}}," MODEL
                   "}";
    const char *text = "abcbabcbabcbabcbabcbabcbabcbabcbabcb <s> e\u0301 e\u0323\u0301 aqbx";
    tare_status status = TARE_E_MEMORY;
    (void)state;
    for (long n = 0; status == TARE_E_MEMORY; n++) {
        assert_true(n < 1000);
        countdown c = {n};
        tare_context_options options;
        tare_context *ctx;
        tare_context_options_init(&options);
        options.allow_allocation = allow;
        options.user = &c;
        assert_int_equal(tare_context_create(&ctx, &options), TARE_OK);
        status = use_tokenizer(ctx, json, text);
        assert_int_equal(tare_memory_used(ctx), 0);
        if (status != TARE_OK)
            assert_non_null(strstr(tare_last_error(ctx), "out of memory"));
        tare_context_free(ctx);
    }
    assert_int_equal(status, TARE_OK);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

/* ---- the files beside it, with allocations that fail ---- */

static void write_file(const char *folder, const char *name, const char *text)
{
    char path[300];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, strlen(text), f), strlen(text));
    assert_int_equal(fclose(f), 0);
}

/* The class is a Llama's: bos in front, eos behind; "<x>" is added_tokens.json's or, in the second
 * folder, added_tokens_decoder's. Ids by hand: a b c are 0 1 2; 8 and on come behind the
 * vocabulary, <s> in the file, then <x>, then </s>. */
static void test_failing_allocations_of_a_folder(void **state)
{
    static const char *const files[2][4] = {
        {"{\"add_eos_token\":true,\"unk_token\":null}", "{\"bos_token\":{\"content\":\"<s>\"}}",
         "{\"<x>\":9}", "{\"model_type\":\"llama\"}"},
        {"{\"tokenizer_class\":\"LlamaTokenizer\",\"add_eos_token\":true,\"unk_token\":null,"
         "\"added_tokens_decoder\":{\"9\":{\"content\":\"<x>\"}},\"additional_special_tokens\":"
         "[\"a\"],\"add_prefix_space\":false}",
         "[]", "[]", "{}"},
    };
    char folder[] = "/tmp/tare-test-tokenizer-XXXXXX", path[300];
    (void)state;
    assert_non_null(mkdtemp(folder));
    write_file(folder, "tokenizer.json",
               "{" BYTE_LEVEL ",\"added_tokens\":[{\"id\":8,\"content\":\"<s>\"," FLAGS(
                   false, false, false) "}]," MODEL "}");
    for (int k = 0; k < 2; k++) {
        static const char *const names[] = {"tokenizer_config.json", "special_tokens_map.json",
                                            "added_tokens.json", "config.json"};
        for (int i = 0; i < 4; i++)
            write_file(folder, names[i], files[k][i]);
        tare_status status = TARE_E_MEMORY;
        for (long n = 0; status == TARE_E_MEMORY; n++) {
            countdown c = {n};
            fixture f = {0};
            tare_context_options options;
            assert_true(n < 1000);
            tare_context_options_init(&options);
            options.allow_allocation = allow;
            options.user = &c;
            assert_int_equal(tare_context_create(&f.ctx, &options), TARE_OK);
            status = tare_tokenizer_open(f.ctx, folder, &f.tokenizer);
            c.left = 1000;
            if (status == TARE_OK)
                IDS(&f, "b<x>c", 8, 1, 9, 2, 10);
            else
                assert_non_null(strstr(tare_last_error(f.ctx), "out of memory"));
            tare_tokenizer_free(f.tokenizer);
            assert_int_equal(tare_memory_used(f.ctx), 0);
            tare_context_free(f.ctx);
        }
        assert_int_equal(status, TARE_OK);
        for (int i = 0; i < 4; i++) {
            snprintf(path, sizeof path, "%s/%s", folder, names[i]);
            assert_int_equal(remove(path), 0);
        }
    }
    snprintf(path, sizeof path, "%s/tokenizer.json", folder);
    assert_int_equal(remove(path), 0);
    assert_int_equal(remove(folder), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_merges_by_rank),
        TEST(test_long_words),
        TEST(test_unknown_token),
        TEST(test_ignore_merges),
        TEST(test_template),
        TEST(test_added_tokens),
        TEST(test_decoding),
        TEST(test_byte_fallback),
        TEST(test_refused),
        TEST(test_bad_utf8),
        TEST(test_patterns),
        TEST(test_regex_limits),
        TEST(test_broken_bytes),
        TEST(test_token_finder),
        cmocka_unit_test(test_failing_allocations),
        cmocka_unit_test(test_failing_allocations_of_a_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
