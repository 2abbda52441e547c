/* Rule 26, the key sets of the npy files, and rule 27, the agreement of several layouts of one run.
 */
#include <stdio.h>
#include <string.h>

#include "output/verify_internal.h"

enum { COMPARE_ELEMENTS = 4096 };

/* Every key of `of`, unless it is one of `but`, is a key of all the needed files. */
static void check_keys(verify *v, const reader_layout *f, npy_file of, const npy_dict *but,
                       const npy_file *needed, size_t count)
{
    const npy_dict *keys = f->npy[of];
    for (size_t i = 0; keys && i < npy_count(keys); i++) {
        const char *key = npy_at(keys, i)->key;
        for (size_t j = 0; j < count && !(but && npy_find(but, key)); j++)
            if (!f->npy[needed[j]] || !npy_find(f->npy[needed[j]], key))
                verify_fail(v, 26, key, "a key of every file of a linear", "none in %s",
                            npy_file_name(needed[j]));
    }
}

tare_status rule_npy_keys(verify *v, reader_layout *f)
{
    /* The first three alone where only weights are stored. */
    static const npy_file NEEDED[] = {NPY_WEIGHT_SCALE, NPY_QUANT_WEIGHT, NPY_WEIGHT_OFFSET,
                                      NPY_INPUT_SCALE,  NPY_INPUT_OFFSET, NPY_DEQ_SCALE,
                                      NPY_QUANT_BIAS};
    if (!f->npy[NPY_QUANT_WEIGHT])
        verify_fail(v, 26, npy_file_name(NPY_QUANT_WEIGHT), "the weights", "no such file");
    check_keys(v, f, NPY_INPUT_SCALE, NULL, NEEDED, sizeof NEEDED / sizeof *NEEDED);
    check_keys(v, f, NPY_WEIGHT_SCALE, f->npy[NPY_INPUT_SCALE], NEEDED, 3);
    return TARE_OK;
}

/* ---- rule 27 ---- */

/* The tensor of another layout; the numpy layout adds ".weight" to names that are no weights. */
static const reader_tensor *counterpart(const reader_layout *f, const char *name)
{
    char other[1024];
    size_t length;
    const reader_tensor *t = reader_find(f, name);
    tensor_role role = role_of_name(name, &length);
    if (t)
        return t;
    if (f->layout == LAYOUT_NUMPY)
        snprintf(other, sizeof other, "%s%s", name, role_suffix(TENSOR_WEIGHT));
    else if (role == TENSOR_INPUT_OFFSET)
        snprintf(other, sizeof other, "%.*s%s", (int)length, name,
                 role_suffix(TENSOR_INPUT_ZERO_POINT));
    else if (role == TENSOR_WEIGHT && reader_find_linear(f, name, length))
        snprintf(other, sizeof other, "%.*s%s", (int)length, name,
                 role_suffix(TENSOR_WEIGHT_PACKED));
    else if (role == TENSOR_WEIGHT) /* of the numpy layout, and no weight */
        snprintf(other, sizeof other, "%.*s", (int)length, name);
    else
        return NULL;
    return reader_find(f, other);
}

/* Copies and zero biases of norms are stored in some layouts only (section 4.2), and
 * compressed-tensors has tensors of its own for a linear (section 7), without a zero point if that
 * is 0 by its config. */
static bool may_be_absent(const reader_layout *f, const char *name)
{
    size_t length;
    tensor_role role = role_of_name(name, &length);
    const reader_linear *l = reader_find_linear(f, name, length);
    if (role == TENSOR_INPUT_OFFSET && l && l->form.act_symmetric)
        return true;
    return strstr(name, ".module.") || str_ends_with(name, "norm.bias") ||
           role == TENSOR_WEIGHT_SHAPE ||
           (f->layout == LAYOUT_COMPRESSED_TENSORS &&
            (role == TENSOR_WEIGHT_OFFSET || role == TENSOR_QUANT_BIAS ||
             role == TENSOR_DEQ_SCALE));
}

static bool is_decodable(tare_dtype dtype)
{
    return dtype_is_float(dtype) || dtype == TARE_I64;
}

/* Integers of a complete linear, one of which is packed. */
static tare_status equal_codes(reader_layout *f, const reader_linear *a, reader_layout *g,
                               const reader_linear *b, bool *equal)
{
    int8_t left[COMPARE_ELEMENTS], right[COMPARE_ELEMENTS];
    size_t count = a->form.n * a->form.k;
    tare_status status = TARE_OK;
    *equal = a->form.n == b->form.n && a->form.k == b->form.k;
    for (size_t at = 0; *equal && at < count; at += COMPARE_ELEMENTS) {
        size_t n = count - at < COMPARE_ELEMENTS ? count - at : COMPARE_ELEMENTS;
        TRY(reader_codes(f, a, at, n, left));
        TRY(reader_codes(g, b, at, n, right));
        *equal = memcmp(left, right, n) == 0;
    }
done:
    return status;
}

/* Values after decoding; a single scale equals its repetition. */
static tare_status equal_values(reader_layout *f, const reader_tensor *a, reader_layout *g,
                                const reader_tensor *b, bool *equal)
{
    float left[COMPARE_ELEMENTS], right[COMPARE_ELEMENTS];
    size_t na = tensor_elements(&a->info), nb = tensor_elements(&b->info);
    size_t count = na > nb ? na : nb;
    tare_status status = TARE_OK;
    *equal = na == nb || na == 1 || nb == 1;
    for (size_t at = 0; *equal && at < count; at += COMPARE_ELEMENTS) {
        size_t n = count - at < COMPARE_ELEMENTS ? count - at : COMPARE_ELEMENTS;
        TRY(reader_elements(f, a, na == 1 ? 0 : at, na == 1 ? 1 : n, left));
        TRY(reader_elements(g, b, nb == 1 ? 0 : at, nb == 1 ? 1 : n, right));
        for (size_t i = 0; i < n && *equal; i++)
            *equal = memcmp(&left[na == 1 ? 0 : i], &right[nb == 1 ? 0 : i], sizeof *left) == 0;
    }
done:
    return status;
}

static tare_status compare(verify *v, reader_layout *f, const reader_tensor *a, reader_layout *g,
                           const reader_tensor *b)
{
    tare_status status = TARE_OK;
    size_t length;
    bool equal = false, packed = role_of_name(a->info.name, &length) == TENSOR_WEIGHT_PACKED;
    const reader_linear *l = reader_find_linear(f, a->info.name, length);
    const reader_linear *m = reader_find_linear(g, a->info.name, length);
    if (packed && l && m && l->complete && m->complete)
        TRY(equal_codes(f, l, g, m, &equal));
    else if ((a->info.dtype == TARE_I8 || is_decodable(a->info.dtype)) &&
             is_decodable(b->info.dtype)) /* I8: a zero point */
        TRY(equal_values(f, a, g, b, &equal));
    else if (a->info.dtype == b->info.dtype)
        TRY(reader_same_bytes(f, a, g, b, &equal));
    if (!equal)
        verify_fail(v, 27, a->info.name, "the values of the other layout", "others in %s", f->dir);
done:
    return status;
}

/* What the layout leaves out is 0 in the other. */
static tare_status check_symmetric(verify *v, const reader_layout *f, const reader_layout *g,
                                   const reader_tensor *b)
{
    size_t length;
    float offset;
    tare_status status = TARE_OK;
    if (role_of_name(b->info.name, &length) != TENSOR_INPUT_OFFSET || b->info.bytes == 0)
        return TARE_OK;
    TRY(reader_elements(g, b, 0, 1, &offset));
    if (offset != 0)
        verify_fail(v, 27, b->info.name, "0: activations are symmetric in the other layout",
                    "%g, unlike %s", (double)offset, f->dir);
done:
    return status;
}

/* Every layout against the first one. */
tare_status rule_layouts_agree(verify *v, reader_layout *f)
{
    reader_layout *first = &v->output.layouts[0];
    size_t found = 0, expected = 0;
    tare_status status = TARE_OK;
    if (f == first || first->broken)
        return TARE_OK;
    for (size_t i = 0; i < first->num_tensors; i++) {
        const reader_tensor *b = &first->tensors[i], *a = counterpart(f, b->info.name);
        TRY(context_check_cancelled(f->ctx));
        if (a) {
            found += !may_be_absent(f, a->info.name);
            TRY(compare(v, f, a, first, b));
        } else if (may_be_absent(f, b->info.name)) {
            TRY(check_symmetric(v, f, first, b));
        } else {
            verify_fail(v, 27, b->info.name, "the tensors of the other layout", "none in %s",
                        f->dir);
        }
    }
    for (size_t i = 0; i < f->num_tensors; i++)
        expected += !may_be_absent(f, f->tensors[i].info.name);
    if (expected > found)
        verify_fail(v, 27, f->dir, "the tensors of the other layout", "%zu more", expected - found);
done:
    return status;
}
