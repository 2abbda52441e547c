/* A run that takes what an earlier one's samples told, instead of samples: ranges of inputs,
 * scores, smoothing, scales of attention. What it must have in common with that run, and which of
 * the numbers would be others if samples passed it, as layers in front of them have other schemes.
 */
#include <stdio.h>
#include <string.h>

#include "file/json.h"
#include "pipeline/means.h"
#include "pipeline/smoothing.h"
#include "pipeline/statistics.h"
#include "pipeline/statistics_file.h"

struct earlier_run {
    const char *path;       /* of its statistics */
    const value *record;    /* what they say of their run */
    buffer digest;          /* of them, a JSON string */
    const char **elsewhere; /* modules whose numbers come from another stream of activations */
    size_t num_elsewhere;
};

typedef struct taking {
    run *run;
    run_plan *plan;
    earlier_run *from;
    statistics_file file;
} taking;

/* ---- what the two runs have in common ---- */

static tare_status read_record(taking *t)
{
    tare_status status = TARE_OK;
    run *r = t->run;
    const tensor_info *info = safetensors_find(t->file.file, STATISTICS_RUN);
    char *text = NULL;
    if (!info || info->dtype != TARE_U8 || info->rank != 1 || info->bytes > RECORD_LIMIT)
        return TARE_FAIL(r->ctx, TARE_E_FORMAT, "%s: no statistics that tare keeps (%s)",
                         t->file.path, STATISTICS_RUN);
    text = arena_alloc(r->env->arena, info->bytes);
    TRY(text ? TARE_OK : TARE_E_MEMORY);
    TRY(safetensors_read(t->file.file, info, 0, text, info->bytes));
    digest_write(&t->from->digest, text, info->bytes);
    TRY(json_parse(r->ctx, r->env->arena, text, info->bytes, t->file.path, JSON_STRICT,
                   &t->from->record));
done:
    return status;
}

static tare_status check_model(taking *t)
{
    tare_status status = TARE_OK;
    run *r = t->run;
    const value *then = value_get(t->from->record, "model"), *now;
    buffer text;
    buffer_init(&text, r->ctx);
    TRY(statistics_model(r->model, &text));
    TRY(json_parse(r->ctx, r->env->arena, text.data, text.length, "model", JSON_STRICT, &now));
    bool same = then && then->count == now->count;
    const char *differs = "the list of weight files";
    for (size_t i = 0; i < now->count; i++) {
        if (value_is(value_get(then, now->keys[i].text), now->items[i].text))
            continue;
        same = false;
        differs = now->keys[i].text;
    }
    if (!same)
        TRY(TARE_FAIL(r->ctx, TARE_E_DATA,
                      "%s: these statistics are of another model than %s (%s differs)",
                      t->file.path, r->model->dir, differs));
done:
    buffer_free(&text);
    return status;
}

static bool same_value(const value *a, const value *b)
{
    if (!a || !b || a->type != b->type || a->count != b->count)
        return !a && !b;
    for (size_t i = 0; a->type == VALUE_LIST && i < a->count; i++) {
        if (!same_value(&a->items[i], &b->items[i]))
            return false;
    }
    if (a->type == VALUE_STRING || a->type == VALUE_NUMBER)
        return strcmp(a->text, b->text) == 0;
    return a->type != VALUE_BOOL || a->boolean == b->boolean;
}

typedef struct setting_name {
    const char *section, *key;
} setting_name;

/* The first of the settings that two recipes differ in; NULL: none. */
static const setting_name *first_difference(const value *then, const value *now,
                                            const setting_name *names)
{
    for (; names->section; names++) {
        if (!same_value(value_get(value_get(then, names->section), names->key),
                        value_get(value_get(now, names->section), names->key)))
            return names;
    }
    return NULL;
}

/* Everything that was observed depends on these. */
static const setting_name COMMON[] = {{"anti_outlier", "anti_method"},
                                      {"anti_outlier", "w_bit"},
                                      {"anti_outlier", "a_bit"},
                                      {"anti_outlier", "w_sym"},
                                      {"anti_outlier", "disable_anti_names"},
                                      {"anti_outlier", "alpha"},
                                      {"anti_outlier", "beta"},
                                      {"rotation", "seed"},
                                      {"rotation", "r1"},
                                      {"rotation", "r2"},
                                      {"rotation", "align"},
                                      {"rotation", "flips"},
                                      {"run", "compat"},
                                      {NULL, NULL}};
/* Of these scores alone. */
static const setting_name OF_SCORES[] = {
    {"rotation", "seed"}, {"rotation", "r1"}, {"rotation", "r2"}, {NULL, NULL}};
/* And what a quantized linear, or a static one, puts out on these. */
static const setting_name OF_WEIGHTS[] = {{"quant", "mm_tensor"}, {"quant", "w_sym"}, {NULL, NULL}};
static const setting_name OF_STATIC[] = {{"quant", "act_method"},   {"quant", "a_sym"},
                                         {"quant", "final_scales"}, {"quant", "pr"},
                                         {"quant", "seed"},         {NULL, NULL}};

static tare_status recipe_value(const run *r, const value **out)
{
    tare_status status = TARE_OK;
    buffer text;
    buffer_init(&text, r->ctx);
    recipe_write(r->env->recipe, &text, 0);
    TRY(text.status);
    TRY(json_parse(r->ctx, r->env->arena, text.data, text.length, "recipe", JSON_STRICT, out));
done:
    buffer_free(&text);
    return status;
}

static tare_status check_settings(const taking *t, const value *now, const setting_name *names)
{
    const setting_name *s = first_difference(value_get(t->from->record, "recipe"), now, names);
    return s ? TARE_FAIL(t->run->ctx, TARE_E_USAGE,
                         "%s.%s: the statistics in %s come from another one, and what they say "
                         "holds for that alone; tare quantize can change it",
                         s->section, s->key, t->file.path)
             : TARE_OK;
}

static tare_status check_common(const taking *t, const value *now)
{
    const run *r = t->run;
    const char *dtype = dtype_name(r->env->num.dtype);
    const value *then = value_get(t->from->record, "serving_dtype");
    tare_status status = check_settings(t, now, COMMON);
    if (status == TARE_OK && !value_is(then, dtype))
        return TARE_FAIL(r->ctx, TARE_E_USAGE,
                         "run.dtype: the statistics in %s are for %s, this run is for %s; tare "
                         "quantize can change it",
                         t->file.path, value_text(then) ? value_text(then) : "no dtype", dtype);
    return status;
}

/* Rounded weights stand in front of what was observed, and what rounded them is in no statistics.
 */
static tare_status check_rounding(const taking *t)
{
    const run *r = t->run;
    const value *quant = value_get(value_get(t->from->record, "recipe"), "quant");
    if (recipe_gptq(r->env->recipe))
        return TARE_FAIL(r->ctx, TARE_E_USAGE,
                         "quant.weight_method: gptq needs calibration samples, which statistics do "
                         "not have; tare quantize can round by them");
    if (!t->plan->weights_alone && value_is(value_get(quant, "weight_method"), "gptq"))
        return TARE_FAIL(r->ctx, TARE_E_USAGE,
                         "quant.weight_method: the statistics in %s come from gptq, and what they "
                         "say holds for that alone; tare quantize can change it",
                         t->file.path);
    return TARE_OK;
}

/* Scales of attention are kept as they were concluded. */
static tare_status check_attentions(const taking *t, const value *now)
{
    const run *r = t->run;
    const value *had = value_get(value_get(t->from->record, "recipe"), "fa_quant");
    const char *method = value_text(value_get(had, "v_method"));
    const char *wanted = value_text(value_get(value_get(now, "fa_quant"), "v_method"));
    bool balanced = value_is_true(value_get(had, "balance"));
    bool of_keys = t->plan->num_kv > 0 && balanced; /* whose ranges are those of balanced keys */
    if ((t->plan->num_fa == 0 && !of_keys) || !had || had->type != VALUE_MAP)
        return TARE_OK; /* without any, that is said */
    if (balanced != r->env->recipe->fa_balance)
        return TARE_FAIL(r->ctx, TARE_E_USAGE,
                         "fa_quant.balance: the statistics in %s are of queries and keys that were "
                         "%sbalanced; tare quantize can change it",
                         t->file.path, balanced ? "" : "not ");
    if (strcmp(method ? method : "max", wanted ? wanted : "max") == 0)
        return TARE_OK;
    return TARE_FAIL(r->ctx, TARE_E_USAGE,
                     "fa_quant.v_method: the statistics in %s have the scales of %s; tare quantize "
                     "can make those of %s",
                     t->file.path, method ? method : "max", wanted);
}

/* ---- the numbers ---- */

static tare_status take_scores(taking *t)
{
    tare_status status = TARE_OK;
    run *r = t->run;
    for (size_t u = 0; u < r->model->num_units; u++) {
        const model_unit *unit = &r->model->units[u];
        double score;
        bool known;
        TRY(statistics_score(&t->file, r->model, u, &score, &known));
        for (size_t i = unit->first; i < unit->first + unit->count; i++)
            r->scores[i] = (linear_score){.known = known, .value = known ? score : 0};
    }
done:
    return status;
}

static tare_status need_scores(const taking *t, const char *setting)
{
    const run *r = t->run;
    for (size_t i = 0; i < r->model->num_linears; i++) {
        const linear_plan *l = &t->plan->linears[i];
        if (!plan_is_float(l) && !l->mixture && !r->scores[i].known)
            return TARE_FAIL(r->ctx, TARE_E_USAGE,
                             "%s: there is no score of %s in %s; tare quantize with "
                             "quant.act_method 3 or fallback.disable_level leaves them",
                             setting, l->name, t->file.path);
    }
    return TARE_OK;
}

static tare_status take_level(taking *t, const value *now)
{
    tare_status status = TARE_OK;
    const run *r = t->run;
    if (r->env->recipe->disable_level == 0)
        return TARE_OK;
    TRY(check_settings(t, now, OF_SCORES));
    TRY(need_scores(t, "fallback.disable_level"));
    TRY(rules_apply_level(r->env->recipe, t->plan->linears, r->scores, r->model->num_linears));
    t->plan->levels_known = true;
done:
    return status;
}

/* The head does. */
static bool reads_norm(const tare_model *m, size_t unit)
{
    const model_block *b = &m->blocks[m->units[unit].block];
    bool is_head = m->units[unit].block == m->num_blocks;
    bool is_expert = !is_head && unit - b->first_unit >= b->graph->num_units;
    return is_head || (!is_expert && unit_reads_norm(b->graph, unit - b->first_unit));
}

static tare_status take_alignment(taking *t)
{
    tare_status status = TARE_OK;
    run *r = t->run;
    TRY(means_create(r, &r->means));
    TRY(statistics_means(&t->file, r->model, means_of(r->means)));
    TRY(model_align(r->model, (const float *const *)means_of(r->means)));
done:
    return status;
}

/* Of units with a static member. */
static tare_status take_inputs(taking *t)
{
    tare_status status = TARE_OK;
    run *r = t->run;
    if (r->env->recipe->act_method == 3 && plan_uses_static(t->plan))
        TRY(need_scores(t, "quant.act_method"));
    for (size_t i = 0; i < r->model->num_linears; i++) {
        size_t unit = r->model->linears[i].unit;
        observer_kind kind = observer_kind_of(r->env, &r->scores[i], reads_norm(r->model, unit));
        unit_statistics u = {.mse = kind == OBSERVER_MSE};
        if (scheme_of(t->plan->linears[i].scheme)->activations != ACT_STATIC)
            continue;
        TRY(statistics_unit(&t->file, t->plan, unit, &u));
        TRY(TARE_WRAP(r->ctx,
                      act_params_from_range(r->ctx, &r->env->num, u.range[kind][0],
                                            u.range[kind][1], kind == OBSERVER_HISTOGRAM,
                                            &r->inputs[unit]),
                      "%s: input of %s", t->file.path, r->model->linears[i].name));
    }
done:
    return status;
}

static tare_status take_kv_cache(taking *t, size_t layer)
{
    tare_status status = TARE_OK;
    run *r = t->run;
    kv_observer **o = &r->kv[layer];
    size_t channels = kv_cache_channels(t->plan, layer);
    float *range = mem_alloc_array(r->ctx, 2 * channels, sizeof *range);
    TRY(range ? TARE_OK : TARE_E_MEMORY);
    TRY(kv_observer_create(r->ctx, t->plan->attentions[layer].name, channels, o));
    for (int kind = 0; kind < KV_KINDS; kind++) {
        TRY(statistics_kv(&t->file, t->plan, layer, (kv_kind)kind, range));
        kv_observer_set(*o, (kv_kind)kind, range, range + channels);
    }
done:
    mem_free(r->ctx, range);
    return status;
}

static tare_status take_attentions(taking *t)
{
    tare_status status = TARE_OK;
    run *r = t->run;
    size_t layers = r->model->num_blocks;
    if (t->plan->num_kv > 0 && !(r->kv = arena_calloc(r->env->arena, layers, sizeof *r->kv)))
        return TARE_E_MEMORY;
    for (size_t i = 0; i < layers; i++) {
        if (t->plan->attentions[i].quantize)
            TRY(statistics_fa(&t->file, t->plan, i, &r->attentions[i]));
        if (t->plan->attentions[i].kv_cache)
            TRY(take_kv_cache(t, i));
    }
done:
    return status;
}

/* What smooth_apply notes of a pair, and shares of its vectors. */
static void settle_pair(const taking *t, const model_block *block, const pair_spec *pair,
                        layer_smoothing *s)
{
    const unit_spec *unit = &block->graph->units[pair->unit];
    tare_dtype round = smooth_native(&t->plan->smooth);
    if (!pair->of_norm) {
        smooth_weight *source = &s->weights[pair->source];
        source->rows_first = !source->cols_scaled;
        source->rows_scaled = true;
        source->round = round;
    }
    for (size_t i = unit->first; i < unit->first + unit->count; i++) {
        s->weights[i].col_scale = s->weights[unit->first].col_scale;
        s->weights[i].cols_scaled = true;
        s->weights[i].round = round;
    }
}

/* Balance takes down_proj's inputs unless they are static: what was seen of them is of one of both.
 */
static tare_status check_balanced(const taking *t, const model_block *block, const pair_spec *pair)
{
    const model_linear *source = block_linear(t->run->model, block, pair->source);
    char name[512];
    snprintf(name, sizeof name, "%s.smooth_rows", source->name);
    if ((safetensors_find(t->file.file, name) != NULL) ==
        smoothing_pair_active(t->plan, block, pair))
        return TARE_OK;
    return TARE_FAIL(t->run->ctx, TARE_E_USAGE,
                     "anti_outlier.anti_method balance: %s was %s in the run of the statistics, "
                     "which its linear's scheme makes another one now; tare quantize does that",
                     source->name,
                     smoothing_pair_active(t->plan, block, pair) ? "not balanced" : "balanced");
}

/* An attention that goes without FA now stands with balanced queries and keys in the statistics. */
static tare_status check_left_out(const taking *t, const model_block *block)
{
    attention_source source;
    char name[512];
    if (balance_active(t->plan, block) || !graph_attention_source(block->graph, 0, &source))
        return TARE_OK;
    if (source.norm >= 0)
        snprintf(name, sizeof name, "%s.smooth", block->norms[source.norm]->name);
    else
        snprintf(name, sizeof name, "%s.smooth_rows",
                 block_linear(t->run->model, block, source.linear)->name);
    if (!safetensors_find(t->file.file, name))
        return TARE_OK;
    return TARE_FAIL(t->run->ctx, TARE_E_USAGE,
                     "fa_quant.balance: %s was balanced in the run of the statistics, and is to go "
                     "without fa_quant; tare quantize does that",
                     t->plan->attentions[block->index].name);
}

static void settle_balance(const model_block *block, layer_smoothing *s)
{
    attention_source source;
    for (int operand = 0; operand < 2; operand++) {
        graph_attention_source(block->graph, operand, &source);
        s->weights[source.linear].rows_scaled = source.norm < 0;
    }
}

static tare_status take_smoothing(taking *t)
{
    tare_status status = TARE_OK;
    run *r = t->run;
    for (size_t b = 0; b < r->model->num_blocks; b++) {
        const model_block *block = &r->model->blocks[b];
        layer_smoothing *s = &r->smoothing[b];
        for (size_t p = 0; p < block->graph->num_pairs; p++) {
            const pair_spec *pair = &block->graph->pairs[p];
            if (t->plan->smooth.method == SMOOTH_BALANCE && is_down_pair(block->graph, pair))
                TRY(check_balanced(t, block, pair));
        }
        if (t->run->env->recipe->fa_balance)
            TRY(check_left_out(t, block));
        TRY(statistics_smoothing(&t->file, t->plan, block, s));
        if (balance_active(t->plan, block))
            settle_balance(block, s);
        for (size_t p = 0; p < block->graph->num_pairs; p++) {
            if (smoothing_pair_active(t->plan, block, &block->graph->pairs[p]))
                settle_pair(t, block, &block->graph->pairs[p], s);
        }
        for (size_t i = 0; i < block->graph->num_linears; i++) {
            const model_linear *l = block_linear(r->model, block, i);
            s->weights[i].name = l->name;
            s->weights[i].n = l->n;
            s->weights[i].k = l->k;
        }
    }
done:
    return status;
}

/* ---- where they come from ---- */

/* Of a linear. They were written in the order of the model, so that none is searched for. */
static const value *scheme_then(const value *schemes, const char *name, size_t index)
{
    bool there = schemes && schemes->type == VALUE_MAP && index < schemes->count &&
                 strcmp(schemes->keys[index].text, name) == 0;
    return there ? &schemes->items[index] : value_get(schemes, name);
}

/* Does a linear put out something else than it did then? */
static bool changed(const taking *t, const value *now, const value *schemes, size_t index)
{
    const linear_plan *l = &t->plan->linears[index];
    const value *recipe = value_get(t->from->record, "recipe");
    const char *type = value_text(scheme_then(schemes, l->name, index));
    linear_scheme then = SCHEME_FLOAT;
    if (type)
        scheme_of_type(type, &then);
    act_kind kind = scheme_of(l->scheme)->activations;
    if (!type || kind != scheme_of(then)->activations || (then == SCHEME_FLOAT) != plan_is_float(l))
        return true;
    if (plan_is_float(l))
        return false;
    return first_difference(recipe, now, OF_WEIGHTS) ||
           (kind == ACT_STATIC && first_difference(recipe, now, OF_STATIC));
}

static void note_elsewhere(taking *t, const char *module)
{
    t->from->elsewhere[t->from->num_elsewhere++] = module;
}

static void judge_unit(taking *t, const value *now, const value *schemes, size_t u, bool *differs)
{
    const tare_model *m = t->run->model;
    const model_unit *unit = &m->units[u];
    bool before = *differs;
    for (size_t i = unit->first; i < unit->first + unit->count; i++) {
        if (before && scheme_of(t->plan->linears[i].scheme)->activations == ACT_STATIC)
            note_elsewhere(t, t->plan->linears[i].name);
        *differs |= changed(t, now, schemes, i);
    }
    if (!*differs || unit->block >= m->num_blocks || u != m->blocks[unit->block].first_unit)
        return;
    const attention_plan *a = &t->plan->attentions[unit->block];
    if (a->quantize || a->kv_cache)
        note_elsewhere(t, a->name);
}

static tare_status judge(taking *t, const value *now)
{
    const run *r = t->run;
    earlier_run *from = t->from;
    const value *schemes = value_get(from->record, "linears");
    bool differs = false;
    size_t most = r->model->num_linears + r->model->num_blocks;
    if (!(from->elsewhere = arena_alloc_array(r->env->arena, most, sizeof *from->elsewhere)))
        return TARE_E_MEMORY;
    for (size_t u = 0; u < r->model->num_units; u++)
        judge_unit(t, now, schemes, u, &differs);
    if (from->num_elsewhere > 0)
        TARE_WARN(r->ctx,
                  "%zu static linears and attentions, %s the first, have the ranges that samples "
                  "showed behind layers of other schemes than are in front of them now; tare "
                  "quantize would show its own",
                  from->num_elsewhere, from->elsewhere[0]);
    return TARE_OK;
}

/* ---- all ---- */

static tare_status take(taking *t)
{
    tare_status status = TARE_OK;
    const value *now;
    TRY(read_record(t));
    TRY(check_model(t));
    TRY(take_scores(t));
    TRY(recipe_value(t->run, &now));
    TRY(take_level(t, now));
    if (t->plan->weights_alone)
        return TARE_OK;
    TRY(check_common(t, now));
    TRY(check_rounding(t));
    TRY(check_attentions(t, now));
    if (plan_aligns(t->plan))
        TRY(take_alignment(t));
    TRY(take_inputs(t));
    TRY(take_attentions(t));
    if (t->plan->smooths)
        TRY(take_smoothing(t));
    TRY(judge(t, now));
done:
    return status;
}

static tare_status refuse_without_file(const taking *t)
{
    const run_env *e = t->run->env;
    if (t->plan->weights_alone && e->recipe->disable_level == 0)
        return TARE_OK;
    return TARE_FAIL(e->ctx, TARE_E_USAGE,
                     "%s has no %s: its run looked at weights alone; this one needs samples (tare "
                     "quantize --calib)",
                     e->options->statistics, STATISTICS_FILE);
}

tare_status statistics_take(run *r, run_plan *plan)
{
    tare_status status = TARE_OK;
    taking t = {.run = r, .plan = plan};
    statistics_file_init(&t.file, r->ctx);
    t.from = r->earlier = arena_calloc(r->env->arena, 1, sizeof *r->earlier);
    char *path = arena_printf(r->env->arena, "%s/%s", r->env->options->statistics, STATISTICS_FILE);
    TRY(t.from && path ? TARE_OK : TARE_E_MEMORY);
    buffer_init(&t.from->digest, r->ctx);
    if (!path_exists(path)) {
        TRY(refuse_without_file(&t));
        goto done;
    }
    t.from->path = t.file.path = path;
    t.file.mode = STATISTICS_READ;
    t.file.home = r->env->arena;
    TRY(safetensors_open(r->ctx, path, &t.file.file));
    TRY(take(&t));
done:
    safetensors_close(t.file.file);
    statistics_file_free(&t.file);
    return status;
}

void statistics_let_go(run *r)
{
    for (size_t i = 0; r->kv && i < r->model->num_blocks; i++)
        kv_observer_free(r->kv[i]);
    if (r->earlier)
        buffer_free(&r->earlier->digest);
}

tare_status statistics_pass_on(run *r)
{
    tare_status status = TARE_OK;
    const char *to;
    if (!r->earlier || !r->earlier->path)
        return TARE_OK;
    TRY(output_stage_statistics(r->out, &to));
    TRY(file_copy(r->ctx, r->earlier->path, to, UINT64_MAX));
done:
    return status;
}

void statistics_digest(const run *r, buffer *out)
{
    buffer_puts(out, r->earlier->path ? r->earlier->digest.data : "\"none\"");
}

void statistics_record(const run *r, buffer *out)
{
    const earlier_run *from = r->earlier;
    buffer_puts(out, "{\"digest\": ");
    statistics_digest(r, out);
    buffer_puts(out, ", \"from_another_stream\": [");
    for (size_t i = 0; i < from->num_elsewhere; i++) {
        buffer_puts(out, i ? ", " : "");
        json_write_string(out, from->elsewhere[i], strlen(from->elsewhere[i]));
    }
    buffer_puts(out, "]}");
}
