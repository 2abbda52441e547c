/* quant_model_description*.json and the index of sharded weights (specification: output_formats.md
 * 2.5, 3 and 10). */
#include <inttypes.h>
#include <string.h>

#include "file/json.h"
#include "output/output_internal.h"

static void put_member(buffer *b, const char *indent, const char *key, const char *text,
                       bool *first)
{
    buffer_puts(b, *first ? "\n" : ",\n");
    *first = false;
    buffer_puts(b, indent);
    json_write_string(b, key, strlen(key));
    buffer_puts(b, ": ");
    json_write_string(b, text, strlen(text));
}

tare_status output_stage_index(output *o, output_folder *f)
{
    bool first = true;
    buffer b;
    if (!f->has_files || !f->sharded)
        return TARE_OK;
    buffer_init(&b, o->ctx);
    buffer_printf(&b, "{\n  \"metadata\": {\n    \"total_size\": %" PRIu64 "\n  },\n",
                  output_planned_bytes(f));
    buffer_puts(&b, "  \"weight_map\": {");
    for (size_t i = 0; i < f->num_tensors; i++)
        if (!f->tensors[i].absent)
            put_member(&b, "    ", f->tensors[i].info.name, f->files[f->tensors[i].file].name,
                       &first);
    buffer_puts(&b, "\n  }\n}\n");
    tare_status status = b.status;
    char *name = arena_printf(&o->arena, "%s.safetensors.index.json", f->prefix);
    TRY(status);
    TRY(name ? TARE_OK : TARE_E_MEMORY);
    TRY(output_stage_text(o, f, name, b.data, b.length));
done:
    buffer_free(&b);
    return status;
}

/* Never null: an engine that tests fa_quant_type != "" would switch attention quantization on. */
static void put_globals(output *o, output_folder *f, buffer *b, bool *first)
{
    bool ascend = f->layout == LAYOUT_ASCENDV1;
    if (ascend)
        put_member(b, "  ", "version", "1.0.0", first);
    put_member(b, "  ", "model_quant_type", output_type(o, f->layout, o->named_by), first);
    if (o->kv_cache) {
        put_member(b, "  ", "kv_cache_type", "C8", first);
        put_member(b, "  ", "kv_quant_type", "C8", first);
    }
    if (output_fa_quant_type(o, f))
        put_member(b, "  ", "fa_quant_type", output_fa_quant_type(o, f), first);
    if (ascend && !o->options.num.compat)
        buffer_printf(b, ",\n  \"group_size\": 0,\n  \"metadata\": {},\n  \"optional\": {%s}",
                      f->rotation ? "\"quarot\": {\"rotation_map\": {\"" ROTATION_TENSOR
                                    "\": \"" ROTATION_FILE "\"}}"
                                  : "");
}

static tare_status describe(output *o, output_folder *f, bool tensors, buffer *out)
{
    bool first = true;
    if (!f->has_files || f->layout == LAYOUT_COMPRESSED_TENSORS)
        return TARE_OK;
    buffer_putc(out, '{');
    put_globals(o, f, out, &first);
    for (size_t i = 0; tensors && i < f->num_tensors; i++)
        if (!f->tensors[i].absent)
            put_member(out, "  ", f->tensors[i].info.name, f->tensors[i].type, &first);
    buffer_puts(out, "\n}\n");
    return out->status;
}

tare_status output_description_globals(output *o, output_folder *f, buffer *out)
{
    return describe(o, f, false, out);
}

tare_status output_stage_description(output *o, output_folder *f)
{
    buffer b;
    tare_status status = TARE_OK;
    buffer_init(&b, o->ctx);
    TRY(describe(o, f, true, &b));
    if (b.length == 0)
        goto done;
    char *name = output_description_name(o, f->layout);
    TRY(name ? TARE_OK : TARE_E_MEMORY);
    TRY(output_stage_text(o, f, name, b.data, b.length));
done:
    buffer_free(&b);
    return status;
}
