/* Rule 24: a mixture of experts. Engines read the type and the tensors of expert 0 and take all
 * others of the block to be like it (specification: output_formats.md 8.14). */
#include <stdio.h>
#include <string.h>

#include "output/verify_internal.h"

#define EXPERTS ".experts."

/* The experts of one layer, or one tensor of them ("gate_proj.weight"). */
typedef struct expert_count {
    const char *name; /* "model.layers.3.mlp", or "model.layers.3.mlp.experts.*.gate_proj.weight" */
    size_t count;     /* of experts */
    size_t block;     /* of a tensor: its layer, and */
    const char *type; /* its type in the first expert */
    bool mixed;       /* others have another one */
} expert_count;

typedef struct expert_table {
    verify *v;
    reader_layout *f;
    strmap blocks, experts, tensors;
    expert_count *block_list, *tensor_list; /* mem_free */
    size_t num_blocks, num_tensors, block_capacity, tensor_capacity;
} expert_table;

/* The parts of "<block>.experts.<number>.<tensor>"; false: another name. */
static bool split_name(const char *name, size_t *block, size_t *expert, const char **tensor)
{
    const char *at = strstr(name, EXPERTS);
    if (!at)
        return false;
    const char *number = at + strlen(EXPERTS), *end = number + strspn(number, "0123456789");
    *block = (size_t)(at - name);
    *expert = (size_t)(end - name);
    *tensor = end + 1;
    return end > number && *end == '.' && end[1] != '\0';
}

bool verify_expert_of(const char *name, size_t *block)
{
    size_t expert;
    const char *tensor;
    return split_name(name, block, &expert, &tensor);
}

/* The entry of `key` in a list, made if there is none. */
static tare_status find_entry(expert_table *t, strmap *map, expert_count **list, size_t *count,
                              size_t *capacity, const char *key, size_t length, uint32_t *index)
{
    tare_status status = TARE_OK;
    if (strmap_get(map, key, length, index))
        return TARE_OK;
    const char *name = arena_strndup(&t->f->arena, key, length);
    TRY(name ? TARE_OK : TARE_E_MEMORY);
    TRY(mem_grow(t->f->ctx, (void **)list, capacity, *count + 1, sizeof **list));
    *index = (uint32_t)*count;
    (*list)[(*count)++] = (expert_count){.name = name};
    TRY(strmap_put(map, name, length, *index, NULL));
done:
    return status;
}

static tare_status count_expert(expert_table *t, const char *name, size_t length, size_t block)
{
    bool existed;
    const char *copy = arena_strndup(&t->f->arena, name, length);
    if (!copy)
        return TARE_E_MEMORY;
    tare_status status = strmap_put(&t->experts, copy, length, 0, &existed);
    t->block_list[block].count += status == TARE_OK && !existed;
    return status;
}

static tare_status add_tensor(expert_table *t, const reader_tensor *v)
{
    tare_status status = TARE_OK;
    size_t block_length, expert_length;
    uint32_t block, tensor;
    const char *rest;
    buffer key;
    buffer_init(&key, t->f->ctx);
    if (!split_name(v->info.name, &block_length, &expert_length, &rest))
        goto done;
    TRY(find_entry(t, &t->blocks, &t->block_list, &t->num_blocks, &t->block_capacity, v->info.name,
                   block_length, &block));
    TRY(count_expert(t, v->info.name, expert_length, block));
    buffer_append(&key, v->info.name, block_length);
    buffer_printf(&key, "%s*.%s", EXPERTS, rest);
    TRY(key.status);
    TRY(find_entry(t, &t->tensors, &t->tensor_list, &t->num_tensors, &t->tensor_capacity, key.data,
                   key.length, &tensor));
    expert_count *e = &t->tensor_list[tensor];
    e->block = block;
    e->type = e->count == 0 ? v->type : e->type;
    e->mixed |= v->type && e->type && strcmp(v->type, e->type) != 0;
    e->count++;
done:
    buffer_free(&key);
    return status;
}

static bool is_type(const expert_count *e, const char *type)
{
    return e->type && strcmp(e->type, type) == 0;
}

static void judge(expert_table *t)
{
    reader_layout *f = t->f;
    const value *group = value_get(f->description, "group_size");
    for (size_t i = 0; i < t->num_tensors; i++) {
        const expert_count *e = &t->tensor_list[i];
        size_t experts = t->block_list[e->block].count;
        if (e->mixed)
            verify_fail(t->v, 24, e->name, "one type for all experts", "others beside %s", e->type);
        if (e->count != experts)
            verify_fail(t->v, 24, e->name, "the same tensors for all experts",
                        "in %zu of %zu experts", e->count, experts);
        if (!str_ends_with(e->name, ".weight"))
            continue;
        linear_scheme scheme;
        if (e->type && scheme_of_type(e->type, &scheme) &&
            scheme_of(scheme)->activations == ACT_STATIC)
            verify_fail(t->v, 24, e->name, "dynamic activations: engines have no other experts",
                        "%s", e->type);
        if (is_type(e, "W4A8_DYNAMIC") && group && (!group->is_integer || group->integer != 0))
            verify_fail(t->v, 24, "group_size", "0 for experts of type W4A8_DYNAMIC", "%s",
                        group->is_integer ? group->text : "another value");
    }
}

tare_status rule_experts(verify *v, reader_layout *f)
{
    tare_status status = TARE_OK;
    expert_table t = {.v = v, .f = f};
    strmap_init(&t.blocks, f->ctx);
    strmap_init(&t.experts, f->ctx);
    strmap_init(&t.tensors, f->ctx);
    for (size_t i = 0; i < f->num_tensors; i++)
        TRY(add_tensor(&t, &f->tensors[i]));
    judge(&t);
done:
    strmap_free(&t.blocks);
    strmap_free(&t.experts);
    strmap_free(&t.tensors);
    mem_free(f->ctx, t.block_list);
    mem_free(f->ctx, t.tensor_list);
    return status;
}
