/* The rotation of the residual stream as a file of its own (options->save_rotation), for what reads
 * hidden states as they were: drafts of speculative decoding. It is known once the model is
 * aligned, and is written, a panel of rows at a time, when all the rest is. */
#include <unistd.h>

#include "model/rotate.h"
#include "pipeline/run.h"

enum { PANEL_ROWS = 64 };

tare_status rotation_file_check(const run_env *e)
{
    tare_status status = TARE_OK;
    const char *path = e->options->save_rotation;
    char *real = NULL, *out = NULL;
    if (!path)
        return TARE_OK;
    if (e->tape)
        return TARE_FAIL(e->ctx, TARE_E_USAGE, "save_rotation: a recording has no output yet");
    if (!model_stream_rotation(e->model))
        return TARE_FAIL(e->ctx, TARE_E_USAGE,
                         "save_rotation: the residual stream is not rotated (--rotate, with "
                         "rotation.r1)");
    status = path_real(e->ctx, path, &real);
    TRY(status == TARE_E_IO ? TARE_E_USAGE : status);
    if (e->options->out)
        TRY(path_real(e->ctx, e->options->out, &out));
    if (!out || !path_contains(out, real)) /* else it comes and goes with the output */
        TRY(path_check_place(e->ctx, real));
    if (path_exists(real) && !e->options->overwrite && !e->options->resume)
        TRY(TARE_FAIL(e->ctx, TARE_E_USAGE, "cannot save '%s': it exists (--overwrite replaces it)",
                      path));
done:
    mem_free(e->ctx, real);
    mem_free(e->ctx, out);
    return status;
}

tare_status rotation_file_check_finished(const run *r)
{
    const char *path = r->env->options->save_rotation;
    if (!path || path_exists(path))
        return TARE_OK;
    return TARE_FAIL(r->ctx, TARE_E_USAGE,
                     "%s is finished, without '%s', which a run writes before it ends: tare retype "
                     "--save-rotation makes it from the statistics, --overwrite starts anew",
                     r->env->options->out, path);
}

static tare_status write_panels(run *r, const char *path)
{
    tare_status status = TARE_OK;
    const rotation *stream = model_stream_rotation(r->model);
    size_t n = stream->n;
    const tensor_info tensor = {
        .name = ROTATION_TENSOR, .dtype = TARE_F32, .rank = 2, .shape = {n, n}};
    safetensors_writer *w = NULL;
    float *rows = mem_alloc_array(r->ctx, PANEL_ROWS * n, sizeof *rows),
          *room = mem_alloc_array(r->ctx, PANEL_ROWS * n, sizeof *room);
    TRY(rows && room ? TARE_OK : TARE_E_MEMORY);
    TRY(safetensors_create(r->ctx, path, &tensor, 1, &w));
    for (size_t first = 0; first < n; first += PANEL_ROWS) {
        size_t count = size_min(n - first, PANEL_ROWS);
        TRY(context_check_cancelled(r->ctx));
        rotation_rows(r->ctx, stream, first, count, rows, room);
        TRY(safetensors_write(w, 0, first * n * sizeof *rows, rows, count * n * sizeof *rows));
    }
    safetensors_writer *finished = w;
    w = NULL;
    TRY(safetensors_finish(finished));
done:
    if (w)
        safetensors_abandon(w);
    mem_free(r->ctx, rows);
    mem_free(r->ctx, room);
    return status;
}

/* Beside its place first, so that it is there whole or not at all. */
static tare_status write_outside(run *r, const char *path)
{
    tare_status status = TARE_OK;
    char *real = NULL;
    buffer fresh;
    buffer_init(&fresh, r->ctx);
    TRY(path_real(r->ctx, path, &real));
    buffer_printf(&fresh, "%s.tare", real);
    TRY(fresh.status);
    TRY(path_remove(r->ctx, fresh.data)); /* of a run that was killed */
    TRY(write_panels(r, fresh.data));
    TRY(file_rename(r->ctx, fresh.data, real));
done:
    if (status != TARE_OK && fresh.data)
        (void)unlink(fresh.data); /* the first error is the one worth telling */
    mem_free(r->ctx, real);
    buffer_free(&fresh);
    return status;
}

tare_status rotation_file_write(run *r)
{
    tare_status status = TARE_OK;
    const char *staged, *path = r->env->options->save_rotation;
    if (!path || r->env->tape)
        return TARE_OK;
    TRY(output_stage_rotation(r->out, &staged));
    TRY(staged ? write_panels(r, staged) : write_outside(r, path));
done:
    return TARE_WRAP(r->ctx, status, "save_rotation");
}

uint64_t rotation_file_size(const tare_model *m)
{
    const rotation *stream = model_stream_rotation(m);
    return stream ? (uint64_t)stream->n * stream->n * sizeof(float) : 0;
}

size_t rotation_file_bytes(const run_plan *plan)
{
    size_t n = plan->env->model->config.hidden_size;
    return plan->env->options->save_rotation
               ? 2 * mem_array_bytes(PANEL_ROWS * n, sizeof(float)) + file_write_bytes()
               : 0;
}
