/* Records that are the lines of a file, a JSON object each (section 4.1); blank lines are none. */
#ifndef TARE_CALIBRATION_JSON_LINES_H
#define TARE_CALIBRATION_JSON_LINES_H

#include "calibration/set.h"

typedef struct json_lines json_lines;

/* Makes the prompt (appended) and the answer of a sample from a record; TARE_E_DATA and the reason
 * if it is a bad one. *ans lives in the record's arena `a`. */
typedef tare_status (*json_line_make)(tare_context *ctx, const value *record, arena *a,
                                      buffer *prompt, const value **ans);

tare_status json_lines_load(calib_input *in, const char *path, json_line_make make, void **data,
                            uint64_t *count);
/* The `make` and `free` of a set_kind. */
tare_status json_lines_make(tare_context *ctx, const void *data, uint64_t record, arena *a,
                            buffer *prompt, const value **ans);
void json_lines_free(tare_context *ctx, void *data);

/* A member that must be there: TARE_E_DATA names it. */
tare_status json_line_member(tare_context *ctx, const value *record, const char *key,
                             const value **out);
/* The same, a string. */
tare_status json_line_string(tare_context *ctx, const value *record, const char *key,
                             const value **out);

#endif
