/* Settings that no single one of them shows to be wrong. */
#include <math.h>
#include <string.h>

#include "quantize/recipe.h"
#include "quantize/save_types.h"
#include "quantize/smooth.h"

static void warn_of_strength(const tare_recipe *r, const char *key, double x)
{
    if (x < 0 || x > 1)
        TARE_WARN(r->ctx, "anti_outlier.%s is %g; values from 0 to 1 make sense", key, x);
    bool balances = r->anti_method == SMOOTH_BALANCE;
    if (isnan(x) || r->anti_method == SMOOTH_M6 || (balances && strcmp(key, "alpha") == 0))
        return;
    TARE_WARN(r->ctx, "anti_outlier.%s is for m6 and has no effect on %s", key,
              balances ? "balance" : "m1 to m5");
}

/* spec/anti_outlier.md 1.9 */
static tare_status check_anti_outlier(const tare_recipe *r)
{
    tare_context *ctx = r->ctx;
    bool m3 = r->anti_method == 3;
    if (r->anti_method == 0 &&
        (r->disable_anti_names.count > 0 || !isnan(r->anti_alpha) || !isnan(r->anti_beta)))
        return TARE_FAIL(ctx, TARE_E_USAGE,
                         "anti_outlier: settings without an anti_method; possible: m1, m2, m3, m4, "
                         "m5, m6, balance");
    if (r->anti_method == 0)
        return TARE_OK;
    if (r->anti_method == SMOOTH_BALANCE && r->compat)
        return TARE_FAIL(ctx, TARE_E_USAGE,
                         "anti_outlier.anti_method: msModelSlim has no balance; possible under "
                         "run.compat: m1, m2, m3, m4, m5, m6");
    if (r->anti_w_bit != 4 && r->anti_w_bit != 8)
        return TARE_FAIL(ctx, TARE_E_USAGE, "anti_outlier.w_bit %lld is not known; possible: 4, 8",
                         (long long)r->anti_w_bit);
    if (r->anti_a_bit != 8 && !(r->anti_a_bit == 16 && m3))
        return TARE_FAIL(ctx, TARE_E_USAGE,
                         "anti_outlier.a_bit %lld is not known; possible: 8, and 16 with m3",
                         (long long)r->anti_a_bit);
    if (!r->anti_w_sym && !m3)
        return TARE_FAIL(ctx, TARE_E_USAGE,
                         "anti_outlier.w_sym: false is possible with m3 only; possible: true");
    if (r->anti_w_sym != r->w_sym)
        TARE_WARN(ctx, "anti_outlier.w_sym and quant.w_sym differ; they should be the same");
    warn_of_strength(r, "alpha", r->anti_alpha);
    warn_of_strength(r, "beta", r->anti_beta);
    if (r->anti_method == SMOOTH_M6 && isnan(r->anti_alpha) != isnan(r->anti_beta))
        TARE_WARN(ctx, "anti_outlier: of alpha and beta only one is given, so both are searched");
    return TARE_OK;
}

/* spec/w8a8.md 8.1, output_formats.md 8.8. No forward runs, so nothing sees an activation. */
static tare_status check_weights_alone(const tare_recipe *r)
{
    if (r->anti_method != 0 || r->fa_quant || r->kv_cache)
        return TARE_FAIL(r->ctx, TARE_E_USAGE,
                         "%s needs the calibration of quant.a_bit 8; quant.a_bit 16 quantizes "
                         "weights alone",
                         r->fa_quant   ? "fa_quant"
                         : r->kv_cache ? "quant.kv_cache"
                                       : "anti_outlier.anti_method");
    return TARE_OK;
}

linear_scheme recipe_scheme(const tare_recipe *r)
{
    if (r->scheme >= 0)
        return (linear_scheme)r->scheme;
    return r->a_bit == 16 ? SCHEME_W8A16 : SCHEME_W8A8;
}

weight_method recipe_weight_method(const tare_recipe *r, linear_scheme scheme)
{
    if (scheme_of(scheme)->weight_bits != 4)
        return WEIGHT_INT8;
    return r->weight_method == WEIGHTS_SSZ ? WEIGHT_INT4_SSZ : WEIGHT_INT4_MINMAX;
}

bool recipe_gptq(const tare_recipe *r)
{
    return r->weight_method == WEIGHTS_GPTQ;
}

bool recipe_uses(const tare_recipe *r, linear_scheme scheme)
{
    bool uses = recipe_scheme(r) == scheme;
    for (size_t i = 0; i < r->mix.count; i++)
        uses |= r->mix.items[i].scheme == scheme;
    return uses;
}

static bool quantizes_activations(const tare_recipe *r)
{
    for (int i = 0; i < SCHEMES; i++)
        if (scheme_of((linear_scheme)i)->activations != ACT_FLOAT &&
            recipe_uses(r, (linear_scheme)i))
            return true;
    return false;
}

/* The widths are the short form of the scheme. */
static tare_status check_widths(const tare_recipe *r)
{
    if (r->w_bit != 8 || (r->a_bit != 8 && r->a_bit != 16))
        return TARE_FAIL(r->ctx, TARE_E_USAGE,
                         "quant.w_bit %lld with quant.a_bit %lld is not supported; supported: 8 "
                         "with 8 (W8A8), 8 with 16 (W8A16)",
                         (long long)r->w_bit, (long long)r->a_bit);
    if (r->a_bit == 16 && recipe_scheme(r) != SCHEME_W8A16)
        return TARE_FAIL(r->ctx, TARE_E_USAGE, "quant.a_bit 16 contradicts quant.scheme %s",
                         scheme_of(recipe_scheme(r))->name);
    if (!r->w_sym && quantizes_activations(r))
        return TARE_FAIL(r->ctx, TARE_E_USAGE,
                         "quant.w_sym: 8-bit activations need symmetric weights (true)");
    if (r->a_sym > 0 && r->compat)
        return TARE_FAIL(r->ctx, TARE_E_USAGE,
                         "quant.a_sym: static activations are asymmetric under run.compat (false)");
    if (r->final_scales > 0 && r->compat)
        return TARE_FAIL(r->ctx, TARE_E_USAGE,
                         "quant.final_scales: under run.compat each sample goes on with the scales "
                         "that it and those before it made (false)");
    if (r->act_method == 4 && r->compat)
        return TARE_FAIL(r->ctx, TARE_E_USAGE,
                         "quant.act_method: msModelSlim has no 4; possible under run.compat: 1, 2, "
                         "3");
    for (int i = 0; i < SCHEMES; i++)
        if (r->mm_tensor && scheme_of((linear_scheme)i)->activations == ACT_PER_TOKEN &&
            recipe_uses(r, (linear_scheme)i))
            return TARE_FAIL(r->ctx, TARE_E_USAGE,
                             "quant.mm_tensor: %s needs a scale for each row (false)",
                             scheme_of((linear_scheme)i)->name);
    return TARE_OK;
}

bool recipe_final_scales(const tare_recipe *recipe)
{
    return recipe->final_scales < 0 ? recipe->act_method == 4 || recipe_gptq(recipe)
                                    : recipe->final_scales == 1;
}

bool recipe_npy_torch(const tare_recipe *recipe)
{
    return recipe->npy_values < 0 ? recipe->compat != 0 : recipe->npy_values == 1;
}

/* What a save type has no place for (spec/output_formats.md 7, 8.8). */
tare_status recipe_check_save(const tare_recipe *r)
{
    unsigned save;
    tare_status status = save_types_parse(r->ctx, (const char *const *)r->save_types.items,
                                          r->save_types.count, &save);
    if (status != TARE_OK)
        return status;
    if (!save)
        return TARE_FAIL(r->ctx, TARE_E_USAGE, "save.types: at least one save type is needed");
    if (!r->w_sym && (save & SAVE_ASCENDV1))
        TARE_WARN(r->ctx, "quant.w_sym false: vLLM-Ascend adds weight_offset where these files "
                          "mean that it is subtracted; give it symmetric weights");
    unsigned plain = save_types_with(save, SAVE_PLAIN);
    if (plain && r->fa_quant)
        return TARE_FAIL(r->ctx, TARE_E_USAGE,
                         "save.types: %s cannot hold the scales of fa_quant; save as ascendv1, "
                         "safe_tensor or numpy, or leave fa_quant out",
                         save_types_text(plain));
    if (plain && r->kv_cache)
        return TARE_FAIL(r->ctx, TARE_E_USAGE,
                         "save.types: %s cannot hold the scales of quant.kv_cache (engines read "
                         "FP8 ones there); save as ascendv1, safe_tensor or numpy, or leave "
                         "kv_cache out",
                         save_types_text(plain));
    if (r->kv_cache && !r->kv_sym && (save & SAVE_ASCENDV1))
        return TARE_FAIL(r->ctx, TARE_E_USAGE,
                         "quant.kv_sym false: vLLM-Ascend adds an offset where it writes its cache "
                         "and leaves it out where it reads; save as safe_tensor or numpy, or give "
                         "it symmetric scales");
    if (plain && recipe_uses(r, SCHEME_W8A8_MIX))
        return TARE_FAIL(
            r->ctx, TARE_E_USAGE,
            "save.types: %s has no w8a8_mix, whose linears are static and per token in "
            "one; quantize as w8a8 or w8a8_dynamic, or save as ascendv1 or safe_tensor",
            save_types_text(plain));
    unsigned no_int4 = save_types_with(save, SAVE_NO_INT4);
    if (no_int4 && recipe_uses(r, SCHEME_W4A8_DYNAMIC))
        return TARE_FAIL(
            r->ctx, TARE_E_USAGE,
            "save.types: %s has no w4a8_dynamic with one scale a row; save as ascendv1",
            save_types_text(no_int4));
    if (plain && !r->w_sym)
        return TARE_FAIL(r->ctx, TARE_E_USAGE,
                         "save.types: %s needs symmetric weights (quant.w_sym true)",
                         save_types_text(plain));
    return TARE_OK;
}

/* spec/schemes.md 5 */
static tare_status check_kv_cache(const tare_recipe *r)
{
    if (r->kv_cache && r->fa_quant)
        return TARE_FAIL(r->ctx, TARE_E_USAGE,
                         "quant.kv_cache and fa_quant: the key/value cache and FA cannot be "
                         "quantized at the same time");
    if (r->kv_pairs && !r->kv_cache)
        return TARE_FAIL(r->ctx, TARE_E_USAGE,
                         "quant.kv_pairs is given, but quant.kv_cache is not (--kv-cache c8)");
    if (r->kv_pairs && (r->compat || !r->kv_sym))
        return TARE_FAIL(r->ctx, TARE_E_USAGE,
                         "quant.kv_pairs goes neither with run.compat nor with quant.kv_sym false");
    if (!r->kv_sym && !r->kv_cache)
        return TARE_FAIL(r->ctx, TARE_E_USAGE,
                         "quant.kv_sym is false, but quant.kv_cache is not given (--kv-cache c8)");
    return TARE_OK;
}

static tare_status check_rotation(const tare_recipe *r)
{
    if (r->rotation && r->compat)
        return TARE_FAIL(r->ctx, TARE_E_USAGE,
                         "rotation: msModelSlim's classes have none; leave run.compat out");
    if (r->rotation && !r->rotation_r1 && !r->rotation_r2)
        return TARE_FAIL(r->ctx, TARE_E_USAGE, "rotation: r1 and r2 are both false");
    return TARE_OK;
}

/* The methods of smoothing keep what they watch of samples of their own, and move biases. */
static tare_status check_fa_balance(const tare_recipe *r)
{
    if (!r->fa_quant)
        return TARE_FAIL(r->ctx, TARE_E_USAGE,
                         "fa_quant.balance is given, but fa_quant is not (--fa-quant)");
    if (r->compat)
        return TARE_FAIL(r->ctx, TARE_E_USAGE,
                         "fa_quant.balance: msModelSlim has no such thing; leave run.compat out");
    if (r->anti_method != 0 && r->anti_method != SMOOTH_BALANCE)
        return TARE_FAIL(r->ctx, TARE_E_USAGE,
                         "fa_quant.balance does not go with anti_outlier.anti_method m%lld; "
                         "possible: none, balance",
                         (long long)r->anti_method);
    return TARE_OK;
}

static tare_status check_gptq(const tare_recipe *r)
{
    if (!recipe_gptq(r))
        return TARE_OK;
    if (r->compat)
        return TARE_FAIL(r->ctx, TARE_E_USAGE,
                         "quant.weight_method: gptq does not go with run.compat; possible: ssz, "
                         "minmax");
    if (r->final_scales == 0)
        return TARE_FAIL(r->ctx, TARE_E_USAGE,
                         "quant.final_scales: quant.weight_method gptq looks at inputs with the "
                         "scale that is written (true)");
    if (!r->w_sym)
        return TARE_FAIL(r->ctx, TARE_E_USAGE,
                         "quant.w_sym: quant.weight_method gptq needs symmetric weights (true)");
    return TARE_OK;
}

tare_status recipe_check_scheme(const tare_recipe *r)
{
    tare_status status = TARE_OK;
    if (r->fa_amp_given && !r->fa_quant)
        return TARE_FAIL(r->ctx, TARE_E_USAGE,
                         "fa_quant.fa_amp is given, but fa_quant is not (--fa-quant)");
    if (r->fa_v_mse && !r->fa_quant)
        return TARE_FAIL(r->ctx, TARE_E_USAGE,
                         "fa_quant.v_method is given, but fa_quant is not (--fa-quant)");
    if (r->fa_v_mse && r->compat)
        return TARE_FAIL(r->ctx, TARE_E_USAGE,
                         "fa_quant.v_method: msModelSlim has max alone (run.compat)");
    if (r->fa_balance)
        TRY(check_fa_balance(r));
    if (!quantizes_activations(r))
        TRY(check_weights_alone(r));
    TRY(check_kv_cache(r));
    TRY(check_rotation(r));
    TRY(check_gptq(r));
    TRY(check_widths(r));
    TRY(check_anti_outlier(r));
done:
    return status;
}

tare_status recipe_check(const tare_recipe *r)
{
    tare_status status = recipe_check_scheme(r);
    return status == TARE_OK ? recipe_check_save(r) : status;
}
