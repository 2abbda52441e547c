/* What a target's engine does with each layer of a layout, by the facts of targets.h: what an
 * engine looks at is gathered here, from names, types, shapes and config.json, so that a run can be
 * judged by its plan as an output is by its files. */
#include <stdio.h>
#include <string.h>

#include "output/targets.h"
#include "output/verify_internal.h"

enum { PATTERN_MAX = 1024 };

/* Linears that share a type: a fused group, or the experts of a layer. */
typedef struct kin {
    const char *type; /* of the first */
    size_t count;
    bool differ;
} kin;

/* Layers of one pattern ("model.layers.*.mlp.up_proj") that one fact is about. */
typedef struct layer_group {
    const target_fact *fact;
    const char *first, *pattern;
    size_t count;
} layer_group;

typedef struct judged_layer {
    const char *name;
    const target_fact *fact;
} judged_layer;

typedef struct judgement {
    verify *v;
    reader_layout *f;
    attention_config attention;
    block_graph biases; /* which linears of the architecture have one */
    bool biases_known;
    unsigned common;      /* traits of all layers */
    unsigned typed;       /* traits of all linears that are not float */
    const char **modules; /* [num_tensors] of the layout: of which layer it is the weight; NULL */
    bool *prefixes;       /* [num_linears] of the layout: its name begins a FLOAT sibling's */
    uint32_t *kin_of;     /* [num_tensors] number of the layer's kin, from 1; 0: it has none */
    strmap kin_index, group_index;
    kin *kin;
    layer_group *groups;
    judged_layer *layers; /* mem_free, as the two before */
    size_t num_kin, kin_capacity, num_groups, group_capacity, num_layers, layer_capacity;
} judgement;

/* ---- what holds for all layers ---- */

static bool has_config(const value *map)
{
    return value_get(map, "quantization_config") || value_get(map, "compression_config");
}

static tare_status common_traits(judgement *j)
{
    reader_layout *f = j->f;
    unsigned schemes = 0;
    linear_scheme scheme;
    j->common |= f->num.dtype == TARE_F16 ? TRAIT_FLOAT16 : 0;
    j->common |= f->num.dtype == TARE_BF16 ? TRAIT_BFLOAT16 : 0;
    if (f->layout == LAYOUT_ASCENDV1 &&
        (has_config(f->config) || has_config(value_get(f->config, "text_config"))))
        j->common |= TRAIT_CONFIG;
    if (f->layout != LAYOUT_SAFE_TENSOR)
        return TARE_OK;
    for (size_t i = 0; i < f->num_linears; i++) {
        const reader_tensor *w = reader_weight(&f->linears[i]);
        if (w && w->type && scheme_of_type(w->type, &scheme))
            schemes |= 1u << scheme;
    }
    if ((schemes & (schemes - 1)) &&
        strcmp(f->quant_type, scheme_of(scheme_naming(schemes))->type) != 0)
        j->typed |= TRAIT_QUANT_TYPE;
    const char *quantize = layout_lower_case(&f->arena, f->quant_type);
    if (!quantize)
        return TARE_E_MEMORY;
    if (!value_is(value_get(f->config, "quantize"), quantize))
        j->typed |= TRAIT_NO_QUANTIZE;
    return TARE_OK;
}

/* ---- kin ---- */

/* Which linears an engine fuses where the architecture is not known. */
static const struct {
    const char *name, *kind;
} FUSED[] = {{".gate_proj", "gate_up"},
             {".up_proj", "gate_up"},
             {".q_a_proj", "qkv_a"},
             {".kv_a_proj_with_mqa", "qkv_a"}};

static bool fused_key(const judgement *j, const char *module, buffer *key)
{
    size_t length = strlen(module);
    if (fused_group_of(&j->f->graph, module, key))
        return true;
    for (size_t i = 0; i < sizeof FUSED / sizeof *FUSED; i++) {
        if (!str_ends_with(module, FUSED[i].name))
            continue;
        key->length = 0;
        buffer_append(key, module, length - strlen(FUSED[i].name));
        buffer_printf(key, "|%s", FUSED[i].kind);
        return key->status == TARE_OK;
    }
    return false;
}

/* The key of its fused group, or of the experts of its layer; false: it stands alone. */
static bool kin_key(const judgement *j, const char *module, buffer *key)
{
    size_t block;
    if (!verify_expert_of(module, &block))
        return fused_key(j, module, key);
    key->length = 0;
    buffer_append(key, module, block);
    buffer_puts(key, "|experts");
    return key->status == TARE_OK;
}

/* *out: its number, from 1. */
static tare_status find_kin(judgement *j, buffer *key, uint32_t *out)
{
    uint32_t index;
    tare_status status = TARE_OK;
    if (!strmap_get(&j->kin_index, key->data, key->length, &index)) {
        const char *kept = arena_strndup(&j->f->arena, key->data, key->length);
        TRY(kept ? TARE_OK : TARE_E_MEMORY);
        TRY(mem_grow(j->v->ctx, (void **)&j->kin, &j->kin_capacity, j->num_kin + 1,
                     sizeof *j->kin));
        index = (uint32_t)j->num_kin;
        j->kin[j->num_kin++] = (kin){0};
        TRY(strmap_put(&j->kin_index, kept, key->length, index, NULL));
    }
    *out = index + 1;
done:
    return status;
}

/* ---- layers ---- */

/* Which tensors are weights of layers, FLOAT ones of linears included, and of which modules. */
static tare_status find_modules(judgement *j)
{
    reader_layout *f = j->f;
    size_t length, block;
    j->modules = arena_calloc(&f->arena, f->num_tensors + 1, sizeof *j->modules);
    if (!j->modules)
        return TARE_E_MEMORY;
    for (size_t i = 0; i < f->num_tensors; i++) {
        const reader_tensor *t = &f->tensors[i];
        tensor_role role = role_of_name(t->info.name, &length);
        if (role != TENSOR_WEIGHT && role != TENSOR_WEIGHT_PACKED)
            continue;
        const reader_linear *l = reader_find_linear(f, t->info.name, length);
        if (l && reader_weight(l) == t)
            j->modules[i] = l->module;
        bool is_float = !l && t->info.rank == 2 &&
                        (verify_expert_of(t->info.name, &block) ||
                         graph_linear_of(&f->graph, t->info.name, length));
        if (is_float && !(j->modules[i] = arena_strndup(&f->arena, t->info.name, length)))
            return TARE_E_MEMORY;
    }
    return TARE_OK;
}

static const char *type_of(const reader_tensor *t, const reader_linear *l)
{
    return t->type ? t->type : scheme_of(l ? l->form.scheme : SCHEME_FLOAT)->type;
}

static tare_status count_kin(judgement *j)
{
    tare_status status = TARE_OK;
    buffer key;
    buffer_init(&key, j->v->ctx);
    j->kin_of = arena_calloc(&j->f->arena, j->f->num_tensors + 1, sizeof *j->kin_of);
    TRY(j->kin_of ? TARE_OK : TARE_E_MEMORY);
    for (size_t i = 0; i < j->f->num_tensors; i++) {
        const char *module = j->modules[i];
        bool has_kin = module && kin_key(j, module, &key);
        TRY(key.status);
        if (!has_kin)
            continue;
        TRY(find_kin(j, &key, &j->kin_of[i]));
        kin *k = &j->kin[j->kin_of[i] - 1];
        const char *type = type_of(&j->f->tensors[i],
                                   reader_find_linear(j->f, module, strlen(module)));
        k->differ |= k->count > 0 && strcmp(k->type, type) != 0;
        k->type = k->count++ == 0 ? type : k->type;
    }
done:
    buffer_free(&key);
    return status;
}

static tare_status find_prefixes(judgement *j)
{
    size_t length;
    reader_layout *f = j->f;
    j->prefixes = arena_calloc(&f->arena, f->num_linears + 1, sizeof *j->prefixes);
    if (!j->prefixes)
        return TARE_E_MEMORY;
    for (size_t i = 0; i < f->num_tensors; i++) {
        const char *name = f->tensors[i].info.name;
        const reader_linear *l = role_of_name(name, &length) == TENSOR_WEIGHT
                                     ? verify_quantized_prefix(f, name, length)
                                     : NULL;
        if (l)
            j->prefixes[l - f->linears] = true;
    }
    return TARE_OK;
}

static unsigned kin_traits(const judgement *j, const kin *k, const target_layer *layer)
{
    const linear_spec *spec = graph_linear_of(&j->f->graph, layer->name, strlen(layer->name));
    unsigned traits = 0;
    if (k->differ)
        traits |= layer->subject == SUBJECT_EXPERT ? TRAIT_EXPERTS_DIFFER : TRAIT_FUSED_DIFFER;
    if (j->f->arch && spec && layer->subject == SUBJECT_LINEAR &&
        k->count < j->f->graph.units[spec->unit].count)
        traits |= TRAIT_FUSED_MISSING;
    return traits;
}

/* Is any element of a float tensor other than 0? One that cannot be read is other rules' to judge.
 */
static tare_status has_offsets(const reader_layout *f, const reader_tensor *t, bool *out)
{
    float *x = NULL;
    tare_status status = TARE_OK;
    *out = false;
    if (f->plan || !t || !dtype_is_float(t->info.dtype))
        return TARE_OK;
    TRY(reader_floats(f, t, &x));
    for (size_t i = 0, count = tensor_elements(&t->info); i < count && !*out; i++)
        *out = x[i] != 0;
done:
    mem_free(f->ctx, x);
    return status;
}

static bool is_new_bias(const judgement *j, const char *module)
{
    const linear_spec *spec = graph_linear_of(&j->biases, module, strlen(module));
    return j->biases_known && spec && !spec->has_bias &&
           verify_part(j->f, module, strlen(module), role_suffix(TENSOR_BIAS));
}

static bool has_groups(const judgement *j, const reader_linear *l)
{
    const reader_tensor *scale = l->parts[TENSOR_WEIGHT_SCALE];
    const value *size = value_get(j->f->description, "group_size");
    return l->staged || (scale && scale->info.rank == 2 && scale->info.shape[1] > 1) ||
           (size && size->is_integer && size->integer > 0);
}

static tare_status quantized_traits(judgement *j, const reader_linear *l, target_layer *out)
{
    const reader_layout *f = j->f;
    const reader_tensor *deq = l->parts[TENSOR_DEQ_SCALE];
    bool offsets = false;
    tare_status status = TARE_OK;
    if (f->layout == LAYOUT_COMPRESSED_TENSORS && !l->form.act_symmetric &&
        scheme_of(l->form.scheme)->activations == ACT_STATIC)
        out->traits |= TRAIT_ASYMMETRIC;
    if (out->type == TYPE_W8A16)
        TRY(has_offsets(f, l->parts[TENSOR_WEIGHT_OFFSET], &offsets));
    if (offsets || (out->type == TYPE_W8A16 && f->plan && f->plan->weight_offsets))
        out->traits |= TRAIT_WEIGHT_OFFSETS;
    out->traits |= j->typed;
    out->traits |= l->staged ? TRAIT_STAGED : 0;
    out->traits |= has_groups(j, l) ? TRAIT_GROUPS : 0;
    out->traits |= l->parts[TENSOR_WEIGHT_SCALE] ? 0 : TRAIT_NO_WEIGHT_SCALE;
    out->traits |= deq && deq->info.dtype != deq_scale_dtype(f->num.dtype) ? TRAIT_DEQ_DTYPE : 0;
    out->traits |= j->prefixes[l - f->linears] ? TRAIT_PREFIX : 0;
done:
    return status;
}

/* ---- judging ---- */

/* Numbers between dots become stars. */
static void make_pattern(const char *name, char *out, size_t size)
{
    size_t used = 0;
    while (*name && used + 2 < size) {
        size_t n = strcspn(name, "."), digits = strspn(name, "0123456789");
        bool number = n > 0 && digits == n;
        used += (size_t)snprintf(out + used, size - used, "%.*s%s", number ? 1 : (int)n,
                                 number ? "*" : name, name[n] ? "." : "");
        used = used < size ? used : size - 1;
        name += n + (name[n] == '.');
    }
    out[used] = '\0';
}

/* Is it about the output as a whole, whatever the layer? */
static bool is_of_output(const target_fact *fact)
{
    return fact->subjects == SUBJECT_ANY || fact->traits & (TRAIT_QUANT_TYPE | TRAIT_NO_QUANTIZE);
}

static tare_status add_to_group(judgement *j, const char *name, const target_fact *fact)
{
    char pattern[PATTERN_MAX], key[PATTERN_MAX + 24];
    uint32_t index;
    tare_status status = TARE_OK;
    make_pattern(is_of_output(fact) ? "*" : name, pattern, sizeof pattern);
    int length = snprintf(key, sizeof key, "%p|%s", (const void *)fact, pattern);
    if (!strmap_get(&j->group_index, key, (size_t)length, &index)) {
        const char *kept = arena_strndup(&j->f->arena, key, (size_t)length);
        TRY(kept ? TARE_OK : TARE_E_MEMORY);
        TRY(mem_grow(j->v->ctx, (void **)&j->groups, &j->group_capacity, j->num_groups + 1,
                     sizeof *j->groups));
        index = (uint32_t)j->num_groups;
        j->groups[j->num_groups++] = (layer_group){fact, name, strchr(kept, '|') + 1, 0};
        TRY(strmap_put(&j->group_index, kept, (size_t)length, index, NULL));
    }
    j->groups[index].count++;
done:
    return status;
}

static tare_status judge(judgement *j, const target_layer *layer)
{
    tare_status status = TARE_OK;
    const target_fact *fact = target_judge(&j->v->target, layer);
    j->v->result->layers[fact->verdict]++;
    TRY(mem_grow(j->v->ctx, (void **)&j->layers, &j->layer_capacity, j->num_layers + 1,
                 sizeof *j->layers));
    j->layers[j->num_layers++] = (judged_layer){layer->name, fact};
    if (fact->verdict != TARE_VERDICT_LOADS)
        TRY(add_to_group(j, layer->name, fact));
done:
    return status;
}

static target_layer begin_layer(const judgement *j, const char *name, unsigned subject,
                                unsigned type)
{
    const char *family = value_text(value_get(j->f->config, "model_type"));
    return (target_layer){.name = name,
                          .layout = j->f->layout,
                          .subject = subject,
                          .type = type,
                          .traits = j->common,
                          .family = family ? family : ""};
}

/* Whose weight is tensor i. */
static tare_status judge_linear(judgement *j, size_t i)
{
    size_t block;
    const char *module = j->modules[i];
    const reader_linear *l = reader_find_linear(j->f, module, strlen(module));
    tare_status status = TARE_OK;
    target_layer layer = begin_layer(
        j, module, verify_expert_of(module, &block) ? SUBJECT_EXPERT : SUBJECT_LINEAR,
        target_type_of(type_of(&j->f->tensors[i], l)));
    if (j->kin_of[i])
        layer.traits |= kin_traits(j, &j->kin[j->kin_of[i] - 1], &layer);
    if (layer.type != TYPE_FLOAT && l)
        TRY(quantized_traits(j, l, &layer));
    if (is_new_bias(j, module))
        layer.traits |= TRAIT_NEW_BIAS;
    TRY(judge(j, &layer));
done:
    return status;
}

static tare_status judge_attention(judgement *j, const char *name, size_t length, unsigned type)
{
    reader_layout *f = j->f;
    tare_status status = TARE_OK;
    const char *module = arena_strndup(&f->arena, name, length);
    TRY(module ? TARE_OK : TARE_E_MEMORY);
    target_layer layer = begin_layer(j, module, SUBJECT_ATTENTION, type);
    layer.traits |= j->attention.latent ? TRAIT_LATENT : 0;
    layer.traits |= j->attention.head_dim % 32 ? TRAIT_HEAD_DIM : 0;
    if (!value_is(value_get(f->description, "kv_cache_type"), "C8"))
        layer.traits |= TRAIT_NO_CACHE_TYPE;
    if (!value_is(value_get(f->description, "fa_quant_type"), "FAKQuant"))
        layer.traits |= TRAIT_NO_FAK;
    for (int i = 1; i < KV_TENSORS && type == TYPE_C8; i += 2) {
        bool offsets;
        TRY(has_offsets(f, verify_part(f, module, length, kv_suffix(i)), &offsets));
        layer.traits |= offsets ? TRAIT_CACHE_OFFSETS : 0;
    }
    TRY(judge(j, &layer));
done:
    return status;
}

static tare_status judge_layers(judgement *j)
{
    tare_status status = TARE_OK;
    reader_layout *f = j->f;
    for (size_t i = 0; i < f->num_tensors; i++) {
        const reader_tensor *t = &f->tensors[i];
        size_t length;
        if (j->modules[i])
            TRY(judge_linear(j, i));
        int which = kv_tensor_of_name(t->info.name, &length);
        if (verify_is_first(f, t->info.name, length, which, kv_suffix))
            TRY(judge_attention(j, t->info.name, length, TYPE_C8));
        which = fa_tensor_of_name(t->info.name, &length);
        if (verify_is_first(f, t->info.name, length, which, fa_suffix))
            TRY(judge_attention(j, t->info.name, length, TYPE_FAQUANT));
    }
done:
    return status;
}

static tare_status judge_layout(judgement *j)
{
    tare_status status = TARE_OK;
    strmap_init(&j->kin_index, j->v->ctx);
    strmap_init(&j->group_index, j->v->ctx);
    j->attention = verify_attention(j->f);
    j->biases_known = verify_bias_graph(j->f, &j->biases);
    TRY(common_traits(j));
    TRY(find_modules(j));
    TRY(count_kin(j));
    TRY(find_prefixes(j));
    TRY(judge_layers(j));
done:
    return status;
}

static void end_judgement(judgement *j)
{
    strmap_free(&j->kin_index);
    strmap_free(&j->group_index);
    mem_free(j->v->ctx, j->kin);
    mem_free(j->v->ctx, j->groups);
    mem_free(j->v->ctx, j->layers);
}

/* ---- what is said ---- */

static const char *const WHAT_IT_DOES[TARE_VERDICTS] = {
    [TARE_VERDICT_LOADS] = "loads",
    [TARE_VERDICT_UNKNOWN] = "may or may not load",
    [TARE_VERDICT_UNQUANTIZED] = "runs unquantized",
    [TARE_VERDICT_REFUSED] = "refuses"};

static void report_group(verify *v, const layer_group *g)
{
    const target_fact *fact = g->fact;
    bool refused = fact->verdict == TARE_VERDICT_REFUSED;
    (refused ? verify_fail : verify_warn)(
        v, fact->rule, g->count == 1 ? g->first : g->pattern, fact->works ? fact->works : "",
        "%zu %s that %s %s %s: %s", g->count, g->count == 1 ? "layer" : "layers", v->result->engine,
        v->result->version, WHAT_IT_DOES[fact->verdict], fact->why);
}

tare_status verify_layers(verify *v, reader_layout *f)
{
    judgement j = {.v = v, .f = f};
    tare_status status = judge_layout(&j);
    for (size_t i = 0; i < j.num_groups && status == TARE_OK; i++)
        report_group(v, &j.groups[i]);
    for (size_t i = 0; i < j.num_layers && v->options->layer && status == TARE_OK; i++) {
        const target_fact *fact = j.layers[i].fact;
        const tare_layer_verdict layer = {j.layers[i].name, fact->verdict, fact->why};
        v->options->layer(v->options->user, &layer);
    }
    end_judgement(&j);
    return status;
}

/* ---- a run's plan ---- */

static tare_status refuse_run(const judgement *j, const layer_group *g)
{
    const verify *v = j->v;
    size_t others = v->result->layers[TARE_VERDICT_REFUSED] - 1;
    char more[64] = "";
    if (others > 0)
        snprintf(more, sizeof more, " and %zu other %s", others, others == 1 ? "layer" : "layers");
    return TARE_FAIL(v->ctx, TARE_E_USAGE, "run.target: %s %s would refuse %s%s: %s%s%s",
                     v->result->engine, v->result->version, g->first, more, g->fact->why,
                     g->fact->works ? "; what would work: " : "",
                     g->fact->works ? g->fact->works : "");
}

tare_status verify_layers_of_plan(verify *v, reader_layout *f)
{
    judgement j = {.v = v, .f = f};
    tare_status status = judge_layout(&j);
    for (size_t i = 0; i < j.num_groups && status == TARE_OK; i++)
        if (j.groups[i].fact->verdict == TARE_VERDICT_REFUSED)
            status = refuse_run(&j, &j.groups[i]);
    for (size_t i = 0; i < j.num_groups && status == TARE_OK; i++) {
        const layer_group *g = &j.groups[i];
        TARE_WARN(v->ctx, "run.target: %s (%zu %s) %s %s %s: %s", g->pattern, g->count,
                  g->count == 1 ? "layer" : "layers", v->result->engine, v->result->version,
                  WHAT_IT_DOES[g->fact->verdict], g->fact->why);
    }
    end_judgement(&j);
    return status;
}
