/* Rules on the numbers of one linear (7 to 12), recomputed from what is stored: they hold for any
 * model and any calibration. Several elements of one tensor that break a rule are one finding. */
#include <math.h>
#include <string.h>

#include "output/verify_internal.h"
#include "tensor/convert.h"

/* The first element that breaks a rule, and how many do. */
typedef struct breach {
    size_t count, first;
} breach;

static void note(breach *b, size_t index)
{
    if (b->count++ == 0)
        b->first = index;
}

static const char *part_name(const reader_linear *l, tensor_role role)
{
    return l->parts[role]->info.name;
}

static bool positive(float x)
{
    return isfinite(x) && x > 0.0f;
}

tare_status rule_deq_bits(verify *v, reader_layout *f, const reader_linear *l,
                          const reader_numbers *n)
{
    (void)f;
    breach upper = {0}, wrong = {0};
    for (size_t i = 0; i < n->num_deq && n->deq_bits; i++) {
        if ((uint64_t)n->deq_bits[i] >> 32 != 0)
            note(&upper, i);
        else if (!positive(n->deq_scale[i]))
            note(&wrong, i);
    }
    if (upper.count > 0)
        verify_fail(v, 7, part_name(l, TENSOR_DEQ_SCALE), "upper halves 0",
                    "%lld at row %zu (%zu in all)", (long long)n->deq_bits[upper.first],
                    upper.first, upper.count);
    if (wrong.count > 0)
        verify_fail(v, 7, part_name(l, TENSOR_DEQ_SCALE), "the bits of positive float32 numbers",
                    "%lld at row %zu (%zu in all)", (long long)n->deq_bits[wrong.first],
                    wrong.first, wrong.count);
    return TARE_OK;
}

static void check_scales(verify *v, reader_layout *f, const char *name, const float *x,
                         size_t count, bool in_serving)
{
    breach bad = {0}, inexact = {0};
    for (size_t i = 0; i < count; i++) {
        if (!positive(x[i]))
            note(&bad, i);
        else if (in_serving && round_to_dtype((double)x[i], f->num.dtype) != x[i])
            note(&inexact, i);
    }
    if (bad.count > 0)
        verify_fail(v, 8, name, "finite scales above 0", "%g at %zu (%zu in all)",
                    (double)x[bad.first], bad.first, bad.count);
    if (inexact.count > 0)
        verify_fail(v, 8, name, "scales that the serving dtype holds exactly",
                    "%.9g at %zu (%zu in all)", (double)x[inexact.first], inexact.first,
                    inexact.count);
}

tare_status rule_scales(verify *v, reader_layout *f, const reader_linear *l,
                        const reader_numbers *n)
{
    /* The reference keeps FP32 input scales of FP16 models, and compat writes what it writes. */
    bool exact = f->layout == LAYOUT_ASCENDV1 && !f->num.compat && !form_is_int4(&l->form);
    check_scales(v, f, part_name(l, TENSOR_WEIGHT_SCALE), n->weight_scale, n->num_scales, exact);
    if (!n->activations)
        return TARE_OK;
    check_scales(v, f, part_name(l, TENSOR_INPUT_SCALE), &n->input_scale, 1, exact);
    if (n->num_deq > 0 && !n->deq_bits)
        check_scales(v, f, part_name(l, TENSOR_DEQ_SCALE), n->deq_scale, n->num_deq, false);
    return TARE_OK;
}

bool verify_is_offset(float o)
{
    return o >= -128.0f && o <= 127.0f && o == rintf(o);
}

static const char *expected_offsets(const reader_linear *l)
{
    return scheme_of(l->form.scheme)->activations != ACT_FLOAT ? "0" : "integers in -128..127";
}

tare_status rule_offsets(verify *v, reader_layout *f, const reader_linear *l,
                         const reader_numbers *n)
{
    (void)f;
    breach bad = {0};
    const char *expected = expected_offsets(l);
    /* compressed-tensors' zero point can be nothing else */
    if (n->num_deq > 0 && !verify_is_offset(n->input_offset))
        verify_fail(v, 9, part_name(l, TENSOR_INPUT_OFFSET), "an integer in -128..127", "%g",
                    (double)n->input_offset);
    for (size_t i = 0; i < n->num_scales; i++)
        if (*expected == '0' ? n->weight_offset[i] != 0.0f : !verify_is_offset(n->weight_offset[i]))
            note(&bad, i);
    if (bad.count > 0)
        verify_fail(v, 9, part_name(l, TENSOR_WEIGHT_OFFSET), expected, "%g at %zu (%zu in all)",
                    (double)n->weight_offset[bad.first], bad.first, bad.count);
    return TARE_OK;
}

/* compat multiplies in the model dtype, unless the reference kept an FP32 input scale; a product
 * that underflows there stays FP32. */
static float expected_deq(const reader_layout *f, const reader_linear *l, float input_scale,
                          float weight_scale)
{
    float product = input_scale * weight_scale;
    bool widened = l->form.act_dtype == TARE_F32 && f->num.dtype == TARE_F16;
    if (!f->num.compat || widened)
        return product;
    float native = round_to_dtype((double)product, f->num.dtype);
    return positive(native) ? native : product;
}

tare_status rule_deq_product(verify *v, reader_layout *f, const reader_linear *l,
                             const reader_numbers *n)
{
    breach bad = {0};
    for (size_t i = 0; i < n->num_deq; i++) {
        float scale = n->weight_scale[n->num_scales == 1 ? 0 : i];
        float product = expected_deq(f, l, n->input_scale, scale);
        if (n->deq_scale[i] != product && !(isnan(n->deq_scale[i]) && isnan(product)))
            note(&bad, i);
    }
    if (bad.count > 0) {
        float scale = n->weight_scale[n->num_scales == 1 ? 0 : bad.first];
        verify_fail(v, 10, part_name(l, TENSOR_DEQ_SCALE), "input_scale * weight_scale in FP32",
                    "%.9g at row %zu, the product is %.9g (%zu in all)",
                    (double)n->deq_scale[bad.first], bad.first,
                    (double)expected_deq(f, l, n->input_scale, scale), bad.count);
    }
    return TARE_OK;
}

/* rne(bias/deq - offset*sum), not yet saturated; compat in FP32 where that fits an int32. */
static double expected_bias(const reader_layout *f, const reader_numbers *n, size_t row)
{
    float deq = n->deq_scale[n->num_deq == 1 ? 0 : row];
    float bias = n->bias ? n->bias[row] : 0.0f;
    if (f->num.compat) {
        float native = rintf(bias / deq - (float)n->row_sums[row] * n->input_offset);
        if (native >= -0x1p31f && native < 0x1p31f)
            return (double)native;
    }
    double correction = (double)n->row_sums[row] * (double)n->input_offset;
    return rint((bias == 0.0f ? 0.0 : (double)bias / (double)deq) - correction);
}

tare_status rule_quant_bias(verify *v, reader_layout *f, const reader_linear *l,
                            const reader_numbers *n)
{
    breach bad = {0}, saturated = {0};
    double tolerance = f->num.compat ? 1.0 : 0.0;
    for (size_t i = 0; i < n->n && n->quant_bias; i++) {
        double exact = expected_bias(f, n, i);
        double expected = fmin(fmax(exact, (double)INT32_MIN), (double)INT32_MAX);
        if (exact != expected)
            note(&saturated, i);
        if (!(fabs((double)n->quant_bias[i] - expected) <= tolerance))
            note(&bad, i);
    }
    if (bad.count > 0)
        verify_fail(v, 11, part_name(l, TENSOR_QUANT_BIAS),
                    "rne(bias/deq_scale - input_offset*row sum)",
                    "%d at row %zu, recomputed %.0f (%zu in all)", n->quant_bias[bad.first],
                    bad.first, expected_bias(f, n, bad.first), bad.count);
    if (saturated.count > 0)
        verify_warn(v, 11, part_name(l, TENSOR_QUANT_BIAS), "values that fit int32",
                    "%.0f at row %zu, saturated (%zu rows in all)",
                    expected_bias(f, n, saturated.first), saturated.first, saturated.count);
    return TARE_OK;
}

/* Sums of up to so many integers of 8 in FP32, as another tool may have added them. */
tare_status rule_scale_bias(verify *v, reader_layout *f, const reader_linear *l,
                            const reader_numbers *n)
{
    (void)f;
    breach bad = {0};
    size_t slices = l->form.slices;
    for (size_t i = 0; n->sums && i < n->n * slices; i++) {
        double scale = (double)n->weight_scale[i / slices], exact = 8 * scale * (double)n->sums[i];
        double largest = 64 * scale * (double)(n->k / slices);
        if (!(fabs((double)n->scale_bias[i] - exact) <= 1e-6 * largest))
            note(&bad, i);
    }
    if (bad.count > 0)
        verify_fail(v, 11, part_name(l, TENSOR_SCALE_BIAS), "8 * weight_scale * sum of integers",
                    "%.9g at %zu, recomputed %.9g (%zu in all)", (double)n->scale_bias[bad.first],
                    bad.first,
                    8 * (double)n->weight_scale[bad.first / slices] * (double)n->sums[bad.first],
                    bad.count);
    return TARE_OK;
}

/* Is one scale in use for the whole matrix? ascendv1 repeats it. */
static bool single_scale(const reader_numbers *n)
{
    for (size_t i = 1; i < n->num_scales; i++)
        if (n->weight_scale[i] != n->weight_scale[0])
            return false;
    return true;
}

static bool is_symmetric(const reader_linear *l, const reader_numbers *n)
{
    for (size_t i = 0; i < n->num_scales; i++)
        if (n->weight_offset[i] != 0.0f)
            return scheme_of(l->form.scheme)->activations != ACT_FLOAT;
    return true;
}

/* Steps between the integers of a row and its zero (the offset): up to 127 in one direction, with
 * an offset up to 255 in both together. */
static int reach_of(bool symmetric, float low, float high)
{
    return (int)fminf(symmetric ? fmaxf(high, -low) : high - low, 255.0f);
}

/* What rounding a scale up, and an offset, may take is left out of `enough`. */
tare_status rule_integer_range(verify *v, reader_layout *f, const reader_linear *l,
                               const reader_numbers *n)
{
    (void)f;
    if (form_is_int4(&l->form)) /* any nibble is one, and a search may leave the last ones out */
        return TARE_OK;
    breach below = {0}, weak = {0};
    bool symmetric = is_symmetric(l, n);
    float lowest = 0, highest = 0;
    int enough = symmetric ? 126 : 252;
    for (size_t i = 0; i < n->n; i++) {
        float zero = symmetric ? 0.0f : n->weight_offset[n->num_scales == 1 ? 0 : i];
        float low = fminf(n->row_min[i], zero), high = fmaxf(n->row_max[i], zero);
        int reach = reach_of(symmetric, low, high);
        lowest = fminf(i ? lowest : low, low);
        highest = fmaxf(i ? highest : high, high);
        if (symmetric && n->row_min[i] < -127)
            note(&below, i);
        if (reach > 0 && reach < enough)
            note(&weak, i);
    }
    int matrix = reach_of(symmetric, lowest, highest);
    /* gptq may leave less of what was a row's largest value. */
    bool falls_short = !verify_rounds_by_inputs(v) &&
                       (single_scale(n) ? matrix > 0 && matrix < enough : weak.count > 0);
    if (below.count > 0)
        verify_fail(v, 12, part_name(l, TENSOR_WEIGHT), "-127..127",
                    "-128 in row %zu (%zu rows in all)", below.first, below.count);
    if (falls_short)
        verify_warn(v, 12, part_name(l, TENSOR_WEIGHT),
                    symmetric ? "integers that reach 126" : "integers that span 252",
                    single_scale(n) ? "at most %zu in the matrix" : "less in row %zu and others",
                    single_scale(n) ? (size_t)matrix : weak.first);
    return TARE_OK;
}
