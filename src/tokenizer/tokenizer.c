/* The tokenizer as a whole: opening, encoding, decoding. */
#include "tokenizer/tokenizer.h"

#include <stdio.h>
#include <string.h>

#include "file/io.h"
#include "file/json.h"
#include "tokenizer/added_tokens.h"
#include "tokenizer/bpe.h"
#include "tokenizer/decoder.h"
#include "tokenizer/normalizer.h"
#include "tokenizer/postprocess.h"
#include "tokenizer/pretokenizer.h"
#include "tokenizer/tokenizer_config.h"

enum { MAX_FILE = 256 << 20, MAX_TEXT = 1 << 30 };

struct tare_tokenizer {
    tare_context *ctx;
    atomic_uint owners;
    added_tokens added;
    normalizer normalizer;
    pretokenizer pretokenizer;
    bpe model;
    postprocessor postprocessor;
    decoder decoder;
    uint32_t last_id;            /* of model and added tokens */
    char *specials[NUM_SPECIAL]; /* texts; NULL: there is none */
};

/* ---- opening ---- */

static void find_last_id(tare_tokenizer *t)
{
    const vocabulary *v = &t->model.vocabulary;
    t->last_id = v->count ? v->by_id[v->count - 1]->id : 0;
    for (size_t i = 0; i < t->added.count; i++) {
        if (t->added.tokens[i].id > t->last_id)
            t->last_id = t->added.tokens[i].id;
    }
}

/* Where a class sets the post-processor: bos_token in front, eos_token behind, each if its switch
 * says so (update_post_processor of the class). *used: the id; NULL if the switch is off. */
static tare_status template_token(const tare_tokenizer *t, const tokenizer_config *c,
                                  special_kind kind, bool otherwise, uint32_t *id,
                                  const uint32_t **used)
{
    char key[32];
    bool add;
    config_token given;
    const char *name = special_names[kind];
    snprintf(key, sizeof key, "add_%s", name);
    *used = NULL;
    tare_status status = tokenizer_config_bool(c, key, otherwise, &add);
    if (status != TARE_OK || !add)
        return status;
    status = tokenizer_config_special(c, kind, &given);
    if (status != TARE_OK)
        return status;
    if (!given.text || given.length == 0)
        return TARE_FAIL(c->ctx, TARE_E_MODEL,
                         "%s: %s is true (the default of %sFast, from %s) and there is no %s; set "
                         "%s to false or name the token",
                         c->what, key, c->class->name, c->class_source, name, key);
    if (strlen(given.text) != given.length || strpbrk(given.text, " :") || given.text[0] == '$')
        return TARE_FAIL(c->ctx, TARE_E_MODEL,
                         "%s: %s \"%.*s\" can't stand in a template, as %s wants", c->what, name,
                         vocabulary_clip(given.text, given.length), given.text, key);
    if (added_tokens_id(&t->added, given.text, given.length, id) ||
        vocabulary_id(&t->model.vocabulary, given.text, given.length, id))
        *used = id;
    return *used ? TARE_OK
                 : TARE_FAIL(c->ctx, TARE_E_MODEL, "%s: %s is no token of tokenizer.json", c->what,
                             name);
}

static tare_status apply_template(tare_tokenizer *t, const tokenizer_config *c)
{
    tare_status status = TARE_OK;
    uint32_t ids[2];
    const uint32_t *used[2];
    if (!c->class->has_template)
        return TARE_OK;
    for (int i = 0; i < 2; i++) {
        special_kind kind = i == 0 ? SPECIAL_BOS : SPECIAL_EOS;
        TRY(template_token(t, c, kind, i == 0 && c->class->add_bos, &ids[i], &used[i]));
        if (used[i] && ids[i] >= t->added.first_new)
            TARE_WARN(t->ctx,
                      "%s: the %s of %sFast (from %s) is not in tokenizer.json: each text gets the "
                      "new id %u, as in transformers; set add_%s to false if that is not meant",
                      c->what, special_names[kind], c->class->name, c->class_source, ids[i],
                      special_names[kind]);
    }
    TRY(postprocessor_set(&t->postprocessor, used[0], used[1]));
done:
    return status;
}

static tare_status keep_specials(tare_tokenizer *t, const tokenizer_config *c)
{
    for (int k = 0; k < NUM_SPECIAL; k++) {
        config_token given;
        tare_status status = tokenizer_config_special(c, (special_kind)k, &given);
        if (status != TARE_OK)
            return status;
        t->specials[k] = given.text ? mem_strdup(t->ctx, given.text) : NULL;
        if (given.text && !t->specials[k])
            return TARE_E_MEMORY;
    }
    return TARE_OK;
}

static tare_status read_stages(tare_tokenizer *t, const stage_reader *r, const value *root,
                               const tokenizer_config *c)
{
    tare_status status = TARE_OK;
    const value *pre = value_get(root, "pre_tokenizer");
    added_token *more = NULL;
    size_t more_count = 0;
    TRY(normalizer_read(&t->normalizer, r, value_get(root, "normalizer")));
    if (c)
        TRY(tokenizer_config_pretokenizer(c, root, &pre));
    TRY(pretokenizer_read(&t->pretokenizer, r, pre));
    TRY(postprocessor_read(&t->postprocessor, r, value_get(root, "post_processor")));
    TRY(decoder_read(&t->decoder, r, value_get(root, "decoder")));
    TRY(bpe_read(&t->model, r, value_get(root, "model")));
    if (c) {
        TRY(tokenizer_config_additions(c, root, &more, &more_count));
        TRY(tokenizer_config_bool(c, "split_special_tokens", false, &t->added.split_special));
    }
    TRY(added_tokens_read(&t->added, r, value_get(root, "added_tokens"), more, more_count,
                          &t->model.vocabulary, &t->normalizer));
    find_last_id(t);
    if (c) {
        TRY(apply_template(t, c));
        TRY(keep_specials(t, c));
    }
done:
    return status;
}

static tare_status read_root(tare_tokenizer *t, const stage_reader *r, const value *root,
                             const tokenizer_config *c)
{
    const value *truncation = value_get(root, "truncation"), *padding = value_get(root, "padding");
    const char *version = "1.0";
    if (root->type != VALUE_MAP)
        return TARE_FAIL(r->ctx, TARE_E_MODEL, "%s: is not a map", r->what);
    tare_status status = value_get_string(r->ctx, root, r->what, "version", &version);
    if (status != TARE_OK)
        return status;
    if (strcmp(version, "1.0") != 0)
        return TARE_FAIL(r->ctx, TARE_E_MODEL, "%s: version \"%s\" is not supported", r->what,
                         version);
    if ((truncation && truncation->type != VALUE_NULL) || (padding && padding->type != VALUE_NULL))
        TARE_WARN(r->ctx, "%s: its truncation and padding are not applied", r->what);
    return read_stages(t, r, root, c);
}

tare_status tokenizer_parse(tare_context *ctx, const char *json, size_t length, const char *what,
                            const tokenizer_config *config, tare_tokenizer **out)
{
    tare_status status = TARE_OK;
    stage_reader r = {ctx, what};
    const value *root;
    arena tree;
    *out = NULL;
    tare_tokenizer *t = mem_calloc(ctx, 1, sizeof *t);
    if (!t)
        return TARE_E_MEMORY;
    t->ctx = ctx;
    atomic_init(&t->owners, 1);
    added_tokens_init(&t->added, ctx);
    normalizer_init(&t->normalizer, ctx);
    pretokenizer_init(&t->pretokenizer, ctx);
    bpe_init(&t->model, ctx);
    postprocessor_init(&t->postprocessor, ctx);
    decoder_init(&t->decoder, ctx);
    arena_init(&tree, ctx);
    TRY(json_parse(ctx, &tree, json, length, what, JSON_STRICT, &root));
    TRY(read_root(t, &r, root, config));
    *out = t;
    t = NULL;
done:
    arena_free(&tree);
    tare_tokenizer_free(t);
    return status;
}

tare_status tare_tokenizer_open(tare_context *ctx, const char *path, tare_tokenizer **out)
{
    return tare_tokenizer_open_with(ctx, path, NULL, out);
}

/* The settings are a tree in `a`; NULL: none. */
static tare_status read_settings(tare_context *ctx, arena *a, const char *settings,
                                 const value **out)
{
    *out = NULL;
    if (!settings)
        return TARE_OK;
    tare_status status = json_parse(ctx, a, settings, strlen(settings), "tokenizer settings",
                                    JSON_STRICT, out);
    if (status == TARE_OK && (*out)->type == VALUE_MAP)
        return TARE_OK;
    return TARE_FAIL(ctx, TARE_E_USAGE, "tokenizer settings must be a JSON object");
}

tare_status tare_tokenizer_open_with(tare_context *ctx, const char *path, const char *settings,
                                     tare_tokenizer **out)
{
    char *inside = NULL, *data = NULL;
    bool is_folder = path_is_folder(path);
    const value *overrides;
    tokenizer_config config;
    size_t length;
    arena a;
    tare_status status = TARE_OK;
    *out = NULL;
    arena_init(&a, ctx);
    TRY(read_settings(ctx, &a, settings, &overrides));
    if (is_folder) {
        inside = path_join(ctx, path, "tokenizer.json");
        TRY(inside ? TARE_OK : TARE_E_MEMORY);
    }
    TRY(file_read_all(ctx, is_folder ? inside : path, MAX_FILE, &data, &length));
    if (overrides && !is_folder) {
        status = TARE_FAIL(ctx, TARE_E_USAGE, "%s: settings are for the tokenizer of a folder",
                           path);
        goto done;
    }
    if (is_folder)
        TRY(tokenizer_config_read(ctx, &a, path, overrides, &config));
    TRY(tokenizer_parse(ctx, data, length, is_folder ? inside : path, is_folder ? &config : NULL,
                        out));
done:
    mem_free(ctx, data);
    mem_free(ctx, inside);
    arena_free(&a);
    return status;
}

const char *tare_tokenizer_special_token(const tare_tokenizer *t, const char *name)
{
    for (int k = 0; k < NUM_SPECIAL; k++) {
        if (strcmp(name, special_names[k]) == 0)
            return t->specials[k];
    }
    return NULL;
}

tare_tokenizer *tokenizer_keep(tare_tokenizer *t)
{
    atomic_fetch_add(&t->owners, 1);
    return t;
}

void tare_tokenizer_free(tare_tokenizer *t)
{
    if (!t || atomic_fetch_sub(&t->owners, 1) > 1)
        return;
    added_tokens_free(&t->added);
    normalizer_free(&t->normalizer);
    pretokenizer_free(&t->pretokenizer);
    bpe_free(&t->model);
    postprocessor_free(&t->postprocessor);
    decoder_free(&t->decoder);
    for (int k = 0; k < NUM_SPECIAL; k++)
        mem_free(t->ctx, t->specials[k]);
    mem_free(t->ctx, t);
}

/* ---- encoding ---- */

/* What one call of encode needs. */
typedef struct encoding {
    tare_tokenizer *t;
    text_parts raw, normalized;
    normalizer_scratch normalizer;
    pieces words;
    pretokenizer_scratch pretokenizer;
    id_list ids;
} encoding;

static void encoding_init(encoding *e, tare_tokenizer *t)
{
    *e = (encoding){.t = t, .ids = {.ctx = t->ctx}};
    text_parts_init(&e->raw, t->ctx);
    text_parts_init(&e->normalized, t->ctx);
    normalizer_scratch_init(&e->normalizer, t->ctx);
    pieces_init(&e->words, t->ctx);
    pretokenizer_scratch_init(&e->pretokenizer, t->ctx);
}

static void encoding_free(encoding *e)
{
    text_parts_free(&e->raw);
    text_parts_free(&e->normalized);
    normalizer_scratch_free(&e->normalizer);
    pieces_free(&e->words);
    pretokenizer_scratch_free(&e->pretokenizer);
    id_list_free(&e->ids);
}

/* Text between added tokens, normalized. */
static tare_status encode_words(encoding *e, bool at_start, const char *text, size_t length)
{
    enum { CANCEL_EVERY = 4096 };
    tare_status status = TARE_OK;
    TRY(pieces_set(&e->words, text, length));
    TRY(pretokenizer_run(&e->t->pretokenizer, at_start, &e->words, &e->pretokenizer));
    for (size_t i = 0; i < e->words.count; i++) {
        if (i % CANCEL_EVERY == 0)
            TRY(context_check_cancelled(e->t->ctx));
        span word = e->words.spans[i];
        TRY(bpe_encode(&e->t->model, e->words.text + word.start, word.length, &e->ids));
    }
done:
    return status;
}

/* Text between the added tokens that are searched for in raw text. */
static tare_status encode_between(encoding *e, bool at_start, const char *text, size_t length)
{
    tare_status status = TARE_OK;
    TRY(normalizer_run(&e->t->normalizer, text, length, &e->normalizer, &text, &length));
    TRY(added_tokens_split(&e->t->added, true, text, length, &e->normalized));
    for (size_t i = 0; i < e->normalized.count; i++) {
        const text_part *part = &e->normalized.items[i];
        if (part->is_token)
            TRY(id_list_add(&e->ids, part->id));
        else
            TRY(encode_words(e, at_start && part->start == 0, text + part->start,
                             part->end - part->start));
    }
done:
    return status;
}

tare_status tare_tokenizer_encode(tare_tokenizer *t, const char *text, size_t length,
                                  bool add_special_tokens, uint32_t **ids, size_t *count)
{
    tare_status status = TARE_OK;
    encoding e;
    *ids = NULL;
    *count = 0;
    if (length > MAX_TEXT)
        return TARE_FAIL(t->ctx, TARE_E_DATA, "a text of %zu bytes; at most %d", length, MAX_TEXT);
    if (length == 0)
        text = ""; /* it may be NULL */
    if (!utf8_valid(text, length))
        return TARE_FAIL(t->ctx, TARE_E_DATA, "a text is not valid UTF-8");
    encoding_init(&e, t);
    TRY(added_tokens_split(&t->added, false, text, length, &e.raw));
    for (size_t i = 0; i < e.raw.count; i++) {
        const text_part *part = &e.raw.items[i];
        if (part->is_token)
            TRY(id_list_add(&e.ids, part->id));
        else
            TRY(encode_between(&e, part->start == 0, text + part->start, part->end - part->start));
    }
    TRY(postprocessor_run(&t->postprocessor, add_special_tokens, &e.ids));
    if (!e.ids.items) /* no ids at all: a pointer that can be freed all the same */
        TRY(mem_grow(t->ctx, (void **)&e.ids.items, &e.ids.capacity, 1, sizeof *e.ids.items));
    *ids = e.ids.items;
    *count = e.ids.count;
    e.ids.items = NULL;
done:
    encoding_free(&e);
    return status;
}

/* ---- decoding ---- */

/* Appends the text of one token to the pieces; an id in a gap has none. */
static tare_status add_token_text(const tare_tokenizer *t, uint32_t id, bool skip_special,
                                  pieces *out)
{
    const added_token *added = added_tokens_get(&t->added, id);
    const token *model = added ? NULL : vocabulary_token(&t->model.vocabulary, id);
    size_t start = out->own.length;
    if (id > t->last_id)
        return TARE_FAIL(t->ctx, TARE_E_DATA, "token id %u is out of range: the last one is %u", id,
                         t->last_id);
    if (!added && !model)
        return TARE_OK;
    const char *text = added ? added->content : model->text;
    size_t length = added ? added->length : model->length;
    if (skip_special && added_tokens_is_special(&t->added, text, length))
        return TARE_OK;
    buffer_append(&out->own, text, length);
    if (out->own.status != TARE_OK)
        return out->own.status;
    return pieces_add(out, start, length);
}

tare_status tare_tokenizer_decode(tare_tokenizer *t, const uint32_t *ids, size_t count,
                                  bool skip_special_tokens, char **text, size_t *length)
{
    tare_status status = TARE_OK;
    pieces tokens, spare;
    buffer out;
    *text = NULL;
    *length = 0;
    pieces_init(&tokens, t->ctx);
    pieces_init(&spare, t->ctx);
    buffer_init(&out, t->ctx);
    for (size_t i = 0; i < count; i++)
        TRY(add_token_text(t, ids[i], skip_special_tokens, &spare));
    TRY(pieces_finish_rewrite(&tokens, &spare));
    TRY(decoder_run(&t->decoder, &tokens, &spare, &out));
    buffer_append(&out, "", 0); /* an empty text: still zero-terminated */
    TRY(out.status);
    *text = out.data;
    *length = out.length;
    out.data = NULL;
done:
    pieces_free(&tokens);
    pieces_free(&spare);
    buffer_free(&out);
    return status;
}

size_t tare_tokenizer_vocab_size(const tare_tokenizer *t)
{
    const vocabulary *v = &t->model.vocabulary;
    size_t size = v->count;
    for (size_t i = 0; i < t->added.count; i++) {
        const added_token *a = &t->added.tokens[i];
        size += !vocabulary_id(v, a->content, a->length, NULL);
    }
    return size;
}
