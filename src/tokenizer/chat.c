/* Prompts of chat models. A checkpoint's chat template is a program (Jinja) and is never run:
 * templates that are published with many checkpoints are recognised by their exact text, and what
 * they print is made here. */
#include <string.h>

#include <xxhash.h>

#include "base/strings.h"
#include "file/io.h"
#include "tokenizer/tokenizer_config.h"

enum { TEMPLATE_LIMIT = 1 << 20 };

typedef enum chat_style {
    STYLE_CHATML,  /* <|im_start|>role\n … <|im_end|>\n */
    STYLE_LLAMA3,  /* <|start_header_id|>role<|end_header_id|>\n\n … <|eot_id|>, behind bos */
    STYLE_MISTRAL, /* [INST] … [/INST], behind bos; no system */
} chat_style;

/* A template's text is known by its length and XXH3-128, one line feed at the end left out (Jinja
 * drops it too). */
typedef struct chat_format {
    size_t length;
    uint64_t high, low;
    chat_style style;
    const char *name;
    const char *system; /* CHATML: the system message where the caller gives none; LLAMA3: what
                           stands before the caller's; NULL: none */
    const char *behind; /* MISTRAL: behind the end token of an answer */
} chat_format;

static const chat_format formats[] = {
    {196, 0xf0a6a8278439fdb0, 0x56191e205a440263, STYLE_CHATML, "ChatML", NULL, NULL},
    {291, 0xa344e8c84fb0282d, 0xda206a9e46a4ac01, STYLE_CHATML, "ChatML", NULL, NULL},
    {368, 0x98f63cc3d421d28f, 0x99ab995e9629dacd, STYLE_CHATML, "SmolLM2",
     "You are a helpful AI assistant named SmolLM, trained by Hugging Face", NULL},
    {328, 0xe580c2da83415028, 0xd5d943bd0bd9082f, STYLE_CHATML, "Qwen2",
     "You are a helpful assistant.", NULL},
    {2506, 0xe392aa06018503fd, 0x2469c9508f79506e, STYLE_CHATML, "Qwen2.5",
     "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.", NULL},
    {389, 0x09facc0e4aa94318, 0x9799ad6e2dea0594, STYLE_LLAMA3, "Llama-3", NULL, NULL},
    {4613, 0x9ddcd6cd71f96dd7, 0x6ca7779b7730196a, STYLE_LLAMA3, "Llama-3.1",
     "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n", NULL},
    {477, 0x70bf874ad98f31f4, 0xb7f52373b11c60d7, STYLE_MISTRAL, "Mistral v0.1", NULL, " "},
    {470, 0xf395fc5daa794129, 0xa5d004210ebce758, STYLE_MISTRAL, "Mistral v0.2", NULL, ""},
};

enum { NUM_FORMATS = sizeof formats / sizeof *formats };

/* Jinja's trim: Unicode white space on both ends. */
static const char *const spaces[] = {"\t",     "\n",     "\v",     "\f",     "\r",       "\x1c",
                                     "\x1d",   "\x1e",   "\x1f",   " ",      "\xc2\x85", "\u00a0",
                                     "\u1680", "\u2000", "\u2001", "\u2002", "\u2003",   "\u2004",
                                     "\u2005", "\u2006", "\u2007", "\u2008", "\u2009",   "\u200a",
                                     "\u2028", "\u2029", "\u202f", "\u205f", "\u3000"};

static size_t space_at(const char *text, size_t length, bool at_end)
{
    for (size_t i = 0; i < sizeof spaces / sizeof *spaces; i++) {
        size_t n = strlen(spaces[i]);
        if (n <= length && memcmp(at_end ? text + length - n : text, spaces[i], n) == 0)
            return n;
    }
    return 0;
}

static void append_trimmed(buffer *out, const char *text)
{
    size_t length = strlen(text);
    for (size_t n; (n = space_at(text, length, false)) > 0; length -= n)
        text += n;
    for (size_t n; (n = space_at(text, length, true)) > 0;)
        length -= n;
    buffer_append(out, text, length);
}

/* ---- what tokenizer_config.json says ---- */

typedef struct chat_config {
    const char *what; /* the file */
    const char *text; /* of the template; NULL: there is none */
    size_t length;
    const char *bos, *eos; /* texts of the tokens; NULL: none */
} chat_config;

/* The template called "default" of a list of {"name", "template"}. */
static const value *default_template(const value *list)
{
    for (size_t i = 0; i < list->count; i++) {
        const value *name = value_get(&list->items[i], "name");
        if (name && name->type == VALUE_STRING && strcmp(name->text, "default") == 0)
            return value_get(&list->items[i], "template");
    }
    return NULL;
}

/* The template stands in tokenizer_config.json or, since transformers 4.50, in chat_template.jinja,
 * which wins. */
static tare_status read_config(tare_context *ctx, arena *a, const char *dir, chat_config *c)
{
    tare_status status = TARE_OK;
    tokenizer_config config;
    config_token bos, eos;
    const value *v;
    char *text = NULL, *jinja = path_join(ctx, dir, "chat_template.jinja");
    TRY(jinja ? TARE_OK : TARE_E_MEMORY);
    TRY(tokenizer_config_read(ctx, a, dir, NULL, &config));
    TRY(tokenizer_config_special(&config, SPECIAL_BOS, &bos));
    TRY(tokenizer_config_special(&config, SPECIAL_EOS, &eos));
    v = tokenizer_config_get(&config, "chat_template");
    if (v && v->type == VALUE_LIST)
        v = default_template(v);
    *c = (chat_config){.what = config.what, .bos = bos.text, .eos = eos.text};
    if (path_exists(jinja)) {
        TRY(file_read_all(ctx, jinja, TEMPLATE_LIMIT, &text, &c->length));
        c->text = arena_strndup(a, text, c->length);
        TRY(c->text ? TARE_OK : TARE_E_MEMORY);
    } else if (v && v->type == VALUE_STRING) {
        c->text = v->text;
        c->length = v->length;
    }
done:
    mem_free(ctx, text);
    mem_free(ctx, jinja);
    return status;
}

static tare_status find_format(tare_context *ctx, const chat_config *c, const chat_format **out)
{
    if (!c->text)
        return TARE_FAIL(ctx, TARE_E_MODEL, "%s: there is no chat_template: no chat model",
                         c->what);
    size_t length = c->length;
    if (length > 0 && c->text[length - 1] == '\n')
        length--;
    XXH128_hash_t hash = XXH3_128bits(c->text, length);
    for (size_t i = 0; i < NUM_FORMATS; i++) {
        *out = &formats[i];
        if (formats[i].length == length && formats[i].high == hash.high64 &&
            formats[i].low == hash.low64)
            return TARE_OK;
    }
    buffer known;
    buffer_init(&known, ctx);
    for (size_t i = 0; i < NUM_FORMATS; i++) {
        if (i == 0 || strcmp(formats[i].name, formats[i - 1].name) != 0)
            buffer_printf(&known, "%s%s", i ? ", " : "", formats[i].name);
    }
    tare_status status = known.status;
    if (status == TARE_OK)
        status = TARE_FAIL(ctx, TARE_E_MODEL,
                           "%s: the chat_template is a program and is not run; its text is none of "
                           "those that are known: %s",
                           c->what, known.data);
    buffer_free(&known);
    return status;
}

/* ---- what the templates print ---- */

static void chatml_turn(buffer *out, const char *role, const char *content)
{
    buffer_printf(out, "<|im_start|>%s\n", role);
    buffer_puts(out, content);
    buffer_puts(out, "<|im_end|>\n");
}

static void render_chatml(const chat_format *f, const tare_chat_message *messages, size_t n,
                          buffer *out)
{
    if (f->system && strcmp(messages[0].role, "system") != 0)
        chatml_turn(out, "system", f->system);
    for (size_t i = 0; i < n; i++)
        chatml_turn(out, messages[i].role, messages[i].content);
    buffer_puts(out, "<|im_start|>assistant\n");
}

static void llama3_head(buffer *out, const char *role)
{
    buffer_printf(out, "<|start_header_id|>%s<|end_header_id|>\n\n", role);
}

static void render_llama3(const chat_format *f, const chat_config *c,
                          const tare_chat_message *messages, size_t n, buffer *out)
{
    size_t first = 0;
    buffer_puts(out, c->bos ? c->bos : "");
    if (f->system) {
        llama3_head(out, "system");
        buffer_puts(out, f->system);
        if (strcmp(messages[0].role, "system") == 0)
            append_trimmed(out, messages[first++].content);
        buffer_puts(out, "<|eot_id|>");
    }
    for (size_t i = first; i < n; i++) {
        llama3_head(out, messages[i].role);
        append_trimmed(out, messages[i].content);
        buffer_puts(out, "<|eot_id|>");
    }
    llama3_head(out, "assistant");
}

static tare_status render_mistral(tare_context *ctx, const chat_format *f, const chat_config *c,
                                  const tare_chat_message *messages, size_t n, buffer *out)
{
    buffer_puts(out, c->bos ? c->bos : "");
    for (size_t i = 0; i < n; i++) {
        if (strcmp(messages[i].role, i % 2 ? "assistant" : "user") != 0)
            return TARE_FAIL(ctx, TARE_E_USAGE,
                             "message %zu: the role is %s, and %s takes user and assistant in turn",
                             i, messages[i].role, f->name);
        if (i % 2 == 0)
            buffer_puts(out, "[INST] ");
        buffer_puts(out, messages[i].content);
        buffer_puts(out, i % 2 == 0 ? " [/INST]" : c->eos ? c->eos : "");
        buffer_puts(out, i % 2 == 0 ? "" : f->behind);
    }
    return TARE_OK;
}

static tare_status check_messages(tare_context *ctx, const tare_chat_message *messages, size_t n)
{
    if (n == 0)
        return TARE_FAIL(ctx, TARE_E_USAGE, "a chat needs a message");
    for (size_t i = 0; i < n; i++) {
        const char *role = messages[i].role;
        if (strcmp(role, "system") != 0 && strcmp(role, "user") != 0 &&
            strcmp(role, "assistant") != 0)
            return TARE_FAIL(ctx, TARE_E_USAGE,
                             "message %zu: the role %s is none of system, user, assistant", i,
                             role);
    }
    return TARE_OK;
}

tare_status tare_chat_prompt(tare_context *ctx, const char *model,
                             const tare_chat_message *messages, size_t n, char **prompt)
{
    tare_status status = TARE_OK;
    chat_config c = {0};
    const chat_format *format;
    arena a;
    buffer out;
    *prompt = NULL;
    arena_init(&a, ctx);
    buffer_init(&out, ctx);
    TRY(check_messages(ctx, messages, n));
    TRY(read_config(ctx, &a, model, &c));
    TRY(find_format(ctx, &c, &format));
    if (format->style == STYLE_CHATML)
        render_chatml(format, messages, n, &out);
    else if (format->style == STYLE_LLAMA3)
        render_llama3(format, &c, messages, n, &out);
    else
        TRY(render_mistral(ctx, format, &c, messages, n, &out));
    TRY(out.status);
    *prompt = out.data;
    buffer_init(&out, ctx);
done:
    buffer_free(&out);
    arena_free(&a);
    return status;
}
