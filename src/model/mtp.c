#include "model/mtp.h"

#include <string.h>

#include "base/strings.h"
#include "model/model_internal.h"

const char *mtp_module_name(mtp_module module)
{
    static const char *const names[MTP_MODULES] = {
        [MTP_ENORM] = "enorm",
        [MTP_HNORM] = "hnorm",
        [MTP_PROJECTION] = "eh_proj",
        [MTP_EMBEDDING] = "embed_tokens",
        [MTP_HEAD_NORM] = "shared_head.norm",
        [MTP_HEAD] = "shared_head.head",
    };
    return names[module];
}

bool mtp_is_copied(const tare_model *m, tensor_use use)
{
    return (use == TENSOR_MTP && m->mtp != MTP_NONE) ||
           (use == TENSOR_MTP_BLOCK && m->mtp == MTP_FLOAT);
}

size_t model_mtp_tensors(const tare_model *m)
{
    size_t count = 0;
    for (size_t i = 0; i < checkpoint_count(m->checkpoint); i++) {
        tensor_use use = tensor_use_of(&m->config, m->graphs,
                                       checkpoint_at(m->checkpoint, i)->name);
        count += use == TENSOR_MTP || use == TENSOR_MTP_BLOCK;
    }
    return count;
}

const char *model_extra_linear(const tare_model *m, const stored_weight *w, arena *a)
{
    static const char ending[] = ".weight", embedding[] = ".embed_tokens.weight";
    tensor_use use = tensor_use_of(&m->config, m->graphs, w->name);
    bool linear = (use == TENSOR_MTP || use == TENSOR_MTP_BLOCK) && w->tensor->rank == 2 &&
                  str_ends_with(w->name, ending) && !str_ends_with(w->name, embedding);
    return linear ? arena_strndup(a, w->name, strlen(w->name) - strlen(ending)) : NULL;
}

static tare_status check_asked(const tare_model *m)
{
    const model_config *c = &m->config;
    if (!c->arch->mtp)
        return TARE_FAIL(m->ctx, TARE_E_USAGE,
                         "quant.mtp: %s models have no MTP layers; leave it out",
                         c->arch->model_type);
    if (c->num_mtp == 0)
        return TARE_FAIL(m->ctx, TARE_E_USAGE,
                         "quant.mtp: %s has no MTP layers: num_nextn_predict_layers in its "
                         "config.json is 0 or missing; leave it out, or give none",
                         m->dir);
    if (model_mtp_tensors(m) == 0)
        return TARE_FAIL(
            m->ctx, TARE_E_USAGE,
            "quant.mtp: %s has no tensors of its MTP layers, of which "
            "num_nextn_predict_layers in config.json counts %zu (from model.layers.%zu "
            "on); leave it out, or give none",
            m->dir, c->num_mtp, c->num_layers);
    return TARE_OK;
}

static tare_status find_layer(tare_model *m, const model_block *b, mtp_layer *out)
{
    tare_status status = TARE_OK;
    size_t h = m->config.hidden_size, vocab = m->config.vocab_size;
    const char *names[MTP_MODULES];
    for (int i = 0; i < MTP_MODULES; i++) {
        names[i] = arena_printf(&m->arena, "%s.%s", b->name, mtp_module_name((mtp_module)i));
        TRY(names[i] ? TARE_OK : TARE_E_MEMORY);
    }
    out->projection = (model_linear){.name = names[MTP_PROJECTION], .n = h, .k = 2 * h};
    TRY(model_find_tensor(m, names[MTP_ENORM], "weight", 1, h, 0, &out->enorm));
    TRY(model_find_tensor(m, names[MTP_HNORM], "weight", 1, h, 0, &out->hnorm));
    TRY(model_find_weight(m, names[MTP_PROJECTION], h, 2 * h, &out->projection.weight));
    TRY(model_find_weight(m, names[MTP_EMBEDDING], vocab, h, &out->embedding));
    TRY(model_find_tensor(m, names[MTP_HEAD_NORM], "weight", 1, h, 0, &out->head_norm));
    TRY(model_find_weight(m, names[MTP_HEAD], vocab, h, &out->head));
done:
    return status;
}

tare_status mtp_find(tare_model *m)
{
    tare_status status = TARE_OK;
    const model_config *c = &m->config;
    if (m->mtp == MTP_NONE)
        return TARE_OK;
    TRY(check_asked(m));
    m->mtp_layers = arena_calloc(&m->arena, c->num_mtp, sizeof *m->mtp_layers);
    TRY(m->mtp_layers ? TARE_OK : TARE_E_MEMORY);
    for (size_t i = 0; i < c->num_mtp; i++) {
        model_block *b = &m->blocks[c->num_layers + i];
        TRY(find_layer(m, b, &m->mtp_layers[i]));
        TRY(model_find_block(m, b));
    }
done:
    return status;
}
