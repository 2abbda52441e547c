/* Scores of inputs by quantiles or by standard deviation. */
#include "quantize/layer_selector.h"

#include <math.h>
#include <string.h>

#include "base/context.h"
#include "base/sort.h"

enum { STEP = 100, FIRST = STEP / 2 };

struct layer_selector {
    tare_context *ctx;
    tare_range_method method;
    score_state state; /* std */
    float *kept;       /* quantile: of all calls; mem_free */
    size_t num_kept, capacity;
};

tare_status layer_selector_create(tare_context *ctx, tare_range_method method, layer_selector **out)
{
    layer_selector *s = *out = mem_calloc(ctx, 1, sizeof *s);
    if (!s)
        return TARE_E_MEMORY;
    s->ctx = ctx;
    s->method = method;
    score_init(&s->state);
    return TARE_OK;
}

void layer_selector_free(layer_selector *s)
{
    if (!s)
        return;
    mem_free(s->ctx, s->kept);
    mem_free(s->ctx, s);
}

static size_t kept_of(size_t count)
{
    return count < STEP ? count : (count - FIRST + STEP - 1) / STEP;
}

/* Ascending numbers are finite if the first and the last are: a NaN goes to the ends. */
static tare_status keep(layer_selector *s, const float *x, size_t count)
{
    tare_status status = TARE_OK;
    size_t n = kept_of(count);
    if (!isfinite(x[0]) || !isfinite(x[count - 1]))
        return TARE_FAIL(s->ctx, TARE_E_NUMERIC, "an activation is NaN or infinite");
    TRY(mem_grow(s->ctx, (void **)&s->kept, &s->capacity, s->num_kept + n, sizeof *s->kept));
    for (size_t i = 0; i < n; i++)
        s->kept[s->num_kept++] = count < STEP ? x[i] : x[FIRST + i * STEP];
done:
    return status;
}

static tare_status update_quantile(layer_selector *s, const float *x, size_t rows, size_t cols)
{
    tare_status status = TARE_OK;
    size_t count;
    float *sorted = NULL, *scratch = NULL;
    if (!size_mul(rows, cols, &count))
        return TARE_FAIL(s->ctx, TARE_E_MEMORY, "out of memory: a sample of %zu tokens", rows);
    sorted = mem_alloc_array(s->ctx, count, sizeof *sorted);
    scratch = mem_alloc_array(s->ctx, count, sizeof *scratch);
    TRY(sorted && scratch ? TARE_OK : TARE_E_MEMORY);
    memcpy(sorted, x, count * sizeof *x);
    TRY(sort_floats(s->ctx, sorted, count, scratch));
    TRY(keep(s, sorted, count));
done:
    mem_free(s->ctx, sorted);
    mem_free(s->ctx, scratch);
    return status;
}

static tare_status update_std(layer_selector *s, const float *x, size_t rows, size_t cols)
{
    const numerics plain = {.dtype = TARE_F32};
    float *scratch = mem_alloc_array(s->ctx, 2 * cols, sizeof *scratch);
    if (!scratch)
        return TARE_E_MEMORY;
    tare_status status = score_update(s->ctx, &plain, &s->state, x, rows, cols, scratch);
    mem_free(s->ctx, scratch);
    return status;
}

tare_status layer_selector_update(layer_selector *s, const float *x, size_t rows, size_t cols)
{
    return s->method == TARE_RANGE_STD ? update_std(s, x, rows, cols)
                                       : update_quantile(s, x, rows, cols);
}

/* In FP32, as the reference's numbers are: equal scores are told by it. */
static double ratio(double largest, double spread)
{
    if (spread == 0)
        return largest == 0 ? 0 : INFINITY;
    return (double)(float)(largest / spread);
}

static tare_status score_quantile(layer_selector *s, double *score)
{
    size_t n = s->num_kept, quarter = n / 4;
    float *scratch = mem_alloc_array(s->ctx, n, sizeof *scratch);
    if (!scratch)
        return TARE_E_MEMORY;
    tare_status status = sort_floats(s->ctx, s->kept, n, scratch);
    mem_free(s->ctx, scratch);
    if (status != TARE_OK)
        return status;
    double largest = fmax(fabs((double)s->kept[0]), fabs((double)s->kept[n - 1]));
    *score = ratio(2 * largest / 254, (double)s->kept[3 * quarter] - (double)s->kept[quarter]);
    return TARE_OK;
}

tare_status layer_selector_score(layer_selector *s, double *score)
{
    if (s->method == TARE_RANGE_QUANTILE)
        return score_quantile(s, score);
    *score = ratio(fmax(fabs(s->state.min), fabs(s->state.max)), s->state.std);
    return TARE_OK;
}

/* ---- memory ---- */

static size_t most_kept(const size_t *lengths, size_t samples, size_t cols)
{
    size_t kept = 0;
    for (size_t i = 0; i < samples; i++)
        kept += kept_of(lengths[i] * cols);
    return kept;
}

/* mem_grow doubles: while it copies there are three times what is needed. */
size_t layer_selector_bytes(tare_range_method method, const size_t *lengths, size_t samples,
                            size_t cols)
{
    size_t bytes = mem_block_bytes(sizeof(layer_selector));
    if (method == TARE_RANGE_QUANTILE)
        bytes += mem_array_bytes(3 * most_kept(lengths, samples, cols), sizeof(float));
    return bytes;
}

size_t layer_selector_update_bytes(const tare_context *ctx, tare_range_method method, size_t rows,
                                   size_t cols)
{
    if (method == TARE_RANGE_STD)
        return mem_array_bytes(2 * cols, sizeof(float)) + score_update_bytes(cols);
    return 2 * mem_array_bytes(rows * cols, sizeof(float)) + sort_floats_bytes(ctx);
}

size_t layer_selector_score_bytes(const tare_context *ctx, tare_range_method method,
                                  const size_t *lengths, size_t samples, size_t cols)
{
    if (method == TARE_RANGE_STD)
        return 0;
    return mem_array_bytes(most_kept(lengths, samples, cols), sizeof(float)) +
           sort_floats_bytes(ctx);
}
