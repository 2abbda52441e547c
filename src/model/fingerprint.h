/* Digests that tell whether a model is the one that a run began with. */
#ifndef TARE_MODEL_FINGERPRINT_H
#define TARE_MODEL_FINGERPRINT_H

#include "model/model.h"

/* A digest as a JSON string. */
void digest_write(buffer *out, const void *data, size_t length);
/* That of a text that was made for it, and is freed. */
tare_status digest_text(buffer *text, buffer *out);
/* The digest of what the header of a weight file says. */
tare_status fingerprint_header(const tare_model *model, const safetensors *s, buffer *out);
/* The same of tensors in memory: names, dtypes and shapes. */
tare_status fingerprint_table(const tare_model *model, buffer *out);
/* Members of a JSON map: digests of what the weight files' headers say. */
tare_status fingerprint_files(const tare_model *model, buffer *out);
/* A JSON map: when each weight file was changed last, or a digest of all values in memory. */
tare_status fingerprint_times(const tare_model *model, buffer *out);

#endif
