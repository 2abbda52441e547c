/* Mixtures of experts and latent attention: config.json (specification: spec/models.md 1.1, 1.8,
 * 1.9) and which scheme each linear gets (spec/schemes.md 7.2, 8). */
#include "config_fixture.h"
#include "rules_fixture.h"

#include <math.h>

#define GEOMETRY                                                                                   \
    "\"hidden_size\": 8, \"intermediate_size\": 12, \"vocab_size\": 10, \"num_hidden_layers\": 5," \
    " \"num_attention_heads\": 2"
#define MODEL(type) "\"model_type\": \"" type "\", " GEOMETRY
#define MIXTRAL     MODEL("mixtral") ", \"num_key_value_heads\": 2"
#define QWEN3_MOE   MODEL("qwen3_moe") ", \"num_key_value_heads\": 2"
#define V3          MODEL("deepseek_v3") ", \"n_routed_experts\": 16, \"num_experts_per_tok\": 3"
#define V2          MODEL("deepseek_v2") ", \"n_routed_experts\": 8, \"num_experts_per_tok\": 3"
#define YARN                                                                                       \
    "{\"rope_type\": \"yarn\", \"factor\": 40, \"original_max_position_embeddings\": 4096, "       \
    "\"mscale\": 1.0, \"mscale_all_dim\": 1.0}"

/* A letter a layer: e experts, - a plain MLP. */
static void expect_layers(const model_config *c, const char *letters)
{
    char found[8] = "";
    for (size_t i = 0; i < c->num_layers; i++)
        found[i] = model_config_sparse(c, i) ? 'e' : '-';
    assert_string_equal(found, letters);
}

/* What transformers 4.57 takes where config.json has no such key. */
static void test_defaults(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    model_config c;
    arena a;
    arena_init(&a, ctx);
    assert_ok(ctx, parse_config(ctx, &a, "{" MODEL("deepseek_v3") "}", &c));
    expect_layers(&c, "---ee");
    assert_true(c.experts.count == 256 && c.experts.width == 2048 && c.shared_width == 2048);
    assert_true(c.route.chosen == 8 && c.route.groups == 8 && c.route.chosen_groups == 4);
    assert_true(c.route.normalizes && c.route.scale == 2.5 && c.route.scores == ROUTE_SIGMOID);
    assert_true(c.query_rank == 1536 && c.kv_rank == 512 && c.rope_dim == 64);
    assert_true(c.head_dim == 192 && c.value_dim == 128 && c.max_position_embeddings == 4096);
    assert_ok(ctx, parse_config(ctx, &a, "{" V2 "}", &c));
    expect_layers(&c, "eeeee");
    assert_true(c.experts.width == 1407 && c.shared_width == 2 * 1407 && c.route.groups == 1);
    assert_true(!c.route.normalizes && c.route.scale == 1 && c.route.scores == ROUTE_SOFTMAX);
    assert_ok(ctx, parse_config(ctx, &a, "{" MIXTRAL "}", &c));
    expect_layers(&c, "eeeee");
    assert_true(c.experts.count == 8 && c.route.chosen == 2 && c.experts.width == 12);
    assert_true(c.route.normalizes && !c.windows && c.rope.theta == 1e6);
    assert_ok(ctx, parse_config(ctx, &a, "{" QWEN3_MOE "}", &c));
    expect_layers(&c, "eeeee");
    assert_true(c.experts.count == 128 && c.route.chosen == 8 && c.experts.width == 768);
    assert_false(c.route.normalizes || c.shared_width);
    arena_free(&a);
    free_context(ctx);
}

static void test_which_layers_have_experts(void **state)
{
    (void)state;
    static const struct {
        const char *json, *letters;
    } cases[] = {
        {"{" V3 ", \"first_k_dense_replace\": 0}", "eeeee"},
        {"{" V3 ", \"first_k_dense_replace\": 1}", "-eeee"},
        {"{" V3 ", \"first_k_dense_replace\": 9}", "-----"},
        {"{" QWEN3_MOE ", \"decoder_sparse_step\": 2}", "-e-e-"},
        {"{" QWEN3_MOE ", \"mlp_only_layers\": [0, 3, 70]}", "-ee-e"},
        {"{" QWEN3_MOE ", \"decoder_sparse_step\": 2, "
         "\"mlp_only_layers\": [1]}",
         "---e-"},
        {"{" QWEN3_MOE ", \"num_experts\": 0}", "-----"},
    };
    tare_context *ctx = new_context(1);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        model_config c;
        arena a;
        arena_init(&a, ctx);
        assert_ok(ctx, parse_config(ctx, &a, cases[i].json, &c));
        expect_layers(&c, cases[i].letters);
        arena_free(&a);
    }
    free_context(ctx);
}

/* (128 + 64)^-1/2, times (0.1 ln 40 + 1)^2 with mscale_all_dim 1: 0.072168784 * 1.368888^2. */
static void test_scale_of_scores(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    model_config c;
    arena a;
    arena_init(&a, ctx);
    assert_ok(ctx, parse_config(ctx, &a, "{" V3 "}", &c));
    assert_true(fabsf(c.attention_scale - 0.072168784f) < 1e-8f);
    assert_ok(ctx, parse_config(ctx, &a, "{" V3 ", \"rope_scaling\": " YARN "}", &c));
    assert_true(fabsf(c.attention_scale - 0.13523377f) < 1e-7f);
    assert_ok(ctx, parse_config(ctx, &a, "{" V2 ", \"rope_parameters\": " YARN "}", &c));
    assert_true(fabsf(c.attention_scale - 0.13523377f) < 1e-7f);
    arena_free(&a);
    free_context(ctx);
}

static void test_refusals(void **state)
{
    (void)state;
    static const struct {
        const char *json, *message;
    } cases[] = {
        {"{" V3 ", \"topk_method\": \"greedy\"}",
         "\"greedy\" is not supported for deepseek_v3; supported: noaux_tc"},
        {"{" V2 ", \"topk_method\": \"noaux_tc\"}", "supported: greedy, group_limited_greedy"},
        {"{" V3 ", \"scoring_func\": \"softmax\"}", "scoring_func \"softmax\""},
        {"{" V2 ", \"scoring_func\": \"sigmoid\"}", "scoring_func \"sigmoid\""},
        {"{" V3 ", \"n_group\": 3}", "n_group 3 does not divide the 16 experts"},
        {"{" V3 ", \"n_group\": 16}", "groups of 1 experts, whose best 2 count"},
        {"{" V3 ", \"n_group\": 32}", "n_group is out of range"},
        {"{" V3 ", \"n_group\": 4, \"topk_group\": 5}", "topk_group 5 is more than n_group 4"},
        {"{" V3 ", \"n_group\": 8, \"topk_group\": 1}",
         "num_experts_per_tok 3 is more than topk_group 1 groups have"},
        {"{" MODEL("deepseek_v2") "}", "num_experts_per_tok is missing"},
        {"{" MIXTRAL ", \"num_experts_per_tok\": 9}", "whole number from 1 to 8"},
        {"{" MIXTRAL ", \"num_local_experts\": 0}", "num_local_experts is out of range"},
        {"{" V2 ", \"moe_layer_freq\": 2}", "moe_layer_freq 2 is not supported; supported: 1"},
        {"{" V2 ", \"routed_scaling_factor\": 0}", "routed_scaling_factor 0 is out of range"},
        {"{" V2 ", \"n_shared_experts\": 100000}", "n_shared_experts 100000 is out of range"},
        {"{" V2 ", \"rope_interleave\": false}", "rope_interleave false is not supported"},
        {"{" V2 ", \"qk_rope_head_dim\": 7}", "qk_rope_head_dim 7 is odd"},
        {"{" V2 ", \"q_lora_rank\": 0}", "q_lora_rank is out of range"},
        {"{" V2 ", \"v_head_dim\": 0}", "v_head_dim is out of range"},
        {"{" QWEN3_MOE ", \"mlp_only_layers\": {}}", "must be a list of numbers of layers"},
        {"{" QWEN3_MOE ", \"mlp_only_layers\": [null]}", "list of numbers of layers"},
    };
    tare_context *ctx = new_context(1);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        model_config c;
        arena a;
        arena_init(&a, ctx);
        assert_fails(ctx, parse_config(ctx, &a, cases[i].json, &c), TARE_E_MODEL, cases[i].message);
        arena_free(&a);
    }
    free_context(ctx);
}

/* ---- rules ---- */

enum { LINEARS = 11 };

/* Attention, the router, two experts, what all rows go through, the head. */
static const linear_plan model[LINEARS] = {
    {.name = "0.attn.q", .unit = 1},
    {.name = "0.attn.kv_b", .unit = 2, .stays_float = true},
    {.name = "0.mlp.router", .unit = 3, .stays_float = true, .is_mlp = true},
    {.name = "0.mlp.shared.up", .unit = 4, .is_mlp = true},
    {.name = "0.mlp.experts.0.gate", .unit = 5, .is_mlp = true, .mixture = 1},
    {.name = "0.mlp.experts.0.up", .unit = 5, .is_mlp = true, .mixture = 1},
    {.name = "0.mlp.experts.0.down", .unit = 6, .is_mlp = true, .mixture = 1},
    {.name = "0.mlp.experts.1.gate", .unit = 7, .is_mlp = true, .mixture = 1},
    {.name = "0.mlp.experts.1.up", .unit = 7, .is_mlp = true, .mixture = 1},
    {.name = "0.mlp.experts.1.down", .unit = 8, .is_mlp = true, .mixture = 1},
    {.name = "head", .unit = 9, .is_head = true}};

static void check(const rule_case *c)
{
    linear_plan l[LINEARS];
    memcpy(l, model, sizeof l);
    check_rules(l, LINEARS, c);
}

static void test_which_rule_decides(void **state)
{
    (void)state;
    static const rule_case cases[] = {
        /* a static run: attention; MLPs take each token by its own scale */
        {.letters = "8--ddddddd-"},
        {.scheme = "w8a8_mix", .letters = "m--ddddddd-"},
        {.scheme = "w8a8_dynamic", .letters = "d--ddddddd-"},
        {.scheme = "w8a16", .letters = "w--wwwwwww-"},
        /* patterns go past what stays float */
        {.mix = "*=w8a8_dynamic", .letters = "d--ddddddd-"},
        {.mix = "0.mlp.*=w8a16", .letters = "8--wwwwwww-"},
        {.mix = "*.shared.*=w8a8", .letters = "8--8dddddd-"},
        {.mix = "*.experts.*=float", .letters = "8--d-------"},
        {.mix = "*.router=float,*.kv_b=float", .letters = "8--ddddddd-"},
        /* all experts of a layer have one type */
        {.disable = "0.mlp.experts.1.down", .letters = "8--d-------"},
        {.disable = "*.experts.0.gate", .letters = "8--d-------"},
        {.mix = "*.experts.1.*=w8a16",
         .message = "mix: engines take all experts of a layer to be of one type: "
                    "0.mlp.experts.0.gate (w8a8_dynamic, by the scheme of the run) and "
                    "0.mlp.experts.1.gate (w8a16, by *.experts.1.*)"},
        {.mix = "*.experts.?.down=float", .message = "0.mlp.experts.0.down (float, by"},
        {.mix = "*.experts.*=w8a8",
         .message =
             "0.mlp.experts.0.gate would be w8a8 (by *.experts.*), for which no engine has a "
             "kernel in experts"},
        {.scheme = "w8a8_mix", .mix = "*.experts.*=w8a8", .message = "would be w8a8_mix"},
        {.mix = "*.experts.0.up=w8a16", .message = "engines fuse 0.mlp.experts.0.gate, 0.mlp"},
        /* what no engine quantizes */
        {.mix = "0.mlp.router=w8a16",
         .message = "mix: \"0.mlp.router\" says w8a16 of 0.mlp.router, which stays float"},
        {.mix = "*.kv_b=w8a8", .message = "\"*.kv_b\" says w8a8 of 0.attn.kv_b"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        check(&cases[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),           cmocka_unit_test(test_which_layers_have_experts),
        cmocka_unit_test(test_scale_of_scores),    cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_which_rule_decides),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
