/* Rule 19: the FA tensors of attention modules. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "output/verify_internal.h"
#include "quantize/fa3.h"
#include "tensor/round.h"

/* What config.json says of attention; 0: nothing. */
typedef struct attention_config {
    size_t heads, kv_heads;
    bool latent;
} attention_config;

static size_t config_size(const vfolder *f, const char *key)
{
    const value *nested = value_get(f->config, "text_config");
    const value *v = value_get(f->config, key);
    v = v ? v : value_get(nested, key);
    return v && v->is_integer && v->integer > 0 ? (size_t)v->integer : 0;
}

static attention_config read_attention(const vfolder *f)
{
    attention_config a = {.heads = config_size(f, "num_attention_heads"),
                          .kv_heads = config_size(f, "num_key_value_heads"),
                          .latent = config_size(f, "kv_lora_rank") > 0};
    if (a.latent)
        a.kv_heads = 1;
    else if (a.kv_heads == 0)
        a.kv_heads = a.heads;
    return a;
}

static tare_status check_values(vfolder *f, const vtensor *t, bool is_scale)
{
    tare_status status = TARE_OK;
    size_t count = tensor_elements(&t->info), i = 0;
    float *scales = NULL;
    int8_t *offsets = mem_alloc(f->v->ctx, count);
    TRY(offsets ? TARE_OK : TARE_E_MEMORY);
    if (!is_scale) {
        TRY(verify_read(f, t, 0, offsets, count));
        while (i < count && offsets[i] == 0)
            i++;
        if (i < count)
            verify_fail(f->v, 19, t->info.name, "0: attention is quantized symmetrically",
                        "%d in element %zu", offsets[i], i);
        goto done;
    }
    TRY(verify_read_floats(f, t, &scales));
    while (i < count && isfinite(scales[i]) && scales[i] > 0 &&
           round_native(scales[i], f->num.dtype) == scales[i])
        i++;
    if (i < count)
        verify_fail(f->v, 19, t->info.name, "positive numbers of the serving dtype",
                    "%.9g in element %zu", (double)scales[i], i);
done:
    mem_free(f->v->ctx, offsets);
    mem_free(f->v->ctx, scales);
    return status;
}

/* One of the six: that it is there, its form, its type, its values. */
static tare_status check_tensor(vfolder *f, const attention_config *a, const char *module,
                                size_t length, int which)
{
    char name[1024], want[96], have[96];
    tensor_info expected = {0};
    size_t heads = which % FA_KINDS == FA_Q ? a->heads : a->kv_heads;
    snprintf(name, sizeof name, "%.*s%s", (int)length, module, fa_suffix(which));
    const vtensor *t = verify_find(f, name);
    if (!t) {
        verify_fail(f->v, 19, name, "scale and offset of q, k and v", "no such tensor");
        return TARE_OK;
    }
    fa_tensor(f->layout, &f->num, which, heads ? heads : t->info.shape[0], &expected);
    verify_shape_text(&expected, want, sizeof want);
    verify_shape_text(&t->info, have, sizeof have);
    if (strcmp(want, have) != 0) {
        verify_fail(f->v, 19, name, want, "%s", have);
        return TARE_OK;
    }
    if (t->type && strcmp(t->type, "FAQuant") != 0)
        verify_fail(f->v, 19, name, "type FAQuant", "%s", t->type);
    return check_values(f, t, which < FA_KINDS);
}

static void check_key(vfolder *f, const attention_config *a)
{
    const value *key = value_get(f->description, "fa_quant_type");
    bool by_latent = a->latent && f->layout == LAYOUT_ASCENDV1 && !f->num.compat;
    const char *expected = by_latent ? "FAKQuant" : "FAQuant";
    if (key && (key->type != VALUE_STRING || strcmp(key->text, expected) != 0))
        verify_fail(f->v, 19, "fa_quant_type", expected, "%s",
                    key->type == VALUE_STRING ? key->text : "no string");
}

tare_status rule_fa(vfolder *f)
{
    tare_status status = TARE_OK;
    attention_config a = read_attention(f);
    const char *target = f->v->options->target;
    bool any = false;
    size_t length;
    check_key(f, &a);
    for (size_t i = 0; i < f->num_tensors; i++) {
        const char *name = f->tensors[i].info.name;
        int which = fa_tensor_of_name(name, &length);
        /* A module is looked at when the first of its tensors that are there comes by. */
        bool first = which >= 0;
        for (int j = 0; j < which && first; j++) {
            char other[1024];
            snprintf(other, sizeof other, "%.*s%s", (int)length, name, fa_suffix(j));
            first = verify_find(f, other) == NULL;
        }
        for (int j = 0; j < FA_TENSORS && first; j++)
            TRY(check_tensor(f, &a, name, length, j));
        any |= first;
    }
    if (any && !a.latent && target && strcmp(target, "vllm-ascend") == 0)
        verify_fail(f->v, 19, "fa_quant_type", "FA of latent attention (MLA) only",
                    "another attention, whose FA tensors vLLM-Ascend does not load");
done:
    return status;
}
