/* Speed of the observers, of weight quantization and of the score on one thread, as CSV:
 * what,unit,value. Memory speed (a plain sum of the same data) is the yardstick in the same run. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "quantize/fa3.h"
#include "quantize/observer.h"
#include "quantize/score.h"
#include "tensor/convert.h"

enum { ROWS = 1024, COLS = 4096, COUNT = ROWS * COLS, SAMPLES = 5 };

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void require(const tare_context *ctx, tare_status status)
{
    if (status == TARE_OK)
        return;
    fprintf(stderr, "bench_observer: %s\n", tare_last_error(ctx));
    exit(1);
}

static void rate(const char *what, const char *mode, double count, double time)
{
    printf("%s %s,M elements/s,%.0f\n", what, mode, count / time * 1e-6);
}

static void bench_observer(tare_context *ctx, const numerics *num, const char *mode, const float *x)
{
    observer *o;
    double update = 0.0, range = 0.0, lo, hi;
    require(ctx, observer_create(ctx, OBSERVER_HISTOGRAM, num, &o));
    for (size_t i = 0; i < SAMPLES; i++) {
        size_t skip = COUNT / 8 * i; /* other extremes each time */
        double begin = seconds();
        require(ctx, observer_update(ctx, o, x + skip, COUNT - skip));
        double middle = seconds();
        require(ctx, observer_range(ctx, o, &lo, &hi));
        update += (middle - begin) / (double)(COUNT - skip);
        range += seconds() - middle;
    }
    rate("histogram update", mode, SAMPLES, update);
    printf("histogram range %s,ms,%.3f\n", mode, range / SAMPLES * 1e3);
    observer_free(ctx, o);
}

static void bench_others(tare_context *ctx, const numerics *num, const char *mode, const float *x)
{
    static float scratch[2 * COLS];
    quantized_weight w;
    score_state s;
    double begin = seconds();
    require(ctx, weight_quantize(ctx, num, TARE_F32, x, ROWS, COLS, false, &w));
    rate("weight_quantize", mode, COUNT, seconds() - begin);
    weight_quantized_free(ctx, &w);
    score_init(&s);
    begin = seconds();
    require(ctx, score_update(ctx, num, &s, x, ROWS, COLS, scratch));
    rate("score_update", mode, COUNT, seconds() - begin);
}

/* One attention: 9 heads of q, 3 of k and of v, 64 channels each, as in SmolLM2-135M. */
static void bench_fa(tare_context *ctx, const float *x)
{
    enum {
        DIM = 64,
        Q = 9,
        KV = 3,
        ROW = (Q + 2 * KV) * DIM,
        TOKENS = COUNT / ROW,
        SAMPLES_FA = 50
    };
    size_t lengths[SAMPLES_FA], heads[FA_KINDS] = {Q, KV, KV};
    float score;
    fa_observer *o;
    fa_input in[FA_KINDS] = {
        {x, ROW, DIM}, {x + Q * DIM, ROW, DIM}, {x + (Q + KV) * DIM, ROW, DIM}};
    for (size_t i = 0; i < SAMPLES_FA; i++)
        lengths[i] = TOKENS / SAMPLES_FA;
    require(ctx, fa_observer_create(ctx, "attention", heads, FA_V_MAX, &o));
    double begin = seconds();
    require(ctx, fa_observe(o, 0, lengths, SAMPLES_FA, in));
    rate("fa_observe", "50 samples", TOKENS / SAMPLES_FA * SAMPLES_FA * ROW, seconds() - begin);
    fa_observer_free(o);
    begin = seconds();
    require(ctx, fa_score(ctx, &in[FA_Q], Q, TOKENS, &score));
    rate("fa_score", "q", (double)TOKENS * Q * DIM, seconds() - begin);
}

int main(void)
{
    static const struct {
        numerics num;
        const char *mode;
    } modes[] = {{{false, TARE_BF16, false}, "default"},
                 {{true, TARE_F32, false}, "compat F32"},
                 {{true, TARE_BF16, false}, "compat BF16"}};
    tare_context *ctx;
    tare_context_options options;
    float *x = malloc(COUNT * sizeof *x);
    tare_context_options_init(&options);
    options.threads = 1;
    if (!x || tare_context_create(&ctx, &options) != TARE_OK)
        return 1;
    for (uint32_t i = 0; i < COUNT; i++) { /* heavy tails */
        float u = (float)((i * 2654435761u) >> 8) * 0x1p-24f;
        x[i] = round_to_dtype(logf(u / (1.0f - u) + 1e-7f), TARE_BF16);
    }
    double begin = seconds(), sum[8] = {0};
    for (size_t i = 0; i < COUNT; i++)
        sum[i % 8] += x[i];
    rate("plain sum", sum[0] < 1e30 ? "yardstick" : "", COUNT, seconds() - begin);
    for (size_t m = 0; m < sizeof modes / sizeof *modes; m++) {
        bench_observer(ctx, &modes[m].num, modes[m].mode, x);
        bench_others(ctx, &modes[m].num, modes[m].mode, x);
    }
    bench_fa(ctx, x);
    free(x);
    tare_context_free(ctx);
    return 0;
}
