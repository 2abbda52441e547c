/* Rules on what attention modules have beside their linears: 18 KV cache, 19 FA. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "output/verify_internal.h"
#include "quantize/fa3.h"
#include "tensor/round.h"

static size_t config_size(const reader_layout *f, const char *key)
{
    const value *nested = value_get(f->config, "text_config");
    const value *v = value_get(f->config, key);
    v = v ? v : value_get(nested, key);
    return v && v->is_integer && v->integer > 0 ? (size_t)v->integer : 0;
}

attention_config verify_attention(const reader_layout *f)
{
    attention_config a = {.heads = config_size(f, "num_attention_heads"),
                          .kv_heads = config_size(f, "num_key_value_heads"),
                          .latent = config_size(f, "kv_lora_rank") > 0};
    size_t hidden = config_size(f, "hidden_size");
    a.head_dim = config_size(f, "head_dim");
    if (a.head_dim == 0 && a.heads > 0)
        a.head_dim = hidden / a.heads;
    if (a.latent)
        a.kv_heads = 1;
    else if (a.kv_heads == 0)
        a.kv_heads = a.heads;
    return a;
}

const reader_tensor *verify_part(const reader_layout *f, const char *module, size_t length,
                                 const char *end)
{
    char name[1024];
    snprintf(name, sizeof name, "%.*s%s", (int)length, module, end);
    return reader_find(f, name);
}

bool verify_is_first(const reader_layout *f, const char *name, size_t length, int which,
                     const char *(*suffix)(int))
{
    for (int i = 0; i < which; i++) {
        if (verify_part(f, name, length, suffix(i)))
            return false;
    }
    return which >= 0;
}

/* What scales and offsets have to be; floats or I8. */
typedef enum attention_values { VALUES_SCALES, VALUES_ZEROS, VALUES_OFFSETS } attention_values;

static bool is_value(const reader_layout *f, attention_values kind, float x)
{
    if (kind == VALUES_SCALES)
        return isfinite(x) && x > 0 && round_native(x, f->num.dtype) == x;
    return kind == VALUES_ZEROS ? x == 0 : verify_is_offset(x);
}

static tare_status check_values(verify *v, reader_layout *f, int rule, const reader_tensor *t,
                                attention_values kind)
{
    static const char *const expected[] = {
        [VALUES_SCALES] = "positive numbers of the serving dtype",
        [VALUES_ZEROS] = "0: attention is quantized symmetrically",
        [VALUES_OFFSETS] = "whole numbers from -128 to 127"};
    tare_status status = TARE_OK;
    size_t count = tensor_elements(&t->info), i = 0;
    float *x = NULL;
    TRY(reader_floats(f, t, &x));
    while (i < count && is_value(f, kind, x[i]))
        i++;
    if (i < count)
        verify_fail(v, rule, t->info.name, expected[kind], "%.9g in element %zu", (double)x[i], i);
done:
    mem_free(f->ctx, x);
    return status;
}

/* ---- rule 18 ---- */

static tare_status check_kv_tensor(verify *v, reader_layout *f, const attention_config *a,
                                   const char *module, size_t length, int which)
{
    char name[1024], want[96], have[96];
    snprintf(name, sizeof name, "%.*s%s", (int)length, module, kv_suffix(which));
    const reader_tensor *t = reader_find(f, name);
    if (!t) {
        verify_fail(v, 18, name, "scale and offset of both k and v", "no such tensor");
        return TARE_OK;
    }
    tensor_info expected = {.dtype = f->num.dtype, .rank = 1};
    size_t channels = a->kv_heads * a->head_dim;
    expected.shape[0] = channels > 0 ? channels : t->info.shape[0];
    tensor_shape_text(&expected, want, sizeof want);
    tensor_shape_text(&t->info, have, sizeof have);
    if (strcmp(want, have) != 0) {
        verify_fail(v, 18, name, want, "%s", have);
        return TARE_OK;
    }
    if (t->type && strcmp(t->type, "C8") != 0)
        verify_fail(v, 18, name, "type C8", "%s", t->type);
    return check_values(v, f, 18, t, which % 2 == 0 ? VALUES_SCALES : VALUES_OFFSETS);
}

tare_status rule_kv(verify *v, reader_layout *f)
{
    tare_status status = TARE_OK;
    attention_config a = verify_attention(f);
    size_t length;
    for (size_t i = 0; i < f->num_tensors; i++) {
        const char *name = f->tensors[i].info.name;
        int which = kv_tensor_of_name(name, &length);
        bool first = verify_is_first(f, name, length, which, kv_suffix);
        for (int j = 0; j < KV_TENSORS && first; j++)
            TRY(check_kv_tensor(v, f, &a, name, length, j));
    }
done:
    return status;
}

/* ---- rule 19 ---- */

/* One of the six: that it is there, its form, its type, its values. */
static tare_status check_tensor(verify *v, reader_layout *f, const attention_config *a,
                                const char *module, size_t length, int which)
{
    char name[1024], want[96], have[96];
    tensor_info expected = {0};
    size_t heads = which % FA_KINDS == FA_Q ? a->heads : a->kv_heads;
    snprintf(name, sizeof name, "%.*s%s", (int)length, module, fa_suffix(which));
    const reader_tensor *t = reader_find(f, name);
    if (!t) {
        verify_fail(v, 19, name, "scale and offset of q, k and v", "no such tensor");
        return TARE_OK;
    }
    fa_tensor(f->layout, &f->num, which, heads ? heads : t->info.shape[0], &expected);
    expected.dtype = reader_stored_dtype(f, t, expected.dtype);
    tensor_shape_text(&expected, want, sizeof want);
    tensor_shape_text(&t->info, have, sizeof have);
    if (strcmp(want, have) != 0) {
        verify_fail(v, 19, name, want, "%s", have);
        return TARE_OK;
    }
    if (t->type && strcmp(t->type, "FAQuant") != 0)
        verify_fail(v, 19, name, "type FAQuant", "%s", t->type);
    return check_values(v, f, 19, t, which < FA_KINDS ? VALUES_SCALES : VALUES_ZEROS);
}

static void check_key(verify *v, reader_layout *f, const attention_config *a)
{
    const value *key = value_get(f->description, "fa_quant_type");
    bool by_latent = a->latent && f->layout == LAYOUT_ASCENDV1 && !f->num.compat;
    const char *expected = by_latent ? "FAKQuant" : "FAQuant";
    if (key && (key->type != VALUE_STRING || strcmp(key->text, expected) != 0))
        verify_fail(v, 19, "fa_quant_type", expected, "%s",
                    key->type == VALUE_STRING ? key->text : "no string");
}

tare_status rule_fa(verify *v, reader_layout *f)
{
    tare_status status = TARE_OK;
    attention_config a = verify_attention(f);
    size_t length;
    check_key(v, f, &a);
    for (size_t i = 0; i < f->num_tensors; i++) {
        const char *name = f->tensors[i].info.name;
        int which = fa_tensor_of_name(name, &length);
        bool first = verify_is_first(f, name, length, which, fa_suffix);
        for (int j = 0; j < FA_TENSORS && first; j++)
            TRY(check_tensor(v, f, &a, name, length, j));
    }
done:
    return status;
}
