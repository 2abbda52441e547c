/* MTP layers in the forward pass: the golden model's logits, which plain torch computed. */
#include <math.h>

#include "forward/head.h"
#include "forward/mtp.h"
#include "forward/weights.h"
#include "golden_fixture.h"

#define FOLDER TARE_TEST_DATA "/golden/deepseek_v3_mtp"

enum { MOST_TOKENS = 64, HIDDEN = 64, VOCAB = 128 };
static const float TOLERANCE = 1e-4f;

/* Sample `index` of the calibration. */
static size_t load_ids(tare_context *ctx, size_t index, uint32_t *ids)
{
    arena words = {.ctx = ctx};
    const value *all;
    assert_ok(ctx, json_parse_file(ctx, &words, FOLDER "/calib_ids.json", 1 << 20, &all));
    assert_true(index < all->count && all->items[index].count <= MOST_TOKENS);
    size_t count = all->items[index].count;
    for (size_t i = 0; i < count; i++)
        ids[i] = (uint32_t)all->items[index].items[i].integer;
    arena_free(&words);
    return count;
}

static void run_block(tare_model *m, weight_source *weights, size_t block, const batch *b,
                      workspace *w, float *x)
{
    const block_norms *norms;
    block_ops ops = {
        .user = weights, .linears = weight_source_linears, .expert = weight_source_expert};
    assert_ok(m->ctx, weight_source_layer(weights, block, &norms));
    assert_ok(m->ctx, block_forward(m, &m->blocks[block], NULL, norms, &ops, b, w, x));
}

/* logits [count, VOCAB] of the MTP layer; positions from `turn` on. */
static void mtp_logits(tare_model *m, const uint32_t *ids, size_t count, size_t turn, float *logits)
{
    float x[MOST_TOKENS * HIDDEN], last[HIDDEN], *norm;
    uint32_t next[MOST_TOKENS];
    weight_source weights;
    workspace w;
    mtp_input *input;
    batch b = {.samples = 1, .lengths = &count, .rows = count};
    const mtp_layer *layer = &m->mtp_layers[0];
    assert_ok(m->ctx, embed_into(m, ids, count, x));
    assert_ok(m->ctx, workspace_create(m, count, count, TARE_F32, true, &w));
    assert_ok(m->ctx, weight_source_open(m, WEIGHTS_LAYER, NULL, &weights));
    for (size_t i = 0; i < m->config.num_layers; i++)
        run_block(m, &weights, i, &b, &w, x);
    memcpy(last, x + (count - 1) * HIDDEN, sizeof last);
    memcpy(next, ids + 1, (count - 1) * sizeof *next);
    assert_ok(m->ctx, mtp_next_tokens(m, 0, last, 1, TARE_F32, &next[count - 1]));
    assert_ok(m->ctx, mtp_input_open(m, layer, GEMM_FP32, TARE_F32, &input));
    assert_ok(m->ctx, mtp_input_run(input, next, count, x));
    mtp_input_close(input);
    b.turn = turn;
    run_block(m, &weights, m->config.num_layers, &b, &w, x);
    assert_ok(m->ctx, model_read_vector(m, layer->head_norm, &norm));
    norm_rows(m, x, norm, NULL, count, HIDDEN, TARE_F32, x);
    mem_free(m->ctx, norm);
    m->head->weight = layer->head;
    assert_ok(m->ctx, head_logits(m, x, count, logits));
    weight_source_close(&weights);
    workspace_free(&w);
}

static void compare(size_t sample, size_t turn, const char *name)
{
    tare_context *ctx = new_context(1);
    tare_model *m;
    uint32_t ids[MOST_TOKENS];
    float logits[MOST_TOKENS * VOCAB];
    size_t count = load_ids(ctx, sample, ids);
    assert_ok(ctx, model_open(ctx, FOLDER "/model", MTP_MIX, &m));
    assert_int_equal(m->num_blocks, 3);
    assert_int_equal(mtp_turn(m, &m->blocks[1]), 0);
    assert_int_equal(mtp_turn(m, &m->blocks[2]), 1);
    mtp_logits(m, ids, count, turn, logits);
    safetensors *golden = open_tensors(ctx, FOLDER "/float_logits.safetensors");
    float *expected = read_floats(ctx, golden, safetensors_find(golden, name));
    assert_int_equal(tensor_elements(safetensors_find(golden, name)), count * VOCAB);
    for (size_t i = 0; i < count * VOCAB; i++)
        assert_true(fabsf(logits[i] - expected[i]) <= TOLERANCE);
    mem_free(ctx, expected);
    safetensors_close(golden);
    tare_model_free(m);
    free_context(ctx);
}

/* Rotation turns by differences of positions alone: 0 to S-1 are as good as 1 to S. */
static void test_logits(void **state)
{
    (void)state;
    compare(0, 0, "mtp_logits");
    compare(1, 0, "mtp_logits_1");
}

static void test_rolled_positions(void **state)
{
    (void)state;
    compare(0, 1, "mtp_logits_rolled");
}

/* The first of equal logits; a maximum in any panel; rounding makes neighbours equal. */
static void test_best_of_a_head(void **state)
{
    (void)state;
    enum { ROWS = 5000, K = 2 };
    tare_context *ctx = new_context(1);
    static float matrix[ROWS * K];
    const float x[3 * K] = {1, 0, 0, 1, -1, 0};
    uint32_t best[3];
    const size_t shape[] = {ROWS, K};
    tare_model model = {.ctx = ctx};
    tare_tensor given = {.name = "head.weight",
                         .dtype = "F32",
                         .rank = 2,
                         .shape = shape,
                         .data = matrix,
                         .bytes = sizeof matrix};
    for (size_t i = 0; i < ROWS; i++)
        matrix[i * K] = -1;
    matrix[7 * K] = matrix[4500 * K] = 2;
    matrix[4999 * K + 1] = 1;
    matrix[30 * K + 1] = 1 - 0x1p-12f; /* 1 in BF16 */
    assert_ok(ctx, checkpoint_from_tensors(ctx, "memory", &given, 1, &model.checkpoint));
    stored_weight head = stored_tensor(checkpoint_find(model.checkpoint, "head.weight"), ROWS);
    assert_ok(ctx, head_best(&model, &head, x, 3, TARE_F32, best));
    assert_int_equal(best[0], 7);
    assert_int_equal(best[1], 4999);
    assert_int_equal(best[2], 0);
    assert_ok(ctx, head_best(&model, &head, x, 3, TARE_BF16, best));
    assert_int_equal(best[1], 30);
    checkpoint_close(model.checkpoint);
    free_context(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_logits),
        cmocka_unit_test(test_rolled_positions),
        cmocka_unit_test(test_best_of_a_head),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
