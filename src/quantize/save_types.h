/* The save types (specification: spec/output_formats.md 1), each a layout of files: the one table
 * that recipes, outputs and `tare verify` go by. A set of them is bits. */
#ifndef TARE_QUANTIZE_SAVE_TYPES_H
#define TARE_QUANTIZE_SAVE_TYPES_H

#include <stdint.h>

#include "base/context.h"

typedef enum layout {
    LAYOUT_ASCENDV1,
    LAYOUT_SAFE_TENSOR,
    LAYOUT_NUMPY,
    LAYOUT_COMPRESSED_TENSORS,
    SAVE_TYPES
} layout;

enum {
    SAVE_ASCENDV1 = 1 << LAYOUT_ASCENDV1,
    SAVE_SAFE_TENSOR = 1 << LAYOUT_SAFE_TENSOR,
    SAVE_NUMPY = 1 << LAYOUT_NUMPY,
    SAVE_COMPRESSED_TENSORS = 1 << LAYOUT_COMPRESSED_TENSORS
};

enum {                 /* what a save type is */
       SAVE_PLAIN = 1, /* without a place for FA scales, weight offsets, biases of norms */
       SAVE_DROPS_BIASES =
           2,           /* for engines that drop a bias which the architecture does not have */
       SAVE_NO_INT4 = 4 /* without 4-bit weights of one scale a row */
};

typedef struct save_type {
    const char *folder; /* where it goes when several do not fit in one; some share theirs */
    int part_gib;       /* part_file_size by default; 0: one file */
    unsigned flags;
} save_type;

const save_type *save_type_of(layout which);
/* Those of `save` that have a flag. */
unsigned save_types_with(unsigned save, unsigned flag);
/* All that share the folder of `which`, if it is their first; else none. */
unsigned save_types_beside(layout which);
/* "ascendv1, numpy"; none: "unknown". */
const char *save_types_text(unsigned save);
/* TARE_E_USAGE that names what is possible if one is not known. */
tare_status save_types_parse(tare_context *ctx, const char *const *names, size_t count,
                             unsigned *save);

/* The record of the run (tare_run.json) that wrote the output folder `dir`; of several layouts that
 * have folders of their own any. mem_free; NULL: there is none. */
tare_status save_types_record(tare_context *ctx, const char *dir, char **path);

/* A value that a setting may have, by name. */
typedef struct choice {
    const char *name;
    int64_t number;
} choice;
/* Names of layouts, the one to write first; ends with NULL. */
extern const choice save_type_names[];

#endif
