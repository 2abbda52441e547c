/* What the quantize tests share: a context, tensors of safetensors files as FP32, and the golden
 * folders: those checked in, and, where it exists, the full set beside the checkout. */
#ifndef TARE_TESTS_GOLDEN_FIXTURE_H
#define TARE_TESTS_GOLDEN_FIXTURE_H

#include "file/json.h"
#include "file/safetensors.h"
#include "fixture.h"
#include "model/arch.h"
#include "tensor/convert.h"

static const char *const golden_roots[] = {TARE_TEST_DATA "/golden",
                                           TARE_TEST_DATA "/../../../shared/golden"};
enum { GOLDEN_ROOTS = sizeof golden_roots / sizeof *golden_roots };

static inline safetensors *open_tensors(tare_context *ctx, const char *path)
{
    safetensors *s = NULL;
    assert_ok(ctx, safetensors_open(ctx, path, &s));
    return s;
}

static inline const tensor_info *find_tensor(const safetensors *s, const char *format,
                                             const char *module)
{
    char name[512];
    snprintf(name, sizeof name, "%s%s", module, format);
    return safetensors_find(s, name);
}

/* The raw elements, freed with mem_free. */
static inline void *read_raw(tare_context *ctx, safetensors *s, const tensor_info *t)
{
    assert_non_null(t);
    void *data = mem_alloc(ctx, (size_t)t->bytes);
    assert_non_null(data);
    assert_ok(ctx, safetensors_read(s, t, 0, data, (size_t)t->bytes));
    return data;
}

/* F32, F16 or BF16 as FP32, freed with mem_free. */
static inline float *read_floats(tare_context *ctx, safetensors *s, const tensor_info *t)
{
    void *raw = read_raw(ctx, s, t);
    if (t->dtype == TARE_F32)
        return raw;
    float *wide = mem_alloc_array(ctx, tensor_elements(t), sizeof *wide);
    assert_non_null(wide);
    widen_to_float(ctx, t->dtype, raw, tensor_elements(t), wide);
    mem_free(ctx, raw);
    return wide;
}

static inline float read_scalar(tare_context *ctx, safetensors *s, const tensor_info *t)
{
    float *values = read_floats(ctx, s, t), first = values[0];
    mem_free(ctx, values);
    return first;
}

/* ---- cases: what they are stands in their own files ---- */

typedef struct golden_case {
    const char *folder;
    arena words;              /* what the two below lie in */
    const value *settings;    /* case.json */
    const value *description; /* quant_model_description_*.json; NULL if there is none */
} golden_case;

static inline const char *golden_setting(const golden_case *c, const char *key)
{
    const value *v = value_get(c->settings, key);
    return v && v->type == VALUE_STRING ? v->text : NULL;
}

/* The reference has two: the Python API, and a service with schemes and tensors of its own. */
static inline bool golden_is_first_api(const golden_case *c)
{
    const char *api = golden_setting(c, "api");
    return !api || strcmp(api, "v0") == 0;
}

/* The quantization type of a tensor by the description, "" if it has none. */
static inline const char *golden_type(const golden_case *c, const char *module, const char *part)
{
    char name[512];
    snprintf(name, sizeof name, "%s%s", module, part);
    const value *v = value_get(c->description, name);
    return v && v->type == VALUE_STRING ? v->text : "";
}

/* Has the case's model a `model_type` that there is a table for? */
static inline bool golden_has_known_model(tare_context *ctx, const golden_case *c)
{
    char path[2048];
    const value *config;
    const char *type = NULL;
    arena words = {.ctx = ctx};
    snprintf(path, sizeof path, "%s/../model/config.json", c->folder);
    if (!path_exists(path))
        return false;
    assert_ok(ctx, json_parse_file(ctx, &words, path, 1 << 20, &config));
    assert_ok(ctx, value_get_string(ctx, config, path, "model_type", &type));
    bool known = type && architecture_find(type);
    arena_free(&words);
    return known;
}

static inline void golden_open(tare_context *ctx, const char *folder, golden_case *c)
{
    static const char prefix[] = "quant_model_description";
    char path[2048], **files;
    size_t count;
    *c = (golden_case){.folder = folder, .words = {.ctx = ctx}};
    snprintf(path, sizeof path, "%s/case.json", folder);
    assert_ok(ctx, json_parse_file(ctx, &c->words, path, 1 << 20, &c->settings));
    assert_ok(ctx, folder_list(ctx, folder, &files, &count));
    for (size_t i = 0; i < count; i++) {
        if (strncmp(files[i], prefix, sizeof prefix - 1) != 0)
            continue;
        snprintf(path, sizeof path, "%s/%s", folder, files[i]);
        assert_ok(ctx, json_parse_file(ctx, &c->words, path, 1 << 24, &c->description));
    }
    folder_list_free(ctx, files, count);
}

/* Looks at a case; returns how much of it the test covers. */
typedef size_t (*golden_visit)(tare_context *ctx, const golden_case *c);

static inline size_t golden_visit_case(tare_context *ctx, const char *folder, golden_visit visit,
                                       size_t *left_out)
{
    golden_case c;
    golden_open(ctx, folder, &c);
    size_t covered = visit(ctx, &c);
    if (covered == 0) {
        const value *type = value_get(c.description, "model_quant_type");
        const char *method = golden_setting(&c, "anti_method"), *api = golden_setting(&c, "api");
        print_message("             not covered: %s (%s%s%s%s%s)\n", folder,
                      type ? type->text : "no description", method ? ", anti_method " : "",
                      method ? method : "", api ? ", API " : "", api ? api : "");
        ++*left_out;
    }
    arena_free(&c.words);
    return covered;
}

/* Calls visit for every folder with a case.json and `name` two folders below the golden roots.
 * Names those of which nothing is covered, and how many they are; returns the sum of what visit
 * did. */
static inline size_t each_golden_case(tare_context *ctx, const char *name, golden_visit visit)
{
    size_t covered = 0, left_out = 0, seen = 0;
    for (size_t r = 0; r < GOLDEN_ROOTS; r++) {
        char **models, **cases;
        size_t num_models, num_cases;
        if (!path_is_folder(golden_roots[r]))
            continue;
        assert_ok(ctx, folder_list(ctx, golden_roots[r], &models, &num_models));
        for (size_t m = 0; m < num_models; m++) {
            char folder[1024], path[2048], settings[2048];
            snprintf(folder, sizeof folder, "%s/%s", golden_roots[r], models[m]);
            if (!path_is_folder(folder))
                continue;
            assert_ok(ctx, folder_list(ctx, folder, &cases, &num_cases));
            for (size_t c = 0; c < num_cases; c++) {
                snprintf(settings, sizeof settings, "%s/%s/case.json", folder, cases[c]);
                snprintf(path, sizeof path, "%s/%s/%s", folder, cases[c], name);
                if (!path_exists(path) || !path_exists(settings))
                    continue;
                snprintf(path, sizeof path, "%s/%s", folder, cases[c]);
                covered += golden_visit_case(ctx, path, visit, &left_out);
                seen++;
            }
            folder_list_free(ctx, cases, num_cases);
        }
        folder_list_free(ctx, models, num_models);
    }
    print_message("             golden cases: %zu covered, %zu not\n", seen - left_out, left_out);
    return covered;
}

#endif
