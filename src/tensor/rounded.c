#include "tensor/rounded.h"

void round_values(float *x, size_t n, tare_dtype dtype)
{
    for (size_t i = 0; dtype != TARE_F32 && i < n; i++)
        x[i] = round_native(x[i], dtype);
}

void rounded_rms_norm(const float *x, const float *w, size_t n, float eps, tare_dtype dtype,
                      float *y)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (double)x[i] * x[i];
    float inverse = 1 / sqrtf((float)(sum / (double)n) + eps);
    for (size_t i = 0; i < n; i++)
        y[i] = round_native(w[i] * round_native(x[i] * inverse, dtype), dtype);
}

void rounded_rope(float *x, const float *cos, const float *sin, size_t d, tare_dtype dtype)
{
    size_t half = d / 2;
    for (size_t j = 0; j < half; j++) {
        float a = x[j], b = x[j + half], c = round_native(cos[j], dtype),
              s = round_native(sin[j], dtype);
        x[j] = round_native(round_native(a * c, dtype) - round_native(b * s, dtype), dtype);
        x[j + half] = round_native(round_native(b * c, dtype) + round_native(a * s, dtype), dtype);
    }
}

void rounded_silu_mul(float *gate, const float *up, size_t n, tare_dtype dtype)
{
    for (size_t i = 0; i < n; i++) {
        float silu = round_native(gate[i] / (1 + expf(-gate[i])), dtype);
        gate[i] = round_native(silu * up[i], dtype);
    }
}

void rounded_softmax(float *x, size_t n, float scale, tare_dtype dtype)
{
    float max = -INFINITY, sum = 0;
    for (size_t i = 0; i < n; i++) {
        x[i] = round_native(round_native(x[i], dtype) * scale, dtype);
        max = x[i] > max ? x[i] : max;
    }
    for (size_t i = 0; i < n; i++)
        sum += x[i] = expf(x[i] - max);
    for (size_t i = 0; i < n; i++)
        x[i] = round_native(x[i] / sum, dtype);
}
