/* What the run of an output left beside it: its recipe in tare_run.json, and its statistics. */
#include "file/json.h"
#include "output/output.h"
#include "output/verify_internal.h"

enum { RECORD_MAX_BYTES = 64 << 20 };

/* A finding, and no reason to stop. */
static bool is_damage(tare_status status)
{
    return status == TARE_E_FORMAT || status == TARE_E_IO || status == TARE_E_DATA;
}

/* Several layouts share what lies in the folder above theirs. */
static tare_status open_statistics(verify *v)
{
    tare_status status = TARE_OK;
    char *path = path_join(v->ctx, v->options->dir, STATISTICS_FILE),
         *beside = path_join(v->ctx, v->options->dir, "../" STATISTICS_FILE);
    TRY(path && beside ? TARE_OK : TARE_E_MEMORY);
    const char *found = path_exists(path) ? path : path_exists(beside) ? beside : NULL;
    status = found ? safetensors_open(v->ctx, found, &v->statistics) : TARE_OK;
    if (is_damage(status)) {
        verify_fail(v, 3, STATISTICS_FILE, "what calibration found, as safetensors", "%s",
                    tare_last_error(v->ctx));
        status = TARE_OK;
    }
done:
    mem_free(v->ctx, path);
    mem_free(v->ctx, beside);
    return status;
}

tare_status verify_open_run(verify *v, arena *a)
{
    tare_status status = TARE_OK;
    char *path = NULL;
    const value *record;
    TRY(save_types_record(v->ctx, v->options->dir, &path));
    if (!path)
        goto done;
    status = json_parse_file(v->ctx, a, path, RECORD_MAX_BYTES, &record);
    if (is_damage(status)) {
        verify_fail(v, 3, "tare_run.json", "what the run was, as JSON", "%s",
                    tare_last_error(v->ctx));
        status = TARE_OK;
        goto done;
    }
    TRY(status);
    v->record = record;
    if (v->options->base)
        TRY(open_statistics(v));
done:
    mem_free(v->ctx, path);
    return status;
}

bool verify_rounds_by_inputs(const verify *v)
{
    const value *method = value_get(value_get(value_get(v->record, "recipe"), "quant"),
                                    "weight_method");
    return value_is(method, "gptq");
}
