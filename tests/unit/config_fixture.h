/* config.json in a test's own text. */
#ifndef TARE_TESTS_CONFIG_FIXTURE_H
#define TARE_TESTS_CONFIG_FIXTURE_H

#include <string.h>

#include "model/config.h"

static inline tare_status parse_config(tare_context *ctx, arena *a, const char *json,
                                       model_config *out)
{
    return model_config_parse(ctx, a, json, strlen(json), "config.json", out);
}

#endif
