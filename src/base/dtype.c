/* Element types of stored tensors. */
#include "base/dtype.h"

#include <string.h>

static const struct {
    const char *name;
    size_t size;
} dtypes[TARE_DTYPE_COUNT] = {
    [TARE_F32] = {"F32", 4},   [TARE_F16] = {"F16", 2},         [TARE_BF16] = {"BF16", 2},
    [TARE_F64] = {"F64", 8},   [TARE_I8] = {"I8", 1},           [TARE_U8] = {"U8", 1},
    [TARE_I16] = {"I16", 2},   [TARE_U16] = {"U16", 2},         [TARE_I32] = {"I32", 4},
    [TARE_U32] = {"U32", 4},   [TARE_I64] = {"I64", 8},         [TARE_U64] = {"U64", 8},
    [TARE_BOOL] = {"BOOL", 1}, [TARE_F8_E4M3] = {"F8_E4M3", 1}, [TARE_F8_E5M2] = {"F8_E5M2", 1},
};

size_t dtype_size(tare_dtype dtype)
{
    return dtypes[dtype].size;
}

const char *dtype_name(tare_dtype dtype)
{
    return dtypes[dtype].name;
}

bool dtype_from_name(const char *name, size_t length, tare_dtype *out)
{
    for (int i = 0; i < TARE_DTYPE_COUNT; i++) {
        if (strlen(dtypes[i].name) == length && memcmp(dtypes[i].name, name, length) == 0) {
            *out = (tare_dtype)i;
            return true;
        }
    }
    return false;
}

bool dtype_is_float(tare_dtype dtype)
{
    return dtype == TARE_F32 || dtype == TARE_F16 || dtype == TARE_BF16;
}
