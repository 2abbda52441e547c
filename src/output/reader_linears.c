/* The quantized linears of a layout: which modules they are, by which scheme, of which form. */
#include <string.h>

#include "output/reader_internal.h"

bool reader_is_known_type(const char *type)
{
    static const char *const KNOWN[] = {"FLOAT", "W8A8",  "W8A8_DYNAMIC", "W8A8_MIX",
                                        "W8A16", "W4A16", "W8A8S",        "W4A8_DYNAMIC",
                                        "NF4",   "C8",    "FAQuant"};
    for (size_t i = 0; i < sizeof KNOWN / sizeof *KNOWN; i++)
        if (strcmp(KNOWN[i], type) == 0)
            return true;
    return false;
}

/* Does this tensor make its module a quantized one? */
static bool marks_quantized(const reader_tensor *t, tensor_role role)
{
    if (role == TENSOR_FLOAT || role == TENSOR_BIAS)
        return false;
    if (role != TENSOR_WEIGHT)
        return true;
    if (t->info.dtype == TARE_I8)
        return true;
    return t->type && strcmp(t->type, "FLOAT") != 0 && reader_is_known_type(t->type);
}

static tare_status add_linear(reader_layout *f, const char *name, size_t length)
{
    uint32_t index;
    tare_status status = TARE_OK;
    /* norms that outlier suppression wrapped are copies of FLOAT tensors (rule 17) */
    if ((length > 7 && memcmp(name + length - 7, ".module", 7) == 0) ||
        strmap_get(&f->by_module, name, length, &index))
        return TARE_OK;
    TRY(mem_grow(f->ctx, (void **)&f->linears, &f->linears_capacity, f->num_linears + 1,
                 sizeof *f->linears));
    reader_linear *l = &f->linears[f->num_linears];
    memset(l, 0, sizeof *l);
    l->module = arena_strndup(&f->arena, name, length);
    TRY(l->module ? TARE_OK : TARE_E_MEMORY);
    TRY(strmap_put(&f->by_module, l->module, length, (uint32_t)f->num_linears, NULL));
    f->num_linears++;
done:
    return status;
}

static tare_status find_linears(reader_layout *f)
{
    tare_status status = TARE_OK;
    size_t length;
    uint32_t index;
    for (size_t i = 0; i < f->num_tensors; i++) {
        const reader_tensor *t = &f->tensors[i];
        if (marks_quantized(t, role_of_name(t->info.name, &length)))
            TRY(add_linear(f, t->info.name, length));
    }
    for (size_t i = 0; i < f->num_tensors; i++) {
        const reader_tensor *t = &f->tensors[i];
        tensor_role role = role_of_name(t->info.name, &length);
        if (role != TENSOR_FLOAT && strmap_get(&f->by_module, t->info.name, length, &index))
            f->linears[index].parts[role] = t;
    }
done:
    return status;
}

/* ---- schemes, where no description has them ---- */

linear_scheme reader_group_scheme(const value *config, const value *group)
{
    const value *format = value_get(group, "format");
    const value *dynamic = value_get(value_get(group, "input_activations"), "dynamic");
    if (value_is(format ? format : value_get(config, "format"),
                 compressed_format(1u << SCHEME_W8A16)))
        return SCHEME_W8A16;
    return dynamic && dynamic->type == VALUE_BOOL && dynamic->boolean ? SCHEME_W8A8_DYNAMIC
                                                                      : SCHEME_W8A8;
}

bool reader_group_symmetric(const value *group)
{
    const value *symmetric = value_get(value_get(group, "input_activations"), "symmetric");
    return symmetric && symmetric->type == VALUE_BOOL && symmetric->boolean;
}

/* What a linear has of activations tells. npy files without anything do not say whether the engine
 * quantizes them: W8A16 is what allows more. */
static linear_scheme scheme_by_tensors(const reader_layout *f, const reader_linear *l)
{
    unsigned calibrated = 1u << TENSOR_INPUT_ZERO_POINT |
                          (scheme_of(SCHEME_W8A8)->parts & ~scheme_of(SCHEME_W8A16)->parts);
    for (int role = 0; role < TENSOR_COUNT; role++)
        if (l->parts[role] && (calibrated >> role & 1))
            return SCHEME_W8A8;
    return f->layout == LAYOUT_NUMPY || l->parts[TENSOR_WEIGHT_PACKED] ? SCHEME_W8A16
                                                                       : SCHEME_W8A8_DYNAMIC;
}

/* Of named targets the numbers of their groups; *rest: that of a class, or of all; as many as there
 * are groups: tensors have to tell. */
static tare_status collect_targets(const value *groups, size_t count, strmap *named, uint32_t *rest,
                                   bool *patterns)
{
    tare_status status = TARE_OK;
    *rest = count > 1 ? (uint32_t)count : 0;
    for (size_t i = 0; i < count; i++) {
        const value *targets = value_get(&groups->items[i], "targets");
        for (size_t j = 0; targets && targets->type == VALUE_LIST && j < targets->count; j++) {
            const value *target = &targets->items[j];
            if (value_is(target, "Linear"))
                *rest = (uint32_t)i;
            else if (target->type == VALUE_STRING) {
                *patterns |= str_starts_with(target->text, "re:");
                TRY(strmap_put(named, target->text, target->length, (uint32_t)i, NULL));
            }
        }
    }
done:
    return status;
}

static void set_scheme(reader_layout *f, reader_linear *l, linear_scheme scheme, unsigned *all)
{
    l->form.scheme = scheme;
    *all |= 1u << scheme;
    f->quant_type = scheme_of(scheme_naming(*all))->type;
}

/* config.json of compressed-tensors says which linear has which scheme, and no file which tensor
 * has which type. */
static tare_status schemes_of_config(reader_layout *f)
{
    tare_status status = TARE_OK;
    const value *config = value_get(f->config, "quantization_config");
    const value *groups = value_get(config, "config_groups");
    size_t length, count = groups && groups->type == VALUE_MAP ? groups->count : 0;
    unsigned all = 0;
    strmap named;
    bool patterns = false;
    uint32_t rest;
    strmap_init(&named, f->ctx);
    TRY(collect_targets(groups, count, &named, &rest, &patterns));
    f->quant_type = "FLOAT";
    for (size_t i = 0; i < f->num_linears; i++) {
        reader_linear *l = &f->linears[i];
        uint32_t number = rest;
        bool by_name = strmap_get(&named, l->module, strlen(l->module), &number);
        bool by_group = by_name || rest == 0 || rest < count;
        const value *group = number < count ? &groups->items[number] : NULL;
        l->targeted = by_group || patterns;
        l->form.act_symmetric = by_group ? reader_group_symmetric(group)
                                         : !l->parts[TENSOR_INPUT_ZERO_POINT];
        set_scheme(f, l, by_group ? reader_group_scheme(config, group) : scheme_by_tensors(f, l),
                   &all);
    }
    for (size_t i = 0; i < f->num_tensors; i++) {
        reader_tensor *t = &f->tensors[i];
        tensor_role role = role_of_name(t->info.name, &length);
        const reader_linear *l = reader_find_linear(f, t->info.name, length);
        bool quantized = role != TENSOR_FLOAT && role != TENSOR_BIAS && l;
        t->type = scheme_of(quantized ? l->form.scheme : SCHEME_FLOAT)->type;
    }
done:
    strmap_free(&named);
    return status;
}

/* ---- forms ---- */

const reader_tensor *reader_weight(const reader_linear *l)
{
    return l->parts[TENSOR_WEIGHT_PACKED] ? l->parts[TENSOR_WEIGHT_PACKED]
                                          : l->parts[TENSOR_WEIGHT];
}

tare_status reader_packed_shape(const reader_layout *f, const reader_linear *l, int64_t shape[2])
{
    const reader_tensor *t = l->parts[TENSOR_WEIGHT_SHAPE];
    shape[0] = shape[1] = 0;
    if (!t || t->info.dtype != TARE_I64 || tensor_elements(&t->info) != 2)
        return TARE_OK;
    return reader_read(f, t, 0, shape, 2 * sizeof *shape);
}

/* Columns of a packed weight, which only weight_shape knows; 0: it contradicts the weight. */
static tare_status packed_columns(const reader_layout *f, const reader_linear *l, size_t *k)
{
    const tensor_info *w = &reader_weight(l)->info;
    const reader_tensor *t = l->parts[TENSOR_WEIGHT_SHAPE];
    int64_t shape[2] = {0, 0};
    tare_status status = f->plan ? TARE_OK : reader_packed_shape(f, l, shape);
    *k = w->shape[1] * 4;
    if (f->plan || !t || t->info.dtype != TARE_I64 || tensor_elements(&t->info) != 2 ||
        status != TARE_OK)
        return status; /* rule 23 of verify tells */
    bool fits = shape[1] > 0 && (uint64_t)shape[1] <= *k &&
                packed_words((size_t)shape[1]) == w->shape[1] && shape[0] > 0 &&
                (uint64_t)shape[0] == w->shape[0];
    *k = fits ? (size_t)shape[1] : 0;
    return TARE_OK;
}

bool reader_expects(const reader_layout *f, const reader_linear *l, tensor_role role,
                    tensor_info *out)
{
    const reader_tensor *t = l->parts[role];
    *out = (tensor_info){0};
    if (!linear_tensor(f->layout, &f->num, &l->form, role, out))
        return false;
    out->dtype = reader_stored_dtype(f, t, out->dtype);
    /* which of the two it has to be is rule 7's to judge */
    if (role == TENSOR_DEQ_SCALE && t && (t->info.dtype == TARE_F32 || t->info.dtype == TARE_I64))
        out->dtype = t->info.dtype;
    return true;
}

bool tensor_same_shape(const tensor_info *a, const tensor_info *b)
{
    bool same = a->rank == b->rank;
    for (int i = 0; same && i < a->rank; i++)
        same = a->shape[i] == b->shape[i];
    return same;
}

/* An expert's role decides, not what is stored - unless the architecture is not known. */
static size_t expected_slices(const reader_layout *f, const reader_linear *l)
{
    const reader_tensor *t = l->parts[TENSOR_SCALE_BIAS];
    if (f->arch && f->arch->experts && strstr(l->module, ".experts."))
        return str_ends_with(l->module, f->arch->experts->names[EXPERT_LINEARS - 1]) ? INT4_SLICES
                                                                                     : 1;
    return t && t->info.rank == 2 && t->info.shape[1] == INT4_SLICES ? INT4_SLICES : 1;
}

/* safe_tensor knows the form with groups alone, whose integers are not packed there. */
static tare_status settle_int4(reader_layout *f, reader_linear *l)
{
    tare_status status = TARE_OK;
    buffer second;
    buffer_init(&second, f->ctx);
    buffer_printf(&second, "%s.weight_scale_second", l->module);
    TRY(second.status);
    l->packed = f->layout == LAYOUT_ASCENDV1;
    l->staged = reader_find(f, second.data) != NULL || !l->packed;
    l->form.n *= l->packed ? 2 : 1;
    l->form.slices = expected_slices(f, l);
done:
    buffer_free(&second);
    return status;
}

static tare_status settle_form(reader_layout *f, reader_linear *l)
{
    const reader_tensor *w = reader_weight(l), *scale = l->parts[TENSOR_WEIGHT_SCALE];
    const reader_tensor *act = l->parts[TENSOR_INPUT_SCALE], *bias = l->parts[TENSOR_BIAS];
    linear_form *form = &l->form;
    linear_scheme scheme;
    tensor_info expected;
    if (!w || w->info.rank != 2 || w->info.shape[0] == 0 || w->info.shape[1] == 0)
        return TARE_OK;
    form->n = w->info.shape[0];
    form->k = w->info.shape[1];
    form->per_tensor = scale && scale->info.rank == 1;
    form->act_dtype = act && act->info.dtype == TARE_F32 ? TARE_F32 : f->num.dtype;
    form->has_bias = bias != NULL;
    form->bias_dtype = bias && dtype_is_float(bias->info.dtype) ? bias->info.dtype : TARE_F32;
    if (form_is_int4(form)) {
        tare_status status = settle_int4(f, l);
        if (status != TARE_OK)
            return status;
    }
    if (w == l->parts[TENSOR_WEIGHT_PACKED]) {
        tare_status status = packed_columns(f, l, &form->k);
        if (status != TARE_OK)
            return status;
    }
    /* a type that nobody knows is rule 5's to judge */
    l->complete = form->k > 0 && !l->staged &&
                  (!form_is_int4(form) || int4_shape_fits(form->n, form->k, form->slices)) &&
                  (!w->type || scheme_of_type(w->type, &scheme) || !reader_is_known_type(w->type));
    for (int role = 0; role < TENSOR_COUNT && l->complete; role++) {
        const reader_tensor *t = l->parts[role];
        l->complete = reader_expects(f, l, (tensor_role)role, &expected)
                          ? t && t->info.dtype == expected.dtype &&
                                tensor_same_shape(&t->info, &expected)
                          : !t;
    }
    return TARE_OK;
}

tare_status reader_collect_linears(reader_layout *f)
{
    tare_status status = TARE_OK;
    unsigned all = 0;
    TRY(find_linears(f));
    if (f->layout == LAYOUT_COMPRESSED_TENSORS)
        TRY(schemes_of_config(f));
    for (size_t i = 0; i < f->num_linears; i++) {
        reader_linear *l = &f->linears[i];
        const reader_tensor *w = reader_weight(l);
        linear_scheme scheme = SCHEME_W8A8; /* unless something says otherwise */
        if (f->layout == LAYOUT_NUMPY) {
            set_scheme(f, l, scheme_by_tensors(f, l), &all);
        } else if (f->layout != LAYOUT_COMPRESSED_TENSORS) {
            scheme_of_type(w && w->type ? w->type : f->quant_type, &scheme);
            l->form.scheme = scheme;
        }
        TRY(settle_form(f, l));
    }
done:
    return status;
}
