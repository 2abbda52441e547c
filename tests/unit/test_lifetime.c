/* Frees in any order: a context stays until the last thing that hangs off it is freed, and calls
 * back no more once its owner has let go. Run under the sanitizers, this is the proof; here the
 * threads that are left tell when a context has really gone. */
#include <dirent.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/wait.h>

#include "base/parallel.h"
#include "calib_fixture.h"
#include "pipeline_fixture.h"

#define MODEL TARE_TEST_DATA "/golden/llama/model"

static char folder[64];

static void *nothing(void *arg)
{
    return arg;
}

static int set_up(void **state)
{
    (void)state;
    pthread_t first; /* with which a sanitizer starts a thread of its own, that stays */
    if (pthread_create(&first, NULL, nothing, NULL) || pthread_join(first, NULL))
        return -1;
    snprintf(folder, sizeof folder, "%s", temporary_folder());
    write_text(folder, "tokenizer.json",
               "{\"model\": {\"type\": \"BPE\", \"unk_token\": \"?\", \"merges\": [], "
               "\"vocab\": {\"?\": 0, \"a\": 1}}}");
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    remove_tree(folder);
    return 0;
}

/* What a context can have. */
enum {
    CONTEXT,
    MODEL_OF_FOLDER,
    TOKENIZER,
    VERIFIER,
    RECIPE,
    SMOOTHING,
    RECORDING,
    FA_OBSERVER,
    CALIB_MIX,
    RESULT,
    TEXT,
    GENERATION,
    THINGS
};

typedef struct things {
    tare_context *ctx;
    tare_model *model;
    tare_tokenizer *tokenizer;
    tare_calib_verifier verifier;
    tare_recipe *recipe;
    tare_smoothing *smoothing;
    tare_recording *recording;
    tare_fa_observer *observer;
    tare_calib *calib;
    tare_calib_result *result;
    char *text;
    tare_generation generation;
    numbers set;
    atomic_int calls; /* of the callbacks, which come from every thread */
} things;

static void count_log(void *user, tare_log_level level, const char *message)
{
    (void)level;
    (void)message;
    ((things *)user)->calls++;
}

static void count_progress(void *user, const tare_progress *progress)
{
    (void)progress;
    ((things *)user)->calls++;
}

static bool count_allocation(void *user, size_t bytes)
{
    (void)bytes;
    ((things *)user)->calls++;
    return true;
}

static void make_calib(things *t)
{
    t->set = (numbers){.prefix = "a", .count = 3};
    t->calib = empty_mix(t->ctx, folder, NULL, NULL);
    assert_ok(t->ctx, add_numbers(t->calib, "numbers", &t->set));
    assert_ok(t->ctx, set_size(t->calib, "numbers", 2));
    assert_ok(t->ctx, tare_calib_set_verifier(t->calib, &t->verifier));
    assert_ok(t->ctx, tare_calib_process(t->calib, &t->result));
    size_t length;
    assert_ok(t->ctx, tare_calib_result_json(t->result, &t->text, &length));
}

static void make_all(things *t)
{
    static const char *const settings[] = {"anti_outlier.anti_method=m1", "quant.mm_tensor=false",
                                           NULL};
    static const uint32_t ids[] = {1, 2, 3}, *prompt = ids;
    static const size_t length = 3;
    tare_context_options o = {.size = sizeof o,
                              .threads = 3,
                              .log = count_log,
                              .progress = count_progress,
                              .allow_allocation = count_allocation,
                              .user = t};
    assert_int_equal(tare_context_create(&t->ctx, &o), TARE_OK);
    assert_ok(t->ctx, tare_model_open(t->ctx, MODEL, &t->model));
    assert_ok(t->ctx, tare_tokenizer_open(t->ctx, folder, &t->tokenizer));
    t->verifier.size = sizeof t->verifier;
    assert_ok(t->ctx, tare_model_verifier_create(t->model, t->tokenizer, &t->verifier));
    t->recipe = make_recipe(t->ctx, settings);
    tare_quantize_options q;
    tare_quantize_options_init(&q);
    q.source = t->model;
    q.calib_ids = ids;
    q.calib_lengths = &length;
    q.calib_count = 1;
    q.recipe = t->recipe;
    q.scratch_dir = folder;
    assert_ok(t->ctx, tare_smooth(t->ctx, &q, &t->smoothing));
    q.smoothing = t->smoothing;
    assert_ok(t->ctx, tare_record(t->ctx, &q, &t->recording, NULL));
    assert_ok(t->ctx, tare_fa_observer_create(t->ctx, "attention", 'q', &t->observer));
    make_calib(t);
    tare_generate_options g;
    tare_generate_options_init(&g);
    g.max_new_tokens = 1;
    assert_ok(t->ctx, tare_generate(t->model, &g, &prompt, &length, 1, &t->generation));
    assert_true(t->calls > 0);
}

static void free_one(things *t, int what)
{
    switch (what) {
    case CONTEXT:
        tare_context_free(t->ctx);
        break;
    case MODEL_OF_FOLDER:
        tare_model_free(t->model);
        break;
    case TOKENIZER:
        tare_tokenizer_free(t->tokenizer);
        break;
    case VERIFIER:
        tare_model_verifier_free(&t->verifier);
        break;
    case RECIPE:
        tare_recipe_free(t->recipe);
        break;
    case SMOOTHING:
        tare_smoothing_free(t->smoothing);
        break;
    case RECORDING:
        tare_recording_free(t->recording);
        break;
    case FA_OBSERVER:
        tare_fa_observer_free(t->observer);
        break;
    case CALIB_MIX:
        tare_calib_free(t->calib);
        break;
    case RESULT:
        tare_calib_result_free(t->result);
        break;
    case TEXT:
        tare_free(t->ctx, t->text);
        break;
    default:
        tare_generations_free(t->ctx, &t->generation, 1);
    }
}

static int threads_of_process(void)
{
    DIR *d = opendir("/proc/self/task");
    int count = 0;
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));)
        count += e->d_name[0] != '.';
    closedir(d);
    return count;
}

static void free_in_order(const int *order)
{
    int before = threads_of_process();
    things t = {0};
    make_all(&t);
    assert_int_equal(threads_of_process(), before + 2);
    int calls = -1;
    for (int i = 0; i < THINGS; i++) {
        free_one(&t, order[i]);
        if (order[i] == CONTEXT)
            calls = t.calls;
        /* A joined thread may show for a moment. */
        for (int wait = 0; i == THINGS - 1 && threads_of_process() > before && wait < 1000; wait++)
            usleep(1000);
        assert_int_equal(threads_of_process(), i == THINGS - 1 ? before : before + 2);
    }
    assert_int_equal(t.calls, calls);
    assert_int_equal(t.set.released, 1);
}

static void test_every_order(void **state)
{
    (void)state;
    int order[THINGS];
    for (int i = 0; i < THINGS; i++)
        order[i] = i;
    uint32_t random = 1; /* a linear congruential generator: the orders are the same each time */
    for (int round = 0; round < 60; round++) {
        free_in_order(order); /* first as they were made: the context before all else */
        for (int i = THINGS - 1; i > 0; i--) {
            random = random * 1664525 + 1013904223;
            int j = (int)((random >> 8) % (uint32_t)(i + 1)), kept = order[i];
            order[i] = order[j];
            order[j] = kept;
        }
        if (round % 2 == 0) { /* the context first, or last */
            for (int i = 0; i < THINGS; i++) {
                int place = round % 4 ? THINGS - 1 : 0, kept = order[place];
                if (order[i] == CONTEXT) {
                    order[place] = CONTEXT;
                    order[i] = kept;
                    break;
                }
            }
        }
    }
}

/* A verifier is an owner of its model and tokenizer: it answers after their other owner let go. */
static void test_a_verifier_keeps_what_it_asks(void **state)
{
    (void)state;
    tare_context *ctx = new_context(2);
    tare_model *model;
    tare_tokenizer *tokenizer;
    tare_calib_verifier verifier = {.size = sizeof verifier};
    tare_calib_question question = {.prompt = "aa", .prompt_length = 2};
    tare_calib_answer before = {0}, after = {0};
    assert_ok(ctx, tare_model_open(ctx, MODEL, &model));
    assert_ok(ctx, tare_tokenizer_open(ctx, folder, &tokenizer));
    assert_ok(ctx, tare_model_verifier_create(model, tokenizer, &verifier));
    assert_ok(ctx, verifier.answer(verifier.user, TARE_CALIB_CHOOSE, &question, 1, &before));
    tare_model_free(model);
    tare_tokenizer_free(tokenizer);
    assert_true(tare_memory_used(ctx) > 0);
    assert_ok(ctx, verifier.answer(verifier.user, TARE_CALIB_CHOOSE, &question, 1, &after));
    assert_true(before.yes == after.yes && before.no == after.no && before.yes < 0);
    tare_model_verifier_free(&verifier);
    free_context(ctx);
}

/* ---- fork ---- */

static void add_index(void *user, size_t index, int thread)
{
    (void)thread;
    atomic_fetch_add((atomic_size_t *)user, index);
}

/* A child has none of its parent's threads: it starts its own, and joins none that are not there.
 */
static void test_a_forked_child_works(void **state)
{
    (void)state;
    tare_context *ctx = new_context(4), *idle = new_context(4);
    atomic_size_t sum = 0;
    parallel_for(idle, 1000, add_index, &sum);
    parallel_for(ctx, 1000, add_index, &sum); /* all have begun: none has a lock of libc */
    assert_int_equal(sum, 2 * 999 * 500);
    pid_t child = fork();
    if (child == 0) {
        alarm(20); /* who waits for a thread that is not there waits for ever */
        parallel_for(ctx, 1000, add_index, &sum);
        tare_context_free(ctx);
        tare_context_free(idle);
        _exit(sum == 3 * 999 * 500 ? 0 : 1);
    }
    int ended;
    assert_int_equal(waitpid(child, &ended, 0), child);
    assert_true(WIFEXITED(ended) && WEXITSTATUS(ended) == 0);
    parallel_for(ctx, 1000, add_index, &sum);
    assert_int_equal(sum, 3 * 999 * 500);
    free_context(idle);
    free_context(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_order),
        cmocka_unit_test(test_a_verifier_keeps_what_it_asks),
        cmocka_unit_test(test_a_forked_child_works),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
