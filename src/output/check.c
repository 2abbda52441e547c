/* Judging an output by the rules of verify: what is staged, before it gets its final names; and
 * what is only planned, before the first layer is computed - a run of hours must not end with what
 * could be known at its beginning. */
#include <string.h>

#include "file/json.h"
#include "output/output_internal.h"
#include "output/targets.h"
#include "output/verify_internal.h"

/* Keeps the first failure of a verification. */
static void keep_first_failure(void *user, const tare_finding *finding)
{
    buffer *first = user;
    if (finding->severity != TARE_FINDING_FAILURE || first->length > 0)
        return;
    buffer_printf(first, "rule %d: %s: found %s, expected %s", finding->rule, finding->tensor,
                  finding->found, finding->expected);
}

static tare_verify_options options_of(output *o, buffer *first)
{
    tare_verify_options options;
    tare_verify_options_init(&options);
    options.dir = o->stage;
    options.compat = o->options.num.compat ? "msmodelslim" : NULL;
    options.safetensors_name = o->options.safetensors_name;
    options.json_name = o->options.json_name;
    options.finding = keep_first_failure;
    options.user = first;
    if (o->options.target.engine != ENGINE_NONE)
        options.target = serving_target_text(&o->options.target, o->target);
    return options;
}

static tare_status conclude(output *o, tare_status status, const tare_verify_result *result,
                            const buffer *first)
{
    if (status != TARE_E_VERIFY || first->length == 0)
        return status;
    return TARE_FAIL(o->ctx, TARE_E_VERIFY, "the output %s %zu %s, the first is %s",
                     o->options.rehearsal ? "would break" : "breaks", result->failures,
                     result->failures == 1 ? "rule" : "rules", first->data);
}

tare_status output_verify_stage(output *o)
{
    tare_verify_result result = {.size = sizeof result};
    buffer first;
    buffer_init(&first, o->ctx);
    tare_verify_options options = options_of(o, &first);
    tare_status status = conclude(o, tare_verify(o->ctx, &options, &result), &result, &first);
    buffer_free(&first);
    return status;
}

/* ---- the rehearsal ---- */

/* What a folder's files would hold; `late`: with all FA tensors, of which some will be there, and
 * it is not known which. */
typedef struct planned_list {
    const output_folder *f;
    bool late;
} planned_list;

static const tensor_info *planned_at(const void *user, size_t index, const char **type)
{
    const planned_list *l = user;
    const planned_tensor *t = &l->f->tensors[index];
    *type = t->absent || l->f->layout == LAYOUT_COMPRESSED_TENSORS ? NULL : t->type;
    return l->late || !t->absent ? &t->info : NULL;
}

/* The layout that the target's engine would be given, of those that are written. */
static bool is_for_target(const output *o, layout which)
{
    const serving_target *t = &o->options.target;
    return t->engine != ENGINE_NONE && target_layout(t, o->options.save) == which;
}

static tare_status rehearse_target(output *o, const output_folder *f, reader_plan plan,
                                   const tare_verify_options *options)
{
    const planned_list late = {f, o->fa_kept > 0};
    plan.user = &late;
    return verify_planned_target(o->ctx, options, &plan);
}

static tare_status rehearse_layout(output *o, output_folder *f, layout which, const char *config)
{
    tare_verify_result result = {0};
    tare_status status = TARE_OK;
    buffer first, description;
    const planned_list now = {f, false};
    reader_plan plan = {.layout = which,
                        .config = config,
                        .tensor = planned_at,
                        .user = &now,
                        .weight_offsets = o->options.weight_offsets};
    buffer_init(&first, o->ctx);
    buffer_init(&description, o->ctx);
    if (which != LAYOUT_NUMPY) { /* the names of its arrays are made while they are written */
        plan.num_tensors = f->num_tensors;
        TRY(output_description_globals(o, f, &description));
    }
    if (description.length > 0) {
        plan.description = description.data;
        plan.description_name = output_description_name(o, which);
        TRY(plan.description_name ? TARE_OK : TARE_E_MEMORY);
    }
    tare_verify_options options = options_of(o, &first);
    if (is_for_target(o, which))
        TRY(rehearse_target(o, f, plan, &options));
    if (o->options.verify)
        TRY(conclude(o, verify_planned(o->ctx, &options, &plan, &result), &result, &first));
done:
    buffer_free(&first);
    buffer_free(&description);
    return status;
}

static tare_status rehearse_folder(output *o, output_folder *f)
{
    tare_status status = TARE_OK;
    buffer config;
    buffer_init(&config, o->ctx);
    TRY(output_config_text(o, f, &config));
    bool looks = o->options.verify || o->options.target.engine != ENGINE_NONE;
    if (looks && f->has_files)
        TRY(rehearse_layout(o, f, f->layout, config.data));
    if (looks && f->has_numpy)
        TRY(rehearse_layout(o, f, LAYOUT_NUMPY, config.data));
done:
    buffer_free(&config);
    return status;
}

static tare_status check_json(output *o, const char *path)
{
    tare_status status = TARE_OK;
    char *text = NULL;
    size_t length;
    const value *root;
    arena a;
    arena_init(&a, o->ctx);
    TRY(file_read_all(o->ctx, path, COPY_MAX_BYTES, &text, &length));
    if (strspn(text, " \t\r\n") < length) /* a blank file says nothing */
        TRY(json_parse(o->ctx, &a, text, length, path, JSON_PYTHON, &root));
done:
    arena_free(&a);
    mem_free(o->ctx, text);
    return status;
}

/* What readers of the output parse must be JSON, and no pointer or page that a download left. */
static tare_status check_json_copies(output *o, const copy_list *copies)
{
    static const char *const names[] = {"generation_config.json",   "tokenizer_config.json",
                                        "special_tokens_map.json",  "added_tokens.json",
                                        "preprocessor_config.json", "processor_config.json"};
    tare_status status = TARE_OK;
    for (size_t i = 0; i < copies->count; i++) {
        for (size_t n = 0; n < sizeof names / sizeof *names; n++) {
            if (copies->files[i].path && strcmp(copies->files[i].name, names[n]) == 0)
                TRY(check_json(o, copies->files[i].path));
        }
    }
done:
    return status;
}

/* Does the target's engine read any of the save types? */
static tare_status check_save_types(output *o)
{
    char name[TARGET_TEXT];
    const serving_target *t = &o->options.target;
    if (t->engine == ENGINE_NONE || (target_layouts(t) & o->options.save))
        return TARE_OK;
    const target_layer plain = {.layout = target_layout(t, o->options.save),
                                .subject = SUBJECT_LINEAR,
                                .type = TYPE_FLOAT,
                                .family = ""};
    return TARE_FAIL(o->ctx, TARE_E_USAGE, "save.types: %s is not for %s: %s; save as %s",
                     save_types_text(o->options.save), serving_target_text(t, name),
                     target_judge(t, &plain)->why, save_types_text(target_layouts(t)));
}

tare_status output_rehearse(output *o)
{
    tare_status status = TARE_OK;
    copy_list copies;
    arena a;
    arena_init(&a, o->ctx);
    TRY(check_save_types(o));
    TRY(output_find_copies(o, &a, &copies));
    TRY(check_json_copies(o, &copies));
    for (size_t i = 0; i < o->num_folders; i++)
        TRY(rehearse_folder(o, &o->folders[i]));
done:
    arena_free(&a);
    return status;
}
