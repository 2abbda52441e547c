/* The quantization_config that compressed-tensors' readers go by (specification: output_formats.md
 * 7). */
#include <string.h>

#include "file/json.h"
#include "output/output_internal.h"

/* Every key that llm-compressor writes, in its order; the nulls are part of the format. */
#define ARGS(symmetric, strategy, dynamic, zp_dtype, observer)                                     \
    "{\"num_bits\": 8, \"type\": \"int\", \"symmetric\": " symmetric ", \"group_size\": null, "    \
    "\"strategy\": \"" strategy "\", \"block_structure\": null, \"dynamic\": " dynamic ", "        \
    "\"actorder\": null, \"scale_dtype\": null, \"zp_dtype\": " zp_dtype                           \
    ", \"observer\": " observer ", \"observer_kwargs\": {}}"
#define WEIGHTS ARGS("true", "channel", "false", "null", "\"memoryless_minmax\"")

static const char SYMMETRIC[] = ARGS("true", "tensor", "false", "null", "\"minmax\"");
static const char *const ACTIVATIONS[] = {
    [ACT_FLOAT] = "null",
    [ACT_STATIC] = ARGS("false", "tensor", "false", "\"torch.int8\"", "\"minmax\""),
    [ACT_PER_TOKEN] = ARGS("true", "token", "true", "null", "null"),
};

static void put_name(buffer *b, const char *name, bool *first)
{
    buffer_puts(b, *first ? "" : ", ");
    *first = false;
    json_write_string(b, name, strlen(name));
}

/* By their names when there are other groups: a class would take what engines fuse from them. */
static void put_targets(const output *o, linear_scheme scheme, buffer *b)
{
    bool first = true;
    if (o->schemes == 1u << scheme) {
        put_name(b, "Linear", &first);
        return;
    }
    for (size_t i = 0; i < o->num_units; i++)
        if (o->units[i].kind == UNIT_LINEAR && o->units[i].linear.scheme == scheme)
            put_name(b, o->units[i].name, &first);
}

static void put_group(const output *o, linear_scheme scheme, size_t number, buffer *b)
{
    act_kind kind = scheme_of(scheme)->activations;
    bool symmetric = kind == ACT_STATIC && o->options.num.act_symmetric;
    buffer_printf(b, "%s\"group_%zu\": {\"targets\": [", number ? ", " : "", number);
    put_targets(o, scheme, b);
    buffer_printf(b,
                  "], \"format\": \"%s\", \"output_activations\": null, \"weights\": " WEIGHTS
                  ", \"input_activations\": %s}",
                  compressed_format(1u << scheme), symmetric ? SYMMETRIC : ACTIVATIONS[kind]);
}

static void put_config(const output *o, buffer *b)
{
    bool first = true;
    size_t groups = 0;
    buffer_printf(b,
                  "{\"quant_method\": \"compressed-tensors\", \"quantization_status\": "
                  "\"compressed\", \"format\": \"%s\", \"global_compression_ratio\": null, "
                  "\"kv_cache_scheme\": null, \"sparsity_config\": {}, \"transform_config\": {}, "
                  "\"version\": \"0.19.0\", \"ignore\": [",
                  compressed_format(o->schemes));
    for (size_t i = 0; i < o->num_float_linears; i++)
        put_name(b, o->float_linears[i], &first);
    buffer_puts(b, "], \"config_groups\": {");
    for (int scheme = 0; scheme < SCHEMES; scheme++)
        if (o->schemes >> scheme & 1)
            put_group(o, (linear_scheme)scheme, groups++, b);
    buffer_puts(b, "}}");
}

tare_status output_quantization_config(output *o, arena *a, const value **out)
{
    buffer b;
    buffer_init(&b, o->ctx);
    put_config(o, &b);
    tare_status status = b.status;
    if (status == TARE_OK)
        status = json_parse(o->ctx, a, b.data, b.length, "quantization_config", JSON_STRICT, out);
    buffer_free(&b);
    return status;
}
