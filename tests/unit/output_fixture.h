/* What the tests of outputs share: a tiny model and its W8A8 numbers, worked out by hand.
 *
 * Serving dtype BF16. q_proj [2,3] with bias (1, -2): scales (0.5, 0.25), integers
 * (127,-64,1 / -127,0,2), row sums 64 and -125. k_proj [1,3]: scale 1, integers (1,126,-127), sum
 * 0. Activations: scale 0.125, offset -7. So deq_scale = (0.0625, 0.03125) and 0.125, quant_bias =
 * rne(b/d
 * - o*sum) = (16 + 448, -64 - 875) and 0. */
#ifndef TARE_TESTS_OUTPUT_FIXTURE_H
#define TARE_TESTS_OUTPUT_FIXTURE_H

#include "fixture.h"

#include <sys/stat.h>

#include "output/output.h"

#define Q_PROJ "model.layers.0.self_attn.q_proj"
#define K_PROJ "model.layers.0.self_attn.k_proj"
#define O_PROJ "model.layers.0.self_attn.o_proj"

static const int8_t Q_INTEGERS[6] = {127, -64, 1, -127, 0, 2};
static const int8_t K_INTEGERS[3] = {1, 126, -127};
static const int32_t Q_BIAS[2] = {464, -939};
static const uint16_t BIAS_BF16[2] = {0x3f80, 0xc000};                   /* 1, -2 */
static const uint16_t NORM_BF16[3] = {0x3f80, 0x4000, 0x3f00};           /* 1, 2, 0.5 */
static const uint16_t EMBED_BF16[6] = {0x3f80, 0, 0x4000, 0, 0, 0xbf80}; /* [2,3] */
static const uint16_t O_BF16[6] = {0, 0x3f80, 0, 0x3f00, 0, 0x4040};     /* [3,2] */
/* the integers times their scales */
static const uint16_t Q_BF16[6] = {0x427e, 0xc200, 0x3f00, 0xc1fe, 0, 0x3f00};
static const uint16_t K_BF16[3] = {0x3f80, 0x42fc, 0xc2fe};

typedef struct output_case {
    char root[64], model[128], out[128];
    unsigned save;
    int part_file_size;
    numerics num;
    bool per_tensor; /* q_proj with one scale, 0.5: numbers as far as that goes */
    bool overwrite, copy_code, verify, dtype_given, is_head;
    float wrong_deq;    /* added to the first deq_scale */
    const char *target; /* of verify */
} output_case;

static inline tensor_info bf16_tensor(const char *name, size_t rows, size_t columns)
{
    tensor_info t = {.name = name, .dtype = TARE_BF16, .rank = columns ? 2 : 1};
    t.shape[0] = rows;
    t.shape[1] = columns;
    return t;
}

#define MODEL_CONFIG                                                                               \
    "{\n  \"model_type\": \"llama\",\n  \"torch_dtype\": \"bfloat16\",\n"                          \
    "  \"tie_word_embeddings\": true\n}\n"

static inline void init_case(output_case *c)
{
    memset(c, 0, sizeof *c);
    /* in memory where that is possible: these tests sync thousands of files */
    snprintf(c->root, sizeof c->root, "/dev/shm/tare-test-XXXXXX");
    if (!mkdtemp(c->root))
        snprintf(c->root, sizeof c->root, "%s", temporary_folder());
    snprintf(c->model, sizeof c->model, "%s/model", c->root);
    snprintf(c->out, sizeof c->out, "%s/out", c->root);
    assert_int_equal(mkdir(c->model, 0755), 0);
    write_text(c->model, "config.json", MODEL_CONFIG);
    write_text(c->model, "tokenizer.json", "{}");
    c->save = SAVE_ASCENDV1;
    c->part_file_size = -1;
    c->num.dtype = TARE_BF16;
    c->verify = true;
}

static inline void end_case(output_case *c)
{
    tare_context *ctx = new_context(1);
    assert_ok(ctx, folder_remove(ctx, c->root));
    free_context(ctx);
}

static inline tare_status open_case(tare_context *ctx, const output_case *c, output **out)
{
    output_options options = {.dir = c->out,
                              .model_dir = c->model,
                              .save = c->save,
                              .part_file_size = c->part_file_size,
                              .num = c->num,
                              .dtype_given = c->dtype_given,
                              .scheme = SCHEME_W8A8,
                              .overwrite = c->overwrite,
                              .copy_code = c->copy_code,
                              .verify = c->verify};
    return output_open(ctx, &options, out);
}

/* A W8A8 linear. */
static inline tare_status declare_w8a8(output *o, const char *module, size_t n, size_t k,
                                       bool per_tensor, tare_dtype act_dtype,
                                       const tensor_info *bias, bool is_head)
{
    linear_form form = {
        .scheme = SCHEME_W8A8, .n = n, .k = k, .per_tensor = per_tensor, .act_dtype = act_dtype};
    return output_declare_linear(o, module, &form, bias, is_head);
}

static inline tare_status write_w8a8(output *o, const char *module, const quantized_weight *w,
                                     const act_params *act, const float *deq_scale,
                                     const int32_t *quant_bias, const void *bias)
{
    linear_parts parts = {.count = w->n,
                          .data = {[TENSOR_WEIGHT] = w->q,
                                   [TENSOR_BIAS] = bias,
                                   [TENSOR_WEIGHT_SCALE] = w->scales,
                                   [TENSOR_INPUT_SCALE] = &act->scale,
                                   [TENSOR_INPUT_OFFSET] = &act->offset,
                                   [TENSOR_QUANT_BIAS] = quant_bias,
                                   [TENSOR_DEQ_SCALE] = deq_scale}};
    return output_write_linear(o, module, &parts);
}

/* One of a scheme that keeps nothing of activations: W8A16 or W8A8_DYNAMIC. */
static inline tare_status declare_weights(output *o, linear_scheme scheme, const char *module,
                                          size_t n, size_t k, bool per_tensor,
                                          const tensor_info *bias)
{
    linear_form form = {.scheme = scheme, .n = n, .k = k, .per_tensor = per_tensor};
    return output_declare_linear(o, module, &form, bias, false);
}

static inline tare_status write_rows(output *o, const char *module, size_t first, size_t count,
                                     const weight_codes *codes, const void *bias)
{
    linear_parts parts = {.first = first,
                          .count = count,
                          .data = {[TENSOR_WEIGHT] = codes->q,
                                   [TENSOR_BIAS] = bias,
                                   [TENSOR_WEIGHT_SCALE] = codes->scales,
                                   [TENSOR_WEIGHT_OFFSET] = codes->offsets}};
    return output_write_linear(o, module, &parts);
}

static inline tare_status declare_case(const output_case *c, output *o)
{
    tensor_info embed = bf16_tensor("model.embed_tokens.weight", 2, 3);
    tensor_info norm = bf16_tensor("model.norm.weight", 3, 0);
    tensor_info o_proj = bf16_tensor(O_PROJ ".weight", 3, 2);
    tensor_info bias = bf16_tensor(Q_PROJ ".bias", 2, 0);
    tare_status status = TARE_OK;
    TRY(output_declare_float(o, &embed));
    TRY(declare_w8a8(o, Q_PROJ, 2, 3, c->per_tensor, c->num.dtype, &bias, false));
    TRY(declare_w8a8(o, K_PROJ, 1, 3, false, c->num.dtype, NULL, c->is_head));
    TRY(output_declare_float(o, &o_proj));
    TRY(output_declare_float_linear(o, O_PROJ));
    if (!c->is_head)
        TRY(output_declare_float_linear(o, "lm_head"));
    TRY(output_declare_float(o, &norm));
done:
    return status;
}

static inline tare_status write_case(const output_case *c, output *o)
{
    float q_scales[2] = {0.5f, 0.25f}, k_scales[1] = {1.0f};
    float q_deq[2] = {0.0625f + c->wrong_deq, 0.03125f}, k_deq[1] = {0.125f};
    int64_t q_sums[2] = {64, -125}, k_sums[1] = {0};
    bool zero[2] = {false, false};
    /* one scale: row 1 has deq 0.0625 as well, so its bias is -32 - 875 */
    int32_t q_bias[2] = {Q_BIAS[0], c->per_tensor ? -907 : Q_BIAS[1]}, k_bias[1] = {0};
    quantized_weight q = {
        2, 3, (int8_t *)(uintptr_t)Q_INTEGERS, q_scales, c->per_tensor ? 1 : 2, q_sums, zero};
    quantized_weight k = {1, 3, (int8_t *)(uintptr_t)K_INTEGERS, k_scales, 1, k_sums, zero};
    act_params act = {0.125f, -7.0f, c->num.dtype};
    tare_status status = TARE_OK;
    /* not in the order of declaration, and a float tensor in two pieces */
    TRY(write_w8a8(o, Q_PROJ, &q, &act, q_deq, q_bias, BIAS_BF16));
    TRY(output_write_float(o, "model.embed_tokens.weight", 0, EMBED_BF16, 4));
    TRY(output_write_float(o, "model.embed_tokens.weight", 4, EMBED_BF16 + 2, 8));
    TRY(write_w8a8(o, K_PROJ, &k, &act, k_deq, k_bias, NULL));
    TRY(output_write_float(o, "model.norm.weight", 0, NORM_BF16, sizeof NORM_BF16));
    TRY(output_write_float(o, O_PROJ ".weight", 0, O_BF16, sizeof O_BF16));
done:
    return status;
}

/* The whole life of an output. */
static inline tare_status make_output(tare_context *ctx, const output_case *c, uint64_t *bytes)
{
    output *o = NULL;
    tare_status status = TARE_OK;
    TRY(open_case(ctx, c, &o));
    TRY(declare_case(c, o));
    TRY(output_begin(o));
    TRY(write_case(c, o));
    TRY(output_finish(o, "{}\n", bytes));
done:
    output_free(o);
    return status;
}

static inline void make_good_output(const output_case *c)
{
    tare_context *ctx = new_context(1);
    uint64_t bytes;
    assert_ok(ctx, make_output(ctx, c, &bytes));
    free_context(ctx);
}

/* The text of a small file; static, overwritten by the next call. */
static inline const char *read_text(const char *folder, const char *name)
{
    static char text[65536];
    char path[512];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "rb");
    if (!f)
        fail_msg("cannot read %s", path);
    text[fread(text, 1, sizeof text - 1, f)] = '\0';
    fclose(f);
    return text;
}

/* ---- reading back ---- */

static inline void assert_tensor(safetensors *s, const char *name, tare_dtype dtype, int rank,
                                 size_t rows, size_t columns, const void *data, size_t size)
{
    const tensor_info *t = safetensors_find(s, name);
    char got[64];
    if (!t)
        fail_msg("%s is missing", name);
    if (t->dtype != dtype || t->rank != rank || t->shape[0] != rows ||
        (rank == 2 && t->shape[1] != columns))
        fail_msg("%s: %s rank %d [%zu,%zu]", name, dtype_name(t->dtype), t->rank, t->shape[0],
                 t->shape[1]);
    assert_int_equal(t->bytes, size);
    assert_int_equal(safetensors_read(s, t, 0, got, size), TARE_OK);
    if (memcmp(got, data, size) != 0)
        fail_msg("%s has other bytes", name);
}

#define FLOATS(...) (float[]){__VA_ARGS__}, sizeof((float[]){__VA_ARGS__})
#define HALVES(...) (uint16_t[]){__VA_ARGS__}, sizeof((uint16_t[]){__VA_ARGS__})
#define WORDS(...)  (int32_t[]){__VA_ARGS__}, sizeof((int32_t[]){__VA_ARGS__})
#define LONGS(...)  (int64_t[]){__VA_ARGS__}, sizeof((int64_t[]){__VA_ARGS__})

static inline safetensors *open_weights(tare_context *ctx, const char *folder, const char *name)
{
    safetensors *s;
    char path[512];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    assert_ok(ctx, safetensors_open(ctx, path, &s));
    return s;
}

/* Names in `folder`, sorted, separated by spaces; "" if it does not exist. Static. */
static inline const char *names_in(const char *folder)
{
    static char text[4096];
    char **names;
    size_t count, used = 0;
    text[0] = '\0';
    if (!path_exists(folder))
        return text;
    tare_context *ctx = new_context(1);
    assert_ok(ctx, folder_list(ctx, folder, &names, &count));
    for (size_t i = 0; i < count; i++)
        used += (size_t)snprintf(text + used, sizeof text - used, "%s%s", i ? " " : "", names[i]);
    folder_list_free(ctx, names, count);
    free_context(ctx);
    return text;
}

/* `text` without its spaces and line ends; static. */
static inline const char *compact(const char *text)
{
    static char out[16384];
    size_t n = 0;
    for (; *text && n + 1 < sizeof out; text++)
        if (*text != ' ' && *text != '\n')
            out[n++] = *text;
    out[n] = '\0';
    return out;
}

#endif
