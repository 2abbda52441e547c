/* Tokenizer: a tokenizer.json and, behind its first zero byte, a text to encode; behind a second
 * zero byte that text, and the middle is a tokenizer_config.json that stands beside it. Whatever
 * the bytes, each step ends with a result or a message, and nothing is lost. Ids decode again, and
 * the words of a second call, from the cache, equal those of the first. */
#include <stdlib.h>
#include <string.h>

#include "base/strings.h"
#include "file/json.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/tokenizer_config.h"

static void check(bool ok)
{
    if (!ok)
        abort();
}

static void encode(tare_context *ctx, tare_tokenizer *t, const char *text, size_t length)
{
    uint32_t *ids[2] = {NULL, NULL};
    size_t count[2], decoded_length;
    char *decoded = NULL;
    tare_status status = TARE_OK;
    for (int i = 0; i < 2 && status == TARE_OK; i++)
        status = tare_tokenizer_encode(t, text, length, true, &ids[i], &count[i]);
    if (status == TARE_OK) {
        check(count[0] == count[1] && !memcmp(ids[0], ids[1], count[0] * sizeof *ids[0]));
        /* A template may hold ids that no token has. */
        status = tare_tokenizer_decode(t, ids[0], count[0], length & 1, &decoded, &decoded_length);
        check(status == TARE_OK || status == TARE_E_DATA);
        if (status == TARE_OK)
            check(decoded[decoded_length] == 0 && utf8_valid(decoded, decoded_length));
    }
    check(status == TARE_OK || tare_last_error(ctx)[0]);
    tare_free(ctx, ids[0]);
    tare_free(ctx, ids[1]);
    tare_free(ctx, decoded);
}

/* The configuration of the text, which also stands for the other files. */
static tare_status read_config(tare_context *ctx, arena *a, const char *json, size_t length,
                               tokenizer_config *c)
{
    const value *root;
    tare_status status = json_parse(ctx, a, json, length, "config", JSON_DATA, &root);
    if (status != TARE_OK)
        return status;
    *c = (tokenizer_config){.ctx = ctx, .arena = a, .what = "config", .root = root, .model = root};
    if (!value_get(root, "added_tokens_decoder")) {
        const value *added = value_get(root, "added_tokens.json");
        c->map = value_get(root, "special_tokens_map.json");
        c->added = added && added->type == VALUE_MAP ? added : NULL;
    }
    return tokenizer_config_find_class(c);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *json = (const char *)data;
    size_t length = strnlen(json, size);
    tare_context_options options;
    tare_context *ctx;
    tare_tokenizer *t = NULL;
    tokenizer_config config;
    arena a;
    tare_context_options_init(&options);
    options.threads = 1;
    options.memory_limit = 512 << 20;
    check(tare_context_create(&ctx, &options) == TARE_OK);
    const char *text = json + length + (length < size);
    size_t text_length = size - (size_t)(text - json), config_length = strnlen(text, text_length);
    bool configured = config_length < text_length;
    tare_status status = TARE_OK;
    arena_init(&a, ctx);
    if (configured) {
        status = read_config(ctx, &a, text, config_length, &config);
        text += config_length + 1;
        text_length -= config_length + 1;
    }
    if (status == TARE_OK)
        status = tokenizer_parse(ctx, json, length, "fuzz", configured ? &config : NULL, &t);
    arena_free(&a);
    check(status == TARE_OK ? t != NULL : t == NULL && tare_last_error(ctx)[0]);
    if (status == TARE_OK && length < size)
        encode(ctx, t, text, text_length);
    tare_tokenizer_free(t);
    check(tare_memory_used(ctx) == 0);
    tare_context_free(ctx);
    return 0;
}
