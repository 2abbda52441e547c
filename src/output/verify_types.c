/* Rules on keys, types and shapes: 4 keys, 5 types, 6 tensors of a linear, 7 dtype of deq_scale, 13
 * fused groups, 16 and 17 norms, 29 prefixes. */
#include <stdio.h>
#include <string.h>

#include "model/config.h"
#include "output/verify_internal.h"

enum { COMPARE_PIECE = 1 << 16, PREFIX_MAX = 256 };

/* ---- rules 4 and 5 ---- */

tare_status rule_keys(vfolder *f)
{
    const value *d = f->description;
    if (!d)
        return TARE_OK;
    for (size_t i = 0; i < f->num_tensors; i++) {
        const char *name = f->tensors[i].info.name;
        if (!strmap_get(&f->types, name, strlen(name), &(uint32_t){0}))
            verify_fail(f->v, 4, name, "a key in the description", "none");
    }
    for (size_t i = 0; i < d->count; i++) {
        const char *key = d->keys[i].text;
        if (!verify_is_global_key(key) && !verify_find(f, key))
            verify_fail(f->v, 4, key, "a stored tensor", "only a key of the description");
    }
    return TARE_OK;
}

bool verify_is_known_type(const char *type)
{
    static const char *const KNOWN[] = {"FLOAT", "W8A8",  "W8A8_DYNAMIC", "W8A8_MIX",
                                        "W8A16", "W4A16", "W8A8S",        "W4A8_DYNAMIC",
                                        "NF4",   "C8",    "FAQuant"};
    for (size_t i = 0; i < sizeof KNOWN / sizeof *KNOWN; i++)
        if (strcmp(KNOWN[i], type) == 0)
            return true;
    return false;
}

static void check_type_of_scheme(vfolder *f)
{
    bool in_use = false;
    for (size_t i = 0; i < f->num_linears && !in_use; i++) {
        const vtensor *w = f->linears[i].parts[TENSOR_WEIGHT];
        in_use = w && w->type && strcmp(w->type, f->quant_type) == 0;
    }
    /* The reference tags a model with the scheme even if everything fell back to float. */
    bool nothing = f->num_linears == 0 && (f->num.compat || strcmp(f->quant_type, "FLOAT") == 0);
    if (!in_use && !nothing)
        verify_fail(f->v, 5, "model_quant_type", "the scheme in use", "%s, which no linear has",
                    f->quant_type);
}

/* A global key and the tensors that it announces come together. */
static void check_announced(vfolder *f, const char *key, const char *type)
{
    bool announced = value_get(f->description, key) != NULL, stored = false;
    for (size_t i = 0; i < f->num_tensors && !stored; i++)
        stored = f->tensors[i].type && strcmp(f->tensors[i].type, type) == 0;
    if (announced && !stored) /* the reference says so even if every attention fell back */
        (f->num.compat ? verify_warn : verify_fail)(f->v, 5, key, "tensors of this kind",
                                                    "none of type %s", type);
    if (stored && !announced)
        verify_fail(f->v, 5, key, "this key in the description", "tensors of type %s without it",
                    type);
}

static void check_linear_types(vfolder *f, const vlinear *l)
{
    const vtensor *w = l->parts[TENSOR_WEIGHT];
    for (int role = 0; role < TENSOR_COUNT && w && w->type; role++) {
        const vtensor *t = l->parts[role];
        const char *expected = role == TENSOR_BIAS ? "FLOAT" : w->type;
        if (t && t->type && strcmp(t->type, expected) != 0)
            verify_fail(f->v, 5, t->info.name, expected, "%s", t->type);
    }
}

tare_status rule_types(vfolder *f)
{
    if (!f->description)
        return TARE_OK;
    for (size_t i = 0; i < f->num_tensors; i++) {
        const vtensor *t = &f->tensors[i];
        if (t->type && !verify_is_known_type(t->type))
            verify_fail(f->v, 5, t->info.name, "a known type", "%s", t->type);
    }
    for (size_t i = 0; i < f->num_linears; i++)
        check_linear_types(f, &f->linears[i]);
    check_type_of_scheme(f);
    check_announced(f, "kv_cache_type", "C8");
    check_announced(f, "kv_quant_type", "C8");
    check_announced(f, "fa_quant_type", "FAQuant");
    return TARE_OK;
}

/* ---- rules 6 and 7 ---- */

static bool same_form(const tensor_info *a, const tensor_info *b)
{
    bool same = a->dtype == b->dtype && a->rank == b->rank;
    for (int i = 0; same && i < a->rank; i++)
        same = a->shape[i] == b->shape[i];
    return same;
}

/* The rule that judges a linear's tensors. */
static int rule_of_tensors(const vfolder *f)
{
    return f->layout == LAYOUT_COMPRESSED_TENSORS ? 23 : 6;
}

/* Columns of a packed weight, which only weight_shape knows; 0: it contradicts the weight. */
static tare_status packed_columns(vfolder *f, const vlinear *l, size_t *k)
{
    const vtensor *w = verify_weight(l), *shape = l->parts[TENSOR_WEIGHT_SHAPE];
    int64_t stored[2] = {0, 0};
    tare_status status = TARE_OK;
    *k = w->info.shape[1] * 4;
    if (!shape || shape->info.dtype != TARE_I64 || tensor_elements(&shape->info) != 2)
        return TARE_OK; /* reported with the other tensors */
    if (f->plan)
        return TARE_OK;
    TRY(verify_read(f, shape, 0, stored, sizeof stored));
    bool fits = stored[1] > 0 && (uint64_t)stored[1] <= *k &&
                packed_words((size_t)stored[1]) == w->info.shape[1] && stored[0] > 0 &&
                (uint64_t)stored[0] == w->info.shape[0];
    *k = fits ? (size_t)stored[1] : 0;
    if (!fits)
        verify_fail(f->v, 23, shape->info.name, "the shape of the packed weight", "[%lld,%lld]",
                    (long long)stored[0], (long long)stored[1]);
done:
    return status;
}

/* What the stored tensors say of the linear; false if it has no weight to go by. */
static bool shape_of_linear(vfolder *f, vlinear *l)
{
    const vtensor *w = verify_weight(l), *scale = l->parts[TENSOR_WEIGHT_SCALE];
    const vtensor *act = l->parts[TENSOR_INPUT_SCALE], *bias = l->parts[TENSOR_BIAS];
    if (!w || w->info.rank != 2 || w->info.shape[0] == 0 || w->info.shape[1] == 0)
        return false;
    l->shape.n = w->info.shape[0];
    l->shape.k = w->info.shape[1];
    l->shape.per_tensor = scale && scale->info.rank == 1;
    l->shape.act_dtype = act && act->info.dtype == TARE_F32 ? TARE_F32 : f->num.dtype;
    l->shape.has_bias = bias != NULL;
    l->shape.bias_dtype = bias && dtype_is_float(bias->info.dtype) ? bias->info.dtype : TARE_F32;
    return true;
}

static bool check_part(vfolder *f, vlinear *l, tensor_role role)
{
    const vtensor *t = l->parts[role];
    tensor_info expected = {0};
    char want[96], have[96], name[512];
    if (!linear_tensor(f->layout, &f->num, &l->shape, role, &expected)) {
        if (t)
            verify_fail(f->v, rule_of_tensors(f), t->info.name, "only the tensors of its type",
                        "an extra one");
        return !t;
    }
    expected.dtype = verify_stored_dtype(f, t, expected.dtype);
    verify_shape_text(&expected, want, sizeof want);
    if (!t) {
        snprintf(name, sizeof name, "%s%s", l->module, role_suffix(role));
        verify_fail(f->v, rule_of_tensors(f), name, want, "no such tensor");
        return false;
    }
    /* rule 7 judges the dtype of deq_scale */
    if (role == TENSOR_DEQ_SCALE && (t->info.dtype == TARE_F32 || t->info.dtype == TARE_I64))
        expected.dtype = t->info.dtype;
    if (same_form(&expected, &t->info))
        return true;
    verify_shape_text(&t->info, have, sizeof have);
    verify_fail(f->v, rule_of_tensors(f), t->info.name, want, "%s", have);
    return false;
}

static tare_status check_linear(vfolder *f, vlinear *l)
{
    const vtensor *w = verify_weight(l);
    tare_status status = TARE_OK;
    if (w && w->type && strcmp(w->type, "FLOAT") == 0) {
        verify_fail(f->v, 6, l->module, "a FLOAT weight alone", "tensors of a quantized linear");
        return TARE_OK;
    }
    const char *type = w ? w->type : NULL;
    l->shape.scheme = SCHEME_W8A8; /* unless something says otherwise */
    if (!scheme_of_type(type ? type : f->quant_type, &l->shape.scheme) && type &&
        verify_is_known_type(type)) {
        verify_warn(f->v, 6, l->module, "W8A8 or W8A16",
                    "%s, whose tensors this version does not check", type);
        return TARE_OK;
    }
    if (!shape_of_linear(f, l)) {
        verify_fail(f->v, rule_of_tensors(f), l->module, "a weight [N,K]", "%s",
                    w ? "another shape" : "none");
        return TARE_OK;
    }
    if (w == l->parts[TENSOR_WEIGHT_PACKED])
        TRY(packed_columns(f, l, &l->shape.k));
    l->complete = l->shape.k > 0;
    for (int role = 0; role < TENSOR_COUNT && l->shape.k > 0; role++)
        l->complete &= check_part(f, l, (tensor_role)role);
done:
    return status;
}

tare_status rule_linear_tensors(vfolder *f)
{
    size_t length;
    linear_scheme scheme;
    tare_status status = TARE_OK;
    for (size_t i = 0; i < f->num_linears; i++)
        TRY(check_linear(f, &f->linears[i]));
    for (size_t i = 0; i < f->num_tensors; i++) {
        const vtensor *t = &f->tensors[i];
        if (t->type && scheme_of_type(t->type, &scheme) && !strstr(t->info.name, ".module.") &&
            role_of_name(t->info.name, &length) == TENSOR_FLOAT)
            verify_fail(f->v, 6, t->info.name, "a tensor that quantized linears have",
                        "an extra one");
    }
done:
    return status;
}

tare_status rule_deq_dtype(vfolder *f)
{
    tare_dtype expected = deq_scale_dtype(f->num.dtype);
    if (!f->dtype_known)
        verify_fail(f->v, 7, "config.json", "torch_dtype, which decides the dtype of deq_scale",
                    "no dtype that is known");
    for (size_t i = 0; i < f->num_linears; i++) {
        const vtensor *t = f->linears[i].parts[TENSOR_DEQ_SCALE];
        if (t && t->info.dtype != expected)
            verify_fail(f->v, 7, t->info.name, dtype_name(expected), "%s",
                        dtype_name(t->info.dtype));
    }
    return TARE_OK;
}

/* ---- rule 13 ---- */

/* Values of the [1] tensor of two linears; true if they differ. */
static tare_status compare_scalar(vfolder *f, const vlinear *a, const vlinear *b, tensor_role role,
                                  bool *differ, float values[2])
{
    tare_status status = TARE_OK;
    TRY(verify_read_elements(f, a->parts[role], 0, 1, &values[0]));
    TRY(verify_read_elements(f, b->parts[role], 0, 1, &values[1]));
    *differ = values[0] != values[1];
done:
    return status;
}

typedef void (*report_function)(verify *, int, const char *, const char *, const char *, ...);

static const vlinear *linear_of_weight(const vfolder *f, const vtensor *weight)
{
    size_t length;
    role_of_name(weight->info.name, &length);
    return verify_find_linear(f, weight->info.name, length);
}

static tare_status check_fused_pair(vfolder *f, const vtensor *first, const vtensor *other)
{
    static const tensor_role SHARED[] = {TENSOR_INPUT_SCALE, TENSOR_INPUT_OFFSET,
                                         TENSOR_INPUT_ZERO_POINT};
    report_function say = f->num.compat ? verify_warn : verify_fail;
    const vlinear *a = linear_of_weight(f, first), *b = linear_of_weight(f, other);
    tare_status status = TARE_OK;

    if (first->type && other->type && strcmp(first->type, other->type) != 0) {
        say(f->v, 13, other->info.name, first->type, "%s, unlike %s", other->type,
            first->info.name);
        return TARE_OK;
    }
    for (int i = 0; i < 3 && !f->plan && a && b && a->complete && b->complete; i++) {
        bool differ;
        if (!a->parts[SHARED[i]] || !b->parts[SHARED[i]]) /* no static activations */
            continue;
        float values[2];
        TRY(compare_scalar(f, a, b, SHARED[i], &differ, values));
        if (differ)
            say(f->v, 13, b->parts[SHARED[i]]->info.name, "the value of the whole fused group",
                "%.9g, but %s has %.9g", (double)values[1], a->parts[SHARED[i]]->info.name,
                (double)values[0]);
    }
done:
    return status;
}

tare_status rule_fused(vfolder *f)
{
    strmap groups;
    buffer key;
    tare_status status = TARE_OK;
    size_t length;

    strmap_init(&groups, f->v->ctx);
    buffer_init(&key, f->v->ctx);
    for (size_t i = 0; i < f->num_tensors; i++) {
        const vtensor *t = &f->tensors[i];
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
            TRY(check_fused_pair(f, &f->tensors[first], t));
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

tare_status rule_norms_ascend(vfolder *f)
{
    const value *type = value_get(f->config, "model_type");
    bool gemma = type && type->type == VALUE_STRING && str_starts_with(type->text, "gemma");
    for (size_t i = 0; i < f->num_tensors; i++) {
        const tensor_info *t = &f->tensors[i].info;
        char weight[1024];
        if (strstr(t->name, ".module."))
            verify_fail(f->v, 16, t->name, "no .module. tensors: engines raise KeyError", "one");
        if (!str_ends_with(t->name, "norm.bias"))
            continue;
        if (gemma)
            verify_fail(f->v, 16, t->name, "no norm bias: Gemma norms have none", "one");
        snprintf(weight, sizeof weight, "%.*s.weight", (int)(strlen(t->name) - 5), t->name);
        const vtensor *w = verify_find(f, weight);
        if (!w)
            verify_fail(f->v, 16, weight, "the norm's weight beside its bias", "no such tensor");
        else if (w->info.rank != t->rank || w->info.shape[0] != t->shape[0])
            verify_fail(f->v, 16, t->name, "the shape of the norm's weight", "another");
    }
    return TARE_OK;
}

static tare_status same_bytes(vfolder *f, const vtensor *a, const vtensor *b, bool *same)
{
    tare_status status = TARE_OK;
    char *left = mem_alloc(f->v->ctx, COMPARE_PIECE), *right = mem_alloc(f->v->ctx, COMPARE_PIECE);
    *same = a->info.bytes == b->info.bytes;
    TRY(left && right ? TARE_OK : TARE_E_MEMORY);
    for (uint64_t at = 0; *same && at < a->info.bytes; at += COMPARE_PIECE) {
        uint64_t rest = a->info.bytes - at;
        size_t size = rest < COMPARE_PIECE ? (size_t)rest : COMPARE_PIECE;
        TRY(verify_read(f, a, at, left, size));
        TRY(verify_read(f, b, at, right, size));
        *same = memcmp(left, right, size) == 0;
    }
done:
    mem_free(f->v->ctx, left);
    mem_free(f->v->ctx, right);
    return status;
}

tare_status rule_norms_module(vfolder *f)
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
            const vtensor *a = verify_find(f, copy), *b = verify_find(f, plain);
            if (!a || !b) {
                verify_fail(f->v, 17, a ? plain : copy, "all four tensors of a wrapped norm",
                            "no such tensor");
                continue;
            }
            if (strcmp(copy, name) != 0)
                continue; /* compared when it is its own turn */
            TRY(same_bytes(f, a, b, &same));
            if (!same)
                verify_fail(f->v, 17, copy, "the bytes of the norm's own tensor", "others");
        }
    }
done:
    return status;
}

/* ---- rule 28 ---- */

static bool config_flag(const vfolder *f, const char *key)
{
    const value *v = value_get(f->config, key);
    return v && v->type == VALUE_BOOL && v->boolean;
}

tare_status rule_new_biases(vfolder *f)
{
    const value *type = value_get(f->config, "model_type");
    const architecture *arch = type && type->type == VALUE_STRING ? architecture_find(type->text)
                                                                  : NULL;
    block_graph graph;
    size_t length;
    if (!arch)
        return TARE_OK;
    model_config_names(arch, config_flag(f, "attention_bias"), config_flag(f, "mlp_bias"), &graph);
    for (size_t i = 0; i < f->num_tensors; i++) {
        const char *name = f->tensors[i].info.name;
        if (role_of_name(name, &length) != TENSOR_BIAS || verify_find_linear(f, name, length))
            continue;
        const linear_spec *spec = graph_linear_of(&graph, name, length);
        if (spec && !spec->has_bias)
            verify_fail(f->v, 28, name, "no bias: this architecture has none here", "one");
    }
    return TARE_OK;
}

/* ---- rule 29 ---- */

/* Is a quantized module's name the beginning of this FLOAT module's last component? */
static const vlinear *quantized_prefix(const vfolder *f, const char *module, size_t length)
{
    size_t parent = length;
    while (parent > 0 && module[parent - 1] != '.')
        parent--;
    if (length - parent > PREFIX_MAX) /* no engine's name; and the search is quadratic */
        return NULL;
    for (size_t n = parent + 1; n < length; n++) {
        const vlinear *l = verify_find_linear(f, module, n);
        if (l)
            return l;
    }
    return NULL;
}

tare_status rule_prefixes(vfolder *f)
{
    size_t length;
    for (size_t i = 0; i < f->num_tensors; i++) {
        const char *name = f->tensors[i].info.name;
        if (role_of_name(name, &length) != TENSOR_WEIGHT || verify_find_linear(f, name, length))
            continue;
        const vlinear *l = quantized_prefix(f, name, length);
        if (l)
            (f->num.compat ? verify_warn : verify_fail)(
                f->v, 29, l->module, "a name that begins no FLOAT sibling's name",
                "%.*s is FLOAT: engines would take both as float", (int)length, name);
    }
    return TARE_OK;
}
