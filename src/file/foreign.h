/* What a file is that does not parse as what it should be. Asked only after a parse failed, so that
 * it costs nothing: a download that left a Git LFS pointer or a server's page, another format, a
 * compressed file, text in UTF-16. */
#ifndef TARE_FILE_FOREIGN_H
#define TARE_FILE_FOREIGN_H

#include "file/io.h"

/* Who reads: its own kind of file is not foreign to it, however broken. */
typedef enum foreign_reader { FOREIGN_TEXT, FOREIGN_SAFETENSORS, FOREIGN_NPY } foreign_reader;

typedef struct foreign_kind {
    const char *name;      /* "a Git LFS pointer, not the file itself" */
    const char *help;      /* "git lfs pull fetches it" */
    bool text;             /* may be meant, where any text is */
    foreign_reader reader; /* of it; FOREIGN_TEXT: none */
} foreign_kind;

/* What `data` [length], the beginning of a file or all of it, is to be recognised as; NULL: nothing
 * that is known. Every kind is found in the first FOREIGN_HEAD bytes. */
enum { FOREIGN_HEAD = 4096 };
const foreign_kind *foreign_recognise(const void *data, size_t length);

/* Says so instead of the present message, if `status` is TARE_E_FORMAT or TARE_E_DATA and `what`
 * holds something of a known kind: "<what>: <name>; <help>". Returns `status`. */
tare_status foreign_explain(tare_context *ctx, tare_status status, const char *what,
                            const void *data, size_t length);
/* The same of a file by its path; one that cannot be read is not explained. */
tare_status foreign_explain_path(tare_context *ctx, tare_status status, const char *path,
                                 foreign_reader reader);

#endif
