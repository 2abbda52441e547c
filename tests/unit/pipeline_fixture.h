/* What tests of whole runs share: golden models in the caller's memory, calibration ids, output
 * folders that are compared. */
#ifndef TARE_TESTS_PIPELINE_FIXTURE_H
#define TARE_TESTS_PIPELINE_FIXTURE_H

#include "file/json.h"
#include "golden_fixture.h"

#define CALIB TARE_TEST_DATA "/golden/calib_ids.json"

/* The tensors of a safetensors file in memory, in the order of the file. */
typedef struct memory_tensors {
    safetensors *file;
    tare_tensor *tensors;
    void **data;
    size_t count;
} memory_tensors;

static inline memory_tensors load_tensors(tare_context *ctx, const char *folder)
{
    char path[512];
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    memory_tensors m = {.file = open_tensors(ctx, path)};
    m.count = safetensors_count(m.file);
    m.tensors = calloc(m.count, sizeof *m.tensors);
    m.data = calloc(m.count, sizeof *m.data);
    for (size_t i = 0; i < m.count; i++) {
        const tensor_info *t = safetensors_at(m.file, i);
        m.data[i] = read_raw(ctx, m.file, t);
        m.tensors[i] = (tare_tensor){.name = t->name,
                                     .dtype = dtype_name(t->dtype),
                                     .rank = (size_t)t->rank,
                                     .shape = t->shape,
                                     .data = m.data[i],
                                     .bytes = t->bytes};
    }
    return m;
}

static inline void free_tensors(tare_context *ctx, memory_tensors *m)
{
    for (size_t i = 0; i < m->count; i++)
        mem_free(ctx, m->data[i]);
    free(m->data);
    free(m->tensors);
    safetensors_close(m->file);
}

/* The text of a small file; free(). */
static inline char *read_text(const char *folder, const char *name)
{
    char path[512], *text = calloc(1, 1 << 20);
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    assert_true(fread(text, 1, (1 << 20) - 1, f) > 0);
    fclose(f);
    return text;
}

/* The calibration file's token ids. */
typedef struct memory_samples {
    uint32_t ids[4096];
    size_t lengths[64], count;
} memory_samples;

static inline void load_ids(tare_context *ctx, memory_samples *out)
{
    const value *root;
    arena a;
    arena_init(&a, ctx);
    assert_ok(ctx, json_parse_file(ctx, &a, CALIB, 1 << 20, &root));
    size_t at = 0;
    out->count = root->count;
    assert_true(out->count <= 64);
    for (size_t i = 0; i < root->count; i++) {
        out->lengths[i] = root->items[i].count;
        for (size_t j = 0; j < out->lengths[i]; j++)
            out->ids[at++] = (uint32_t)root->items[i].items[j].integer;
        assert_true(at <= 4096);
    }
    arena_free(&a);
}

/* A recipe from "key=value" texts, NULL behind the last. */
static inline tare_recipe *make_recipe(tare_context *ctx, const char *const *settings)
{
    tare_recipe *recipe;
    assert_ok(ctx, tare_recipe_create(ctx, &recipe));
    for (; *settings; settings++) {
        char name[128];
        const char *equals = strchr(*settings, '=');
        snprintf(name, sizeof name, "%.*s", (int)(equals - *settings), *settings);
        assert_ok(ctx, tare_recipe_set(recipe, name, equals + 1));
    }
    return recipe;
}

/* The folders hold the same bytes, but for files that `except` names (of diff's -x, repeated). */
static inline void assert_same_folders(const char *a, const char *b, const char *except)
{
    char command[1024], difference[800] = "";
    snprintf(command, sizeof command, "diff -r %s '%s' '%s'", except, a, b);
    FILE *p = popen(command, "r");
    assert_non_null(p);
    size_t n = fread(difference, 1, sizeof difference - 1, p);
    if (pclose(p) != 0)
        fail_msg("%s: %.*s", command, (int)n, difference);
}

/* Like each_allocation_fails, at about 40 places of a long work. */
static inline void some_allocations_fail(tare_status (*work)(tare_context *ctx, void *user),
                                         void *user)
{
    long total = 0, step = 1;
    for (long n = 1L << 40; n >= 0; n = n == 1L << 40 ? total - 1 : n - step) {
        fault f = {.left = n};
        tare_context_options options;
        init_options(&options);
        options.threads = 1;
        options.allow_allocation = fault_allow;
        options.user = &f;
        tare_context *ctx;
        assert_int_equal(tare_context_create(&ctx, &options), TARE_OK);
        tare_status status = work(ctx, user);
        if (n == 1L << 40) { /* how many there are */
            assert_ok(ctx, status);
            total = n - f.left;
            step = total / 40 + 1;
        } else if (status != TARE_E_MEMORY && status != TARE_OK) {
            fail_msg("allocation %ld of %ld: status %d: %s", n, total, (int)status,
                     tare_last_error(ctx));
        }
        free_context(ctx);
    }
}

/* What AddressSanitizer keeps of freed memory grows from one call to the next, and counts. */
#if defined(__SANITIZE_ADDRESS__) /* as gcc says, of which the sanitized builds are */
enum { KEPT_BY_SANITIZER = 32 };
#else
enum { KEPT_BY_SANITIZER = 0 };
#endif

/* The smallest budget that the refusal of the last call names, as a setting. */
static inline const char *smallest_budget(const tare_context *ctx)
{
    static char text[32];
    unsigned mib = 0;
    const char *at = strstr(tare_last_error(ctx), "works here is cpu=");
    assert_non_null(at);
    assert_int_equal(sscanf(at, "works here is cpu=%uMiB", &mib), 1);
    snprintf(text, sizeof text, "cpu=%uMiB", mib + KEPT_BY_SANITIZER);
    return text;
}

static inline void remove_tree(const char *path)
{
    tare_context *ctx = new_context(1);
    assert_ok(ctx, folder_remove(ctx, path));
    free_context(ctx);
}

#endif
