/* Reading config.json: defaults as transformers has them, everything that a forward pass relies on
 * checked here once. */
#include "model/config.h"

#include <math.h>
#include <string.h>

#include "base/strings.h"
#include "model/config_parse.h"

#define MAX_POSITION ((size_t)1 << 31)

static tare_status parse_arch(parse *p)
{
    const value *type = value_get(p->root, "model_type");
    if (type && type->type == VALUE_STRING && (p->out->arch = architecture_find(type->text)))
        return TARE_OK;
    buffer known;
    buffer_init(&known, p->ctx);
    for (size_t i = 0; architecture_name(i); i++)
        buffer_printf(&known, "%s%s", i ? ", " : "", architecture_name(i));
    tare_status status = known.status;
    if (status == TARE_OK && type && type->type == VALUE_STRING)
        status = REFUSE(p, "model_type \"%.80s\" is not supported; supported: %s", type->text,
                        known.data);
    else if (status == TARE_OK)
        status = REFUSE(p, "model_type is missing; supported: %s", known.data);
    buffer_free(&known);
    return status;
}

tare_status parse_size(parse *p, const char *key, size_t fallback, size_t limit, size_t *out)
{
    tare_status status = TARE_OK;
    *out = 0;
    TRY(value_get_size(p->ctx, p->root, p->what, key, out));
    if (*out == 0 && fallback && !value_get(p->root, key))
        *out = fallback;
    const value *v = value_get(p->root, key);
    if (*out == 0 && fallback && v && v->type == VALUE_NULL)
        *out = fallback;
    if (*out == 0 || *out > limit)
        status = REFUSE(p, "%s %s; a whole number from 1 to %zu is needed", key,
                        v ? "is out of range" : "is missing", limit);
done:
    return status == TARE_OK ? status : TARE_E_MODEL;
}

static tare_status parse_geometry(parse *p)
{
    tare_status status = TARE_OK;
    model_config *c = p->out;
    TRY(parse_size(p, "hidden_size", 0, MAX_DIM, &c->hidden_size));
    TRY(parse_size(p, "intermediate_size", 0, MAX_DIM, &c->intermediate_size));
    TRY(parse_size(p, "vocab_size", 0, MAX_DIM, &c->vocab_size));
    TRY(parse_size(p, "num_hidden_layers", 0, MAX_LAYERS, &c->num_layers));
    if (c->arch->mtp)
        TRY(value_get_size(p->ctx, p->root, p->what, "num_nextn_predict_layers", &c->num_mtp));
    if (c->num_mtp > MAX_LAYERS)
        return REFUSE(p, "num_nextn_predict_layers %zu is out of range", c->num_mtp);
    TRY(parse_size(p, "num_attention_heads", 0, MAX_LAYERS, &c->num_heads));
    if (c->arch->latent_attention)
        return parse_latent_sizes(p);
    const value *heads = value_get(p->root, "num_key_value_heads");
    size_t kv = c->arch->default_kv_heads && !(heads && heads->type == VALUE_NULL)
                    ? c->arch->default_kv_heads
                    : c->num_heads;
    TRY(parse_size(p, "num_key_value_heads", kv, MAX_LAYERS, &c->num_kv_heads));
    size_t positions = c->arch->default_positions ? c->arch->default_positions : 2048;
    TRY(parse_size(p, "max_position_embeddings", positions, MAX_POSITION,
                   &c->max_position_embeddings));
    size_t head_dim = c->arch->default_head_dim ? c->arch->default_head_dim
                                                : c->hidden_size / c->num_heads;
    const value *given = value_get(p->root, "head_dim");
    if (!head_dim || (given && given->type == VALUE_NULL))
        head_dim = c->hidden_size / c->num_heads ? c->hidden_size / c->num_heads : 1;
    TRY(parse_size(p, "head_dim", head_dim, 65536, &c->head_dim));
    c->value_dim = c->head_dim;
    if (c->num_heads % c->num_kv_heads != 0)
        return REFUSE(p, "num_attention_heads %zu is not a multiple of num_key_value_heads %zu",
                      c->num_heads, c->num_kv_heads);
    if (c->head_dim % 2 != 0)
        return REFUSE(p, "head_dim %zu is odd; rotary embedding needs an even one", c->head_dim);
    if (c->num_heads * c->head_dim > MAX_DIM)
        return REFUSE(p, "num_attention_heads %zu times head_dim %zu is out of range", c->num_heads,
                      c->head_dim);
done:
    return status;
}

/* A positive double of a rope map; fallback 0: it is required. */
static tare_status rope_number(parse *p, const value *map, const char *key, double fallback,
                               double *out)
{
    *out = fallback;
    tare_status status = value_get_double(p->ctx, map, p->what, key, out);
    if (status != TARE_OK)
        return TARE_E_MODEL;
    if (!(*out > 0) || *out > 1e30)
        return REFUSE(p, "%s of the rope settings is missing or not a positive number", key);
    return TARE_OK;
}

static tare_status parse_llama3(parse *p, const value *map, rope_config *r)
{
    tare_status status = TARE_OK;
    TRY(rope_number(p, map, "low_freq_factor", 0, &r->low_freq_factor));
    TRY(rope_number(p, map, "high_freq_factor", 0, &r->high_freq_factor));
    TRY(rope_number(p, map, "original_max_position_embeddings", 0, &r->original_max_position));
    if (r->high_freq_factor <= r->low_freq_factor)
        return REFUSE(p, "high_freq_factor of the rope settings must exceed low_freq_factor");
done:
    return status;
}

/* 0 stands for "not given", as in transformers. */
static tare_status yarn_number(parse *p, const value *map, const char *key, double fallback,
                               double *out)
{
    const value *v = value_get(map, key);
    if (v && v->type == VALUE_NUMBER && v->number == 0) {
        *out = fallback;
        return TARE_OK;
    }
    return rope_number(p, map, key, fallback, out);
}

static tare_status parse_yarn(parse *p, const value *map, rope_config *r)
{
    tare_status status = TARE_OK;
    double mscale = 0, given = NAN;
    bool truncate = true;
    TRY(yarn_number(p, map, "beta_fast", 32, &r->beta_fast));
    TRY(yarn_number(p, map, "beta_slow", 1, &r->beta_slow));
    TRY(yarn_number(p, map, "original_max_position_embeddings", r->max_position,
                    &r->original_max_position));
    TRY(value_get_bool(p->ctx, map, p->what, "truncate", &truncate));
    TRY(value_get_double(p->ctx, map, p->what, "mscale", &mscale));
    TRY(value_get_double(p->ctx, map, p->what, "mscale_all_dim", &r->mscale_all_dim));
    TRY(value_get_double(p->ctx, map, p->what, "attention_factor", &given));
    if (r->theta <= 1)
        return REFUSE(p, "rope_theta %g is too small for yarn, which needs one above 1", r->theta);
    r->keep_fractions = !truncate;
    if (!isnan(given))
        r->attention_factor = given;
    else if (mscale != 0 && r->mscale_all_dim != 0)
        r->attention_factor = rope_yarn_mscale(r->factor, mscale) /
                              rope_yarn_mscale(r->factor, r->mscale_all_dim);
    else
        r->attention_factor = rope_yarn_mscale(r->factor, 1);
    if (!(fabs(r->attention_factor) < 1e30))
        return REFUSE(p, "the attention factor of the rope settings is not a finite number");
done:
    return status == TARE_OK ? status : TARE_E_MODEL;
}

/* What divides each frequency: a list of config.json, of which none may be 0. */
static tare_status parse_factors(parse *p, const value *map, const char *key, const double **out)
{
    const value *list = value_get(map, key);
    size_t count = p->out->rotary_dim / 2;
    if (!list || list->type != VALUE_LIST || list->count != count)
        return REFUSE(p, "%s of the rope settings must be a list of %zu numbers", key, count);
    double *factors = arena_alloc_array(p->arena, count, sizeof *factors);
    if (!factors)
        return TARE_E_MEMORY;
    for (size_t i = 0; i < count; i++) {
        const value *v = &list->items[i];
        if (v->type != VALUE_NUMBER || !(v->number > 1e-30 && v->number < 1e30))
            return REFUSE(p, "%s of the rope settings: item %zu is not a positive number", key, i);
        factors[i] = v->number;
    }
    *out = factors;
    return TARE_OK;
}

/* Microsoft's Phi has the original length beside the rope settings, transformers 5 inside. */
static tare_status parse_longrope(parse *p, const value *map, rope_config *r)
{
    tare_status status = TARE_OK;
    static const char original[] = "original_max_position_embeddings";
    size_t usual = p->out->arch->default_original_positions;
    double fallback = usual ? (double)usual : r->max_position, given = NAN;
    TRY(parse_factors(p, map, "short_factor", &r->short_factors));
    TRY(parse_factors(p, map, "long_factor", &r->long_factors));
    TRY(rope_number(p, value_get(p->root, original) ? p->root : map, original, fallback,
                    &r->original_max_position));
    TRY(value_get_double(p->ctx, map, p->what, "factor", &r->factor));
    if (r->original_max_position != r->max_position)
        r->factor = r->max_position / r->original_max_position;
    TRY(value_get_double(p->ctx, map, p->what, "attention_factor", &given));
    if (!isnan(given))
        r->attention_factor = given;
    else if (r->factor > 1)
        r->attention_factor = sqrt(1 + log(r->factor) / log(r->original_max_position));
    if (!(r->attention_factor > 0 && r->attention_factor < 1e30))
        return REFUSE(p, "the attention factor of the rope settings is not a positive number");
done:
    return status == TARE_OK || status == TARE_E_MEMORY ? status : TARE_E_MODEL;
}

static bool same_scalar(const value *a, const value *b)
{
    if (!a || !b || a->type != b->type)
        return false;
    if (a->type == VALUE_LIST) {
        bool same = a->count == b->count;
        for (size_t i = 0; same && i < a->count; i++)
            same = same_scalar(&a->items[i], &b->items[i]);
        return same;
    }
    if (a->type == VALUE_NUMBER)
        return a->number == b->number;
    return a->type == VALUE_BOOL ? a->boolean == b->boolean
                                 : a->type == VALUE_NULL || strcmp(a->text, b->text) == 0;
}

/* What else config.json says of rope, which versions of transformers before 5 read instead of
 * rope_parameters. */
static tare_status compare_rope_maps(parse *p, const value *modern)
{
    const value *old = value_get(p->root, "rope_scaling"),
                *theta = value_get(p->root, "rope_theta");
    const char *key = NULL;
    for (size_t i = 0; old && old->type == VALUE_MAP && i < old->count && !key; i++) {
        const value *v = value_get(modern, old->keys[i].text);
        bool renamed = strcmp(old->keys[i].text, "type") == 0 && !v;
        if (!same_scalar(&old->items[i], renamed ? value_get(modern, "rope_type") : v))
            key = old->keys[i].text;
    }
    if (theta && value_get(modern, "rope_theta") &&
        !same_scalar(theta, value_get(modern, "rope_theta")))
        key = "rope_theta";
    if (key)
        return REFUSE(p,
                      "rope_parameters says otherwise of %.40s than the older rope_scaling or "
                      "rope_theta beside it; remove the one that is wrong",
                      key);
    return TARE_OK;
}

/* rope_parameters (transformers 5, theta inside) or rope_scaling; NULL: neither says anything. */
static tare_status find_rope_map(parse *p, const value **out, bool *modern)
{
    const value *map = value_get(p->root, "rope_parameters");
    *modern = map && map->type == VALUE_MAP;
    if (!*modern)
        map = value_get(p->root, "rope_scaling");
    *out = map && map->type == VALUE_NULL ? NULL : map;
    if (*out && map->type != VALUE_MAP)
        return REFUSE(p, "rope_scaling is neither null nor a map");
    for (size_t i = 0; *out && i < map->count; i++) {
        if (map->items[i].type == VALUE_MAP)
            return REFUSE(p, "rope settings by kind of layer (%.40s) are not supported",
                          map->keys[i].text);
    }
    return *modern ? compare_rope_maps(p, map) : TARE_OK;
}

/* rope_type, or type as it was once called. transformers takes one or the other by the family, so
 * they must not disagree. */
static tare_status parse_rope_type(parse *p, const value *map, rope_type *out)
{
    const char *name = NULL, *old = NULL;
    if (value_get_string(p->ctx, map, p->what, "rope_type", &name) != TARE_OK ||
        value_get_string(p->ctx, map, p->what, "type", &old) != TARE_OK)
        return TARE_E_MODEL;
    if (name && old && strcmp(name, old) != 0)
        return REFUSE(p,
                      "the rope settings have rope_type \"%.40s\" and type \"%.40s\"; remove the "
                      "one that is wrong",
                      name, old);
    name = name ? name : old ? old : "default";
    if (!rope_type_find(name, out))
        return REFUSE(p, "rope type \"%.80s\" is not supported; supported: %s", name,
                      ROPE_TYPE_NAMES);
    return TARE_OK;
}

/* How much of a head turns: partial_rotary_factor of config.json or of its rope settings, which
 * come first in transformers 5. */
static tare_status parse_rotary_dim(parse *p, const value *map)
{
    model_config *c = p->out;
    double factor = c->arch->default_rotary_factor ? c->arch->default_rotary_factor : 1;
    if (c->rope_dim) {
        c->rotary_dim = c->rope_dim;
        return TARE_OK;
    }
    if (value_get_double(p->ctx, p->root, p->what, "partial_rotary_factor", &factor) != TARE_OK ||
        value_get_double(p->ctx, map, p->what, "partial_rotary_factor", &factor) != TARE_OK)
        return TARE_E_MODEL;
    if (c->arch->default_rotary_factor == 0 && factor != 1)
        return REFUSE(p, "partial_rotary_factor %g is not supported; supported: 1", factor);
    if (!(factor > 0 && factor <= 1))
        return REFUSE(p, "partial_rotary_factor %g is not a number above 0 and up to 1", factor);
    c->rotary_dim = (size_t)((double)c->head_dim * factor);
    if (c->rotary_dim == 0 || c->rotary_dim % 2 != 0)
        return REFUSE(p,
                      "partial_rotary_factor %g turns %zu of a head's %zu columns; rotary "
                      "embedding needs an even number of them",
                      factor, c->rotary_dim, c->head_dim);
    return TARE_OK;
}

static tare_status parse_local_rope(parse *p)
{
    rope_config *r = &p->out->local_rope;
    double theta = p->out->arch->default_local_theta;
    if (theta == 0)
        return TARE_OK;
    p->out->has_local_rope = true;
    *r = (rope_config){.type = ROPE_DEFAULT, .attention_factor = 1};
    return rope_number(p, p->root, "rope_local_base_freq", theta, &r->theta);
}

static tare_status parse_rope(parse *p)
{
    tare_status status = TARE_OK;
    rope_config *r = &p->out->rope;
    const value *map;
    bool modern;
    TRY(find_rope_map(p, &map, &modern));
    TRY(parse_rotary_dim(p, map));
    TRY(parse_rope_type(p, map, &r->type));
    double theta = p->out->arch->default_theta ? p->out->arch->default_theta : 10000;
    TRY(rope_number(p, modern && value_get(map, "rope_theta") ? map : p->root, "rope_theta", theta,
                    &r->theta));
    r->attention_factor = 1;
    r->max_position = (double)p->out->max_position_embeddings;
    TRY(parse_local_rope(p));
    if (r->type == ROPE_LONGROPE)
        TRY(parse_longrope(p, map, r));
    else if (r->type != ROPE_DEFAULT)
        TRY(rope_number(p, map, "factor", 0, &r->factor));
    if (r->type == ROPE_LLAMA3)
        TRY(parse_llama3(p, map, r));
    if (r->type == ROPE_YARN)
        TRY(parse_yarn(p, map, r));
done:
    return status;
}

bool torch_dtype_find(const char *name, tare_dtype *out)
{
    static const struct {
        const char *name;
        tare_dtype dtype;
    } names[] = {{"bfloat16", TARE_BF16},
                 {"float16", TARE_F16},
                 {"half", TARE_F16},
                 {"float32", TARE_F32},
                 {"float", TARE_F32}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strcmp(name, names[i].name) == 0) {
            *out = names[i].dtype;
            return true;
        }
    }
    return false;
}

/* `dtype` counts where both are given, as in transformers. */
static tare_status parse_dtype(parse *p)
{
    static const char *const keys[] = {"torch_dtype", "dtype"};
    tare_dtype found[2];
    bool given[2];
    for (int i = 0; i < 2; i++) {
        const value *v = value_get(p->root, keys[i]);
        given[i] = v && v->type != VALUE_NULL;
        if (given[i] && (v->type != VALUE_STRING || !torch_dtype_find(v->text, &found[i])))
            return REFUSE(p, "%s \"%.40s\" is not supported; supported: bfloat16, float16, float32",
                          keys[i], v->type == VALUE_STRING ? v->text : "(no string)");
        if (given[i])
            p->out->dtype = found[i];
    }
    p->out->has_dtype = given[0] || given[1];
    p->out->has_two_dtypes = given[0] && given[1] && found[0] != found[1];
    return TARE_OK;
}

/* layer_types of config.json, if it is set; NULL: it is not. */
static tare_status find_layer_types(parse *p, const value **out)
{
    const value *types = value_get(p->root, "layer_types");
    *out = types && types->type == VALUE_NULL ? NULL : types;
    if (!*out)
        return TARE_OK;
    if (types->type != VALUE_LIST || types->count != p->out->num_layers)
        return REFUSE(p, "layer_types must be a list of %zu strings", p->out->num_layers);
    for (size_t i = 0; i < types->count; i++) {
        const value *v = &types->items[i];
        if (v->type != VALUE_STRING ||
            (strcmp(v->text, "sliding_attention") != 0 && strcmp(v->text, "full_attention") != 0))
            return REFUSE(p,
                          "layer_types says \"%.40s\" of layer %zu; supported: full_attention, "
                          "sliding_attention",
                          v->type == VALUE_STRING ? v->text : "(no string)", i);
    }
    return TARE_OK;
}

/* Which layers attend within a sliding window (spec/models.md 1.3). */
static tare_status parse_windows(parse *p)
{
    tare_status status = TARE_OK;
    model_config *c = p->out;
    window_rule rule = c->arch->window;
    bool use = rule != WINDOW_BY_LAYER && rule != WINDOW_IF_USED;
    size_t window = c->arch->default_window, first = 28, turn = 2;
    const value *types = NULL, *given = value_get(p->root, "sliding_window");
    TRY(value_get_size(p->ctx, p->root, p->what, "sliding_window", &window));
    if (rule == WINDOW_BY_LAYER || rule == WINDOW_IF_USED)
        TRY(value_get_bool(p->ctx, p->root, p->what, "use_sliding_window", &use));
    if (rule == WINDOW_BY_LAYER)
        TRY(value_get_size(p->ctx, p->root, p->what, "max_window_layers", &first));
    if (rule == WINDOW_PATTERN)
        TRY(parse_size(p, "sliding_window_pattern", 6, MAX_LAYERS, &turn));
    if (rule == WINDOW_BY_LAYER || rule == WINDOW_IN_TURN || rule == WINDOW_PATTERN)
        TRY(find_layer_types(p, &types));
    if (rule == WINDOW_NEVER || !use || window == 0 || (given && given->type == VALUE_NULL))
        return TARE_OK;
    size_t *windows = arena_calloc(p->arena, c->num_layers, sizeof *windows);
    if (!windows)
        return TARE_E_MEMORY;
    for (size_t i = 0; i < c->num_layers; i++) {
        bool sliding = rule == WINDOW_BY_LAYER                            ? i >= first
                       : rule == WINDOW_IN_TURN || rule == WINDOW_PATTERN ? (i + 1) % turn != 0
                                                                          : true;
        if (types)
            sliding = strcmp(types->items[i].text, "sliding_attention") == 0;
        windows[i] = sliding ? window : 0;
    }
    c->windows = windows;
done:
    return status == TARE_OK || status == TARE_E_MEMORY ? status : TARE_E_MODEL;
}

/* A positive number that only some families have; null: none, which leaves *out at 0. */
static tare_status parse_own_number(parse *p, const char *key, double fallback, double *out)
{
    const value *v = value_get(p->root, key);
    *out = (v && v->type == VALUE_NULL) || isinf(fallback) ? 0 : fallback;
    if (fallback == 0)
        return TARE_OK;
    if (value_get_double(p->ctx, p->root, p->what, key, out) != TARE_OK)
        return TARE_E_MODEL;
    if (*out == 0 && (!v || v->type == VALUE_NULL))
        return TARE_OK;
    if (!(*out > 1e-30 && *out < 1e30))
        return REFUSE(p, "%s %g is not a positive number", key, *out);
    return TARE_OK;
}

static tare_status parse_scores(parse *p)
{
    tare_status status = TARE_OK;
    model_config *c = p->out;
    const architecture *arch = c->arch;
    double scalar, attention, final;
    TRY(parse_own_number(p, "query_pre_attn_scalar", arch->default_query_scalar, &scalar));
    TRY(parse_own_number(p, "attn_logit_softcapping", arch->default_attention_softcap, &attention));
    TRY(parse_own_number(p, "final_logit_softcapping", arch->default_final_softcap, &final));
    c->attention_scale = scalar != 0 ? (float)(1 / sqrt(scalar)) : 0;
    if (arch->latent_attention) { /* yarn sharpens the scores: the square is in their scale */
        double m = c->rope.type == ROPE_YARN
                       ? rope_yarn_mscale(c->rope.factor, c->rope.mscale_all_dim)
                       : 1;
        c->attention_scale = (float)(m * m / sqrt((double)c->head_dim));
    }
    c->attention_softcap = (float)attention;
    c->final_softcap = (float) final;
done:
    return status;
}

static tare_status parse_rest(parse *p)
{
    tare_status status = TARE_OK;
    model_config *c = p->out;
    const char *key = c->arch->activation_key ? c->arch->activation_key : "hidden_act";
    const char *known = c->arch->activation ? c->arch->activation : "silu", *activation = known;
    double eps = c->arch->default_eps ? c->arch->default_eps : 1e-6;
    TRY(value_get_string(p->ctx, p->root, p->what, key, &activation));
    if (strcmp(activation, known) != 0)
        return REFUSE(p, "%s \"%.40s\" is not supported; supported: %s", key, activation, known);
    bool both_ways = false;
    TRY(value_get_bool(p->ctx, p->root, p->what, "use_bidirectional_attention", &both_ways));
    if (both_ways)
        return REFUSE(p, "use_bidirectional_attention is not supported: tokens see earlier ones");
    TRY(value_get_double(p->ctx, p->root, p->what, "rms_norm_eps", &eps));
    if (!(eps >= 0 && eps < 1))
        return REFUSE(p, "rms_norm_eps %g is out of range", eps);
    c->rms_norm_eps = (float)eps;
    c->attention_bias = c->arch->default_attention_bias;
    TRY(value_get_bool(p->ctx, p->root, p->what, "attention_bias", &c->attention_bias));
    TRY(value_get_bool(p->ctx, p->root, p->what, "mlp_bias", &c->mlp_bias));
    c->tie_word_embeddings = c->arch->default_tied;
    TRY(value_get_bool(p->ctx, p->root, p->what, "tie_word_embeddings", &c->tie_word_embeddings));
done:
    return status == TARE_OK ? status : TARE_E_MODEL;
}

tare_status model_config_parse(tare_context *ctx, arena *a, const char *json, size_t length,
                               const char *what, model_config *out)
{
    tare_status status = TARE_OK;
    parse p = {.ctx = ctx, .arena = a, .what = what, .out = out};
    *out = (model_config){0};
    TRY(json_parse(ctx, a, json, length, what, JSON_PYTHON, &p.root));
    if (p.root->type != VALUE_MAP)
        return REFUSE(&p, "is not a JSON object");
    TRY(parse_arch(&p));
    TRY(parse_geometry(&p));
    TRY(parse_rope(&p));
    TRY(parse_dtype(&p));
    TRY(parse_windows(&p));
    TRY(parse_experts(&p));
    TRY(parse_scores(&p));
    TRY(parse_rest(&p));
done:
    return status;
}

void model_config_names(const architecture *arch, const config_flags *flags, block_graph *out)
{
    model_config c = {.arch = arch,
                      .hidden_size = 1,
                      .intermediate_size = 1,
                      .num_heads = 1,
                      .num_kv_heads = 1,
                      .head_dim = arch->latent_attention ? 2 : 1,
                      .value_dim = 1,
                      .query_rank = !flags->one_query,
                      .kv_rank = 1,
                      .rope_dim = 1,
                      .attention_bias = flags->attention_bias,
                      .mlp_bias = flags->mlp_bias};
    arch->block(&c, false, out);
}

void model_config_graphs(const model_config *c, block_graph graphs[BLOCK_KINDS])
{
    memset(graphs, 0, BLOCK_KINDS * sizeof *graphs);
    for (size_t i = 0; i < c->num_layers + c->num_mtp; i++) {
        bool sparse = model_config_sparse(c, i);
        block_graph *g = &graphs[sparse ? BLOCK_EXPERTS : BLOCK_PLAIN];
        if (g->num_nodes == 0)
            c->arch->block(c, sparse, g);
    }
}

bool model_config_sparse(const model_config *config, size_t layer)
{
    return config->sparse && config->sparse[layer];
}

void model_config_kv_columns(const model_config *c, size_t out[2])
{
    out[0] = c->num_kv_heads * c->head_dim;
    out[1] = c->num_kv_heads * c->value_dim;
}

size_t model_config_window(const model_config *config, size_t layer)
{
    return config->windows ? config->windows[layer] : 0;
}

size_t model_config_max_tokens(const model_config *config)
{
    const rope_config *r = &config->rope;
    double tokens = (double)config->max_position_embeddings;
    if (r->type == ROPE_LINEAR || r->type == ROPE_DYNAMIC)
        tokens *= r->factor;
    else if (r->type == ROPE_YARN)
        tokens = fmax(tokens, r->original_max_position * r->factor);
    return tokens < (double)MAX_POSITION ? (size_t)tokens : MAX_POSITION;
}
