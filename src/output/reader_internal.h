/* Opening an output (reader.h): shared by the files that read one. */
#ifndef TARE_OUTPUT_READER_INTERNAL_H
#define TARE_OUTPUT_READER_INTERNAL_H

#include "output/reader.h"

/* `plan` NULL: what is in the folder. */
tare_status reader_layout_open(reader *r, layout which, const char *dir, const reader_plan *plan,
                               reader_layout *out);
void reader_layout_close(reader_layout *f);

/* reader_linears.c: the quantized linears among the tensors, and their schemes and forms. */
tare_status reader_collect_linears(reader_layout *f);

#endif
