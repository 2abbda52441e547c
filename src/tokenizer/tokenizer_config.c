/* The files beside a tokenizer.json, and what they say of single tokens. */
#include "tokenizer/tokenizer_config.h"

#include <string.h>

#include "file/io.h"
#include "file/json.h"

enum { CONFIG_LIMIT = 64 << 20 };

const char *const special_names[NUM_SPECIAL] = {
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
};

/* ---- files ---- */

/* A file that must hold a map; NULL if there is none. Read as Python does: of duplicate keys the
 * last counts. *path may be NULL. */
static tare_status read_map(tokenizer_config *c, const char *folder, const char *name,
                            const value **out, const char **path)
{
    tare_status status = TARE_OK;
    char *data = NULL, *named = path_join(c->ctx, folder, name);
    size_t length;
    *out = NULL;
    TRY(named ? TARE_OK : TARE_E_MEMORY);
    const char *kept = arena_strndup(c->arena, named, strlen(named));
    TRY(kept ? TARE_OK : TARE_E_MEMORY);
    if (path)
        *path = kept;
    if (!path_exists(named))
        goto done;
    TRY(file_read_all(c->ctx, named, CONFIG_LIMIT, &data, &length));
    TRY(json_parse(c->ctx, c->arena, data, length, kept, JSON_DATA, out));
    if ((*out)->type != VALUE_MAP)
        status = TARE_FAIL(c->ctx, TARE_E_MODEL, "%s: is not a map", kept);
done:
    mem_free(c->ctx, data);
    mem_free(c->ctx, named);
    return status;
}

static const char *text_of(const value *map, const char *key)
{
    const value *v = value_get(map, key);
    return v && v->type == VALUE_STRING ? v->text : NULL;
}

/* The class: that of tokenizer_config.json, of config.json, or that of the model_type. */
tare_status tokenizer_config_find_class(tokenizer_config *c)
{
    const char *name = text_of(c->root, "tokenizer_class"), *type = NULL;
    c->class_source = "tokenizer_class";
    if (!name) {
        name = text_of(c->model, "tokenizer_class");
        type = text_of(c->model, "model_type");
    }
    c->class = name ? tokenizer_class_named(name)
                    : (type ? tokenizer_class_of_model(type) : &tokenizer_class_plain);
    if (!name && type) {
        c->class_source = arena_printf(c->arena, "model_type \"%.*s\" of config.json",
                                       vocabulary_clip(type, strlen(type)), type);
        if (!c->class_source)
            return TARE_E_MEMORY;
    }
    if (!c->class) {
        c->unknown_class = name;
        c->class = &tokenizer_class_plain;
    }
    return TARE_OK;
}

tare_status tokenizer_config_read(tare_context *ctx, arena *a, const char *folder,
                                  const value *overrides, tokenizer_config *out)
{
    tare_status status = TARE_OK;
    tokenizer_config *c = out;
    char *slow = NULL;
    *c = (tokenizer_config){.ctx = ctx, .arena = a, .overrides = overrides};
    TRY(read_map(c, folder, "tokenizer_config.json", &c->root, &c->what));
    if (!text_of(c->root, "tokenizer_class") || value_get(c->root, "fix_mistral_regex"))
        TRY(read_map(c, folder, "config.json", &c->model, NULL));
    if (!value_get(c->root, "added_tokens_decoder")) {
        TRY(read_map(c, folder, "special_tokens_map.json", &c->map, NULL));
        TRY(read_map(c, folder, "added_tokens.json", &c->added, NULL));
    }
    slow = path_join(ctx, folder, "tokenizer.model");
    TRY(slow ? TARE_OK : TARE_E_MEMORY);
    c->has_slow_model = path_exists(slow);
    TRY(tokenizer_config_find_class(c));
done:
    mem_free(ctx, slow);
    return status;
}

/* ---- members ---- */

const value *tokenizer_config_get(const tokenizer_config *c, const char *key)
{
    const value *v = value_get(c->overrides, key);
    if (!v)
        v = value_get(c->map, key);
    return v ? v : value_get(c->root, key);
}

tare_status tokenizer_config_bool(const tokenizer_config *c, const char *key, bool otherwise,
                                  bool *out)
{
    const value *v = tokenizer_config_get(c, key);
    *out = otherwise;
    if (!v)
        return TARE_OK;
    if (v->type != VALUE_BOOL && v->type != VALUE_NULL)
        return TARE_FAIL(c->ctx, TARE_E_MODEL, "%s: key \"%s\" must be true or false", c->what,
                         key);
    *out = v->type == VALUE_BOOL && v->boolean;
    return TARE_OK;
}

static tare_status read_flag(const tokenizer_config *c, const value *v, const char *of,
                             const char *key, bool *found, bool *out)
{
    const value *flag = value_get(v, key);
    *found = flag && flag->type != VALUE_NULL;
    *out = *found && flag->boolean;
    if (*found && flag->type != VALUE_BOOL)
        return TARE_FAIL(c->ctx, TARE_E_MODEL, "%s: \"%s\" of \"%s\" must be true or false",
                         c->what, key, of);
    return TARE_OK;
}

tare_status tokenizer_config_token(const tokenizer_config *c, const value *v, const char *key,
                                   config_token *out)
{
    tare_status status = TARE_OK;
    bool found;
    *out = (config_token){0};
    if (!v || v->type == VALUE_NULL)
        return TARE_OK;
    const value *content = v->type == VALUE_MAP ? value_get(v, "content") : v;
    if (!content || content->type != VALUE_STRING || content->length > UINT32_MAX ||
        !utf8_valid(content->text, content->length))
        return TARE_FAIL(c->ctx, TARE_E_MODEL,
                         "%s: \"%s\" must be a token: text, or a map with its \"content\"", c->what,
                         key);
    out->is_text = v->type == VALUE_STRING;
    if (!out->is_text) {
        TRY(read_flag(c, v, key, "special", &found, &out->special));
        TRY(read_flag(c, v, key, "single_word", &found, &out->single_word));
        TRY(read_flag(c, v, key, "lstrip", &found, &out->lstrip));
        TRY(read_flag(c, v, key, "rstrip", &found, &out->rstrip));
        TRY(read_flag(c, v, key, "normalized", &out->has_normalized, &out->normalized));
    }
    out->text = content->text;
    out->length = content->length;
done:
    return status;
}

tare_status tokenizer_config_special(const tokenizer_config *c, special_kind kind,
                                     config_token *out)
{
    const tokenizer_class *k = c->class;
    const char *otherwise = kind == SPECIAL_BOS   ? k->bos
                            : kind == SPECIAL_EOS ? k->eos
                            : kind == SPECIAL_UNK ? k->unk
                            : kind == SPECIAL_PAD ? k->pad
                                                  : NULL;
    const value *v = tokenizer_config_get(c, special_names[kind]);
    tare_status status = tokenizer_config_token(c, v, special_names[kind], out);
    if (status != TARE_OK)
        return status;
    if (!v && otherwise)
        *out = (config_token){.text = otherwise, .length = strlen(otherwise), .is_text = true};
    if (v && v->type == VALUE_MAP && v == value_get(c->map, special_names[kind]))
        out->special = true;
    return TARE_OK;
}
