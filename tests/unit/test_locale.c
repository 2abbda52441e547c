/* base/number: a host process under another locale (decimal commas, Turkish letters) gets the bytes
 * and messages that the C locale gives. The locales are made here, with localedef. */
#include "pipeline_fixture.h"

#include <errno.h>
#include <locale.h>
#include <math.h>
#include <sys/stat.h>

#include "base/number.h"
#include "quantize/recipe.h"

static const char *const LOCALES[] = {"de_DE", "tr_TR"};
enum { NUM_LOCALES = sizeof LOCALES / sizeof *LOCALES };

/* Makes the locales in a folder that setlocale looks into; false: there is no localedef, or not the
 * texts that it makes locales of (Debian: packages libc-bin and locales). */
static bool make_locales(const char *folder)
{
    char command[256];
    for (size_t i = 0; i < NUM_LOCALES; i++) {
        snprintf(command, sizeof command, "localedef -i %s -f UTF-8 '%s/%s.UTF-8' >/dev/null 2>&1",
                 LOCALES[i], folder, LOCALES[i]);
        if (system(command) != 0)
            return false;
    }
    return setenv("LOCPATH", folder, 1) == 0;
}

/* Runs `check` under each of the locales. */
static void under_each_locale(void (*check)(tare_context *ctx))
{
    char folder[64];
    snprintf(folder, sizeof folder, "%s", temporary_folder());
    bool made = make_locales(folder);
    for (size_t i = 0; made && i < NUM_LOCALES; i++) {
        char name[32];
        snprintf(name, sizeof name, "%s.UTF-8", LOCALES[i]);
        assert_non_null(setlocale(LC_ALL, name));
        assert_true(strtod("1,5", NULL) == 1.5); /* the locale is in force */
        tare_context *ctx = new_context(2);
        check(ctx);
        free_context(ctx);
        assert_true(strtod("1,5", NULL) == 1.5); /* and was left so */
        assert_non_null(setlocale(LC_ALL, "C"));
    }
    remove_tree(folder);
    if (!made) {
        print_message("skipped: no localedef or no locales for it (Debian: libc-bin, locales)\n");
        skip();
    }
}

static void check_numbers(tare_context *ctx)
{
    char text[64], *end;
    assert_true(number_read("1.5GiB", &end) == 1.5);
    assert_string_equal(end, "GiB");
    assert_true(number_read("1,5", &end) == 1.0);
    assert_string_equal(end, ",5");
    assert_int_equal(text_format(text, sizeof text, "%g %.3f %.1e", 0.5, 1234.5, 1e-7), 20);
    assert_string_equal(text, "0.5 1234.500 1.0e-07");
    assert_true(ascii_same("MIB", "mib") && ascii_same("", "") && !ascii_same("mi", "mib"));
    assert_true(ascii_same_n("INFx", "inf", 3) && !ascii_same_n("in", "inf", 3));
    assert_string_equal(errno_text(ENOENT), "No such file or directory");
    buffer out;
    buffer_init(&out, ctx);
    buffer_printf(&out, "%g ", 2.5);
    json_write_double(&out, 0.1);
    json_write_repr(&out, -1.25e-9);
    assert_ok(ctx, out.status);
    assert_string_equal(out.data, "2.5 0.1-1.25e-09");
    buffer_free(&out);
    TARE_FAIL(ctx, TARE_E_USAGE, "%g", 0.25);
    TARE_WRAP(ctx, TARE_E_USAGE, "%.1f", 7.5);
    assert_string_equal(tare_last_error(ctx), "7.5: 0.25");
}

static void test_numbers(void **state)
{
    (void)state;
    under_each_locale(check_numbers);
}

/* Decimal points from each place that a recipe comes from; the sizes are spec/low_memory.md 1.1's.
 */
static void check_recipe(tare_context *ctx)
{
    tare_recipe *recipe;
    const char *folder = temporary_folder();
    char path[128];
    buffer out;
    snprintf(path, sizeof path, "%s/r.yaml", folder);
    write_text(folder, "r.yaml",
               "quant: {pr: 0.5}\nanti_outlier: {anti_method: m6, alpha: 1.25e-1}\n"
               "run: {max_memory: {cpu: 1.5GIB, 0: 2.5MIB}}\n");
    assert_ok(ctx, tare_recipe_create(ctx, &recipe));
    assert_ok(ctx, tare_recipe_load(recipe, path));
    assert_true(recipe->pr == 0.5 && recipe->anti_alpha == 0.125);
    assert_int_equal(tare_recipe_memory_limit(recipe), 1610612736);
    assert_int_equal(max_memory_of(&recipe->max_memory, 0), 2621440);
    assert_ok(ctx, tare_recipe_set(recipe, "quant.pr", "0.75"));
    assert_true(recipe->pr == 0.75);
    assert_fails(ctx, tare_recipe_set(recipe, "quant.pr", "0,75"), TARE_E_USAGE,
                 "quant.pr: \"0,75\" is not a number from 0 to 1");
    assert_fails(ctx, tare_recipe_set(recipe, "fa_quant.fa_amp", "1.5"), TARE_E_USAGE, "not float");
    buffer_init(&out, ctx);
    recipe_write(recipe, &out, 0);
    assert_ok(ctx, out.status);
    assert_non_null(strstr(out.data, "\"pr\": 0.75"));
    assert_non_null(strstr(out.data, "\"alpha\": 0.125"));
    buffer_free(&out);
    tare_recipe_free(recipe);
    remove_tree(folder);
}

static void test_recipe(void **state)
{
    (void)state;
    under_each_locale(check_recipe);
}

static void quantize(tare_context *ctx, const char *out)
{
    static const char *const SETTINGS[] = {"anti_outlier.anti_method=m2",
                                           "quant.act_method=3",
                                           "quant.pr=0.5",
                                           "save.types=ascendv1,safe_tensor",
                                           "fallback.disable_level=L1",
                                           "run.max_memory=cpu=1.5GiB",
                                           NULL};
    tare_recipe *recipe = make_recipe(ctx, SETTINGS);
    tare_quantize_options options;
    tare_quantize_options_init(&options);
    options.model = TARE_TEST_DATA "/golden/llama/model";
    options.out = out;
    options.calib = CALIB;
    options.recipe = recipe;
    assert_ok(ctx, tare_quantize(ctx, &options, NULL));
    tare_recipe_free(recipe);
}

static char plain[128]; /* the output of the C locale */

static void check_run(tare_context *ctx)
{
    char out[128];
    snprintf(out, sizeof out, "%s-locale", plain);
    quantize(ctx, out);
    assert_same_folders(plain, out, "");
    remove_tree(out);
}

static void test_run(void **state)
{
    (void)state;
    char folder[128];
    snprintf(folder, sizeof folder, "%s", temporary_folder());
    snprintf(plain, sizeof plain, "%s/plain", folder);
    tare_context *ctx = new_context(2);
    quantize(ctx, plain);
    free_context(ctx);
    under_each_locale(check_run);
    remove_tree(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_numbers),
                                       cmocka_unit_test(test_recipe), cmocka_unit_test(test_run)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
