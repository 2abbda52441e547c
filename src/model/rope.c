/* Frequencies in double, rounded to FP32; the angle is the FP32 product of position and frequency,
 * as in transformers. */
#include "model/rope.h"

#include <math.h>
#include <string.h>

static const char *const rope_names[] = {[ROPE_DEFAULT] = "default", [ROPE_LLAMA3] = "llama3"};

bool rope_type_find(const char *name, rope_type *out)
{
    for (size_t i = 0; i < sizeof rope_names / sizeof *rope_names; i++) {
        if (strcmp(rope_names[i], name) == 0) {
            *out = (rope_type)i;
            return true;
        }
    }
    return false;
}

/* Llama 3.1: long wavelengths are stretched by `factor`, short ones kept, those between
 * interpolated. */
static double scale_llama3(const rope_config *c, double f)
{
    double wavelength = 2 * M_PI / f;
    if (wavelength > c->original_max_position / c->low_freq_factor)
        return f / c->factor;
    if (wavelength < c->original_max_position / c->high_freq_factor)
        return f;
    double smooth = (c->original_max_position / wavelength - c->low_freq_factor) /
                    (c->high_freq_factor - c->low_freq_factor);
    return (1 - smooth) * f / c->factor + smooth * f;
}

void rope_frequencies(const rope_config *config, size_t head_dim, float *f)
{
    for (size_t j = 0; j < head_dim / 2; j++) {
        double value = pow(config->theta, -2.0 * (double)j / (double)head_dim);
        f[j] = (float)(config->type == ROPE_LLAMA3 ? scale_llama3(config, value) : value);
    }
}

tare_status rope_table_create(tare_context *ctx, const rope_config *config, size_t head_dim,
                              size_t tokens, rope_table *out)
{
    *out = (rope_table){.tokens = tokens, .half = head_dim / 2};
    size_t count;
    if (!size_mul(tokens, out->half, &count))
        return TARE_FAIL(ctx, TARE_E_MEMORY, "out of memory: rope table of %zu positions", tokens);
    float *f = mem_alloc_array(ctx, out->half, sizeof *f);
    out->cos = mem_alloc_array(ctx, count, sizeof *out->cos);
    out->sin = mem_alloc_array(ctx, count, sizeof *out->sin);
    if (!f || !out->cos || !out->sin) {
        mem_free(ctx, f);
        rope_table_free(ctx, out);
        return TARE_E_MEMORY;
    }
    rope_frequencies(config, head_dim, f);
    for (size_t p = 0; p < tokens; p++) {
        for (size_t j = 0; j < out->half; j++) {
            float angle = (float)p * f[j];
            out->cos[p * out->half + j] = (float)cos((double)angle);
            out->sin[p * out->half + j] = (float)sin((double)angle);
        }
    }
    mem_free(ctx, f);
    return TARE_OK;
}

void rope_table_free(tare_context *ctx, rope_table *table)
{
    mem_free(ctx, table->cos);
    mem_free(ctx, table->sin);
    *table = (rope_table){0};
}
