#include "output/layout.h"

#include <ctype.h>
#include <string.h>

static const char *const SUFFIXES[TENSOR_COUNT] = {
    [TENSOR_WEIGHT] = ".weight",
    [TENSOR_BIAS] = ".bias",
    [TENSOR_WEIGHT_SCALE] = ".weight_scale",
    [TENSOR_WEIGHT_OFFSET] = ".weight_offset",
    [TENSOR_INPUT_SCALE] = ".input_scale",
    [TENSOR_INPUT_OFFSET] = ".input_offset",
    [TENSOR_QUANT_BIAS] = ".quant_bias",
    [TENSOR_DEQ_SCALE] = ".deq_scale",
    [TENSOR_SCALE_BIAS] = ".scale_bias",
    [TENSOR_INPUT_ZERO_POINT] = ".input_zero_point",
    [TENSOR_WEIGHT_PACKED] = ".weight_packed",
    [TENSOR_WEIGHT_SHAPE] = ".weight_shape",
};

static const char *const NPY_NAMES[NPY_FILES] = {
    [NPY_QUANT_WEIGHT] = "quant_weight.npy",     [NPY_QUANT_BIAS] = "quant_bias.npy",
    [NPY_DEQ_SCALE] = "deq_scale.npy",           [NPY_INPUT_SCALE] = "input_scale.npy",
    [NPY_INPUT_OFFSET] = "input_offset.npy",     [NPY_WEIGHT_SCALE] = "weight_scale.npy",
    [NPY_WEIGHT_OFFSET] = "weight_offset.npy",   [NPY_ANTI_FP_NORM] = "anti_fp_norm.npy",
    [NPY_FA_QUANT_SCALE] = "fa_quant_scale.npy", [NPY_FA_QUANT_OFFSET] = "fa_quant_offset.npy",
    [NPY_KV_CACHE_SCALE] = "kv_cache_scale.npy", [NPY_KV_CACHE_OFFSET] = "kv_cache_offset.npy",
};

const char *role_suffix(tensor_role role)
{
    return role < TENSOR_COUNT ? SUFFIXES[role] : "";
}

tensor_role role_of_name(const char *name, size_t *module_length)
{
    size_t length = strlen(name);
    for (int role = 0; role < TENSOR_COUNT; role++) {
        size_t suffix = strlen(SUFFIXES[role]);
        if (length > suffix && strcmp(name + length - suffix, SUFFIXES[role]) == 0) {
            *module_length = length - suffix;
            return (tensor_role)role;
        }
    }
    *module_length = length;
    return TENSOR_FLOAT;
}

tare_dtype deq_scale_dtype(tare_dtype serving)
{
    return serving == TARE_BF16 ? TARE_F32 : TARE_I64;
}

tare_dtype numpy_dtype(tare_dtype dtype)
{
    return dtype == TARE_BF16 ? TARE_F32 : dtype;
}

static void set_shape(tensor_info *t, tare_dtype dtype, int rank, size_t rows, size_t columns)
{
    t->dtype = dtype;
    t->rank = rank;
    t->shape[0] = rows;
    t->shape[1] = columns;
}

/* ascendv1 keeps scales in FP32: their values are representable in S, so the engine's cast is
 * exact. */
tare_dtype layout_scale_dtype(layout which, const numerics *num)
{
    return which == LAYOUT_ASCENDV1 && !num->compat ? TARE_F32 : num->dtype;
}

static bool is_packed(linear_scheme scheme)
{
    return scheme_of(scheme)->activations == ACT_FLOAT;
}

const char *compressed_format(unsigned schemes)
{
    bool packed = false, plain = false;
    for (int i = 0; i < SCHEMES; i++)
        if (schemes >> i & 1)
            *(is_packed((linear_scheme)i) ? &packed : &plain) = true;
    return packed && plain ? "mixed-precision" : packed ? "pack-quantized" : "int-quantized";
}

/* Which tensors a linear has there, whatever their form. */
static bool has_tensor(layout which, const linear_form *linear, tensor_role role)
{
    bool packed = is_packed(linear->scheme);
    if (which != LAYOUT_COMPRESSED_TENSORS)
        return form_has_part(linear, role) || (role == TENSOR_SCALE_BIAS && form_is_int4(linear));
    switch (role) {
    case TENSOR_WEIGHT:
        return !packed;
    case TENSOR_WEIGHT_PACKED:
    case TENSOR_WEIGHT_SHAPE:
        return packed;
    case TENSOR_INPUT_ZERO_POINT:
        return form_has_part(linear, TENSOR_INPUT_OFFSET) && !linear->act_symmetric;
    case TENSOR_BIAS:
    case TENSOR_WEIGHT_SCALE:
    case TENSOR_INPUT_SCALE:
        return form_has_part(linear, role);
    default:
        return false;
    }
}

size_t packed_words(size_t k)
{
    return k / 4 + (k % 4 != 0);
}

bool linear_tensor(layout which, const numerics *num, const linear_form *linear, tensor_role role,
                   tensor_info *out)
{
    bool int4 = form_is_int4(linear); /* whose engine has FP32 scales */
    tare_dtype scale = int4 ? TARE_F32 : layout_scale_dtype(which, num);
    tare_dtype act = num->compat ? linear->act_dtype : scale;
    /* Engines assert [N,1] and [N], so a single scale is repeated where they load the file. */
    bool single = linear->per_tensor && (which == LAYOUT_SAFE_TENSOR || which == LAYOUT_NUMPY);

    if (!has_tensor(which, linear, role))
        return false;
    switch (role) {
    case TENSOR_WEIGHT:
        set_shape(out, TARE_I8, 2, int4 ? linear->n / 2 : linear->n, linear->k);
        break;
    case TENSOR_BIAS:
        set_shape(out, linear->bias_dtype, 1, linear->n, 0);
        break;
    case TENSOR_WEIGHT_SCALE:
    case TENSOR_WEIGHT_OFFSET:
        set_shape(out, scale, single ? 1 : 2, single ? 1 : linear->n, 1);
        break;
    case TENSOR_INPUT_SCALE:
    case TENSOR_INPUT_OFFSET:
        set_shape(out, act, 1, 1, 0);
        break;
    case TENSOR_QUANT_BIAS:
        set_shape(out, TARE_I32, 1, linear->n, 0);
        break;
    case TENSOR_DEQ_SCALE:
        set_shape(out, deq_scale_dtype(num->dtype), 1, single ? 1 : linear->n, 0);
        break;
    case TENSOR_SCALE_BIAS:
        set_shape(out, TARE_F32, 2, linear->n, linear->slices);
        break;
    case TENSOR_INPUT_ZERO_POINT:
        set_shape(out, TARE_I8, 1, 1, 0);
        break;
    case TENSOR_WEIGHT_PACKED:
        set_shape(out, TARE_I32, 2, linear->n, packed_words(linear->k));
        break;
    default: /* TENSOR_WEIGHT_SHAPE */
        set_shape(out, TARE_I64, 1, 2, 0);
        break;
    }
    return true;
}

static const char *const FA_SUFFIXES[FA_TENSORS] = {".fa_q.scale",  ".fa_k.scale",  ".fa_v.scale",
                                                    ".fa_q.offset", ".fa_k.offset", ".fa_v.offset"};

const char *fa_suffix(int which)
{
    return FA_SUFFIXES[which];
}

static int which_suffix(const char *const *suffixes, int count, const char *name,
                        size_t *module_length)
{
    size_t length = strlen(name);
    for (int i = 0; i < count; i++) {
        size_t suffix = strlen(suffixes[i]);
        if (length > suffix && strcmp(name + length - suffix, suffixes[i]) == 0) {
            *module_length = length - suffix;
            return i;
        }
    }
    return -1;
}

int fa_tensor_of_name(const char *name, size_t *module_length)
{
    return which_suffix(FA_SUFFIXES, FA_TENSORS, name, module_length);
}

void fa_tensor(layout l, const numerics *num, int which, size_t heads, tensor_info *out)
{
    set_shape(out, which < FA_TENSORS / 2 ? layout_scale_dtype(l, num) : TARE_I8, 2, heads, 1);
}

static const char *const KV_SUFFIXES[KV_TENSORS] = {
    ".k_proj.kv_cache_scale", ".k_proj.kv_cache_offset", ".v_proj.kv_cache_scale",
    ".v_proj.kv_cache_offset"};

const char *kv_suffix(int which)
{
    return KV_SUFFIXES[which];
}

int kv_tensor_of_name(const char *name, size_t *module_length)
{
    return which_suffix(KV_SUFFIXES, KV_TENSORS, name, module_length);
}

char *layout_lower_case(arena *a, const char *text)
{
    char *copy = arena_strndup(a, text, strlen(text));
    for (char *c = copy; c && *c; c++)
        *c = (char)tolower((unsigned char)*c);
    return copy;
}

bool layout_is_model_file(const char *name)
{
    return strcmp(name, "model.safetensors") == 0 ||
           strcmp(name, "model.safetensors.index.json") == 0 ||
           pattern_match("model-[0-9][0-9][0-9][0-9][0-9]-of-[0-9][0-9][0-9][0-9][0-9].safetensors",
                         name);
}

char *layout_weight_prefix(arena *a, layout which, bool compat, const char *quant_type)
{
    if (which == LAYOUT_COMPRESSED_TENSORS)
        return arena_printf(a, "model");
    if (which == LAYOUT_ASCENDV1 && !compat)
        return arena_printf(a, "quant_model_weights");
    char *type = layout_lower_case(a, quant_type);
    return type ? arena_printf(a, "quant_model_weight_%s", type) : NULL;
}

char *layout_description_name(arena *a, layout which, const char *quant_type)
{
    if (which == LAYOUT_ASCENDV1)
        return arena_printf(a, "quant_model_description.json");
    char *type = layout_lower_case(a, quant_type);
    return type ? arena_printf(a, "quant_model_description_%s.json", type) : NULL;
}

char *layout_shard_name(arena *a, const char *prefix, size_t number, size_t of)
{
    if (of == 0)
        return arena_printf(a, "%s.safetensors", prefix);
    return arena_printf(a, "%s-%05zu-of-%05zu.safetensors", prefix, number, of);
}

bool layout_owns_file(const char *name, bool by_tare)
{
    if (layout_is_model_file(name) || strcmp(name, "config.json") == 0)
        return by_tare;
    if (str_starts_with(name, "quant_model_weight"))
        return str_ends_with(name, ".safetensors") ||
               str_ends_with(name, ".safetensors.index.json");
    if (str_starts_with(name, "quant_model_description"))
        return str_ends_with(name, ".json");
    for (int i = 0; i < NPY_FILES; i++)
        if (strcmp(name, NPY_NAMES[i]) == 0)
            return true;
    return strcmp(name, "tare_run.json") == 0;
}

const char *npy_file_name(npy_file which)
{
    return NPY_NAMES[which];
}

static const npy_file NPY_OF_ROLE[TENSOR_COUNT] = {
    [TENSOR_WEIGHT] = NPY_QUANT_WEIGHT,       [TENSOR_BIAS] = NPY_QUANT_WEIGHT,
    [TENSOR_WEIGHT_SCALE] = NPY_WEIGHT_SCALE, [TENSOR_WEIGHT_OFFSET] = NPY_WEIGHT_OFFSET,
    [TENSOR_INPUT_SCALE] = NPY_INPUT_SCALE,   [TENSOR_INPUT_OFFSET] = NPY_INPUT_OFFSET,
    [TENSOR_QUANT_BIAS] = NPY_QUANT_BIAS,     [TENSOR_DEQ_SCALE] = NPY_DEQ_SCALE,
};

tensor_role npy_role(npy_file which)
{
    int role = 0;
    while (role < TENSOR_COUNT && NPY_OF_ROLE[role] != which)
        role++;
    return (tensor_role)role;
}

npy_file npy_place(const char *name, tensor_role role, size_t *key_length)
{
    size_t length = strlen(name), module;
    tensor_role by_name = role_of_name(name, &module);

    *key_length = length;
    if (role != TENSOR_FLOAT) {
        if (role != TENSOR_BIAS) /* <module>.bias keeps its name: it would hide the weight */
            *key_length = module;
        return NPY_OF_ROLE[role];
    }
    int fa = fa_tensor_of_name(name, &module);
    if (fa >= 0)
        return fa < FA_TENSORS / 2 ? NPY_FA_QUANT_SCALE : NPY_FA_QUANT_OFFSET;
    int kv = kv_tensor_of_name(name, &module);
    if (kv >= 0)
        return kv % 2 == 0 ? NPY_KV_CACHE_SCALE : NPY_KV_CACHE_OFFSET;
    if (str_ends_with(name, "norm.weight") || str_ends_with(name, "norm.bias"))
        return NPY_ANTI_FP_NORM;
    if (by_name == TENSOR_WEIGHT)
        *key_length = module;
    return NPY_QUANT_WEIGHT;
}
