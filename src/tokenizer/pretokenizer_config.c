/* Changes that the files beside a tokenizer.json make to its pre-tokenizer: add_prefix_space (end
 * of PreTrainedTokenizerFast.__init__) and fix_mistral_regex (_patch_mistral_regex). */
#include <stdio.h>
#include <string.h>

#include "file/json.h"
#include "tokenizer/tokenizer_config.h"

/* ---- trees ---- */

/* A copy of the map with one member put in another's place. */
static const value *with_member(arena *a, const value *map, const char *key, const value *member)
{
    value *copy = arena_alloc(a, sizeof *copy);
    value *items = arena_alloc_array(a, map->count, sizeof *items);
    if (!copy || !items)
        return NULL;
    *copy = *map;
    memcpy(items, map->items, map->count * sizeof *items);
    copy->items = items;
    for (size_t i = 0; i < map->count; i++) {
        if (strcmp(map->keys[i].text, key) == 0)
            items[i] = *member;
    }
    return copy;
}

static bool has_type(const value *stage, const char *type)
{
    const value *v = value_get(stage, "type");
    return v && v->type == VALUE_STRING && strcmp(v->text, type) == 0;
}

static const value *with_prefix_space(arena *a, const value *stage, bool prefix_space)
{
    const value member = {.type = VALUE_BOOL, .boolean = prefix_space};
    const value *old = value_get(stage, "add_prefix_space");
    if (!has_type(stage, "ByteLevel") || !old || old->type != VALUE_BOOL ||
        old->boolean == prefix_space)
        return stage;
    return with_member(a, stage, "add_prefix_space", &member);
}

/* A Sequence with each of its stages rewritten. NULL: no memory. */
static const value *sequence_with_prefix_space(arena *a, const value *stage)
{
    const value *list = value_get(stage, "pretokenizers");
    if (!has_type(stage, "Sequence") || !list || list->type != VALUE_LIST)
        return with_prefix_space(a, stage, true);
    value copy = *list, *items = arena_alloc_array(a, list->count, sizeof *items);
    if (!items)
        return NULL;
    for (size_t i = 0; i < list->count; i++) {
        const value *inner = with_prefix_space(a, &list->items[i], true);
        if (!inner)
            return NULL;
        items[i] = *inner;
    }
    copy.items = items;
    return with_member(a, stage, "pretokenizers", &copy);
}

/* ---- add_prefix_space ---- */

static bool is_text(const value *v, const char *key, const char *text)
{
    v = value_get(v, key);
    return v && v->type == VALUE_STRING && strcmp(v->text, text) == 0;
}

/* Are normalizer and pre-tokenizer those that transformers makes when it converts a slow Llama
 * tokenizer (LlamaConverter of convert_slow_tokenizer.py)? */
static bool is_converted_llama(const value *file, bool legacy, bool prefix_space)
{
    const value *n = value_get(file, "normalizer"), *p = value_get(file, "pre_tokenizer");
    const value *list = value_get(n, "normalizers"), *replace;
    if (!legacy)
        return (!n || n->type == VALUE_NULL) && has_type(p, "Metaspace") &&
               is_text(p, "prepend_scheme", prefix_space ? "first" : "never");
    if ((p && p->type != VALUE_NULL) || !list || list->type != VALUE_LIST ||
        list->count != (prefix_space ? 2u : 1u))
        return false;
    replace = &list->items[list->count - 1];
    return (!prefix_space || (has_type(&list->items[0], "Prepend") &&
                              is_text(&list->items[0], "prepend", "\u2581"))) &&
           has_type(replace, "Replace") && is_text(replace, "content", "\u2581") &&
           is_text(value_get(replace, "pattern"), "String", " ");
}

/* transformers would leave tokenizer.json alone and convert tokenizer.model. */
static tare_status warn_of_slow(const tokenizer_config *c, const value *file)
{
    bool slow, legacy, prefix_space;
    const value *v = tokenizer_config_get(c, "add_prefix_space");
    const char *unknown = c->unknown_class;
    tare_status status = tokenizer_config_bool(c, "from_slow", false, &slow);
    if (status == TARE_OK)
        status = tokenizer_config_bool(c, "add_prefix_space", false, &prefix_space);
    v = v && v->type == VALUE_BOOL ? v : NULL;
    if (status == TARE_OK) { /* null is as if it was not there, and that is true */
        const value *said = tokenizer_config_get(c, "legacy");
        status = tokenizer_config_bool(c, "legacy", true, &legacy);
        legacy = legacy || (said && said->type == VALUE_NULL);
    }
    if (status != TARE_OK)
        return status;
    if (unknown)
        TARE_WARN(c->ctx,
                  "%s: the tokenizer_class \"%.*s\" is not known: tokenizer.json is used as it "
                  "stands, and this class of transformers may give other ids",
                  c->what, vocabulary_clip(unknown, strlen(unknown)), unknown);
    if (slow) {
        TARE_WARN(c->ctx,
                  "%s: from_slow: transformers converts other files than tokenizer.json, which is "
                  "used as it stands; the ids may differ",
                  c->what);
    } else if (v && c->class->prefix_space_is_slow &&
               !is_converted_llama(file, legacy, prefix_space)) {
        TARE_WARN(c->ctx,
                  "%s: with add_prefix_space %s transformers makes a %sFast out of "
                  "tokenizer.model, and not out of tokenizer.json, which is used as it stands; "
                  "their normalizers or pre-tokenizers differ, so the ids may, too",
                  c->what, prefix_space ? "true" : "false", c->class->name);
    }
    return TARE_OK;
}

static tare_status apply_prefix_space(const tokenizer_config *c, const value **stage)
{
    const value *said = tokenizer_config_get(c, "add_prefix_space");
    bool prefix_space;
    tare_status status = tokenizer_config_bool(c, "add_prefix_space", false, &prefix_space);
    if (status != TARE_OK || (said ? said->type == VALUE_NULL : c->class->keeps_prefix_space))
        return status;
    *stage = with_prefix_space(c->arena, *stage, prefix_space);
    if (*stage && prefix_space && c->class->deep_prefix_space)
        *stage = sequence_with_prefix_space(c->arena, *stage);
    return *stage ? TARE_OK : TARE_E_MEMORY;
}

/* ---- fix_mistral_regex ---- */

static const char mistral_split[] =
    "{\"type\":\"Split\",\"behavior\":\"Isolated\",\"invert\":false,\"pattern\":{\"Regex\":\""
    "[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?[\\\\p{Lu}\\\\p{Lt}\\\\p{Lm}\\\\p{Lo}\\\\p{M}]*"
    "[\\\\p{Ll}\\\\p{Lm}\\\\p{Lo}\\\\p{M}]+|"
    "[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?[\\\\p{Lu}\\\\p{Lt}\\\\p{Lm}\\\\p{Lo}\\\\p{M}]+"
    "[\\\\p{Ll}\\\\p{Lm}\\\\p{Lo}\\\\p{M}]*|\\\\p{N}| ?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n/]*|"
    "\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+\"}}";

/* Does transformers look for the fault at all: in large vocabularies, of models of Mistral's or of
 * files not written by a version that is known. */
static bool is_mistral_suspect(const tokenizer_config *c, const value *file)
{
    enum { LARGE = 100000 };
    static const char *const types[] = {"mistral", "mistral3", "voxtral", "ministral", "pixtral"};
    const value *vocab = value_get(value_get(file, "model"), "vocab");
    const value *version = value_get(c->model, "transformers_version");
    const value *type = value_get(c->model, "model_type");
    int major, minor = 0, patch = 0;
    if (!c->model || !vocab || vocab->count <= LARGE)
        return false;
    if (!version || version->type != VALUE_STRING ||
        sscanf(version->text, "%d.%d.%d", &major, &minor, &patch) < 1)
        return true;
    bool old = major < 4 || (major == 4 && (minor < 57 || (minor == 57 && patch <= 2)));
    if (old && type && type->type == VALUE_STRING) {
        for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
            if (strcmp(type->text, types[i]) == 0)
                return true;
        }
        return false;
    }
    return major < 5;
}

static tare_status fix_mistral_regex(const tokenizer_config *c, const value *file,
                                     const value **stage)
{
    bool fix;
    const value *split, *list = value_get(*stage, "pretokenizers");
    tare_status status = tokenizer_config_bool(c, "fix_mistral_regex", false, &fix);
    if (status != TARE_OK || !fix || !is_mistral_suspect(c, file))
        return status;
    if (!has_type(*stage, "Sequence") || !list || list->type != VALUE_LIST || list->count == 0)
        return TARE_FAIL(c->ctx, TARE_E_MODEL,
                         "%s: fix_mistral_regex needs a pre_tokenizer that is a Sequence", c->what);
    status = json_parse(c->ctx, c->arena, mistral_split, strlen(mistral_split), "fix_mistral_regex",
                        JSON_STRICT, &split);
    if (status != TARE_OK)
        return status;
    value copy = *list, *items = arena_alloc_array(c->arena, list->count, sizeof *items);
    if (!items)
        return TARE_E_MEMORY;
    memcpy(items, list->items, list->count * sizeof *items);
    items[0] = *split;
    copy.items = items;
    *stage = with_member(c->arena, *stage, "pretokenizers", &copy);
    return *stage ? TARE_OK : TARE_E_MEMORY;
}

tare_status tokenizer_config_pretokenizer(const tokenizer_config *c, const value *file,
                                          const value **out)
{
    *out = value_get(file, "pre_tokenizer");
    tare_status status = warn_of_slow(c, file);
    if (status != TARE_OK || !*out || (*out)->type != VALUE_MAP)
        return status;
    status = apply_prefix_space(c, out);
    return status == TARE_OK ? fix_mistral_regex(c, file, out) : status;
}
