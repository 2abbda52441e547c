/* Generation. Greedy text is that of whole forward passes (tare_model_logits, which the golden
 * tests compare with transformers), whatever the batch, the threads and the memory limit; draws
 * follow CPython's generator; settings come from generation_config.json; failing allocations and
 * cancellation leave nothing behind. */
#include <pthread.h>
#include <unistd.h>

#include "generate/generate.h"
#include "tensor/convert.h"
#include "tensor_fixture.h"

/* ---- a small random Llama: 2 layers, grouped heads, BF16 ---- */

enum { VOCAB = 70, HIDDEN = 16, INTERMEDIATE = 40, LAYERS = 2, MAX_POSITION = 48 };

#define CONFIG                                                                                     \
    "{\"model_type\": \"llama\", \"hidden_act\": \"silu\", \"hidden_size\": 16, "                  \
    "\"intermediate_size\": 40, \"num_hidden_layers\": 2, \"num_attention_heads\": 4, "            \
    "\"num_key_value_heads\": 2, \"head_dim\": 4, \"max_position_embeddings\": 48, "               \
    "\"vocab_size\": 70, \"rms_norm_eps\": 1e-5, \"rope_theta\": 10000.0, "                        \
    "\"torch_dtype\": \"bfloat16\""

typedef struct writer {
    char header[32768], *at;
    size_t offset;
    uint16_t data[60000];
    random_state random;
} writer;

/* One more tensor in the header; its elements. */
static size_t list_tensor(writer *w, const char *name, size_t rows, size_t cols)
{
    size_t n = rows * (cols ? cols : 1);
    w->at += sprintf(w->at, "%s\"%s\":{\"dtype\":\"BF16\",\"shape\":[%zu", w->offset ? "," : "",
                     name, rows);
    if (cols)
        w->at += sprintf(w->at, ",%zu", cols);
    w->at += sprintf(w->at, "],\"data_offsets\":[%zu,%zu]}", w->offset, w->offset + 2 * n);
    w->offset += 2 * n;
    return n;
}

static void put_tensor(writer *w, const char *name, size_t rows, size_t cols)
{
    size_t first = w->offset / 2, n = list_tensor(w, name, rows, cols);
    for (size_t i = first; i < first + n; i++)
        w->data[i] = float_to_bf16(cols ? random_float(&w->random, -0.6, 0.6)
                                        : random_float(&w->random, 0.7, 1.3));
}

static void write_model(const char *folder, bool tied)
{
    static const struct {
        const char *name;
        size_t rows, cols;
    } parts[] = {{"self_attn.q_proj", 16, HIDDEN},        {"self_attn.k_proj", 8, HIDDEN},
                 {"self_attn.v_proj", 8, HIDDEN},         {"self_attn.o_proj", HIDDEN, 16},
                 {"mlp.gate_proj", INTERMEDIATE, HIDDEN}, {"mlp.up_proj", INTERMEDIATE, HIDDEN},
                 {"mlp.down_proj", HIDDEN, INTERMEDIATE}, {"input_layernorm", HIDDEN, 0},
                 {"post_attention_layernorm", HIDDEN, 0}};
    static writer w;
    w = (writer){.random = {20}};
    w.at = w.header + sprintf(w.header, "{");
    put_tensor(&w, "model.embed_tokens.weight", VOCAB, HIDDEN);
    put_tensor(&w, "model.norm.weight", HIDDEN, 0);
    if (!tied)
        put_tensor(&w, "lm_head.weight", VOCAB, HIDDEN);
    for (size_t layer = 0; layer < LAYERS; layer++) {
        for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
            char name[96];
            snprintf(name, sizeof name, "model.layers.%zu.%s.weight", layer, parts[i].name);
            put_tensor(&w, name, parts[i].rows, parts[i].cols);
        }
    }
    w.at += sprintf(w.at, "}");
    uint64_t length = (uint64_t)(w.at - w.header);
    char *bytes = malloc(8 + length + w.offset);
    assert_non_null(bytes);
    memcpy(bytes, &length, 8);
    memcpy(bytes + 8, w.header, length);
    memcpy(bytes + 8 + length, w.data, w.offset);
    write_file(folder, "model.safetensors", bytes, 8 + length + w.offset);
    free(bytes);
    write_text(folder, "config.json",
               tied ? CONFIG ", \"tie_word_embeddings\": true, \"eos_token_id\": 69}"
                    : CONFIG ", \"tie_word_embeddings\": false}");
}

/* ---- prompts ---- */

enum { PROMPTS = 6, NEW = 9 };

typedef struct prompts {
    uint32_t ids[PROMPTS][MAX_POSITION + 1];
    const uint32_t *pointers[PROMPTS];
    size_t lengths[PROMPTS];
    uint32_t expected[PROMPTS][NEW];
} prompts;

static void make_prompts(prompts *p)
{
    static const size_t lengths[PROMPTS] = {1, 5, 17, 2, 33, 8};
    random_state r = {7};
    for (size_t i = 0; i < PROMPTS; i++) {
        p->lengths[i] = lengths[i];
        p->pointers[i] = p->ids[i];
        for (size_t j = 0; j < lengths[i]; j++)
            p->ids[i][j] = random_bits(&r) % VOCAB;
    }
}

/* The most probable tokens, by whole passes over the growing text. */
static void expect_by_logits(tare_context *ctx, tare_model *model, prompts *p)
{
    static float logits[(MAX_POSITION + 1) * VOCAB];
    for (size_t i = 0; i < PROMPTS; i++) {
        uint32_t text[MAX_POSITION + 1];
        size_t count = p->lengths[i];
        memcpy(text, p->ids[i], count * sizeof *text);
        for (size_t n = 0; n < NEW; n++, count++) {
            assert_ok(ctx, tare_model_logits(model, text, count, logits));
            const float *last = logits + (count - 1) * VOCAB;
            uint32_t best = 0;
            for (uint32_t t = 1; t < VOCAB; t++)
                best = last[t] > last[best] ? t : best;
            text[count] = p->expected[i][n] = best;
        }
    }
}

static tare_generate_options greedy(size_t most)
{
    static const uint32_t none[1];
    tare_generate_options o;
    tare_generate_options_init(&o);
    o.max_new_tokens = NEW;
    o.batch = most;
    o.eos_ids = none;
    return o;
}

static void assert_texts(tare_context *ctx, tare_model *model, const tare_generate_options *o,
                         const prompts *p)
{
    tare_generation results[PROMPTS];
    assert_ok(ctx, tare_generate(model, o, p->pointers, p->lengths, PROMPTS, results));
    for (size_t i = 0; i < PROMPTS; i++) {
        assert_int_equal(results[i].count, NEW);
        assert_int_equal(results[i].finish, TARE_FINISH_LENGTH);
        assert_memory_equal(results[i].ids, p->expected[i], sizeof p->expected[i]);
    }
    tare_generations_free(ctx, results, PROMPTS);
}

static void test_greedy(void **state)
{
    tare_cpu cpu = this_cpu(state);
    const char *d = temporary_folder();
    static prompts p;
    make_prompts(&p);
    for (int tied = 0; tied < 2; tied++) {
        write_model(d, tied);
        for (int threads = 1; threads < 4; threads += 2) {
            tare_model *model;
            tare_context *ctx = new_context_on(cpu, threads);
            assert_ok(ctx, tare_model_open(ctx, d, &model));
            expect_by_logits(ctx, model, &p);
            for (size_t most = 0; most <= PROMPTS; most += 2) {
                tare_generate_options o = greedy(most + (most == 2));
                assert_texts(ctx, model, &o, &p);
            }
            tare_model_free(model);
            free_context(ctx);
        }
    }
    tare_context *ctx = new_context(1);
    assert_ok(ctx, folder_remove(ctx, d));
    free_context(ctx);
}

static void test_last_logprobs(void **state)
{
    (void)state;
    const char *d = temporary_folder();
    static prompts p;
    static float logits[(MAX_POSITION + 1) * VOCAB];
    const uint32_t ids[] = {3, 69, 3};
    float logprobs[PROMPTS][3];
    tare_model *model;
    tare_context *ctx = new_context(2);
    make_prompts(&p);
    write_model(d, true);
    assert_ok(ctx, tare_model_open(ctx, d, &model));
    p.lengths[3] = MAX_POSITION + 1;
    tare_generate_options o = greedy(2);
    assert_ok(ctx,
              tare_last_logprobs(model, &o, p.pointers, p.lengths, PROMPTS, ids, 3, logprobs[0]));
    for (size_t i = 0; i < PROMPTS; i++) {
        double sum = 0;
        if (i == 3) {
            assert_true(isnan(logprobs[i][0]) && isnan(logprobs[i][2]));
            continue;
        }
        assert_ok(ctx, tare_model_logits(model, p.ids[i], p.lengths[i], logits));
        const float *last = logits + (p.lengths[i] - 1) * VOCAB;
        for (size_t t = 0; t < VOCAB; t++)
            sum += exp((double)last[t]);
        for (size_t t = 0; t < 3; t++)
            assert_true(fabs(logprobs[i][t] - ((double)last[ids[t]] - log(sum))) < 2e-6);
        assert_true(logprobs[i][0] == logprobs[i][2]);
    }
    assert_fails(ctx,
                 tare_last_logprobs(model, &o, p.pointers, p.lengths, 1, (uint32_t[]){VOCAB}, 1,
                                    logprobs[0]),
                 TARE_E_DATA, "token id 70 is out of range");
    tare_model_free(model);
    assert_ok(ctx, folder_remove(ctx, d));
    free_context(ctx);
}

/* ---- memory ---- */

static tare_context *limited_context(size_t limit)
{
    tare_context *ctx;
    tare_context_options options;
    init_options(&options);
    options.threads = 2;
    options.memory_limit = limit;
    assert_int_equal(tare_context_create(&ctx, &options), TARE_OK);
    return ctx;
}

typedef struct modes {
    bool kept, ahead, layer, spilled;
} modes;

/* Plans and generates with a limit: refused, or within it and with the same texts. */
static bool works_within(const char *d, size_t limit, const char *scratch, const prompts *p,
                         modes *seen)
{
    tare_model *model;
    tare_generation_plan plan = {.size = sizeof plan};
    tare_generate_options o = greedy(0);
    o.scratch_dir = scratch;
    tare_context *ctx = limited_context(limit);
    tare_status status = tare_model_open(ctx, d, &model);
    if (status == TARE_OK)
        status = tare_generate_plan(model, &o, p->lengths, PROMPTS, &plan);
    if (status != TARE_OK) {
        if (model)
            assert_fails(ctx, status, TARE_E_BUDGET, "the smallest that works here is");
        tare_model_free(model);
        free_context(ctx);
        return false;
    }
    assert_true(plan.peak <= limit && plan.smallest <= limit && plan.budget == limit);
    assert_texts(ctx, model, &o, p);
    assert_true(tare_memory_peak(ctx) <= plan.peak);
    seen->kept |= plan.weights_kept;
    seen->ahead |= plan.read_ahead;
    seen->layer |= !plan.weights_kept && !plan.read_ahead;
    seen->spilled |= plan.spill;
    assert_int_equal(plan.weights_kept ? plan.bytes_read_pass : plan.bytes_read_once, 0);
    assert_int_equal(plan.weights_kept ? plan.bytes_read_once : plan.bytes_read_pass,
                     2 * (LAYERS * (16 * HIDDEN * 3 + 3 * INTERMEDIATE * HIDDEN) + VOCAB * HIDDEN));
    tare_model_free(model);
    free_context(ctx);
    return true;
}

/* Weights are small beside what products need here, so the budgets that tell the layouts apart lie
 * close together, above the smallest. */
static void test_memory_limits(void **state)
{
    (void)state;
    const char *d = temporary_folder();
    static prompts p;
    modes seen = {0};
    tare_generation_plan plan = {.size = sizeof plan};
    tare_model *model;
    tare_context *ctx = new_context(2);
    make_prompts(&p);
    write_model(d, true);
    assert_ok(ctx, tare_model_open(ctx, d, &model));
    expect_by_logits(ctx, model, &p);
    for (int spill = 0; spill < 2; spill++) {
        tare_generate_options o = greedy(0);
        o.scratch_dir = spill ? d : NULL;
        assert_ok(ctx, tare_generate_plan(model, &o, p.lengths, PROMPTS, &plan));
        size_t smallest = (size_t)plan.smallest;
        assert_true(works_within(d, smallest, o.scratch_dir, &p, &seen));
        assert_false(works_within(d, smallest - 1, o.scratch_dir, &p, &seen));
        for (size_t more = 1024; more < 64 << 10; more += more / 2)
            assert_true(works_within(d, smallest + more, o.scratch_dir, &p, &seen));
    }
    assert_true(works_within(d, (size_t)64 << 20, NULL, &p, &seen));
    assert_true(seen.kept && seen.layer);
    tare_model_free(model);
    assert_ok(ctx, folder_remove(ctx, d));
    free_context(ctx);
}

/* A model whose weights outweigh all else, without data: a plan reads none. */
static void write_large_model(const char *folder)
{
    static const struct {
        const char *name;
        size_t rows, cols;
    } parts[] = {{"self_attn.q_proj", 512, 512},      {"self_attn.k_proj", 64, 512},
                 {"self_attn.v_proj", 64, 512},       {"self_attn.o_proj", 512, 512},
                 {"mlp.gate_proj", 2048, 512},        {"mlp.up_proj", 2048, 512},
                 {"mlp.down_proj", 512, 2048},        {"input_layernorm", 512, 0},
                 {"post_attention_layernorm", 512, 0}};
    static writer w;
    char path[256], name[128];
    size_t size = 0;
    w = (writer){.at = w.header};
    w.at += sprintf(w.at, "{");
    list_tensor(&w, "model.embed_tokens.weight", VOCAB, 512);
    list_tensor(&w, "model.norm.weight", 512, 0);
    for (size_t i = 0; i < 16 * sizeof parts / sizeof *parts; i++) {
        size_t part = i % (sizeof parts / sizeof *parts);
        sprintf(name, "model.layers.%zu.%s.weight", i / (sizeof parts / sizeof *parts),
                parts[part].name);
        list_tensor(&w, name, parts[part].rows, parts[part].cols);
    }
    w.at += sprintf(w.at, "}");
    size = (size_t)(w.at - w.header);
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(&(uint64_t){size}, 8, 1, f), 1);
    assert_int_equal(fwrite(w.header, 1, size, f), size);
    assert_int_equal(fclose(f), 0);
    assert_int_equal(truncate(path, (off_t)(8 + size + w.offset)), 0);
    write_text(folder, "config.json",
               "{\"model_type\": \"llama\", \"hidden_act\": \"silu\", \"hidden_size\": 512, "
               "\"intermediate_size\": 2048, \"num_hidden_layers\": 16, "
               "\"num_attention_heads\": 8, \"num_key_value_heads\": 1, \"head_dim\": 64, "
               "\"max_position_embeddings\": 48, \"vocab_size\": 70, \"rms_norm_eps\": 1e-5, "
               "\"tie_word_embeddings\": true, \"torch_dtype\": \"bfloat16\"}");
}

/* A spilled sequence holds a file open, of which a process may have some 1000. */
static void test_spilled_batches(void **state)
{
    (void)state;
    enum { MANY = 2000 };
    static size_t lengths[MANY];
    const char *d = temporary_folder();
    size_t spilled = 0, most = 0;
    write_large_model(d);
    for (size_t i = 0; i < MANY; i++)
        lengths[i] = 8;
    for (size_t limit = (size_t)8 << 20; limit < (size_t)1 << 30; limit += limit / 20) {
        tare_context *ctx = limited_context(limit);
        tare_generate_options o = greedy(0);
        tare_generation_plan plan = {.size = sizeof plan};
        tare_model *model;
        o.scratch_dir = d;
        o.batch = MANY;
        o.max_new_tokens = 30;
        assert_ok(ctx, tare_model_open(ctx, d, &model));
        if (tare_generate_plan(model, &o, lengths, MANY, &plan) == TARE_OK) {
            assert_true(!plan.spill || plan.batch <= 512);
            spilled += plan.spill;
            most = plan.batch > most ? plan.batch : most;
        }
        tare_model_free(model);
        free_context(ctx);
    }
    assert_true(spilled > 0);
    assert_int_equal(most, MANY);
    tare_context *ctx = new_context(1);
    assert_ok(ctx, folder_remove(ctx, d));
    free_context(ctx);
}

/* Every way to hold weights, keys and values, with layouts set by hand. */
static void test_every_layout(void **state)
{
    (void)state;
    const char *d = temporary_folder();
    static prompts p;
    tare_model *model;
    tare_context *ctx = new_context(2);
    make_prompts(&p);
    write_model(d, false);
    assert_ok(ctx, tare_model_open(ctx, d, &model));
    expect_by_logits(ctx, model, &p);
    for (int mode = 0; mode < WEIGHT_MODES * 2; mode++) {
        generation_layout layout = {.mode = (weight_mode)(mode / 2),
                                    .batch = 3,
                                    .spill = mode % 2,
                                    .pass_rows = 64,
                                    .batch_rows = 40};
        tare_generate_options o = greedy(0);
        tare_generation results[PROMPTS] = {{0}};
        o.scratch_dir = d;
        assert_ok(ctx, generation_run(model, &o, &layout, p.pointers, p.lengths, PROMPTS, results));
        for (size_t i = 0; i < PROMPTS; i++)
            assert_memory_equal(results[i].ids, p.expected[i], sizeof p.expected[i]);
        tare_generations_free(ctx, results, PROMPTS);
    }
    tare_model_free(model);
    assert_ok(ctx, folder_remove(ctx, d));
    free_context(ctx);
}

/* ---- where a text ends ---- */

typedef struct watcher {
    tare_context *ctx;
    uint32_t ids[PROMPTS][NEW];
    size_t counts[PROMPTS], stop_at, cancel_at, total;
} watcher;

static bool watch(void *user, size_t prompt, uint32_t id)
{
    watcher *w = user;
    w->ids[prompt][w->counts[prompt]++] = id;
    if (++w->total == w->cancel_at)
        tare_cancel(w->ctx);
    return w->counts[prompt] != w->stop_at;
}

static void test_endings(void **state)
{
    (void)state;
    const char *d = temporary_folder();
    static prompts p;
    tare_model *model;
    tare_generation results[PROMPTS];
    tare_context *ctx = new_context(1);
    make_prompts(&p);
    write_model(d, true);
    assert_ok(ctx, tare_model_open(ctx, d, &model));
    expect_by_logits(ctx, model, &p);

    watcher w = {.ctx = ctx, .stop_at = 4};
    tare_generate_options o = greedy(2);
    o.token = watch;
    o.user = &w;
    const uint32_t eos[] = {p.expected[0][2], 1000000};
    assert_ok(ctx, tare_generate(model, &o, p.pointers, p.lengths, PROMPTS, results));
    for (size_t i = 0; i < PROMPTS; i++) {
        assert_int_equal(results[i].finish, TARE_FINISH_STOPPED);
        assert_int_equal(results[i].count, 4);
        assert_memory_equal(results[i].ids, p.expected[i], 4 * sizeof(uint32_t));
        assert_memory_equal(w.ids[i], p.expected[i], 4 * sizeof(uint32_t));
    }
    tare_generations_free(ctx, results, PROMPTS);

    o = greedy(0);
    o.eos_ids = eos;
    o.num_eos = 2;
    assert_ok(ctx, tare_generate(model, &o, p.pointers, p.lengths, 1, results));
    assert_int_equal(results[0].finish, TARE_FINISH_EOS);
    assert_true(results[0].count <= 3);
    assert_int_equal(results[0].ids[results[0].count - 1], eos[0]);
    tare_generations_free(ctx, results, 1);

    /* 48 positions: a prompt of 48 has room for one token, of 49 for none. */
    o = greedy(0);
    size_t lengths[] = {MAX_POSITION - 1, MAX_POSITION, MAX_POSITION + 1};
    const uint32_t *same[] = {p.ids[4], p.ids[4], p.ids[4]};
    assert_ok(ctx, tare_generate(model, &o, same, lengths, 3, results));
    assert_int_equal(results[0].finish, TARE_FINISH_CONTEXT);
    assert_int_equal(results[0].count, 2);
    assert_int_equal(results[1].finish, TARE_FINISH_CONTEXT);
    assert_int_equal(results[1].count, 1);
    assert_int_equal(results[2].finish, TARE_FINISH_TOO_LONG);
    assert_int_equal(results[2].count, 0);
    tare_generations_free(ctx, results, 3);
    assert_ok(ctx, tare_generate(model, &o, same, lengths + 2, 1, results));
    assert_int_equal(results[0].finish, TARE_FINISH_TOO_LONG);

    lengths[0] = 0;
    assert_fails(ctx, tare_generate(model, &o, same, lengths, 1, results), TARE_E_DATA,
                 "prompt 0 has no tokens");
    p.ids[1][4] = VOCAB;
    assert_fails(ctx, tare_generate(model, &o, p.pointers, p.lengths, PROMPTS, results),
                 TARE_E_DATA, "prompt 1: token id 70 is out of range");
    assert_ok(ctx, tare_generate(model, &o, p.pointers, p.lengths, 0, results));
    tare_model_free(model);
    assert_ok(ctx, folder_remove(ctx, d));
    free_context(ctx);
}

static void test_cancel(void **state)
{
    (void)state;
    const char *d = temporary_folder();
    static prompts p;
    tare_model *model;
    tare_generation results[PROMPTS];
    tare_context *ctx = new_context(2);
    make_prompts(&p);
    write_model(d, true);
    assert_ok(ctx, tare_model_open(ctx, d, &model));
    watcher w = {.ctx = ctx, .cancel_at = 5};
    tare_generate_options o = greedy(3);
    o.token = watch;
    o.user = &w;
    assert_int_equal(tare_generate(model, &o, p.pointers, p.lengths, PROMPTS, results),
                     TARE_E_CANCELLED);
    assert_true(w.total <= 6); /* no pass begins any more */
    for (size_t i = 0; i < PROMPTS; i++)
        assert_null(results[i].ids);
    tare_model_free(model);
    free_context(ctx);
    ctx = new_context(1);
    assert_ok(ctx, folder_remove(ctx, d));
    free_context(ctx);
}

/* ---- settings ---- */

typedef struct log_text {
    char text[2048];
    size_t warnings;
} log_text;

static void keep_log(void *user, tare_log_level level, const char *message)
{
    log_text *l = user;
    if (level == TARE_LOG_WARNING) {
        l->warnings++;
        snprintf(l->text, sizeof l->text, "%s", message);
    }
}

static void test_generation_config(void **state)
{
    (void)state;
    const char *d = temporary_folder();
    log_text seen = {.warnings = 0};
    tare_context_options options;
    tare_context *ctx;
    tare_model *model;
    generation *g;
    init_options(&options);
    options.threads = 1;
    options.log = keep_log;
    options.user = &seen;
    assert_int_equal(tare_context_create(&ctx, &options), TARE_OK);
    write_model(d, true);

    assert_ok(ctx, tare_model_open(ctx, d, &model)); /* no file: config.json's end token */
    assert_ok(ctx, generation_get(model, &g));
    assert_int_equal(g->config->num_eos, 1);
    assert_int_equal(g->config->eos_ids[0], 69);
    assert_true(g->config->top_k == 50 && g->config->temperature == 1 && g->config->top_p == 1);
    tare_model_free(model);

    write_text(d, "generation_config.json",
               "{\"eos_token_id\": [5, 7], \"repetition_penalty\": 1.25, \"temperature\": 0.5, "
               "\"top_k\": 20, \"top_p\": 0.75, \"num_beams\": 4, \"min_p\": 0.1, "
               "\"bad_words_ids\": null, \"no_repeat_ngram_size\": 0, \"guidance_scale\": 1.0, "
               "\"do_sample\": true, \"suppress_tokens\": [3]}");
    assert_ok(ctx, tare_model_open(ctx, d, &model));
    assert_ok(ctx, generation_get(model, &g));
    assert_int_equal(g->config->num_eos, 2);
    assert_int_equal(g->config->eos_ids[1], 7);
    assert_true(g->config->top_k == 20 && g->config->temperature == 0.5 &&
                g->config->top_p == 0.75 && g->config->repetition_penalty == 1.25);
    static prompts p;
    tare_generation result;
    make_prompts(&p);
    tare_generate_options o = greedy(0);
    for (int twice = 0; twice < 2; twice++) {
        assert_ok(ctx, tare_generate(model, &o, p.pointers, p.lengths, 1, &result));
        tare_generations_free(ctx, &result, 1);
    }
    assert_int_equal(seen.warnings, 1);
    assert_non_null(strstr(seen.text, "does not follow num_beams, suppress_tokens:"));
    o.do_sample = true;
    assert_ok(ctx, tare_generate(model, &o, p.pointers, p.lengths, 1, &result));
    tare_generations_free(ctx, &result, 1);
    assert_int_equal(seen.warnings, 2);
    assert_non_null(strstr(seen.text, "does not follow min_p:"));
    o.top_p = 1.5;
    assert_fails(ctx, tare_generate(model, &o, p.pointers, p.lengths, 1, &result), TARE_E_USAGE,
                 "top_p 1.5 must be");
    tare_model_free(model);

    static const char *const wrong[] = {"{\"eos_token_id\": \"a\"}", "{\"eos_token_id\": [-1]}",
                                        "{\"top_k\": 0.5}",          "[",
                                        "{\"temperature\": \"x\"}",  "[]"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        write_text(d, "generation_config.json", wrong[i]);
        assert_ok(ctx, tare_model_open(ctx, d, &model));
        assert_fails(ctx, tare_generate(model, &o, p.pointers, p.lengths, 1, &result),
                     TARE_E_FORMAT, "generation_config.json");
        tare_model_free(model);
    }
    assert_ok(ctx, folder_remove(ctx, d));
    free_context(ctx);
}

/* ---- the choice of a token ---- */

static uint32_t choose(sampling_settings s, rng *r, const float *logits, size_t vocab,
                       const uint32_t *ids, size_t count)
{
    float copy[64];
    sampler chooser;
    tare_context *ctx = new_context(1);
    memcpy(copy, logits, vocab * sizeof *copy);
    assert_ok(ctx, sampler_create(ctx, &s, vocab, &chooser));
    uint32_t id = sampler_choose(&chooser, r, copy, ids, count);
    sampler_free(&chooser);
    free_context(ctx);
    return id;
}

static void test_greedy_choice(void **state)
{
    (void)state;
    const float logits[] = {1, 3, -1, 3, 2.5f};
    const uint32_t text[] = {1, 3, 3};
    sampling_settings s = {.repetition_penalty = 1};
    assert_int_equal(choose(s, NULL, logits, 5, text, 3), 1); /* the first of equal ones */
    s.repetition_penalty = 1.3; /* 3 / 1.3 = 2.31 < 2.5, once for a token that is there twice */
    assert_int_equal(choose(s, NULL, logits, 5, text, 3), 4);
    const float below[] = {-2, -1, -1.25f};
    assert_int_equal(choose(s, NULL, below, 3, (uint32_t[]){1}, 1), 2); /* -1 * 1.3 */
}

/* random.Random(5 + (1 << 64)).random() and random.Random(2**40 + 7 + (3 << 64)).random() of
 * CPython: keys [5, 0, 1] and [7, 256, 3]. */
static const double python_5_1[] = {0.5105783769365112, 0.8797586528012199, 0.5149365298491138,
                                    0.7551717560524919, 0.719111569722046,  0.3142317949195871};
static const double python_big_3[] = {0.2575268363484562, 0.3783037618335181, 0.4629512296808912,
                                      0.9692242116186927, 0.1912474289404832, 0.4374009825218218};

static void test_draws(void **state)
{
    (void)state;
    rng a, b;
    sampler_seed(&a, 5, 1);
    sampler_seed(&b, ((uint64_t)1 << 40) + 7, 3);
    for (size_t i = 0; i < 6; i++) {
        assert_true(rng_double(&a) == python_5_1[i]);
        assert_true(rng_double(&b) == python_big_3[i]);
    }
    /* Probabilities 1/2, 1/4, 1/8, 1/8 of tokens 2, 0, 1, 3: by falling probability, then id. */
    const float logits[] = {logf(0.25f), logf(0.125f), logf(0.5f), logf(0.125f)};
    sampling_settings s = {.draw = true, .temperature = 1, .top_p = 1, .repetition_penalty = 1};
    const uint32_t all[] = {0, 3, 0, 1, 0, 2};  /* u = .51 .88 .51 .755 .72 .31 */
    const uint32_t two[] = {2, 0, 2, 0, 0, 2};  /* k 2: 2/3 and 1/3 */
    const uint32_t hot[] = {0, 3, 0, 1, 1, 2};  /* T 2: .369 .261 .185 .185 */
    const uint32_t tied[] = {0, 3, 0, 1, 0, 2}; /* k 3 keeps both of 1/8 */
    const struct {
        double temperature, top_p;
        size_t top_k;
        const uint32_t *expected;
    } cases[] = {{1, 1, 0, all},    {1, 1, 2, two},     {2, 1, 0, hot}, {1, 1, 3, tied},
                 {1, 0.75, 0, two}, {1, 0.76, 0, NULL}, {1, 1, 9, all}, {1, 0.5, 0, NULL}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        s.temperature = cases[i].temperature;
        s.top_p = cases[i].top_p;
        s.top_k = cases[i].top_k;
        sampler_seed(&a, 5, 1);
        for (size_t n = 0; n < 6; n++) {
            uint32_t id = choose(s, &a, logits, 4, NULL, 0);
            if (cases[i].expected)
                assert_int_equal(id, cases[i].expected[n]);
            else if (cases[i].top_p == 0.5)
                assert_int_equal(id, 2);
            else
                assert_true(id != 3); /* 1/2 + 1/4 < .76: token 1 too, not 3 */
        }
    }
}

/* The heap that finds the k-th largest, against a sort. */
static void test_top_k(void **state)
{
    (void)state;
    random_state r = {3};
    float logits[64];
    for (size_t k = 1; k <= 64; k++) {
        for (size_t i = 0; i < 64; i++)
            logits[i] = (float)(random_bits(&r) % 40); /* with equals */
        bool can[64];
        for (size_t i = 0; i < 64; i++) {
            size_t larger = 0;
            for (size_t j = 0; j < 64; j++)
                larger += logits[j] > logits[i];
            can[i] = larger < k;
        }
        sampling_settings s = {
            .draw = true, .temperature = 1000, .top_p = 1, .top_k = k, .repetition_penalty = 1};
        rng generator;
        sampler_seed(&generator, k, 0);
        for (size_t n = 0; n < 20; n++)
            assert_true(can[choose(s, &generator, logits, 64, NULL, 0)]);
    }
}

/* Draws of a prompt depend on its record number alone. */
static void test_records(void **state)
{
    (void)state;
    const char *d = temporary_folder();
    static prompts p;
    tare_model *model;
    tare_generation alone[PROMPTS], together[PROMPTS];
    tare_context *ctx = new_context(2);
    make_prompts(&p);
    write_model(d, true);
    assert_ok(ctx, tare_model_open(ctx, d, &model));
    tare_generate_options o = greedy(2);
    o.do_sample = true;
    o.temperature = 2;
    o.seed = 11;
    const uint32_t records[PROMPTS] = {9, 8, 9, 1, 0, 70000};
    o.records = records;
    assert_ok(ctx, tare_generate(model, &o, p.pointers, p.lengths, PROMPTS, together));
    for (size_t i = 0; i < PROMPTS; i++) {
        o.records = &records[i];
        assert_ok(ctx, tare_generate(model, &o, &p.pointers[i], &p.lengths[i], 1, &alone[i]));
        assert_int_equal(alone[i].count, together[i].count);
        assert_memory_equal(alone[i].ids, together[i].ids, NEW * sizeof(uint32_t));
    }
    tare_generations_free(ctx, alone, PROMPTS);
    tare_generations_free(ctx, together, PROMPTS);
    tare_model_free(model);
    assert_ok(ctx, folder_remove(ctx, d));
    free_context(ctx);
}

/* ---- faults ---- */

typedef struct faulty {
    const char *folder;
    generation_layout layout;
    bool draw;
} faulty;

static tare_status open_and_generate(tare_context *ctx, void *user)
{
    const faulty *f = user;
    static prompts p;
    tare_model *model;
    tare_generation results[PROMPTS] = {{0}};
    make_prompts(&p);
    tare_generate_options o = greedy(0);
    o.scratch_dir = f->folder;
    o.max_new_tokens = 2;
    o.do_sample = f->draw;
    o.repetition_penalty = f->draw ? 1.5 : 1;
    tare_status status = tare_model_open(ctx, f->folder, &model);
    if (status == TARE_OK)
        status = generation_run(model, &o, &f->layout, p.pointers, p.lengths, 3, results);
    tare_generations_free(ctx, results, 3);
    tare_model_free(model);
    return status;
}

static void test_failing_allocations(void **state)
{
    (void)state;
    const char *d = temporary_folder();
    write_model(d, false);
    write_text(d, "generation_config.json", "{\"eos_token_id\": [1, 2], \"num_beams\": 2}");
    for (int mode = 0; mode < WEIGHT_MODES; mode++) {
        faulty f = {.folder = d,
                    .layout = {.mode = (weight_mode)mode,
                               .batch = 2,
                               .spill = mode % 2,
                               .pass_rows = 40,
                               .batch_rows = 20},
                    .draw = mode == 0};
        each_allocation_fails(open_and_generate, &f);
    }
    tare_context *ctx = new_context(1);
    assert_ok(ctx, folder_remove(ctx, d));
    free_context(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {EACH_CPU(test_greedy),
                                       cmocka_unit_test(test_last_logprobs),
                                       cmocka_unit_test(test_memory_limits),
                                       cmocka_unit_test(test_spilled_batches),
                                       cmocka_unit_test(test_every_layout),
                                       cmocka_unit_test(test_endings),
                                       cmocka_unit_test(test_cancel),
                                       cmocka_unit_test(test_generation_config),
                                       cmocka_unit_test(test_greedy_choice),
                                       cmocka_unit_test(test_draws),
                                       cmocka_unit_test(test_top_k),
                                       cmocka_unit_test(test_records),
                                       cmocka_unit_test(test_failing_allocations)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
