/* The setting run.max_memory: how many bytes each device may hold (spec/low_memory.md 1.1). A
 * device is "cpu", the host, or a whole number, a compute device. */
#ifndef TARE_QUANTIZE_MAX_MEMORY_H
#define TARE_QUANTIZE_MAX_MEMORY_H

#include "base/memory.h"

enum { DEVICE_CPU = -1 };

typedef struct device_limit {
    int64_t device; /* DEVICE_CPU, or the number of a compute device */
    uint64_t bytes;
} device_limit;

typedef struct max_memory {
    device_limit *items;
    size_t count, capacity;
} max_memory;

/* Bytes of a size like "25GiB", "1.5 MiB" or "500GB". TARE_E_USAGE quotes what is none. */
tare_status memory_size_parse(tare_context *ctx, const char *text, uint64_t *bytes);

/* "cpu=8GiB", or several with commas between them, added to those that are there. */
tare_status max_memory_add_text(tare_context *ctx, max_memory *m, const char *text);
/* One device; `size` as above. A device that is named already is refused. */
tare_status max_memory_add(tare_context *ctx, max_memory *m, const char *device, const char *size);
/* The same with a number of bytes, which must be positive. */
tare_status max_memory_add_bytes(tare_context *ctx, max_memory *m, const char *device,
                                 int64_t bytes);
/* 0: no limit was given. */
uint64_t max_memory_of(const max_memory *m, int64_t device);
/* One warning for each device that this build has not got; its limit has no effect. */
void max_memory_warn(tare_context *ctx, const max_memory *m);
/* *out holds nothing yet. */
tare_status max_memory_copy(tare_context *ctx, const max_memory *m, max_memory *out);
void max_memory_clear(tare_context *ctx, max_memory *m);

#endif
