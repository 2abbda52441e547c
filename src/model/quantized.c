#include "model/quantized.h"

#include <stdio.h>
#include <string.h>

#include "base/strings.h"
#include "file/json.h"

typedef struct sign {
    const char *name, *method;
} sign;

/* Ends of tensor names that only a quantizer's have; the more telling ones first. */
static const sign tensor_signs[] = {
    {".quant_bias", "msModelSlim or tare"},
    {".deq_scale", "msModelSlim or tare"},
    {".weight_offset", "msModelSlim or tare"},
    {".quant_type", "msModelSlim or tare"},
    {".qweight", "gptq or awq"},
    {".qzeros", "gptq or awq"},
    {".weight_packed", "compressed-tensors"},
    {".weight_scale_inv", "fp8"},
    {".SCB", "bitsandbytes"},
    {".absmax", "bitsandbytes"},
    {".codebooks", "aqlm"},
    {".q_weight", "exl2"},
    {".trellis", "exl3"},
    {".W_q", "hqq"},
    {".weight._data", "quanto"},
    {".weight_scale", "a method with scales of weights"},
    {".scales", "a method with scales of weights"},
};

/* Beginnings of file names. */
static const sign file_signs[] = {
    {"quant_model_description", "msModelSlim or tare"},
    {"hf_quant_config.json", "modelopt"},
    {"quantize_config.json", "gptq"},
    {"quant_config.json", "awq"},
    {"quanto_qmap.json", "quanto"},
};

/* What was found: the method, and where it shows. */
typedef struct finding {
    const char *method, *where;
} finding;

static const char *text_of(const value *map, const char *key)
{
    const value *v = value_get(map, key);
    return v && v->type == VALUE_STRING && v->length ? v->text : NULL;
}

static bool is_true(const value *map, const char *key)
{
    const value *v = value_get(map, key);
    return v && v->type == VALUE_BOOL && v->boolean;
}

/* [128, 128] */
static bool are_blocks(const value *v)
{
    const value *items = v && v->type == VALUE_LIST && v->count == 2 ? v->items : NULL;
    size_t block = codec_of(TARE_F8_E4M3)->block;
    return items && items[0].is_integer && items[0].integer == (int64_t)block &&
           items[1].is_integer && items[1].integer == (int64_t)block;
}

static bool absent_or(const value *map, const char *key, const char *text)
{
    const value *v = value_get(map, key);
    return !v || v->type == VALUE_NULL || value_is(v, text);
}

tare_status quantized_take_form(tare_model *m)
{
    const value *config;
    arena a;
    arena_init(&a, m->ctx);
    tare_status status = json_parse(m->ctx, &a, m->config_json, m->config_length, "config.json",
                                    JSON_PYTHON, &config);
    const value *map = status == TARE_OK ? value_get(config, "quantization_config") : NULL;
    m->fp8_blocks = map && value_is(value_get(map, "quant_method"), "fp8") &&
                    absent_or(map, "fmt", "e4m3") &&
                    absent_or(map, "activation_scheme", "dynamic") &&
                    are_blocks(value_get(map, "weight_block_size"));
    arena_free(&a);
    return status;
}

bool quantized_is_scale(const tare_model *m, const char *name)
{
    char weight[512];
    const codec *c = codec_of(TARE_F8_E4M3);
    size_t length = strlen(name), end = strlen(c->scales);
    if (!m->fp8_blocks || !str_ends_with(name, c->scales) || length >= sizeof weight)
        return false;
    snprintf(weight, sizeof weight, "%.*sweight", (int)(length - end), name);
    const tensor_info *t = checkpoint_find(m->checkpoint, weight);
    return t && t->dtype == c->stored;
}

/* The method of one of config.json's maps; `usual`: where it does not say. */
static const char *method_of(const value *map, const char *usual)
{
    const char *method = text_of(map, "quant_method");
    if (!method)
        method = text_of(value_get(map, "producer"), "name");
    if (!method)
        method = text_of(map, "quant_algo");
    if (!method && (is_true(map, "load_in_4bit") || is_true(map, "load_in_8bit")))
        method = "bitsandbytes";
    return method ? method : usual;
}

static bool look_in_config(const value *config, finding *out)
{
    static const struct {
        const char *key, *usual;
    } maps[] = {{"quantization_config", "an unknown method"},
                {"compression_config", "compressed-tensors"},
                {"quantization", "mlx"}};
    for (size_t i = 0; i < sizeof maps / sizeof *maps; i++) {
        const value *map = value_get(config, maps[i].key);
        if (map && map->type == VALUE_MAP && map->count > 0) {
            bool ours = text_of(map, "fa_quant_type") || text_of(map, "kv_quant_type");
            *out = (finding){ours ? "msModelSlim or tare" : method_of(map, maps[i].usual),
                             maps[i].key};
            return true;
        }
    }
    return false;
}

static bool look_in_tensors(const tare_model *m, finding *out)
{
    for (size_t s = 0; m->checkpoint && s < sizeof tensor_signs / sizeof *tensor_signs; s++) {
        for (size_t i = 0; i < checkpoint_count(m->checkpoint); i++) {
            const char *name = checkpoint_at(m->checkpoint, i)->name;
            if (str_ends_with(name, tensor_signs[s].name) && !quantized_is_scale(m, name)) {
                *out = (finding){tensor_signs[s].method, name};
                return true;
            }
        }
    }
    return false;
}

static tare_status look_in_folder(const tare_model *m, arena *a, finding *out)
{
    char **names = NULL;
    size_t count = 0;
    if (!m->folder)
        return TARE_OK;
    tare_status status = folder_list(m->ctx, m->folder, &names, &count);
    for (size_t s = 0; s < sizeof file_signs / sizeof *file_signs && !out->where; s++) {
        for (size_t i = 0; i < count && !out->where; i++)
            if (str_starts_with(names[i], file_signs[s].name))
                *out = (finding){file_signs[s].method,
                                 arena_strndup(a, names[i], strlen(names[i]))};
    }
    folder_list_free(m->ctx, names, count);
    return status;
}

/* `failure`, whose message is `reason`, with a word in front if anything shows that the model is
 * quantized. */
static tare_status explain(tare_model *m, arena *a, finding f, tare_status failure,
                           const char *reason)
{
    if (!f.method && !look_in_tensors(m, &f) && look_in_folder(m, a, &f) == TARE_E_MEMORY)
        return TARE_E_MEMORY;
    if (!f.method)
        return TARE_FAIL(m->ctx, failure, "%s", reason);
    return TARE_FAIL(m->ctx, failure,
                     "%s: already quantized by %.80s (%.200s); give the float original: %s", m->dir,
                     f.method, f.where ? f.where : "", reason);
}

static bool has_scales(const tare_model *m)
{
    for (size_t i = 0; i < m->num_linears; i++)
        if (m->linears[i].weight.scales)
            return true;
    return false;
}

tare_status quantized_check(tare_model *m, tare_status opened, bool quiet)
{
    tare_status status = opened;
    const value *config;
    finding f = {0}, tensor;
    char reason[sizeof m->ctx->error.text];
    arena a;
    if (opened != TARE_OK && opened != TARE_E_MODEL && opened != TARE_E_FORMAT)
        return opened;
    memcpy(reason, tare_last_error(m->ctx),
           sizeof reason); /* before another message takes its place */
    arena_init(&a, m->ctx);
    TRY(json_parse(m->ctx, &a, m->config_json, m->config_length, "config.json", JSON_PYTHON,
                   &config));
    bool says = look_in_config(config, &f);
    if (opened != TARE_OK)
        status = m->fp8_blocks ? opened : explain(m, &a, f, opened, reason);
    else if (says && look_in_tensors(m, &tensor))
        status = TARE_FAIL(m->ctx, TARE_E_MODEL,
                           "%s: already quantized by %.80s (%s of config.json, and %.200s); give "
                           "the float original",
                           m->dir, f.method, f.where, tensor.where);
    else if (says && !quiet && !has_scales(m))
        TARE_WARN(m->ctx, "%s: config.json: %s (%.80s) is left out: the weights are float", m->dir,
                  f.where, f.method);
done:
    arena_free(&a);
    return status;
}
