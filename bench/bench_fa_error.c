/* What INT8 q, k and v (FA3) cost each attention, as CSV: layer,cosine,relative_l2,worst_token_l2.
 *     bench_fa_error [MODEL [PROMPTS [SAMPLES [OUTPUT]]]]
 * OUTPUT is what `tare quantize --fa-quant` wrote of MODEL: its scales are used, and attentions
 * without any are left out. Without OUTPUT the scales are observed here, on the same prompts. MODEL
 * is by default that of the demo, PROMPTS examples/prompts.jsonl, SAMPLES all (0). Every layer sees
 * the float model's hidden states, so a row is the error of that attention alone; the last row is
 * the mean. All tokens are one batch: memory is that of one layer's activations.
 *
 * The error is made as an engine makes it, x' = clamp(rne(x / scale), -128, 127) * scale, with
 * arithmetic of this file alone. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "calibration/samples.h"
#include "forward/linear.h"
#include "quantize/fa3.h"
#include "tensor/attention.h"
#include "tensor/convert.h"

typedef struct bench {
    tare_context *ctx;
    tare_model *model;
    safetensors **files; /* of OUTPUT; NULL: scales are observed */
    size_t num_files;
    workspace work;
    float_block linears;
    size_t layer, heads[FA_KINDS];
    float *scales[FA_KINDS];        /* [heads] */
    float *states[FA_KINDS];        /* [rows, heads*head_dim] x' */
    float *exact, *quantized;       /* [rows, num_heads*head_dim] attention's outputs */
    double cosine, relative, worst; /* sums over the layers */
    size_t quantized_layers;
} bench;

static void require(const tare_context *ctx, tare_status status)
{
    if (status == TARE_OK)
        return;
    fprintf(stderr, "bench_fa_error: %s\n", tare_last_error(ctx));
    exit(1);
}

static void *take(tare_context *ctx, size_t count)
{
    void *p = mem_alloc_array(ctx, count, sizeof(float));
    require(ctx, p ? TARE_OK : TARE_E_MEMORY);
    return p;
}

/* ---- scales ---- */

static void open_output(bench *t, const char *dir)
{
    char **names;
    size_t count;
    require(t->ctx, folder_list(t->ctx, dir, &names, &count));
    t->files = mem_alloc_array(t->ctx, count, sizeof *t->files);
    require(t->ctx, t->files ? TARE_OK : TARE_E_MEMORY);
    for (size_t i = 0; i < count; i++) {
        if (!str_ends_with(names[i], ".safetensors"))
            continue;
        char *path = path_join(t->ctx, dir, names[i]);
        require(t->ctx, path ? TARE_OK : TARE_E_MEMORY);
        require(t->ctx, safetensors_open(t->ctx, path, &t->files[t->num_files++]));
        mem_free(t->ctx, path);
    }
    folder_list_free(t->ctx, names, count);
}

static void close_output(bench *t)
{
    for (size_t i = 0; i < t->num_files; i++)
        safetensors_close(t->files[i]);
    mem_free(t->ctx, t->files);
}

static bool read_scale(bench *t, fa_kind kind)
{
    char name[96], raw[4096];
    const tensor_info *info = NULL;
    size_t index = 0;
    snprintf(name, sizeof name, "model.layers.%zu.self_attn.%s.scale", t->layer,
             fa_kind_name(kind));
    while (index < t->num_files && !(info = safetensors_find(t->files[index], name)))
        index++;
    if (!info)
        return false;
    if (tensor_elements(info) != t->heads[kind] || info->bytes > sizeof raw) {
        fprintf(stderr, "bench_fa_error: %s: not %zu scales\n", name, t->heads[kind]);
        exit(1);
    }
    require(t->ctx, safetensors_read(t->files[index], info, 0, raw, info->bytes));
    widen_to_float(t->ctx, info->dtype, raw, t->heads[kind], t->scales[kind]);
    return true;
}

static void observe_scales(bench *t, const batch *b, const fa_input in[FA_KINDS])
{
    const model_config *c = &t->model->config;
    numerics num = {.dtype = c->has_dtype ? c->dtype : TARE_F32};
    fa_observer *o;
    require(t->ctx, fa_observer_create(t->ctx, "attention", t->heads, FA_V_MAX, &o));
    require(t->ctx, fa_observe(o, 0, b->lengths, b->samples, in));
    for (int kind = 0; kind < FA_KINDS; kind++)
        require(t->ctx, fa_observer_scales(o, &num, (fa_kind)kind, t->scales[kind]));
    fa_observer_free(o);
}

/* False: this attention has no scales. */
static bool find_scales(bench *t, const batch *b, const fa_input in[FA_KINDS])
{
    if (!t->files) {
        observe_scales(t, b, in);
        return true;
    }
    return read_scale(t, FA_Q) && read_scale(t, FA_K) && read_scale(t, FA_V);
}

/* ---- error ---- */

static void fake_quantize(const float *scales, size_t heads, const fa_input *in, size_t rows,
                          float *out)
{
    for (size_t r = 0; r < rows; r++) {
        for (size_t i = 0; i < heads * in->head_dim; i++) {
            float scale = scales[i / in->head_dim];
            float q = nearbyintf(in->x[r * in->row_stride + i] / scale);
            out[r * in->row_stride + i] = fminf(fmaxf(q, -128), 127) * scale;
        }
    }
}

static void attend(bench *t, const batch *b, const float *q, const float *k, const float *v,
                   float *out)
{
    const model_config *c = &t->model->config;
    size_t query = c->num_heads * c->head_dim, kv = c->num_kv_heads * c->head_dim;
    for (size_t s = 0, row = 0; s < b->samples; row += b->lengths[s++]) {
        attention_shape shape = layer_attention_shape(c, t->layer, b->lengths[s]);
        shape.round = TARE_F32;
        attention_forward(t->ctx, &shape, q + row * query, query, k + row * kv, kv, v + row * kv,
                          kv, out + row * query, query, t->work.attention_scratch);
    }
}

/* Of the whole [rows, width] matrices; the worst token by its own relative error. */
static void compare(bench *t, size_t rows, size_t width)
{
    double dot = 0, exact = 0, quantized = 0, error = 0, worst = 0;
    for (size_t r = 0; r < rows; r++) {
        double row_exact = 0, row_error = 0;
        for (size_t i = r * width; i < (r + 1) * width; i++) {
            double x = (double)t->exact[i], y = (double)t->quantized[i];
            dot += x * y;
            row_exact += x * x;
            quantized += y * y;
            row_error += (x - y) * (x - y);
        }
        exact += row_exact;
        error += row_error;
        worst = fmax(worst, row_exact > 0 ? sqrt(row_error / row_exact) : 0);
    }
    double cosine = dot / sqrt(exact * quantized), relative = sqrt(error / exact);
    printf("%zu,%.6f,%.5f,%.5f\n", t->layer, cosine, relative, worst);
    t->cosine += cosine;
    t->relative += relative;
    t->worst += worst;
    t->quantized_layers++;
}

/* block_ops.attention */
static tare_status measure(void *user, const batch *b, const float *q, const float *k,
                           const float *v, const float *latent)
{
    (void)latent;
    bench *t = user;
    size_t dim = t->model->config.head_dim;
    fa_input in[FA_KINDS] = {{q, t->heads[FA_Q] * dim, dim},
                             {k, t->heads[FA_K] * dim, dim},
                             {v, t->heads[FA_V] * dim, dim}};
    if (!find_scales(t, b, in))
        return TARE_OK;
    for (int kind = 0; kind < FA_KINDS; kind++)
        fake_quantize(t->scales[kind], t->heads[kind], &in[kind], b->rows, t->states[kind]);
    attend(t, b, q, k, v, t->exact);
    attend(t, b, t->states[FA_Q], t->states[FA_K], t->states[FA_V], t->quantized);
    compare(t, b->rows, t->heads[FA_Q] * dim);
    return TARE_OK;
}

static tare_status linears(void *user, graph_unit unit, const batch *b, const float *x,
                           float *const *y)
{
    bench *t = user;
    return float_block_linears(&t->linears, unit, b, x, y);
}

static void run_layer(bench *t, const batch *b, float *x)
{
    block_norms norms;
    block_ops ops = {.user = t, .linears = linears, .attention = measure};
    const model_block *block = &t->model->blocks[t->layer];
    t->linears = (float_block){.model = t->model};
    require(t->ctx, block_norms_load(t->model, block, NULL, &norms));
    require(t->ctx, float_block_load(t->model, block, GEMM_FP32, &t->linears));
    require(t->ctx, block_forward(t->model, block, NULL, &norms, &ops, b, &t->work, x));
    float_block_free(&t->linears);
    block_norms_free(t->ctx, &norms);
}

static void run(bench *t, const sample_set *samples)
{
    const model_config *c = &t->model->config;
    batch b = {.samples = samples->count, .lengths = samples->lengths, .rows = samples->tokens};
    float *x = take(t->ctx, b.rows * c->hidden_size);
    t->heads[FA_Q] = c->num_heads;
    t->heads[FA_K] = t->heads[FA_V] = c->num_kv_heads;
    for (int kind = 0; kind < FA_KINDS; kind++) {
        t->scales[kind] = take(t->ctx, t->heads[kind]);
        t->states[kind] = take(t->ctx, b.rows * t->heads[kind] * c->head_dim);
    }
    t->exact = take(t->ctx, b.rows * c->num_heads * c->head_dim);
    t->quantized = take(t->ctx, b.rows * c->num_heads * c->head_dim);
    require(t->ctx, workspace_create(t->model, b.rows, samples->longest, TARE_F32, true, &t->work));
    require(t->ctx, embed_into(t->model, samples->ids, b.rows, x));
    puts("layer,cosine,relative_l2,worst_token_l2");
    for (t->layer = 0; t->layer < c->num_layers; t->layer++)
        run_layer(t, &b, x);
    double n = (double)t->quantized_layers;
    if (n > 0)
        printf("mean,%.6f,%.5f,%.5f\n", t->cosine / n, t->relative / n, t->worst / n);

    workspace_free(&t->work);
    for (int kind = 0; kind < FA_KINDS; kind++) {
        mem_free(t->ctx, t->scales[kind]);
        mem_free(t->ctx, t->states[kind]);
    }
    mem_free(t->ctx, t->exact);
    mem_free(t->ctx, t->quantized);
    mem_free(t->ctx, x);
}

int main(int argc, char **argv)
{
    sample_options options = {.model = argc > 1 ? argv[1] : "build/demo/SmolLM2-135M-Instruct",
                              .file = argc > 2 ? argv[2] : "examples/prompts.jsonl",
                              .samples = argc > 3 ? strtoull(argv[3], NULL, 10) : 0};
    sample_set samples;
    bench t = {0};
    if (argc < 2 && !path_exists(options.model)) {
        printf("# no %s (make demo): usage: bench_fa_error [MODEL [PROMPTS [SAMPLES [OUTPUT]]]]\n",
               options.model);
        return 0;
    }
    if (tare_context_create(&t.ctx, NULL) != TARE_OK)
        return 1;
    require(t.ctx, tare_model_open(t.ctx, options.model, &t.model));
    options.model_max = t.model->config.max_position_embeddings;
    options.vocab_size = t.model->config.vocab_size;
    require(t.ctx, sample_set_load(t.ctx, &options, &samples));
    if (argc > 4)
        open_output(&t, argv[4]);
    run(&t, &samples);
    close_output(&t);
    sample_set_free(t.ctx, &samples);
    tare_model_free(t.model);
    tare_context_free(t.ctx);
    return 0;
}
