/* The files that a mix is read from: plain text in UTF-8, warnings about them, what is done about
 * bad records (calibration_sets.md sections 3 and 4.3). */
#ifndef TARE_CALIBRATION_INPUT_H
#define TARE_CALIBRATION_INPUT_H

#include <sys/stat.h>

#include "base/memory.h"

typedef struct calib_input {
    tare_context *ctx;
    bool skip_bad;
    bool compat;         /* cells as pandas types them, in batches of the reference's */
    uint32_t mmlu_shots; /* dev examples before each question of mmlu */
    uint64_t skipped;    /* bad records so far, of the set in work */
    uint64_t digest;     /* of the files that were read since it was set to 0 */
    struct file_identity {
        dev_t device;
        ino_t inode;
    } * files; /* that were read: the result may replace none of them */
    size_t num_files, files_capacity;
} calib_input;

void input_free(calib_input *in);
bool input_has_read(const calib_input *in, const struct stat *st);

/* The text of a file without its byte order mark. */
typedef struct input_text {
    char *data; /* freed with mem_free */
    const char *text;
    size_t length;
} input_text;

/* TARE_E_IO names the path. */
tare_status input_read(calib_input *in, const char *path, input_text *out);

/* Decides about a record of `path` whose making ended with `status`: what is no fault of the record
 * (TARE_OK, TARE_E_MEMORY, …) is returned; else TARE_OK and *bad after counting it, where bad
 * records are skipped, or TARE_E_DATA with "path:line: " before the message. */
tare_status input_judge(calib_input *in, tare_status status, const char *path, size_t line,
                        bool *bad);
/* The warning that `count` records of `path` were skipped, if any were. */
void input_report(calib_input *in, const char *path, uint64_t count);

#endif
