/* Norms, whose weights outlier suppression changes and to which it may give a bias (specification:
 * output_formats.md 4.2). */
#include <string.h>

#include "output/output_internal.h"

tare_status output_declare_norm(output *o, const tensor_info *weight, norm_kind kind)
{
    output_unit *u;
    tare_status status = TARE_OK;
    if (!str_ends_with(weight->name, ".weight") || weight->rank != 1)
        TRY(TARE_FAIL(o->ctx, TARE_E_MODEL, "%s is not the weight of a norm", weight->name));
    if (o->options.save & SAVE_NUMPY)
        TRY(output_numpy_check(o, weight));
    TRY(output_add_unit(o, &o->floats, weight->name, UNIT_NORM, &u));
    u->tensor = *weight;
    u->tensor.name = u->name;
    u->tensor.bytes = (uint64_t)weight->shape[0] * dtype_size(weight->dtype);
    u->norm = kind;
    o->shifts_norms |= kind == NORM_SHIFTED;
done:
    return status;
}

size_t output_expand_norm(const output *o, const output_folder *f, const output_unit *u,
                          planned_tensor *tensors)
{
    bool ascend = f->layout == LAYOUT_ASCENDV1, wrapped = u->norm != NORM_PLAIN;
    bool bias = f->layout == LAYOUT_COMPRESSED_TENSORS ? false
                : ascend && !o->options.num.compat     ? u->norm == NORM_SHIFTED
                                                       : wrapped;
    bool typed = o->schemes || o->options.num.compat;
    size_t count = bias ? (ascend ? 2 : 4) : 1;
    for (size_t i = 0; tensors && i < count; i++) {
        bool copy = i >= 2;
        tensors[i] = (planned_tensor){
            .info = u->tensor,
            .type = output_type(o, f->layout, copy && typed ? o->options.scheme : SCHEME_FLOAT),
            .role = TENSOR_FLOAT,
            .not_numpy = copy};
        if (i % 2)
            tensors[i].info.dtype = TARE_F32;
    }
    return count;
}

tare_status output_write_norm(output *o, const char *weight_name, const void *weight,
                              const float *bias)
{
    output_unit *u = output_find_unit(o, &o->floats, weight_name, UNIT_NORM);
    tare_status status = TARE_OK;
    void *zeros = NULL;

    if (!u || u->complete)
        return TARE_FAIL(o->ctx, TARE_E_USAGE, "norm %s was not declared, or is written twice",
                         weight_name);
    if (!bias) {
        zeros = mem_calloc(o->ctx, u->tensor.shape[0], sizeof(float));
        TRY(zeros ? TARE_OK : TARE_E_MEMORY);
    }
    for (size_t i = 0; i < o->num_folders; i++) {
        output_folder *f = &o->folders[i];
        size_t count = output_expand_norm(o, f, u, NULL);
        for (size_t j = 0; j < count; j++) {
            const planned_tensor *t = &f->tensors[u->first[i] + j];
            const void *data = j % 2 == 0 ? weight : bias ? bias : zeros;
            TRY(output_write_tensor(o, f, t, 0, data, t->info.bytes));
        }
    }
    if (o->options.tape)
        TRY(output_tape_norm(o, u, weight, bias));
    u->complete = true;
done:
    mem_free(o->ctx, zeros);
    return TARE_WRAP(o->ctx, status, "%s", weight_name);
}
