/* Numeric rules of W8A8, W8A16 and W4A8 (specification: spec/w8a8.md, sections 2 to 4, 7, 8.1 and
 * 9; spec/schemes.md 6). One `numerics` value says how scales are rounded and which arithmetic is
 * used; everything in quantize/ takes it. */
#ifndef TARE_QUANTIZE_SCHEME_H
#define TARE_QUANTIZE_SCHEME_H

#include "base/dtype.h"
#include "base/memory.h"
#include "tensor/codec.h"

typedef struct numerics {
    bool compat; /* msModelSlim's native-dtype arithmetic: every operation rounded to `dtype` */
    tare_dtype dtype;   /* S, the serving dtype (compat: M, the model dtype): F32, F16 or BF16 */
    bool act_symmetric; /* static activations have offset 0 (never in compat) */
} numerics;

/* Scale and offset of activations: q = clamp(rne(x/scale + offset), -128, 127), x' = (q - offset) *
 * scale. */
typedef struct act_params {
    float scale, offset;
    /* Dtype in which scale and offset are stored: FP32 in compat with FP16 and the histogram;
     * numerics.dtype elsewhere. */
    tare_dtype dtype;
} act_params;

/* Section 4.1 (compat: 9.1); act_symmetric: its form with offset 0, s = rS(max(max(-lo,hi)/127,
 * eps)), for which output_formats.md 7 has a place. TARE_E_NUMERIC for a range that is not finite
 * or a scale that does not fit the dtype. */
tare_status act_params_from_range(tare_context *ctx, const numerics *num, double lo, double hi,
                                  bool histogram, act_params *out);
/* The same without a refusal: what does not fit is infinite. */
act_params act_params_of(const numerics *num, double lo, double hi, bool histogram);

/* ---- weights ---- */

struct smooth_weight;

typedef enum weight_method {
    WEIGHT_INT8,
    /* Integers in -8..7, scales in FP32 (spec/schemes.md 6.1): s = max(max|w|/7, eps), or what
     * least squares make of that. */
    WEIGHT_INT4_MINMAX,
    WEIGHT_INT4_SSZ
} weight_method;

/* Rows of a weight, which need not be in memory as a whole. */
typedef struct weight_rows {
    coded_rows stored; /* [count,k], borrowed */
    /* What smoothing makes of them (quantize/smooth.h), FP32, row by row, instead; NULL: they are
     * as they are. */
    const struct smooth_weight *smooth;
    size_t count;
    size_t first; /* number of the first row in its matrix, for messages */
    /* Section 3's asymmetric form: q = clamp(rne(w/s + z), -128, 127), w' = (q - z) * s; else z = 0
     * and q in -127..127. Its compat arithmetic is that of section 9.1's "Range", by analogy: the
     * reference's is not covered by a golden case. */
    bool asymmetric;
    weight_method method; /* of 4 bits: symmetric, a scale for each row, never zero_rows */
} weight_rows;

/* Extremes of what was measured so far, 0 always among them, and their rows; {0} to begin with. */
typedef struct weight_range {
    float lo, hi;
    size_t lo_row, hi_row;
} weight_range;

/* Where quantized rows go. */
typedef struct weight_codes {
    int8_t *q;               /* [count,k] */
    float *scales, *offsets; /* [count], or [1] with one scale for the matrix; offsets NULL if
                                symmetric */
    int64_t *row_sums;       /* [count] sum of q; NULL: not wanted (always NULL if asymmetric) */
    bool *zero_rows;         /* [count]; NULL: not wanted */
} weight_codes;

/* Widens `range` by all elements. NaN or infinity: TARE_E_NUMERIC that names row and column. */
tare_status weight_rows_measure(tare_context *ctx, const numerics *num, const weight_rows *rows,
                                weight_range *range);
/* Section 3 (compat: 9.1): a scale for each row, or with `range` (may be NULL) the one scale that
 * fits it. Zero rows get scale 1 (compat: eps). Errors as above; a scale that does not fit the
 * dtype is one too. Parallel over rows; a row's result depends on nothing but the row and the
 * range. */
tare_status weight_rows_quantize(tare_context *ctx, const numerics *num, const weight_rows *rows,
                                 const weight_range *range, const weight_codes *out);

/* Integer weight of one linear. Owned by the caller: weight_quantized_free. */
typedef struct quantized_weight {
    size_t n, k;
    int8_t *q;         /* [n,k] */
    float *scales;     /* [num_scales], of 8 bits rounded to numerics.dtype */
    size_t num_scales; /* n, or 1 with one scale per matrix */
    int64_t *row_sums; /* [n] sum of q over the row */
    bool *zero_rows;   /* [n] */
} quantized_weight;

/* A whole matrix, symmetric: all its rows, as weight_rows_quantize. The scale of zero rows is
 * preliminary until weight_settle_zero_rows. */
tare_status weight_quantize_rows(tare_context *ctx, const numerics *num, const weight_rows *rows,
                                 bool per_tensor, quantized_weight *out);
/* The same of `w` [n,k] in `dtype`. */
tare_status weight_quantize(tare_context *ctx, const numerics *num, tare_dtype dtype, const void *w,
                            size_t n, size_t k, bool per_tensor, quantized_weight *out);
/* Accounted bytes, at most: of the result, and what making it needs beside. */
size_t weight_quantized_bytes(size_t n, size_t k);
size_t weight_quantize_bytes(const tare_context *ctx, size_t n, size_t k);
void weight_quantized_free(tare_context *ctx, quantized_weight *w);
/* Zero rows with a bias take the scale of section 3's last rule, once input_scale is known. `bias`
 * [n] FP32 or NULL. */
void weight_settle_zero_rows(const numerics *num, quantized_weight *w, const float *bias,
                             float input_scale);

/* Section 7: deq_scale [num_scales] and quant_bias [n] from the stored values. Returns the number
 * of saturated rows and, if any, the worst error in *worst (units of quant_bias; may be NULL).
 * compat: rows whose native deq_scale underflows or overflows get section 2's and are counted too.
 * `bias` may be NULL. */
size_t derive_w8a8(const numerics *num, const quantized_weight *w, const act_params *act,
                   const float *bias, float *deq_scale, int32_t *quant_bias, double *worst);

/* x[n] <- the fake-quantized x of section 4.1 (compat: 9.1, every operation rounded). The reference
 * for the integer path, and the path for pr < 1 and compat FP16/BF16. */
void act_fake_quantize(const numerics *num, const act_params *act, float *x, size_t n);
/* w', borrowed: in FP32, in compat rounded to the dtype; made from the saved integers, where the
 * reference's forward has -128 for the few BF16 weights saved as -127 after clamping. */
coded_rows weight_dequantized(const numerics *num, const quantized_weight *w);

#endif
