/* The life of an output: open, declare, begin, (write,) finish, free. */
#include "output/output.h"

#include <string.h>

#include "output/output_internal.h"
#include "output/reader.h"
#include "output/tape.h"

#define GIB ((uint64_t)1 << 30)
#define MIB ((uint64_t)1 << 20)

char *output_path(output *o, const char *dir, const char *name)
{
    return arena_printf(&o->arena, "%s/%s", dir, name);
}

tare_status output_note_staged(output *o, output_folder *f, const char *name)
{
    char *copy = arena_strndup(&o->arena, name, strlen(name));
    if (!copy)
        return TARE_E_MEMORY;
    tare_status status = mem_grow(o->ctx, (void **)&f->staged, &f->staged_capacity,
                                  f->num_staged + 1, sizeof *f->staged);
    if (status == TARE_OK)
        f->staged[f->num_staged++] = copy;
    return status;
}

tare_status output_stage_text(output *o, output_folder *f, const char *name, const char *text,
                              size_t length)
{
    tare_status status = TARE_OK;
    char *path = path_join(o->ctx, f->stage, name);
    TRY(path ? TARE_OK : TARE_E_MEMORY);
    TRY(file_write_all(o->ctx, path, text, length));
    TRY(output_note_staged(o, f, name));
done:
    mem_free(o->ctx, path);
    return status;
}

tare_status output_open(tare_context *ctx, const output_options *options, output **out)
{
    tare_status status = TARE_OK;
    output *o = mem_calloc(ctx, 1, sizeof *o);

    *out = NULL;
    if (!o)
        return TARE_E_MEMORY;
    o->ctx = ctx;
    o->options = *options;
    arena_init(&o->arena, ctx);
    strmap_init(&o->floats, ctx);
    strmap_init(&o->linears, ctx);
    buffer_init(&o->new_biases, ctx);
    if (!options->tape && !options->save)
        TRY(TARE_FAIL(ctx, TARE_E_USAGE, "no save type was given"));
    if (!options->tape)
        TRY(output_prepare_folders(o));
    *out = o;
    o = NULL;
done:
    output_free(o);
    return status;
}

tare_status output_add_unit(output *o, strmap *map, const char *name, unit_kind kind,
                            output_unit **out)
{
    bool existed;
    char *copy = arena_strndup(&o->arena, name, strlen(name));
    tare_status status = TARE_OK;

    if (o->begun)
        TRY(TARE_FAIL(o->ctx, TARE_E_USAGE, "%s is declared after the output began", name));
    TRY(copy ? TARE_OK : TARE_E_MEMORY);
    TRY(mem_grow(o->ctx, (void **)&o->units, &o->units_capacity, o->num_units + 1,
                 sizeof *o->units));
    TRY(strmap_put(map, copy, strlen(copy), (uint32_t)o->num_units, &existed));
    if (existed)
        TRY(TARE_FAIL(o->ctx, TARE_E_MODEL, "%s would be written twice", name));
    *out = &o->units[o->num_units++];
    memset(*out, 0, sizeof **out);
    (*out)->name = copy;
    (*out)->kind = kind;
done:
    return status;
}

tare_status output_declare_float(output *o, const tensor_info *tensor)
{
    output_unit *u;
    tare_status status = TARE_OK;
    if (o->options.save & SAVE_NUMPY)
        TRY(output_numpy_check(o, tensor));
    TRY(output_add_unit(o, &o->floats, tensor->name, UNIT_FLOAT, &u));
    u->tensor = *tensor;
    u->tensor.name = u->name;
    u->tensor.bytes = (uint64_t)tensor_elements(tensor) * dtype_size(tensor->dtype);
    u->complete = u->tensor.bytes == 0;
done:
    return status;
}

/* Engines drop the bias `name`, because the architecture has none there. */
static tare_status note_new_bias(output *o, const char *name)
{
    if (save_types_with(o->options.save, SAVE_DROPS_BIASES))
        buffer_printf(&o->new_biases, "%s%.*s", o->new_biases.length ? ", " : "",
                      (int)(strlen(name) - (str_ends_with(name, ".bias") ? 5 : 0)), name);
    return o->new_biases.status;
}

tare_status output_declare_linear(output *o, const char *module, const linear_form *form,
                                  const tensor_info *bias, bool is_head)
{
    output_unit *u;
    size_t bytes;
    tare_status status = TARE_OK;
    if (form->n == 0 || form->k == 0 || !size_mul(form->n, form->k, &bytes) ||
        !size_mul(form->n, sizeof(int64_t), &bytes))
        TRY(TARE_FAIL(o->ctx, TARE_E_MODEL, "%s: no valid shape [%zu,%zu]", module, form->n,
                      form->k));
    if (bias && (o->options.save & SAVE_NUMPY))
        TRY(output_numpy_check(o, bias));
    TRY(output_add_unit(o, &o->linears, module, UNIT_LINEAR, &u));
    u->linear = *form;
    u->linear.act_symmetric = o->options.num.act_symmetric;
    u->linear.has_bias = bias != NULL;
    u->linear.bias_dtype = bias ? bias->dtype : TARE_F32;
    u->is_head = is_head;
    o->schemes |= 1u << form->scheme;
    o->head_quantized |= is_head;
    if (form->new_bias && scheme_of(form->scheme)->adds_bias)
        TRY(note_new_bias(o, module));
done:
    return status;
}

tare_status output_declare_new_bias(output *o, const tensor_info *bias)
{
    tare_status status = TARE_OK;
    TRY(note_new_bias(o, bias->name));
    TRY(output_declare_float(o, bias));
    o->units[o->num_units - 1].new_bias = true;
done:
    return status;
}

tare_status output_declare_kv_cache(output *o, const tensor_info *tensor)
{
    tare_status status = TARE_OK;
    unsigned plain = save_types_with(o->options.save, SAVE_PLAIN);
    if (plain)
        TRY(TARE_FAIL(o->ctx, TARE_E_USAGE, "%s has no tensors of an INT8 key/value cache (%s)",
                      save_types_text(plain), tensor->name));
    TRY(output_declare_float(o, tensor));
    o->units[o->num_units - 1].kv_cache = o->kv_cache = true;
done:
    return status;
}

tare_status output_declare_float_linear(output *o, const char *module)
{
    const char *copy = arena_strndup(&o->arena, module, strlen(module));
    if (!copy)
        return TARE_E_MEMORY;
    tare_status status = mem_grow(o->ctx, (void **)&o->float_linears, &o->float_linears_capacity,
                                  o->num_float_linears + 1, sizeof *o->float_linears);
    if (status == TARE_OK)
        o->float_linears[o->num_float_linears++] = copy;
    return status;
}

/* What a layout has no place for, and engines would drop. */
static tare_status refuse_new_biases(const output *o)
{
    unsigned plain = save_types_with(o->options.save, SAVE_PLAIN);
    if (plain && o->shifts_norms)
        return TARE_FAIL(o->ctx, TARE_E_USAGE,
                         "%s cannot hold the biases that anti_outlier's shift gives to norms and "
                         "linears (engines drop them); choose another anti_method or another save "
                         "type",
                         save_types_text(plain));
    if (o->new_biases.length == 0)
        return TARE_OK;
    return TARE_FAIL(
        o->ctx, TARE_E_USAGE,
        "%s cannot hold the bias that anti_outlier's shift gives to linears of these schemes "
        "(engines drop it): %.1500s; choose another anti_method, quantize them as w8a8, or save "
        "as safe_tensor",
        save_types_text(save_types_with(o->options.save, SAVE_DROPS_BIASES)), o->new_biases.data);
}

/* Size of the npy files; numpy arrays hold BF16 as float32. */
static uint64_t numpy_bytes(const output *o, const output_folder *f)
{
    uint64_t bytes = 0, widened = o->options.npy_torch ? 1 : 2;
    for (size_t i = 0; i < f->num_tensors; i++)
        bytes += f->tensors[i].not_numpy
                     ? 0
                     : f->tensors[i].info.bytes *
                           (f->tensors[i].info.dtype == TARE_BF16 ? widened : 1);
    return bytes;
}

static tare_status check_free_space(output *o)
{
    uint64_t needed = 0, available;
    tare_status status = TARE_OK;
    for (size_t i = 0; i < o->num_folders; i++) {
        const output_folder *f = &o->folders[i];
        needed += f->has_files ? output_planned_bytes(f) : 0;
        needed += f->has_numpy ? numpy_bytes(o, f) : 0;
        needed += f->rotation ? o->options.rotation_bytes : 0;
    }
    TRY(folder_free_space(o->ctx, o->stage, &available));
    if (available < needed)
        TRY(TARE_FAIL(o->ctx, TARE_E_FOLDER,
                      "output folder %s: %llu MiB are free, the output needs %llu MiB", o->dir,
                      (unsigned long long)(available / MIB),
                      (unsigned long long)((needed + MIB - 1) / MIB)));
done:
    return status;
}

/* part_file_size -1 is each save type's default; compat shards only when told to. */
static void sharding(const output *o, const output_folder *f, uint64_t *limit, bool *sharded)
{
    int gib = o->options.part_file_size;
    if (gib < 0)
        gib = o->options.num.compat ? 0 : save_type_of(f->layout)->part_gib;
    *limit = (uint64_t)gib * GIB;
    *sharded = gib > 0;
}

tare_status output_begin(output *o)
{
    tare_status status = TARE_OK;
    if (o->begun)
        return TARE_FAIL(o->ctx, TARE_E_USAGE, "the output has begun already");
    o->named_by = o->options.num.compat ? o->options.scheme : scheme_naming(o->schemes);
    TRY(refuse_new_biases(o));
    TRY(output_settle_fa(o));
    if (o->options.tape) {
        TRY(output_tape_begin(o));
        o->begun = true;
        goto done;
    }
    if (o->options.rehearsal && o->fa_kept > 0)
        o->options.fa_amp = 0; /* whichever attentions have FA tensors, they look like the others */
    for (size_t i = 0; i < o->num_folders; i++) {
        uint64_t limit;
        bool sharded;
        sharding(o, &o->folders[i], &limit, &sharded);
        TRY(output_plan_folder(o, &o->folders[i], limit, sharded));
    }
    if (o->options.rehearsal) {
        TRY(output_rehearse(o));
        goto done;
    }
    TRY(output_prepare_stage(o));
    if (o->saved.begun) {
        TRY(output_reopen_files(o)); /* their space is reserved */
    } else {
        TRY(check_free_space(o));
        TRY(output_open_files(o));
    }
    o->begun = true;
done:
    return status;
}

static tare_status check_complete(output *o)
{
    if (!o->begun)
        return TARE_FAIL(o->ctx, TARE_E_USAGE, "the output has not begun");
    if (o->fa_written != o->fa_kept)
        return TARE_FAIL(o->ctx, TARE_E_USAGE,
                         "FA tensors of %zu attention modules were written, not %zu", o->fa_written,
                         o->fa_kept);
    for (size_t i = 0; i < o->num_units; i++)
        if (!o->units[i].complete && o->units[i].kind != UNIT_FA)
            return TARE_FAIL(o->ctx, TARE_E_USAGE, "%s was declared but not written",
                             o->units[i].name);
    return TARE_OK;
}

/* In the order of the final renames: what comes last completes the folder. */
static tare_status stage_folder(output *o, output_folder *f, const copy_list *copies,
                                const char *run_json)
{
    tare_status status = TARE_OK;
    TRY(output_close_files(o, f));
    TRY(output_stage_index(o, f));
    TRY(output_copy_files(o, f, copies));
    if (f->layout == LAYOUT_COMPRESSED_TENSORS) {
        TRY(output_stage_text(o, f, "tare_run.json", run_json, strlen(run_json)));
        TRY(output_stage_config(o, f));
        return TARE_OK;
    }
    TRY(output_stage_config(o, f));
    TRY(output_stage_text(o, f, "tare_run.json", run_json, strlen(run_json)));
    TRY(output_stage_description(o, f));
done:
    return status;
}

tare_status output_finish(output *o, const char *run_json, uint64_t *bytes)
{
    tare_status status = TARE_OK;
    copy_list copies;
    arena names;
    arena_init(&names, o->ctx);
    TRY(check_complete(o));
    if (o->options.tape) {
        TRY(output_tape_finish(o));
        if (bytes)
            *bytes = output_tape_bytes(o->options.tape);
        goto done;
    }
    TRY(output_find_copies(o, &names, &copies));
    for (size_t i = 0; i < o->num_folders; i++)
        TRY(stage_folder(o, &o->folders[i], &copies, run_json));
    if (o->options.verify)
        TRY(output_verify_stage(o));
    TRY(output_publish(o));
    if (bytes)
        *bytes = output_planned_bytes(&o->folders[0]);
done:
    arena_free(&names);
    return status;
}

void output_free(output *o)
{
    if (!o)
        return;
    for (size_t i = 0; i < o->num_folders; i++) {
        (o->keep ? output_leave_files : output_abandon_files)(&o->folders[i]);
        mem_free(o->ctx, o->folders[i].staged);
    }
    if (!o->keep)
        output_remove_stage(o);
    mem_free(o->ctx, o->ranges);
    mem_free(o->ctx, o->saved.complete);
    mem_free(o->ctx, o->saved.ranges);
    mem_free(o->ctx, o->units);
    mem_free(o->ctx, o->float_linears);
    strmap_free(&o->floats);
    strmap_free(&o->linears);
    buffer_free(&o->new_biases);
    arena_free(&o->arena);
    mem_free(o->ctx, o);
}

/* ---- memory ---- */

enum {
    NAME_BYTES = 192,      /* a tensor's name with the arena's rounding */
    HEADER_ENTRY = 512,    /* of a file's header, in a buffer that doubles */
    VERIFY_ENTRY = 1024,   /* a tensor in description, index and header as trees, maps and tables */
    SMALL_THINGS = 1 << 20 /* paths, writers, config.json */
};

/* Tables that grow by doubling hold up to three times what they need while they grow. */
size_t output_state_bytes(size_t tensors, unsigned save)
{
    size_t folders = 0, unit = 3 * sizeof(output_unit) + NAME_BYTES + 6 * 32;
    size_t planned = sizeof(planned_tensor) + sizeof(tensor_info) + 64 + 2 * NAME_BYTES +
                     HEADER_ENTRY + 6 * 32;
    for (int i = 0; i < SAVE_TYPES; i++)
        folders += (save & save_types_beside((layout)i)) != 0;
    return SMALL_THINGS + tensors * (unit + folders * planned);
}

/* append_widened's piece and the pickle text of npy files; what linear_data makes. */
size_t output_write_bytes(size_t n)
{
    return mem_array_bytes(n, sizeof(int64_t)) + mem_array_bytes(32768, sizeof(float));
}

size_t output_rows_bytes(linear_scheme scheme, size_t rows, size_t k, unsigned save)
{
    if (scheme_of(scheme)->weight_bits == 4)
        return mem_array_bytes(rows / 2, k) + mem_array_bytes(rows * INT4_SLICES, sizeof(float));
    return scheme == SCHEME_W8A16 && (save & SAVE_COMPRESSED_TENSORS)
               ? mem_array_bytes(rows * packed_words(k), sizeof(uint32_t))
               : 0;
}

size_t output_finish_bytes(size_t tensors, size_t n, size_t int4)
{
    return 2 * SMALL_THINGS + 2 * tensors * VERIFY_ENTRY + reader_numbers_bytes(n, int4);
}
