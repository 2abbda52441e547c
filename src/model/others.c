/* Tensors of a checkpoint that no layer needs: copied, or left out. */
#include <string.h>

#include "model/model_internal.h"
#include "model/quantized.h"

/* Names of tensors that are left out for one reason: how many, and the first few. */
typedef struct left_out {
    size_t count;
    buffer names;
} left_out;

enum { NAMES_SHOWN = 4 };

static void note_left_out(left_out *l, const char *name)
{
    if (l->count++ < NAMES_SHOWN)
        buffer_printf(&l->names, "%s%.200s", l->count > 1 ? ", " : "", name);
    else if (l->count == NAMES_SHOWN + 1)
        buffer_puts(&l->names, ", …");
}

/* A tensor that is copied: in FP8 as the numbers that it stands for. */
static tare_status add_extra(tare_model *m, const tensor_info *t)
{
    tare_status status = TARE_OK;
    static const char ending[] = ".weight";
    stored_weight *out = &m->extra[m->num_extra];
    const codec *c = codec_of(t->dtype);
    const tensor_info *scales;
    char *module = arena_strndup(&m->arena, t->name, strlen(t->name));
    TRY(module ? TARE_OK : TARE_E_MEMORY);
    *out = stored_whole(t);
    if (m->fp8_blocks && c && c->block && t->rank == 2 && str_ends_with(module, ending)) {
        module[strlen(module) - strlen(ending)] = '\0';
        TRY(model_find_tensor(m, module, c->scales, 2, size_divide_up(t->shape[0], c->block),
                              size_divide_up(t->shape[1], c->block), &scales));
        *out = stored_matrix(t->name, t, scales, 0, t->shape[0]);
    }
    m->num_extra++;
done:
    return status;
}

tare_status model_collect_others(tare_model *m, bool quiet)
{
    tare_status status = TARE_OK;
    size_t count = checkpoint_count(m->checkpoint), foreign = 0;
    const char *first = NULL;
    left_out unused = {0}, beyond = {0};
    buffer_init(&unused.names, m->ctx);
    buffer_init(&beyond.names, m->ctx);
    m->extra = arena_alloc_array(&m->arena, count, sizeof *m->extra);
    TRY(m->extra ? TARE_OK : TARE_E_MEMORY);
    for (size_t i = 0; i < count; i++) {
        const tensor_info *t = checkpoint_at(m->checkpoint, i);
        tensor_use use = tensor_use_of(&m->config, m->graphs, t->name);
        if (quantized_is_scale(m, t->name))
            continue;
        if (use == TENSOR_FOREIGN || mtp_is_copied(m, use))
            TRY(add_extra(m, t));
        if (use == TENSOR_FOREIGN && foreign++ == 0)
            first = t->name;
        else if (use == TENSOR_UNUSED || use == TENSOR_BEYOND)
            note_left_out(use == TENSOR_UNUSED ? &unused : &beyond, t->name);
    }
    TRY(unused.names.status);
    TRY(beyond.names.status);
    if (foreign && !quiet)
        TARE_WARN(
            m->ctx,
            "%s: %zu tensors are unknown to model_type %s and are copied as they are (first: %s)",
            m->dir, foreign, m->config.arch->model_type, first);
    if (unused.count && !quiet)
        TARE_WARN(m->ctx,
                  "%s: %zu tensors have no place in a %s model with this config.json and are left "
                  "out, as transformers does: %s",
                  m->dir, unused.count, m->config.arch->model_type, unused.names.data);
    if (beyond.count && !quiet)
        TARE_WARN(
            m->ctx,
            "%s: %zu tensors are of layers that num_hidden_layers (%zu) excludes and are left "
            "out, as transformers does: %s",
            m->dir, beyond.count, m->config.num_layers, beyond.names.data);
done:
    buffer_free(&unused.names);
    buffer_free(&beyond.names);
    return status;
}
