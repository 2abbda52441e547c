/* The config file of a mix (calibration_sets.md sections 1.1 and 2). */
#include <string.h>

#include "calibration/calib.h"
#include "file/json.h"

enum { SEED_DIGITS = 4300 }; /* as many as Python reads */

typedef struct config_reader {
    tare_context *ctx;
    const char *path;
    const value *root;
    calib_config *out;
} config_reader;

#define REFUSE(r, v, ...)                                                                          \
    TARE_WRAP((r)->ctx, TARE_FAIL((r)->ctx, TARE_E_USAGE, __VA_ARGS__), "%s: line %d", (r)->path,  \
              (v)->line)

/* ---- options ---- */

static tare_status read_bool(config_reader *r, const char *key, bool *out)
{
    const value *v = value_get(r->root, key);
    if (!v)
        return TARE_OK;
    if (v->type != VALUE_BOOL)
        return REFUSE(r, v, "key \"%s\" must be true or false", key);
    *out = v->boolean;
    return TARE_OK;
}

static tare_status read_compat(config_reader *r)
{
    const value *v = value_get(r->root, "compat");
    if (!v || v->type == VALUE_NULL)
        return TARE_OK;
    if (v->type != VALUE_STRING || strcmp(v->text, "msmodelslim") != 0)
        return REFUSE(r, v, "key \"compat\" must be \"msmodelslim\"");
    r->out->compat = true;
    return TARE_OK;
}

static tare_status read_shots(config_reader *r)
{
    const value *v = value_get(r->root, "mmlu_shots");
    if (!v)
        return TARE_OK;
    if (v->type != VALUE_NUMBER || !v->is_integer || v->integer < 0 || v->integer > CALIB_MAX_SHOTS)
        return REFUSE(r, v, "key \"mmlu_shots\" must be a whole number from 0 to %d",
                      CALIB_MAX_SHOTS);
    r->out->mmlu_shots = (uint32_t)v->integer;
    return TARE_OK;
}

/* The words of a decimal number, lowest first, without its sign. */
static tare_status read_words(arena *a, const char *digits, size_t length, calib_seed *out)
{
    uint32_t *words = arena_calloc(a, length / 9 + 1, sizeof *words);
    if (!words)
        return TARE_E_MEMORY;
    size_t count = 0;
    for (size_t i = 0; i < length; i++) {
        uint64_t carry = (uint64_t)(digits[i] - '0');
        for (size_t w = 0; w < count; w++) {
            carry += (uint64_t)words[w] * 10;
            words[w] = (uint32_t)carry;
            carry >>= 32;
        }
        if (carry)
            words[count++] = (uint32_t)carry;
    }
    *out = (calib_seed){words, count};
    return TARE_OK;
}

static tare_status read_seed(config_reader *r, const char *key, calib_seed *out, bool *given)
{
    const value *v = value_get(r->root, key);
    if (!v || v->type == VALUE_NULL)
        return TARE_OK;
    bool integer = v->type == VALUE_NUMBER && v->text[strspn(v->text, "-0123456789")] == 0;
    if (!integer || v->length > SEED_DIGITS)
        return REFUSE(r, v, "key \"%s\" must be a whole number", key);
    size_t sign = v->text[0] == '-';
    *given = true;
    return read_words(&r->out->arena, v->text + sign, v->length - sign, out);
}

static tare_status read_options(config_reader *r)
{
    tare_status status = TARE_OK;
    bool given;
    TRY(read_compat(r));
    TRY(read_bool(r, "skip_bad", &r->out->skip_bad));
    TRY(read_shots(r));
    TRY(read_seed(r, "sample_seed", &r->out->sample_seed, &r->out->has_sample_seed));
    TRY(read_bool(r, "gsm8k_sampling", &r->out->gsm8k_sampling));
    TRY(read_seed(r, "gsm8k_seed", &r->out->gsm8k_seed, &given));
done:
    return status;
}

/* ---- sets ---- */

static const set_kind *find_kind(const char *name)
{
    static const set_kind *const kinds[] = {&set_boolq, &set_ceval, &set_gsm8k, &set_mmlu};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        if (strcmp(kinds[i]->name, name) == 0)
            return kinds[i];
    }
    return NULL;
}

static tare_status read_string(config_reader *r, const value *item, const char *key,
                               const char **out)
{
    const value *v = value_get(item, key);
    if (!v)
        return TARE_FAIL(r->ctx, TARE_E_USAGE, "config should have attribute %s", key);
    if (v->type != VALUE_STRING || memchr(v->text, 0, v->length) || !utf8_valid(v->text, v->length))
        return REFUSE(r, v, "key \"%s\" must be a string", key);
    *out = v->text;
    return TARE_OK;
}

/* Adds the set, or puts it in the place of an earlier one of its name. */
static void add_entry(config_reader *r, config_entry e)
{
    calib_config *c = r->out;
    for (size_t i = 0; i < c->count; i++) {
        if (strcmp(c->entries[i].name, e.name) == 0) {
            TARE_WARN(r->ctx, "%s: Dataset %s stands there twice: the later entry counts", r->path,
                      e.name);
            c->entries[i] = e;
            return;
        }
    }
    c->entries[c->count++] = e;
}

static tare_status read_entry(config_reader *r, const value *item)
{
    tare_status status = TARE_OK;
    config_entry e = {0};
    if (item->type != VALUE_MAP)
        return REFUSE(r, item, "an item of \"configurations\" must be an object");
    TRY(read_string(r, item, "dataset_name", &e.name));
    TRY(read_string(r, item, "dataset_path", &e.path));
    const value *type = value_get(item, "type");
    if (type && (type->type != VALUE_STRING || strcmp(type->text, "jsonl") != 0)) {
        status = REFUSE(r, type, "key \"type\" must be \"jsonl\"");
        goto done;
    }
    e.kind = type ? &set_jsonl : find_kind(e.name);
    if (e.kind)
        add_entry(r, e);
    else
        TARE_WARN(r->ctx, "Dataset %s hasn't provide processor", e.name);
done:
    return status;
}

static tare_status read_entries(config_reader *r)
{
    tare_status status = TARE_OK;
    const value *list = value_get(r->root, "configurations");
    if (!list)
        return TARE_FAIL(r->ctx, TARE_E_USAGE, "config should have attribute configurations");
    if (list->type != VALUE_LIST)
        return REFUSE(r, list, "key \"configurations\" must be a list");
    r->out->entries = arena_alloc_array(&r->out->arena, list->count, sizeof(config_entry));
    if (!r->out->entries)
        return TARE_E_MEMORY;
    for (size_t i = 0; i < list->count; i++)
        TRY(read_entry(r, &list->items[i]));
done:
    return status;
}

tare_status config_read(calib_input *in, const char *path, calib_config *out)
{
    tare_status status = TARE_OK;
    input_text text = {0};
    config_reader r = {.ctx = in->ctx, .path = path, .out = out};
    *out = (calib_config){0};
    arena_init(&out->arena, in->ctx);
    if (!path || !*path)
        return TARE_FAIL(in->ctx, TARE_E_USAGE, "The value of the path cannot be empty.");
    TRY(input_read(in, path, &text));
    TRY(json_parse(in->ctx, &out->arena, text.text, text.length, path, JSON_DATA, &r.root));
    if (r.root->type != VALUE_MAP) {
        status = REFUSE(&r, r.root, "the config must be an object");
        goto done;
    }
    TRY(read_options(&r));
    TRY(read_entries(&r));
done:
    mem_free(in->ctx, text.data);
    return status == TARE_OK || status == TARE_E_MEMORY ? status : TARE_E_USAGE;
}

void config_free(calib_config *config)
{
    arena_free(&config->arena);
}
