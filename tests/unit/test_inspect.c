/* `tare inspect`: what it says of an output, a checkpoint and a file. */
#include "verify_fixture.h"

typedef struct lines {
    char text[8192];
    size_t count;
} lines;

static void add_line(void *user, const char *text)
{
    lines *all = user;
    size_t used = strlen(all->text);
    snprintf(all->text + used, sizeof all->text - used, "%s\n", text);
    all->count++;
}

static void assert_inspected(const char *path, bool json, const char *const *parts)
{
    lines all = {{0}, 0};
    tare_context *ctx = new_context(1);
    assert_ok(ctx, tare_inspect(ctx, path, json, add_line, &all));
    for (; *parts; parts++)
        if (!strstr(all.text, *parts))
            fail_msg("no '%s' in:\n%s", *parts, all.text);
    if (json)
        assert_int_equal(all.count, 1);
    free_context(ctx);
}

static void test_inspect(void **state)
{
    output_case c;
    char path[256];
    (void)state;
    init_case(&c);
    write_model_weights(&c);
    make_good_output(&c);
    assert_inspected(c.out, false,
                     (const char *const[]){"kind: output", "layouts: ascendv1",
                                           "quantized_linears: 2", "float_linears: 1", NULL});
    assert_inspected(c.out, true,
                     (const char *const[]){
                         "{\"kind\": \"output\"",
                         "\"total\": {\"tensors\": 18, \"parameters\": ", "\"bytes\": 107}", NULL});
    /* 12 + 6 + 12 + 12 + 6 + 4 bytes of BF16 */
    assert_inspected(c.model, false,
                     (const char *const[]){"kind: checkpoint", "model_type: llama",
                                           "6 tensors              26 parameters", NULL});
    assert_inspected(c.model, true,
                     (const char *const[]){"\"BF16\": {\"tensors\": 6, \"parameters\": 26, "
                                           "\"bytes\": 52}",
                                           NULL});
    file_path_of(&c, SHARD, path, sizeof path);
    assert_inspected(
        path, false,
        (const char *const[]){"kind: safetensors", "  " Q_PROJ ".weight I8 [2,3]", NULL});
    tare_context *ctx = new_context(1);
    assert_int_not_equal(tare_inspect(ctx, "/nonexistent", false, add_line, NULL), TARE_OK);
    free_context(ctx);
    end_case(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_inspect)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
