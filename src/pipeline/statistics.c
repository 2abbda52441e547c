/* Writing a run's statistics as it goes on: each layer's when it has been calibrated, beside the
 * thread that writes the output. */
#include "pipeline/statistics.h"
#include "pipeline/means.h"
#include "pipeline/statistics_file.h"

#include <math.h>
#include <string.h>

#include "file/json.h"
#include "tensor/convert.h"

void statistics_file_init(statistics_file *f, tare_context *ctx)
{
    *f = (statistics_file){.ctx = ctx};
    arena_init(&f->arena, ctx);
    strmap_init(&f->index, ctx);
    buffer_init(&f->name, ctx);
}

/* ---- what the run was ---- */

tare_status statistics_model(const tare_model *model, buffer *out)
{
    buffer_puts(out, "{\"config.json\": ");
    digest_write(out, model->config_json, model->config_length);
    tare_status status = fingerprint_files(model, out);
    buffer_putc(out, '}');
    return status == TARE_OK ? out->status : status;
}

/* Under which schemes the layers ran: what they put out depends on that. */
static void write_schemes(const run *r, buffer *out)
{
    buffer_putc(out, '{');
    for (size_t i = 0; i < r->model->num_linears; i++) {
        const linear_plan *l = &r->plan->linears[i];
        buffer_puts(out, i ? ", " : "");
        json_write_string(out, l->name, strlen(l->name));
        buffer_printf(out, ": \"%s\"", scheme_of(l->scheme)->type);
    }
    buffer_putc(out, '}');
}

static tare_status write_run(const run *r, buffer *out)
{
    const run_env *e = r->env;
    buffer_printf(out, "{\"tare_version\": \"%s\", \"serving_dtype\": \"%s\", \"recipe\": ",
                  tare_version(), dtype_name(e->num.dtype));
    recipe_write(e->recipe, out, 0);
    buffer_puts(out, ", \"calibration\": ");
    calibration_write(e, out);
    buffer_puts(out, ", \"linears\": ");
    write_schemes(r, out);
    buffer_puts(out, ", \"model\": ");
    tare_status status = statistics_model(r->model, out);
    buffer_putc(out, '}');
    return status == TARE_OK ? out->status : status;
}

/* ---- the file ---- */

/* Of a run that goes on from an earlier process: what it does again is not written yet. */
static tare_status reopen(run *r, statistics_file *f, const char *path)
{
    tare_status status = TARE_OK;
    size_t now = statistics_moment(r->resume.layer, r->resume.expert > 0);
    uint64_t *written = mem_calloc(r->ctx, f->count, sizeof *written);
    TRY(written ? TARE_OK : TARE_E_MEMORY);
    for (size_t i = 0; i < f->count; i++)
        written[i] = f->moment_of[i] < now ? f->tensors[i].bytes : 0;
    TRY(safetensors_reopen(r->ctx, path, f->tensors, f->count, written, &f->writer));
done:
    mem_free(r->ctx, written);
    return status;
}

static tare_status open_file(run *r, statistics_file *f, const buffer *record)
{
    tare_status status = TARE_OK;
    const char *path;
    float *const *means = r->means ? means_of(r->means) : NULL;
    TRY(statistics_declare(f, r->plan, means, record->length));
    TRY(output_stage_statistics(r->out, &path));
    if (r->resume.restores && (r->resume.layer > 0 || r->resume.expert > 0))
        TRY(reopen(r, f, path));
    else
        TRY(safetensors_create(r->ctx, path, f->tensors, f->count, &f->writer));
    f->mode = STATISTICS_WRITE;
    if (means)
        TRY(statistics_means(f, r->model, means));
    TRY(statistics_item(f, TARE_U8, 0, record->length, record->data, STATISTICS_RUN, ""));
done:
    return status;
}

tare_status statistics_open(run *r)
{
    tare_status status = TARE_OK;
    buffer record;
    if (!r->plan->keeps_statistics)
        return TARE_OK;
    statistics_file *f = arena_alloc(r->env->arena, sizeof *f);
    if (!f)
        return TARE_E_MEMORY;
    statistics_file_init(r->statistics = f, r->ctx);
    buffer_init(&record, r->ctx);
    TRY(write_run(r, &record));
    TRY(open_file(r, f, &record));
done:
    buffer_free(&record);
    return TARE_WRAP(r->ctx, status, STATISTICS_FILE);
}

tare_status statistics_check(run *r, const char *stage)
{
    safetensors *there = NULL;
    if (!r->plan->keeps_statistics)
        return TARE_OK;
    char *path = path_join(r->ctx, stage, STATISTICS_FILE);
    tare_status status = path ? safetensors_open(r->ctx, path, &there) : TARE_E_MEMORY;
    safetensors_close(there);
    mem_free(r->ctx, path);
    return status;
}

tare_status statistics_sync(run *r)
{
    return r->statistics && r->statistics->writer ? safetensors_sync(r->statistics->writer)
                                                  : TARE_OK;
}

tare_status statistics_finish(run *r)
{
    if (!r->statistics)
        return TARE_OK;
    safetensors_writer *w = r->statistics->writer;
    r->statistics->writer = NULL;
    return safetensors_finish(w);
}

void statistics_close(run *r, bool leave)
{
    if (!r->statistics)
        return;
    (leave ? safetensors_leave : safetensors_abandon)(r->statistics->writer);
    statistics_file_free(r->statistics);
    r->statistics = NULL;
}

/* ---- the tensors ---- */

/* Infinite where a range's scale fits no number. */
static void note_params(const run *r, const input_ranges *ranges, unit_statistics *u)
{
    for (int i = 0; i < 2; i++) {
        int kind = OBSERVER_MEAN_EXTREMES + i;
        act_params p = act_params_of(&r->env->num, ranges->low[kind], ranges->high[kind],
                                     kind == OBSERVER_HISTOGRAM);
        u->scale[i] = p.scale;
        u->offset[i] = p.offset;
    }
}

tare_status statistics_input(run *r, size_t unit, const observer *o, channel_range *range)
{
    const model_unit *m = &r->model->units[unit];
    input_ranges ranges;
    if (!r->statistics || !observer_ranges(o, &ranges))
        return TARE_OK;
    unit_statistics u = {.max = (uint16_t *)(void *)range->low, /* each after it was read */
                         .score = r->scores[m->first].value,
                         .scored = r->plan->wants_scores,
                         .mse = !r->env->num.compat};
    for (size_t i = 0; i < m->k; i++)
        u.max[i] = float_to_bf16(fmaxf(-channel_low(range, i), channel_high(range, i)));
    for (int i = 0; i < INPUT_RANGES; i++) {
        u.range[i][0] = ranges.low[i];
        u.range[i][1] = ranges.high[i];
    }
    note_params(r, &ranges, &u);
    return statistics_unit(r->statistics, r->plan, unit, &u);
}

tare_status statistics_keys_and_values(run *r, size_t layer, const kv_observer *o)
{
    tare_status status = TARE_OK;
    size_t channels = kv_observed_channels(r->plan, layer);
    if (!r->statistics || channels == 0)
        return TARE_OK;
    float *range = mem_alloc_array(r->ctx, 2 * channels, sizeof *range);
    if (!range)
        return TARE_E_MEMORY;
    for (int kind = 0; kind < KV_KINDS; kind++) {
        kv_observer_get(o, (kv_kind)kind, range, range + channels);
        TRY(statistics_kv(r->statistics, r->plan, layer, (kv_kind)kind, range));
    }
done:
    mem_free(r->ctx, range);
    return status;
}

tare_status statistics_layer(run *r, const model_block *block)
{
    tare_status status = TARE_OK;
    if (!r->statistics)
        return TARE_OK;
    if (r->plan->attentions[block->index].quantize)
        TRY(statistics_fa(r->statistics, r->plan, block->index, &r->attentions[block->index]));
    if (r->plan->smooths)
        TRY(statistics_smoothing(r->statistics, r->plan, block, &r->smoothing[block->index]));
done:
    return TARE_WRAP(r->ctx, status, "%s", block->name);
}

/* ---- memory ---- */

/* A layer's tensors: six a unit, six of attention, and of a pair two vectors, a norm's two and
 * biases; each with its name, in the list, the map, the file's plan and for a moment its header. */
size_t statistics_bytes(const run_plan *plan)
{
    enum { TENSOR = 3 * sizeof(tensor_info) + 1024, RECORD = 256 << 10, LINEAR = 128 };
    const tare_model *m = plan->env->model;
    size_t a_layer = 6 * model_graph(m)->num_units + 8 + 4 * model_graph(m)->num_pairs +
                     model_graph(m)->num_linears;
    if (!plan->keeps_statistics)
        return 0;
    return RECORD + 4 * m->num_linears * LINEAR + file_write_bytes() +
           (m->num_blocks * a_layer + 8) * TENSOR;
}
