/* CSV: every rule of reading (calibration_sets.md section 4.2), by hand. */
#include "fixture.h"

#include "file/csv.h"

/* The table as text: cells in brackets, a row per line, "line: [a][b]" ("!" where a quote is open).
 */
static const char *shown(const csv_table *t)
{
    static char text[4096];
    size_t n = 0;
    text[0] = 0;
    for (size_t i = 0; i < t->count; i++) {
        const csv_row *row = &t->rows[i];
        n += (size_t)snprintf(text + n, sizeof text - n, "%zu:%s", row->line,
                              row->unterminated ? "!" : "");
        for (size_t c = 0; c < row->count; c++) {
            const csv_cell *cell = &t->cells[row->first + c];
            assert_int_equal(strlen(cell->text), cell->length);
            n += (size_t)snprintf(text + n, sizeof text - n, "[%s]", cell->text);
        }
        n += (size_t)snprintf(text + n, sizeof text - n, "\n");
    }
    return text;
}

static const struct {
    const char *text, *rows;
} cases[] = {
    {"", ""},
    {"a,b\nc,d\n", "1:[a][b]\n2:[c][d]\n"},
    {"a,b\nc,d", "1:[a][b]\n2:[c][d]\n"},
    {"a\r\nb\rc\nd", "1:[a]\n2:[b]\n3:[c]\n4:[d]\n"},
    {"a,\n", "1:[a][]\n"},
    {"a,", "1:[a][]\n"},
    {",,\n", "1:[][][]\n"},
    /* Rows without anything are left out, one with an empty quoted cell is not. */
    {"a\n\n \t\n\r\n\"\"\nb\n", "1:[a]\n5:[]\n6:[b]\n"},
    {" ,\n", "1:[ ][]\n"},
    {"\" \"\n", "1:[ ]\n"},
    /* Nothing is stripped or replaced. */
    {" a ,\tb\n", "1:[ a ][\tb]\n"},
    {"None,NA,2.50,03\n", "1:[None][NA][2.50][03]\n"},
    /* Quotes */
    {"\"a,b\",c\n", "1:[a,b][c]\n"},
    {"\"a\"\"b\",\"\"\"\"\n", "1:[a\"b][\"]\n"},
    {"\"a\"b\"c\"\n", "1:[ab\"c\"]\n"},
    {"a\"b\",c\"\n", "1:[a\"b\"][c\"]\n"},
    {" \"a\",b\n", "1:[ \"a\"][b]\n"},
    {"\"a\" ,b\n", "1:[a ][b]\n"},
    {"\"a\nb\",c\nd,e\n", "1:[a\nb][c]\n3:[d][e]\n"},
    {"\"a\r\nb\rc\",d\r\ne,f\r\n", "1:[a\r\nb\rc][d]\n4:[e][f]\n"},
    /* A quote without an end takes the rest. */
    {"a,b\nc,\"d\ne,f\n", "1:[a][b]\n2:![c][d\ne,f\n]\n"},
    {"\"", "1:![]\n"},
    {"a,\"b\"\"", "1:![a][b\"]\n"},
    {"\xe8\x8c\xb6,\xc3\xa9\n", "1:[\xe8\x8c\xb6][\xc3\xa9]\n"},
};

static void test_rules(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        csv_table t;
        size_t length = strlen(cases[i].text);
        /* A block of exactly these bytes, so that sanitizers see any read past it. */
        char *copy = malloc(length ? length : 1);
        assert_non_null(copy);
        memcpy(copy, cases[i].text, length);
        assert_ok(ctx, csv_parse(ctx, copy, length, "f.csv", &t));
        free(copy);
        assert_string_equal(shown(&t), cases[i].rows);
        csv_free(&t);
    }
    free_context(ctx);
}

static void test_refusals(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    csv_table t;
    assert_fails(ctx, csv_parse(ctx, "a\nb\0c\n", 6, "f.csv", &t), TARE_E_FORMAT, "f.csv:2: a NUL");
    assert_fails(ctx, csv_parse(ctx, "a\n\nb\xff\n", 6, "f.csv", &t), TARE_E_FORMAT,
                 "f.csv:3: text that is not UTF-8");
    assert_fails(ctx, csv_parse(ctx, "\xed\xa0\x80", 3, "f.csv", &t), TARE_E_FORMAT, "f.csv:1:");
    free_context(ctx);
}

static tare_status parse_all(tare_context *ctx, void *user)
{
    tare_status status = TARE_OK;
    (void)user;
    for (size_t i = 0; i < sizeof cases / sizeof *cases && status == TARE_OK; i++) {
        csv_table t;
        status = csv_parse(ctx, cases[i].text, strlen(cases[i].text), "f.csv", &t);
        csv_free(&t);
    }
    return status;
}

static void test_out_of_memory(void **state)
{
    (void)state;
    each_allocation_fails(parse_all, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_rules),
                                       cmocka_unit_test(test_refusals),
                                       cmocka_unit_test(test_out_of_memory)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
