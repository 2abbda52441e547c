#include "tensor/rotation.h"

#include <math.h>
#include <string.h>

#include "base/rng.h"
#include "tensor/kernels.h"

/* ---- Paley's matrices ---- */

static bool is_prime(size_t p)
{
    if (p < 2)
        return false;
    for (size_t d = 2; d * d <= p; d++)
        if (p % d == 0)
            return false;
    return true;
}

/* Type I: q + 1 for primes q = 3 mod 4; type II: 2 (q + 1) for primes q = 1 mod 4. */
static bool paley_first(size_t order)
{
    return order > 3 && order % 4 == 0 && is_prime(order - 1);
}

static bool paley_second(size_t order)
{
    return order % 4 == 0 && (order / 2 - 1) % 4 == 1 && is_prime(order / 2 - 1);
}

size_t rotation_order(size_t n, bool *paley)
{
    size_t odd = n;
    while (odd > 1 && odd % 2 == 0)
        odd /= 2;
    *paley = true;
    if (odd == 1)
        return 1;
    for (size_t order = 4 * odd; order <= n && n % order == 0; order *= 2)
        if (paley_first(order) || paley_second(order))
            return order;
    *paley = false;
    return odd;
}

/* 1 for squares modulo q, -1 for others, 0 for 0. */
static int legendre(size_t x, size_t q)
{
    size_t power = 1, base = x % q;
    for (size_t e = (q - 1) / 2; e > 0; e /= 2) {
        if (e % 2)
            power = power * base % q;
        base = base * base % q;
    }
    return base == 0 || x % q == 0 ? 0 : power == 1 ? 1 : -1;
}

/* Element of [[0, 1^T], [s 1, Q]] with Q of the differences' characters: skew for q = 3 mod 4 (s =
 * -1), symmetric for 1 mod 4 (s = 1). */
static int conference(size_t i, size_t j, size_t q)
{
    int sign = q % 4 == 3 ? -1 : 1;
    if (i == 0 || j == 0)
        return i == j ? 0 : i == 0 ? 1 : sign;
    return legendre(i + q - j, q);
}

static int paley_element(size_t order, size_t i, size_t j)
{
    if (paley_first(order))
        return conference(i, j, order - 1) + (i == j);
    int plus = i % 2 && j % 2 ? -1 : 1;            /* [[1, 1], [1, -1]] */
    int minus = i % 2 == 0 && j % 2 == 0 ? 1 : -1; /* [[1, -1], [-1, -1]] */
    return conference(i / 2, j / 2, order / 2 - 1) * plus + (i / 2 == j / 2) * minus;
}

/* ---- any order ---- */

/* Normal numbers by Box and Muller. */
static double normal(rng *r)
{
    double u = 1 - rng_double(r), v = rng_double(r);
    return sqrt(-2 * log(u)) * cos(2 * acos(-1.0) * v);
}

/* Rows of normal numbers made orthogonal one after the other, twice over for FP64's sake: the Q of
 * a QR decomposition whose R has a positive diagonal. */
static tare_status random_orthogonal(tare_context *ctx, rng *r, size_t order, float *out)
{
    double *q = mem_alloc_array(ctx, order * order, sizeof *q);
    if (!q)
        return TARE_E_MEMORY;
    for (size_t i = 0; i < order; i++) {
        double *row = q + i * order, length = 0;
        for (size_t k = 0; k < order; k++)
            row[k] = normal(r);
        for (size_t pass = 0; pass < 2 * i; pass++) {
            const double *other = q + pass % i * order;
            double dot = 0;
            for (size_t k = 0; k < order; k++)
                dot += row[k] * other[k];
            for (size_t k = 0; k < order; k++)
                row[k] -= dot * other[k];
        }
        for (size_t k = 0; k < order; k++)
            length += row[k] * row[k];
        for (size_t k = 0; k < order; k++) {
            row[k] /= sqrt(length);
            out[i * order + k] = (float)row[k];
        }
    }
    mem_free(ctx, q);
    return TARE_OK;
}

/* ---- life ---- */

tare_status rotation_create(tare_context *ctx, size_t n, uint64_t seed, uint32_t part,
                            rotation *out)
{
    tare_status status = TARE_OK;
    rng r;
    *out = (rotation){.n = n};
    size_t order = out->order = rotation_order(n, &out->paley);
    double scale = 1 / sqrt((double)(out->paley ? n : n / order));
    rng_seed(&r, (const uint32_t[]){(uint32_t)seed, (uint32_t)(seed >> 32), part}, 3);
    out->signs = mem_alloc_array(ctx, n, sizeof *out->signs);
    out->dense = mem_alloc_array(ctx, order * order, sizeof *out->dense);
    TRY(out->signs && out->dense ? TARE_OK : TARE_E_MEMORY);
    for (size_t i = 0; i < n; i++)
        out->signs[i] = (float)(rng_u32(&r) >> 31 ? -scale : scale);
    if (!out->paley)
        TRY(random_orthogonal(ctx, &r, order, out->dense));
    for (size_t i = 0; out->paley && i < order * order; i++)
        out->dense[i] = order == 1 ? 1 : (float)paley_element(order, i / order, i % order);
done:
    if (status != TARE_OK)
        rotation_free(ctx, out);
    return status;
}

tare_status rotation_mirror(tare_context *ctx, rotation *r, const float *v)
{
    if (!r->mirror && !(r->mirror = mem_alloc_array(ctx, r->n, sizeof *r->mirror)))
        return TARE_E_MEMORY;
    memcpy(r->mirror, v, r->n * sizeof *v);
    return TARE_OK;
}

void rotation_free(tare_context *ctx, rotation *r)
{
    mem_free(ctx, r->signs);
    mem_free(ctx, r->dense);
    mem_free(ctx, r->mirror);
    *r = (rotation){0};
}

/* ---- multiplying ---- */

enum { TOGETHER = 64 }; /* columns whose sums are kept at a time */

/* Of numbers whose products are rounded, in FP64 and in order. */
static void multiply_any(const rotation *r, const float *x, size_t columns, float *y)
{
    size_t order = r->order;
    for (size_t first = 0; first < columns; first += TOGETHER) {
        size_t count = columns - first < TOGETHER ? columns - first : TOGETHER;
        for (size_t row = 0; row < order; row++) {
            double sums[TOGETHER] = {0};
            for (size_t i = 0; i < order; i++)
                for (size_t j = 0; j < count; j++)
                    sums[j] += (double)r->dense[i * order + row] *
                               (double)x[i * columns + first + j];
            for (size_t j = 0; j < count; j++)
                y[row * columns + first + j] = (float)sums[j];
        }
    }
}

static void multiply_dense(const kernels *k, const rotation *r, const float *x, size_t columns,
                           float *y)
{
    size_t order = r->order;
    if (!r->paley) {
        multiply_any(r, x, columns, y);
        return;
    }
    for (size_t row = 0; row < order; row++, y += columns) {
        memset(y, 0, columns * sizeof *y);
        for (size_t i = 0; i < order; i++)
            k->axpy(r->dense[i * order + row], x + i * columns, columns, y);
    }
}

/* x -= 2 v (v^T x), column by column; every CPU rounds alike. */
static void apply_mirror(const float *v, size_t n, float *x, size_t columns)
{
    for (size_t first = 0; first < columns; first += TOGETHER) {
        double dots[TOGETHER] = {0};
        size_t count = columns - first < TOGETHER ? columns - first : TOGETHER;
        for (size_t i = 0; i < n; i++)
            for (size_t j = 0; j < count; j++)
                dots[j] += (double)v[i] * (double)x[i * columns + first + j];
        for (size_t i = 0; i < n; i++)
            for (size_t j = 0; j < count; j++)
                x[i * columns + first + j] -= (float)(2 * (double)v[i] * dots[j]);
    }
}

void rotation_apply(const tare_context *ctx, const rotation *r, float *x, size_t columns,
                    float *room)
{
    const kernels *k = kernels_get(ctx);
    size_t n = r->n, block = r->order * columns, all = n * columns;
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < columns; j++)
            x[i * columns + j] *= r->signs[i];
    if (r->order > 1) {
        memcpy(room, x, all * sizeof *x);
        for (size_t at = 0; at < all; at += block)
            multiply_dense(k, r, room + at, columns, x + at);
    }
    for (size_t width = block; width < all; width *= 2)
        for (size_t at = 0; at < all; at += 2 * width)
            k->butterfly(x + at, x + at + width, width);
    if (r->mirror)
        apply_mirror(r->mirror, n, x, columns);
}

/* R^T of a unit vector is a row of R, here a column. */
void rotation_rows(const tare_context *ctx, const rotation *r, size_t first, size_t count,
                   float *rows, float *room)
{
    memset(room, 0, r->n * count * sizeof *room);
    for (size_t i = 0; i < count; i++)
        room[(first + i) * count + i] = 1;
    rotation_apply(ctx, r, room, count, rows);
    for (size_t i = 0; i < count; i++)
        for (size_t j = 0; j < r->n; j++)
            rows[i * r->n + j] = room[j * count + i];
}
