/* The quantization_config that compressed-tensors' readers go by (specification: output_formats.md
 * 7). */
#include <string.h>

#include "file/json.h"
#include "output/output_internal.h"

/* Every key that llm-compressor writes, in its order; the nulls are part of the format. */
#define WEIGHTS                                                                                    \
    "{\"num_bits\": 8, \"type\": \"int\", \"symmetric\": true, \"group_size\": null, "             \
    "\"strategy\": \"channel\", \"block_structure\": null, \"dynamic\": false, "                   \
    "\"actorder\": null, \"scale_dtype\": null, \"zp_dtype\": null, "                              \
    "\"observer\": \"memoryless_minmax\", \"observer_kwargs\": {}}"
#define ACTIVATIONS                                                                                \
    "{\"num_bits\": 8, \"type\": \"int\", \"symmetric\": false, \"group_size\": null, "            \
    "\"strategy\": \"tensor\", \"block_structure\": null, \"dynamic\": false, "                    \
    "\"actorder\": null, \"scale_dtype\": null, \"zp_dtype\": \"torch.int8\", "                    \
    "\"observer\": \"minmax\", \"observer_kwargs\": {}}"

static void put_config(const output *o, buffer *b)
{
    bool alone = strcmp(o->quant_type, scheme_of(SCHEME_W8A16)->type) == 0;
    const char *format = alone ? "pack-quantized" : "int-quantized";
    buffer_printf(b,
                  "{\"quant_method\": \"compressed-tensors\", \"quantization_status\": "
                  "\"compressed\", \"format\": \"%s\", \"global_compression_ratio\": null, "
                  "\"kv_cache_scheme\": null, \"sparsity_config\": {}, \"transform_config\": {}, "
                  "\"version\": \"0.19.0\", \"ignore\": [",
                  format);
    for (size_t i = 0; i < o->num_float_linears; i++) {
        buffer_puts(b, i ? ", " : "");
        json_write_string(b, o->float_linears[i], strlen(o->float_linears[i]));
    }
    buffer_printf(b,
                  "], \"config_groups\": {\"group_0\": {\"targets\": [\"Linear\"], \"format\": "
                  "\"%s\", \"output_activations\": null, \"weights\": " WEIGHTS
                  ", \"input_activations\": %s}}}",
                  format, alone ? "null" : ACTIVATIONS);
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
