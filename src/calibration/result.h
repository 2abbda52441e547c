/* The samples of a mix, while they are collected and afterwards. */
#ifndef TARE_CALIBRATION_RESULT_H
#define TARE_CALIBRATION_RESULT_H

#include "calibration/calib.h"

struct tare_calib_result {
    tare_context *ctx;
    arena arena; /* of the texts */
    tare_calib_entry *entries;
    size_t count, capacity;
};

tare_status result_create(tare_context *ctx, tare_calib_result **out);
/* Adds a copy; `set` (the name) must live in the result's arena. */
tare_status result_add(tare_calib_result *result, const drawn_sample *sample, const char *set);
/* Only the first `count` entries stay. */
void result_cut(tare_calib_result *result, size_t count);
/* Shuffles all entries. TARE_E_DATA beyond 2^32. */
tare_status result_shuffle(tare_calib_result *result, const calib_seed *seed);

#endif
