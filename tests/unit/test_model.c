/* model/: config.json, rope frequencies, and opening checkpoints with one thing wrong each. */
#include "config_fixture.h"
#include "fixture.h"

#include <math.h>

#include "forward/linear.h"
#include "model/model.h"
#include "model/tensor_names.h"

#define GEOMETRY                                                                                   \
    "\"hidden_size\": 8, \"intermediate_size\": 12, \"vocab_size\": "                              \
    "10, "                                                                                         \
    "\"num_hidden_layers\": 1, \"num_attention_heads\": 2"

#define LLAMA   "\"model_type\": \"llama\", " GEOMETRY ", \"num_key_value_heads\": 1"
#define QWEN2   "\"model_type\": \"qwen2\", " GEOMETRY ", \"num_key_value_heads\": 1"
#define PHI3    "\"model_type\": \"phi3\", " GEOMETRY
#define MISTRAL "\"model_type\": \"mistral\", " GEOMETRY ", \"num_key_value_heads\": null"

static void test_config_defaults(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    model_config c;
    arena a;
    arena_init(&a, ctx);
    assert_ok(ctx, parse_config(ctx, &a, "{" LLAMA "}", &c));
    assert_int_equal(c.head_dim, 4);
    assert_int_equal(c.num_kv_heads, 1);
    assert_false(c.tie_word_embeddings || c.attention_bias || c.mlp_bias || c.has_dtype);
    assert_true(c.rms_norm_eps == 1e-6f && c.rope.theta == 10000 && c.rope.type == ROPE_DEFAULT);
    block_graph g;
    c.arch->block(&c, false, &g);
    assert_int_equal(graph_linear_of(&g, "model.layers.0.self_attn.q_proj", 31)->n, 8);
    assert_int_equal(graph_linear_of(&g, "model.layers.0.self_attn.k_proj", 31)->n, 4);
    assert_ok(ctx,
              parse_config(ctx, &a,
                           "{" LLAMA
                           ", \"head_dim\": null, \"dtype\": \"bfloat16\", \"rope_scaling\": null}",
                           &c));
    assert_true(c.head_dim == 4 && c.has_dtype && c.dtype == TARE_BF16);
    /* Of two dtypes transformers takes `dtype`; torch.half is float16, torch.float float32. */
    assert_ok(ctx,
              parse_config(ctx, &a,
                           "{" LLAMA ", \"torch_dtype\": \"bfloat16\", \"dtype\": \"half\"}", &c));
    assert_true(c.has_dtype && c.dtype == TARE_F16);
    assert_ok(
        ctx, parse_config(ctx, &a, "{" LLAMA ", \"torch_dtype\": \"float\", \"dtype\": null}", &c));
    assert_true(c.has_dtype && c.dtype == TARE_F32);
    /* Settings that say the same twice, and null, are no contradiction. */
    assert_ok(ctx,
              parse_config(ctx, &a,
                           "{" LLAMA ", \"partial_rotary_factor\": 1.0, \"rope_theta\": 500, "
                           "\"rope_scaling\": {\"type\": \"linear\", \"factor\": 2}, "
                           "\"rope_parameters\": {\"rope_type\": \"linear\", \"type\": \"linear\", "
                           "\"factor\": 2.0, \"rope_theta\": 500.0, "
                           "\"partial_rotary_factor\": null}}",
                           &c));
    assert_true(c.rope.type == ROPE_LINEAR && c.rope.theta == 500 && c.rope.factor == 2);
    /* Qwen3: head_dim 128 unless given (spec/models.md 1.1). */
    assert_ok(
        ctx,
        parse_config(
            ctx, &a,
            "{\"model_type\": \"qwen3\", \"hidden_size\": 64, \"intermediate_size\": 8, "
            "\"vocab_size\": 4, "
            "\"num_hidden_layers\": 3, \"num_attention_heads\": 32, \"use_sliding_window\": true, "
            "\"sliding_window\": 7, \"max_window_layers\": 2}",
            &c));
    assert_int_equal(c.head_dim, 128);
    assert_int_equal(c.num_kv_heads, 32);
    assert_int_equal(model_config_window(&c, 1), 0);
    assert_int_equal(model_config_window(&c, 2), 7);
    /* Mistral: a window of 4096 in all layers unless the key is null; null K means as many as
     * heads.
     */
    assert_ok(ctx, parse_config(ctx, &a, "{" MISTRAL "}", &c));
    assert_true(c.num_kv_heads == 2 && model_config_window(&c, 0) == 4096);
    assert_ok(ctx, parse_config(ctx, &a, "{" MISTRAL ", \"sliding_window\": null}", &c));
    assert_int_equal(model_config_window(&c, 0), 0);
    /* Phi-3: eps 1e-5, no window unless given, then in all layers; part of a head may turn. */
    assert_ok(ctx, parse_config(ctx, &a, "{" PHI3 "}", &c));
    assert_true(c.rms_norm_eps == 1e-5f && c.max_position_embeddings == 4096 && !c.windows);
    assert_int_equal(c.rotary_dim, 4);
    assert_ok(ctx, parse_config(ctx, &a,
                                "{" PHI3 ", \"sliding_window\": 9, \"partial_rotary_factor\": 0.5}",
                                &c));
    assert_true(c.rotary_dim == 2 && model_config_window(&c, 0) == 9);
    /* GLM-4: head_dim 128, half of which turns, 2 key/value heads, biases. */
    assert_ok(ctx, parse_config(ctx, &a, "{\"model_type\": \"glm4\", " GEOMETRY "}", &c));
    assert_true(c.head_dim == 128 && c.rotary_dim == 64 && c.num_kv_heads == 2);
    assert_true(c.attention_bias && c.rms_norm_eps == 1.5625e-7f);
    arena_free(&a);
    free_context(ctx);
}

/* max_position_embeddings, times the factor where the key is the length before stretching. */
static void test_max_tokens(void **state)
{
    (void)state;
    static const struct {
        const char *rope;
        size_t tokens;
    } cases[] = {
        {"null", 100},
        {"{\"type\": \"linear\", \"factor\": 2.5}", 250},
        {"{\"type\": \"dynamic\", \"factor\": 4}", 400},
        {"{\"type\": \"yarn\", \"factor\": 4}", 400},
        {"{\"type\": \"yarn\", \"factor\": 4, \"original_max_position_embeddings\": 25}", 100},
        {"{\"type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 1, \"high_freq_factor\": 4, "
         "\"original_max_position_embeddings\": 64}",
         100},
        {"{\"type\": \"dynamic\", \"factor\": 1e20}", (size_t)1 << 31},
    };
    tare_context *ctx = new_context(1);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char json[1024];
        model_config c;
        arena a;
        arena_init(&a, ctx);
        snprintf(json, sizeof json,
                 "{" LLAMA ", \"max_position_embeddings\": 100, \"rope_scaling\": %s}",
                 cases[i].rope);
        assert_ok(ctx, parse_config(ctx, &a, json, &c));
        assert_int_equal(model_config_max_tokens(&c), cases[i].tokens);
        arena_free(&a);
    }
    free_context(ctx);
}

static void test_config_refusals(void **state)
{
    (void)state;
    static const struct {
        const char *json, *message;
    } cases[] = {
        {"{}", "model_type is missing; supported: llama, qwen2, qwen3, mistral"},
        {"{\"model_type\": \"gpt2\"}", "\"gpt2\" is not supported; supported: llama, qwen2, qwen3"},
        {"[1]", "is not a JSON object"},
        {"{\"model_type\": \"llama\"}", "hidden_size is missing"},
        {"{" LLAMA ", \"hidden_act\": \"gelu\"}", "\"gelu\""},
        {"{" LLAMA ", \"num_key_value_heads\": 3}", "duplicate"},
        {"{\"model_type\": \"llama\", " GEOMETRY ", \"num_key_value_heads\": 3}",
         "num_attention_heads 2 is not a multiple of num_key_value_heads 3"},
        {"{\"model_type\": \"llama\", " GEOMETRY ", \"num_key_value_heads\": 0}",
         "num_key_value_heads"},
        {"{" LLAMA ", \"head_dim\": 3}", "odd"},
        {"{" LLAMA ", \"torch_dtype\": \"int8\"}", "torch_dtype \"int8\""},
        {"{" LLAMA ", \"dtype\": \"torch.bfloat16\", \"torch_dtype\": \"float16\"}",
         "dtype \"torch.bfloat16\""},
        {"{" LLAMA ", \"dtype\": 16}", "dtype \"(no string)\""},
        {"{" LLAMA ", \"partial_rotary_factor\": 0.5}", "partial_rotary_factor 0.5"},
        {"{" LLAMA ", \"rope_parameters\": {\"rope_type\": \"default\", "
         "\"partial_rotary_factor\": 0.25}}",
         "partial_rotary_factor 0.25"},
        {"{" PHI3 ", \"partial_rotary_factor\": 0.75}", "turns 3 of a head's 4 columns"},
        {"{" PHI3 ", \"partial_rotary_factor\": 1.25}", "partial_rotary_factor 1.25"},
        {"{" PHI3 ", \"partial_rotary_factor\": 0}", "partial_rotary_factor 0 is not"},
        {"{" PHI3 ", \"rope_scaling\": {\"type\": \"su\", \"short_factor\": [1, 1]}}",
         "long_factor of the rope settings must be a list of 2 numbers"},
        {"{" PHI3 ", \"rope_scaling\": {\"type\": \"longrope\", \"short_factor\": [1], "
         "\"long_factor\": [1, 2]}}",
         "short_factor of the rope settings must be a list of 2 numbers"},
        {"{" PHI3 ", \"rope_scaling\": {\"type\": \"longrope\", \"short_factor\": [1, 1], "
         "\"long_factor\": [1, 0]}}",
         "long_factor of the rope settings: item 1 is not"},
        {"{" PHI3 ", \"rope_scaling\": {\"type\": \"longrope\", \"short_factor\": [1, 1]}, "
         "\"rope_parameters\": {\"rope_type\": \"longrope\", \"short_factor\": [1, 2]}}",
         "rope_parameters says otherwise of short_factor"},
        {"{" LLAMA ", \"rope_scaling\": {\"rope_type\": \"default\", \"type\": \"linear\", "
         "\"factor\": 2}}",
         "rope_type \"default\" and type \"linear\""},
        {"{" LLAMA ", \"rope_scaling\": {\"type\": \"linear\", \"factor\": 2}, "
         "\"rope_parameters\": {\"rope_type\": \"linear\", \"factor\": 4}}",
         "rope_parameters says otherwise of factor"},
        {"{" LLAMA ", \"rope_theta\": 5000, \"rope_parameters\": {\"rope_theta\": 10000}}",
         "rope_parameters says otherwise of rope_theta"},
        {"{" LLAMA ", \"rope_scaling\": {\"rope_type\": \"ntk\"}}", "\"ntk\""},
        {"{" LLAMA ", \"rope_scaling\": {\"type\": \"llama3\", \"factor\": 8}}", "low_freq_factor"},
        {"{" LLAMA ", \"rope_scaling\": 3}", "rope_scaling"},
        {"{" LLAMA ", \"rope_scaling\": {\"type\": \"linear\"}}", "factor of the rope settings"},
        {"{" LLAMA ", \"rope_scaling\": {\"type\": \"dynamic\", \"factor\": 0}}", "factor"},
        {"{" LLAMA ", \"rope_scaling\": {\"type\": \"yarn\", \"factor\": 2, \"beta_fast\": -1}}",
         "beta_fast"},
        {"{" LLAMA ", \"rope_theta\": 1, \"rope_scaling\": {\"type\": \"yarn\", \"factor\": 2}}",
         "rope_theta 1 is too small for yarn"},
        {"{" LLAMA ", \"rope_parameters\": {\"full_attention\": {\"rope_type\": \"default\"}}}",
         "rope settings by kind of layer (full_attention)"},
        {"{" QWEN2 ", \"layer_types\": [\"chunked_attention\"]}",
         "\"chunked_attention\" of layer 0"},
        {"{" QWEN2 ", \"layer_types\": []}", "layer_types must be a list of 1 strings"},
        {"{" LLAMA ", \"rms_norm_eps\": -1}", "rms_norm_eps"},
        {"{" LLAMA ", \"head_dim\": 1e400}", "head_dim"},
        {"{" LLAMA ", \"max_position_embeddings\": -5}", "max_position_embeddings"},
    };
    tare_context *ctx = new_context(1);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        model_config c;
        arena a;
        arena_init(&a, ctx);
        tare_status status = parse_config(ctx, &a, cases[i].json, &c);
        if (status == TARE_OK || !strstr(tare_last_error(ctx), cases[i].message))
            fail_msg("%s: status %d: %s", cases[i].json, (int)status, tare_last_error(ctx));
        arena_free(&a);
    }
    free_context(ctx);
}

/* f_j = theta^(-2j/D) by hand; llama3 with factor 8, low 1, high 4, original 64, D 4, theta 100:
 * wavelengths 2 pi and 20 pi = 62.83. 2 pi < 64/4: kept. 16 < 62.83 < 64: s = (64/62.83 - 1)/3 =
 * 0.0061972, f = 0.1 ((1-s)/8 + s) = 0.0130423. */
static void test_rope_frequencies(void **state)
{
    (void)state;
    float f[2];
    rope_config c = {.type = ROPE_DEFAULT, .theta = 100};
    rope_frequencies(&c, 4, 1, f);
    assert_true(f[0] == 1 && fabsf(f[1] - 0.1f) < 1e-8f);
    c = (rope_config){.type = ROPE_LLAMA3,
                      .theta = 100,
                      .factor = 8,
                      .low_freq_factor = 1,
                      .high_freq_factor = 4,
                      .original_max_position = 64};
    rope_frequencies(&c, 4, 1, f);
    assert_true(f[0] == 1 && fabsf(f[1] - 0.0130423f) < 1e-6f);
    c.original_max_position = 32; /* 62.83 > 32: divided by the factor */
    rope_frequencies(&c, 4, 1, f);
    assert_true(fabsf(f[1] - 0.0125f) < 1e-8f);
    c.type = ROPE_LINEAR;
    rope_frequencies(&c, 4, 1, f);
    assert_true(f[0] == 0.125f && fabsf(f[1] - 0.0125f) < 1e-8f);
}

/* dynamic, factor 2, beyond 10 positions: 15 tokens, theta' = 100 (2*15/10 - 1)^2 = 400, f = 1/20.
 * A sequence of 10 keeps theta. The table of 15 holds 10 positions; longer sequences have their
 * own.
 */
static void test_dynamic_rope(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    rope_config c = {
        .type = ROPE_DYNAMIC, .theta = 100, .factor = 2, .max_position = 10, .attention_factor = 1};
    float f[2];
    rope_frequencies(&c, 4, 10, f);
    assert_true(fabsf(f[1] - 0.1f) < 1e-8f);
    rope_frequencies(&c, 4, 15, f);
    assert_true(f[0] == 1 && fabsf(f[1] - 0.05f) < 1e-8f);
    rope_table t;
    size_t before = tare_memory_used(ctx);
    assert_ok(ctx, rope_table_create(ctx, &c, 4, 15, 2, &t));
    assert_true(t.tokens == 10 && tare_memory_used(ctx) - before <= rope_table_bytes(&c, 4, 15, 2));
    const float *cosines, *sines;
    rope_sequence s = rope_sequence_begin(&t, 15, 1);
    rope_sequence_at(&s, 14, &cosines, &sines);
    assert_true(fabsf(sines[1] - sinf(14 * 0.05f)) < 1e-6f);
    s = rope_sequence_begin(&t, 10, 1);
    rope_sequence_at(&s, 9, &cosines, &sines);
    assert_true(fabsf(cosines[1] - cosf(0.9f)) < 1e-6f && sines == t.sin + 9 * 2);
    rope_table_free(ctx, &t);
    free_context(ctx);
}

/* ---- checkpoints: a one-layer Llama of zeros, written by hand ---- */

typedef struct shape {
    const char *name;
    size_t rows, cols; /* cols 0: a vector */
} shape;

static const shape llama_shapes[] = {{"model.embed_tokens.weight", 10, 8},
                                     {"model.layers.0.self_attn.q_proj.weight", 8, 8},
                                     {"model.layers.0.self_attn.k_proj.weight", 4, 8},
                                     {"model.layers.0.self_attn.v_proj.weight", 4, 8},
                                     {"model.layers.0.self_attn.o_proj.weight", 8, 8},
                                     {"model.layers.0.mlp.gate_proj.weight", 12, 8},
                                     {"model.layers.0.mlp.up_proj.weight", 12, 8},
                                     {"model.layers.0.mlp.down_proj.weight", 8, 12},
                                     {"model.layers.0.input_layernorm.weight", 8, 0},
                                     {"model.layers.0.post_attention_layernorm.weight", 8, 0},
                                     {"model.norm.weight", 8, 0},
                                     {"lm_head.weight", 10, 8}};
enum { NUM_SHAPES = sizeof llama_shapes / sizeof *llama_shapes };

/* Writes tensors [first, last) as F32, every element `fill`; tensor `skip` is left out, tensor
 * `reshape` gets a row more. */
static void write_shard(const char *folder, const char *name, size_t first, size_t last, int skip,
                        int reshape, float fill)
{
    char header[8192] = "{", *at = header + 1;
    size_t offset = 0;
    for (size_t i = first; i < last; i++) {
        const shape *s = &llama_shapes[i];
        size_t rows = s->rows + ((int)i == reshape), bytes = rows * (s->cols ? s->cols : 1) * 4;
        if ((int)i == skip)
            continue;
        at += sprintf(at, "%s\"%s\":{\"dtype\":\"F32\",\"shape\":[%zu", offset ? "," : "", s->name,
                      rows);
        if (s->cols)
            at += sprintf(at, ",%zu", s->cols);
        at += sprintf(at, "],\"data_offsets\":[%zu,%zu]}", offset, offset + bytes);
        offset += bytes;
    }
    at += sprintf(at, "}");
    uint64_t length = (uint64_t)(at - header);
    char *data = calloc(1, 8 + length + offset);
    assert_non_null(data);
    memcpy(data, &length, 8);
    memcpy(data + 8, header, length);
    for (size_t i = 0; i < offset / 4; i++)
        memcpy(data + 8 + length + 4 * i, &fill, 4);
    write_file(folder, name, data, 8 + length + offset);
    free(data);
}

static void expect_open(tare_context *ctx, const char *folder, tare_status expected,
                        const char *part)
{
    tare_model *model;
    tare_status status = tare_model_open(ctx, folder, &model);
    if (expected == TARE_OK)
        assert_ok(ctx, status);
    else
        assert_fails(ctx, status, expected, part);
    assert_true((status == TARE_OK) == (model != NULL));
    tare_model_free(model);
}

static void write_index(const char *folder, const char *entries)
{
    char text[1024];
    snprintf(text, sizeof text, "{\"weight_map\": {%s}}", entries);
    write_text(folder, "model.safetensors.index.json", text);
}

static void test_checkpoint_faults(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    const char *d = temporary_folder();
    char path[512];
    expect_open(ctx, d, TARE_E_IO, "config.json");
    write_text(d, "config.json", "{" LLAMA "}");
    expect_open(ctx, d, TARE_E_MODEL, "neither model.safetensors nor");
    write_shard(d, "model.safetensors", 0, NUM_SHAPES, -1, -1, 0);
    expect_open(ctx, d, TARE_OK, "");
    write_shard(d, "model.safetensors", 0, NUM_SHAPES, 7, -1, 0);
    expect_open(ctx, d, TARE_E_MODEL, "model.layers.0.mlp.down_proj.weight is missing");
    write_shard(d, "model.safetensors", 0, NUM_SHAPES, -1, 2, 0);
    expect_open(ctx, d, TARE_E_MODEL, "k_proj.weight has shape [5,8], config.json makes it [4,8]");
    write_shard(d, "model.safetensors", 0, NUM_SHAPES, -1, 10, 0);
    expect_open(ctx, d, TARE_E_MODEL, "model.norm.weight has shape [9], config.json makes it [8]");
    /* A head is only optional where it is tied. */
    write_shard(d, "model.safetensors", 0, NUM_SHAPES, 11, -1, 0);
    expect_open(ctx, d, TARE_E_MODEL, "lm_head.weight is missing");
    write_text(d, "config.json", "{" LLAMA ", \"tie_word_embeddings\": true}");
    expect_open(ctx, d, TARE_OK, "");

    snprintf(path, sizeof path, "%s/model.safetensors", d);
    assert_int_equal(unlink(path), 0);
    write_index(d, "\"model.norm.weight\": \"absent.safetensors\"");
    expect_open(ctx, d, TARE_E_IO, "absent.safetensors");
    static const char *const outside[] = {"../x.safetensors", "/etc/passwd", "..",
                                          "a/b.safetensors", ""};
    for (size_t i = 0; i < sizeof outside / sizeof *outside; i++) {
        char entry[256];
        snprintf(entry, sizeof entry, "\"model.norm.weight\": \"%s\"", outside[i]);
        write_index(d, entry);
        expect_open(ctx, d, TARE_E_MODEL, "must name a file in the same folder");
    }
    write_index(d, "\"model.norm.weight\": 3");
    expect_open(ctx, d, TARE_E_MODEL, "must name a file in the same folder");
    write_shard(d, "a.safetensors", 0, NUM_SHAPES, -1, -1, 0);
    /* The index is a list of files: it need not be right about what is in them. */
    write_index(d, "\"model.norm.bias\": \"a.safetensors\"");
    expect_open(ctx, d, TARE_OK, "");
    write_shard(d, "a.safetensors", 0, NUM_SHAPES, 7, -1, 0);
    write_index(d, "\"model.layers.0.mlp.down_proj.weight\": \"a.safetensors\"");
    expect_open(ctx, d, TARE_E_MODEL, "model.layers.0.mlp.down_proj.weight is missing");
    write_text(d, "model.safetensors.index.json", "{}");
    expect_open(ctx, d, TARE_E_MODEL, "weight_map");
    assert_ok(ctx, folder_remove(ctx, d));
    free_context(ctx);
}

/* Of a tensor that two shards hold, transformers keeps the one of the last file by name, whatever
 * order the index has them in and wherever it says the tensor is. */
static void test_tensor_in_two_shards(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    const char *d = temporary_folder();
    tare_model *model;
    float *vector;
    write_text(d, "config.json", "{" LLAMA "}");
    write_shard(d, "b.safetensors", 10, NUM_SHAPES, -1, -1, 2); /* the last norm and the head */
    write_shard(d, "a.safetensors", 0, 11, -1, -1, 1);
    static const char *const orders[] = {
        "\"model.norm.weight\": \"a.safetensors\", \"lm_head.weight\": \"b.safetensors\"",
        "\"lm_head.weight\": \"b.safetensors\", \"model.norm.weight\": \"a.safetensors\"",
        ("\"model.norm.weight\": \"b.safetensors\", \"model.embed_tokens.weight\": "
         "\"a.safetensors\"")};
    for (size_t i = 0; i < sizeof orders / sizeof *orders; i++) {
        write_index(d, orders[i]);
        assert_ok(ctx, tare_model_open(ctx, d, &model));
        assert_ok(ctx, model_read_vector(model, model->final_norm, &vector));
        assert_true(vector[0] == 2 && vector[7] == 2);
        mem_free(ctx, vector);
        tare_model_free(model);
    }
    assert_ok(ctx, folder_remove(ctx, d));
    free_context(ctx);
}

static void test_uses_of_tensors(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        tensor_use llama, qwen3; /* without and with attention_bias */
    } cases[] = {
        {"model.embed_tokens.weight", TENSOR_NEEDED, TENSOR_NEEDED},
        {"lm_head.weight", TENSOR_NEEDED, TENSOR_NEEDED},
        {"lm_head.bias", TENSOR_UNUSED, TENSOR_UNUSED},
        {"model.norm.bias", TENSOR_UNUSED, TENSOR_UNUSED},
        {"model.norms.weight", TENSOR_FOREIGN, TENSOR_FOREIGN},
        {"model.layers.0.self_attn.o_proj.weight", TENSOR_NEEDED, TENSOR_NEEDED},
        {"model.layers.0.self_attn.o_proj.bias", TENSOR_UNUSED, TENSOR_NEEDED},
        {"model.layers.0.mlp.up_proj.bias", TENSOR_UNUSED, TENSOR_UNUSED},
        {"model.layers.0.self_attn.q_norm.weight", TENSOR_UNUSED, TENSOR_NEEDED},
        {"model.layers.0.self_attn.rotary_emb.inv_freq", TENSOR_BUFFER, TENSOR_BUFFER},
        {"model.layers.1.mlp.up_proj.weight", TENSOR_BEYOND, TENSOR_BEYOND},
        {"model.layers.10.mlp.up_proj.weight", TENSOR_BEYOND, TENSOR_BEYOND},
        {"model.layers.00.mlp.up_proj.weight", TENSOR_UNUSED, TENSOR_UNUSED},
        {"model.layers.x", TENSOR_UNUSED, TENSOR_UNUSED},
        {"model.layers.", TENSOR_UNUSED, TENSOR_UNUSED},
        {"model.vision.layers.0.weight", TENSOR_FOREIGN, TENSOR_FOREIGN},
        {"score.weight", TENSOR_FOREIGN, TENSOR_FOREIGN},
    };
    tare_context *ctx = new_context(1);
    arena a;
    model_config llama, qwen3;
    arena_init(&a, ctx);
    assert_ok(ctx, parse_config(ctx, &a, "{" LLAMA "}", &llama));
    assert_ok(ctx, parse_config(ctx, &a,
                                "{\"model_type\": \"qwen3\", \"attention_bias\": true, "
                                "\"num_key_value_heads\": 1, " GEOMETRY "}",
                                &qwen3));
    block_graph llama_blocks[BLOCK_KINDS], qwen3_blocks[BLOCK_KINDS];
    model_config_graphs(&llama, llama_blocks);
    model_config_graphs(&qwen3, qwen3_blocks);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        tensor_use in_llama = tensor_use_of(&llama, llama_blocks, cases[i].name),
                   in_qwen3 = tensor_use_of(&qwen3, qwen3_blocks, cases[i].name);
        if (in_llama != cases[i].llama || in_qwen3 != cases[i].qwen3)
            fail_msg("%s: %d, %d", cases[i].name, (int)in_llama, (int)in_qwen3);
    }
    arena_free(&a);
    free_context(ctx);
}

static void test_infinite_weight_is_named(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    const char *d = temporary_folder();
    tare_model *model;
    float logits[20], *vector;
    uint32_t ids[2] = {1, 2};
    write_text(d, "config.json", "{" LLAMA "}");
    write_shard(d, "model.safetensors", 0, NUM_SHAPES, -1, -1, INFINITY);
    assert_ok(ctx, tare_model_open(ctx, d, &model));
    assert_fails(ctx, tare_model_logits(model, ids, 2, logits), TARE_E_NUMERIC,
                 "model.embed_tokens.weight");
    assert_fails(ctx, model_read_vector(model, model->final_norm, &vector), TARE_E_NUMERIC,
                 "model.norm.weight: element 0");
    ids[1] = 10;
    assert_fails(ctx, tare_model_logits(model, ids, 2, logits), TARE_E_DATA,
                 "token id 10 is out of range");
    tare_model_free(model);
    assert_ok(ctx, folder_remove(ctx, d));
    free_context(ctx);
}

static tare_status open_and_run(tare_context *ctx, void *user)
{
    tare_model *model;
    float logits[20];
    uint32_t ids[2] = {1, 2};
    tare_status status = tare_model_open(ctx, user, &model);
    if (status == TARE_OK)
        status = tare_model_logits(model, ids, 2, logits);
    tare_model_free(model);
    return status;
}

static void test_every_allocation_may_fail(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    char d[64];
    snprintf(d, sizeof d, "%s", temporary_folder());
    write_text(d, "config.json", "{" LLAMA "}");
    write_shard(d, "model.safetensors", 0, NUM_SHAPES, -1, -1, 0.5f);
    each_allocation_fails(open_and_run, d);
    assert_ok(ctx, folder_remove(ctx, d));
    /* A head that its config ties, shards with an index, and one tensor too many. */
    snprintf(d, sizeof d, "%s", temporary_folder());
    write_text(d, "config.json",
               "{" LLAMA ", \"tie_word_embeddings\": true, \"quantization_config\": {\"a\": 1}}");
    write_shard(d, "a.safetensors", 0, NUM_SHAPES, -1, -1, 0.5f);
    write_index(d, "\"model.layers.7.x\": \"a.safetensors\"");
    each_allocation_fails(open_and_run, d);
    assert_ok(ctx, folder_remove(ctx, d));
    free_context(ctx);
}

static void test_batches(void **state)
{
    (void)state;
    const size_t lengths[] = {5, 3, 9, 1, 1};
    batch b = batch_next(lengths, 0, 5, 8);
    assert_true(b.samples == 2 && b.rows == 8);
    b = batch_next(lengths, 2, 5, 8); /* longer than the limit: alone */
    assert_true(b.samples == 1 && b.rows == 9 && b.first == 2);
    b = batch_next(lengths, 3, 5, 8);
    assert_true(b.samples == 2 && b.rows == 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_config_defaults),
                                       cmocka_unit_test(test_config_refusals),
                                       cmocka_unit_test(test_max_tokens),
                                       cmocka_unit_test(test_rope_frequencies),
                                       cmocka_unit_test(test_dynamic_rope),
                                       cmocka_unit_test(test_checkpoint_faults),
                                       cmocka_unit_test(test_tensor_in_two_shards),
                                       cmocka_unit_test(test_uses_of_tensors),
                                       cmocka_unit_test(test_infinite_weight_is_named),
                                       cmocka_unit_test(test_every_allocation_may_fail),
                                       cmocka_unit_test(test_batches)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
