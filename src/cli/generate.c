/* tare generate */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"

static const char usage[] =
    "usage: tare generate MODEL PROMPT [options]\n"
    "\n"
    "Prints the text with which the Hugging Face checkpoint in the folder MODEL continues PROMPT, "
    "as it is made.\n"
    "\n"
    "  --max-new-tokens N    at most N tokens (default 256)\n"
    "  --chat                PROMPT is the message of a user: it is put into the model's chat "
    "format, which is known\n"
    "                        for ChatML, SmolLM2, Qwen2, Qwen2.5, Llama-3, Llama-3.1 and Mistral "
    "templates\n"
    "\n"
    "By default each token is the most probable one. Any of these draws tokens instead; what is "
    "not "
    "given comes from\n"
    "the checkpoint's generation_config.json:\n"
    "  --temperature F       above 0; 0: the most probable token\n"
    "  --top-k N             from the N most probable tokens; 0: from all\n"
    "  --top-p F             from the most probable tokens that reach probability F together\n"
    "  --seed N              of the draws (default 0)\n"
    "\n"
    "  --max-memory cpu=SIZE most memory that the process may hold; weights that do not fit are "
    "read for each token\n"
    "  --scratch-dir DIR     where keys and values go that do not fit\n"
    "  --threads N           default: one a core that affinity and CPU quota leave\n"
    "  --json                one JSON object at the end: text, ids, finish, prompt_tokens\n"
    "  --quiet, --verbose\n";

enum { MAX_NEW = 256 };

typedef struct arguments {
    const char *temperature, *top_k, *top_p, *seed, *max_memory, *scratch_dir;
    size_t max_new;
    bool chat;
} arguments;

/* ---- the text as it comes ---- */

/* Tokens are decoded from `prefix` on: those up to `shown` were printed, and are decoded again with
 * the new ones because a decoder may look at the neighbours. */
typedef struct stream {
    tare_tokenizer *tokenizer;
    tare_context *ctx;
    uint32_t *ids;
    size_t count, capacity, prefix, shown;
    bool quiet;  /* print nothing */
    bool failed; /* for a reason that was printed */
    tare_status status;
} stream;

static bool ends_inside_character(const char *text, size_t length)
{
    return length >= 3 && memcmp(text + length - 3, "\xef\xbf\xbd", 3) == 0;
}

/* Prints what the tokens behind `shown` add; unless `all`, nothing while they end inside a
 * character. */
static void show(stream *s, bool all)
{
    char *old = NULL, *text = NULL;
    size_t old_length, length;
    if (s->quiet || s->status != TARE_OK)
        return;
    s->status = tare_tokenizer_decode(s->tokenizer, s->ids + s->prefix, s->shown - s->prefix, true,
                                      &old, &old_length);
    if (s->status == TARE_OK)
        s->status = tare_tokenizer_decode(s->tokenizer, s->ids + s->prefix, s->count - s->prefix,
                                          true, &text, &length);
    if (s->status == TARE_OK && length > old_length &&
        (all || !ends_inside_character(text, length))) {
        fwrite(text + old_length, 1, length - old_length, stdout);
        fflush(stdout);
        s->prefix = s->shown;
        s->shown = s->count;
    }
    tare_free(s->ctx, old);
    tare_free(s->ctx, text);
}

/* Room for one more token: how many there will be, the model's context has a say in. */
static bool reserve(stream *s)
{
    size_t capacity = 2 * s->capacity + 256;
    if (s->count < s->capacity)
        return true;
    uint32_t *grown = realloc(s->ids, capacity * sizeof *grown);
    if (!grown) {
        fprintf(stderr, "tare: out of memory\n");
        s->failed = true;
        return false;
    }
    s->ids = grown;
    s->capacity = capacity;
    return true;
}

static bool on_token(void *user, size_t prompt, uint32_t id)
{
    stream *s = user;
    (void)prompt;
    if (!reserve(s))
        return false;
    s->ids[s->count++] = id;
    show(s, false);
    return s->status == TARE_OK && !ferror(stdout);
}

/* ---- arguments ---- */

static bool parse_number(const char *name, const char *text, double *out)
{
    char *end;
    errno = 0;
    *out = strtod(text, &end);
    if ((*text >= '0' && *text <= '9') && !*end && !errno && *out < 1e300)
        return true;
    fprintf(stderr, "tare generate: %s: \"%s\" is not a number from 0 on\n", name, text);
    return false;
}

static bool parse_whole(const char *name, const char *text, uint64_t *out)
{
    char *end;
    errno = 0;
    *out = strtoumax(text, &end, 10);
    if (*text >= '0' && *text <= '9' && !*end && !errno)
        return true;
    fprintf(stderr, "tare generate: %s: \"%s\" is not a whole number from 0 on\n", name, text);
    return false;
}

static bool set_options(const arguments *a, tare_generate_options *o)
{
    uint64_t top_k = 0;
    tare_generate_options_init(o);
    o->max_new_tokens = a->max_new;
    o->scratch_dir = a->scratch_dir;
    o->do_sample = a->temperature || a->top_k || a->top_p || a->seed;
    if ((a->temperature && !parse_number("--temperature", a->temperature, &o->temperature)) ||
        (a->top_p && !parse_number("--top-p", a->top_p, &o->top_p)) ||
        (a->top_k && !parse_whole("--top-k", a->top_k, &top_k)) ||
        (a->seed && !parse_whole("--seed", a->seed, &o->seed)))
        return false;
    if (a->top_k)
        o->top_k = top_k < INT64_MAX ? (int64_t)top_k : INT64_MAX;
    if (a->temperature && o->temperature == 0)
        o->do_sample = false;
    return true;
}

/* ---- the run ---- */

static tare_status encode(tare_context *ctx, tare_tokenizer *tokenizer, const char *model,
                          const char *text, bool chat, uint32_t **ids, size_t *count)
{
    const tare_chat_message message = {"user", text};
    char *prompt = NULL;
    tare_status status = TARE_OK;
    if (chat)
        status = tare_chat_prompt(ctx, model, &message, 1, &prompt);
    if (status == TARE_OK)
        status = tare_tokenizer_encode(tokenizer, chat ? prompt : text,
                                       strlen(chat ? prompt : text), !chat, ids, count);
    tare_free(ctx, prompt);
    return status;
}

static tare_status print_json(tare_context *ctx, tare_tokenizer *tokenizer,
                              const tare_generation *g, size_t prompt_tokens)
{
    static const char *const finishes[] = {[TARE_FINISH_LENGTH] = "length",
                                           [TARE_FINISH_EOS] = "eos",
                                           [TARE_FINISH_STOPPED] = "stopped",
                                           [TARE_FINISH_CONTEXT] = "context",
                                           [TARE_FINISH_TOO_LONG] = "too_long"};
    char *text;
    size_t length;
    tare_status status = tare_tokenizer_decode(tokenizer, g->ids, g->count, true, &text, &length);
    if (status != TARE_OK)
        return status;
    printf("{\"prompt_tokens\": %zu, \"finish\": \"%s\", \"ids\": [", prompt_tokens,
           finishes[g->finish]);
    for (size_t i = 0; i < g->count; i++)
        printf("%s%" PRIu32, i ? ", " : "", g->ids[i]);
    printf("], \"text\": ");
    cli_print_json_string(text, length);
    printf("}\n");
    tare_free(ctx, text);
    return TARE_OK;
}

/* The rest of the text, a line end, and why it ends where it does. */
static void finish_text(stream *s, tare_finish finish)
{
    show(s, true);
    putchar('\n');
    if (finish == TARE_FINISH_CONTEXT)
        fprintf(stderr, "tare: the text fills the model's context\n");
}

static tare_status generate(tare_context *ctx, tare_model *model, stream *s,
                            tare_generate_options *o, const uint32_t *ids, size_t count, bool json)
{
    tare_generation result = {0};
    o->token = on_token;
    o->user = s;
    s->quiet = json;
    tare_status status = tare_generate(model, o, &ids, &count, 1, &result);
    if (status == TARE_OK)
        status = s->status;
    bool too_long = status == TARE_OK && result.finish == TARE_FINISH_TOO_LONG;
    if (status == TARE_OK && json)
        status = print_json(ctx, s->tokenizer, &result, count);
    else if (!json && !too_long && (status == TARE_OK || s->count > 0))
        finish_text(s, result.finish);
    if (too_long)
        fprintf(stderr, "tare: the prompt has %zu tokens, more than the model's context\n", count);
    s->failed |= too_long;
    tare_generations_free(ctx, &result, 1);
    free(s->ids);
    return status;
}

static int run(int argc, char **argv)
{
    arguments a = {.max_new = MAX_NEW};
    const flag flags[] = {{"--max-new-tokens", FLAG_COUNT, &a.max_new, NULL},
                          {"--temperature", FLAG_TEXT, &a.temperature, NULL},
                          {"--top-k", FLAG_TEXT, &a.top_k, NULL},
                          {"--top-p", FLAG_TEXT, &a.top_p, NULL},
                          {"--seed", FLAG_TEXT, &a.seed, NULL},
                          {"--chat", FLAG_SWITCH, &a.chat, NULL},
                          {"--max-memory", FLAG_TEXT, &a.max_memory, NULL},
                          {"--scratch-dir", FLAG_TEXT, &a.scratch_dir, NULL},
                          {NULL, FLAG_SWITCH, NULL, NULL}};
    common options;
    tare_generate_options o;
    tare_model *model = NULL;
    stream s = {0};
    uint32_t *ids = NULL;
    size_t count = 0;
    int code = cli_parse(&command_generate, argc, argv, flags, 2, &options);
    if (code)
        return code < 0 ? 0 : code;
    if (!set_options(&a, &o))
        return EXIT_USAGE;
    tare_context *ctx = cli_open(&options, &code);
    if (!ctx)
        return code;
    s.ctx = ctx;
    tare_status status = a.max_memory ? tare_context_set_max_memory(ctx, a.max_memory) : TARE_OK;
    if (status == TARE_OK)
        status = tare_model_open(ctx, options.positional[0], &model);
    if (status == TARE_OK)
        status = tare_tokenizer_open(ctx, options.positional[0], &s.tokenizer);
    if (status == TARE_OK)
        status = encode(ctx, s.tokenizer, options.positional[0], options.positional[1], a.chat,
                        &ids, &count);
    if (status == TARE_OK)
        status = generate(ctx, model, &s, &o, ids, count, options.json);
    tare_free(ctx, ids);
    tare_tokenizer_free(s.tokenizer);
    tare_model_free(model);
    code = cli_close(ctx, status);
    return code == 0 && s.failed ? 1 : code;
}

const command command_generate = {"generate", "continue a text", usage, run, NULL};
