/* What outlier suppression did to the weights of an output: as its run's statistics tell, or,
 * without them, as the norms of a layer show. Scales that moved from v to o and from up to down are
 * nowhere else. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "output/verify_internal.h"
#include "tensor/convert.h"
#include "tensor/round.h"

static double element(tare_dtype dtype, const char *raw, size_t index)
{
    return (double)reader_element(dtype, raw + index * dtype_size(dtype));
}

/* ---- as norms show ---- */

/* Values of a norm here and in the base; *ratio [n] base / here, *differs. */
static tare_status norm_ratio(verify *v, reader_layout *f, const char *name, double **ratio,
                              bool *differs)
{
    tare_context *ctx = f->ctx;
    const reader_tensor *t = reader_find(f, name);
    const tensor_info *source = checkpoint_find(v->base, name);
    char *a = NULL, *b = NULL;
    base_tensor from;
    tare_status status = TARE_OK;
    double base = f->arch ? (double)f->arch->norm_base : 0;
    *ratio = NULL;
    if (!t || !source || source->rank != 1 || !tensor_same_shape(&t->info, source) ||
        !dtype_is_float(source->dtype) || !dtype_is_float(t->info.dtype))
        return TARE_OK;
    size_t n = source->shape[0];
    if (!(a = mem_alloc(ctx, t->info.bytes)) || !(b = mem_alloc(ctx, source->bytes)) ||
        !(*ratio = mem_alloc_array(ctx, n, sizeof **ratio))) {
        status = TARE_E_MEMORY;
        goto done;
    }
    TRY(reader_read(f, t, 0, a, t->info.bytes));
    TRY(base_open(v, name, source, &from));
    TRY(base_read(v, &from, 0, from.w.n, source->dtype, b));
    for (size_t i = 0; i < n; i++) {
        double here = element(t->info.dtype, a, i), there = element(source->dtype, b, i);
        if (f->num.compat)
            there = round_to_dtype(there, f->num.dtype);
        *differs |= here != there;
        here += base, there += base;
        (*ratio)[i] = here != 0 && there != 0 ? there / here : 1;
    }
done:
    mem_free(ctx, a);
    mem_free(ctx, b);
    if (status != TARE_OK) {
        mem_free(ctx, *ratio);
        *ratio = NULL;
    }
    return status;
}

/* What was divided out of a norm's weight was multiplied into the columns of the linears that read
 * it; `name` may be one's. */
static tare_status find_in_norms(verify *v, reader_layout *f, const char *name, base_smoothing *out)
{
    tare_status status = TARE_OK;
    const block_graph *g = &f->graph;
    size_t module = strlen(name) - (str_ends_with(name, ".weight") ? strlen(".weight") : 0);
    const linear_spec *linear = graph_linear_of(g, name, module);
    char path[256];
    size_t layer;
    int length = 0;
    if (sscanf(name, "model.layers.%zu.%n", &layer, &length) != 1 || length == 0)
        return TARE_OK;
    for (size_t p = 0; p < g->num_pairs; p++) {
        const pair_spec *pair = &g->pairs[p];
        double *ratio;
        if (!pair->of_norm)
            continue;
        snprintf(path, sizeof path, "model.layers.%zu.%s.weight", layer,
                 g->norms[pair->source].name);
        TRY(norm_ratio(v, f, path, &ratio, &out->found));
        if (linear && linear->unit == pair->unit && ratio)
            out->columns = ratio;
        else
            mem_free(f->ctx, ratio);
    }
done:
    if (status != TARE_OK || !out->found) {
        mem_free(f->ctx, out->columns);
        out->columns = NULL;
    }
    return status;
}

/* ---- as statistics tell ---- */

/* Of the run: a method, or the balance of queries and keys. */
static bool was_smoothed(const verify *v)
{
    const value *recipe = value_get(v->record, "recipe"),
                *method = value_get(value_get(recipe, "anti_outlier"), "anti_method"),
                *balance = value_get(value_get(recipe, "fa_quant"), "balance");
    return (value_text(method) && !value_is(method, "none")) || value_is_true(balance);
}

/* The vector <module><part>; *out NULL: there is none. */
static tare_status read_vector(verify *v, const char *module, size_t length, const char *part,
                               double **out, size_t *size)
{
    tare_status status = TARE_OK;
    char name[512];
    float *values = NULL;
    snprintf(name, sizeof name, "%.*s%s", (int)length, module, part);
    const tensor_info *t = safetensors_find(v->statistics, name);
    *out = NULL;
    if (!t || t->dtype != TARE_F32 || t->rank != 1)
        return TARE_OK;
    *size = t->shape[0];
    values = mem_alloc_array(v->ctx, *size, sizeof *values);
    *out = mem_alloc_array(v->ctx, *size, sizeof **out);
    TRY(values && *out ? TARE_OK : TARE_E_MEMORY);
    TRY(safetensors_read(v->statistics, t, 0, values, t->bytes));
    for (size_t i = 0; i < *size; i++)
        (*out)[i] = (double)values[i];
done:
    mem_free(v->ctx, values);
    if (status != TARE_OK) {
        mem_free(v->ctx, *out);
        *out = NULL;
    }
    return status;
}

static bool are_factors(const double *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!(x[i] > 0) || !isfinite(x[i]))
            return false;
    return true;
}

static tare_status read_factors(verify *v, const char *module, size_t length, const char *part,
                                size_t expected, double **out)
{
    size_t size = 0;
    tare_status status = read_vector(v, module, length, part, out, &size);
    if (status == TARE_OK && *out && (size != expected || !are_factors(*out, size))) {
        mem_free(v->ctx, *out);
        *out = NULL;
    }
    return status;
}

/* Linears that read one input share the vector of the first of them. */
static tare_status find_in_statistics(verify *v, reader_layout *f, const tensor_info *t,
                                      base_smoothing *out)
{
    tare_status status = TARE_OK;
    const block_graph *g = &f->graph;
    const char *name = t->name;
    size_t module = strlen(name) - (str_ends_with(name, ".weight") ? strlen(".weight") : 0);
    const linear_spec *linear = graph_linear_of(g, name, module);
    out->recorded = true;
    if (!linear || t->rank != 2) {
        bool is_bias = str_ends_with(name, ".bias");
        size_t length = strlen(name) - (is_bias ? strlen(".bias") : 0), size;
        double *vector;
        TRY(read_vector(v, name, length, is_bias ? ".smooth_bias" : ".smooth", &vector, &size));
        out->found = vector != NULL;
        mem_free(v->ctx, vector);
        return status;
    }
    const linear_spec *first = &g->linears[g->units[linear->unit].first];
    char of_first[512];
    snprintf(of_first, sizeof of_first, "%.*s%s", (int)(module - strlen(linear->name)), name,
             first->name);
    TRY(read_factors(v, name, module, ".smooth_rows", t->shape[0], &out->rows));
    TRY(read_factors(v, of_first, strlen(of_first), ".smooth_columns", t->shape[1], &out->columns));
    out->found = out->rows || out->columns;
done:
    return status;
}

/* Compat rounds on the way, so that its norms tell as much. */
tare_status verify_find_smoothing(verify *v, reader_layout *f, const tensor_info *t,
                                  base_smoothing *out)
{
    bool recorded = was_smoothed(v) && !f->num.compat;
    *out = (base_smoothing){0};
    tare_status status = recorded && v->statistics ? find_in_statistics(v, f, t, out)
                                                   : find_in_norms(v, f, t->name, out);
    out->found |= recorded && !v->statistics;
    if (status != TARE_OK)
        verify_smoothing_free(v, out);
    return status;
}

void verify_smoothing_free(const verify *v, base_smoothing *s)
{
    mem_free(v->ctx, s->columns);
    mem_free(v->ctx, s->rows);
    *s = (base_smoothing){0};
}
