/* Frequencies in double, rounded to FP32; the angle is the FP32 product of position and frequency,
 * as in transformers. */
#include "model/rope.h"

#include <math.h>
#include <string.h>

#include "base/carver.h"

static const char *const rope_names[] = {
    [ROPE_DEFAULT] = "default", [ROPE_LINEAR] = "linear", [ROPE_DYNAMIC] = "dynamic",
    [ROPE_LLAMA3] = "llama3",   [ROPE_YARN] = "yarn",     [ROPE_LONGROPE] = "longrope"};

bool rope_type_find(const char *name, rope_type *out)
{
    if (strcmp(name, "su") == 0) /* as longrope was first called */
        name = rope_names[ROPE_LONGROPE];
    for (size_t i = 0; i < sizeof rope_names / sizeof *rope_names; i++) {
        if (strcmp(rope_names[i], name) == 0) {
            *out = (rope_type)i;
            return true;
        }
    }
    return false;
}

double rope_yarn_mscale(double factor, double mscale)
{
    return factor <= 1 ? 1 : 0.1 * mscale * log(factor) + 1;
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

/* The (fractional) index of the frequency that turns `rotations` times in the original length. */
static double yarn_index(const rope_config *c, double head_dim, double rotations)
{
    return head_dim * log(c->original_max_position / (2 * M_PI * rotations)) / (2 * log(c->theta));
}

/* Frequency j of head_dim/2: fast ones are kept, slow ones stretched, a ramp between. */
static double scale_yarn(const rope_config *c, double head_dim, double j, double f)
{
    double first = yarn_index(c, head_dim, c->beta_fast),
           last = yarn_index(c, head_dim, c->beta_slow);
    if (!c->keep_fractions) {
        first = floor(first);
        last = ceil(last);
    }
    first = fmax(first, 0);
    last = fmin(last, head_dim - 1);
    if (first == last)
        last += 0.001;
    double ramp = fmin(fmax((j - first) / (last - first), 0), 1);
    return f / c->factor * ramp + f * (1 - ramp);
}

/* Tokens of the longest sequence that has the same frequencies as all shorter ones. */
static double shared_length(const rope_config *c)
{
    return c->type == ROPE_DYNAMIC    ? c->max_position
           : c->type == ROPE_LONGROPE ? c->original_max_position
                                      : INFINITY;
}

/* Longer sequences have frequencies of their own. */
static bool outgrows(const rope_config *c, size_t tokens)
{
    return (double)tokens > shared_length(c);
}

static double scaled_theta(const rope_config *c, double head_dim, double tokens)
{
    if (c->type != ROPE_DYNAMIC || tokens <= c->max_position)
        return c->theta;
    return c->theta *
           pow(c->factor * tokens / c->max_position - (c->factor - 1), head_dim / (head_dim - 2));
}

void rope_frequencies(const rope_config *config, size_t head_dim, size_t tokens, float *f)
{
    double d = (double)head_dim, theta = scaled_theta(config, d, (double)tokens);
    for (size_t j = 0; j < head_dim / 2; j++) {
        double value = pow(theta, -2.0 * (double)j / d);
        if (config->type == ROPE_LINEAR)
            value /= config->factor;
        else if (config->type == ROPE_LLAMA3)
            value = scale_llama3(config, value);
        else if (config->type == ROPE_YARN)
            value = scale_yarn(config, d, (double)j, value);
        else if (config->type == ROPE_LONGROPE)
            value /= (outgrows(config, tokens) ? config->long_factors : config->short_factors)[j];
        f[j] = (float)value;
    }
}

/* cos and sin [half] of a position. */
static void fill_row(const rope_config *c, const float *f, size_t half, size_t position,
                     float *cosines, float *sines)
{
    float factor = (float)c->attention_factor;
    for (size_t j = 0; j < half; j++) {
        float angle = (float)position * f[j];
        cosines[j] = (float)cos((double)angle) * factor;
        sines[j] = (float)sin((double)angle) * factor;
    }
}

static void lay_out(carver *c, void *component)
{
    rope_table *t = component;
    t->cos = carve(c, t->tokens, t->half * sizeof *t->cos);
    t->sin = carve(c, t->tokens, t->half * sizeof *t->sin);
    t->frequencies = carve(c, t->half, sizeof *t->frequencies);
    t->rooms = t->threads ? carve(c, t->threads, 3 * t->half * sizeof *t->rooms) : NULL;
}

static rope_table sized_table(const rope_config *config, size_t head_dim, size_t tokens,
                              size_t threads)
{
    bool own = outgrows(config, tokens);
    return (rope_table){.config = config,
                        .tokens = own ? (size_t)shared_length(config) : tokens,
                        .half = head_dim / 2,
                        .threads = own ? threads : 0};
}

tare_status rope_table_create(tare_context *ctx, const rope_config *config, size_t head_dim,
                              size_t tokens, size_t threads, rope_table *out)
{
    *out = sized_table(config, head_dim, tokens, threads);
    tare_status status = carver_alloc(ctx, lay_out, out);
    if (status != TARE_OK)
        return status;
    rope_frequencies(config, head_dim, out->tokens, out->frequencies);
    for (size_t p = 0; p < out->tokens; p++)
        fill_row(config, out->frequencies, out->half, p, out->cos + p * out->half,
                 out->sin + p * out->half);
    return TARE_OK;
}

void rope_table_free(tare_context *ctx, rope_table *table)
{
    mem_free(ctx, table->cos);
    *table = (rope_table){0};
}

size_t rope_table_bytes(const rope_config *config, size_t head_dim, size_t tokens, size_t threads)
{
    rope_table t = sized_table(config, head_dim, tokens, threads);
    return carver_bytes(lay_out, &t);
}

rope_sequence rope_sequence_begin(const rope_table *table, size_t tokens, int thread)
{
    rope_sequence s = {.table = table};
    if (outgrows(table->config, tokens)) {
        s.room = table->rooms + (size_t)thread * 3 * table->half;
        rope_frequencies(table->config, 2 * table->half, tokens, s.room);
    }
    return s;
}

void rope_sequence_at(const rope_sequence *s, size_t position, const float **cos, const float **sin)
{
    const rope_table *t = s->table;
    if (s->room)
        fill_row(t->config, s->room, t->half, position, s->room + t->half, s->room + 2 * t->half);
    *cos = s->room ? s->room + t->half : t->cos + position * t->half;
    *sin = s->room ? s->room + 2 * t->half : t->sin + position * t->half;
}
