/* Element types of stored tensors: names as in safetensors headers, sizes in bytes. */
#ifndef TARE_BASE_DTYPE_H
#define TARE_BASE_DTYPE_H

#include <stdbool.h>
#include <stddef.h>

typedef enum tare_dtype {
    TARE_F32,
    TARE_F16,
    TARE_BF16,
    TARE_F64,
    TARE_I8,
    TARE_U8,
    TARE_I16,
    TARE_U16,
    TARE_I32,
    TARE_U32,
    TARE_I64,
    TARE_U64,
    TARE_BOOL,
    TARE_F8_E4M3,
    TARE_F8_E5M2,
    TARE_DTYPE_COUNT
} tare_dtype;

size_t dtype_size(tare_dtype dtype);
/* "F32", "BF16", … as in a safetensors header. */
const char *dtype_name(tare_dtype dtype);
/* False if `name` [length] is no known dtype. */
bool dtype_from_name(const char *name, size_t length, tare_dtype *out);
/* F32, F16 or BF16: what a weight may be stored in. */
bool dtype_is_float(tare_dtype dtype);

#endif
