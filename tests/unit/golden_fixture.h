/* What the quantize tests share: a context, tensors of safetensors files as FP32, and the golden
 * folders: those checked in, and, where it exists, the full set beside the checkout. */
#ifndef TARE_TESTS_GOLDEN_FIXTURE_H
#define TARE_TESTS_GOLDEN_FIXTURE_H

#include "file/safetensors.h"
#include "fixture.h"
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

/* Calls visit(ctx, folder) for every folder with a file `name` two folders below the golden roots.
 * Returns how many. */
static inline size_t each_golden_case(tare_context *ctx, const char *name,
                                      void (*visit)(tare_context *ctx, const char *folder))
{
    size_t visited = 0;
    for (size_t r = 0; r < GOLDEN_ROOTS; r++) {
        char **models, **cases;
        size_t num_models, num_cases;
        if (!path_is_folder(golden_roots[r]))
            continue;
        assert_ok(ctx, folder_list(ctx, golden_roots[r], &models, &num_models));
        for (size_t m = 0; m < num_models; m++) {
            char folder[1024], path[2048];
            snprintf(folder, sizeof folder, "%s/%s", golden_roots[r], models[m]);
            if (!path_is_folder(folder))
                continue;
            assert_ok(ctx, folder_list(ctx, folder, &cases, &num_cases));
            for (size_t c = 0; c < num_cases; c++) {
                snprintf(path, sizeof path, "%s/%s/%s", folder, cases[c], name);
                if (!path_exists(path))
                    continue;
                snprintf(path, sizeof path, "%s/%s", folder, cases[c]);
                visit(ctx, path);
                visited++;
            }
            folder_list_free(ctx, cases, num_cases);
        }
        folder_list_free(ctx, models, num_models);
    }
    return visited;
}

#endif
