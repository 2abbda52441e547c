/* Scores of inputs by quantiles or by standard deviation. */
#include "quantize/layer_selector.h"

#include <math.h>
#include <string.h>

#include "base/carver.h"
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

/* What an update, or the score at the end, works in. */
typedef struct room {
    size_t sorted, scratch; /* elements; 0: none */
    float *values, *beside;
} room;

static void lay_out(carver *c, void *component)
{
    room *r = component;
    r->values = carve(c, r->sorted, sizeof *r->values);
    r->beside = carve(c, r->scratch, sizeof *r->beside);
}

static room room_of_update(tare_range_method method, size_t rows, size_t cols)
{
    return method == TARE_RANGE_STD ? (room){.scratch = 2 * cols}
                                    : (room){.sorted = rows * cols, .scratch = rows * cols};
}

tare_status layer_selector_update(layer_selector *s, const float *x, size_t rows, size_t cols)
{
    tare_status status = TARE_OK;
    const numerics plain = {.dtype = TARE_F32};
    room r = room_of_update(s->method, rows, cols);
    TRY(carver_alloc(s->ctx, lay_out, &r));
    if (s->method == TARE_RANGE_STD) {
        TRY(score_update(s->ctx, &plain, &s->state, x, rows, cols, r.beside));
    } else {
        memcpy(r.values, x, r.sorted * sizeof *x);
        TRY(sort_floats(s->ctx, r.values, r.sorted, r.beside));
        TRY(keep(s, r.values, r.sorted));
    }
done:
    mem_free(s->ctx, r.values);
    return status;
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
    tare_status status = TARE_OK;
    size_t n = s->num_kept, quarter = n / 4;
    room r = {.scratch = n};
    TRY(carver_alloc(s->ctx, lay_out, &r));
    TRY(sort_floats(s->ctx, s->kept, n, r.beside));
    double largest = fmax(fabs((double)s->kept[0]), fabs((double)s->kept[n - 1]));
    *score = ratio(2 * largest / 254, (double)s->kept[3 * quarter] - (double)s->kept[quarter]);
done:
    mem_free(s->ctx, r.values);
    return status;
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
    room r = room_of_update(method, rows, cols);
    return carver_bytes(lay_out, &r) +
           (method == TARE_RANGE_STD ? score_update_bytes(cols) : sort_floats_bytes(ctx));
}

size_t layer_selector_score_bytes(const tare_context *ctx, tare_range_method method,
                                  const size_t *lengths, size_t samples, size_t cols)
{
    if (method == TARE_RANGE_STD)
        return 0;
    room r = {.scratch = most_kept(lengths, samples, cols)};
    return carver_bytes(lay_out, &r) + sort_floats_bytes(ctx);
}
