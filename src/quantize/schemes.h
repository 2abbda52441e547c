/* The schemes by which a linear can be written (specification: spec/w8a8.md, spec/schemes.md): a
 * row each. FLOAT is one of them: whatever asks how a linear is treated asks for its scheme. */
#ifndef TARE_QUANTIZE_SCHEMES_H
#define TARE_QUANTIZE_SCHEMES_H

#include <stdbool.h>

/* A model of several goes by the name of the first (spec/schemes.md 7.3). */
typedef enum linear_scheme {
    SCHEME_FLOAT,
    SCHEME_W8A8_DYNAMIC, /* the engine scales each token's activations */
    SCHEME_W8A8_MIX,     /* W8A8's tensors, of which an engine takes either half: section 3 */
    SCHEME_W8A8,         /* static activations: one scale and offset, calibrated */
    SCHEME_W8A16,        /* weights alone, a scale for each row or for the matrix */
    SCHEME_W4A8_DYNAMIC, /* of routed experts: 4-bit weights, each token's activations (section 6)
                          */
    SCHEMES
} linear_scheme;

/* How the inputs of a linear's product are quantized. */
typedef enum act_kind {
    ACT_FLOAT,    /* not at all */
    ACT_STATIC,   /* by a scale and an offset that calibration concludes */
    ACT_PER_TOKEN /* by each row's own largest value, without an offset (spec/schemes.md 2) */
} act_kind;

typedef struct scheme_row {
    const char *type; /* in descriptions: "W8A8" */
    const char *name; /* in recipes: "w8a8" */
    act_kind activations;
    unsigned parts; /* 1 << tensor_role; a bias is its layer's own */
    int weight_bits;
    /* Engines add the layer's own bias, if the architecture has one there, and not (or not always)
     * quant_bias: one that smoothing made is lost. */
    bool adds_bias;
} scheme_row;

const scheme_row *scheme_of(linear_scheme scheme);
/* The one of `present` (bits) that a model is named by; none: FLOAT. */
linear_scheme scheme_naming(unsigned present);
/* By the type of a description; false: none that tare writes, FLOAT included. */
bool scheme_of_type(const char *type, linear_scheme *out);
/* By the name in a recipe. */
bool scheme_of_name(const char *name, linear_scheme *out);

#endif
