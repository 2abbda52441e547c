/* The table of schemes. */
#include "quantize/schemes.h"

#include <string.h>

#include "quantize/parts.h"

enum {
    INTEGERS = 1 << TENSOR_WEIGHT | 1 << TENSOR_WEIGHT_SCALE | 1 << TENSOR_WEIGHT_OFFSET,
    CALIBRATED = 1 << TENSOR_INPUT_SCALE | 1 << TENSOR_INPUT_OFFSET | 1 << TENSOR_QUANT_BIAS |
                 1 << TENSOR_DEQ_SCALE
};

static const scheme_row rows[SCHEMES] = {
    [SCHEME_FLOAT] = {"FLOAT", "float", ACT_FLOAT, 0, 0, true},
    [SCHEME_W8A8_DYNAMIC] = {"W8A8_DYNAMIC", "w8a8_dynamic", ACT_PER_TOKEN, INTEGERS, 8, true},
    [SCHEME_W8A8_MIX] = {"W8A8_MIX", "w8a8_mix", ACT_STATIC, INTEGERS | CALIBRATED, 8, true},
    [SCHEME_W8A8] = {"W8A8", "w8a8", ACT_STATIC, INTEGERS | CALIBRATED, 8, false},
    [SCHEME_W8A16] = {"W8A16", "w8a16", ACT_FLOAT, INTEGERS, 8, true},
    [SCHEME_W4A8_DYNAMIC] = {"W4A8_DYNAMIC", "w4a8_dynamic", ACT_PER_TOKEN, INTEGERS, 4, true},
};

const scheme_row *scheme_of(linear_scheme scheme)
{
    return &rows[scheme];
}

linear_scheme scheme_naming(unsigned present)
{
    int i = SCHEME_FLOAT + 1;
    while (i < SCHEMES && !(present >> i & 1))
        i++;
    return i < SCHEMES ? (linear_scheme)i : SCHEME_FLOAT;
}

bool scheme_of_type(const char *type, linear_scheme *out)
{
    for (int i = SCHEME_FLOAT + 1; i < SCHEMES; i++) {
        if (strcmp(type, rows[i].type) == 0) {
            *out = (linear_scheme)i;
            return true;
        }
    }
    return false;
}

bool scheme_of_name(const char *name, linear_scheme *out)
{
    for (int i = 0; i < SCHEMES; i++) {
        if (strcmp(name, rows[i].name) == 0) {
            *out = (linear_scheme)i;
            return true;
        }
    }
    return false;
}
