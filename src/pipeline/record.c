/* tare_run.json: what a run was made of. No time, no host: the same inputs give the same bytes. */
#include <string.h>

#include "file/json.h"
#include "pipeline/smoothing.h"
#include "pipeline/statistics.h"

static const char *file_name(const safetensors *s)
{
    const char *slash = strrchr(safetensors_path(s), '/');
    return slash ? slash + 1 : safetensors_path(s);
}

static tare_status write_files(run *r, buffer *out)
{
    tare_status status = TARE_OK;
    const checkpoint *c = r->model->checkpoint;
    if (checkpoint_file_count(c) == 0) {
        buffer_printf(out, "[],\n    \"memory\": {\"tensors\": %zu, \"size\": %llu, \"header\": ",
                      checkpoint_count(c), (unsigned long long)checkpoint_bytes(c));
        TRY(fingerprint_table(r->model, out));
        buffer_putc(out, '}');
        return TARE_OK;
    }
    buffer_puts(out, "[");
    for (size_t i = 0; i < checkpoint_file_count(c); i++) {
        const safetensors *s = checkpoint_file(c, i);
        buffer_printf(out, "%s\n      {\"name\": ", i ? "," : "");
        json_write_string(out, file_name(s), strlen(file_name(s)));
        buffer_printf(
            out, ", \"size\": %llu, \"header\": ", (unsigned long long)safetensors_file_size(s));
        TRY(fingerprint_header(r->model, s, out));
        buffer_putc(out, '}');
    }
    buffer_puts(out, "\n    ]");
done:
    return status;
}

static void write_linears(run *r, buffer *out)
{
    bool first = true;
    buffer_puts(out, "  \"float_linears\": [");
    for (size_t i = 0; i < r->model->num_linears; i++) {
        if (!plan_is_float(&r->plan->linears[i]))
            continue;
        buffer_printf(out, "%s\n    ", first ? "" : ",");
        json_write_string(out, r->plan->linears[i].name, strlen(r->plan->linears[i].name));
        first = false;
    }
    buffer_puts(out, first ? "],\n" : "\n  ],\n");
    first = true;
    buffer_puts(out, "  \"scores\": {");
    for (size_t i = 0; i < r->model->num_linears; i++) {
        if (!r->scores[i].known)
            continue;
        buffer_printf(out, "%s\n    ", first ? "" : ",");
        json_write_string(out, r->plan->linears[i].name, strlen(r->plan->linears[i].name));
        buffer_puts(out, ": ");
        json_write_double(out, r->scores[i].value);
        first = false;
    }
    buffer_puts(out, first ? "}\n" : "\n  }\n");
}

/* Scores of q, k and v of each attention that was observed, and which of them go without. */
static void write_attentions(const run *r, buffer *out)
{
    bool first = true;
    if (r->plan->num_fa == 0)
        return;
    buffer_puts(out, "  \"fa_scores\": {");
    for (size_t i = 0; i < r->model->num_blocks; i++) {
        const attention_plan *a = &r->plan->attentions[i];
        if (!a->quantize)
            continue;
        buffer_printf(out, "%s\n    ", first ? "" : ",");
        json_write_string(out, a->name, strlen(a->name));
        for (int kind = 0; kind < FA_KINDS; kind++) {
            buffer_puts(out, kind ? ", " : ": [");
            json_write_double(out, (double)r->attentions[i].scores[kind]);
        }
        buffer_putc(out, ']');
        first = false;
    }
    buffer_puts(out, "\n  },\n  \"fa_fallback\": [");
    first = true;
    for (size_t i = 0; i < r->model->num_blocks; i++) {
        const attention_plan *a = &r->plan->attentions[i];
        if (!r->attentions[i].fallback)
            continue;
        buffer_puts(out, first ? "" : ", ");
        json_write_string(out, a->name, strlen(a->name));
        first = false;
    }
    buffer_puts(out, "],\n");
}

void calibration_write(const run_env *e, buffer *out)
{
    buffer_printf(out, "{\"samples\": %zu, \"tokens\": %zu, \"truncated\": %zu, \"ids\": ",
                  e->samples.count, e->samples.tokens, e->samples.truncated);
    digest_write(out, e->samples.ids, e->samples.tokens * sizeof *e->samples.ids);
    buffer_putc(out, '}');
}

static void write_samples(const run *r, buffer *out)
{
    buffer_puts(out, "  \"calibration\": ");
    calibration_write(r->env, out);
    buffer_printf(out, ",\n  \"saturated_rows\": %zu,\n", r->saturated_rows);
}

tare_status run_record(run *r, buffer *out, record_places *places)
{
    buffer_printf(out,
                  "{\n  \"tare_version\": \"%s\",\n  \"scheme\": \"%s\",\n  \"compute\": "
                  "\"%s\",\n  \"isa\": \"%s\",\n",
                  tare_version(), scheme_of(recipe_scheme(r->env->recipe))->type,
                  r->env->compute == GEMM_BF16 ? "bf16" : "fp32", tare_cpu_name(r->ctx));
    buffer_printf(out,
                  "  \"serving_dtype\": \"%s\",\n  \"recipe\": ", dtype_name(r->env->num.dtype));
    places->recipe.begin = out->length;
    recipe_write(r->env->recipe, out, 1);
    places->recipe.end = out->length;
    if (r->means)
        buffer_puts(out, ",\n  \"rotation_aligned\": true");
    buffer_printf(out, ",\n  \"model\": {\n    \"model_type\": \"%s\",\n    \"config\": ",
                  r->model->config.arch->model_type);
    digest_write(out, r->model->config_json, r->model->config_length);
    buffer_puts(out, ",\n    \"files\": ");
    tare_status status = write_files(r, out);
    buffer_puts(out, "\n  },\n");
    if (r->env->samples.count > 0)
        write_samples(r, out);
    coverage_write(r, out);
    if (r->plan->smoothing_given && status == TARE_OK) {
        buffer_puts(out, "  \"smoothing\": ");
        status = smoothing_record(r, r->env->options->smoothing, out);
        buffer_puts(out, ",\n");
    }
    if (r->earlier) {
        buffer_puts(out, "  \"statistics\": ");
        statistics_record(r, out);
        buffer_puts(out, ",\n");
    }
    buffer_puts(out, "  \"fingerprint\": ");
    if (status == TARE_OK)
        status = fingerprint_write(r, out, &places->fingerprint);
    buffer_puts(out, ",\n");
    write_attentions(r, out);
    write_linears(r, out);
    buffer_puts(out, "}\n");
    return status == TARE_OK ? out->status : status;
}
