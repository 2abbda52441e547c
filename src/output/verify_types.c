/* Rules on keys, types and shapes: 4 keys, 5 types, 6 tensors of a linear, 7 dtype of deq_scale, 13
 * fused groups, 16 and 17 norms, 29 prefixes. */
#include <stdio.h>
#include <string.h>

#include "model/config.h"
#include "output/verify_internal.h"

enum { PREFIX_MAX = 256 };

/* ---- rules 4 and 5 ---- */

tare_status rule_keys(verify *v, reader_layout *f)
{
    const value *d = f->description;
    if (!d || f->plan) /* which has one list for both */
        return TARE_OK;
    for (size_t i = 0; i < f->num_tensors; i++) {
        const char *name = f->tensors[i].info.name;
        if (!strmap_get(&f->types, name, strlen(name), &(uint32_t){0}))
            verify_fail(v, 4, name, "a key in the description", "none");
    }
    for (size_t i = 0; i < d->count; i++) {
        const char *key = d->keys[i].text;
        if (!verify_is_global_key(key) && !reader_find(f, key))
            verify_fail(v, 4, key, "a stored tensor", "only a key of the description");
    }
    return TARE_OK;
}

/* In compat mode it is the run's scheme, whatever the linears have. */
static void check_type_of_scheme(verify *v, reader_layout *f)
{
    bool in_use = false, compat = f->num.compat;
    unsigned schemes = 0;
    linear_scheme scheme;
    for (size_t i = 0; i < f->num_linears; i++) {
        const reader_tensor *w = f->linears[i].parts[TENSOR_WEIGHT];
        in_use |= w && w->type && strcmp(w->type, f->quant_type) == 0;
        if (w && w->type && scheme_of_type(w->type, &scheme))
            schemes |= 1u << scheme;
    }
    bool several = (schemes & (schemes - 1)) != 0;
    bool nothing = f->num_linears == 0 && (compat || strcmp(f->quant_type, "FLOAT") == 0);
    if (!in_use && !nothing)
        (compat && several ? verify_warn : verify_fail)(v, 5, "model_quant_type",
                                                        "the scheme in use",
                                                        "%s, which no linear has", f->quant_type);
}

/* A global key and the tensors that it announces come together. */
static void check_announced(verify *v, reader_layout *f, const char *key, const char *type)
{
    bool announced = value_get(f->description, key) != NULL, stored = false;
    for (size_t i = 0; i < f->num_tensors && !stored; i++)
        stored = f->tensors[i].type && strcmp(f->tensors[i].type, type) == 0;
    if (announced && !stored) /* the reference says so even if every attention fell back */
        (f->num.compat ? verify_warn : verify_fail)(v, 5, key, "tensors of this kind",
                                                    "none of type %s", type);
    if (stored && !announced)
        verify_fail(v, 5, key, "this key in the description", "tensors of type %s without it",
                    type);
}

static void check_linear_types(verify *v, const reader_linear *l)
{
    const reader_tensor *w = l->parts[TENSOR_WEIGHT];
    for (int role = 0; role < TENSOR_COUNT && w && w->type; role++) {
        const reader_tensor *t = l->parts[role];
        const char *expected = role == TENSOR_BIAS ? "FLOAT" : w->type;
        if (t && t->type && strcmp(t->type, expected) != 0)
            verify_fail(v, 5, t->info.name, expected, "%s", t->type);
    }
}

tare_status rule_types(verify *v, reader_layout *f)
{
    if (!f->description)
        return TARE_OK;
    for (size_t i = 0; i < f->num_tensors; i++) {
        const reader_tensor *t = &f->tensors[i];
        if (t->type && !reader_is_known_type(t->type))
            verify_fail(v, 5, t->info.name, "a known type", "%s", t->type);
    }
    for (size_t i = 0; i < f->num_linears; i++)
        check_linear_types(v, &f->linears[i]);
    check_type_of_scheme(v, f);
    check_announced(v, f, "kv_cache_type", "C8");
    check_announced(v, f, "kv_quant_type", "C8");
    check_announced(v, f, "fa_quant_type", "FAQuant");
    return TARE_OK;
}

/* ---- rules 6 and 7 ---- */

/* The rule that judges a linear's tensors. */
static int rule_of_tensors(const reader_layout *f)
{
    return f->layout == LAYOUT_COMPRESSED_TENSORS ? 23 : 6;
}

static void check_part(verify *v, reader_layout *f, const reader_linear *l, tensor_role role)
{
    const reader_tensor *t = l->parts[role];
    tensor_info expected;
    char want[96], have[96], name[512];
    if (!reader_expects(f, l, role, &expected)) {
        if (t)
            verify_fail(v, rule_of_tensors(f), t->info.name, "only the tensors of its type",
                        "an extra one");
        return;
    }
    tensor_shape_text(&expected, want, sizeof want);
    if (!t) {
        snprintf(name, sizeof name, "%s%s", l->module, role_suffix(role));
        verify_fail(v, rule_of_tensors(f), name, want, "no such tensor");
    } else if (t->info.dtype != expected.dtype || !tensor_same_shape(&t->info, &expected)) {
        tensor_shape_text(&t->info, have, sizeof have);
        verify_fail(v, rule_of_tensors(f), t->info.name, want, "%s", have);
    }
}

static tare_status check_linear(verify *v, reader_layout *f, const reader_linear *l)
{
    const reader_tensor *w = reader_weight(l);
    const char *type = w ? w->type : NULL;
    linear_scheme scheme;
    int64_t shape[2];
    tare_status status = TARE_OK;
    if (l->complete)
        return TARE_OK;
    if (type && strcmp(type, "FLOAT") == 0) {
        verify_fail(v, 6, l->module, "a FLOAT weight alone", "tensors of a quantized linear");
    } else if (type && reader_is_known_type(type) &&
               (l->staged || !scheme_of_type(type, &scheme))) {
        verify_warn(v, 6, l->module,
                    "W8A8, W8A8_DYNAMIC, W8A8_MIX, W8A16, or W4A8_DYNAMIC with a scale a row",
                    "%s, whose tensors this version does not check",
                    l->staged ? "W4A8_DYNAMIC with groups" : type);
    } else if (l->form.n == 0) {
        verify_fail(v, rule_of_tensors(f), l->module, "a weight [N,K]", "%s",
                    w ? "another shape" : "none");
    } else if (l->form.k == 0) {
        TRY(reader_packed_shape(f, l, shape));
        verify_fail(v, 23, l->parts[TENSOR_WEIGHT_SHAPE]->info.name,
                    "the shape of the packed weight", "[%lld,%lld]", (long long)shape[0],
                    (long long)shape[1]);
    } else {
        if (form_is_int4(&l->form) && !int4_shape_fits(l->form.n, l->form.k, l->form.slices))
            verify_fail(v, 6, l->module, "4-bit weights of a shape that engines can view",
                        "[%zu,%zu]", l->form.n, l->form.k);
        for (int role = 0; role < TENSOR_COUNT; role++)
            check_part(v, f, l, (tensor_role)role);
    }
done:
    return status;
}

/* Is it one of the further tensors of a linear with groups? */
static bool is_of_staged(const reader_layout *f, const char *name)
{
    const char *dot = strrchr(name, '.');
    const reader_linear *l = dot ? reader_find_linear(f, name, (size_t)(dot - name)) : NULL;
    return l && l->staged;
}

tare_status rule_linear_tensors(verify *v, reader_layout *f)
{
    size_t length;
    linear_scheme scheme;
    tare_status status = TARE_OK;
    for (size_t i = 0; i < f->num_linears; i++)
        TRY(check_linear(v, f, &f->linears[i]));
    for (size_t i = 0; i < f->num_tensors; i++) {
        const reader_tensor *t = &f->tensors[i];
        if (t->type && scheme_of_type(t->type, &scheme) && !strstr(t->info.name, ".module.") &&
            role_of_name(t->info.name, &length) == TENSOR_FLOAT && !is_of_staged(f, t->info.name))
            verify_fail(v, 6, t->info.name, "a tensor that quantized linears have", "an extra one");
    }
done:
    return status;
}

tare_status rule_deq_dtype(verify *v, reader_layout *f)
{
    tare_dtype expected = deq_scale_dtype(f->num.dtype);
    if (!f->dtype_known)
        verify_fail(v, 7, "config.json", "torch_dtype, which decides the dtype of deq_scale",
                    "no dtype that is known");
    for (size_t i = 0; i < f->num_linears; i++) {
        const reader_tensor *t = f->linears[i].parts[TENSOR_DEQ_SCALE];
        if (t && t->info.dtype != expected)
            verify_fail(v, 7, t->info.name, dtype_name(expected), "%s", dtype_name(t->info.dtype));
    }
    return TARE_OK;
}

/* ---- rule 13 ---- */

/* Values of the [1] tensor of two linears; true if they differ. */
static tare_status compare_scalar(reader_layout *f, const reader_linear *a, const reader_linear *b,
                                  tensor_role role, bool *differ, float values[2])
{
    tare_status status = TARE_OK;
    TRY(reader_elements(f, a->parts[role], 0, 1, &values[0]));
    TRY(reader_elements(f, b->parts[role], 0, 1, &values[1]));
    *differ = values[0] != values[1];
done:
    return status;
}

typedef void (*report_function)(verify *, int, const char *, const char *, const char *, ...);

static const reader_linear *linear_of_weight(const reader_layout *f, const reader_tensor *weight)
{
    size_t length;
    role_of_name(weight->info.name, &length);
    return reader_find_linear(f, weight->info.name, length);
}

static tare_status check_fused_pair(verify *v, reader_layout *f, const reader_tensor *first,
                                    const reader_tensor *other)
{
    static const tensor_role SHARED[] = {TENSOR_INPUT_SCALE, TENSOR_INPUT_OFFSET,
                                         TENSOR_INPUT_ZERO_POINT};
    report_function say = f->num.compat ? verify_warn : verify_fail;
    const reader_linear *a = linear_of_weight(f, first), *b = linear_of_weight(f, other);
    tare_status status = TARE_OK;

    if (first->type && other->type && strcmp(first->type, other->type) != 0) {
        say(v, 13, other->info.name, first->type, "%s, unlike %s", other->type, first->info.name);
        return TARE_OK;
    }
    for (int i = 0; i < 3 && !f->plan && a && b && a->complete && b->complete; i++) {
        bool differ;
        if (!a->parts[SHARED[i]] || !b->parts[SHARED[i]]) /* no static activations */
            continue;
        float values[2];
        TRY(compare_scalar(f, a, b, SHARED[i], &differ, values));
        if (differ)
            say(v, 13, b->parts[SHARED[i]]->info.name, "the value of the whole fused group",
                "%.9g, but %s has %.9g", (double)values[1], a->parts[SHARED[i]]->info.name,
                (double)values[0]);
    }
done:
    return status;
}

tare_status rule_fused(verify *v, reader_layout *f)
{
    strmap groups;
    buffer key;
    tare_status status = TARE_OK;
    size_t length;

    strmap_init(&groups, f->ctx);
    buffer_init(&key, f->ctx);
    for (size_t i = 0; i < f->num_tensors; i++) {
        const reader_tensor *t = &f->tensors[i];
        uint32_t first;
        tensor_role role = role_of_name(t->info.name, &length);
        if (role != TENSOR_WEIGHT && role != TENSOR_WEIGHT_PACKED)
            continue;
        char *module = arena_strndup(&f->arena, t->info.name, length);
        TRY(module ? TARE_OK : TARE_E_MEMORY);
        bool fused = fused_group_of(&f->graph, module, &key);
        TRY(key.status);
        if (!fused)
            continue;
        if (strmap_get(&groups, key.data, key.length, &first)) {
            TRY(check_fused_pair(v, f, &f->tensors[first], t));
            continue;
        }
        char *kept = arena_strndup(&f->arena, key.data, key.length);
        TRY(kept ? TARE_OK : TARE_E_MEMORY);
        TRY(strmap_put(&groups, kept, key.length, (uint32_t)i, NULL));
    }
done:
    strmap_free(&groups);
    buffer_free(&key);
    return status;
}

/* ---- rules 16 and 17 ---- */

tare_status rule_norms_ascend(verify *v, reader_layout *f)
{
    const char *type = value_text(value_get(f->config, "model_type"));
    bool gemma = type && str_starts_with(type, "gemma");
    for (size_t i = 0; i < f->num_tensors; i++) {
        const tensor_info *t = &f->tensors[i].info;
        char weight[1024];
        if (strstr(t->name, ".module."))
            verify_fail(v, 16, t->name, "no .module. tensors: engines raise KeyError", "one");
        if (!str_ends_with(t->name, "norm.bias"))
            continue;
        if (gemma)
            verify_fail(v, 16, t->name, "no norm bias: Gemma norms have none", "one");
        snprintf(weight, sizeof weight, "%.*s.weight", (int)(strlen(t->name) - 5), t->name);
        const reader_tensor *w = reader_find(f, weight);
        if (!w)
            verify_fail(v, 16, weight, "the norm's weight beside its bias", "no such tensor");
        else if (!tensor_same_shape(&w->info, t))
            verify_fail(v, 16, t->name, "the shape of the norm's weight", "another");
    }
    return TARE_OK;
}

tare_status rule_norms_module(verify *v, reader_layout *f)
{
    static const char *const PARTS[] = {"weight", "bias"};
    tare_status status = TARE_OK;
    for (size_t i = 0; i < f->num_tensors; i++) {
        const char *name = f->tensors[i].info.name, *module = strstr(name, ".module.");
        for (int part = 0; part < 2 && module; part++) {
            char copy[1024], plain[1024];
            bool same;
            snprintf(copy, sizeof copy, "%.*s.module.%s", (int)(module - name), name, PARTS[part]);
            snprintf(plain, sizeof plain, "%.*s.%s", (int)(module - name), name, PARTS[part]);
            const reader_tensor *a = reader_find(f, copy), *b = reader_find(f, plain);
            if (!a || !b) {
                verify_fail(v, 17, a ? plain : copy, "all four tensors of a wrapped norm",
                            "no such tensor");
                continue;
            }
            if (strcmp(copy, name) != 0)
                continue; /* compared when it is its own turn */
            TRY(reader_same_bytes(f, a, f, b, &same));
            if (!same)
                verify_fail(v, 17, copy, "the bytes of the norm's own tensor", "others");
        }
    }
done:
    return status;
}

/* ---- rule 28 ---- */

static bool config_flag(const reader_layout *f, const char *key, bool fallback)
{
    const value *v = value_get(f->config, key);
    return v && v->type == VALUE_BOOL ? v->boolean : fallback;
}

bool verify_bias_graph(const reader_layout *f, block_graph *graph)
{
    if (!f->arch)
        return false;
    config_flags flags = {
        .attention_bias = config_flag(f, "attention_bias", f->arch->default_attention_bias),
        .mlp_bias = config_flag(f, "mlp_bias", false),
        .one_query = reader_has_one_query(f)};
    model_config_names(f->arch, &flags, graph);
    return true;
}

tare_status rule_new_biases(verify *v, reader_layout *f)
{
    block_graph graph;
    size_t length;
    if (!verify_bias_graph(f, &graph))
        return TARE_OK;
    for (size_t i = 0; i < f->num_tensors; i++) {
        const char *name = f->tensors[i].info.name;
        if (role_of_name(name, &length) != TENSOR_BIAS)
            continue;
        const reader_linear *l = reader_find_linear(f, name, length);
        const scheme_row *scheme = l ? scheme_of(l->form.scheme) : NULL;
        if (scheme && (!scheme->adds_bias || scheme->activations == ACT_FLOAT))
            continue;
        const linear_spec *spec = graph_linear_of(&graph, name, length);
        if (spec && !spec->has_bias)
            verify_fail(v, 28, name, "no bias: this architecture has none here", "one");
    }
    return TARE_OK;
}

/* ---- rule 29 ---- */

const reader_linear *verify_quantized_prefix(const reader_layout *f, const char *module,
                                             size_t length)
{
    size_t parent = length;
    if (reader_find_linear(f, module, length)) /* it is no FLOAT one */
        return NULL;
    while (parent > 0 && module[parent - 1] != '.')
        parent--;
    if (length - parent > PREFIX_MAX) /* no engine's name; and the search is quadratic */
        return NULL;
    for (size_t n = parent + 1; n < length; n++) {
        const reader_linear *l = reader_find_linear(f, module, n);
        if (l)
            return l;
    }
    return NULL;
}

tare_status rule_prefixes(verify *v, reader_layout *f)
{
    size_t length;
    for (size_t i = 0; i < f->num_tensors; i++) {
        const char *name = f->tensors[i].info.name;
        if (role_of_name(name, &length) != TENSOR_WEIGHT)
            continue;
        const reader_linear *l = verify_quantized_prefix(f, name, length);
        if (l)
            (f->num.compat ? verify_warn : verify_fail)(
                v, 29, l->module, "a name that begins no FLOAT sibling's name",
                "%.*s is FLOAT: engines would take both as float", (int)length, name);
    }
    return TARE_OK;
}
