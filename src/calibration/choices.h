/* Multiple-choice questions in CSV files, a file a subject: what ceval_5_shot and mmlu share
 * (sections 5.3 to 5.5). */
#ifndef TARE_CALIBRATION_CHOICES_H
#define TARE_CALIBRATION_CHOICES_H

#include "calibration/set.h"
#include "file/csv.h"

/* Columns of a question, behind the id where there is one. */
enum { CHOICE_QUESTION, CHOICE_A, CHOICE_D = 4, CHOICE_ANSWER, CHOICE_COLUMNS };

/* The good records of one file. Cells are strings, but with `compat` an answer may be a number. */
typedef struct choice_record {
    size_t line;
    value cells[CHOICE_COLUMNS];
} choice_record;

/* A file of zeros is one that was not read yet. */
typedef struct choice_file {
    arena arena;
    input_text text;
    csv_table table;
    choice_record *records;
    size_t count;
    uint64_t skipped; /* bad records */
} choice_file;

/* One subject of a set: its examples and its questions. */
typedef struct choice_subject {
    const char *name; /* in the arena of the set */
    choice_file dev, questions;
    uint64_t first; /* index of its first question among those of the set */
} choice_subject;

typedef struct choice_set {
    tare_context *ctx;
    arena arena;
    const char *heading; /* of a prompt with examples, before the subject */
    size_t examples;     /* before each question */
    choice_subject *subjects;
    size_t count;
} choice_set;

/* How a set reads one of its subjects. */
typedef tare_status (*choice_load)(calib_input *in, choice_set *set, choice_subject *subject,
                                   const char *folder);

/* Reads the set in `folder`: the subjects named by subject_mapping.json, where `key` (NULL: the
 * whole document, a list or the keys of an object) holds them, or, without that file, those of the
 * files `part`/NAME_`part`.csv. *count gets the questions. */
tare_status choice_set_load(calib_input *in, const char *folder, const char *key, const char *part,
                            const char *heading, size_t examples, choice_load load, void **data,
                            uint64_t *count);
/* folder/part/NAME_part.csv, in the arena of the set; NULL when out of memory. */
char *choice_set_path(choice_set *set, const char *folder, const char *part, const char *name);
/* The `make` and `free` of a set_kind. */
tare_status choice_set_make(tare_context *ctx, const void *data, uint64_t record, arena *a,
                            buffer *prompt, const value **ans);
void choice_set_free(tare_context *ctx, void *data);

/* Reads a file; parses its rows (TARE_E_DATA where there are none); checks them and makes the
 * records (TARE_E_DATA for less than CHOICE_COLUMNS columns or `least` records). `header`: the
 * first row is one, and the first column an id. */
tare_status choice_file_read(calib_input *in, const char *path, choice_file *f);
tare_status choice_file_parse(calib_input *in, const char *path, choice_file *f);
tare_status choice_file_check(calib_input *in, const char *path, bool header, size_t least,
                              choice_file *f);
/* All three. */
tare_status choice_file_load(calib_input *in, const char *path, bool header, size_t least,
                             choice_file *f);
void choice_file_free(tare_context *ctx, choice_file *f);

/* Types the cells of `count` records of one file as pandas would (section 11.2); `header`: a row of
 * cells that takes part, or NULL. Values are allocated from `a`. */
tare_status pandas_type_cells(arena *a, choice_record *records, size_t count, const value *header);
/* Is a cell of this text missing to pandas? */
bool pandas_is_missing(const char *text, size_t length);

#endif
