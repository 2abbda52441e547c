/* Which files of a checkpoint go beside the weights of an output (section 1.2 of
 * spec/output_formats.md), and their copying. */
#ifndef TARE_OUTPUT_COPY_FILES_H
#define TARE_OUTPUT_COPY_FILES_H

#include "file/io.h"

#define COPY_MAX_BYTES ((uint64_t)64 << 20)

/* Is a file of this name copied? config.json is not among them: it is edited, not copied. */
bool copy_wanted(const char *name, bool copy_code);
/* Resolves `name` in `model_dir` (a real path): a plain file, or a symlink that stays inside the
 * folder or its Hugging Face cache's blobs. NULL in *path: neither, or larger than COPY_MAX_BYTES;
 * *why then says so. */
tare_status copy_resolve(tare_context *ctx, const char *model_dir, const char *name, char **path,
                         const char **why);

#endif
