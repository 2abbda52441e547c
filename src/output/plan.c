/* From declared units to the tensors of a folder and the files that hold them. */
#include <string.h>

#include "output/output_internal.h"

static uint64_t element_bytes(const tensor_info *t)
{
    return (uint64_t)tensor_elements(t) * dtype_size(t->dtype);
}

/* Tensors of one unit, appended behind tensors[at]; returns how many. `tensors` NULL: only counts.
 */
static size_t expand_unit(output *o, output_folder *f, output_unit *u, planned_tensor *tensors)
{
    size_t count = 0;
    if (!u->is_linear) {
        if (tensors)
            tensors[0] = (planned_tensor){.info = u->tensor, .type = "FLOAT", .role = TENSOR_FLOAT};
        return 1;
    }
    for (int role = 0; role < TENSOR_COUNT; role++) {
        planned_tensor t = {.type = role == TENSOR_BIAS ? "FLOAT" : o->quant_type,
                            .role = (tensor_role)role};
        if (!w8a8_tensor(f->layout, &o->options.num, &u->linear, t.role, &t.info))
            continue;
        if (tensors) {
            t.info.name = arena_printf(&o->arena, "%s%s", u->name, role_suffix(t.role));
            t.info.bytes = element_bytes(&t.info);
            tensors[count] = t;
        }
        count++;
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

/* Tensors of each file side by side, as the safetensors writer wants them. */
static tare_status fill_files(output *o, output_folder *f)
{
    for (size_t i = 0; i < f->num_tensors; i++)
        f->files[f->tensors[i].file].count++;
    for (size_t i = 0; i < f->num_files; i++) {
        weight_file *w = &f->files[i];
        w->tensors = arena_alloc_array(&o->arena, w->count, sizeof *w->tensors);
        w->name = layout_shard_name(&o->arena, f->prefix, i + 1, f->sharded ? f->num_files : 0);
        if (!w->tensors || !w->name)
            return TARE_E_MEMORY;
        w->count = 0;
    }
    for (size_t i = 0; i < f->num_tensors; i++) {
        planned_tensor *t = &f->tensors[i];
        weight_file *w = &f->files[t->file];
        t->index = w->count;
        w->tensors[w->count++] = t->info;
        w->bytes += t->info.bytes;
    }
    for (size_t i = 0; i < f->num_files; i++)
        f->files[i].bytes_left = f->files[i].bytes;
    return TARE_OK;
}

tare_status output_plan_folder(output *o, output_folder *f, uint64_t limit, bool sharded)
{
    tare_status status = TARE_OK;
    uint64_t *sizes = NULL;
    size_t *file_of = NULL;

    TRY(expand(o, f));
    f->sharded = sharded;
    f->prefix = layout_weight_prefix(&o->arena, f->layout, o->options.num.compat, o->quant_type);
    sizes = mem_alloc_array(o->ctx, f->num_tensors, sizeof *sizes);
    file_of = mem_alloc_array(o->ctx, f->num_tensors, sizeof *file_of);
    TRY(f->prefix && sizes && file_of ? TARE_OK : TARE_E_MEMORY);
    for (size_t i = 0; i < f->num_tensors; i++)
        sizes[i] = f->tensors[i].info.bytes;
    f->num_files = output_plan_shards(sizes, f->num_tensors, limit, file_of);
    for (size_t i = 0; i < f->num_tensors; i++)
        f->tensors[i].file = file_of[i];
    f->files = arena_calloc(&o->arena, f->num_files, sizeof *f->files);
    TRY(f->files ? TARE_OK : TARE_E_MEMORY);
    TRY(fill_files(o, f));
done:
    mem_free(o->ctx, sizes);
    mem_free(o->ctx, file_of);
    return status;
}

uint64_t output_planned_bytes(const output_folder *f)
{
    uint64_t bytes = 0;
    for (size_t i = 0; i < f->num_files; i++)
        bytes += f->files[i].bytes;
    return bytes;
}
