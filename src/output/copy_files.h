/* Which files of a checkpoint go beside the weights of an output (section 1.2 of
 * spec/output_formats.md). Links are followed, wherever they lead: caches and mounted volumes are
 * made of them. */
#ifndef TARE_OUTPUT_COPY_FILES_H
#define TARE_OUTPUT_COPY_FILES_H

#include "file/io.h"

#define COPY_MAX_BYTES ((uint64_t)64 << 20)

/* Is a file of this name copied? config.json is not among them: it is edited, not copied. */
bool copy_wanted(const char *name, bool copy_code);
/* Does a tokenizer need a file of this name? */
bool copy_is_tokenizer(const char *name);
/* Why `path` can't be copied; NULL: it is a plain file, or a link to one, of at most COPY_MAX_BYTES
 * that can be read. */
const char *copy_obstacle(const char *path);

typedef struct copy_file {
    const char *name; /* in the model folder; "additional_chat_templates/rag.jinja" */
    const char *path; /* NULL: it is left out, and */
    const char *why;  /* says why (NULL: such files are not copied) */
    bool missed;      /* it is left out, and readers of the output look for it; */
    bool broken;      /* because it can't be read: that can be mended, so a run is refused */
} copy_file;

typedef struct copy_list {
    copy_file *files; /* [count], sorted by name, without what every output replaces */
    size_t count;
} copy_list;

/* All of the arena. */
tare_status copy_list_make(tare_context *ctx, arena *a, const char *model_dir, bool copy_code,
                           copy_list *out);

#endif
