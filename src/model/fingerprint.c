#include "model/fingerprint.h"

#include <string.h>
#include <xxhash.h>

#include "file/json.h"

void digest_write(buffer *out, const void *data, size_t length)
{
    XXH128_hash_t h = XXH3_128bits(data, length);
    buffer_printf(out, "\"%016llx%016llx\"", (unsigned long long)h.high64,
                  (unsigned long long)h.low64);
}

static const char *file_name(const safetensors *s)
{
    const char *slash = strrchr(safetensors_path(s), '/');
    return slash ? slash + 1 : safetensors_path(s);
}

tare_status digest_text(buffer *text, buffer *out)
{
    tare_status status = text->status;
    if (status == TARE_OK)
        digest_write(out, text->data ? text->data : "", text->length);
    buffer_free(text);
    return status;
}

tare_status fingerprint_header(const tare_model *model, const safetensors *s, buffer *out)
{
    buffer header;
    buffer_init(&header, model->ctx);
    for (size_t t = 0; t < safetensors_count(s); t++) {
        const tensor_info *info = safetensors_at(s, t);
        buffer_printf(&header, "%s %s %llu %llu\n", info->name, dtype_name(info->dtype),
                      (unsigned long long)info->offset, (unsigned long long)info->bytes);
    }
    return digest_text(&header, out);
}

tare_status fingerprint_table(const tare_model *model, buffer *out)
{
    const checkpoint *c = model->checkpoint;
    buffer table;
    buffer_init(&table, model->ctx);
    for (size_t t = 0; t < checkpoint_count(c); t++) {
        const tensor_info *info = checkpoint_at(c, t);
        buffer_printf(&table, "%s %s", info->name, dtype_name(info->dtype));
        for (int i = 0; i < info->rank; i++)
            buffer_printf(&table, " %zu", info->shape[i]);
        buffer_putc(&table, '\n');
    }
    return digest_text(&table, out);
}

/* Of what lies in memory nothing but the values themselves tells whether they changed. */
static tare_status write_values_digest(const tare_model *model, buffer *out)
{
    tare_status status = TARE_OK;
    const checkpoint *c = model->checkpoint;
    buffer digests;
    buffer_init(&digests, model->ctx);
    for (size_t t = 0; t < checkpoint_count(c) && status == TARE_OK; t++) {
        const tensor_info *info = checkpoint_at(c, t);
        digest_write(&digests, checkpoint_data(c, info), info->bytes);
        status = context_check_cancelled(model->ctx);
    }
    if (status == TARE_OK)
        return digest_text(&digests, out);
    buffer_free(&digests);
    return status;
}

tare_status fingerprint_files(const tare_model *model, buffer *out)
{
    tare_status status = TARE_OK;
    const checkpoint *c = model->checkpoint;
    for (size_t i = 0; i < checkpoint_file_count(c); i++) {
        const safetensors *s = checkpoint_file(c, i);
        buffer_puts(out, ", ");
        json_write_string(out, file_name(s), strlen(file_name(s)));
        buffer_puts(out, ": ");
        TRY(fingerprint_header(model, s, out)); /* which holds the size, as tensors fill the file */
    }
    if (checkpoint_file_count(c) == 0) {
        buffer_puts(out, ", \"tensors in memory\": ");
        TRY(fingerprint_table(model, out));
    }
done:
    return status;
}

tare_status fingerprint_times(const tare_model *model, buffer *out)
{
    tare_status status = TARE_OK;
    const checkpoint *c = model->checkpoint;
    buffer_putc(out, '{');
    for (size_t i = 0; i < checkpoint_file_count(c); i++) {
        const safetensors *s = checkpoint_file(c, i);
        char text[48];
        safetensors_modified(s, text, sizeof text);
        buffer_puts(out, i ? ", " : "");
        json_write_string(out, file_name(s), strlen(file_name(s)));
        buffer_printf(out, ": \"%s\"", text);
    }
    if (checkpoint_file_count(c) == 0) {
        buffer_puts(out, "\"values of the tensors in memory\": ");
        status = write_values_digest(model, out);
    }
    buffer_putc(out, '}');
    return status == TARE_OK ? out->status : status;
}
