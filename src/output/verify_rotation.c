/* The base as the output's run turned it: by the recipe in tare_run.json, and by the means of norms
 * in the statistics beside the output, if it was aligned by any. And the file of the rotation that
 * a description names. */
#include <math.h>
#include <string.h>

#include "model/rotate.h"
#include "output/output.h"
#include "output/verify_internal.h"

/* False: there was none. */
static bool read_settings(const value *recipe, rotation_settings *out)
{
    const value *section = value_get(recipe, "rotation"), *seed = value_get(section, "seed");
    if (!seed || !seed->is_integer || seed->integer < 0)
        return false;
    *out = (rotation_settings){.seed = (uint64_t)seed->integer,
                               .r1 = value_is_true(value_get(section, "r1")),
                               .r2 = value_is_true(value_get(section, "r2")),
                               .align = value_is_true(value_get(section, "align")),
                               .flips = value_is_true(value_get(section, "flips"))};
    return true;
}

/* means [num_blocks * BLOCK_NORMS], in the arena, of all norms that read the stream; or *lacking,
 * the first of these tensors that is not there as it has to be. */
static tare_status read_means(verify *v, arena *a, safetensors *from, float **means,
                              const char **lacking)
{
    tare_status status = TARE_OK;
    const tare_model *m = v->rotated;
    size_t h = m->config.hidden_size;
    for (size_t i = 0; i < m->num_blocks * BLOCK_UNITS; i++) {
        const model_block *b = &m->blocks[i / BLOCK_UNITS];
        graph_unit unit = (graph_unit)(i % BLOCK_UNITS);
        int norm = unit < b->graph->num_units ? model_stream_norm(m, b, unit) : -1;
        float **mean = &means[b->index * BLOCK_NORMS + (size_t)(norm < 0 ? 0 : norm)];
        if (norm < 0 || *mean)
            continue;
        const char *name = arena_printf(a, "%s.rotated_mean", b->norms[norm]->name);
        TRY(name ? TARE_OK : TARE_E_MEMORY);
        const tensor_info *t = safetensors_find(from, name);
        *lacking = name;
        if (!t || t->dtype != TARE_F32 || t->rank != 1 || t->shape[0] != h)
            goto done;
        TRY((*mean = arena_alloc_array(a, h, sizeof **mean)) ? TARE_OK : TARE_E_MEMORY);
        TRY(safetensors_read(from, t, 0, *mean, t->bytes));
        for (size_t c = 0; c < h; c++)
            if (!isfinite((*mean)[c]))
                goto done;
        *lacking = NULL;
    }
done:
    return status;
}

static tare_status align(verify *v, arena *a)
{
    tare_status status = TARE_OK;
    const char *lacking = v->statistics ? NULL : STATISTICS_FILE;
    float **means = arena_calloc(a, v->rotated->num_blocks * BLOCK_NORMS, sizeof *means);
    TRY(means ? TARE_OK : TARE_E_MEMORY);
    if (v->statistics)
        TRY(read_means(v, a, v->statistics, means, &lacking));
    if (!lacking) {
        TRY(model_align(v->rotated, (const float *const *)means));
        goto done;
    }
    verify_fail(v, 14, lacking, "the means by which this output's rotation was fitted",
                "none: its values cannot be compared with the base's");
    checkpoint_close(v->base);
    v->base = NULL;
done:
    return status;
}

tare_status verify_rotate_base(verify *v, arena *a)
{
    tare_status status = TARE_OK;
    rotation_settings settings;
    if (!read_settings(value_get(v->record, "recipe"), &settings))
        return TARE_OK;
    TRY(tare_model_open(v->ctx, v->base_dir, &v->rotated));
    TRY(model_rotate(v->rotated, &settings));
    if (value_is_true(value_get(v->record, "rotation_aligned")))
        TRY(align(v, a));
done:
    return status;
}

/* ---- the rotation's file ---- */

enum { PANEL_ROWS = 64 };

/* Is it R1 of the run, bit for bit? */
static tare_status compare_rotation(verify *v, safetensors *from, const tensor_info *t,
                                    const char *name)
{
    tare_status status = TARE_OK;
    const rotation *stream = model_stream_rotation(v->rotated);
    size_t n = t->shape[0];
    float *rows = mem_alloc_array(v->ctx, PANEL_ROWS * n, sizeof *rows),
          *room = mem_alloc_array(v->ctx, PANEL_ROWS * n, sizeof *room);
    TRY(rows && room ? TARE_OK : TARE_E_MEMORY);
    for (size_t first = 0; stream && stream->n == n && first < n; first += PANEL_ROWS) {
        size_t count = size_min(n - first, PANEL_ROWS), bytes = count * n * sizeof *rows;
        TRY(context_check_cancelled(v->ctx));
        rotation_rows(v->ctx, stream, first, count, rows, room);
        TRY(safetensors_read(from, t, first * n * sizeof *rows, room, bytes));
        if (memcmp(rows, room, bytes) != 0) {
            verify_fail(v, 14, name, "the rotation of this output's run", "another one");
            goto done;
        }
    }
done:
    mem_free(v->ctx, rows);
    mem_free(v->ctx, room);
    return status;
}

static bool is_below(const char *name)
{
    return name && *name && *name != '/' && !strstr(name, "..");
}

tare_status rule_rotation_file(verify *v, reader_layout *f)
{
    tare_status status = TARE_OK;
    const value *quarot = value_get(value_get(f->description, "optional"), "quarot"),
                *named = value_get(value_get(quarot, "rotation_map"), ROTATION_TENSOR),
                *hidden = value_get(f->config, "hidden_size");
    safetensors *from = NULL;
    const char *name = value_text(named);
    char *path = NULL;
    if (!named)
        return TARE_OK;
    if (!is_below(name)) {
        verify_fail(v, 3, "optional", "the rotation's file, below the folder", "%s",
                    name ? name : "no string");
        return TARE_OK;
    }
    TRY((path = path_join(v->ctx, f->dir, name)) ? TARE_OK : TARE_E_MEMORY);
    status = safetensors_open(v->ctx, path, &from);
    if (status == TARE_E_FORMAT || status == TARE_E_IO) {
        verify_fail(v, 3, name, "the file that the description names", "%s",
                    tare_last_error(v->ctx));
        status = TARE_OK;
        goto done;
    }
    TRY(status);
    const tensor_info *t = safetensors_find(from, ROTATION_TENSOR);
    if (!t || t->dtype != TARE_F32 || t->rank != 2 || t->shape[0] != t->shape[1] ||
        (hidden && hidden->is_integer && (uint64_t)hidden->integer != t->shape[0]))
        verify_fail(v, 3, name, ROTATION_TENSOR ", F32 [hidden_size, hidden_size]",
                    t ? "another shape or dtype" : "no such tensor");
    else if (v->base && v->rotated)
        TRY(compare_rotation(v, from, t, name));
done:
    safetensors_close(from);
    mem_free(v->ctx, path);
    return status;
}
