/* `tare verify`: recognises the layouts of a folder and runs the rules of docs/verify.md on them
 * (specification: output_formats.md 9). A new rule is a function and a row of the table. */
#include <stdio.h>
#include <string.h>

#include "base/progress.h"
#include "file/json.h"
#include "output/verify_internal.h"

enum { A = SAVE_ASCENDV1, S = SAVE_SAFE_TENSOR, N = SAVE_NUMPY, C = SAVE_COMPRESSED_TENSORS };
enum { CONFIG_MAX_BYTES = 16 << 20 };
enum { NEEDS_TENSORS = 1, NEEDS_BASE = 2 };

typedef struct verify_rule {
    int number;
    unsigned layouts, needs;
    tare_status (*folder)(vfolder *f);
    tare_status (*linear)(vfolder *f, const vlinear *l, const vnumbers *n);
} verify_rule;

static const verify_rule RULES[] = {
    {1, A | S | N | C, 0, rule_containers, NULL},
    {2, A | S | C, 0, rule_shards, NULL},
    {3, A | S, 0, rule_description, NULL},
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
    {12, A | S | N, NEEDS_TENSORS, NULL, rule_integer_range},
    {13, A | S | C, NEEDS_TENSORS, rule_fused, NULL},
    {14, A | S, NEEDS_TENSORS | NEEDS_BASE, rule_base_tensors, NULL},
    {15, A | S | C, NEEDS_TENSORS | NEEDS_BASE, NULL, rule_base_distance},
    {16, A, NEEDS_TENSORS, rule_norms_ascend, NULL},
    {17, S, NEEDS_TENSORS, rule_norms_module, NULL},
    {18, A | S, NEEDS_TENSORS, rule_kv, NULL},
    {19, A | S, NEEDS_TENSORS, rule_fa, NULL},
    {20, A | S, 0, rule_kv_or_fa, NULL},
    {21, A, 0, rule_config_ascend, NULL},
    {22, S, 0, rule_config_quantize, NULL},
    {24, A | C, NEEDS_TENSORS, rule_experts, NULL},
    {25, A | S | C, NEEDS_BASE, rule_base_files, NULL},
    {26, N, NEEDS_TENSORS, rule_npy_keys, NULL},
    {27, A | S | N | C, NEEDS_TENSORS, rule_layouts_agree, NULL},
    {28, A, NEEDS_TENSORS, rule_new_biases, NULL},
    {29, A, NEEDS_TENSORS, rule_prefixes, NULL},
};
enum { NUM_RULES = sizeof RULES / sizeof *RULES };

/* ---- findings ---- */

static void report(verify *v, int rule, tare_severity severity, const char *tensor,
                   const char *expected, const char *format, va_list arguments)
{
    char found[512];
    vsnprintf(found, sizeof found, format, arguments);
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

/* ---- which layouts ---- */

/* A checkpoint is tare's if tare left its record beside it, and anybody's compressed-tensors if
 * config.json says so. */
static tare_status is_compressed(tare_context *ctx, const char *dir, char *const *names,
                                 size_t count, bool *out)
{
    const value *config = NULL;
    bool weights = false;
    tare_status status = TARE_OK;
    char *path = NULL;
    arena a;
    arena_init(&a, ctx);
    *out = false;
    for (size_t i = 0; i < count; i++) {
        weights |= layout_is_model_file(names[i]);
        *out |= strcmp(names[i], "tare_run.json") == 0;
    }
    *out &= weights;
    if (*out || !weights)
        goto done;
    path = path_join(ctx, dir, "config.json");
    TRY(path ? TARE_OK : TARE_E_MEMORY);
    status = json_parse_file(ctx, &a, path, CONFIG_MAX_BYTES, &config);
    if (status == TARE_E_FORMAT || status == TARE_E_IO)
        status = TARE_OK; /* it says nothing */
    const value *method = value_get(value_get(config, "quantization_config"), "quant_method");
    *out = method && method->type == VALUE_STRING &&
           strcmp(method->text, "compressed-tensors") == 0;
done:
    mem_free(ctx, path);
    arena_free(&a);
    return status;
}

/* The name of the safe_tensor layout's description or only weight file as the options give it. */
static bool is_given_name(const verify *v, const char *name)
{
    const tare_verify_options *o = v->options;
    return (o->json_name && strcmp(name, o->json_name) == 0) ||
           (o->safetensors_name && strcmp(name, o->safetensors_name) == 0);
}

/* Layouts whose files are among the names, as a set of A, S, N; C has no names of its own. */
static unsigned recognise(const verify *v, char *const *names, size_t count)
{
    bool ascend = false, safe = false, ascend_weights = false, safe_weights = false;
    unsigned found = 0;
    for (size_t i = 0; i < count; i++) {
        const char *name = names[i];
        ascend |= strcmp(name, "quant_model_description.json") == 0;
        safe |= str_starts_with(name, "quant_model_description_") || is_given_name(v, name);
        ascend_weights |= str_starts_with(name, "quant_model_weights");
        safe_weights |= str_starts_with(name, "quant_model_weight_");
        for (int k = 0; k < NPY_FILES; k++)
            if (strcmp(name, npy_file_name((npy_file)k)) == 0)
                found |= N;
    }
    if (ascend || (!safe && ascend_weights))
        found |= A;
    else if (safe || safe_weights)
        found |= S;
    return found;
}

static tare_status open_layouts(verify *v, const char *dir, unsigned *found)
{
    char **names = NULL;
    size_t count = 0;
    tare_status status = TARE_OK;

    TRY(folder_list(v->ctx, dir, &names, &count));
    *found = recognise(v, names, count);
    if (!*found) {
        bool compressed;
        TRY(is_compressed(v->ctx, dir, names, count, &compressed));
        *found = compressed ? C : 0;
    }
    for (int which = 0; which < SAVE_TYPES; which++) {
        if (!(*found & 1u << which) || v->num_folders == VERIFY_MAX_FOLDERS)
            continue;
        vfolder *f = &v->folders[v->num_folders++];
        TRY(verify_folder_open(v, (layout)which, dir, f));
    }
done:
    folder_list_free(v->ctx, names, count);
    return status;
}

tare_status verify_open_folders(verify *v, arena *a, unsigned *found)
{
    tare_status status = TARE_OK;
    unsigned here;

    TRY(open_layouts(v, v->options->dir, found));
    if (*found)
        goto done;
    for (int i = 0; i < SAVE_TYPES; i++) {
        char *dir = arena_printf(a, "%s/%s", v->options->dir, save_type_of((layout)i)->folder);
        TRY(dir ? TARE_OK : TARE_E_MEMORY);
        if (!save_types_beside((layout)i) || !path_is_folder(dir))
            continue;
        TRY(open_layouts(v, dir, &here));
        *found |= here;
    }
done:
    return status;
}

/* ---- running the rules ---- */

static bool applies(const verify_rule *rule, const vfolder *f)
{
    if (!(rule->layouts & 1u << f->layout))
        return false;
    if ((rule->needs & NEEDS_TENSORS) && f->broken)
        return false;
    return !(rule->needs & NEEDS_BASE) || f->v->base;
}

/* One linear at a time is in memory. */
static tare_status run_linear_rules(vfolder *f, const vlinear *l)
{
    vnumbers numbers;
    tare_status status = TARE_OK;
    if (!l->complete)
        return TARE_OK;
    TRY(context_check_cancelled(f->v->ctx));
    TRY(verify_numbers_load(f, l, &numbers));
    for (int i = 0; i < NUM_RULES && status == TARE_OK; i++)
        if (RULES[i].linear && applies(&RULES[i], f))
            status = RULES[i].linear(f, l, &numbers);
    verify_numbers_free(f->v->ctx, &numbers);
done:
    return status;
}

static tare_status run_rules(verify *v, vfolder *f)
{
    tare_status status = TARE_OK;
    for (int i = 0; i < NUM_RULES; i++)
        if (RULES[i].folder && applies(&RULES[i], f))
            TRY(RULES[i].folder(f));
    progress p;
    progress_begin(&p, v->ctx, "verify", "linear", f->num_linears);
    for (size_t i = 0; i < f->num_linears && !f->broken; i++) {
        TRY(run_linear_rules(f, &f->linears[i]));
        progress_unit_done(&p);
    }
done:
    return status;
}

/* The engines, and what they load (specification, section 1). */
static const struct {
    const char *name;
    unsigned layouts;
} TARGETS[] = {{"vllm-ascend", A | C}, {"mindie", S}, {"vllm", C}};

static unsigned layouts_of_target(const char *name)
{
    for (size_t i = 0; name && i < sizeof TARGETS / sizeof *TARGETS; i++)
        if (strcmp(name, TARGETS[i].name) == 0)
            return TARGETS[i].layouts;
    return 0;
}

static tare_status check_options(verify *v)
{
    const tare_verify_options *o = v->options;
    if (o->target && layouts_of_target(o->target) == 0)
        return TARE_FAIL(v->ctx, TARE_E_USAGE,
                         "target %s is unknown; known are vllm-ascend, mindie and vllm", o->target);
    if (o->compat && strcmp(o->compat, "msmodelslim") != 0)
        return TARE_FAIL(v->ctx, TARE_E_USAGE, "compat %s is unknown; known is msmodelslim",
                         o->compat);
    if (!o->dir || !path_is_folder(o->dir))
        return TARE_FAIL(v->ctx, TARE_E_USAGE, "%s is not a folder", o->dir ? o->dir : "(none)");
    v->compat = o->compat != NULL;
    return TARE_OK;
}

static tare_status conclude(verify *v)
{
    if (v->error_count > 0)
        TARE_INFO(v->ctx,
                  "%s: error of the weights against the base, in scales: max %.3f, mean %.4f",
                  v->error_type, v->error_max, v->error_sum / (double)v->error_count);
    if (v->result->failures == 0)
        return TARE_OK;
    return TARE_FAIL(v->ctx, TARE_E_VERIFY, "%s breaks a rule in %zu places", v->options->dir,
                     v->result->failures);
}

void tare_verify_options_init(tare_verify_options *options)
{
    memset(options, 0, sizeof *options);
}

tare_status tare_verify(tare_context *ctx, const tare_verify_options *options,
                        tare_verify_result *result)
{
    tare_verify_result unused;
    tare_status status = TARE_OK;
    unsigned found = 0;
    arena a;
    verify v = {.ctx = ctx, .options = options, .result = result ? result : &unused};

    memset(v.result, 0, sizeof *v.result);
    v.result->layout = save_types_text(0);
    arena_init(&a, ctx);
    TRY(check_options(&v));
    if (options->base) {
        v.base_dir = options->base;
        TRY(checkpoint_open(ctx, options->base, &v.base));
    }
    TRY(verify_open_folders(&v, &a, &found));
    v.result->layout = save_types_text(found);
    if (!found)
        verify_fail(&v, 0, options->dir,
                    "files of the layouts ascendv1, safe_tensor, numpy or compressed-tensors",
                    "none of them");
    else if (options->target && !(found & layouts_of_target(options->target)))
        verify_warn(&v, 0, options->dir, save_types_text(layouts_of_target(options->target)),
                    "%s, which %s does not load", save_types_text(found), options->target);
    for (size_t i = 0; i < v.num_folders; i++) {
        v.result->tensors += v.folders[i].num_tensors;
        TRY(run_rules(&v, &v.folders[i]));
    }
    TRY(conclude(&v));
done:
    for (size_t i = 0; i < v.num_folders; i++)
        verify_folder_close(&v.folders[i]);
    checkpoint_close(v.base);
    arena_free(&a);
    return status;
}
