/* Rules that compare with the source checkpoint (--base): 14 tensors, 15 distance of the weights,
 * 25 files. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "model/rotate.h"
#include "model/tensor_names.h"
#include "output/copy_files.h"
#include "output/verify_internal.h"
#include "tensor/convert.h"

enum { PIECE_BYTES = 1 << 20, PIECE_ELEMENTS = 1 << 18 };

/* ---- the base ---- */

/* The rows of a tensor of the base as it is stored; false: its numbers are not known. */
static bool stored_rows(const verify *v, const tensor_info *t, stored_weight *out)
{
    char name[512];
    const codec *c = codec_of(t->dtype);
    const tensor_info *scales;
    *out = stored_whole(t);
    if (!c || !c->block)
        return c != NULL;
    size_t length = strlen(t->name) - (str_ends_with(t->name, "weight") ? strlen("weight") : 0);
    snprintf(name, sizeof name, "%.*s%s", (int)length, t->name, c->scales);
    scales = checkpoint_find(v->base, name);
    if (t->rank != 2 || !scales || scales->rank != 2 || !dtype_is_float(scales->dtype) ||
        scales->shape[0] != size_divide_up(t->shape[0], c->block) ||
        scales->shape[1] != size_divide_up(t->shape[1], c->block))
        return false;
    *out = stored_matrix(t->name, t, scales, 0, t->shape[0]);
    return true;
}

void base_close(const verify *v, base_tensor *t)
{
    coded_free(v->ctx, &t->whole);
}

tare_status base_open(const verify *v, const char *name, const tensor_info *source,
                      base_tensor *out)
{
    *out = (base_tensor){.from = v->base};
    out->has_numbers = stored_rows(v, source, &out->w);
    if (v->rotated && model_find_rotated(v->rotated, name, &out->w))
        out->from = v->rotated->checkpoint;
    return stored_is_whole(&out->w) ? stored_load(out->from, &out->w, &out->whole) : TARE_OK;
}

tare_status base_read(const verify *v, const base_tensor *t, size_t first, size_t count,
                      tare_dtype dtype, void *out)
{
    if (!t->whole.data)
        return stored_read_rows(t->from, &t->w, first, count, dtype, out);
    coded_convert_rows(v->ctx, &t->whole, first, count, dtype, out);
    return TARE_OK;
}

/* ---- rule 14 ---- */

/* Stored bytes against the source's; if the dtypes differ (compat), against its rounded values. */
static bool pieces_equal(const tensor_info *stored, const char *a, const stored_weight *source,
                         const char *b, size_t count)
{
    if (stored->dtype == source->dtype)
        return memcmp(a, b, count * dtype_size(stored->dtype)) == 0;
    for (size_t i = 0; i < count; i++) {
        float x = reader_element(stored->dtype, a + i * dtype_size(stored->dtype));
        if (x !=
            round_to_dtype((double)reader_element(source->dtype, b + i * dtype_size(source->dtype)),
                           stored->dtype))
            return false;
    }
    return true;
}

static tare_status check_float(verify *v, reader_layout *f, const reader_tensor *t,
                               const tensor_info *source)
{
    tare_context *ctx = f->ctx;
    base_tensor from;
    tare_status status = base_open(v, t->info.name, source, &from);
    const stored_weight w = from.w;
    size_t step = size_max(PIECE_ELEMENTS / size_max(w.k, 1), 1), widest = sizeof(double);
    size_t row_bytes = w.k * dtype_size(t->info.dtype);
    bool comparable = t->info.dtype == w.dtype ||
                      (f->num.compat && dtype_is_float(t->info.dtype) && from.has_numbers);
    char *a = mem_alloc_array(ctx, step * w.k, widest),
         *b = mem_alloc_array(ctx, step * w.k, widest);

    TRY(status);
    TRY(a && b ? TARE_OK : TARE_E_MEMORY);
    if (!comparable) {
        verify_fail(v, 14, t->info.name, dtype_name(w.dtype), "%s", dtype_name(t->info.dtype));
        goto done;
    }
    for (size_t at = 0; at < w.n && w.k > 0; at += step) {
        size_t n = size_min(w.n - at, step);
        TRY(reader_read(f, t, (uint64_t)at * row_bytes, a, n * row_bytes));
        TRY(base_read(v, &from, at, n, w.dtype, b));
        if (!pieces_equal(&t->info, a, &w, b, n * w.k)) {
            verify_fail(v, 14, t->info.name, "the values of the base", "others");
            break;
        }
    }
done:
    base_close(v, &from);
    mem_free(ctx, a);
    mem_free(ctx, b);
    return status;
}

/* What a model does not use is left out of the output, a tied head too. */
static bool is_left_out(const verify *v, bool has_mtp, const char *name)
{
    if (!v->base_config)
        return false;
    tensor_use use = tensor_use_of(v->base_config, v->base_graphs, name);
    if ((use == TENSOR_MTP || use == TENSOR_MTP_BLOCK) && !has_mtp)
        return true;
    return use == TENSOR_BEYOND || use == TENSOR_UNUSED ||
           (v->base_config->tie_word_embeddings && strcmp(name, "lm_head.weight") == 0);
}

/* A row of bytes holds two of 4-bit weights. */
static tensor_info unpacked(const reader_layout *f, const reader_tensor *t)
{
    size_t length;
    tensor_info info = t->info;
    const reader_linear *l = role_of_name(t->info.name, &length) == TENSOR_WEIGHT
                                 ? reader_find_linear(f, t->info.name, length)
                                 : NULL;
    if (l && l->packed)
        info.shape[0] *= 2;
    return info;
}

/* A rotated model's head is no longer its embedding, and the base holds none. */
static tare_status check_head_of_its_own(verify *v, reader_layout *f)
{
    static const char name[] = "lm_head.weight";
    stored_weight w;
    if (!v->rotated || !model_find_rotated(v->rotated, name, &w) ||
        strcmp(w.tensor->name, name) == 0)
        return TARE_OK;
    const reader_tensor *t = reader_find(f, name);
    if (!t)
        verify_fail(v, 14, name, "the rotated embedding", "no such tensor");
    else if (!t->type || strcmp(t->type, "FLOAT") == 0)
        return check_float(v, f, t, w.tensor);
    return TARE_OK;
}

tare_status rule_base_tensors(verify *v, reader_layout *f)
{
    tare_status status = TARE_OK;
    bool has_mtp = verify_has_mtp(f);
    for (size_t i = 0; i < checkpoint_count(v->base); i++) {
        const tensor_info *source = checkpoint_at(v->base, i);
        const reader_tensor *t = reader_find(f, source->name);
        const tensor_info here = t ? unpacked(f, t) : (tensor_info){0};
        TRY(context_check_cancelled(f->ctx));
        if (!t) {
            if (str_ends_with(source->name, ".weight") && !is_left_out(v, has_mtp, source->name))
                verify_fail(v, 14, source->name, "every weight of the base", "no such tensor");
        } else if (!tensor_same_shape(&here, source)) {
            char want[96], have[96];
            tensor_shape_text(source, want, sizeof want);
            tensor_shape_text(&here, have, sizeof have);
            verify_fail(v, 14, source->name, want, "%s", have);
        } else if (!t->type || strcmp(t->type, "FLOAT") == 0) {
            base_smoothing s;
            TRY(verify_find_smoothing(v, f, source, &s));
            bool found = s.found;
            verify_smoothing_free(v, &s);
            if (!found)
                TRY(check_float(v, f, t, source));
        }
    }
    TRY(check_head_of_its_own(v, f));
done:
    return status;
}

/* ---- rule 15 ---- */

typedef struct distance {
    double max, sum; /* in scales */
    size_t count, bad, first_bad;
    bool by_rows; /* each value may be further away, if its row on the whole is not: of gptq's,
                     which makes up for one rounding by the next ones */
    double row_sum;
} distance;

/* In scales, the mean of a row; of plain rounding 0.25, of other weights 30. */
#define GPTQ_MOST 1.0

static void end_row(distance *d, size_t row, size_t k)
{
    if (d->by_rows && !(d->row_sum <= GPTQ_MOST * (double)k) && d->bad++ == 0)
        d->first_bad = row;
    d->row_sum = 0;
}

/* Half a step, and what lies beyond the integers. The arithmetic is FP32 (compat: in the model
 * dtype, where a quotient near 127 has lost bits). */
static void add_distance(distance *d, size_t row, int8_t q, double w, double scale, double offset,
                         const double limits[2], double slack)
{
    double exact = w / scale + offset, error = fabs((double)q - exact);
    double clipped = fmax(fmax(exact - limits[1], limits[0] - exact), 0.0);
    if (error > d->max)
        d->max = error;
    d->sum += error;
    d->row_sum += error;
    d->count++;
    if (!d->by_rows && !(error <= 0.5 + slack + clipped) && d->bad++ == 0)
        d->first_bad = row;
}

static double quotient_slack(const reader_layout *f)
{
    double half_ulp = 0x1p-24;
    if (f->num.compat && f->num.dtype != TARE_F32)
        half_ulp = f->num.dtype == TARE_BF16 ? 0x1p-8 : 0x1p-11;
    return 128.0 * half_ulp + 1e-5;
}

static tare_status measure(verify *v, reader_layout *f, const reader_linear *l,
                           const reader_numbers *n, const base_tensor *source,
                           const base_smoothing *s, distance *d)
{
    tare_context *ctx = f->ctx;
    bool int4 = form_is_int4(&l->form);
    /* Whole pairs of rows, where these are packed together. */
    size_t k = n->k, least = int4 ? 2 : 1,
           step = size_max(PIECE_BYTES / size_max(k, 1) / least * least, least);
    double slack = quotient_slack(f);
    int8_t *q = mem_alloc_array(ctx, step, k);
    float *w = mem_alloc_array(ctx, step * k, sizeof *w);
    tare_status status = TARE_OK;

    TRY(q && w ? TARE_OK : TARE_E_MEMORY);
    for (size_t first = 0; first < n->n && k > 0; first += step) {
        size_t rows = size_min(n->n - first, step);
        TRY(context_check_cancelled(ctx));
        TRY(reader_codes(f, l, first * k, rows * k, q));
        TRY(base_read(v, source, first, rows, TARE_F32, w));
        for (size_t i = 0; i < rows * k; i++) {
            size_t row = first + i / k;
            float x = w[i];
            if (f->num.compat) /* the reference loads the model in this dtype */
                x = round_to_dtype((double)x, f->num.dtype);
            size_t of_scale = n->num_scales == 1 ? 0 : row;
            double offset = (double)n->weight_offset[of_scale];
            const double limits[2] = {int4 ? -8 : offset != 0 ? -128 : -127, int4 ? 7 : 127};
            double exact = (double)x * (s->columns ? s->columns[i % k] : 1.0) /
                           (s->rows ? s->rows[row] : 1.0);
            add_distance(d, row, q[i], exact, (double)n->weight_scale[of_scale], offset, limits,
                         slack);
            if (i % k + 1 == k)
                end_row(d, row, k);
        }
    }
done:
    mem_free(ctx, q);
    mem_free(ctx, w);
    return status;
}

/* A tied model's head is quantized from the embedding, whatever lm_head.weight holds. */
static const tensor_info *base_weight(const verify *v, const char *name)
{
    bool tied = v->base_config && v->base_config->tie_word_embeddings;
    return checkpoint_find(
        v->base, tied && strcmp(name, "lm_head.weight") == 0 ? "model.embed_tokens.weight" : name);
}

tare_status rule_base_distance(verify *v, reader_layout *f, const reader_linear *l,
                               const reader_numbers *n)
{
    const char *name = arena_printf(&f->arena, "%s.weight", l->module);
    const tensor_info *source = name ? base_weight(v, name) : NULL;
    const tensor_info matrix = {.name = name, .rank = 2, .shape = {n->n, n->k}};
    distance d = {.by_rows = verify_rounds_by_inputs(v)};
    base_smoothing s = {0};
    base_tensor from = {0};
    tare_status status = TARE_OK;
    if (!name)
        return TARE_E_MEMORY;
    if (!source || !tensor_same_shape(&matrix, source))
        return TARE_OK; /* rule 14 */
    TRY(base_open(v, name, source, &from));
    if (!from.has_numbers)
        goto done;
    TRY(verify_find_smoothing(v, f, &matrix, &s));
    TRY(measure(v, f, l, n, &from, &s, &d));
    if (d.bad > 0 && s.found && !s.recorded) {
        /* The ratio of stored norms is rounded, and others than those that norms show are not
         * known. */
        verify_warn(v, 15, name, "within half a scale of the base, smoothed as its norms tell",
                    "up to %.3g scales: smoothing is more than the norms record", d.max);
        goto done;
    }
    if (d.bad > 0)
        verify_fail(v, 15, name,
                    d.by_rows ? "within a scale of the base, on the average of a row (gptq)"
                              : "within half a scale of the base",
                    "row %zu is further away (%zu %s, up to %.3g scales)", d.first_bad, d.bad,
                    d.by_rows ? "rows" : "values", d.max);
    base_error *e = &v->errors[l->form.scheme];
    e->max = d.max > e->max ? d.max : e->max;
    e->sum += d.sum;
    e->count += d.count;
done:
    base_close(v, &from);
    verify_smoothing_free(v, &s);
    return status;
}

/* ---- rule 25 ---- */

static bool is_listed(const reader_layout *f, const char *name)
{
    for (size_t i = 0; i < f->num_names; i++)
        if (strcmp(f->names[i], name) == 0)
            return true;
    return false;
}

static tare_status check_copied(verify *v, reader_layout *f, const copy_file *item)
{
    char *path = path_join(f->ctx, f->dir, item->name);
    if (!path)
        return TARE_E_MEMORY;
    if (path_exists(path))
        ;
    else if (item->path)
        verify_fail(v, 25, item->name, "the file of the base", "no such file");
    else if (item->missed)
        verify_warn(v, 25, item->name, "the file of the base", "no such file; in the base: %s",
                    item->why);
    mem_free(f->ctx, path);
    return TARE_OK;
}

tare_status rule_base_files(verify *v, reader_layout *f)
{
    copy_list files;
    bool tokenizer = false;
    tare_status status = TARE_OK;

    TRY(copy_list_make(f->ctx, &f->arena, v->base_dir, false, &files));
    for (size_t i = 0; i < files.count; i++) {
        TRY(check_copied(v, f, &files.files[i]));
        tokenizer |= files.files[i].path && copy_is_tokenizer(files.files[i].name);
    }
    if (!is_listed(f, "config.json"))
        verify_fail(v, 25, "config.json", "the model's configuration", "no such file");
    if (!tokenizer)
        verify_warn(v, 25, v->options->base, "a tokenizer beside the weights", "none");
done:
    return status;
}
