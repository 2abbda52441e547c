/* PyTorch's CPU sum of contiguous FP32 values, addition by addition (aten/src/ATen/native/cpu/
 * SumKernel.cpp: vectorized_inner_sum over multi_row_sum, 8 lanes of AVX2). */
#include <string.h>

#include "quantize/observer.h"

enum { LANES = 8, COLUMNS = 4, ROW = LANES * COLUMNS, LEVELS = 4 };

static size_t ceil_log2(size_t x)
{
    size_t log = 0;
    while (((size_t)1 << log) < x)
        log++;
    return log;
}

static void add(float *to, const float *from, size_t n)
{
    for (size_t i = 0; i < n; i++)
        to[i] += from[i];
}

/* Cascade over rows of 4 vectors: sum[ROW] = the four accumulators. */
static void sum_rows(const float *x, size_t rows, float *sum)
{
    float level[LEVELS][ROW] = {{0}};
    size_t power = ceil_log2(rows) / LEVELS;
    power = power < 4 ? 4 : power;
    size_t step = (size_t)1 << power, i = 0;
    while (i + step <= rows) {
        for (size_t j = 0; j < step; j++, i++)
            add(level[0], x + i * ROW, ROW);
        for (size_t j = 1; j < LEVELS; j++) {
            add(level[j], level[j - 1], ROW);
            memset(level[j - 1], 0, sizeof level[j - 1]);
            if ((i & ((step - 1) << (j * power))) != 0)
                break;
        }
    }
    for (; i < rows; i++)
        add(level[0], x + i * ROW, ROW);
    for (size_t j = 1; j < LEVELS; j++)
        add(level[0], level[j], ROW);
    memcpy(sum, level[0], sizeof level[0]);
}

/* Fewer than one vector: four scalar accumulators, left-overs in the first. */
static float sum_few(const float *x, size_t n)
{
    float columns[COLUMNS] = {0};
    size_t rows = n / COLUMNS;
    add(columns, x, rows * COLUMNS);
    for (size_t i = rows * COLUMNS; i < n; i++)
        columns[0] += x[i];
    for (size_t c = 1; c < COLUMNS; c++)
        columns[0] += columns[c];
    return columns[0];
}

float torch_sum(const float *x, size_t n)
{
    if (n < LANES)
        return sum_few(x, n);
    float lanes[ROW], result = 0.0f;
    size_t vectors = n / LANES, rows = vectors / COLUMNS;
    sum_rows(x, rows, lanes);
    for (size_t v = rows * COLUMNS; v < vectors; v++)
        add(lanes, x + v * LANES, LANES);
    for (size_t c = 1; c < COLUMNS; c++)
        add(lanes, lanes + c * LANES, LANES);
    for (size_t i = vectors * LANES; i < n; i++)
        result += x[i];
    for (size_t i = 0; i < LANES; i++)
        result += lanes[i];
    return result;
}
