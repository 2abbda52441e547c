/* `tare verify`: recognises the layouts of a folder and runs the rules of docs/verify.md on them
 * (specification: output_formats.md 9). A new rule is a function and a row of the table. */
#include <stdio.h>
#include <string.h>

#include "base/number.h"
#include "base/progress.h"
#include "base/sized.h"
#include "file/json.h"
#include "output/targets.h"
#include "output/verify_internal.h"

enum { A = SAVE_ASCENDV1, S = SAVE_SAFE_TENSOR, N = SAVE_NUMPY, C = SAVE_COMPRESSED_TENSORS };
enum { CONFIG_MAX_BYTES = 16 << 20 };
enum { NEEDS_TENSORS = 1, NEEDS_BASE = 2, NEEDS_DATA = 4 /* or the files themselves */ };

typedef struct verify_rule {
    int number;
    unsigned layouts, needs;
    tare_status (*folder)(verify *v, reader_layout *f);
    tare_status (*linear)(verify *v, reader_layout *f, const reader_linear *l,
                          const reader_numbers *n);
} verify_rule;

static const verify_rule RULES[] = {
    {1, A | S | N | C, NEEDS_DATA, rule_containers, NULL},
    {2, A | S | C, NEEDS_DATA, rule_shards, NULL},
    {3, A | S, 0, rule_description, NULL},
    {3, A, NEEDS_DATA, rule_rotation_file, NULL},
    {4, A | S, NEEDS_TENSORS, rule_keys, NULL},
    {5, A | S, NEEDS_TENSORS, rule_types, NULL},
    {6, A | S | N, NEEDS_TENSORS, rule_linear_tensors, NULL},
    {23, C, 0, rule_compressed_config, NULL},
    {23, C, NEEDS_TENSORS, rule_compressed_linears, NULL},
    {7, A | S | N, NEEDS_TENSORS, rule_deq_dtype, rule_deq_bits},
    {8, A | S | N | C, NEEDS_TENSORS, NULL, rule_scales},
    {9, A | S | N | C, NEEDS_TENSORS, NULL, rule_offsets},
    {10, A | S | N, NEEDS_TENSORS, NULL, rule_deq_product},
    {11, A | S | N, NEEDS_TENSORS, NULL, rule_quant_bias},
    {11, A, NEEDS_TENSORS, NULL, rule_scale_bias},
    {12, A | S | N, NEEDS_TENSORS, NULL, rule_integer_range},
    {13, A | S | C, NEEDS_TENSORS, rule_fused, NULL},
    {14, A | S, NEEDS_TENSORS | NEEDS_BASE, rule_base_tensors, NULL},
    {15, A | S | C, NEEDS_TENSORS | NEEDS_BASE, NULL, rule_base_distance},
    {16, A, NEEDS_TENSORS, rule_norms_ascend, NULL},
    {17, S, NEEDS_TENSORS | NEEDS_DATA, rule_norms_module, NULL},
    {18, A | S, NEEDS_TENSORS | NEEDS_DATA, rule_kv, NULL},
    {19, A | S, NEEDS_TENSORS | NEEDS_DATA, rule_fa, NULL},
    {20, A | S, 0, rule_kv_or_fa, NULL},
    {21, A, 0, rule_config_ascend, NULL},
    {22, S, 0, rule_config_quantize, NULL},
    {24, A | C, NEEDS_TENSORS, rule_experts, NULL},
    {25, A | S | C, NEEDS_BASE, rule_base_files, NULL},
    {26, N, NEEDS_TENSORS | NEEDS_DATA, rule_npy_keys, NULL},
    {27, A | S | N | C, NEEDS_TENSORS | NEEDS_DATA, rule_layouts_agree, NULL},
    {28, A, NEEDS_TENSORS, rule_new_biases, NULL},
    {29, A, NEEDS_TENSORS, rule_prefixes, NULL},
    {31, A | S | C, NEEDS_TENSORS, rule_mtp, NULL}, /* 30: verify_target.c */
};
enum { NUM_RULES = sizeof RULES / sizeof *RULES };

/* ---- findings ---- */

static void report(verify *v, int rule, tare_severity severity, const char *tensor,
                   const char *expected, const char *format, va_list arguments)
{
    char found[512];
    text_vformat(found, sizeof found, format, arguments);
    if (severity == TARE_FINDING_FAILURE)
        v->result->failures++;
    else
        v->result->warnings++;
    tare_finding finding = {rule, severity, tensor, found, expected};
    if (v->options->finding)
        v->options->finding(v->options->user, &finding);
}

void verify_fail(verify *v, int rule, const char *tensor, const char *expected, const char *found,
                 ...)
{
    va_list arguments;
    va_start(arguments, found);
    report(v, rule, TARE_FINDING_FAILURE, tensor, expected, found, arguments);
    va_end(arguments);
}

void verify_warn(verify *v, int rule, const char *tensor, const char *expected, const char *found,
                 ...)
{
    va_list arguments;
    va_start(arguments, found);
    report(v, rule, TARE_FINDING_WARNING, tensor, expected, found, arguments);
    va_end(arguments);
}

/* What could not be read is a finding of the rule on such files. */
static void note_fault(void *user, reader_fault fault, layout which, const char *name,
                       const char *expected, const char *found)
{
    static const int rules[] = {
        [FAULT_WEIGHTS] = 1, [FAULT_NPY] = 26, [FAULT_TWICE] = 1, [FAULT_DESCRIPTION] = 3};
    int rule = fault != FAULT_CONFIG                ? rules[fault]
               : which == LAYOUT_ASCENDV1           ? 21
               : which == LAYOUT_COMPRESSED_TENSORS ? 23
                                                    : 22;
    verify_fail(user, rule, name, expected, "%s", found);
}

static reader_options reading_of(verify *v)
{
    return (reader_options){.safetensors_name = v->options->safetensors_name,
                            .json_name = v->options->json_name,
                            .compat = v->options->compat != NULL,
                            .fault = note_fault,
                            .user = v};
}

/* ---- running the rules ---- */

static bool applies(const verify *v, const verify_rule *rule, const reader_layout *f)
{
    if (!(rule->layouts >> f->layout & 1))
        return false;
    if ((rule->needs & NEEDS_TENSORS) && f->broken)
        return false;
    if ((rule->needs & NEEDS_DATA) && f->plan)
        return false;
    return !(rule->needs & NEEDS_BASE) || v->base;
}

/* One linear at a time is in memory. */
static tare_status run_linear_rules(verify *v, reader_layout *f, const reader_linear *l)
{
    reader_numbers numbers;
    tare_status status = TARE_OK;
    if (!l->complete)
        return TARE_OK;
    TRY(context_check_cancelled(v->ctx));
    TRY(reader_numbers_load(f, l, &numbers));
    for (int i = 0; i < NUM_RULES && status == TARE_OK; i++)
        if (RULES[i].linear && applies(v, &RULES[i], f))
            status = RULES[i].linear(v, f, l, &numbers);
    reader_numbers_free(v->ctx, &numbers);
done:
    return status;
}

static tare_status run_layout_rules(verify *v, reader_layout *f)
{
    tare_status status = TARE_OK;
    for (int i = 0; i < NUM_RULES; i++)
        if (RULES[i].folder && applies(v, &RULES[i], f))
            TRY(RULES[i].folder(v, f));
done:
    return status;
}

static tare_status run_rules(verify *v, reader_layout *f)
{
    tare_status status = TARE_OK;
    TRY(run_layout_rules(v, f));
    progress p;
    progress_begin(&p, v->ctx, "verify", "linear", f->num_linears);
    for (size_t i = 0; i < f->num_linears && !f->broken; i++) {
        TRY(run_linear_rules(v, f, &f->linears[i]));
        progress_unit_done(&p);
    }
done:
    return status;
}

static tare_status take_target(verify *v)
{
    tare_status status = TARE_OK;
    if (!v->options->target)
        return TARE_OK;
    TRY(serving_target_parse(v->ctx, v->options->target, &v->target));
    v->result->engine = engine_of(v->target.engine)->name;
    engine_version_text(v->target.version, v->result->version);
done:
    return status;
}

static tare_status check_options(verify *v)
{
    const tare_verify_options *o = v->options;
    tare_status status = take_target(v);
    if (status != TARE_OK)
        return status;
    if (o->compat && strcmp(o->compat, "msmodelslim") != 0)
        return TARE_FAIL(v->ctx, TARE_E_USAGE, "compat %s is unknown; known is msmodelslim",
                         o->compat);
    if (!o->dir || !path_is_folder(o->dir))
        return TARE_FAIL(v->ctx, TARE_E_USAGE, "%s is not a folder", o->dir ? o->dir : "(none)");
    return TARE_OK;
}

/* Of several layouts the one that the engine would be given. */
static tare_status judge_layers(verify *v)
{
    tare_status status = TARE_OK;
    if (v->target.engine == ENGINE_NONE || !v->output.found)
        return TARE_OK;
    layout which = target_layout(&v->target, v->output.found);
    for (size_t i = 0; i < v->output.num_layouts; i++) {
        reader_layout *f = &v->output.layouts[i];
        if (f->layout == which && !f->broken)
            TRY(verify_layers(v, f));
    }
done:
    return status;
}

static tare_status conclude(verify *v)
{
    for (int i = 0; i < SCHEMES; i++) {
        const base_error *e = &v->errors[i];
        if (e->count > 0)
            TARE_INFO(v->ctx,
                      "%s: error of the weights against the base, in scales: max %.3f, mean %.4f",
                      scheme_of((linear_scheme)i)->type, e->max, e->sum / (double)e->count);
    }
    if (v->result->failures == 0)
        return TARE_OK;
    return TARE_FAIL(v->ctx, TARE_E_VERIFY, "%s breaks a rule in %zu places", v->options->dir,
                     v->result->failures);
}

/* Its config.json tells which tensors the model uses; one that cannot be read tells nothing. */
static tare_status open_base(verify *v, arena *a)
{
    tare_status status = TARE_OK;
    char *text = NULL, *path = path_join(v->ctx, v->options->base, "config.json");
    model_config *config = arena_alloc(a, sizeof *config);
    size_t length;
    TRY(path && config ? TARE_OK : TARE_E_MEMORY);
    v->base_dir = v->options->base;
    TRY(checkpoint_open(v->ctx, v->base_dir, &v->base));
    status = file_read_all(v->ctx, path, CONFIG_MAX_BYTES, &text, &length);
    if (status == TARE_OK)
        status = model_config_parse(v->ctx, a, text, length, path, config);
    if (status == TARE_OK) {
        v->base_config = config;
        model_config_graphs(config, v->base_graphs);
    } else if (status != TARE_E_MEMORY) {
        status = TARE_OK;
    }
done:
    mem_free(v->ctx, text);
    mem_free(v->ctx, path);
    return status;
}

void tare_verify_options_init_sized(tare_verify_options *options, size_t size)
{
    const tare_verify_options defaults = {0};
    sized_init(options, size, &defaults, sizeof defaults);
}

static tare_status verify_all(tare_context *ctx, const tare_verify_options *options,
                              tare_verify_result *result)
{
    tare_status status = TARE_OK;
    arena a;
    verify v = {.ctx = ctx, .options = options, .result = result};
    reader_options how = reading_of(&v);

    arena_init(&a, ctx);
    TRY(check_options(&v));
    if (options->base)
        TRY(open_base(&v, &a));
    TRY(verify_open_run(&v, &a));
    if (options->base)
        TRY(verify_rotate_base(&v, &a));
    TRY(reader_open(ctx, options->dir, &how, &v.output));
    unsigned found = v.output.found;
    v.result->layout = save_types_text(found);
    if (!found)
        verify_fail(&v, 0, options->dir,
                    "files of the layouts ascendv1, safe_tensor, numpy or compressed-tensors",
                    "none of them");
    for (size_t i = 0; i < v.output.num_layouts; i++) {
        v.result->tensors += v.output.layouts[i].num_tensors;
        TRY(run_rules(&v, &v.output.layouts[i]));
    }
    TRY(judge_layers(&v));
    TRY(conclude(&v));
done:
    reader_close(&v.output);
    checkpoint_close(v.base);
    safetensors_close(v.statistics);
    tare_model_free(v.rotated);
    arena_free(&a);
    return status;
}

tare_status tare_verify(tare_context *ctx, const tare_verify_options *options,
                        tare_verify_result *result)
{
    tare_verify_options o;
    tare_verify_result made = {.layout = save_types_text(0)};
    tare_verify_options_init(&o);
    tare_status status = SIZED_CHECK(ctx, tare_verify_result, result);
    if (status != TARE_OK)
        return status;
    status = SIZED_TAKE(ctx, tare_verify_options, options, &o);
    if (status == TARE_OK)
        status = verify_all(ctx, &o, &made);
    sized_give(result, &made, sizeof made);
    return status;
}

tare_status verify_planned(tare_context *ctx, const tare_verify_options *options,
                           const reader_plan *plan, tare_verify_result *result)
{
    tare_status status = TARE_OK;
    verify v = {.ctx = ctx, .options = options, .result = result};
    reader_options how = reading_of(&v);
    TRY(reader_open_plan(ctx, plan, &how, &v.output));
    TRY(run_layout_rules(&v, &v.output.layouts[0]));
    TRY(conclude(&v));
done:
    reader_close(&v.output);
    return status;
}

tare_status verify_planned_target(tare_context *ctx, const tare_verify_options *options,
                                  const reader_plan *plan)
{
    tare_status status = TARE_OK;
    tare_verify_result result = {0};
    verify v = {.ctx = ctx, .options = options, .result = &result};
    reader_options how = reading_of(&v);
    TRY(take_target(&v));
    TRY(reader_open_plan(ctx, plan, &how, &v.output));
    TRY(verify_layers_of_plan(&v, &v.output.layouts[0]));
done:
    reader_close(&v.output);
    return status;
}
