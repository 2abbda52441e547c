/* The table of settings, and reading recipes by it. */
#include "quantize/recipe_settings.h"
#include "quantize/smooth.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/number.h"
#include "file/foreign.h"
#include "file/io.h"
#include "file/json.h"
#include "file/yaml.h"

static const choice scheme_choices[] = {{"w8a8", SCHEME_W8A8},
                                        {"w8a8_dynamic", SCHEME_W8A8_DYNAMIC},
                                        {"w8a16", SCHEME_W8A16},
                                        {"w8a8_mix", SCHEME_W8A8_MIX},
                                        {NULL, -1}};
static const choice weight_choices[] = {
    {"ssz", WEIGHTS_SSZ}, {"minmax", WEIGHTS_MINMAX}, {"gptq", WEIGHTS_GPTQ}, {NULL, 0}};
static const choice kv_choices[] = {{"none", 0}, {"c8", 1}, {NULL, 0}};
static const choice mtp_choices[] = {
    {"none", MTP_NONE}, {"float", MTP_FLOAT}, {"mix", MTP_MIX}, {NULL, -1}};
static const choice dtype_choices[] = {
    {"bfloat16", TARE_BF16}, {"float16", TARE_F16}, {"float32", TARE_F32}, {NULL, -1}};
static const choice compute_choices[] = {
    {"auto", COMPUTE_AUTO}, {"fp32", COMPUTE_FP32}, {"bf16", COMPUTE_BF16}, {NULL, 0}};
static const choice compat_choices[] = {{"none", 0}, {"msmodelslim", 1}, {NULL, 0}};
static const choice anti_choices[] = {
    {"none", 0},       {"m1", SMOOTH_M1},           {"m2", SMOOTH_M2},
    {"m3", SMOOTH_M3}, {"m4", SMOOTH_M4},           {"m5", SMOOTH_M5},
    {"m6", SMOOTH_M6}, {"balance", SMOOTH_BALANCE}, {NULL, 0}};
static const choice value_choices[] = {{"max", 0}, {"mse", 1}, {NULL, 0}};
static const choice npy_choices[] = {{"numpy", 0}, {"torch", 1}, {NULL, -1}};

#define AT(member)  offsetof(struct tare_recipe, member)
#define INT64_LIMIT 9007199254740992.0

const setting recipe_settings[] = {
    {"quant", "scheme", SETTING_CHOICE, AT(scheme), 0, 0, scheme_choices},
    {"quant", "w_bit", SETTING_INT, AT(w_bit), 1, 16, NULL},
    {"quant", "a_bit", SETTING_INT, AT(a_bit), 1, 16, NULL},
    {"quant", "act_method", SETTING_INT, AT(act_method), 1, 4, NULL},
    {"quant", "a_sym", SETTING_SWITCH, AT(a_sym), 0, 0, NULL},
    {"quant", "final_scales", SETTING_SWITCH, AT(final_scales), 0, 0, NULL},
    {"quant", "mm_tensor", SETTING_BOOL, AT(mm_tensor), 0, 0, NULL},
    {"quant", "w_sym", SETTING_BOOL, AT(w_sym), 0, 0, NULL},
    {"quant", "weight_method", SETTING_CHOICE, AT(weight_method), 0, 0, weight_choices},
    {"quant", "pr", SETTING_FLOAT, AT(pr), 0, 1, NULL},
    {"quant", "seed", SETTING_INT, AT(seed), 0, INT64_LIMIT, NULL},
    {"quant", "kv_cache", SETTING_CHOICE, AT(kv_cache), 0, 0, kv_choices},
    {"quant", "kv_sym", SETTING_BOOL, AT(kv_sym), 0, 0, NULL},
    {"quant", "kv_pairs", SETTING_BOOL, AT(kv_pairs), 0, 0, NULL},
    {"quant", "mtp", SETTING_CHOICE, AT(mtp), 0, 0, mtp_choices},
    {"mix", "", SETTING_MIX, AT(mix), 0, 0, NULL},
    {"rotation", "", SETTING_SECTION, AT(rotation), 0, 0, NULL},
    {"rotation", "seed", SETTING_INT, AT(rotation_seed), 0, INT64_LIMIT, NULL},
    {"rotation", "r1", SETTING_BOOL, AT(rotation_r1), 0, 0, NULL},
    {"rotation", "r2", SETTING_BOOL, AT(rotation_r2), 0, 0, NULL},
    {"rotation", "align", SETTING_BOOL, AT(rotation_align), 0, 0, NULL},
    {"rotation", "flips", SETTING_BOOL, AT(rotation_flips), 0, 0, NULL},
    {"anti_outlier", "anti_method", SETTING_CHOICE, AT(anti_method), 0, 0, anti_choices},
    {"anti_outlier", "w_bit", SETTING_INT, AT(anti_w_bit), 4, 8, NULL},
    {"anti_outlier", "a_bit", SETTING_INT, AT(anti_a_bit), 8, 16, NULL},
    {"anti_outlier", "w_sym", SETTING_BOOL, AT(anti_w_sym), 0, 0, NULL},
    {"anti_outlier", "disable_anti_names", SETTING_LIST, AT(disable_anti_names), 0, 0, NULL},
    {"anti_outlier", "alpha", SETTING_FLOAT, AT(anti_alpha), -1e6, 1e6, NULL},
    {"anti_outlier", "beta", SETTING_FLOAT, AT(anti_beta), -1e6, 1e6, NULL},
    {"fa_quant", "", SETTING_SECTION, AT(fa_quant), 0, 0, NULL},
    {"fa_quant", "fa_amp", SETTING_AMP, AT(fa_amp), 0, INT64_LIMIT, NULL},
    {"fa_quant", "balance", SETTING_BOOL, AT(fa_balance), 0, 0, NULL},
    {"fa_quant", "v_method", SETTING_CHOICE, AT(fa_v_mse), 0, 0, value_choices},
    {"fallback", "disable_level", SETTING_LEVEL, AT(disable_level), 0, 1e9, NULL},
    {"fallback", "disable_last_linear", SETTING_BOOL, AT(disable_last_linear), 0, 0, NULL},
    {"fallback", "disable_names", SETTING_LIST, AT(disable_names), 0, 0, NULL},
    {"calibration", "samples", SETTING_INT, AT(samples), 0, INT64_LIMIT, NULL},
    {"calibration", "max_length", SETTING_INT, AT(max_length), 0, INT64_LIMIT, NULL},
    {"save", "types", SETTING_LIST, AT(save_types), 0, 0, save_type_names},
    {"save", "part_file_size", SETTING_INT, AT(part_file_size), 0, 1 << 20, NULL},
    {"save", "npy_values", SETTING_CHOICE, AT(npy_values), 0, 0, npy_choices},
    {"run", "dtype", SETTING_CHOICE, AT(dtype), 0, 0, dtype_choices},
    {"run", "compute", SETTING_CHOICE, AT(compute), 0, 0, compute_choices},
    {"run", "compat", SETTING_CHOICE, AT(compat), 0, 0, compat_choices},
    {"run", "target", SETTING_TARGET, AT(target), 0, 0, NULL},
    {"run", "max_memory", SETTING_MEMORY, AT(max_memory), 0, 0, NULL},
};

_Static_assert(sizeof recipe_settings / sizeof *recipe_settings == NUM_SETTINGS,
               "NUM_SETTINGS counts the rows");

static const setting *find_setting(const char *section, size_t section_length, const char *key)
{
    for (size_t i = 0; i < NUM_SETTINGS; i++) {
        const setting *s = &recipe_settings[i];
        if (strlen(s->section) == section_length &&
            memcmp(s->section, section, section_length) == 0 && strcmp(s->key, key) == 0)
            return s;
    }
    return NULL;
}

/* ---- setting from text ---- */

#define REFUSE(r, s, ...)                                                                          \
    TARE_WRAP((r)->ctx, TARE_FAIL((r)->ctx, TARE_E_USAGE, __VA_ARGS__), "%s%s%s", (s)->section,    \
              *(s)->key ? "." : "", (s)->key)

static tare_status refuse_choice(tare_recipe *r, const setting *s, const char *text)
{
    buffer names;
    buffer_init(&names, r->ctx);
    for (const choice *c = s->choices; c->name; c++)
        buffer_printf(&names, "%s%s", c == s->choices ? "" : ", ", c->name);
    tare_status status = names.status;
    if (status == TARE_OK)
        status = REFUSE(r, s, "\"%.80s\" is not known; possible: %s", text, names.data);
    buffer_free(&names);
    return status;
}

static tare_status set_int(tare_recipe *r, const setting *s, const char *text)
{
    char *end;
    errno = 0;
    long long x = strtoll(text, &end, 10);
    if (errno || end == text || *end || (double)x < s->low || (double)x > s->high)
        return REFUSE(r, s, "\"%.80s\" is not a whole number from %.0f to %.0f", text, s->low,
                      s->high);
    *(int64_t *)setting_at(r, s) = x;
    return TARE_OK;
}

static tare_status set_float(tare_recipe *r, const setting *s, const char *text)
{
    char *end;
    double x = number_read(text, &end);
    if (end == text || *end || !(x >= s->low && x <= s->high))
        return REFUSE(r, s, "\"%.80s\" is not a number from %g to %g", text, s->low, s->high);
    *(double *)setting_at(r, s) = x;
    return TARE_OK;
}

static tare_status set_bool(tare_recipe *r, const setting *s, const char *text)
{
    bool yes = strcmp(text, "true") == 0 || strcmp(text, "True") == 0;
    if (!yes && strcmp(text, "false") != 0 && strcmp(text, "False") != 0)
        return REFUSE(r, s, "\"%.80s\" is neither true nor false", text);
    if (s->type == SETTING_SWITCH)
        *(int64_t *)setting_at(r, s) = yes;
    else
        *(bool *)setting_at(r, s) = yes;
    return TARE_OK;
}

static tare_status set_choice(tare_recipe *r, const setting *s, const char *text)
{
    for (const choice *c = s->choices; c->name; c++) {
        if (strcmp(c->name, text) == 0) {
            *(int64_t *)setting_at(r, s) = c->number;
            return TARE_OK;
        }
    }
    return refuse_choice(r, s, text);
}

/* A YAML scalar, or what stands on the command line, by the names of Python's types. */
static const char *type_of_text(const char *text)
{
    char *end;
    number_read(text, &end);
    if (strcmp(text, "true") == 0 || strcmp(text, "false") == 0)
        return "bool";
    return end != text && !*end ? "float" : "str";
}

static tare_status set_amp(tare_recipe *r, const setting *s, const char *text)
{
    size_t digits = strspn(text + (text[0] == '-'), "0123456789");
    if (digits == 0 || text[digits + (text[0] == '-')])
        return REFUSE(r, s, "%s must be int, not %s.", s->key, type_of_text(text));
    if (text[0] == '-')
        return REFUSE(r, s, "%s = %.80s is smaller than 0.", s->key, text);
    r->fa_amp_given = true;
    return set_int(r, s, text);
}

static tare_status set_section(tare_recipe *r, const setting *s, const char *text)
{
    tare_status status = set_bool(r, s, text);
    if (status == TARE_OK && setting_at(r, s) == &r->fa_quant && !r->fa_quant) {
        r->fa_amp = 0;
        r->fa_amp_given = false;
        r->fa_v_mse = 0;
        r->fa_balance = false;
    }
    return status;
}

static tare_status add_memory(tare_recipe *r, const setting *s, const char *text)
{
    return TARE_WRAP(r->ctx, max_memory_add_text(r->ctx, setting_at(r, s), text), "%s.%s",
                     s->section, s->key);
}

static tare_status set_target(tare_recipe *r, const setting *s, const char *text)
{
    serving_target *target = setting_at(r, s);
    *target = (serving_target){ENGINE_NONE, 0};
    if (strcmp(text, engine_of(ENGINE_NONE)->name) == 0)
        return TARE_OK;
    return TARE_WRAP(r->ctx, serving_target_parse(r->ctx, text, target), "%s.%s", s->section,
                     s->key);
}

/* L<n>, no leading zero. */
static tare_status set_level(tare_recipe *r, const setting *s, const char *text)
{
    size_t digits = text[0] == 'L' ? strspn(text + 1, "0123456789") : 0;
    if (digits == 0 || digits > 9 || text[1 + digits] || (text[1] == '0' && digits > 1))
        return REFUSE(r, s, "\"%.80s\" is not a level; L0, L1, L2, … are", text);
    *(int64_t *)setting_at(r, s) = strtoll(text + 1, NULL, 10);
    return TARE_OK;
}

static tare_status append_item(tare_recipe *r, const setting *s, const char *text, size_t length)
{
    bool known = !s->choices;
    for (const choice *c = s->choices; c && c->name; c++)
        known |= strlen(c->name) == length && memcmp(c->name, text, length) == 0;
    if (known && length > 0)
        return string_list_add(r->ctx, setting_at(r, s), text, length);
    char *item = mem_strndup(r->ctx, text, length);
    if (!item)
        return TARE_E_MEMORY;
    tare_status status = known ? REFUSE(r, s, "an empty element") : refuse_choice(r, s, item);
    mem_free(r->ctx, item);
    return status;
}

static tare_status add_mix(tare_recipe *r, const setting *s, const char *pattern, size_t length,
                           const char *type)
{
    linear_scheme scheme;
    mix_list *l = setting_at(r, s);
    if (length == 0)
        return REFUSE(r, s, "a type without a pattern before it");
    if (!scheme_of_name(type, &scheme))
        return REFUSE(r, s,
                      "\"%.80s\" is no type; possible: w8a8, w8a8_dynamic, w8a16, w8a8_mix, "
                      "w4a8_dynamic, float",
                      type);
    return mix_list_add(r->ctx, l, pattern, length, scheme);
}

/* "PATTERN=TYPE" */
static tare_status append_mix(tare_recipe *r, const setting *s, const char *text, size_t length)
{
    char *item = mem_strndup(r->ctx, text, length);
    if (!item)
        return TARE_E_MEMORY;
    const char *equals = strrchr(item, '=');
    tare_status status = equals ? add_mix(r, s, item, (size_t)(equals - item), equals + 1)
                                : REFUSE(r, s, "\"%.80s\" is not PATTERN=TYPE", item);
    mem_free(r->ctx, item);
    return status;
}

/* Commas inside [ ] belong to a pattern. */
static tare_status append_items(tare_recipe *r, const setting *s, const char *text)
{
    tare_status status = TARE_OK;
    while (status == TARE_OK) {
        size_t n = 0;
        for (bool set = false; text[n] && (set || text[n] != ','); n++)
            set = text[n] == '[' ? true : text[n] == ']' ? false : set;
        status = s->type == SETTING_MIX ? append_mix(r, s, text, n) : append_item(r, s, text, n);
        if (!text[n])
            break;
        text += n + 1;
    }
    return status;
}

static tare_status set_text(tare_recipe *r, const setting *s, const char *text)
{
    switch (s->type) {
    case SETTING_INT:
        return set_int(r, s, text);
    case SETTING_FLOAT:
        return set_float(r, s, text);
    case SETTING_BOOL:
    case SETTING_SWITCH:
        return set_bool(r, s, text);
    case SETTING_CHOICE:
        return set_choice(r, s, text);
    case SETTING_LEVEL:
        return set_level(r, s, text);
    case SETTING_TARGET:
        return set_target(r, s, text);
    case SETTING_AMP:
        return set_amp(r, s, text);
    case SETTING_SECTION:
        return set_section(r, s, text);
    case SETTING_MEMORY:
        max_memory_clear(r->ctx, setting_at(r, s));
        return add_memory(r, s, text);
    case SETTING_MIX:
        mix_list_clear(r->ctx, setting_at(r, s));
        return append_items(r, s, text);
    case SETTING_LIST:
        break;
    }
    string_list_clear(r->ctx, setting_at(r, s));
    return append_items(r, s, text);
}

static char *setting_name(arena *a, const setting *s)
{
    return arena_printf(a, "%s%s%s", s->section, *s->key ? "." : "", s->key);
}

/* Finds "section.key", or "section" where that is a setting, or fails with the nearest names. */
static tare_status require_setting(tare_recipe *r, const char *name, const setting **out)
{
    tare_status status = TARE_OK;
    const char *dot = strchr(name, '.'), *names[NUM_SETTINGS];
    *out = dot ? find_setting(name, (size_t)(dot - name), dot + 1)
               : find_setting(name, strlen(name), "");
    if (*out)
        return TARE_OK;
    arena a;
    buffer near;
    arena_init(&a, r->ctx);
    buffer_init(&near, r->ctx);
    for (size_t i = 0; i < NUM_SETTINGS; i++) {
        if (!(names[i] = setting_name(&a, &recipe_settings[i]))) {
            status = TARE_E_MEMORY;
            goto done;
        }
    }
    nearest_names(&near, name, names, NUM_SETTINGS, 3);
    status = near.status;
    if (status == TARE_OK)
        status = TARE_FAIL(r->ctx, TARE_E_USAGE, "setting \"%.80s\" is not known; near: %s", name,
                           near.data);
done:
    buffer_free(&near);
    arena_free(&a);
    return status;
}

static tare_status append_text(tare_recipe *r, const setting *s, const char *text)
{
    return s->type == SETTING_LIST || s->type == SETTING_MIX ? append_items(r, s, text)
           : s->type == SETTING_MEMORY                       ? add_memory(r, s, text)
                                                             : set_text(r, s, text);
}

/* Gives `text` to the setting `name` by `how`; all or nothing. */
static tare_status change_setting(tare_recipe *r, const char *name, const char *text,
                                  tare_status (*how)(tare_recipe *, const setting *, const char *))
{
    const setting *s;
    tare_recipe draft;
    tare_status status = require_setting(r, name, &s);
    if (status != TARE_OK)
        return status;
    status = recipe_draft(r, &draft);
    if (status == TARE_OK)
        status = how(&draft, s, text);
    return recipe_settle(r, &draft, status);
}

tare_status tare_recipe_set(tare_recipe *r, const char *name, const char *text)
{
    return change_setting(r, name, text, set_text);
}

tare_status tare_recipe_append(tare_recipe *r, const char *name, const char *text)
{
    return change_setting(r, name, text, append_text);
}

/* ---- YAML ---- */

enum { RECIPE_LIMIT = 1 << 20, RECORD_LIMIT = 64 << 20 };

static const char *scalar_text(const value *v)
{
    if (v->type == VALUE_BOOL)
        return v->boolean ? "true" : "false";
    return v->type == VALUE_STRING || v->type == VALUE_NUMBER ? v->text : NULL;
}

/* {cpu: 8GiB, 0: 25GiB}; a plain integer is a number of bytes. */
static tare_status load_memory(tare_recipe *r, const setting *s, const value *map)
{
    tare_status status = TARE_OK;
    max_memory_clear(r->ctx, setting_at(r, s));
    for (size_t i = 0; status == TARE_OK && i < map->count; i++) {
        const char *device = map->keys[i].text;
        const value *v = &map->items[i];
        if (v->type == VALUE_NUMBER && v->is_integer)
            status = max_memory_add_bytes(r->ctx, setting_at(r, s), device, v->integer);
        else if (v->type == VALUE_STRING || v->type == VALUE_NUMBER)
            status = max_memory_add(r->ctx, setting_at(r, s), device, v->text);
        else
            status = TARE_FAIL(r->ctx, TARE_E_USAGE,
                               "the size of '%.80s' is neither a string nor "
                               "an integer; 25GiB is an example",
                               device);
    }
    return TARE_WRAP(r->ctx, status, "%s.%s", s->section, s->key);
}

/* A list of maps of one pattern, or of "PATTERN=TYPE"; or one map. */
static tare_status load_mix(tare_recipe *r, const setting *s, const value *v)
{
    tare_status status = TARE_OK;
    if (v->type == VALUE_MAP) {
        for (size_t i = 0; status == TARE_OK && i < v->count; i++) {
            const char *type = scalar_text(&v->items[i]);
            if (!type)
                return REFUSE(r, s, "the type of \"%.80s\" is not a string", v->keys[i].text);
            status = add_mix(r, s, v->keys[i].text, strlen(v->keys[i].text), type);
        }
        return status;
    }
    const char *text = scalar_text(v);
    if (!text)
        return REFUSE(r, s, "needs maps of a pattern and a type");
    return append_mix(r, s, text, strlen(text));
}

static tare_status load_setting(tare_recipe *r, const setting *s, const value *v)
{
    if (s->type == SETTING_MEMORY && v->type == VALUE_MAP)
        return load_memory(r, s, v);
    if (v->type == VALUE_NULL) /* "as if it were not there" */
        return TARE_OK;
    if (s->type == SETTING_MIX) {
        tare_status status = TARE_OK;
        mix_list_clear(r->ctx, setting_at(r, s));
        if (v->type != VALUE_LIST)
            return load_mix(r, s, v);
        for (size_t i = 0; status == TARE_OK && i < v->count; i++)
            status = load_mix(r, s, &v->items[i]);
        return status;
    }
    if (v->type == VALUE_LIST && s->type == SETTING_LIST) {
        string_list_clear(r->ctx, setting_at(r, s));
        for (size_t i = 0; i < v->count; i++) {
            const char *text = scalar_text(&v->items[i]);
            if (!text)
                return REFUSE(r, s, "element %zu is not a string", i + 1);
            tare_status status = append_item(r, s, text, strlen(text));
            if (status != TARE_OK)
                return status;
        }
        return TARE_OK;
    }
    const char *text = scalar_text(v);
    if (!text)
        return REFUSE(r, s, "needs a single value");
    return set_text(r, s, text);
}

static tare_status load_section(tare_recipe *r, const char *section, const value *map)
{
    tare_status status = TARE_OK;
    const setting *whole = find_setting(section, strlen(section), "");
    buffer name;
    buffer_init(&name, r->ctx);
    if (map->type == VALUE_NULL)
        return TARE_OK;
    if (whole) {
        if (map->type != VALUE_MAP || whole->type == SETTING_MIX)
            return TARE_WRAP(r->ctx, load_setting(r, whole, map), "line %d", map->line);
        TRY(set_text(r, whole, "true"));
    }
    if (map->type != VALUE_MAP)
        return TARE_FAIL(r->ctx, TARE_E_USAGE, "line %d: section \"%.80s\" must be a map",
                         map->line, section);
    for (size_t i = 0; i < map->count; i++) {
        const setting *s;
        name.length = 0;
        buffer_printf(&name, "%s.%s", section, map->keys[i].text);
        TRY(name.status);
        TRY(TARE_WRAP(r->ctx, require_setting(r, name.data, &s), "line %d", map->keys[i].line));
        TRY(TARE_WRAP(r->ctx, load_setting(r, s, &map->items[i]), "line %d", map->keys[i].line));
    }
done:
    buffer_free(&name);
    return status;
}

static tare_status load_sections(tare_recipe *r, const char *what, const value *root)
{
    tare_status status = TARE_OK;
    if (root->type != VALUE_MAP && root->type != VALUE_NULL)
        return foreign_explain_path(
            r->ctx, TARE_FAIL(r->ctx, TARE_E_FORMAT, "%s: a recipe is a map of sections", what),
            what, FOREIGN_TEXT);
    for (size_t i = 0; i < root->count; i++)
        TRY(TARE_WRAP(r->ctx, load_section(r, root->keys[i].text, &root->items[i]), "%s", what));
done:
    return status;
}

static bool is_shipped(const char *name)
{
    for (size_t i = 0; i < num_shipped_recipes; i++) {
        if (strcmp(shipped_recipes[i].name, name) == 0)
            return true;
    }
    return false;
}

static tare_status parse_shipped(tare_recipe *r, arena *a, const char *name, const value **root)
{
    buffer names;
    for (size_t i = 0; i < num_shipped_recipes; i++) {
        const shipped_recipe *s = &shipped_recipes[i];
        if (strcmp(s->name, name) == 0)
            return yaml_parse(r->ctx, a, (const char *)s->text, s->length, name, root);
    }
    buffer_init(&names, r->ctx);
    for (size_t i = 0; i < num_shipped_recipes; i++)
        buffer_printf(&names, "%s%s", i ? ", " : "", shipped_recipes[i].name);
    tare_status status = names.status;
    if (status == TARE_OK)
        status = TARE_FAIL(r->ctx, TARE_E_USAGE,
                           "%s: neither a file nor one of the recipes that ship with tare: %s",
                           name, names.data);
    buffer_free(&names);
    return status;
}

/* What tare_run.json says; its settings are those that held. */
static tare_status parse_record(tare_recipe *r, arena *a, const char *path, const value **root)
{
    tare_status status = json_parse_file(r->ctx, a, path, RECORD_LIMIT, root);
    if (status == TARE_OK && !(*root = value_get(*root, "recipe")))
        status = TARE_FAIL(r->ctx, TARE_E_FORMAT, "%s: no record of a run: there is no \"recipe\"",
                           path);
    return status;
}

/* A scheme of their own wins over the widths, so that it alone need be named to be changed. */
static void settle_record(tare_recipe *r)
{
    r->scheme = recipe_scheme(r);
    r->a_bit = 8;
}

static tare_status load(tare_recipe *r, arena *a, const char *path, const char *record)
{
    tare_status status = TARE_OK;
    const value *root;
    if (record)
        TRY(parse_record(r, a, record, &root));
    else if (path_exists(path) && !path_is_folder(path))
        TRY(yaml_parse_file(r->ctx, a, path, RECIPE_LIMIT, &root));
    else
        TRY(parse_shipped(r, a, path, &root));
    TRY(load_sections(r, record ? record : path, root));
    if (record)
        settle_record(r);
done:
    return status;
}

tare_status tare_recipe_load(tare_recipe *r, const char *path)
{
    tare_status status = TARE_OK;
    tare_recipe draft;
    char *record = NULL;
    arena a;
    arena_init(&a, r->ctx);
    TRY(recipe_draft(r, &draft));
    if (path_is_folder(path) && !is_shipped(path)) {
        TRY(save_types_record(r->ctx, path, &record));
        if (!record)
            TRY(TARE_FAIL(r->ctx, TARE_E_USAGE, "%s: no output of tare: it holds no tare_run.json",
                          path));
    }
    TRY(load(&draft, &a, path, record));
done:
    arena_free(&a);
    mem_free(r->ctx, record);
    status = recipe_settle(r, &draft, status);
    /* A recipe that is absent or does not parse is a wrong recipe, as a wrong setting in it is. */
    return status == TARE_E_FORMAT || status == TARE_E_IO ? TARE_E_USAGE : status;
}
