/* From declared units to the tensors of a folder and the files that hold them. */
#include <string.h>

#include "output/output_internal.h"

static uint64_t element_bytes(const tensor_info *t)
{
    return (uint64_t)tensor_elements(t) * dtype_size(t->dtype);
}

static size_t expand_linear(const output *o, const output_folder *f, const output_unit *u,
                            planned_tensor *tensors)
{
    size_t count = 0;
    for (int role = 0; role < TENSOR_COUNT; role++) {
        linear_scheme scheme = role == TENSOR_BIAS ? SCHEME_FLOAT : u->linear.scheme;
        planned_tensor t = {.type = output_type(o, f->layout, scheme), .role = (tensor_role)role};
        if (!linear_tensor(f->layout, &o->options.num, &u->linear, t.role, &t.info))
            continue;
        if (tensors)
            tensors[count] = t;
        count++;
    }
    return count;
}

/* The end of the name of a unit's tensor, behind the unit's module. */
static const char *suffix_of(const output_unit *u, const planned_tensor *t, size_t index)
{
    static const char *const NORM_SUFFIXES[] = {".weight", ".bias", ".module.weight",
                                                ".module.bias"};
    return u->kind == UNIT_FA     ? fa_suffix((int)index)
           : u->kind == UNIT_NORM ? NORM_SUFFIXES[index]
                                  : role_suffix(t->role);
}

/* Tensors of one unit, appended behind tensors[0]; returns how many. `tensors` NULL: only counts.
 */
static size_t expand_unit(output *o, output_folder *f, output_unit *u, planned_tensor *tensors)
{
    size_t count = 1, length = strlen(u->name);
    if (u->kind == UNIT_FLOAT) {
        if (tensors)
            tensors[0] = (planned_tensor){
                .info = u->tensor, .type = u->kv_cache ? "C8" : "FLOAT", .role = TENSOR_FLOAT};
        return count;
    }
    count = u->kind == UNIT_LINEAR ? expand_linear(o, f, u, tensors)
            : u->kind == UNIT_NORM ? output_expand_norm(o, f, u, tensors)
                                   : output_expand_fa(o, f, u, tensors);
    if (u->kind == UNIT_NORM)
        length -= strlen(".weight");
    for (size_t i = 0; tensors && i < count; i++) {
        tensor_info *t = &tensors[i].info;
        t->name = arena_printf(&o->arena, "%.*s%s", (int)length, u->name,
                               suffix_of(u, &tensors[i], i));
        t->bytes = element_bytes(t);
    }
    return count;
}

static tare_status expand(output *o, output_folder *f)
{
    size_t which = (size_t)(f - o->folders), count = 0;
    strmap names;
    tare_status status = TARE_OK;
    bool existed;

    strmap_init(&names, o->ctx);
    for (size_t i = 0; i < o->num_units; i++)
        count += expand_unit(o, f, &o->units[i], NULL);
    f->tensors = arena_alloc_array(&o->arena, count, sizeof *f->tensors);
    TRY(f->tensors ? TARE_OK : TARE_E_MEMORY);
    TRY(strmap_reserve(&names, count));
    for (size_t i = 0; i < o->num_units; i++) {
        o->units[i].first[which] = f->num_tensors;
        f->num_tensors += expand_unit(o, f, &o->units[i], f->tensors + f->num_tensors);
    }
    for (size_t i = 0; i < count; i++) {
        const char *name = f->tensors[i].info.name;
        TRY(name ? TARE_OK : TARE_E_MEMORY);
        TRY(strmap_put(&names, name, strlen(name), 0, &existed));
        if (existed)
            TRY(TARE_FAIL(o->ctx, TARE_E_MODEL, "tensor %s would be written twice", name));
    }
done:
    strmap_free(&names);
    return status;
}

size_t output_plan_shards(const uint64_t *sizes, size_t count, uint64_t limit, size_t *file_of)
{
    size_t files = 1;
    uint64_t pending = 0;
    bool any = false;
    for (size_t i = 0; i < count; i++) {
        if (limit > 0 && any && (sizes[i] >= limit || pending >= limit - sizes[i])) {
            files++;
            pending = 0;
        }
        pending += sizes[i];
        any = true;
        file_of[i] = files - 1;
    }
    return files;
}

static void place(weight_file *files, const tensor_info *t, size_t which, size_t *index)
{
    weight_file *w = &files[which];
    *index = w->count;
    if (w->tensors)
        w->tensors[w->count] = *t;
    w->count++;
    w->bytes += t->bytes;
}

/* Tensors of each file side by side, as the safetensors writer wants them; a rehearsal has none. */
static tare_status fill_files(output *o, output_folder *f)
{
    for (size_t i = 0; i < f->num_tensors; i++)
        f->files[f->tensors[i].file].count += !f->tensors[i].absent;
    for (size_t i = 0; i < f->num_slots; i++)
        f->files[f->slots[i].file].count++;
    for (size_t i = 0; i < f->num_files; i++) {
        weight_file *w = &f->files[i];
        w->name = layout_shard_name(&o->arena, f->prefix, i + 1, f->sharded ? f->num_files : 0);
        if (!o->options.rehearsal)
            w->tensors = arena_alloc_array(&o->arena, w->count, sizeof *w->tensors);
        if (!w->name || !(w->tensors || o->options.rehearsal))
            return TARE_E_MEMORY;
        w->count = 0;
    }
    for (size_t i = 0; i < f->num_tensors; i++)
        if (!f->tensors[i].absent)
            place(f->files, &f->tensors[i].info, f->tensors[i].file, &f->tensors[i].index);
    for (size_t i = 0; i < f->num_slots; i++) {
        place(f->files, &f->slots[i].info, f->slots[i].file, &f->slots[i].index);
        f->files[f->slots[i].file].has_slots = true;
    }
    for (size_t i = 0; i < f->num_files; i++)
        f->files[i].bytes_left = f->files[i].bytes;
    return TARE_OK;
}

/* In model order; what is known late comes last. */
static tare_status assign_files(output *o, output_folder *f, uint64_t limit)
{
    tare_status status = TARE_OK;
    size_t count = 0;
    uint64_t *sizes = mem_alloc_array(o->ctx, f->num_tensors + f->num_slots, sizeof *sizes);
    size_t *file_of = mem_alloc_array(o->ctx, f->num_tensors + f->num_slots, sizeof *file_of);
    TRY(sizes && file_of ? TARE_OK : TARE_E_MEMORY);
    for (size_t i = 0; i < f->num_tensors; i++)
        if (!f->tensors[i].absent)
            sizes[count++] = f->tensors[i].info.bytes;
    for (size_t i = 0; i < f->num_slots; i++)
        sizes[count++] = f->slots[i].info.bytes;
    f->num_files = output_plan_shards(sizes, count, limit, file_of);
    count = 0;
    for (size_t i = 0; i < f->num_tensors; i++)
        if (!f->tensors[i].absent)
            f->tensors[i].file = file_of[count++];
    for (size_t i = 0; i < f->num_slots; i++)
        f->slots[i].file = file_of[count++];
done:
    mem_free(o->ctx, sizes);
    mem_free(o->ctx, file_of);
    return status;
}

tare_status output_plan_folder(output *o, output_folder *f, uint64_t limit, bool sharded)
{
    tare_status status = TARE_OK;
    TRY(expand(o, f));
    TRY(output_make_slots(o, f));
    f->sharded = sharded;
    f->prefix = output_weight_prefix(o, f->layout);
    TRY(f->prefix ? TARE_OK : TARE_E_MEMORY);
    TRY(assign_files(o, f, limit));
    f->files = arena_calloc(&o->arena, f->num_files, sizeof *f->files);
    TRY(f->files ? TARE_OK : TARE_E_MEMORY);
    TRY(fill_files(o, f));
done:
    return status;
}

uint64_t output_planned_bytes(const output_folder *f)
{
    uint64_t bytes = 0;
    for (size_t i = 0; i < f->num_files; i++)
        bytes += f->files[i].bytes;
    return bytes;
}
