#include "tensor/rounded.h"

void round_values(float *x, size_t n, tare_dtype dtype)
{
    for (size_t i = 0; dtype != TARE_F32 && i < n; i++)
        x[i] = round_native(x[i], dtype);
}

void rounded_rms_norm(const float *x, const float *w, size_t n, float eps, float base,
                      tare_dtype dtype, float *y)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (double)x[i] * x[i];
    float inverse = 1 / sqrtf((float)(sum / (double)n) + eps);
    for (size_t i = 0; i < n; i++) {
        float normed = base != 0 ? x[i] * inverse : round_native(x[i] * inverse, dtype);
        y[i] = round_native((base + w[i]) * normed, dtype);
    }
}

static void turn(float *x, float *y, float cos, float sin, tare_dtype dtype)
{
    float a = *x, b = *y, c = round_native(cos, dtype), s = round_native(sin, dtype);
    *x = round_native(round_native(a * c, dtype) - round_native(b * s, dtype), dtype);
    *y = round_native(round_native(b * c, dtype) + round_native(a * s, dtype), dtype);
}

void rounded_rope(float *x, const float *cos, const float *sin, size_t d, tare_dtype dtype)
{
    for (size_t j = 0; j < d / 2; j++)
        turn(x + j, x + j + d / 2, cos[j], sin[j], dtype);
}

void rounded_rope_neighbours(float *x, const float *cos, const float *sin, size_t d,
                             tare_dtype dtype)
{
    for (size_t j = 0; j < d / 2; j++)
        turn(x + 2 * j, x + 2 * j + 1, cos[j], sin[j], dtype);
}

void rounded_silu_mul(float *gate, const float *up, size_t n, tare_dtype dtype)
{
    for (size_t i = 0; i < n; i++) {
        float silu = round_native(gate[i] / (1 + expf(-gate[i])), dtype);
        gate[i] = round_native(silu * up[i], dtype);
    }
}

void rounded_gelu_mul(float *gate, const float *up, size_t n, tare_dtype dtype)
{
    for (size_t i = 0; i < n; i++) {
        float x = gate[i], u = 0.797884560803f * (x + 0.044715f * (x * x * x));
        gate[i] = round_native(round_native(0.5f * x * (1 + tanhf(u)), dtype) * up[i], dtype);
    }
}

void rounded_softmax(float *x, size_t n, float scale, float softcap, tare_dtype dtype)
{
    float max = -INFINITY, sum = 0;
    for (size_t i = 0; i < n; i++) {
        x[i] = round_native(round_native(x[i], dtype) * scale, dtype);
        if (softcap != 0) {
            float bent = round_native(tanhf(round_native(x[i] / softcap, dtype)), dtype);
            x[i] = round_native(bent * softcap, dtype);
        }
        max = x[i] > max ? x[i] : max;
    }
    for (size_t i = 0; i < n; i++)
        sum += x[i] = expf(x[i] - max);
    for (size_t i = 0; i < n; i++)
        x[i] = round_native(x[i] / sum, dtype);
}
