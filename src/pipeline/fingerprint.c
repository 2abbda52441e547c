/* What identifies a run, so that a run that goes on is the one that was begun. */
#include <string.h>

#include "file/json.h"
#include "pipeline/smoothing.h"
#include "pipeline/statistics.h"

tare_status fingerprint_recipe(const tare_recipe *recipe, buffer *out)
{
    buffer text;
    buffer_init(&text, out->ctx);
    recipe_write(recipe, &text, 0);
    buffer_puts(out, "\"recipe\": ");
    return digest_text(&text, out);
}

static void digest_sequences(const sample_set *s, buffer *out)
{
    size_t sequences = 0;
    if (!s->sequences)
        return;
    for (size_t i = 0; i < s->count; i++)
        sequences += s->sequences[i];
    buffer_puts(out, ", \"sequences of the samples\": ");
    digest_write(out, s->sequences, s->count * sizeof *s->sequences);
    if (s->kept) {
        buffer_puts(out, ", \"without padding\": ");
        digest_write(out, s->kept, sequences * sizeof *s->kept);
    }
}

tare_status fingerprint_write(run *r, buffer *out, text_range *recipe)
{
    tare_status status = TARE_OK;
    buffer_printf(out, "{\"version\": \"%s\", \"oneDNN\": \"", tare_version());
    gemm_onednn_version(out);
    buffer_printf(out, "\", \"cpu\": \"%s\"", tare_cpu_name(r->ctx));
    buffer_printf(out, ", \"compute\": \"%s\", ", r->env->compute == GEMM_BF16 ? "bf16" : "fp32");
    size_t begin = out->length;
    TRY(fingerprint_recipe(r->env->recipe, out));
    if (recipe)
        *recipe = (text_range){begin, out->length};
    buffer_printf(out, ", \"copy_code\": \"%s\", \"calibration\": ",
                  r->env->options->copy_code ? "yes" : "no");
    digest_write(out, r->env->samples.ids, r->env->samples.tokens * sizeof *r->env->samples.ids);
    buffer_puts(out, ", \"lengths of the samples\": ");
    digest_write(out, r->env->samples.lengths,
                 r->env->samples.count * sizeof *r->env->samples.lengths);
    digest_sequences(&r->env->samples, out);
    if (r->plan->smoothing_given) {
        buffer_puts(out, ", \"smoothing\": ");
        TRY(smoothing_digest(r, r->env->options->smoothing, out));
    }
    if (r->earlier) {
        buffer_puts(out, ", \"statistics\": ");
        statistics_digest(r, out);
    }
    buffer_puts(out, ", \"config.json\": ");
    digest_write(out, r->model->config_json, r->model->config_length);
    TRY(fingerprint_files(r->model, out));
    buffer_putc(out, '}');
    TRY(out->status);
done:
    return status;
}

static tare_status inputs_write(run *r, buffer *out)
{
    return fingerprint_write(r, out, NULL);
}

static tare_status times_write(run *r, buffer *out)
{
    return fingerprint_times(r->model, out);
}

/* Compares what `write` writes now, a JSON map of strings, with what it wrote then, but for keys
 * that `ignored` (may be NULL) names; appends the keys that differ. */
static tare_status compare_maps(run *r, tare_status (*write)(run *r, buffer *out),
                                const value *then, bool (*ignored)(const char *key), bool *same,
                                buffer *changed)
{
    tare_status status = TARE_OK;
    buffer text;
    const value *now;
    buffer_init(&text, r->ctx);
    TRY(write(r, &text));
    TRY(json_parse(r->ctx, r->env->arena, text.data, text.length, "fingerprint", JSON_STRICT,
                   &now));
    *same = then && then->type == VALUE_MAP && then->count == now->count;
    for (size_t i = 0; i < now->count; i++) {
        const value *old = value_get(then, now->keys[i].text);
        if (old && old->type == VALUE_STRING && strcmp(old->text, now->items[i].text) == 0)
            continue;
        if (ignored && ignored(now->keys[i].text))
            continue;
        *same = false;
        buffer_printf(changed, "%s%s", changed->length ? ", " : "", now->keys[i].text);
    }
    if (!*same && changed->length == 0)
        buffer_puts(changed, "the list of weight files");
    status = changed->status;
done:
    buffer_free(&text);
    return status;
}

/* What only computing depends on. */
static bool is_of_computing(const char *key)
{
    return strcmp(key, "version") == 0 || strcmp(key, "oneDNN") == 0 || strcmp(key, "cpu") == 0;
}

tare_status fingerprint_check(run *r, const value *then, const value *times, bool computed,
                              const char *what)
{
    tare_status status = TARE_OK;
    bool same = true;
    buffer changed;
    buffer_init(&changed, r->ctx);
    TRY(compare_maps(r, inputs_write, then, computed ? is_of_computing : NULL, &same, &changed));
    if (same && times)
        TRY(compare_maps(r, times_write, times, NULL, &same, &changed));
    if (!same)
        TRY(TARE_FAIL(r->ctx, TARE_E_FOLDER,
                      "output folder %s holds %s of other inputs or settings (changed: %s); give "
                      "back what changed, or start anew with --overwrite",
                      r->env->options->out, what, changed.data));
done:
    buffer_free(&changed);
    return status;
}
