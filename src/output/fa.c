/* FA tensors of attention modules (specification: fa3.md 1.7). With fa_amp > 0 it is known how many
 * modules have them, but not which ones until the last layer is done. So as many places are kept
 * behind all other tensors, under names that only reserve room in the file's header; each module
 * takes the next ones when it is written, and gives them its names. */
#include <string.h>

#include "output/output_internal.h"
#include "tensor/convert.h"

tare_status output_declare_fa(output *o, const char *module, const size_t heads[FA_KINDS])
{
    output_unit *u;
    tare_status status = TARE_OK;
    unsigned plain = save_types_with(o->options.save, SAVE_PLAIN);
    if (plain)
        TRY(TARE_FAIL(o->ctx, TARE_E_USAGE, "%s has no FA tensors (%s)", save_types_text(plain),
                      module));
    TRY(output_add_unit(o, &o->linears, module, UNIT_FA, &u));
    memcpy(u->heads, heads, sizeof u->heads);
    o->num_fa++;
done:
    return status;
}

tare_status output_settle_fa(output *o)
{
    const output_unit *first = NULL;
    size_t amp = o->options.fa_amp;
    o->fa_kept = o->num_fa > amp ? o->num_fa - amp : 0;
    for (size_t i = 0; i < o->num_units && amp > 0; i++) {
        const output_unit *u = &o->units[i];
        if (u->kind != UNIT_FA)
            continue;
        first = first ? first : u;
        if (memcmp(first->heads, u->heads, sizeof u->heads) != 0)
            return TARE_FAIL(o->ctx, TARE_E_MODEL,
                             "fa_amp needs attention modules of one shape, %s and %s differ",
                             first->name, u->name);
    }
    if (o->options.rehearsed)
        return TARE_OK;
    if (o->num_fa > 0 && o->fa_kept == 0)
        TARE_WARN(o->ctx, "every attention goes without FA quantization: no FA tensor is written");
    if (o->fa_kept > 0 && (o->options.save & SAVE_ASCENDV1) && !o->options.fa_latent)
        TARE_WARN(o->ctx, "vLLM-Ascend reads FA scales of latent attention (MLA) only; these are "
                          "for MindIE and scripts");
    return TARE_OK;
}

size_t output_expand_fa(const output *o, const output_folder *f, const output_unit *u,
                        planned_tensor *tensors)
{
    for (int i = 0; tensors && i < FA_TENSORS; i++) {
        tensors[i] = (planned_tensor){
            .type = "FAQuant", .role = TENSOR_FLOAT, .absent = o->options.fa_amp > 0};
        fa_tensor(f->layout, &o->options.num, i, u->heads[i % FA_KINDS], &tensors[i].info);
    }
    return FA_TENSORS;
}

tare_status output_make_slots(output *o, output_folder *f)
{
    const planned_tensor *model = NULL;
    size_t longest = 0;
    f->num_slots = o->options.fa_amp > 0 ? o->fa_kept * FA_TENSORS : 0;
    f->slots = arena_calloc(&o->arena, f->num_slots, sizeof *f->slots);
    if (!f->slots)
        return TARE_E_MEMORY;
    for (size_t i = 0; i < o->num_units; i++) {
        const output_unit *u = &o->units[i];
        if (u->kind != UNIT_FA)
            continue;
        model = model ? model : &f->tensors[u->first[f - o->folders]];
        longest = strlen(u->name) > longest ? strlen(u->name) : longest;
    }
    for (size_t i = 0; i < f->num_slots && model; i++) {
        int which = (int)(i % FA_TENSORS);
        f->slots[i].info = model[which].info;
        f->slots[i].info.name = arena_printf(&o->arena, "%0*zu%s", (int)longest, i,
                                             fa_suffix(which));
        if (!f->slots[i].info.name)
            return TARE_E_MEMORY;
    }
    return TARE_OK;
}

const char *output_fa_quant_type(const output *o, const output_folder *f)
{
    bool compat = o->options.num.compat;
    /* The reference announces FA even when every attention fell back. */
    if (compat ? o->num_fa == 0 : o->fa_kept == 0)
        return NULL;
    return f->layout == LAYOUT_ASCENDV1 && o->options.fa_latent && !compat ? "FAKQuant" : "FAQuant";
}

/* The module's tensors go to the next free places. */
static void take_slots(output *o, output_folder *f, planned_tensor *tensors)
{
    for (size_t i = 0; i < FA_TENSORS; i++) {
        const fa_slot *slot = &f->slots[o->fa_written * FA_TENSORS + i];
        planned_tensor *t = &tensors[i];
        t->file = slot->file;
        t->index = slot->index;
        t->absent = false;
        f->files[t->file].tensors[t->index].name = t->info.name;
    }
}

tare_status output_write_fa(output *o, const char *module, const float *const scales[FA_KINDS])
{
    output_unit *u = output_find_unit(o, &o->linears, module, UNIT_FA);
    tare_status status = TARE_OK;
    void *scratch = NULL;
    size_t most = 1;

    if (!u || u->complete)
        return TARE_FAIL(o->ctx, TARE_E_USAGE, "FA of %s was not declared, or is written twice",
                         module);
    if (o->fa_written == o->fa_kept)
        return TARE_FAIL(o->ctx, TARE_E_USAGE, "%s is one module too many with FA tensors", module);
    for (int kind = 0; kind < FA_KINDS; kind++)
        most = u->heads[kind] > most ? u->heads[kind] : most;
    scratch = mem_alloc_array(o->ctx, most, sizeof(float));
    TRY(scratch ? TARE_OK : TARE_E_MEMORY);
    for (size_t i = 0; i < o->num_folders; i++) {
        output_folder *f = &o->folders[i];
        planned_tensor *tensors = &f->tensors[u->first[i]];
        if (f->num_slots > 0)
            take_slots(o, f, tensors);
        for (int j = 0; j < FA_TENSORS; j++) {
            const planned_tensor *t = &tensors[j];
            if (j < FA_KINDS)
                narrow_from_float(o->ctx, t->info.dtype, scales[j], t->info.shape[0], scratch);
            else
                memset(scratch, 0, (size_t)t->info.bytes);
            TRY(output_write_tensor(o, f, t, 0, scratch, (size_t)t->info.bytes));
        }
    }
    if (o->options.tape)
        TRY(output_tape_fa(o, u, scales));
    u->complete = true;
    o->fa_written++;
done:
    mem_free(o->ctx, scratch);
    return TARE_WRAP(o->ctx, status, "%s", module);
}
