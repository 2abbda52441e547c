/* Post-processor: puts the special tokens of a TemplateProcessing around the ids of a text.
 * ByteLevel only moves offsets, which are of no concern here. */
#ifndef TARE_TOKENIZER_POSTPROCESS_H
#define TARE_TOKENIZER_POSTPROCESS_H

#include "tokenizer/bpe.h"

/* A piece of the template for one text: the text itself, or the ids of a special token. */
typedef struct template_piece {
    bool is_text;
    uint32_t *ids; /* owned */
    size_t count;
} template_piece;

typedef struct postprocessor {
    tare_context *ctx;
    bool has_template;
    template_piece *pieces;
    size_t count, capacity;
} postprocessor;

void postprocessor_init(postprocessor *p, tare_context *ctx);
void postprocessor_free(postprocessor *p);
/* `v`: the member "post_processor"; null or absent: nothing is added. */
tare_status postprocessor_read(postprocessor *p, const stage_reader *r, const value *v);
/* Makes it a template that puts one id in front of a text and one behind it; NULL: none. What was
 * read is dropped. */
tare_status postprocessor_set(postprocessor *p, const uint32_t *front, const uint32_t *behind);
/* Replaces `ids` by what the template makes of it. */
tare_status postprocessor_run(const postprocessor *p, bool add_special_tokens, id_list *ids);

#endif
