/* Rule 31: MTP layers (model/mtp.h) are there whole and as config.json counts them, or not at all:
 * engines do not notice what a draft model lacks, and draft what nobody accepts. */
#include <stdio.h>
#include <string.h>

#include "output/verify_internal.h"

/* Layers [first, end). */
typedef struct mtp_span {
    long long first, end;
    bool sparse_before; /* the layer in front of them has experts, as they have */
} mtp_span;

static long long number_of(const value *config, const char *key, long long fallback)
{
    const value *v = value_get(config, key);
    return v && v->type == VALUE_NUMBER && v->is_integer ? (long long)v->integer : fallback;
}

static bool find_span(const reader_layout *f, mtp_span *out)
{
    static const long long most = 1 << 20;
    if (!f->arch || !f->arch->mtp)
        return false;
    long long dense = number_of(f->config, "first_k_dense_replace",
                                (long long)f->arch->experts->default_first);
    long long count = number_of(f->config, "num_nextn_predict_layers", 0);
    out->first = number_of(f->config, "num_hidden_layers", 0);
    out->end = out->first + count;
    out->sparse_before = out->first > dense;
    return out->first > 0 && out->first < most && count >= 0 && count < most;
}

/* The layer of a tensor, and its name there; -1: it is of none. */
static long long layer_of(const char *name, const char **rest)
{
    long long layer;
    int length = 0;
    if (sscanf(name, "model.layers.%lld.%n", &layer, &length) != 1 || length == 0)
        return -1;
    *rest = name + length;
    return layer;
}

static bool has_layer(const reader_layout *f, long long layer)
{
    const char *rest = NULL;
    for (size_t i = 0; i < f->num_tensors; i++) {
        if (layer_of(f->tensors[i].info.name, &rest) == layer)
            return true;
    }
    return false;
}

/* A module's weight, in whatever form. */
static bool has_weight(const reader_layout *f, const char *module)
{
    static const char *const parts[] = {"weight", "weight_packed"};
    char name[1024];
    for (int i = 0; i < 2; i++) {
        snprintf(name, sizeof name, "%.900s.%s", module, parts[i]);
        if (reader_find(f, name))
            return true;
    }
    return false;
}

static void demand_module(verify *v, const reader_layout *f, const char *module)
{
    char name[1024];
    snprintf(name, sizeof name, "%.900s.weight", module);
    if (!has_weight(f, module))
        verify_fail(v, 31, name, "all of an MTP layer", "no such tensor");
}

/* The decoder block has what that of the layer in front of the MTP layers has. */
static void check_block(verify *v, const reader_layout *f, const mtp_span *s, long long layer)
{
    static const char bias[] = ".e_score_correction_bias";
    size_t length;
    for (size_t i = 0; i < f->num_tensors && s->sparse_before; i++) {
        const char *name = f->tensors[i].info.name, *rest = NULL;
        char wanted[1024];
        tensor_role role = role_of_name(name, &length);
        if (layer_of(name, &rest) != s->first - 1 || strstr(rest, ".module.")) /* a norm's copy */
            continue;
        if (role == TENSOR_WEIGHT || role == TENSOR_WEIGHT_PACKED ||
            str_ends_with(name, ".weight")) {
            length = str_ends_with(name, ".weight") ? strlen(name) - strlen(".weight") : length;
            snprintf(wanted, sizeof wanted, "model.layers.%lld.%.*s", layer,
                     (int)(length - (size_t)(rest - name)), rest);
            demand_module(v, f, wanted);
        } else if (str_ends_with(name, bias)) {
            snprintf(wanted, sizeof wanted, "model.layers.%lld.%s", layer, rest);
            if (!reader_find(f, wanted))
                verify_fail(v, 31, wanted, "all of an MTP layer", "no such tensor");
        }
    }
}

static void check_layer(verify *v, const reader_layout *f, const mtp_span *s, long long layer)
{
    char module[1024];
    for (int i = 0; i < MTP_MODULES; i++) {
        snprintf(module, sizeof module, "model.layers.%lld.%s", layer,
                 mtp_module_name((mtp_module)i));
        demand_module(v, f, module);
    }
    check_block(v, f, s, layer);
}

bool verify_has_mtp(const reader_layout *f)
{
    mtp_span s;
    const char *rest = NULL;
    for (size_t i = 0; find_span(f, &s) && i < f->num_tensors; i++) {
        if (layer_of(f->tensors[i].info.name, &rest) >= s.first)
            return true;
    }
    return false;
}

tare_status rule_mtp(verify *v, reader_layout *f)
{
    mtp_span s;
    const char *rest = NULL;
    if (!find_span(f, &s) || !verify_has_mtp(f))
        return TARE_OK;
    for (size_t i = 0; i < f->num_tensors; i++) {
        const char *name = f->tensors[i].info.name;
        if (layer_of(name, &rest) < s.end)
            continue;
        verify_fail(v, 31, name,
                    "a layer that config.json counts (num_hidden_layers and "
                    "num_nextn_predict_layers)",
                    "one beyond");
        break;
    }
    for (long long layer = s.first; layer < s.end; layer++) {
        char name[64];
        snprintf(name, sizeof name, "model.layers.%lld", layer);
        if (!has_layer(f, layer)) {
            verify_fail(v, 31, name, "all MTP layers that config.json counts, or none",
                        "no tensor of it");
            break;
        }
        check_layer(v, f, &s, layer);
    }
    return TARE_OK;
}
