/* s as a ratio of powers of the maxima of activations and weights: m1, m4 and m6 (1.5). */
#include "quantize/smooth_internal.h"

/* PyTorch takes these exponents apart too, and rounds the others to the dtype of the base. */
float smooth_power(float x, double exponent, tare_dtype native)
{
    if (exponent == 0)
        return 1;
    if (exponent == 1)
        return x;
    return round_native(exponent == 0.5 ? sqrtf(x) : powf(x, round_native((float)exponent, native)),
                        native);
}

float smooth_ratio(float a, float w, double alpha, double beta, tare_dtype native)
{
    w = round_native(fmaxf(w, SMOOTH_FLOOR), native);
    float up = smooth_power(a, alpha, native);
    float down = smooth_power(w, beta, native);
    return round_native(fmaxf(round_native(up / down, native), SMOOTH_FLOOR), native);
}

/* A dead channel says nothing about its scale; the reference's 1e-5 would blow the weights up. */
static float channel_ratio(const smooth_task *t, float a, float w, double alpha, double beta)
{
    if (a == 0 && !t->cfg->num.compat)
        return 1;
    return smooth_ratio(a, w, alpha, beta, t->native);
}

/* The mean over the query heads of a KV head, in FP32, rounded once. */
static void mean_over_heads(const smooth_task *t)
{
    const smooth_rows *rows = &t->g->rows;
    for (size_t i = 0; i < rows->heads * rows->width; i++) {
        const float *s = t->out->s + i / rows->width * rows->repeat * rows->width + i % rows->width;
        float sum = 0;
        for (size_t q = 0; q < rows->repeat; q++)
            sum += s[q * rows->width];
        t->out->r[i] = round_native(sum / (float)rows->repeat, t->native);
    }
}

static void ratio_of_maxima(const smooth_task *t, double alpha, double beta)
{
    const smooth_rows *rows = &t->g->rows;
    for (size_t i = 0; i < rows->heads * rows->width; i++) {
        size_t first = i / rows->width * rows->repeat * rows->width + i % rows->width;
        float a = 0, w = 0;
        for (size_t q = 0; q < rows->repeat; q++) {
            a = fmaxf(a, smooth_largest(t->stats, first + q * rows->width));
            w = fmaxf(w, t->scan->columns[first + q * rows->width]);
        }
        t->out->r[i] = channel_ratio(t, a, w, alpha, beta);
    }
}

tare_status smooth_solve_ratio(const smooth_task *t, double alpha, double beta)
{
    const smooth_rows *rows = &t->g->rows;
    for (size_t c = 0; c < t->g->channels; c++)
        t->out->s[c] = channel_ratio(t, smooth_largest(t->stats, c), t->scan->columns[c], alpha,
                                     beta);
    if (!t->out->r)
        return TARE_OK;
    if (t->cfg->method == SMOOTH_M6)
        ratio_of_maxima(t, alpha, beta);
    else
        mean_over_heads(t);
    for (size_t c = 0; c < t->g->channels; c++)
        t->out->s[c] = t->out->r[c / (rows->repeat * rows->width) * rows->width + c % rows->width];
    return TARE_OK;
}
